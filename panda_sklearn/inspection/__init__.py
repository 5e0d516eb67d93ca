"""Displays of parts, saliency and edits.

Floor 4 of the package. Each display holds computed arrays and draws them with
``plot``; matplotlib (the extra ``plot``) is imported only then.
"""

from panda_sklearn.inspection._edits import (
    EditDisplay,
    EditMatrixDisplay,
    StrengthsDisplay,
)
from panda_sklearn.inspection._gallery import EditGalleryDisplay
from panda_sklearn.inspection._parts import PartsDisplay, RefinementDisplay
from panda_sklearn.inspection._saliency import SaliencyDisplay
from panda_sklearn.inspection._variations import VariationsDisplay

__all__ = [
    "EditDisplay",
    "EditGalleryDisplay",
    "EditMatrixDisplay",
    "PartsDisplay",
    "RefinementDisplay",
    "SaliencyDisplay",
    "StrengthsDisplay",
    "VariationsDisplay",
]
