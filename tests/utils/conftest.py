"""A small network and latents for it."""

import pytest
import torch

from tests.networks import TinyGenerator


@pytest.fixture
def network():
    return TinyGenerator()


@pytest.fixture
def z():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
