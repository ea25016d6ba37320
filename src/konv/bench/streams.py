"""How fast memory is read once, and read and written once: what no layer that needs its input can undercut.

By kernels in the engine's own language, on small pages, as PyTorch's tensors have them: huge ones were read in 0.8 of the time.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import numpy as np

from konv.engine.compile import kernel
from konv.engine.launch import Job, address
from konv.engine.machine import machine
from konv.engine.simd import Variable, fence, loop, minimum

PIECE = 1 << 16  # numbers
CACHED_BYTES = 32 << 20  # more lies in memory: eight places of a piece are read in turns there, .85 to .95 of the time
AHEAD = 1 << 11  # numbers that are asked for before they are read: 0.9 of the time


def small_pages(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array of ones on pages of the usual size."""
    x = np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32).reshape(shape)
    x[...] = 1
    return x


def reading(x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """A call that reads x once and returns its sums by lane, some for each piece."""
    lanes = machine().lanes("float32")
    job = Job(add_up(lanes, 8 if x.nbytes > CACHED_BYTES else 1), -(-x.size // PIECE), size=x.size)
    sums = np.empty((job.pieces, lanes), np.float32)

    def read() -> np.ndarray:
        job.run(threads, x=address(x), sums=address(sums))
        return sums

    return read


def copying(x: np.ndarray, y: np.ndarray, threads: int, past: bool) -> Callable[[], None]:
    """A call that copies x to y once, ``past`` the caches or through them; both begin where cache lines do."""
    job = Job(copy(machine().lanes("float32"), past), -(-x.size // PIECE), size=x.size)
    return lambda: job.run(threads, x=address(x), y=address(y))


@kernel
def add_up(lanes, places):
    """``sums[piece, lane]`` of PIECE numbers each, from so many places of a piece in turns; what is left over not included."""

    def text(piece, slot, x, sums, size):
        first = piece * PIECE
        totals = [Variable(x.zero(lanes)) for _ in range(8)]
        rounds, at_once = minimum(PIECE, size - first) // (lanes * len(totals)), len(totals) // places
        for q in loop(rounds):
            for i, total in enumerate(totals):
                place = first + ((i // at_once * rounds + q) * at_once + i % at_once) * lanes
                x.prefetch(place + AHEAD, later=True)
                total.set(total.get() + x.vec(place, lanes))
        for total in totals[1:]:
            totals[0].set(totals[0].get() + total.get())
        sums.put(piece * lanes, totals[0].get())

    return text, {"x": "float32", "sums": "float32"}


@kernel
def copy(lanes, past):
    """``y = x``, what is left over after whole vectors not included."""

    def text(piece, slot, x, y, size):
        first = piece * PIECE
        for q in loop(minimum(PIECE, size - first) // lanes):
            place = first + q * lanes
            x.prefetch(place + AHEAD, later=True)
            (y.stream if past else y.put)(place, x.vec(place, lanes))
        if past:
            fence()

    return text, {"x": "float32", "y": "float32"}
