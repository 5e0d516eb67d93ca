"""The pretrained face generator.

Imports torch, safetensors and :mod:`panda_sklearn.utils`.
"""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load as load_safetensors

from panda_sklearn.datasets._face_generator import FaceGenerator
from panda_sklearn.utils.scalars import check_number

__all__ = ["load_face_generator"]


def load_face_generator(truncation: float = 1.0) -> FaceGenerator:
    """Load the small pretrained face generator that the package ships.

    It was trained on Labelled Faces in the Wild by
    ``examples/train_face_generator.py``. The model card beside its weights says how,
    and what it must not be used for. Loading draws no random numbers.

    Parameters
    ----------
    truncation : float, default=1.0
        From 0 to 1: how far styles are from their mean. At 0.7 faces are more alike
        and have fewer faults, which suits demonstrations; 1 is the distribution that
        was learnt.

    Returns
    -------
    generator : FaceGenerator
        A ``torch.nn.Module`` in evaluation mode on the CPU, in float32, whose
        parameters do not require gradients. ``generator(latents)`` turns latents of
        shape (n_samples, 64) into RGB images of shape (n_samples, 3, 64, 64); black is
        -1 and white is 1. Its layers "block8", "block16" and "block32" are worth
        decomposing.

    Raises
    ------
    TypeError, ValueError
        If ``truncation`` is not a number from 0 to 1.

    See Also
    --------
    sample_latents : Draws latents for it.
    panda_sklearn.generators.fingerprint : Identifies the weights.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> generator = load_face_generator()
    >>> latents = sample_latents(generator, 4, random_state=0)
    >>> generator(latents).shape
    torch.Size([4, 3, 64, 64])
    """
    check_number("truncation", truncation, at_least=0, at_most=1)
    file = resources.files("panda_sklearn.datasets") / "data/face_generator.safetensors"
    weights = load_safetensors(file.read_bytes())
    with torch.device("meta"):  # no random weights, whatever the default device
        generator = FaceGenerator()
    weights = {name: w.float() for name, w in weights.items()}
    generator.load_state_dict(weights, assign=True)
    generator.truncation = float(truncation)
    return generator.eval().requires_grad_(False)
