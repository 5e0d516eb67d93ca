"""Data to try the package on.

Floor 2 of the package. ``load_face_generator`` gives a small pretrained generator,
``make_parts_appearances`` activations whose factors are known.
"""

from panda_sklearn.datasets._faces import load_face_generator
from panda_sklearn.datasets._synthetic import make_parts_appearances
from panda_sklearn.generators import sample_latents

__all__ = ["load_face_generator", "make_parts_appearances", "sample_latents"]
