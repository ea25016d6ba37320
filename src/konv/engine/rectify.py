"""max(x, 0) and its gradient, each in one pass over memory: where no convolution can do it in passing."""

from __future__ import annotations

import functools

import numpy as np

from konv.arrays import dtype_name
from konv.engine.compile import kernel
from konv.engine.launch import Job, address
from konv.engine.machine import machine
from konv.engine.simd import beats, equal, loop, minimum, select, whole
from konv.engine.threads import get_threads, width

PIECE = 1 << 14  # numbers
COST = 8  # multiply-adds that take as long as a number does


@kernel
def rectify(dtype, lanes):
    """``y = max(x, 0)`` and ``negative = x <= 0``. A piece is a run of numbers."""

    def text(piece, slot, x, y, negative, size):
        first = piece * PIECE
        for q in loop((minimum(PIECE, size - first) + (lanes - 1)) // lanes):
            i = first + q * lanes
            count = size - i
            values, zero = x.vec(i, lanes, count=count), x.zero(lanes)
            positive = beats(values, zero)  # or NaN
            y.put(i, select(positive, values, zero), count)
            negative.put(i, select(positive, whole(0, lanes), whole(1, lanes)), count)

    return text, {"x": dtype, "y": dtype, "negative": "uint8"}


@kernel
def rectify_gradient(dtype, lanes):
    """``dx = dy`` where x was positive, else 0. A piece is a run of numbers."""

    def text(piece, slot, dy, dx, negative, size):
        first = piece * PIECE
        for q in loop((minimum(PIECE, size - first) + (lanes - 1)) // lanes):
            i = first + q * lanes
            count = size - i
            passes = equal(negative.vec(i, lanes, count=count), 0)
            dx.put(i, select(passes, dy.vec(i, lanes, count=count), dx.zero(lanes)), count)

    return text, {"dy": dtype, "dx": dtype, "negative": "uint8"}


@kernel
def keep_where_positive(dtype, gate, lanes):
    """``y = x`` where ``told_by`` is positive (or NaN), else 0. A piece is a run of numbers."""

    def text(piece, slot, x, told_by, y, size):
        first = piece * PIECE
        for q in loop((minimum(PIECE, size - first) + (lanes - 1)) // lanes):
            i = first + q * lanes
            count = size - i
            passes = beats(told_by.vec(i, lanes, count=count), told_by.zero(lanes))
            y.put(i, select(passes, x.vec(i, lanes, count=count), y.zero(lanes)), count)

    return text, {"x": dtype, "told_by": gate, "y": dtype}


def where_positive(x: np.ndarray, told_by: np.ndarray, out: np.ndarray) -> None:
    """Write x where ``told_by`` is positive or NaN, else 0, into ``out``; this may be one of them."""
    like = _dense(told_by, out)
    if out.size:
        job, threads = _job(keep_where_positive, dtype_name(x.dtype), out.size, get_threads(), dtype_name(like.dtype))
        job.run(threads, x=address(_dense(x, out)), told_by=address(like), y=address(out))


def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(max(x, 0), x <= 0)``, in the order of memory that x has."""
    x = _dense(x, np.empty_like(x))
    y, negative = np.empty_like(x), np.empty_like(x, np.bool_)
    if x.size:
        job, threads = _job(rectify, dtype_name(x.dtype), x.size, get_threads())
        job.run(threads, x=address(x), y=address(y), negative=address(negative))
    return y, negative


def gradient(dy: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """dy where not ``negative``, else 0."""
    dx = np.empty_like(negative, dy.dtype)
    dy = _dense(dy, dx)
    if dx.size:
        job, threads = _job(rectify_gradient, dtype_name(dy.dtype), dx.size, get_threads())
        job.run(threads, dy=address(dy), dx=address(dx), negative=address(negative))
    return dx


def _dense(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The array itself if it lies in memory as ``like`` does, without gaps; else a copy that does."""
    if array.strides == like.strides:
        return array
    like = np.empty_like(like, array.dtype)
    like[...] = array
    return like


@functools.lru_cache(maxsize=256)
def _job(factory, dtype: str, size: int, threads: int, *others: str) -> tuple[Job, int]:
    job = Job(factory(dtype, *others, machine().lanes(dtype)), -(-size // PIECE), size=size)
    return job, width(job.pieces, COST * size)
