"""Drawing some of the samples, the same ones wherever and in whatever batches they are.

Each sample has a random number, and those with the largest numbers are drawn.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Kept", "Picked", "drawn_places"]

# Numbers that are drawn at a time.
DRAWN_AT_ONCE = 2**20


class Kept:
    """Some of the samples that pass by: those with the largest of the numbers drawn.

    Each sample is as likely to be kept, however many there are, and it does not matter
    in which batches they come.
    """

    def __init__(
        self, n_some: Callable[[int], int], generator: torch.Generator
    ) -> None:
        self.n_some, self.generator = n_some, generator
        self.most = n_some(sys.maxsize)
        self.heap: list[tuple[float, int, Tensor]] = []  # the smallest number first
        self.n_seen = 0

    def see(self, batch: Tensor) -> None:
        """Look at the next samples."""
        numbers = _draw_numbers(len(batch), self.generator).tolist()
        for number, row in zip(numbers, batch, strict=True):
            if len(self.heap) < self.most:
                heapq.heappush(self.heap, (number, self.n_seen, row.clone()))
            elif number > self.heap[0][0]:
                heapq.heapreplace(self.heap, (number, self.n_seen, row.clone()))
            self.n_seen += 1

    def samples(self) -> Tensor:
        """Return those that are kept, in their order."""
        kept = heapq.nlargest(self.n_some(self.n_seen), self.heap)
        kept.sort(key=lambda item: item[1])
        return torch.stack([row for _, _, row in kept])


class Picked:
    """The samples at given places, of those that pass by.

    Parameters
    ----------
    places : Tensor of shape (n,)
        Rising.
    """

    def __init__(self, places: Tensor) -> None:
        self.places, self.rows = places, list[Tensor]()
        self.n_seen = 0

    def see(self, batch: Tensor) -> None:
        """Look at the next samples."""
        end = self.n_seen + len(batch)
        here = self.places[(self.places >= self.n_seen) & (self.places < end)]
        self.rows.append(batch[(here - self.n_seen).to(batch.device)].clone())
        self.n_seen = end


def drawn_places(n_samples: int, n: int, generator: torch.Generator) -> Tensor:
    """Return the places of those that :class:`Kept` would keep of N samples, rising."""
    numbers = torch.empty(0, dtype=torch.float64, device="cpu")
    places = torch.empty(0, dtype=torch.int64, device="cpu")
    for start in range(0, n_samples, DRAWN_AT_ONCE):
        more = _draw_numbers(min(DRAWN_AT_ONCE, n_samples - start), generator)
        numbers = torch.cat([numbers, more])
        places = torch.cat([places, start + torch.arange(len(more), device="cpu")])
        best = numbers.topk(min(n, len(numbers))).indices
        numbers, places = numbers[best], places[best]
    return places.sort().values


def _draw_numbers(n: int, generator: torch.Generator) -> Tensor:
    """Draw a number for each of n samples: the same, one by one or together."""
    return torch.rand(n, dtype=torch.float64, device="cpu", generator=generator)
