"""Samples that are the blocks of a dask array.

Sums are computed where the blocks are, by the current client or dask's own threads, and
added up in a tree. If a worker is lost, dask computes its blocks again.

Dask, from the extra "dask", is only used for arrays that it made.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.core.drawing import Picked, drawn_places
from panda_sklearn.core.samples import Check, InMemory, Samples, Sums
from panda_sklearn.utils.arrays import MapLayout, Origin, as_tensor
from panda_sklearn.utils.batches import users_level
from panda_sklearn.utils.validation import check_axes

__all__ = ["BlockedArray", "SpreadOverBlocks", "is_blocked"]

# Number of partial sums that are added at a time.
FAN_IN = 8


def is_blocked(X: Any) -> bool:
    """Whether something is a dask array."""
    array = sys.modules.get("dask.array")
    return array is not None and isinstance(X, array.Array)


class BlockedArray:
    """A dask array; its attributes are those of :class:`Source`.

    Parameters
    ----------
    X : dask.array.Array
        It may have a number of samples that dask does not know.

    Warns
    -----
    UserWarning
        If blocks hold parts of samples: joining them moves the data.
    """

    def __init__(self, X: Any) -> None:
        check_axes(X)
        if X.dtype.kind not in "fiub":
            raise TypeError(f"X must be real numbers, got a dask array of {X.dtype}.")
        if any(math.isnan(size) for size in X.shape[1:]):
            raise ValueError(
                f"X has samples of unknown sizes, {X.shape[1:]}: call its "
                "compute_chunk_sizes first."
            )
        cut = [n for n in X.numblocks[1:] if n > 1]
        if cut:
            size = X.nbytes
            amount = "" if math.isnan(size) else f", {size / 1e6:.3g} MB,"
            warnings.warn(
                "X has blocks that cut samples. Joining them may move all of it"
                f"{amount} between workers in each pass. Rechunk it to whole samples, "
                "X.rechunk({0: 'auto', 1: -1, ...}), and persist that.",
                UserWarning,
                stacklevel=users_level(),
            )
            X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
        self.X = X
        self.shape, self.ndim = X.shape, X.ndim
        self.dtype = as_tensor(np.zeros(1, dtype=X.dtype)).dtype
        self.origin = Origin(False, torch.device("cpu"))

    def samples(
        self,
        layout: MapLayout,
        *,
        batch_size: int | None = None,
        check: Check | None = None,
    ) -> SpreadOverBlocks:
        """The data as maps (C, S)."""
        return SpreadOverBlocks(
            self.X, layout, dtype=self.dtype, batch_size=batch_size, check=check
        )


class SpreadOverBlocks(Samples):
    """Samples in blocks, wherever the blocks are."""

    ordered = False
    spread = True

    def __init__(
        self,
        X: Any,
        layout: MapLayout,
        *,
        dtype: torch.dtype,
        batch_size: int | None,
        check: Check | None,
    ) -> None:
        counts: Sequence[float] = X.chunks[0]
        known = not any(map(math.isnan, counts))
        super().__init__(
            layout.n_channels,
            layout.n_positions,
            dtype=dtype,
            device=torch.device("cpu"),
            n_samples=int(sum(counts)) if known else None,
            batch_size=batch_size,
            check=check,
        )
        self.X, self.layout = X, layout
        self.blocks = list(X.to_delayed().ravel())
        self.counts = [int(n) for n in counts] if known else None

    def accumulate(
        self, add: Callable[..., Any], *totals: Tensor, size: int = 1
    ) -> tuple[Tensor, ...]:
        """As in the base class; ``add`` is sent to the blocks."""
        found, _ = self._sum(add, totals, size)
        return found

    def begin(self, *sums: Sums) -> None:
        """Begin sums with the first block that has samples."""
        counts = self._count()
        k = next(k for k, n in enumerate(counts) if n > 0)
        (begun,) = _computed(
            _delayed(_begun)(
                self.blocks[k], self.layout, list(sums), self._batch(), self.dtype
            )
        )
        for own, its in zip(sums, begun, strict=True):
            vars(own).update(vars(its))

    def look(
        self,
        add: Callable[..., Any],
        *totals: Tensor,
        n_some: Callable[[int], int],
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, ...], InMemory]:
        """As in the base class; the samples that are kept are moved here."""
        n = sum(self._count())
        places = drawn_places(n, n_some(n), generator)
        found, rows = self._sum(add, totals, 1, places)
        return found, InMemory(torch.cat(rows))

    def mapped(
        self,
        function: Callable[[Any, Tensor], Tensor],
        factors: Any,
        check: Check,
    ) -> Any:
        """The results of a function of factors and maps (n, C, S), as a dask array."""
        shape = 1, self.n_channels, self.n_positions
        like = torch.zeros(shape, dtype=self.dtype, device="cpu")
        one = function(factors, like).numpy()
        return self.X.map_blocks(
            _made,
            layout=self.layout,
            factors=factors,
            function=function,
            check=check,
            kind=self.dtype,
            dtype=one.dtype,
            chunks=(self.X.chunks[0], *((n,) for n in one.shape[1:])),
            drop_axis=list(range(1, self.X.ndim)),
            new_axis=list(range(1, one.ndim)),
            meta=np.empty((0,) * one.ndim, dtype=one.dtype),
        )

    def map(
        self, function: Callable[[Tensor], Tensor], *, size: int | None = None
    ) -> Iterator[Tensor]:
        """Raise ValueError: there are no batches in this process."""
        raise ValueError(
            "This computes results of each sample in this process, but X is a dask "
            "array. Compute it, or use its map_blocks."
        )

    def _read(self) -> Generator[Tensor, None, None]:
        raise NotImplementedError

    def _count(self) -> list[int]:
        """The number of samples of each block, computed if dask does not know it."""
        if self.counts is None:
            self.n_passes += 1
            self.counts = list(_computed(*(_delayed(len)(b) for b in self.blocks)))
        if sum(self.counts) == 0:
            raise ValueError("X has no samples: all of its blocks are empty.")
        return self.counts

    def _sum(
        self,
        add: Callable[..., Any],
        totals: Sequence[Tensor],
        size: int,
        places: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Sums over all blocks, and the samples at the given places."""
        counts = self._count()
        self.n_passes += 1
        specs = [(T.shape, T.dtype) for T in totals]
        size = self._batch(size)
        work = _delayed(_Work(add, specs, self.layout, size, self.check, self.dtype))
        if places is None:
            places = torch.empty(0, dtype=torch.int64, device="cpu")
        parts, start = [], 0
        for block, n in zip(self.blocks, counts, strict=True):
            here = places[(places >= start) & (places < start + n)] - start
            parts.append(_delayed(_summed)(block, work, start, here))
            start += n
        while len(parts) > 1:
            parts = [
                _delayed(_joined)(parts[k : k + FAN_IN])
                for k in range(0, len(parts), FAN_IN)
            ]
        ((found, rows, checks),) = _computed(parts[0])
        self._check_pass(sum(counts))
        if checks:
            for check in checks[1:]:
                checks[0].join(check)
            checks[0].finish()
        self.check = None
        return tuple(found), rows

    def _batch(self, size: int = 1) -> int:
        return self.batch_size or self._size(size)


def _made(
    block: Any,
    layout: MapLayout,
    factors: Any,
    function: Callable,
    check: Check,
    kind: torch.dtype,
    block_info: Any = None,
) -> Any:
    """The results of a function of a block."""
    if len(block) == 0:
        block = np.zeros((1, *block.shape[1:]), dtype=block.dtype)
        with _plainly():
            return function(factors, _maps(block, layout, kind)).numpy()[:0]
    start = block_info[0]["array-location"][0][0] if block_info else 0
    Z = _maps(block, layout, kind)
    copy.copy(check).see(Z, 0 if math.isnan(start) else int(start))
    with _plainly():
        return function(factors, Z).numpy()


def _maps(block: Any, layout: MapLayout, kind: torch.dtype) -> Tensor:
    """A block as maps (n, C, S)."""
    return layout.to_maps(as_tensor(np.ascontiguousarray(block)).to(kind))


def _plainly() -> Any:
    """A context without autocast, whatever the computing thread has set."""
    return torch.autocast("cpu", enabled=False)


class _Work:
    """What to do with each block; sent once rather than with every block."""

    def __init__(
        self,
        add: Callable[..., Any],
        specs: list[tuple[torch.Size, torch.dtype]],
        layout: MapLayout,
        size: int,
        check: Check | None,
        kind: torch.dtype,
    ) -> None:
        self.add, self.specs, self.layout = add, specs, layout
        self.size, self.check, self.kind = size, check, kind


# Totals, the samples that were picked, and checks that are not finished yet.
Part = tuple[list[Tensor], list[Tensor], list[Check]]


def _summed(block: Any, work: _Work, start: int, places: Tensor) -> Part:
    """The sums over one block."""
    totals = [
        torch.zeros(shape, dtype=dtype, device="cpu") for shape, dtype in work.specs
    ]
    picked = Picked(places)
    if len(block) == 0:
        return totals, [], []
    Z = _maps(block, work.layout, work.kind)
    check = copy.copy(work.check)  # since threads share what they are sent
    if check is not None:
        check.see(Z, start)

    def see(batch: Tensor, *totals: Tensor) -> None:
        work.add(batch, *totals)
        picked.see(batch)

    with _plainly():
        InMemory(Z, batch_size=work.size).accumulate(see, *totals)
    return totals, picked.rows, [] if check is None else [check]


def _joined(parts: list[Part]) -> Part:
    """Add up partial sums, and join the picked samples in order."""
    totals = [
        sum(each[1:], each[0]) for each in zip(*(p[0] for p in parts), strict=True)
    ]
    rows = [row for part in parts for row in part[1]]
    return totals, rows, [check for part in parts for check in part[2]]


def _begun(
    block: Any, layout: MapLayout, sums: list[Sums], size: int, kind: torch.dtype
) -> list[Sums]:
    """Begin sums with the first samples of a block."""
    few = _maps(block[:size], layout, kind)
    with _plainly():
        for some in sums:
            some.begin(few)
    return sums


def _delayed(value: Any) -> Any:
    """A function to call where its arguments are, or a value to send once."""
    return importlib.import_module("dask").delayed(value, traverse=False)


def _computed(*values: Any) -> tuple[Any, ...]:
    """Compute values with the current client, or with dask's threads."""
    return importlib.import_module("dask").compute(*values)
