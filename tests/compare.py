"""Comparing arrays: exactly, or to a tolerance that is derived from the number of roundings.

Every comparison is written ``difference <= tolerance``, so that NaN fails. ``test_compare.py`` feeds these functions wrong
arrays.
"""

from contextlib import contextmanager

import numpy as np

import konv


def assert_equal(actual, expected, *, nan_equal=False, contiguous=False):
    """The same array: type, shape, dtype and every element. NaN equals NaN only where ``nan_equal``; -0.0 equals 0.0.

    ``contiguous`` asks ``actual`` to be C-contiguous too, or with "last" to be so once its channels are moved to the end.
    """
    _assert_same_kind(actual, expected.shape, expected.dtype)
    same = actual == expected
    if nan_equal:
        same |= np.isnan(actual) & np.isnan(expected)
    _assert_all(same, actual, expected)
    if contiguous:
        actual = np.moveaxis(actual, 1, -1) if contiguous == "last" else actual
        assert actual.flags.c_contiguous, f"strides {actual.strides} of shape {actual.shape} are not C-contiguous"


def assert_same_bits(actual, expected):
    """The same array bit for bit: the sign of a zero and the payload of a NaN count too."""
    _assert_same_kind(actual, expected.shape, expected.dtype)
    assert actual.tobytes() == expected.tobytes(), f"other bits: {actual!r} instead of {expected!r}"


def of_any_threads(compute):
    """The results of ``compute()``, a list of arrays, which have the same bits for 1, 2 and 7 threads."""
    before, results = konv.get_threads(), []
    try:
        for threads in (1, 2, 7):
            konv.set_threads(threads)
            results.append(compute())
    finally:
        konv.set_threads(before)
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_same_bits(actual, expected)
    return results[0]


def assert_close(actual, expected, *, dtype, length, scale):
    """``actual``, computed in ``dtype``, equals the float64 ``expected`` up to the rounding that its sums allow.

    A sum of ``length`` products, in any order, is off by at most ``n u / (1 - n u) * scale`` with ``n = length + 1``
    roundings, ``u`` half the eps of the type it is summed in, and ``scale`` the sum of the absolute values of its terms
    (Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3.1). ``expected`` was rounded like that in float64.
    Half types are summed in float32 and rounded once more, by at most half an ulp. Infinity and NaN never pass.

    Parameters
    ----------
    actual : array of ``dtype``
    expected : float64 array, the oracle's
    dtype : the element type that ``actual`` must have
    length : terms in each sum, the bias included
    scale : float64, a scalar or like ``expected``: the sum of the terms' absolute values
    """
    _assert_same_kind(actual, expected.shape, np.dtype(dtype))
    assert expected.dtype == np.float64, f"the oracle must be float64, not {expected.dtype}"
    bound = tolerance(expected, dtype, length, scale)
    assert np.isfinite(bound).all(), "the tolerance is not finite"
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected)
    _assert_all(difference <= bound, actual, expected, difference, bound)


def tolerance(expected, dtype, length, scale):
    """The bound of :func:`assert_close`, like ``expected``."""
    summed_in = np.promote_types(dtype, np.float32)
    unit = _eps(summed_in) / 2
    roundings = length + 1
    bound = roundings * unit / (1 - roundings * unit) * np.asarray(scale, np.float64)
    bound = bound + roundings * _eps(np.float64) / 2 * scale
    if summed_in != dtype:  # one rounding to the half type; below its normal numbers the step is absolute
        bound = bound + _eps(dtype) / 2 * (np.abs(expected) + bound) + _smallest(dtype) / 2
    return np.broadcast_to(bound, expected.shape)


@contextmanager
def untouched(*arrays):
    """Within this block not a byte of the arrays, or of the memory they are cut from, changes."""
    owners = [_owner(a) for a in arrays]
    before = [owner.tobytes() for owner in owners]
    yield
    for number, (owner, content) in enumerate(zip(owners, before)):
        assert owner.tobytes() == content, f"input {number} was written to"


def _owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _assert_same_kind(actual, shape, dtype):
    assert type(actual) is np.ndarray, f"a {type(actual).__name__}, not an array"
    assert actual.shape == shape, f"shape {actual.shape} instead of {shape}"
    assert actual.dtype == dtype, f"dtype {actual.dtype} instead of {dtype}"


def _assert_all(same, actual, expected, difference=None, bound=None):
    if np.all(same):
        return
    where = tuple(int(i) for i in np.argwhere(~same)[0])
    text = f"{np.count_nonzero(~same)} of {same.size} elements differ, first at {where}: "
    text += f"{actual[where]} instead of {expected[where]}"
    if difference is not None:
        text += f", off by {difference[where]:.3g} where {bound[where]:.3g} is allowed"
    raise AssertionError(text)


def _eps(dtype):
    return float(_limits(dtype).eps)


def _smallest(dtype):
    return float(_limits(dtype).smallest_subnormal)


def _limits(dtype):
    if np.dtype(dtype).name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.finfo(dtype)
    return np.finfo(dtype)
