"""Bad values for every argument, and what became of a call with one of them."""

import contextlib
import inspect
import re
import time
import warnings

import numpy as np
import scipy.sparse
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from panda_sklearn.editing import EditedGenerator

# Seconds of the processor that no function needs for a check.
LONG = 2.0


def bad_values(good):
    """Names and values of what is tried in the place of a good value.

    Arrays are bad in their own way: of another rank, too short, with a NaN.
    """
    like = torch.from_numpy if isinstance(good, torch.Tensor) else np.asarray
    good = good.numpy() if isinstance(good, torch.Tensor) else good
    array = good.copy() if isinstance(good, np.ndarray) else None
    yield "none", None
    yield "str", "nonsense"
    yield "bool", True
    yield "fraction", 0.5
    yield "negative", -1
    yield "0-d", np.array(0.5)
    yield "set", {0, 1}
    yield "dict", {}
    yield "object", np.array([object(), None])
    yield "ragged", [[1.0, 2.0], [3.0]]
    yield "sparse", scipy.sparse.csr_array(np.eye(3))
    yield "torch-sparse", torch.eye(3).to_sparse()
    yield "datetime", np.array(["2020-01-01"] * 3, dtype="datetime64[D]")
    yield "nan", float("nan")
    yield "huge", 1e39
    yield "empty", []
    if array is None:
        yield "complex", 1j
        yield "rank", np.ones((1,) * 7)
        yield "length", np.ones(13)
        yield "masked", np.ma.masked_array(np.ones(3), [True, False, False])
        return
    spoilt = array.copy()
    spoilt.flat[-1] = np.nan
    first = np.zeros(array.shape, dtype=bool)
    first.flat[0] = True
    yield "with-nan", spoilt
    yield "tensor-nan", torch.from_numpy(spoilt)
    yield "all-huge", np.full(array.shape, 1e39)
    yield "no-samples", like(array[:0])
    yield "complex", array * 1j
    yield "complex-tensor", torch.from_numpy(array * 1j)
    yield "rank", like(array[None])
    yield "flat", like(array[..., 0].copy())
    yield "length", like(array[..., :-1].copy())
    yield "short", like(array[:-1])
    yield "masked", np.ma.masked_array(array, first)


def verdict(call, arguments, words, n_passes):
    """What became of a call: "named", "accepted", "obscure", "late", and the message.

    ``words`` are what the message must hold one of, ``n_passes`` says how often the
    network has run so far.
    """
    before, start = n_passes(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
    except (TypeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
    except Exception as error:
        return "obscure", f"{type(error).__name__}: {error}"
    else:
        return "accepted", ""
    if not any(re.search(rf"\b{re.escape(word)}\b", message) for word in words):
        return "obscure", message
    if n_passes() > before or time.process_time() - start > LONG:
        return "late", message
    return "named", message


def arguments_of(function):
    """Names of a function's arguments."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


@contextlib.contextmanager
def counted_passes():
    """Gives a function that says how many modules have run."""
    passes = []

    def note(module, inputs):
        if not isinstance(module, EditedGenerator):  # which is not the network
            passes.append(type(module).__name__)

    with register_module_forward_pre_hook(note):
        yield lambda: len(passes)
