"""How generators are called, what they take, and which layers they have.

Imports torch, numpy, scipy and :mod:`panda_sklearn.utils`. Which file to open:

- ``_families``, ``_styles``: ``ProGAN``, ``BigGAN``, ``StyleGAN``, ``StyleGAN2`` and
  ``StyleGAN3``, the settings of a call; each is a ``forward`` of
  ``GeneratorFeatureExtractor``
- ``_diffusion``, ``_denoisers``: ``Diffusion``, a diffusion model as a generator
- ``_conventions``: how each implementation is recognised and called
- ``_calls``: what calls of any network need
- ``_labels``: classes, in columns beside the latents or the same for all images
- ``_latents``: ``sample_latents``
- ``_layers``: ``list_layers`` and its table

``fingerprint`` is in :mod:`panda_sklearn.utils.hashing`, with the other hashes.
"""

from panda_sklearn.generators._diffusion import Diffusion
from panda_sklearn.generators._families import BigGAN, ProGAN
from panda_sklearn.generators._latents import sample_latents
from panda_sklearn.generators._layers import LayerInfo, LayerTable, list_layers
from panda_sklearn.generators._styles import StyleGAN, StyleGAN2, StyleGAN3
from panda_sklearn.utils.hashing import fingerprint

__all__ = [
    "BigGAN",
    "Diffusion",
    "LayerInfo",
    "LayerTable",
    "ProGAN",
    "StyleGAN",
    "StyleGAN2",
    "StyleGAN3",
    "fingerprint",
    "list_layers",
    "sample_latents",
]
