"""The pretrained face generator and its latents.

Floor 2: torch, numpy, safetensors.
"""

from __future__ import annotations

from importlib import resources
from numbers import Integral

import torch
from safetensors.torch import load as load_safetensors

from panda_sklearn.datasets._face_generator import FaceGenerator
from panda_sklearn.utils.validation import check_random_state

__all__ = ["load_face_generator", "sample_latents"]


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
    generator = FaceGenerator()
    generator.load_state_dict({name: w.float() for name, w in weights.items()})
    return generator.eval().requires_grad_(False)


def sample_latents(generator, n_samples, random_state=None):
    """Draw latents from the distribution that a generator was trained on.

    Parameters
    ----------
    generator : FaceGenerator
        A generator with a ``latent_size``, the number of independent standard normal
        numbers that it takes for a sample.

    n_samples : int
        Number of samples.

    random_state : int, RandomState instance or None, default=None
        Pass an int for the same latents at every call, on every device.

    Returns
    -------
    latents : Tensor of shape (n_samples, latent_size)
        Float32, on the generator's device.
    """
    size = getattr(generator, "latent_size", None)
    if not isinstance(size, int):
        raise TypeError(
            "sample_latents needs a generator with an int attribute latent_size, as "
            f"load_face_generator() returns; {type(generator).__name__} has none. "
            "Draw latents as the generator's authors do."
        )
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples must be an int of 1 or more, got {n_samples!r}.")
    draw = check_random_state(random_state).standard_normal((n_samples, size))
    device = next(generator.parameters()).device
    return torch.from_numpy(draw).to(device=device, dtype=torch.float32)
