"""Winograd's algorithm for kernels of several taps along the last axes: 36 products instead of 144 for 3 x 3.

Along each axis a scheme F(m, r) of :mod:`konv.engine.winograd.winograd_formulas`: of few products for the outputs that there
are. A dilated convolution is one of each phase: tiles of cells that lie ``dilation`` apart. A 3-D one sums planes as it sums
channels, a strided or a long kernel the short ones that it is cut into (:mod:`konv.engine.winograd.winograd_axes`): 100 products
instead of 256 for 4 x 4 with stride 2, 81 instead of 144 for 3 x 3, 121 instead of 400 for 5 x 5. An image's last tile takes
no product at infinity where it lacks its last output: 121 instead of 144 for 7 x 7 outputs, 3 x 3.

The input gradient is the same computation on dy, with the taps in reverse order, filters and channels exchanged; with a
stride each phase of dx has a kernel of its own. The weight gradient is F(r, m), in :mod:`konv.engine.winograd.winograd_weights`.

Error: 0.3-2.2e-6 of the largest output (direct: 0.2-0.8e-6), of the input gradient 0.3-1.8e-6 (0.2-0.8e-6), of the weight
gradient 0.2-1.3e-6 (0.2-0.9e-6), measured against float64 on normal, rectified and positive numbers: 3x3 layers 64@56,
128@28, 256@14, 512@7, 512@28, 64->128@112, 256@6, 512@33 dilated 2, 64@8x28x28; 4x4/2 512@16, 128@64; 3x3/2 128@56, 256@28;
5x5 and 7x7 64@28; k3, k31, k3/2, k16/8. In float64 the same, times 2e-9.
It is relative to the largest output, not to each: one that is small beside its tile loses digits. Numbers above 1e36 may
overflow. A NaN or an infinity makes every output that reads it NaN or infinite, and may do so to their whole tiles.
Two axes have at most 6 points each, one alone 8: F(6x6, 3x3) erred by 1.2e-5, F(7x7, 2x2) by 1.2-2.5e-5.
bfloat16 is transformed and multiplied in float32: products of points in its pairs (``dot``) would err by 1.7e-2, rounding the
result errs by 2.4e-3; with each factor cut in two they are more instructions than ``fma``. Summed directly, its pairs need
1.3 times as long at their limit as this takes.

A sum runs over the channels and sections in the same order in every tile, so its bits depend on neither threads nor the batch.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import roofline
from konv.engine.addresses import OnAddresses
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.prepared import Prepared, Step, both_ways, prepared
from konv.engine.threads import get_threads, width
from konv.engine.winograd import winograd_weights
from konv.engine.winograd.winograd_axes import Axes, span, tables, taps_of, tiles_in_words
from konv.engine.winograd.winograd_cuts import Sizes, best, gain, kept_taps, shapes
from konv.engine.winograd.winograd_kernels import filters_to_points, winograd
from konv.engine.winograd.winograd_weights import weight_and_bias_gradient, weight_gradient
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "winograd"
BEYOND = "few products stand for many of the formula's"
# See `declines`.
LEAST_CHANNELS, LEAST_FILTERS, LEAST_TILES, MOST_TAPS, MOST_SPAN = 8, 9, 16, 128, 63
LEAST_SAVED, LEAST_SAVED_OF_FEW, FEW, LEAST_GAIN = 1.5, 2.1, 32, 1.12
MOVING, MOVING_OF_WEIGHTS = 0.6, 1.0  # see `gain`

__all__ = [
    "NAME", "blocking", "declines", "forward", "forward_rectified", "input_gradient", "input_gradient_and_bias",
    "input_gradient_rectified", "share", "weight_and_bias_gradient", "weight_gradient", "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """Problems that are not its own, and those where another algorithm is about as fast, or faster.

    The batch is asked for weights only: the bits of a sample must not depend on it. The figures are its speed relative to
    the other algorithm's, on images of 3 x 3 to 224 x 224, batches of 1 to 100.

    ============================================  ====================================================================
    summed channels (dy's filters) below 8        direct, 3 channels: 0.8-1.3; 8 channels 1.0-1.7, 64 and more 1.7-2.2
    filters (of a gradient, x's channels) to 8    pixels in lanes, 8 filters: 0.3-0.85
    fewer than 1.5 products saved of each         direct, 2 x 2 images: 0.8-2.1; of what is taken, one image of 4 x 4 gains
                                                  least: 0.8-1.2
    weights: fewer than 16 tiles                  direct, one image of 64@4, 256@4, 512@7: 0.8, 0.5, 1.1
    of fewer than 32 channels or filters not 2.1  direct, 16@33 dilated 12, 24@14 dilated 4, 16 with k2: 0.94, 0.84, 0.78; of what
                                                  is taken 2048->256@33 dilated 12 1.3, 256@28 dilated 8 1.35, 64@33 dilated 12
                                                  1-1.1, k2 of 32 and 64 1.2-1.7
    several sections (strides, long kernels) and  direct, 3x3/2: 256@28 1.2, dx 1.45 (estimates 1.2, 1.3), 128@56 dx 1.4 (1.3),
    a gain estimated below 1.12                   64@112 1.3 (1.2), 32@56 1 (1), 16@28 0.7 (0.7); 4x4/2: 512@16 1.8 (1.9),
                                                  16@28 0.9 (1.1); k16/8 1.03 (1.1), k3/2 1.2 (1.2); weights: 3x3/2 256@28 1
                                                  (1.1), 64@112 1.3 (1), k3/2 0.9 (1)
    ============================================  ====================================================================
    """
    g, gradient, weights = problem.geometry, problem.kind == "input_gradient", problem.kind == "weight_gradient"
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's, and one NaN may fill a whole tile"
    if g.groups > 1:
        return f"its groups are 1, not {g.groups}"
    if any(stride > 1 and dilation > 1 for stride, dilation in zip(g.stride, g.dilation)):
        return (
            f"kernels are either strided or dilated along an axis, not both: stride {g.stride}, dilation {g.dilation}"
        )
    if gradient and any(kernel < stride for kernel, stride in zip(g.kernel, g.stride)):
        return f"its kernels are at least as long as their stride, not {' x '.join(map(str, g.kernel))} with {g.stride}"
    if math.prod(g.kernel) > MOST_TAPS:
        return f"{math.prod(g.kernel)} taps, more than {MOST_TAPS}: a section takes few"
    channels, filters = (g.filters, g.channels) if gradient else (g.channels, g.filters)
    if channels < LEAST_CHANNELS:
        return f"{channels} channels to sum, fewer than {LEAST_CHANNELS}: the transforms cost more than they save"
    if filters < LEAST_FILTERS:
        return f"{filters} filters, fewer than {LEAST_FILTERS}: pixels fill vectors better than filters do"
    axes = Axes.of(g, gradient)
    if axes.points == 1:
        return f"it saves products of several taps along the last two axes, none of kernels {' x '.join(map(str, g.kernel))} here"
    if span(axes, g) > MOST_SPAN:
        return f"taps of a section lie {span(axes, g)} cells of a filter apart, more than {MOST_SPAN}"
    fewer = axes.sums / (axes.products * axes.tiles)
    least = LEAST_SAVED_OF_FEW if weights and min(channels, filters) < FEW else LEAST_SAVED
    sections = len(axes.phases) * len(axes.sections(axes.phases[0])) // axes.depth.points
    if sections == 1 and fewer < least:
        return f"its tiles need one product of {fewer:.2f}, for outputs that do not fill them; it saves time from {least} on"
    if sections > 1:
        kept, moving = (0, MOVING_OF_WEIGHTS) if weights else (kept_taps(axes, g), MOVING)
        found = gain(axes, channels, filters, kept, moving)
        if found < LEAST_GAIN:
            return f"one product of {fewer:.2f}, but {sections} transforms: a gain of about {found:.2f}, less than {LEAST_GAIN}"
    if weights and g.batch * axes.tiles < LEAST_TILES:
        return f"sums over fewer than {LEAST_TILES} tiles: what is transformed at their end costs more than they save"
    return None


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: of half types, w is copied in float32."""
    if problem.kind == "weight_gradient":
        return winograd_weights.workspace(problem.geometry, problem.dtype, problem.layout)
    g, dtype = problem.geometry, problem.dtype
    job = _prepare(g, problem.kind == "input_gradient", dtype, dtype, problem.layout, get_threads())
    return job.size + widened(g.w_shape, dtype)


def forward_rectified(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write max(conv(x, w) + b, 0) into ``out`` (N, F, *output)."""
    _run(x, w, b, g, False, out, "positive")


def input_gradient_rectified(dy: np.ndarray, w: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx where x is positive, else 0, into ``out``, with a stride of 1. All lie in memory alike."""
    _run(dy, w, None, g, True, out, "gate", x)


def input_gradient_and_bias(dy: np.ndarray, w: np.ndarray, b: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx + b, b (C,), into ``out``: a transposed convolution."""
    _run(dy, w, b, g, True, out)


@functools.lru_cache(maxsize=512)
def _prepare(
    g: Geometry, transposed: bool, dtype: str, out: str, layout: str, threads: int, kept_where: str = ""
) -> Prepared:
    wide, axes = wide_type(dtype), Axes.of(g, transposed)
    sizes, cut = Sizes.of(g, transposed, wide), best(g, transposed, wide, threads)
    schemes = [(axis.scheme.outputs, axis.scheme.taps) for axis in (axes.rows, axes.columns)]
    taps, (sections, phases) = taps_of(axes, g), tables(axes, g)
    shared: dict[str, int | np.ndarray] = {
        "filter_stride": math.prod(g.kernel) * (1 if transposed else g.channels),
        "channel_stride": math.prod(g.kernel) * (g.channels if transposed else 1),
        "filters": sizes.filters,
        "channels": sizes.channels,
        "panels": sizes.panels,
        "sections": sections,
        "section_count": len(sections),
        "chunk_channels": sizes.chunk_channels,
    }
    ahead = []  # the filters to points; else each piece transforms what it needs
    if cut.ahead:
        kernel = filters_to_points(wide, sizes.lanes, sizes.vectors, *schemes, taps)
        pieces = sizes.channel_chunks * sizes.panels * len(sections)
        transform = Job(kernel, pieces, plane=cut.numbers["filter_plane"], **shared)
        ahead.append(Step(transform, width(pieces, cut.filter_cells)))
    kernel = winograd(
        dtype, out, sizes.lanes, sizes.vectors, cut.group, sizes.depth, *schemes, (*taps, cut.kept), int(cut.ahead), layout,
        *((axes.rows.in_step, axes.columns.in_step), (axes.rows.out_step, axes.columns.out_step)), axes.dilated, kept_where,
    )  # fmt: skip
    job = Job(
        kernel, cut.pieces, channel_chunks=sizes.channel_chunks, phases=phases, **shapes(axes), **cut.numbers, **shared
    )
    filters = sizes.panels * sizes.lanes * sizes.vectors
    return prepared(
        job, 0, cut.numbers["slot_size"], wide, filters, threads=cut.threads, before=ahead, points=cut.filter_cells
    )


def _run(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, transposed: bool, out: np.ndarray, kept_where: str = "",
    gate: np.ndarray | None = None,
) -> None:  # fmt: skip
    if out.size:
        dtype, layout = dtype_name(x.dtype), known_layout(x, out)
        plan = _prepare(g, transposed, dtype, dtype_name(out.dtype), layout, get_threads(), kept_where)
        plan.run(x=x, w=plan.weights(w), bias=plan.bias(b), y=out, gate=out if gate is None else gate)


forward, input_gradient = both_ways(_run)


def on_addresses(problem: Problem) -> OnAddresses | None:
    """See :func:`konv.engine.plan.on_addresses`: where filters, and so a bias, fill whole panels."""
    g, dtype, transposed = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    if problem.kind == "weight_gradient" or dtype != wide_type(dtype):
        return None
    plan = _prepare(g, transposed, dtype, dtype, problem.layout, get_threads())
    if len(plan.no_bias) != (g.channels if transposed else g.filters):
        return None
    return OnAddresses(lambda x, w, b, out: plan.run(x=x, w=w, bias=b or plan.no_bias, y=out, gate=0))


def blocking(problem: Problem) -> str:
    """Tiles, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return winograd_weights.blocking(g, dtype, problem.layout)
    transposed = problem.kind == "input_gradient"
    plan = _prepare(g, transposed, dtype, dtype, problem.layout, get_threads())
    n, sizes = plan.job.numbers, Sizes.of(g, transposed, wide_type(dtype))
    panel = sizes.vectors * sizes.lanes
    when = "ahead" if plan.steps else "for each piece"
    return (
        f"{tiles_in_words(Axes.of(g, transposed))}; blocks of {n['block_rows']} x {n['block_columns']} tiles by "
        f"{min(n['share_panels'] * panel, sizes.filters)} filters, {panel} at a time, summed over {sizes.chunk_channels} "
        f"channels at a time, filters transformed {when}; {plan.cut}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1, for few products stand for many of the formula's."""
    g, transposed = problem.geometry, problem.kind == "input_gradient"
    axes, lanes = Axes.of(g, transposed), machine().lanes(problem.dtype)
    done = axes.needed / (math.prod(g.output) * math.prod(g.kernel))
    done *= roofline.padding(g.channels if transposed else g.filters, lanes)
    if problem.kind == "weight_gradient":
        return roofline.share(problem, done, speed=0.5, moving=0.75, storing=0)
    return roofline.share(problem, done, speed=0.6, moving=0.75, storing=0)
