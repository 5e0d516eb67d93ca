"""
Edits with names
================

The face generator comes with named edits. Each is a variation of one of its parts; the
names were given by somebody who saw faces before and after the edit, and nothing else.

Run as a script, ``python examples/plot_named_edits.py`` writes the pictures below to
the folder ``panda_pictures``.
"""

# %%
# All of them
# -----------
# ``load_face_edits`` returns an editor and the edits. Here they are, on faces that
# nobody looked at when they were chosen.

from dataclasses import replace
from pathlib import Path

from panda_sklearn.datasets import load_face_edits, sample_latents
from panda_sklearn.inspection import (
    EditDisplay,
    EditGalleryDisplay,
    StrengthsDisplay,
)

editor, edits = load_face_edits()
latents = sample_latents(editor.extractor.generator, 8, random_state=1)
gallery_figure = EditGalleryDisplay.from_editor(editor, latents, edits).figure_

# %%
# More and less of it
# -------------------
# The strength is in standard deviations of the variation over the training samples.
# Negative strengths do the opposite, if there is one.

named = {edit.name: edit for edit in edits}
smile_figure = StrengthsDisplay.from_editor(
    editor, latents[:4], named["smile"], strengths=[-2, -1, 0, 1, 2, 3, 4]
).figure_

# %%
# Several at once
# ---------------
# Edits add up.

both = [replace(named["smile"], strength=2.5), named["lower hairline"]]
both_figure = EditDisplay.from_editor(editor, latents, both).figure_

# %%
# Save the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {
    "named_edits": gallery_figure,
    "smiles": smile_figure,
    "two_edits": both_figure,
}.items():
    figure.savefig(pictures / f"{name}.png", dpi=120)
print(f"Pictures are in {pictures.resolve()}")
