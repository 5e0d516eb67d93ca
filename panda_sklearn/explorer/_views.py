"""What a session looks like, as pictures and texts.

Pictures are uint8 arrays (height, width, 3), whatever the generator's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from panda_sklearn.editing import Edit
from panda_sklearn.explorer._actions import edit_of, n_of
from panda_sklearn.explorer._explored import Explored
from panda_sklearn.explorer._session import Session

__all__ = [
    "LARGE",
    "SHOWN",
    "code",
    "faces",
    "point_of",
    "scene",
    "sheet",
    "strip",
    "thumbnails",
    "tiles",
]

# What the large image can show.
SHOWN = ("after", "before", "change", "part", "saliency")

LARGE, SMALL = 384, 96  # pixels
TILE_STRENGTH = 2.0  # of the changes that tiles show, in both directions
MOST_TILES = 12
STRIP = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)

# Colours of what is shown over an image.
HEAT = torch.tensor([1.0, 0.35, 0.0])
LINE = torch.tensor([1.0, 1.0, 1.0])


def faces(explored: Explored, session: Session, edits: list[Edit]) -> Tensor:
    """The picked images with edits, in values from 0 to 1."""
    with explored.lock:
        prepared = explored.prepared(session)
        images = prepared.images
        if edits:
            learnt = any(isinstance(e.part, int | tuple | list) for e in edits)
            images = prepared.edit(edits, refine=session.refine and learnt)
    return _unit(explored, torch.as_tensor(images))


def scene(
    explored: Explored, session: Session, strength: float, shown: str = "after"
) -> np.ndarray:
    """The large picture: the picked images side by side."""
    kept = [kept.edit for kept in session.stack if kept.on]
    if shown == "part":
        images = _with_part(explored, session, faces(explored, session, kept))
    elif shown == "saliency":
        images = _with_saliency(explored, session, faces(explored, session, kept))
    elif shown == "before":
        images = faces(explored, session, [])
    else:
        images = faces(explored, session, [*kept, *_next(explored, session, strength)])
        if shown == "change":
            before = faces(explored, session, [])
            # No change is grey; a change by half the range is black or white.
            images = (0.5 + images - before).clamp(0, 1)
    return sheet(images, LARGE)


def _next(explored: Explored, session: Session, strength: float) -> list[Edit]:
    """The chosen edit; none if its strength is 0 or there is nothing to choose."""
    if strength == 0 or n_of(session, session.kind) == 0:
        return []
    with explored.lock:
        return [edit_of(session, strength)]


def sheet(images: Tensor, side: int) -> np.ndarray:
    """Images (n, colours, h, w) in one picture, ``side`` pixels wide."""
    rows, columns, size = _arranged(len(images), side, tuple(images.shape[2:]))
    height, width = size
    picture = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for k, image in enumerate(_pictures(images, size)):
        row, column = divmod(k, columns)
        down, right = row * height, column * width
        picture[down : down + height, right : right + width] = image
    return picture


def _arranged(
    n: int, side: int, size: tuple[int, ...]
) -> tuple[int, int, tuple[int, int]]:
    """Rows and columns of n images in such a picture, and the size of each."""
    columns = math.ceil(math.sqrt(n))
    width = side // columns
    return math.ceil(n / columns), columns, (round(width * size[0] / size[1]), width)


def point_of(
    explored: Explored, session: Session, x: float, y: float
) -> tuple[float, float]:
    """Row and column of a point (x, y) of the large picture in the image it is in.

    Each is from 0 to 1.
    """
    _, _, (height, width) = _arranged(len(session.picked), LARGE, explored.image_size)
    return (y % height) / height, (x % width) / width


def thumbnails(explored: Explored, session: Session) -> list[np.ndarray]:
    """All images to choose from, small and unedited."""
    with explored.lock:
        images = torch.as_tensor(session.editor.extractor.generate(session.latents))
    return [sheet(image[None], SMALL) for image in _unit(explored, images)]


def tiles(
    explored: Explored, session: Session, kind: str
) -> Iterator[tuple[list[np.ndarray], int]]:
    """Pictures of the changes of a kind so far, and how many there will be.

    Each shows the first picked image at strengths of -2 and 2; for a transfer, all of
    the way. They come one after another, since some generators take long.
    """
    n = min(n_of(session, kind), MOST_TILES)
    one = session.but(picked=session.picked[:1], kind=kind)
    kept = [kept.edit for kept in session.stack if kept.on]
    found: list[np.ndarray] = []
    for index in range(n):
        each = one.but(index=index)
        strengths = [5.0] if kind == "transfer" else [-TILE_STRENGTH, TILE_STRENGTH]
        images = [
            faces(explored, each, [*kept, *_next(explored, each, strength)])
            for strength in strengths
        ]
        found.append(_row(images))
        yield found, n


def strip(explored: Explored, session: Session) -> np.ndarray:
    """The first picked image at several strengths of the chosen edit."""
    one = session.but(picked=session.picked[:1])
    kept = [kept.edit for kept in session.stack if kept.on]
    images = [
        faces(explored, one, [*kept, *_next(explored, one, strength)])
        for strength in STRIP
    ]
    return _row(images)


def code(session: Session, strength: float) -> str:
    """Python lines that reproduce what is shown."""
    lines = ["from panda_sklearn import Edit", session.source]
    if session.factors:
        lines.append(session.factors)
    lines.append(f"latents = latents[{list(session.picked)}]")
    kept = [kept.edit for kept in session.stack if kept.on]
    said = [_said(edit) for edit in kept]
    if None in said:
        names = [edit.name for edit in kept]
        lines += [
            "from panda_sklearn.editing import load_edits",
            "# The file that Save edits gives.",
            'found = load_edits("edits.safetensors", editor.decomposition)',
            f"edits = [edit for edit in found if edit.name in {names}]",
        ]
    else:
        lines += ["edits = [", *(f"    {text}," for text in said), "]"]
    edits = kept
    if strength != 0 and n_of(session, session.kind):
        chosen = edit_of(session, strength)
        edits = [*kept, chosen]
        text = _said(chosen)
        lines.append(
            "# To have the chosen change too, keep it and save the edits again."
            if text is None
            else f"edits.append({text})"
        )
    learnt = any(isinstance(e.part, int | tuple | list) for e in edits)
    more = ", refine=True" if session.refine and learnt else ""
    lines.append(
        f"images = editor.edit(latents, edits{more})"
        if edits
        else "images = editor.extractor.generate(latents)"
    )
    return "\n".join(lines)


def _said(edit: Edit) -> str | None:
    """An edit as Python; ``None`` if that would take more than a line."""
    what = getattr(edit, edit.kind)
    if edit.kind not in ("variation", "appearance") or not isinstance(what, int):
        return None
    if not isinstance(edit.part, int | tuple | list):
        return None
    if not isinstance(edit.strength, int | float) or edit.unit != "std":
        return None
    if edit.given is not None or edit.calls is not None or edit.branches != "own":
        return None
    part = list(edit.part) if isinstance(edit.part, tuple | list) else edit.part
    name = "" if edit.name is None else f", name={edit.name!r}"
    return f"Edit({edit.kind}={what}, part={part}, strength={edit.strength!r}{name})"


def _unit(explored: Explored, images: Tensor) -> Tensor:
    """Images in values from 0, black, to 1, white."""
    low, high = explored.value_range
    return ((images.detach().cpu().float() - low) / (high - low)).clamp(0, 1)


def _pictures(images: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Images (n, colours, h, w) as (n, *size, 3) of bytes."""
    bytes_ = (images.expand(-1, 3, -1, -1) * 255).round().byte()
    # For bytes with channels last torch has a kernel that is several times faster.
    bytes_ = bytes_.contiguous(memory_format=torch.channels_last)
    large = F.interpolate(bytes_, size=size, mode="bicubic", antialias=True)
    return large.movedim(1, -1).contiguous().numpy()


def _row(images: list[Tensor]) -> np.ndarray:
    """Images (1, colours, h, w) side by side, small."""
    row = torch.cat(images, dim=3)
    width = round(SMALL * row.shape[3] / row.shape[2])
    return _pictures(row, (SMALL, width))[0]


def _with_part(explored: Explored, session: Session, images: Tensor) -> Tensor:
    """Images with the chosen part over them."""
    if not session.parts:
        return _heated(images, torch.as_tensor(session.part).float()[None])
    panda = session.editor.decomposition
    parts = torch.as_tensor(panda.parts_)[None]
    if session.refine:
        with explored.lock:
            features = session.editor.extractor.transform(session.chosen)
            parts = torch.as_tensor(panda.refine(features))
    chosen = parts[:, list(session.parts)].float().sum(dim=1)
    chosen = chosen - chosen.amin(dim=(1, 2), keepdim=True)
    chosen = chosen / chosen.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    maps = F.interpolate(
        chosen[:, None], size=explored.image_size, mode="bilinear", align_corners=False
    )
    return _heated(images, maps[:, 0])


def _with_saliency(explored: Explored, session: Session, images: Tensor) -> Tensor:
    """Images with the saliency of the chosen appearance, and its mask's outline."""
    index = session.index if session.kind == "appearance" else 0
    with explored.lock:
        features = session.editor.extractor.transform(session.chosen)
        maps = session.editor.decomposition.saliency(features, size=explored.image_size)
        mask = session.editor.mask(session.chosen, index)
    saliency = torch.as_tensor(maps)[:, index].float()
    saliency = saliency - saliency.amin(dim=(1, 2), keepdim=True)
    saliency = saliency / saliency.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    inside = torch.as_tensor(mask).float()[:, None]
    edge = F.max_pool2d(inside, 3, 1, 1) - inside
    heated = _heated(images, saliency)
    return heated.expand(-1, 3, -1, -1) * (1 - edge) + LINE[:, None, None] * edge


def _heated(images: Tensor, maps: Tensor) -> Tensor:
    """Images under maps (1 or n, h, w) with values from 0 to 1."""
    weights = 0.75 * maps.clamp(0, 1)[:, None]
    grey = 0.7 * images.expand(-1, 3, -1, -1)
    return grey * (1 - weights) + HEAT[:, None, None] * weights


def names_of(session: Session, kind: str) -> list[str]:
    """Names of the changes of a kind."""
    titles: dict[str, Any] = {"transfer": lambda k: f"image {k + 1}"}
    title = titles.get(kind, lambda k: f"{kind} {k}")
    return [title(k) for k in range(n_of(session, kind))]
