"""The algorithm that always says yes: windows laid out as columns, a block at a time, times the weights (BLAS).

The textbook's im2col matrix holds every cell ``prod(kernel)`` times, at once. Here it is made in blocks of at most
``BLOCK_BYTES``: whole samples where they are small, rows of one sample where they are large. One matrix product belongs
to one sample, so a sample's result does not depend on the batch around it. Half types are widened to float32 as they
are copied, and rounded once, on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided

from konv.arrays import accumulator
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "columns"
BLOCK_BYTES = 8 << 20  # 2-32 MiB are equally fast on the layers of the book and of ResNet; 1 and 64 MiB are slower


def declines(problem: Problem) -> str | None:
    """Never."""
    return None


def workspace(problem: Problem) -> int:
    """Bytes of the padded block, of the columns and of the products."""
    g = problem.geometry
    itemsize = 8 if problem.dtype == "float64" else 4
    samples, rows = _block(g, itemsize)
    positions = samples * rows * math.prod(g.output[1:])
    padded = samples * g.channels * math.prod(g.padded)
    kernel_cells = g.channels * math.prod(g.kernel)
    product = {
        "forward": g.filters * positions,
        "input_gradient": 0,
        "weight_gradient": 2 * math.prod(g.w_shape),
    }[problem.kind]
    return itemsize * (padded + kernel_cells * positions + product)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """``out[n] = w @ columns(x[n]) + b``, x (N, C, *spatial), w (F, C // groups, *kernel), out (N, F, *output)."""
    dtype = accumulator(x.dtype)
    weights = _weight_matrix(w, g, dtype)
    bias = None if b is None else b.astype(dtype, copy=False).reshape(-1, *[1] * g.axes)
    for samples, padded in _padded_samples(x, g, dtype):
        for rows, col in _column_blocks(padded, g):
            y = np.matmul(weights, col).reshape(len(padded), g.filters, -1, *g.output[1:])
            if bias is not None:
                y += bias
            out[samples, :, rows] = y


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """``dcol = w.T @ dy[n]``, each row of it added to the cells it came from."""
    dtype = accumulator(dy.dtype)
    weights = _weight_matrix(w, g, dtype).swapaxes(-1, -2)
    count, row_count = _block(g, dtype.itemsize)
    inside = tuple(slice(low, low + n) for n, (low, _) in zip(g.spatial, g.padding))
    for start in range(0, g.batch, count):
        upstream = dy[start : start + count]
        padded = np.zeros((len(upstream), g.channels, *g.padded), dtype)
        for row in range(0, g.output[0], row_count):
            part = upstream[:, :, row : row + row_count]
            rows = part.shape[2]
            dcol = np.matmul(weights, _by_group(part, g, dtype))
            dcol = dcol.reshape(len(part), g.channels, *g.kernel, rows, *g.output[1:])
            for k in np.ndindex(*g.kernel):
                starts = [k[0] * g.dilation[0] + row * g.stride[0], *(i * d for i, d in zip(k[1:], g.dilation[1:]))]
                spans = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, (rows, *g.output[1:]), g.stride)]
                padded[:, :, *spans] += dcol[:, :, *k]
        out[start : start + count] = padded[:, :, *inside]


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """``dw = sum over n of dy[n] @ columns(x[n]).T``, in the order of the samples."""
    dtype = accumulator(x.dtype)
    total = np.zeros((g.groups, g.filters // g.groups, math.prod(g.w_shape[1:])), dtype)
    for samples, padded in _padded_samples(x, g, dtype):
        for rows, col in _column_blocks(padded, g):
            for upstream, matrix in zip(_by_group(dy[samples, :, rows], g, dtype), col):
                total += np.matmul(upstream, matrix.swapaxes(-1, -2))
    out[...] = total.reshape(g.w_shape)


def _block(g: Geometry, itemsize: int) -> tuple[int, int]:
    """How many samples, and how many rows of the first output axis, are laid out at once."""
    row_bytes = itemsize * g.channels * math.prod(g.kernel) * math.prod(g.output[1:])
    rows = max(1, min(g.output[0], BLOCK_BYTES // row_bytes))
    samples = 1 if rows < g.output[0] else max(1, min(g.batch, BLOCK_BYTES // (row_bytes * rows)))
    return samples, rows


def _padded_samples(x: np.ndarray, g: Geometry, dtype: np.dtype) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples in a zero-padded buffer of the accumulator's type, which is reused."""
    count, _ = _block(g, dtype.itemsize)
    buffer = np.zeros((count, g.channels, *g.padded), dtype)
    inside = tuple(slice(low, low + n) for n, (low, _) in zip(g.spatial, g.padding))
    for start in range(0, g.batch, count):
        block = x[start : start + count]
        padded = buffer[: len(block)]
        padded[:, :, *inside] = block
        yield slice(start, start + count), padded


def _column_blocks(padded: np.ndarray, g: Geometry) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of output rows as columns: (n, groups, C // groups * prod(kernel), rows * prod(output[1:]))."""
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
        col = np.ascontiguousarray(part).reshape(n, g.groups, channels // g.groups * math.prod(g.kernel), -1)
        yield slice(row, row + count), col


def _weight_matrix(w: np.ndarray, g: Geometry, dtype: np.dtype) -> np.ndarray:
    """(groups, F // groups, C // groups * prod(kernel))"""
    return np.ascontiguousarray(w, dtype).reshape(g.groups, g.filters // g.groups, -1)


def _by_group(dy: np.ndarray, g: Geometry, dtype: np.dtype) -> np.ndarray:
    """(n, F, *rows) -> (n, groups, F // groups, positions)"""
    positions = math.prod(dy.shape[2:])
    return np.ascontiguousarray(dy, dtype).reshape(len(dy), g.groups, g.filters // g.groups, positions)
