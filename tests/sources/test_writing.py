"""Results written by slices: whole, or said not to be."""

import os

import h5py
import numpy as np
import pytest
import torch
import zarr

from panda_sklearn.sources import Writer
from panda_sklearn.sources import writing as module

R = torch.randn(23, 4, 5, generator=torch.Generator().manual_seed(0))


def made_memmap(path, dtype="f4"):
    return np.memmap(path / "out", dtype=dtype, mode="w+", shape=tuple(R.shape))


def made_hdf5(path, dtype="f4", **options):
    file = h5py.File(path / "out.h5", "w")
    return file.create_dataset("out", R.shape, dtype=dtype, **options)


def made_zarr(path, dtype="f4", **options):
    return zarr.create_array(path / "out.zarr", shape=R.shape, dtype=dtype, **options)


KINDS = {
    "array": lambda path, dtype="f4": np.full(R.shape, np.nan, dtype),
    "tensor": lambda path, dtype="f4": torch.full(
        R.shape, torch.nan, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype
    ),
    "memmap": made_memmap,
    "hdf5": made_hdf5,
    "hdf5, chunks": lambda path, dtype="f4": made_hdf5(path, dtype, chunks=(6, 2, 2)),
    "zarr": made_zarr,
    "zarr, shards": lambda path, dtype="f4": made_zarr(
        path, dtype, chunks=(3, 4, 5), shards=(6, 4, 5)
    ),
}


def write(out, results=R, n_samples=23, size=4):
    with Writer(out, (n_samples, *R.shape[1:]), results.dtype) as writer:
        for part in results.split(size):
            writer.write(part)


@pytest.mark.parametrize("n_samples", [23, None])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_is_written(kind, dtype, n_samples, tmp_path):
    out = KINDS[kind](tmp_path, dtype)
    write(out, n_samples=n_samples)
    expected = R.numpy().astype(dtype)
    np.testing.assert_array_equal(np.asarray(out[:]), expected)
    if kind == "memmap":
        np.testing.assert_array_equal(
            np.fromfile(tmp_path / "out", dtype).reshape(R.shape), expected
        )


def test_brain_floats(tmp_path):
    write(out := made_memmap(tmp_path), R.bfloat16())
    np.testing.assert_array_equal(out, R.bfloat16().float())
    write(out := torch.zeros(R.shape, dtype=torch.bfloat16, requires_grad=True))
    torch.testing.assert_close(out.detach(), R.bfloat16())


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((23, 4)), ValueError, r"out must be .*\(23, 4, 5\) .*\(23, 4\)"),
        (np.zeros((22, 4, 5)), ValueError, r"shape \(22, 4, 5\)"),
        (torch.zeros(23, 5, 4), ValueError, r"shape \(23, 5, 4\)"),
        (np.zeros((23, 4, 5), int), ValueError, "floating-point .*int64"),
        (torch.zeros((23, 4, 5)).bool(), ValueError, "floating-point .*bool"),
        (np.zeros((23, 4, 5), complex), ValueError, "Complex"),
        ([[0.0]], TypeError, "out must be .* got a list"),
        ("out.npy", TypeError, "out must be .*'out.npy'"),
        (None, TypeError, "out must be .* got None"),
        (np.broadcast_to(0.0, R.shape), ValueError, "read-only"),
    ],
)
def test_what_cannot_be_written_to(out, error, message):
    with pytest.raises(error, match=message):
        Writer(out, tuple(R.shape), R.dtype)


def test_files_that_are_open_for_reading(tmp_path):
    for make in (made_hdf5, made_zarr, made_memmap):
        out = make(tmp_path)
        if make is made_hdf5:
            out.file.close()
            out = h5py.File(tmp_path / "out.h5", "r")["out"]
        elif make is made_zarr:
            out = zarr.open_array(tmp_path / "out.zarr", mode="r")
        else:
            out = np.memmap(tmp_path / "out", dtype="f4", mode="r", shape=R.shape)
        with pytest.raises(ValueError, match="out is read-only"):
            Writer(out, tuple(R.shape), R.dtype)


def notes_of(caught):
    return " ".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("n", "message"), [(20, "only 20"), (25, "room for 23 samples, but there are 24")]
)
def test_another_number_of_samples_than_there_is_room_for(n, message):
    results = R[:1].expand(n, 4, 5)
    with pytest.raises(ValueError, match=message) as caught:
        write(np.zeros(R.shape), results, n_samples=None)
    assert "out is not complete: results of 20 of its 23 samples" in notes_of(caught)


class Full:
    """A disk that is full after some samples, or when all is flushed."""

    def __init__(self, room):
        self.room, self.shape, self.dtype = room, R.shape, np.dtype("f4")

    def __setitem__(self, rows, values):
        if rows.stop > self.room:
            raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_full_disk():
    with pytest.raises(
        OSError, match=r"samples 8 to 11 could not be written to out .*No space left"
    ) as caught:
        write(Full(11))
    assert "results of 8 of its 23 samples were written" in notes_of(caught)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_disk_that_is_full_at_the_end():
    with pytest.raises(OSError, match="out could not be written to its file") as caught:
        write(Full(23))
    assert "out is not complete" in notes_of(caught)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_room_for_a_memory_map_is_taken_first(tmp_path, monkeypatch):
    """Writing to a map of a file with holes would end the process."""
    out = made_memmap(tmp_path)
    asked = []

    def full(descriptor, offset, length):
        asked.append((offset, length))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no room on the disk for out"):
        Writer(out, tuple(R.shape), R.dtype)
    assert asked == [(0, R.numel() * 4)]


def test_taking_room_keeps_the_values(tmp_path):
    out = made_memmap(tmp_path)
    out[:] = 3
    Writer(out, tuple(R.shape), R.dtype)
    assert (out == 3).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_from_elsewhere_says_how_far_it_came(error):
    with (
        pytest.raises(error) as caught,
        Writer(np.zeros(R.shape), tuple(R.shape), R.dtype) as writer,
    ):
        writer.write(R[:7])
        raise error
    assert "results of 7 of its 23 samples were written" in notes_of(caught)


def test_values_that_do_not_fit():
    out = np.zeros(R.shape, "f2")
    with pytest.raises(ValueError, match=r"out has values up to 1e\+06, .*float16"):
        write(out, torch.full(R.shape, 1e6))
    assert not out.any()
