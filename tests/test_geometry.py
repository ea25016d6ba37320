"""Shapes against counting: windows laid one after the other over an axis, cell by cell."""

import math
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given

import konv
from konv.arguments import source_cells
from konv.geometry import pooling_geometry, transposed_geometry, window_geometry
from oracles import CONV, CONV_TRANSPOSE
from strategies import (
    PADDING_MODES,
    convolutions,
    pairs_of,
    sliding_windows,
    spread,
    transposed_convolutions,
    windows,
)


def padded_axis(length, pair, mode):
    """The input cell that stands at each place of the padded axis, None for a zero."""
    low, high = pair
    if mode == "zeros":
        return [None] * low + list(range(length)) + [None] * high
    wanted = range(-low, length + high)
    if mode == "circular":
        return [p % length for p in wanted]
    if mode == "replicate":
        return [min(max(p, 0), length - 1) for p in wanted]
    period = max(1, 2 * (length - 1))  # reflect: 0 1 2 3 2 1 | 0 1 2 3 2 1
    return [min(p % period, period - p % period) if length > 1 else 0 for p in wanted]


def counted_windows(cells, kernel, stride, dilation):
    """The cells that each window meets, as long as one fits."""
    found, start = [], 0
    while start + dilation * (kernel - 1) < len(cells):
        found.append([cells[start + k * dilation] for k in range(kernel)])
        start += stride
    return found


@given(convolutions(modes=PADDING_MODES))
def test_outputs_unread_cells_and_padding_equal_counting(case):
    g = konv.geometry(case.x_shape, case.w_shape, **case.options)
    axes = len(case.x_shape) - 2
    read, real_shares = [], []
    for axis, (length, kernel, stride, dilation) in enumerate(
        zip(case.x_shape[2:], case.w_shape[2:], spread(case.stride, axes), spread(case.dilation, axes))
    ):
        cells = padded_axis(length, g.padding[axis], case.padding_mode)
        found = counted_windows(cells, kernel, stride, dilation)
        assert g.output[axis] == len(found)
        assert g.padded[axis] == len(cells)
        assert g.receptive_field[axis] == len(range(0, (kernel - 1) * dilation + 1))
        touched = {cell for window in found for cell in window}
        np.testing.assert_array_equal(g.read(axis), [cell in touched for cell in range(length)])
        read.append(touched - {None})
        low = g.padding[axis][0]
        inside = [None] * low + [0] * length + [None] * g.padding[axis][1]
        real = [sum(cell is not None for cell in w) for w in counted_windows(inside, kernel, stride, dilation)]
        np.testing.assert_array_equal(g.real_taps(axis), real)
        real_shares.append([count / kernel for count in real])
    unread = sum(
        any(cell[axis] not in read[axis] for axis in range(axes)) for cell in np.ndindex(case.x_shape[2:])
    )  # fmt: skip
    assert g.unread_cells == unread
    share = g.padding_share()
    assert share.shape == g.output
    for o in np.ndindex(g.output):
        expected = 1 - math.prod(real_shares[axis][o[axis]] for axis in range(axes))
        assert abs(share[o] - expected) <= 1e-15


@given(convolutions(modes=PADDING_MODES))
def test_shapes_flops_and_bytes(case):
    g = konv.geometry(case.x_shape, case.w_shape, **case.options, dtype=np.float16)
    assert (g.x_shape, g.w_shape) == (case.x_shape, case.w_shape)
    assert g.output_shape == (case.x_shape[0], case.w_shape[0], *g.output)
    assert g.bytes == sum(np.empty(shape, np.float16).nbytes for shape in (g.x_shape, g.w_shape, g.output_shape))
    products = np.zeros(g.output_shape, np.int64)
    for _ in np.ndindex(case.w_shape[1:]):
        products += 1
    assert g.flops == 2 * products.sum()
    assert hash(g) == hash(konv.geometry(case.x_shape, case.w_shape, **case.options, dtype=np.float16))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("length, pair", [(1, (0, 0)), (4, (3, 1)), (5, (0, 4)), (3, (2, 2))])
def test_source_cells_equal_counting(mode, length, pair):
    assert source_cells(length, pair, mode).tolist() == padded_axis(length, pair, mode)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel, dilation", [(1, 1), (2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("name", ["same", "same_lower", "valid", "causal"])
def test_named_paddings(name, kernel, dilation, stride):
    window = dilation * (kernel - 1) + 1
    for length in range(window if name == "valid" else 1, 24):
        g = konv.geometry((1, 1, length), (1, 1, kernel), stride=stride, padding=name, dilation=dilation)
        (low, high), (out,) = g.padding[0], g.output
        if name == "valid":
            assert (low, high) == (0, 0)
        elif name == "causal":
            assert (low, high) == (window - 1, 0)
            assert out == math.ceil(length / stride)  # one output at each of the times 0, stride, 2 * stride, ...
        else:
            assert out == math.ceil(length / stride)
            assert (high - low if name == "same" else low - high) in (0, 1)
            least = low + high == 0 or (low + length + high - 1 - window) // stride + 1 < out
            assert least, "less padding would give as many outputs"


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kernel, dilation", [(1, 1), (2, 1), (3, 1), (4, 1), (2, 3), (4, 2)])
def test_same_is_the_padding_that_pytorch_means(axes, kernel, dilation):
    rng = np.random.default_rng(kernel)
    x, w = rng.integers(-3, 4, (1, 1, *range(5, 5 + axes))), rng.integers(-3, 4, (1, 1, *[kernel] * axes))
    expected = CONV[axes](torch.tensor(x * 1.0), torch.tensor(w * 1.0), padding="same", dilation=dilation).numpy()
    np.testing.assert_array_equal(konv.conv(x * 1.0, w * 1.0, padding="same", dilation=dilation), expected)


@given(transposed_convolutions(min_batch=1))
def test_transposed_shapes_equal_pytorch(case):
    g = transposed_geometry(case.x_shape, case.w_shape, **case.options)
    axes = len(case.x_shape) - 2
    x, w = torch.zeros(case.x_shape, dtype=torch.float64), torch.zeros(case.w_shape, dtype=torch.float64)
    low, high = (tuple(pair[end] for pair in pairs_of(case.padding, axes)) for end in (0, 1))
    options = dict(stride=case.stride, output_padding=case.output_padding, groups=case.groups, dilation=case.dilation)
    if low == high:
        assert g.x_shape == CONV_TRANSPOSE[axes](x, w, padding=low, **options).shape
    whole = CONV_TRANSPOSE[axes](x, w, padding=0, **options).shape
    assert g.x_shape == (*whole[:2], *(n - a - b for n, a, b in zip(whole[2:], low, high)))
    assert (g.output_shape, g.w_shape) == (case.x_shape, case.w_shape)
    # It is the geometry of the convolution back: the same numbers give the shape of x (a whole stride more, a longer one).
    if all(extra < stride for extra, stride in zip(case.output_padding, spread(case.stride, axes))):
        forward = {name: value for name, value in case.options.items() if name != "output_padding"}
        assert konv.geometry(g.x_shape, g.w_shape, **forward).output == g.output


@given(sliding_windows())
def test_windows_slide_over_each_channel(case):
    options = {name: value for name, value in case.options.items() if value is not None}
    g = window_geometry(case.x_shape, **options)
    assert g.output_shape[:2] == case.x_shape[:2]
    pooled = pooling_geometry(case.x_shape, **case.options)
    strides = spread(case.kernel_size if case.stride is None else case.stride, g.axes)
    assert pooled.stride == tuple(
        min(s, length + 1) for s, length in zip(strides, pooled.padded)
    )  # none beyond the axis
    assert min(pooled.real_taps(axis).min() for axis in range(g.axes)) >= 1


@pytest.mark.parametrize("windows_in_the_padding", [(3, 0), (0, 3)])
def test_a_pooling_window_of_padding_alone_is_refused_only_if_there_is_one(windows_in_the_padding):
    with pytest.raises(ValueError, match="padding alone"):
        pooling_geometry((1, 1, 6), 3, stride=1, padding=(windows_in_the_padding,))
    high = pooling_geometry((1, 1, 6), 3, stride=4, padding=((0, 3),))  # as much padding, which no window reaches alone
    assert high.output == (2,)


def test_integers_of_numpy_are_integers():
    g = konv.geometry(
        np.array([2, 4, 9]), np.array([6, 2, 3]), stride=np.int32(2), padding=np.array([[1, 0]]), groups=np.int64(2)
    )
    assert g == konv.geometry((2, 4, 9), (6, 2, 3), stride=2, padding=((1, 0),), groups=2)
    assert all(type(n) is int for n in (*g.x_shape, *g.w_shape, *g.stride, *g.padding[0], g.groups, *g.output))


HUGE = [
    dict(x_shape=(1, 1, 2**62), w_shape=(1, 1, 3)),
    dict(x_shape=(2**31, 2**31, 8), w_shape=(4, 2**31, 3)),
    dict(x_shape=(2**20, 4, 2**20), w_shape=(2**25, 4, 3)),
    dict(x_shape=(0, 2**40, 2**40), w_shape=(1, 2**40, 1)),
    dict(x_shape=(1, 1, 9), w_shape=(1, 1, 3), padding=2**62),
    dict(x_shape=(1, 1, 9), w_shape=(1, 1, 3), padding=((0, 10**30),)),
    dict(x_shape=(1, 1, 9), w_shape=(1, 1, 3), padding="causal", dilation=2**62),
    dict(x_shape=(1, 1, 9, 9, 9), w_shape=(1, 1, 1, 1, 1), padding=2**21),
]


@pytest.mark.parametrize("arguments", HUGE, ids=lambda a: str(a["x_shape"]))
def test_shapes_that_overflow_are_refused_at_once(arguments):
    tracemalloc.start()
    began = time.process_time()  # not the clock's: others may use the machine
    try:
        with pytest.raises(ValueError, match="bytes, more than an array can have"):
            konv.geometry(**arguments)
        assert tracemalloc.get_traced_memory()[1] <= 100_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - began <= 1.0


def test_the_largest_shapes_that_do_fit_are_taken():
    g = konv.geometry((2**20, 2**20, 2**20), (1, 2**20, 1), dtype=np.float16)
    assert g.flops == 2 * 2**60
    assert windows([3], 2**40) == list(konv.geometry((1, 1, 2**42), (1, 1, 3), dilation=2**40).receptive_field)


def test_a_geometry_prints_what_a_reader_asks():
    text = str(
        konv.geometry((2, 6, 11, 8), (4, 3, 5, 2), stride=(3, 1), padding=((2, 1), (0, 1)), dilation=(1, 2), groups=2)
    )
    for words in (
        "x (2, 6, 11, 8), w (4, 3, 5, 2) -> y (2, 4, 4, 7)",
        "stride (3, 1), padding ((2, 1), (0, 1)) zeros, dilation (1, 2), groups 2",
        "5 x 3",
        "13,440 FLOP on 5,600 bytes",
        "0 of 88 cells",
    ):
        assert words in text, text
