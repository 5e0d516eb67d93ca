"""Forward passes of a network over latents, batch by batch.

Joins :mod:`panda_sklearn.utils.hooks` and :mod:`panda_sklearn.utils.batches`. Trusts
its inputs, and knows nothing of scikit-learn: :mod:`panda_sklearn.feature_extractor`
checks and converts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from panda_sklearn.generators._calls import Run, running
from panda_sklearn.utils.arrays import ArrayLike, Origin, is_floating
from panda_sklearn.utils.batches import Batches
from panda_sklearn.utils.borrowing import move
from panda_sklearn.utils.hooks import Moment, can_be_stopped, capture, replace
from panda_sklearn.utils.replay import Replay
from panda_sklearn.utils.taps import Tap
from panda_sklearn.utils.undo import Undo

__all__ = ["Change", "Make", "Passes", "Replays", "Take"]

# What a pass of the network over a slice of the latents gives.
Make = Callable[[Run, slice], Tensor]
# Latents of a batch of samples -> the activations that the network has there.
Take = Callable[[ArrayLike], Tensor]
# What is known of the passes of batches, by where these begin and end.
Replays = dict[tuple[int, int], Replay]
# Which samples a batch has -> a function of its activations and of when they are
# computed, which returns their replacement. The first is called before the network
# runs, and may run it on other latents.
Change = Callable[[slice, Take], Callable[[Tensor, Moment], Tensor]]


@dataclasses.dataclass(frozen=True)
class Passes:
    """Forward passes of a network over latents, batch by batch.

    Attributes
    ----------
    generator : Module
    forward : callable or None
        How to call it.
    tap : Tap
        The tensor to capture or replace.
    device : torch.device or None
        Where to run it; ``None`` is where it is.
    batch_size : int
    remember : callable
        Is given the batch size that fits, where memory ran out.
    title : str
        What the progress bar calls it.
    verbose : int
    """

    generator: nn.Module
    forward: Any
    tap: Tap
    device: torch.device | None
    batch_size: int
    remember: Callable[[int], None]
    title: str
    verbose: int

    def running(self, undo: Undo) -> Run:
        """Borrow the network; it is moved only if ``device`` says so."""
        return running(undo, self.generator, self.forward, self.device)

    def activations(
        self, latents: ArrayLike, check: Callable[[Tensor], None], first: int = 0
    ) -> Make:
        """What captures the activations of slices of the latents.

        ``first`` is the number of the first of these latents among all, and ``check``
        is called with each batch of activations.
        """
        stop = can_be_stopped(self.generator)

        def make(run: Run, where: slice) -> Tensor:
            batch = latents[where]
            rows = slice(first + where.start, first + where.stop)
            n = len(batch)
            seen = capture(self.tap, lambda: run(batch, rows), n_samples=n, stop=stop)
            found = seen.found()
            check(found)
            return found

        return make

    def each(
        self, make: Callable[[slice], Tensor], n_samples: int, what: str, rows: int = 1
    ) -> Generator[tuple[slice, Tensor], None, None]:
        """Yield slices of samples and what ``make`` gives for each, which is not kept.

        That must have ``rows`` rows for each sample; messages call it ``what``.
        """
        batches = Batches(n_samples, self.batch_size)
        with tqdm(
            total=n_samples,
            desc=f"{self.title}, {what}",
            disable=not self.verbose,
            mininterval=1,
        ) as bar:

            def make_and_check(where: slice) -> Tensor:
                part = make(where)
                n = where.stop - where.start
                if part.ndim == 0 or len(part) != rows * n:
                    raise ValueError(
                        f"The network gave {what} of shape {tuple(part.shape)} for {n} "
                        "samples: their first axis must be the samples."
                    )
                bar.update(n)
                return part.detach()

            yield from batches.map(make_and_check)
        if batches.shrank:
            self.remember(batches.size)
            batches.warn()

    def collect(
        self, make: Make, latents: ArrayLike, what: str, rows: int = 1
    ) -> Tensor:
        """What ``make`` gives for slices of the latents, as one tensor where they are.

        Holds the result and one batch.
        """
        device = Origin.of(latents).device
        whole: Tensor | None = None
        with Undo() as undo, undo:
            make_one = functools.partial(make, self.running(undo))
            for where, part in self.each(make_one, len(latents), what, rows):
                if whole is None:
                    shape = (rows * len(latents), *part.shape[1:])
                    whole = torch.empty(shape, dtype=part.dtype, device=device)
                whole[rows * where.start : rows * where.stop].copy_(part)
                del part
        assert whole is not None  # there is at least one sample
        return whole

    def stream(
        self, make: Make, latents: ArrayLike, what: str, rows: int = 1
    ) -> Generator[Tensor, None, None]:
        """Yield what ``make`` gives for slices of the latents.

        Between batches network and process are as they were, but for the network's
        device, and other threads have their turns.
        """

        def make_one(where: slice) -> Tensor:
            with Undo() as undo, undo:
                return make(self.running(undo), where)

        with Undo() as undo, undo:
            move(undo, self.generator, self.device)
            for _, part in self.each(make_one, len(latents), what, rows):
                yield part

    def images(
        self,
        latents: ArrayLike,
        change: Change | None,
        *,
        calls: tuple[int, ...] | None = None,
        others: bool = False,
        rows: Tensor | None = None,
        replays: Replays | None = None,
    ) -> Tensor:
        """Images of latents, on their device, with activations changed.

        Parameters
        ----------
        latents : array

        change : callable or None

        calls : tuple of int, default=None
            At which calls of the layer; ``None`` is those that are tapped.

        others : bool, default=False
            Whether to change also the other parts of batches that guidance multiplies.

        rows : Tensor, default=None
            Numbers of the latents among all; ``None`` is from 0.

        replays : dict, default=None
            Of the same latents, from :meth:`recorded`.
        """
        tap = self.tap
        changed = tap if calls is None else dataclasses.replace(tap, calls=calls)
        stop = can_be_stopped(self.generator)
        if replays and (changed.calls or (0,))[0] < (tap.calls or (0,))[0]:
            replays = None  # what they know ends later

        def make(run: Run, where: slice) -> Tensor:
            of = where if rows is None else rows[where]
            n = where.stop - where.start

            def take(given: ArrayLike) -> Tensor:
                run_given = functools.partial(run, given, of)
                return capture(tap, run_given, n_samples=n, stop=stop).found()

            def whole() -> Any:
                return run(latents[where], of)

            if change is None:
                return _as_images(whole())
            replay = (replays or {}).get((where.start, where.stop))
            apply = change(where, take)

            def edited() -> Any:
                return replace(
                    changed,
                    apply,
                    whole,
                    n_samples=n,
                    others=others,
                    n_skipped=0 if replay is None else replay.n_skipped,
                )

            return _as_images(edited() if replay is None else replay.again(edited))

        return self.collect(make, latents, "images")

    def recorded(self, latents: Tensor) -> tuple[Tensor, Replays]:
        """Images of latents, and what later passes of them need not compute again.

        That is nothing where a pass with what is known makes other images: some layers
        leave something for others besides what they return. So each batch is tried
        after a pass of other latents.
        """
        replays = Replays()

        def make(run: Run, where: slice) -> Tensor:
            replay = Replay(self.generator, self.tap)
            made = replay.record(lambda: run(latents[where], where))
            batch = latents[where]
            others = -batch if is_floating(batch) else batch.flip(0)
            try:
                run(others, where)
                again = replay.again(lambda: run(batch, where))
                same = isinstance(made, Tensor) and torch.equal(made, again)
            except Exception:  # of layers that miss what others left them
                same = False
            if same:
                replays[where.start, where.stop] = replay
            return made

        return self.collect(make, latents, "images"), replays


def _as_images(made: Any) -> Tensor:
    """Raise TypeError unless a network returned a tensor."""
    if not isinstance(made, Tensor):
        raise TypeError(
            f"The network returned a {type(made).__name__}, expected a tensor "
            "of images. Pass a forward that returns that."
        )
    return made
