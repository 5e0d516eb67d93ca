"""Diffusion models as functions of their initial noise.

Floor 2: see :mod:`panda_sklearn.generators`. diffusers, the extra of that name, is
imported only where it is needed.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from panda_sklearn.utils.optional import needed
from panda_sklearn.utils.validation import check_count, check_kind

__all__ = ["Diffusion"]

# Samplers that draw noise in each step, for which DDIM's takes their settings.
NOISY = ("DDPMScheduler", "DDPMParallelScheduler")


class Diffusion(nn.Module):
    r"""An unconditional diffusion model as a generator: from initial noise to images.

    A network that takes noise away, run in the steps of a deterministic sampler; as
    pipelines of diffusers do, several of which take no latents. Its layers run once a
    step: see ``call`` of :class:`~panda_sklearn.GeneratorFeatureExtractor`. Gradients
    pass.

    Parameters
    ----------
    pipeline : diffusers pipeline or torch.nn.Module
        A ``DDIMPipeline`` or ``DDPMPipeline``; or the network alone, such as a
        ``UNet2DModel``, called as ``network(x, t).sample``. It is shared, not copied,
        and can be hooked as "unet".

    scheduler : diffusers scheduler, default=None
        ``None`` is the pipeline's. Of DDPM's, whose steps draw noise, the settings are
        taken for DDIM's.

    n_steps : int, default=25
        Number of steps.

    Attributes
    ----------
    unet : torch.nn.Module
        The network.

    scheduler : diffusers scheduler
        A copy of it does the steps of each forward pass.

    latent_shape : tuple of int
        Shape of one sample's noise: (n_channels, height, width).

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, or there is no scheduler.

    See Also
    --------
    sample_latents : Draws noise for it.
    panda_sklearn.datasets.load_face_diffusion : A small one of faces.

    Notes
    -----
    Caches that skip blocks in some steps give what those did in an earlier one: with
    such a cache on, a forward pass raises a ValueError.

    References
    ----------
    J. Song, C. Meng, S. Ermon. "Denoising Diffusion Implicit Models". ICLR, 2021.
    """

    def __init__(self, pipeline, scheduler=None, *, n_steps=25):
        super().__init__()
        unet = pipeline if isinstance(pipeline, nn.Module) else None
        if unet is None:
            unet = getattr(pipeline, "unet", None)
            if scheduler is None:
                scheduler = getattr(pipeline, "scheduler", None)
        if not isinstance(unet, nn.Module):
            raise TypeError(
                "pipeline must be a pipeline of diffusers with a unet, or a network, "
                f"got one of type {type(pipeline).__name__}."
            )
        if scheduler is None:
            raise ValueError(
                "There is no scheduler: give that which the network was trained with, "
                "or a pipeline that has one."
            )
        for method in ("set_timesteps", "scale_model_input", "step"):
            if not callable(getattr(scheduler, method, None)):
                raise TypeError(
                    "scheduler must be a scheduler of diffusers, got one of type "
                    f"{type(scheduler).__name__}."
                )
        if type(scheduler).__name__ in NOISY:
            kind = needed("diffusers", "diffusers").DDIMScheduler
            scheduler = kind.from_config(scheduler.config)
        self.unet, self.scheduler = unet, scheduler
        self.n_steps = check_count("n_steps", n_steps)
        size = unet.config.sample_size
        spatial = (size, size) if isinstance(size, int) else tuple(size)
        self.latent_shape = (int(unet.config.in_channels), *spatial)

    def forward(self, latents):
        r"""Generate images.

        Parameters
        ----------
        latents : Tensor of shape (n_samples, n_channels, height, width)
            Standard normal noise.

        Returns
        -------
        images : Tensor of the same shape
            Values a little outside of the range that was learnt, -1 to 1, occur.

        Raises
        ------
        TypeError, ValueError
            If the latents are something else, or a cache that skips blocks is on.
        """
        check_kind("latents", latents, Tensor)
        if not latents.is_floating_point():
            raise TypeError(f"latents must be floating, got {latents.dtype}.")
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"latents must be of shape (n_samples, "
                f"{', '.join(map(str, self.latent_shape))}), got "
                f"{tuple(latents.shape)}."
            )
        _check_no_cache(self)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.n_steps, device=latents.device)
        x = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            found = self.unet(scheduler.scale_model_input(x, t), t)
            predicted = found if isinstance(found, Tensor) else found.sample
            x = scheduler.step(predicted, t, x).prev_sample
        return x


def _check_no_cache(model: nn.Module) -> None:
    """Raise ValueError if blocks are skipped in some steps."""
    for name, module in model.named_modules():
        if getattr(module, "is_cache_enabled", False):
            raise ValueError(
                f"A cache is enabled in {name}, which skips blocks in some steps: call "
                "its disable_cache() first."
            )
