"""Edits, factors and photographs from visitors, read with care."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.editing import LocalEditor, invert, load_edits, save_edits
from panda_sklearn.explorer._actions import add_all
from panda_sklearn.explorer._explored import N_SAMPLES, Explored
from panda_sklearn.explorer._session import Session
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor

__all__ = [
    "LARGEST",
    "edits_as_bytes",
    "invert_photograph",
    "read_edits",
    "read_factors",
]

MEGABYTE = 2**20
MOST_BYTES = {
    "edits": 8 * MEGABYTE,
    "factors": 64 * MEGABYTE,
    "photograph": 16 * MEGABYTE,
}
LARGEST = max(MOST_BYTES.values())
MOST_PIXELS = 24_000_000


def edits_as_bytes(session: Session) -> bytes:
    """The kept edits as a file."""
    if not session.stack:
        raise ValueError("There are no edits to save yet: keep one first.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edits.safetensors"
        edits = [kept.edit for kept in session.stack]
        save_edits(path, edits, session.editor.decomposition)
        return path.read_bytes()


def read_edits(explored: Explored, session: Session, path: Any) -> Session:
    """Add the edits of a file to the stack."""
    path = _checked(path, "edits")
    edits = _read(path, lambda p: load_edits(p, session.editor.decomposition))
    return add_all(explored, session, edits)


def read_factors(explored: Explored, session: Session, path: Any) -> Session:
    """Go on with the decomposition of a file, without the edits of the old one."""
    path = _checked(path, "factors")
    panda = _read(path, PartsAppearanceDecomposition.load)
    layer, own = getattr(panda, "layer_", None), session.editor.extractor.layer
    if layer is not None and layer != own:
        raise ValueError(
            f"These factors are of layer {layer!r}, but this page shows layer {own!r}. "
            "Fit them on that layer, or open the page with an editor that has them."
        )
    with explored.lock, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            editor = LocalEditor(session.editor.extractor, panda)
        except UserWarning as warning:
            raise ValueError(str(warning)) from None
    return session.but(
        editor=editor,
        factors="from panda_sklearn import LocalEditor, PartsAppearanceDecomposition\n"
        f"panda = PartsAppearanceDecomposition.load({path.name!r})\n"
        "editor = LocalEditor(editor.extractor, panda)",
        part=0,
        kind="variation",
        index=0,
        directions=None,
        stack=(),
        past=(),
    )


def read_photograph(explored: Explored, path: Any) -> Tensor:
    """The middle of a photograph as an image (1, n_colors, height, width).

    Its values are in the generator's units.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # installed with gradio

    path = _checked(path, "photograph")
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise ValueError(
                    f"The photograph has {pixels / 1e6:.0f} million pixels, but at "
                    f"most {MOST_PIXELS / 1e6:.0f} are allowed: make it smaller first."
                )
            image.draft("RGB", (4 * explored.image_size[1], 4 * explored.image_size[0]))
            whole = ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(
            "The file is not a photograph that can be read: use JPEG, PNG or WebP."
        ) from None
    height, width = explored.image_size
    fitted = ImageOps.fit(whole, (width, height), Image.Resampling.LANCZOS)
    if explored.n_colors == 1:
        fitted = fitted.convert("L")
    values = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 255
    values = values.reshape(height, width, -1).movedim(-1, 0)
    low, high = explored.value_range
    return (low + (high - low) * values)[None]


def invert_photograph(
    explored: Explored, session: Session, path: Any, verbose: int = 0
) -> tuple[Session, str]:
    """Replace the images by a photograph; also returns a text on how close it is."""
    image = read_photograph(explored, path)
    extractor = explored.for_photographs()
    with explored.lock:
        editor = LocalEditor(extractor, session.editor.decomposition)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the text says it
            found = invert(
                extractor,
                image,
                samples=explored.samples_for(extractor),
                n_starts=1,
                value_range=explored.value_range,
                random_state=0,
                verbose=verbose,
            )
    latents, residuals = found
    off = float(torch.as_tensor(residuals)[0])
    text = f"{off:.0%} of the photograph's variance is not matched."
    if off > 0.3:
        text += (
            " That is a lot. Crop the photograph so that eyes and mouth are where they "
            "are in the drawn images."
        )
    source = f"{session.source}\n{_recipe(explored, extractor)}"
    # Truncation None: the next images that are drawn get an editor of their own.
    return session.with_images(editor, torch.as_tensor(latents), source, None), text


def _recipe(explored: Explored, extractor: GeneratorFeatureExtractor) -> str:
    """The Python lines that invert a photograph as the page does."""
    lines = [
        "photograph = ...  # (1, colours, height, width), in the generator's units",
        "from panda_sklearn.editing import invert",
    ]
    if extractor is not explored.editor.extractor:
        kind = type(extractor.forward).__name__
        lines += [
            "from sklearn.base import clone",
            "from panda_sklearn import LocalEditor",
            "from panda_sklearn.datasets import sample_latents",
            f"from panda_sklearn.generators import {kind}",
            f"codes = {extractor.forward!r}",
            "extractor = clone(editor.extractor).set_params(forward=codes)",
            "samples = sample_latents(",
            f"    extractor.generator, {N_SAMPLES}, random_state=0, forward=codes",
            ")",
            "editor = LocalEditor(extractor.fit(samples[:2]), editor.decomposition)",
        ]
    else:
        samples = f"draw({N_SAMPLES}, 0)" if explored.has_draw else "None"
        lines += [f"extractor, samples = editor.extractor, {samples}"]
    lines += [
        "latents, residuals = invert(",
        "    extractor, photograph, samples=samples, n_starts=1,",
        f"    value_range={explored.value_range}, random_state=0,",
        ")",
    ]
    return "\n".join(lines)


def _checked(path: Any, what: str) -> Path:
    """The path of an uploaded file; raises ValueError if it is too large."""
    if not path:
        raise ValueError("No file was given.")
    path = Path(os.fspath(path))
    size, most = path.stat().st_size, MOST_BYTES[what]
    if size > most:
        raise ValueError(
            f"The file has {size / MEGABYTE:.0f} megabytes, but at most "
            f"{most / MEGABYTE:.0f} are allowed."
        )
    return path


def _read(path: Path, load: Any) -> Any:
    """What a file holds. Messages have its name, not where the server keeps it."""
    try:
        return load(path)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
