"""The pretrained face diffusion model.

Imports torch, safetensors and :mod:`panda_sklearn.generators`; diffusers, the extra of
that name, is imported only when the model is loaded.
"""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load as load_safetensors

from panda_sklearn.generators import Diffusion
from panda_sklearn.utils.optional import needed

__all__ = ["load_face_diffusion"]

# Also for examples/train_face_diffusion.py.
NETWORK = {
    "sample_size": 64,
    "block_out_channels": (32, 48, 64, 96),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
    "norm_num_groups": 16,
    "attention_head_dim": 32,
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
}


def load_face_diffusion(n_steps: int = 12) -> Diffusion:
    """Load the small pretrained face diffusion model that the package ships.

    It was trained on Labelled Faces in the Wild by
    ``examples/train_face_diffusion.py``. The model card beside its weights says how,
    and what it must not be used for. Loading draws no random numbers.

    Parameters
    ----------
    n_steps : int, default=12
        Number of steps from noise to an image. Faces are complete from 8 steps on; more
        steps make them crisper.

    Returns
    -------
    generator : Diffusion
        A ``torch.nn.Module`` in evaluation mode on the CPU, in float32, whose
        parameters do not require gradients. ``generator(latents)`` turns standard
        normal noise of shape (n_samples, 3, 64, 64) into RGB images of that shape;
        black is -1 and white is 1. Its layers "unet.up_blocks.0" and
        "unet.up_blocks.1", which run once a step, are worth decomposing.

    Raises
    ------
    ImportError
        If diffusers, the extra "diffusers", is not installed.
    TypeError, ValueError
        If ``n_steps`` is not an int of 1 or more.

    See Also
    --------
    sample_latents : Draws noise for it.
    load_face_generator : A generator that makes an image in one pass.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_diffusion, sample_latents
    >>> generator = load_face_diffusion(n_steps=4)
    >>> noise = sample_latents(generator, 2, random_state=0)
    >>> generator(noise).shape
    torch.Size([2, 3, 64, 64])
    """
    library = needed("diffusers", "diffusers")
    file = resources.files("panda_sklearn.datasets") / "data/face_diffusion.safetensors"
    weights = load_safetensors(file.read_bytes())
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        unet = library.UNet2DModel(**NETWORK)
    unet.load_state_dict({name: w.float() for name, w in weights.items()})
    scheduler = library.DDIMScheduler(**SCHEDULE)
    return Diffusion(unet, scheduler, n_steps=n_steps).eval().requires_grad_(False)
