"""Samples that are spread over the processes of a ``torch.distributed`` group.

Each process, a rank, holds a shard of them. The first leads: it alone runs the fit, and
asks the others for sums over their samples, which come back summed over all. So every
decision is made once, and the others leave when the first tells them what was found.
What is sent depends on shapes and ranks, never on the number of samples, but for those
that are kept.

Floor 2: torch alone.
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
    """The processes of a group, seen from one of them.

    Parameters
    ----------
    group : ProcessGroup or None
        ``None`` is the default group.

    Attributes
    ----------
    rank, n_ranks : int
        Within the group.

    n_bytes : int
        How many bytes this process has given to the group so far.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.n_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.n_bytes = 0
        self.checked = False
        self.together = True  # whether the others wait to be told what comes next
        # Where what is sent must be.
        self.device = torch.device("cpu")
        self.check: Check | None = None  # of this process's values, to be finished
        backend = dist.get_backend(group)
        if "nccl" in backend and "gloo" not in backend:
            self.device = torch.device("cuda", torch.cuda.current_device())

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        sent = _dumped(value)
        found: list[Any] = [None] * self.n_ranks
        with self._answering(), self._here():
            dist.all_gather_object(found, sent, group=self.group)
        self.n_bytes += len(sent)
        return [_loaded(each, self.device) for each in found]

    def tell(self, value: Any, device: torch.device, source: int = 0) -> Any:
        """The value of one rank, its tensors on a device; others' do not count."""
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
                if self.device.type == "cuda":  # which says only then what failed
                    torch.cuda.synchronize(self.device)
            self.n_bytes += sent.nbytes

    def agree(self, error: BaseException | None, *counts: int) -> list[int]:
        """Raise everywhere if a rank has an error; else sums of counts.

        The rank raises its own, the others one that says whose it is.
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
        """Finish the checks of all ranks' values together, once all were looked at."""
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
        """Objects go by way of tensors on the current device."""
        with contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
            yield

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Say what it means if the group does not answer."""
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


# What the first rank asks of all, itself included.


@dataclass(frozen=True)
class _Add:
    """Sums over all samples; ``totals`` are their shapes and types."""

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
    """Sums, and the samples at some places among all.

    ``counts`` are how many samples each rank has.
    """

    sums: _Add
    places: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class _End:
    """What was found; or, with ``failure``, why nothing was."""

    found: Any = None
    failure: tuple[str, str] | None = None


class Later:
    """A check of a shard's values, to be finished with those of the others."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def see(self, batch: Tensor, start: int) -> None:
        """As of the check itself."""
        self.check.see(batch, start)

    def join(self, other: Any) -> None:
        """Nothing is joined here."""

    def finish(self) -> None:
        """Nothing yet: see ``Ranks.finish_check``."""


class SpreadOverRanks(Samples):
    """Samples of all ranks, as the first one sees them.

    Parameters
    ----------
    ranks : Ranks

    shard : Samples or None
        Those of this rank, if it has any.

    counts : sequence of int or None
        How many each rank has, as far as is known.

    n_channels, n_positions, dtype, device, batch_size
        As of all samples; the device is this rank's.
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
        """As of all samples; ``add`` is sent to where they are."""
        self.n_passes += 1
        found, self.n_samples = self._ask(_adding(add, totals, size))
        return found

    def begin(self, *sums: Sums) -> None:
        """Have sums begun by the first rank that has samples."""
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
        """As of all samples; those kept come to all ranks, of which one uses them."""
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
        """Not of samples that are spread: each rank has its own."""
        raise NotImplementedError

    def _read(self) -> Generator[Tensor, None, None]:
        raise NotImplementedError

    def _count(self) -> list[int]:
        """The number of samples of each rank; by a pass, where one does not know."""
        if None in self.counts:
            self.n_passes += 1
            self.counts = self._ask(_Count())
        return [n for n in self.counts if n is not None]

    def _ask(self, request: Any) -> Any:
        """What all ranks together answer."""
        # Interrupted in the middle, it would be told nothing but what it waits for.
        self.ranks.together = False
        self.ranks.tell(request, self.device)
        answer = _answer(request, self.ranks, self.shard, self)
        self.ranks.together = True
        return answer


def lead(ranks: Ranks, samples: SpreadOverRanks, run: Callable[[Samples], Any]) -> Any:
    """What ``run`` finds, which the other ranks are told: of the first rank.

    They are told, too, if it fails.
    """
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
    """Answer what the first rank asks until it tells what was found: of the others."""
    while True:
        request = ranks.tell(None, like.device)
        if isinstance(request, _End):
            if request.failure is not None:
                raise _error_elsewhere(0, *request.failure)
            return request.found
        _answer(request, ranks, shard, like)


def _answer(request: Any, ranks: Ranks, shard: Samples | None, like: Samples) -> Any:
    """Do what was asked with this rank's samples; what comes of all ranks' answers."""
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
    """Sums begun with the first batch of one rank."""

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
    """Totals, and the samples to be kept of all ranks, in their order."""
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
    """What another rank's error is here."""
    if kind in ("ValueError", "TypeError"):
        raises = {"ValueError": ValueError, "TypeError": TypeError}[kind]
        return raises(f"Process {rank} of the group: {text}")
    return RuntimeError(f"Process {rank} of the group: {kind}: {text}")


def _counted(shard: Samples | None) -> None:
    """Count samples, by a pass, if they are not counted yet."""
    if shard is not None and shard.n_samples is None:
        shard.accumulate(_nothing)


def _nothing(batch: Tensor) -> None:
    """Add nothing."""


def _adding(add: Callable[..., Any], totals: Sequence[Tensor], size: int) -> _Add:
    return _Add(add, tuple((T.shape, T.dtype) for T in totals), size)


def _zeros(request: _Add, device: torch.device) -> list[Tensor]:
    """Totals to be added to."""
    return [
        torch.zeros(shape, dtype=dtype, device=device)
        for shape, dtype in request.totals
    ]


def _error_of(work: Callable[[], Any]) -> BaseException | None:
    """What some work raises, if it does; interrupts too, of which others must know."""
    try:
        work()
    except BaseException as error:
        return error
    return None


# Objects between processes: with tensors that come to the receiver's device.

_arriving = threading.local()


class _Pickler(pickle.Pickler):
    """Sends tensors as arrays, and devices as the receiver's."""

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
