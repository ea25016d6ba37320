"""First layers and 1-D layers of few products: every kind of row, tile and block against the textbook, exactly."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.engine import launch
from konv.engine.direct import direct
from konv.engine.plan import Problem
from konv.engine.stems import strips, strips_cut
from konv.engine.threads import using
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded

CASES = {
    "stem": ((2, 3, 13, 70), (17, 3, 3, 3), dict(stride=2, padding=1)),
    "7 x 7": ((1, 3, 9, 150), (33, 3, 7, 7), dict(stride=2, padding=3)),
    "narrower than a vector of 32 bytes": ((2, 1, 4, 17), (16, 1, 3, 2), {}),
    "padding beyond the window": ((1, 2, 6, 80), (16, 2, 3, 4), dict(padding=((9, 11), (0, 5)), stride=(3, 4))),
    "dilated": ((1, 3, 7, 43), (17, 3, 2, 3), dict(dilation=(2, 3), stride=(1, 2), padding=2)),
    "one channel, long": ((2, 1, 900), (40, 1, 10), dict(stride=5)),
    "1-D, many channels": ((2, 25, 130), (25, 25, 7), dict(dilation=8, padding=48)),
    "1-D, shorter than a vector": ((2, 5, 12), (16, 5, 5), dict(padding=1)),
    "1-D, stride 3": ((1, 7, 100), (19, 7, 5), dict(stride=3, padding=((4, 0),))),
}


def case(name, dtype=np.float32):
    x_shape, w_shape, options = CASES[name]
    rng = np.random.default_rng(0)
    g = konv.geometry(x_shape, w_shape, **options, dtype=dtype)
    shapes = (x_shape, w_shape, w_shape[:1], g.output_shape)
    return g, options, *(integers(rng, shape, dtype, limit=2) for shape in shapes)


def check(name, dtype=np.float32, lie=np.ascontiguousarray):
    g, options, x, w, b, dy = case(name, dtype)
    wide = [a.astype(np.float64) for a in (x, w, b, dy)]
    assert strips.declines(Problem("forward", g, np.dtype(dtype).name, exact=True)) is None
    y = lie(np.full(g.output_shape, np.nan, dtype))
    strips.forward(lie(x), lie(w), lie(b), g, y)
    assert_equal(y, textbook.conv(*wide[:3], **options).astype(dtype))
    dw, db = lie(np.full(g.w_shape, np.nan, dtype)), lie(np.full(g.filters, np.nan, dtype))
    strips.weight_and_bias_gradient(lie(dy), lie(x), g, dw, db)
    _, right_dw, right_db = textbook.conv_backward(wide[3], *wide[:2], **options)
    assert_equal(dw, right_dw.astype(dtype))
    assert_equal(db, right_db.astype(dtype))
    if strips.declines(Problem("input_gradient", g, np.dtype(dtype).name, exact=True)) is None:
        dx = lie(np.full(g.x_shape, np.nan, dtype))
        strips.input_gradient(lie(dy), lie(w), g, dx)
        assert_equal(dx, textbook.conv_backward(wide[3], *wide[:2], **options)[0].astype(dtype))
        return True
    return False


@pytest.mark.parametrize("host", MACHINES)
def test_equals_the_textbook(host):
    with engine(MACHINES[host]):
        some = CASES if host == "AVX-512" else ("stem", "1-D, many channels", "1-D, shorter than a vector")
        assert [check(name) for name in some].count(True) == 1  # has an input gradient, too


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float16), BFLOAT16], ids=str)
def test_other_types(dtype):
    for name in ("stem", "1-D, many channels"):
        check(name, dtype)


@pytest.mark.parametrize(
    "host, name", [("AVX-512", "stem"), ("SSE2", "padding beyond the window"), ("AVX2", "dilated")]
)
def test_in_plain_python(host, name, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host], plain=True):
        check(name)


def test_rows_in_parts(monkeypatch):
    monkeypatch.setattr(strips_cut, "ROW_BYTES", 1000)
    with engine():
        for name in ("one channel, long", "1-D, many channels", "1-D, stride 3", "7 x 7"):
            check(name)


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(end):
    for name in CASES:
        check(name, lie=lambda array: guarded(array, end))


def test_threads_batches_lengths_and_widths_change_no_bit():
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((3, 2, 2000), (40, 2, 9)))
    before, whole = konv.get_threads(), []
    for threads, host in ((1, "AVX-512"), (2, "AVX2"), (3, "SSE2")):
        konv.set_threads(threads)
        with engine(MACHINES[host]):
            assert konv.plan(x.shape, w.shape).algorithm is strips
            whole.append(konv.conv(x, w))
    konv.set_threads(before)
    for other in whole[1:]:
        assert_same_bits(other, whole[0])
    for length in (25, 500, 1999):
        assert_same_bits(konv.conv(x[1:2, :, :length], w), whole[0][1:2, :, : length - 8].copy())


def test_threads_change_no_bit_of_weight_gradients():
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((5, 3, 66, 66), (40, 3, 3, 3)))
    assert konv.plan(x.shape, w.shape, kind="weight_gradient").algorithm is strips
    dy, before, results = rng.standard_normal((5, 40, 64, 64), dtype=np.float32), konv.get_threads(), []
    for threads in (1, 2, 3):
        konv.set_threads(threads)
        results.append(konv.conv_backward(dy, x, w, need=("w", "b"))[1:])
    konv.set_threads(before)
    for dw, db in results[1:]:
        assert_same_bits(dw, results[0][0])
        assert_same_bits(db, results[0][1])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_goes_where_the_formula_takes_it(value):
    for place in range(2, 6):
        g, options, *arrays = case("1-D, many channels")
        arrays[place - 2].flat[arrays[place - 2].size // 2] = value
        x, w, b, dy = arrays
        y, dx = np.empty(g.output_shape, np.float32), np.empty(g.x_shape, np.float32)
        with np.errstate(invalid="ignore"):
            strips.forward(x, w, b, g, y)
            strips.input_gradient(dy, w, g, dx)
            dw = np.empty(g.w_shape, np.float32)
            strips.weight_gradient(dy, x, g, dw)
            assert_equal(dw, textbook.conv_backward(dy, x, w, **options)[1], nan_equal=True)
            assert_equal(y, textbook.conv(x, w, b, **options), nan_equal=True)
            assert_equal(dx, textbook.conv_backward(dy, x, w, **options)[0], nan_equal=True)


def test_layers_of_others_are_declined():
    for x_shape, w_shape, options, kind, layout in (
        ((1, 3, 224, 224), (64, 3, 3, 3), {}, "forward", "last"),
        ((8, 25, 400), (25, 25, 7), {}, "forward", "first"),
        ((1, 3, 224, 224), (64, 3, 7, 7), {}, "weight_gradient", "first"),
        ((1, 3, 58, 58), (64, 3, 3, 3), {}, "weight_gradient", "first"),
        ((1, 3, 500), (64, 3, 3), {}, "weight_gradient", "first"),
        ((1, 3, 224, 224), (64, 3, 3, 3), dict(stride=2), "input_gradient", "first"),
        ((1, 3, 224, 224), (64, 3, 3, 3), {}, "input_gradient", "first"),
        ((1, 8, 224, 224), (64, 8, 3, 3), {}, "forward", "first"),
        ((1, 3, 224, 224), (64, 3, 9, 9), {}, "forward", "first"),
        ((1, 4, 400), (64, 2, 3), dict(groups=2), "forward", "first"),
        ((1, 1, 8, 40, 40), (64, 1, 3, 3, 3), {}, "forward", "first"),
        ((1, 1, 400), (8, 1, 3), {}, "forward", "first"),
        ((1, 1, 8, 8), (64, 1, 3, 3), {}, "forward", "first"),
        ((1, 1, 400), (64, 1, 12), dict(stride=11), "forward", "first"),
    ):
        assert strips.declines(Problem(kind, konv.geometry(x_shape, w_shape, **options), "float32", layout=layout))
    x = np.zeros((0, 3, 40, 40), np.float32)
    assert konv.conv(x, np.zeros((64, 3, 3, 3), np.float32)).shape == (0, 64, 38, 38)
    assert direct.declines(Problem("forward", konv.geometry((0, 3, 40, 40), (64, 3, 3, 3)), "float32")) is None


def test_a_prepared_job_uses_as_many_threads_as_there_are_now(monkeypatch):
    used = []
    run = launch.Job.run
    monkeypatch.setattr(
        launch.Job, "run", lambda job, threads, **more: used.append(threads) or run(job, threads, **more)
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
