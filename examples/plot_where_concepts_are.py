"""
Where concepts are, and images without them
===========================================

An appearance is a direction in the space of a layer's channels. Its saliency in a face
is a map of where the concept behind the appearance is. We threshold such maps to find
faces and backgrounds without any labels, cut off the background, and remove the faces
by adding background where they are (sections 4.1.1 and 4.1.2 of the paper; figures 3, 4
and 5).

Run as a script, ``python examples/plot_where_concepts_are.py`` writes the pictures
below to the folder ``panda_pictures``.
"""

# %%
# The first appearances of a coarse layer
# ---------------------------------------
# We use the block with 8 x 8 positions of the face generator that the package ships.

from pathlib import Path

import torch
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.inspection import EditDisplay, SaliencyDisplay, StrengthsDisplay

generator = load_face_generator()
pipeline = make_pipeline(
    GeneratorFeatureExtractor(generator, "block8"),
    PartsAppearanceDecomposition(n_parts=12, random_state=0),
)
pipeline.fit(sample_latents(generator, 1000, random_state=0))
generator.truncation = 0.7  # from here on, faces with fewer mistakes
extractor, panda = pipeline

# %%
# Below each map are the pixels where it is at least its mean over the training data.
# The maps are resized to the images first, so that outlines are smooth. The first
# appearance is the face. The second is its surroundings, and the nose, which this
# generator makes with the same channels.

unseen = sample_latents(generator, 8, random_state=1)
faces = extractor.generate(unseen)
saliency_figure = SaliencyDisplay.from_estimator(
    panda, extractor.transform(unseen), faces, appearances=[0, 1], masks=True
).figure_
face, background = 0, 1

# %%
# Pixels without background
# -------------------------
# Pixels in the mask of the face stay as they are; the others become white.
# (``editor.remove_pixels`` instead fills the pixels where an appearance *is*.)

editor = LocalEditor.from_pipeline(pipeline)
mask = editor.mask(unseen, face)
print(f"Background: {1 - mask.float().mean():.0%} of the pixels")
cut_figure = EditDisplay.from_images(
    faces, torch.where(mask[:, None], faces, 1.0)
).figure_

# %%
# Images without faces
# --------------------
# Adding the background's appearance where it is absent replaces the face with
# background. The strength is in standard deviations of that appearance's saliency over
# the training data. Every photograph that this generator was trained on has a face in
# the middle. It never learnt to draw background there, and what it draws is dark and
# blurred.

removed_figure = EditDisplay.from_images(
    faces, editor.remove(unseen, background, strength=8.0)
).figure_

# %%
# The removal at increasing strengths:

where = ~panda.localize(extractor.transform(unseen[:4]), background)
strip_figure = StrengthsDisplay.from_editor(
    editor,
    unseen[:4],
    Edit(background, where, unit="std"),
    strengths=[0, 2, 4, 6, 8],
).figure_

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {
    "where": saliency_figure,
    "cut": cut_figure,
    "removed": removed_figure,
    "removal_strip": strip_figure,
}.items():
    figure.savefig(pictures / f"{name}.png", dpi=90)
print(f"Pictures are in {pictures.resolve()}")
