"""Edits in files.

Beside the edit itself, a file keeps its mask and the vector that it adds, if it adds
one: an index means something else after another fit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition, layout_of
from panda_sklearn.editing._changes import check_edits
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._lookup import Sizes, term_of
from panda_sklearn.editing._terms import VectorTerm
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.hashing import DIGITS, bytes_of
from panda_sklearn.utils.parts import is_mask
from panda_sklearn.utils.statefile import read_parts, reading, write_parts
from panda_sklearn.utils.validation import check_is_fitted, check_kind

__all__ = ["load_edits", "save_edits"]

# The kind of the file's contents, and its version. Version 2 added edits by latents,
# coefficients and activations, version 3 edits at calls.
KIND = "LocalEdits"
FORMAT_VERSION = 3

# What a file keeps about the decomposition that its edits belong to.
OF = ("factors", "layer", "map_shape", "network")


def save_edits(
    path: str | os.PathLike,
    edits: Edit | Sequence[Edit],
    decomposition: PartsAppearanceDecomposition,
) -> None:
    r"""Write edits to a safetensors file.

    The file keeps the edits as they are, with their names and strengths. It also keeps
    their vectors and masks, with which all edits but those of coefficients can be used
    without the decomposition; and the layer and the fingerprints of the factors and the
    network, if the decomposition knows them (``layer_`` and ``network_``, from its
    file). Reading the file runs no code.

    Parameters
    ----------
    path : str or os.PathLike
        The file; an existing one is replaced.

    edits : Edit or sequence of Edit
        The edits.

    decomposition : PartsAppearanceDecomposition
        Fitted; the edits are looked up in it.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, or an edit does not fit the decomposition: an
        index is out of range, or a vector has another shape. Masks may be of the
        images' size, which is checked when they are used.
    FileNotFoundError
        If the folder does not exist.

    See Also
    --------
    PartsAppearanceDecomposition.save : Writes the factors.

    Examples
    --------
    >>> import tempfile
    >>> from panda_sklearn import Edit, PartsAppearanceDecomposition
    >>> from panda_sklearn.datasets import make_parts_appearances
    >>> from panda_sklearn.editing import load_edits, save_edits
    >>> X, *_ = make_parts_appearances(50, 3, 5, random_state=0)
    >>> panda = PartsAppearanceDecomposition(3, 5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_edits(f"{folder}/edits", Edit(0, 2, 3.0, name="red"), panda)
    ...     (edit,) = load_edits(f"{folder}/edits")
    >>> edit.name, edit.strength, edit.appearance.shape, edit.part.shape
    ('red', 3.0, (16,), (8, 8))
    """
    edits = check_edits(edits)
    check_kind("decomposition", decomposition, PartsAppearanceDecomposition)
    check_is_fitted(decomposition)
    known: dict = {}
    kept = [_saved(edit, decomposition, known) for edit in edits]
    of = _identity(decomposition)
    write_parts(path, KIND, FORMAT_VERSION, {"edits": {"edits": kept}, "of": of})


def load_edits(
    path: str | os.PathLike,
    decomposition: PartsAppearanceDecomposition | None = None,
) -> list[Edit]:
    """Read edits written by ``save_edits``.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    decomposition : PartsAppearanceDecomposition, default=None
        The decomposition that the edits were saved with, or one loaded from its file.
        ``None`` returns the edits with vectors and masks, for use with any
        decomposition of the same layer of the same network.

    Returns
    -------
    edits : list of Edit
        With ``decomposition``, the edits as they were saved, with their indices.
        Without it, each has a vector of channels and a mask, which cannot be refined.
        The vector is scaled so that a strength in standard deviations keeps its
        meaning. Edits by latents and activations keep these, and have a mask.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is cut off, holds something else or has a later format; if the edits
        belong to another layer, network or fit than ``decomposition``; or if an edit of
        coefficients is read without a decomposition.
    """
    if decomposition is not None:
        check_kind("decomposition", decomposition, PartsAppearanceDecomposition)
        check_is_fitted(decomposition)
    names: dict[str, Collection[str]] = {"edits": ("edits",), "of": OF}
    parts, _, _ = read_parts(path, KIND, FORMAT_VERSION, names)
    if decomposition is not None:
        of = {name: parts["of"].get(name) for name in OF}
        _check_same(of, _identity(decomposition))
    with reading(path):
        kept = parts["edits"]["edits"]
        edits = [_as_edit(each["said"]) for each in kept]
    if decomposition is not None:
        return edits
    for edit in edits:
        if edit.kind == "coefficients":
            raise ValueError(
                f"The edit {edit.name or edits.index(edit)!r} moves coefficients of "
                "the factors that it was saved with: give their decomposition."
            )
    with reading(path):
        return [_standalone(*each) for each in zip(edits, kept, strict=True)]


def _saved(
    edit: Edit, decomposition: PartsAppearanceDecomposition, known: dict
) -> dict[str, Any]:
    """An edit as plain values: its fields, its vector and its mask."""
    spatial = decomposition.map_shape_[1:]
    # How many axes these arrays have if they are the same for all samples.
    one_sample = {
        "coefficients": 2,
        "features": len(layout_of(decomposition).sample_shape),
    }
    part: Any = edit.part
    strength: Any = edit.strength
    image_spatial, n_samples = (), None
    if is_mask(part):
        image_spatial = tuple(part.shape[-len(spatial) :])
        if part.ndim > len(spatial):
            n_samples = len(part)
    if np.ndim(strength):
        n_samples = len(strength)
    target = getattr(edit, edit.kind)
    if edit.kind in one_sample and np.ndim(target) > one_sample[edit.kind]:
        n_samples = len(target)
    sizes = Sizes(n_samples, image_spatial)
    term = term_of(edit, decomposition, sizes, known)
    mask = part if is_mask(part) else term.mask.reshape(spatial)
    said = {field.name: _host(getattr(edit, field.name)) for field in fields(Edit)}
    if edit.calls is not None:  # as pairs, since keys of files are strings
        said["calls"] = [list(pair) for pair in cast(dict, edit.calls).items()]
    vector = None
    if isinstance(term, VectorTerm):
        # In double precision, since standard deviations may be tiny.
        vector = _host(term.vector.double() * term.scale)
    return {"said": said, "vector": vector, "mask": _host(mask)}


def _as_edit(said: dict[str, Any]) -> Edit:
    """The edit whose fields :func:`_saved` returned."""
    calls = said.get("calls")
    return Edit(**{**said, "calls": None if calls is None else dict(calls)})


def _standalone(edit: Edit, kept: dict[str, Any]) -> Edit:
    """An edit of :func:`_saved` as one that needs no factors."""
    if kept["vector"] is None:
        return replace(edit, part=kept["mask"])
    return Edit(
        kept["vector"],
        kept["mask"],
        edit.strength,
        "alpha",
        calls=edit.calls,
        branches=edit.branches,
        name=edit.name,
    )


def _identity(decomposition: PartsAppearanceDecomposition) -> dict[str, Any]:
    """What distinguishes a decomposition from others."""
    return {
        "factors": _fingerprint(decomposition.appearances_, decomposition.parts_),
        "layer": getattr(decomposition, "layer_", None),
        "map_shape": tuple(map(int, decomposition.map_shape_)),
        "network": getattr(decomposition, "network_", None),
    }


def _check_same(of: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise ValueError unless two decompositions can share their edits."""
    for name, what in (
        ("layer", "layer"),
        ("network", "network of fingerprint"),
        ("map_shape", "activations of shape"),
    ):
        its, ours = of[name], own[name]
        if its != ours and None not in (its, ours):
            raise ValueError(
                f"The edits are of the {what} {its!r}, and decomposition is of "
                f"{ours!r}. Give the decomposition that they were saved with."
            )
    if of["factors"] != own["factors"]:
        raise ValueError(
            "The edits are of another fit, in which an index means something else than "
            "in decomposition. Give the one that they were saved with, or load them "
            "without one, as vectors and masks."
        )


def _fingerprint(*factors: ArrayLike) -> str:
    """A fingerprint of factors, the same for numpy arrays and tensors."""
    total = hashlib.sha256()
    for array in factors:
        tensor = as_tensor(array)
        total.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(bytes_of(tensor).data)
    return total.hexdigest()[:DIGITS]


def _host(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    if isinstance(value, Tensor):
        return Origin(False, torch.device("cpu")).give(value)
    return value
