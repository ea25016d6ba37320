"""Winograd beyond 3 x 3 with stride 1: phases, planes and sections; forward and both gradients."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine.winograd import winograd as algorithm
from konv.engine.winograd import winograd_cuts, winograd_weights
from konv.geometry import geometry
from plain_engine import engine
from strategies import seeds
from test_guard_page import guarded
from test_winograd import every_cut, normal

LAYOUTS = ["first", "last"]


def run(x, w, dy, layout="first", place=lambda array, layout: laid_out(array, layout), **options):
    """(y, dx, dw) by Winograd, outputs filled with NaN before."""
    g = geometry(x.shape, w.shape, **options)
    given = [place(x, layout), w, place(dy, layout)]
    y, dx = (place(np.full(shape, np.nan, np.float32), layout) for shape in (g.output_shape, x.shape))
    dw = place(np.full(w.shape, np.nan, np.float32), "first")
    algorithm.forward(given[0], w, None, g, y)
    algorithm.input_gradient(given[2], w, g, dx)
    algorithm.weight_gradient(given[2], given[0], g, dw)
    return [array.copy(order="C") for array in (y, dx, dw)]


def drawn(rng, x_shape, w_shape, **options):
    g = geometry(x_shape, w_shape, **options)
    return normal(rng, *x_shape), normal(rng, *w_shape), normal(rng, *g.output_shape)


def expected(x, w, dy, **options):
    x, w, dy = (array.astype(np.float64) for array in (x, w, dy))
    dx, dw, _ = textbook.conv_backward(dy, x, w, **options)
    return textbook.conv(x, w, **options), dx, dw


LAYERS = {  # x shape, w shape, options
    "dilated": ((2, 17, 13, 18), (33, 17, 3, 3), dict(padding=((2, 3), (0, 1)), dilation=(2, 3))),
    "3-D": ((1, 16, 5, 8, 9), (5, 16, 3, 3, 3), dict(padding=(1, 1, 2), dilation=(2, 1, 1))),
    "4x4/2": ((2, 40, 16, 18), (33, 40, 4, 4), dict(stride=2, padding=1)),
    "3x3/2": ((1, 17, 17, 31), (20, 17, 3, 3), dict(stride=2, padding=1)),
    "3x3/(1, 3)": ((2, 5, 9, 27), (6, 5, 3, 4), dict(stride=(1, 3), padding=((0, 2), (1, 2)))),
    "5x5": ((1, 16, 12, 11), (9, 16, 5, 5), dict(padding=2)),
    "1x3": ((1, 20, 5, 17), (17, 20, 1, 3), dict(padding=(0, 1))),
    "1-D": ((3, 20, 63), (33, 20, 3), dict(padding=1)),
    "1-D dilated": ((2, 20, 75), (17, 20, 3), dict(padding=8, dilation=8)),
    "1-D k16/8": ((2, 20, 67), (33, 20, 16), dict(stride=8, padding=4)),
    "1-D k7/3": ((2, 9, 50), (12, 9, 7), dict(stride=3)),
    "3-D/2": ((1, 12, 5, 9, 10), (10, 12, 3, 3, 3), dict(stride=2, padding=1)),
    "small": ((3, 12, 3, 5), (10, 12, 3, 3), dict(padding=1)),
}


@pytest.mark.parametrize("name, layout", list(zip(LAYERS, itertools.cycle(LAYOUTS))))
def test_forward_and_gradients(name, layout):
    x_shape, w_shape, options = LAYERS[name]
    arrays = drawn(np.random.default_rng(0), x_shape, w_shape, **options)
    for actual, right in zip(run(*arrays, layout, **options), expected(*arrays, **options)):
        assert (np.abs(actual - right) <= 1e-5 * np.abs(right).max()).all()


@settings(max_examples=20)
@given(st.data(), seeds)
def test_any_padding_and_batch(data, seed):
    """Of layers of few kernels to compile."""
    draw = data.draw
    kernel, options = draw(st.sampled_from([((4, 4), dict(stride=2)), ((1, 3, 3), dict(dilation=(1, 2, 2)))]))
    padding = [draw(st.integers(0, 2)) for _ in kernel]
    sizes = [16 + k - 2 - 2 * n if k > 1 else 1 for k, n in zip(kernel, padding)]
    x_shape, w_shape = (draw(st.integers(1, 3)), 17, *sizes), (20, 17, *kernel)
    arrays = drawn(np.random.default_rng(seed), x_shape, w_shape, padding=padding, **options)
    for actual, right in zip(run(*arrays, padding=padding, **options), expected(*arrays, padding=padding, **options)):
        assert (np.abs(actual - right) <= 1e-5 * np.abs(right).max()).all()


@pytest.mark.parametrize("name", ["4x4/2", "3x3/2", "1-D k16/8"])
def test_bits_of_sections_depend_on_neither_threads_nor_the_batch(name):
    x_shape, w_shape, options = LAYERS[name]
    x, w, dy = drawn(np.random.default_rng(1), (5, *x_shape[1:]), w_shape, **options)
    before = konv.get_threads()
    try:
        konv.set_threads(1)
        y, dx, dw = run(x, w, dy, **options)
        for threads in (2, 7):
            konv.set_threads(threads)
            for actual, right in zip(run(x, w, dy, "last", **options), (y, dx, dw)):
                assert_same_bits(actual, right)
            own_y, own_dx, _ = run(x[3:4], w, dy[3:4], **options)
            assert_same_bits(own_y, y[3:4].copy())
            assert_same_bits(own_dx, dx[3:4].copy())
    finally:
        konv.set_threads(before)


def test_a_phase_has_the_bits_of_a_layer_that_is_not_dilated():
    x, w, dy = drawn(np.random.default_rng(0), (2, 17, 22, 31), (33, 17, 3, 3), padding=(2, 6), dilation=(2, 3))
    y, dx, _ = run(x, w, dy, padding=(2, 6), dilation=(2, 3))
    for i, j in np.ndindex(2, 3):
        phase = (slice(None), slice(None), slice(i, None, 2), slice(j, None, 3))
        own_y, own_dx, _ = run(x[phase], w, np.ascontiguousarray(dy[phase]), padding=(1, 2))
        assert_same_bits(own_y, np.ascontiguousarray(y[phase]))
        assert_same_bits(own_dx, np.ascontiguousarray(dx[phase]))


def test_bits_depend_on_neither_threads_nor_layout():
    arrays = drawn(np.random.default_rng(1), (2, 40, 5, 13, 12), (33, 40, 3, 3, 3), padding=1, dilation=(1, 2, 1))
    before = konv.get_threads()
    try:
        konv.set_threads(1)
        results = run(*arrays, padding=1, dilation=(1, 2, 1))
        for threads in (2, 3, 7):
            konv.set_threads(threads)
            for layout in LAYOUTS:
                for actual, right in zip(run(*arrays, layout, padding=1, dilation=(1, 2, 1)), results):
                    assert_same_bits(actual, right)
    finally:
        konv.set_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((1, 3, 5, 9), (2, 3, 3, 3), dict(padding=2, dilation=2)), ((2, 17, 14, 23), (9, 17, 3, 3), dict(padding=1, dilation=(3, 2))),
    ((1, 2, 3, 5, 6), (3, 2, 3, 3, 3), dict(padding=1)), ((1, 17, 4, 7, 9), (17, 17, 2, 3, 3), dict(dilation=(2, 1, 2))),
    *(LAYERS[name] for name in ("4x4/2", "3x3/2", "3x3/(1, 3)", "1-D", "1-D k16/8")),
])  # fmt: skip
def test_guard_pages(x_shape, w_shape, options, end, layout):
    def place(array, layout):
        if layout == "first":
            return guarded(np.ascontiguousarray(array), end)
        return np.moveaxis(guarded(np.ascontiguousarray(np.moveaxis(array, 1, -1)), end), -1, 1)

    arrays = drawn(np.random.default_rng(0), x_shape, w_shape, **options)
    for actual, right in zip(run(*arrays, layout, place, **options), run(*arrays, **options)):
        assert_same_bits(actual, right)


def only(monkeypatch, kept):
    """Cuts that turn taps once for all sections, or those that do not; how many they are is counted in the list returned."""
    found = []

    def cuts(*given):
        own = [cut for cut in every_cut(*given) if not cut.ahead and (cut.kept > 0) == kept]
        found.append(len(own))
        return own or every_cut(*given)

    monkeypatch.setattr(winograd_cuts, "_cuts", cuts)
    algorithm._prepare.cache_clear()
    return found


@pytest.mark.parametrize("name", ["3x3/2", "3x3/(1, 3)", "1-D k16/8"])
def test_bits_do_not_depend_on_where_taps_are_turned(monkeypatch, name):
    """Nor are weights read beyond a guard page."""
    x_shape, w_shape, options = LAYERS[name]
    x, w, dy = drawn(np.random.default_rng(0), x_shape, w_shape, **options)
    only(monkeypatch, False)
    right = run(x, w, dy, **options)
    counts = only(monkeypatch, True)
    for end in (False, True):
        for actual, expected in zip(run(x, guarded(w, end), dy, **options), right):
            assert_same_bits(actual, expected)
    algorithm._prepare.cache_clear()
    assert counts[0] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((1, 2, 9, 10), (2, 2, 3, 3), dict(padding=2, dilation=2)), ((1, 2, 3, 5, 6), (2, 2, 2, 3, 3), dict(padding=1)),
    *(LAYERS[name] for name in ("4x4/2", "3x3/2", "5x5", "1-D", "1-D k16/8", "1-D k7/3")),
])  # fmt: skip
def test_no_number_is_lost(value, x_shape, w_shape, options):
    rng = np.random.default_rng(0)
    arrays = drawn(rng, x_shape, w_shape, **options)
    for which, array in enumerate(arrays):
        for place in rng.integers(0, array.shape, (12, array.ndim)):
            hit = list(arrays)
            hit[which] = array.copy()
            hit[which][tuple(place)] = value
            with np.errstate(invalid="ignore"):
                references = expected(*hit, **options)
            for actual, right in zip(run(*hit, **options), references):
                assert not np.isfinite(actual[~np.isfinite(right)]).any()


@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((1, 3, 9, 11), (5, 3, 3, 3), dict(padding=2, dilation=(2, 3))), ((1, 3, 2, 5, 6), (5, 3, 2, 3, 3), dict(padding=1)),
    ((1, 3, 9, 11), (5, 3, 4, 4), dict(padding=1, stride=2)), ((2, 3, 20), (5, 3, 5), dict(padding=1, stride=3)),
])  # fmt: skip
def test_text_on_numpy_equals_compiled(monkeypatch, x_shape, w_shape, options):
    arrays = drawn(np.random.default_rng(0), x_shape, w_shape, **options)
    compiled = run(*arrays, **options)
    if "stride" in options:
        only(monkeypatch, True)
    with engine(plain=True):
        plain = run(*arrays, **options)
    for actual, right in zip(plain, compiled):
        assert (np.abs(actual - right) <= 1e-5 * np.abs(right).max()).all()


@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((2, 512, 33, 33), (512, 512, 3, 3), dict(padding=2, dilation=2)), ((2, 64, 8, 28, 28), (64, 64, 3, 3, 3), dict(padding=1)),
    ((8, 128, 32, 32), (128, 128, 4, 4), dict(padding=1, stride=2)), ((8, 64, 28, 28), (64, 64, 5, 5), dict(padding=2)),
    ((4, 128, 1024), (128, 128, 3), dict(padding=8, dilation=8)),
])  # fmt: skip
def test_plan_takes_them(x_shape, w_shape, options):
    for kind in ("forward", "input_gradient", "weight_gradient"):
        assert konv.plan(x_shape, w_shape, kind=kind, **options).algorithm is algorithm


@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((16, 256, 16, 16), (512, 256, 4, 4), dict(padding=1, stride=2)),
    ((16, 128, 1024), (128, 128, 3), dict(padding=16, dilation=8)),
    ((8, 128, 56, 56), (128, 128, 3, 3), dict(padding=1, stride=2)),
])  # fmt: skip
def test_workspace_is_small(x_shape, w_shape, options):
    """At most 15 % of the im2col matrix, of an input gradient of that with the columns of dx, with two threads."""
    g = geometry(x_shape, w_shape, **options)
    cells, taps = g.batch * np.prod(g.output) * 4, np.prod(g.kernel)
    assert winograd_cuts.best(g, False, "float32", 2).size <= 0.15 * cells * taps * g.channels
    columns = g.batch * np.prod(g.spatial) * 4 * taps // np.prod(g.stride)
    assert winograd_cuts.best(g, True, "float32", 2).size <= 0.15 * columns * g.filters
    assert winograd_weights.prepare(g, "float32", "first", 2).size <= 0.15 * cells * taps * g.channels
