"""
Parts of other faces
====================

An edit can take what it puts at a part from another face, or from the same face
elsewhere in the generator's latent space.

Run as a script, ``python examples/plot_transfers.py`` writes the pictures below to the
folder ``panda_pictures``.
"""

# %%
# An editor whose latents are styles
# ----------------------------------
# Known edit directions of such generators are directions of their styles rather than of
# their latents. ``forward`` says how to run the generator on styles.

from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.generators import StyleGAN2

generator = load_face_generator()


def styles(n_samples, random_state):
    """Styles of random faces, pulled towards their mean as by truncation=0.7."""
    latents = sample_latents(generator, n_samples, random_state=random_state)
    with torch.no_grad():
        return generator.style_mean.lerp(generator.styles(latents), 0.7)


extractor = GeneratorFeatureExtractor(
    generator, "block16", forward=StyleGAN2(latent_space="w")
)
panda = PartsAppearanceDecomposition(n_parts=12, n_appearances=48, random_state=0)
panda.fit(extractor.fit_transform(styles(1000, 0)))
editor = LocalEditor(extractor, panda)

# %%
# This face with that one's mouth
# -------------------------------
# The place is a part, several parts, or a mask; here a box around the mouth. By default
# ``transfer`` moves the coefficients to the donor's; with ``mix`` it moves the
# activations, including what the factors do not reconstruct. A donor can be the mean of
# several faces.

mouth = np.zeros((64, 64), dtype=bool)
mouth[40:58, 18:46] = True
faces, donors = styles(6, 1), styles(6, 8)
twenty = styles(20, 9)
mouths = {
    "face": extractor.generate(faces),
    "donor": extractor.generate(donors),
    "coefficients": editor.transfer(faces, donors, mouth),
    "activations": editor.transfer(faces, donors, mouth, mix=True),
    "twenty mouths": editor.transfer(faces, twenty, mouth, mix=True, mean=True),
}


def draw(rows):
    """Draw rows of images with their names."""
    n = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.2 * n + 0.8, 1.2 * len(rows)), squeeze=False
    )
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, image in zip(row, images, strict=True):
            ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0))
            ax.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.2)
    return figure


mouths_figure = draw(mouths)

# %%
# A global direction at one place
# -------------------------------
# The second principal component of the styles (GANSpace) darkens the hair and changes
# much else. As the latent direction of an ``Edit`` it does so at the given part alone.

pca = PCA(2).fit(styles(10_000, 5).numpy())
direction = torch.from_numpy(pca.components_[1] * pca.explained_variance_[1] ** 0.5)
direction = direction.float()
hair = np.zeros((64, 64), dtype=bool)
hair[:16, 6:58] = True
local = Edit(latent=direction, part=hair, strength=3.0)
hairs_figure = draw(
    {
        "face": extractor.generate(faces),
        "everywhere": extractor.generate(faces + 3 * direction),
        "at the hair": editor.edit(faces, local),
    }
)

# %%
# Edits add up
# ------------
# A transfer is an edit like any other, ``Edit(features=...)`` or
# ``Edit(coefficients=...)``, and can be combined with others.

smiling = Edit(features=extractor.transform(donors), part=mouth)
both_figure = draw(
    {
        "face": extractor.generate(faces),
        "both": editor.edit(faces, [smiling, local]),
    }
)

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {
    "mouths": mouths_figure,
    "hairs": hairs_figure,
    "mouths_and_hairs": both_figure,
}.items():
    figure.savefig(pictures / f"{name}.png", dpi=100)
print(f"Pictures are in {pictures.resolve()}")
