"""Windows that lie apart: products on views, in both layouts, and the words that take windows apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_equal, assert_same_bits, of_any_threads
from konv import textbook
from konv.engine.plan import KINDS, Problem, choose, prefer
from konv.engine.simd import deinterleave, interleave
from strategies import LAYOUTS, dtypes, integers, seeds
from texts import both


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("s", [1, 2, 4, 8])
@pytest.mark.parametrize("word", [interleave, deinterleave])
def test_the_words(word, s, lanes):
    def text(piece, slot, x, y):
        for i, vector in enumerate(word([x.vec(lanes * i, lanes) for i in range(s)], lanes)):
            y.put(lanes * i, vector)

    x = np.arange(s * lanes, dtype=np.float32)
    made = both(text, {"x": "float32", "y": "float32"}, x=x, y=np.zeros_like(x))["y"]
    assert_equal(made, x.reshape((s, lanes) if word is interleave else (lanes, s)).T.ravel())


@st.composite
def apart(draw):
    """x, w and options of windows that do not overlap: a kernel of one cell, or as long as the stride, axis by axis."""
    axes = draw(st.integers(1, 3))
    most = (1, 40, 10, 5)[axes]
    strides = [draw(st.sampled_from([1, 2, 3, 4, 5, 8, 10, 16, 26]).filter(lambda s: s <= most)) for _ in range(axes)]
    kernel = [draw(st.sampled_from([1, s])) for s in strides]
    spatial = [
        k + s * draw(st.integers(0, 70 if axes == 1 else 8)) + draw(st.integers(0, s - 1))
        for k, s in zip(kernel, strides)
    ]
    groups = draw(st.sampled_from([1, 1, 2]))
    channels, filters = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    x = (draw(st.integers(0, 3)), groups * channels, *spatial)
    return x, (groups * filters, channels, *kernel), dict(stride=tuple(strides), groups=groups)


@settings(max_examples=60)
@given(apart(), seeds, dtypes, st.sampled_from(["C", "channels last"]))
def test_any_windows_that_lie_apart(case, seed, dtype, layout):
    x_shape, w_shape, options = case
    rng = np.random.default_rng(seed)
    x, w, b = integers(rng, x_shape, dtype, 2), integers(rng, w_shape, dtype, 2), integers(rng, w_shape[:1], dtype, 2)
    dy = integers(rng, konv.geometry(x_shape, w_shape, **options).output_shape, dtype, 2)
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    lie = LAYOUTS[layout]
    with prefer("products" if layout == "C" else "products_last"):
        y = konv.conv(lie(x), w, b, **options)
        gradients = konv.conv_backward(lie(dy), lie(x), w, **options)
    assert_equal(y, textbook.conv(*wide[:3], **options).astype(dtype))
    for gradient, right in zip(gradients, textbook.conv_backward(wide[3], *wide[:2], **options)):
        assert_equal(gradient, right.astype(dtype))


@pytest.mark.parametrize(
    "x_shape, w_shape, stride, padding",
    [
        ((3, 4, 100), (20, 4, 26), 26, 13),
        ((40, 3, 1638), (9, 3, 26), 26, ((5, 30),)),  # more images than are computed together
        ((2, 6, 21, 23), (10, 3, 5, 4), (5, 4), ((0, 2), (3, 0))),
        ((2, 4, 6, 9, 7), (3, 4, 2, 3, 4), (2, 3, 4), 1),
        ((0, 4, 100), (20, 4, 26), 26, 13),
    ],
)
def test_an_input_gradient_whose_windows_see_padding(x_shape, w_shape, stride, padding):
    options = dict(stride=stride, padding=padding, groups=x_shape[1] // w_shape[1])
    g = konv.geometry(x_shape, w_shape, **options)
    plan = choose(Problem("input_gradient", g, "float32"))
    assert plan.algorithm.NAME == "products"
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16"):
        x, w, dy = (integers(rng, shape, dtype, 2) for shape in (x_shape, w_shape, g.output_shape))
        dx, _, _ = konv.conv_backward(dy, x, w, **options, need="x")
        right = textbook.conv_backward(*(a.astype(np.float64) for a in (dy, x, w)), **options)[0]
        assert_equal(dx, right.astype(dtype))
        for n in range(min(2, len(x))):
            alone, _, _ = konv.conv_backward(dy[n : n + 1], x[n : n + 1], w, **options, need="x")
            assert_same_bits(alone, dx[n : n + 1])


@pytest.mark.parametrize(
    "x_shape, w_shape, stride, padding",
    [
        ((3, 4, 100), (40, 4, 26), 26, 13),
        ((2, 6, 21, 23), (10, 6, 5, 4), (5, 4), ((0, 7), (9, 0))),  # windows wholly in the padding
        ((2, 20, 6, 9, 7), (3, 20, 2, 3, 4), (2, 3, 4), 1),
        ((2, 17, 5, 5), (20, 17, 1, 1), 2, 1),
        ((0, 4, 100), (20, 4, 26), 26, 13),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_windows_that_see_padding_channels_last(x_shape, w_shape, stride, padding, dtype):
    options = dict(stride=stride, padding=padding)
    g = konv.geometry(x_shape, w_shape, **options)
    rng, lie = np.random.default_rng(0), LAYOUTS["channels last"]
    x, w, b, dy = (integers(rng, shape, dtype, 2) for shape in (x_shape, w_shape, w_shape[:1], g.output_shape))
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    for kind in KINDS[:2]:
        assert choose(Problem(kind, g, dtype, False, "last")).algorithm.NAME == "products_last"
    assert_equal(konv.conv(lie(x), w, b, **options), textbook.conv(*wide[:3], **options).astype(dtype))
    dx, _, _ = konv.conv_backward(lie(dy), lie(x), w, **options, need="x")
    assert_equal(dx, textbook.conv_backward(wide[3], *wide[:2], **options)[0].astype(dtype))


@pytest.mark.parametrize("layout", ["C", "channels last"])
@pytest.mark.parametrize(
    "x_shape, w_shape, stride",
    [
        ((5, 70, 9, 7), (40, 70, 1, 1), 1),
        ((5, 30, 14, 15), (70, 30, 1, 1), 2),
        ((5, 6, 40, 36), (50, 6, 4, 4), 4),
        ((5, 200, 7, 7), (40, 200, 1, 1), 1),  # one image has a panel of another width
        ((5, 4, 20), (70, 4, 5), 5),  # lines of 4 pixels
        ((2, 3, 64, 64), (41, 3, 2, 2), 2),  # rows of dy lie pages apart
    ],
)
def test_bits_depend_neither_on_the_threads_nor_on_the_batch(x_shape, w_shape, stride, layout):
    rng = np.random.default_rng(0)
    lie = LAYOUTS[layout]
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    g = konv.geometry(x_shape, w_shape, stride=stride)
    dy = rng.standard_normal(g.output_shape, np.float32)
    name = "products" if layout == "C" else "products_last"
    plan = choose(Problem(KINDS[0], g, "float32", False, "first" if layout == "C" else "last"))
    assert name == plan.algorithm.NAME
    y, whole_dx, *_ = of_any_threads(
        lambda: [konv.conv(lie(x), w, stride=stride), *konv.conv_backward(lie(dy), lie(x), w, stride=stride)]
    )
    for n in range(len(x)):
        assert_same_bits(konv.conv(lie(x[n : n + 1]), w, stride=stride), y[n : n + 1])
        dx, _, _ = konv.conv_backward(lie(dy[n : n + 1]), lie(x[n : n + 1]), w, stride=stride, need="x")
        assert_same_bits(dx, whole_dx[n : n + 1])


@pytest.mark.parametrize(
    "x_shape, w_shape, options",
    [
        ((2, 5, 3, 4), (5, 7, 2, 2), dict(stride=2)),
        ((1, 20, 3, 5), (20, 33, 2, 3), dict(stride=3)),  # cells that no window reaches
        ((2, 3, 9), (3, 4, 4), dict(stride=4, padding=((1, 2),), output_padding=1)),
        ((1, 4, 2, 3, 2), (4, 2, 1, 2, 2), dict(stride=2)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_bias_is_added_as_windows_are_written(x_shape, w_shape, options, dtype):
    rng = np.random.default_rng(0)
    x, w, b = (integers(rng, shape, np.dtype(dtype), 2) for shape in (x_shape, w_shape, w_shape[1:2]))
    with prefer("products_last"):
        y = konv.conv_transpose(LAYOUTS["channels last"](x), w, b, **options)
    right = textbook.conv_transpose(*(a.astype(np.float64) for a in (x, w, b)), **options)
    assert_equal(y, right.astype(dtype))


@pytest.mark.parametrize("groups, kernel", [(1, 2), (2, 1)])
def test_weight_gradients_where_rows_of_dy_lie_pages_apart(groups, kernel):
    x_shape, w_shape = (3, groups * 5, kernel * 32, kernel * 64), (groups * 9, 5, kernel, kernel)
    g = konv.geometry(x_shape, w_shape, stride=kernel, groups=groups)
    assert choose(Problem("weight_gradient", g, "float32")).algorithm.NAME == "products"
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16"):
        x, dy = integers(rng, x_shape, dtype, 2), integers(rng, g.output_shape, dtype, 2)
        w, options = np.zeros(w_shape, dtype), dict(stride=kernel, groups=groups)
        _, dw, _ = konv.conv_backward(dy, x, w, **options, need="w")
        right = textbook.conv_backward(*(a.astype(np.float64) for a in (dy, x, w)), **options)[1]
        assert_equal(dw, right.astype(dtype))
