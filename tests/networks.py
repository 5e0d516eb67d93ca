"""Small networks, each with a trait that trips up hooks."""

import contextlib
import threading

import torch
from torch import nn
from torch.nn import functional as F

from panda_sklearn.utils.borrowing import borrow
from panda_sklearn.utils.undo import Undo


@contextlib.contextmanager
def borrowed(network, device=None):
    """A block in which a network is borrowed."""
    with Undo() as undo, undo:
        borrow(undo, network, device)
        yield


def run_threads(work, n):
    """Call ``work(i)`` in each of n threads; an error if they do not come to an end."""
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


class TinyGenerator(nn.Module):
    """Latents (N, 6) -> images (N, 3, 8, 8), with traits of real generators.

    ``block1`` feeds both ``block2`` and ``to_rgb1`` (as in StyleGAN2); ``block2`` is
    followed by an operation in place; ``norm`` runs twice; ``unused`` never does.
    """

    latent_size = 6

    def __init__(self, noise=0.0, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.dense = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5 * 4))
            self.norm = nn.BatchNorm2d(5)
            self.block1 = nn.Conv2d(5, 5, 3, padding=1)
            self.to_rgb1 = nn.Conv2d(5, 3, 1)
            self.block2 = nn.Conv2d(5, 4, 3, padding=1)
            self.to_rgb2 = nn.Conv2d(4, 3, 1)
            self.unused = nn.Conv2d(4, 4, 1)
            self.norm.running_mean.normal_()
        self.noise = noise
        self.eval()

    def forward(self, z):
        x = self.norm(self.dense(z).reshape(-1, 5, 2, 2))
        x = F.interpolate(x, scale_factor=2)
        x = self.block1(self.norm(x))
        x = x + self.noise * torch.randn_like(x)
        image = self.to_rgb1(x)
        x = self.block2(F.interpolate(x, scale_factor=2))
        x.relu_()
        return F.interpolate(image, scale_factor=2) + self.to_rgb2(x)

    def by_hand(self, z, change_block1=None):
        """The forward pass in two pieces: block1's output, and the image from it."""
        x = self.norm(self.dense(z).reshape(-1, 5, 2, 2))
        features = self.block1(self.norm(F.interpolate(x, scale_factor=2)))
        x = features if change_block1 is None else change_block1(features)
        image = self.to_rgb1(x)
        x = self.block2(F.interpolate(x, scale_factor=2)).relu()
        return features, F.interpolate(image, scale_factor=2) + self.to_rgb2(x)


class Containers(nn.Module):
    """Layers that return a tuple, a dict, a list, and something else."""

    class Pair(nn.Module):
        def forward(self, x):
            return 2 * x, 3 * x

    class Named(nn.Module):
        def forward(self, x):
            return {"maps": 2 * x, "name": "x"}

    class Pieces(nn.Module):
        def forward(self, x):
            return [x, x + 1]

    class Number(nn.Module):
        def forward(self, x):
            return 3

    def __init__(self):
        super().__init__()
        self.pair, self.named = self.Pair(), self.Named()
        self.pieces, self.number = self.Pieces(), self.Number()
        self.loner = nn.Identity()

    def forward(self, z):
        a, b = self.pair(z[:, :, None])
        named = self.named(a)
        pieces = self.pieces(b)
        if self.number(z) != 3:
            raise AssertionError
        return self.loner(input=named["maps"] + pieces[0] + pieces[1])


class TinyTransformer(nn.Module):
    """Pictures (N, 3, 4, 6) -> scores (N, 4), by tokens (N, 8, 8).

    A class token and a register stand before those of 2 x 3 patches. Attention gives
    (tokens, None).
    """

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(3, 8, 2, stride=2)
            self.prefix = nn.Parameter(torch.randn(1, 2, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 4)
        self.eval()

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.block(x)
        x = x + self.mix(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])

    def by_hand(self, x, change=lambda tokens: tokens):
        """Tokens after ``block``, and the scores from what they are changed to."""
        with torch.no_grad():
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
            tokens = self.block(x + self.attention(x, x, x, need_weights=False)[0])
            x = change(tokens)
            x = x + self.mix(x, x, x, need_weights=False)[0]
            return tokens, self.head(x[:, 0])


class TinySteps(nn.Module):
    """Latents (N, 3, 4, 4) -> images of that shape, in steps; guided if k is 2.

    ``block`` is called once a step, with keywords, on k copies of the samples.
    """

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, hidden_states, shift):
            return (torch.tanh(self.conv(hidden_states) + shift),)

    def __init__(self, n_steps=4, k=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.block, self.out = self.Block(), nn.Conv2d(5, 3, 1)
        self.n_steps, self.k = n_steps, k
        self.n_runs = 0
        self.eval()

    def forward(self, x):
        self.n_runs += 1
        for step in range(self.n_steps):
            rows = x.repeat(self.k, 1, 1, 1)
            shift = torch.arange(float(self.k)).repeat_interleave(len(x))
            shift = 0.3 * step + shift.reshape(-1, 1, 1, 1).to(x)
            (hidden,) = self.block(hidden_states=rows, shift=shift)
            update = self.out(hidden).unflatten(0, (self.k, -1))
            x = x + 0.5 * (2 * update[-1] - update[0])
        return x
