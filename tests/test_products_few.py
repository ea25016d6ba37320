"""Windows side by side and few filters, channels last: every tile, tail and block against the textbook, exactly."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.engine.plan import Problem, choose
from konv.engine.products import products_last_few
from konv.engine.threads import using
from plain_engine import MACHINES, engine
from strategies import BFLOAT16, LAYOUTS, integers
from test_guard_page import guarded
from test_repeats import spoiling

CASES = {  # x, w, stride
    "cells that no window reads": ((3, 16, 205), (4, 16, 10), 10),
    "two tiles of filters, lanes left over": ((2, 33, 96), (7, 33, 7), 7),
    "one filter, every pixel": ((3, 90, 5, 7), (1, 90, 1, 1), 1),
}


def last(array, lie=np.ascontiguousarray):
    """``array``, channels last in the memory that ``lie`` makes."""
    return lie(np.moveaxis(array, 1, -1)).transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def check(name, dtype=np.float32, lie=np.ascontiguousarray, change=lambda arrays: None):
    x_shape, w_shape, stride = CASES[name]
    rng, g = np.random.default_rng(0), konv.geometry(x_shape, w_shape, stride=stride, dtype=dtype)
    x, w, b = arrays = [integers(rng, shape, dtype, limit=2) for shape in (x_shape, w_shape, w_shape[:1])]
    change(arrays)
    with np.errstate(invalid="ignore"):
        right = textbook.conv(*(a.astype(np.float64) for a in arrays), stride=stride)
    out = last(np.full(g.output_shape, np.nan, dtype), lie)
    products_last_few.forward(last(x, lie), lie(w), lie(b), g, np.moveaxis(out, 1, -1))
    assert_equal(out, right.astype(dtype), nan_equal=True)


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
def test_equals_the_textbook(host, plain):
    with engine(MACHINES[host], plain=plain):
        for name in CASES if host == "AVX-512" or plain else list(CASES)[1:2]:
            check(name)


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float16), BFLOAT16], ids=str)
def test_other_types(dtype):
    check("two tiles of filters, lanes left over", dtype)


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(end):
    for name in CASES:
        check(name, lie=lambda array: guarded(array, end))


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("place", range(3))
def test_what_is_not_finite_goes_where_the_formula_takes_it(value, place):
    check("cells that no window reads", change=spoiling(place, value))


def test_neither_threads_nor_batches_nor_lengths_change_a_bit():
    rng, lie = np.random.default_rng(0), LAYOUTS["channels last"]
    x, w = rng.standard_normal((9, 40, 1205), dtype=np.float32), rng.standard_normal((4, 40, 10), dtype=np.float32)
    results = []
    for threads in (1, 2, 3):
        with using(threads):
            results.append(konv.conv(lie(x), w, stride=10))
    for other in results[1:]:
        assert_same_bits(other, results[0])
    for length in (10, 500, 1203):
        assert_same_bits(konv.conv(lie(x[1:2, :, :length]), w, stride=10), results[0][1:2, :, : length // 10])


def test_who_computes():
    with engine(MACHINES["AVX-512"]):
        for x_shape, w_shape, stride in CASES.values():
            g = konv.geometry(x_shape, w_shape, stride=stride)
            plan = choose(Problem("forward", g, "float32", False, "last"))
            assert plan.algorithm.NAME == "products_last" and "numbers of a window in a vector" in plan.blocking
            assert 0 < plan.workspace < 1 << 20
        for x_shape, w_shape, options in [
            ((3, 16, 205), (4, 16, 10), dict(stride=10, padding=1)),
            ((3, 16, 205), (4, 16, 10), dict(stride=20, dilation=2)),
            ((3, 16, 205), (16, 16, 10), dict(stride=10)),
            ((3, 4, 205), (4, 4, 3), dict(stride=3)),
            ((3, 90, 8, 8), (4, 90, 1, 1), dict(stride=2)),
            ((3, 90, 8, 8), (4, 90, 2, 2), dict(stride=2)),
            ((1, 900, 205), (4, 900, 10), dict(stride=10)),
        ]:
            assert not products_last_few.takes(konv.geometry(x_shape, w_shape, **options), "float32")
