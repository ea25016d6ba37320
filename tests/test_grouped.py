"""Depthwise layers and small groups: in both layouts against the textbook, in plain Python and compiled; their words."""

import dataclasses
import functools

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.engine import threads
from konv.engine.groups import depthwise, depthwise_fixed, depthwise_rows, grouped, planes_jobs, planes_weights
from konv.engine.machine import machine
from konv.engine.plan import KINDS, Problem, prefer
from konv.engine.simd import bits, pick, within
from plain_engine import MACHINES, engine, many_small_jobs, share_of
from strategies import BFLOAT16, integers
from test_guard_page import guarded
from test_kernels import channels_last, drawn, expected
from texts import both

DTYPES = {"float16": np.float16, "bfloat16": BFLOAT16, "float32": np.float32, "float64": np.float64}

DEPTHWISE = {
    "3x3": ((2, 5, 9, 19), (5, 1, 3, 3), dict(padding=1)),
    "3x3, even": ((2, 4, 9, 38), (4, 1, 3, 3), dict(padding=((1, 1), (0, 2)))),
    "37 channels": ((1, 37, 4, 7), (37, 1, 3, 3), dict(padding=1)),
    "one row, one cell": ((1, 4, 1, 1), (4, 1, 3, 3), dict(padding=1)),
    "3x3, stride 2": ((1, 20, 9, 11), (20, 1, 3, 3), dict(padding=1, stride=2)),
    "3x3, stride 2, shifted": ((1, 4, 8, 34), (4, 1, 3, 3), dict(padding=((0, 1), (2, 0)), stride=2)),
    "5x5, stride 2": ((1, 4, 12, 37), (4, 1, 5, 5), dict(padding=2, stride=2)),
    "7x7": ((1, 18, 9, 20), (18, 1, 7, 7), dict(padding=3)),
    "9x9": ((1, 4, 10, 21), (4, 1, 9, 9), dict(padding=4)),
    "dilated": ((1, 4, 9, 21), (4, 1, 3, 3), dict(padding=2, dilation=(1, 2))),
    "dilated rows": ((1, 4, 9, 21), (4, 1, 3, 2), dict(padding=3, dilation=(2, 1), stride=(3, 2))),
    "1x1, stride 2": ((2, 4, 9, 21), (4, 1, 1, 1), dict(stride=2)),
    "stride 3": ((1, 4, 70), (4, 1, 4), dict(padding=3, stride=3)),
    "1-D, 31 taps": ((2, 4, 150), (4, 1, 31), dict(padding=15)),
    "1-D, 18 taps, short": ((3, 5, 7), (5, 1, 18), dict(padding=((20, 17),))),
    "1-D, 40 taps": ((1, 4, 150), (4, 1, 40), dict(padding=15, dilation=2)),
    "1-D, 4 taps": ((2, 4, 300), (4, 1, 4), dict(padding="causal")),
    "1-D, padding of more than a vector": ((1, 4, 300), (4, 1, 5), dict(padding=((20, 17),))),
    "1-D, stride 2": ((2, 4, 300), (4, 1, 5), dict(padding=2, stride=2)),
    "3-D": ((1, 4, 4, 5, 18), (4, 1, 3, 3, 3), dict(padding=1, stride=(1, 2, 2))),
    "more padding than window": ((1, 4, 3, 5), (4, 1, 2, 2), dict(padding=4)),
    "a phase in the padding": ((1, 4, 7, 3), (4, 1, 2, 4), dict(padding=((1, 1), (4, 4)), stride=2, dilation=(2, 3))),
    "tall": ((1, 4, 70, 5), (4, 1, 3, 3), dict(padding=1)),
}
GROUPS = {
    "4 x 4": ((3, 16, 9, 19), (16, 4, 3, 3), dict(padding=1)),
    "2 x 8, stride 2": ((2, 8, 9, 19), (32, 2, 3, 3), dict(padding=1, stride=2)),
    "8 x 3": ((1, 32, 21), (12, 8, 5), dict(padding=2)),
    "1 x 2": ((2, 4, 8, 9), (8, 1, 3, 3), dict(padding=1)),
    "12 x 16": ((1, 24, 4, 19), (32, 12, 3, 3), dict(padding=1)),
    "3 x 20, one group": ((2, 3, 9, 21), (20, 3, 3, 3), dict(padding=1)),
    "1 x 64, 1-D": ((2, 1, 50), (64, 1, 9), dict(padding="causal")),
}
SQUARE = {
    "4 x 4, stride 2": ((1, 20, 9, 11), (20, 4, 3, 3), dict(padding=1, stride=2)),
    "2 x 2, 3-D": ((1, 8, 3, 4, 18), (8, 2, 2, 3, 3), dict(padding=1)),
}
ALL = DEPTHWISE | GROUPS | SQUARE
CASES = [(case, "first") for case in ALL] + [(case, "last") for case in (*DEPTHWISE, "4 x 4", *SQUARE)]
EVERY_CASE = pytest.mark.parametrize("case, layout", CASES, ids=lambda value: value)


def check(case, layout, dtype="float32", draw=None):
    """Forward and all gradients of small integers, exactly, into outputs that were full of NaN; returns them."""
    x_shape, w_shape, options = ALL[case]
    options = options | {"groups": x_shape[1] // w_shape[1]}
    rng = np.random.default_rng(0)
    arrays = drawn(x_shape, w_shape, options, draw or (lambda shape: integers(rng, shape, DTYPES[dtype], limit=2)))
    x, w, b, dy = arrays
    right = expected(arrays, options)
    right["bias_gradient"] = dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim)))
    results = {kind: np.full(array.shape, np.nan, x.dtype) for kind, array in right.items()}
    if layout == "last":
        x, dy = channels_last(x), channels_last(dy)
        for kind in ("forward", "input_gradient"):
            results[kind] = channels_last(results[kind])
    g = konv.geometry(x_shape, w_shape, **options, dtype=x.dtype)
    grouped.forward(x, w, b, g, results["forward"])
    grouped.input_gradient(dy, w, g, results["input_gradient"])
    grouped.weight_and_bias_gradient(dy, x, g, results["weight_gradient"], results["bias_gradient"])
    if draw is None:
        for kind, result in results.items():
            assert_equal(result, right[kind].astype(x.dtype))
    return results


def normal(shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("host", ["AVX-512"])
@EVERY_CASE
def test_in_plain_python(case, layout, host, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host], plain=True):
        check(case, layout)


@pytest.mark.parametrize("host", MACHINES)
def test_compiled(host, monkeypatch):
    with engine(MACHINES[host]):
        for case, layout in share_of(host, CASES):
            check(case, layout)
            with monkeypatch.context() as patch:
                many_small_jobs(patch)
                check(case, layout)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_compiled_in_other_types(dtype):
    with engine(machine()):
        for case, layout in (
            ("3x3", "first"),
            ("3x3, stride 2", "first"),
            ("3x3, stride 2", "last"),
            ("4 x 4", "first"),
        ):
            check(case, layout, dtype)


# bfloat16 whose even and odd columns, or channels, are vectors of their own, as CPUs with AVX512_BF16 compute it
WOVEN = [
    ("3x3", "first"),
    ("7x7", "first"),
    ("3x3, even", "first"),
    ("37 channels", "last"),
    ("1-D, 31 taps", "first"),
    ("1-D, 4 taps", "first"),
    ("4 x 4", "first"),
    ("8 x 3", "first"),
    ("3 x 20, one group", "first"),
    ("3x3, stride 2", "first"),
    ("3x3, stride 2", "last"),
]
each_woven = functools.partial(pytest.mark.parametrize, "case, layout")
FEATURES = machine().features + ",+avx512bf16,+avx512bw,+avx512vl"
compiled_too = pytest.mark.skipif(not machine().dots, reason="a CPU without AVX512_BF16")


@each_woven(WOVEN[2:8])
def test_woven_in_plain_python(case, layout, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(dataclasses.replace(machine(), features=FEATURES), plain=True):
        check(case, layout, "bfloat16")


@compiled_too
@pytest.mark.parametrize("host", ["AVX-512", "AVX2", "SSE2"])
def test_woven_compiled(host, monkeypatch):
    with engine(MACHINES[host]):
        for case, layout in WOVEN if host == "AVX-512" else WOVEN[2::4]:
            check(case, layout, "bfloat16")
            with monkeypatch.context() as patch:
                many_small_jobs(patch)
                check(case, layout, "bfloat16")


@compiled_too
@each_woven([WOVEN[0], WOVEN[2], WOVEN[3], WOVEN[5]])
def test_woven_has_the_bits_of_others_with_nan_and_infinities(case, layout, monkeypatch):
    def draw(shape):
        array = normal(shape).astype(BFLOAT16)
        if shape == ALL[case][0]:
            array.reshape(-1)[7::29] = np.resize([np.nan, np.inf, -np.inf, 1e-39, 0], array.reshape(-1)[7::29].shape)
        return array

    with np.errstate(invalid="ignore"):
        woven = check(case, layout, draw=draw)
        for module, name in ((planes_jobs, "woven_row"), (planes_weights, "woven_row"), (depthwise, "_woven")):
            monkeypatch.setattr(module, name, lambda *problem: False)
        with engine():
            apart = check(case, layout, draw=draw)
    assert np.isnan(apart["forward"]).any()
    for kind in ("forward", "input_gradient"):
        assert_equal(np.isnan(woven[kind]), np.isnan(apart[kind]))
        assert_same_bits(*(np.where(np.isnan(r[kind]), 0, r[kind]) for r in (woven, apart)))
    assert_equal(np.isfinite(woven["weight_gradient"]), np.isfinite(apart["weight_gradient"]))


@compiled_too
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_woven_beside_a_forbidden_page(end):
    for case, layout in (WOVEN[0], WOVEN[2], WOVEN[3], WOVEN[5]):

        def lie(array, layout=layout):
            if layout == "first" or array.ndim < 3:
                return guarded(array, end)
            return np.moveaxis(guarded(np.moveaxis(array, 1, -1), end), -1, 1)

        x_shape, w_shape, options = ALL[case]
        options = options | {"groups": x_shape[1]}
        x, w, b, dy = drawn(x_shape, w_shape, options, small_bfloat16)
        right = expected((x, w, b, dy), options)
        x, w, b, dy = lie(x), guarded(w, end), guarded(b, end), lie(dy)
        y, dx, dw = lie(np.full_like(dy, np.nan)), lie(np.full_like(x, np.nan)), guarded(np.full_like(w, np.nan), end)
        g = konv.geometry(x_shape, w_shape, **options, dtype=BFLOAT16)
        grouped.forward(x, w, b, g, y)
        grouped.input_gradient(dy, w, g, dx)
        grouped.weight_gradient(dy, x, g, dw)
        for kind, result in zip(KINDS, (y, dx, dw)):
            assert_equal(result, right[kind].astype(BFLOAT16))


def small_bfloat16(shape):
    return integers(np.random.default_rng(len(shape)), shape, BFLOAT16, limit=2)


# Planes whose size is compiled in, where channels are many: tiles of rows that follow each other, halves of vectors
FIXED = {
    "7 x 7": ((3, 35, 7, 7), (35, 1, 3, 3), dict(padding=1)),
    "14 x 14, 5 x 5": ((2, 3, 14, 14), (3, 1, 5, 5), dict(padding=2)),
    "28 x 22": ((2, 3, 28, 22), (3, 1, 3, 3), dict(padding=((0, 1), (2, 1)))),
    "9 x 24, even": ((2, 2, 9, 24), (2, 1, 3, 4), dict(padding=((1, 1), (1, 2)))),
    "28 x 28 / 2": ((2, 3, 28, 27), (3, 1, 3, 3), dict(padding=1, stride=2)),
    "13 x 40 / 2": ((1, 2, 13, 40), (2, 1, 4, 5), dict(padding=2, stride=(1, 2))),
    "more padding than cells": ((1, 2, 1, 2), (2, 1, 3, 2), dict(padding=4)),
}
ALL |= FIXED


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(depthwise_fixed, "worth_compiling", lambda g: True)


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("case", FIXED)
def test_planes_of_a_known_size_in_plain_python(case, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES["AVX-512"], plain=True) as asked:
        check(case, "first")
    assert "correlate_fixed" in asked


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize(
    "host, cases",
    [("AVX-512", ["7 x 7", "28 x 22", "28 x 28 / 2"]), ("AVX2", ["7 x 7", "28 x 28 / 2"]), ("SSE2", ["7 x 7"])],
)
def test_planes_of_a_known_size_compiled(host, cases):
    with engine(MACHINES[host]) as asked:
        for case in cases:
            check(case, "first")
        if host == "AVX-512":
            check("7 x 7", "first", "float16")
            check("9 x 24, even", "first", "bfloat16")
    assert "correlate_fixed" in asked and ("accumulate_fixed" in asked or host == "SSE2")


@pytest.mark.usefixtures("fixed")
def test_two_taps_of_bfloat16_at_once_in_plain_python():
    with engine(dataclasses.replace(MACHINES["AVX-512"], features=FEATURES), plain=True) as asked:
        check("9 x 24, even", "first", "bfloat16")
    assert "correlate_fixed" in asked


@compiled_too
@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("case", ["28 x 22", "9 x 24, even"])
def test_two_taps_of_bfloat16_at_once_beside_a_forbidden_page_and_beside_infinities(case):
    x_shape, w_shape, options = FIXED[case]
    options = options | {"groups": x_shape[1]}
    g = konv.geometry(x_shape, w_shape, **options, dtype=BFLOAT16)
    for end, number in ((True, 1), (False, np.inf), (True, np.nan)):
        arrays = [a.copy() for a in drawn(x_shape, w_shape, options, small_bfloat16)]
        for array in (arrays[0], arrays[3]):
            array[0, 1, 3, -1] = array[-1, 0, 0, 4] = number
        x, w, b, dy = (guarded(array, end) for array in arrays)
        y, dx = (guarded(np.full_like(array, np.nan), end) for array in (dy, x))
        with np.errstate(invalid="ignore"):
            right = expected(arrays, options)
            grouped.forward(x, w, b, g, y)
            grouped.input_gradient(dy, w, g, dx)
        assert_equal(y, right["forward"].astype(BFLOAT16), nan_equal=True)
        assert_equal(dx, right["input_gradient"].astype(BFLOAT16), nan_equal=True)


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_planes_of_a_known_size_beside_a_forbidden_page_and_beside_infinities(end, monkeypatch):
    for name in ("FAR_BYTES", "FAR_ROW_BYTES"):  # as of large planes: two rows together
        monkeypatch.setattr(depthwise_fixed, name, 0)
    for case in ("7 x 7", "28 x 22", "28 x 28 / 2"):
        x_shape, w_shape, options = FIXED[case]
        options = options | {"groups": x_shape[1]}
        for limit in (2, np.inf):
            rng = np.random.default_rng(0)
            arrays = drawn(x_shape, w_shape, options, lambda shape, rng=rng: integers(rng, shape, np.float32, limit=2))
            if limit == np.inf:
                for array in (arrays[0], arrays[3]):  # the last cell of a row, of an inner plane
                    array.flags.writeable = True
                    array[0, 1, 3, -1] = np.inf
            right = expected(arrays, options)
            x, w, b, dy = (guarded(array, end) for array in arrays)
            y, dx, dw = (guarded(np.full_like(array, np.nan), end) for array in (dy, x, w))
            g = konv.geometry(x_shape, w_shape, **options)
            with np.errstate(invalid="ignore"):
                grouped.forward(x, w, b, g, y)
                grouped.input_gradient(dy, w, g, dx)
                grouped.weight_gradient(dy, x, g, dw)
            for kind, result in zip(KINDS, (y, dx, dw)):
                assert_equal(result, right[kind].astype(np.float32), nan_equal=True)


@pytest.mark.usefixtures("fixed")
def test_planes_of_a_known_size_have_the_same_bits_for_any_threads_and_batch(monkeypatch):
    for case in ("7 x 7", "28 x 22"):
        results = []
        for n in (1, 3):
            monkeypatch.setattr(threads, "SMALL_WORK", 1)
            monkeypatch.setattr(threads, "_threads", n)
            results.append(check(case, "first", draw=normal))
        for kind, result in results[0].items():
            assert_same_bits(result, results[1][kind])
        x_shape, w_shape, options = FIXED[case]
        options = options | {"groups": x_shape[1]}
        x, w, _, dy = drawn(x_shape, w_shape, options, normal)
        g = konv.geometry((1, *x_shape[1:]), w_shape, **options)
        y, dx = (np.full((1, *array.shape[1:]), np.nan, np.float32) for array in (dy, x))
        grouped.forward(x[1:2].copy(), w, None, g, y)
        grouped.input_gradient(dy[1:2].copy(), w, g, dx)
        b = normal(w_shape[:1])
        assert_same_bits(dx, results[0]["input_gradient"][1:2])
        grouped.forward(x[1:2].copy(), w, b, g, y)
        assert_same_bits(y, results[0]["forward"][1:2])


def test_only_planes_of_usual_sizes_are_compiled_for():
    """Or images of all sizes would compile at each."""
    sides = [
        (high, wide)
        for high in range(1, 130)
        for wide in range(1, 130)
        if depthwise_fixed.takes(
            konv.geometry((1, 32, high, wide), (32, 1, 3, 3), padding=1, groups=32), "float32", "forward"
        )
    ]
    assert len(sides) == 19 and {(7, 7), (14, 14), (28, 28), (56, 56), (112, 112), (64, 64), (20, 20)} <= set(sides)


@EVERY_CASE
def test_any_number_of_threads_gives_the_same_bits(case, layout, monkeypatch):
    results = []
    for n in (1, 2, 3, 7):
        monkeypatch.setattr(threads, "SMALL_WORK", 1)
        monkeypatch.setattr(threads, "_threads", n)
        results.append(check(case, layout, draw=normal))
    for other in results[1:]:
        for kind, result in other.items():
            assert_same_bits(result, results[0][kind])


def test_masks_as_integers_and_choices_without_a_branch():
    assert [bits(start, count) for start, count in ((0, 3), (2, 5), (-4, 2), (5, 2), (0, 90))] == [
        7,
        28,
        3,
        0,
        2**63 - 1,
    ]
    pointers = {"x": "float32", "y": "float32"}

    def text(piece, slot, x, y, start, count, chosen):
        inside = bits(start, count)
        y.prefetch(900, write=True)
        for skip in range(3):
            y.put(8 * skip, x.vec(skip, 8, bits=(inside >> skip) & 0x5F))
        picked = pick(within(chosen, 3), x, x.at(10))
        y.put(24, picked.vec(0, 8))
        y[32] = picked[pick(within(chosen, 3), 1, 2)]

    x, y = np.arange(1, 21, dtype=np.float32), np.full(33, np.nan, np.float32)
    for start, count, chosen in ((0, 8, 0), (2, 5, 2), (-3, 4, 3), (4, 70, -1), (9, 3, 0), (-9, -2, 5)):
        both(text, pointers, x=x, y=y, start=start, count=count, chosen=chosen)


@pytest.mark.parametrize(
    "x_shape, w_shape, options, taken",
    [
        ((8, 512, 14, 14), (512, 16, 3, 3), dict(padding=1, groups=32), True),
        ((8, 512, 7, 7), (512, 16, 3, 3), dict(padding=1, groups=32), False),
        ((8, 3, 32, 32), (64, 3, 3, 3), dict(padding=1), True),
        ((8, 3, 32, 32), (64, 3, 3, 3), dict(padding=1, stride=2), False),
        ((8, 1, 50), (10, 1, 9), {}, False),
    ],
)
def test_which_layers_of_more_filters_it_takes(x_shape, w_shape, options, taken):
    with engine(MACHINES["AVX-512"]):
        problem = Problem("forward", konv.geometry(x_shape, w_shape, **options), "float32")
        assert (grouped.declines(problem) is None) == taken


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "x_shape, w_shape, options",
    [
        ((2, 6, 2), (6, 1, 3), dict(padding=((4, 0),), stride=2, dilation=2, groups=6)),
        ((1, 8, 5, 3), (8, 4, 3, 3), dict(padding=((3, 2), (1, 5)), stride=3, groups=2)),
    ],
)
def test_an_upstream_gradient_that_is_not_finite_meets_the_padding(x_shape, w_shape, options, value):
    """Infinity times a zero outside the image is NaN."""
    rng = np.random.default_rng(0)
    x, w = channels_last(integers(rng, x_shape, np.float32)), integers(rng, w_shape, np.float32)
    dy = integers(rng, konv.geometry(x_shape, w_shape, **options).output_shape, np.float32)
    dy[0, 3].flat[0] = value
    with prefer("grouped"), np.errstate(invalid="ignore"):
        actual = konv.conv_backward(channels_last(dy), x, w, **options)[1:]
        right = textbook.conv_backward(*(a.astype(np.float64) for a in (dy, x, w)), **options)[1:]
    assert np.isnan(right[0]).any()
    for a, b in zip(actual, right):
        assert_equal(a, b.astype(np.float32), nan_equal=True)


def test_infinities_beside_zeros_between_copied_rows():
    """Those zeros are none of the formula's: other channels' and other taps' gradients stay numbers."""
    rng = np.random.default_rng(0)
    x, dy = integers(rng, (2, 3, 40), np.float32), integers(rng, (2, 3, 31), np.float32)
    x[1, 1, 0], w = np.inf, np.zeros((3, 1, 10), np.float32)
    dy[1, 1, 0], options = 1, dict(groups=3)
    with prefer("grouped"), np.errstate(invalid="ignore"):
        actual = konv.conv_backward(dy, x, w, **options, need=("w",))[1]
        right = textbook.conv_backward(*(a.astype(np.float64) for a in (dy, x, w)), **options)[1]
    assert np.isinf(right).sum() == 1 and np.isfinite(right).sum() == right.size - 1
    assert_equal(actual, right.astype(np.float32))


def test_words_of_an_input_gradient_that_is_zero_everywhere():
    """No window meets a cell of x."""
    g = konv.geometry((2, 15, 2, 5), (15, 1, 3, 3), stride=(7, 2), padding=((5, 5), (2, 3)), dilation=(1, 4), groups=15)
    for layout in ("first", "last"):
        assert grouped.blocking(Problem("input_gradient", g, "float64", layout=layout)) == "nothing to compute"


@pytest.mark.parametrize("case", ["3x3", "3x3, even", "tall"])
def test_arrays_far_and_near_have_the_same_bits(case, monkeypatch):
    near = check(case, "last", draw=normal)
    for name in ("SLIDING_BYTES", "SLIDING_ROW"):
        monkeypatch.setattr(depthwise_rows, name, 0)
    depthwise_rows.correlation.cache_clear()
    try:
        far = check(case, "last", draw=normal)
    finally:
        depthwise_rows.correlation.cache_clear()
    for kind, result in near.items():
        assert_same_bits(result, far[kind])


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize(
    "case", ["3x3", "37 channels", "3x3, stride 2", "7x7", "dilated rows", "1-D, 31 taps", "a phase in the padding"]
)
def test_channels_last_beside_a_forbidden_page(case, end):
    x_shape, w_shape, options = DEPTHWISE[case]
    options = options | {"groups": x_shape[1]}
    rng = np.random.default_rng(0)
    arrays = drawn(x_shape, w_shape, options, lambda shape: integers(rng, shape, np.float32, limit=2))
    right = expected(arrays, options)

    def last(array):
        return np.moveaxis(guarded(np.moveaxis(array, 1, -1).copy(), end), -1, 1)

    (x, w, b, dy), g = arrays, konv.geometry(x_shape, w_shape, **options)
    x, dy, y, dx = (
        last(array) for array in (x, dy, np.full(g.output_shape, np.nan, np.float32), np.full_like(x, np.nan))
    )
    w, dw = guarded(w, end), guarded(np.full_like(w, np.nan), end)
    grouped.forward(x, w, b, g, y)
    grouped.input_gradient(dy, w, g, dx)
    grouped.weight_gradient(dy, x, g, dw)
    for kind, actual in (("forward", y), ("input_gradient", dx), ("weight_gradient", dw)):
        assert_equal(np.ascontiguousarray(actual), right[kind].astype(np.float32))
