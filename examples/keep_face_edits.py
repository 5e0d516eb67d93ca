"""
Named edits of the face generator
=================================

This script made ``face_factors.safetensors`` and ``face_edits.safetensors``, which
:func:`panda_sklearn.datasets.load_face_edits` loads. It is not run when the
documentation is built.

The variations were chosen from pictures of all of them. The names were given by
somebody who saw twenty faces before and after each edit, and nothing else.

    python examples/keep_face_edits.py --out panda_sklearn/datasets/data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.editing import save_edits

LAYER = "block8"

# Name: part, variation and strength in standard deviations.
EDITS = {
    "smile": (4, 0, 3.0),
    "receding hairline": (8, 0, -3.0),
    "lower hairline": (8, 0, 3.0),
    "lowered brows": (0, 0, -3.0),
    "beard shadow": (4, 1, 3.0),
}


def main():
    """Fit, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--out", type=Path, default=Path("."))
    folder = parser.parse_args().out
    generator = load_face_generator()
    pipeline = make_pipeline(
        GeneratorFeatureExtractor(generator, LAYER),
        PartsAppearanceDecomposition(n_parts=12, n_appearances=48, random_state=0),
    ).fit(sample_latents(generator, 1000, random_state=0))
    factors = folder / "face_factors.safetensors"
    pipeline[-1].save(factors, layer=LAYER, network=generator)
    edits = [
        Edit(variation=variation, part=part, strength=strength, name=name)
        for name, (part, variation, strength) in EDITS.items()
    ]
    panda = PartsAppearanceDecomposition.load(factors)  # knows its layer and network
    save_edits(folder / "face_edits.safetensors", edits, panda)


if __name__ == "__main__":
    main()
