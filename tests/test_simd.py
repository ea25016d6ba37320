"""The kernel language, word by word: compiled and on NumPy arrays, in vectors of several widths and all element types."""

import numpy as np
import pytest

from compare import assert_equal, assert_same_bits
from konv.engine.machine import Machine, machine
from konv.engine.memory import aligned
from konv.engine.simd import (
    Variable,
    beats,
    bits,
    deinterleave,
    dot,
    equal,
    fence,
    fma,
    has_nan,
    interleave,
    loop,
    maximum,
    minimum,
    pair,
    pick,
    pinned,
    root,
    select,
    shuffle,
    splat,
    transpose,
    whole,
    within,
)  # fmt: skip
from konv.engine.simd.values import emit
from strategies import BFLOAT16
from texts import both, compiled, run_compiled, run_plain

FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": BFLOAT16}
WHOLE = {"int64": np.int64, "int32": np.int32, "uint8": np.uint8}
TYPES = FLOATS | WHOLE
each_type = pytest.mark.parametrize("dtype", TYPES)
each_float = pytest.mark.parametrize("dtype", FLOATS)
each_width = pytest.mark.parametrize("lanes", [2, 4, 8, 16, 32])


def numbers(dtype, size, seed=0, low=0, high=40):
    """Whole numbers that every type holds."""
    return np.random.default_rng(seed).integers(low, high, size).astype(TYPES[dtype])


def wide(dtype):
    """The type that elements are computed in."""
    return {"float16": "float32", "bfloat16": "float32", "uint8": "int32"}.get(dtype, dtype)


def on_vectors(word, *operands, dtype, lanes, out=None, seed=0):
    """``word`` of vectors, both ways; what it gives, in the type that elements are computed in (or ``out``)."""

    def text(piece, slot, a, b, c, y):
        y.put(0, word(*(p.vec(0, lanes) for p in (a, b, c)[: word.__code__.co_argcount])))

    given = dict(zip("abc", operands)) | {"y": np.zeros(lanes, out or TYPES[wide(dtype)])}
    for name in "abc":
        given.setdefault(name, np.zeros(lanes, TYPES[dtype]))
    pointers = dict.fromkeys("abc", dtype) | {"y": np.dtype(out).name if out else wide(dtype)}
    return both(text, pointers, nan_equal=True, **given)["y"]


# Elements, vectors, masks


@each_type
@each_width
def test_vec_and_put_move_every_number(dtype, lanes):
    def text(piece, slot, x, y):
        y.at(1).put(2, x.at(2).vec(1, lanes))

    x = numbers(dtype, lanes + 5)
    y = both(text, {"x": dtype, "y": dtype}, x=x, y=np.zeros(lanes + 5, TYPES[dtype]))["y"]
    assert_equal(y[3 : 3 + lanes], x[3 : 3 + lanes])
    assert not y[:3].any() and not y[3 + lanes :].any()


@each_type
@pytest.mark.parametrize("lanes", [4, 16])
def test_lanes_outside_a_mask_are_filled_and_their_memory_is_not_touched(dtype, lanes):
    def text(piece, slot, x, y, z, i, count, start):
        y.put(0, x.vec(i, lanes, count=count, start=start, fill=7))
        z.put(i, x.vec(i, lanes, count=count, start=start), count=count, start=start)

    run = compiled(text, {"x": dtype, "y": dtype, "z": dtype})
    for i in (-lanes, -1, 0, 3):
        for start in (-(2**40), 0, 1, lanes - 1):
            for count in (-3, 0, 1, lanes - 1, lanes, 2**40):
                x = numbers(dtype, lanes + 3, low=1)
                inside = [k for k in range(lanes) if start <= k < count]
                if not all(0 <= i + k < x.size for k in inside):
                    continue  # would touch memory outside
                zeros = np.zeros(lanes + 3, TYPES[dtype])
                results = both(
                    text,
                    {"x": dtype, "y": dtype, "z": dtype},
                    run=run,
                    x=x,
                    y=zeros[:lanes],
                    z=zeros,
                    i=i,
                    count=count,
                    start=start,
                )
                expected = np.full(lanes, 7, TYPES[dtype])
                expected[inside] = x[[i + k for k in inside]]
                assert_equal(results["y"], expected)
                assert np.count_nonzero(results["z"]) == len(inside)


@each_type
@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("stride", [1, 2, 3, -2])
def test_gather_and_scatter(dtype, lanes, stride):
    def text(piece, slot, x, y, z, i, stride, count, start):
        y.put(0, x.gather(i, stride, lanes, count=count, start=start, fill=9))
        z.scatter(i, stride, x.gather(i, stride, lanes, count=count), count)

    size = 3 * lanes + 4
    first = size - 2 if stride < 0 else 1
    for count, start in ((lanes, 0), (lanes - 1, 1), (1, 0), (0, 0), (-5, -5)):
        x = numbers(dtype, size, low=1)
        zeros = np.zeros(size, TYPES[dtype])
        given = dict(i=first, stride=stride, count=count, start=start)
        results = both(text, {"x": dtype, "y": dtype, "z": dtype}, x=x, y=zeros[:lanes], z=zeros, **given)
        expected = np.full(lanes, 9, TYPES[dtype])
        for k in range(max(start, 0), max(count, 0)):
            expected[k] = x[first + k * stride]
        assert_equal(results["y"], expected)
        assert np.count_nonzero(results["z"]) == max(count, 0)


@each_float
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_alternate_and_weave(dtype, lanes):
    def text(piece, slot, x, y, z, start, count):
        y.put(0, x.alternate(1, lanes))
        y.put(lanes, x.alternate(1, lanes, bits=bits(start, count)))
        for i, vector in enumerate((*x.both(1, lanes), *x.both(1, lanes, bits=bits(start, count)))):
            y.put((2 + i) * lanes, vector)
        z.weave(1, x.vec(1, lanes), x.vec(2, lanes), count=count)
        z.at(2 * lanes + 2).weave(0, x.vec(2, lanes), x.vec(1, lanes))

    pointers = {"x": dtype, "y": dtype, "z": dtype}
    run = compiled(text, pointers)
    for start, count in ((0, 2 * lanes), (1, 2 * lanes - 1), (2, 3), (3, 1), (-5, 100)):
        x, zeros = numbers(dtype, 2 * lanes + 1, low=1), np.zeros(6 * lanes, TYPES[dtype])
        given = dict(x=x, y=zeros, z=zeros[: 4 * lanes + 2], start=start, count=count)
        results = both(text, pointers, run=run, **given)
        inside = np.array([max(start, 0) <= k < count for k in range(2 * lanes)])
        some = np.where(inside, x[1:], 0)
        right = (x[1::2], some[::2], x[1::2], x[2::2], some[::2], some[1::2])
        assert_equal(results["y"], np.concatenate(right).astype(x.dtype))
        woven = np.stack([x[1 : lanes + 1], x[2 : lanes + 2]], axis=1).reshape(-1)
        assert_equal(results["z"][1 : 2 * lanes + 1], np.where(np.arange(2 * lanes) < count, woven, 0))
        assert_equal(results["z"][2 * lanes + 2 :: 2], woven[1::2])


@pytest.mark.parametrize("lanes", [4, 16])
def test_weave_rounds_as_put(lanes):
    def text(piece, slot, x, y, z):
        y.weave(0, x.vec(0, lanes), x.vec(lanes, lanes))
        for i in range(2):
            z.put(i * lanes, x.vec(i * lanes, lanes))

    rng, pointers = np.random.default_rng(0), {"x": "float32", "y": "bfloat16", "z": "bfloat16"}
    run = compiled(text, pointers)
    ties = np.arange(0x3F7F8000, 0x3F818000, 0x8000, np.uint32)
    for bits_ in (
        ties,
        rng.integers(0, 2**32, 4096, np.uint32),
        np.array([0x7FC00000, 0xFFC00000, 0x7FFF0000, 1, 0x7F7FFFFF]),
    ):
        x = np.resize(bits_.astype(np.uint32), -(-len(bits_) // (2 * lanes)) * 2 * lanes).view(np.float32)
        x = x[~np.isnan(x) | (x.view(np.uint32) & 0xFFFF == 0)]  # NaN of bfloat16 numbers
        for part in np.resize(x, (len(x) // (2 * lanes) + 1, 2 * lanes)):
            zeros = np.zeros(2 * lanes, BFLOAT16)
            results = run_compiled(text, pointers, run=run, x=part, y=zeros, z=zeros)
            assert_equal(results["y"].reshape(lanes, 2).T.reshape(-1), results["z"], nan_equal=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_a_mask_of_bits(dtype):
    def text(piece, slot, x, y, start, count, shift):
        y.put(0, x.vec(0, 8, bits=bits(start, count) >> shift))

    x = numbers(dtype, 8, low=1)
    for start, count, shift in ((0, 8, 0), (2, 5, 0), (3, 63, 4), (5, 2, 0), (-1, 100, 60), (10, 20, 8)):
        given = dict(start=start, count=count, shift=shift)
        y = both(text, {"x": dtype, "y": dtype}, x=x, y=np.zeros(8, TYPES[dtype]), **given)["y"]
        lanes = [k for k in range(8) if max(start, 0) <= k + shift < min(count, 63)]
        assert_equal(np.flatnonzero(y), np.array(lanes, int))


@each_type
def test_elements(dtype):
    def text(piece, slot, x, y, i):
        y[i] = x[i + 1] + x[0]
        y[0] = 3

    x = numbers(dtype, 5)
    y = both(text, {"x": dtype, "y": dtype}, x=x, y=np.zeros(5, TYPES[dtype]), i=2)["y"]
    assert y[2] == x[3] + x[0] and y[0] == 3


@pytest.mark.parametrize("dtype, by_integers", [("float16", False), ("float16", True), ("bfloat16", True)])
def test_half_types_are_rounded_to_nearest_even_and_nan_stays(dtype, by_integers, monkeypatch):
    """Every pattern of 32 bits with a given end, and every half number there and back."""
    if by_integers:
        monkeypatch.setattr(Machine, "halves", False)

    def text(piece, slot, x, y):
        y.put(0, x.vec(0, 16))

    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 4000, np.uint32)
    patterns[:1000] &= 0xFFFF8000  # half way between two neighbours
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 65504, 65520] * 2, np.float32)
    small = (rng.integers(-4100, 4100, 800) * 2.0**-26).astype(
        np.float32
    )  # about float16's smallest numbers, many ties
    values = np.concatenate([patterns.view(np.float32), special, small])
    run = compiled(text, {"x": "float32", "y": dtype})
    with np.errstate(all="ignore"):
        expected = values.astype(TYPES[dtype])
    for i in range(0, len(values) // 16 * 16, 16):
        y = np.zeros(16, TYPES[dtype])
        run(0, 0, values[i : i + 16].copy(), y)
        assert_equal(y, expected[i : i + 16], nan_equal=True)
    back = compiled(text, {"x": dtype, "y": "float32"})
    for chunk in np.arange(2**16, dtype=np.uint16).view(TYPES[dtype]).reshape(-1, 16)[::7]:
        y = np.zeros(16, np.float32)
        back(0, 0, chunk.copy(), y)
        with np.errstate(all="ignore"):
            assert_equal(y, chunk.astype(np.float32), nan_equal=True)


# Arithmetic


@each_type
@each_width
def test_arithmetic_of_vectors(dtype, lanes):
    a, b, c = (numbers(dtype, lanes, seed, high=9) for seed in range(3))
    wide_type = TYPES[wide(dtype)]
    x, y, z = (array.astype(wide_type) for array in (a, b, c))
    given = dict(dtype=dtype, lanes=lanes)
    assert_equal(on_vectors(lambda a, b: a + b, a, b, **given), x + y)
    assert_equal(on_vectors(lambda a, b: a - b, a, b, **given), x - y)
    assert_equal(on_vectors(lambda a, b: a * b, a, b, **given), x * y)
    assert_equal(on_vectors(lambda a: -a, a, **given), -x)
    assert_equal(on_vectors(lambda a: 2 * a + 1 - a * 0 + 0, a, **given), 2 * x + 1)
    assert_equal(on_vectors(lambda a: 5 - a, a, **given), 5 - x)
    if dtype in FLOATS:
        assert_equal(on_vectors(fma, a, b, c, **given), x * y + z)
        assert_equal(on_vectors(lambda a, b: a / (b + 1), a, b, **given), x / (y + 1))
        assert_equal(on_vectors(lambda a: pinned(a) + pinned(a), a, **given), x + x)
        assert_equal(on_vectors(root, a * a, **given), abs(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fma_is_rounded_once(dtype):
    epsilon = np.finfo(dtype).eps
    a, c = np.full(4, 1 + epsilon, dtype), np.full(4, -1, dtype)

    def text(piece, slot, a, c, y):
        y.put(0, fma(a.vec(0, 4), a.vec(0, 4), c.vec(0, 4)))

    y = np.zeros(4, dtype)
    compiled(text, {"a": dtype, "c": dtype, "y": dtype})(0, 0, a, c, y)
    assert_equal(y, np.full(4, 2 * epsilon + epsilon**2, dtype))


# Pairs of bfloat16

SMALLEST = 2.0**-126  # normal number


def brains(rng, size, low=-8, high=8):
    """bfloat16 numbers of many sizes, in float32."""
    numbers = rng.standard_normal(size) * 2.0 ** rng.integers(low, high, size)
    return numbers.astype(BFLOAT16).astype(np.float32)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_pairs_hold_two_numbers_each(lanes):
    def text(piece, slot, x, y, z, few, count):
        y.put(0, x.pairs(1, lanes))
        z.put(0, pair(x.vec(0, lanes), x.vec(lanes, lanes)))
        few.put(0, x.pairs(1, lanes, count=count))

    x = brains(np.random.default_rng(0), 2 * lanes + 1).astype(BFLOAT16)
    words = x.view(np.uint16).astype(np.uint32)
    zeros = {name: np.zeros(lanes, np.int32) for name in ("y", "z", "few")}
    pointers = {"x": "bfloat16"} | dict.fromkeys(zeros, "int32")
    for count in (-1, 0, 1, 5, 2 * lanes, 100):
        result = both(text, pointers, x=x, count=count, **zeros)
        assert_equal(result["y"].view(np.uint32), words[1::2] | words[2::2] << 16)
        assert_equal(result["z"].view(np.uint32), words[:lanes] | words[lanes:-1] << 16)
        some = np.where(np.arange(2 * lanes) < count, words[1:], 0).astype(np.uint32)
        assert_equal(result["few"].view(np.uint32), some[::2] | some[1::2] << 16)


def test_other_elements_in_the_same_memory():
    def text(piece, slot, x, y):
        y.put(0, x.at(2).as_("int32").vec(1, 4))

    x = np.arange(7, dtype=np.float32)
    y = both(text, {"x": "float32", "y": "int32"}, x=x, y=np.zeros(4, np.int32))["y"]
    assert_equal(y, x[3:].view(np.int32))


def one_dot(low, high, total):
    """``total + a.high * b.high + a.low * b.low`` in plain Python: rounded twice, to numbers of float32."""
    (a, b), (c, d) = low, high
    normal = lambda x: 0.0 if abs(x) < SMALLEST else x  # noqa: E731
    for x, y in ((c, d), (a, b)):
        total = normal(float(np.float32(normal(x) * normal(y) + normal(total))))
    return total


def test_a_dot_product_of_pairs_in_numpy():
    rng = np.random.default_rng(0)
    a, b, c, d = (brains(rng, 400) for _ in range(4))
    total = (rng.standard_normal(400) * 2.0 ** rng.integers(-20, 20, 400)).astype(np.float32)
    a[:9], d[20:30], total[40:50] = SMALLEST / 2, -SMALLEST / 4, SMALLEST / 8
    a[60:70], c[60:70] = 2.0**-100, 2.0**-80  # products that are not normal
    right = [one_dot((a[i], b[i]), (c[i], d[i]), float(total[i])) for i in range(400)]
    assert_equal(dot(pair(a, c), pair(b, d), total), np.array(right, np.float32))
    # The upper products first: 1 + 2**-24 is 1, and 3 * 2**-25 more are 1 + 2**-23; the other way it would be 1 + 2**-22
    small = pair(np.float32([3 * 2.0**-25]), np.float32([2.0**-24]))
    ones = pair(np.float32([1]), np.float32([1]))
    assert dot(small, ones, np.float32([1])) == 1 + 2.0**-23


@pytest.mark.skipif(not machine().dots, reason="a CPU without AVX512_BF16")
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_a_dot_product_of_pairs(lanes):
    """The instruction is what NumPy says: order and rounding of the two sums, numbers that are not normal, NaN, infinity."""

    def text(piece, slot, a, b, c, y):
        for i in loop(200):
            y.put(i * lanes, dot(a.vec(i * lanes, lanes), b.vec(i * lanes, lanes), c.vec(i * lanes, lanes)))

    pointers = {"a": "int32", "b": "int32", "c": "float32", "y": "float32"}
    run = compiled(text, pointers)
    rng, size = np.random.default_rng(lanes), 200 * lanes
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, SMALLEST, SMALLEST / 2, -SMALLEST / 128, 3.0e38, -3.0e38, 1.0]
    special = np.array(special, np.float32).astype(BFLOAT16).astype(np.float32)
    for low, high in ((-4, 4), (-70, -56)):
        a, b = (pair(brains(rng, size, low, high), brains(rng, size, low, high)) for _ in range(2))
        c = (rng.standard_normal(size) * 2.0 ** rng.integers(2 * low - 8, 2 * high, size)).astype(np.float32)
        both(text, pointers, run=run, a=a, b=b, c=c, y=np.zeros(size, np.float32))
    a, b = (pair(rng.choice(special, size), rng.choice(special, size)) for _ in range(2))
    both(text, pointers, run=run, nan_equal=True, a=a, b=b, c=rng.choice(special, size), y=np.zeros(size, np.float32))


def test_arithmetic_of_integers():
    def text(piece, slot, y, a, b):
        results = [
            a + b, a - b, 3 - a, a * b, -a, a // b, a % b, a // 1, minimum(a, b), maximum(a, b), minimum(a, 5), maximum(5, a),
            within(a, b), within(a, 7), within(3, a), pick(within(a, b), a, b), piece, slot, a >> 1, a & 6,
        ]  # fmt: skip
        for i, result in enumerate(results):
            y[i] = result

    run = compiled(text, {"y": "int64"})
    for a, b in ((0, 1), (7, 2), (2, 7), (2**40, 3), (12, 12)):
        both(text, {"y": "int64"}, run=run, y=np.zeros(20, np.int64), a=a, b=b, piece=5, slot=2)
    for a in (-1, -(2**40)):
        below = lambda piece, slot, y, a: y.__setitem__(0, within(a, 5) + minimum(a, 3) * 2 + maximum(a, 0))  # noqa: E731
        both(below, {"y": "int64"}, y=np.zeros(1, np.int64), a=a)


@each_float
@pytest.mark.parametrize("lanes", [4, 16])
def test_comparisons(dtype, lanes):
    special = np.array([0, 1, np.nan, np.inf, -np.inf, -0.0, 2, 1] * (lanes // 4), TYPES[dtype])
    a, b = special[:lanes], np.roll(special, 3)[:lanes]
    x, y = a.astype(np.float64), b.astype(np.float64)
    right = (x > y) | (np.isnan(x) & ~np.isnan(y))
    chosen = on_vectors(lambda a, b: select(beats(a, b), a, b), a, b, dtype=dtype, lanes=lanes)
    assert_equal(chosen.astype(np.float64), np.where(right, x, y), nan_equal=True)

    def text(piece, slot, x, y):
        y[0] = has_nan(x.vec(0, lanes))

    for array in (a, np.where(np.isnan(a), a.dtype.type(1), a)):
        y = both(text, {"x": dtype, "y": "int64"}, nan_equal=True, x=array, y=np.zeros(1, np.int64))["y"]
        assert y[0] == np.isnan(array).any()


def test_integer_lanes():
    def text(piece, slot, x, y, i):
        numbers = x.vec(0, 8)
        y.put(0, select(equal(numbers, i), whole(i + 1, 8), numbers * 2 + whole(1, 8)))

    x = np.arange(8, dtype=np.uint8)
    y = both(text, {"x": "uint8", "y": "int32"}, x=x, y=np.zeros(8, np.int32), i=3)["y"]
    assert_equal(y, np.array([1, 3, 5, 4, 9, 11, 13, 15], np.int32))


# Order of lanes


@each_type
@each_width
def test_shuffles(dtype, lanes):
    a, b = numbers(dtype, lanes, 1), numbers(dtype, lanes, 2)
    x, y = (array.astype(TYPES[wide(dtype)]) for array in (a, b))
    order = list(np.random.default_rng(lanes).integers(0, 2 * lanes, lanes))
    given = dict(dtype=dtype, lanes=lanes)
    assert_equal(on_vectors(lambda a, b: shuffle(a, b, order), a, b, **given), np.concatenate([x, y])[order])
    together = np.stack([x, y], axis=1).reshape(-1)
    for half in (0, 1):
        mixed = on_vectors(_interleaved(half, lanes), a, b, **given)
        assert_equal(mixed, together[half * lanes :][:lanes])
        apart = on_vectors(_apart(half, lanes), a, b, **given)
        assert_equal(apart, np.concatenate([x, y])[half::2])


def _interleaved(half, lanes):
    return lambda a, b: interleave([a, b], lanes)[half]


def _apart(half, lanes):
    return lambda a, b: deinterleave([a, b], lanes)[half]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_transpose(dtype, lanes):
    def text(piece, slot, x, y):
        for i, row in enumerate(transpose([x.vec(i * lanes, lanes) for i in range(lanes)])):
            y.put(i * lanes, row)

    x = numbers(dtype, lanes * lanes)
    y = both(text, {"x": dtype, "y": dtype}, x=x, y=np.zeros(lanes * lanes, TYPES[dtype]))["y"]
    assert_equal(y.reshape(lanes, lanes), x.reshape(lanes, lanes).T)


@each_float
@each_width
def test_splat_zero_and_full(dtype, lanes):
    def text(piece, slot, x, y):
        y.put(0, splat(x[1], lanes))
        y.put(lanes, y.zero(lanes))
        y.put(2 * lanes, y.full(lanes, 2.5))

    x = numbers(dtype, 2)
    y = both(text, {"x": dtype, "y": dtype}, x=x, y=np.ones(3 * lanes, TYPES[dtype]))["y"]
    assert_equal(y, np.repeat(np.array([x[1], 0, 2.5]), lanes).astype(TYPES[dtype]))


# Time


@each_width
@each_float
def test_stream_writes_what_put_writes(dtype, lanes):
    def text(piece, slot, x, y):
        y.stream(lanes, x.vec(0, lanes))
        fence()

    x = numbers(dtype, lanes)
    for run in (compiled(text, {"x": dtype, "y": dtype}), None):
        y = aligned((3 * lanes,), TYPES[dtype])
        y[...] = 77
        if run is None:
            y = run_plain(text, ["x", "y"], x=x, y=y)["y"]
        else:
            run(0, 0, x, y)
        assert_equal(y, np.concatenate([y[:lanes] * 0 + 77, x, y[:lanes] * 0 + 77]).astype(y.dtype))


def test_loops_and_variables():
    def text(piece, slot, x, y, n, m):
        total, rounds = Variable(x[0] * 0.0), Variable(0)
        for i in loop(n):
            for j in loop(i + m):
                total.set(total.get() + x[j])
                rounds.set(rounds.get() + 1)
            for _ in loop(0):
                total.set(total.get() * 1e9)
        y[0] = total.get()
        x[0] = 7
        x.prefetch(0)
        y[1] = total.get()

    run = compiled(text, {"x": "float64", "y": "float64"})
    for n, m in ((0, 0), (1, 1), (5, 2), (-3, 4), (3, -1)):
        x, y = np.arange(1.0, 12.0), np.zeros(2)
        result = both(text, {"x": "float64", "y": "float64"}, run=run, x=x, y=y, n=n, m=m)
        assert result["y"][0] == sum(sum(range(1, max(0, i + m) + 1)) for i in range(n))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda n: 1 if n else 2,
        lambda n: n and 3,
        lambda n: not n,
        lambda n: n == 0,
        lambda n: n != 0,
        lambda n: 1 if n > 0 else 2,
        lambda n: [n for _ in range(n)],
        lambda n: min(n, 3),
        lambda n: [1, 2, 3][n],
        lambda n: bool(n),
        lambda n: int(n),
    ],
)
def test_what_is_known_at_run_time_only_is_refused_as_a_condition(misuse):
    def text(piece, slot, y, n):
        misuse(n)

    with pytest.raises(TypeError):
        compiled(text, {"y": "int64"})


def test_the_refusal_says_what_to_use_instead():
    def text(piece, slot, y, n):
        if n:
            y[0] = 1

    with pytest.raises(TypeError, match=r"use loop\(n\) with n = 0 or 1, or select\(\), instead of if"):
        compiled(text, {"y": "int64"})


def test_the_twin_refuses_to_touch_what_lies_outside():
    def text(piece, slot, x, y):
        y.put(0, x.vec(1, 4))

    with pytest.raises(IndexError, match=r"touches elements 1 \.\. 4 of an array of 4"):
        run_plain(text, {"x": "float32", "y": "float32"}, x=np.zeros(4, np.float32), y=np.zeros(4, np.float32))


def test_tracing_ends_where_it_began():
    """Also when a text fails: the words work on NumPy again."""

    def text(piece, slot, y):
        raise RuntimeError("in a text")

    with pytest.raises(RuntimeError, match="in a text"):
        compiled(text, {"y": "int64"})
    assert not emit.tracing
    assert_same_bits(whole(3, 2), np.array([3, 3], np.int32))
