"""DownConv, both convolutions and the ReLU between them: jobs of :mod:`konv.engine.down_kernels` and :mod:`.down_outer`.

Forward is one job: it reads x once and writes y; between them lie the hidden numbers, few where a window has many cells.
Backward needs those, x and the weights; it reads x once more and writes dx once.

Lost: w1 kept in L1 by cutting k, with sums put aside (1.2 times as long).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine.down_kernels import compress, lay_rows, multiply, squeeze
from konv.engine.down_outer import add_rows, stretch, sum_products
from konv.engine.launch import Job, address
from konv.engine.machine import machine, wide_type
from konv.engine.memory import aligned
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import width

PIECE_BYTES = 768 << 10  # of x, in a piece of the forward pass: the next one's first rows were asked for by nobody
PIECE_PRODUCTS = 64 << 10
PIECES = 16  # wanted where there is the work for them; and most parts of dw1, each a sum by itself
SUMS_BYTES = 32 << 20  # of all parts of dw1
PAST_BYTES = 8 << 20  # a gradient larger than this would drive from the caches what is needed sooner
AHEAD_BYTES = (
    64 << 10
)  # backward asks for so much of x at most before it is read: .93 of the time where rows are short, else 1.04
PACKED = 64  # multiply-adds that take as long as a number of w1 that is laid out, and read from memory for it
ADDED = 8  # and as one of the sums that are added
ADD_LANES = 20  # multiply-adds that take as long as adding up the lanes of a row's sums
MOST_CHANNELS = 64  # with more, or larger weights, the first product is large enough for the tile of a general one
MOST_BYTES = 2 << 20


@dataclass(frozen=True)
class Shape:
    """x (batch, length, features) -> hidden (batch, segments * k2, channels) -> y (batch, segments, outputs).

    Attributes
    ----------
    k1, k2 : places in a window, windows in a segment
    padding : windows of zeros before the first; behind the last there are as many as the segments need
    dtype : name of the element type
    """

    batch: int
    length: int
    features: int
    k1: int
    channels: int
    k2: int
    segments: int
    padding: int
    outputs: int
    dtype: str

    @property
    def windows(self) -> int:
        """Windows of a sequence that some segment reads."""
        return max(0, min(self.length // self.k1, self.segments * self.k2 - self.padding))

    @property
    def rows(self) -> int:
        """Windows of all sequences."""
        return self.batch * self.windows

    @property
    def size(self) -> int:
        """Numbers in a window."""
        return self.k1 * self.features

    @property
    def segment_size(self) -> int:
        """Hidden numbers in a segment."""
        return self.k2 * self.channels

    @property
    def first_products(self) -> int:
        """Multiply-adds of the first convolution."""
        return self.rows * self.size * self.channels

    @property
    def second_products(self) -> int:
        """Multiply-adds of the second convolution."""
        return self.batch * self.segments * self.segment_size * self.outputs


@functools.lru_cache(maxsize=256)
def declines(shape: Shape) -> str | None:
    """Why this file does not compute a shape, or None if it does."""
    if not machine().fused:
        return "the CPU has no fused multiply-add"
    if shape.channels > MOST_CHANNELS:
        return f"{shape.channels} channels between the convolutions; it takes up to {MOST_CHANNELS}"
    if (size := shape.channels * shape.size * ITEMSIZE[wide_type(shape.dtype)]) > MOST_BYTES:
        return f"w1 of {size:,} bytes; every window reads all of it, it takes {MOST_BYTES:,} at most"
    return None


def forward(
    x: np.ndarray, w1: np.ndarray, b1: np.ndarray | None, w2: np.ndarray, b2: np.ndarray | None, shape: Shape,
    y: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Write the result into y and return the hidden numbers, (batch, segments * k2, channels), zeros where padding is."""
    plan = _forward(shape)
    hidden = np.empty((shape.batch, shape.segments * shape.k2, shape.channels), x.dtype)
    end = shape.padding + shape.windows
    if shape.padding:
        hidden[:, : shape.padding] = 0
    if end < shape.segments * shape.k2:
        hidden[:, end:] = 0
    if not shape.batch:
        return hidden
    if plan.job is None:
        plan.first.run(x, w1.transpose(2, 1, 0), b1, hidden, hidden, shape)
    else:
        rows, bias = plan.rows.laid(w1), _lengthened(b1, shape.channels, shape)
        pointers = dict(x=address(x), w1=address(rows), b1=address(bias), hidden=address(hidden))
        if plan.together:
            columns, last_bias = plan.second.laid(w2.transpose(2, 1, 0), b2, shape)
            pointers |= dict(w2=address(columns), b2=address(last_bias), y=address(y))
        plan.job.run(width(plan.job.pieces, shape.first_products), **pointers)
    if not plan.together:
        plan.second.run(hidden, w2.transpose(2, 1, 0), b2, hidden, y, shape)
    return hidden


def empty_gradient(x: np.ndarray) -> np.ndarray:
    """An uninitialised array like x, for its gradient."""
    return aligned(x.shape, x.dtype)


def backward(
    dy: np.ndarray, x: np.ndarray, hidden: np.ndarray, w1: np.ndarray, w2: np.ndarray, shape: Shape,
    dx: np.ndarray | None, first: bool = True, second: bool = True,
) -> tuple[np.ndarray | None, ...]:  # fmt: skip
    """Write dL/dx into ``dx`` (None where it is not needed); return (dw1, db1, dw2, db2).

    ``first``, ``second``: whether the gradients of the first and of the second convolution are needed; else they are None.
    """
    dw1, db1, dw2, db2 = None, None, None, None
    if second:
        dw2, db2 = _second_gradients(dy, hidden, shape)
    if dx is not None:
        dx[:, shape.windows * shape.k1 :] = 0
    if dx is not None or first:
        plan = _backward(shape, dx is not None, first, dx is not None and _past(dx, shape))
        if shape.rows:
            sums = _first_sums(dy, x, hidden, w1, w2, shape, dx, plan)
        else:
            sums = np.zeros((1, plan.sums_size), wide_type(shape.dtype))
        if first:
            dw1 = np.empty((shape.channels, shape.features, shape.k1), x.dtype)
            job = _add(shape, len(sums), plan.sums_size)
            job.run(width(job.pieces, ADDED * sums.size), sums=address(sums), dw=address(dw1))
            db1 = sums[:, plan.size * shape.channels :][:, : shape.channels].sum(axis=0).astype(x.dtype)
    return dw1, db1, dw2, db2


def _first_sums(
    dy: np.ndarray, x: np.ndarray, hidden: np.ndarray, w1: np.ndarray, w2: np.ndarray, shape: Shape,
    dx: np.ndarray | None, plan: _Backward,
) -> np.ndarray:  # fmt: skip
    """Write ``dx``, and return the sums of dw1 and db1 as the kernel lays them."""
    wide = wide_type(shape.dtype)
    dh = np.empty((shape.batch * shape.segments, shape.segment_size), wide)
    plan.multiply.run(dy, w2.transpose(0, 2, 1), None, hidden, dh, shape)
    rows, sums = plan.rows.laid(w1), aligned((plan.stretch.pieces, plan.sums_size), wide)
    plan.stretch.run(
        width(plan.stretch.pieces, 2 * shape.first_products), x=address(x), dh=address(dh), w1=address(rows),
        dx=address(x if dx is None else dx), sums=address(sums),
    )  # fmt: skip
    return sums


def _second_gradients(dy: np.ndarray, hidden: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    job, parts = _second(shape)
    sums = np.empty((parts, shape.segment_size + 1, shape.outputs), wide_type(shape.dtype))
    if shape.batch:
        job.run(width(job.pieces, shape.second_products), a=address(hidden), b=address(dy), sums=address(sums))
    else:
        sums[...] = 0
    total, dw2 = (
        sums.sum(axis=0) if parts > 1 else sums[0],
        np.empty((shape.outputs, shape.channels, shape.k2), dy.dtype),
    )
    dw2[...] = total[:-1].reshape(shape.k2, shape.channels, shape.outputs).transpose(2, 1, 0)
    return dw2, total[-1].astype(dy.dtype)


@dataclass(frozen=True)
class _Rows:
    """w1 as ``[block of channels][k // lanes][channel][lane]``, zeros where it has no number."""

    job: Job
    shape: tuple[int, ...]
    dtype: str
    filled: bool

    def laid(self, w: np.ndarray) -> np.ndarray:
        rows = aligned(self.shape, self.dtype)
        if not self.filled:
            rows[...] = 0
        self.job.run(width(self.job.pieces, PACKED * w.size), w=address(w), rows=address(rows))
        return rows


@dataclass(frozen=True)
class _Product:
    """A product of rows with columns that lie together."""

    job: Job
    rows: int
    vectors: int
    reduction: int
    size: int
    pitch: int
    work: int

    def laid(self, columns: np.ndarray, bias: np.ndarray | None, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """The columns, of any shape whose numbers are ``reduction`` rows of ``size``, and the bias, as wide as the tiles."""
        laid = aligned((self.reduction, self.pitch), wide_type(shape.dtype))
        laid[:, : self.size].reshape(columns.shape)[...] = columns
        if self.pitch > self.size:
            laid[:, self.size :] = 0
        return laid, _lengthened(bias, self.pitch, shape)

    def run(
        self, a: np.ndarray, columns: np.ndarray, bias: np.ndarray | None, hidden: np.ndarray, out: np.ndarray, shape: Shape
    ) -> None:  # fmt: skip
        laid, bias = self.laid(columns, bias, shape)
        self.job.run(
            width(self.job.pieces, self.work), a=address(a), b=address(laid), bias=address(bias), hidden=address(hidden),
            out=address(out),
        )  # fmt: skip


@dataclass(frozen=True)
class _Forward:
    """The first product by a ``job``, which computes the second ``together`` with it or not, or else by ``first``."""

    job: Job | None
    together: bool
    rows: _Rows
    first: _Product
    second: _Product


@dataclass(frozen=True)
class _Backward:
    """Its jobs, and how many numbers are in the sums of a part: in a channel's, and in all."""

    multiply: _Product
    rows: _Rows
    stretch: Job
    size: int
    sums_size: int


@functools.lru_cache(maxsize=256)
def _forward(shape: Shape) -> _Forward:
    lanes, sums = machine().lanes(shape.dtype), 24 if machine().registers >= 32 else 8
    tile = min(range(min(5, lanes), 0, -1), key=lambda n: -(-shape.channels // n) * n)
    rows = min(8, sums // tile)
    size = -(-shape.size // lanes) * lanes
    blocks = -(-shape.channels // tile)
    first = _multiply(shape, shape.size, shape.channels, shape.dtype, "rectify")
    second = _multiply(shape, shape.segment_size, shape.outputs, shape.dtype, "")
    laid = _rows(shape, tile, size)
    if size // lanes * blocks * tile + ADD_LANES * blocks >= shape.size * -(-shape.channels // lanes):
        return _Forward(None, False, laid, first, second)
    parameters = shape.dtype, lanes, rows, tile, -(-rows // blocks)
    numbers = dict(channels=shape.channels, block_size=size * tile, **_places(shape))
    wanted = max(rows, min(PIECE_BYTES // (shape.size * ITEMSIZE[shape.dtype]), shape.rows // PIECES))
    segments, even = shape.batch * shape.segments, rows // math.gcd(rows, shape.k2)  # segments of whole tiles
    if shape.k2 > wanted and segments < PIECES:
        chunk = wanted // rows * rows
        job = Job(squeeze(*parameters), -(-shape.rows // chunk), chunk=chunk, all_rows=shape.rows, **numbers)
        return _Forward(job, False, laid, first, second)
    chunk = wanted // shape.k2 // even * even or max(1, wanted // shape.k2)
    job = Job(
        compress(*parameters, second.rows, second.vectors), -(-segments // chunk), chunk=chunk, all_segments=segments,
        segments=shape.segments, k2=shape.k2, padding=shape.padding, outputs=shape.outputs, pitch=second.pitch, **numbers,
    )  # fmt: skip
    return _Forward(job, True, laid, first, second)


@functools.lru_cache(maxsize=256)
def _backward(shape: Shape, need_x: bool, need_w: bool, past: bool) -> _Backward:
    wide, lanes, many = wide_type(shape.dtype), machine().lanes(shape.dtype), machine().registers >= 32
    most = 8 if many else 4
    kept = shape.channels if shape.channels <= most and need_x and need_w else 0
    vectors = 1 if 2 * kept > most else 2
    size = -(-shape.size // (lanes * vectors)) * lanes * vectors
    sums_size = size * shape.channels + -(-shape.channels // lanes) * lanes
    parts = max(1, min(PIECES, shape.rows // most, SUMS_BYTES // (sums_size * ITEMSIZE[wide])))
    ahead = most * shape.size * ITEMSIZE[shape.dtype] <= AHEAD_BYTES
    multiply = _multiply(shape, shape.outputs, shape.segment_size, wide, "gate")
    job = Job(
        stretch(shape.dtype, lanes, most, vectors, kept, need_x, need_w, past, ahead), parts, parts=parts,
        channels=shape.channels, sums_at=size * shape.channels, sums_size=sums_size, all_rows=shape.rows, **_places(shape),
    )  # fmt: skip
    return _Backward(multiply, _rows(shape, shape.channels, size), job, size, sums_size)


def _places(shape: Shape) -> dict[str, int]:
    """Where rows lie in x and in the hidden numbers."""
    return dict(
        windows=shape.windows, sequence=shape.length * shape.features, size=shape.size,
        hidden_pitch=shape.segments * shape.segment_size, hidden_first=shape.padding * shape.channels,
    )  # fmt: skip


def _multiply(shape: Shape, reduction: int, size: int, out_dtype: str, then: str) -> _Product:
    """The job of ``out = a b``: to "rectify", a row for each window; else one for each segment."""
    lanes, (most_rows, most) = machine().lanes(shape.dtype), (12, 4) if machine().registers >= 32 else (6, 2)
    vectors = _vectors(size, lanes, most)
    rows = min(most_rows, 2 * most_rows // vectors)
    pitch = -(-size // (lanes * vectors)) * lanes * vectors
    if then == "rectify":
        sequence, windows, out_pitch = shape.length * shape.features, shape.windows, shape.segments * shape.segment_size
    else:
        sequence, windows, out_pitch = shape.segments * reduction, shape.segments, shape.segments * size
    all_rows = shape.batch * windows
    chunk = _chunk(all_rows, PIECE_PRODUCTS // (reduction * pitch), rows)
    job = Job(
        multiply(shape.dtype, out_dtype, lanes, rows, vectors, then), -(-all_rows // chunk), all_rows=all_rows,
        chunk=chunk, windows=windows, sequence=sequence, reduction=reduction, out_pitch=out_pitch,
        out_first=shape.padding * shape.channels if then == "rectify" else 0, size=size, pitch=pitch,
    )  # fmt: skip
    return _Product(job, rows, vectors, reduction, size, pitch, all_rows * reduction * size)


@functools.lru_cache(maxsize=256)
def _second(shape: Shape) -> tuple[Job, int]:
    """The job of the second convolution's gradients, and how many parts its sums have."""
    lanes, (rows, most) = machine().lanes(shape.dtype), (4, 4) if machine().registers >= 32 else (3, 2)
    vectors = _vectors(shape.outputs, lanes, most)
    tiles, segments = -(-shape.segment_size // rows), shape.batch * shape.segments
    parts = max(1, min(-(-PIECES // tiles), segments // 64))
    job = Job(
        sum_products(shape.dtype, lanes, rows, vectors), parts * tiles, all_rows=segments,
        parts=parts, tiles=tiles, reduction=shape.segment_size, size=shape.outputs,
    )  # fmt: skip
    return job, parts


def _chunk(rows: int, wanted: int, tile: int) -> int:
    """Rows of a piece: whole tiles, about as many as wanted, or so many that there are PIECES."""
    return max(1, min(wanted, rows // PIECES) // tile) * tile


def _vectors(size: int, lanes: int, most: int) -> int:
    """Vectors of a tile: those that cover ``size`` numbers with the fewest left over."""
    return min(range(most, 0, -1), key=lambda n: -(-size // (lanes * n)) * n)


def _past(dx: np.ndarray, shape: Shape) -> bool:
    """Whether dx is written past the caches: it is large, and every vector of it begins where a line does."""
    vector = machine().lanes(shape.dtype) * dx.itemsize
    apart = (shape.size * dx.itemsize, shape.length * shape.features * dx.itemsize, address(dx))
    return dx.nbytes >= PAST_BYTES and not any(place % vector for place in apart)


@functools.lru_cache(maxsize=256)
def _rows(shape: Shape, tile: int, size: int) -> _Rows:
    blocks, lanes = -(-shape.channels // tile), machine().lanes(shape.dtype)
    job = Job(
        lay_rows(shape.dtype, lanes, _even(shape)), shape.channels, features=shape.features, k1=shape.k1, tile=tile,
        block_size=size * tile,
    )  # fmt: skip
    filled = size == shape.size and blocks * tile == shape.channels
    return _Rows(job, (blocks, size // lanes, tile, lanes), wide_type(shape.dtype), filled)


def _even(shape: Shape) -> bool:
    """Whether blocks of w1 are transposed between its layouts; few places in a window would leave most lanes empty."""
    lanes = machine().lanes(shape.dtype)
    return shape.features % lanes == 0 and 2 * shape.k1 >= lanes


@functools.lru_cache(maxsize=256)
def _add(shape: Shape, parts: int, sums_size: int) -> Job:
    return Job(
        add_rows(shape.dtype, machine().lanes(shape.dtype), _even(shape)), shape.channels, features=shape.features, k1=shape.k1,
        parts=parts, channels=shape.channels, sums_size=sums_size,
    )  # fmt: skip


def _lengthened(b: np.ndarray | None, size: int, shape: Shape) -> np.ndarray:
    """b in the type of sums, with zeros up to ``size`` numbers; all of them where b is None."""
    if b is not None and len(b) == size:
        return np.ascontiguousarray(b, wide_type(shape.dtype))
    bias = np.zeros(size, wide_type(shape.dtype))
    if b is not None:
        bias[: len(b)] = b
    return bias
