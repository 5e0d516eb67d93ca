"""Which tensor of a network is meant, among the inputs and outputs of its layers.

Imports torch alone. A :class:`Tap` is a description; :mod:`panda_sklearn.utils.hooks`
attaches to what it describes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.utils.arrays import promoted
from panda_sklearn.utils.layouts import CHANNELS_FIRST, FeatureLayout

__all__ = ["Tap", "TapTypeError", "choices_of"]

# How deeply containers may be nested for a tensor to be found in them.
DEPTH = 4

# The name of the main input of blocks of transformers and diffusers.
MAIN_INPUT = "hidden_states"


class TapTypeError(TypeError):
    """A layer's output or input holds no tensor to tap."""


@dataclass(frozen=True)
class Tap:
    """One tensor of a network.

    Attributes
    ----------
    name : str
        The layer's dotted name, for messages.
    layer : Module
    where : {"output", "input", "update"}
        The layer's output; its first positional input, or a keyword input; or its
        output minus its input.
    select : int, str or None
        Index or key, where the output or input is a tuple, list or dict of several; or
        the name of a keyword input.
    calls : tuple of int or None
        Which of the layer's calls in one forward pass, from 0, rising; ``None`` is the
        only one.
    layout : FeatureLayout
        How the maps lie in that tensor.
    calls_as : {"samples", "channels", "mean"}
        What several calls become: samples, with the calls of each sample next to each
        other; channels, with the channels of each call next to each other; or their
        mean.
    guidance : int or None
        Which part of the tensor's first axis holds the samples, where it is several
        times as long: 0 for the first, -1 for the last. ``None`` is all of it.
    """

    name: str
    layer: nn.Module
    where: str = "output"
    select: int | str | None = None
    calls: tuple[int, ...] | None = None
    layout: FeatureLayout = CHANNELS_FIRST
    calls_as: str = "samples"
    guidance: int | None = None

    @property
    def n_calls(self) -> int:
        """How many calls are tapped."""
        return 1 if self.calls is None else len(self.calls)

    @property
    def n_rows(self) -> int:
        """How many rows of activations each sample has."""
        return self.n_calls if self.calls_as == "samples" else 1

    @property
    def n_slices(self) -> int:
        """How many calls are stacked along the channels."""
        return self.n_calls if self.calls_as == "channels" else 1

    def rows(self, length: int, n_samples: int) -> slice:
        """Return which rows of a tensor of that length are the samples'.

        Raises
        ------
        ValueError
            If the length is not a multiple of ``n_samples``, or there is no such part.
        """
        if self.guidance is None or length == n_samples:
            return slice(0, length)
        k, rest = divmod(length, n_samples)
        which = self.guidance + k if self.guidance < 0 else self.guidance
        if rest or not 0 <= which < k:
            raise ValueError(
                f"Layer {self.name!r} sees {length} rows for {n_samples} samples, of "
                f"which guidance={self.guidance} cannot pick one for each. Set "
                "guidance to None, or to a part that exists."
            )
        return slice(which * n_samples, (which + 1) * n_samples)

    def keyword(self, args: tuple, kwargs: dict) -> str | None:
        """The name of the tapped input; ``None`` is the first positional one.

        Raises
        ------
        ValueError
            If there are several keyword inputs, and ``select`` does not say which.
        """
        select = self.select
        if self.where == "input" and isinstance(select, str) and select in kwargs:
            return select
        if args:
            return None
        names = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
        if len(names) == 1:
            return names[0]
        if self.where == "update" and MAIN_INPUT in names:
            return MAIN_INPUT
        raise ValueError(
            f"Layer {self.name!r} is called without positional inputs, and with the "
            f"keyword inputs {names}: say which with tap='input' and select, or tap "
            "its output, or another layer."
        )

    def base(self, value: Any) -> Tensor:
        """A copy of the input, since layers may write into it."""
        if not isinstance(value, Tensor):
            raise TapTypeError(
                f"The first input of layer {self.name!r} is of type "
                f"{type(value).__name__}, expected a tensor: tap='update' is the "
                "output minus it. Tap the output."
            )
        return value.clone()

    def maps(self, value: Any, base: Tensor | None) -> Tensor:
        """The maps in the layer's output or input."""
        return self.layout.take(self._update(self.pick(value), base))

    def put_maps(self, value: Any, maps: Tensor, base: Tensor | None) -> Any:
        """``value`` with other maps, in the dtype and memory layout of its own."""
        picked = self.pick(value)
        changed = self.layout.put(self._update(picked, base), maps.to(picked))
        if base is not None:
            changed = base + changed
        if changed.stride() != picked.stride():
            changed = torch.empty_like(picked).copy_(changed)
        return self.put(value, changed)

    def _update(self, picked: Tensor, base: Tensor | None) -> Tensor:
        if base is None:
            return picked
        if base.shape != picked.shape:
            raise ValueError(
                "tap='update' is the output of a layer minus its input, but "
                f"those of {self.name!r} are of shapes {tuple(picked.shape)} and "
                f"{tuple(base.shape)}. Tap the output."
            )
        return picked - base

    def gathered(
        self, known: list[Tensor], maps: Tensor, position: int, *, in_place: bool
    ) -> list[Tensor]:
        """What is kept of the tapped calls, with the maps of one more.

        For means, their sum. Else the maps of each; with ``in_place``, in one tensor
        with an axis of calls after the samples, so that nothing is held twice.
        """
        if self._averages():
            maps = promoted(maps)
            return [known[0] + maps] if known else [maps]
        if not in_place:
            return [*known, maps]
        if not known:
            known = [maps.new_empty((len(maps), self.n_calls, *maps.shape[1:]))]
        known[0][:, position] = maps
        return known

    def joined(self, kept: list[Tensor]) -> Tensor:
        """The maps of all tapped calls in one tensor, from what is kept of them."""
        if self._averages():
            return kept[0] / self.n_calls
        if self.n_calls == 1:
            return kept[0]
        one = kept[0] if len(kept) == 1 else torch.stack(kept, dim=1)
        return one.flatten(0, 1) if self.calls_as == "samples" else one.flatten(1, 2)

    def _averages(self) -> bool:
        return self.calls_as == "mean" and self.calls is not None

    def pick(self, value: Any) -> Tensor:
        """The tapped tensor in the layer's output or input."""
        if isinstance(value, Tensor):
            if self.select is not None:
                raise ValueError(
                    f"The {self.where} of layer {self.name!r} is a tensor: leave "
                    f"select at None, got {self.select!r}."
                )
            return value
        choices = choices_of(value)
        if choices is None:
            raise TapTypeError(
                f"The {self.where} of layer {self.name!r} is of type "
                f"{type(value).__name__}; expected a tensor, or a tuple, list or dict "
                "of tensors. Choose another layer."
            )
        select = self._key(choices)
        if select is None:
            raise ValueError(
                f"The {self.where} of layer {self.name!r} is a {type(value).__name__} "
                f"of several: say which with select, one of {choices}."
            )
        if select not in choices:
            raise ValueError(
                f"select={self.select!r} is not in the {self.where} of layer "
                f"{self.name!r}; choose one of {choices}."
            )
        picked = value[select]
        if not isinstance(picked, Tensor):
            raise TapTypeError(
                f"select={select!r} of layer {self.name!r} is of type "
                f"{type(picked).__name__}, expected a tensor."
            )
        return picked

    def _key(self, choices: list) -> Any:
        """What to select; without ``select``, the only item."""
        if self.select is None and len(choices) == 1:
            return choices[0]
        return self.select

    def put(self, value: Any, tensor: Tensor) -> Any:
        """``value`` with its picked tensor replaced, in containers of the same types.

        Wherever it is: blocks return one tensor both as their output and as the last of
        their skip connections.
        """
        if isinstance(value, Tensor):
            return tensor
        try:
            return _replaced(value, self.pick(value), tensor)
        except Exception as error:
            raise TapTypeError(
                f"The {self.where} of layer {self.name!r} is of type "
                f"{type(value).__name__}, of which no copy can be made to hold the "
                f"replacement ({type(error).__name__}: {error}). Tap another layer."
            ) from error


def _replaced(value: Any, old: Tensor, new: Tensor, depth: int = 0) -> Any:
    """``value`` with a tensor replaced wherever it is; ``value`` itself if nowhere."""
    if value is old:
        return new
    choices = choices_of(value)
    if choices is None or depth == DEPTH:
        return value
    for key in choices:
        item = value[key]
        changed = _replaced(item, old, new, depth + 1)
        if changed is not item:
            value = _with_item(value, key, changed)
    return value


def _with_item(container: Any, key: Any, item: Any) -> Any:
    """A shallow copy of a container with one item replaced.

    Avoids constructors, which may take other arguments.
    """
    old = container[key]
    if not isinstance(container, tuple):
        changed = copy.copy(container)
        changed[key] = item
        return _with_attributes(changed, old, item)
    items = list(container)
    items[key] = item
    cls = type(container)
    try:
        changed = tuple.__new__(cls, items)
    except TypeError:  # a type of torch's, written in C
        return cls(items)
    if hasattr(container, "__dict__"):
        vars(changed).update(vars(container))
    return _with_attributes(changed, old, item)


def _with_attributes(container: Any, old: Any, item: Any) -> Any:
    """The container, with the new item in attributes that held the old one."""
    slots = (getattr(cls, "__slots__", ()) for cls in type(container).__mro__)
    names = [
        name for some in slots for name in ([some] if isinstance(some, str) else some)
    ]
    for name in (*getattr(container, "__dict__", ()), *names):
        if (
            name not in ("__dict__", "__weakref__")
            and getattr(container, name, None) is old
        ):
            object.__setattr__(container, name, item)
    return container


def choices_of(value: Any) -> list | None:
    """Values that ``select`` can take; ``None`` for what is not a container."""
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    return None
