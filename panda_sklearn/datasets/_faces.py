"""The pretrained face generator.

Floor 2: torch, safetensors.
"""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load as load_safetensors

from panda_sklearn.datasets._face_generator import FaceGenerator

__all__ = ["load_face_generator"]


def load_face_generator():
    """Load the small pretrained face generator that the package ships.

    It was trained on Labelled Faces in the Wild by
    ``examples/train_face_generator.py``; the model card beside its weights says how,
    and what it may not be used for.

    Returns
    -------
    generator : FaceGenerator
        A ``torch.nn.Module`` in evaluation mode on the CPU, in float32, whose
        parameters do not require gradients. ``generator(latents)`` turns latents of
        shape (n_samples, 64) into RGB images of shape (n_samples, 3, 64, 64), black
        being -1 and white 1. Its layers "block8", "block16" and "block32" are those
        worth decomposing.

    See Also
    --------
    sample_latents : Draws latents for it.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> generator = load_face_generator()
    >>> latents = sample_latents(generator, 4, random_state=0)
    >>> generator(latents).shape
    torch.Size([4, 3, 64, 64])
    """
    file = resources.files("panda_sklearn.datasets") / "data/face_generator.safetensors"
    weights = load_safetensors(file.read_bytes())
    with torch.device("meta"):  # no random weights, on no other default device
        generator = FaceGenerator()
    weights = {name: w.float() for name, w in weights.items()}
    generator.load_state_dict(weights, assign=True)
    return generator.eval().requires_grad_(False)
