"""Displays of parts, saliency, edits and the scores of ranks.

A display holds computed arrays and draws them with ``plot``. Only then is matplotlib
(the extra ``plot``) imported.
"""

from panda_sklearn.inspection._edits import EditDisplay, StrengthsDisplay
from panda_sklearn.inspection._gallery import EditGalleryDisplay
from panda_sklearn.inspection._matrix import EditMatrixDisplay
from panda_sklearn.inspection._parts import PartsDisplay, RefinementDisplay
from panda_sklearn.inspection._ranks import RanksDisplay
from panda_sklearn.inspection._saliency import SaliencyDisplay
from panda_sklearn.inspection._variations import VariationsDisplay

__all__ = [
    "EditDisplay",
    "EditGalleryDisplay",
    "EditMatrixDisplay",
    "PartsDisplay",
    "RanksDisplay",
    "RefinementDisplay",
    "SaliencyDisplay",
    "StrengthsDisplay",
    "VariationsDisplay",
]
