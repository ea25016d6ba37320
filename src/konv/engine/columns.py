"""The algorithm that always says yes: windows laid out as columns, a block at a time, times the weights (BLAS).

The textbook's im2col matrix holds every cell ``prod(kernel)`` times, at once. Here it is made in blocks of at most
``BLOCK_BYTES``: whole samples where they are small, rows of one sample where they are large. One matrix product belongs
to one sample, so a sample's result does not depend on the batch around it. Half types are widened to float32 as they
are copied, and rounded once, on the way out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from konv.arrays import accumulator
from konv.engine import roofline
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "columns"
BLOCK_BYTES = 8 << 20  # 2-32 MiB are equally fast on the layers of the book and of ResNet; 1 and 64 MiB are slower


def silent(function: Callable[..., None]) -> Callable[..., None]:
    """Nothing is said of infinities, NaN and overflow: kernels are silent, too."""

    @functools.wraps(function)
    def told(*arrays: Any) -> None:
        with np.errstate(all="ignore"):
            function(*arrays)

    return told


def declines(problem: Problem) -> str | None:
    """Never."""
    return None


def workspace(problem: Problem) -> int:
    """Bytes of the padded block, of the columns, of one product, and of what is copied of w and dy."""
    g = problem.geometry
    wide, half = (8 if problem.dtype == "float64" else 4), problem.dtype in ("float16", "bfloat16")
    samples, rows = _block(g, wide)
    positions = samples * rows * math.prod(g.output[1:])
    cells = samples * g.channels * math.prod(g.padded) + g.channels * math.prod(g.kernel) * positions
    weights, block = math.prod(g.w_shape), g.filters * positions
    copied = block if half or rows < g.output[0] else 0  # dy, where it has to be brought together
    cells += {
        "forward": block + weights * half,
        "input_gradient": copied + weights * half,
        "weight_gradient": copied + 2 * weights,
    }[problem.kind]
    return wide * cells


@silent
def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """``out[n] = w @ columns(x[n]) + b``, x (N, C, *spatial), w (F, C // groups, *kernel), out (N, F, *output)."""
    dtype = accumulator(x.dtype)
    weights = _weight_matrix(w, g, dtype)
    bias = None if b is None else b.astype(dtype, copy=False).reshape(-1, *[1] * g.axes)
    columns, product = _Buffer(dtype), _Buffer(dtype)
    for samples, padded in _padded_samples(x, g, dtype):
        for rows, col in _column_blocks(padded, g, columns):
            y = product.array((len(padded), g.groups, g.filters // g.groups, col.shape[-1]))
            np.matmul(weights, col, out=y)
            y = y.reshape(len(padded), g.filters, -1, *g.output[1:])
            if bias is not None:
                y += bias
            out[samples, :, rows] = y


@silent
def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """``dcol = w.T @ dy[n]``, each row of it added to the cells it came from."""
    dtype = accumulator(dy.dtype)
    weights = _weight_matrix(w, g, dtype).swapaxes(-1, -2)
    count, row_count = _block(g, dtype.itemsize)
    padded_buffer, product = _Buffer(dtype), _Buffer(dtype)
    for start in range(0, g.batch, count):
        upstream = dy[start : start + count]
        padded = padded_buffer.array((len(upstream), g.channels, *g.padded))
        padded[...] = 0
        for row in range(0, g.output[0], row_count):
            part = upstream[:, :, row : row + row_count]
            rows = part.shape[2]
            dcol = product.array((len(part), g.groups, weights.shape[-2], rows * math.prod(g.output[1:])))
            np.matmul(weights, _by_group(part, g, dtype), out=dcol)
            dcol = dcol.reshape(len(part), g.channels, *g.kernel, rows, *g.output[1:])
            for k in np.ndindex(*g.kernel):
                starts = [k[0] * g.dilation[0] + row * g.stride[0], *(i * d for i, d in zip(k[1:], g.dilation[1:]))]
                spans = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, (rows, *g.output[1:]), g.stride)]
                padded[:, :, *spans] += dcol[:, :, *k]
        out[start : start + count] = padded[:, :, *_inside(g)]


@silent
def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """``dw = sum over n of dy[n] @ columns(x[n]).T``, in the order of the samples."""
    dtype = accumulator(x.dtype)
    total = np.zeros((g.groups, g.filters // g.groups, math.prod(g.w_shape[1:])), dtype)
    columns, product = _Buffer(dtype), np.empty_like(total)
    for samples, padded in _padded_samples(x, g, dtype):
        for rows, col in _column_blocks(padded, g, columns):
            for upstream, matrix in zip(_by_group(dy[samples, :, rows], g, dtype), col):
                np.matmul(upstream, matrix.swapaxes(-1, -2), out=product)
                total += product
    out[...] = total.reshape(g.w_shape)


class _Buffer:
    """Memory that is used again for each block: fresh memory costs more than the product that is written to it."""

    def __init__(self, dtype: np.dtype):
        self.flat = np.empty(0, dtype)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """An uninitialised array of ``shape``; the one before is gone."""
        size = math.prod(shape)
        if size > self.flat.size:
            self.flat = np.empty(size, self.flat.dtype)
        return self.flat[:size].reshape(shape)


def _block(g: Geometry, itemsize: int) -> tuple[int, int]:
    """How many samples, and how many rows of the first output axis, are laid out at once."""
    row_bytes = itemsize * g.channels * math.prod(g.kernel) * math.prod(g.output[1:])
    rows = max(1, min(g.output[0], BLOCK_BYTES // row_bytes))
    sample_bytes = row_bytes * rows + itemsize * g.channels * math.prod(g.padded)
    samples = 1 if rows < g.output[0] else max(1, min(g.batch, BLOCK_BYTES // sample_bytes))
    return samples, rows


def _inside(g: Geometry) -> tuple[slice, ...]:
    """The spatial slices that leave the padding out."""
    return tuple(slice(low, low + n) for n, (low, _) in zip(g.spatial, g.padding))


def _padded_samples(x: np.ndarray, g: Geometry, dtype: np.dtype) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples in a zero-padded buffer of the accumulator's type, which is used again."""
    count, _ = _block(g, dtype.itemsize)
    buffer = np.zeros((min(count, g.batch), g.channels, *g.padded), dtype)
    for start in range(0, g.batch, count):
        block = x[start : start + count]
        padded = buffer[: len(block)]
        padded[:, :, *_inside(g)] = block
        yield slice(start, start + count), padded


def _column_blocks(padded: np.ndarray, g: Geometry, buffer: _Buffer) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of output rows as columns, in ``buffer``: (n, groups, C // groups * prod(kernel), rows * prod(output[1:]))."""
    n, channels = padded.shape[:2]
    spatial = padded.strides[2:]
    view = as_strided(  # [n, c, *k, *o] is padded[n, c, o * stride + k * dilation]
        padded,
        (n, channels, *g.kernel, *g.output),
        (
            *padded.strides[:2],
            *(step * d for step, d in zip(spatial, g.dilation)),
            *(step * s for step, s in zip(spatial, g.stride)),
        ),
        writeable=False,
    )
    _, count = _block(g, padded.itemsize)
    before = (slice(None),) * (2 + g.axes)
    for row in range(0, g.output[0], count):
        part = view[*before, row : row + count]
        col = buffer.array(part.shape)
        col[...] = part
        yield slice(row, row + count), col.reshape(n, g.groups, channels // g.groups * math.prod(g.kernel), -1)


def _weight_matrix(w: np.ndarray, g: Geometry, dtype: np.dtype) -> np.ndarray:
    """(groups, F // groups, C // groups * prod(kernel))"""
    return np.ascontiguousarray(w, dtype).reshape(g.groups, g.filters // g.groups, -1)


def _by_group(dy: np.ndarray, g: Geometry, dtype: np.dtype) -> np.ndarray:
    """(n, F, *rows) -> (n, groups, F // groups, positions)"""
    positions = math.prod(dy.shape[2:])
    return np.ascontiguousarray(dy, dtype).reshape(len(dy), g.groups, g.filters // g.groups, positions)


def blocking(problem: Problem) -> str:
    """What is laid out at once, in words."""
    g = problem.geometry
    samples, rows = _block(g, 8 if problem.dtype == "float64" else 4)
    return f"the windows of {samples} x {rows} x {math.prod(g.output[1:])} outputs as a matrix; the BLAS's threads"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Copies of all windows take longer than their product."""
    g = problem.geometry
    copies = g.batch * g.channels * math.prod(g.kernel + g.output) * g.itemsize / max(1, g.bytes)
    return roofline.share(problem, 1.0, speed=0.5, moving=1 + copies, storing=0)
