"""Watching what torch allocates."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def is_tensor(value):
    return isinstance(value, torch.Tensor)


class LargestResult(TorchDispatchMode):
    """Notes the largest tensor that an operation makes anew."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs = {
            t.untyped_storage().data_ptr() for t in tree_leaves(args) if is_tensor(t)
        }
        for made in tree_leaves(result):
            if is_tensor(made) and made.untyped_storage().data_ptr() not in inputs:
                self.numel = max(self.numel, made.numel())
        return result


class MostAlive(TorchDispatchMode):
    """Counts the bytes of tensors made anew, and the most alive at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if is_tensor(t)
        }
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if is_tensor(made) and made.untyped_storage().data_ptr() not in known:
                storage = made.untyped_storage()
                known.add(storage.data_ptr())
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def gone(self, n_bytes):
        self.now -= n_bytes
