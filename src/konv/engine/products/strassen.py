"""Forward of large products by one level of Strassen's algorithm (1969): seven products of quarters instead of eight.

Filters, the sum (channel, kernel index) and the pixels of a sample are halved; each product is one of sums of two quarters of w
and x, and is added to one or two quarters of y. The usual way, sums made in memory or where blocks are packed, costs what
it saves. Here nothing is packed but the panels that :mod:`konv.engine.products.products` packs: sums are taken number by
number where the register tile reads them. Zen's cores have adders beside their multipliers, which idle else: 8 x 3 vectors of
such products reach 95 % of the multiply-add limit. What the seven of a tile give is added up in L1, so y is written once.

Against eight products: 1.05 to 1.1 times as fast with eight images, one image 0.96 to 1.02, where the few pairs that no panel
takes weigh more. No choice may depend on the number of images, as a sample's bits would. For small images' sake too: 512 -> 2048
at 7 x 7 gained 4 % with eight images, and with one its 25 pairs leave a fifth of the lanes empty.

An output has the rounding of the largest of four: itself, the pixel half of a sample away, and both of the filter half of the
filters away. Where these are alike its largest error was 1.5 to 2.3 times a direct sum's, 0.8 to 1.5 times PyTorch's. A NaN or an
infinity may spread to those four, and sums of numbers near the largest may overflow.

Rows of w copied for a block of pixels cost more than they saved; so did panels of twice the pixels, which leave L2 no room for
w. Rows of w whole pages apart displace each other in L1: copied, they were no faster than
eight products. With sums of 256 and 384 terms 2 to 4 % were gained, with 128 filters 5 to 15 % lost.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.addresses import OnAddresses
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine
from konv.engine.products.products import overlap
from konv.engine.products.products_grids import grids, tile_shape
from konv.engine.products.products_jobs import PAGE, Product, multiply
from konv.engine.products.strassen_kernels import multiply_quarters
from konv.engine.threads import get_threads, width
from konv.engine.windows import BLOCK_SUM
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "strassen"
BEYOND = "seven products stand for eight of the formula's"
LEAST_FILTERS, LEAST_SUM, LEAST_PIXELS = 512, 512, 128  # below, additions or unfilled tiles cost what is saved
MOST_SUM = 1024  # both halves of a panel stay in L2, beside w

__all__ = ["BEYOND", "NAME", "blocking", "declines", "forward", "on_addresses", "share", "workspace"]


def declines(problem: Problem) -> str | None:
    """Anything but large forward products of float32, channels first, on CPUs with adders of their own."""
    g = problem.geometry
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's, and four outputs share it"
    if problem.kind != "forward" or problem.dtype != "float32" or problem.layout == "last" or g.groups > 1:
        return "it computes forward, float32, channels first, one group"
    if g.axes == 1:
        return "a sequence's outputs must not depend on its length, whose halves it pairs"
    reason = overlap(g)
    if reason:
        return reason
    if not machine().adds_beside:
        return f"{machine().cpu}: no adders beside the multipliers are known, and its sums cost what it saves"
    reduction, pixels, rows = g.channels * math.prod(g.kernel), math.prod(g.output), 2 * tile_shape()[0]
    if not LEAST_SUM <= reduction <= MOST_SUM or g.filters < LEAST_FILTERS or pixels < LEAST_PIXELS:
        return (
            f"sums of {reduction}, {g.filters} filters, {pixels} pixels; it computes {LEAST_SUM} to {MOST_SUM}, at least "
            f"{LEAST_FILTERS}, {LEAST_PIXELS}"
        )
    if g.filters % rows or reduction % 2:
        return f"{g.filters} filters, sums of {reduction}: no multiples of {rows}, 2"
    if reduction * g.itemsize % PAGE == 0:
        return f"rows of w {reduction * g.itemsize} bytes apart displace each other in the nearest cache"
    if not grids(g, machine().lanes(problem.dtype))[0].taps:
        return f"windows in rows of {g.kernel[-1]}, which it has no kernel for"
    return None


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, threads: int) -> Product:
    dtype = "float32"
    lanes, (rows, vectors) = machine().lanes(dtype), tile_shape()
    source, target = grids(g, lanes)
    pixels, half_rows, half_sums = math.prod(g.output), target.rows // 2, source.rows // 2
    half_pixels = -(-pixels // 2)
    pairs = g.batch * half_pixels
    panel = lanes * vectors
    panel_size = 2 * source.rows * panel
    tiles, blocks = half_rows // rows, -(-pairs // panel)
    part_tiles = tiles
    while blocks * -(-tiles // part_tiles) < 4 * threads and part_tiles > 8:  # a part lays out its pixels anew
        part_tiles = -(-part_tiles // 2)
    parts, whole_blocks = -(-tiles // part_tiles), pairs // panel
    # A last panel of a few pairs is cut among the threads: else one of them would compute it when the others are done
    tail_tiles = -(-part_tiles // threads)
    tail_parts = -(-tiles // tail_tiles)
    rest = pairs % panel
    tail = "half" if 0 < rest <= lanes // 2 and machine().vector_bytes == 64 else -(-pairs // lanes) % vectors
    slot_size = -(-(panel_size + 4 * rows * panel + lanes) // lanes) * lanes
    job = Job(
        multiply_quarters(dtype, lanes, vectors, tail, rows, source.stride, source.taps),
        whole_blocks * parts + (tail_parts if rest else 0), slot_size=slot_size, panel_size=panel_size, block_panels=1,
        parts=parts, part_tiles=part_tiles, tiles=tiles, half_rows=half_rows, half_sums=half_sums,
        block_sums=-(-half_sums // -(-half_sums // BLOCK_SUM)), pairs=pairs, half_pixels=half_pixels, sample_pixels=pixels,
        most_samples=(panel - 2) // half_pixels + 2, y_sample=target.rows * pixels, whole_pieces=whole_blocks * parts,
        whole_blocks=whole_blocks, tail_parts=tail_parts, tail_tiles=tail_tiles,
        x_runs=(panel - 2) // source.windows[2] + 2, **source.numbers("x"),
    )  # fmt: skip
    used = width(job.pieces, g.flops // 2)
    return Product(job, np.zeros(target.rows, dtype), used, used * slot_size * np.dtype(dtype).itemsize)


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    return _prepare(problem.geometry, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    product = _prepare(g, get_threads())
    bias = product.no_bias if b is None else np.ascontiguousarray(b, dtype_name(x.dtype))
    target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    multiply(product, address(x), address(w), address(bias), address(target))
    if target is not out:
        out[...] = target


def on_addresses(problem: Problem) -> OnAddresses | None:
    """See :func:`konv.engine.plan.on_addresses`."""
    return OnAddresses(functools.partial(multiply, _prepare(problem.geometry, get_threads())))


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    rows, vectors = tile_shape()
    product = _prepare(problem.geometry, get_threads())
    return (
        f"{rows} pairs of filters by up to {vectors * machine().lanes(problem.dtype)} pairs of pixels in registers, seven "
        f"products each, {product.multiply.numbers['block_sums']} terms at a time; {product.multiply.cut(product.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    return roofline.share(problem, 7 / 8, speed=0.86, moving=1.5, storing=1)
