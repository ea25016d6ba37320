"""``konv.conv`` and ``konv.conv_backward``: against the textbook, PyTorch and numerical gradients, exactly on integers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_close, assert_equal, assert_same_bits, untouched
from konv import textbook
from konv.arrays import layout_of
from konv.engine import columns
from oracles import numerical_gradient, torch_conv, with_gradients
from preferring import layer, repeats_the_plan
from strategies import (
    BFLOAT16,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    WRITABLE_LAYOUTS,
    convolutions,
    dtypes,
    integers,
    layouts,
    plain,
    seeds,
    spread,
)

pytestmark = pytest.mark.usefixtures("every_algorithm")


def repeated(case, *dtypes):
    return repeats_the_plan(konv.geometry(case.x_shape, case.w_shape, **case.options), *dtypes)


def draw_arrays(case, seed, dtype=np.float64):
    """x, w, b and an upstream gradient, small integers."""
    rng = np.random.default_rng(seed)
    x, w, b = case.arrays(rng, dtype)
    return x, w, b, integers(rng, konv.geometry(x.shape, w.shape, **case.options).output_shape, dtype)


@given(convolutions(modes=PADDING_MODES), seeds)
def test_equals_the_textbook_and_pytorch(case, seed):
    if repeated(case, np.float64):
        return
    x, w, b, dy = draw_arrays(case, seed)
    with untouched(x, w, dy):
        y = konv.conv(x, w, b, **case.options)
        gradients = konv.conv_backward(dy, x, w, **case.options)
    assert_equal(y, textbook.conv(x, w, b, **case.options), contiguous=True)
    for actual, expected in zip(gradients, textbook.conv_backward(dy, x, w, **case.options)):
        assert_equal(actual, expected, contiguous=True)
    if len(x):  # PyTorch does not differentiate empty batches in every mode
        pairs = konv.geometry(x.shape, w.shape, **case.options).padding
        options = dict(stride=tuple(spread(case.stride, x.ndim - 2)), dilation=tuple(spread(case.dilation, x.ndim - 2)))
        options |= dict(pairs=pairs, groups=case.groups, padding_mode=case.padding_mode)
        bias = np.zeros(len(w)) if b is None else b
        expected, expected_gradients = with_gradients(lambda *a: torch_conv(*a, **options), dy, x, w, bias)
        assert_equal(y, expected)
        for actual, expected in zip(gradients, expected_gradients):
            assert_equal(actual, expected)


@given(convolutions(modes=PADDING_MODES), seeds, dtypes, st.tuples(layouts, layouts, layouts, layouts))
def test_any_dtype_in_any_memory_layout(case, seed, dtype, layout):
    if repeated(case, dtype):
        return
    arrays = [None if a is None else LAYOUTS[name](a) for a, name in zip(draw_arrays(case, seed, dtype), layout)]
    x, w, b, dy = arrays
    with untouched(*(a for a in arrays if a is not None)):
        y = konv.conv(x, w, b, **case.options)
        gradients = konv.conv_backward(dy, x, w, **case.options)
    expected = textbook.conv(plain(x), plain(w), plain(b), **case.options)
    assert_equal(y, expected.astype(dtype), contiguous=layout_of(x))
    gradient_layouts = layout_of(x), "first", "first"
    expected = textbook.conv_backward(plain(dy), plain(x), plain(w), **case.options)
    for actual, right, lies in zip(gradients, expected, gradient_layouts):
        assert_equal(actual, right.astype(dtype), contiguous=lies)


@given(convolutions(modes=PADDING_MODES, min_batch=1), seeds, dtypes)
def test_random_floats_are_off_by_rounding_only(case, seed, dtype):
    if repeated(case, dtype):
        return
    rng = np.random.default_rng(seed)
    shapes = [a.shape for a in draw_arrays(case, seed) if a is not None]
    x, w, *b, dy = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    b = b[0] if b else None
    wide, sizes = [plain(a) for a in (x, w, b, dy)], [None if a is None else abs(plain(a)) for a in (x, w, b, dy)]
    ones = [None if a is None else np.ones(a.shape) for a in (x, w, b, dy)]

    def everything(convolve, back, x, w, b, dy):
        return [convolve(x, w, b, **case.options), *back(dy, x, w, **case.options)]

    actual = everything(konv.conv, konv.conv_backward, x, w, b, dy)
    # The textbook counts the terms of each sum when it is given ones, and sums their absolute values.
    expected, scales, lengths = (
        everything(textbook.conv, textbook.conv_backward, *arrays) for arrays in (wide, sizes, ones)
    )
    for a, e, scale, length in zip(actual, expected, scales, lengths):
        assert_close(a, e, dtype=dtype, length=length, scale=scale)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("axes", [1, 2])
def test_gradients_equal_numerical_ones(axes, mode):
    """Convolution is linear in each argument, so central differences with step 1 are exact on integers."""
    rng = np.random.default_rng(axes)
    options = dict(stride=2, padding=((2, 1),) * axes, groups=2, padding_mode=mode, dilation=1)
    x, w, b = integers(rng, (2, 4, *[5, 4][:axes])), integers(rng, (2, 2, *[3, 2][:axes])), integers(rng, (2,))
    dy = integers(rng, konv.conv(x, w, b, **options).shape)
    dx, dw, db = konv.conv_backward(dy, x, w, **options)
    assert_equal(dx, numerical_gradient(lambda x: konv.conv(x, w, b, **options), x, dy))
    assert_equal(dw, numerical_gradient(lambda w: konv.conv(x, w, b, **options), w, dy))
    assert_equal(db, numerical_gradient(lambda b: konv.conv(x, w, b, **options), b, dy))


@given(convolutions(modes=PADDING_MODES), seeds, st.integers(1, 2_000))
def test_blocks_of_any_size_give_the_same(case, seed, block_bytes):
    """Large inputs are computed in blocks; here the blocks are made small instead."""
    if repeated(case, np.float64):
        return
    x, w, b, dy = draw_arrays(case, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_BYTES", block_bytes)
        y = konv.conv(x, w, b, **case.options)
        gradients = konv.conv_backward(dy, x, w, **case.options)
    assert_equal(y, textbook.conv(x, w, b, **case.options))
    for actual, expected in zip(gradients, textbook.conv_backward(dy, x, w, **case.options)):
        assert_equal(actual, expected)


def test_a_problem_larger_than_one_block():
    """Several blocks of samples, and several blocks of rows within a sample, at the shipped block size."""
    rng = np.random.default_rng(0)
    for shape, filters in (((40, 16, 32, 32), 4), ((2, 32, 90, 90), 4)):
        x, w = integers(rng, shape, np.float32), integers(rng, (filters, shape[1], 3, 3), np.float32)
        column_bytes = x.nbytes * 9
        assert column_bytes > 2 * columns.BLOCK_BYTES
        y = konv.conv(x, w, padding=1)
        assert_equal(y, textbook.conv(x, w, padding=1))
        dy = integers(rng, y.shape, np.float32, limit=1)
        for actual, expected in zip(
            konv.conv_backward(dy, x, w, padding=1), textbook.conv_backward(dy, x, w, padding=1)
        ):
            assert_equal(actual, expected)


@given(
    convolutions(modes=PADDING_MODES, min_batch=1),
    seeds,
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([200, 2_000, columns.BLOCK_BYTES]),
)
def test_a_sample_does_not_depend_on_its_batch(case, seed, dtype, block_bytes):
    if repeated(case, dtype) and repeated(replace(case, x_shape=(1, *case.x_shape[1:])), dtype):
        return
    rng = np.random.default_rng(seed)
    x, w, b, dy = (None if a is None else rng.standard_normal(a.shape).astype(dtype) for a in draw_arrays(case, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_BYTES", block_bytes)
        y = konv.conv(x, w, b, **case.options)
        dx, _, _ = konv.conv_backward(dy, x, w, **case.options, need="x")
        for n in range(len(x)):
            alone = slice(n, n + 1)
            assert_same_bits(konv.conv(x[alone], w, b, **case.options), y[alone])
            assert_same_bits(konv.conv_backward(dy[alone], x[alone], w, **case.options, need="x")[0], dx[alone])


@pytest.mark.parametrize(
    "shape, filters, kernel", [((9, 16, 28, 28), 32, 3), ((33, 3, 17, 19), 8, 5), ((5, 64, 7, 7), 64, 1)]
)
def test_a_sample_of_a_real_layer_does_not_depend_on_its_batch(shape, filters, kernel):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape, dtype=np.float32)
    w = rng.standard_normal((filters, shape[1], kernel, kernel), dtype=np.float32)
    y = konv.conv(x, w, padding="same")
    dx, _, _ = konv.conv_backward(y, x, w, padding="same", need="x")
    for part in (slice(0, 1), slice(3, 4), slice(1, 4), slice(2, None, 2)):
        assert_same_bits(konv.conv(x[part], w, padding="same"), y[part])
        assert_same_bits(konv.conv_backward(y[part], x[part], w, padding="same", need="x")[0], dx[part])


@settings(max_examples=settings.default.max_examples // 2)  # each compiles for two types
@given(convolutions(modes=PADDING_MODES), seeds, st.sampled_from([np.dtype(np.float16), BFLOAT16]))
def test_half_types_are_the_float32_result_rounded_once(case, seed, dtype):
    if repeated(case, dtype, np.float32):
        return
    rng = np.random.default_rng(seed)
    x, w, b, dy = (None if a is None else rng.standard_normal(a.shape).astype(dtype) for a in draw_arrays(case, seed))
    wide = [None if a is None else a.astype(np.float32) for a in (x, w, b, dy)]
    assert_same_bits(konv.conv(x, w, b, **case.options), konv.conv(*wide[:3], **case.options).astype(dtype))
    gradients = konv.conv_backward(dy, x, w, **case.options)
    for actual, expected in zip(gradients, konv.conv_backward(wide[3], *wide[:2], **case.options)):
        assert_same_bits(actual, expected.astype(dtype))


@given(convolutions(modes=PADDING_MODES), seeds, dtypes)
def test_nan_and_infinity_reach_what_they_reach_in_the_textbook(case, seed, dtype):
    if repeated(case, dtype):
        return
    rng = np.random.default_rng(seed)
    arrays = draw_arrays(case, seed, dtype)
    for array in arrays:
        if array is not None and array.size:
            array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf])
    x, w, b, dy = arrays
    wide = [plain(a) for a in arrays]
    with np.errstate(invalid="ignore"):
        actual = [konv.conv(x, w, b, **case.options), *konv.conv_backward(dy, x, w, **case.options)]
        expected = textbook.conv(*wide[:3], **case.options)
        expected = [expected, *textbook.conv_backward(wide[3], *wide[:2], **case.options)]
        for a, e in zip(actual, expected):
            assert_equal(a, e.astype(dtype), nan_equal=True)


@pytest.mark.parametrize("groups", [1, 6])
def test_nothing_is_said_of_infinities(groups):
    """Kernels are silent; so is the product of NumPy's that takes weights that are not finite (warnings are errors here)."""
    x, w = np.ones((2, 6, 9, 9), np.float32), np.full((6, 6 // groups, 3, 3), np.inf, np.float32)
    with np.errstate(all="raise"):
        y = konv.conv(x - 1, w, padding=1, groups=groups)
        gradients = konv.conv_backward(np.full_like(x, -np.inf), x, w, padding=1, groups=groups)
    assert np.isnan(y).all() and not any(np.isfinite(gradient).any() for gradient in gradients)


@given(convolutions(modes=PADDING_MODES), seeds, dtypes, st.sampled_from(WRITABLE_LAYOUTS))
def test_out_is_written_in_any_memory_layout(case, seed, dtype, layout):
    if repeated(case, dtype):
        return
    x, w, b, _ = draw_arrays(case, seed, dtype)
    expected = textbook.conv(plain(x), plain(w), plain(b), **case.options).astype(dtype)
    out = LAYOUTS[layout](np.full(expected.shape, np.nan, dtype))
    owner = out if out.base is None else out.base
    with untouched(x, w):
        result = konv.conv(x, w, b, **case.options, out=out)
    assert result is out
    assert_equal(np.ascontiguousarray(out), expected)
    if layout in ("slice", "every second", "negative strides"):
        assert np.isnan(owner).sum() == owner.size - out.size, "cells around out were written to"


@pytest.mark.parametrize("need", [(), "x", "w", "b", ("x",), ("w", "b"), ["x", "b"], {"w", "x"}, ("b", "w", "x")])
def test_need_names_the_gradients_that_are_computed(need):
    rng = np.random.default_rng(0)
    x, w, dy = integers(rng, (2, 3, 7)), integers(rng, (4, 3, 2)), integers(rng, (2, 4, 6))
    everything = dict(zip("xwb", konv.conv_backward(dy, x, w)))
    for name, actual in zip("xwb", konv.conv_backward(dy, x, w, need=need)):
        if name in need:
            assert_equal(actual, everything[name])
        else:
            assert actual is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_an_empty_batch(dtype, mode):
    x, w, b = np.zeros((0, 4, 6, 5), dtype), np.ones((6, 2, 3, 2), dtype), np.ones(6, dtype)
    options = dict(stride=(2, 1), padding=((1, 0), (1, 1)), groups=2, padding_mode=mode)
    y = konv.conv(x, w, b, **options)
    assert_equal(y, np.zeros((0, 6, 3, 6), dtype), contiguous=True)
    dx, dw, db = konv.conv_backward(y, x, w, **options)
    assert_equal(dx, x)
    assert_equal(dw, np.zeros_like(w))
    assert_equal(db, np.zeros_like(b))


def of_phases(kernel, dilation, channels, filters, groups):
    """Without the stride, which is two things here."""
    options = dict(dilation=dilation, groups=groups, padding=1)
    w_shape = (filters, channels // groups, kernel)
    return [konv.geometry((2, channels, 75), w_shape, stride=stride, **options) for stride in (2, 3)], np.float64


@layer(of_phases)
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 9, 10, 17])
@pytest.mark.parametrize("channels, filters, groups", [(1, 1, 1), (3, 3, 3), (8, 6, 2), (10, 12, 1)])
def test_phases_of_an_input_gradient_may_have_other_taps(kernel, dilation, channels, filters, groups):
    """With stride 2 the even and the odd cells of dx meet other numbers of weights, neighbours or not."""
    rng = np.random.default_rng(kernel)
    x, w = integers(rng, (2, channels, 75)), integers(rng, (filters, channels // groups, kernel))
    for stride in (2, 3):
        options = dict(stride=stride, dilation=dilation, groups=groups, padding=1)
        dy = integers(rng, konv.geometry(x.shape, w.shape, **options).output_shape)
        for actual, expected in zip(
            konv.conv_backward(dy, x, w, **options), textbook.conv_backward(dy, x, w, **options)
        ):
            assert_equal(actual, expected)
