"""The page: components, and which function each event calls.

Gradio, the extra "explorer", is imported only when a page is made.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import panda_sklearn.explorer._actions as actions
import panda_sklearn.explorer._files as files
import panda_sklearn.explorer._views as views
from panda_sklearn.editing import LocalEditor
from panda_sklearn.explorer._explored import MOST_IMAGES, Explored
from panda_sklearn.explorer._session import KINDS, Session
from panda_sklearn.utils.optional import needed

__all__ = ["explore"]

TITLE = "Parts and appearances"
YOURS = "editor = ...  # the LocalEditor that the page was opened with"
HOUR = 3600  # seconds that a visitor's choices are kept after the last of them

CSS = """
footer { display: none !important; }
#explorer { max-width: 1240px; margin: 0 auto; }
#face img, #strip img { image-rendering: auto; width: 100%; object-fit: contain; }
#images .grid-container, #tiles .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)) !important;
  grid-auto-rows: auto !important;
}
#tiles .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) !important;
}
#images .thumbnail-item, #tiles .thumbnail-item { min-width: 0; aspect-ratio: auto; }
#images .grid-wrap, #tiles .grid-wrap {
  height: auto !important;
  max-height: none !important;
}
@media (max-width: 640px) { #face { max-height: 60vh; } }
"""

# Names what gradio leaves unnamed.
NAME = """
() => {
  const names = { face: "The image: click a point", strip: "At several strengths" };
  for (const [id, name] of Object.entries(names)) {
    const place = document.getElementById(id);
    const put = () => place.querySelectorAll("button:has(img)").forEach(
      (button) => button.setAttribute("aria-label", name));
    new MutationObserver(put).observe(place, { childList: true, subtree: true });
    put();
  }
}
"""

# Saves the file in a hidden box: its name, its type and its bytes in base64.
SAVE = """
(text) => {
  if (!text) return;
  const [name, type, data] = text.split("\\n");
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
"""


def explore(
    editor: LocalEditor,
    *,
    draw: Callable[[int, int], Any] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Any:
    """Make a page on which to look at an editor's parts, and to edit.

    Drawn images, their parts, what varies there, and edits that can be stacked, named,
    saved and taken back; photographs, which are inverted first. What one visitor does
    another does not see.

    Parameters
    ----------
    editor : LocalEditor
        Of a generator of images with one or three colours.

    draw : callable, default=None
        ``draw(n, seed)`` gives n latents; ``None`` draws them with ``sample_latents``.

    value_range : tuple of float, default=(-1.0, 1.0)
        Values of black and white in the generator's images.

    Returns
    -------
    app : gradio.Blocks
        Its ``launch()`` opens the page, on 127.0.0.1 unless told otherwise; in a
        notebook below the cell. Nothing is sent to, or fetched from, other hosts.

    Raises
    ------
    ImportError
        If gradio is not installed: the extra "explorer".
    TypeError, ValueError
        If an argument is something else, or the generator makes other images.

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
    height, width = explored.image_size
    canvas_size = (views.LARGE, round(views.LARGE * height / width))

    def guarded(function: Callable) -> Callable:
        """The function, with what it cannot do said on the page."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                raise gr.Error(str(error), print_exception=False) from None

        return run

    def selecting(function: Callable) -> Callable:
        """The same for one whose ``event`` says what was selected."""
        # Gradio goes by the annotation, whose name it cannot look up here.
        function.__annotations__ = {"event": gr.SelectData}
        return guarded(function)

    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        delete_cache=(60, 300),
        elem_id="explorer",
    ) as app:
        state = gr.State(None, time_to_live=HOUR)
        found = gr.State(None, time_to_live=HOUR)  # by what takes long, not yet used
        out = gr.Textbox(visible="hidden", label="File")
        gr.Markdown(f"## {TITLE}")
        with gr.Row():
            with gr.Column(min_width=320):
                gr.Markdown("Click a point of the image to go to the part there.")
                face = gr.Image(
                    label="Image",
                    show_label=False,
                    format="jpeg",
                    interactive=False,
                    elem_id="face",
                    buttons=["fullscreen"],
                )
                strength = gr.Slider(
                    -5,
                    5,
                    0,
                    step=0.1,
                    label="Strength",
                    info="In standard deviations; of another image's part, in fifths "
                    "of the way.",
                    elem_id="strength",
                )
                shown = gr.Radio(
                    list(views.SHOWN), value="after", label="Show", elem_id="shown"
                )
                with gr.Row():
                    name = gr.Textbox(
                        label="Name of the edit",
                        placeholder="none is needed",
                        max_lines=1,
                        elem_id="name",
                    )
                    keep = gr.Button("Keep", variant="primary", elem_id="keep")
                stack = gr.CheckboxGroup(
                    [], label="Edits that are kept", elem_id="stack"
                )
                with gr.Row():
                    undo = gr.Button("Undo", elem_id="undo")
                    reset = gr.Button("Reset", elem_id="reset")
                    png = gr.Button("Download images", elem_id="png")
                gr.Markdown(
                    "Strengths " + ", ".join(f"{each:g}" for each in views.STRIP)
                )
                strip = gr.Image(
                    label="The image at several strengths",
                    show_label=False,
                    format="jpeg",
                    interactive=False,
                    buttons=[],
                    elem_id="strip",
                )
            with gr.Column(min_width=320):
                with gr.Tab("Images"):
                    with gr.Row():
                        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                        number = gr.Slider(
                            1, MOST_IMAGES, 8, step=1, label="Number of images"
                        )
                    truncation = gr.Slider(
                        0,
                        1,
                        explored.truncation if explored.truncation is not None else 1,
                        step=0.05,
                        label="Truncation",
                        info="Less is more usual, and more alike.",
                        visible=explored.truncation is not None,
                    )
                    drawing = gr.Button("Draw", variant="primary", elem_id="draw")
                    gr.Markdown("Click an image to edit it.")
                    images = gr.Gallery(
                        label="Drawn images",
                        show_label=False,
                        columns=4,
                        allow_preview=False,
                        height="auto",
                        object_fit="contain",
                        elem_id="images",
                        buttons=[],
                    )
                    picked = gr.Dropdown(
                        [], multiselect=True, label="Images that are edited"
                    )
                    photograph = gr.UploadButton(
                        "Use a photograph", file_types=["image"], type="filepath"
                    )
                    about = gr.Markdown("")
                with gr.Tab("Part and change"):
                    parts = gr.Dropdown(
                        [],
                        multiselect=True,
                        label="Part; several are edited as one",
                        elem_id="parts",
                    )
                    refine = gr.Checkbox(False, label="Refine parts to each image")
                    kind = gr.Radio(
                        list(KINDS),
                        value="variation",
                        label="What to change there",
                        info="How the part varies; what it is made of; what changes "
                        "this region alone; another image's part.",
                        elem_id="kind",
                    )
                    find = gr.Button("Find directions for this part", elem_id="find")
                    gr.Markdown("What can change here, at strengths of -2 and 2:")
                    tiles = gr.Gallery(
                        label="What can change here",
                        show_label=False,
                        columns=3,
                        allow_preview=False,
                        height="auto",
                        object_fit="contain",
                        elem_id="tiles",
                        buttons=[],
                    )
                    index = gr.Dropdown([], label="Change", elem_id="index")
                with gr.Tab("Paint"):
                    canvas = gr.ImageEditor(
                        label="Paint the region to change",
                        type="numpy",
                        layers=False,
                        sources=(),
                        brush=gr.Brush(
                            colors=["#ff5a00"], color_mode="fixed", default_size=20
                        ),
                        transforms=(),
                        canvas_size=canvas_size,
                        fixed_canvas=True,
                        elem_id="canvas",
                        buttons=[],
                    )
                    with gr.Row():
                        over = gr.Button("Paint over this image")
                        paint = gr.Button("Use what is painted", variant="primary")
                with gr.Tab("Files and code"):
                    save = gr.Button("Save edits", elem_id="save")
                    load = gr.UploadButton(
                        "Load edits", file_types=[".safetensors"], type="filepath"
                    )
                    factors = gr.UploadButton(
                        "Load other parts and appearances",
                        file_types=[".safetensors"],
                        type="filepath",
                    )
                    lines = gr.Code(
                        label="What is shown, in Python",
                        language="python",
                        interactive=False,
                        elem_id="code",
                    )

        # What is chosen, and how it is seen, are separate events. The first are over at
        # once and alone change a session; what takes long, pictures above all, only
        # reads it, so that nothing that is chosen meanwhile is taken back.
        seen = [face, stack, picked, parts, kind, index, refine, strip, lines]
        # As defaults of arguments, which is how gradio hands progress over.
        steps, bars = gr.Progress(), gr.Progress(track_tqdm=True)
        common = [state, strength, shown]
        quiet: dict[str, Any] = {"api_visibility": "private"}
        hidden: dict[str, Any] = {"show_progress": "hidden", **quiet}
        newest: dict[str, Any] = {"trigger_mode": "always_last", **quiet}

        @guarded
        def see(session: Session | None, s: float, which: str) -> list[Any]:
            session = current(session)
            n_parts = len(session.editor.decomposition.parts_)
            names = [k.edit.name for k in session.stack]
            on = [k.edit.name for k in session.stack if k.on]
            choices = views.names_of(session, session.kind)
            each = [f"image {k + 1}" for k in range(len(session.latents))]
            return [
                views.scene(explored, session, s, which),
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
                views.code(session, s),
            ]

        @guarded
        def see_images(session: Session | None) -> Any:
            small = views.thumbnails(explored, current(session))
            return [(image, f"image {k + 1}") for k, image in enumerate(small)]

        @guarded
        def see_tiles(session: Session | None, progress: Any = steps) -> Any:
            session = current(session)
            names = views.names_of(session, session.kind)
            made: list[np.ndarray] = []
            for made, n in views.tiles(explored, session, session.kind):
                progress((len(made), n), desc="What can change here")
            return list(zip(made, names, strict=False))

        def then_seen(event: Any, *, new_images: bool = False, new_tiles: bool) -> None:
            event.success(see, common, seen, show_progress="hidden", **newest)
            if new_images:
                event.success(
                    see_images, state, images, show_progress="hidden", **newest
                )
            if new_tiles:
                event.success(
                    see_tiles, state, tiles, show_progress="minimal", **newest
                )

        def chosen_by(
            event: Any,
            function: Callable,
            more: Any = (),
            *,
            shows: str | None = None,
            new_images: bool = False,
            new_tiles: bool = True,
        ) -> None:
            """A function (session, *more) -> session as what an event does.

            ``shows`` is what the large image shows from then on; ``None`` leaves it.
            """

            @guarded
            def run(session: Session | None, which: str, *more: Any) -> Any:
                return function(current(session), *more), shows or which

            event = event(run, [state, shown, *more], [state, shown], **hidden)
            then_seen(event, new_images=new_images, new_tiles=new_tiles)

        def selected(
            event: Any,
            function: Callable,
            *,
            shows: str | None = None,
            new_tiles: bool = True,
        ) -> None:
            """The same of a function (session, what was selected) -> session."""

            def run(session: Session | None, which: str, event: Any) -> Any:
                return function(current(session), event.index), shows or which

            event = event(selecting(run), [state, shown], [state, shown], **hidden)
            then_seen(event, new_tiles=new_tiles)

        # The slider makes images alone.
        @guarded
        def slide(session: Session | None, s: float, which: str) -> Any:
            which = which if which in ("before", "change") else "after"
            return views.scene(explored, current(session), s, which), which

        @guarded
        def show(session: Session | None, s: float, which: str) -> Any:
            return views.scene(explored, current(session), s, which)

        @guarded
        def follow(session: Session | None, s: float) -> Any:
            session = current(session)
            return views.strip(explored, session), views.code(session, s)

        at_once = {"queue": False, "show_progress": "hidden", **newest}
        strength.input(slide, common, [face, shown], **at_once)
        shown.input(show, common, face, **at_once)
        strength.release(follow, [state, strength], [strip, lines], **hidden)

        app.load(None, None, None, js=NAME, **quiet)
        begun = app.load(lambda: actions.start(explored), None, state, **hidden)
        then_seen(begun, new_images=True, new_tiles=True)

        chosen_by(
            drawing.click,
            lambda session, *given: actions.draw(explored, session, *given),
            [number, seed, truncation],
            new_images=True,
        )

        def numbers(names: list[str]) -> list[int]:
            return [int(each.split()[1]) for each in names]

        def pick(session: Session, names: list[str]) -> Session:
            wanted = [k - 1 for k in numbers(names)]
            return actions.pick(session, wanted) if wanted else session

        chosen_by(picked.input, pick, [picked])
        selected(images.select, lambda session, k: actions.pick(session, [k]))

        def point(session: Session, where: Any) -> Session:
            row, column = views.point_of(explored, session, *where)
            return actions.point_at(session, row, column)

        def put_parts(session: Session, names: list[str]) -> Session:
            return actions.put_parts(session, numbers(names)) if names else session

        selected(face.select, point, shows="part")
        chosen_by(parts.input, put_parts, [parts], shows="part")
        chosen_by(refine.input, actions.refine, [refine], shows="part")
        chosen_by(kind.input, actions.choose, [kind])

        def choose(session: Session, title: str) -> Session:
            names = views.names_of(session, session.kind)
            return actions.choose(session, session.kind, names.index(title))

        def choose_tile(session: Session, k: int) -> Session:
            return actions.choose(session, session.kind, k)

        chosen_by(index.input, choose, [index], new_tiles=False)
        selected(tiles.select, choose_tile, new_tiles=False)

        @guarded
        def find_directions(session: Session | None, progress: Any = bars) -> Any:
            return actions.find(explored, current(session), verbose=1)

        directions = find.click(
            find_directions, state, found, show_progress_on=tiles, **quiet
        )
        chosen_by(directions.success, actions.with_directions, [found])

        @guarded
        def keep_it(session: Session | None, s: float, title: str) -> list[Any]:
            return [actions.keep(explored, current(session), s, title), 0.0, ""]

        kept = keep.click(
            keep_it, [state, strength, name], [state, strength, name], **hidden
        )
        then_seen(kept, new_tiles=True)
        chosen_by(stack.input, actions.switch, [stack])
        chosen_by(undo.click, actions.undo)
        chosen_by(reset.click, actions.reset)

        @guarded
        def underlay(session: Session | None, s: float) -> Any:
            session = current(session)
            one = session.but(picked=session.picked[:1])
            picture = views.scene(explored, one, s, "after")
            return {"background": picture, "layers": [], "composite": picture}

        def use_painted(session: Session, drawn: Any) -> Session:
            return actions.paint(explored, session, painted(explored, drawn))

        over.click(underlay, [state, strength], canvas, **quiet)
        chosen_by(paint.click, use_painted, [canvas], shows="part")

        @guarded
        def invert(session: Session | None, path: Any, progress: Any = bars) -> Any:
            return files.invert_photograph(explored, current(session), path, verbose=1)

        inverted = photograph.upload(
            invert,
            [state, photograph],
            [found, about],
            show_progress_on=images,
            **quiet,
        )
        chosen_by(inverted.success, actions.with_images, [found], new_images=True)

        chosen_by(
            load.upload,
            lambda session, path: files.read_edits(explored, session, path),
            [load],
        )
        chosen_by(
            factors.upload,
            lambda session, path: files.read_factors(explored, session, path),
            [factors],
        )

        @guarded
        def saved(session: Session | None) -> str:
            data = files.edits_as_bytes(current(session))
            return _as_text("edits.safetensors", "application/octet-stream", data)

        @guarded
        def pictures(session: Session | None, s: float, which: str) -> str:
            from PIL import Image

            buffer = io.BytesIO()
            scene = views.scene(explored, current(session), s, which)
            Image.fromarray(scene).save(buffer, format="png")
            return _as_text("images.png", "image/png", buffer.getvalue())

        for event in (
            save.click(saved, state, out, **hidden),
            png.click(pictures, common, out, **hidden),
        ):
            event.success(None, out, None, js=SAVE, **quiet)

    app.queue(default_concurrency_limit=4)
    app.launch = functools.partial(
        app.launch,
        theme=gr.themes.Base(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=CSS,
        footer_links=[],
        ssr_mode=False,
        server_name="127.0.0.1",
        max_file_size=files.LARGEST,
        max_threads=4,  # each holds memory of its own, and they take turns anyway
    )
    return app


def current(session: Session | None) -> Session:
    """The visitor's session, if it is still there."""
    if session is None:
        raise ValueError("What you had chosen has expired: load the page again.")
    return session


def painted(explored: Explored, drawn: Any) -> torch.Tensor:
    """What was painted, as a mask of the images' size."""
    layers = (drawn or {}).get("layers") or []
    if not layers:
        raise ValueError("Nothing is painted: paint over the image first.")
    from PIL import Image

    cover = np.max([layer[..., 3] for layer in layers], axis=0)
    height, width = explored.image_size
    small = Image.fromarray(cover).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small, dtype=np.float32)) / 255


def _as_text(name: str, kind: str, data: bytes) -> str:
    """A file as the page's script saves it."""
    return "\n".join([name, kind, base64.b64encode(data).decode()])
