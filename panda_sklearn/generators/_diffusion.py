"""Diffusion models as functions of their initial noise.

Floor 2: see :mod:`panda_sklearn.generators`. diffusers, the extra of that name, is
imported only where it is needed.
"""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn

from panda_sklearn.utils.optional import needed
from panda_sklearn.utils.validation import (
    check_count,
    check_indices,
    check_items,
    check_kind,
    check_single,
    shown,
)

__all__ = ["Diffusion"]

# Samplers that draw noise in each step, for which DDIM's takes their settings.
NOISY = ("DDPMScheduler", "DDPMParallelScheduler")

TEXTS = "a text or several"


class Diffusion(nn.Module):
    r"""A diffusion model as a generator: from initial noise to images.

    A network that takes noise away, run in the steps of a deterministic sampler, as
    pipelines of diffusers do, several of which take no latents. Its layers run once a
    step: see ``call`` of :class:`~panda_sklearn.GeneratorFeatureExtractor`. Gradients
    pass.

    Parameters
    ----------
    pipeline : diffusers pipeline or torch.nn.Module
        A ``DDIMPipeline`` or ``DDPMPipeline``, a ``DiTPipeline`` (classes), or a
        ``StableDiffusionPipeline`` (texts); or an unconditional network alone, such as
        a ``UNet2DModel``, called as ``network(x, t).sample``. Its networks are shared,
        not copied.

    scheduler : diffusers scheduler, default=None
        ``None`` is the pipeline's. Of DDPM's, whose steps draw noise, the settings are
        taken for DDIM's.

    n_steps : int, default=25
        Number of steps.

    label : int or sequence of int, default=None
        With classes, that of all images, or one for each sample.

    prompt : str, sequence of str or Tensor, default=None
        With texts, that of all images, or one for each sample; or what the pipeline's
        text encoder makes of it, of shape ([n_samples,] n_tokens, size).

    negative_prompt : str, sequence of str or Tensor, default=""
        With texts, what guidance leads away from.

    guidance_scale : float, default=None
        How much classes or texts count: with more than 1 the network sees each sample
        twice, with its condition and without it. ``None`` is what the pipeline has by
        default, 4 with classes and 7.5 with texts.

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
    ):
        super().__init__()
        kind, network = _kind_of(pipeline)
        if scheduler is None and not isinstance(pipeline, nn.Module):
            scheduler = getattr(pipeline, "scheduler", None)
        self.scheduler = _check_scheduler(scheduler)
        self.n_steps = check_count("n_steps", n_steps)
        _check_condition(kind, label=label, prompt=prompt)
        unsaid = isinstance(negative_prompt, str) and negative_prompt == ""
        if kind != "prompt" and not unsaid:
            raise ValueError(
                f"The pipeline takes no negative_prompt, got {shown(negative_prompt)}."
            )
        self._kind, self._name = kind, "transformer" if kind == "label" else "unet"
        setattr(self, self._name, network)
        self.vae = getattr(pipeline, "vae", None)
        config = network.config
        size = config.sample_size
        spatial = (size, size) if isinstance(size, int) else tuple(size)
        self.latent_shape = (int(config.in_channels), *spatial)
        if guidance_scale is None:
            guidance_scale = {"label": 4.0, "prompt": 7.5}.get(kind, 1.0)
        self.guidance_scale = check_single("guidance_scale", guidance_scale, at_least=0)
        guided = kind is not None and self.guidance_scale > 1
        self.guidance = {"label": "first", "prompt": "last"}[kind] if guided else None
        self.register_buffer("condition", None, persistent=False)
        self.register_buffer("absence", None, persistent=False)
        if kind == "label":
            n_classes = int(config.num_embeds_ada_norm)
            self.condition = _labels(label, n_classes)
            self.absence = torch.tensor([n_classes], device="cpu")
        if kind == "prompt":
            self.condition = _embedded(pipeline, "prompt", prompt)
            self.absence = _embedded(pipeline, "negative_prompt", negative_prompt)

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
            If the latents are something else, a sample has no label or prompt, or a
            cache that skips blocks is on.
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
        condition = self._conditions(latents, rows)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.n_steps, device=latents.device)
        x = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            predicted = self._predicted(scheduler, x, t, condition)
            x = scheduler.step(predicted, t, x).prev_sample
        if self.vae is None:
            return x
        return self.vae.decode(x / self.vae.config.scaling_factor).sample

    def _conditions(self, latents: Tensor, rows: Tensor) -> Tensor | None:
        """Labels or embedded prompts of what the network sees, in its order."""
        if self._kind is None:
            return None
        own = _of_rows(self.condition, rows, self._kind).to(latents.device)
        if self.guidance is None:
            return own
        absent = _of_rows(self.absence, rows, f"negative_{self._kind}").to(own.device)
        return torch.cat([own, absent] if self.guidance == "first" else [absent, own])

    def _predicted(
        self, scheduler: Any, x: Tensor, t: Tensor, condition: Tensor | None
    ) -> Tensor:
        """What the scheduler is to be given of noise x at a time."""
        network = getattr(self, self._name)
        k = 1 if self.guidance is None else 2
        rows = scheduler.scale_model_input(x.repeat(k, 1, 1, 1), t)
        if self._kind is None:
            found = network(rows, t)
        elif self._kind == "label":
            times = t.to(x.device).expand(len(rows))
            found = network(rows, timestep=times, class_labels=condition)
        else:
            texts = cast(Tensor, condition).to(x.dtype)
            found = network(rows, t, encoder_hidden_states=texts)
        predicted = found if isinstance(found, Tensor) else found.sample
        predicted = predicted[:, : x.shape[1]]  # without variances
        if k == 1:
            return predicted
        one, other = predicted.chunk(2)
        own, absent = (one, other) if self.guidance == "first" else (other, one)
        return absent + self.guidance_scale * (own - absent)


def _kind_of(pipeline: Any) -> tuple[str | None, nn.Module]:
    """What conditions a pipeline's network, if anything, and that network."""
    if isinstance(pipeline, nn.Module):
        return None, pipeline
    network = getattr(pipeline, "unet", None)
    if isinstance(network, nn.Module):
        texts = getattr(network.config, "cross_attention_dim", None) is not None
        return ("prompt" if texts else None), network
    network = getattr(pipeline, "transformer", None)
    classes = getattr(getattr(network, "config", None), "num_embeds_ada_norm", None)
    if isinstance(network, nn.Module) and classes is not None:
        return "label", network
    raise TypeError(
        "pipeline must be a DDIM, DDPM, DiT or Stable Diffusion pipeline of diffusers, "
        f"or an unconditional network, got one of type {type(pipeline).__name__}."
    )


def _check_scheduler(scheduler: Any) -> Any:
    """A scheduler whose steps draw no noise."""
    if scheduler is None:
        raise ValueError(
            "There is no scheduler: give that which the network was trained with, or a "
            "pipeline that has one."
        )
    for method in ("set_timesteps", "scale_model_input", "step"):
        if not callable(getattr(scheduler, method, None)):
            raise TypeError(
                "scheduler must be a scheduler of diffusers, got one of type "
                f"{type(scheduler).__name__}."
            )
    if type(scheduler).__name__ in NOISY:
        kind = needed("diffusers", "diffusers").DDIMScheduler
        return kind.from_config(scheduler.config)
    return scheduler


def _check_condition(kind: str | None, **given: Any) -> None:
    """Raise ValueError unless what the pipeline needs is given, and nothing else."""
    for name, value in given.items():
        if (value is not None) != (name == kind):
            need = "needs" if name == kind else "takes no"
            raise ValueError(f"The pipeline {need} {name}, got {shown(value)}.")


def _labels(label: Any, n_classes: int) -> Tensor:
    """Classes as a tensor, (1,) for all samples or one for each."""
    one = isinstance(label, Integral)
    found = check_indices("label", [label] if one else label, n_classes)
    return torch.tensor(found, device="cpu")


def _embedded(pipeline: Any, name: str, prompt: Any) -> Tensor:
    """Prompts as the text encoder gives them, (1 or n, n_tokens, size)."""
    if isinstance(prompt, Tensor):
        if prompt.ndim not in (2, 3) or not prompt.is_floating_point():
            raise ValueError(
                f"{name} must be a text, several, or a floating tensor of shape "
                f"([n_samples,] n_tokens, size), got {shown(prompt)}."
            )
        return prompt if prompt.ndim == 3 else prompt[None]
    texts = [prompt] if isinstance(prompt, str) else check_items(name, prompt, TEXTS)
    for text in texts:
        check_kind(f"each of {name}", text, str)
    device = next(pipeline.unet.parameters()).device
    with torch.no_grad():
        found, _ = pipeline.encode_prompt(texts, device, 1, False)
    return found


def _of_rows(condition: Tensor, rows: Tensor, name: str) -> Tensor:
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
