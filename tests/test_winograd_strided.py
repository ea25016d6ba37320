"""Winograd's algorithm for 3 x 3 with stride 2: its identity in exact arithmetic, its kernels everywhere, its hostile inputs."""

from fractions import Fraction

import numpy as np
import pytest

import konv
from compare import assert_same_bits
from konv import textbook
from konv.arrays import empty, laid_out
from konv.engine import threads
from konv.engine.plan import Problem
from konv.engine.winograd import winograd_strided
from konv.engine.winograd.winograd_strided_kernels import filters_of, inputs, outputs, places
from plain_engine import MACHINES, engine
from strategies import BFLOAT16
from test_guard_page import guarded

LAYERS = {
    # x, filters, padding: outputs of 4 + 3, 4 and 4 + 3 + 3, of 3 and 4 + 4
    "7 x 7": ((3, 70, 14, 14), 40, 1),
    "4 x 10": ((2, 9, 8, 19), 17, ((0, 1), (1, 2))),
    "3 x 8": ((2, 33, 7, 17), 12, 0),
    "7 x 3": ((1, 17, 14, 7), 5, ((1, 1), (0, 0))),  # for plain Python
}
ERROR = 1.5e-6  # of the largest output, at most: three times what is met


def test_the_identity_holds_exactly():
    """``sum over points of outputs * filters * inputs`` is 1 where i == o + t, else 0; only infinity reads the last input."""

    def columns(formula, count):
        return list(zip(*(formula([Fraction(i == j) for i in range(count)], Fraction) for j in range(count))))

    bt, e, at = columns(inputs, 5), columns(filters_of, 2), columns(outputs, 5)
    for o, t, i in np.ndindex(4, 2, 5):
        assert sum(at[o][p] * e[p][t] * bt[p][i] for p in range(5)) == (i == o + t), (o, t, i)
    assert not any(bt[p][4] for p in range(4)) and not any(at[o][4] for o in range(3))


@pytest.mark.parametrize("rows, columns", [(7, 7), (4, 3), (6, 13)])
def test_as_many_products_as_are_told(rows, columns):
    """2 m + 1 of a tile of m outputs along an axis: 256 for 7 x 7. No matrix has the cells of another."""
    table, end = places(1, rows, columns, (1, 1))
    assert table[:, -1].sum() == np.prod([2 * n + -(-n // 4) for n in (rows, columns)])
    assert (np.diff(table[:, 0]) == table[:-1, -1]).all() and end == table[-1, 0] + table[-1, -1] + columns
    groups = places(3, rows, columns, (8, 14))[0]
    assert (np.diff(groups[:, 0]) >= groups[:-1, -1]).all() and (groups[:, -1] == 3 * table[:, -1]).all()


def arrays_of(name, dtype=np.float32):
    """x, w, b, the geometry and the right result, in float64."""
    (batch, channels, *spatial), filters, padding = LAYERS[name]
    rng = np.random.default_rng(0)
    shapes = (batch, channels, *spatial), (filters, channels, 3, 3), (filters,)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    g = konv.geometry(x.shape, w.shape, stride=2, padding=padding, dtype=dtype)
    right = textbook.conv(*(a.astype(np.float64) for a in (x, w, b)), stride=2, padding=padding)
    return (x, w, b), g, right


def computed(arrays, g, layout="first", place=lambda array: array):
    """The result, in an output that was full of NaN; ``place`` tells where arrays lie."""
    x, w, b = arrays
    out = empty(g.output_shape, x.dtype, layout)
    out[...] = np.nan
    winograd_strided.forward(place(laid_out(x, layout)), place(w), place(b), g, out := place(out))
    return out.copy(order="C")


def assert_near(actual, right, error=ERROR):
    assert (np.abs(actual.astype(np.float64) - right) <= error * np.abs(right).max()).all()


@pytest.fixture
def small_jobs(monkeypatch):
    """Small work is cut into several blocks of images, chunks of channels and slots, as large work is."""
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    monkeypatch.setattr(threads, "_threads", 3)
    monkeypatch.setattr(winograd_strided, "DEPTH", 16)
    monkeypatch.setattr(winograd_strided, "CHANNELS", 32)
    monkeypatch.setattr(winograd_strided, "VALUES_BYTES", 1)


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("name, layout, host", [
    ("7 x 7", "first", "AVX-512"), ("4 x 10", "last", "AVX2"), ("3 x 8", "first", "SSE2"),
])  # fmt: skip
def test_right_on_every_machine(name, layout, host):
    """And between guard pages."""
    arrays, g, right = arrays_of(name)

    def beside_a_page(array, end):
        if array.flags.c_contiguous:
            return guarded(array, end)
        return np.moveaxis(guarded(np.moveaxis(array, 1, -1), end), -1, 1)

    with engine(MACHINES[host]):
        assert_near(result := computed(arrays, g, layout), right)
        for end in (True, False):
            assert_same_bits(computed(arrays, g, layout, lambda array, end=end: beside_a_page(array, end)), result)


@pytest.mark.parametrize("dtype, error", [(np.float64, 4e-15), (BFLOAT16, 2**-8)])
def test_other_types(dtype, error):
    arrays, g, right = arrays_of("3 x 8", dtype)
    assert_near(computed(arrays, g), right, 1.1 * error)


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("layout", ["first", "last"])
def test_no_text_touches_a_cell_outside_its_arrays(layout, monkeypatch):
    monkeypatch.setattr(winograd_strided, "CHANNELS", 16)
    arrays, g, right = arrays_of("7 x 3")
    with engine(MACHINES["AVX-512"], plain=True) as asked:
        assert_near(computed(arrays, g, layout), right)
    assert asked == {"strided_inputs", "strided_products"}


def test_bits_do_not_depend_on_threads_or_batch(small_jobs, monkeypatch):
    (x, w, b), g, _ = arrays_of("7 x 7")
    results = []
    for n, size in ((1, 1), (2, 1 << 30), (7, 1)):
        monkeypatch.setattr(threads, "_threads", n)
        monkeypatch.setattr(winograd_strided, "VALUES_BYTES", size)
        winograd_strided._prepare.cache_clear()
        results.append(computed((x, w, b), g))
        assert_same_bits(results[-1], results[0])
    for i in range(len(x)):
        one = konv.geometry(x[:1].shape, w.shape, stride=2, padding=1)
        assert_same_bits(computed((x[i : i + 1], w, b), one)[0], results[0][i])


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_lost(value):
    """NaN or infinity is seen in every output that reads it, in no other image and of no other filter."""
    (x, w, b), g, _ = arrays_of("7 x 7")
    for place in np.ndindex(3, 3):
        row, column = place[0] + 11, place[1] + 4
        changed = x.copy()
        changed[1, 5, row, column] = value
        y = computed((changed, w, b), g)
        for i, j in np.ndindex(7, 7):
            reads = abs(2 * i - row) <= 1 and abs(2 * j - column) <= 1
            assert not reads or not np.isfinite(y[1, :, i, j]).any(), (place, i, j)
        assert np.isfinite(y[[0, 2]]).all()
        changed = w.copy()
        changed[(2, 1, *place)] = value
        finite = np.isfinite(computed((x, changed, b), g))
        assert not finite[:, 2].any() and finite[:, [*range(2), *range(3, 40)]].all()


@pytest.mark.parametrize("change, reason", [
    (dict(kind="input_gradient"), "forward"), (dict(kind="weight_gradient"), "forward"), (dict(exact=True), "exact"),
    (dict(stride=1), "stride 2"), (dict(groups=2), "one group"), (dict(dilation=2), "stride 2"), (dict(kernel=(3, 2)), "3 x 3"),
    (dict(spatial=(9, 14)), "outputs"), (dict(channels=64), "channels"), (dict(filters=64), "filters"),
])  # fmt: skip
def test_declines_with_a_reason(change, reason):
    asked = dict(
        kind="forward", exact=False, stride=2, groups=1, dilation=1, kernel=(3, 3), spatial=(14, 14), channels=256
    )
    asked |= dict(filters=256, batch=1)

    def declines(**own):
        o = asked | own
        w_shape = (o["filters"], o["channels"] // o["groups"], *o["kernel"])
        options = {name: o[name] for name in ("stride", "groups", "dilation")}
        g = konv.geometry((o["batch"], o["channels"], *o["spatial"]), w_shape, padding=1, **options)
        return winograd_strided.declines(Problem(o["kind"], g, "float32", o["exact"]))

    assert declines() is None and declines(batch=100) is None
    assert reason in declines(**change) and declines(**change) == declines(**change, batch=100)


@pytest.mark.parametrize("batch, channels, size", [(8, 512, 14), (64, 512, 14), (8, 256, 28)])
def test_workspace_is_at_most_15_percent_of_the_textbook_s_matrix(batch, channels, size):
    """The numbers of some channels of a few images, and for each of two threads some filters' and their sums."""
    with threads.using(2):
        plan = konv.plan((batch, channels, size, size), (channels, channels, 3, 3), stride=2, padding=1)
        assert plan.algorithm is winograd_strided
        matrix = batch * (size // 2) ** 2 * channels * 9 * 8  # float64
        assert plan.workspace <= min(0.15 * matrix, 4 << 20)


@pytest.mark.parametrize("channels, size", [(128, 28), (256, 56)])
def test_plans_take_it(channels, size):
    plan = konv.plan((8, channels, size, size), (channels, channels, 3, 3), stride=2, padding=1)
    assert plan.algorithm is winograd_strided
