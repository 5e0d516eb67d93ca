"""Denoising networks: what each pipeline of diffusers calls them with.

:func:`denoiser_of` finds the one of a pipeline;
:class:`~panda_sklearn.generators.Diffusion` runs its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.utils.validation import (
    check_count,
    check_indices,
    check_items,
    check_kind,
    shown,
)

__all__ = ["Denoiser", "as_size", "denoiser_of"]

TEXTS = "a text or several"


class Denoiser:
    """An unconditional network; the base of the others.

    Holds no state: the network is passed in each time.

    Attributes
    ----------
    name : str
        Name of the network in its pipeline.

    takes : {"label", "prompt"} or None
        What its images can be conditioned on.

    guidance_scale : float
        The default of its pipeline.

    own_part : {"first", "last"} or None
        Which half of a batch doubled for guidance has the condition; ``None`` if it is
        never doubled.

    decodes_in_single : bool
        Whether its pipeline runs decoders with ``force_upcast`` in single precision.
    """

    name: ClassVar[str] = "unet"
    takes: ClassVar[str | None] = None
    guidance_scale: ClassVar[float] = 1.0
    own_part: ClassVar[str | None] = None
    decodes_in_single: ClassVar[bool] = False

    def size(self, pipeline: Any, network: Any) -> Any:
        """Rows and columns of the noise that the network was trained for."""
        return network.config.sample_size

    def n_channels(self, network: Any) -> int:
        """Channels of the noise."""
        return int(network.config.in_channels)

    def takes_guidance(self, network: Any) -> bool:
        """Whether a guidance scale has an effect."""
        return self.takes is not None

    def patch_size(self, network: Any) -> int | None:
        """Side of the square of noise that is a token; ``None`` without tokens."""
        return None

    def condition(
        self, pipeline: Any, network: Any, name: str, given: Any
    ) -> dict[str, Tensor]:
        """What the network takes for the argument ``name``, under names of our own.

        The first axis is that of the samples, or has one entry for all of them.
        """
        return {}

    def absence(self, pipeline: Any, network: Any, negative: Any) -> dict[str, Tensor]:
        """The same for rows without the condition."""
        return self.condition(pipeline, network, f"negative_{self.takes}", negative)

    def set_steps(self, scheduler: Any, n_steps: int, network: Any, x: Tensor) -> None:
        """Set a scheduler's number of steps from noise x to an image."""
        scheduler.set_timesteps(n_steps, device=x.device)

    def predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        """The network's prediction for noisy x at a time of the scheduler."""
        return _sample(network(x, t))


class Classes(Denoiser):
    """DiT: classes, and one more that stands for none."""

    name: ClassVar[str] = "transformer"
    takes: ClassVar[str | None] = "label"
    guidance_scale: ClassVar[float] = 4.0
    own_part: ClassVar[str | None] = "first"

    def patch_size(self, network: Any) -> int:
        return network.config.patch_size

    def condition(
        self, pipeline: Any, network: Any, name: str, given: Any
    ) -> dict[str, Tensor]:
        n_classes = int(network.config.num_embeds_ada_norm)
        one = isinstance(given, Integral)
        found = check_indices(name, [given] if one else given, n_classes)
        return {"label": torch.tensor(found, device="cpu")}

    def absence(self, pipeline: Any, network: Any, negative: Any) -> dict[str, Tensor]:
        n_classes = int(network.config.num_embeds_ada_norm)
        return {"label": torch.tensor([n_classes], device="cpu")}

    def predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        times = t.to(x.device).expand(len(x))
        found = _sample(
            network(x, timestep=times, class_labels=condition["label"].to(x.device))
        )
        return found[:, : x.shape[1]]  # without variances


class Texts(Denoiser):
    """Stable Diffusion 1 and 2: texts, token by token."""

    takes: ClassVar[str | None] = "prompt"
    guidance_scale: ClassVar[float] = 7.5
    own_part: ClassVar[str | None] = "last"

    # Names of the tensors that texts are encoded to, and their numbers of axes.
    encoded: ClassVar[dict[str, int]] = {"text": 3}

    def condition(
        self, pipeline: Any, network: Any, name: str, given: Any
    ) -> dict[str, Tensor]:
        tensors = _encoded(name, given, self.encoded)
        if tensors is None:
            texts = [given] if isinstance(given, str) else list(given)
            device = next(network.parameters()).device
            with torch.no_grad():
                tensors = self.encode(pipeline, texts, device)
        return dict(zip(self.encoded, tensors, strict=True))

    def encode(
        self, pipeline: Any, texts: list[str], device: torch.device
    ) -> tuple[Tensor, ...]:
        """Texts, encoded by the pipeline."""
        return (pipeline.encode_prompt(texts, device, 1, False)[0],)

    def predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        text = condition["text"].to(x)
        return _sample(network(x, t, encoder_hidden_states=text))


class TextsAndSizes(Texts):
    """Stable Diffusion XL: texts, also pooled, and the size of the image."""

    guidance_scale: ClassVar[float] = 5.0
    decodes_in_single: ClassVar[bool] = True
    encoded: ClassVar[dict[str, int]] = {"text": 3, "pooled": 2}

    def condition(
        self, pipeline: Any, network: Any, name: str, given: Any
    ) -> dict[str, Tensor]:
        found = super().condition(pipeline, network, name, given)
        factor = getattr(pipeline, "vae_scale_factor", 8)
        return {**found, "pixels_per_row": torch.tensor([factor], device="cpu")}

    def absence(self, pipeline: Any, network: Any, negative: Any) -> dict[str, Tensor]:
        found = super().absence(pipeline, network, negative)
        zeros = getattr(pipeline.config, "force_zeros_for_empty_prompt", False)
        if isinstance(negative, str) and negative == "" and zeros:
            for name in self.encoded:
                found[name] = torch.zeros_like(found[name])
        return found

    def encode(
        self, pipeline: Any, texts: list[str], device: torch.device
    ) -> tuple[Tensor, ...]:
        found = pipeline.encode_prompt(
            texts,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return found[0], found[2]

    def predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        factors = condition["pixels_per_row"].to(x)
        height, width = (factors * size for size in x.shape[2:])
        zero = torch.zeros_like(height)
        # Size, upper left corner, and size again: of an image that was not cropped.
        sizes = torch.stack([height, width, zero, zero, height, width], dim=1)
        more = {"text_embeds": condition["pooled"].to(x), "time_ids": sizes}
        text = condition["text"].to(x)
        return _sample(
            network(x, t, encoder_hidden_states=text, added_cond_kwargs=more)
        )


class StableDiffusion3(Texts):
    """Stable Diffusion 3: texts, also pooled, for a transformer."""

    name: ClassVar[str] = "transformer"
    guidance_scale: ClassVar[float] = 7.0
    encoded: ClassVar[dict[str, int]] = {"text": 3, "pooled": 2}

    def patch_size(self, network: Any) -> int:
        return network.config.patch_size

    def encode(
        self, pipeline: Any, texts: list[str], device: torch.device
    ) -> tuple[Tensor, ...]:
        found = pipeline.encode_prompt(
            texts,
            prompt_2=None,
            prompt_3=None,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return found[0], found[2]

    def set_steps(self, scheduler: Any, n_steps: int, network: Any, x: Tensor) -> None:
        rows, columns = (size // self.patch_size(network) for size in x.shape[2:])
        options = {}
        if scheduler.config.get("use_dynamic_shifting"):
            options["mu"] = _shift(scheduler, rows * columns, 1.16)
        scheduler.set_timesteps(n_steps, device=x.device, **options)

    def predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        return _sample(
            network(
                hidden_states=x,
                timestep=t.to(x.device).expand(len(x)),
                encoder_hidden_states=condition["text"].to(x),
                pooled_projections=condition["pooled"].to(x),
            )
        )


class Flux(Texts):
    """Flux: texts, also pooled; a token is 2 x 2 pixels of noise.

    Guidance, if any, is an input of the network: the batch is never doubled.
    """

    name: ClassVar[str] = "transformer"
    guidance_scale: ClassVar[float] = 3.5
    own_part: ClassVar[str | None] = None
    encoded: ClassVar[dict[str, int]] = {"text": 3, "pooled": 2}

    def size(self, pipeline: Any, network: Any) -> Any:
        return pipeline.default_sample_size

    def takes_guidance(self, network: Any) -> bool:
        return bool(network.config.guidance_embeds)

    def patch_size(self, network: Any) -> int:
        return 2

    def n_channels(self, network: Any) -> int:
        return int(network.config.in_channels) // 4

    def encode(
        self, pipeline: Any, texts: list[str], device: torch.device
    ) -> tuple[Tensor, ...]:
        return pipeline.encode_prompt(
            texts, prompt_2=None, device=device, num_images_per_prompt=1
        )[:2]

    def absence(self, pipeline: Any, network: Any, negative: Any) -> dict[str, Tensor]:
        return {}

    def set_steps(self, scheduler: Any, n_steps: int, network: Any, x: Tensor) -> None:
        mu = _shift(scheduler, x.shape[2] * x.shape[3] // 4, 1.15)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(n_steps, device=x.device, mu=mu)
        else:
            sigmas = np.linspace(1.0, 1 / n_steps, n_steps)
            scheduler.set_timesteps(sigmas=sigmas, device=x.device, mu=mu)

    def predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        scale: float,
    ) -> Tensor:
        n, c, height, width = x.shape
        text = condition["text"].to(x)
        blocks = x.reshape(n, c, height // 2, 2, width // 2, 2)
        tokens = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        grid = torch.cartesian_prod(torch.arange(height // 2), torch.arange(width // 2))
        guided = network.config.guidance_embeds
        found = _sample(
            network(
                hidden_states=tokens,
                timestep=t.to(x).expand(n) / 1000,
                guidance=x.new_full((n,), scale, dtype=torch.float32)
                if guided
                else None,
                pooled_projections=condition["pooled"].to(x),
                encoder_hidden_states=text,
                txt_ids=x.new_zeros(text.shape[1], 3),
                img_ids=nn.functional.pad(grid, (1, 0)).to(x),
            )
        )
        blocks = found.reshape(n, height // 2, width // 2, c, 2, 2)
        return blocks.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def denoiser_of(pipeline: Any) -> tuple[Denoiser, nn.Module]:
    """How a pipeline's network is called, and that network.

    Raises
    ------
    TypeError
        If the pipeline is of an unknown kind.
    """
    if isinstance(pipeline, nn.Module):
        return Denoiser(), pipeline
    for name in ("unet", "transformer"):
        network = getattr(pipeline, name, None)
        if isinstance(network, nn.Module) and not hasattr(pipeline, "vqvae"):
            kind = _kind(network)
            if kind is not None:
                return kind, network
    raise TypeError(
        "pipeline must be a DDIM, DDPM, DiT, Stable Diffusion (1 to 3, XL) or Flux "
        "pipeline of diffusers, or an unconditional network, got one of type "
        f"{type(pipeline).__name__}."
    )


def _kind(network: nn.Module) -> Denoiser | None:
    """How a network is called; ``None`` if that is unknown."""
    classes = type(getattr(network, "_orig_mod", network)).__mro__
    names = {each.__name__ for each in classes}
    config: Any = getattr(network, "config", {})
    if "UNet2DModel" in names:
        return Denoiser()
    kinds: dict[str, type[Denoiser]] = {
        "DiTTransformer2DModel": Classes,
        "SD3Transformer2DModel": StableDiffusion3,
        "FluxTransformer2DModel": Flux,
    }
    # Networks that take the guidance scale as an input are called differently.
    if not config.get("time_cond_proj_dim"):
        adds = config.get("addition_embed_type")
        if adds in (None, "text_time"):
            kinds["UNet2DConditionModel"] = Texts if adds is None else TextsAndSizes
    return next((kind() for name, kind in kinds.items() if name in names), None)


def _sample(found: Any) -> Tensor:
    """The tensor in a network's output."""
    return found if isinstance(found, Tensor) else found.sample


def _encoded(
    name: str, given: Any, encoded: dict[str, int]
) -> tuple[Tensor, ...] | None:
    """Encoded texts as (1 or n, ...) tensors; ``None`` for texts yet to be encoded."""
    if isinstance(given, str):
        return None
    tensors = (given,) if isinstance(given, Tensor) else given
    if isinstance(tensors, Sequence) and any(isinstance(t, Tensor) for t in tensors):
        axes = tuple(encoded.values())
        if len(tensors) == len(axes) and all(
            isinstance(t, Tensor) and t.is_floating_point() and t.ndim in (n - 1, n)
            for t, n in zip(tensors, axes, strict=True)
        ):
            return tuple(
                t if t.ndim == n else t[None]
                for t, n in zip(tensors, axes, strict=True)
            )
        shapes = ["([n_samples,] n_tokens, size)", "([n_samples,] size)"][: len(axes)]
        raise ValueError(
            f"{name} must be a text, several, or "
            f"{'a floating tensor' if len(axes) == 1 else 'two floating tensors'} of "
            f"shape {' and '.join(shapes)}, got {shown(given)}."
        )
    for text in check_items(name, given, TEXTS):
        check_kind(f"each of {name}", text, str)
    return None


def _shift(scheduler: Any, n_tokens: int, most: float) -> float:
    """How far times are shifted towards noise for an image of ``n_tokens`` tokens.

    Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis, ICML 2024, section 5.3; linear in the number of tokens, as in the
    pipelines.
    """
    config = scheduler.config
    low, high = config.get("base_shift", 0.5), config.get("max_shift", most)
    first = config.get("base_image_seq_len", 256)
    last = config.get("max_image_seq_len", 4096)
    return low + (high - low) * (n_tokens - first) / (last - first)


def as_size(given: Any) -> tuple[int, int]:
    """Rows and columns of noise, from one number or two."""
    sizes = (given, given) if isinstance(given, Integral) else given
    if not isinstance(sizes, tuple | list) or len(sizes) != 2:
        raise TypeError(f"sample_size must be an int or two of them, got {given!r}.")
    rows, columns = (check_count("sample_size", size) for size in sizes)
    return rows, columns
