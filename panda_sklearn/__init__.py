"""Parts and appearances in the feature maps of convolutional networks.

Everything a user needs is here and in ``panda_sklearn.datasets``,
``panda_sklearn.generators``, ``panda_sklearn.inspection``, ``panda_sklearn.memory``,
``panda_sklearn.metrics`` and ``panda_sklearn.model_selection``.
"""

from panda_sklearn._version import __version__
from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.editing import Edit, LocalEditor
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor

__all__ = [
    "Edit",
    "GeneratorFeatureExtractor",
    "LocalEditor",
    "PartsAppearanceDecomposition",
    "__version__",
]
