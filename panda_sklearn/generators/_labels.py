"""Classes: in columns beside the latents, or the same for all images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from panda_sklearn.utils.validation import (
    as_numeric,
    check_finite,
    check_fits,
    check_index,
    is_bool,
)

__all__ = ["Label", "Labels", "Numbers", "check_label", "split_labels"]


class Numbers(tuple):
    """Numbers that print as their count and norm."""

    def __repr__(self) -> str:
        return f"<{len(self)} numbers of norm {math.hypot(*self):.6g}>"


#: A class, or weights of all classes.
Label = int | Numbers

# The same in messages.
LABEL = "the index of a class or a weight for each class"


@dataclass(frozen=True)
class Labels:
    """The class of each image, or weights of a mixture of classes.

    Attributes
    ----------
    weights : Tensor of shape (n, n_classes)
    indices : Tensor of shape (n,) or None
        The classes; ``None`` if they are mixed.
    """

    weights: Tensor
    indices: Tensor | None

    @classmethod
    def of_indices(cls, indices: Tensor, n_classes: int) -> Labels:
        """Unmixed classes."""
        return cls(F.one_hot(indices, n_classes).float(), indices)


def check_label(label: Any) -> Label | None:
    """Check a class or weights of classes; weights become immutable.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    if label is None:
        return None
    if isinstance(label, Integral) and not is_bool(label):
        if label < 0:
            raise ValueError(f"label must be a class, 0 or more, got {label}.")
        return int(label)
    weights = as_numeric(label, "label", LABEL)
    if weights.ndim != 1 or len(weights) == 0:
        raise ValueError(
            "label must be one index or one row of weights, the same for all images, "
            f"got an array of shape {tuple(weights.shape)}. If images differ in their "
            "classes, these go into columns beside the latents."
        )
    check_finite(weights, "label")
    check_fits(weights, "label", torch.float32)
    return Numbers(map(float, weights.tolist()))


def split_labels(
    latents: Tensor, size: int | None, n_classes: int, label: Label | None, family: str
) -> tuple[Tensor, Labels | None]:
    """Split latents from the columns of classes beside them.

    Parameters
    ----------
    latents : Tensor of shape (n, size), (n, size + 1) or (n, size + n_classes)
        Latents, alone or followed by the index of each image's class or by weights of
        all classes.

    size : int or None
        Length of a latent; ``None`` takes latents of any shape, without classes.

    n_classes : int
        Number of classes of the generator, 0 if it has none.

    label : int, Numbers or None
        The class, or the weights, of all images.

    family : str
        Name of the family, for messages.

    Returns
    -------
    z : Tensor of shape (n, size)
    labels : Labels or None
        ``None`` if the generator has no classes.

    Raises
    ------
    ValueError
        If the width does not fit, classes are missing or given twice, or an index is
        not a class.
    """
    if label is not None and not n_classes:
        raise ValueError(
            f"{family} was given label={label!r}, but the generator has no classes: "
            "leave label at None."
        )
    if size is None:
        return latents, None
    n, width = latents.shape[0], latents.shape[-1]
    fits = {size, size + 1, size + n_classes} if n_classes else {size}
    if latents.ndim != 2 or width not in fits:
        beside = (
            f", or {size + 1} with the index of a class as the last column, or "
            f"{size + n_classes} with weights of all classes"
        )
        raise ValueError(
            f"{family} needs latents of {size} columns{beside if n_classes else ''}; "
            f"got shape {tuple(latents.shape)}."
        )
    if not n_classes:
        return latents, None
    z, columns = latents[:, :size], latents[:, size:]
    if label is not None:
        if width > size:
            raise ValueError(
                f"The classes are given twice: by label={label!r} and by columns "
                f"beside the {size} of the latents. Give one."
            )
        if isinstance(label, int):
            check_index("label", label, n_classes)
            indices = torch.full((n,), label, device=latents.device)
            return z, Labels.of_indices(indices, n_classes)
        if len(label) != n_classes:
            raise ValueError(
                f"label has {len(label)} weights, but the generator has {n_classes} "
                "classes."
            )
        weights = torch.tensor(
            label, dtype=torch.float32, device=latents.device
        ).expand(n, -1)
        return z, Labels(weights, None)
    if width == size:
        raise ValueError(
            f"The generator has {n_classes} classes, and none was chosen. Give "
            f"{family} a label for all images, or add the index of each image's class "
            "as one more column of the latents, as sample_latents does."
        )
    if width == size + 1:
        if n_classes - 1 > _largest_whole(columns.dtype):
            raise ValueError(
                f"{columns.dtype} is too coarse for indices of {n_classes} classes: "
                "give the latents and their column of classes in float32."
            )
        indices = columns[:, 0].detach().round().long()
        wrong = (indices != columns[:, 0]) | (indices < 0) | (indices >= n_classes)
        if bool(wrong.any()):
            value = float(columns[wrong][0, 0])
            raise ValueError(
                f"The last column of the latents must hold classes, whole numbers from "
                f"0 to {n_classes - 1}; got {value:g}."
            )
        return z, Labels.of_indices(indices, n_classes)
    return z, Labels(columns, None)


def _largest_whole(dtype: torch.dtype) -> float:
    """The number up to which a dtype represents all whole numbers exactly."""
    return 2 / torch.finfo(dtype).eps if dtype.is_floating_point else math.inf
