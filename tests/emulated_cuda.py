"""A pretended CUDA device, to find tensors left on the wrong device without a GPU.

Tensors of class ``Emulated`` hold ordinary values on the CPU and say that they are on
``cuda:0``. As on the real device, mixing them with CPU tensors in one operation or
turning them into numpy arrays is an error, and ``.cpu()``, ``.to(...)`` and
``device=...`` move between the two worlds. It cannot show what depends on kernels,
streams or random generators of the device.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
Tensor = torch.Tensor

# Operations that may see tensors of both worlds: they move or copy between them.
CROSSING = {
    Tensor.to,
    Tensor.cpu,
    Tensor.cuda,
    Tensor.copy_,
    Tensor.type,
    torch.as_tensor,
    torch.tensor,
    torch._has_compatible_shallow_copy_type,
}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
TO_HOST = {Tensor.numpy, Tensor.__array__}

# Sizes of the tensors that went from the device to the host since it was last cleared.
host_copies = []


class Emulated(Tensor):
    """A tensor that says it is on the device."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return emulate(function, args, kwargs or {})


def is_emulated(value):
    return isinstance(value, Emulated)


def onto_device(value):
    if isinstance(value, Tensor) and not is_emulated(value):
        return value.as_subclass(Emulated)
    return value


def onto_host(value):
    return value.as_subclass(Tensor) if is_emulated(value) else value


def names_device(value):
    """Whether an argument names a CUDA device."""
    if isinstance(value, str):
        return value.startswith("cuda")
    return isinstance(value, torch.device) and value.type == "cuda"


def destination(function, args, kwargs):
    """Whether the call names where its result goes: True, False, or None."""
    if function in (Tensor.cpu, Tensor.cuda):
        return function is Tensor.cuda
    if function is Tensor.copy_:
        return is_emulated(args[0])
    named = [kwargs.get("device"), kwargs.get("other")]
    if function is Tensor.to:
        named += args[1:]
    for value in named:
        if isinstance(value, Tensor):
            return is_emulated(value)
        if isinstance(value, str | torch.device):
            return names_device(value)
    return None


def emulate(function, args, kwargs):
    """Run one torch function by the rules of the module's docstring."""
    on_device = tree_any(is_emulated, (args, kwargs))
    with torch._C.DisableTorchFunction():
        if on_device and function == Tensor.device.__get__:
            return DEVICE
        if on_device and function == Tensor.is_cuda.__get__:
            return True
        if on_device and function in TO_HOST:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if on_device and function not in CROSSING:
            operands = (args[:1], args[2:]) if function in INDEXING else (args, kwargs)
            for value in tree_leaves(operands):
                alone = isinstance(value, Tensor) and not is_emulated(value)
                if alone and value.ndim:
                    raise RuntimeError(
                        "Expected all tensors to be on the same device: "
                        f"{getattr(function, '__name__', function)}"
                    )
        where = destination(function, args, kwargs)
        where = on_device if where is None else where
        kwargs = {
            k: torch.device("cpu") if names_device(v) else v for k, v in kwargs.items()
        }
        if function is Tensor.to:
            args = tuple(torch.device("cpu") if names_device(v) else v for v in args)
        if function is Tensor.cuda:
            result = args[0].clone()
        else:
            result = function(*args, **kwargs)
        if on_device and function is Tensor.tolist:
            host_copies.append(args[0].numel())
        elif on_device and not where and isinstance(result, Tensor):
            host_copies.append(result.numel())
        return tree_map(onto_device if where else onto_host, result)


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return emulate(function, args, kwargs or {})


@contextlib.contextmanager
def emulated_cuda():
    """Within the block ``device="cuda"`` works; yields the device."""
    # So that module.to("cuda") puts new, emulated tensors into the module.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
