"""Long 1-D kernels by Fourier transforms: as near to the textbook as sums are, in every type, layout and width of vectors."""

import dataclasses

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine.fourier import fourier, fourier_groups
from konv.engine.fourier.fourier_passes import dft, twiddles
from konv.engine.plan import KINDS, Problem, exactly, prefer
from konv.engine.simd import ArrayPointer
from plain_engine import MACHINES, engine, forget, many_small_jobs
from strategies import BFLOAT16
from test_guard_page import guarded

CASES = [
    ((2, 1, 403), (17, 1, 130), {}),
    ((3, 1, 1001), (40, 1, 253), dict(stride=3, padding=((7, 0),))),
    ((1, 2, 390), (33, 2, 120), dict(padding=((5, 70),))),
    ((2, 2, 700), (16, 2, 101), dict(stride=2, padding=((0, 103),))),
    ((3, 24, 290), (28, 12, 110), dict(groups=2, padding=((3, 60),))),
    ((2, 9, 500), (33, 9, 110), dict(padding=7)),
    ((2, 40, 900), (20, 40, 70), dict(padding=((75, 0),))),
]


def case(x_shape, w_shape, options, dtype=np.float32):
    rng = np.random.default_rng(0)
    g = konv.geometry(x_shape, w_shape, **options, dtype=dtype)
    return g, *(rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape, w_shape[:1], g.output_shape))


def algorithm_of(g):
    """Few channels, or many of one group or several."""
    return fourier if g.groups == 1 and g.channels <= fourier.MOST_CHANNELS else fourier_groups


def computed(g, x, w, b, dy, layout="first", kinds=KINDS):
    """What the algorithm writes over NaN: y, dx, dw and db; nothing where it declines."""
    algorithm = algorithm_of(g)
    x, dy = laid_out(x, layout), laid_out(dy, layout)
    names = [kind for kind in kinds if algorithm.declines(Problem(kind, g, x.dtype.name, layout=layout)) is None]
    shapes = {"forward": g.output_shape, "input_gradient": g.x_shape, "weight_gradient": g.w_shape}
    results = {kind: np.full(shapes[kind], np.nan, x.dtype) for kind in names}
    for kind in set(names) - {"weight_gradient"}:
        results[kind] = laid_out(results[kind], layout)
    if "forward" in names:
        algorithm.forward(x, w, b, g, results["forward"])
    if "input_gradient" in names:
        algorithm.input_gradient(dy, w, g, results["input_gradient"])
    if "weight_gradient" in names:
        results["bias_gradient"] = np.full(g.filters, np.nan, x.dtype)
        algorithm.weight_and_bias_gradient(dy, x, g, results["weight_gradient"], results["bias_gradient"])
    return results


def expected(g, x, w, b, dy, options):
    x, w, b, dy = (a.astype(np.float64) for a in (x, w, b, dy))
    dx, dw, db = textbook.conv_backward(dy, x, w, **options)
    return {
        "forward": textbook.conv(x, w, b, **options),
        "input_gradient": dx,
        "weight_gradient": dw,
        "bias_gradient": db,
    }


def assert_near(result, right, kind):
    """What the file promises, and one rounding to a half type."""
    eps = np.finfo(np.promote_types(result.dtype, np.float32)).eps if result.dtype != BFLOAT16 else 2.0**-23
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(result.dtype.name, 0)
    assert np.abs(result - right).max() <= (6 * eps + half) * np.abs(right).max(), kind


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16], ids=str)
def test_equals_the_textbook(dtype, layout):
    some = {"float32": CASES, "bfloat16": CASES[3:5]}  # each compiles kernels of its own: few channels, groups
    for x_shape, w_shape, options in some.get(dtype.name, CASES[3:4] if layout == "first" else CASES[4:5]):
        arrays = case(x_shape, w_shape, options, dtype)
        results = computed(*arrays, layout)
        assert len(results) == 4
        right = expected(*arrays, options)
        for kind, result in results.items():
            assert_near(result.astype(np.float64) if dtype == np.float64 else result, right[kind], kind)


@pytest.mark.parametrize("number, layout", [(3, "first"), (3, "last"), (4, "first"), (4, "last")])
def test_vectors_of_any_width_give_the_same_bits(number, layout):
    arrays = case(*CASES[number])
    results = []
    for host in MACHINES.values():
        with engine(host):
            results.append(computed(*arrays, layout))
    for other in results[1:]:
        for kind in ("forward", "input_gradient", "weight_gradient"):
            assert_same_bits(other[kind], results[0][kind])


@pytest.mark.parametrize("host, layout", [("AVX-512", "last"), ("SSE2", "first")])
def test_in_plain_python(host, layout, monkeypatch):
    """No text touches a cell outside its arrays, its tables, or its part of the workspace."""
    many_small_jobs(monkeypatch)
    arrays = case((2, 1, 300), (17, 1, 110), dict(stride=1, padding=((0, 3),)))
    with engine(MACHINES[host], plain=True):
        for kind, result in computed(*arrays, layout).items():
            assert_near(result, expected(*arrays, dict(padding=((0, 3),)))[kind], kind)


@pytest.mark.parametrize("host, layout", [("AVX-512", "first"), ("AVX2", "last")])
def test_groups_in_plain_python(host, layout, monkeypatch):
    """As above, pairs of blocks one after the other."""
    many_small_jobs(monkeypatch)
    for name in ("SPECTRA_BYTES", "LEAST_GAIN", "LEAST_GAIN_OF_WEIGHTS"):
        monkeypatch.setattr(fourier_groups, name, 0)
    options = dict(groups=2, padding=((0, 3),))
    arrays = case((1, 16, 100), (18, 8, 20), options)
    with engine(MACHINES[host], plain=True):
        results = computed(*arrays, layout)
    assert len(results) == 4
    for kind, result in results.items():
        assert_near(result, expected(*arrays, options)[kind], kind)


@pytest.mark.parametrize(
    "x_shape, w_shape, options", [((5, 1, 900), (40, 1, 130), {}), ((5, 24, 900), (32, 12, 130), dict(groups=2))]
)
def test_neither_threads_nor_the_batch_change_a_bit(x_shape, w_shape, options, monkeypatch):
    _, x, w, b, dy = case(x_shape, w_shape, options)
    assert "fourier" in konv.plan(x_shape, w_shape, **options).algorithm.NAME
    before, whole = konv.get_threads(), []
    for threads in (1, 2, 3):
        konv.set_threads(threads)
        if threads == 3:
            monkeypatch.setattr(fourier_groups, "SPECTRA_BYTES", 1)  # of several images one after the other
            monkeypatch.setattr(fourier_groups, "BLOCK_BYTES", 1)
            forget()
        whole.append((konv.conv(x, w, b, **options), *konv.conv_backward(dy, x, w, **options)))
    konv.set_threads(before)
    for other in whole[1:]:
        for a, b_ in zip(other, whole[0]):
            assert_same_bits(a, b_)
    for n in range(len(x)):
        one = slice(n, n + 1)
        assert_same_bits(konv.conv(x[one], w, b, **options), whole[0][0][one].copy())
        assert_same_bits(konv.conv_backward(dy[one], x[one], w, need="x", **options)[0], whole[0][1][one].copy())
    forget()


@pytest.mark.parametrize("number, value", [(1, np.inf), (1, -np.inf), (1, np.nan), (4, np.inf), (4, np.nan)])
def test_what_is_not_finite_goes_where_the_formula_takes_it(number, value):
    """And changes no bit of the other samples."""
    x_shape, w_shape, options = CASES[number]
    for place in range(3):
        g, *arrays = case(x_shape, w_shape, options)
        clean = computed(g, *arrays)
        spoiled = [arrays[0], arrays[1], arrays[3]][place]
        spoiled[min(1, len(spoiled) - 1), 0, spoiled.shape[2] // 2] = value
        results = computed(g, *arrays)
        with np.errstate(invalid="ignore"):
            right = expected(g, *arrays, options)
        for kind, result in results.items():
            assert_equal(np.isfinite(result), np.isfinite(right[kind]))
            bad = ~np.isfinite(right[kind])
            assert_equal(result[bad].astype(np.float64), right[kind][bad], nan_equal=True)
            if place != 1 and kind in ("forward", "input_gradient"):
                assert_same_bits(result[::2].copy(), clean[kind][::2].copy())


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(end):
    for x_shape, w_shape, options in CASES[2:5]:
        g, *arrays = case(x_shape, w_shape, options)
        algorithm = algorithm_of(g)
        x, w, b, dy = (guarded(array, end) for array in arrays)
        y, dx, dw = (guarded(np.full(s, np.nan, np.float32), end) for s in (g.output_shape, g.x_shape, g.w_shape))
        algorithm.forward(x, w, b, g, y)
        algorithm.input_gradient(dy, w, g, dx)
        algorithm.weight_gradient(dy, x, g, dw)
        right = expected(g, *arrays, options)
        for kind, result in zip(KINDS, (y, dx, dw)):
            assert_near(result, right[kind], kind)


def test_an_exact_sum_and_a_stream_are_none_of_its_business():
    x_shape, w_shape, _ = CASES[0]
    assert konv.plan(x_shape, w_shape).algorithm is fourier
    with exactly():
        assert konv.plan(x_shape, w_shape).algorithm is not fourier
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in (x_shape, w_shape))
    layer = konv.CausalConv1d(w)
    whole, _ = layer.forward(x)
    first, state = layer.forward(x[:, :, :201])
    second, _ = layer.forward(x[:, :, 201:], state)
    assert_same_bits(np.concatenate([first, second], axis=2), whole)


def test_short_kernels_many_channels_and_empty_batches_are_declined():
    for x_shape, w_shape, options in (
        ((8, 1, 4000), (64, 1, 24), {}),
        ((8, 40, 4000), (64, 40, 100), {}),
        ((8, 16, 2000), (64, 16, 16), {}),
        ((8, 1, 4000), (64, 1, 100), dict(dilation=2)),
        ((8, 2, 4000), (64, 1, 100), dict(groups=2)),
        ((8, 1, 4000), (8, 1, 100), {}),
        ((0, 1, 4000), (64, 1, 100), {}),
        ((1, 1, 40, 40), (64, 1, 31, 31), {}),
    ):
        for kind in KINDS:
            assert fourier.declines(Problem(kind, konv.geometry(x_shape, w_shape, **options), "float32"))
    for x_shape, w_shape, options in (
        ((2, 64, 400), (64, 32, 9), dict(groups=2)),
        ((2, 8, 400), (8, 4, 100), dict(groups=2)),
        ((2, 64, 400), (64, 32, 100), dict(groups=2, dilation=2)),
        ((2, 64, 400), (64, 32, 100), dict(groups=2, stride=2)),
        ((2, 64, 4000), (64, 32, 2048), dict(groups=2)),
        ((0, 64, 400), (64, 32, 100), dict(groups=2)),
        ((1, 64, 40, 40), (64, 32, 31, 31), dict(groups=2)),
    ):
        for kind in KINDS:
            assert fourier_groups.declines(Problem(kind, konv.geometry(x_shape, w_shape, **options), "float32"))
    many = Problem("weight_gradient", konv.geometry((300, 64, 400), (64, 32, 100), groups=2), "float32")
    assert "blocks of a vector of filters" in fourier_groups.declines(many)
    assert fourier_groups.declines(dataclasses.replace(many, kind="forward")) is None
    with prefer("fourier"):
        assert konv.conv(np.zeros((0, 1, 400)), np.zeros((20, 1, 100))).shape == (0, 20, 301)


@pytest.mark.parametrize("radix", [2, 4, 8])
def test_a_small_transform_is_numpys(radix):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((radix, 2, 5))
    result = dft([tuple(value) for value in values], ArrayPointer(np.zeros(1)), 5)
    right = np.fft.fft(values[:, 0] + 1j * values[:, 1], axis=0)
    np.testing.assert_allclose([a + 1j * b for a, b in result], right, atol=1e-12)


def test_roots_of_unity_are_those_of_each_pass():
    roots = twiddles((4, 8), "float64").reshape(8, 3, 2)
    np.testing.assert_allclose(roots[5, 1] @ [1, 1j], np.exp(-2j * np.pi * 5 * 2 / 32))
