"""Inputs and outputs of today's networks: keywords, steps, guided batches, updates."""

import pytest
import torch
from torch import nn

from panda_sklearn.utils.hooks import capture, replace
from panda_sklearn.utils.taps import Tap
from tests.allocations import MostAlive


class Block(nn.Module):
    """Called with keywords only; returns its output twice, as down blocks do."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, hidden_states, temb, other=None):
        self.seen.append(hidden_states)
        hidden = hidden_states + temb
        return hidden, (2 * hidden, hidden)


class Single(nn.Module):
    """Returns a tuple of one tensor, and writes into its input."""

    def forward(self, x):
        return (x.mul_(3),)


class Steps(nn.Module):
    """Runs its block in each of some steps, on k copies of the samples."""

    def __init__(self, n_steps=5, k=1):
        super().__init__()
        self.block, self.single = Block(), Single()
        self.n_steps, self.k = n_steps, k

    def forward(self, z):
        x = z.repeat(self.k, *[1] * (z.ndim - 1))
        for step in range(self.n_steps):
            temb = torch.full_like(x, step) + torch.arange(len(x))[:, None]
            hidden, (_, skip) = self.block(hidden_states=x, temb=temb)
            (x,) = self.single(hidden + 0)
            x = x + skip
        return x


@pytest.fixture
def z():
    return torch.arange(8.0).reshape(4, 2)


def at(network, name="block", **options):
    return Tap(name, network.get_submodule(name), **options)


def no_hooks(network):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class TestCalls:
    def test_rows_channels_and_means_are_of_the_same_maps(self, z):
        network = Steps()
        options = {"select": 0, "calls": (0, 2, 3)}
        each = [
            capture(at(network, select=0, calls=(c,)), lambda: network(z)).found()
            for c in options["calls"]
        ]
        found = {
            how: capture(
                at(network, calls_as=how, **options), lambda: network(z)
            ).found()
            for how in ("samples", "channels", "mean")
        }
        split = found["samples"].unflatten(0, (4, 3))
        for k, maps in enumerate(each):
            assert torch.equal(split[:, k], maps)
            assert torch.equal(found["channels"][:, 2 * k : 2 * k + 2], maps)
        torch.testing.assert_close(found["mean"], torch.stack(each).mean(dim=0))

    @pytest.mark.parametrize("how", ["samples", "channels", "mean"])
    def test_calls_are_stored_as_they_come(self, how):
        """Held are the result and a few steps' worth, never all calls twice."""
        n_calls, size = 20, 4 * 1000
        network, z = nn.Sequential(nn.ReLU()), torch.ones(4, 1000)

        def run():
            x = z
            for _ in range(n_calls):
                x = network(x)

        tap = at(network, "0", calls=tuple(range(n_calls)), calls_as=how)
        with MostAlive() as alive:
            seen = capture(tap, run)
        result = size if how == "mean" else n_calls * size
        assert seen.found().numel() == result
        assert result <= alive.most / z.element_size() <= result + 5 * size

    @pytest.mark.parametrize("how", ["samples", "channels", "mean"])
    def test_what_is_kept_is_not_written_into(self, z, how):
        network = nn.Sequential(nn.ReLU())

        def run():
            for k in range(3):
                network(z + k).fill_(torch.nan)

        tap = at(network, "0", calls=(0, 1, 2), calls_as=how)
        assert capture(tap, run).found().isfinite().all()

    def test_gradients_of_several_calls(self, z):
        network, z = Steps(), z.requires_grad_()
        tap = at(network, select=0, calls=(0, 2))
        kept = capture(tap, lambda: network(z), detach=False).found()
        whole = capture(tap, lambda: network(z)).found()
        assert torch.equal(kept, whole)
        assert torch.autograd.grad(kept.sum(), z)[0].abs().sum() > 0

    def test_a_pass_ends_at_the_last_call(self, z):
        network = Steps()
        tap = at(network, select=0, calls=(1, 2))
        seen = capture(tap, lambda: network(z), stop=True)
        assert len(network.block.seen) == 3 and len(seen.found()) == 8
        assert no_hooks(network)

    def test_changes_know_their_call(self, z):
        network = Steps()
        calls = []

        def change(maps, moment):
            calls.append(moment.call)
            return maps + 10 * moment.call

        tap = at(network, select=0, calls=(1, 3, 4))
        edited = replace(tap, change, lambda: network(z))
        assert calls == [1, 3, 4] and not torch.equal(edited, network(z))
        same = replace(tap, lambda maps, moment: maps, lambda: network(z))
        assert torch.equal(same, network(z))

    def test_calls_that_there_are_not(self, z):
        network = Steps()
        with pytest.raises(ValueError, match=r"call=5.* ran 5 times"):
            capture(at(network, select=0, calls=(1, 5)), lambda: network(z)).found()

    def test_means_of_half_precision_are_taken_in_single(self, z):
        network = Steps()
        tap = at(network, select=0, calls=(0, 1), calls_as="mean")
        found = capture(tap, lambda: network(z.half())).found()
        assert found.dtype == torch.float32


class TestGuidance:
    @pytest.mark.parametrize(("guidance", "which"), [(0, 0), (-1, 2), (1, 1)])
    def test_a_part_is_taken_and_replaced(self, z, guidance, which):
        network = Steps(n_steps=1, k=3)
        tap = at(network, select=0, guidance=guidance)
        every = capture(at(network, select=0), lambda: network(z)).found()
        seen = capture(tap, lambda: network(z), n_samples=4)
        rows = slice(4 * which, 4 * which + 4)
        assert torch.equal(seen.found(), every[rows])
        plain = network(z)
        edited = replace(tap, lambda x, moment: x + 1, lambda: network(z), n_samples=4)
        changed = (edited != plain).any(dim=1)
        assert changed[rows].all() and changed.sum() == 4

    def test_the_other_parts_can_be_changed_too(self, z):
        network = Steps(n_steps=1, k=3)
        seen = []

        def change(maps, moment):
            seen.append((len(maps), moment.own))
            return maps + (1 if moment.own else -1)

        tap = at(network, select=0, guidance=1)
        edited = replace(tap, change, lambda: network(z), n_samples=4, others=True)
        assert seen == [(4, False), (4, True), (4, False)]
        moved = (edited - network(z)).reshape(3, 4, 2)
        assert (moved[1] == 4).all() and (moved[[0, 2]] == -4).all()

    def test_a_batch_that_is_not_multiplied_is_the_samples(self, z):
        network = Steps(n_steps=1)
        tap = at(network, select=0, guidance=-1)
        found = capture(tap, lambda: network(z), n_samples=4).found()
        assert len(found) == 4

    def test_parts_that_there_are_not(self, z):
        network = Steps(n_steps=1, k=2)
        with pytest.raises(ValueError, match="guidance=2 cannot pick"):
            capture(at(network, select=0, guidance=2), lambda: network(z), n_samples=4)
        with pytest.raises(ValueError, match="sees 8 rows for 3 samples"):
            capture(at(network, select=0, guidance=0), lambda: network(z), n_samples=3)
        assert no_hooks(network)


class TestInputs:
    def test_a_keyword_input_by_name(self, z):
        network = Steps(n_steps=1)
        for name, expected in (("hidden_states", z), ("temb", None)):
            tap = at(network, where="input", select=name)
            found = capture(tap, lambda: network(z)).found()
            assert expected is None or torch.equal(found, expected)
            edited = replace(tap, lambda x, moment: x + 1, lambda: network(z))
            torch.testing.assert_close(edited, network(z) + 4)

    def test_several_must_be_told_apart(self, z):
        network = Steps(n_steps=1)
        with pytest.raises(ValueError, match=r"\['hidden_states', 'temb'\].*select"):
            capture(at(network, where="input"), lambda: network(z))
        assert no_hooks(network)


class TestUpdates:
    def test_what_the_output_has_more_than_the_input(self, z):
        network = Steps(n_steps=2)
        tap = at(network, where="update", select=0, calls=(0, 1))
        found = capture(tap, lambda: network(z)).found().unflatten(0, (4, 2))
        temb = torch.arange(4.0)[:, None].expand(4, 2)
        torch.testing.assert_close(found[:, 0], temb)
        torch.testing.assert_close(found[:, 1], temb + 1)
        edited = replace(tap, lambda x, moment: 2 * x, lambda: network(z))
        x = z
        for step in range(2):
            x = 4 * (x + 2 * (temb + step))
        torch.testing.assert_close(edited, x)

    def test_of_a_layer_that_writes_into_its_input(self, z):
        network = Steps(n_steps=1)
        tap = at(network, "single", where="update")
        hidden = capture(at(network, select=0), lambda: network(z)).found()
        found = capture(tap, lambda: network(z)).found()
        torch.testing.assert_close(found, 2 * hidden)

    def test_of_other_shapes(self, z):
        network = nn.Sequential(nn.Linear(2, 3))
        with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
            capture(at(network, "0", where="update"), lambda: network(z))
        assert no_hooks(network)


def test_a_tuple_of_one_needs_no_selection(z):
    network = Steps(n_steps=1)
    tap = at(network, "single")
    found = capture(tap, lambda: network(z)).found()
    edited = replace(tap, lambda x, moment: 0 * x, lambda: network(z))
    torch.testing.assert_close(edited, network(z) - found)


def test_a_tensor_that_is_returned_twice_is_replaced_twice(z):
    """The hidden state of a down block is also its last skip connection."""
    network = Steps(n_steps=1)
    edited = replace(at(network, select=0), lambda x, moment: x + 1, lambda: network(z))
    torch.testing.assert_close(edited, network(z) + 4)
