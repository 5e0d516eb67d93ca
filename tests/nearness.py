"""Comparing what may differ in the last bits.

Convolutions and matrix products add up in an order that their kernels choose by shape,
place in the batch, alignment in memory, threads and processor. Only identical calls, on
the same memory or on memory of the same alignment, agree by bits; all others agree to a
few roundings, which an iteration may magnify. Copies, slices, casts and element-wise
arithmetic are exact everywhere.
"""

import numpy as np

ROUNDINGS = {4: 2e-5, 8: 1e-12}  # by bytes of a number


def as_array(x):
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def assert_near(found, expected, tol=None):
    """Agree to ``tol`` of the largest entry; the default is hundreds of roundings."""
    found, expected = as_array(found), as_array(expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    tol = ROUNDINGS[expected.dtype.itemsize] if tol is None else tol
    size = float(np.abs(expected).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tol * size)


def decided(values, threshold, tol=1e-4):
    """Where rounding does not decide whether ``values >= threshold``: nearly all."""
    values = as_array(values)
    clear = np.abs(values - float(threshold)) > tol * np.abs(values).max()
    assert clear.mean() > 0.99
    return clear


def assert_thresholded(mask, values, threshold):
    """``mask`` is ``values >= threshold``, where rounding does not decide."""
    mask, values = as_array(mask), as_array(values)
    assert mask.dtype == bool and mask.shape == values.shape
    clear = decided(values, threshold)
    np.testing.assert_array_equal(mask[clear], (values >= float(threshold))[clear])
    assert mask.any() and not mask.all()
