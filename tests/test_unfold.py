"""``unfold`` and ``fold``: PyTorch's column order in 2-D, index formulas elsewhere, adjoint to one another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import konv
from compare import assert_equal, assert_same_bits, untouched
from konv.geometry import window_geometry
from strategies import BFLOAT16, LAYOUTS, dtypes, integers, layouts, seeds, sliding_windows, spread


def counted_columns(x, case):
    """``columns[n, (c, k), o] = x_padded[n, c, o * stride + k * dilation]``, one element at a time."""
    g = window_geometry(x.shape, **case.options)
    columns = np.zeros((len(x), x.shape[1], *g.kernel, *g.output), x.dtype)
    for n, c in np.ndindex(x.shape[:2]):
        for k in np.ndindex(g.kernel):
            for o in np.ndindex(g.output):
                place = [a * s + b * d - low for a, s, b, d, (low, _) in zip(o, g.stride, k, g.dilation, g.padding)]
                if all(0 <= p < length for p, length in zip(place, g.spatial)):
                    columns[(n, c, *k, *o)] = x[(n, c, *place)]
    return columns.reshape(len(x), x.shape[1] * int(np.prod(g.kernel)), int(np.prod(g.output)))


windows = sliding_windows(pooling=False)


@given(windows, seeds)
def test_unfold_equals_the_formula(case, seed):
    x = integers(np.random.default_rng(seed), case.x_shape)
    with untouched(x):
        assert_equal(konv.unfold(x, **case.options), counted_columns(x, case), contiguous=True)


@given(windows, seeds)
def test_fold_is_the_adjoint_of_unfold(case, seed):
    """<unfold(x), c> = <x, fold(c)> for all x and c fixes fold, given unfold."""
    rng = np.random.default_rng(seed)
    x = integers(rng, case.x_shape)
    columns = integers(rng, konv.unfold(x, **case.options).shape)
    with untouched(columns):
        folded = konv.fold(columns, case.x_shape[2:], **case.options)
    assert folded.shape == case.x_shape and folded.dtype == np.float64 and folded.flags.c_contiguous
    for _ in range(4):
        x = integers(rng, case.x_shape)
        assert (konv.unfold(x, **case.options) * columns).sum() == (x * folded).sum()


@given(sliding_windows(axes=2, min_batch=1, pooling=False), seeds)
def test_both_equal_pytorch_in_two_dimensions(case, seed):
    g = window_geometry(case.x_shape, **case.options)
    options = dict(kernel_size=g.kernel, stride=g.stride, dilation=g.dilation)
    rng = np.random.default_rng(seed)
    x = integers(rng, case.x_shape)
    pads = [amount for pair in reversed(g.padding) for amount in pair]
    padded = F.pad(torch.tensor(x), pads)
    columns = F.unfold(padded, **options).numpy()
    assert_equal(konv.unfold(x, **case.options), columns)
    columns = integers(rng, columns.shape)
    (top, _), (left, _) = g.padding
    folded = F.fold(torch.tensor(columns), tuple(padded.shape[2:]), **options).numpy()
    folded = folded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    assert_equal(konv.fold(columns, case.x_shape[2:], **case.options), np.ascontiguousarray(folded))


@given(windows, seeds, st.sampled_from(["i1", "u2", "i8", "c8", "?", "f2", "f4"]) | dtypes, layouts)
def test_any_element_type_in_any_layout(case, seed, dtype, layout):
    if np.dtype(dtype).kind in "iu?" and layout in ("slice", "every second", "negative strides"):
        layout = "reversed"  # those surround their arrays with NaN
    x = LAYOUTS[layout](np.abs(integers(np.random.default_rng(seed), case.x_shape)).astype(dtype))
    with untouched(x):
        columns = konv.unfold(x, **case.options)
    assert_equal(columns, counted_columns(np.array(x, np.dtype(dtype)), case), contiguous=True)
    if dtype != "?":
        folded = konv.fold(columns, case.x_shape[2:], **case.options)
        expected = konv.fold(columns.astype(np.complex128), case.x_shape[2:], **case.options)
        assert_equal(folded.astype(np.complex128), expected)
        assert folded.dtype == dtype and folded.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_half_types_are_added_in_float32_and_rounded_once(dtype):
    columns = np.random.default_rng(0).standard_normal((2, 8, 33)).astype(dtype)
    rounded_once = konv.fold(columns.astype(np.float32), 40, 8).astype(dtype)
    rounded_each_time = konv.textbook.fold_columns(
        columns.transpose(0, 2, 1).reshape(66, 8), konv.geometry((2, 1, 40), (1, 1, 8))
    )
    assert_same_bits(konv.fold(columns, 40, 8), rounded_once)
    assert (rounded_once != rounded_each_time).any(), "these numbers do not tell the two apart"


def test_a_kernel_as_an_int_or_per_axis():
    x = integers(np.random.default_rng(0), (2, 3, 6, 5))
    assert spread(2, 2) == (2, 2)
    assert_equal(konv.unfold(x, 2), konv.unfold(x, [2, 2]))
    folded = konv.fold(konv.unfold(x, (2, 2)), (6, 5), (2, 2))
    assert_equal(konv.fold(konv.unfold(x, 2), [6, 5], 2), folded)
    assert_equal(konv.fold(konv.unfold(x, 2), np.array([6, 5]), np.int64(2)), folded)


def test_an_empty_batch():
    columns = konv.unfold(np.zeros((0, 3, 6)), 2)
    assert columns.shape == (0, 6, 5)
    assert konv.fold(columns, 6, 2).shape == (0, 3, 6)


@pytest.mark.parametrize(
    "dtype", ["M8[s]", "m8[D]", "U3", "S2", "V4", object, bool, complex, [("a", float), ("b", int)]], ids=str
)
def test_padding_of_any_dtype_is_its_zero(dtype):
    x = np.ones((1, 1, 2, 2)).astype(dtype) if dtype != "V4" else np.full((1, 1, 2, 2), b"abcd", "V4")
    zero = np.zeros((), dtype)
    col = konv.im2col(x, 3, 3, 1, 1)
    assert col.dtype == x.dtype and (col[0].reshape(3, 3)[1:, 1:] == x[0, 0]).all()
    assert (col[0].reshape(3, 3)[0] == zero).all() and (col[0].reshape(3, 3)[:, 0] == zero).all()
    assert (konv.unfold(x, 3, padding=1)[0, :, 0] == col[0]).all()


def test_shapes_in_arrays():
    columns = np.arange(24.0).reshape(1, 6, 4)
    assert np.array_equal(konv.fold(columns, np.array(5), 2), konv.fold(columns, 5, 2))
    assert np.array_equal(konv.fold(columns, np.array([5]), np.array([2])), konv.fold(columns, 5, 2))
    col = np.arange(36.0).reshape(4, 9)
    assert np.array_equal(konv.col2im(col, np.array([1, 1, 4, 4]), 3, 3), konv.col2im(col, (1, 1, 4, 4), 3, 3))
