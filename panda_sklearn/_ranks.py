"""A fit by all processes of a ``torch.distributed`` group together.

Part of the estimator in :mod:`panda_sklearn.decomposition`: what the processes agree on
before the first sum.

Imports torch, and :mod:`panda_sklearn.sources.ranks`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from panda_sklearn.core.samples import Samples
from panda_sklearn.sources.ranks import Later, Ranks, SpreadOverRanks, lead, serve
from panda_sklearn.utils.arrays import MapLayout, Origin
from panda_sklearn.utils.validation import check_device, shown

__all__ = ["ProcessGroup", "fit_together", "ranks_of", "without_group"]

# Where torch was built without torch.distributed, no object is a group.
ProcessGroup: type = getattr(dist, "ProcessGroup", type(None))

# Parameters that may differ between processes: they say where and how fast, not what.
# The random numbers are those of the first process.
OWN = ("batch_size", "device", "distributed", "random_state", "verbose")


@dataclass(frozen=True)
class _Facts:
    """What one process tells about its samples and its estimator."""

    params: dict[str, tuple[str, str]]
    n_samples: int | None = 0
    layout: MapLayout | None = None
    dtype: torch.dtype | None = None


def without_group(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters to keep: a process group lives no longer than its processes."""
    if isinstance(params.get("distributed"), ProcessGroup):
        return {**params, "distributed": "auto"}
    return params


def ranks_of(distributed: Any) -> Ranks | None:
    """The processes that fit together; ``None`` if this one fits alone.

    Raises
    ------
    ValueError
        If a group is required and there is none, or this process is not in it.
    """
    if isinstance(distributed, bool | np.bool_) and not distributed:
        return None
    started = dist.is_available() and dist.is_initialized()
    if not started:
        if distributed == "auto":
            return None
        raise ValueError(
            f"distributed={distributed!r}, but this process is in no group: call "
            "torch.distributed.init_process_group first, or start it with torchrun."
        )
    group: Any = distributed if isinstance(distributed, ProcessGroup) else None
    if dist.get_rank(group) < 0:
        raise ValueError("distributed is a process group that this process is not in.")
    if distributed == "auto" and dist.get_world_size() == 1:
        return None
    return Ranks(group)


def fit_together(
    estimator: Any,
    ranks: Ranks,
    X: Any,
    check: Callable[[], tuple[Samples, MapLayout, Origin]],
    fit: Callable[[Samples, MapLayout, Origin], Any],
    *,
    state: tuple | None = None,
) -> tuple[Any, MapLayout, Origin]:
    """Fit to the samples of all processes.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition

    ranks : Ranks

    X : object
        The shard of this process; ``None`` or an array without samples if it has none.

    check : callable
        Returns the shard as samples, with their layout and origin.

    fit : callable
        Fits to all samples, given these, their layout and the origin of the shard. Only
        the first process calls it.

    state : tuple, default=None
        The state from which the fit continues, which all processes must share.

    Returns
    -------
    found : object
        What ``fit`` returned, on all processes.

    layout : MapLayout

    origin : Origin
        Kind and device of the results in this process.

    Raises
    ------
    TypeError, ValueError
        What ``check`` raises in any process. Also if the layouts of the samples or the
        parameters differ between processes, or no process has samples.
    RuntimeError
        If another process fails, ends or does not answer.
    """
    shard: Samples | None = None
    origin = Origin(False, torch.device("cpu"))
    facts = _Facts({})
    error: BaseException | None = None
    try:
        facts = _Facts(_digests(estimator) | _digest_of_state(state))
        if estimator.device is not None:
            check_device(estimator.device)
        if not _is_empty(X):
            shard, layout, origin = check()
            if shard.spread:
                raise ValueError(
                    "X is a dask array, which is spread over workers already. Fit it "
                    "in one process, with distributed=False, or give each process its "
                    "own array."
                )
            facts = _Facts(facts.params, shard.n_samples, layout, shard.dtype)
        elif isinstance(X, np.ndarray | Tensor):
            origin = Origin.of(X)
    except Exception as raised:
        error = raised
    if shard is not None and shard.check is not None:
        ranks.check, shard.check = shard.check, Later(shard.check)
    ranks.agree(error)
    every = ranks.gather(facts)
    layout, dtype = _agreed(every)
    device = ranks.device if shard is None else shard.device
    if shard is None and estimator.device is not None:
        device = torch.device(estimator.device)
    spread = SpreadOverRanks(
        ranks,
        shard,
        [its.n_samples for its in every],
        n_channels=layout.n_channels,
        n_positions=layout.n_positions,
        dtype=dtype,
        device=device,
        batch_size=estimator.batch_size,
    )
    if ranks.rank == 0:
        found = lead(ranks, spread, lambda samples: fit(samples, layout, origin))
    else:
        found = serve(ranks, shard, spread)
    return found, layout, origin


def _is_empty(X: Any) -> bool:
    """Whether a shard has no samples, as far as is known without reading it."""
    if X is None:
        return True
    shape = getattr(X, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 1 and shape[0] == 0


def _agreed(every: list[_Facts]) -> tuple[MapLayout, torch.dtype]:
    """The common layout and type of all samples.

    Raises
    ------
    ValueError
        If there are no samples, or these or the parameters differ between processes.
    """
    first = every[0]
    for rank, facts in enumerate(every):
        for name, (digest, text) in facts.params.items():
            if digest != first.params[name][0]:
                raise ValueError(
                    f"All processes must start from the same values, but {name} is "
                    f"{first.params[name][1]} in process 0 and {text} in process "
                    f"{rank}."
                )
    known = [(rank, facts) for rank, facts in enumerate(every) if facts.layout]
    if not known:
        raise ValueError("No process has samples: X is empty in all of them.")
    start, reference = known[0]
    assert reference.layout is not None and reference.dtype is not None
    for rank, facts in known[1:]:
        for what, own, its in (
            ("samples of the same layout", reference.layout, facts.layout),
            ("samples of the same type", reference.dtype, facts.dtype),
        ):
            if own != its:
                raise ValueError(
                    f"All processes must have {what}, but those of process {start} are "
                    f"{_said(own)} and those of process {rank} {_said(its)}."
                )
    return reference.layout, reference.dtype


def _said(value: Any) -> str:
    """A layout or a type in words."""
    if not isinstance(value, MapLayout):
        return str(value).removeprefix("torch.")
    kind = "flattened " if value.flattened else ""
    return f"{kind}of shape {value.sample_shape}"


def _digests(estimator: Any) -> dict[str, tuple[str, str]]:
    """A digest and a description of each parameter that must be the same."""
    return {
        name: (hashlib.sha256(_plain(value)).hexdigest(), shown(value))
        for name, value in sorted(estimator.get_params(deep=False).items())
        if name not in OWN
    }


def _digest_of_state(state: tuple | None) -> dict[str, tuple[str, str]]:
    """The same of the state from which a stream continues."""
    if state is None:
        return {}
    n_samples = state[0]
    text = f"of {n_samples} samples" if n_samples else "none"
    return {"what was learnt so far": (hashlib.sha256(_plain(state)).hexdigest(), text)}


def _plain(value: Any) -> bytes:
    """The value of a parameter as bytes, the same for arrays and tensors."""
    if isinstance(value, list | tuple):
        return b"(" + b",".join(map(_plain, value)) + b")"
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    if isinstance(value, np.ndarray):
        return pickle.dumps((value.shape, np.asarray(value, dtype=float).tobytes()))
    return repr(value).encode()
