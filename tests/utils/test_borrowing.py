"""Running a network, and leaving it and the process as they were."""

import contextlib
import threading

import pytest
import torch

from panda_sklearn.utils.borrowing import preserve_random_state, seed_noise
from panda_sklearn.utils.undo import Undo
from tests.networks import TinyGenerator, borrowed

CPU = torch.device("cpu")


@contextlib.contextmanager
def fixed_noise(device):
    """As for one pass of a borrowed network."""
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


def test_random_numbers_of_overlapping_calls_on_one_generator():
    """The device has two names; whoever comes second must not keep the seeded state."""
    before = torch.get_rng_state()
    first, second = fixed_noise(CPU), fixed_noise(torch.device("cpu", 0))
    first.__enter__()
    torch.rand(3)
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.equal(torch.get_rng_state(), before)


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


def test_overlapping_loans_restore_once_at_the_end(network):
    network.train()
    with borrowed(network, CPU):
        with borrowed(network, CPU):
            assert not network.training
        assert not network.training
    assert network.training
    with (
        borrowed(network, CPU),
        pytest.raises(RuntimeError, match="in use with device=cpu"),
        borrowed(network, torch.device("meta")),
    ):
        pass


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


def test_noise_in_overlapping_threads_restores_the_global_state():
    before = torch.get_rng_state()
    inside, leave = threading.Event(), threading.Event()

    def first():
        with fixed_noise(CPU):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with fixed_noise(CPU):
        leave.set()
        thread.join()
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_compilation_is_on_again_after_overlapping_threads(network):
    network.block1.compile(backend="eager")
    inside, leave = threading.Event(), threading.Event()

    def first():
        with borrowed(network, CPU):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with borrowed(network, CPU):
        leave.set()
        thread.join()
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
