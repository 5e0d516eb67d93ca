"""
Choosing the ranks
==================

How many parts and appearances do the activations have? The reconstruction error cannot
tell: it falls with every part that is added, even on unseen samples. A score of values
that were held out can. We plant four parts and four appearances in noise and search for
them, then do the same for the face generator, whose activations have no noise.
"""

# %%
# Planted parts
# -------------
# Four parts and four appearances, with noise at 10 dB.

from functools import partial

import matplotlib.pyplot as plt
from sklearn.model_selection import GridSearchCV

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import (
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.inspection import RanksDisplay
from panda_sklearn.metrics import heldout_reconstruction, reconstruction

X, parts, appearances = make_parts_appearances(
    150, n_parts=4, n_appearances=4, spatial_shape=(12, 12), snr_db=10, random_state=0
)

# %%
# ``heldout_reconstruction`` predicts some positions of a sample from the others; parts
# that fit noise make the prediction worse. We search with parts of any sign, whose
# span is all that counts, and take the best score.

planted = GridSearchCV(
    PartsAppearanceDecomposition(nonnegative=False, random_state=0),
    {"n_parts": [2, 3, 4, 5, 6], "n_appearances": [2, 3, 4, 5]},
    scoring={"reconstruction": reconstruction, "heldout": heldout_reconstruction},
    refit="heldout",
    cv=3,
).fit(X)
print("Planted: 4 parts, 4 appearances; found:", planted.best_params_)
panda = PartsAppearanceDecomposition(**planted.best_params_, random_state=0).fit(X)

# %%
# The face generator
# ------------------
# Each further part describes these maps better, even on held-out positions, since they
# have no noise. Holding out channels as well asks more of a part, and names a number.
# It is not the true one, since there is none; take fewer if you want to look at all.

generator = load_face_generator()
latents = sample_latents(generator, 600, random_state=0)
maps = GeneratorFeatureExtractor(generator, "block8").fit_transform(latents)
faces = GridSearchCV(
    PartsAppearanceDecomposition(n_appearances=32, nonnegative=False, random_state=0),
    {"n_parts": [2, 4, 8, 12, 16, 20, 24, 32]},
    scoring=partial(heldout_reconstruction, held_out="both"),
    cv=3,
).fit(maps)
print("Faces:", faces.best_params_)

# %%
# Left, the score that cannot tell; in the middle, the one that can; right, the faces.

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
RanksDisplay.from_search(planted, "reconstruction", ax=axes[0])
RanksDisplay.from_search(planted, "heldout", ax=axes[1])
RanksDisplay.from_search(faces, ax=axes[2])
for ax, title in zip(
    axes,
    ("planted: reconstruction", "planted: held out", "faces: held out"),
    strict=True,
):
    ax.set_title(title, pad=20)
