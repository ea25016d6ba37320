"""What the passes of DownConv are for a shape: which jobs, how they are cut, and how the weights lie for them.

Forward is one job where there are segments enough to be its pieces and few channels; else two, one for each product.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine.downconv.down_kernels import compress, lay_rows, multiply, squeeze
from konv.engine.downconv.down_outer import add_rows, stretch, sum_products
from konv.engine.launch import Job, address
from konv.engine.machine import machine, wide_type
from konv.engine.memory import aligned
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import width

PIECE_BYTES = 768 << 10  # of x, in a piece of the forward pass: the next one's first rows were asked for by nobody
PIECE_PRODUCTS = 64 << 10
PIECES = 16  # wanted where there is the work for them; and most parts of dw1, each a sum by itself
SUMS_BYTES = 32 << 20  # of all parts of dw1
AHEAD_BYTES = (
    64 << 10
)  # of x, that backward asks for ahead at most: .9 to 1 of the time if rows are short, else up to 1.05
PACKED = 64  # multiply-adds that take as long as a number of w1 that is laid out, and read from memory for it
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


@dataclass(frozen=True)
class Rows:
    """w1 as ``[block of channels][k // lanes][channel][lane]``, zeros where it has no number."""

    job: Job
    shape: tuple[int, ...]
    dtype: str
    filled: bool

    def laid(self, w: np.ndarray) -> np.ndarray:
        """These rows of w, a new array."""
        rows = aligned(self.shape, self.dtype)
        if not self.filled:
            rows[...] = 0
        self.job.run(width(self.job.pieces, PACKED * w.size), w=address(w), rows=address(rows))
        return rows


@dataclass(frozen=True)
class Product:
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
        return laid, lengthened(bias, self.pitch, shape)

    def run(
        self, a: np.ndarray, columns: np.ndarray, bias: np.ndarray | None, hidden: np.ndarray, out: np.ndarray, shape: Shape
    ) -> None:  # fmt: skip
        """Write the product into ``out``."""
        laid, bias = self.laid(columns, bias, shape)
        self.job.run(
            width(self.job.pieces, self.work), a=address(a), b=address(laid), bias=address(bias), hidden=address(hidden),
            out=address(out),
        )  # fmt: skip


@dataclass(frozen=True)
class Forward:
    """The first product by a ``job``, which computes the second ``together`` with it or not, or else by ``first``."""

    job: Job | None
    together: bool
    rows: Rows
    first: Product
    second: Product


@dataclass(frozen=True)
class Backward:
    """Its jobs, and how many numbers are in the sums of a part: in a channel's, and in all."""

    multiply: Product
    rows: Rows
    stretch: Job
    size: int
    sums_size: int


@functools.lru_cache(maxsize=256)
def forward_plan(shape: Shape) -> Forward:
    """The jobs of the forward pass."""
    lanes, sums = machine().lanes(shape.dtype), 24 if machine().registers >= 32 else 8
    tile = min(range(min(5, lanes), 0, -1), key=lambda n: -(-shape.channels // n) * n)
    rows = min(8, sums // tile)
    size = -(-shape.size // lanes) * lanes
    blocks = -(-shape.channels // tile)
    first = _multiply(shape, shape.size, shape.channels, shape.dtype, "rectify")
    second = _multiply(shape, shape.segment_size, shape.outputs, shape.dtype, "")
    laid = _rows(shape, tile, size)
    if size // lanes * blocks * tile + ADD_LANES * blocks >= shape.size * -(-shape.channels // lanes):
        return Forward(None, False, laid, first, second)
    parameters = shape.dtype, lanes, rows, tile, -(-rows // blocks)
    numbers = dict(channels=shape.channels, block_size=size * tile, **_places(shape))
    wanted = max(rows, min(PIECE_BYTES // (shape.size * ITEMSIZE[shape.dtype]), shape.rows // PIECES))
    segments, even = shape.batch * shape.segments, rows // math.gcd(rows, shape.k2)  # segments of whole tiles
    if shape.k2 > wanted and segments < PIECES:
        chunk = wanted // rows * rows
        job = Job(squeeze(*parameters), -(-shape.rows // chunk), chunk=chunk, all_rows=shape.rows, **numbers)
        return Forward(job, False, laid, first, second)
    chunk = wanted // shape.k2 // even * even or max(1, wanted // shape.k2)
    job = Job(
        compress(*parameters, second.rows, second.vectors), -(-segments // chunk), chunk=chunk, all_segments=segments,
        segments=shape.segments, k2=shape.k2, padding=shape.padding, outputs=shape.outputs, pitch=second.pitch, **numbers,
    )  # fmt: skip
    return Forward(job, True, laid, first, second)


@functools.lru_cache(maxsize=256)
def backward_plan(shape: Shape, need_x: bool, need_w: bool, past: bool) -> Backward:
    """The jobs of dx, if needed, written ``past`` the caches or not, and of the sums of dw1 and db1, if needed."""
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
    return Backward(multiply, _rows(shape, shape.channels, size), job, size, sums_size)


def _places(shape: Shape) -> dict[str, int]:
    """Where rows lie in x and in the hidden numbers."""
    return dict(
        windows=shape.windows, sequence=shape.length * shape.features, size=shape.size,
        hidden_pitch=shape.segments * shape.segment_size, hidden_first=shape.padding * shape.channels,
    )  # fmt: skip


def _multiply(shape: Shape, reduction: int, size: int, out_dtype: str, then: str) -> Product:
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
    return Product(job, rows, vectors, reduction, size, pitch, all_rows * reduction * size)


@functools.lru_cache(maxsize=256)
def second_plan(shape: Shape) -> tuple[Job, int]:
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


@functools.lru_cache(maxsize=256)
def _rows(shape: Shape, tile: int, size: int) -> Rows:
    blocks, lanes = -(-shape.channels // tile), machine().lanes(shape.dtype)
    job = Job(
        lay_rows(shape.dtype, lanes, _even(shape)), shape.channels, features=shape.features, k1=shape.k1, tile=tile,
        block_size=size * tile,
    )  # fmt: skip
    filled = size == shape.size and blocks * tile == shape.channels
    return Rows(job, (blocks, size // lanes, tile, lanes), wide_type(shape.dtype), filled)


def _even(shape: Shape) -> bool:
    """Whether blocks of w1 are transposed between its layouts; few places in a window would leave most lanes empty."""
    lanes = machine().lanes(shape.dtype)
    return shape.features % lanes == 0 and 2 * shape.k1 >= lanes


@functools.lru_cache(maxsize=256)
def add_plan(shape: Shape, parts: int, sums_size: int) -> Job:
    """The job of dw1, from the sums of so many parts."""
    lanes, even = machine().lanes(shape.dtype), _even(shape)
    return Job(
        add_rows(shape.dtype, lanes, even), shape.features // lanes if even else shape.channels, features=shape.features,
        k1=shape.k1, parts=parts, channels=shape.channels, sums_size=sums_size,
    )  # fmt: skip


def lengthened(b: np.ndarray | None, size: int, shape: Shape) -> np.ndarray:
    """b in the type of sums, with zeros up to ``size`` numbers; all of them where b is None."""
    if b is not None and len(b) == size:
        return np.ascontiguousarray(b, wide_type(shape.dtype))
    bias = np.zeros(size, wide_type(shape.dtype))
    if b is not None:
        bias[: len(b)] = b
    return bias
