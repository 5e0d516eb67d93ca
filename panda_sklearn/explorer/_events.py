"""Which function each event calls, area by area."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

import panda_sklearn.explorer._actions as actions
import panda_sklearn.explorer._files as files
import panda_sklearn.explorer._views as views
from panda_sklearn.explorer._assets import NAME, SAVE, as_text
from panda_sklearn.explorer._explored import Explored
from panda_sklearn.explorer._session import Session
from panda_sklearn.explorer._wiring import HIDDEN, NEWEST, QUIET, Wiring, current

__all__ = ["wire"]


def wire(to: Wiring, app: Any) -> None:
    """Join all events to what they do."""
    app.load(None, None, None, js=NAME, **QUIET)
    begun = app.load(lambda: actions.start(to.explored), None, to.state, **HIDDEN)
    to.then_seen(begun, new_images=True, new_tiles=True)
    _scene(to)
    _edits(to)
    _images(to)
    _change(to)
    _paint(to)
    _files(to)


def _scene(to: Wiring) -> None:
    """The slider, what is shown, and clicks on the image."""
    at, explored = to.at, to.explored

    @to.guarded
    def slide(session: Session | None, strength: float, which: str) -> Any:
        which = which if which in ("before", "change") else "after"
        return views.scene(explored, current(session), strength, which), which

    @to.guarded
    def show(session: Session | None, strength: float, which: str) -> Any:
        return views.scene(explored, current(session), strength, which)

    @to.guarded
    def follow(session: Session | None, strength: float) -> Any:
        session = current(session)
        return views.strip(explored, session), views.code(session, strength)

    def point(session: Session, where: Any) -> Session:
        row, column = views.point_of(explored, session, *where)
        return actions.point_at(session, row, column)

    # While the slider moves, only the large image follows.
    at_once = {"queue": False, "show_progress": "hidden", **NEWEST}
    strength, face, shown = at.scene.strength, at.scene.face, at.scene.shown
    strength.input(slide, to.common, [face, shown], **at_once)
    shown.input(show, to.common, face, **at_once)
    lines = [at.edits.strip, at.files.lines]
    strength.release(follow, [to.state, strength], lines, **HIDDEN)
    to.selected(face.select, point, shows="part")


def _edits(to: Wiring) -> None:
    """The edits that are kept, and their images as a file."""
    edits, strength, out = to.at.edits, to.at.scene.strength, to.at.memory.out

    @to.guarded
    def keep(session: Session | None, strength: float, name: str) -> list[Any]:
        kept = actions.keep(to.explored, current(session), strength, name)
        return [kept, 0.0, ""]

    @to.guarded
    def pictures(session: Session | None, strength: float, which: str) -> str:
        from PIL import Image

        buffer = io.BytesIO()
        scene = views.scene(to.explored, current(session), strength, which)
        Image.fromarray(scene).save(buffer, format="png")
        return as_text("images.png", "image/png", buffer.getvalue())

    chosen = [to.state, strength, edits.name]
    to.then_seen(edits.keep.click(keep, chosen, chosen, **HIDDEN), new_tiles=True)
    to.chosen_by(edits.stack.input, actions.switch, [edits.stack])
    to.chosen_by(edits.undo.click, actions.undo)
    to.chosen_by(edits.reset.click, actions.reset)
    made = edits.png.click(pictures, to.common, out, **HIDDEN)
    made.success(None, out, None, js=SAVE, **QUIET)


def _images(to: Wiring) -> None:
    """Images that are drawn or found by inversion, and which are edited."""
    images, found, explored = to.at.images, to.at.memory.found, to.explored
    bars = to.gr.Progress(track_tqdm=True)

    def draw(session: Session, *given: Any) -> Session:
        return actions.draw(explored, session, *given)

    def pick(session: Session, names: list[str]) -> Session:
        wanted = [k - 1 for k in _numbers(names)]
        return actions.pick(session, wanted) if wanted else session

    @to.guarded
    def invert(session: Session | None, path: Any, progress: Any = bars) -> Any:
        return files.invert_photograph(explored, current(session), path, verbose=1)

    given = [images.number, images.seed, images.truncation]
    to.chosen_by(images.draw.click, draw, given, new_images=True)
    to.chosen_by(images.picked.input, pick, [images.picked])
    to.selected(images.gallery.select, lambda session, k: actions.pick(session, [k]))
    inverted = images.photograph.upload(
        invert,
        [to.state, images.photograph],
        [found, images.about],
        show_progress_on=images.gallery,
        **QUIET,
    )
    to.chosen_by(inverted.success, actions.with_images, [found], new_images=True)


def _change(to: Wiring) -> None:
    """Where the next edit is, and what it changes."""
    change, found = to.at.change, to.at.memory.found
    bars = to.gr.Progress(track_tqdm=True)

    def put_parts(session: Session, names: list[str]) -> Session:
        return actions.put_parts(session, _numbers(names)) if names else session

    def choose(session: Session, title: str) -> Session:
        names = views.names_of(session, session.kind)
        return actions.choose(session, session.kind, names.index(title))

    def choose_tile(session: Session, k: int) -> Session:
        return actions.choose(session, session.kind, k)

    @to.guarded
    def find(session: Session | None, progress: Any = bars) -> Any:
        return actions.find(to.explored, current(session), verbose=1)

    to.chosen_by(change.parts.input, put_parts, [change.parts], shows="part")
    to.chosen_by(change.refine.input, actions.refine, [change.refine], shows="part")
    to.chosen_by(change.kind.input, actions.choose, [change.kind])
    to.chosen_by(change.index.input, choose, [change.index], new_tiles=False)
    to.selected(change.tiles.select, choose_tile, new_tiles=False)
    directions = change.find.click(
        find, to.state, found, show_progress_on=change.tiles, **QUIET
    )
    to.chosen_by(directions.success, actions.with_directions, [found])


def _paint(to: Wiring) -> None:
    """A region by hand."""
    paint, strength = to.at.paint, to.at.scene.strength

    @to.guarded
    def underlay(session: Session | None, strength: float) -> Any:
        session = current(session)
        one = session.but(picked=session.picked[:1])
        picture = views.scene(to.explored, one, strength, "after")
        return {"background": picture, "layers": [], "composite": picture}

    def use(session: Session, drawn: Any) -> Session:
        return actions.paint(to.explored, session, _painted(to.explored, drawn))

    paint.over.click(underlay, [to.state, strength], paint.canvas, **QUIET)
    to.chosen_by(paint.use.click, use, [paint.canvas], shows="part")


def _files(to: Wiring) -> None:
    """Files of edits and of factors."""
    area, out, explored = to.at.files, to.at.memory.out, to.explored

    def load(session: Session, path: Any) -> Session:
        return files.read_edits(explored, session, path)

    def factors(session: Session, path: Any) -> Session:
        return files.read_factors(explored, session, path)

    @to.guarded
    def saved(session: Session | None) -> str:
        data = files.edits_as_bytes(current(session))
        return as_text("edits.safetensors", "application/octet-stream", data)

    to.chosen_by(area.load.upload, load, [area.load])
    to.chosen_by(area.factors.upload, factors, [area.factors])
    made = area.save.click(saved, to.state, out, **HIDDEN)
    made.success(None, out, None, js=SAVE, **QUIET)


def _numbers(names: list[str]) -> list[int]:
    """The numbers in names such as "part 3"."""
    return [int(each.split()[1]) for each in names]


def _painted(explored: Explored, drawn: Any) -> torch.Tensor:
    """What was painted, as a mask of the images' size."""
    layers = (drawn or {}).get("layers") or []
    if not layers:
        raise ValueError("Nothing is painted: paint over the image first.")
    from PIL import Image

    cover = np.max([layer[..., 3] for layer in layers], axis=0)
    height, width = explored.image_size
    small = Image.fromarray(cover).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small, dtype=np.float32)) / 255
