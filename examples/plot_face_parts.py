"""
Parts and appearances of a face generator
=========================================

The package ships a small generator of faces, trained on photographs. We take the
activations of one of its layers, learn parts and appearances from them in a
scikit-learn pipeline, look at both, and make faces smile.

Run as a script, ``python examples/plot_face_parts.py`` writes the pictures below to
the folder ``panda_pictures``.
"""

# %%
# From latents to parts
# ---------------------
# The pipeline takes latents. Its first step runs the generator up to the block with
# 16 x 16 positions and returns the activations of that block. Its second step learns
# parts and appearances from them, by equation (3) of the paper.

from pathlib import Path

import numpy as np
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.inspection import (
    EditDisplay,
    PartsDisplay,
    SaliencyDisplay,
    VariationsDisplay,
)

generator = load_face_generator()
latents = sample_latents(generator, 1000, random_state=0)

pipeline = make_pipeline(
    GeneratorFeatureExtractor(generator, "block16", verbose=1),
    PartsAppearanceDecomposition(
        n_parts=12, n_appearances=32, random_state=0, verbose=1
    ),
)
pipeline.fit(latents)
extractor, panda = pipeline
extractor.verbose = 0

# %%
# Twelve parts and 32 appearances replace 256 positions and 128 channels. We measure how
# much of the activations they reconstruct on faces that they were not learnt from. From
# here on, faces are pulled towards the mean face ("truncation"), where the small
# generator makes fewer mistakes.

unseen = sample_latents(generator, 200, random_state=1)
print(f"Fraction of the sum of squares kept: {pipeline.score(unseen):.2f}")
generator.truncation = 0.7

# %%
# Parts
# -----
# A part is a map of non-negative weights, the same for all faces. Drawn over four
# unseen faces, most parts show a region that one can name: mouth, nose, brows,
# forehead, cheeks, hair, the background on either side.

faces = extractor.generate(unseen[:8])
parts_figure = PartsDisplay.from_estimator(panda, faces[:4]).figure_

# %%
# Appearances
# -----------
# An appearance is a direction in the space of the channels. Its saliency in a face,
# :math:`a_k^\top Z_i`, is how much of it there is at each position. The line is drawn
# at its mean over the training data, the threshold of section 4.1.2 of the paper. The
# first appearance separates the face from its surroundings.

saliency_figure = SaliencyDisplay.from_estimator(
    panda, extractor.transform(unseen[:8]), faces, appearances=range(5)
).figure_

# %%
# A smile
# -------
# The variations of a part are the principal components of its coefficients over the
# training faces: how it varies from face to face. An edit along one stays close to what
# occurs. The generator decides early how a mouth is shaped, so we also fit the block
# with 8 x 8 positions,

early = make_pipeline(
    GeneratorFeatureExtractor(generator, "block8"),
    PartsAppearanceDecomposition(n_parts=12, n_appearances=48, random_state=0),
)
generator.truncation = 1.0
early.fit(latents)
generator.truncation = 0.7

# %%
# look for the part that is most concentrated on the mouth,

parts = early[-1].parts_.numpy()
shares = parts / np.linalg.norm(parts, axis=(1, 2), keepdims=True)
mouth = int(shares[:, 5, 3:5].sum(axis=1).argmax())

# %%
# and move it by three standard deviations along its first variation. Nothing here was
# told what a smile is.

editor = LocalEditor.from_pipeline(early)
smile = Edit(variation=0, part=mouth, strength=3.0)
edit_figure = EditDisplay.from_editor(editor, unseen[:8], smile).figure_

# %%
# The opposite direction closes the lips. Further variations of the same part:

variations_figure = VariationsDisplay.from_editor(
    editor, unseen[3:4], parts=[mouth], variations=range(4), strength=3.0
).figure_

# %%
# The whole image is computed from the changed activations. Later convolutions spread
# the change by a few pixels, beyond which it fades. With strength 0 the image is the
# same everywhere, bit for bit.

unchanged = editor.edit(unseen[:8], Edit(variation=0, part=mouth, strength=0.0))
print("Strength 0 changes nothing:", bool((unchanged == faces).all()))

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {
    "parts": parts_figure,
    "saliency": saliency_figure,
    "edit": edit_figure,
    "variations": variations_figure,
}.items():
    figure.savefig(pictures / f"{name}.png", dpi=120)
print(f"Pictures are in {pictures.resolve()}")
