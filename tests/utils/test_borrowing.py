"""Running a network, and leaving it and the process as they were."""

import contextlib
import types

import pytest
import torch
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.utils import turns
from panda_sklearn.utils.borrowing import preserve_random_state, seed_noise
from panda_sklearn.utils.undo import Undo
from tests.emulated_cuda import emulated_cuda
from tests.networks import TinyGenerator, borrowed, run_threads

CPU = torch.device("cpu")


@contextlib.contextmanager
def fixed_noise(device):
    """A block in which noise is as in one pass of a borrowed network."""
    with Undo() as undo, undo:
        preserve_random_state(undo, device)
        seed_noise(device)
        yield


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_exception(network, z, error):
    network.train()
    network.block1.eval()  # a mixture, to be restored as such
    modes = [m.training for m in network.modules()]
    state = {k: v.clone() for k, v in network.state_dict().items()}

    def fail(*args):
        assert not any(m.training for m in network.modules())
        assert not torch.is_grad_enabled()
        raise error

    handle = network.to_rgb1.register_forward_hook(fail)
    with pytest.raises(error), borrowed(network, CPU):
        network(z)
    handle.remove()
    assert [m.training for m in network.modules()] == modes
    assert all(p.requires_grad for p in network.parameters())
    assert torch.is_grad_enabled()
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in state.items())


def test_a_network_on_two_devices_is_left_there(network):
    network.unused.to("meta")  # a layer that does not run
    with borrowed(network, None):
        pass
    with (
        pytest.raises(ValueError, match=r"several devices \(cpu, meta\)"),
        borrowed(network, CPU),
    ):
        pass
    assert network.unused.weight.device.type == "meta"


def test_a_network_is_borrowed_while_it_is(network):
    network.train()
    with borrowed(network, CPU):
        with borrowed(network):
            assert not network.training
        assert not network.training
    assert network.training and not turns._line


def test_noise_is_fixed_and_the_global_state_restored(z):
    network = TinyGenerator(noise=1.0)
    before = torch.get_rng_state()
    images = []
    for _ in range(2):
        with fixed_noise(CPU):
            images.append(network(z))
        torch.randn(3)
    assert torch.equal(*images)
    torch.set_rng_state(before)
    with fixed_noise(CPU):
        network(z)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_several_threads_and_networks_is_exact(z):
    """Each pass has the noise that it has alone, and nobody's state is lost."""
    networks = [TinyGenerator(noise=1.0, seed=seed) for seed in range(2)] * 2
    extractors = [GeneratorFeatureExtractor(n, "block2").fit(z) for n in networks]
    before = torch.get_rng_state()
    expected = [(e.transform(z), e.generate(z)) for e in extractors]
    wrong = []

    def work(i):
        for _ in range(20):
            found = extractors[i].transform(z), extractors[i].generate(z)
            if not all(map(torch.equal, found, expected[i])):
                wrong.append(i)

    run_threads(work, len(networks))
    assert not wrong and torch.equal(torch.get_rng_state(), before)


def test_compilation_is_on_again(network):
    network.block1.compile(backend="eager")
    with borrowed(network, CPU):
        with borrowed(network, CPU):
            assert torch._dynamo.eval_frame._stance.stance == "force_eager"
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_network_that_cannot_be_moved_is_left_alone(network, monkeypatch):
    network.train()

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    to = network.to
    network.to = lambda device: to(device) if device == CPU else fail()
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        borrowed(network, torch.device("cuda", 0)),
    ):
        pass
    assert all(m.training for m in network.modules())
    assert next(network.parameters()).device == CPU


def test_a_pass_of_batches_moves_a_network_once(z):
    with emulated_cuda() as device:
        network, moves = TinyGenerator(), []
        extractor = GeneratorFeatureExtractor(
            network, "block1", batch_size=1, device=device
        ).fit(z)
        to = network.to
        network.to = lambda where: (moves.append(where), to(where))
        for _ in extractor.batches(z):
            assert moves == [device]
        assert moves == [device, CPU]
        for _ in extractor.batches(z):
            break
        assert next(network.parameters()).device == CPU


class Merging(nn.Linear):
    """A layer that merges its low-rank weights into the others in evaluation mode."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.low = nn.Parameter(torch.randn(n_out, n_in))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.low if mode else self.low
            self.merged = not mode
        return self

    def forward(self, x):
        y = super().forward(x)
        return y if self.merged else y + x @ self.low.T


class Frozen(nn.Sequential):
    """A network that keeps one of its layers in evaluation mode."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class Averaged(nn.Module):
    """Swaps its weights for averaged ones in ``eval``, and back in ``train``."""

    def __init__(self, network):
        super().__init__()
        self.network, self.swapped, self.n_swaps = network, False, 0

    def eval(self):
        if not self.swapped:
            self.swapped, self.n_swaps = True, self.n_swaps + 1
        return super().eval()

    def train(self, mode=True):
        if mode and self.swapped:
            self.swapped = False
        return super().train(mode)

    def forward(self, x):
        return self.network(x) + self.swapped


def test_modules_that_change_weights_with_their_mode():
    network = nn.Sequential(Merging(4, 3), nn.ReLU(), nn.Sequential(Merging(3, 3)))
    network.train()[2].eval()  # merged already
    weights = [p.detach().clone() for p in network.parameters()]
    z = torch.ones(2, 4)
    expected = network(z)
    for _ in range(2):
        with borrowed(network):
            assert all(layer.merged for layer in (network[0], network[2][0]))
            torch.testing.assert_close(network(z), expected)
        assert [m.training for m in network.modules()] == [True] * 3 + [False] * 2
        assert (network[0].merged, network[2][0].merged) == (False, True)
        for now, before in zip(network.parameters(), weights, strict=True):
            torch.testing.assert_close(now, before)  # merged and unmerged: rounded


@pytest.mark.parametrize("own", [False, True])
def test_a_parent_s_own_method_leaves_its_children_s_modes(own):
    network = Frozen(nn.Dropout(), nn.Dropout(), nn.Dropout()).train()
    network[2].eval()
    if own:  # as exported modules and some wrappers have them
        network.train = types.MethodType(Frozen.train, network)
    modes = [m.training for m in network.modules()]
    averaged = Averaged(network).train()
    modes_too = [m.training for m in averaged.modules()]
    for each, expected in ((network, modes), (averaged, modes_too)):
        for m, mode in zip(each.modules(), expected, strict=True):
            m.training = mode
        with borrowed(each):
            assert not any(m.training for m in each.modules())
            assert each is network or each.swapped
        assert [m.training for m in each.modules()] == expected
    assert not averaged.swapped and averaged.n_swaps == 1


def test_a_method_that_raises_leaves_nothing_behind():
    class Fixed(nn.Identity):
        def train(self, mode=True):
            raise ArithmeticError("mode is fixed")

    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), Fixed(), nn.Dropout())
    with pytest.raises(ArithmeticError, match="fixed"), borrowed(network):
        pass
    assert all(m.training for m in network.modules()) and torch.is_grad_enabled()
    assert not turns._line

    class Refuses(nn.Identity):
        def train(self, mode=True):
            if mode:
                raise ArithmeticError("not back again")
            return super().train(mode)

    network = nn.Sequential(nn.Dropout(), Refuses(), nn.Dropout())
    with pytest.raises(ArithmeticError, match="not back"), borrowed(network):
        assert not any(m.training for m in network.modules())
    assert all(m.training for m in network.modules()) and not turns._line


def test_networks_that_share_modules():
    shared = nn.Sequential(nn.Dropout(), Merging(3, 3))
    one, two = nn.Sequential(shared, nn.Dropout()), Averaged(shared)
    for network in (one, two):
        network.train()
    shared[0].eval()
    modes = [m.training for network in (one, two) for m in network.modules()]
    with borrowed(one):
        with borrowed(two):
            assert two.swapped
        # Its own train() reached into a network that is in use.
        assert not any(m.training for m in one.modules()) and shared[1].merged
    after = [m.training for network in (one, two) for m in network.modules()]
    assert after == modes and not shared[1].merged and not two.swapped
    assert not turns._line


def test_threads_on_networks_that_share_modules():
    class Wrapped(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.last = network, nn.Dropout(0.5)

        def train(self, mode=True):
            return super().train(mode)

        def forward(self, z):
            return self.last(self.network(z))

    inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    networks = [
        inner.train(),
        Wrapped(inner).train(),
        nn.Sequential(inner[1], inner[2]),
    ]
    inputs = [torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 6)]
    with torch.no_grad():
        for network in networks:
            network.eval()
        expected = [n(z) for n, z in zip(networks, inputs, strict=True)]
        for network in networks:
            network.train()
    mean, wrong = inner[1].running_mean.clone(), []

    def work(i):
        for _ in range(100):
            with borrowed(networks[i]):
                found = networks[i](inputs[i])
            if not torch.allclose(found, expected[i], atol=1e-5):
                wrong.append(i)

    run_threads(lambda i: work(i % 3), 4)
    assert not wrong and torch.equal(inner[1].running_mean, mean)
    assert all(m.training for n in networks for m in n.modules())
    assert not turns._line


def test_weights_without_values():
    network = nn.Sequential(nn.Linear(4, 3)).to("meta")
    for device in (None, "cpu"):
        with pytest.raises(ValueError, match=r"'meta'.*[Ll]oad"):
            GeneratorFeatureExtractor(network, "0", device=device).fit(torch.ones(2, 4))
    real = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="device='meta' cannot be used"):
        GeneratorFeatureExtractor(real, "0", device="meta").fit(torch.ones(2, 4))
    assert real[0].weight.device == CPU


class BatchStatistics(nn.Sequential):
    """Always uses the statistics of its batch."""

    def train(self, mode=True):
        super().train(mode)
        self[0].train()
        return self


class Fuses(nn.Linear):
    """Changes its weights in ``eval``, which torch calls for the outermost only."""

    def eval(self):
        raise AssertionError("asked")


def test_the_mode_is_the_one_that_the_network_s_own_eval_makes():
    norm = nn.BatchNorm1d(8, affine=False)
    network = nn.Sequential(Fuses(4, 8), BatchStatistics(norm), nn.Dropout())
    for training in (True, False):
        network.train(training)
        modes = [m.training for m in network.modules()]
        with borrowed(network):
            assert [m.training for m in network.modules()] == [False] * 3 + [
                True,
                False,
            ]
        assert [m.training for m in network.modules()] == modes
