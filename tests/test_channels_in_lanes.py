"""Groups and depthwise layers, channels or tiles in lanes: chosen, right in both layouts, the same bits however they are run."""

import dataclasses

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import empty, laid_out
from konv.engine import threads
from konv.engine.groups import depthwise_fixed, depthwise_paired, small_groups, small_planes
from konv.engine.plan import KINDS, Problem
from konv.engine.winograd import winograd_groups, winograd_rows, winograd_rows_channels, winograd_small
from plain_engine import MACHINES, engine, hosts_of
from strategies import integers
from test_guard_page import guarded

LAYERS = {
    # algorithm, x, w, options, layouts
    "16 x 32": (winograd_groups, (3, 32, 9, 14), (64, 16, 3, 3), dict(padding=1), ("first", "last")),
    "32 x 16, cut": (winograd_groups, (2, 64, 5, 140), (32, 32, 3, 3), dict(padding=((2, 0), (0, 3))), ("first", "last")),
    "16 x 16, 7 pixels": (winograd_groups, (11, 32, 7, 7), (32, 16, 3, 3), dict(padding=1), ("first", "last")),
    "12 x 16, tiles in lanes": (winograd_small, (3, 48, 26, 28), (64, 12, 3, 3), dict(padding=((2, 0), (1, 2))), ("first",)),
    "16 x 16, 14 pixels": (winograd_small, (13, 32, 14, 14), (32, 16, 3, 3), dict(padding=1), ("first",)),
    "12 x 12, rows cut": (winograd_small, (2, 48, 15, 112), (48, 12, 3, 3), dict(padding=(0, 1)), ("first",)),
    "8 x 8, rows in lanes": (winograd_rows, (3, 32, 12, 30), (32, 8, 3, 3), dict(padding=((2, 0), (2, 2))), ("first",)),
    "8 x 4, short rows": (winograd_rows, (2, 16, 9, 39), (8, 8, 3, 3), dict(padding=((0, 2), (1, 2))), ("first",)),
    "8 x 8 / 2, rows": (winograd_rows, (2, 16, 23, 28), (16, 8, 3, 3), dict(padding=((0, 2), (1, 0)), stride=2), ("first",)),
    "4 x 4 / 2, rows": (winograd_rows, (2, 8, 16, 30), (8, 4, 3, 3), dict(padding=((1, 1), (2, 0)), stride=2), ("first",)),
    "4 x 8, half a vector": (winograd_rows, (2, 16, 10, 8), (32, 4, 3, 3), dict(padding=1), ("first",)),
    "7 x 3, pairs of rows": (depthwise_paired, (2, 32, 9, 6), (32, 1, 7, 3), dict(padding=(3, 1)), ("first",)),
    "6 x 5, pairs of rows": (depthwise_paired, (3, 33, 7, 7), (33, 1, 6, 5), dict(padding=((2, 6), (4, 0))), ("first",)),
    "5 x 3, many pairs": (depthwise_paired, (1, 32, 43, 17), (32, 1, 5, 2), dict(padding=((0, 1), (1, 0))), ("first",)),
    "7 x 7 on 7 x 7": (small_planes, (3, 35, 7, 7), (35, 1, 7, 7), dict(padding=3), ("first",)),
    "7 x 8 on 5 x 16": (small_planes, (2, 16, 5, 16), (16, 1, 7, 8), dict(padding=((2, 6), (7, 0))), ("first",)),
    "groups of 8": (small_groups, (5, 48, 9, 22), (48, 8, 3, 3), dict(padding=1), ("first", "last")),
    "8 x 8, stride 3": (small_groups, (2, 16, 9, 38), (16, 8, 2, 5), dict(padding=((1, 0), (3, 2)), stride=(1, 3)), ("first",)),
    "8 x 8 / 2": (small_groups, (2, 32, 9, 10), (32, 8, 3, 3), dict(padding=1, stride=2), ("first", "last")),
    "8 x 8 / 3, left over": (small_groups, (1, 16, 11, 31), (16, 8, 2, 2), dict(padding=((0, 3), (1, 2)), stride=3), ("first",)),
    "groups of 16": (small_groups, (2, 32, 6, 7), (32, 16, 3, 3), dict(padding=1), ("last",)),
    "16 x 16, weights": (winograd_rows, (3, 64, 10, 9), (64, 16, 3, 3), dict(padding=((0, 1), (2, 0))), ("first",)),
    "8 x 8, chunks": (winograd_rows, (2, 64, 11, 68), (64, 8, 3, 3), dict(padding=((2, 0), (1, 2))), ("first",)),
    "4 x 4, weights": (winograd_rows, (2, 64, 7, 5), (64, 4, 3, 3), dict(padding=((1, 1), (2, 2))), ("first",)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def any_size_is_worth_compiling(monkeypatch):
    monkeypatch.setattr(depthwise_fixed, "worth_compiling", lambda g: True)


@pytest.fixture(autouse=True)
def planes_of_several_chunks(monkeypatch):
    monkeypatch.setattr(winograd_rows_channels, "CHUNK_CELLS", 600)


EVERY = pytest.mark.parametrize(
    "name, layout", [(name, layout) for name, (*_, layouts) in LAYERS.items() for layout in layouts]
)


def arrays_of(name, draw):
    """The algorithm, x, w, b, dy, the geometry and its options."""
    algorithm, x_shape, w_shape, options, _ = LAYERS[name]
    options = options | {"groups": x_shape[1] // w_shape[1]}
    g = konv.geometry(x_shape, w_shape, **options)
    return algorithm, [draw(shape) for shape in (x_shape, w_shape, w_shape[:1], g.output_shape)], g, options


def kinds(algorithm, g, layout):
    return [kind for kind in KINDS if algorithm.declines(Problem(kind, g, "float32", False, layout)) is None]


def computed(algorithm, arrays, g, layout, place=lambda array: array):
    """The results by kind, each in an output that was full of NaN; ``place`` tells where arrays lie."""
    x, w, b, dy = arrays
    calls = {
        "forward": (g.output_shape, lambda out: algorithm.forward(place(x), place(w), place(b), g, out)),
        "input_gradient": (g.x_shape, lambda out: algorithm.input_gradient(place(dy), place(w), g, out)),
        "weight_gradient": (g.w_shape, lambda out: algorithm.weight_gradient(place(dy), place(x), g, out)),
    }
    results = {}
    for kind in kinds(algorithm, g, layout):
        shape, call = calls[kind]
        out = empty(shape, x.dtype, "first" if kind == "weight_gradient" else layout)
        out[...] = np.nan
        call(out := place(out))
        results[kind] = out.copy(order="C")
    return results


def normal(shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def lie(arrays, layout):
    x, w, b, dy = arrays
    return laid_out(x, layout), w, b, laid_out(dy, layout)


@pytest.mark.parametrize(
    "name, layout, host",
    [
        (name, layout, host)
        for number, (name, (*_, layouts)) in enumerate(LAYERS.items())
        for layout in layouts
        for host in hosts_of(number + (layout == "last"))
    ],
)
def test_right_on_every_machine(name, layout, host):
    """Exactly, on small integers; within Winograd's error, with Winograd."""
    algorithm, arrays, g, options = arrays_of(
        name, lambda shape: integers(np.random.default_rng(0), shape, np.float32, limit=2)
    )
    x, w, b, dy = (a.astype(np.float64) for a in arrays)
    dx, dw, _ = textbook.conv_backward(dy, x, w, **options)
    right = {"forward": textbook.conv(x, w, b, **options), "input_gradient": dx, "weight_gradient": dw}
    with engine(MACHINES[host]):
        results = computed(algorithm, lie(arrays, layout), g, layout)
    assert results or host != "AVX-512"
    for kind, result in results.items():
        if algorithm in (winograd_groups, winograd_rows, winograd_small):
            assert (np.abs(result - right[kind]) <= 3e-6 * np.abs(right[kind]).max()).all()
        else:
            assert_equal(result, right[kind].astype(np.float32))


@EVERY
def test_bits_do_not_depend_on_threads_or_batch(name, layout, monkeypatch):
    algorithm, arrays, g, options = arrays_of(name, normal)
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    with engine(MACHINES["AVX-512"]):
        results = []
        for n in (1, 2, 3, 7):
            monkeypatch.setattr(threads, "_threads", n)
            results.append(computed(algorithm, lie(arrays, layout), g, layout))
        for other in results[1:]:
            for kind, result in other.items():
                assert_same_bits(result, results[0][kind])
        x, w, b, dy = arrays
        for i in {0, g.batch - 1}:
            one = konv.geometry(x[i : i + 1].shape, w.shape, **options)
            alone = computed(algorithm, lie((x[i : i + 1], w, b, dy[i : i + 1]), layout), one, layout)
            for kind in {"forward", "input_gradient"} & alone.keys():
                assert_same_bits(alone[kind][0], results[0][kind][i])


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("name", LAYERS)
def test_guard_pages(name, end):
    algorithm, arrays, g, _ = arrays_of(name, normal)
    if "first" in LAYERS[name][-1]:
        with engine(MACHINES["AVX-512"]):
            expected = computed(algorithm, arrays, g, "first")
            for kind, result in computed(algorithm, arrays, g, "first", lambda array: guarded(array, end)).items():
                assert_same_bits(result, expected[kind])


def test_who_computes_what():
    with engine(MACHINES["AVX-512"]):
        for name in LAYERS:
            algorithm, _, g, _ = arrays_of(name, normal)
            assert kinds(algorithm, g, LAYERS[name][-1][0])
        exact = Problem("forward", arrays_of("16 x 32", normal)[2], "float32", True)
        paired = dataclasses.replace(exact, geometry=arrays_of("7 x 3, pairs of rows", normal)[2])
        assert "exact" in depthwise_paired.declines(paired)
        assert all("exact" in a.declines(exact) for a in (winograd_groups, winograd_rows, winograd_small))


@pytest.mark.parametrize("name", ["8 x 8, rows in lanes", "8 x 8, chunks"])
def test_a_bias_gradient_that_is_summed_with_the_weights(name):
    algorithm, (x, _, _, dy), g, _ = arrays_of(
        name, lambda shape: integers(np.random.default_rng(0), shape, np.float32, limit=2)
    )
    dw, db = np.full(g.w_shape, np.nan, np.float32), np.full(g.filters, np.nan, np.float32)
    algorithm.weight_and_bias_gradient(dy, x, g, dw, db)
    assert_equal(db, dy.sum(axis=(0, 2, 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pairs_of_rows_that_read_a_number_that_is_none(value):
    """Outputs that read it are not finite, all others have the bits that they had."""
    algorithm, (x, w, b, dy), g, options = arrays_of("6 x 5, pairs of rows", normal)
    before = computed(algorithm, (x, w, b, dy), g, "first")["forward"]
    x[1, 2, 3, 4] = value
    after = computed(algorithm, (x, w, b, dy), g, "first")["forward"]
    with np.errstate(invalid="ignore"):
        read = ~np.isfinite(textbook.conv(x, w, b, **options))
    assert read.any() and not np.isfinite(after[read]).any()
    assert_same_bits(after[~read], before[~read])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    """A tap that meets padding alone still makes its outputs NaN, as in the textbook."""
    _, (x, w, b, dy), g, options = arrays_of("7 x 7 on 7 x 7", normal)
    w[3, 0, 0, 0] = value
    with np.errstate(invalid="ignore"):
        right = textbook.conv(x, w, b, **options)
        dx = textbook.conv_backward(dy, x, w, **options)[0]
        results = computed(small_planes, (x, w, b, dy), g, "first")
    for result, expected in ((results["forward"], right), (results["input_gradient"], dx)):
        assert (np.isfinite(result) == np.isfinite(expected)).all()


def test_a_nan_stays_in_its_image_where_tiles_end_with_their_row():
    """Lanes beyond the last tile are zeros, not a number of the first tile less itself."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 512, 12, 16), np.float32)
    w = rng.standard_normal((512, 16, 3, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    assert konv.plan(x.shape, w.shape, groups=32).algorithm.NAME == "winograd_small"
    y = konv.conv(x, w, groups=32)
    assert np.isnan(y[0]).any() and np.isfinite(y[0, :, :, 4:]).all() and np.isfinite(y[1:]).all()
    assert_same_bits(y[1:], konv.conv(x[1:], w, groups=32))


def test_weight_gradients_of_winograd_small_ask_for_the_threads_of_now():
    g = konv.geometry((4, 512, 14, 14), (512, 16, 3, 3), groups=32, padding=1)
    x, dy, sizes = np.zeros(g.x_shape, np.float32), np.zeros(g.output_shape, np.float32), []
    for number in (2, 1, 2):
        with threads.using(number):
            konv.conv_backward(dy, x, np.zeros(g.w_shape, np.float32), groups=32, padding=1, need="w")
            sizes.append(winograd_small.workspace(Problem("weight_gradient", g, "float32")))
    assert sizes[0] == sizes[2] == 2 * sizes[1]


def test_a_layer_of_one_small_group_is_not_transformed():
    """Whatever its batch."""

    def declines(batch, channels, size, groups=1):
        g = konv.geometry(
            (batch, channels * groups, size, size), (channels * groups, channels, 3, 3), padding=1, groups=groups
        )
        return [winograd_rows.declines(Problem(kind, g, "float32")) for kind in ("forward", "input_gradient")]

    for batch in (1, 100):
        assert all("one group" in reason for reason in declines(batch, 8, 8) + declines(batch, 4, 16))
        assert declines(batch, 8, 16) == declines(batch, 4, 28) == declines(batch, 8, 8, 32) == [None, None]
