"""A fit by all processes of a ``torch.distributed`` group together.

Beside the estimator, :mod:`panda_sklearn.decomposition`: what has to be agreed on
before the first sum is asked for.

Floor 3: torch, and :mod:`panda_sklearn.sources.ranks`.
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

# Where torch was built without torch.distributed nothing is one.
ProcessGroup: type = getattr(dist, "ProcessGroup", type(None))

# Parameters that may differ between processes: where and how fast, not what; and the
# random numbers are those of the first.
OWN = ("batch_size", "device", "distributed", "random_state", "verbose")


@dataclass(frozen=True)
class _Facts:
    """What one process says of its samples and its estimator."""

    params: dict[str, tuple[str, str]]
    n_samples: int | None = 0
    layout: MapLayout | None = None
    dtype: torch.dtype | None = None


def without_group(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters to be kept: a process group lives no longer than its processes."""
    if isinstance(params.get("distributed"), ProcessGroup):
        return {**params, "distributed": "auto"}
    return params


def ranks_of(distributed: Any) -> Ranks | None:
    """The processes that a fit is made by; ``None`` if by this one alone.

    Raises
    ------
    ValueError
        If a group is asked for and there is none, or this process is not in it.
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
        This process's shard; ``None``, or an array of no samples, is none.

    check : callable
        Gives the shard as samples, their layout and where they came from.

    state : tuple, default=None
        What the fit goes on from, which must be the same.

    fit : callable
        Given all samples, their layout and where results are to be, of the first
        process, what is found.

    Returns
    -------
    found : object
        The same on all processes.

    layout : MapLayout

    origin : Origin
        Where results of this process are to be.

    Raises
    ------
    TypeError, ValueError
        What ``check`` raises, here or elsewhere; or if the processes' samples or
        parameters differ, or none has samples.
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
                    "X is a dask array, whose blocks are on workers already. Fit it in "
                    "one process, with distributed=False, or give each its own array."
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
    """Whether a shard has no samples, as far as can be seen without reading it."""
    if X is None:
        return True
    shape = getattr(X, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 1 and shape[0] == 0


def _agreed(every: list[_Facts]) -> tuple[MapLayout, torch.dtype]:
    """Layout and type of the samples of all.

    Raises
    ------
    ValueError
        If there are none, or they or the parameters differ.
    """
    first = every[0]
    for rank, facts in enumerate(every):
        for name, (digest, text) in facts.params.items():
            if digest != first.params[name][0]:
                raise ValueError(
                    f"All processes must begin alike, but {name} is "
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
    """A layout or a type in a few words."""
    if not isinstance(value, MapLayout):
        return str(value).removeprefix("torch.")
    kind = "flattened " if value.flattened else ""
    return f"{kind}of shape {value.sample_shape}"


def _digests(estimator: Any) -> dict[str, tuple[str, str]]:
    """Parameters that must be the same, each as a digest of its value and in words."""
    return {
        name: (hashlib.sha256(_plain(value)).hexdigest(), shown(value))
        for name, value in sorted(estimator.get_params(deep=False).items())
        if name not in OWN
    }


def _digest_of_state(state: tuple | None) -> dict[str, tuple[str, str]]:
    """What a stream goes on from, in the manner of a parameter."""
    if state is None:
        return {}
    n_samples = state[0]
    text = f"of {n_samples} samples" if n_samples else "none"
    return {"what was learnt so far": (hashlib.sha256(_plain(state)).hexdigest(), text)}


def _plain(value: Any) -> bytes:
    """The value of a parameter, the same whether it holds arrays or tensors."""
    if isinstance(value, list | tuple):
        return b"(" + b",".join(map(_plain, value)) + b")"
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    if isinstance(value, np.ndarray):
        return pickle.dumps((value.shape, np.asarray(value, dtype=float).tobytes()))
    return repr(value).encode()
