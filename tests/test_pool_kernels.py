"""Pooling's kernels: their texts in plain Python on memory that is bounds-checked, compiled for four widths, by threads."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.engine import threads
from konv.engine.pooling import pool
from konv.geometry import pooling_geometry
from plain_engine import MACHINES, engine
from strategies import BFLOAT16, integers

CASES = {
    # x, window
    "one cell": ((1, 1, 1), dict(kernel_size=1)),
    "1-D, long rows": ((2, 3, 75), dict(kernel_size=3, stride=1, padding=1)),
    "1-D, stride 3": ((1, 2, 40), dict(kernel_size=4, stride=3, padding=((2, 1),), dilation=2)),
    "2x2": ((3, 5, 8, 36), dict(kernel_size=2)),
    "2x2, 19 channels": ((2, 19, 5, 4), dict(kernel_size=2)),
    "2x2, rows that fill vectors": ((1, 3, 11, 8), dict(kernel_size=2)),
    "2x2, a rest": ((2, 3, 5, 7), dict(kernel_size=2)),
    "3x3, stride 2": ((2, 3, 9, 77), dict(kernel_size=3, stride=2, padding=1)),
    "3x3, stride 2, 19 channels": ((1, 19, 6, 7), dict(kernel_size=3, stride=2, padding=((1, 0), (0, 1)))),
    "whole images": ((2, 5, 7, 7), dict(kernel_size=7)),
    "beyond a byte": ((1, 2, 18, 17), dict(kernel_size=17, padding=3)),
    "3-D": ((2, 2, 3, 4, 35), dict(kernel_size=(2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(2, 1, 2))),
}
HOSTS = [*((host, np.float32) for host in MACHINES), ("AVX2", np.float64), ("AVX-512", np.float16), ("SSE2", BFLOAT16)]


def laid(array, layout):
    """The array, its channels first or last in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if layout == "last" else array


def drawn(name, dtype, layout):
    """x of few distinct numbers, some of them not finite, and dy."""
    x_shape, window = CASES[name]
    rng = np.random.default_rng(0)
    g = pooling_geometry(x_shape, **window, dtype=np.dtype(dtype))
    x, dy = integers(rng, x_shape, dtype), integers(rng, g.output_shape, dtype)
    x.flat[rng.integers(x.size, size=x.size // 5)] = -np.inf
    x.flat[rng.integers(x.size, size=x.size // 40)] = np.nan
    return laid(x, layout), laid(dy, layout), g, window


def check(name, dtype, layout):
    x, dy, g, window = drawn(name, dtype, layout)
    wide_x, wide_dy = x.astype(np.float64), dy.astype(np.float64)
    y, winners = pool.largest(x, g)
    assert_equal(y, textbook.max_pool(wide_x, **window).astype(dtype), nan_equal=True, contiguous=layout)
    assert_equal(winners.astype(int), textbook.max_pool_argmax(wide_x, g).astype(int))
    dx = pool.largest_gradient(dy, winners, g, layout)
    assert_equal(dx, textbook.max_pool_backward(wide_dy, wide_x, **window).astype(dtype), contiguous=layout)
    finite = np.where(np.isfinite(x), x, x.dtype.type(0)) * x.dtype.type(144)
    for include in (True, False):
        y = pool.mean(laid(finite, layout), g, include)
        right = textbook.avg_pool(finite.astype(np.float64), **window, count_include_pad=include)
        assert np.abs(y - right).max() <= 0.02 * np.abs(right).max() + 1e-9
        dx = pool.mean_gradient(dy, g, include, layout)
        right = textbook.avg_pool_backward(wide_dy, wide_x, **window, count_include_pad=include)
        assert np.abs(dx - right).max() <= 0.02 * np.abs(right).max() + 1e-9


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch):
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    monkeypatch.setattr(threads, "_threads", 3)
    monkeypatch.setattr(pool, "PIECE_CELLS", 100)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("name", CASES)
def test_in_plain_python(name, layout):
    host = list(MACHINES)[len(name) % len(MACHINES)]
    with engine(MACHINES[host], plain=True):
        check(name, np.float32, layout)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("host, dtype", HOSTS, ids=str)
def test_compiled(host, dtype, layout):
    with engine(MACHINES[host]):
        for name in CASES:
            check(name, dtype, layout)


@pytest.mark.parametrize("name", ["3x3, stride 2", "3-D", "2x2"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_bits_depend_on_neither_threads_nor_vectors(name, layout, monkeypatch):
    x_shape, window = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(x_shape).astype(np.float32)
    dy = rng.standard_normal(konv.max_pool(x, **window).shape).astype(np.float32)

    def results(x, dy):
        return [
            konv.max_pool(x, **window), konv.max_pool_backward(dy, x, **window),
            konv.avg_pool(x, **window), konv.avg_pool_backward(dy, x, **window),
        ]  # fmt: skip

    expected = results(laid(x, layout), laid(dy, layout))
    for count in (1, 2, 7):
        monkeypatch.setattr(threads, "_threads", count)
        for host in MACHINES.values():
            with engine(host):
                for result, right in zip(results(laid(x, layout), laid(dy, layout)), expected):
                    assert_same_bits(np.ascontiguousarray(result), np.ascontiguousarray(right))
