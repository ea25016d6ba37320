"""Direct convolution beyond what every algorithm is tested for: taps left out, joined cells, slices, memory."""

import math
import tracemalloc

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine.direct import direct, weights
from konv.engine.direct.sweeps import sweeps
from konv.engine.plan import Problem, prefer
from konv.engine.stems import joined
from konv.engine.threads import using
from plain_engine import MACHINES, engine
from strategies import integers
from test_guard_page import guarded

DILATED = ((1, 3, 33, 30), (20, 3, 3, 3), dict(dilation=12, padding=12))


def case(x_shape, w_shape, options, draw=integers):
    rng = np.random.default_rng(0)
    g = konv.geometry(x_shape, w_shape, **options)
    return g, *(draw(rng, shape, np.float32) for shape in (x_shape, w_shape, g.output_shape))


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def test_a_tap_counts_where_it_meets_a_cell():
    g = konv.geometry((1, 1, 33), (1, 1, 3), dilation=12, padding=12)
    for gradient in (False, True):
        row = sweeps(g, gradient)[2]
        assert row.worthwhile_block == 12
        for m in range(row.sums):
            meets = tuple(k for k, tap in enumerate(row.taps[0]) if 0 <= m + tap - row.pad < row.length)
            assert row.active(0, m, 1) == meets


@pytest.mark.parametrize("gradient", [False, True])
def test_left_out_taps_change_no_bit(gradient):
    g, x, w, dy = case(*DILATED, draw=normal)
    source, shape = (dy, g.x_shape) if gradient else (x, g.output_shape)
    results = []
    for skip in (True, False):
        results.append(np.full(shape, np.nan, np.float32))
        assert direct.run(g, gradient, source, w, None, results[-1], skip=skip)
    assert_same_bits(*results)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_meets_the_padding_too(value):
    _, x, w, _ = case(*DILATED)
    w[3, 1, 0, 2] = value
    with prefer("direct"), np.errstate(invalid="ignore"):
        y = konv.conv(x, w, **DILATED[2])
        assert_equal(y, textbook.conv(x, w, **DILATED[2]), nan_equal=True)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize(
    "x_shape, w_shape, options",
    [
        ((2, 3, 31, 30), (20, 3, 7, 7), dict(stride=2, padding=3)),
        ((2, 1, 101), (5, 1, 31), dict(stride=4, padding=7)),
        ((1, 2, 13, 12), (3, 2, 5, 4), dict(stride=(2, 3), padding=((1, 2), (4, 0)))),
        ((2, 4, 9, 10), (6, 4, 3, 3), dict(padding=1)),
        ((1, 1, 6, 13, 12), (3, 1, 3, 3, 4), dict(stride=(1, 2, 1), padding=1)),
    ],
)
def test_joined_cells(x_shape, w_shape, options, layout):
    g, x, w, dy = case(x_shape, w_shape, options)
    assert layout == "first" or joined.declines(Problem("input_gradient", g, "float32", layout=layout)) is None
    for value in (0.0, np.inf, np.nan):
        dy.flat[dy.size // 2] = value
        dx = laid_out(np.full(x_shape, np.nan, np.float32), layout)
        with np.errstate(invalid="ignore"):
            joined.input_gradient(laid_out(dy, layout), w, g, dx)
            assert_equal(dx, textbook.conv_backward(dy, x, w, **options)[0], nan_equal=True)


@pytest.mark.parametrize("options", [dict(padding=1), dict(stride=2, padding=1), dict(stride=3)], ids=str)
@pytest.mark.parametrize("filters", [80, 48, 25])
def test_slices_of_many_channels(filters, options):
    g, x, w, dy = case((2, 70, 9, 11), (filters, 70, 3, 3), options)
    y, dx = np.full(g.output_shape, np.nan, np.float32), np.full(g.x_shape, np.nan, np.float32)
    direct.forward(x, w, None, g, y)
    direct.input_gradient(dy, w, g, dx)
    assert_equal(y, textbook.conv(x, w, **options))
    assert_equal(dx, textbook.conv_backward(dy, x, w, **options)[0])


def test_the_width_of_the_input_changes_no_bit():
    """Blocks of rows and columns, runs and tails fall differently; the sums do not."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, (2, 40, 1300), np.float32), normal(rng, (33, 40, 3), np.float32)
    with prefer("direct"):
        whole = konv.conv(x, w, dilation=2)
        for length in (5, 17, 450, 1299):
            assert_same_bits(
                konv.conv(np.ascontiguousarray(x[:1, :, :length]), w, dilation=2), whole[:1, :, : length - 4]
            )


@pytest.mark.parametrize("kind", ["forward", "input_gradient"])
def test_little_is_borrowed(kind):
    for x_shape, w_shape, options in (
        ((8, 64, 56, 56), (64, 64, 3, 3), dict(padding=1)),
        ((8, 512, 14, 14), (512, 512, 3, 3), dict(stride=2, padding=1)),
        ((4, 1, 16000), (512, 1, 10), dict(stride=5)),
        ((1, 512, 3199), (512, 512, 3), dict(stride=2)),
    ):
        g = konv.geometry(x_shape, w_shape, **options)
        matrix = 4 * g.batch * math.prod(g.output) * g.channels * math.prod(g.kernel)
        assert direct.workspace(Problem(kind, g, "float32")) <= max(0.15 * matrix, 700 << 10)


def test_one_channel_fits_both_layouts_and_out_decides():
    """Nothing as large as the result is allocated beside an ``out`` that has its channels last."""
    rng = np.random.default_rng(0)
    x, w = integers(rng, (4, 1, 64, 65), np.float32), integers(rng, (40, 1, 3, 3), np.float32)
    out = np.moveaxis(np.full((4, 62, 63, 40), np.nan, np.float32), -1, 1)
    konv.conv(x, w, out=out)  # compiles, and leaves a workspace
    out[...] = np.nan
    tracemalloc.start()
    try:
        konv.conv(x, w, out=out)
        assert tracemalloc.get_traced_memory()[1] < out.nbytes
    finally:
        tracemalloc.stop()
    assert_equal(out, textbook.conv(x, w))


@pytest.mark.parametrize("host", ["AVX-512", "SSE2"])
def test_channels_last(host):
    """Few channels, whose rows are taken apart, and several panels of filters, which are written cell by cell."""
    with engine(MACHINES[host]):
        for channels, filters, stride in ((1, 17, 1), (3, 80, 2), (4, 33, 1), (70, 70, 1)):
            options = dict(stride=stride, padding=((2, 0), (1, 3)))
            g, x, w, _ = case((2, channels, 11, 13), (filters, channels, 3, 3), options)
            y = laid_out(np.full(g.output_shape, np.nan, np.float32), "last")
            direct.forward(laid_out(x, "last"), w, None, g, y)
            assert_equal(y, textbook.conv(x, w, **options))


ONE_TILE = {  # dy is read where it lies: more pixels than are taken together, filters left over, windows in the padding
    "1-D": ((3, 1, 1600), (70, 1, 5), dict(stride=2, padding=3)),
    "3 channels": ((2, 3, 20, 21), (9, 3, 3, 3), dict(padding=4)),
    "groups, 3-D": ((2, 4, 3, 4, 5), (6, 2, 1, 2, 3), dict(groups=2, stride=(1, 2, 1), padding=(1, 0, 2))),
}


def last_and_guarded(array):
    return np.moveaxis(guarded(np.ascontiguousarray(np.moveaxis(array, 1, -1)), True), -1, 1)


@pytest.mark.parametrize("name, host", [(name, host) for name in ONE_TILE for host in ("AVX-512", "AVX2", "SSE2")][:-2])
def test_weight_gradients_of_one_tile_channels_last(name, host):
    g, x, _, dy = case(*ONE_TILE[name])
    with engine(MACHINES[host]):
        for threads in (1, 3):
            dw, db = (np.full(shape, np.nan, np.float32) for shape in (g.w_shape, g.w_shape[:1]))
            arrays = (last_and_guarded(array) for array in (dy, x))
            with using(threads):
                weights.weight_and_bias_gradient(*arrays, g, dw, db)
            _, right, bias = textbook.conv_backward(dy, x, np.zeros(g.w_shape), **ONE_TILE[name][2])
            assert_equal(dw, right.astype(np.float32))
            assert_equal(db, bias.astype(np.float32))


def test_weight_gradients_of_one_tile_meet_what_is_not_finite_in_the_padding():
    with engine(MACHINES["AVX-512"]):
        for x_shape, w_shape, options in ONE_TILE.values():
            g, x, _, dy = case(x_shape, w_shape, options)
            assert weights.layout(g, "float32", True).together
            dy.flat[0] = np.inf  # whose window sees nothing but padding
            arrays = (laid_out(array, "last") for array in (dy, x))
            dw, db = (np.zeros(shape, np.float32) for shape in (g.w_shape, g.w_shape[:1]))
            with np.errstate(invalid="ignore"):
                weights.weight_and_bias_gradient(*arrays, g, dw, db)
                right = textbook.conv_backward(dy, x, np.zeros(g.w_shape), **options)[1]
            assert_equal(dw, right.astype(np.float32), nan_equal=True)
