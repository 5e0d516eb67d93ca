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
HOUR = 3600  # seconds that a visitor's choices are kept after the last event

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
    start = functools.partial(actions.start, explored)

    def guarded(function: Callable) -> Callable:
        """The function, with what it cannot do said on the page."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError, OSError) as error:
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
                        canvas_size=(views.LARGE, views.LARGE),
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

        # What a session shows everywhere; of these nothing but buttons and choices
        # makes sessions. The slider makes images alone: a slide that is still on its
        # way when something is kept takes nothing back.
        everywhere = [
            state,
            face,
            shown,
            stack,
            picked,
            parts,
            kind,
            index,
            refine,
            strip,
            lines,
        ]

        def everything(session: Session, s: float, which: str) -> list[Any]:
            n_parts = len(session.editor.decomposition.parts_)
            names = [k.edit.name for k in session.stack]
            on = [k.edit.name for k in session.stack if k.on]
            choices = views.names_of(session, session.kind)
            each = [f"image {k + 1}" for k in range(len(session.latents))]
            return [
                session,
                views.scene(explored, session, s, which),
                which,
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

        def act(function: Callable, then: str | None) -> Callable:
            """A function (session, strength, *more) -> session as an event.

            ``then`` is what is shown after it; ``None`` is what was before.
            """

            @guarded
            def run(session: Session | None, s: float, which: str, *more: Any) -> Any:
                session = function(session or start(), s, *more)
                return everything(session, s, then or which)

            return run

        # As defaults of arguments, which is how gradio hands progress over.
        steps, bars = gr.Progress(), gr.Progress(track_tqdm=True)
        common = [state, strength, shown]
        quiet: dict[str, Any] = {"api_visibility": "private"}

        def on(
            event: Any, function: Callable, more: Any = (), then: str | None = None
        ) -> Any:
            return event(
                act(function, then),
                [*common, *more],
                everywhere,
                show_progress="hidden",
                **quiet,
            )

        @guarded
        def slide(session: Session | None, s: float, which: str) -> Any:
            which = which if which in ("before", "change") else "after"
            return views.scene(explored, session or start(), s, which), which

        @guarded
        def show(session: Session | None, s: float, which: str) -> Any:
            return views.scene(explored, session or start(), s, which)

        @guarded
        def follow(session: Session | None, s: float) -> Any:
            session = session or start()
            return views.strip(explored, session), views.code(session, s)

        @guarded
        def show_images(session: Session | None) -> Any:
            session = session or start()
            small = views.thumbnails(explored, session)
            return [(image, f"image {k + 1}") for k, image in enumerate(small)]

        @guarded
        def show_tiles(session: Session | None, progress: Any = steps) -> Any:
            session = session or start()
            names = views.names_of(session, session.kind)
            found: list[np.ndarray] = []
            for found, n in views.tiles(explored, session, session.kind):
                progress((len(found), n), desc="What can change here")
            return list(zip(found, names, strict=False))

        def refresh_tiles(event: Any) -> Any:
            return event.then(
                show_tiles, state, tiles, show_progress="minimal", **quiet
            )

        slide_options: dict[str, Any] = {
            "trigger_mode": "always_last",
            "queue": False,
            "show_progress": "hidden",
            **quiet,
        }
        strength.input(slide, common, [face, shown], **slide_options)
        shown.input(show, common, face, **slide_options)
        strength.release(
            follow, [state, strength], [strip, lines], show_progress="hidden", **quiet
        )

        @guarded
        def begin() -> Any:
            return everything(start(), 0.0, "after")

        app.load(None, None, None, js=NAME, **quiet)
        begun = app.load(begin, None, everywhere, show_progress="hidden", **quiet)
        begun.then(show_images, state, images, show_progress="hidden", **quiet)
        refresh_tiles(begun)

        drawn = on(
            drawing.click,
            lambda session, s, *given: actions.draw(explored, session, *given),
            [number, seed, truncation],
        )
        drawn.then(show_images, state, images, show_progress="hidden", **quiet)
        refresh_tiles(drawn)

        def numbers(names: list[str]) -> list[int]:
            return [int(each.split()[1]) for each in names]

        def pick(session: Session, s: float, names: list[str]) -> Session:
            chosen = [k - 1 for k in numbers(names)]
            return actions.pick(session, chosen) if chosen else session

        refresh_tiles(on(picked.input, pick, [picked]))

        @selecting
        def pick_one(session: Session | None, s: float, which: str, event: Any) -> Any:
            session = actions.pick(session or start(), [event.index])
            return everything(session, s, which)

        refresh_tiles(
            images.select(pick_one, common, everywhere, show_progress="hidden", **quiet)
        )

        @selecting
        def point(session: Session | None, s: float, which: str, event: Any) -> Any:
            session = session or start()
            row, column = views.point_of(explored, session, *event.index)
            return everything(actions.point_at(session, row, column), s, "part")

        refresh_tiles(
            face.select(point, common, everywhere, show_progress="hidden", **quiet)
        )

        def put_parts(session: Session, s: float, names: list[str]) -> Session:
            return actions.put_parts(session, numbers(names)) if names else session

        refresh_tiles(on(parts.input, put_parts, [parts], "part"))
        refresh_tiles(
            on(
                refine.input,
                lambda session, s, flag: actions.refine(session, flag),
                [refine],
                "part",
            )
        )
        refresh_tiles(
            on(
                kind.input,
                lambda session, s, chosen: actions.choose(session, chosen),
                [kind],
            )
        )

        def choose(session: Session, s: float, title: str) -> Session:
            names = views.names_of(session, session.kind)
            return actions.choose(session, session.kind, names.index(title))

        on(index.input, choose, [index])

        @selecting
        def choose_tile(
            session: Session | None, s: float, which: str, event: Any
        ) -> Any:
            session = session or start()
            session = actions.choose(session, session.kind, event.index)
            return everything(session, s, which)

        tiles.select(choose_tile, common, everywhere, show_progress="hidden", **quiet)

        @guarded
        def find_directions(
            session: Session | None,
            s: float,
            which: str,
            progress: Any = bars,
        ) -> Any:
            session = actions.find(explored, session or start(), verbose=1)
            return everything(session, s, which)

        refresh_tiles(
            find.click(
                find_directions, common, everywhere, show_progress="minimal", **quiet
            )
        )

        @guarded
        def keep_it(
            session: Session | None, s: float, which: str, title: str
        ) -> list[Any]:
            session = actions.keep(explored, session or start(), s, title)
            return [*everything(session, 0.0, which), 0.0, ""]

        keep.click(
            keep_it,
            [*common, name],
            [*everywhere, strength, name],
            show_progress="hidden",
            **quiet,
        )
        on(
            stack.input,
            lambda session, s, names: actions.switch(session, names),
            [stack],
        )
        on(undo.click, lambda session, s: actions.undo(session))
        on(reset.click, lambda session, s: actions.reset(session))

        @guarded
        def underlay(session: Session | None, s: float) -> Any:
            session = session or start()
            one = session.but(picked=session.picked[:1])
            picture = views.scene(explored, one, s, "after")
            return {"background": picture, "layers": [], "composite": picture}

        over.click(underlay, [state, strength], canvas, **quiet)

        def use_painted(session: Session, s: float, drawn: Any) -> Session:
            return actions.paint(explored, session, painted(explored, drawn))

        refresh_tiles(on(paint.click, use_painted, [canvas], "part"))

        @guarded
        def photograph_in(
            session: Session | None,
            s: float,
            which: str,
            path: Any,
            progress: Any = bars,
        ) -> Any:
            session, text = files.invert_photograph(
                explored, session or start(), path, verbose=1
            )
            return [*everything(session, s, which), text]

        uploaded = photograph.upload(
            photograph_in,
            [*common, photograph],
            [*everywhere, about],
            show_progress="minimal",
            **quiet,
        )
        uploaded.then(show_images, state, images, show_progress="hidden", **quiet)
        refresh_tiles(uploaded)

        on(
            load.upload,
            lambda session, s, path: files.read_edits(explored, session, path),
            [load],
        )
        refresh_tiles(
            on(
                factors.upload,
                lambda session, s, path: files.read_factors(explored, session, path),
                [factors],
            )
        )

        @guarded
        def saved(session: Session | None) -> str:
            data = files.edits_as_bytes(session or start())
            return _as_text("edits.safetensors", "application/octet-stream", data)

        save.click(saved, state, out, show_progress="hidden", **quiet).then(
            None, out, None, js=SAVE, **quiet
        )

        @guarded
        def pictures(session: Session | None, s: float, which: str) -> str:
            from PIL import Image

            buffer = io.BytesIO()
            scene = views.scene(explored, session or start(), s, which)
            Image.fromarray(scene).save(buffer, format="png")
            return _as_text("images.png", "image/png", buffer.getvalue())

        png.click(pictures, common, out, show_progress="hidden", **quiet).then(
            None, out, None, js=SAVE, **quiet
        )

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
