"""The comparer itself, fed with wrong arrays: it must refuse each of them."""

import numpy as np
import pytest

import konv
from compare import assert_close, assert_equal, assert_same_bits, of_any_threads, tolerance, untouched
from strategies import BFLOAT16

RIGHT = np.arange(6.0).reshape(2, 3)


def changed(value, index=(1, 2)):
    wrong = RIGHT.copy()
    wrong[index] = value
    return wrong


WRONG = {
    "one element": changed(5.0000001),
    "NaN": changed(np.nan),
    "infinity": changed(np.inf),
    "all NaN": np.full((2, 3), np.nan),
    "two numbers swapped": RIGHT[:, [1, 0, 2]],
    "transposed": np.ascontiguousarray(RIGHT.T),
    "flattened": RIGHT.ravel(),
    "one axis more": RIGHT[None],
    "a shape that would broadcast": RIGHT[:1],
    "empty": RIGHT[:0],
    "float32": RIGHT.astype(np.float32),
    "integers": RIGHT.astype(np.int64),
    "byte-swapped": RIGHT.astype(">f8" if np.little_endian else "<f8"),
    "a list": RIGHT.tolist(),
    "None": None,
    "masked": np.ma.masked_array(RIGHT, mask=True),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_refuses_a_wrong_array(wrong):
    with pytest.raises(AssertionError):
        assert_equal(wrong, RIGHT)
    with pytest.raises(AssertionError):
        assert_equal(wrong, RIGHT, nan_equal=True)
    with pytest.raises(AssertionError):
        assert_same_bits(wrong, RIGHT)
    with pytest.raises(AssertionError):
        assert_close(wrong, RIGHT, dtype=np.float64, length=3, scale=5.0)


def test_accepts_the_right_array():
    assert_equal(RIGHT.copy(), RIGHT, contiguous=True)
    assert_same_bits(RIGHT.copy(), RIGHT)
    assert_close(RIGHT.copy(), RIGHT, dtype=np.float64, length=1, scale=0.0)


def test_nan_equals_nan_only_when_asked():
    both = changed(np.nan)
    with pytest.raises(AssertionError):
        assert_equal(both.copy(), both)
    assert_equal(both.copy(), both, nan_equal=True)
    with pytest.raises(AssertionError, match=r"first at \(0, 0\)"):
        assert_equal(both.copy(), changed(np.nan, (0, 0)), nan_equal=True)


def test_bits_tell_zeros_apart():
    assert_equal(np.array([-0.0]), np.array([0.0]))
    with pytest.raises(AssertionError):
        assert_same_bits(np.array([-0.0]), np.array([0.0]))


def test_contiguity_is_checked_when_asked():
    fortran = np.asfortranarray(RIGHT)
    assert_equal(fortran, RIGHT)
    with pytest.raises(AssertionError, match="C-contiguous"):
        assert_equal(fortran, RIGHT, contiguous=True)
    last = np.moveaxis(np.zeros((2, 3, 4)), -1, 1)
    assert_equal(last, np.zeros((2, 4, 3)), contiguous="last")
    for wrong, layout in ((last, "first"), (last.copy("C"), "last")):
        with pytest.raises(AssertionError, match="C-contiguous"):
            assert_equal(wrong, np.zeros((2, 4, 3)), contiguous=layout)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_close_never_takes_what_is_not_finite(value):
    with pytest.raises(AssertionError):
        assert_close(changed(value), changed(value), dtype=np.float64, length=3, scale=5.0)
    with pytest.raises(AssertionError, match="not finite"):
        assert_close(RIGHT, RIGHT, dtype=np.float64, length=3, scale=abs(value))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BFLOAT16])
def test_tolerance_lets_a_sum_pass_and_one_ulp_more_fail(dtype):
    """The bound is above what a real sum loses, and not by so much that a wrong last digit would pass."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 50, 200)).astype(dtype)
    exact = (x.astype(np.float64) * w.astype(np.float64)).sum(axis=1)
    scale = np.abs(x.astype(np.float64) * w.astype(np.float64)).sum(axis=1)
    wide = np.promote_types(dtype, np.float32)
    total = np.zeros(50, wide)
    for i in range(200):
        total += x[:, i].astype(wide) * w[:, i].astype(wide)
    assert_close(total.astype(dtype), exact, dtype=dtype, length=200, scale=scale)
    with pytest.raises(AssertionError, match="is allowed"):
        off = exact + 2.1 * tolerance(exact, dtype, 200, scale)
        assert_close(off.astype(dtype), exact, dtype=dtype, length=200, scale=scale)
    with pytest.raises(AssertionError, match="must be float64"):
        assert_close(total.astype(dtype), exact.astype(np.float32), dtype=dtype, length=200, scale=scale)


def test_untouched_sees_a_write_beside_the_slice():
    base = np.zeros(8)
    with untouched(base[2:4]):
        pass
    with pytest.raises(AssertionError, match="input 1 was written to"), untouched(RIGHT, base[2:4]):
        base[7] = 1


def test_bits_that_depend_on_the_threads_are_found():
    before = konv.get_threads()
    same = of_any_threads(lambda: [np.ones(3), np.zeros(2)])
    assert len(same) == 2 and (same[0] == 1).all()
    with pytest.raises(AssertionError, match="other bits"):
        of_any_threads(lambda: [np.ones(3), np.full(2, konv.get_threads())])
    assert konv.get_threads() == before
