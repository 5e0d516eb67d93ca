"""Data to try the package on.

``load_face_generator`` returns a small pretrained generator, ``load_face_edits`` an
editor for it with named edits, ``load_face_diffusion`` a small diffusion model of
faces, and ``make_parts_appearances`` activations whose factors are known.
"""

from panda_sklearn.datasets._face_diffusion import load_face_diffusion
from panda_sklearn.datasets._face_edits import load_face_edits
from panda_sklearn.datasets._faces import load_face_generator
from panda_sklearn.datasets._synthetic import make_parts_appearances
from panda_sklearn.generators import sample_latents

__all__ = [
    "load_face_diffusion",
    "load_face_edits",
    "load_face_generator",
    "make_parts_appearances",
    "sample_latents",
]
