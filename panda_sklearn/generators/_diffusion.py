"""Diffusion models as functions of their initial noise.

diffusers, the extra of that name, is imported only when needed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
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

# Samplers that draw noise in each step; DDIM's takes their place and settings.
NOISY = ("DDPMScheduler", "DDPMParallelScheduler")


class Diffusion(nn.Module):
    r"""A diffusion model as a generator: from initial noise to images.

    Runs a denoising network in the steps of a deterministic sampler, as the pipelines
    of diffusers do, several of which take no latents. Its layers run once a step: see
    ``call`` of :class:`~panda_sklearn.GeneratorFeatureExtractor`. Gradients flow
    through all steps.

    Parameters
    ----------
    pipeline : diffusers pipeline or torch.nn.Module
        A ``DDIMPipeline`` or ``DDPMPipeline``; a ``DiTPipeline`` (classes); a
        ``StableDiffusionPipeline``, ``StableDiffusionXLPipeline``,
        ``StableDiffusion3Pipeline`` or ``FluxPipeline`` (texts); or an unconditional
        network alone, such as a ``UNet2DModel``, called as ``network(x, t).sample``.
        Its networks are shared, not copied.

    scheduler : diffusers scheduler, default=None
        ``None`` is the pipeline's. DDPM's, whose steps draw noise, is replaced by
        DDIM's with the same settings. Others that draw noise use torch's global random
        state.

    n_steps : int, default=25
        Number of steps.

    label : int or sequence of int, default=None
        With classes: the class of all images, or one for each sample.

    prompt : str, sequence of str, Tensor or pair of Tensor, default=None
        With texts: the text of all images, or one for each sample. Or texts encoded by
        the pipeline's encoders, of shape ([n_samples,] n_tokens, size); for all but
        Stable Diffusion 1 and 2 in a pair with the pooled ones, ([n_samples,] size).

    negative_prompt : str, sequence of str, Tensor or pair of Tensor, default=""
        With texts: what guidance leads away from, if there is guidance. Not for Flux.

    guidance_scale : float, default=None
        How much classes or texts count. Above 1 the network sees each sample twice,
        with its condition and without it. ``None`` is the pipeline's default: 4 with
        classes; 7.5, 5 (XL) or 7 (3) for Stable Diffusion; and 3.5 for Flux, whose
        network takes the number as an input instead. Unconditional networks, and Flux
        networks distilled without guidance, take none.

    sample_size : int or tuple of int, default=None
        Rows and columns of the noise; ``None`` is what the network was trained for.

    Attributes
    ----------
    unet, transformer, vae : torch.nn.Module
        Those of these networks that the pipeline has. The names of layers begin with
        theirs: "unet.mid_block", "transformer.transformer_blocks.3".

    scheduler : diffusers scheduler
        Each forward pass steps with a copy of it.

    guidance : {"first", "last"} or None
        Which half of the batch that the network sees has the condition; the value for
        ``guidance`` of the extractor. ``None`` if it sees each sample once.

    latent_shape : tuple of int
        Shape of one sample's noise: (n_channels, height, width).

    network_name : {"unet", "transformer"}
        Name of the denoising network.

    n_conditions : int
        Number of labels or prompts; 1 if all samples share one.

    n_calls : int
        How often the denoising network is called for an image.

    token_grid : tuple of int or None
        Rows and columns of its tokens, if it is a transformer; the value for
        ``token_grid`` of the extractor, with ``channel_axis=-1``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, is missing or does not fit the pipeline, or
        there is no scheduler.

    See Also
    --------
    sample_latents : Draws noise for it.
    panda_sklearn.datasets.load_face_diffusion : A small one of faces.

    Notes
    -----
    Caches that skip blocks in some steps return what those computed in an earlier one.
    With such a cache enabled, a forward pass raises a ValueError.

    References
    ----------
    J. Song, C. Meng, S. Ermon. "Denoising Diffusion Implicit Models". ICLR, 2021.

    J. Ho, T. Salimans. "Classifier-Free Diffusion Guidance". 2022.
    """

    def __init__(
        self,
        pipeline: Any,
        scheduler: Any = None,
        *,
        n_steps: int = 25,
        label: int | Sequence[int] | None = None,
        prompt: Any = None,
        negative_prompt: Any = "",
        guidance_scale: float | None = None,
        sample_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        kind, network = denoiser_of(pipeline)
        if scheduler is None and not isinstance(pipeline, nn.Module):
            scheduler = getattr(pipeline, "scheduler", None)
        self.scheduler = _check_scheduler(scheduler)
        self.n_steps = check_count("n_steps", n_steps)
        given: dict[str, Any] = {"label": label, "prompt": prompt}
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
        # As buffers, so that they move with the networks.
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

    # Tells the extractor to pass the indices of the samples.
    takes_rows = True

    def forward(self, latents: Tensor, rows: Tensor | None = None) -> Tensor:
        r"""Generate images.

        Parameters
        ----------
        latents : Tensor of shape (n_samples, n_channels, height, width)
            Standard normal noise.

        rows : Tensor of shape (n_samples,), default=None
            Indices of the samples, if each has its own label or prompt; ``None`` is
            the first ones.

        Returns
        -------
        images : Tensor of shape (n_samples, n_colors, height, width)
            From -1 to 1, as in training; values a little outside that range occur.

        Raises
        ------
        TypeError, ValueError
            If the latents are not such noise, a sample has no label or prompt, a cache
            that skips blocks is enabled, or the decoder would overflow in half
            precision.
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

    def calls_at(self, steps: int | Sequence[int]) -> list[int]:
        """Return which calls of the network are made in the given steps.

        With most schedulers a step is one call, and the result is the steps themselves.
        Some, such as Heun's, call the network twice in a step, others more often in
        the first: then ``calls`` of an :class:`~panda_sklearn.Edit`, and ``call`` of
        the extractor, are not the numbers of steps.

        Parameters
        ----------
        steps : int or sequence of int
            Steps, counted from 0, the one that begins with noise.

        Returns
        -------
        calls : list of int
            In rising order.

        Raises
        ------
        TypeError, ValueError
            If they are not indices of steps.

        Examples
        --------
        >>> from panda_sklearn.datasets import load_face_diffusion
        >>> generator = load_face_diffusion(n_steps=8)
        >>> generator.calls_at([6, 7])
        [6, 7]
        """
        chosen = [steps] if isinstance(steps, Integral) else steps
        wanted = set(check_indices("steps", chosen, self.n_steps))
        n_calls, order = self.n_calls, getattr(self.scheduler, "order", 1)
        # Surplus calls belong to the first step, as in the pipelines' progress bars.
        more = max(n_calls - order * self.n_steps, 0)
        return [
            call for call in range(n_calls) if max(call - more, 0) // order in wanted
        ]

    @property
    def network_name(self) -> str:
        """Name of the denoising network: "unet" or "transformer"."""
        return self._kind.name

    @property
    def n_conditions(self) -> int:
        """Number of labels or prompts; 1 if all samples share one."""
        return max((len(buffer) for buffer in self.buffers(recurse=False)), default=1)

    @property
    def n_calls(self) -> int:
        """How often the denoising network is called for an image."""
        noise = torch.empty(1, *self.latent_shape, device="cpu")
        return len(self._new_scheduler(noise).timesteps)

    @property
    def token_grid(self) -> tuple[int, ...] | None:
        """Rows and columns of tokens, if the denoising network is a transformer."""
        patch = self._kind.patch_size(getattr(self, self._kind.name))
        if patch is None:
            return None
        return tuple(size // patch for size in self.latent_shape[1:])

    def _new_scheduler(self, x: Tensor) -> Any:
        """A copy of the scheduler, at the first step."""
        scheduler = copy.deepcopy(self.scheduler)
        network = getattr(self, self._kind.name)
        self._kind.set_steps(scheduler, self.n_steps, network, x)
        return scheduler

    def _condition(self, latents: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The conditions of the rows that the network sees."""
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
        """The prediction for noise x at a time, guided, for the scheduler."""
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
    """The scheduler, or DDIM's in place of one that draws noise in each step."""
    if scheduler is None:
        raise ValueError(
            "There is no scheduler: give the one that the network was trained with, or "
            "a pipeline that has one."
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
    """Images of the result of the last step."""
    config, dtype = vae.config, next(vae.parameters()).dtype
    if in_single and dtype == torch.float16 and getattr(config, "force_upcast", False):
        raise ValueError(
            "The decoder, vae, overflows in float16; its pipeline runs it in single "
            "precision. Call pipeline.vae.float() first."
        )
    x = x.to(dtype)
    mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        mean, std = (x.new_tensor(each).reshape(1, -1, 1, 1) for each in (mean, std))
        return vae.decode(x * std / config.scaling_factor + mean).sample
    shift = getattr(config, "shift_factor", None) or 0.0
    return vae.decode(x / config.scaling_factor + shift).sample


def _of_rows(condition: Tensor, rows: Tensor, name: str | None) -> Tensor:
    """Conditions of the given samples; a single one serves all."""
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
                f"A cache that skips blocks in some steps is enabled in {name}: call "
                "its disable_cache() first."
            )
