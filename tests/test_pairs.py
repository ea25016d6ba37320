"""1x1 layers in bfloat16 by pairs: in plain Python anywhere, compiled where the CPU has the instruction."""

import dataclasses

import numpy as np
import pytest

import konv
from compare import assert_close, assert_equal, assert_same_bits, of_any_threads
from konv import textbook
from konv.engine.machine import machine
from konv.engine.plan import KINDS, Problem, prefer
from konv.engine.products import pairs
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded
from test_kernels import channels_last, drawn, expected

compiled_too = pytest.mark.skipif(not machine().dots, reason="a CPU without AVX512_BF16")
FEATURES = machine().features + ",+avx512bf16,+avx512bw,+avx512vl"
HOSTS = {name: dataclasses.replace(host, features=FEATURES) for name, host in MACHINES.items()}

CASES = {
    # x, w, groups
    "1-D": ((2, 6, 9), (7, 6, 1), 1),
    "odd": ((3, 9, 5, 7), (5, 9, 1, 1), 1),
    "many channels": ((1, 70, 3, 3), (21, 70, 1, 1), 1),
    "many filters": ((2, 7, 5), (70, 7, 1), 1),
    "several panels": ((2, 5, 7, 15), (9, 5, 1, 1), 1),
    "one pixel": ((3, 6, 1, 1), (6, 6, 1, 1), 1),
    "3-D, 2 groups": ((2, 12, 2, 3, 5), (10, 6, 1, 1, 1), 2),
}
LONG = {
    "520 channels": ((1, 520, 5), (5, 520, 1), 1),
    "1001 pixels": ((2, 5, 1001), (6, 5, 1), 1),
}  # too long for plain Python


LAST = {
    "1-D": ((2, 6, 9), (8, 6, 1), 1),
    "even": ((3, 10, 5, 7), (6, 10, 1, 1), 1),
    "many channels": ((1, 70, 3, 3), (22, 70, 1, 1), 1),
    "many filters": ((2, 8, 5), (72, 8, 1), 1),
}
GRADIENTS_LAST = {"odd": ((3, 9, 5, 7), (5, 9, 1, 1), 1), "2 groups": ((2, 12, 2, 3), (10, 6, 1, 1), 2)}
LAST_LONG = {"520 channels": ((1, 520, 5), (6, 520, 1), 1), "1001 pixels": ((2, 6, 1001), (6, 6, 1), 1)}


def results_of(arrays, groups, last):
    """The three results, in outputs that were full of NaN."""
    lie = channels_last if last else np.ascontiguousarray
    x, w, b, dy = lie(arrays[0]), *arrays[1:3], lie(arrays[3])
    g = konv.geometry(x.shape, w.shape, groups=groups, dtype=BFLOAT16)
    results = {}
    for kind, shape in zip(KINDS, (g.output_shape, g.x_shape, g.w_shape)):
        if pairs.declines(Problem(kind, g, "bfloat16", False, "last" if last else "first")) is None:
            out = np.full(shape, np.nan, BFLOAT16)
            results[kind] = out if kind == "weight_gradient" else lie(out)
    if "forward" in results:
        pairs.forward(x, w, b, g, results["forward"])
    if "input_gradient" in results:
        pairs.input_gradient(dy, w, g, results["input_gradient"])
    pairs.weight_gradient(dy, x, g, results["weight_gradient"])
    return results


def check(case, draw, near=False, last=False, kinds=KINDS):
    """The textbook's results."""
    x_shape, w_shape, groups = case
    arrays, options = drawn(x_shape, w_shape, dict(groups=groups), draw), dict(groups=groups)
    results, right = results_of(arrays, groups, last), expected(arrays, options)
    assert set(results) == set(kinds)
    if near:
        scale, length = expected([np.abs(a) for a in arrays], options), 1 + max(np.prod(x_shape), np.prod(w_shape))
        for kind, result in results.items():
            assert_close(result, right[kind], dtype=BFLOAT16, length=length, scale=scale[kind])
    else:
        for kind, result in results.items():
            assert_equal(result, right[kind].astype(BFLOAT16))


def check_all(draw, near=False, some=slice(None)):
    """Every case, or some, in both layouts; the long ones on numbers that are rounded."""
    for case in list((CASES | (LONG if near else {})).values())[some]:
        check(case, draw, near)
    for case in list((LAST | (LAST_LONG if near else {})).values())[some]:
        check(case, draw, near, last=True)
    for case in GRADIENTS_LAST.values():
        check(case, draw, near, last=True, kinds=("weight_gradient",))


def small_integers(shape):
    return integers(np.random.default_rng(len(shape)), shape, BFLOAT16, limit=2)


@pytest.mark.parametrize("host", HOSTS)
def test_in_plain_python(host, monkeypatch):
    """No text touches a cell outside its arrays or its part of the workspace; and it is right."""
    many_small_jobs(monkeypatch)
    with engine(HOSTS[host], plain=True) as asked:
        check_all(small_integers, some=slice(list(HOSTS).index(host) % 2, None, 2))
    assert {"multiply_pairs", "multiply_pairs_last", "sum_pairs", "add_sums"} <= asked


@compiled_too
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_compiled(host, small, monkeypatch):
    if small:
        many_small_jobs(monkeypatch)
    rng = np.random.default_rng(0)
    with engine(HOSTS[host]):
        if small:
            check_all(small_integers)
        else:
            check_all(lambda shape: rng.standard_normal(shape).astype(BFLOAT16), near=True)


@compiled_too
@pytest.mark.parametrize("host", HOSTS)
def test_infinity_and_nan(host):
    """One of them in x, in w, in dy goes where the textbook's sums take it, and nowhere else."""
    rng = np.random.default_rng(0)
    with engine(HOSTS[host]):
        for (x_shape, w_shape, groups), last in (
            *((c, False) for c in CASES.values()),
            *((c, True) for c in LAST.values()),
        ):
            for place, value in ((0, np.inf), (0, np.nan), (1, -np.inf), (1, np.nan), (3, np.inf), (3, np.nan)):
                arrays = [a.copy() for a in drawn(x_shape, w_shape, dict(groups=groups), small_integers)]
                arrays[place].flat[int(rng.integers(arrays[place].size))] = value
                right = expected(arrays, dict(groups=groups))
                for kind, result in results_of(arrays, groups, last).items():
                    assert_equal(result, right[kind].astype(BFLOAT16), nan_equal=True)


def guarded_last(array, end):
    return np.moveaxis(guarded(np.moveaxis(array, 1, -1), end), -1, 1)


@compiled_too
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize(
    "case, last",
    [
        *((case, False) for case in CASES.values()),
        *((case, True) for case in (*LAST.values(), *GRADIENTS_LAST.values())),
    ],
)
def test_memory_beside_a_forbidden_page(case, last, end):
    x_shape, w_shape, groups = case
    lie = guarded_last if last else guarded
    x, w, b, dy = drawn(x_shape, w_shape, dict(groups=groups), small_integers)
    x, w, b, dy = lie(x, end), guarded(w, end), guarded(b, end), lie(dy, end)
    shift = guarded(small_integers(x_shape[1:2]), end)
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    out = lie(np.full(dy.shape, np.nan, BFLOAT16), end)
    with prefer("pairs"):
        konv.conv(x, w, b, groups=groups, out=out)
        gradients = konv.conv_backward(dy, x, w, groups=groups)
        transposed = konv.conv_transpose(dy, w, shift, groups=groups)
    assert_equal(out, textbook.conv(*wide[:3], groups=groups).astype(BFLOAT16))
    for actual, right in zip(gradients, textbook.conv_backward(wide[3], *wide[:2], groups=groups)):
        assert_equal(actual, right.astype(BFLOAT16))
    right = textbook.conv_transpose(wide[3], wide[1], shift.astype(np.float64), groups=groups)
    assert_equal(transposed, right.astype(BFLOAT16))


@compiled_too
@pytest.mark.parametrize("lie", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("x_shape, w_shape", [((5, 70, 9, 7), (40, 70, 1, 1)), ((5, 42, 37, 37), (70, 42, 1, 1))])
def test_bits_depend_neither_on_the_threads_nor_on_the_batch(x_shape, w_shape, lie):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s).astype(BFLOAT16) for s in (x_shape, w_shape, (5, w_shape[0], *x_shape[2:])))
    x, dy = lie(x), lie(dy)
    assert konv.plan(x_shape, w_shape, dtype=BFLOAT16, layout="last").algorithm.NAME == "pairs"
    y, whole_dx, *_ = of_any_threads(lambda: [konv.conv(x, w), *konv.conv_backward(dy, x, w)])
    for n in range(len(x)):
        assert_same_bits(konv.conv(x[n : n + 1], w), y[n : n + 1])
        dx, _, _ = konv.conv_backward(dy[n : n + 1], x[n : n + 1], w, need="x")
        assert_same_bits(dx, whole_dx[n : n + 1])


@compiled_too
def test_numbers_below_the_smallest_normal_one_count_as_zero():
    """As the docs say. Other algorithms take them as they are."""
    x, w = np.full((1, 8, 4), 2.0**-127).astype(BFLOAT16), np.full((8, 8, 1), 2.0**100).astype(BFLOAT16)
    b = np.full(8, 2.0**-130).astype(BFLOAT16)  # the bias is no product
    results = {}
    for name in ("pairs", "products"):
        with prefer(name):
            results[name] = konv.conv(x, w, b)
    assert (results["pairs"] == b[:, None]).all()
    assert (results["products"] == 8 * 2.0**-27).all()


@pytest.mark.parametrize(
    "reason, x_shape, w_shape, options",
    [
        ("float32; it multiplies pairs of bfloat16", (1, 8, 9), (8, 8, 1), dict(dtype=np.float32)),
        ("9 channels last: their pairs would reach into the next pixel", (1, 9, 9), (8, 9, 1), dict(layout="last")),
        (
            "7 channels last: their pairs would reach into the next pixel",
            (1, 8, 9),
            (7, 8, 1),
            dict(layout="last", kind=KINDS[1]),
        ),
        ("groups = 2, channels last", (1, 16, 9), (16, 8, 1), dict(layout="last", groups=2)),
        ("no 1x1 layer with stride 1 and without padding", (1, 8, 9), (8, 8, 3), {}),
        ("no 1x1 layer with stride 1 and without padding", (1, 8, 9), (8, 8, 1), dict(stride=2)),
        ("no 1x1 layer with stride 1 and without padding", (1, 8, 9), (8, 8, 1), dict(padding=1)),
        ("2 groups of 4 x 4 leave most of a tile empty", (1, 8, 9), (8, 4, 1), dict(groups=2)),
    ],
)
def test_what_it_declines(reason, x_shape, w_shape, options):
    with engine(HOSTS["AVX-512"]):
        plan = konv.plan(x_shape, w_shape, **{"dtype": BFLOAT16} | options)
    assert dict(plan.passed_over)["pairs"] == reason


def test_a_cpu_without_the_instruction_takes_the_other_algorithms():
    without = dataclasses.replace(machine(), features=machine().features.replace("+avx512bf16", "-avx512bf16"))
    g = konv.geometry((1, 8, 9), (8, 8, 1), dtype=BFLOAT16)
    for kind in KINDS:
        with engine(without):
            assert pairs.declines(Problem(kind, g, "bfloat16")) == "this CPU has no AVX512_BF16"
        with engine(HOSTS["AVX-512"]):
            assert pairs.declines(Problem(kind, g, "bfloat16")) is None
