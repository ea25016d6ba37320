"""1-D windows side by side and few filters: every tile, tail and block against the textbook, exactly."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.engine import memory
from konv.engine.plan import KINDS, Problem, choose, prefer
from konv.engine.products import repeats
from konv.engine.threads import using
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded

CASES = {  # x, w; the stride is the kernel
    "cells that no window reads": ((3, 16, 205), (4, 16, 10)),
    "more filters than a tile": ((2, 17, 96), (7, 17, 3)),
    "windows longer than a vector": ((2, 16, 160), (3, 16, 20)),
    "one filter, whole periods": ((5, 16, 480), (1, 16, 5)),
}


def spoiling(place, value):
    """A change of a case's arrays: a number of one of them, and of x cells that no window reads."""

    def change(arrays):
        arrays[place].flat[arrays[place].size // 2] = value
        if not place:
            arrays[place][..., -1] = value

    return change


def check(name, dtype=np.float32, lie=np.ascontiguousarray, change=lambda arrays: None):
    x_shape, w_shape = CASES[name]
    options = dict(stride=w_shape[2])
    rng, computed = np.random.default_rng(0), 0
    g = konv.geometry(x_shape, w_shape, **options, dtype=dtype)
    x, w, b, dy = arrays = [integers(rng, s, dtype, limit=2) for s in (x_shape, w_shape, w_shape[:1], g.output_shape)]
    change(arrays)
    wide = [a.astype(np.float64) for a in arrays]
    with np.errstate(invalid="ignore"):
        right = textbook.conv(*wide[:3], **options), *textbook.conv_backward(wide[3], *wide[:2], **options)[:2]
    calls = (
        lambda out: repeats.forward(lie(x), lie(w), lie(b), g, out),
        lambda out: repeats.input_gradient(lie(dy), lie(w), g, out),
        lambda out: repeats.weight_gradient(lie(dy), lie(x), g, out),
    )
    for kind, call, result in zip(KINDS, calls, right):
        if repeats.declines(Problem(kind, g, np.dtype(dtype).name)) is None:
            call(out := lie(np.full(result.shape, np.nan, dtype)))
            assert_equal(out, result.astype(dtype), nan_equal=True)
            computed += 1
    return computed


@pytest.mark.parametrize("host", MACHINES)
def test_equals_the_textbook(host):
    with engine(MACHINES[host]):
        for name in CASES if host == "AVX-512" else list(CASES)[:2]:
            assert check(name) >= 2


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float16), BFLOAT16], ids=str)
def test_other_types(dtype):
    assert check("cells that no window reads", dtype) == 3


@pytest.mark.parametrize("host", MACHINES)
def test_in_plain_python(host, monkeypatch):
    many_small_jobs(monkeypatch)
    monkeypatch.setattr(repeats, "UNIT_PERIODS", 2)
    monkeypatch.setattr(repeats, "UNIT_BYTES", 4000)
    monkeypatch.setattr(repeats, "ROW_CELLS", 100)
    with engine(MACHINES[host], plain=True):
        assert check("cells that no window reads") >= 1
        assert check("more filters than a tile") >= 1


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(end):
    for name in CASES:
        assert check(name, lie=lambda array: guarded(array, end)) >= 1, name


def test_large_gradients_go_past_the_caches(monkeypatch):
    def lie(array):
        copy = memory.aligned(array.shape, array.dtype)
        copy[...] = array
        return copy

    monkeypatch.setattr(repeats, "STREAMED_BYTES", 0)
    asked = []
    monkeypatch.setattr(
        repeats, "spread_windows", lambda *a, make=repeats.spread_windows: (asked.append(a[-1]), make(*a))[1]
    )
    repeats._spreading.cache_clear()
    for name in CASES:
        check(name, lie=lie)
    repeats._spreading.cache_clear()
    assert True in asked and False in asked  # rows of 205 cells begin anywhere


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("place", range(4))
def test_what_is_not_finite_goes_where_the_formula_takes_it(value, place):
    check("cells that no window reads", change=spoiling(place, value))


def test_neither_threads_nor_batches_nor_lengths_change_a_bit():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((9, 20, 1205), dtype=np.float32), rng.standard_normal((4, 20, 10), dtype=np.float32)
    g = konv.geometry(x.shape, w.shape, stride=10)
    assert all(choose(Problem(kind, g, "float32")).algorithm is repeats for kind in KINDS)
    dy, results = rng.standard_normal(g.output_shape, dtype=np.float32), []
    for threads in (1, 2, 3):
        with using(threads):
            results.append((konv.conv(x, w, stride=10), *konv.conv_backward(dy, x, w, stride=10)))
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            assert_same_bits(a, b)
    y, dx = results[0][:2]
    for length in (80, 500, 1203):
        some = np.ascontiguousarray(dy[1:2, :, : length // 10])
        assert_same_bits(konv.conv(x[1:2, :, :length], w, stride=10), y[1:2, :, : length // 10].copy())
        back = konv.conv_backward(some, x[1:2, :, :length], w, stride=10, need="x")[0]
        assert_same_bits(back[..., : length // 10 * 10].copy(), dx[1:2, :, : length // 10 * 10].copy())


@pytest.mark.parametrize(
    "x_shape, w_shape, options, layout",
    [
        ((2, 16, 205), (4, 16, 10), {}, "last"),
        ((2, 16, 205), (4, 16, 10), dict(padding=1), "first"),
        ((2, 16, 205), (4, 16, 10), dict(stride=9), "first"),
        ((2, 16, 205), (9, 16, 10), {}, "first"),
        ((2, 15, 205), (4, 15, 10), {}, "first"),
        ((2, 16, 205), (4, 16, 8), {}, "first"),
        ((2, 16, 205), (4, 16, 26), {}, "first"),
        ((0, 16, 205), (4, 16, 10), {}, "first"),
        ((2, 900, 205), (4, 900, 10), {}, "first"),
    ],
)
def test_layers_of_others_are_declined(x_shape, w_shape, options, layout):
    with engine(MACHINES["AVX-512"]):
        g = konv.geometry(x_shape, w_shape, **{"stride": w_shape[2], **options})
        for kind in KINDS:
            assert repeats.declines(Problem(kind, g, "float32", False, layout))


def test_gradients_of_short_rows_are_declined():
    """Forward is not: what computes a stream must not depend on its length."""
    with engine(MACHINES["AVX-512"]):
        g = konv.geometry((2, 16, 70), (4, 16, 10), stride=10)
        taken = {kind for kind in KINDS if repeats.declines(Problem(kind, g, "float32")) is None}
    assert taken == {"forward"}


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("outputs", [1, 2, 7])
def test_chunks_have_the_bits_of_the_whole(host, outputs):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 16, 205), np.float32), rng.standard_normal((4, 16, 10), np.float32)
    with engine(MACHINES[host]), prefer("repeats"):
        whole = konv.conv(x, w, stride=10)
        chunk = guarded(x[:, :, : 10 * outputs], end=True)
        assert_same_bits(konv.conv(chunk, w, stride=10), np.ascontiguousarray(whole[:, :, :outputs]))
