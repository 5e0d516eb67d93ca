"""What layers a network has, and which are worth decomposing."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panda_sklearn.generators._calls import (
    check_forward,
    check_network,
    dtype_of,
    explained_failures,
    running,
)
from panda_sklearn.generators._diffusion import Diffusion
from panda_sklearn.utils.hooks import add_hook, watch
from panda_sklearn.utils.taps import Tap, choices_of
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_fits,
    check_items,
    check_kind,
    check_values,
)

__all__ = ["LayerInfo", "LayerTable", "list_layers"]

# Maps worth decomposing have more channels than an image, enough positions for parts to
# have a shape, and too few for them to be mere textures. The paper used 16 x 16 and
# 32 x 32.
MORE_THAN_COLORS = 4
SHORTEST_SIDE = 8
MOST_POSITIONS = 96**2


class LayerInfo(NamedTuple):
    """A layer of a network, as seen in one forward pass.

    Parameters
    ----------
    name : str
        Dotted name, for ``GeneratorFeatureExtractor(generator, name)``.
    type : str
        Name of the layer's class.
    shape : tuple of int
        Shape of its output, the first axis being the samples.
    n_calls : int
        How often it ran; the extractor's ``call`` chooses among several.
    select : int, str or None, default=None
        Index or key of the tensor, if the layer returns several: the extractor's
        ``select``.
    recommended : bool, default=False
        Whether it is worth decomposing; see ``list_layers``.
    token_grid : tuple of int or None, default=None
        Rows and columns of the image's tokens, if these are known to be the second
        axis: the extractor's ``token_grid``, with ``channel_axis=-1``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_calls: int
    select: int | str | None = None
    recommended: bool = False
    token_grid: tuple[int, ...] | None = None


class LayerTable(list):
    """A list of ``LayerInfo`` that prints as a table.

    Parameters
    ----------
    layers : iterable of LayerInfo, default=()
        The layers.

    Attributes
    ----------
    recommended : LayerTable
        Those that are worth decomposing.
    """

    def __init__(self, layers: Iterable[LayerInfo] = ()) -> None:
        layers = check_items("layers", layers, "the layers", Iterable)
        for layer in layers:
            check_kind("each of layers", layer, LayerInfo)
        super().__init__(layers)

    @property
    def recommended(self) -> LayerTable:
        """Those that are worth decomposing."""
        return LayerTable(layer for layer in self if layer.recommended)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return LayerTable(found) if isinstance(index, slice) else found

    def __repr__(self) -> str:
        header = ("", "layer", "type", "channels", "size", "calls", "select")
        rows = [header]
        unclear = False
        for layer in self:
            _, channels, *spatial = layer.shape
            size = " x ".join(map(str, spatial)) or "-"
            if layer.token_grid is not None:
                channels = layer.shape[-1]
                size = " x ".join(map(str, layer.token_grid)) + " tokens"
            elif len(spatial) == 1:  # channels and positions, or tokens and channels
                unclear = True
                channels, size = "?", " x ".join(map(str, layer.shape[1:]))
            rows.append(
                (
                    "*" if layer.recommended else "",
                    layer.name,
                    layer.type,
                    str(channels),
                    size,
                    str(layer.n_calls),
                    "" if layer.select is None else repr(layer.select),
                )
            )
        right = {"channels", "size", "calls"}
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if title in right else cell.ljust(width)
                for title, cell, width in zip(header, row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        if any(layer.recommended for layer in self):
            lines.append("* worth decomposing")
        if any(layer.token_grid is not None for layer in self):
            lines.append("tokens: set channel_axis=-1, token_grid")
        if unclear:
            lines.append(
                "? channels by positions, or tokens by channels: then set "
                "channel_axis=-1, n_prefix_tokens, token_grid"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Known:
    """What is known of a network's layers before it runs."""

    n_rows: frozenset[int]
    n_calls: frozenset[int] = frozenset({1})  # of layers that are worth decomposing
    within: str = ""  # what their names begin with
    token_grid: tuple[int, ...] | None = None

    @classmethod
    def of(cls, generator: nn.Module, n_samples: int) -> _Known:
        if not isinstance(generator, Diffusion):
            return cls(frozenset({n_samples}))
        twice = generator.guidance is not None
        return cls(
            frozenset({n_samples, 2 * n_samples} if twice else {n_samples}),
            frozenset({1, generator.n_calls}),
            f"{generator.network_name}.",
            generator.token_grid,
        )

    def are_worth(self, name: str, n_rows: int, n_calls: int) -> bool:
        """Whether a layer's maps are worth decomposing, whatever their size."""
        within = name.startswith(self.within)
        return within and n_rows in self.n_rows and n_calls in self.n_calls

    def are_tokens(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a layer is a transformer's block that returns the image's tokens."""
        if self.token_grid is None or len(shape) != 3:
            return False
        block = name.removeprefix(self.within).partition(".")[2]
        return block.isdigit() and shape[1] == math.prod(self.token_grid)


@dataclass
class _Made:
    """A tensor that layers return, and by which of them to reach it."""

    tensor: weakref.ref
    version: int
    shape: tuple[int, ...]
    chosen: tuple[str, Any]  # name and selection of the layer to tap for it
    depth: int  # of the outermost layer that returns it
    read: bool = False  # by another layer

    def is_it(self, tensor: Tensor) -> bool:
        """Whether a tensor is this one, not overwritten since."""
        return self.tensor() is tensor and _version(tensor) == self.version


def list_layers(
    generator: nn.Module,
    latents: Any,
    forward: Callable[[nn.Module, Tensor], Any] | None = None,
) -> LayerTable:
    """List the layers whose output can be extracted, in the order in which they run.

    Runs the network once, in evaluation mode and without gradients, and leaves it as
    it was.

    Parameters
    ----------
    generator : Module
        The network.

    latents : array of shape (n_samples, ...)
        Inputs to run it on; two samples are enough.

    forward : callable, default=None
        ``forward(generator, latents)`` runs the network; ``None`` is
        ``generator(latents)``.

    Returns
    -------
    layers : LayerTable
        A list that prints as a table: name, type, output shape and number of calls of
        every layer that returns a tensor with one entry for each sample. A layer that
        returns several, in a tuple, a list or a dict, has an item for each. The table
        takes the second axis for the channels.

    Raises
    ------
    TypeError
        If the network is not a module, or is scripted, traced or wrapped in
        DataParallel; or if ``latents`` or ``forward`` is of another type.
    ValueError
        If the latents are not finite, or the network cannot be run on them.

    Notes
    -----
    Of the maps of each size, those are worth decomposing with which the network
    leaves that size: the output of the last of its outermost layers, before any other
    layer reads it, so that an edit reaches everything computed from it. Left out are
    maps with fewer than five channels, with a side below 8 positions, with more than
    96 x 96 positions or as large as the image, and layers that run several times.

    For a :class:`Diffusion`, only layers of the denoising network count, and only
    those that run once in each of its calls. If it is a transformer, its blocks are
    worth decomposing, and ``select`` says where the image's tokens are.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> from panda_sklearn.generators import list_layers
    >>> generator = load_face_generator()
    >>> layers = list_layers(generator, sample_latents(generator, 2))
    >>> layers.recommended
       layer    type    channels     size  calls  select
    *  block8   _Block       192    8 x 8      1
    *  block16  _Block       128  16 x 16      1
    *  block32  _Block        64  32 x 32      1
    * worth decomposing
    """
    check_network("generator", generator)
    check_forward(forward)
    latents = check_values(latents, "latents", n_axes=1)
    check_fits(latents, "latents", dtype_of(generator, torch.float64))
    shapes: dict[tuple[str, Any], tuple[int, ...]] = {}
    calls: dict[str, int] = {}
    made: list[_Made] = []

    def note_read(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        _note_read(made, (*args, *kwargs.values()))

    with Undo() as undo, undo:
        run = running(undo, generator, forward)
        for name, layer in generator.named_modules():
            if not name or isinstance(layer, torch.jit.ScriptModule):
                continue

            def note(output: Any, base: Any, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1
                for select, tensor in _tensors(output):
                    shapes[name, select] = tuple(tensor.shape)
                    _note_made(made, tensor, name, select)

            watch(undo, Tap(name, layer), note)
            add_hook(
                undo,
                layer._forward_pre_hooks,
                note_read,
                with_kwargs=layer._forward_pre_hooks_with_kwargs,
            )
        with explained_failures(latents, forward):
            images = run(latents)
    known = _Known.of(generator, len(latents))
    worth, modules = _worth(made, calls, known, images), dict(generator.named_modules())
    return LayerTable(
        LayerInfo(
            name,
            type(modules[name]).__name__,
            (len(latents), *shape[1:]),
            calls[name],
            select,
            (name, select) in worth or known.are_tokens(name, shape),
            known.token_grid if known.are_tokens(name, shape) else None,
        )
        for (name, select), shape in shapes.items()
        if len(shape) > 1 and shape[0] in known.n_rows
    )


def _tensors(output: Any) -> list[tuple[Any, Tensor]]:
    """Tensors in a layer's output, and how to select each."""
    if isinstance(output, Tensor):
        return [(None, output)]
    keys = choices_of(output) or ()
    return [(key, output[key]) for key in keys if isinstance(output[key], Tensor)]


def _note_made(made: list[_Made], tensor: Tensor, name: str, select: Any) -> None:
    """Note which layer returned a tensor: the outermost before any other read it."""
    depth = name.count(".")
    for known in made:
        if known.is_it(tensor):
            known.depth = min(known.depth, depth)
            if not known.read:
                known.chosen = (name, select)
            return
    ref = weakref.ref(tensor)
    shape = tuple(tensor.shape)
    made.append(_Made(ref, _version(tensor), shape, (name, select), depth))


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _note_read(made: list[_Made], inputs: Iterable[Any]) -> None:
    """Note that a layer reads tensors."""
    for tensor in inputs:
        if isinstance(tensor, Tensor):
            for known in made:
                known.read = known.read or known.is_it(tensor)


def _worth(
    made: list[_Made], calls: dict[str, int], known: _Known, images: Any
) -> set[tuple[str, Any]]:
    """Names and selections of the maps that are worth decomposing."""
    image_size = tuple(images.shape[2:]) if isinstance(images, Tensor) else None
    best: dict[tuple[int, ...], _Made] = {}
    for each in made:
        n, channels, *spatial = (*each.shape, 0, 0)[: max(2, len(each.shape))]
        size, (name, _) = tuple(spatial), each.chosen
        if (
            known.are_worth(name, n, calls[name])
            and channels > MORE_THAN_COLORS
            and len(size) >= 2
            and min(size) >= SHORTEST_SIDE
            and math.prod(size) <= MOST_POSITIONS
            and size != image_size
            and (size not in best or each.depth <= best[size].depth)
        ):
            best[size] = each
    return {each.chosen for each in best.values()}
