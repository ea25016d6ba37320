"""Max and average pooling with their gradients: against loops, the textbook and PyTorch; ties, NaN and infinity."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import konv
from compare import assert_close, assert_equal, assert_same_bits, untouched
from konv import textbook
from konv.arrays import layout_of
from konv.geometry import pooling_geometry
from oracles import numerical_gradient, torch_max_pool, with_gradients
from strategies import BFLOAT16, DTYPES, LAYOUTS, dtypes, integers, layouts, plain, seeds, sliding_windows, spread

counting = st.booleans()


def draw_arrays(case, seed, dtype=np.float64):
    """x of few distinct integers, so that windows have ties, and an upstream gradient."""
    rng = np.random.default_rng(seed)
    shape = pooling_geometry(case.x_shape, **case.options).output_shape
    return integers(rng, case.x_shape, dtype), integers(rng, shape, dtype)


def real_cells(case):
    """For each output (n, c, *o): the input cells of its window, by counting, and the number of cells with padding."""
    g = pooling_geometry(case.x_shape, **case.options)
    for index in np.ndindex(g.output_shape):
        cells = []
        for k in np.ndindex(g.kernel):
            place = [o * s + i * d - low for o, s, i, d, (low, _) in zip(index[2:], g.stride, k, g.dilation, g.padding)]
            if all(0 <= p < length for p, length in zip(place, g.spatial)):
                cells.append((*index[:2], *place))
        yield index, cells, int(np.prod(g.kernel))


def counted_max(x, dy, case):
    """(y, dx) by loops: the first largest cell wins, the first NaN before all."""
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    for index, cells, _ in real_cells(case):
        winner = cells[0]
        for cell in cells:
            if x[cell] > x[winner] or (np.isnan(x[cell]) and not np.isnan(x[winner])):
                winner = cell
        y[index] = x[winner]
        dx[winner] += dy[index]
    return y, dx


def counted_mean(x, dy, case, count_include_pad):
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    for index, cells, size in real_cells(case):
        size = size if count_include_pad else len(cells)
        y[index] = sum(x[cell] for cell in cells) / size
        for cell in cells:
            dx[cell] += dy[index] / size
    return y, dx


@given(sliding_windows(), seeds)
def test_max_equals_loops_and_the_textbook(case, seed):
    x, dy = draw_arrays(case, seed)
    with untouched(x, dy):
        y, dx = konv.max_pool(x, **case.options), konv.max_pool_backward(dy, x, **case.options)
    expected_y, expected_dx = counted_max(x, dy, case)
    assert_equal(y, expected_y, contiguous=True)
    assert_equal(dx, expected_dx, contiguous=True)
    assert_equal(textbook.max_pool(x, **case.options), expected_y)
    assert_equal(textbook.max_pool_backward(dy, x, **case.options), expected_dx)


@given(sliding_windows(), seeds, dtypes)
def test_max_takes_nan_and_infinity(case, seed, dtype):
    rng = np.random.default_rng(seed)
    x, dy = draw_arrays(case, seed)
    x = np.where(rng.random(x.shape) < 0.5, rng.choice([np.nan, np.inf, -np.inf, -np.inf], x.shape), x)
    expected_y, expected_dx = counted_max(x, dy, case)
    assert_equal(textbook.max_pool(x, **case.options), expected_y, nan_equal=True)
    assert_equal(textbook.max_pool_backward(dy, x, **case.options), expected_dx)
    x, dy = x.astype(dtype), dy.astype(dtype)
    assert_equal(konv.max_pool(x, **case.options), expected_y.astype(dtype), nan_equal=True)
    assert_equal(konv.max_pool_backward(dy, x, **case.options), expected_dx.astype(dtype))


def test_the_gradient_of_a_window_of_minus_infinity_stays_inside():
    """Padding is -inf too, and comes first in the window; it must not take the gradient."""
    x, dy = np.full((1, 1, 4), -np.inf), np.array([[[1.0, 10.0, 100.0]]])
    expected = np.array([[[1.0, 10.0, 0.0, 100.0]]])
    assert_equal(konv.max_pool_backward(dy, x, 2, padding=1), expected)
    assert_equal(textbook.max_pool_backward(dy, x, 2, padding=1), expected)
    layer = konv.Pooling(2, 2, pad=1)
    layer.forward(np.full((1, 1, 2, 2), -np.inf))
    assert_equal(layer.backward(np.array([[[[1.0, 2.0], [3.0, 4.0]]]])), np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))


@given(sliding_windows(min_batch=1), seeds)
def test_max_equals_pytorch(case, seed):
    rng = np.random.default_rng(seed)
    _, dy = draw_arrays(case, seed)
    x = (
        rng.permutation(np.prod(case.x_shape)).reshape(case.x_shape).astype(np.float64)
    )  # PyTorch breaks ties as it likes
    g = pooling_geometry(x.shape, **case.options)
    expected, (expected_dx,) = with_gradients(
        lambda x: torch_max_pool(x, g.kernel, stride=g.stride, pairs=g.padding, dilation=g.dilation), dy, x
    )
    assert_equal(konv.max_pool(x, **case.options), expected)
    assert_equal(konv.max_pool_backward(dy, x, **case.options), expected_dx)


@given(sliding_windows(), seeds, counting)
def test_mean_equals_loops_and_the_textbook(case, seed, count_include_pad):
    x, dy = draw_arrays(case, seed)
    options = dict(**case.options, count_include_pad=count_include_pad)
    with untouched(x, dy):
        y, dx = konv.avg_pool(x, **options), konv.avg_pool_backward(dy, x, **options)
    expected_y, expected_dx = counted_mean(x, dy, case, count_include_pad)
    cells, _ = counted_mean(np.ones_like(x), dy, case, True)
    assert_close(y, expected_y, dtype=np.float64, length=1, scale=abs(expected_y))  # an exact sum, one division
    _, scale = counted_mean(x, abs(dy), case, count_include_pad)
    assert_close(dx, expected_dx, dtype=np.float64, length=1 + int(np.prod(cells.shape[2:])), scale=scale)
    assert_equal(textbook.avg_pool(x, **options), y, contiguous=True)
    assert_equal(textbook.avg_pool_backward(dy, x, **options), dx, contiguous=True)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_mean_equals_pytorch(axes, count_include_pad):
    rng = np.random.default_rng(axes)
    x = integers(rng, (2, 3, *[7, 6, 5][:axes]))
    function = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[axes]
    options = dict(stride=2, padding=1, count_include_pad=count_include_pad)
    dy = integers(rng, konv.avg_pool(x, 3, **options).shape)
    expected, (expected_dx,) = with_gradients(lambda x: function(x, 3, **options), dy, x)
    terms = 3**axes
    assert_close(konv.avg_pool(x, 3, **options), expected, dtype=x.dtype, length=terms, scale=3.0)
    dx = konv.avg_pool_backward(dy, x, 3, **options)
    assert_close(dx, expected_dx, dtype=x.dtype, length=terms, scale=3.0 * terms)


@given(sliding_windows(), seeds, dtypes, layouts, layouts)
def test_any_dtype_in_any_memory_layout(case, seed, dtype, x_layout, dy_layout):
    x, dy = draw_arrays(case, seed, dtype)
    x, dy = LAYOUTS[x_layout](x), LAYOUTS[dy_layout](dy)
    with untouched(x, dy):
        y, dx = konv.max_pool(x, **case.options), konv.max_pool_backward(dy, x, **case.options)
        mean, dmean = konv.avg_pool(x, **case.options), konv.avg_pool_backward(dy, x, **case.options)
    assert_equal(y, textbook.max_pool(plain(x), **case.options).astype(dtype), contiguous=layout_of(x))
    expected = textbook.max_pool_backward(plain(dy), plain(x), **case.options)
    assert_equal(dx, expected.astype(dtype), contiguous=layout_of(x))
    wide = np.promote_types(dtype, np.float32)  # half types: the float32 result, rounded once
    expected = konv.avg_pool(np.array(x, wide, order="C"), **case.options)
    assert_same_bits(mean, expected.astype(dtype))
    expected = konv.avg_pool_backward(np.array(dy, wide, order="C"), np.zeros(x.shape, wide), **case.options)
    assert_same_bits(dmean, expected.astype(dtype))
    assert_equal(mean, mean, contiguous=layout_of(x))
    assert_equal(dmean, dmean, contiguous=layout_of(x))


@given(sliding_windows(min_batch=1), seeds, dtypes, counting)
def test_means_of_random_floats_are_off_by_rounding_only(case, seed, dtype, count_include_pad):
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal(a.shape).astype(dtype) for a in draw_arrays(case, seed))
    options = dict(**case.options, count_include_pad=count_include_pad)
    terms = int(np.prod(spread(case.kernel_size, x.ndim - 2)))
    y, dx = konv.avg_pool(x, **options), konv.avg_pool_backward(dy, x, **options)
    wide_x, wide_dy = plain(x), plain(dy)
    scale = textbook.avg_pool(abs(wide_x), **options)
    assert_close(y, textbook.avg_pool(wide_x, **options), dtype=dtype, length=terms + 1, scale=scale)
    scale = textbook.avg_pool_backward(abs(wide_dy), wide_x, **options)
    expected = textbook.avg_pool_backward(wide_dy, wide_x, **options)
    assert_close(dx, expected, dtype=dtype, length=terms + 1, scale=scale)


def test_mean_gradient_equals_the_numerical_one():
    rng = np.random.default_rng(0)
    x = integers(rng, (1, 2, 5, 4))
    options = dict(kernel_size=(2, 4), stride=(2, 1), padding=((1, 0), (2, 1)))
    dy = 4 * integers(rng, konv.avg_pool(x, **options).shape)  # eighths of these are exact
    numerical = numerical_gradient(lambda x: konv.avg_pool(x, **options), x, dy)
    assert_equal(konv.avg_pool_backward(dy, x, **options), numerical)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_of_equal_cells_wins(dtype):
    x = np.array([[[2, 2, 1, 2], [0, 0, 0, 0]]], dtype)
    dy = np.array([[[1, 2, 4], [1, 2, 4]]], dtype)
    assert_equal(konv.max_pool_backward(dy, x, 2, stride=1), np.array([[[1, 2, 0, 4], [1, 2, 4, 0]]], dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "pool, back", [(konv.max_pool, konv.max_pool_backward), (konv.avg_pool, konv.avg_pool_backward)]
)
def test_an_empty_batch(pool, back, dtype):
    x = np.zeros((0, 3, 5, 4), dtype)
    y = pool(x, (2, 3), stride=1, padding=1)
    assert_equal(y, np.zeros((0, 3, 6, 4), dtype))
    assert_equal(back(y, x, (2, 3), stride=1, padding=1), x)


def test_a_mean_in_half_precision_does_not_overflow_on_the_way():
    x = np.full((1, 1, 4), 60_000, np.float16)
    assert_equal(konv.avg_pool(x, 4), np.array([[[60_000]]], np.float16))
    many = np.full((1, 1, 4096), 1, BFLOAT16)  # summed in bfloat16 this stops at 256
    assert_equal(konv.avg_pool(many, 4096), np.array([[[1]]], BFLOAT16))


def test_nan_gradients_of_an_upstream_infinity_stay_with_the_winner():
    dx = konv.max_pool_backward(np.array([[[np.inf, 1.0]]]), np.array([[[1.0, 5.0, 3.0, 2.0]]]), 2)
    assert_equal(dx, np.array([[[0.0, np.inf, 1.0, 0.0]]]))


def test_ties_in_pytorch_are_the_first_too():
    """So that a model moved from PyTorch trains the same: ReLU makes windows of equal zeros all the time."""
    x = np.zeros((1, 1, 4, 4))
    dy = np.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    tensor = torch.zeros(x.shape, dtype=torch.float64, requires_grad=True)
    F.max_pool2d(tensor, 2).backward(torch.tensor(dy))
    assert_equal(konv.max_pool_backward(dy, x, 2), tensor.grad.numpy())


def test_a_layers_gradients_have_the_layout_of_its_input():
    x = np.moveaxis(np.random.default_rng(0).standard_normal((2, 6, 8, 3)), -1, 1)
    for layer in (konv.Pooling(2, 2), konv.AveragePooling(2, 2), konv.ReLU()):
        out = layer.forward(x)
        assert layout_of(out) == layout_of(layer.backward(out)) == "last"
