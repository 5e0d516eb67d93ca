"""The named edits of the face generator.

Joins the generator and a fitted decomposition in an editor.
"""

from __future__ import annotations

from importlib import resources

from panda_sklearn.datasets._faces import load_face_generator
from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.editing import Edit, LocalEditor, load_edits
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor
from panda_sklearn.generators import sample_latents

__all__ = ["load_face_edits"]


def load_face_edits(truncation: float = 0.7) -> tuple[LocalEditor, list[Edit]]:
    """Load an editor for the face generator, and named edits.

    Each edit is a variation of one of twelve parts of "block8", at a strength that
    suits most faces. The names were given by somebody who saw nothing but twenty faces
    before and after. ``examples/keep_face_edits.py`` made the files.

    Parameters
    ----------
    truncation : float, default=0.7
        As for ``load_face_generator``.

    Returns
    -------
    editor : LocalEditor
        An editor with a generator of its own.

    edits : list of Edit
        The edits; "smile" is among their names.

    Raises
    ------
    TypeError, ValueError
        If ``truncation`` is not a number from 0 to 1.

    See Also
    --------
    load_face_generator : The generator alone.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_edits, sample_latents
    >>> editor, edits = load_face_edits()
    >>> smile = next(edit for edit in edits if edit.name == "smile")
    >>> latents = sample_latents(editor.extractor.generator, 4, random_state=0)
    >>> editor.edit(latents, smile).shape
    torch.Size([4, 3, 64, 64])
    """
    generator = load_face_generator(truncation)
    folder = resources.files("panda_sklearn.datasets") / "data"
    with resources.as_file(folder / "face_factors.safetensors") as path:
        panda = PartsAppearanceDecomposition.load(path)
    with resources.as_file(folder / "face_edits.safetensors") as path:
        edits = load_edits(path, panda)
    extractor = GeneratorFeatureExtractor(generator, panda.layer_)
    extractor.fit(sample_latents(generator, 1, random_state=0))
    return LocalEditor(extractor, panda), edits
