"""Values too large, too small or not finite, in whole arrays and batch by batch."""

import numpy as np
import pytest
import torch

from panda_sklearn.core.samples import InMemory
from panda_sklearn.utils.arrays import MapLayout
from panda_sklearn.utils.validation import check_finite, check_scale
from panda_sklearn.utils.values import ValueCheck

LAYOUTS = {
    "first": MapLayout((3, 4, 5)),
    "last": MapLayout((3, 4, 5), channel_axis=-1),
    "flat": MapLayout((3, 4, 5), flattened=True),
}


def error_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def look(X, layout, **options):
    """One pass with a check over batches of 4."""
    samples = InMemory(
        layout.to_maps(torch.from_numpy(X)),
        batch_size=4,
        check=ValueCheck(layout, **options),
    )
    (n,) = samples.accumulate(lambda batch, n: n.add_(len(batch)), torch.zeros(()))
    assert n == len(X) and samples.check is None


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_entry_that_is_not_finite(kind, value):
    layout = LAYOUTS[kind]
    X = np.random.default_rng(0).standard_normal((11, *layout.sample_shape))
    X[9].flat[[7, 31, 58]] = value  # of which another is the first channels first
    X[10] = np.nan
    message = error_of(lambda: look(X, layout))
    assert message == error_of(lambda: check_finite(X, "X"))
    where = ", ".join(map(str, np.unravel_index(7, layout.sample_shape)))
    assert f"first at X[9, {where}]" in message


def test_the_name_of_an_argument():
    layout = LAYOUTS["first"]
    X = np.full((2, 3, 4, 5), np.nan)
    message = error_of(lambda: look(X, layout, name="features"))
    assert "Input features contains NaN, first at features[0, 0, 0, 0]" in message


@pytest.mark.parametrize("scale", [1e-25, 1e22])
def test_values_whose_powers_leave_the_range(scale):
    layout = LAYOUTS["last"]
    X = np.zeros((11, *layout.sample_shape), dtype=np.float32)
    X[6, 1, 2, 0] = -scale
    found = error_of(lambda: look(X, layout))
    expected = error_of(lambda: check_scale(torch.from_numpy(X)))
    if scale > 1:  # found at once, so that the sample is known
        expected = expected.replace("in X is", "in X[6] is")
    assert found == expected
    look(X, layout, squared=False)


def test_too_large_a_value_is_found_at_its_batch():
    check = ValueCheck(LAYOUTS["first"])
    check.see(torch.ones(2, 3, 20), 0)
    with pytest.raises(ValueError, match=r"magnitude in X\[103\] is 1e\+30"):
        check.see(torch.tensor([1, 1e30])[:, None, None].expand(2, 3, 20), 102)


def test_good_values_and_zeros():
    layout = LAYOUTS["flat"]
    look(np.random.default_rng(0).standard_normal((9, 60)), layout)
    look(np.zeros((9, 60)), layout)
