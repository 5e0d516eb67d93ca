"""Fingerprints identify networks and their weights."""

import copy

import pytest
import torch
from torch import nn

from panda_sklearn.generators import fingerprint
from panda_sklearn.utils.hashing import DIGITS


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def test_equal_networks_have_equal_fingerprints():
    one = network()
    found = fingerprint(one)
    assert len(found) == DIGITS and int(found, 16) >= 0
    assert fingerprint(network()) == found
    assert fingerprint(copy.deepcopy(one).eval().requires_grad_(False)) == found
    assert fingerprint(one.to(memory_format=torch.channels_last)) == found
    # Values count, not their layout in memory.
    one[2].weight.data = one[2].weight.data.T.contiguous().T
    assert fingerprint(one) == found
    assert fingerprint(torch.compile(one, backend="eager")) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[0].weight.data.__setitem__((0, 0), 7.0),
        lambda net: net[1].running_mean.add_(1e-6),
        lambda net: net.half(),
        lambda net: net.append(nn.Linear(2, 2)),
        lambda net: setattr(
            net[0], "weight", nn.Parameter(net[0].weight.reshape(3, 4))
        ),
        lambda net: net.insert(0, nn.Identity()),
    ],
)
def test_different_networks_have_different_fingerprints(change):
    net = network()
    before = fingerprint(net)
    change(net)
    assert fingerprint(net) != before


def test_networks_without_weights_have_none():
    with pytest.raises(TypeError, match=r"network must be a .*Module, got str"):
        fingerprint("network")
    with pytest.raises(ValueError, match=r"weight '0.bias'.*no values yet"):
        fingerprint(network().to("meta"))
    with pytest.raises(ValueError, match="no values yet"):
        fingerprint(nn.LazyLinear(3))
