"""What share of the machine's limit a plan expects to reach. Nothing is timed: shapes, and what each algorithm was measured at.

The limit is what binds: the multiply-adds of the formula, or the bytes of x, w and y, whichever takes longer. Both are
counted in the time of one vector of multiply-adds, for how many of those a core does in a cycle its features do not tell. An
algorithm is expected to take ``done / speed + moving * bytes + storing * results + START``, with three numbers of its own, fitted
to the rows of ``konv bench`` on one CPU (Zen 4, AVX-512, 2 cores): of 308 times, forward and backward in both layouts, 245 are
met within a factor of 1.3. Further off are strided depthwise layers, products of a few filters and long windows of one
channel, channels last (0.3 to 0.7 of the measured time), and any machine whose memory is faster or slower beside its arithmetic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from konv.engine.machine import machine
from konv.engine.simd import ITEMSIZE

if TYPE_CHECKING:
    from konv.engine.plan import Problem

CACHED = 16 << 20  # bytes that stay in a cache
FROM_CACHE, FROM_MEMORY = 5 / 16, 1 / 8  # of a vector, that moves while one is multiplied and added
START = 80_000  # vectors of multiply-adds, in the time that a call takes at least


def binds(problem: Problem) -> str:
    """What no algorithm that follows the formula could beat: "multiply-add" or "memory".

    >>> from konv.engine.plan import plan
    >>> binds(plan((8, 256, 14, 14), (256, 256, 3, 3)).problem), binds(plan((8, 32, 112, 112), (32, 1, 1, 1), groups=32).problem)
    ('multiply-add', 'memory')
    """
    return "multiply-add" if _work(problem) >= _moved(problem) else "memory"


def share(problem: Problem, done: float, *, speed: float, moving: float, storing: float) -> float:
    """The least time over the expected one.

    Parameters
    ----------
    done : multiply-adds that are computed for each one of the formula: more where lanes stay empty, fewer in Winograd's way
    speed : of the limit, that they reach
    moving, storing : how many times as long the arrays, and the results, take as their bytes alone would
    """
    g = problem.geometry
    shapes = {"forward": g.output_shape, "input_gradient": g.x_shape, "weight_gradient": g.w_shape}
    results = math.prod(shapes[problem.kind]) * ITEMSIZE[problem.dtype] / (machine().vector_bytes * FROM_CACHE)
    expected = _work(problem) * done / speed + moving * _moved(problem) + storing * results + START
    return max(_work(problem), _moved(problem)) / expected


def padding(count: int, unit: int) -> float:
    """How many times as many there are, rounded up to a whole ``unit``.

    >>> padding(30, 20)
    1.3333333333333333
    """
    return -(-count // unit) * unit / max(1, count)


def _work(problem: Problem) -> float:
    return problem.geometry.flops / 2 / machine().lanes(problem.dtype)


def _moved(problem: Problem) -> float:
    size = problem.geometry.bytes
    return size / (machine().vector_bytes * (FROM_CACHE if size <= CACHED else FROM_MEMORY))
