"""Batches that can be iterated over repeatedly: loaders, datasets, users' own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from panda_sklearn.sources.base import RUN_BYTES, Source
from panda_sklearn.sources.extracted import ExtractedBatches
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor, promoted
from panda_sklearn.utils.validation import as_numeric, check_axes

__all__ = ["BatchSource", "ItemsInBatches"]

# Descriptions for messages.
BATCH = "an array of shape (n_samples, ...), or a tuple whose first item is one"
ITEM = "an array, or a tuple whose first item is one"


class BatchSource(Source):
    """Batches of an object that begins anew each time it is iterated over.

    The constructor reads the first batch, and the first pass continues from there, so
    that there is one iteration per pass.

    Parameters
    ----------
    batches : iterable
        Gives arrays (n_samples, ...), or tuples or lists whose first item is one.

    name : str
        The user's name for it, for messages.

    device : str or torch.device, default=None
        Device to move batches to, unless they are tensors.

    Raises
    ------
    TypeError, ValueError
        If there are no batches, the first is not a batch, or a loader draws other
        samples in each pass.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        name: str,
        device: str | torch.device | None = None,
    ) -> None:
        self.name = name
        self._batches = batches
        if isinstance(batches, DataLoader):
            self.ordered = not _is_shuffled(batches, name)
        self._begun: tuple[ArrayLike, Generator[ArrayLike, None, None]] | None = None
        if isinstance(batches, ExtractedBatches):
            n_samples, shape = batches.n_samples, batches.sample_shape
            dtype, origin = batches.dtype, batches.origin
        else:
            arrays = self._arrays()
            first = next(arrays, None)
            if first is None:
                raise ValueError(
                    f"Found array with 0 sample(s) ({name} gives none) while a minimum "
                    "of 1 is required."
                )
            self._begun = first, arrays
            n_samples, shape = None, tuple(first.shape[1:])
            dtype, origin = _type_of(first), Origin.of(first)
        super().__init__(
            name,
            shape,
            n_samples=n_samples,
            dtype=dtype,
            origin=origin,
            device=device,
        )
        check_axes(self)

    def read(self) -> Generator[Tensor, None, None]:
        """Yield all samples in order, in the batches in which they come."""
        first, arrays = self._begun or (None, self._arrays())
        self._begun = None
        with contextlib.closing(arrays):
            if first is not None:
                yield self._converted(first)
                del first
            for array in arrays:
                yield self._converted(array)

    def _arrays(self) -> Generator[ArrayLike, None, None]:
        """Yield the array of numbers of each batch that is not empty."""
        start = 0
        iterator = iter(self._batches)
        with contextlib.ExitStack() as stack:
            if hasattr(iterator, "close"):
                stack.callback(iterator.close)
            for k, batch in enumerate(iterator):
                array = as_numeric(
                    _first(batch), f"Batch {k} of {self.name} (sample {start})", BATCH
                )
                self._check(array, k, start)
                start += len(array)
                if len(array):
                    yield array

    def _check(self, array: ArrayLike, k: int, start: int) -> None:
        """Raise ValueError unless a batch is like the first."""
        if not hasattr(self, "sample_shape"):  # this is the first
            return
        where = f"Batch {k} of {self.name}, from sample {start},"
        if tuple(array.shape[1:]) != self.sample_shape:
            raise ValueError(
                f"{where} has samples of shape {tuple(array.shape[1:])}, but those "
                f"before are of shape {self.sample_shape}: give all samples one shape, "
                "the same in each pass."
            )
        if self.dtype == torch.float32 and _type_of(array) == torch.float64:
            raise ValueError(
                f"{where} is of double precision, but the first batch was not: give all"
                " batches one type."
            )

    def _converted(self, array: ArrayLike) -> Tensor:
        return as_tensor(array, self.device).to(self.device, self.dtype)


class ItemsInBatches:
    """Batches of a torch Dataset, whose items are single samples.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Read by index, in order; an IterableDataset is iterated over.

    name : str
        The user's name for it, for messages.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        if not isinstance(dataset, IterableDataset) and not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{name} is a Dataset without a length: give it a __len__, or an "
                "__iter__ as an IterableDataset."
            )
        self._dataset, self._name = dataset, name

    def __iter__(self) -> Iterator[ArrayLike]:
        items: list[ArrayLike] = []
        size = 1
        for i, item in enumerate(self._items()):
            array = as_numeric(_first(item), f"Sample {i} of {self._name}", ITEM)
            if i == 0:
                shape = tuple(array.shape)
                size = max(1, RUN_BYTES // (4 * max(1, math.prod(shape))))
            elif tuple(array.shape) != shape:
                raise ValueError(
                    f"Sample {i} of {self._name} is of shape {tuple(array.shape)}, but "
                    f"the first is of shape {shape}: give all one shape."
                )
            items.append(array)
            if len(items) == size:
                yield _stacked(items)
                items = []
        if items:
            yield _stacked(items)

    def _items(self) -> Iterator[Any]:
        if isinstance(self._dataset, IterableDataset):
            return iter(self._dataset)
        return (self._dataset[i] for i in range(len(self._dataset)))


def _first(batch: Any) -> Any:
    """The samples of a batch, which may also hold labels or the like."""
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def _type_of(array: ArrayLike) -> torch.dtype:
    """Single or double precision, whichever an array's values need."""
    return promoted(as_tensor(array[:0])).dtype


def _stacked(items: list[ArrayLike]) -> ArrayLike:
    if isinstance(items[0], Tensor):
        return torch.stack([as_tensor(item) for item in items])
    return np.stack(items)


def _is_shuffled(loader: DataLoader, name: str) -> bool:
    """Whether a loader gives its samples in another order in each pass.

    Raises
    ------
    ValueError
        If it does not give each sample once in each pass.
    """
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, WeightedRandomSampler) or (
        isinstance(sampler, RandomSampler)
        and (sampler.replacement or sampler.num_samples != len(sampler.data_source))
    ):
        raise ValueError(
            f"{name} is a DataLoader that draws other samples in each pass, with a "
            f"{type(sampler).__name__}. Use a sampler that gives each sample once."
        )
    if isinstance(sampler, DistributedSampler):
        n = len(cast(Sized, loader.dataset))
        if not sampler.drop_last and sampler.total_size != n:
            raise ValueError(
                f"{name} is a DataLoader with a DistributedSampler that repeats some "
                f"of the {n} samples, so that each of {sampler.num_replicas} processes "
                "gets the same number: sums over them would be wrong. Pass "
                "drop_last=True to the sampler, or shard with torch.utils.data.Subset."
            )
        return sampler.shuffle
    return isinstance(sampler, RandomSampler | SubsetRandomSampler)
