"""
Local edits: both eyes, one eye, a drawn region
===============================================

We find an edit of the eyes without looking at a single image, apply it to both eyes and
to one, edit a region drawn by hand, and refine the parts to each face (sections 3.5 and
4.2 of the paper; figures 6 and 9).

Run as a script, ``python examples/plot_local_edits.py`` writes the pictures below to
the folder ``panda_pictures``.
"""

# %%
# Sixteen parts
# -------------
# With this many, one part covers the eyes and little else.

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
from panda_sklearn.editing import split_part
from panda_sklearn.inspection import (
    EditDisplay,
    EditMatrixDisplay,
    PartsDisplay,
    RefinementDisplay,
    StrengthsDisplay,
)
from panda_sklearn.metrics import roi_ratio

generator = load_face_generator()
pipeline = make_pipeline(
    GeneratorFeatureExtractor(generator, "block16"),
    PartsAppearanceDecomposition(n_parts=16, n_appearances=48, random_state=0),
)
pipeline.fit(sample_latents(generator, 1000, random_state=0))
generator.truncation = 0.7  # from here on, faces with fewer mistakes
extractor, panda = pipeline

unseen = sample_latents(generator, 8, random_state=1)
faces = extractor.generate(unseen)
parts_figure = PartsDisplay.from_estimator(panda, faces[1:3]).figure_

# %%
# We take the part that has most weight in both of two boxes around the eyes of the mean
# face, given in positions of the layer.

scaled = panda.parts_.numpy() / np.linalg.norm(panda.parts_, axis=(1, 2), keepdims=True)
left, right = (
    scaled[:, 6:8, box].sum(axis=(1, 2)) for box in (slice(4, 7), slice(9, 12))
)
eyes = int(np.minimum(left, right).argmax())
print(f"Part {eyes} covers the eyes")

# %%
# Which appearance?
# -----------------
# ``rank_edits`` tries appearances at a part on a few latents, in both directions. For
# each it measures the change inside the part (effect), the change outside relative to
# inside (ROIR, equation (7): lower is more local), and how alike the change is in all
# faces (consistency). We take the most local edit of those with a consistency above
# 0.5. (``pandas.DataFrame(table)`` works as it is.)

editor = LocalEditor.from_pipeline(pipeline)
trials = sample_latents(generator, 8, random_state=2)
table = editor.rank_edits(
    trials, parts=[eyes], appearances=range(20), strength=5.0, sort_by="roi_ratio"
)
columns = ["appearance", "strength", "effect", "roi_ratio", "consistency"]
print("  ".join(columns))
for row in list(zip(*(table[name] for name in columns), strict=True))[:8]:
    print("{:10d}  {:+8.1f}  {:6.2f}  {:9.2f}  {:11.2f}".format(*row))
taken = table["edit"][table["consistency"] > 0.5][0]
best, sign = taken.appearance, float(np.sign(taken.strength))
print(f"Chosen: appearance {best}, {'added' if sign > 0 else 'subtracted'}")

# %%
# Several appearances at several parts, at the same strength: a row is *what*, a column
# is *where*.

rows = [best, *(j for j in range(4) if j != best)]
matrix_figure = EditMatrixDisplay.from_editor(
    editor, unseen[1:2], appearances=rows, parts=range(8), strength=6.0
).figure_

# %%
# Both eyes
# ---------
# ``target_change`` asks for an amount of change instead of a strength: here the eyes of
# each face are to change by a root mean square of 0.2; black to white is 2.

both = Edit(best, eyes, sign)
eyes_figure = EditDisplay.from_editor(editor, unseen, both, target_change=0.2).figure_
factors = editor.find_strengths(unseen, both, target_change=0.2, value_range=(-1, 1))
print("Strengths, in std:", np.round(np.asarray(factors), 1))

# %%
# One eye
# -------
# Above half of its largest weight the part has two components. An edit takes either as
# its part: the other eye stays as it was.

one_eye, other_eye = split_part(panda.parts_[eyes])
one_figure = EditDisplay.from_editor(
    editor, unseen, Edit(best, one_eye, sign), target_change=0.2
).figure_

# %%
# The edit at several strengths, including negative ones:

strip_figure = StrengthsDisplay.from_editor(
    editor, unseen[1:4], both, strengths=[-9, -6, -3, 0, 3, 6, 9]
).figure_

# %%
# A region drawn by hand
# ----------------------
# The region is given in pixels of the image and resized to the layer. Equation (7) with
# the same region measures how local the edit is.

drawn = np.zeros((64, 64))
drawn[0:6, 10:54] = 1  # hair above the forehead
recoloured = editor.edit(unseen, Edit(1, drawn), target_change=0.2)
drawn_figure = EditDisplay.from_images(faces, recoloured).figure_
print(f"ROIR of the drawn region: {roi_ratio(drawn, faces, recoloured):.2f}")

# %%
# Parts of one face
# -----------------
# Parts are the same for all faces. ``refine`` adapts them to each face: it starts from
# the global parts and lowers equation (6). The numbers below the last row say by how
# much.

refinement_figure = RefinementDisplay.from_estimator(
    panda, extractor.transform(unseen), faces, parts=[0, 1, 3, 6, 7, 9, 14]
).figure_

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {
    "sixteen_parts": parts_figure,
    "matrix": matrix_figure,
    "eyes": eyes_figure,
    "one_eye": one_figure,
    "strip": strip_figure,
    "drawn": drawn_figure,
    "refinement": refinement_figure,
}.items():
    figure.savefig(pictures / f"{name}.png", dpi=90)
print(f"Pictures are in {pictures.resolve()}")
