"""Write files as the present version does, for tests of the versions to come.

Run it before ``FORMAT_VERSION`` is raised: ``python -m tests.data.write_files``.
"""

from pathlib import Path

import numpy as np

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn._state import FORMAT_VERSION
from panda_sklearn.datasets import make_parts_appearances

X = make_parts_appearances(
    30, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
)[0].astype("float32")

if __name__ == "__main__":
    for kind, method in (("fitted", "fit"), ("streamed", "partial_fit")):
        panda = PartsAppearanceDecomposition(3, 4, random_state=0)
        getattr(panda, method)(X)
        path = Path(__file__).parent / f"{kind}_version{FORMAT_VERSION}.safetensors"
        panda.save(path, layer="block16")
        transformed = panda.transform(X[:2])
        np.savez_compressed(path.with_suffix(".npz"), X=X[:2], transformed=transformed)
