"""Local edits of images, and functions on parts.

Joins a fitted extractor and a fitted decomposition, which do not know each other.

- ``_edit``: ``Edit``, what to change.
- ``_parts``: functions on parts, whose results can be given to ``Edit``.
- ``_terms``: what an edit does to activations, by its kind.
- ``_lookup``: edits looked up in a decomposition, as terms.
- ``_changes``: several terms as one change of activations, and images with it.
- ``_donors``: parts of images transferred to others.
- ``_removal``: where an appearance is, and removing what is there.
- ``_strengths``: the search for the strength that gives a target.
- ``_targets``: edits that change images by a given amount.
- ``_trials``: edits that are tried, and what they do to images.
- ``_ranking``: the table of them.
- ``_derivatives``: how images change with a vector added to activations.
- ``_directions``: the vectors that change a region.
- ``_editor``: ``LocalEditor``, the way in to all of these.
- ``_prepared``: the same images edited many times.
- ``_generator``: a generator with edits built in.
- ``_files``: edits in files.
- ``_inversion``: latents of given images.
- ``_search``: the search for these latents.
- ``_faces``: photographs aligned like the face generator's images.
"""

from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._editor import LocalEditor
from panda_sklearn.editing._faces import align_face
from panda_sklearn.editing._files import load_edits, save_edits
from panda_sklearn.editing._generator import EditedGenerator
from panda_sklearn.editing._inversion import Inversion, invert
from panda_sklearn.editing._parts import (
    intersect_part,
    merge_parts,
    scale_part,
    split_part,
)
from panda_sklearn.editing._prepared import PreparedImages

__all__ = [
    "Edit",
    "EditedGenerator",
    "Inversion",
    "LocalEditor",
    "PreparedImages",
    "align_face",
    "intersect_part",
    "invert",
    "load_edits",
    "merge_parts",
    "save_edits",
    "scale_part",
    "split_part",
]
