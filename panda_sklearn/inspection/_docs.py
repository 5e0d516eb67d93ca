"""Paragraphs that the docstrings of displays have in common."""

from __future__ import annotations

import re
from textwrap import indent
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)

SHARED = {
    "editor": """\
editor : LocalEditor
    The editor.""",
    "estimator": """\
estimator : PartsAppearanceDecomposition or Pipeline
    A fitted decomposition, or a fitted Pipeline with one as a step.""",
    "X": """\
X : array of shape (n_samples, ...)
    Samples: activations as for the decomposition, or what the Pipeline takes, such as
    latents.""",
    "value_range": """\
value_range : tuple of float, default=None
    Values of black and white in the images. ``None`` is (-1, 1), unless all values of
    the unedited images are in [0, 1]: then it is (0, 1), with a warning.""",
    "axes": """\
axes : array of matplotlib axes, default=None
    Axes to draw on; ``None`` makes a figure.""",
    "figure": """\
figure_ : matplotlib.figure.Figure
    The figure; set by ``plot``.""",
    "raises": """\
Raises
------
TypeError, ValueError
    If an argument is something else, or its shape does not fit.""",
}


def shared_docs(thing: T) -> T:
    """Replace lines ``%(name)s`` of a docstring by the paragraph of that name."""
    if thing.__doc__ is not None:  # it is with python -OO
        thing.__doc__ = re.sub(
            r"^( *)%\((\w+)\)s$",
            lambda found: indent(SHARED[found[2]], found[1]),
            thing.__doc__,
            flags=re.MULTILINE,
        )
    return thing
