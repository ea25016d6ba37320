"""``konv.conv_transpose`` and its gradients: against the textbook, PyTorch and ``konv.conv_backward``."""

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
from konv.geometry import transposed_geometry
from oracles import numerical_gradient, torch_conv_transpose, with_gradients
from preferring import repeats_the_plan
from strategies import (
    BFLOAT16,
    DTYPES,
    LAYOUTS,
    dtypes,
    integers,
    layouts,
    pairs_of,
    plain,
    seeds,
    spread,
    transposed_convolutions,
)

pytestmark = pytest.mark.usefixtures("every_algorithm")


def repeated(case, *dtypes):
    return repeats_the_plan(transposed_geometry(case.x_shape, case.w_shape, **case.options), *dtypes)


def draw_arrays(case, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, w, b = case.arrays(rng, dtype)
    return x, w, b, integers(rng, transposed_geometry(x.shape, w.shape, **case.options).x_shape, dtype)


@given(transposed_convolutions(), seeds)
def test_equals_the_textbook_and_pytorch(case, seed):
    if repeated(case, np.float64):
        return
    x, w, b, dy = draw_arrays(case, seed)
    with untouched(x, w, dy):
        y = konv.conv_transpose(x, w, b, **case.options)
        gradients = konv.conv_transpose_backward(dy, x, w, **case.options)
    assert_equal(y, textbook.conv_transpose(x, w, b, **case.options), contiguous=True)
    for actual, expected in zip(gradients, textbook.conv_transpose_backward(dy, x, w, **case.options)):
        assert_equal(actual, expected, contiguous=True)
    if len(x):
        axes = x.ndim - 2
        options = dict(stride=spread(case.stride, axes), dilation=spread(case.dilation, axes), groups=case.groups)
        options |= dict(pairs=pairs_of(case.padding, axes), output_padding=case.output_padding)
        bias = np.zeros(case.filters) if b is None else b
        expected, expected_gradients = with_gradients(lambda *a: torch_conv_transpose(*a, **options), dy, x, w, bias)
        assert_equal(y, expected)
        for actual, expected in zip(gradients, expected_gradients):
            assert_equal(actual, expected)


@given(transposed_convolutions(), seeds, dtypes, st.tuples(layouts, layouts, layouts, layouts))
def test_any_dtype_in_any_memory_layout(case, seed, dtype, layout):
    if repeated(case, dtype):
        return
    arrays = [None if a is None else LAYOUTS[name](a) for a, name in zip(draw_arrays(case, seed, dtype), layout)]
    x, w, b, dy = arrays
    with untouched(*(a for a in arrays if a is not None)):
        y = konv.conv_transpose(x, w, b, **case.options)
        gradients = konv.conv_transpose_backward(dy, x, w, **case.options)
    expected = textbook.conv_transpose(plain(x), plain(w), plain(b), **case.options)
    assert_equal(y, expected.astype(dtype), contiguous=layout_of(x))
    gradient_layouts = layout_of(x), "first", "first"
    expected = textbook.conv_transpose_backward(plain(dy), plain(x), plain(w), **case.options)
    for actual, right, lies in zip(gradients, expected, gradient_layouts):
        assert_equal(actual, right.astype(dtype), contiguous=lies)


@given(transposed_convolutions(min_batch=1), seeds, dtypes)
def test_random_floats_are_off_by_rounding_only(case, seed, dtype):
    if repeated(case, dtype):
        return
    rng = np.random.default_rng(seed)
    arrays = [None if a is None else rng.standard_normal(a.shape).astype(dtype) for a in draw_arrays(case, seed)]

    def everything(convolve, back, x, w, b, dy):
        return [convolve(x, w, b, **case.options), *back(dy, x, w, **case.options)]

    actual = everything(konv.conv_transpose, konv.conv_transpose_backward, *arrays)
    wide = [plain(a) for a in arrays]
    sizes = [None if a is None else abs(a) for a in wide]
    ones = [None if a is None else np.ones(a.shape) for a in arrays]
    expected, scales, lengths = (
        everything(textbook.conv_transpose, textbook.conv_transpose_backward, *given) for given in (wide, sizes, ones)
    )
    for a, e, scale, length in zip(actual, expected, scales, lengths):
        assert_close(a, e, dtype=dtype, length=length, scale=scale)


@given(transposed_convolutions(), seeds, st.integers(1, 2_000))
def test_blocks_of_any_size_give_the_same(case, seed, block_bytes):
    if repeated(case, np.float64):
        return
    x, w, b, dy = draw_arrays(case, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_BYTES", block_bytes)
        y = konv.conv_transpose(x, w, b, **case.options)
        gradients = konv.conv_transpose_backward(dy, x, w, **case.options)
    assert_equal(y, textbook.conv_transpose(x, w, b, **case.options))
    for actual, expected in zip(gradients, textbook.conv_transpose_backward(dy, x, w, **case.options)):
        assert_equal(actual, expected)


@settings(max_examples=settings.default.max_examples // 2)  # each compiles for two types
@given(transposed_convolutions(), seeds, st.sampled_from([np.dtype(np.float16), BFLOAT16]))
def test_half_types_are_the_float32_result_rounded_once(case, seed, dtype):
    if repeated(case, dtype, np.float32):
        return
    rng = np.random.default_rng(seed)
    x, w, b, dy = (None if a is None else rng.standard_normal(a.shape).astype(dtype) for a in draw_arrays(case, seed))
    wide = [None if a is None else a.astype(np.float32) for a in (x, w, b, dy)]
    expected = konv.conv_transpose(*wide[:3], **case.options).astype(dtype)
    assert_same_bits(konv.conv_transpose(x, w, b, **case.options), expected)
    gradients = konv.conv_transpose_backward(dy, x, w, **case.options)
    for actual, expected in zip(gradients, konv.conv_transpose_backward(wide[3], *wide[:2], **case.options)):
        assert_same_bits(actual, expected.astype(dtype))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_is_the_input_gradient_of_a_convolution(axes):
    rng = np.random.default_rng(axes)
    options = dict(stride=2, padding=1, dilation=1, groups=2)
    x, w = integers(rng, (2, 6, *[4, 3, 2][:axes])), integers(rng, (6, 2, *[3] * axes))
    y = konv.conv_transpose(x, w, **options)
    dx, _, _ = konv.conv_backward(x, y, w, **options)  # x is upstream, y has the shape that the convolution starts from
    assert_equal(y, dx)


def test_gradients_equal_numerical_ones():
    rng = np.random.default_rng(0)
    options = dict(stride=(2, 1), padding=((1, 0), (0, 1)), output_padding=(1, 0), dilation=(1, 2), groups=2)
    x, w, b = integers(rng, (2, 4, 3, 4)), integers(rng, (4, 1, 3, 2)), integers(rng, (2,))
    dy = integers(rng, konv.conv_transpose(x, w, b, **options).shape)
    dx, dw, db = konv.conv_transpose_backward(dy, x, w, **options)
    assert_equal(dx, numerical_gradient(lambda x: konv.conv_transpose(x, w, b, **options), x, dy))
    assert_equal(dw, numerical_gradient(lambda w: konv.conv_transpose(x, w, b, **options), w, dy))
    assert_equal(db, numerical_gradient(lambda b: konv.conv_transpose(x, w, b, **options), b, dy))


@pytest.mark.parametrize("need", ["x", "w", "b", (), ("w", "b")])
def test_need_names_the_gradients_that_are_computed(need):
    rng = np.random.default_rng(0)
    x, w, dy = integers(rng, (2, 3, 6)), integers(rng, (3, 4, 2)), integers(rng, (2, 4, 7))
    everything = dict(zip("xwb", konv.conv_transpose_backward(dy, x, w)))
    for name, actual in zip("xwb", konv.conv_transpose_backward(dy, x, w, need=need)):
        if name in need:
            assert_equal(actual, everything[name])
        else:
            assert actual is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_empty_batch(dtype):
    x, w, b = np.zeros((0, 4, 3), dtype), np.ones((4, 5, 2), dtype), np.ones(5, dtype)
    y = konv.conv_transpose(x, w, b, stride=2)
    assert_equal(y, np.zeros((0, 5, 6), dtype))
    dx, dw, db = konv.conv_transpose_backward(y, x, w, stride=2)
    assert_equal(dx, x)
    assert_equal(dw, np.zeros_like(w))
    assert_equal(db, np.zeros_like(b))


@given(transposed_convolutions(min_batch=1), seeds)
def test_a_sample_does_not_depend_on_its_batch(case, seed):
    if repeated(case, np.float64) and repeated(replace(case, x_shape=(1, *case.x_shape[1:])), np.float64):
        return
    rng = np.random.default_rng(seed)
    x, w, b, dy = (None if a is None else rng.standard_normal(a.shape).astype("f4") for a in draw_arrays(case, seed))
    y = konv.conv_transpose(x, w, b, **case.options)
    dx, _, _ = konv.conv_transpose_backward(dy, x, w, **case.options, need="x")
    for n in range(len(x)):
        alone = slice(n, n + 1)
        assert_same_bits(konv.conv_transpose(x[alone], w, b, **case.options), y[alone])
        assert_same_bits(konv.conv_transpose_backward(dy[alone], x[alone], w, **case.options, need="x")[0], dx[alone])
