"""Winograd on dilated and 3-D layers: phases and planes, forward and both gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine import winograd as algorithm
from konv.engine import winograd_weights
from konv.engine.winograd_outer import add_parts, tiles_to_weights
from konv.geometry import geometry
from strategies import seeds
from test_guard_page import guarded
from test_winograd import PlainJob, normal, run_texts
from test_winograd_weights import flat

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


@st.composite
def layers(draw):
    """x shape, w shape, options: 2-D dilated, and 3-D with any depth, stride 1."""
    axes = draw(st.sampled_from([2, 3, 3]))
    kernel = ((draw(st.integers(1, 4)),) if axes == 3 else ()) + (3, 3)
    dilation = tuple(draw(st.integers(1, 4)) for _ in kernel)
    padding = tuple((draw(st.integers(0, 5)), draw(st.integers(0, 5))) for _ in kernel)
    spatial = tuple(
        draw(
            st.integers(
                max(1, d * (k - 1) + 1 - low - high), max(1, d * (k - 1) + 1 - low - high) + (4 if axes == 3 else 14)
            )
        )
        for k, d, (low, high) in zip(kernel, dilation, padding)
    )
    channels, filters = draw(st.sampled_from([1, 16, 17, 40])), draw(st.sampled_from([1, 5, 33]))
    return (
        (draw(st.integers(1, 2)), channels, *spatial),
        (filters, channels, *kernel),
        dict(padding=padding, dilation=dilation),
    )


@settings(max_examples=40)
@given(layers(), st.sampled_from(LAYOUTS), seeds)
def test_phases_and_planes(layer, layout, seed):
    x_shape, w_shape, options = layer
    arrays = drawn(np.random.default_rng(seed), x_shape, w_shape, **options)
    for actual, right in zip(run(*arrays, layout, **options), expected(*arrays, **options)):
        assert (np.abs(actual - right) <= 1e-5 * np.abs(right).max()).all()


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
])  # fmt: skip
def test_guard_pages(x_shape, w_shape, options, end, layout):
    def place(array, layout):
        if layout == "first":
            return guarded(np.ascontiguousarray(array), end)
        return np.moveaxis(guarded(np.ascontiguousarray(np.moveaxis(array, 1, -1)), end), -1, 1)

    arrays = drawn(np.random.default_rng(0), x_shape, w_shape, **options)
    for actual, right in zip(run(*arrays, layout, place, **options), run(*arrays, **options)):
        assert_same_bits(actual, right)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((1, 2, 9, 10), (2, 2, 3, 3), dict(padding=2, dilation=2)), ((1, 2, 3, 5, 6), (2, 2, 2, 3, 3), dict(padding=1)),
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
])  # fmt: skip
def test_text_on_numpy_equals_compiled(monkeypatch, x_shape, w_shape, options):
    arrays = drawn(np.random.default_rng(0), x_shape, w_shape, **options)
    compiled = run(*arrays, **options)
    run_texts(monkeypatch)
    monkeypatch.setattr(algorithm, "address", flat)
    for name, value in [("Job", PlainJob), ("address", flat), ("prepare", winograd_weights.prepare.__wrapped__),
                        ("tiles_to_weights", tiles_to_weights.text), ("add_parts", add_parts.text)]:  # fmt: skip
        monkeypatch.setattr(winograd_weights, name, value)
    for actual, right in zip(run(*arrays, **options), compiled):
        assert (np.abs(actual - right) <= 1e-5 * np.abs(right).max()).all()


def test_plan_takes_them():
    for x_shape, w_shape, options in [
        ((2, 512, 33, 33), (512, 512, 3, 3), dict(padding=2, dilation=2)),
        ((2, 64, 8, 28, 28), (64, 64, 3, 3, 3), dict(padding=1)),
    ]:
        for kind in ("forward", "input_gradient", "weight_gradient"):
            assert konv.plan(x_shape, w_shape, kind=kind, **options).algorithm is algorithm
