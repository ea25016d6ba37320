"""Strassen's algorithm: its identity, its kernel everywhere, its hostile inputs."""

import itertools

import numpy as np
import pytest

import konv
from compare import assert_same_bits
from konv import textbook
from konv.engine import threads
from konv.engine.machine import machine
from konv.engine.plan import Problem
from konv.engine.products import strassen
from konv.engine.products.strassen_kernels import PRODUCTS
from plain_engine import MACHINES, engine
from test_guard_page import guarded

LAYERS = {
    # x, w, stride
    "1x1, odd": ((3, 20, 7, 7), (48, 20, 1, 1), 1),  # 75 pairs, the last of a sample without a fellow
    "patches": ((2, 3, 24, 68), (16, 3, 4, 4), 4),
    "long sums": ((2, 1034, 5, 5), (16, 1034, 1, 1), 1),  # several terms of the sum at a time
    "few": ((2, 2, 3, 3), (16, 2, 1, 1), 1),  # for plain Python
}
ERROR = 2e-6  # of the largest output, at most: three times what is met


def test_the_identity_holds_exactly():
    """The products, added with their signs, are every quarter's sum of products, and nothing else."""
    found = {}
    for left, right, to in PRODUCTS:
        for (i, k, a), (l, half, b), (row, column, c) in itertools.product(left, right, to):
            key = (row, column), (i, k), (l, half)
            found[key] = found.get(key, 0) + a * b * c
    halves = range(2)
    right = {((i, half), (i, k), (k, half)): 1 for i in halves for half in halves for k in halves}
    assert {key: n for key, n in found.items() if n} == right
    assert all(terms[0][2] == 1 for left, right, _ in PRODUCTS for terms in (left, right))


def arrays_of(name):
    """x, w, b, the geometry and the right result, in float64."""
    x_shape, w_shape, stride = LAYERS[name]
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    right = textbook.conv(*(a.astype(np.float64) for a in (x, w, b)), stride=stride)
    return (x, w, b), konv.geometry(x_shape, w_shape, stride=stride, dtype=np.float32), right


def computed(arrays, g, place=lambda array: array):
    """The result, in an output that was full of NaN; ``place`` tells where arrays lie."""
    x, w, b = arrays
    out = place(np.full(g.output_shape, np.nan, x.dtype))
    strassen.forward(place(x), place(w), place(b), g, out)
    return out.copy()


def assert_near(actual, right):
    assert (np.abs(actual - right) <= ERROR * np.abs(right).max()).all()


@pytest.fixture
def small_jobs(monkeypatch):
    """Small work is cut into several pieces and slots, as large work is."""
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    monkeypatch.setattr(threads, "_threads", 3)


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("name, host", [
    ("1x1, odd", "AVX-512"), ("long sums", "AVX-512"), ("patches", "AVX-512"), ("1x1, odd", "AVX2"), ("patches", "SSE2"),
])  # fmt: skip
def test_right_on_every_machine(name, host):
    """And between guard pages."""
    arrays, g, right = arrays_of(name)
    with engine(MACHINES[host]):
        assert_near(result := computed(arrays, g), right)
        for end in (True, False):
            assert_same_bits(computed(arrays, g, lambda array, end=end: guarded(array, end)), result)


def test_no_text_touches_a_cell_outside_its_arrays():
    arrays, g, right = arrays_of("few")
    with engine(MACHINES["AVX-512"], plain=True) as asked:
        assert_near(computed(arrays, g), right)
    assert asked == {"multiply_quarters"}


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("name", ["1x1, odd", "patches"])
def test_bits_do_not_depend_on_threads_or_batch(name, monkeypatch):
    (x, w, b), g, _ = arrays_of(name)
    results = []
    for n in (1, 2, 7):
        monkeypatch.setattr(threads, "_threads", n)
        results.append(computed((x, w, b), g))
        assert_same_bits(results[-1], results[0])
    for i in range(len(x)):
        one = konv.geometry(x[:1].shape, w.shape, stride=g.stride, dtype=np.float32)
        assert_same_bits(computed((x[i : i + 1], w, b), one)[0], results[0][i])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_lost(value):
    """NaN or infinity is seen in every output that reads it, and in no other sample; of a filter, in no more than two."""
    (x, w, b), g, _ = arrays_of("1x1, odd")
    for row, column in ((0, 0), (3, 3), (6, 6)):
        changed = x.copy()
        changed[1, 5, row, column] = value
        finite = np.isfinite(computed((changed, w, b), g))
        assert not finite[1, :, row, column].any() and finite[[0, 2]].all()
    for filter, fellow in ((1, 25), (47, 23)):
        changed = w.copy()
        changed[filter, 13] = value
        finite = np.isfinite(computed((x, changed, b), g))
        assert not finite[:, filter].any() and np.delete(finite, [filter, fellow], axis=1).all()


def test_its_error_is_at_most_three_times_a_direct_sum_s():
    x_shape, w_shape = (1, 514, 16, 16), (512, 514, 1, 1)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
    right = w[:, :, 0, 0].astype(np.float64) @ x[0].reshape(514, -1)
    g = konv.geometry(x_shape, w_shape, dtype=np.float32)
    errors = []
    for compute in (strassen.forward, konv.engine.products.products.forward):
        compute(x, w, None, g, y := np.full(g.output_shape, np.nan, np.float32))
        errors.append(np.sqrt(np.square(y.reshape(512, -1) - right).mean()))
    assert 0 < errors[0] <= 3 * errors[1]


@pytest.mark.parametrize("change, reason", [
    (dict(kind="input_gradient"), "forward"), (dict(kind="weight_gradient"), "forward"), (dict(exact=True), "exact"),
    (dict(layout="last"), "channels first"), (dict(dtype="float64"), "float32"), (dict(groups=2), "one group"),
    (dict(spatial=(300,)), "length"), (dict(padding=1), "padding"), (dict(spatial=(7, 7)), "49 pixels"),
    (dict(filters=256), "256 filters"), (dict(channels=256), "sums of 256"), (dict(channels=1024), "displace"),
    (dict(filters=520), "multiples"), (dict(channels=515), "multiples"),
])  # fmt: skip
def test_declines_with_a_reason(change, reason):
    asked = dict(kind="forward", exact=False, layout="first", dtype="float32", groups=1, padding=0, spatial=(16, 16))
    asked |= dict(channels=768, filters=768, batch=1)

    def declines(**own):
        o = asked | own
        w_shape = (o["filters"], o["channels"] // o["groups"], *[1] * len(o["spatial"]))
        g = konv.geometry((o["batch"], o["channels"], *o["spatial"]), w_shape, groups=o["groups"], padding=o["padding"])
        return strassen.declines(Problem(o["kind"], g, o["dtype"], o["exact"], o["layout"]))

    assert declines(**change) == declines(**change, batch=100)
    if machine().adds_beside:
        assert declines() is None and reason in declines(**change)
    else:
        assert "adders" in declines()


def test_workspace_is_at_most_15_percent_of_the_textbook_s_matrix():
    g = konv.geometry((10, 768, 16, 16), (512, 768, 1, 1), dtype=np.float32)
    with threads.using(2):
        assert strassen.workspace(Problem("forward", g, "float32")) <= 0.15 * 10 * 16 * 16 * 768 * 4
