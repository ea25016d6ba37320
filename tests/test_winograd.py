"""Winograd's algorithm: its kernels on NumPy and compiled, its error, its hostile inputs."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_same_bits
from konv import textbook
from konv.arrays import empty, laid_out
from konv.engine.plan import KINDS, Problem
from konv.engine.simd import ArrayPointer
from konv.engine.winograd import winograd as algorithm
from konv.engine.winograd import winograd_cuts
from konv.engine.winograd.winograd_axes import Axes
from konv.engine.winograd.winograd_formulas import Scheme
from konv.engine.winograd.winograd_kernels import filters_to_points
from konv.engine.winograd.winograd_tiles import Block
from konv.geometry import geometry
from plain_engine import engine
from strategies import BFLOAT16, seeds
from test_guard_page import guarded
from test_winograd_formulas import matrix, number

UNIT = np.finfo(np.float32).eps / 2
OUTPUTS, TAPS, SPAN, POINTS = 4, 3, 6, 36


@functools.cache
def magnitudes(scheme):
    """Absolute values of B^T, G and A^T in float64."""
    pairs = [(scheme.inputs, scheme.points), (scheme.filters, scheme.taps), (scheme.output, scheme.points)]
    return [np.abs(np.array(matrix(formula, n, number))) for formula, n in pairs]


def tiles_of(array, output, kernel):
    """Schemes of both axes; the tiles' inputs of an array that is already padded, (N, C, rows, columns, cells, cells)."""
    g = geometry((1, 1, *(o + k - 1 for o, k in zip(output, kernel))), (1, 1, *kernel))
    schemes = [axis.scheme for axis in (Axes.of(g, False).rows, Axes.of(g, False).columns)]
    counts = [-(-n // scheme.outputs) for n, scheme in zip(output, schemes)]
    sizes = [n * scheme.outputs + scheme.taps - 1 for n, scheme in zip(counts, schemes)]
    whole = np.zeros((*array.shape[:2], *(max(a, b) for a, b in zip(sizes, array.shape[2:]))))
    whole[:, :, : array.shape[2], : array.shape[3]] = array
    windows = np.lib.stride_tricks.sliding_window_view(
        whole[:, :, : sizes[0], : sizes[1]], [scheme.points for scheme in schemes], (2, 3)
    )
    return schemes, windows[:, :, :: schemes[0].outputs, :: schemes[1].outputs]


def error_bound(x, w, b, padding):
    """How far float32 may be from exact, for each output: roundings times the sum of absolute values met on the way.

    Every number on the way is a sum of products, |y'| <= |A|^T [sum of (|G| |w| |G|^T) (|B|^T |x| |B|)] |A| with each of at
    most ``depth`` roundings on its longest path: 4 for each of the six passes of a transform and for its rounded constants,
    one for each channel, one for the bias (Higham, *Accuracy and Stability*, ch. 3.1; ch. 3.5 for products of matrices).
    """
    depth = 6 * (4 + 2) + x.shape[1] + 2
    gamma = depth * UNIT / (1 - depth * UNIT)
    padded = np.pad(np.abs(x).astype(np.float64), ((0, 0), (0, 0), *padding))
    out = [n - k + 1 for n, k in zip(padded.shape[2:], w.shape[2:])]
    schemes, windows = tiles_of(padded, out, w.shape[2:])
    (bt, g, at), (bt_, g_, at_) = (magnitudes(scheme) for scheme in schemes)
    v = np.einsum("pi,nchwij,qj->nchwpq", bt, windows, bt_, optimize=True)
    u = np.einsum("pi,fcij,qj->fcpq", g, np.abs(w), g_, optimize=True)
    y = np.einsum("op,nchwpq,fcpq,rq->nfhowr", at, v, u, at_, optimize=True)
    shape = (len(x), len(w), *(n * scheme.outputs for n, scheme in zip(windows.shape[2:4], schemes)))
    return gamma * (y.reshape(shape)[:, :, : out[0], : out[1]] + (0 if b is None else np.abs(b).reshape(-1, 1, 1)))


def assert_within(actual, expected, bound):
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert np.isfinite(bound).all()
    assert (np.abs(actual - expected) <= bound).all(), np.abs((actual - expected) / bound).max()


def run(x, w, b, padding, threads=None):
    g = geometry(x.shape, w.shape, padding=padding)
    out = np.full(g.output_shape, np.nan, x.dtype)
    algorithm.forward(x, w, b, g, out)
    return out


def run_gradient(dy, w, x_shape, padding):
    g = geometry(x_shape, w.shape, padding=padding)
    out = np.full(x_shape, np.nan, dy.dtype)
    algorithm.input_gradient(dy, w, g, out)
    return out


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


FILLED = (4, 7, 8, *range(10, 22))


@st.composite
def layers(draw):
    """x shape, filters, padding, whether there is a bias: 3 x 3, every tail."""
    padding = tuple((draw(st.integers(0, 4)), draw(st.integers(0, 4))) for _ in range(2))
    # Outputs, and cells of x, whose tiles are F(4, 3): other schemes are other kernels to compile, and have tests of their own.
    sizes = [draw(st.sampled_from([n for n in FILLED if n + low + high - 2 in FILLED])) for low, high in padding]
    channels, filters = draw(st.sampled_from([1, 3, 16, 17, 65, 130])), draw(st.sampled_from([1, 5, 32, 33]))
    return (draw(st.integers(1, 4)), channels, *sizes), filters, padding, draw(st.booleans())


@settings(max_examples=40)
@given(layers(), seeds)
def test_forward_and_input_gradient(layer, seed):
    x_shape, filters, padding, has_bias = layer
    rng = np.random.default_rng(seed)
    x, w = normal(rng, *x_shape), normal(rng, filters, x_shape[1], TAPS, TAPS)
    b = normal(rng, filters) if has_bias else None
    expected = textbook.conv(*wide(x, w, b), padding=padding)
    assert_within(run(x, w, b, padding), expected, error_bound(x, w, b, padding))
    dy = normal(rng, *expected.shape)
    expected, _, _ = textbook.conv_backward(*wide(dy, x, w), padding=padding)
    back = [(TAPS - 1 - low, TAPS - 1 - high) for low, high in padding]
    mirrored = np.ascontiguousarray(w.swapaxes(0, 1)[:, :, ::-1, ::-1])
    rows, columns = (slice(max(0, -low), n - max(0, -high)) for (low, high), n in zip(back, dy.shape[2:]))
    cut = dy[:, :, rows, columns]
    kept = [(max(0, low), max(0, high)) for low, high in back]
    assert_within(run_gradient(dy, w, x_shape, padding), expected, error_bound(cut, mirrored, None, kept))


@pytest.mark.parametrize("images, channels, filters, size", [(8, 64, 64, 28), (2, 256, 64, 14), (1, 512, 32, 7)])
def test_error_is_as_stated(images, channels, filters, size):
    """Under 3e-6 of the largest output; the algorithm's docstring says so."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, images, channels, size, size), normal(rng, filters, channels, TAPS, TAPS)
    expected = textbook.conv(*wide(x, w), padding=1)
    assert np.abs(run(x, w, None, 1) - expected).max() <= 3e-6 * np.abs(expected).max()


@pytest.fixture
def threads():
    before = konv.get_threads()
    yield konv.set_threads
    konv.set_threads(before)


@pytest.mark.parametrize("shape, filters", [((5, 40, 14, 14), 70), ((9, 130, 7, 7), 40), ((1, 16, 33, 190), 33)])
def test_bits_do_not_depend_on_threads_or_batch(threads, shape, filters):
    rng = np.random.default_rng(1)
    x, w, b = normal(rng, *shape), normal(rng, filters, shape[1], TAPS, TAPS), normal(rng, filters)
    threads(1)
    y = run(x, w, b, 1)
    dx = run_gradient(y, w, shape, 1)
    for n in (2, 3, 7):
        threads(n)
        assert_same_bits(run(x, w, b, 1), y)
        assert_same_bits(run_gradient(y, w, shape, 1), dx)
    for i in {0, shape[0] - 1}:
        assert_same_bits(run(x[i : i + 1], w, b, 1)[0], y[i])
        assert_same_bits(run_gradient(y[i : i + 1], w, (1, *shape[1:]), 1)[0], dx[i])


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("x_shape, filters, padding", [
    ((1, 1, 3, 3), 1, 0), ((2, 3, 13, 9), 4, 1), ((1, 17, 8, 8), 33, ((2, 0), (0, 4))), ((7, 65, 7, 7), 5, 1),
    ((1, 2, 5, 100), 3, 1), ((1, 2, 5, 14), 3, 1),
])  # fmt: skip
def test_guard_pages(x_shape, filters, padding, end):
    rng = np.random.default_rng(0)
    x, w, b = normal(rng, *x_shape), normal(rng, filters, x_shape[1], TAPS, TAPS), normal(rng, filters)
    expected = run(x, w, b, padding)
    g = geometry(x_shape, w.shape, padding=padding)
    out = guarded(np.full(expected.shape, np.nan, np.float32), end)
    algorithm.forward(*(guarded(a, end) for a in (x, w, b)), g, out)
    assert_same_bits(out.copy(), expected)
    back = guarded(np.full(x_shape, np.nan, np.float32), end)
    algorithm.input_gradient(guarded(expected, end), guarded(w, end), g, back)
    assert_same_bits(back.copy(), run_gradient(expected, w, x_shape, padding))


@pytest.mark.parametrize("shape, filters", [((2, 5, 9, 8), 6), ((1, 1, 9, 30), 33), ((3, 70, 7, 7), 1)])
def test_channels_last(shape, filters):
    """The same bits from arrays whose channels lie last."""
    rng = np.random.default_rng(0)
    x, w, b = normal(rng, *shape), normal(rng, filters, shape[1], TAPS, TAPS), normal(rng, filters)
    g = geometry(x.shape, w.shape, padding=1)
    y, dx = run(x, w, b, 1), run_gradient(run(x, w, b, 1), w, x.shape, 1)
    out = empty(y.shape, y.dtype, "last")
    out[...] = np.nan
    algorithm.forward(laid_out(x, "last"), w, b, g, out)
    assert_same_bits(out.copy(order="C"), y)
    back = empty(x.shape, x.dtype, "last")
    back[...] = np.nan
    algorithm.input_gradient(out, w, g, back)
    assert_same_bits(back.copy(order="C"), dx)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_half_types_are_computed_in_float32_and_rounded_once(dtype, layout):
    rng = np.random.default_rng(0)
    x, w, b, dy = (
        normal(rng, *shape).astype(dtype) for shape in ((2, 20, 14, 18), (33, 20, 3, 3), (33,), (2, 33, 14, 18))
    )
    x, dy = laid_out(x, layout), laid_out(dy, layout)
    kinds = [konv.plan(x.shape, w.shape, padding=1, kind=kind, dtype=dtype, layout=layout) for kind in KINDS]
    assert {plan.algorithm for plan in kinds} == {algorithm}
    wide_x, wide_w, wide_b, wide_dy = (a.astype(np.float32) for a in (x, w, b, dy))
    assert_same_bits(konv.conv(x, w, b, padding=1), konv.conv(wide_x, wide_w, wide_b, padding=1).astype(dtype))
    right = konv.conv_backward(wide_dy, wide_x, wide_w, padding=1)
    for gradient, expected in zip(konv.conv_backward(dy, x, w, padding=1), right):
        assert_same_bits(gradient, expected.astype(dtype))


@pytest.mark.parametrize("layout", ["first", "last"])
def test_float64(layout):
    """Its rounding is that of its type."""
    rng = np.random.default_rng(0)
    x, w, b, dy = (rng.standard_normal(shape) for shape in ((2, 20, 14, 18), (33, 20, 3, 3), (33,), (2, 33, 14, 18)))
    right = [textbook.conv(x, w, b, padding=1), *textbook.conv_backward(dy, x, w, padding=1)]
    x, dy = laid_out(x, layout), laid_out(dy, layout)
    plans = [konv.plan(x.shape, w.shape, padding=1, kind=kind, dtype=x.dtype, layout=layout) for kind in KINDS]
    assert {plan.algorithm for plan in plans} == {algorithm}
    for actual, expected in zip([konv.conv(x, w, b, padding=1), *konv.conv_backward(dy, x, w, padding=1)], right):
        assert actual.dtype == np.float64
        assert (np.abs(actual - expected) <= 1e-14 * np.abs(expected).max()).all()


@pytest.mark.parametrize("first_row, rows", [(0, 6), (2, 8), (1, 1), (2, 1)])
@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("short", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_tiles_that_ask_for_infinity_are_neighbours(first_row, rows, columns, short):
    tile_rows = 3
    block = Block(first_row, rows, tile_rows, columns, *short)
    tiles = [(r, c) for r in range(rows) for c in range(columns)]
    at = {(r, c): block.places(r)(c) for r, c in tiles}
    assert sorted(at.values()) == list(range(len(tiles)))
    for row in (0, 1):
        for column in (0, 1):
            first, count = block.range(row, column)
            asked = {
                at[r, c]
                for r, c in tiles
                if not (row and short[0] and (first_row + r) % tile_rows == tile_rows - 1)
                and not (column and short[1] and c == columns - 1)
            }
            assert asked == set(range(first, first + count))


def test_short_axes_need_fewer_products():
    axes = Axes.of(geometry((1, 16, 7, 14), (16, 16, 3, 3), padding=1), False)
    assert (axes.rows.needed, axes.columns.needed, axes.needed) == (6 + 5, 3 * 6 + 5, 11 * 23)


@pytest.mark.parametrize("shape, filters", [((3, 130, 7, 9), 70), ((2, 20, 14, 18), 33)])
def test_bits_do_not_depend_on_the_cut(monkeypatch, shape, filters):
    """However it is cut into pieces, every sum has its order."""
    rng = np.random.default_rng(2)
    x, w, b = normal(rng, *shape), normal(rng, filters, shape[1], TAPS, TAPS), normal(rng, filters)
    y, dx = run(x, w, b, 1), run_gradient(run(x, w, b, 1), w, shape, 1)
    g = geometry(shape, w.shape, padding=1)
    cuts = list(every_cut(2, winograd_cuts.Axes.of(g, False), winograd_cuts.Sizes.of(g, False, "float32"), 2, 0))
    for i in range(0, len(cuts), 3):
        monkeypatch.setattr(
            winograd_cuts, "_cuts", lambda *given, i=i: list(every_cut(*given))[i:][:1] or every_cut(*given)
        )
        algorithm._prepare.cache_clear()
        assert_same_bits(run(x, w, b, 1), y)
        assert_same_bits(run_gradient(y, w, shape, 1), dx)
    algorithm._prepare.cache_clear()


@pytest.mark.parametrize("shape", [(8, 128, 7, 7), (1, 256, 7, 7), (1, 256, 28, 28)])
def test_small_layers_are_cut_for_both_threads(threads, shape):
    for n in (2, 1):
        threads(n)
        for stride in (1, 2):
            g = geometry(shape, (shape[1], shape[1], TAPS, TAPS), padding=1, stride=stride)
            assert winograd_cuts.best(g, False, "float32", n).threads == n


@pytest.mark.parametrize("shape, filters", [
    ((8, 64, 56, 56), 64), ((8, 128, 28, 28), 128), ((8, 256, 14, 14), 256), ((8, 512, 7, 7), 512), ((2, 512, 28, 28), 512),
    ((1, 64, 56, 56), 64),
])  # fmt: skip
def test_workspace_is_small(threads, shape, filters):
    """At most 15 % of the im2col matrix, with two threads."""
    threads(2)
    g = geometry(shape, (filters, shape[1], TAPS, TAPS), padding=1)
    columns = g.batch * np.prod(g.output) * TAPS * TAPS * 4
    assert winograd_cuts.best(g, False, "float32", 2).size <= 0.15 * columns * g.channels
    assert winograd_cuts.best(g, True, "float32", 2).size <= 0.15 * columns * g.filters


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_is_lost(value):
    """NaN or infinity is seen in every output that reads it, and in none outside the tiles that do."""
    rng = np.random.default_rng(0)
    w = normal(rng, 3, 2, TAPS, TAPS)
    for place in np.ndindex(8, 10):
        x = normal(rng, 1, 2, 8, 10)
        x[(0, 1, *place)] = value
        finite = np.isfinite(run(x, w, None, 1))
        for i, j in np.ndindex(8, 10):
            reads = abs(i - place[0]) <= 1 and abs(j - place[1]) <= 1
            tile = (i // OUTPUTS * OUTPUTS, j // OUTPUTS * OUTPUTS)
            near = all(t - 1 <= p <= t + OUTPUTS for t, p in zip(tile, place))
            assert not reads or not finite[0, :, i, j].any(), (place, i, j)
            assert near or finite[0, :, i, j].all(), (place, i, j)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tap", list(np.ndindex(TAPS, TAPS)))
def test_no_weight_is_lost(value, tap):
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 3, 8, 8), normal(rng, 4, 3, TAPS, TAPS)
    w[(2, 1, *tap)] = value
    y = run(x, w, None, 0)
    assert not np.isfinite(y[:, 2]).any() and np.isfinite(y[:, [0, 1, 3]]).all()
    dx = run_gradient(np.ones_like(y), w, x.shape, 0)
    expected = textbook.conv_backward(np.ones(y.shape), *wide(x, w), padding=0)[0]
    assert not np.isfinite(dx[~np.isfinite(expected)]).any() and np.isfinite(dx[:, [0, 2]]).all()


@pytest.mark.parametrize("kernel, taps, own", [
    ((3, 3), (0, 0), np.s_[:, :, :, :]), ((3, 3), (-3, -1), np.s_[:, :, ::-1, ::-1]), ((4, 4), (8, 2), np.s_[:, :, 1::2, ::2]),
    ((5, 4), (-8, -2), np.s_[:, :, 2::-2, 3::-2]),
], ids=["together", "reverse", "apart", "apart, reverse"])  # fmt: skip
@pytest.mark.parametrize("lanes", [4, 16])
def test_filters_on_numpy(lanes, kernel, taps, own):
    """The kernel's text in plain Python gives ``G w G^T``, for a panel with fewer filters than lanes too."""
    filters, channels, chunk_channels, cells = lanes + 3, lanes + 1, lanes, kernel[0] * kernel[1]
    width, plane = 2 * lanes, lanes * 2 * lanes + 16
    w = normal(np.random.default_rng(0), filters, channels, *kernel)
    of_section = w[own]
    schemes = [Scheme(4, n) for n in of_section.shape[2:]]
    points = schemes[0].points * schemes[1].points
    places = np.arange(cells).reshape(1, 1, *kernel)[own].ravel()
    section = [0, 0, 0, places.min(), sum(1 << int(place - places.min()) for place in places), 0, 0]
    out = np.full(2 * points * plane, np.nan, np.float32)
    for piece in range(2):
        filters_to_points.text("float32", lanes, 2, *((scheme.outputs, scheme.taps) for scheme in schemes), taps)(
            piece, 0, ArrayPointer(w.ravel()), ArrayPointer(out), ArrayPointer(np.array(section)),
            filter_stride=channels * cells, channel_stride=cells, filters=filters, channels=channels, section_count=1, panels=1,
            chunk_channels=chunk_channels, plane=plane,
        )  # fmt: skip
    g, g_ = (np.array(matrix(scheme.filters, scheme.taps, number)) for scheme in schemes)
    expected = np.einsum("pi,fcij,qj->pqcf", g, of_section.astype(np.float64), g_).reshape(points, channels, filters)
    found = out.reshape(2, points, plane)[:, :, : chunk_channels * width].reshape(2, points, chunk_channels, width)
    for chunk, first, count in [(0, 0, lanes), (1, lanes, 1)]:
        actual = found[chunk, :, :count, :filters]
        assert (np.abs(actual - expected[:, first : first + count]) <= 1e-5).all()


every_cut = winograd_cuts._cuts


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("shape, filters", [((2, 3, 7, 5), 5), ((1, 17, 6, 10), 20)])
def test_text_on_numpy_equals_compiled(monkeypatch, shape, filters, ahead):
    """The whole algorithm with every kernel run as its text, in plain Python: NumPy rounds products, machine code does not."""
    rng = np.random.default_rng(0)
    x, w, b = normal(rng, *shape), normal(rng, filters, shape[1], TAPS, TAPS), normal(rng, filters)
    dy = normal(rng, shape[0], filters, *shape[2:])
    compiled = [run(x, w, b, 1), run_gradient(dy, w, shape, 1)]
    monkeypatch.setattr(winograd_cuts, "_cuts", lambda *given: [cut for cut in every_cut(*given) if cut.ahead == ahead])
    with engine(plain=True):
        plain = [run(x, w, b, 1), run_gradient(dy, w, shape, 1)]
    for actual, expected in zip(plain, compiled):
        assert (np.abs(actual - expected) <= 1e-5 * np.abs(expected).max()).all()


@pytest.mark.parametrize("change, reason", [
    (dict(groups=2), "groups"), (dict(stride=2, dilation=2), "not both"), (dict(stride=2), "gain"),
    (dict(stride=4, kind="input_gradient"), "stride"), (dict(w_shape=(16, 16, 1, 1)), "several taps"),
    (dict(x_shape=(1, 16, 9, 9, 9), w_shape=(16, 16, 3, 1, 1)), "several taps"),
    (dict(w_shape=(16, 16, 12, 12)), "taps"), (dict(w_shape=(16, 16, 11, 11), stride=6), "apart"),
    (dict(dilation=9), "outputs"), (dict(dilation=6, padding=3, kind="weight_gradient"), "outputs"),
    (dict(x_shape=(3, 16, 10, 10), kind="weight_gradient"), "tiles"),
    (dict(x_shape=(1, 3, 32, 32), w_shape=(16, 3, 3, 3)), "channels"),
    (dict(w_shape=(8, 16, 3, 3)), "filters"), (dict(kind="input_gradient", w_shape=(7, 16, 3, 3)), "channels"),
    (dict(x_shape=(1, 16, 3, 3)), "several taps"),
])  # fmt: skip
def test_declines_with_a_reason(change, reason):
    options = dict(x_shape=(1, 16, 32, 32), w_shape=(16, 16, 3, 3), kind="forward", dtype="float32")
    assert algorithm.declines(problem(**options)) is None
    options.update(change)
    if options.get("groups") == 2:
        options["w_shape"] = (16, 8, 3, 3)
    assert reason in algorithm.declines(problem(**options))


def test_weight_gradients_of_few_channels_must_save_more():
    options = dict(kind="weight_gradient", dtype="float32", padding=12, dilation=12)
    assert "2.1" in algorithm.declines(problem((1, 31, 33, 33), (64, 31, 3, 3), **options))
    assert algorithm.declines(problem((1, 32, 33, 33), (64, 32, 3, 3), **options)) is None


def test_declines_what_must_be_exact():
    asked = problem((1, 16, 32, 32), (16, 16, 3, 3), "forward", "float32")
    object.__setattr__(asked, "exact", True)
    assert "exact" in algorithm.declines(asked)


@pytest.mark.parametrize("size", range(3, 12))
def test_choice_does_not_depend_on_the_batch(size):
    """Else a sample's bits would."""
    answers = {
        algorithm.declines(problem((n, 16, size, size), (16, 16, 3, 3), "forward", "float32")) for n in (1, 2, 100)
    }
    assert len(answers) == 1


def problem(x_shape, w_shape, kind, dtype, **options):
    return Problem(kind, geometry(x_shape, w_shape, **options), dtype)


def test_empty_batch():
    x, w = np.zeros((0, 8, 9, 9), np.float32), np.ones((4, 8, TAPS, TAPS), np.float32)
    assert run(x, w, None, 1).shape == (0, 4, 9, 9)
    assert run_gradient(np.zeros((0, 4, 9, 9), np.float32), w, x.shape, 1).shape == x.shape


@pytest.mark.parametrize("layout", ["first", "last"])
def test_an_empty_batch_is_planned_and_computed(layout):
    x, w = empty((0, 24, 8, 7), np.dtype(np.float32), layout), np.ones((24, 24, TAPS, TAPS), np.float32)
    assert konv.plan(x.shape, w.shape, padding=1, layout=layout).algorithm.NAME == "winograd"
    y = konv.conv(x, w, padding=1)
    dx, dw, db = konv.conv_backward(y, x, w, padding=1)
    assert y.shape == dx.shape == x.shape and not dw.any() and not db.any()
