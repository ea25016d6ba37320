"""ReLU's kernels: in plain Python and compiled, against NumPy."""

import numpy as np
import pytest

from compare import assert_equal
from konv.engine import rectify, threads
from plain_engine import MACHINES, engine
from strategies import DTYPES, LAYOUTS, integers


def check(x, dy):
    y, negative = rectify.forward(x)
    dx = rectify.gradient(dy, negative)
    with np.errstate(invalid="ignore"):  # bfloat16 warns where it compares a NaN
        assert_equal(y, np.maximum(x, x.dtype.type(0)), nan_equal=True)
        assert_equal(negative, x <= 0)
        assert_equal(dx, np.where(x <= 0, dy.dtype.type(0), dy), nan_equal=True)


def drawn(shape, dtype):
    rng = np.random.default_rng(0)
    x, dy = integers(rng, shape, dtype), integers(rng, shape, dtype)
    for array in (x, dy):
        array.flat[rng.integers(array.size, size=array.size // 3)] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 1e-7])
    return x, dy


@pytest.mark.parametrize("plain", [True, False], ids=["in plain Python", "compiled"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("host", MACHINES)
def test_rectify(host, dtype, plain, monkeypatch):
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    monkeypatch.setattr(threads, "_threads", 3)
    with engine(MACHINES[host], plain=plain):
        for size in (1, 15, 16, 17, 1000, *([] if plain else [3 * rectify.PIECE + 5])):
            check(*drawn(size, dtype))


@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_any_layout(x_layout, dy_layout):
    x, dy = drawn((3, 5, 4, 6), np.float32)
    x, dy = LAYOUTS[x_layout](x), LAYOUTS[dy_layout](dy)
    if x.dtype.isnative and dy.dtype.isnative and x.flags.aligned and dy.flags.aligned:
        check(x, dy)


def test_channels_last_stays_so():
    x = np.moveaxis(np.ones((2, 5, 6, 3), np.float32), -1, 1)
    y, negative = rectify.forward(x)
    assert y.strides == x.strides and rectify.gradient(np.ones(x.shape, np.float32), negative).strides == x.strides
