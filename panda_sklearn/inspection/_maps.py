"""Maps with one spatial axis or three, on axes of matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np


def draw_curve(ax: Any, values: np.ndarray, cmap: Any, base: float = 0) -> None:
    """Values (length,) as a curve, filled in two colours above and below ``base``.

    The colours are those of high and of low values in the colour map.
    """
    from matplotlib import colormaps

    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    x = np.arange(len(values))
    for above, color in ((values >= base, colors(0.85)), (values < base, colors(0.15))):
        ax.fill_between(
            x, base, values, where=above, interpolate=True, color=color, linewidth=0
        )
    ax.plot(x, values, color="black", linewidth=0.8)
    ax.axhline(base, color="black", linewidth=0.5)
    ax.set_xlim(0, max(len(values) - 1, 1))


def put_positions(ax: Any, length: int) -> None:
    """Label the first and the last position below a curve."""
    ax.set_xticks([0, length - 1], ["0", str(length - 1)], fontsize="x-small")


def sections(volume: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """The three sections of values (d, h, w) through their maximum, and where each is.

    The first is across the first axis, (h, w), and so on.
    """
    peak = np.unravel_index(volume.argmax(), volume.shape)
    return [(volume.take(at, axis), int(at)) for axis, at in enumerate(peak)]
