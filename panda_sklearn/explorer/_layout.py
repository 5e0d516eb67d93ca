"""The page's components: what is on it, and where.

Each function adds an area to the page that is being built and returns its components by
name.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import panda_sklearn.explorer._views as views
from panda_sklearn.explorer._explored import MOST_IMAGES, Explored
from panda_sklearn.explorer._session import KINDS

__all__ = ["TITLE", "laid_out"]

TITLE = "Parts and appearances"
HOUR = 3600  # seconds for which a visitor's choices are kept after the last of them


def laid_out(gr: Any, explored: Explored) -> SimpleNamespace:
    """All components, by area."""
    memory = SimpleNamespace(
        state=gr.State(None, time_to_live=HOUR),
        # What took long to find, until it is used.
        found=gr.State(None, time_to_live=HOUR),
        out=gr.Textbox(visible="hidden", label="File"),
    )
    gr.Markdown(f"## {TITLE}")
    with gr.Row():
        with gr.Column(min_width=320):
            scene, edits = _scene(gr), _edits(gr)
        with gr.Column(min_width=320):
            with gr.Tab("Images"):
                images = _images(gr, explored)
            with gr.Tab("Part and change"):
                change = _change(gr)
            with gr.Tab("Paint"):
                paint = _paint(gr, explored)
            with gr.Tab("Files and code"):
                files = _files(gr)
    return SimpleNamespace(
        memory=memory,
        scene=scene,
        edits=edits,
        images=images,
        change=change,
        paint=paint,
        files=files,
    )


def _scene(gr: Any) -> SimpleNamespace:
    """The large image, and what is shown of it."""
    gr.Markdown("Click a point of the image to go to the part there.")
    return SimpleNamespace(
        face=gr.Image(
            label="Image",
            show_label=False,
            format="jpeg",
            interactive=False,
            elem_id="face",
            buttons=["fullscreen"],
        ),
        strength=gr.Slider(
            -5,
            5,
            0,
            step=0.1,
            label="Strength",
            info="In standard deviations. For another image's part, in fifths of the "
            "way there.",
            elem_id="strength",
        ),
        shown=gr.Radio(list(views.SHOWN), value="after", label="Show", elem_id="shown"),
    )


def _edits(gr: Any) -> SimpleNamespace:
    """The edits that are kept, and the strip of strengths."""
    with gr.Row():
        name = gr.Textbox(
            label="Name of the edit",
            placeholder="optional",
            max_lines=1,
            elem_id="name",
        )
        keep = gr.Button("Keep", variant="primary", elem_id="keep")
    stack = gr.CheckboxGroup([], label="Kept edits", elem_id="stack")
    with gr.Row():
        undo = gr.Button("Undo", elem_id="undo")
        reset = gr.Button("Reset", elem_id="reset")
        png = gr.Button("Download images", elem_id="png")
    gr.Markdown("At strengths " + ", ".join(f"{each:g}" for each in views.STRIP))
    strip = gr.Image(
        label="The image at several strengths",
        show_label=False,
        format="jpeg",
        interactive=False,
        buttons=[],
        elem_id="strip",
    )
    return SimpleNamespace(
        name=name,
        keep=keep,
        stack=stack,
        undo=undo,
        reset=reset,
        png=png,
        strip=strip,
    )


def _images(gr: Any, explored: Explored) -> SimpleNamespace:
    """Which images there are, and which are edited."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        number = gr.Slider(1, MOST_IMAGES, 8, step=1, label="Number of images")
    truncation = gr.Slider(
        0,
        1,
        explored.truncation if explored.truncation is not None else 1,
        step=0.05,
        label="Truncation",
        info="Lower values give more typical images, which are more alike.",
        visible=explored.truncation is not None,
    )
    draw = gr.Button("Draw", variant="primary", elem_id="draw")
    gr.Markdown("Click an image to edit it.")
    return SimpleNamespace(
        seed=seed,
        number=number,
        truncation=truncation,
        draw=draw,
        gallery=_gallery(gr, "images", "Drawn images", 4),
        picked=gr.Dropdown([], multiselect=True, label="Images to edit"),
        photograph=gr.UploadButton(
            "Use a photograph", file_types=["image"], type="filepath"
        ),
        about=gr.Markdown(""),
    )


def _change(gr: Any) -> SimpleNamespace:
    """Where the next edit is, and what it changes."""
    parts = gr.Dropdown(
        [],
        multiselect=True,
        label="Part (several are edited as one)",
        elem_id="parts",
    )
    refine = gr.Checkbox(False, label="Refine parts to each image")
    kind = gr.Radio(
        list(KINDS),
        value="variation",
        label="What to change there",
        info="Variation: how the part varies. Appearance: what it is made of. "
        "Direction: what changes this region alone. Transfer: another image's part.",
        elem_id="kind",
    )
    find = gr.Button("Find directions for this part", elem_id="find")
    gr.Markdown("What can change here, at strengths -2 and 2:")
    return SimpleNamespace(
        parts=parts,
        refine=refine,
        kind=kind,
        find=find,
        tiles=_gallery(gr, "tiles", "What can change here", 3),
        index=gr.Dropdown([], label="Change", elem_id="index"),
    )


def _paint(gr: Any, explored: Explored) -> SimpleNamespace:
    """A region by hand in the place of a part."""
    height, width = explored.image_size
    canvas = gr.ImageEditor(
        label="Paint the region to change",
        type="numpy",
        layers=False,
        sources=(),
        brush=gr.Brush(colors=["#ff5a00"], color_mode="fixed", default_size=20),
        transforms=(),
        canvas_size=(views.LARGE, round(views.LARGE * height / width)),
        fixed_canvas=True,
        elem_id="canvas",
        buttons=[],
    )
    with gr.Row():
        over = gr.Button("Paint over this image")
        use = gr.Button("Use the painted region", variant="primary")
    return SimpleNamespace(canvas=canvas, over=over, use=use)


def _files(gr: Any) -> SimpleNamespace:
    """Files of edits and factors, and the code of what is shown."""
    return SimpleNamespace(
        save=gr.Button("Save edits", elem_id="save"),
        load=gr.UploadButton(
            "Load edits", file_types=[".safetensors"], type="filepath"
        ),
        factors=gr.UploadButton(
            "Load other parts and appearances",
            file_types=[".safetensors"],
            type="filepath",
        ),
        lines=gr.Code(
            label="What is shown, in Python",
            language="python",
            interactive=False,
            elem_id="code",
        ),
    )


def _gallery(gr: Any, name: str, label: str, columns: int) -> Any:
    """Small pictures to choose from."""
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        allow_preview=False,
        height="auto",
        object_fit="contain",
        elem_id=name,
        buttons=[],
    )
