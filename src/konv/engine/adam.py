"""Adam's update of a parameter, in one pass over it. NumPy's twelve took .6 of the 19 ms of a step of the book's DeepConvNet.

Each number is computed by NumPy's operations in their order, so it has their bits.
"""

from __future__ import annotations

import functools

import numpy as np

from konv.arrays import dtype_name
from konv.engine.compile import kernel
from konv.engine.launch import Job, address
from konv.engine.machine import machine
from konv.engine.simd import loop, minimum, root, splat
from konv.engine.simd import pinned as rounded  # not joined with the addition behind it
from konv.engine.threads import get_threads, width

PIECE = 1 << 12  # numbers
COST = 24  # multiply-adds that take as long as a number does

__all__ = ["takes", "update"]


@kernel
def adam(dtype, lanes):
    """See :class:`konv.layers.optimizers.Adam`. A piece is a run of numbers."""

    def text(piece, slot, param, grad, m, v, settings, size):
        beta1, rest1, beta2, rest2, correction, epsilon, rate = (splat(settings[i], lanes) for i in range(7))
        first = piece * PIECE
        for q in loop((minimum(PIECE, size - first) + (lanes - 1)) // lanes):
            i = first + q * lanes
            count = size - i
            gradient = grad.vec(i, lanes, count=count)
            mean = rounded(m.vec(i, lanes, count=count) * beta1) + rounded(rest1 * gradient)
            square = rounded(v.vec(i, lanes, count=count) * beta2) + rounded(rest2 * gradient * gradient)
            m.put(i, mean, count)
            v.put(i, square, count)
            step = rounded(mean / (root(square / correction) + epsilon) * rate)
            param.put(i, param.vec(i, lanes, count=count) - step, count)

    return text, dict.fromkeys(("param", "grad", "m", "v", "settings"), dtype)


def takes(*arrays: np.ndarray) -> bool:
    """Whether :func:`update` takes them: float32 or float64, C-contiguous, as the machine has them."""
    dtype = arrays[0].dtype
    return dtype in (np.float32, np.float64) and all(
        array.dtype == dtype and array.dtype.isnative and array.flags.carray for array in arrays if array.size
    )


def update(param: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, settings: tuple[float, ...]) -> None:
    """Update param, m and v in place.

    ``settings`` : beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta2**t, the constant beside the root, lr / (1 - beta1**t)
    """
    if param.size:
        job, threads = _job(dtype_name(param.dtype), param.size, get_threads())
        numbers = np.array(settings, param.dtype)
        job.run(
            threads, param=address(param), grad=address(grad), m=address(m), v=address(v), settings=address(numbers)
        )


@functools.lru_cache(maxsize=256)
def _job(dtype: str, size: int, threads: int) -> tuple[Job, int]:
    job = Job(adam(dtype, machine().lanes(dtype)), -(-size // PIECE), size=size)
    return job, width(job.pieces, COST * size)
