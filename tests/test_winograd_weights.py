"""Winograd's weight gradient: against the textbook within its rounding, on NumPy and compiled, its hostile inputs."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_same_bits
from konv import textbook
from konv.engine.winograd import winograd_weights
from konv.geometry import geometry
from plain_engine import engine
from strategies import seeds
from test_guard_page import guarded
from test_winograd import (
    FILLED,
    TAPS,
    UNIT,
    assert_within,
    normal,
    tiles_of,
    wide,
)
from test_winograd_formulas import matrix, number

LAYOUTS = ["first", "last"]


def laid(array, layout):
    """The array with its numbers in the order of memory that a layout has."""
    if layout == "first":
        return np.ascontiguousarray(array)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def run_both(dy, x, padding, layout="first"):
    g = geometry(x.shape, (dy.shape[1], x.shape[1], TAPS, TAPS), padding=padding)
    dw, db = np.full(g.w_shape, np.nan, np.float32), np.full(g.filters, np.nan, np.float32)
    winograd_weights.weight_and_bias_gradient(laid(dy, layout), laid(x, layout), g, dw, db)
    return dw, db


def run(dy, x, padding, layout="first"):
    return run_both(dy, x, padding, layout)[0]


def textbook_weights(dy, x, padding):
    w = np.zeros((dy.shape[1], x.shape[1], TAPS, TAPS))
    return textbook.conv_backward(*wide(dy, x), w, padding=padding)[1]


def drawn(rng, x_shape, filters, padding):
    g = geometry(x_shape, (filters, x_shape[1], TAPS, TAPS), padding=padding)
    return normal(rng, *g.output_shape), normal(rng, *x_shape)


@functools.cache
def magnitudes(scheme):
    n = scheme.points
    pairs = [(scheme.inputs, n), (scheme.upstream, scheme.outputs), (scheme.weights, n)]
    return [np.abs(np.array(matrix(formula, n, number))) for formula, n in pairs]


def error_bound(dy, x, padding):
    """Roundings on the longest path times the sum of absolute values met on the way, as for the forward computation."""
    padded = np.pad(np.abs(x).astype(np.float64), ((0, 0), (0, 0), *padding))
    schemes, windows = tiles_of(padded, dy.shape[2:], (TAPS, TAPS))
    (bt, e, dt), (bt_, e_, dt_) = (magnitudes(scheme) for scheme in schemes)
    (n, filters), (rows, columns) = dy.shape[:2], windows.shape[2:4]
    whole = np.zeros((n, filters, rows * schemes[0].outputs, columns * schemes[1].outputs))
    whole[:, :, : dy.shape[2], : dy.shape[3]] = np.abs(dy)
    tiles = whole.reshape(n, filters, rows, schemes[0].outputs, columns, schemes[1].outputs)
    v = np.einsum("pi,nchwij,qj->nchwpq", bt, windows, bt_, optimize=True)
    q = np.einsum("pi,nfhiwj,qj->nfhwpq", e, tiles, e_, optimize=True)
    depth = 6 * (4 + 2) + n * rows * columns + 2
    return depth * UNIT / (1 - depth * UNIT) * np.einsum("op,nchwpq,nfhwpq,rq->fcor", dt, v, q, dt_, optimize=True)


@st.composite
def layers(draw):
    padding = tuple((draw(st.integers(0, 4)), draw(st.integers(0, 4))) for _ in range(2))
    sizes = [draw(st.sampled_from([n for n in range(1, 22) if n + low + high - 2 in FILLED])) for low, high in padding]
    channels, filters = draw(st.sampled_from([1, 5, 16, 17, 70])), draw(st.sampled_from([1, 5, 32, 33, 100]))
    return (draw(st.integers(1, 4)), channels, *sizes), filters, padding


@settings(max_examples=40)
@given(layers(), st.sampled_from(LAYOUTS), seeds)
def test_weight_gradient(layer, layout, seed):
    x_shape, filters, padding = layer
    dy, x = drawn(np.random.default_rng(seed), x_shape, filters, padding)
    assert_within(run(dy, x, padding, layout), textbook_weights(dy, x, padding), error_bound(dy, x, padding))


@pytest.mark.parametrize("images, channels, filters, size", [(8, 64, 64, 28), (2, 256, 64, 14), (1, 512, 32, 7)])
def test_error_is_as_stated(images, channels, filters, size):
    """Under 3e-6 of the largest weight's gradient; the algorithm's docstring says so."""
    dy, x = drawn(np.random.default_rng(0), (images, channels, size, size), filters, 1)
    expected = textbook_weights(dy, x, 1)
    assert np.abs(run(dy, x, 1) - expected).max() <= 3e-6 * np.abs(expected).max()


@pytest.fixture
def threads():
    before = konv.get_threads()
    yield konv.set_threads
    konv.set_threads(before)


@pytest.mark.parametrize("shape, filters", [
    ((5, 40, 14, 14), 70), ((9, 130, 7, 7), 40), ((1, 16, 33, 190), 33), ((2, 65, 9, 9), 129), ((40, 16, 28, 28), 9),
])  # fmt: skip
def test_bits_do_not_depend_on_threads_or_layout(threads, shape, filters):
    dy, x = drawn(np.random.default_rng(1), shape, filters, 1)
    threads(1)
    dw, db = run_both(dy, x, 1)
    pixels, bound = (0, 2, 3), dy.size // filters * UNIT
    assert_within(db, dy.sum(axis=pixels, dtype=np.float64), bound * np.abs(dy).sum(axis=pixels, dtype=np.float64))
    for n in (2, 3, 7):
        threads(n)
        for layout in LAYOUTS:
            for actual, expected in zip(run_both(dy, x, 1, layout), (dw, db)):
                assert_same_bits(actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("x_shape, filters, padding", [
    ((1, 1, 3, 3), 1, 0), ((2, 3, 13, 9), 4, 1), ((1, 17, 8, 8), 33, ((2, 0), (0, 4))), ((7, 65, 7, 7), 5, 1),
    ((1, 2, 5, 100), 3, 1), ((1, 2, 5, 14), 3, 1), ((9, 16, 64, 64), 3, 0),
])  # fmt: skip
def test_guard_pages(x_shape, filters, padding, end, layout):
    dy, x = drawn(np.random.default_rng(0), x_shape, filters, padding)
    g = geometry(x_shape, (filters, x_shape[1], TAPS, TAPS), padding=padding)
    out = guarded(np.full(g.w_shape, np.nan, np.float32), end)
    given = (guarded(np.moveaxis(laid(a, layout), 1, -1) if layout == "last" else a, end) for a in (dy, x))
    winograd_weights.weight_gradient(*(np.moveaxis(a, -1, 1) if layout == "last" else a for a in given), g, out)
    assert_same_bits(out.copy(), run(dy, x, padding))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("padding", [0, 1, ((0, 2), (3, 0))])
def test_no_number_is_lost(value, padding):
    """NaN or infinity in x or dy is seen in every weight that meets it, and in no other channel's or filter's."""
    rng = np.random.default_rng(0)
    dy, x = drawn(rng, (1, 2, 9, 10), 3, padding)
    for which, array in enumerate((dy, x)):
        for place in np.ndindex(array.shape[2:]):
            hit = [dy.copy(), x.copy()]
            hit[which][(0, 1, *place)] = value
            with np.errstate(invalid="ignore"):
                expected = np.isfinite(textbook_weights(*hit, padding))
            finite = np.isfinite(run(*hit, padding))
            assert not finite[~expected].any(), (which, place)
            others = np.delete(finite, 1, axis=which)
            assert others.all(), (which, place)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, filters", [((2, 3, 7, 5), 5), ((3, 17, 6, 18), 20), ((20, 5, 12, 12), 1)])
def test_text_on_numpy_equals_compiled(shape, filters, layout):
    dy, x = drawn(np.random.default_rng(0), shape, filters, 1)
    compiled = run(dy, x, 1, layout)
    with engine(plain=True):
        plain = run(dy, x, 1, layout)
    assert (np.abs(plain - compiled) <= 1e-5 * np.abs(compiled).max()).all()


def test_empty_batch():
    dw = run(np.zeros((0, 4, 9, 9), np.float32), np.zeros((0, 8, 9, 9), np.float32), 1)
    assert dw.shape == (4, 8, TAPS, TAPS) and not dw.any()


@pytest.mark.parametrize("shape, filters", [
    ((8, 64, 56, 56), 64), ((8, 128, 28, 28), 128), ((8, 256, 14, 14), 256), ((8, 512, 7, 7), 512), ((100, 64, 8, 8), 64),
])  # fmt: skip
def test_workspace_is_small(threads, shape, filters):
    """At most 15 % of the im2col matrix, with two threads."""
    threads(2)
    g = geometry(shape, (filters, shape[1], TAPS, TAPS), padding=1)
    matrix_bytes = g.batch * np.prod(g.output) * g.channels * TAPS * TAPS * 4
    assert winograd_weights.prepare(g, "float32", "first", 2).size <= 0.15 * matrix_bytes
