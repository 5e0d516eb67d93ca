"""The decomposition in a Pipeline, and what comes before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.utils.validation import check_is_fitted, shown

__all__ = ["find_decomposition", "transformed"]


def find_decomposition(
    estimator: Any,
) -> tuple[list[Any], PartsAppearanceDecomposition]:
    """The steps of a pipeline before the fitted decomposition, and the decomposition.

    For a decomposition alone there are no such steps. Pipelines may be nested.

    Raises
    ------
    TypeError
        If there is no decomposition.
    NotFittedError
        If it is not fitted.
    """
    before: list[Any] = []
    for step in _flattened(estimator):
        if isinstance(step, PartsAppearanceDecomposition):
            check_is_fitted(step)
            return before, step
        before.append(step)
    raise TypeError(
        "estimator must be a PartsAppearanceDecomposition or a Pipeline with one as a "
        f"step, got {shown(estimator)}."
    )


def _flattened(estimator: Any) -> Iterator[Any]:
    """The steps of a pipeline, including those of nested pipelines."""
    if not hasattr(estimator, "steps"):
        yield estimator
        return
    for _, step in estimator.steps:
        if step is not None and step != "passthrough":
            yield from _flattened(step)


def transformed(X: Any, before: list[Any]) -> Any:
    """The decomposition's input for X, by the steps before it."""
    for step in before:
        X = step.transform(X)
    return X
