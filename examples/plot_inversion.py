"""
Editing a photograph
====================

A generator makes faces of its own. To edit a given photograph, find latents whose image
matches it, and edit that image.

Run as a script, ``python examples/plot_inversion.py`` writes the pictures below to the
folder ``panda_pictures``. The photograph is from *Labelled Faces in the Wild*, if that
is in scikit-learn's data folder or ``--download`` is given, which fetches it. Otherwise
it is the mirror image of a generated face, which no latents generate exactly.
"""

# %%
# A photograph, aligned
# ---------------------
# All images of the generator have eyes and mouth in the same place. ``align_face``
# rotates, scales and shifts a photograph so that its eyes and mouth are there too. It
# takes their columns and rows in the photograph.

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import fetch_lfw_people, get_data_home
from sklearn.decomposition import PCA

from panda_sklearn import Edit, GeneratorFeatureExtractor, LocalEditor
from panda_sklearn.datasets import (
    load_face_edits,
    load_face_generator,
    sample_latents,
)
from panda_sklearn.editing import align_face, invert
from panda_sklearn.generators import StyleGAN2
from panda_sklearn.metrics import roi_ratio

generator = load_face_generator()
named_editor, edits = load_face_edits()
panda = named_editor.decomposition


def photograph():
    """A face in the format of the generator, (1, 3, 64, 64) from -1 to 1."""
    if "--download" in sys.argv:
        fetch_lfw_people()
    folder = Path(get_data_home()) / "lfw_home" / "lfw_funneled"
    file = folder / "Cecilia_Bolocco" / "Cecilia_Bolocco_0002.jpg"
    if not file.exists():
        z = sample_latents(generator, 1, random_state=2)
        return generator(z, truncation=0.7).clamp(-1, 1).flip(-1)
    eyes_and_mouth = [(105, 113.5), (146, 112), (127, 157.5)]
    crop = align_face(plt.imread(file), eyes_and_mouth)
    return torch.from_numpy(np.moveaxis(crop, -1, 0) / 127.5 - 1).float()[None]


face = photograph()

# %%
# Latents that match it
# ---------------------
# Inputs of the mapping network of a style-based generator match photographs poorly; a
# code for each layer matches them well. ``StyleGAN2`` says how to run the generator on
# such codes. The layer, and so the decomposition, stays the same.

codes = StyleGAN2(latent_space="w+")
extractor = GeneratorFeatureExtractor(generator, panda.layer_, forward=codes)
extractor.fit(sample_latents(generator, 2, random_state=0, forward=codes))
found = invert(extractor, face, n_starts=1, value_range=(-1, 1), random_state=0)
latents, residuals = found
print(f"{float(residuals[0]):.1%} of the variance is not matched")


def draw(*rows, size=1.5):
    """Draw rows of named images, aligned on the right."""
    n = len(rows[0])
    figure, axes = plt.subplots(
        len(rows), n, figsize=(size * n, (size + 0.3) * len(rows)), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for row, columns in zip(axes, rows, strict=True):
        for ax, (name, images) in zip(
            row[n - len(columns) :], columns.items(), strict=True
        ):
            image = ((images[0] + 1) / 2).clamp(0, 1).expand(3, -1, -1)
            ax.imshow(image.permute(1, 2, 0))
            ax.set_title(name, fontsize="small")
    figure.tight_layout(pad=0.3)
    return figure


inversion_figure = draw(
    {"photograph": face, "inverted": found.images, "difference": found.differences}
)

# %%
# Named edits
# -----------
# The edits that the package ships are for this layer, and work with any kind of latents
# of the generator.

editor = LocalEditor(extractor, panda)
named_figure = draw(
    {"inverted": found.images}
    | {edit.name: editor.edit(latents, edit) for edit in edits}
)

# %%
# Compared with edits in latent space
# -----------------------------------
# All of these change the mouth by the same amount: a direction found for that region,
# the named edit, and those of ten directions each of SeFa and GANSpace that change the
# rest least. ROIR is the change outside the region relative to inside.

smile = next(edit for edit in edits if edit.name == "smile")
mouth = torch.zeros(64, 64)
mouth[42:56, 20:44] = 1
plain = extractor.generate(latents)
CHANGE = 0.15

others = sample_latents(generator, 6, random_state=1, forward=codes)
(direction,) = editor.find_directions(others, smile.part, 1, mouth)
target = {"target_change": CHANGE, "region": mouth, "value_range": (-1, 1)}
compared = {
    "found": editor.edit(latents, Edit(direction, smile.part, 1.0, "alpha"), **target),
    "smile": editor.edit(latents, smile, **target),
}


def moved(direction):
    """The image with its codes moved until the mouth changes by ``CHANGE``."""
    strength = 1.0
    for _ in range(8):
        image = extractor.generate(latents + strength * direction).clamp(-1, 1)
        change = ((image - plain.clamp(-1, 1)) * mouth).square().sum()
        strength *= float(CHANGE / (change / (3 * mouth.sum())).sqrt())
    return image


samples = sample_latents(generator, 5000, random_state=2, forward=codes)[:, 0]
weights = torch.cat(
    [
        layer.weight * layer.gain
        for name, layer in generator.named_modules()
        if name.endswith("style") and "rgb" not in name
    ]
)
rivals = {
    "SeFa": torch.linalg.svd(weights).Vh[:10],
    "GANSpace": torch.from_numpy(PCA(10).fit(samples.numpy()).components_),
}
for name, directions in rivals.items():
    images = [moved(sign * each) for each in directions for sign in (1, -1)]
    compared[name] = min(images, key=lambda image: roi_ratio(mouth, plain, image))
for name, image in compared.items():
    print(f"{name:9} ROIR {roi_ratio(mouth, plain, image):.2f}")
compared_figure = draw(
    {"inverted": plain} | compared,
    {
        f"change, {name}": 4 * (image - plain).abs().mean(dim=1, keepdim=True) - 1
        for name, image in compared.items()
    },
)

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {
    "inversion": inversion_figure,
    "inversion_edited": named_figure,
    "inversion_compared": compared_figure,
}.items():
    figure.savefig(pictures / f"{name}.png", dpi=100)
print(f"Pictures are in {pictures.resolve()}")
