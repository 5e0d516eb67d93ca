"""What all visitors look at."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn

from panda_sklearn.datasets import sample_latents
from panda_sklearn.editing import LocalEditor, PreparedImages
from panda_sklearn.explorer._session import Session
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor
from panda_sklearn.generators import Diffusion, StyleGAN2
from panda_sklearn.generators._calls import takes_rows
from panda_sklearn.utils.validation import (
    check_function,
    check_kind,
    check_value_range,
)

__all__ = ["MOST_IMAGES", "N_SAMPLES", "Explored"]

MOST_IMAGES = 12

MOST_PREPARED = 8  # sets of picked images of which layers are remembered

# Latents whose mean and spread inversion starts from.
N_SAMPLES = 500


class Explored:
    """An editor, and how latents for it are drawn. All visitors share it.

    Parameters
    ----------
    editor : LocalEditor
        An editor whose generator makes images with one or three colours.

    draw : callable or None
        ``draw(n, seed)`` returns n latents. ``None`` draws them with
        ``sample_latents``.

    value_range : tuple of float
        Values of black and white in the images.

    recipe : str
        The Python lines that make ``editor``, for visitors who go on without the page.

    Attributes
    ----------
    n_colors : int
        1 or 3.

    image_size : tuple of int
        Height and width of the images.

    has_draw : bool
        Whether ``draw`` was given.

    lock : RLock
        Held while the network runs, so that visitors take turns.

    truncation : float or None
        The truncation of the given editor; ``None`` if its network has none.
    """

    def __init__(
        self,
        editor: LocalEditor,
        draw: Callable[[int, int], Any] | None,
        value_range: tuple[float, float],
        recipe: str,
    ) -> None:
        check_kind("editor", editor, LocalEditor)
        check_function("draw", draw, "n, seed")
        self.value_range = check_value_range(value_range)
        shape = editor.extractor.image_shape_
        if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                "editor must be of a generator of images of shape (1 or 3, height, "
                f"width), got one of images of shape {shape}."
            )
        self.editor, self.recipe = editor, recipe
        maps = editor.decomposition.map_shape_
        if len(maps) != 3:
            raise ValueError(
                "editor must have a decomposition of maps of shape (n_channels, "
                f"height, width), got one of maps of shape {maps}."
            )
        extractor = editor.extractor
        if extractor.calls_as == "samples" and extractor.n_calls_ > 1:
            raise ValueError(
                "The editor's extractor takes several calls as samples, but the page "
                "shows one map of each part: use one call, or calls_as='channels'."
            )
        if _has_conditions(extractor):
            raise ValueError(
                "The editor's generator has conditions by the number of the sample, "
                "but images are picked in any order here: use one condition for all."
            )
        self.n_colors, height, width = shape
        self.image_size = (height, width)
        self.lock = threading.RLock()
        self._draw, self.has_draw = draw, draw is not None
        self.truncation: float | None = None
        if draw is None:
            self.truncation = _truncation(extractor)
        self._extractors = {self.truncation: extractor}
        self._for_photographs: GeneratorFeatureExtractor | None = None
        self._prepared: OrderedDict[tuple, tuple] = OrderedDict()

    def draw(self, n: int, seed: int) -> Tensor:
        """Latents of n new images."""
        if self._draw is not None:
            return torch.as_tensor(self._draw(n, seed))
        extractor = self.editor.extractor
        return sample_latents(
            extractor.generator, n, random_state=seed, forward=extractor.forward
        )

    def editor_for(self, decomposition: Any, truncation: float | None) -> LocalEditor:
        """An editor with this decomposition, at this truncation."""
        with self.lock:
            if truncation not in self._extractors:
                extractor = self._truncated(truncation)
                self._extractors[truncation] = extractor.fit(self.draw(1, 0))
            return LocalEditor(self._extractors[truncation], decomposition)

    def prepared(self, session: Session) -> PreparedImages:
        """The picked images of a session, prepared for many edits.

        Those of the last few sessions are kept; each takes memory.
        """
        key = (id(session.editor), id(session.latents), session.picked)
        with self.lock:
            if key not in self._prepared:
                images = session.editor.prepare(session.chosen)
                # The editor and the latents are kept so that their ids stay theirs.
                self._prepared[key] = (images, session.editor, session.latents)
                if len(self._prepared) > MOST_PREPARED:
                    self._prepared.popitem(last=False)
            self._prepared.move_to_end(key)
            return self._prepared[key][0]

    def for_photographs(self) -> GeneratorFeatureExtractor:
        """The extractor whose latents match photographs best."""
        with self.lock:
            if self._for_photographs is None:
                self._for_photographs = self._with_codes()
            return self._for_photographs

    def _truncated(self, truncation: float | None) -> GeneratorFeatureExtractor:
        """The extractor at another truncation, not fitted."""
        extractor = clone(self.editor.extractor)
        forward: Any = extractor.forward
        if forward is None:
            return extractor.set_params(forward=_Truncated(truncation))
        return extractor.set_params(
            forward=dataclasses.replace(forward, truncation_psi=truncation)
        )

    def _with_codes(self) -> GeneratorFeatureExtractor:
        """The extractor with a code for each layer, if its generator takes these."""
        extractor = self.editor.extractor
        forward: Any = extractor.forward
        if forward is None and hasattr(extractor.generator, "style_mean"):
            forward = StyleGAN2(latent_space="w+")
        elif getattr(forward, "latent_space", None) == "z":
            forward = dataclasses.replace(
                forward, latent_space="w+", truncation_psi=1.0
            )
        else:
            return extractor
        latents = sample_latents(extractor.generator, 2, 0, forward=forward)
        return clone(extractor).set_params(forward=forward).fit(latents)

    def samples_for(self, extractor: GeneratorFeatureExtractor) -> Any:
        """Latents that inversion starts from; with ``None`` it draws them."""
        if extractor is self.editor.extractor:
            return None if self._draw is None else self.draw(N_SAMPLES, 0)
        return sample_latents(
            extractor.generator, N_SAMPLES, 0, forward=extractor.forward
        )


def _has_conditions(extractor: GeneratorFeatureExtractor) -> bool:
    """Whether the image of a latent depends on its number among the samples."""
    generator = extractor.generator
    if extractor.forward is not None:
        return takes_rows(extractor.forward)
    if isinstance(generator, Diffusion):
        return generator.n_conditions > 1
    return bool(getattr(generator, "takes_rows", False))


@dataclasses.dataclass(frozen=True)
class _Truncated:
    """Calls the face generator at another truncation than its own."""

    truncation: float | None

    def __call__(self, generator: nn.Module, latents: Tensor) -> Tensor:
        return generator(latents, self.truncation)


def _truncation(extractor: GeneratorFeatureExtractor) -> float | None:
    """How far latents are pulled to their mean; ``None`` if that is not known."""
    forward = extractor.forward
    if forward is None:
        return getattr(extractor.generator, "truncation", None)
    if dataclasses.is_dataclass(forward):
        return getattr(forward, "truncation_psi", None)
    return None
