"""Edits of images at a part with an appearance, and of the parts themselves.

Floor 3: joins a fitted extractor and a fitted decomposition, which do not know each
other.

- ``_edit``: what to change, as the user says it.
- ``_parts``: functions on parts, whose results can be given to ``Edit``.
- ``_terms``: what an edit does to activations, by its kind.
- ``_lookup``: edits looked up in a decomposition, as terms.
- ``_changes``: several of these as one change of activations.
- ``_donors``: parts of images given to others.
- ``_strengths``: the strength that changes images by a given amount.
- ``_targets``: edits that change images by a given amount.
- ``_ranking``: the table of edits that were tried.
- ``_editor``: ``LocalEditor``, the door to all of these.
- ``_prepared``: the same images edited many times.
- ``_generator``: a generator with edits built in.
- ``_directions``: vectors that change a region.
- ``_kept``: edits in files.
- ``_inversion``: latents of given images.
- ``_search``: the search for them.
- ``_faces``: photographs aligned as the face generator's.
"""

from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._editor import LocalEditor
from panda_sklearn.editing._faces import align_face
from panda_sklearn.editing._generator import EditedGenerator
from panda_sklearn.editing._inversion import Inversion, invert
from panda_sklearn.editing._kept import load_edits, save_edits
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
