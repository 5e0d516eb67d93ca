"""Arrays on disk: read as they are in memory, chunk by chunk, and little at a time."""

import gc
import math
import threading
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from zarr.storage import LocalStore, WrapperStore

from panda_sklearn.sources import is_source, open_source, stored
from panda_sklearn.utils.arrays import MapLayout
from panda_sklearn.utils.values import ValueCheck

SHAPE = (37, 3, 4, 5)
LAYOUT = MapLayout(SHAPE[1:])
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def in_hdf5(path, X, **options):
    return h5py.File(path / "X.h5", "w").create_dataset("X", data=X, **options)


def in_zarr(path, X, **options):
    return zarr.create_array(path / "X.zarr", data=X, **options)


def in_memmap(path, X, mode="r"):
    np.save(path / "X.npy", X)
    return np.load(path / "X.npy", mmap_mode=mode)


KINDS = {
    "hdf5": in_hdf5,
    "hdf5, chunks": lambda path, X: in_hdf5(path, X, chunks=(5, *X.shape[1:])),
    "hdf5, chunks cut samples": lambda path, X: in_hdf5(
        path, X, chunks=(6, *(-(-n // 2) for n in X.shape[1:])), compression="gzip"
    ),
    "zarr": in_zarr,
    "zarr, chunks": lambda path, X: in_zarr(path, X, chunks=(5, *X.shape[1:])),
    "zarr, shards": lambda path, X: in_zarr(
        path, X, chunks=(2, *X.shape[1:]), shards=(6, *X.shape[1:])
    ),
    "memmap r": in_memmap,
    "memmap r+": lambda path, X: in_memmap(path, X, "r+"),
    "memmap c": lambda path, X: in_memmap(path, X, "c"),
}


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert not reading_threads()


@pytest.fixture
def short_runs(monkeypatch):
    """Runs of about seven samples, so that a few samples take some."""
    monkeypatch.setattr(stored, "RUN_BYTES", 7 * X[0].nbytes)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("panda_sklearn")]


def batches_of(source, layout=LAYOUT, size=4, **options):
    samples = source.samples(layout, **options)
    return [batch.clone() for batch in samples.map(lambda batch: batch, size=size)]


class Slices:
    """An array of which slices are counted; nothing else can be done with it."""

    def __init__(self, array, **options):
        self.array, self.asked = array, []
        self.shape, self.dtype = array.shape, array.dtype
        vars(self).update(options)

    def __getitem__(self, rows):
        self.asked.append(rows)
        return self.array[rows]


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("size", [1, 4, 37, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_in_memory(kind, size, tmp_path):
    array = KINDS[kind](tmp_path, X)
    assert is_source(array)
    source = open_source(array)
    assert source.shape == SHAPE and source.ndim == 4
    assert source.dtype == torch.float32 and not source.origin.tensor
    for _ in range(2):
        batches = batches_of(source, size=size)
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        np.testing.assert_array_equal(torch.cat(batches), X.reshape(37, 3, 20))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "<f8", ">f8", "u1", ">i4", "?"])
@pytest.mark.parametrize("kind", ["hdf5", "zarr", "memmap r"])
def test_types(kind, dtype, tmp_path):
    if kind == "zarr" and dtype == ">i4":
        dtype = ">i8"
    values = (X * 50).clip(0).astype(dtype)
    source = open_source(KINDS[kind](tmp_path, values))
    assert source.dtype == (torch.float64 if "f8" in dtype else torch.float32)
    found = torch.cat(batches_of(source)).reshape(SHAPE)
    assert found.dtype == source.dtype
    np.testing.assert_array_equal(found, values.astype("f8" if "f8" in dtype else "f4"))


def test_brain_floats():
    tensor = torch.from_numpy(X).bfloat16()
    source = open_source(Slices(tensor))
    assert source.origin.tensor and source.dtype == torch.float32
    torch.testing.assert_close(
        torch.cat(batches_of(source)), tensor.float().reshape(37, 3, 20)
    )


def test_brain_floats_of_numpy():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = X.astype(ml_dtypes.bfloat16)
    found = torch.cat(batches_of(open_source(Slices(values))))
    np.testing.assert_array_equal(found.reshape(SHAPE), values.astype("f4"))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize(
    "layout",
    [
        MapLayout((3, 4, 5), channel_axis=-1),
        MapLayout((3, 4, 5), flattened=True),
        MapLayout((1, 60), flattened=True),
    ],
)
def test_layouts(layout, tmp_path):
    values = X.reshape(37, *layout.sample_shape)
    found = torch.cat(batches_of(open_source(in_hdf5(tmp_path, values)), layout))
    np.testing.assert_array_equal(found, layout.to_maps(torch.from_numpy(values)))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 7, 8, 36, 37, 60])
def test_runs_end_where_chunks_end(chunk):
    array = Slices(X, chunks=(chunk, 2, 2, 2))
    source = open_source(array)
    for n_passes in (1, 2):
        batches_of(source)
        reads = np.zeros(math.ceil(37 / chunk))
        for rows in array.asked:
            reads[rows.start // chunk : math.ceil(rows.stop / chunk)] += 1
        assert (reads == n_passes).all()


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("options", [{"shards": (6, 3, 4, 5)}, {}])
def test_each_chunk_of_zarr_is_read_once_a_pass(options, tmp_path):
    reads = {}

    class Counting(WrapperStore):
        async def get(self, key, prototype, byte_range=None):
            place = (
                key,
                repr(byte_range),
            )  # of a shard that is not full, pieces are read
            reads[place] = reads.get(place, 0) + 1
            return await super().get(key, prototype, byte_range)

    in_zarr(tmp_path, X, chunks=(2, 3, 4, 5), **options)
    store = Counting(LocalStore(tmp_path / "X.zarr"))
    source = open_source(zarr.open_array(store, mode="r+"))
    reads.clear()
    batches_of(source)
    chunks = [key for key, _ in reads if key.startswith("c/")]
    assert len(set(chunks)) == (7 if options else 19)
    assert len(chunks) <= len(set(chunks)) + 1 and set(reads.values()) == {1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"chunks": (30, 2, 2, 2)}, 8),  # in four pieces
        ({"chunks": (2, 3, 4, 5), "shards": (8, 3, 4, 5)}, 8),
        ({"chunks": (2, 3, 4, 5), "shards": (30, 3, 4, 5)}, 2),  # whole chunks at least
        ({"chunks": ((20, 17), (3,), (4,), (5,))}, 3),  # as of dask: they differ
        ({"chunks": None}, 3),
    ],
)
def test_shards_and_chunks_that_memory_does_not_hold(options, expected, monkeypatch):
    monkeypatch.setattr(stored, "LARGEST_RUN_BYTES", 9 * X[0].nbytes)
    monkeypatch.setattr(stored, "RUN_BYTES", 3 * X[0].nbytes)
    array = Slices(X, **options)
    batches_of(open_source(array))
    assert {rows.stop - rows.start for rows in array.asked[:-1]} == {expected}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("hdf5", {"chunks": (64, 6, 8, 10)}),
        ("zarr", {"chunks": (64, 6, 8, 10)}),
        ("memmap r", {}),
    ],
)
def test_little_is_in_memory(kind, options, tmp_path, monkeypatch):
    large = np.tile(X, (400, 2, 2, 2)).astype(np.float16)
    array = KINDS[kind.partition(",")[0]](tmp_path, large, **options)
    run = 2**20
    monkeypatch.setattr(stored, "RUN_BYTES", 2 * run)  # of the converted
    source = open_source(array)
    totals = torch.zeros(6, 80)
    gc.collect()
    tracemalloc.start()
    source.samples(MapLayout(large.shape[1:]), batch_size=16).accumulate(
        lambda batch, total: total.add_(batch.sum(0)), totals
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert large.nbytes > 10 * run
    assert peak < 3.5 * run, peak / run
    np.testing.assert_allclose(
        totals.reshape(6, 8, 10), large.sum(0, dtype="f8"), rtol=1e-3, atol=1
    )


def resident_file_bytes(path):
    """How much of a file is mapped to memory that this process has touched."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(path)):
            rss = next(line for line in lines if line.startswith("Rss:"))
            total += 1024 * int(rss.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_pages_of_a_memory_map_are_let_go(mode, tmp_path, monkeypatch):
    large = np.tile(X, (100, 2, 2, 2))
    monkeypatch.setattr(stored, "RUN_BYTES", large.nbytes // 50)
    array = in_memmap(tmp_path, large, mode)
    seen = []
    source = open_source(array)
    source.samples(MapLayout(large.shape[1:]), batch_size=100).accumulate(
        lambda batch: seen.append(resident_file_bytes(tmp_path / "X.npy"))
    )
    assert len(seen) > 1 and max(seen) < large.nbytes / 2
    assert (
        np.asarray(array).sum()
        and resident_file_bytes(tmp_path / "X.npy") >= large.nbytes
    )  # so it can be told


def test_changes_of_a_private_map_are_kept(tmp_path):
    array = in_memmap(tmp_path, X, "c")
    array[3] = 7
    found = torch.cat(batches_of(open_source(array)))
    assert (found[3] == 7).all() and (array[3] == 7).all()


def test_views_and_copies_of_a_memory_map(tmp_path):
    array = in_memmap(tmp_path, X)
    turned = array[::-2].transpose(0, 3, 1, 2)
    found = torch.cat(batches_of(open_source(turned), MapLayout((5, 3, 4))))
    np.testing.assert_array_equal(
        found.reshape(-1, 5, 3, 4), X[::-2].transpose(0, 3, 1, 2)
    )
    for copied in (array[[1, 2]], array.copy(), array + 1, np.asarray(array)):
        assert not is_source(copied)


# What goes wrong.


class Failing(Slices):
    """Fails at a sample."""

    def __getitem__(self, rows):
        if rows.stop > 20:
            raise OSError("the disk is gone")
        return super().__getitem__(rows)


@pytest.mark.usefixtures("short_runs")
def test_a_read_error_names_the_samples():
    samples = open_source(Failing(X), "activations").samples(LAYOUT, batch_size=4)
    seen = []
    with pytest.raises(
        OSError, match=r"Samples 14 to 20 of activations .*the disk is gone"
    ) as caught:
        samples.accumulate(lambda batch: seen.append(len(batch)))
    assert isinstance(caught.value.__cause__, OSError)
    assert sum(seen) == 12  # what was read before was worked on


@pytest.mark.usefixtures("short_runs")
def test_a_closed_file(tmp_path):
    array = in_hdf5(tmp_path, X)
    source = open_source(array)
    array.file.close()
    with pytest.raises(OSError, match="X could not be read"):
        batches_of(source)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_runs_on_after_an_exception(error, tmp_path):
    array = in_hdf5(tmp_path, X, chunks=(5, 3, 4, 5))
    samples = open_source(array).samples(LAYOUT, batch_size=4)
    assert not reading_threads()

    def stop(batch):
        assert reading_threads()
        raise error

    with pytest.raises(error):
        samples.accumulate(stop)
    assert not reading_threads()
    array.file.close()


@pytest.mark.usefixtures("short_runs")
def test_nothing_runs_on_after_an_early_end():
    array = Slices(X)
    mapped = open_source(array).samples(LAYOUT).map(torch.clone, size=2)
    next(mapped)
    assert reading_threads()
    mapped.close()
    assert not reading_threads()
    assert len(array.asked) <= 2  # that at hand, and the next


@pytest.mark.usefixtures("short_runs")
def test_runs_are_read_ahead():
    """The second run comes while the first is worked on, and no more than that."""
    came = threading.Event()

    class Noted(Slices):
        def __getitem__(self, rows):
            if self.asked:
                came.set()
            return super().__getitem__(rows)

    array = Noted(X)
    batches = open_source(array).read()
    next(batches)
    assert came.wait(60)
    batches.close()
    assert len(array.asked) == 2


def test_an_array_that_changes(tmp_path):
    array = in_hdf5(tmp_path, X, maxshape=(None, 3, 4, 5))
    source = open_source(array)
    batches_of(source)
    array.resize(40, axis=0)
    with pytest.raises(ValueError, match=r"\(40, 3, 4, 5\), but was of shape \(37"):
        batches_of(source)


def test_slices_of_another_shape():
    with pytest.raises(ValueError, match=r"X\[0:37\] is of shape \(37, 60\)"):
        array = Slices(X)
        array.array = X.reshape(37, 60)
        batches_of(open_source(array))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (X * 1j, ValueError, "Complex data not supported: X must be"),
        (X.astype("S4"), TypeError, "X must be an array of numbers, got .*S4"),
        (X.astype("M8[s]"), TypeError, "dates into numbers"),
        (X[:0], ValueError, r"0 sample\(s\) .*minimum of 1"),
        (X[:, :0], ValueError, r"0 feature\(s\) .*minimum of 1"),
        (X[:, 0, 0, 0], ValueError, "Expected 2D array or more axes, got 1D"),
    ],
)
def test_arrays_of_something_else(values, error, message):
    with pytest.raises(error, match=message):
        open_source(Slices(values))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("size", [4, 9])
def test_values_are_looked_at_in_the_first_pass_alone(size, tmp_path):
    values = X.transpose(0, 2, 3, 1).copy()
    values[29, 2, 3, 1] = np.nan
    array = Slices(in_hdf5(tmp_path, values, chunks=(5, 2, 2, 2)))
    source = open_source(array)
    layout = MapLayout((3, 4, 5), channel_axis=-1)
    samples = source.samples(layout, batch_size=size, check=ValueCheck(layout))
    with pytest.raises(ValueError, match=r"NaN, first at X\[29, 2, 3, 1\]"):
        samples.accumulate(lambda batch: None)
    assert samples.n_passes == 1
