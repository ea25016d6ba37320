"""First layers and 1-D layers of few products, channels last: every kind of row, tile and block against the textbook, exactly."""

import numpy as np
import pytest

import konv
from compare import assert_equal, assert_same_bits
from konv import textbook
from konv.arrays import laid_out
from konv.engine.plan import Problem
from konv.engine.stems import strips_last
from konv.engine.threads import using
from plain_engine import MACHINES, engine, many_small_jobs
from strategies import BFLOAT16, integers
from test_guard_page import guarded

CASES = {
    "stem": ((2, 3, 13, 37), (33, 3, 3, 3), dict(stride=2, padding=1)),
    "7 x 7": ((1, 3, 9, 75), (64, 3, 7, 7), dict(stride=2, padding=3)),
    "padding only": ((1, 2, 1, 3), (9, 2, 2, 2), dict(padding=((3, 3), (40, 7)), stride=(2, 1))),
    "dilated": ((1, 4, 7, 43), (80, 4, 2, 3), dict(dilation=(2, 3), stride=(1, 2), padding=2)),
    "one channel, long": ((2, 1, 900), (40, 1, 10), dict(stride=5)),
    "1-D, shorter than a vector": ((2, 4, 12), (8, 4, 5), dict(padding=1)),
    "1-D, one output": ((3, 3, 5), (48, 3, 5), {}),
}


def last(array):
    return array if array.ndim < 3 else laid_out(array, "last")


def case(name, dtype=np.float32):
    x_shape, w_shape, options = CASES[name]
    rng = np.random.default_rng(0)
    g = konv.geometry(x_shape, w_shape, **options, dtype=dtype)
    return g, options, *(integers(rng, shape, dtype, limit=2) for shape in (x_shape, w_shape, w_shape[:1]))


def check(name, dtype=np.float32, lie=lambda array: array):
    g, options, x, w, b = case(name, dtype)
    assert strips_last.declines(Problem("forward", g, np.dtype(dtype).name, layout="last")) is None
    y, cells = np.full(g.output_shape, np.nan, dtype), (0, *range(2, x.ndim), 1)
    channels = (0, x.ndim - 1, *range(1, x.ndim - 1))
    x_last, y = (lie(np.ascontiguousarray(a.transpose(cells))).transpose(channels) for a in (x, y))
    strips_last.forward(x_last, lie(w), lie(b), g, y)
    assert_equal(y, textbook.conv(*(a.astype(np.float64) for a in (x, w, b)), **options).astype(dtype))


@pytest.mark.parametrize("host", MACHINES)
def test_equals_the_textbook(host):
    with engine(MACHINES[host]):
        for name in CASES if host == "AVX-512" else ("stem",):
            check(name)


def test_rows_in_parts(monkeypatch):
    monkeypatch.setattr(strips_last, "BLOCK_CELLS", 29)
    strips_last._prepared.cache_clear()
    for name in ("stem", "one channel, long"):  # whose last parts are narrower than a tile, and are not
        check(name)
    strips_last._prepared.cache_clear()


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), BFLOAT16], ids=str)
def test_other_types(dtype):
    check("stem", dtype)


@pytest.mark.parametrize(
    "host, name", [("AVX-512", "1-D, shorter than a vector"), ("SSE2", "padding only"), ("AVX2", "1-D, one output")]
)
def test_in_plain_python(host, name, monkeypatch):
    many_small_jobs(monkeypatch)
    with engine(MACHINES[host], plain=True):
        check(name)


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_no_byte_beside_the_arrays_is_touched(end):
    for name in CASES:
        check(name, lie=lambda array: guarded(array, end))


def test_threads_batches_lengths_and_widths_change_no_bit():
    rng = np.random.default_rng(0)
    x, w = last(rng.standard_normal((3, 2, 2000), np.float32)), rng.standard_normal((40, 2, 9), np.float32)
    assert konv.plan(x.shape, w.shape, layout="last").algorithm is strips_last
    whole = []
    for threads, host in ((1, "AVX-512"), (2, "AVX2"), (3, "SSE2")):
        with using(threads), engine(MACHINES[host]):
            whole.append(konv.conv(x, w))
    for other in whole[1:]:
        assert_same_bits(other, whole[0])
    for length in (25, 500, 1999):
        assert_same_bits(konv.conv(last(x[1:2, :, :length]), w), whole[0][1:2, :, : length - 8].copy())


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_goes_where_the_formula_takes_it(value):
    for place in range(3):
        g, options, *arrays = case("stem")
        arrays[place].flat[arrays[place].size // 2] = value
        y = last(np.empty(g.output_shape, np.float32))
        with np.errstate(invalid="ignore"):
            strips_last.forward(last(arrays[0]), *arrays[1:], g, y)
            assert_equal(y, textbook.conv(*arrays, **options), nan_equal=True)


def test_layers_of_others_are_declined():
    for x_shape, w_shape, options, kind, layout in (
        ((1, 3, 99, 99), (64, 3, 3, 3), {}, "forward", "first"),
        ((1, 3, 99, 99), (64, 3, 3, 3), {}, "input_gradient", "last"),
        ((1, 5, 99, 99), (64, 5, 3, 3), {}, "forward", "last"),
        ((1, 4, 400), (64, 2, 3), dict(groups=2), "forward", "last"),
        ((1, 1, 8, 40, 40), (64, 1, 3, 3, 3), {}, "forward", "last"),
        ((1, 1, 400), (7, 1, 3), {}, "forward", "last"),
        ((1, 1, 8, 8), (64, 1, 3, 3), {}, "forward", "last"),
        ((1, 3, 400), (64, 3, 12), dict(stride=11), "forward", "last"),
        ((1, 3, 999), (64, 3, 200), {}, "forward", "last"),
    ):
        assert strips_last.declines(Problem(kind, konv.geometry(x_shape, w_shape, **options), "float32", layout=layout))
    x = np.zeros((0, 40, 40, 3), np.float32).transpose(0, 3, 1, 2)
    assert konv.conv(x, np.zeros((64, 3, 3, 3), np.float32)).shape == (0, 64, 38, 38)
