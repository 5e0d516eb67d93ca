"""Scores of a search over the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from panda_sklearn._searches import (
    in_order,
    metric_by,
    ranks_of,
    scores_of,
)
from panda_sklearn.inspection._images import as_array, check_axes, check_cmap
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    as_numeric,
    check_count,
    check_index,
    check_items,
    check_kind,
    shown,
)

# What a rank of None stands for.
DEFAULTS = {"n_parts": "default", "n_appearances": "all"}

MOST_TICKS = 12


class RanksDisplay:
    """Scores of a search over the numbers of parts and of appearances.

    Use :meth:`from_search` to make one. A search over one rank is drawn as a curve: the
    mean score over the folds, in a band of one standard error of that mean. A search
    over both is drawn as a heat map of the mean scores. The best candidate and the one
    that the search chose are marked. Ranks are spaced evenly, whatever their values;
    scores that are far below all others are cut off, so that these can be told apart.

    Parameters
    ----------
    scores : ndarray of shape (n_rows, n_columns)
        Mean score over the folds for each number of appearances (rows) and of parts
        (columns). NaN where nothing was scored.

    errors : ndarray of shape (n_rows, n_columns)
        Standard errors of these means; NaN where there are none.

    n_parts : sequence of int or None, default=None
        Number of parts of each column. An entry may be ``None``, which the
        decomposition takes, too. ``None`` instead of a sequence says that the search
        did not set it; there is one column then.

    n_appearances : sequence of int or None, default=None
        Number of appearances of each row, in the same way.

    chosen : tuple of int, default=None
        Row and column of the candidate that the search chose. ``None`` marks none.

    metric : str, default="score"
        Name of the score.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes drawn on; set by ``plot``.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.

    See Also
    --------
    panda_sklearn.model_selection.OneStandardError : Chooses the smallest ranks that
        score within a standard error of the best.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from panda_sklearn import PartsAppearanceDecomposition
    >>> from panda_sklearn.datasets import make_parts_appearances
    >>> from panda_sklearn.inspection import RanksDisplay
    >>> from panda_sklearn.metrics import heldout_reconstruction
    >>> from panda_sklearn.model_selection import OneStandardError
    >>> X, *_ = make_parts_appearances(
    ...     n_samples=60, n_parts=3, n_appearances=4, snr_db=10, random_state=0
    ... )
    >>> search = GridSearchCV(
    ...     PartsAppearanceDecomposition(n_appearances=4, random_state=0),
    ...     {"n_parts": [2, 3, 4, 5]},
    ...     scoring=heldout_reconstruction,
    ...     refit=OneStandardError(),
    ...     cv=3,
    ... )
    >>> display = RanksDisplay.from_search(search.fit(X))
    >>> display.n_parts, display.chosen
    ([2, 3, 4, 5], (0, 1))
    """

    def __init__(
        self,
        scores: ArrayLike,
        errors: ArrayLike,
        n_parts: Sequence[int | None] | None = None,
        n_appearances: Sequence[int | None] | None = None,
        chosen: tuple[int, int] | None = None,
        metric: str = "score",
    ) -> None:
        self.scores = scores
        self.errors = errors
        self.n_parts = n_parts
        self.n_appearances = n_appearances
        self.chosen = chosen
        self.metric = metric

    @classmethod
    def from_search(
        cls,
        search: Any,
        metric: str | None = None,
        *,
        ax: Any = None,
        cmap: Any = "viridis",
    ) -> RanksDisplay:
        """Draw the scores of a fitted search.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV or the like
            Fitted search over ``n_parts``, ``n_appearances`` or both, of a
            decomposition or of a Pipeline with one. If it went over other parameters,
            too, the best candidate with each pair of ranks is drawn.

        metric : str, default=None
            Name of the scorer to draw. ``None`` takes the one by which the search
            chose.

        ax : matplotlib.axes.Axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="viridis"
            Colour map of the scores over both ranks.

        Returns
        -------
        display : RanksDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If the search is not fitted, did not go over ranks, or has no such metric.
        """
        results = getattr(search, "cv_results_", None)
        if not isinstance(results, Mapping):
            raise TypeError(
                "search must be a fitted GridSearchCV or the like, with cv_results_, "
                f"got {shown(search)}."
            )
        if metric is None:
            metric = metric_by(search)
        return cls.from_cv_results(
            results,
            metric,
            best_index=getattr(search, "best_index_", None),
            ax=ax,
            cmap=cmap,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        metric: str = "score",
        *,
        best_index: int | None = None,
        ax: Any = None,
        cmap: Any = "viridis",
    ) -> RanksDisplay:
        """Draw the scores in the ``cv_results_`` of a search.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search; see :meth:`from_search`.

        metric : str, default="score"
            Name of the scorer to draw; "score" where there is just one.

        best_index : int, default=None
            Index of the candidate that the search chose; ``None`` marks none.

        ax : matplotlib.axes.Axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="viridis"
            Colour map of the scores over both ranks.

        Returns
        -------
        display : RanksDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If there is no such metric, the candidates do not all set the same ranks,
            or nothing was scored.
        """
        check_axes(ax, 1, 1, "ax")
        check_cmap(cmap)
        check_kind("cv_results", cv_results, Mapping)
        means, errors = scores_of(cv_results, metric)
        if best_index is not None:
            best_index = check_index("best_index", best_index, len(means))
        ranks = ranks_of(cv_results)
        tried = {name: in_order(values) for name, values in ranks.items()}

        def place(name: str, index: int) -> int:
            return tried[name].index(ranks[name][index]) if name in tried else 0

        places = [
            (place("n_appearances", index), place("n_parts", index))
            for index in range(len(means))
        ]
        scores = np.full(np.max(places, axis=0) + 1, np.nan)
        spread = scores.copy()
        # From the worst to the best, which overwrites the others with its ranks.
        for index in np.argsort(np.nan_to_num(means, nan=-np.inf), kind="stable"):
            scores[places[index]] = means[index]
            spread[places[index]] = errors[index]
        display = cls(
            scores,
            spread,
            **tried,
            chosen=None if best_index is None else places[best_index],
            metric=metric,
        )
        return display.plot(ax, cmap=cmap)

    def plot(self, ax: Any = None, *, cmap: Any = "viridis") -> RanksDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="viridis"
            Colour map of the scores over both ranks.

        Returns
        -------
        self : RanksDisplay
            The display.
        """
        scores, errors = _grid(self.scores, "scores"), _grid(self.errors, "errors")
        if errors.shape != scores.shape:
            raise ValueError(
                f"errors must be of shape {scores.shape}, to go with scores, got "
                f"{errors.shape}."
            )
        if np.isnan(scores).all():
            raise ValueError("scores has no finite value: no candidate was scored.")
        n_rows, n_columns = scores.shape
        rows = _labels("n_appearances", self.n_appearances, n_rows)
        columns = _labels("n_parts", self.n_parts, n_columns)
        chosen = _place(self.chosen, scores.shape)
        check_kind("metric", self.metric, str)
        check_cmap(cmap)
        if n_rows > 1 and n_columns > 1:
            self._new_axes((1.8 + 0.65 * n_columns, 1.2 + 0.45 * n_rows), ax)
            self._draw_map(scores, chosen, cmap)
            _put_ticks(self.ax_.xaxis, "n_parts", columns)
            _put_ticks(self.ax_.yaxis, "n_appearances", rows)
        else:
            self._new_axes((5, 3.5), ax)
            # One of the two numbers is 0.
            at = None if chosen is None else sum(chosen)
            self._draw_curve(scores.ravel(), errors.ravel(), at)
            if n_columns > 1 or (n_rows == 1 and self.n_parts is not None):
                _put_ticks(self.ax_.xaxis, "n_parts", columns)
            else:
                _put_ticks(self.ax_.xaxis, "n_appearances", rows)
        return self

    def _new_axes(self, size: tuple[float, float], ax: Any) -> None:
        """The axes that were given, or those of a new figure."""
        given = check_axes(ax, 1, 1, "ax")
        if given is None:
            from matplotlib import pyplot as plt

            _, self.ax_ = plt.subplots(figsize=size, layout="constrained")
        else:
            self.ax_ = given.item()
        self.figure_ = self.ax_.figure

    def _draw_curve(
        self, scores: np.ndarray, errors: np.ndarray, chosen: int | None
    ) -> None:
        """Mean scores in their band of one standard error."""
        x, best = np.arange(len(scores)), int(np.nanargmax(scores))
        (line,) = self.ax_.plot(x, scores, marker=".", label="mean over the folds")
        self.ax_.fill_between(
            x,
            scores - errors,
            scores + errors,
            alpha=0.2,
            color=line.get_color(),
            linewidth=0,
            label="one standard error",
        )
        self.ax_.plot(
            best, scores[best], "*", markersize=12, color="black", label="best"
        )
        if chosen is not None:
            self.ax_.plot(
                chosen,
                scores[chosen],
                "o",
                markersize=14,
                markerfacecolor="none",
                color="black",
                label="chosen",
            )
        if (low := _low(scores, 5)) > np.nanmin(scores):
            high = float(np.nanmax(scores + np.nan_to_num(errors)))
            self.ax_.set_ylim(low, high + 0.05 * (high - low))
        self.ax_.set_ylabel(self.metric)
        self.ax_.legend(fontsize="small", frameon=False)

    def _draw_map(
        self, scores: np.ndarray, chosen: tuple[int, int] | None, cmap: Any
    ) -> None:
        """A heat map with its values."""
        from matplotlib.patches import Rectangle

        low = _low(scores, 3)
        drawn = self.ax_.imshow(
            scores, cmap=cmap, aspect="auto", origin="lower", vmin=low
        )
        extend = "min" if low > np.nanmin(scores) else "neither"
        self.figure_.colorbar(drawn, ax=self.ax_, label=self.metric, extend=extend)
        for row, column in np.argwhere(np.isfinite(scores)):
            # Black on light colours, white on dark ones.
            red, green, blue, _ = drawn.to_rgba(scores[row, column])
            light = 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
            self.ax_.text(
                column,
                row,
                f"{scores[row, column]:#.3g}",
                ha="center",
                va="center",
                fontsize="small",
                color="black" if light else "white",
            )
        best = np.unravel_index(np.nanargmax(scores), scores.shape)
        # The frame of the chosen one is inside that of the best.
        for place, half, label in ((best, 0.47, "best"), (chosen, 0.4, "chosen")):
            if place is not None:
                frame = Rectangle(
                    (place[1] - half, place[0] - half),
                    2 * half,
                    2 * half,
                    fill=False,
                    edgecolor="red",
                    linestyle="-" if label == "chosen" else ":",
                    linewidth=2,
                    label=label,
                )
                self.ax_.add_patch(frame)
        self.ax_.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=2,
            fontsize="small",
            frameon=False,
        )


def _low(scores: np.ndarray, times: float) -> float:
    """Where the scale of the scores begins: a few very bad ones are below it.

    ``times`` as far from the best as three quarters of the scores are.
    """
    best, worst = float(np.nanmax(scores)), float(np.nanmin(scores))
    reach = times * (best - float(np.nanquantile(scores, 0.25)))
    return max(worst, best - reach) if reach > 0 else worst


def _grid(values: Any, name: str) -> np.ndarray:
    """Scores or errors as an array; what is not finite as NaN."""
    expected = "an array of shape (n_rows, n_columns)"
    array = as_array(as_numeric(values, name, expected))
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be {expected}, got shape {array.shape}.")
    return np.where(np.isfinite(array), array, np.nan)


def _labels(name: str, ranks: Any, n: int) -> list[str]:
    """What to write at the rows, or the columns."""
    if ranks is None and n == 1:
        return [""]
    items = check_items(name, ranks, f"a sequence of {n} ints or None")
    if len(items) != n:
        raise ValueError(f"{name} must be {n}, to go with scores, got {len(items)}.")
    return [
        DEFAULTS[name] if rank is None else str(check_count(f"each of {name}", rank))
        for rank in items
    ]


def _place(chosen: Any, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Row and column of the chosen candidate."""
    if chosen is None:
        return None
    items = check_items("chosen", chosen, "a row and a column")
    if len(items) != 2:
        raise ValueError(f"chosen must be a row and a column, got {shown(chosen)}.")
    row, column = (
        check_index("each of chosen", index, size)
        for index, size in zip(items, shape, strict=True)
    )
    return row, column


def _put_ticks(axis: Any, name: str, labels: list[str]) -> None:
    """Label positions 0, 1, ... of an axis, not more of them than there is room for."""
    step = math.ceil(len(labels) / MOST_TICKS)
    axis.set_ticks(range(0, len(labels), step), labels[::step])
    axis.set_label_text(name)
