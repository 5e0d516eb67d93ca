"""Images before and after edits.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

import numpy as np

from panda_sklearn.inspection._images import as_pictures, new_axes


class EditDisplay:
    """Images before an edit, after it, and how much each pixel changed.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    before, after : ndarray of shape (n_samples, height, width, 3)
        Pictures with values in [0, 1].

    Attributes
    ----------
    axes_ : ndarray of shape (3, n_samples)
        The axes drawn on; set by ``plot``.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, before, after):
        self.before = before
        self.after = after

    @classmethod
    def from_editor(
        cls, editor, latents, edits, *, value_range=(-1, 1), axes=None, cmap="magma"
    ):
        """Edit images and draw them beside the unedited ones.

        Parameters
        ----------
        editor : LocalEditor
            The editor.

        latents : array of shape (n_samples, ...)
            Latents of the images.

        edits : Edit or sequence of Edit
            What to change.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        display : EditDisplay
            The display, drawn.
        """
        before = as_pictures(editor.extractor.generate(latents), value_range)
        after = as_pictures(editor.edit(latents, edits), value_range)
        return cls(before, after).plot(axes=axes, cmap=cmap)

    @property
    def change(self):
        """Root mean square change over the colours, (n_samples, height, width)."""
        return np.sqrt(np.mean((self.after - self.before) ** 2, axis=-1))

    def plot(self, *, axes=None, cmap="magma"):
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            Three rows, a column for each sample. ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        self : EditDisplay
            The display.
        """
        self.figure_, self.axes_ = new_axes(3, len(self.before), axes)
        change = self.change
        top = float(change.max()) or 1.0
        for column, before, after, difference in zip(
            self.axes_.T, self.before, self.after, change, strict=True
        ):
            column[0].imshow(before)
            column[1].imshow(after)
            drawn = column[2].imshow(difference, cmap=cmap, vmin=0, vmax=top)
        for ax, label in zip(
            self.axes_[:, 0], ("before", "after", "change"), strict=True
        ):
            ax.set_ylabel(label, fontsize="small")
        bar = self.figure_.colorbar(
            drawn, ax=list(self.axes_[2]), fraction=0.02, pad=0.01
        )
        bar.ax.tick_params(labelsize="x-small")
        return self
