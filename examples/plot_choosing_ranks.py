"""
Choosing the ranks
==================

How many parts do the activations have? The error of reconstruction cannot tell: it
falls with every part that is added, on unseen samples too. We plant four parts in
noise, let a grid search look at three scores, and then do the same on the face
generator, whose activations have no noise.
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
# ``heldout_reconstruction`` predicts half of the positions of a sample from the other
# half: a part that fits noise makes that worse. ``stability`` asks whether a fit to
# other samples finds the same parts. ``OneStandardError`` takes the smallest ranks
# whose score is within a standard error of the best.

scoring = {
    "reconstruction": reconstruction,
    "heldout": heldout_reconstruction,
    "stability": stability,
}


def search_parts(X, n_appearances, grid):
    """Three scores of each number of parts, over three folds."""
    return GridSearchCV(
        PartsAppearanceDecomposition(n_appearances=n_appearances, random_state=0),
        {"n_parts": grid},
        scoring=scoring,
        refit=OneStandardError("heldout"),
        cv=3,
    ).fit(X)


search = search_parts(X, 4, list(range(1, 11)))
print("Planted are 4 parts, recommended", search.best_params_["n_parts"])

# %%
# The face generator
# ------------------
# Here each further part describes the maps better, on the positions that were left out
# too, until they are so small that half of the positions says little of the others.
# There is no true number: take as many as you can look at, where they are still stable.

generator = load_face_generator()
latents = sample_latents(generator, 600, random_state=0)
maps = GeneratorFeatureExtractor(generator, "block8").fit_transform(latents)
faces = search_parts(maps, 32, [1, 2, 4, 6, 8, 12, 16, 24])
print("For the faces, recommended", faces.best_params_["n_parts"])

# %%


def draw(axes, search, title):
    """Each score's mean and standard error, and the choice."""
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
