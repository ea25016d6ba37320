"""DownConv's kernels, in plain Python and compiled, and ``konv.down``: against the textbook's two convolutions."""

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from compare import assert_close, assert_equal, assert_same_bits, of_any_threads, untouched
from konv import textbook
from konv.down import GRADIENTS, _layered, _layered_backward, _shape, down_conv, down_conv_backward, down_shape
from konv.engine import memory
from konv.engine.downconv import down
from konv.engine.machine import machine
from konv.layers.downconv import DownConv
from plain_engine import MACHINES, engine, factories, many_small_jobs
from strategies import BFLOAT16, LAYOUTS, integers, seeds
from test_guard_page import guarded

CASES = {
    # (B, L, H), (C, k1), (G, k2), padding
    "short windows": ((2, 9, 2), (3, 2), (5, 2), 0),
    "lanes to add": ((2, 47, 6), (3, 11), (2, 3), 1),
    "a lane for each channel": ((3, 21, 4), (20, 3), (37, 2), 1),
    "windows and a tail unread": ((2, 60, 3), (1, 7), (4, 3), 1),
    "even features": ((2, 45, 16), (5, 9), (3, 2), 0),
    "few long segments": ((2, 103, 6), (3, 11), (5, 9), 0),
    "segments of padding": ((3, 8, 5), (2, 4), (3, 2), 5),
    "no batch": ((0, 8, 5), (4, 4), (3, 2), 0),
}


def arrays(case, draw, dtype):
    """x, w1, b1, w2, b2, dy."""
    x, (channels, k1), (outputs, k2), padding = case
    segments = (x[1] // k1 + 2 * padding - k2) // k2 + 1
    shapes = x, (channels, x[2], k1), (channels,), (outputs, channels, k2), (outputs,), (x[0], segments, outputs)
    return [draw(shape).astype(dtype) for shape in shapes]


def expected(x, w1, b1, w2, b2, dy, padding):
    """By the textbook, in float64: y, then the gradients of x, w1, b1, w2, b2."""
    x, w1, b1, w2, b2, dy = (a.astype(np.float64) for a in (x, w1, b1, w2, b2, dy))
    x, dy = x.transpose(0, 2, 1), dy.transpose(0, 2, 1)
    first, last = dict(stride=w1.shape[2]), dict(stride=w2.shape[2], padding=padding)
    h = textbook.conv(x, w1, b1, **first)
    y = textbook.conv(np.where(h <= 0, 0, h), w2, b2, **last)
    dh, dw2, db2 = textbook.conv_backward(dy, np.where(h <= 0, 0, h), w2, **last)
    dx, dw1, db1 = textbook.conv_backward(np.where(h <= 0, 0, dh), x, w1, **first)
    return [y.transpose(0, 2, 1), dx.transpose(0, 2, 1), dw1, db1, dw2, db2]


def computed(x, w1, b1, w2, b2, dy, padding, place=lambda array: array):
    """By the engine: outputs, in the memory that ``place`` gives, are full of NaN before."""
    shape = _shape(x, w1, w2, padding)
    y, dx = place(np.full(dy.shape, np.nan, x.dtype)), place(np.full_like(x, np.nan))
    hidden = place(down.forward(x, w1, b1, w2, b2, shape, y))
    return [y, dx, *down.backward(dy, x, hidden, w1, w2, shape, dx)]


def whole(seed=0):
    rng = np.random.default_rng(seed)
    return lambda shape: integers(rng, shape, limit=2)


def check(case, dtype, **more):
    made = arrays(case, whole(), dtype)
    for actual, right in zip(computed(*made, case[3], **more), expected(*made, case[3]), strict=True):
        assert_equal(actual, right.astype(dtype))


# ------------------------------------------------------------------------------------------------ the kernels


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("case", CASES)
def test_texts_in_plain_python(case, host, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host], plain=True):
        check(CASES[case], np.float32)


@pytest.mark.parametrize(
    "host, case", [("AVX2", "a lane for each channel"), ("SSE2", "lanes to add"), ("NEON", "lanes to add")]
)
def test_compiled_for_other_machines(host, case, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host]):
        check(CASES[case], np.float32)


def test_every_kernel_is_run_here():
    with engine() as asked:
        for case in CASES.values():
            check(case, np.float32)
    assert asked == {
        name for name, factory in factories().items() if factory.__module__.endswith(("down_kernels", "down_outer"))
    }


@pytest.mark.parametrize(
    "dtype, case",
    [(np.float16, "lanes to add"), (BFLOAT16, "lanes to add"), (np.float64, "lanes to add")],
    ids=str,
)
def test_other_types(dtype, case):
    check(CASES[case], dtype)


@st.composite
def cases(draw):
    channels, k1, k2 = draw(st.sampled_from([1, 3, 4, 20])), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    windows, padding = draw(st.integers(1, 14)), draw(st.integers(0, 5))
    padding = max(padding, k2 - windows)
    length = windows * k1 + draw(st.integers(0, k1 - 1))
    return (
        (draw(st.integers(0, 5)), length, draw(st.integers(1, 40))),
        (channels, k1),
        (draw(st.integers(1, 80)), k2),
        padding,
    )


@settings(max_examples=150)
@given(cases(), seeds)
def test_drawn_shapes(case, seed):
    made = arrays(case, whole(seed), np.float32)
    for actual, right in zip(computed(*made, case[3]), expected(*made, case[3]), strict=True):
        assert_equal(actual, right.astype(np.float32))


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("case", ["lanes to add", "a lane for each channel", "windows and a tail unread"])
def test_nothing_is_touched_outside(case, end):
    made = [guarded(array, end) for array in arrays(CASES[case], whole(), np.float32)]
    results = computed(*made, CASES[case][3], place=lambda array: guarded(array, end))
    for actual, right in zip(results, expected(*made, CASES[case][3]), strict=True):
        assert_equal(actual, right.astype(np.float32))


BITS = {
    "few channels": ((5, 203, 64), (4, 10), (64, 5), 0),
    "many channels, padding": ((5, 70, 24), (20, 3), (40, 5), 1),
}


@pytest.mark.parametrize("case", BITS)
def test_bits_depend_neither_on_the_threads_nor_on_the_batch(case):
    rng = np.random.default_rng(0)
    x, w1, b1, w2, b2, dy = arrays(BITS[case], rng.standard_normal, np.float32)
    options = dict(padding=BITS[case][3])
    many = [np.concatenate([array] * 40) for array in (x, dy)]  # work for several threads

    def compute():
        y, hidden = down_conv(many[0], w1, b1, w2, b2, **options)
        return [y, *down_conv_backward(many[1], many[0], hidden, w1, w2, **options)]

    whole_y, whole_dx, *_ = of_any_threads(compute)
    for n in range(len(x)):
        y, hidden = down_conv(x[n : n + 1], w1, b1, w2, b2, **options)
        assert_same_bits(y, whole_y[n : n + 1])
        dx = down_conv_backward(dy[n : n + 1], x[n : n + 1], hidden, w1, w2, **options, need="x")[0]
        assert_same_bits(dx, whole_dx[n : n + 1])


@pytest.mark.parametrize("case", BITS)
@pytest.mark.parametrize("need", [("x",), ("w1",), ("b2", "x"), ("w2", "b1"), ()])
def test_only_what_is_needed_and_the_same_bits(case, need):
    rng = np.random.default_rng(0)
    x, w1, b1, w2, b2, dy = arrays(BITS[case], rng.standard_normal, np.float32)
    hidden = down_conv(x, w1, b1, w2, b2, padding=BITS[case][3])[1]
    gradients = down_conv_backward(dy, x, hidden, w1, w2, padding=BITS[case][3])
    some = down_conv_backward(dy, x, hidden, w1, w2, padding=BITS[case][3], need=need)
    for name, gradient, right in zip(GRADIENTS, some, gradients):
        if name in need:
            assert_same_bits(gradient, right)
        else:
            assert gradient is None


def test_a_gradient_past_the_caches_has_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    case = ((3, 200, 64), (4, 10), (64, 5), 0)
    x, w1, b1, w2, b2, dy = arrays(case, rng.standard_normal, np.float32)
    hidden = down_conv(x, w1, b1, w2, b2)[1]
    results = []
    for least in (1 << 40, 0):
        monkeypatch.setattr(down, "PAST_BYTES", least)
        dx = down.empty_gradient(x)
        assert down._past(dx, _shape(x, w1, w2, 0)) == (not least)
        dx[...] = np.nan
        results.append([dx, *down.backward(dy, x, hidden, w1, w2, _shape(x, w1, w2, 0), dx)])
    for a, b in zip(*results):
        assert_same_bits(a, b)


@pytest.mark.parametrize("case", BITS)
def test_rounding_is_that_of_the_sums(case):
    rng = np.random.default_rng(0)
    (_, length, features), (channels, k1), (outputs, k2), padding = BITS[case]
    made = arrays(BITS[case], rng.standard_normal, np.float32)
    absolute = expected(*map(np.abs, made), padding)
    rows = 5 * length // k1
    lengths = [features * k1 + channels * k2, outputs + channels, rows + outputs, rows + outputs, rows, rows]
    for actual, right, bound, terms in zip(computed(*made, padding), expected(*made, padding), absolute, lengths):
        assert_close(actual, right, dtype=np.float32, length=terms + features * k1, scale=bound)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("case", ["lanes to add", "a lane for each channel"])
def test_what_is_not_finite_goes_where_it_goes_one_layer_after_the_other(case, value):
    padding = CASES[case][3]
    for position in range(6):  # in x, w1, b1, w2, b2, dy
        made = arrays(CASES[case], whole(), np.float32)
        made[position].flat[made[position].size // 2] = value
        x, w1, b1, w2, b2, dy = made
        with np.errstate(invalid="ignore"):
            y, hidden = _layered(x, w1, b1, w2, b2, _shape(x, w1, w2, padding))
            right = [y, *_layered_backward(dy, x, hidden, w1, w2, _shape(x, w1, w2, padding), GRADIENTS)]
            results = computed(*made, padding)
        for actual, expected_array in zip(results, right, strict=True):
            assert_equal(actual, expected_array, nan_equal=True)


# ------------------------------------------------------------------------------------------------ konv.down


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_nothing_is_written(layout):
    case = CASES["lanes to add"]
    x, w1, b1, w2, b2, dy = arrays(case, whole(), np.float32)
    x, w1, w2, dy = (LAYOUTS[layout](array) for array in (x, w1, w2, dy))
    right = expected(x, w1, b1, w2, b2, dy, case[3])
    with untouched(x, w1, b1, w2, b2, dy):
        y, hidden = down_conv(x, w1, b1, w2, b2, padding=case[3])
        gradients = down_conv_backward(dy, x, hidden, w1, w2, padding=case[3])
    for actual, expected_array in zip((y, *gradients), right, strict=True):
        assert_equal(actual, expected_array.astype(np.float32), contiguous=True)


@pytest.mark.parametrize(
    "case, reason",
    [
        (((2, 9, 70), (65, 2), (5, 2), 1), "65 channels"),
        (((1, 9000, 64), (1, 8200), (5, 1), 1), "w1 of 2,099,200 bytes"),
    ],
)
def test_what_the_engine_declines_is_computed_one_after_the_other(case, reason):
    x, w1, b1, w2, b2, dy = arrays(case, whole(), np.float32)
    assert reason in down.declines(_shape(x, w1, w2, case[3]))
    y, hidden = down_conv(x, w1, b1, w2, b2, padding=case[3])
    gradients = down_conv_backward(dy, x, hidden, w1, w2, padding=case[3])
    for actual, right in zip((y, *gradients), expected(x, w1, b1, w2, b2, dy, case[3]), strict=True):
        assert_equal(actual, right.astype(np.float32))


def test_a_machine_without_fused_multiply_add_is_declined():
    with engine(type(machine())("old", "+sse2", 16, 16)):
        assert "multiply-add" in down.declines(down_shape((2, 200, 64), (4, 64, 10), (64, 4, 5), 0, "float32"))


def test_biases_may_be_none():
    x, w1, b1, w2, b2, dy = arrays(CASES["lanes to add"], whole(), np.float32)
    y, hidden = down_conv(x, w1, None, w2, None, padding=1)
    right = expected(x, w1, 0 * b1, w2, 0 * b2, dy, 1)
    for actual, expected_array in zip((y, *down_conv_backward(dy, x, hidden, w1, w2, padding=1)), right, strict=True):
        assert_equal(actual, expected_array.astype(np.float32))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(x=np.zeros((9, 3))), ValueError, r"x has shape \(9, 3\); expected \(B, L, H\)"),
        (dict(x=np.zeros((2, 9, 3), np.float32)), TypeError, "x is float32 and w1 is float64"),
        (dict(x=[1.0]), TypeError, "x is a list"),
        (dict(w1=None), TypeError, "w1=None"),
        (dict(w1=np.zeros((4, 3, 0))), ValueError, r"w1 has shape \(4, 3, 0\); .*none of them 0"),
        (
            dict(w1=np.zeros((4, 5, 2))),
            ValueError,
            r"w1 has shape \(4, 5, 2\), H = 5, but x has shape \(2, 9, 3\), H = 3",
        ),
        (dict(w1=np.zeros((4, 3, 10))), ValueError, r"its length 9 is less than a window, k1 = 10"),
        (
            dict(w2=np.zeros((6, 5, 2))),
            ValueError,
            r"w2 has shape \(6, 5, 2\), C = 5, but w1 has shape \(4, 3, 2\), C = 4",
        ),
        (
            dict(w2=np.zeros((6, 4, 7))),
            ValueError,
            r"no segment fits: .* = 9 // 2 \+ 2 \* 1 = 6 windows are less than k2 = 7",
        ),
        (dict(b1=np.zeros(5)), ValueError, r"b1 has shape \(5,\); expected \(4,\), one for each filter of w1"),
        (dict(b2=np.zeros((6, 1))), ValueError, r"b2 has shape \(6, 1\); expected \(6,\)"),
        (dict(padding=-1), ValueError, "padding=-1"),
        (dict(padding=1.0), TypeError, r"padding=1\.0"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    good = dict(
        x=np.zeros((2, 9, 3)), w1=np.zeros((4, 3, 2)), b1=np.zeros(4), w2=np.zeros((6, 4, 2)), b2=None, padding=1
    )
    with pytest.raises(error, match=words):
        down_conv(**good | change)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            dict(dy=np.zeros((2, 6, 3))),
            ValueError,
            r"dy has shape \(2, 6, 3\); the forward result has shape \(2, 3, 6\)",
        ),
        (dict(hidden=np.zeros((2, 4, 4))), ValueError, r"hidden has shape \(2, 4, 4\); .* \(2, 6, 4\)"),
        (dict(need=("w",)), ValueError, r"need=\('w',\): expected names"),
        (dict(need=3), ValueError, "need=3: expected names"),
        (dict(dy=np.zeros((2, 3, 6), int)), TypeError, "dy has dtype int64"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(change, error, words):
    good = dict(
        dy=np.zeros((2, 3, 6)), x=np.zeros((2, 9, 3)), hidden=np.zeros((2, 6, 4)), w1=np.zeros((4, 3, 2)),
        w2=np.zeros((6, 4, 2)), padding=1,
    )  # fmt: skip
    with pytest.raises(error, match=words):
        down_conv_backward(**good | change)


# ------------------------------------------------------------------------------------------------ the layer


def test_the_parts_show_what_they_would_have_kept():
    layer = DownConv(100, 8, 4, 5, 2, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 100, 8)).astype(np.float32)
    dout = np.ones_like(layer.forward(x))
    parts = DownConv(100, 8, 4, 5, 2, rng=0)
    parts.relu1a = type("Other", (konv.ReLU,), {})()  # one after the other
    parts.forward(x)
    assert_equal(layer.relu1a.mask, parts.relu1a.mask)
    for ours, theirs in ((layer.conv1a, parts.conv1a), (layer.conv2a, parts.conv2a)):
        np.testing.assert_allclose(ours.col, theirs.col, rtol=1e-4, atol=1e-5)
        assert_equal(ours.col_W, theirs.col_W)
    layer.conv1a.W *= 2  # after forward: the gradient is that of the weights that it used
    np.testing.assert_allclose(layer.backward(dout), parts.backward(dout), rtol=1e-4, atol=1e-5)
    for name, gradient in layer.grads().items():
        np.testing.assert_allclose(gradient, parts.grads()[name], rtol=1e-4, atol=1e-4)


def test_a_thousand_steps_hold_no_more_memory():
    layer, rng = DownConv(100, 16, 4, 5, 4, rng=0), np.random.default_rng(0)
    held = []
    tracemalloc.start()
    try:
        for _ in range(2):
            for step in range(500):
                x = rng.standard_normal((1 + step % 3, 100, 16), np.float32)
                layer.backward(layer.forward(x))
            gc.collect()
            memory.release()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] <= 1.1 * held[0] + (1 << 16), held
