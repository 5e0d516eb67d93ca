"""What a visitor can do: functions from one session to the next.

What cannot be done raises a ValueError or a TypeError, whose message the page shows.
The session stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.editing import Edit
from panda_sklearn.explorer._explored import MOST_IMAGES, Explored
from panda_sklearn.explorer._session import KINDS, Kept, Session
from panda_sklearn.utils.validation import (
    check_choice,
    check_count,
    check_indices,
    check_single,
)

__all__ = [
    "add_all",
    "choose",
    "draw",
    "edit_of",
    "find",
    "keep",
    "paint",
    "pick",
    "point_at",
    "put_parts",
    "refine",
    "reset",
    "start",
    "switch",
    "undo",
    "with_directions",
    "with_images",
]

N_FOUND, N_LATENTS = 5, 8  # directions to find, and images to find them on
LONGEST_NAME = 60


def start(explored: Explored) -> Session:
    """The session of a new visitor."""
    latents = explored.draw(8, 0)
    source = _source(explored, 8, 0, explored.truncation)
    return Session(explored.editor, latents, source, truncation=explored.truncation)


def draw(
    explored: Explored,
    session: Session,
    n: Any,
    seed: Any,
    truncation: Any = None,
) -> Session:
    """Draw other images and keep the edits."""
    n = check_count("The number of images", n)
    if n > MOST_IMAGES:
        raise ValueError(
            f"The number of images must be at most {MOST_IMAGES}, got {n}."
        )
    seed = check_count("The seed", seed, at_least=0)
    if seed >= 2**32:
        raise ValueError(f"The seed must be below 2**32, got {seed}.")
    if explored.truncation is None:
        truncation = None
    else:
        truncation = check_single("The truncation", truncation, at_least=0)
        if truncation > 1:
            raise ValueError(f"The truncation must be from 0 to 1, got {truncation}.")
        truncation = round(truncation, 2)
        if truncation == round(explored.truncation, 2):
            truncation = explored.truncation
    editor = session.editor
    if truncation != session.truncation or not _fits(session, explored):
        editor = explored.editor_for(editor.decomposition, truncation)
    return session.with_images(
        editor,
        explored.draw(n, seed),
        _source(explored, n, seed, truncation),
        truncation,
    )


def pick(session: Session, images: Iterable[int]) -> Session:
    """Pick the images to edit."""
    picked = tuple(
        sorted(set(check_indices("image", list(images), len(session.latents))))
    )
    return session.but(picked=picked)


def put_parts(session: Session, parts: Sequence[int]) -> Session:
    """Choose a part, or several to edit as one."""
    n = len(session.editor.decomposition.parts_)
    parts = tuple(check_indices("part", list(parts), n))
    part = parts[0] if len(parts) == 1 else parts
    return _elsewhere(session, part)


def point_at(session: Session, row: float, column: float) -> Session:
    """Choose the part that is strongest at a point of the image.

    Row and column are from 0 to 1. Parts are compared as edits use them, each scaled to
    reach from 0 to 1.
    """
    parts = torch.as_tensor(session.editor.decomposition.parts_).flatten(1)
    low, high = parts.amin(dim=1), parts.amax(dim=1)
    scaled = (parts - low[:, None]) / (high - low).clamp(min=1e-12)[:, None]
    maps = scaled.unflatten(1, session.editor.decomposition.map_shape_[1:])
    height, width = maps.shape[1:]
    y = min(max(int(row * height), 0), height - 1)
    x = min(max(int(column * width), 0), width - 1)
    return _elsewhere(session, int(maps[:, y, x].argmax()))


def paint(explored: Explored, session: Session, mask: Tensor) -> Session:
    """Choose a painted region, a mask of the images' size with values from 0 to 1."""
    if tuple(mask.shape) != explored.image_size:
        raise ValueError(
            f"The region must be of shape {explored.image_size}, got "
            f"{tuple(mask.shape)}."
        )
    if not mask.any():
        raise ValueError("Nothing is painted: paint over the image first.")
    if session.kind in ("variation", "direction"):  # a painted region has none yet
        session = session.but(kind="appearance", index=0)
    return _elsewhere(session, mask)


def _elsewhere(session: Session, part: Any) -> Session:
    """The session at another part, without the directions of the old one."""
    kind = "variation" if session.kind == "direction" else session.kind
    index = session.index if kind == session.kind else 0
    return session.but(part=part, directions=None, kind=kind, index=index)


def refine(session: Session, on: bool) -> Session:
    """Choose whether parts are refined to each image."""
    return session.but(refine=bool(on))


def choose(session: Session, kind: str, index: int = 0) -> Session:
    """Choose what the next edit changes."""
    check_choice("kind", kind, KINDS)
    count = n_of(session, kind)
    if count == 0:
        raise ValueError(
            "No directions have been found for this part: press Find directions."
            if kind == "direction"
            else "A painted region has no variations: choose an appearance, or find "
            "directions for it."
        )
    (index,) = check_indices(kind, [index], count)
    return session.but(kind=kind, index=index)


def n_of(session: Session, kind: str) -> int:
    """How many changes of a kind there are to choose from."""
    panda = session.editor.decomposition
    if kind == "direction":
        return 0 if session.directions is None else len(session.directions)
    if kind == "transfer":
        return len(session.latents)
    if kind == "variation" and not session.parts:
        return 0
    return len(panda.appearances_)


def find(explored: Explored, session: Session, verbose: int = 0) -> Session:
    """Find directions that change the chosen region and little else."""
    where = list(session.parts) or session.part
    if isinstance(where, Tensor):
        where = _at_layer(session, where)
    with explored.lock:
        latents = session.latents
        if _fits(session, explored):
            latents = explored.draw(N_LATENTS, 1)
        found = session.editor.find_directions(latents, where, N_FOUND, verbose=verbose)
    return session.but(directions=torch.as_tensor(found), kind="direction", index=0)


def with_directions(session: Session, found: Session) -> Session:
    """The session with the directions of another that is at the same part."""
    learnt = bool(found.parts) and found.parts == session.parts
    if found.part is not session.part and not learnt:
        raise ValueError(
            "You have gone to another part while directions were found for the last: "
            "press Find directions again."
        )
    return session.but(directions=found.directions, kind="direction", index=0)


def with_images(session: Session, found: Session) -> Session:
    """The session with the images of another."""
    return session.with_images(
        found.editor, found.latents, found.source, found.truncation
    )


def _at_layer(session: Session, mask: Tensor) -> Tensor:
    """A painted region at the layer's positions."""
    _, height, width = session.editor.decomposition.map_shape_
    return torch.nn.functional.adaptive_avg_pool2d(mask[None], (height, width))[0]


def edit_of(session: Session, strength: float, name: str | None = None) -> Edit:
    """The chosen change as an edit.

    The strength of a transfer is in fifths of the way, so that one slider suits all.
    """
    part = list(session.parts) or session.part
    if len(session.parts) == 1:
        (part,) = session.parts
    common: dict[str, Any] = {"part": part, "name": name}
    kind, index = session.kind, session.index
    if kind == "transfer":
        editor = session.editor
        donor = editor.extractor.transform(session.latents[index : index + 1])
        L = editor.decomposition.coefficients(donor)[0]
        return Edit(coefficients=L, strength=strength / 5, **common)
    if kind == "direction":
        assert session.directions is not None
        vector = session.directions[index]
        scale = float(torch.as_tensor(session.editor.decomposition.saliency_std_).max())
        return Edit(vector, strength=strength * scale, unit="alpha", **common)
    if kind == "appearance":
        return Edit(index, strength=strength, **common)
    return Edit(variation=index, strength=strength, **common)


def keep(
    explored: Explored, session: Session, strength: Any, name: str | None = None
) -> Session:
    """Add the chosen edit to the stack."""
    strength = check_single("The strength", strength)
    if strength == 0:
        raise ValueError(
            "An edit of strength 0 changes nothing: move the slider first."
        )
    name = (name or "").strip()[:LONGEST_NAME] or _described(session)
    with explored.lock:
        edit = edit_of(session, strength, _unused(session, name))
    return session.with_stack((*session.stack, Kept(edit)))


def _described(session: Session) -> str:
    """A name for an edit that has none."""
    place = (
        "region" if not session.parts else "part " + ", ".join(map(str, session.parts))
    )
    what = (
        f"image {session.index + 1}"
        if session.kind == "transfer"
        else f"{session.kind} {session.index}"
    )
    return f"{what} at {place}"


def _unused(session: Session, name: str) -> str:
    """The name, with a number if another edit has it already."""
    names = {kept.edit.name for kept in session.stack}
    found, n = name, 2
    while found in names:
        found, n = f"{name} ({n})", n + 1
    return found


def switch(session: Session, names: Iterable[str]) -> Session:
    """Apply the kept edits with these names, and no others."""
    names = set(names)
    stack = tuple(replace(kept, on=kept.edit.name in names) for kept in session.stack)
    if [kept.on for kept in stack] == [kept.on for kept in session.stack]:
        return session
    return session.with_stack(stack)


def undo(session: Session) -> Session:
    """Undo the last change of the stack."""
    if not session.past:
        raise ValueError("There is nothing to undo.")
    return session.but(stack=session.past[-1], past=session.past[:-1])


def reset(session: Session) -> Session:
    """Remove all edits from the stack. This can be undone, too."""
    return session.with_stack(()) if session.stack else session


def add_all(explored: Explored, session: Session, edits: Sequence[Edit]) -> Session:
    """Add edits from a file to the stack, after a trial."""
    stack = session.stack
    for edit in edits:
        named = edit.name or "from a file"
        name = _unused(session.but(stack=stack), named)
        stack = (*stack, Kept(replace(edit, name=name)))
    two = session.latents[[0, min(1, len(session.latents) - 1)]]
    with explored.lock:
        for latents in (two[:1], two):  # so that they work for one image and several
            session.editor.edit(latents, [kept.edit for kept in stack])
    return session.with_stack(stack)


def _fits(session: Session, explored: Explored) -> bool:
    """Whether the session's latents have the shape of those that are drawn."""
    shape = explored.editor.extractor.latent_shape_
    return session.editor.extractor.latent_shape_ == shape


def _source(explored: Explored, n: int, seed: int, truncation: float | None) -> str:
    """The Python lines that make an editor and latents."""
    recipe = explored.recipe.replace("TRUNCATION", repr(truncation))
    if recipe == explored.recipe and truncation != explored.truncation:
        recipe += f"\n# The images shown have another truncation than it: {truncation}"
    if explored.has_draw:
        return f"{recipe}\nlatents = draw({n}, {seed})"
    return (
        "from panda_sklearn.datasets import sample_latents\n"
        f"{recipe}\n"
        "extractor = editor.extractor\n"
        "latents = sample_latents(\n"
        f"    extractor.generator, {n}, random_state={seed},\n"
        "    forward=extractor.forward,\n"
        ")"
    )
