"""1x1 layers in bfloat16 by pairs: in plain Python anywhere, compiled where the CPU has the instruction."""

import dataclasses

import numpy as np
import pytest

import konv
from compare import assert_close, assert_equal, assert_same_bits
from konv import textbook
from konv.engine import pairs
from konv.engine.machine import machine
from konv.engine.plan import KINDS, Problem, prefer
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded
from test_kernels import computed, drawn, expected

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


def check(case, draw, near=False):
    """The textbook's results, in outputs that were full of NaN."""
    x_shape, w_shape, groups = case
    arrays, options = drawn(x_shape, w_shape, dict(groups=groups), draw), dict(groups=groups)
    results, right = computed(pairs, arrays, options), expected(arrays, options)
    assert set(results) == set(KINDS)
    if near:
        scale, length = expected([np.abs(a) for a in arrays], options), 1 + max(np.prod(x_shape), np.prod(w_shape))
        for kind, result in results.items():
            assert_close(result, right[kind], dtype=BFLOAT16, length=length, scale=scale[kind])
    else:
        for kind, result in results.items():
            assert_equal(result, right[kind].astype(BFLOAT16), nan_equal=True)


def small_integers(shape):
    return integers(np.random.default_rng(len(shape)), shape, BFLOAT16, limit=2)


@pytest.mark.parametrize("host", HOSTS)
def test_in_plain_python(host, monkeypatch):
    """No text touches a cell outside its arrays or its part of the workspace; and it is right."""
    many_small_jobs(monkeypatch)
    with engine(HOSTS[host], plain=True) as asked:
        for case in CASES.values():
            check(case, small_integers)
    assert {"multiply_pairs", "sum_pairs", "add_sums"} <= asked


@compiled_too
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_compiled(host, small, monkeypatch):
    if small:
        many_small_jobs(monkeypatch)
    rng = np.random.default_rng(0)
    with engine(HOSTS[host]):
        for case in (CASES | LONG).values():
            check(case, small_integers)
            check(case, lambda shape: rng.standard_normal(shape).astype(BFLOAT16), near=True)


@compiled_too
@pytest.mark.parametrize("host", HOSTS)
def test_infinity_and_nan(host):
    """One of them in x, in w, in dy goes where the textbook's sums take it, and nowhere else."""
    rng = np.random.default_rng(0)
    with engine(HOSTS[host]):
        for x_shape, w_shape, groups in CASES.values():
            for place, value in ((0, np.inf), (0, np.nan), (1, -np.inf), (1, np.nan), (3, np.inf), (3, np.nan)):
                arrays = [a.copy() for a in drawn(x_shape, w_shape, dict(groups=groups), small_integers)]
                arrays[place].flat[int(rng.integers(arrays[place].size))] = value
                right = expected(arrays, dict(groups=groups))
                for kind, result in computed(pairs, arrays, dict(groups=groups)).items():
                    assert_equal(result, right[kind].astype(BFLOAT16), nan_equal=True)


@compiled_too
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("case", CASES)
def test_memory_beside_a_forbidden_page(case, end):
    x_shape, w_shape, groups = CASES[case]
    x, w, b, dy = (guarded(a, end) for a in drawn(x_shape, w_shape, dict(groups=groups), small_integers))
    shift = guarded(small_integers(x_shape[1:2]), end)
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    out = guarded(np.full(dy.shape, np.nan, BFLOAT16), end)
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
@pytest.mark.parametrize("x_shape, w_shape", [((5, 70, 9, 7), (40, 70, 1, 1)), ((5, 41, 37, 37), (70, 41, 1, 1))])
def test_bits_depend_neither_on_the_threads_nor_on_the_batch(x_shape, w_shape):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s).astype(BFLOAT16) for s in (x_shape, w_shape, (5, w_shape[0], *x_shape[2:])))
    before, results = konv.get_threads(), []
    try:
        for threads in (1, 2, 7):
            konv.set_threads(threads)
            results.append((konv.conv(x, w), *konv.conv_backward(dy, x, w)))
    finally:
        konv.set_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            assert_same_bits(a, b)
    for n in range(len(x)):
        assert_same_bits(konv.conv(x[n : n + 1], w), results[0][0][n : n + 1])
        dx, _, _ = konv.conv_backward(dy[n : n + 1], x[n : n + 1], w, need="x")
        assert_same_bits(dx, results[0][1][n : n + 1])


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
        ("channels last; it puts pixels in lanes", (1, 8, 9), (8, 8, 1), dict(layout="last")),
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
