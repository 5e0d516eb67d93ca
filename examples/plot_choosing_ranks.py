"""
Choosing the ranks
==================

How many parts do the activations have? The reconstruction error cannot tell: it falls
with every part that is added, even on unseen samples. We plant four parts in noise and
compare three scores in a grid search. Then we do the same for the face generator, whose
activations have no noise.
"""

# %%
# Planted parts
# -------------
# Four parts and four appearances, with noise at 10 dB.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import (
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.metrics import heldout_reconstruction, reconstruction, stability
from panda_sklearn.model_selection import OneStandardError

X, parts, appearances = make_parts_appearances(
    150, n_parts=4, n_appearances=4, spatial_shape=(12, 12), snr_db=10, random_state=0
)

# %%
# ``heldout_reconstruction`` predicts some positions of a sample from the others; parts
# that fit noise make the prediction worse. ``stability`` measures how well a fit to
# other samples finds the same parts. ``OneStandardError`` chooses the smallest ranks
# whose score is within one standard error of the best.

scoring = {
    "reconstruction": reconstruction,
    "heldout": heldout_reconstruction,
    "stability": stability,
}


def search_parts(X, n_appearances, grid):
    """Three scores for each number of parts, over three folds."""
    return GridSearchCV(
        PartsAppearanceDecomposition(n_appearances=n_appearances, random_state=0),
        {"n_parts": grid},
        scoring=scoring,
        refit=OneStandardError("heldout"),
        cv=3,
    ).fit(X)


search = search_parts(X, 4, list(range(1, 11)))
print("Planted parts: 4; recommended:", search.best_params_["n_parts"])

# %%
# The face generator
# ------------------
# Here every further part describes the maps better, even on the positions that were
# left out, until parts become so small that the other positions say little about them.
# There is no true number: take as many as you can look at while they are still stable.

generator = load_face_generator()
latents = sample_latents(generator, 600, random_state=0)
maps = GeneratorFeatureExtractor(generator, "block8").fit_transform(latents)
faces = search_parts(maps, 32, [1, 2, 4, 6, 8, 12, 16, 24])
print("Faces; recommended:", faces.best_params_["n_parts"])

# %%


def draw(axes, search, title):
    """Draw the mean and standard error of each score, and the choice."""
    table = search.cv_results_
    n_parts = np.array([params["n_parts"] for params in table["params"]])
    for ax, name in zip(axes, scoring, strict=True):
        mean = table[f"mean_test_{name}"]
        error = table[f"std_test_{name}"] / np.sqrt(search.n_splits_ - 1)
        ax.errorbar(n_parts, mean, error, marker="o", markersize=4, capsize=3)
        ax.axvline(search.best_params_["n_parts"], color="tab:orange", zorder=0)
        ax.set(title=f"{title}: {name}", xlabel="n_parts")


figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
draw(axes[0], search, "planted")
draw(axes[1], faces, "faces")
