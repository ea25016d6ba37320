"""The kernels' texts, run in plain Python on memory that is bounds-checked, and compiled for four widths of vectors.

Both run with the numbers that the algorithms prepare (see ``plain_engine.py``) and are compared with the textbook.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings

import konv
from compare import assert_close, assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import accumulator
from konv.engine.bias import add_bias, bias_gradient
from konv.engine.direct import direct, weights
from konv.engine.groups import small_groups
from konv.engine.plan import KINDS, Problem, algorithms
from konv.engine.products import products_last
from plain_engine import MACHINES, MODULES, engine, factories, hosts_of, many_small_jobs, share_of
from strategies import BFLOAT16, convolutions, integers, seeds

DTYPES = {"float16": np.float16, "bfloat16": BFLOAT16, "float32": np.float32, "float64": np.float64}

CASES = {
    # x, w, options
    "one cell": ((1, 1, 1), (1, 1, 1), {}),
    "1-D": ((2, 3, 9), (5, 3, 3), dict(padding=1)),
    "1-D, 35 filters": ((1, 2, 17), (35, 2, 2), {}),
    "1-D, stride 3, more padding than window": ((1, 2, 8), (3, 2, 2), dict(stride=3, padding=((4, 3),))),
    "1-D, long": ((1, 1, 90), (1, 1, 4), dict(dilation=3, padding="causal")),
    "kernel == stride": ((1, 3, 9), (4, 3, 3), dict(stride=3)),
    "2-D, kernel == stride": ((2, 9, 5, 4), (9, 9, 2, 2), dict(stride=2)),
    "kernel == stride, padding": ((2, 3, 6, 7), (5, 3, 2, 2), dict(stride=2, padding=((1, 2), (3, 1)))),
    "stride beyond the kernel": ((1, 2, 11), (3, 2, 2), dict(stride=3, padding=1)),
    "2-D": ((2, 3, 5, 7), (4, 3, 3, 3), dict(padding=1)),
    "2-D, stride 2": ((1, 3, 7, 6), (3, 3, 3, 2), dict(stride=2, padding=((1, 0), (0, 1)))),
    "2-D, dilated, grouped": ((1, 4, 6, 7), (6, 2, 2, 3), dict(dilation=(2, 3), groups=2, padding=2)),
    "depthwise": ((2, 5, 4, 5), (5, 1, 3, 3), dict(groups=5, padding=1)),
    "depthwise, stride 2": ((2, 4, 5, 6), (8, 1, 2, 3), dict(groups=4, padding=1, stride=2)),
    "4 groups": ((1, 8, 20), (12, 2, 3), dict(groups=4, padding=2, dilation=2)),
    "1x1": ((1, 4, 3, 4), (5, 4, 1, 1), {}),
    "1x1, 64 channels": ((2, 64, 3, 2), (32, 64, 1, 1), {}),  # x is read in place for dw, dy turned
    "1x1, stride 2": ((1, 3, 4, 5), (4, 3, 1, 1), dict(stride=2)),
    "3-D": ((1, 2, 3, 4, 5), (2, 2, 2, 3, 2), dict(stride=(1, 2, 1), padding=(1, 0, 1), dilation=(2, 1, 1))),
    "3x3": ((2, 9, 5, 6), (11, 9, 3, 3), dict(padding=((1, 1), (0, 2)))),
    "taps in the padding": ((2, 5, 6, 5), (3, 5, 3, 3), dict(dilation=(3, 2), padding=(5, 4))),
    "2 groups of 16": ((1, 32, 4, 5), (32, 16, 3, 3), dict(groups=2, padding=((1, 1), (0, 2)))),
    "depthwise, small planes": ((2, 18, 4, 5), (18, 1, 3, 7), dict(groups=18, padding=((1, 1), (3, 4)))),
    "4 groups of 8": ((1, 32, 5, 6), (32, 8, 3, 3), dict(groups=4, padding=1, stride=(1, 2))),
    "520 taps": ((1, 260, 3), (2, 260, 2), {}),
}
MANY_TILES = (
    (1, 9, 3, 26, 26),
    (11, 9, 2, 3, 3),
    dict(padding=(0, 1, 1)),
)  # Winograd's weights; too long for plain Python
FEW_CASES = (
    "1-D",
    "1x1, stride 2",
    "2-D, stride 2",
    "2-D, kernel == stride",
    "depthwise, stride 2",
    "4 groups",
    "3x3",
    "2 groups of 16",
    "depthwise, small planes",
    "4 groups of 8",
)
OTHER_DTYPES = [(FEW_CASES, [host], t) for host, t in (("AVX2", "float16"), ("SSE2", "float64"), ("NEON", "bfloat16"))]
FEW_CASES_IN_TURNS = [(FEW_CASES[i::3], [host], "float32") for i, host in enumerate(("AVX2", "SSE2", "NEON"))]
COMPILED = [algorithm for algorithm in algorithms() if algorithm.NAME not in ("columns", "pairs")]  # see test_pairs.py


def problems(algorithm, case, dtype="float32", exact=False):
    """Of the three computations of a case those that the algorithm does not decline."""
    x_shape, w_shape, options = case
    g = konv.geometry(x_shape, w_shape, **options, dtype=DTYPES[dtype])
    return [kind for kind in KINDS if algorithm.declines(Problem(kind, g, dtype, exact, layout(algorithm))) is None]


def layout(algorithm):
    """The layout in which an algorithm is run here."""
    return "last" if algorithm is products_last else "first"


def each_algorithm(*what):
    """(algorithm, case, host, dtype) of each (cases, hosts, dtype), where the algorithm computes anything of it."""
    return pytest.mark.parametrize(
        "algorithm, case, host, dtype",
        [
            pytest.param(algorithm, case, host, dtype, id=f"{algorithm.NAME}-{case}-{host}-{dtype}")
            for algorithm in COMPILED
            for cases, hosts, dtype in what
            for case in cases
            for host in hosts
            if problems(algorithm, CASES[case], dtype)
        ],
    )


def computed(algorithm, arrays, options):
    """The results, by kind, of what the algorithm does not decline, each in an output that was full of NaN."""
    x, w, b, dy = arrays
    lie = channels_last if layout(algorithm) == "last" else np.ascontiguousarray
    x, dy = lie(x), lie(dy)
    g = konv.geometry(x.shape, w.shape, **options, dtype=x.dtype)
    calls = {
        "forward": lambda out: algorithm.forward(x, w, b, g, out),
        "input_gradient": lambda out: algorithm.input_gradient(dy, w, g, out),
        "weight_gradient": lambda out: algorithm.weight_gradient(dy, x, g, out),
    }
    shapes = {"forward": g.output_shape, "input_gradient": g.x_shape, "weight_gradient": g.w_shape}
    results = {}
    for kind in problems(algorithm, (x.shape, w.shape, options), x.dtype.name):
        results[kind] = lie(np.full(shapes[kind], np.nan, x.dtype))
        calls[kind](results[kind])
    return results


def expected(arrays, options):
    """What the textbook computes, by kind, in float64."""
    x, w, b, dy = (a.astype(np.float64) for a in arrays)
    with np.errstate(invalid="ignore"):
        dx, dw, _ = textbook.conv_backward(dy, x, w, **options)
        return {"forward": textbook.conv(x, w, b, **options), "input_gradient": dx, "weight_gradient": dw}


def drawn(x_shape, w_shape, options, draw):
    """x, w, b, dy of ``draw(shape)``, read-only: a plain text that writes to an input fails."""
    output = konv.geometry(x_shape, w_shape, **options).output_shape
    arrays = [draw(shape) for shape in (x_shape, w_shape, w_shape[:1], output)]
    for array in arrays:
        array.flags.writeable = False
    return arrays


def check(algorithm, case, dtype="float32"):
    """The textbook's results, on small integers: exactly, but for algorithms that decline what must be exact."""
    x_shape, w_shape, options = case
    rng = np.random.default_rng(0)
    arrays = drawn(x_shape, w_shape, options, lambda shape: integers(rng, shape, DTYPES[dtype], limit=2))
    results, right = computed(algorithm, arrays, options), expected(arrays, options)
    exact = problems(algorithm, case, dtype, exact=True)
    for kind, result in results.items():
        if kind in exact:
            assert_equal(result, right[kind].astype(DTYPES[dtype]))
        else:
            assert_near(result, right[kind])


def check_bias(shape=(3, 5, 7), last=False, dtype="float32"):
    """The bias gradient of small integers, exactly."""
    dy = integers(np.random.default_rng(0), shape, DTYPES[dtype], limit=2)
    right = dy.astype(np.float64).sum(axis=(0, *range(2, len(shape)))).astype(dy.dtype)
    result = bias_gradient(channels_last(dy) if last else dy)
    assert result.dtype == dy.dtype
    assert_equal(result, right)


def check_added_bias(shape, last, dtype):
    """Half types are added in float32, exactly."""
    rng = np.random.default_rng(0)
    y, b = integers(rng, shape, accumulator(np.dtype(DTYPES[dtype]))), integers(rng, shape[1:2], DTYPES[dtype])
    right = y + b.astype(y.dtype).reshape(-1, *[1] * (len(shape) - 2))
    y = channels_last(y) if last else y.copy()
    add_bias(y, b)
    assert_equal(y, right)


def channels_last(array):
    """The same numbers, laid out (N, *spatial, C)."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def assert_near(result, right):
    """What is promised of Winograd's algorithm."""
    assert (np.abs(result - right) <= 1e-5 * np.abs(right).max()).all()


@pytest.fixture
def small_jobs(monkeypatch):
    many_small_jobs(monkeypatch)


@pytest.mark.usefixtures("small_jobs")
@each_algorithm((CASES, ["AVX-512"], "float32"), *FEW_CASES_IN_TURNS, *OTHER_DTYPES)
def test_in_plain_python(algorithm, case, host, dtype):
    """No text touches a cell outside its arrays, its tables, or its part of the workspace; and it is right."""
    with engine(MACHINES[host], plain=True):
        check(algorithm, CASES[case], dtype)


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("algorithm", COMPILED, ids=lambda a: a.NAME)
def test_more_threads_set_meanwhile_find_no_slot_outside_the_workspace(algorithm, monkeypatch):
    """``set_threads`` of another Python thread: each time that it is asked, ``get_threads`` tells another number."""
    asked = itertools.cycle(range(1, 6))
    for module in MODULES:
        if hasattr(module, "get_threads"):
            monkeypatch.setattr(module, "get_threads", lambda: next(asked))
    for case in FEW_CASES:
        if problems(algorithm, CASES[case]):
            with engine(plain=True):
                check(algorithm, CASES[case])


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("host", MACHINES)
def test_weight_gradients_of_channels_last(host, plain):
    """Read as they are: the kernels are given the memory of x and dy itself."""
    rng = np.random.default_rng(0)
    with engine(MACHINES[host], plain=plain):
        for case in FEW_CASES if plain else share_of(host, CASES):
            x_shape, w_shape, options = CASES[case]
            arrays = drawn(x_shape, w_shape, options, lambda shape: integers(rng, shape, np.float32, limit=2))
            out = np.full(w_shape, np.nan, np.float32)
            g = konv.geometry(x_shape, w_shape, **options)
            bias = np.full(w_shape[0], np.nan, np.float32)
            direct.weight_and_bias_gradient(channels_last(arrays[3]), channels_last(arrays[0]), g, out, bias)
            assert_equal(out, expected(arrays, options)["weight_gradient"].astype(np.float32))
            assert_equal(bias, arrays[3].sum(axis=(0, *range(2, arrays[3].ndim))))


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("host, dtype", list(zip(MACHINES, DTYPES)))
def test_bias_and_its_gradient(host, dtype, plain):
    with engine(MACHINES[host], plain=plain):
        for shape in ((3, 5, 7), (1, 1, 1), (0, 2, 3), (2, 40, 5, 6), (3, 2, 700), (20, 1, 2, 2, 2)):
            check_bias(shape, False, dtype)
            check_bias(shape, True, dtype)
            check_added_bias(shape, False, dtype)
            check_added_bias(shape, True, dtype)


@pytest.mark.parametrize("algorithm", [a for a in COMPILED if problems(a, CASES["1-D"])], ids=lambda a: a.NAME)
def test_any_geometry_in_plain_python(algorithm):
    @settings(max_examples=15)
    @given(convolutions(min_batch=1), seeds)
    def run(case, seed):
        host = list(MACHINES.values())[seed % len(MACHINES)]
        with pytest.MonkeyPatch.context() as patch, engine(host, plain=True):
            if seed % 2:
                many_small_jobs(patch)
            options = {name: value for name, value in case.options.items() if name != "padding_mode"}
            check(algorithm, (case.x_shape, case.w_shape, options))

    run()


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("algorithm", COMPILED, ids=lambda a: a.NAME)
def test_compiled(algorithm, host):
    with engine(MACHINES[host]):
        for case in share_of(host, CASES.values()):
            check(algorithm, case)


@pytest.mark.usefixtures("small_jobs")
@each_algorithm(*OTHER_DTYPES)
def test_compiled_in_other_types(algorithm, case, host, dtype):
    with engine(MACHINES[host]):
        check(algorithm, CASES[case], dtype)


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("algorithm", COMPILED, ids=lambda a: a.NAME)
def test_compiled_on_numbers_that_are_rounded(algorithm, host):
    """As near to the textbook as sums in float32 can be."""
    rng = np.random.default_rng(0)
    with engine(MACHINES[host]):
        for x_shape, w_shape, options in share_of(host, CASES.values()):
            draw = lambda shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
            arrays = drawn(x_shape, w_shape, options, draw)
            right, scale = expected(arrays, options), expected([np.abs(a) for a in arrays], options)
            length = 1 + max(np.prod(w_shape), np.prod(arrays[3].shape))
            exact = problems(algorithm, (x_shape, w_shape, options), exact=True)
            for kind, result in computed(algorithm, arrays, options).items():
                if kind in exact:
                    assert_close(result, right[kind], dtype=np.float32, length=length, scale=scale[kind])
                else:
                    assert_near(result, right[kind])


@each_algorithm(([case for case in CASES if case != "3x3"], ["AVX-512"], "float32"))
def test_an_output_has_the_same_bits_in_vectors_of_any_width(algorithm, case, host, dtype):
    rng = np.random.default_rng(0)
    x_shape, w_shape, options = CASES[case]
    arrays = drawn(x_shape, w_shape, options, lambda shape: rng.standard_normal(shape).astype(dtype))
    results = []
    for name in hosts_of(list(CASES).index(case)):
        with engine(MACHINES[name]):
            results.append(computed(algorithm, arrays, options))
    for kind in {"forward", "input_gradient"} & results[0].keys():
        for other in results[1:]:
            if kind in other or algorithm is not small_groups:  # whose groups narrow vectors do not hold
                assert_same_bits(other[kind], results[0][kind])


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("algorithm", COMPILED, ids=lambda a: a.NAME)
def test_compiled_on_infinity_and_nan(algorithm, host):
    """One of them in x, in w, in dy: it goes where the textbook's sums take it (of Winograd's tiles, there at least)."""
    rng = np.random.default_rng(0)
    with engine(MACHINES[host]):
        for x_shape, w_shape, options in share_of(host, CASES.values()):
            for place, value in ((0, np.inf), (0, np.nan), (1, -np.inf), (1, np.nan), (3, np.inf), (3, np.nan)):
                arrays = drawn(x_shape, w_shape, options, lambda shape: integers(rng, shape, np.float32, limit=2))
                arrays[place] = arrays[place].copy()
                arrays[place].flat[int(rng.integers(arrays[place].size))] = value
                right = expected(arrays, options)
                with np.errstate(invalid="ignore"):  # NumPy computes input gradients of weights that are not finite
                    results = computed(algorithm, arrays, options)
                exact = problems(algorithm, (x_shape, w_shape, options), exact=True)
                for kind, result in results.items():
                    if kind in exact:
                        assert_equal(result, right[kind].astype(np.float32), nan_equal=True)
                    else:
                        assert not np.isfinite(result[~np.isfinite(right[kind])]).any()


@pytest.mark.usefixtures("small_jobs")
def test_every_kernel_of_the_engine_is_run_here():
    with engine() as asked:
        for algorithm in COMPILED:
            for case in (*map(CASES.get, FEW_CASES), MANY_TILES):
                if problems(algorithm, case):
                    check(algorithm, case)
        check_bias(last=False)
        check_bias(last=True)
        check_added_bias((3, 5, 7), False, "float32")
    # whose kernels test_grouped.py and others run
    elsewhere = (
        "pool_kernels",
        "pool_gradients",
        "pool_apart",
        "rectify",
        "adam",
        "channels",
        "depthwise_fixed_kernels",
        "depthwise_paired_kernels",
        "depthwise_long_kernels",
        "depthwise_rows_kernels",
        "depthwise_sliding_kernels",
        "depthwise_spread",
        "pairs_kernels",
        "pairs_last_kernels",
        "pairs_outer",
        "products_last_few",
        "repeats_kernels",
        "repeats_outer",
        "down_kernels",
        "down_outer",
        "fourier_kernels",
        "fourier_groups_kernels",
        "folded_kernels",
        "winograd_rows_kernels",
        "winograd_rows_outer",
        "winograd_small_kernels",
        "winograd_strided_kernels",
        "strips_kernels",
        "strips_last_kernels",
        "strips_outer",
    )
    others = {name for name, factory in factories().items() if factory.__module__.endswith(elsewhere)}
    others.add("filters_to_points")  # which is for large images: test_winograd.py
    assert asked | others == set(factories()) and len(asked) >= 6


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("host", MACHINES)
def test_too_little_memory_is_seen(host, monkeypatch):
    """The plain texts fail where a workspace is smaller than what its kernels touch."""
    real = direct._correlation

    def with_less(*arguments):
        return dataclasses.replace(real(*arguments), size=real(*arguments).size * 2 // 3)

    prepare = weights._prepare

    def smaller(*arguments):
        prepared = prepare(*arguments)
        return dataclasses.replace(prepared, size=prepared.size * 2 // 3)

    with engine(MACHINES[host], plain=True):
        monkeypatch.setattr(weights, "_prepare", smaller)
        with pytest.raises(IndexError, match="a kernel touches"):
            check(direct, CASES["2-D"])
    with engine(MACHINES[host], plain=True):
        monkeypatch.setattr(direct, "_correlation", with_less)
        with pytest.raises(IndexError, match="a kernel touches"):
            check(direct, CASES["2-D"])
