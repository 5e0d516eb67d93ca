"""Fixtures and hypothesis profiles shared by all tests."""

import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import settings

from panda_sklearn.solvers import refinement

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=25,
    database=None,
    print_blob=True,
)
settings.register_profile("dev", deadline=None, max_examples=25)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def alike_whatever_ran_before():
    """Each test starts from the same global random state and leaves no figure open."""
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def pytest_collection_modifyitems(items):
    """Skip the tests that need a real accelerator when there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def refining_briefly(monkeypatch):
    """Refinements end after five steps.

    By then rounding errors have grown about tenfold. After a hundred steps, even those
    of double precision reach several per cent of some samples' parts.
    """
    refined = refinement._refined
    monkeypatch.setattr(
        refinement, "_refined", lambda Z, factors, n: refined(Z, factors, min(5, n))
    )
