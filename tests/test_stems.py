"""Layers of few channels: every kind of row, tile and block of folded, strips and strips_last against the textbook, exactly."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine import launch
from konv.engine.direct import direct
from konv.engine.plan import Problem
from konv.engine.stems import folded, strips, strips_cut, strips_last
from konv.engine.threads import using
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded

KINDS = {
    folded: [("input_gradient", "first"), ("input_gradient", "last")],
    strips: [("forward", "first"), ("weight_gradient", "first"), ("input_gradient", "first")],
    strips_last: [("forward", "last")],
}
CASES = {
    "stem": ((2, 3, 13, 70), (17, 3, 3, 3), dict(stride=2, padding=1), [folded, strips]),
    "stem of 33": ((2, 3, 13, 37), (33, 3, 3, 3), dict(stride=2, padding=1), [strips_last]),
    "7 x 7": ((1, 3, 9, 150), (33, 3, 7, 7), dict(stride=2, padding=3), [strips]),
    "7 x 7 of 64": ((1, 3, 9, 75), (64, 3, 7, 7), dict(stride=2, padding=3), [strips_last]),
    "7 x 7, tiles that overlap, blocks of rows": ((1, 3, 101, 41), (9, 3, 7, 7), dict(stride=2, padding=3), [folded]),
    "narrower than a vector of 32 bytes": ((2, 1, 4, 17), (16, 1, 3, 2), {}, [strips]),
    "rows of three vectors of 32 bytes": ((2, 1, 6, 26), (30, 1, 3, 3), {}, [strips]),
    "padding beyond the window": (
        (1, 2, 6, 80), (16, 2, 3, 4), dict(padding=((9, 11), (0, 5)), stride=(3, 4)), [folded, strips]
    ),
    "padding only": ((1, 2, 1, 3), (9, 2, 2, 2), dict(padding=((3, 3), (40, 7)), stride=(2, 1)), [strips_last]),
    "dilated": ((1, 3, 7, 43), (17, 3, 2, 3), dict(dilation=(2, 3), stride=(1, 2), padding=2), [folded, strips]),
    "dilated, of 80": ((1, 4, 7, 43), (80, 4, 2, 3), dict(dilation=(2, 3), stride=(1, 2), padding=2), [strips_last]),
    "cells that no window meets": ((1, 2, 20, 23), (19, 2, 2, 2), dict(stride=4), [folded]),
    "one channel, blocks of columns": ((2, 1, 2700), (40, 1, 10), dict(stride=5), [folded]),
    "one channel, long": ((2, 1, 900), (40, 1, 10), dict(stride=5), [strips, strips_last]),
    "1-D, many channels": ((2, 25, 130), (25, 25, 7), dict(dilation=8, padding=48), [strips]),
    "1-D, 5 channels, shorter than a vector": ((2, 5, 12), (16, 5, 5), dict(padding=1), [strips]),
    "1-D, shorter than a vector": ((2, 4, 12), (8, 4, 5), dict(padding=1), [folded, strips_last]),
    "1-D, stride 3": ((1, 3, 100), (19, 3, 5), dict(stride=3, padding=((4, 0),)), [folded]),
    "1-D, 7 channels, stride 3": ((1, 7, 100), (19, 7, 5), dict(stride=3, padding=((4, 0),)), [strips]),
    "1-D, one output": ((3, 3, 5), (48, 3, 5), {}, [strips_last]),
}  # fmt: skip
ON_OTHER_MACHINES = {
    folded: ["1-D, stride 3"],
    strips: ["stem", "1-D, many channels", "1-D, 5 channels, shorter than a vector"],
    strips_last: ["stem of 33"],
}
algorithms = pytest.mark.parametrize("algorithm", KINDS, ids=lambda a: a.NAME)


def names_of(algorithm):
    return [name for name, case in CASES.items() if algorithm in case[3]]


def drawn(name, dtype=np.float32):
    """Geometry, options, and x, w, b, dy."""
    x_shape, w_shape, options, _ = CASES[name]
    rng = np.random.default_rng(0)
    g = konv.geometry(x_shape, w_shape, **options, dtype=dtype)
    shapes = (x_shape, w_shape, w_shape[:1], g.output_shape)
    return g, options, [integers(rng, shape, dtype, limit=2) for shape in shapes]


def lain(array, layout, lie=np.ascontiguousarray):
    """The array in ``layout``, in memory that ``lie`` chooses."""
    if layout == "first":
        return lie(array)
    cells, channels = (0, *range(2, array.ndim), 1), (0, array.ndim - 1, *range(1, array.ndim - 1))
    return lie(np.ascontiguousarray(array.transpose(cells))).transpose(channels)


def computed(algorithm, kind, layout, g, arrays, lie=np.ascontiguousarray):
    """The results of a kind: y, dx, or dw and db; NaN where nothing was written."""
    dtype = arrays[0].dtype
    x, dy = (lain(array, layout, lie) for array in (arrays[0], arrays[3]))
    w, b = map(lie, arrays[1:3])
    shapes = {"forward": [g.output_shape], "input_gradient": [g.x_shape], "weight_gradient": [g.w_shape, (g.filters,)]}
    made = [np.full(shape, np.nan, dtype) for shape in shapes[kind]]
    outs = [lain(out, layout if kind != "weight_gradient" else "first", lie) for out in made]
    if kind == "forward":
        algorithm.forward(x, w, b, g, *outs)
    elif kind == "input_gradient":
        algorithm.input_gradient(dy, w, g, *outs)
    else:
        algorithm.weight_and_bias_gradient(dy, x, g, *outs)
    return outs


def right(kind, options, arrays):
    x, w, b, dy = arrays
    if kind == "forward":
        return [textbook.conv(x, w, b, **options)]
    gradients = textbook.conv_backward(dy, x, w, **options)
    return gradients[:1] if kind == "input_gradient" else gradients[1:]


def check(algorithm, name, dtype=np.float32, lie=np.ascontiguousarray):
    """Compare all that it computes; returns the kinds."""
    g, options, arrays = drawn(name, dtype)
    wide, done = [array.astype(np.float64) for array in arrays], []
    for kind, layout in KINDS[algorithm]:
        problem = Problem(kind, g, np.dtype(dtype).name, layout=layout, exact=algorithm is strips)
        # A weight gradient declines what others compute faster; it computes all.
        if kind != "weight_gradient" and algorithm.declines(problem) is not None:
            continue
        for found, expected in zip(
            computed(algorithm, kind, layout, g, arrays, lie), right(kind, options, wide), strict=True
        ):
            assert_equal(found, expected.astype(dtype))
        done.append(kind)
    assert KINDS[algorithm][0][0] in done
    return done


@algorithms
@pytest.mark.parametrize("host", MACHINES)
def test_equals_the_textbook(algorithm, host):
    with engine(MACHINES[host]):
        some = names_of(algorithm) if host == "AVX-512" else ON_OTHER_MACHINES[algorithm]
        done = [kinds for name in some for kinds in check(algorithm, name)]
    assert done.count("input_gradient") == {folded: 2 * len(some), strips: 1, strips_last: 0}[algorithm]


@pytest.mark.parametrize(
    "algorithm, names, dtypes",
    [
        (folded, ["stem"], [np.float64, BFLOAT16]),
        (strips, ["stem", "1-D, many channels"], [np.float64, np.float16, BFLOAT16]),
        (strips_last, ["stem of 33"], [np.float64, BFLOAT16]),
    ],
    ids=lambda a: getattr(a, "NAME", ""),
)
def test_other_types(algorithm, names, dtypes):
    for dtype in dtypes:
        for name in names:
            check(algorithm, name, np.dtype(dtype))


@pytest.mark.parametrize(
    "algorithm, host, name",
    [
        (folded, "AVX-512", "1-D, shorter than a vector"),
        (folded, "SSE2", "1-D, stride 3"),
        (folded, "AVX2", "dilated"),
        (strips, "AVX-512", "stem"),
        (strips, "SSE2", "padding beyond the window"),
        (strips, "AVX2", "dilated"),
        (strips_last, "AVX-512", "1-D, shorter than a vector"),
        (strips_last, "SSE2", "padding only"),
        (strips_last, "AVX2", "1-D, one output"),
    ],
    ids=lambda a: getattr(a, "NAME", a),
)
def test_in_plain_python(algorithm, host, name, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host], plain=True):
        check(algorithm, name)


def test_rows_in_parts(monkeypatch):
    monkeypatch.setattr(strips_cut, "ROW_BYTES", 1000)
    monkeypatch.setattr(strips_last, "BLOCK_CELLS", 29)
    with engine():
        for name in ("one channel, long", "1-D, many channels", "1-D, 7 channels, stride 3", "7 x 7"):
            check(strips, name)
        for name in ("stem of 33", "one channel, long"):  # whose last parts are narrower than a tile, and are not
            check(strips_last, name)


@algorithms
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(algorithm, end):
    for name in names_of(algorithm):
        check(algorithm, name, lie=lambda array: guarded(array, end))


@pytest.mark.parametrize("algorithm, layout", [(strips, "first"), (strips_last, "last")], ids=["strips", "strips_last"])
def test_threads_batches_lengths_and_widths_change_no_bit(algorithm, layout):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((3, 2, 2000), (40, 2, 9)))
    assert konv.plan(x.shape, w.shape, layout=layout).algorithm is algorithm
    whole = []
    for threads, host in ((1, "AVX-512"), (2, "AVX2"), (3, "SSE2")):
        with using(threads), engine(MACHINES[host]):
            whole.append(konv.conv(laid_out(x, layout), w))
    for other in whole[1:]:
        assert_same_bits(other, whole[0])
    for length in (25, 500, 1999):
        part = laid_out(x[1:2, :, :length], layout)
        assert_same_bits(konv.conv(part, w), whole[0][1:2, :, : length - 8].copy())


def test_threads_batches_blocks_layouts_and_widths_change_no_bit_of_input_gradients():
    rng = np.random.default_rng(0)
    w, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((20, 3, 5, 5), (3, 20, 77, 42)))
    x_shape, results = (3, 3, 157, 88), []

    def dx_of(dy, x_shape, layout):
        x = laid_out(np.zeros(x_shape, np.float32), layout)
        return konv.conv_backward(laid_out(dy, layout), x, w, stride=2, need=("x",))[0]

    for threads, host, layout in (
        (1, "AVX-512", "first"),
        (2, "AVX2", "last"),
        (3, "SSE2", "first"),
        (4, "AVX-512", "last"),
    ):
        with using(threads), engine(MACHINES[host]):
            assert konv.plan(x_shape, w.shape, kind="input_gradient", stride=2, layout=layout).algorithm is folded
            results.append(dx_of(dy, x_shape, layout))
    for other in results[1:]:
        assert_same_bits(np.ascontiguousarray(other), results[0])
    assert_same_bits(dx_of(dy[1:2], (1, *x_shape[1:]), "first"), results[0][1:2])


def test_threads_change_no_bit_of_weight_gradients():
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((5, 3, 66, 66), (40, 3, 3, 3)))
    assert konv.plan(x.shape, w.shape, kind="weight_gradient").algorithm is strips
    dy, results = rng.standard_normal((5, 40, 64, 64), dtype=np.float32), []
    for threads in (1, 2, 3):
        with using(threads):
            results.append(konv.conv_backward(dy, x, w, need=("w", "b"))[1:])
    for dw, db in results[1:]:
        assert_same_bits(dw, results[0][0])
        assert_same_bits(db, results[0][1])


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "algorithm, name",
    [(folded, "dilated"), (strips, "1-D, many channels"), (strips_last, "stem of 33")],
    ids=lambda a: getattr(a, "NAME", ""),
)
def test_what_is_not_finite_goes_where_the_formula_takes_it(algorithm, name, value):
    for place in range(4):
        g, options, arrays = drawn(name)
        arrays[place].flat[arrays[place].size // 2] = value
        with np.errstate(invalid="ignore"):
            for kind, layout in KINDS[algorithm]:
                expected = right(kind, options, arrays)
                for found, one in zip(computed(algorithm, kind, layout, g, arrays), expected, strict=True):
                    assert_equal(found, one, nan_equal=True)


IMAGES = (1, 3, 224, 224)
OTHERS = [
    (folded, (1, 3, 99, 99), (64, 3, 3, 3), {}, "forward", "first"),
    (folded, (1, 5, 99, 99), (64, 5, 3, 3), {}, "input_gradient", "first"),
    (folded, (1, 4, 400), (64, 2, 3), dict(groups=2), "input_gradient", "first"),
    (folded, (1, 1, 8, 40, 40), (64, 1, 3, 3, 3), {}, "input_gradient", "first"),
    (folded, (1, 1, 400), (7, 1, 3), {}, "input_gradient", "first"),
    (folded, (1, 1, 400), (64, 1, 18), dict(stride=17), "input_gradient", "first"),
    (folded, (1, 3, 999), (64, 3, 200), {}, "input_gradient", "first"),
    (strips, IMAGES, (64, 3, 3, 3), {}, "forward", "last"),
    (strips, (8, 25, 400), (25, 25, 7), {}, "forward", "first"),
    (strips, IMAGES, (64, 3, 7, 7), {}, "weight_gradient", "first"),
    (strips, (1, 3, 58, 58), (64, 3, 3, 3), {}, "weight_gradient", "first"),
    (strips, (1, 3, 500), (64, 3, 3), {}, "weight_gradient", "first"),
    (strips, IMAGES, (64, 3, 3, 3), dict(stride=2), "input_gradient", "first"),
    (strips, IMAGES, (64, 3, 3, 3), {}, "input_gradient", "first"),
    (strips, (1, 8, 224, 224), (64, 8, 3, 3), {}, "forward", "first"),
    (strips, IMAGES, (64, 3, 9, 9), {}, "forward", "first"),
    (strips, (1, 4, 400), (64, 2, 3), dict(groups=2), "forward", "first"),
    (strips, (1, 1, 8, 40, 40), (64, 1, 3, 3, 3), {}, "forward", "first"),
    (strips, (1, 1, 400), (8, 1, 3), {}, "forward", "first"),
    (strips, (1, 1, 8, 8), (64, 1, 3, 3), {}, "forward", "first"),
    (strips, (1, 1, 400), (64, 1, 12), dict(stride=11), "forward", "first"),
    (strips_last, (1, 3, 99, 99), (64, 3, 3, 3), {}, "forward", "first"),
    (strips_last, (1, 3, 99, 99), (64, 3, 3, 3), {}, "input_gradient", "last"),
    (strips_last, (1, 5, 99, 99), (64, 5, 3, 3), {}, "forward", "last"),
    (strips_last, (1, 4, 400), (64, 2, 3), dict(groups=2), "forward", "last"),
    (strips_last, (1, 1, 8, 40, 40), (64, 1, 3, 3, 3), {}, "forward", "last"),
    (strips_last, (1, 1, 400), (7, 1, 3), {}, "forward", "last"),
    (strips_last, (1, 1, 8, 8), (64, 1, 3, 3), {}, "forward", "last"),
    (strips_last, (1, 3, 400), (64, 3, 12), dict(stride=11), "forward", "last"),
    (strips_last, (1, 3, 999), (64, 3, 200), {}, "forward", "last"),
]


def test_layers_of_others_are_declined():
    for algorithm, x_shape, w_shape, options, kind, layout in OTHERS:
        g = konv.geometry(x_shape, w_shape, **options)
        assert algorithm.declines(Problem(kind, g, "float32", layout=layout)), (algorithm.NAME, x_shape, w_shape, kind)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_an_empty_batch(layout):
    x, w = laid_out(np.zeros((0, 3, 40, 40), np.float32), layout), np.zeros((64, 3, 3, 3), np.float32)
    y = konv.conv(x, w)
    assert y.shape == (0, 64, 38, 38) and konv.conv_backward(y, x, w)[0].shape == x.shape
    assert direct.declines(Problem("forward", konv.geometry(x.shape, w.shape), "float32")) is None


def test_a_prepared_job_uses_as_many_threads_as_there_are_now(monkeypatch):
    used = []
    run = launch.Job.run_on
    monkeypatch.setattr(
        launch.Job, "run_on", lambda job, threads, more: used.append(threads) or run(job, threads, more)
    )
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 66, 66), (32, 3, 3, 3)))
    g = konv.geometry(x.shape, w.shape)
    dy, dw = np.ones(g.output_shape, np.float32), np.empty_like(w)
    for kind in ("forward", "weight_gradient"):
        assert strips.declines(Problem(kind, g, "float32")) is None
    for n in (2, 1, 2):
        used.clear()
        with using(n):
            strips.forward(x, w, None, g, np.empty_like(dy))
            strips.weight_gradient(dy, x, g, dw)
        assert used == [n, n]
