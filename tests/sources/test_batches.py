"""Loaders, datasets and re-iterables: read as arrays are, or refused in clear words."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from panda_sklearn.sources import batches, is_source, open_source
from panda_sklearn.utils.arrays import MapLayout
from panda_sklearn.utils.values import ValueCheck

LAYOUT = MapLayout((3, 4, 5))
X = np.random.default_rng(0).standard_normal((37, 3, 4, 5)).astype(np.float32)
T = torch.from_numpy(X)


class Files:
    """A user's own: batches of some sizes, each read anew; passes are counted."""

    def __init__(self, array=X, sizes=(5, 0, 20, 1, 11)):
        self.array, self.sizes, self.n_passes = array, sizes, 0

    def __iter__(self):
        self.n_passes += 1
        yield from self.parts()

    def parts(self):
        start = 0
        for size in self.sizes:
            yield self.array[start : start + size]
            start += size


class Labelled(Files):
    def parts(self):
        return ((part, [0] * len(part)) for part in super().parts())


class Reusing(Files):
    """Reads each batch into the same memory."""

    def parts(self):
        memory = np.empty((20, *self.array.shape[1:]), self.array.dtype)
        for part in super().parts():
            memory[: len(part)] = part
            yield memory[: len(part)]
            memory[:] = np.nan


class Items(Dataset):
    """A map-style dataset of pictures and labels."""

    def __init__(self, array=X):
        self.array, self.asked = array, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        if i >= len(self):
            raise AssertionError("beyond the end")
        self.asked.append(i)
        return self.array[i], i % 2


class Endless(IterableDataset):
    """Items one after the other; not endless."""

    def __iter__(self):
        return iter(X)


KINDS = {
    "own": Files,
    "labelled": Labelled,
    "reusing memory": Reusing,
    "tensors": lambda: Files(T),
    "dict values": lambda: {"a": X[:30], "b": X[30:]}.values(),
    "loader": lambda: DataLoader(TensorDataset(T), batch_size=8),
    "loader of labels": lambda: DataLoader(Items(), batch_size=8),
    "loader with workers": lambda: DataLoader(Items(), batch_size=8, num_workers=2),
    "loader of batches": lambda: DataLoader(list(T.split(9)), batch_size=None),
    "loader of a stream": lambda: DataLoader(Endless(), batch_size=7),
    "dataset": Items,
    "dataset of tensors": lambda: TensorDataset(T),
    "iterable dataset": Endless,
}
OF_NUMPY = {"own", "labelled", "reusing memory", "dict values", "dataset"}


def batches_of(source, layout=LAYOUT, size=4, **options):
    samples = source.samples(layout, **options)
    return [batch.clone() for batch in samples.map(lambda batch: batch, size=size)]


def sum_of(samples):
    return samples.accumulate(
        lambda batch, total: total.add_(batch.sum(0)), torch.zeros(3, 20)
    )[0]


@pytest.mark.parametrize(
    "kind, size",
    [
        (kind, size)
        for kind in KINDS
        # Workers take their time to start.
        for size in ([7] if "workers" in kind else [1, 4, 7, 37, 50])
    ],
)
def test_batches_are_those_in_memory(kind, size):
    given = KINDS[kind]()
    assert is_source(given)
    source = open_source(given)
    assert source.shape[1:] == X.shape[1:] and source.dtype == torch.float32
    assert source.origin.tensor == (kind not in {*OF_NUMPY, "iterable dataset"})
    for _ in range(2):
        found = batches_of(source, size=size)
        assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
        np.testing.assert_array_equal(torch.cat(found), X.reshape(37, 3, 20))
        assert source.n_samples == 37


def test_one_iteration_a_pass():
    files = Files()
    source = open_source(files)
    assert source.n_samples is None and source.shape == (None, 3, 4, 5)
    samples = source.samples(LAYOUT)
    for n in (1, 2, 3):
        sum_of(samples)
        assert files.n_passes == samples.n_passes == n
    assert samples.n_samples == 37


def test_items_of_a_dataset_are_read_in_order_and_stacked(monkeypatch):
    monkeypatch.setattr(batches, "RUN_BYTES", 10 * X[0].nbytes)
    items = Items()
    source = open_source(items)
    assert len(items.asked) == 10  # one batch, which the first pass begins with
    assert [len(batch) for batch in source.read()] == [10, 10, 10, 7]
    assert items.asked == list(range(37))


def test_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(batches, "RUN_BYTES", 1)
    alive = weakref.WeakSet()

    class Noted(Files):
        def parts(self):
            for part in super().parts():
                tensor = torch.from_numpy(part.copy())
                alive.add(tensor)
                yield tensor
                del tensor

    most = []
    samples = open_source(Noted(sizes=[1] * 37)).samples(LAYOUT, batch_size=1)
    samples.accumulate(lambda batch: most.append(len(alive)))
    assert len(most) == 37 and max(most) <= 2
    gc.collect()
    assert not alive


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", "u1", "i8", "?"])
def test_types(dtype):
    values = (X * 50).clip(0).astype(dtype)
    source = open_source(Files(values))
    assert source.dtype == (torch.float64 if dtype == "f8" else torch.float32)
    found = torch.cat(batches_of(source)).reshape(X.shape)
    np.testing.assert_array_equal(found, values.astype("f8" if dtype == "f8" else "f4"))


def test_brain_floats_that_want_gradients():
    weights = T.bfloat16().requires_grad_()
    found = torch.cat(batches_of(open_source(Files(weights))))
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, T.bfloat16().float().reshape(37, 3, 20))


@pytest.mark.parametrize(
    "layout",
    [
        MapLayout((3, 4, 5), channel_axis=-1),
        MapLayout((3, 4, 5), flattened=True),
        MapLayout((1, 60), flattened=True),
    ],
)
def test_layouts(layout):
    values = X.reshape(37, *layout.sample_shape)
    found = torch.cat(batches_of(open_source(Files(values)), layout))
    np.testing.assert_array_equal(found, layout.to_maps(torch.from_numpy(values)))


def test_an_error_of_a_value_names_the_sample():
    values = X.copy()
    values[29, 2, 1, 3] = np.inf
    samples = open_source(Files(values)).samples(
        LAYOUT, batch_size=6, check=ValueCheck(LAYOUT)
    )
    with pytest.raises(ValueError, match=r"infinity, first at X\[29, 2, 1, 3\]"):
        sum_of(samples)


# Order.


def test_a_shuffled_loader_has_sums_but_no_results_of_samples():
    loader = DataLoader(TensorDataset(T), batch_size=8, shuffle=True)
    source = open_source(loader, "activations")
    assert not source.ordered
    samples = source.samples(LAYOUT)
    torch.testing.assert_close(sum_of(samples), T.sum(0).reshape(3, 20))
    with pytest.raises(ValueError, match=r"activations is shuffled .*shuffle=False"):
        samples.map(torch.clone)


def test_a_loader_of_other_samples_in_each_pass():
    items = TensorDataset(T)
    for sampler in (
        WeightedRandomSampler([1.0] * 37, 37),
        RandomSampler(items, replacement=True),
        RandomSampler(items, num_samples=20),
    ):
        with pytest.raises(ValueError, match="other samples in each pass"):
            open_source(DataLoader(items, batch_size=8, sampler=sampler))


# What is refused.


@pytest.mark.parametrize(
    "make",
    [
        lambda: (part for part in T.split(8)),
        lambda: iter(T.split(8)),
        lambda: iter(DataLoader(TensorDataset(T), batch_size=8)),
        lambda: map(torch.clone, T.split(8)),
        lambda: enumerate(T.split(8)),
    ],
)
def test_what_can_be_iterated_over_once(make):
    once = make()
    assert is_source(once)
    with pytest.raises(TypeError, match=r"partial_fit .*__iter__ begins anew"):
        open_source(once)
    next(once)  # nothing was taken
    assert len(list(once)) == (37 + 7) // 8 - 1


def test_a_one_shot_iterator_in_disguise():
    class Disguised:
        parts = iter(T.split(8))

        def __iter__(self):
            return self.parts

    samples = open_source(Disguised()).samples(LAYOUT)
    torch.testing.assert_close(sum_of(samples), T.sum(0).reshape(3, 20))
    with pytest.raises(ValueError, match=r"0 samples in this pass, but 37 .*partial_f"):
        sum_of(samples)


@pytest.mark.parametrize("sizes", [(5, 20), (5, 20, 12)])
def test_another_number_of_samples(sizes):
    files = Files(sizes=(5, 20, 1))
    samples = open_source(files).samples(LAYOUT)
    sum_of(samples)
    files.sizes = sizes
    with pytest.raises(ValueError, match=f"{sum(sizes)} samples .* but 26 before"):
        sum_of(samples)


def test_another_shape_in_another_pass():
    files = Files()
    samples = open_source(files, "maps").samples(LAYOUT)
    sum_of(samples)
    files.array = X[..., :4]
    with pytest.raises(ValueError, match=r"Batch 0 of maps, from sample 0, .*4, 4\)"):
        sum_of(samples)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (X[0], ValueError, r"Batch 2 of X, from sample 7, has samples of shape \(4, 5"),
        (X[:, :2], ValueError, r"Batch 2 of X, from sample 7, .*\(2, 4, 5\)"),
        (X.astype("f8"), ValueError, "Batch 2 of X, from sample 7, .*double"),
        (X * 1j, ValueError, r"Batch 2 of X \(sample 7\) must be an array .*complex"),
        ({"x": X}, TypeError, r"Batch 2 of X \(sample 7\) must be an array .*dict"),
        (3.0, TypeError, r"Batch 2 of X \(sample 7\) must be an array"),
        ("abc", TypeError, r"Batch 2 of X \(sample 7\) must be an array"),
        ([], ValueError, r"Batch 2 of X, from sample 7, has samples of shape \(\)"),
    ],
)
def test_a_batch_that_is_none(bad, error, message):
    class Mixed:
        def __iter__(self):
            return iter([X[:5], X[5:7], bad])

    samples = open_source(Mixed()).samples(LAYOUT)
    with pytest.raises(error, match=message):
        sum_of(samples)


@pytest.mark.parametrize("items", [[X[0], X[1, :2]], [X[0], "abc"]])
def test_an_item_that_is_none(items):
    with pytest.raises((TypeError, ValueError), match="Sample 1 of X"):
        open_source(Items(items))


@pytest.mark.parametrize(
    "empty",
    [
        Files(sizes=()),
        Files(sizes=(0, 0)),
        TensorDataset(T[:0]),
        DataLoader(TensorDataset(T[:0])),
    ],
)
def test_no_samples(empty):
    with pytest.raises(ValueError, match=r"0 sample\(s\) .*minimum of 1"):
        open_source(empty)


def test_a_dataset_without_a_length():
    class Unsized(Dataset):
        def __getitem__(self, i):
            return X[i]

    with pytest.raises(TypeError, match="without a length"):
        open_source(Unsized())


def test_exceptions_of_a_user_s_own_come_through():
    class Broken(Files):
        def parts(self):
            yield X[:5]
            raise LookupError("file 2 is gone")

    samples = open_source(Broken()).samples(LAYOUT)
    with pytest.raises(LookupError, match="file 2 is gone"):
        sum_of(samples)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_iterators_are_closed_after_an_exception(error):
    closed, kept = [], []

    class Noting(Files):
        def __iter__(self):
            kept.append(super().__iter__())  # not closed for want of references
            return kept[-1]

        def parts(self):
            try:
                yield from super().parts()
            finally:
                closed.append(True)

    def stop(batch):
        assert not closed
        raise error

    with pytest.raises(error):
        open_source(Noting()).samples(LAYOUT, batch_size=2).accumulate(stop)
    assert closed


@pytest.mark.parametrize(
    "array",
    [X, T, list(X), tuple(X), range(3), "abc", b"abc", {1}, {"a": X}, None, 3, X[0, 0]],
)
def test_what_is_no_source(array):
    assert not is_source(array)
    with pytest.raises(TypeError, match="features must be an array on disk"):
        open_source(array, "features")


def test_tables_and_sparse_arrays_are_no_sources():
    import pandas as pd
    import polars as pl
    import scipy.sparse

    table = np.eye(3)
    for thing in (
        pd.DataFrame(table),
        pl.DataFrame(table),
        scipy.sparse.csr_array(table),
        torch.eye(3).to_sparse(),
        Files,
    ):
        assert not is_source(thing)
