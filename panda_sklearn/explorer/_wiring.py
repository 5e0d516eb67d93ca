"""How an event changes a visitor's session, and how the page then shows it.

What is chosen and how it is shown are separate events. The first are over at once, and
they alone change a session. What takes long, pictures above all, only reads it, so that
nothing that is chosen meanwhile is lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

import panda_sklearn.explorer._views as views
from panda_sklearn.explorer._explored import Explored
from panda_sklearn.explorer._session import Session

__all__ = ["HIDDEN", "NEWEST", "QUIET", "Wiring", "current"]

# Options of events: not offered to programs; without a sign of progress; of those that
# wait, only the last is run.
QUIET: dict[str, Any] = {"api_visibility": "private"}
HIDDEN: dict[str, Any] = {"show_progress": "hidden", **QUIET}
NEWEST: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}


def current(session: Session | None) -> Session:
    """The visitor's session; raises ValueError if it has expired."""
    if session is None:
        raise ValueError("Your choices have expired: load the page again.")
    return session


class Wiring:
    """Joins events of a page's components to functions.

    Parameters
    ----------
    gr : module
        Gradio.

    explored : Explored
        What all visitors look at.

    at : SimpleNamespace
        The components, by area.
    """

    def __init__(self, gr: Any, explored: Explored, at: SimpleNamespace) -> None:
        self.gr, self.explored, self.at = gr, explored, at
        self.state = at.memory.state
        self.common = [self.state, at.scene.strength, at.scene.shown]
        self._seen = [
            at.scene.face,
            at.edits.stack,
            at.images.picked,
            at.change.parts,
            at.change.kind,
            at.change.index,
            at.change.refine,
            at.edits.strip,
            at.files.lines,
        ]
        self._see, self._see_images, self._see_tiles = self._views()

    def guarded(self, function: Callable) -> Callable:
        """The function; the page shows the message of an error."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                raise self.gr.Error(str(error), print_exception=False) from None

        return run

    def chosen_by(
        self,
        event: Any,
        function: Callable,
        more: Sequence[Any] = (),
        *,
        shows: str | None = None,
        new_images: bool = False,
        new_tiles: bool = True,
    ) -> None:
        """Let an event run a function (session, *more) -> session.

        ``shows`` is what the large image shows from then on; ``None`` leaves it.
        """

        @self.guarded
        def run(session: Session | None, which: str, *more: Any) -> Any:
            return function(current(session), *more), shows or which

        chosen = [self.state, self.at.scene.shown]
        event = event(run, [*chosen, *more], chosen, **HIDDEN)
        self.then_seen(event, new_images=new_images, new_tiles=new_tiles)

    def selected(
        self,
        event: Any,
        function: Callable,
        *,
        shows: str | None = None,
        new_tiles: bool = True,
    ) -> None:
        """The same for a function (session, what was selected) -> session."""

        def run(session: Session | None, which: str, event: Any) -> Any:
            return function(current(session), event.index), shows or which

        # Gradio goes by the annotation, whose name it cannot look up here.
        run.__annotations__ = {"event": self.gr.SelectData}
        chosen = [self.state, self.at.scene.shown]
        event = event(self.guarded(run), chosen, chosen, **HIDDEN)
        self.then_seen(event, new_tiles=new_tiles)

    def then_seen(
        self, event: Any, *, new_images: bool = False, new_tiles: bool
    ) -> None:
        """Let the page show the session after an event."""
        event.success(
            self._see, self.common, self._seen, show_progress="hidden", **NEWEST
        )
        if new_images:
            gallery = self.at.images.gallery
            event.success(
                self._see_images, self.state, gallery, show_progress="hidden", **NEWEST
            )
        if new_tiles:
            tiles = self.at.change.tiles
            event.success(
                self._see_tiles, self.state, tiles, show_progress="minimal", **NEWEST
            )

    def _views(self) -> tuple[Callable, Callable, Callable]:
        """What shows a session, its images, and what can be added."""
        gr, explored = self.gr, self.explored
        # As the default of an argument, which is how gradio hands progress over.
        steps = gr.Progress()

        @self.guarded
        def see(session: Session | None, strength: float, which: str) -> list[Any]:
            session = current(session)
            n_parts = len(session.editor.decomposition.parts_)
            names = [kept.edit.name for kept in session.stack]
            on = [kept.edit.name for kept in session.stack if kept.on]
            choices = views.names_of(session, session.kind)
            each = [f"image {k + 1}" for k in range(len(session.latents))]
            return [
                views.scene(explored, session, strength, which),
                gr.CheckboxGroup(names, value=on),
                gr.Dropdown(each, value=[each[k] for k in session.picked]),
                gr.Dropdown(
                    [f"part {k}" for k in range(n_parts)],
                    value=[f"part {k}" for k in session.parts],
                ),
                session.kind,
                gr.Dropdown(choices, value=choices[session.index] if choices else None),
                session.refine,
                views.strip(explored, session),
                views.code(session, strength),
            ]

        @self.guarded
        def see_images(session: Session | None) -> Any:
            small = views.thumbnails(explored, current(session))
            return [(image, f"image {k + 1}") for k, image in enumerate(small)]

        @self.guarded
        def see_tiles(session: Session | None, progress: Any = steps) -> Any:
            session = current(session)
            names = views.names_of(session, session.kind)
            made: list[np.ndarray] = []
            for made, n in views.tiles(explored, session, session.kind):
                progress((len(made), n), desc="What can change here")
            return list(zip(made, names, strict=False))

        return see, see_images, see_tiles
