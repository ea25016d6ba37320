"""Groups of few channels and as many filters: channels in lanes.

Time beside pixels in lanes or the direct tile, on two cores of an AMD Zen 4, 256@28 in 32 groups and 256@56 of stride 2::

                          forward          input gradient    weights
    channels first        1.1 not taken    1.1 not taken     0.8
    channels first, / 2   0.9              0.7               0.5
    channels last         0.8              0.75              0.6
    channels last, / 2    0.9              1.1 not taken     1.3 not taken

Where vectors of pixels are not full, channels first and strides of 1 gain too: 256@9, 256@17 and 512@9 take half of
the time.

Groups of 16 gain as much, but their weights channels first nothing; groups of 4 take 1.3 times as long as there. It waits
for memory: chunks of a half or twice as many cells change nothing, asking for the next chunk's 5 %, of pixels apart nothing.
Weight gradients, channels first, ask for the next image's lines while they multiply, one of dy and as many of x as are read
meanwhile: 0.78 of the time of 256@56 / 2, where asking for the next chunk's while it was copied had changed nothing.

Of 256@56 / 2 products take 1.3 to 1.5 ms, of 1.0 at the limit. Lost: not asking for x or y in the input gradient (1.05 to 1.17
times as long); chunks of dy of 0.4 or 0.6 of the cells in weight gradients (1.04).

Lost, 256@56 of stride 2: outputs in lanes, from a copy of even and of odd cells, tiles of 8 filters by 2 vectors: products alone
take 0.65 of the time, with the copy as long as this, input gradients 0.9.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import columns, roofline
from konv.engine.groups.small_groups_kernels import accumulate_groups, correlate_groups
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, both_ways, prepared, without_bias
from konv.engine.threads import get_threads
from konv.engine.winograd import winograd
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "small_groups"
GROUPS, GROUPS_OF_WEIGHTS = (8, 16), (8,)  # channels of a group; of weights where channels are first
MOST_COLUMNS = 64  # of a row, whose outputs are unrolled
MOST_TAPS = 5  # of a row of the kernel
LEAST_FILLED = 0.8  # of vectors of pixels, which are as fast then
CHUNK_CELLS = 160  # of dy, whose products are summed before they are added to the others: the error falls
LEAST_PIECES = 32  # each of which is summed by itself

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """What it does not compute, or what others compute faster; see above."""
    g, lanes, kind, last = problem.geometry, machine().lanes(problem.dtype), problem.kind, problem.layout == "last"
    group = g.channels // g.groups
    if g.axes != 2 or max(g.dilation) > 1 or g.kernel[1] > MOST_TAPS:
        return f"its kernels have two axes, at most {MOST_TAPS} columns, no dilation"
    groups = GROUPS_OF_WEIGHTS if kind == "weight_gradient" and not last else GROUPS
    if g.channels != g.filters or group not in groups or lanes % group or g.channels % lanes:
        return f"groups of {group} x {g.filters // g.groups}: it takes as many filters as channels, whole groups in a vector"
    if g.groups == 1 and winograd.declines(problem) is None:
        return "one group: Winograd's algorithm takes 0.45 to 0.7 of the time"
    strided = max(g.stride) > 1
    if kind != "weight_gradient":
        if max(g.spatial[1], g.output[1]) > MOST_COLUMNS:
            return f"its rows have at most {MOST_COLUMNS} cells"
        if strided and last and kind == "input_gradient":
            return "with these strides rows in lanes are as fast"
        row = (g.spatial if kind == "input_gradient" else g.output)[1]
        if not (strided or last) and row > lanes and row >= LEAST_FILLED * -(-row // lanes) * lanes:
            return f"rows of {row} fill {lanes} lanes, and are as fast"
        return None
    if last and strided:
        return "channels last, its strides are 1"
    left, right, over = _edges(g)
    if left + right > g.output[1] or max(over, g.padding[1][0]) >= g.kernel[1]:
        return "rows are shorter than their edges"
    return None


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: sums of all parts, or w in the kernel's order."""
    g, dtype, layout = problem.geometry, problem.dtype, problem.layout
    if problem.kind == "weight_gradient":
        sums = _prepare(g, dtype, layout, get_threads())
        return sums.size + sums.sums_size
    plan = _correlation(g, problem.kind == "input_gradient", dtype, dtype, layout, get_threads())
    return plan.size + math.prod(g.w_shape) * plan.no_bias.itemsize


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``."""
    sums, finite = _prepare(g, dtype_name(x.dtype), known_layout(x, dy), get_threads()).accumulate(dy, x, db)
    if finite:
        vectors, group, together = sums.shape[-3:]
        out.reshape(vectors, together, group, group, *g.kernel)[...] = sums.transpose(3, 5, 2, 4, 0, 1)
    else:
        columns.weight_gradient(dy, x, g, out)


def _correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, back: bool, out: np.ndarray) -> None:
    plan = _correlation(g, back, dtype_name(x.dtype), dtype_name(out.dtype), known_layout(x, out), get_threads())
    group, lanes = g.channels // g.groups, machine().lanes(dtype_name(x.dtype))
    parts = w.reshape(g.channels // lanes, lanes // group, group, group, *g.kernel)
    plan.correlate(x, parts.transpose(0, 4, 5, 2, 3, 1) if back else parts.transpose(0, 4, 5, 3, 2, 1), b, out)


forward, input_gradient = both_ways(_correlate, finite=True)
weight_gradient = without_bias(weight_and_bias_gradient)


@functools.lru_cache(maxsize=256)
def _correlation(g: Geometry, back: bool, x_dtype: str, y_dtype: str, layout: str, threads: int) -> Prepared:
    host, group, (taps_high, taps) = machine(), g.channels // g.groups, g.kernel
    lanes, stride, pad = host.lanes(x_dtype), g.stride[1], g.padding[1][0]
    (x_height, x_width), (out_height, out_width) = (g.output, g.spatial) if back else (g.spatial, g.output)
    chunk_rows = max(1, min(out_height, CHUNK_CELLS // out_width))
    met = [_rows_met(o, g, back, x_height) for o in range(out_height)]
    rows = [
        *np.cumsum([0, *map(len, met)]),
        *np.array([pair for pairs in met for pair in pairs], np.int64).reshape(-1),
        0,
    ]
    chunks = []
    for row in range(0, out_height, chunk_rows):
        lines = [line for pairs in met[row : row + chunk_rows] for line, _ in pairs] or [0]
        chunks += [min(lines), max(lines) - min(lines) + 1]
    held = max(chunks[1::2], default=0) * x_width, chunk_rows * out_width
    y_at, y_size = (-(-n // lanes) * lanes * lanes for n in held)
    down, up = (1, stride) if back else (stride, 1)
    most = 14 if host.registers >= 32 else 8
    job = Job(
        correlate_groups(x_dtype, y_dtype, lanes, group, taps, down, up, pad, x_width, out_width, most, layout, back),
        g.batch * (g.channels // lanes), slot_size=y_at + y_size, y_at=y_at, channels=g.channels, x_height=x_height,
        out_height=out_height, chunk_rows=chunk_rows, weights_size=taps_high * taps * group * lanes,
        rows=np.array(rows, np.int64), chunks=np.array(chunks, np.int64),
    )  # fmt: skip
    return prepared(job, g.flops // 2, y_at + y_size, x_dtype, g.channels, names={"weights": "w"})


def _rows_met(row: int, g: Geometry, back: bool, height: int) -> list[tuple[int, int]]:
    """(row of x, row of the kernel) that a row of outputs meets."""
    stride, pad = g.stride[0], g.padding[0][0]
    if back:
        places = [((row + pad - k) // stride, k) for k in range(g.kernel[0]) if (row + pad - k) % stride == 0]
    else:
        places = [(row * stride + k - pad, k) for k in range(g.kernel[0])]
    return [(line, k) for line, k in places if 0 <= line < height]


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, layout: str, threads: int) -> Prepared:
    host, group = machine(), g.channels // g.groups
    lanes, (taps_high, taps) = host.lanes(dtype), g.kernel
    (x_height, x_width), (out_height, out_width) = g.spatial, g.output
    most_sums = (24 if host.registers >= 32 else 12) // taps
    together = max(n for n in (1, 2, 4, 8, 16) if n <= max(1, min(most_sums, group)))
    blocks = g.channels // lanes
    part_images = max(1, min(g.batch, g.batch * blocks // LEAST_PIECES))
    parts = max(1, -(-g.batch // part_images))
    chunk_rows = max(1, min(out_height, CHUNK_CELLS // out_width))
    held = ((chunk_rows - 1) * g.stride[0] + taps_high) * x_width, chunk_rows * out_width
    dy_at, dy_size = (-(-n // lanes) * lanes * lanes for n in held)
    slot_size = dy_at + dy_size + taps_high * taps * group * lanes
    turns = out_height * out_width * taps_high * (group // together)
    asked = min(4, -(-x_height * x_width // max(1, turns))) if layout == "first" else 0
    job = Job(
        accumulate_groups(dtype, lanes, group, together, taps, g.stride[1], g.padding[1][0], _edges(g), layout, asked),
        parts * blocks, slot_size=slot_size, dy_at=dy_at, sums_at=dy_at + dy_size, images=g.batch, part_images=part_images,
        channels=g.channels, x_height=x_height, x_width=x_width, out_height=out_height, out_width=out_width,
        taps_high=taps_high, pad_high=g.padding[0][0], stride_high=g.stride[0], chunk_rows=chunk_rows,
    )  # fmt: skip
    sums = parts, taps_high, taps, group, blocks, group, lanes // group
    return prepared(job, g.flops // 2, slot_size, dtype, sums=sums)


def _edges(g: Geometry) -> tuple[int, int, int]:
    """Outputs of a row that meet cells before its first, behind its last, and how many cells the last output meets there."""
    stride, pad = g.stride[1], g.padding[1][0]
    over = max(0, (g.output[1] - 1) * stride + g.kernel[1] - pad - g.spatial[1])
    return -(-pad // stride), -(-over // stride), over


def blocking(problem: Problem) -> str:
    """Lanes, chunks and pieces, in words."""
    g, dtype, layout = problem.geometry, problem.dtype, problem.layout
    lanes, group = machine().lanes(dtype), g.channels // g.groups
    together = lanes // group
    held = f"{together} group{'s' * (together > 1)} of {group} channels in a vector"
    if problem.kind == "weight_gradient":
        plan = _prepare(g, dtype, layout, get_threads())
        n = plan.job.numbers
        chunk = f"chunks of {n['chunk_rows']} x {g.output[1]} cells of dy, {n['part_images']} images a piece"
    else:
        plan = _correlation(g, problem.kind == "input_gradient", dtype, dtype, layout, get_threads())
        row = (g.spatial if problem.kind == "input_gradient" else g.output)[1]
        chunk = f"chunks of {plan.job.numbers['chunk_rows']} x {row} outputs"
    return f"{held}; {chunk}; {plan.cut}"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    return roofline.share(problem, 1, speed=0.55, moving=2, storing=1)
