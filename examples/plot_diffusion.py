"""
A diffusion model, step by step
===============================

A diffusion model runs the same layers once in each of its steps. We look at the parts
of one layer and how they change from step to step, and edit in all or some of the
steps.

Needs the extra ``diffusers``. Run as a script,
``python examples/plot_diffusion.py`` writes the pictures below to the folder
``panda_pictures``.
"""

# %%
# Activations of several steps
# ----------------------------
# The bottleneck and the blocks after it are worth decomposing. ``call`` chooses several
# steps; here each step of each sample is a row of its own.

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_diffusion, sample_latents
from panda_sklearn.generators import list_layers
from panda_sklearn.inspection import PartsDisplay, SaliencyDisplay

generator = load_face_diffusion()
noise = sample_latents(generator, 100, random_state=0)
print(list_layers(generator, noise[:1]).recommended)

steps = [1, 4, 9]
extractor = GeneratorFeatureExtractor(generator, "unet.up_blocks.1", call=steps)
activations = extractor.fit_transform(noise)
print(activations.shape)

# %%
# Parts, and how they change with the step
# ----------------------------------------
# We decompose each step by itself. There are parts from the first steps on, when the
# image is still noise; eyes and mouth separate later.

by_step = extractor.split_calls(activations)
figures = {}
for n, step in enumerate(steps):
    panda = PartsAppearanceDecomposition(16, 48, random_state=0).fit(by_step[:, n])
    display = PartsDisplay.from_estimator(panda)
    figures[f"diffusion_parts_{step}"] = display.figure_
    display.figure_.suptitle(f"step {step + 1} of 12", fontsize="medium")

# %%
# Other layers, in step 10: the parts of the bottleneck are mere strips, those of the
# next block are coarse.

for layer, n_parts in (("unet.mid_block", 8), ("unet.up_blocks.0", 10)):
    maps = GeneratorFeatureExtractor(generator, layer, call=9).fit_transform(noise[:60])
    coarse = PartsAppearanceDecomposition(n_parts, 48, random_state=0).fit(maps)
    display = PartsDisplay.from_estimator(coarse)
    figures[f"diffusion_{layer.replace('.', '_')}"] = display.figure_
    display.figure_.suptitle(layer, fontsize="medium")

# %%
# The saliency of the first appearances of the decomposition of step 10, in four faces:

faces = sample_latents(generator, 4, random_state=7)
images = extractor.generate(faces)
last = extractor.split_calls(extractor.transform(faces))[:, -1]
display = SaliencyDisplay.from_estimator(
    panda, last, appearances=[0, 1, 2], images=images, value_range=(-1, 1)
)
figures["diffusion_saliency"] = display.figure_

# %%
# How a part varies
# -----------------
# With ``calls_as="channels"`` all steps share the parts, an appearance has a slice for
# each step, and a variation is how faces differ in all steps together. The first
# variation of this part goes from dark open mouths to teeth. Steps differ in what they
# do: the last four keep what the first eight did, and alone only change colours.


def draw(rows):
    """Draw rows of images with their names."""
    n = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), n, figsize=(1.2 * n + 0.8, 1.2 * len(rows)))
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, image in zip(row, images, strict=True):
            ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0))
            ax.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.2)
    return figure


extractor = GeneratorFeatureExtractor(
    generator, "unet.up_blocks.1", call="all", calls_as="channels"
)
panda = PartsAppearanceDecomposition(24, 64, random_state=0)
editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(noise)))
part = int(panda.parts_[:, 22:27, 11:21].sum(dim=(1, 2)).argmax())  # at the mouth
faces = sample_latents(generator, 6, random_state=7)


def varied(strength, calls=range(12)):
    """The faces with the part's first variation added."""
    edit = Edit(variation=0, part=part, strength=strength, calls=calls)
    return editor.edit(faces, edit)


figures["diffusion_variations"] = draw(
    {
        "-7": varied(-7.0),
        "face": varied(0.0),
        "7": varied(7.0),
        "7, first eight": varied(7.0, range(8)),
        "7, last four": varied(7.0, range(8, 12)),
    }
)

# %%
# This face, that one's mouth
# ---------------------------
# ``transfer`` moves the activations of each step that the extractor takes to those of
# the donor in the same step: of all steps, or of the first or last six alone. The last
# six do most of it here.

mouth = np.zeros((64, 64), dtype=bool)
mouth[40:58, 16:48] = True
faces = sample_latents(generator, 6, random_state=7)
donors = sample_latents(generator, 6, random_state=11)


def transferred(calls):
    """The faces with the donors' mouths, transferred in some of the steps."""
    extractor = GeneratorFeatureExtractor(generator, "unet.up_blocks.1", call=calls)
    few = extractor.fit_transform(faces)
    panda = PartsAppearanceDecomposition(2, 4, max_iter=1, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(few))
    return editor.transfer(faces, donors, mouth, mix=True)


rows = {
    "face": extractor.generate(faces),
    "donor": extractor.generate(donors),
    "all steps": transferred("all"),
    "first six": transferred(slice(0, 6)),
    "last six": transferred(slice(6, None)),
}


figures["diffusion_mouths"] = draw(rows)

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in figures.items():
    figure.savefig(pictures / f"{name}.png", dpi=100)
print(f"Pictures are in {pictures.resolve()}")
