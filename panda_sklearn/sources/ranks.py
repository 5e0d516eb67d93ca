"""Samples that are spread over the processes of a ``torch.distributed`` group.

Each process, a rank, holds a shard of the samples. The first rank leads: it alone runs
the fit, and asks all ranks for sums over their samples, which are then added up. So
every decision is made once. The other ranks finish when the first sends them the
result. The amount of data sent depends on the shapes and on the numbers of parts and
appearances, and not on the number of samples, except for the samples that are kept.

Imports torch alone.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from panda_sklearn.core.drawing import Picked, drawn_places
from panda_sklearn.core.samples import Check, InMemory, Samples, Sums

__all__ = ["Later", "Ranks", "SpreadOverRanks", "lead", "serve"]


class Ranks:
    """The processes of a group, as seen by one of them.

    Parameters
    ----------
    group : ProcessGroup or None
        ``None`` means the default group.

    Attributes
    ----------
    rank, n_ranks : int
        The rank of this process and the number of ranks in the group.

    n_bytes : int
        Number of bytes that this process has sent to the group.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.n_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.n_bytes = 0
        self.checked = False
        self.together = True  # whether the others wait for the next request
        self.device = torch.device("cpu")  # that the backend sends from
        self.check: Check | None = None  # of this process's values, not finished yet
        backend = dist.get_backend(group)
        if "nccl" in backend and "gloo" not in backend:
            self.device = torch.device("cuda", torch.cuda.current_device())

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order."""
        sent = _dumped(value)
        found: list[Any] = [None] * self.n_ranks
        with self._answering(), self._here():
            dist.all_gather_object(found, sent, group=self.group)
        self.n_bytes += len(sent)
        return [_loaded(each, self.device) for each in found]

    def tell(self, value: Any, device: torch.device, source: int = 0) -> Any:
        """Return the value of one rank, with its tensors on a device, on all ranks."""
        own = self.rank == source
        sent = [_dumped(value) if own else None]
        with self._answering(), self._here():
            dist.broadcast_object_list(
                sent, src=self._global(source), group=self.group, device=self.device
            )
        if own:
            self.n_bytes += len(sent[0] or b"")
            return value
        return _loaded(sent[0], device)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks, in place."""
        for tensor in tensors:
            sent = tensor.to(self.device).contiguous()
            with self._answering():
                dist.all_reduce(sent, group=self.group)
                if sent is not tensor:
                    tensor.copy_(sent)
                if self.device.type == "cuda":  # which reports errors only then
                    torch.cuda.synchronize(self.device)
            self.n_bytes += sent.nbytes

    def agree(self, error: BaseException | None, *counts: int) -> list[int]:
        """Raise on all ranks if one has an error; otherwise return sums of counts.

        That rank raises its own error, the others an error that names the rank.
        """
        numbers = [int(error is not None), *counts]
        said = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        self.add([said])
        failed, *sums = said.tolist()
        if not failed:
            return sums
        texts = self.gather(error and (type(error).__name__, str(error)))
        self.together = False
        if error is not None:
            raise error
        rank, (kind, text) = next(
            (rank, text) for rank, text in enumerate(texts) if text is not None
        )
        raise _error_elsewhere(rank, kind, text)

    def finish_check(self) -> None:
        """Finish the checks of all ranks together, after the first pass."""
        if self.checked:
            return
        self.checked = True
        checks = [check for check in self.gather(self.check) if check is not None]
        for other in checks[1:]:
            checks[0].join(other)
        self.together = False  # if this raises, it does so everywhere
        if checks:
            checks[0].finish()

    def _global(self, rank: int) -> int:
        if self.group is None:
            return rank
        return dist.get_global_rank(self.group, rank)

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """Make the device current: torch sends objects as tensors on it."""
        with contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
            yield

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Explain the error if the group does not answer."""
        try:
            yield
        except BaseException as error:
            self.together = False
            if not isinstance(error, RuntimeError):
                raise
            raise RuntimeError(
                "Another process of the group has ended, or did not answer within the "
                "group's time-out (that of torch.distributed.init_process_group or "
                f"new_group): {error}"
            ) from error


# Requests of the first rank to all ranks, including itself.


@dataclass(frozen=True)
class _Add:
    """Sums over all samples; ``totals`` are shapes and types."""

    add: Callable[..., Any]
    totals: tuple[tuple[torch.Size, torch.dtype], ...]
    size: int


@dataclass(frozen=True)
class _Count:
    """The number of samples of each rank."""


@dataclass(frozen=True)
class _Begin:
    """Sums begun with the first samples of a rank."""

    sums: tuple[Sums, ...]
    rank: int


@dataclass(frozen=True)
class _Look:
    """Sums, and the samples at some places among all samples.

    ``counts`` are the numbers of samples of the ranks.
    """

    sums: _Add
    places: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class _End:
    """The result of the fit, or the ``failure`` that it ended with."""

    found: Any = None
    failure: tuple[str, str] | None = None


class Later:
    """A check of a shard's values that is finished later, together with the others."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def see(self, batch: Tensor, start: int) -> None:
        """Pass the batch to the check."""
        self.check.see(batch, start)

    def join(self, other: Any) -> None:
        """Do nothing: see ``Ranks.finish_check``."""

    def finish(self) -> None:
        """Do nothing: see ``Ranks.finish_check``."""


class SpreadOverRanks(Samples):
    """Samples of all ranks, as the first rank sees them.

    Parameters
    ----------
    ranks : Ranks

    shard : Samples or None
        The samples of this rank, if it has any.

    counts : sequence of int or None
        Number of samples of each rank, where it is known.

    n_channels, n_positions, dtype, device, batch_size
        As in the base class; the device is this rank's.
    """

    ordered = False
    spread = True

    def __init__(
        self,
        ranks: Ranks,
        shard: Samples | None,
        counts: Sequence[int | None],
        *,
        n_channels: int,
        n_positions: int,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int | None,
    ) -> None:
        super().__init__(
            n_channels,
            n_positions,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
        )
        self.ranks, self.shard = ranks, shard
        self.counts: list[int | None] = list(counts)

    def accumulate(
        self, add: Callable[..., Any], *totals: Tensor, size: int = 1
    ) -> tuple[Tensor, ...]:
        """As in the base class; ``add`` is sent to all ranks."""
        self.n_passes += 1
        found, self.n_samples = self._ask(_adding(add, totals, size))
        return found

    def begin(self, *sums: Sums) -> None:
        """Begin sums with the first rank that has samples."""
        counts = self._count()
        source = next(rank for rank, n in enumerate(counts) if n > 0)
        begun = self._ask(_Begin(sums, source))
        for own, its in zip(sums, begun, strict=True):
            vars(own).update(vars(its))

    def look(
        self,
        add: Callable[..., Any],
        *totals: Tensor,
        n_some: Callable[[int], int],
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, ...], InMemory]:
        """As in the base class; the samples that are kept are sent to all ranks."""
        counts = self._count()
        n = sum(counts)
        self.n_passes += 1
        places = drawn_places(n, n_some(n), generator)
        request = _Look(_adding(add, totals, 1), places, tuple(counts))
        found, rows = self._ask(request)
        self.n_samples = n
        return found, InMemory(rows)

    def map(
        self, function: Callable[[Tensor], Tensor], *, size: int | None = None
    ) -> Iterator[Tensor]:
        """Not implemented: each rank has its own samples."""
        raise NotImplementedError

    def _read(self) -> Generator[Tensor, None, None]:
        raise NotImplementedError

    def _count(self) -> list[int]:
        """The number of samples of each rank, by a pass if a rank does not know it."""
        if None in self.counts:
            self.n_passes += 1
            self.counts = self._ask(_Count())
        return [n for n in self.counts if n is not None]

    def _ask(self, request: Any) -> Any:
        """The answer of all ranks together."""
        # Interrupted in the middle, the others cannot be told: they wait for the rest.
        self.ranks.together = False
        self.ranks.tell(request, self.device)
        answer = _answer(request, self.ranks, self.shard, self)
        self.ranks.together = True
        return answer


def lead(ranks: Ranks, samples: SpreadOverRanks, run: Callable[[Samples], Any]) -> Any:
    """Run the fit on the first rank, and send the result, or the failure, to others."""
    try:
        found = run(samples)
        ranks.tell(_End(found), samples.device)
    except BaseException as error:
        if ranks.together:
            said = type(error).__name__, str(error)
            with contextlib.suppress(RuntimeError):
                ranks.tell(_End(failure=said), samples.device)
        raise
    return found


def serve(ranks: Ranks, shard: Samples | None, like: SpreadOverRanks) -> Any:
    """Answer the requests of the first rank, and return the result that it sends."""
    while True:
        request = ranks.tell(None, like.device)
        if isinstance(request, _End):
            if request.failure is not None:
                raise _error_elsewhere(0, *request.failure)
            return request.found
        _answer(request, ranks, shard, like)


def _answer(request: Any, ranks: Ranks, shard: Samples | None, like: Samples) -> Any:
    """Answer a request with this rank's samples; return the answer of all ranks."""
    if isinstance(request, _Count):
        error = _error_of(lambda: _counted(shard))
        ranks.agree(error)
        return ranks.gather(0 if shard is None else shard.n_samples)
    if isinstance(request, _Begin):
        return _begun(request, ranks, shard, like)
    if isinstance(request, _Look):
        return _looked(request, ranks, shard, like)
    totals: list[Tensor] = []

    def work() -> None:
        totals.extend(_zeros(request, like.device))
        if shard is not None:
            shard.accumulate(request.add, *totals, size=request.size)

    error = _error_of(work)
    n = (shard and shard.n_samples) or 0
    (n_samples,) = ranks.agree(error, n)
    ranks.finish_check()
    ranks.add(totals)
    return tuple(totals), n_samples


def _begun(
    request: _Begin, ranks: Ranks, shard: Samples | None, like: Samples
) -> tuple[Sums, ...]:
    """Begin sums with the first batch of one rank."""

    def work() -> None:
        if ranks.rank == request.rank:
            assert shard is not None
            batch = shard.first()
            for some in request.sums:
                some.begin(batch)

    ranks.agree(_error_of(work))
    return ranks.tell(request.sums, like.device, request.rank)


def _looked(
    request: _Look, ranks: Ranks, shard: Samples | None, like: Samples
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Totals, and the samples of all ranks that are kept, in order."""
    totals: list[Tensor] = []
    kept = torch.empty(0, device="cpu")
    start = sum(request.counts[: ranks.rank])
    first, last = (
        int((request.places < edge).sum())
        for edge in (start, start + request.counts[ranks.rank])
    )
    picked = Picked(request.places[first:last].cpu() - start)

    def see(batch: Tensor, *totals: Tensor) -> None:
        request.sums.add(batch, *totals)
        picked.see(batch)

    def work() -> None:
        nonlocal kept
        totals.extend(_zeros(request.sums, like.device))
        kept = torch.zeros(
            (len(request.places), like.n_channels, like.n_positions),
            dtype=like.dtype,
            device=like.device,
        )
        if shard is not None:
            shard.accumulate(see, *totals)
            kept[first:last] = torch.cat(picked.rows)

    ranks.agree(_error_of(work))
    ranks.finish_check()
    ranks.add(totals)
    ranks.add([kept])
    return tuple(totals), kept


def _error_elsewhere(rank: int, kind: str, text: str) -> Exception:
    """The error to raise here for an error of another rank."""
    if kind in ("ValueError", "TypeError"):
        raises = {"ValueError": ValueError, "TypeError": TypeError}[kind]
        return raises(f"Process {rank} of the group: {text}")
    return RuntimeError(f"Process {rank} of the group: {kind}: {text}")


def _counted(shard: Samples | None) -> None:
    """Count samples by a pass, unless their number is known."""
    if shard is not None and shard.n_samples is None:
        shard.accumulate(lambda batch: None)


def _adding(add: Callable[..., Any], totals: Sequence[Tensor], size: int) -> _Add:
    return _Add(add, tuple((T.shape, T.dtype) for T in totals), size)


def _zeros(request: _Add, device: torch.device) -> list[Tensor]:
    """Totals to add to."""
    return [
        torch.zeros(shape, dtype=dtype, device=device)
        for shape, dtype in request.totals
    ]


def _error_of(work: Callable[[], Any]) -> BaseException | None:
    """The error that some work raises, if any; interrupts too, for the other ranks."""
    try:
        work()
    except BaseException as error:
        return error
    return None


# Sending objects between processes, with tensors moved to the receiver's device.

_arriving = threading.local()


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, and devices as the receiver's device."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return _arrived, (obj.detach().cpu().numpy(),)
        if isinstance(obj, torch.device):
            return _destination, ()
        return NotImplemented


def _dumped(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _loaded(sent: bytes | None, device: torch.device) -> Any:
    assert sent is not None
    _arriving.device = device
    try:
        with torch.inference_mode(False):
            return pickle.loads(sent)
    finally:
        del _arriving.device


def _arrived(array: Any) -> Tensor:
    return torch.from_numpy(array).to(_arriving.device)


def _destination() -> torch.device:
    return _arriving.device
