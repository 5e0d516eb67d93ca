"""Diffusion models as functions of their initial noise.

Floor 2: see :mod:`panda_sklearn.generators`. diffusers, the extra of that name, is
imported only where it is needed.
"""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.generators._denoisers import as_size, denoiser_of
from panda_sklearn.utils.optional import needed
from panda_sklearn.utils.validation import (
    check_count,
    check_indices,
    check_kind,
    check_single,
    shown,
)

__all__ = ["Diffusion"]

# Samplers that draw noise in each step, for which DDIM's takes their settings.
NOISY = ("DDPMScheduler", "DDPMParallelScheduler")


class Diffusion(nn.Module):
    r"""A diffusion model as a generator: from initial noise to images.

    A network that takes noise away, run in the steps of a deterministic sampler, as
    pipelines of diffusers do, several of which take no latents. Its layers run once a
    step: see ``call`` of :class:`~panda_sklearn.GeneratorFeatureExtractor`. Gradients
    pass.

    Parameters
    ----------
    pipeline : diffusers pipeline or torch.nn.Module
        A ``DDIMPipeline`` or ``DDPMPipeline``; a ``DiTPipeline`` (classes); a
        ``StableDiffusionPipeline``, ``StableDiffusionXLPipeline``,
        ``StableDiffusion3Pipeline`` or ``FluxPipeline`` (texts); or an unconditional
        network alone, such as a ``UNet2DModel``, called as ``network(x, t).sample``.
        Its networks are shared, not copied.

    scheduler : diffusers scheduler, default=None
        ``None`` is the pipeline's. Of DDPM's, whose steps draw noise, the settings are
        taken for DDIM's. Others that draw noise take it from torch's global random
        numbers.

    n_steps : int, default=25
        Number of steps.

    label : int or sequence of int, default=None
        With classes, that of all images, or one for each sample.

    prompt : str, sequence of str, Tensor or pair of Tensor, default=None
        With texts, that of all images, or one for each sample; or what the pipeline's
        text encoders make of it, of shape ([n_samples,] n_tokens, size), for all but
        Stable Diffusion 1 and 2 with the pooled one, ([n_samples,] size).

    negative_prompt : str, sequence of str, Tensor or pair of Tensor, default=""
        With texts, what guidance leads away from, where there is any; nothing of
        Flux's.

    guidance_scale : float, default=None
        How much classes or texts count: with more than 1 the network sees each sample
        twice, with its condition and without it. ``None`` is what the pipeline has by
        default: 4 with classes, 7.5, 5 (XL) or 7 (3) of Stable Diffusion, and 3.5 of
        Flux, whose network is told the number instead. Unconditional networks, and
        Flux's that were distilled without it, take none.

    sample_size : int or tuple of int, default=None
        Rows and columns of the noise; ``None`` is what the network was trained for.

    Attributes
    ----------
    unet, transformer, vae : torch.nn.Module
        The pipeline's networks, as far as it has them, by whose names layers are
        hooked: "unet.mid_block", "transformer.transformer_blocks.3".

    scheduler : diffusers scheduler
        A copy of it does the steps of each forward pass.

    guidance : {"first", "last"} or None
        Which part of the batch that the network sees is with the condition: what
        ``guidance`` of the extractor is to be. ``None`` if it sees each sample once.

    latent_shape : tuple of int
        Shape of one sample's noise: (n_channels, height, width).

    network_name : {"unet", "transformer"}
        Name of the network that takes the noise away.

    n_conditions : int
        How many labels or prompts there are: 1 if it is the same for all samples.

    n_calls : int
        How often it is called for an image.

    token_grid : tuple of int or None
        Rows and columns of its tokens, if it is a transformer: what ``token_grid`` of
        the extractor is to be, with ``channel_axis=-1``.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, is missing or does not go with the pipeline,
        or there is no scheduler.

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

    J. Ho, T. Salimans. "Classifier-Free Diffusion Guidance". 2022.
    """

    def __init__(
        self,
        pipeline,
        scheduler=None,
        *,
        n_steps=25,
        label=None,
        prompt=None,
        negative_prompt="",
        guidance_scale=None,
        sample_size=None,
    ):
        super().__init__()
        kind, network = denoiser_of(pipeline)
        if scheduler is None and not isinstance(pipeline, nn.Module):
            scheduler = getattr(pipeline, "scheduler", None)
        self.scheduler = _check_scheduler(scheduler)
        self.n_steps = check_count("n_steps", n_steps)
        given = {"label": label, "prompt": prompt}
        for name, value in given.items():
            if (value is not None) != (name == kind.takes):
                need = "needs" if name == kind.takes else "takes no"
                raise ValueError(f"The pipeline {need} {name}, got {shown(value)}.")
        if guidance_scale is None:
            guidance_scale = kind.guidance_scale
        elif not kind.takes_guidance(network):
            raise ValueError(
                f"The pipeline takes no guidance_scale, got {shown(guidance_scale)}."
            )
        self.guidance_scale = check_single("guidance_scale", guidance_scale, at_least=0)
        self.guidance = kind.own_part if self.guidance_scale > 1 else None
        unsaid = isinstance(negative_prompt, str) and negative_prompt == ""
        if not unsaid and (kind.takes != "prompt" or kind.own_part is None):
            raise ValueError(
                f"The pipeline takes no negative_prompt, got {shown(negative_prompt)}."
            )
        self._kind = kind
        setattr(self, kind.name, network)
        self.vae = getattr(pipeline, "vae", None)
        size = as_size(
            kind.size(pipeline, network) if sample_size is None else sample_size
        )
        self.latent_shape = (kind.n_channels(network), *size)
        # As buffers, so that they go where the networks go.
        self._conditions: list[str] = []
        if kind.takes is not None:
            own = kind.condition(pipeline, network, kind.takes, given[kind.takes])
            for name, tensor in own.items():
                self.register_buffer(f"own_{name}", tensor, persistent=False)
                self._conditions.append(name)
            if self.guidance is not None:
                absence = kind.absence(pipeline, network, negative_prompt)
                for name, tensor in absence.items():
                    self.register_buffer(f"other_{name}", tensor, persistent=False)

    # Tells the extractor to hand over which samples latents are of.
    takes_rows = True

    def forward(self, latents, rows=None):
        r"""Generate images.

        Parameters
        ----------
        latents : Tensor of shape (n_samples, n_channels, height, width)
            Standard normal noise.

        rows : Tensor of shape (n_samples,), default=None
            Which samples these are, where each has a label or prompt of its own;
            ``None`` is the first.

        Returns
        -------
        images : Tensor of shape (n_samples, n_colors, height, width)
            Values a little outside of the range that was learnt, -1 to 1, occur.

        Raises
        ------
        TypeError, ValueError
            If the latents are something else, a sample has no label or prompt, a cache
            that skips blocks is on, or a decoder would overflow in half precision.
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
        if rows is None:
            rows = torch.arange(len(latents), device="cpu")
        check_kind("rows", rows, Tensor)
        condition = self._condition(latents, rows)
        scheduler = self._new_scheduler(latents)
        x = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            predicted = self._predicted(scheduler, x, t, condition)
            x = scheduler.step(predicted, t, x).prev_sample
        if self.vae is None:
            return x
        return _decoded(self.vae, x, in_single=self._kind.decodes_in_single)

    def calls_at(self, steps):
        """Which calls of the network are made in some of the steps.

        With most schedulers each step is one call, and the answer is the steps
        themselves. Some, such as Heun's, call the network twice in a step, others more
        often in the first: then ``calls`` of an :class:`~panda_sklearn.Edit`, and
        ``call`` of the extractor, differ from them.

        Parameters
        ----------
        steps : int or sequence of int
            From 0, the one that begins with noise.

        Returns
        -------
        calls : list of int
            In rising order.

        Raises
        ------
        TypeError, ValueError
            If they are no such numbers.

        Examples
        --------
        >>> from panda_sklearn.datasets import load_face_diffusion
        >>> generator = load_face_diffusion(n_steps=8)
        >>> generator.calls_at([6, 7])
        [6, 7]
        """
        steps = [steps] if isinstance(steps, Integral) else steps
        wanted = set(check_indices("steps", steps, self.n_steps))
        n_calls, order = self.n_calls, getattr(self.scheduler, "order", 1)
        # Those that are too many come first, as the pipelines' progress bars have it.
        more = max(n_calls - order * self.n_steps, 0)
        return [
            call for call in range(n_calls) if max(call - more, 0) // order in wanted
        ]

    @property
    def network_name(self):
        """Name of the network that takes the noise away: "unet" or "transformer"."""
        return self._kind.name

    @property
    def n_conditions(self):
        """How many labels or prompts there are: 1 if it is the same for all samples."""
        return max((len(buffer) for buffer in self.buffers(recurse=False)), default=1)

    @property
    def n_calls(self):
        """How often that network is called for an image."""
        noise = torch.empty(1, *self.latent_shape, device="cpu")
        return len(self._new_scheduler(noise).timesteps)

    @property
    def token_grid(self):
        """Rows and columns of tokens, where that network is a transformer."""
        patch = self._kind.patch_size(getattr(self, self._kind.name))
        if patch is None:
            return None
        return tuple(size // patch for size in self.latent_shape[1:])

    def _new_scheduler(self, x: Tensor) -> Any:
        """A scheduler at the first step, which leaves the own one alone."""
        scheduler = copy.deepcopy(self.scheduler)
        network = getattr(self, self._kind.name)
        self._kind.set_steps(scheduler, self.n_steps, network, x)
        return scheduler

    def _condition(self, latents: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """What the rows that the network sees are conditioned on."""
        found = {}
        for name in self._conditions:
            own = _of_rows(getattr(self, f"own_{name}"), rows, self._kind.takes)
            own = own.to(latents.device)
            if self.guidance is not None:
                other = _of_rows(
                    getattr(self, f"other_{name}"), rows, f"negative_{self._kind.takes}"
                ).to(own)
                pair = [own, other] if self.guidance == "first" else [other, own]
                own = torch.cat(pair)
            found[name] = own
        return found

    def _predicted(
        self, scheduler: Any, x: Tensor, t: Tensor, condition: dict[str, Tensor]
    ) -> Tensor:
        """What the scheduler is to be given of noise x at a time."""
        network = getattr(self, self._kind.name)
        seen = x if self.guidance is None else torch.cat([x, x])
        if hasattr(scheduler, "scale_model_input"):
            seen = scheduler.scale_model_input(seen, t)
        found = self._kind.predict(network, seen, t, condition, self.guidance_scale)
        if self.guidance is None:
            return found
        one, two = found.chunk(2)
        own, other = (one, two) if self.guidance == "first" else (two, one)
        return other + self.guidance_scale * (own - other)


def _check_scheduler(scheduler: Any) -> Any:
    """A scheduler; DDIM's in the place of those that draw noise in each step."""
    if scheduler is None:
        raise ValueError(
            "There is no scheduler: give that which the network was trained with, or a "
            "pipeline that has one."
        )
    for method in ("set_timesteps", "step"):
        if not callable(getattr(scheduler, method, None)):
            raise TypeError(
                "scheduler must be a scheduler of diffusers, got one of type "
                f"{type(scheduler).__name__}."
            )
    if type(scheduler).__name__ in NOISY:
        kind = needed("diffusers", "diffusers").DDIMScheduler
        return kind.from_config(scheduler.config)
    return scheduler


def _decoded(vae: Any, x: Tensor, *, in_single: bool) -> Tensor:
    """Images of what the last step gives."""
    config, dtype = vae.config, next(vae.parameters()).dtype
    if in_single and dtype == torch.float16 and getattr(config, "force_upcast", False):
        raise ValueError(
            "This decoder, vae, overflows in float16, and its pipeline runs it in "
            "single precision. Say pipeline.vae.float() before."
        )
    x = x.to(dtype)
    mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        mean, std = (x.new_tensor(each).reshape(1, -1, 1, 1) for each in (mean, std))
        return vae.decode(x * std / config.scaling_factor + mean).sample
    shift = getattr(config, "shift_factor", None) or 0.0
    return vae.decode(x / config.scaling_factor + shift).sample


def _of_rows(condition: Tensor, rows: Tensor, name: str | None) -> Tensor:
    """Conditions of samples; the same for all, where there is one."""
    if len(condition) == 1:
        return condition.expand(len(rows), *condition.shape[1:])
    if int(rows.max()) >= len(condition):
        raise ValueError(
            f"{name} is given for {len(condition)} samples, but there is a sample "
            f"number {int(rows.max())}: give one for all, or one for each."
        )
    return condition[rows.to(condition.device)]


def _check_no_cache(model: nn.Module) -> None:
    """Raise ValueError if blocks are skipped in some steps."""
    for name, module in model.named_modules():
        if getattr(module, "is_cache_enabled", False):
            raise ValueError(
                f"A cache is enabled in {name}, which skips blocks in some steps: call "
                "its disable_cache() first."
            )
