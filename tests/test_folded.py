"""Input gradients of few channels, folded: every kind of row, tile and block against the textbook, exactly."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine.plan import Problem
from konv.engine.stems import folded
from konv.engine.threads import using
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded

CASES = {
    "stem": ((2, 3, 13, 70), (17, 3, 3, 3), dict(stride=2, padding=1)),
    "7 x 7, tiles that overlap, blocks of rows": ((1, 3, 101, 41), (9, 3, 7, 7), dict(stride=2, padding=3)),
    "padding beyond the window": ((1, 2, 6, 80), (16, 2, 3, 4), dict(padding=((9, 11), (0, 5)), stride=(3, 4))),
    "dilated": ((1, 3, 7, 43), (17, 3, 2, 3), dict(dilation=(2, 3), stride=(1, 2), padding=2)),
    "cells that no window meets": ((1, 2, 20, 23), (19, 2, 2, 2), dict(stride=4)),
    "one channel, blocks of columns": ((2, 1, 2700), (40, 1, 10), dict(stride=5)),
    "1-D, shorter than a vector": ((2, 4, 12), (8, 4, 5), dict(padding=1)),
    "1-D, stride 3": ((1, 3, 100), (19, 3, 5), dict(stride=3, padding=((4, 0),))),
}


def case(name, dtype=np.float32):
    x_shape, w_shape, options = CASES[name]
    rng = np.random.default_rng(0)
    g = konv.geometry(x_shape, w_shape, **options, dtype=dtype)
    return g, options, *(integers(rng, shape, dtype, limit=2) for shape in (g.output_shape, w_shape))


def check(name, dtype=np.float32, lie=np.ascontiguousarray):
    g, options, dy, w = case(name, dtype)
    right = textbook.conv_backward(dy.astype(np.float64), np.zeros(g.x_shape), w.astype(np.float64), **options)[0]
    for layout in ("first", "last"):
        assert folded.declines(Problem("input_gradient", g, np.dtype(dtype).name, layout=layout)) is None
        dx = _lain(np.full(g.x_shape, np.nan, dtype), layout, lie)
        folded.input_gradient(_lain(dy, layout, lie), lie(w), g, dx)
        assert_equal(dx, right.astype(dtype))


def _lain(array, layout, lie):
    if layout == "first":
        return lie(array)
    cells, channels = (0, *range(2, array.ndim), 1), (0, array.ndim - 1, *range(1, array.ndim - 1))
    return lie(np.ascontiguousarray(array.transpose(cells))).transpose(channels)


@pytest.mark.parametrize("host", MACHINES)
def test_equals_the_textbook(host):
    with engine(MACHINES[host]):
        for name in CASES if host == "AVX-512" else ("1-D, stride 3",):
            check(name)


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), BFLOAT16], ids=str)
def test_other_types(dtype):
    check("stem", dtype)


@pytest.mark.parametrize(
    "host, name", [("AVX-512", "1-D, shorter than a vector"), ("SSE2", "1-D, stride 3"), ("AVX2", "dilated")]
)
def test_in_plain_python(host, name, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host], plain=True):
        check(name)


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(end):
    for name in CASES:
        check(name, lie=lambda array: guarded(array, end))


def test_threads_batches_blocks_layouts_and_widths_change_no_bit():
    rng = np.random.default_rng(0)
    w, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((20, 3, 5, 5), (3, 20, 77, 42)))
    x_shape, results = (3, 3, 157, 88), []
    for threads, host, layout in (
        (1, "AVX-512", "first"),
        (2, "AVX2", "last"),
        (3, "SSE2", "first"),
        (4, "AVX-512", "last"),
    ):
        with using(threads), engine(MACHINES[host]):
            assert konv.plan(x_shape, w.shape, kind="input_gradient", stride=2, layout=layout).algorithm is folded
            results.append(_dx(dy, w, x_shape, layout))
    for other in results[1:]:
        assert_same_bits(np.ascontiguousarray(other), results[0])
    assert_same_bits(_dx(dy[1:2], w, (1, *x_shape[1:]), "first"), results[0][1:2])


def _dx(dy, w, x_shape, layout):
    x = laid_out(np.zeros(x_shape, np.float32), layout)
    return konv.conv_backward(laid_out(dy, layout), x, w, stride=2, need=("x",))[0]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_goes_where_the_formula_takes_it(value):
    for place in range(2):
        g, options, *arrays = case("dilated")
        arrays[place].flat[arrays[place].size // 2] = value
        dx = np.empty(g.x_shape, np.float32)
        with np.errstate(invalid="ignore"):
            folded.input_gradient(*arrays, g, dx)
            assert_equal(dx, textbook.conv_backward(arrays[0], dx, arrays[1], **options)[0], nan_equal=True)


def test_layers_of_others_are_declined():
    for x_shape, w_shape, options, kind in (
        ((1, 3, 99, 99), (64, 3, 3, 3), {}, "forward"),
        ((1, 5, 99, 99), (64, 5, 3, 3), {}, "input_gradient"),
        ((1, 4, 400), (64, 2, 3), dict(groups=2), "input_gradient"),
        ((1, 1, 8, 40, 40), (64, 1, 3, 3, 3), {}, "input_gradient"),
        ((1, 1, 400), (7, 1, 3), {}, "input_gradient"),
        ((1, 1, 400), (64, 1, 18), dict(stride=17), "input_gradient"),
        ((1, 3, 999), (64, 3, 200), {}, "input_gradient"),
    ):
        assert folded.declines(Problem(kind, konv.geometry(x_shape, w_shape, **options), "float32"))
    empty = np.zeros((0, 64, 38, 38), np.float32)
    assert (
        konv.conv_backward(empty, np.zeros((0, 3, 40, 40), np.float32), np.zeros((64, 3, 3, 3), np.float32))[0].size
        == 0
    )
