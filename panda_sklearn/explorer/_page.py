"""The page as a gradio app.

Gradio, the extra "explorer", is imported only when a page is made.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import panda_sklearn.explorer._files as files
from panda_sklearn.editing import LocalEditor
from panda_sklearn.explorer._assets import CSS
from panda_sklearn.explorer._events import wire
from panda_sklearn.explorer._explored import Explored
from panda_sklearn.explorer._layout import TITLE, laid_out
from panda_sklearn.explorer._wiring import Wiring
from panda_sklearn.utils.optional import needed

__all__ = ["explore"]

YOURS = "editor = ...  # the LocalEditor that the page was opened with"


def explore(
    editor: LocalEditor,
    *,
    draw: Callable[[int, int], Any] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Any:
    """Make a page on which to look at an editor's parts and to edit images.

    It shows drawn images, their parts and what varies there. Edits can be combined,
    named, saved and undone. Photographs can be edited, too: they are inverted first.
    Visitors do not see what others do.

    Parameters
    ----------
    editor : LocalEditor
        An editor whose generator makes images with one or three colours.

    draw : callable, default=None
        ``draw(n, seed)`` returns n latents. ``None`` draws them with
        ``sample_latents``.

    value_range : tuple of float, default=(-1.0, 1.0)
        Values of black and white in the generator's images.

    Returns
    -------
    app : gradio.Blocks
        Its ``launch()`` serves the page, on 127.0.0.1 by default, and prints the
        address; in a notebook the page is below the cell. Nothing is sent to other
        hosts or fetched from them.

    Raises
    ------
    ImportError
        If gradio is not installed: the extra "explorer".
    TypeError, ValueError
        If an argument has the wrong type or value, or the generator makes something
        else.

    See Also
    --------
    panda_sklearn.datasets.load_face_edits : An editor to try it with.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_edits
    >>> from panda_sklearn.explorer import explore
    >>> editor, _ = load_face_edits()
    >>> app = explore(editor)
    >>> app.launch()  # doctest: +SKIP
    """
    return page_of(Explored(editor, draw, value_range, YOURS))


def page_of(explored: Explored) -> Any:
    """The page, as a gradio app."""
    gr = needed("gradio", "gradio")
    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        delete_cache=(60, 300),
        elem_id="explorer",
    ) as app:
        wire(Wiring(gr, explored, laid_out(gr, explored)), app)
    app.queue(default_concurrency_limit=4)
    app.launch = _launching(
        app,
        theme=gr.themes.Base(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=CSS,
        footer_links=[],
        ssr_mode=False,
        server_name="127.0.0.1",
        share=False,  # not by itself either, as gradio does in hosted notebooks
        max_file_size=files.LARGEST,
        max_threads=4,  # each holds memory of its own, and they take turns anyway
    )
    return app


def _launching(app: Any, **defaults: Any) -> Callable:
    """The app's ``launch`` with other defaults, which prints nothing but the address.

    Gradio also prints how to make a public link, unless it prints nothing.
    """
    launch = app.launch

    @functools.wraps(launch)
    def opened(*args: Any, **options: Any) -> Any:
        options = defaults | options
        if options.get("debug") or options.get("quiet"):
            return launch(*args, **options)
        interactive = hasattr(sys, "ps1") or sys.flags.interactive
        waits = not (options.pop("prevent_thread_lock", False) or interactive)
        answer = launch(*args, **options, quiet=True, prevent_thread_lock=True)
        print(f"* Running on local URL:  {app.local_url.rstrip('/')}", flush=True)
        if waits:
            app.block_thread()
        return answer

    return opened
