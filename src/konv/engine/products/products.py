"""Convolutions that are matrix products on views: windows that do not overlap, without padding.

Kernels of one cell, strided or not, and kernels as long as their stride (patches; their input gradient is the transposed
convolution of U-Nets). Every cell of x belongs to one window at most, so forward, input gradient and weight gradient are
plain products, and nothing is copied but blocks that stay in the cache. Where windows see padding, the input gradient is
still one: a few padded images of it are computed, and their middles copied.

Tiles, blocks and pieces are :mod:`konv.engine.products.products_jobs`' and, of the weight gradient,
:mod:`konv.engine.products.products_weight_jobs`'.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import roofline
from konv.engine.addresses import OnAddresses
from konv.engine.launch import address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.products.products_grids import grids, tile_shape
from konv.engine.products.products_jobs import leaves_cells, multiply, prepare_product, tile
from konv.engine.products.products_weight_jobs import prepare_gradient, sum_products
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "products"
SMALL_GROUP = 4  # channels and filters
PADDED_BYTES = 512 << 10  # of padded images that are computed together
# Windows whose rows have a length that kernels are not compiled for are laid out slowly: of more numbers the direct algorithm
# takes .4 to .9 of the time; of FEW_CHANNELS, forward, from LONG_FEW on (3 channels, 14 x 14, 192 filters: 1.34 to its 1.49 ms)
LONG, LONG_FEW, FEW_CHANNELS = 128, 1024, 4
LEAST_CELLS = 4  # of a kernel whose windows see padding: fewer are few phases of the direct algorithm

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """Windows that overlap, or see padding."""
    g = problem.geometry
    if problem.layout == "last":
        return "channels last; it puts pixels in lanes"
    reason = overlap(dataclasses.replace(g, padding=((0, 0),) * g.axes) if _crops(problem) else g)
    if reason:
        return reason
    numbers = g.channels // g.groups * math.prod(g.kernel)
    most = LONG_FEW if problem.kind == "forward" and g.channels // g.groups <= FEW_CHANNELS else LONG
    x, _ = grids(g, machine().lanes(problem.dtype))
    if problem.kind != "input_gradient" and not x.taps and numbers > most:
        return f"windows of {numbers} numbers in rows of {g.kernel[-1]}, which it takes apart slowly; it computes at most {most}"
    if g.groups > 1 and max(g.filters, g.channels) // g.groups <= SMALL_GROUP:
        return f"{g.groups} groups of {g.channels // g.groups} x {g.filters // g.groups} leave most of a tile empty"
    return None


def overlap(g: Geometry) -> str | None:
    """Why windows of this geometry are no separate pieces of x, or None if they are."""
    if any(map(any, g.padding)):
        return "windows see padding"
    for kernel, stride, dilation in zip(g.kernel, g.stride, g.dilation):
        if kernel > 1 and (kernel != stride or dilation > 1):
            return f"a kernel of {kernel} with stride {stride} and dilation {dilation}: windows are no consecutive pieces of x"
    return None


def _crops(problem: Problem) -> bool:
    """Whether this is an input gradient whose windows see padding, and are large enough."""
    g = problem.geometry
    if problem.kind != "input_gradient" or not any(map(any, g.padding)):
        return False
    return math.prod(g.kernel) >= LEAST_CELLS and _image_bytes(g) <= PADDED_BYTES


def _image_bytes(g: Geometry) -> int:
    return g.channels * math.prod(g.padded) * g.itemsize


@functools.lru_cache(maxsize=256)
def _padded(g: Geometry) -> Geometry:
    """Of as many images as are computed together, their padding a part of them."""
    images = max(1, min(g.batch, PADDED_BYTES // _image_bytes(g)))
    return dataclasses.replace(g, batch=images, spatial=g.padded, padding=((0, 0),) * g.axes)


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if _crops(problem):
        g = _padded(g)
        return prepare_product(g, True, dtype, dtype, get_threads()).size + math.prod(g.x_shape) * g.itemsize
    if problem.kind == "weight_gradient":
        return prepare_gradient(g, dtype, dtype, True, get_threads()).size
    return prepare_product(g, problem.kind == "input_gradient", dtype, dtype, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    _in_place(out, lambda target: _run(g, False, x, w, b, target))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    if any(map(any, g.padding)):
        _crop_gradient(dy, w, g, out)
        return

    def run(target: np.ndarray) -> None:
        if leaves_cells(g, machine().lanes(dtype_name(dy.dtype))):
            target[...] = 0
        _run(g, True, dy, w, None, target)

    _in_place(out, run)


def on_addresses(problem: Problem) -> OnAddresses | None:
    """See :func:`konv.engine.plan.on_addresses`."""
    g, dtype, transposed = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    threads = get_threads()
    if dtype != wide_type(dtype) or problem.layout == "last":  # of half types a bias is copied
        return None
    if problem.kind == "weight_gradient":
        plans = [prepare_gradient(g, dtype, dtype, biased, threads) for biased in (False, True)]
        return OnAddresses(lambda dy, x, db, out: sum_products(plans[db != 0], dy, x, db, out))
    if transposed and (any(map(any, g.padding)) or leaves_cells(g, machine().lanes(dtype))):
        return None
    return OnAddresses(functools.partial(multiply, prepare_product(g, transposed, dtype, dtype, threads)))


def _crop_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    middle: tuple[Any, ...] = (..., *(slice(low, low + n) for (low, _), n in zip(g.padding, g.spatial)))
    padded = _padded(g)
    images = np.empty(padded.x_shape, out.dtype)
    for first in range(0, g.batch, padded.batch):
        rest = g.batch - first
        some = padded if rest >= padded.batch else dataclasses.replace(padded, batch=rest)
        target = images[: some.batch]
        input_gradient(dy[first : first + some.batch], w, some, target)
        out[first : first + some.batch] = target[middle]


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    _in_place(out, lambda target: _run_gradient(g, dy, x, target, None))


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once for both."""
    _in_place(out, lambda target: _run_gradient(g, dy, x, target, db))


def _in_place(out: np.ndarray, run: Callable[[np.ndarray], None]) -> None:
    """``run(out)``, by way of a C-contiguous array where ``out`` is none: kernels write to such."""
    if out.flags.c_contiguous:
        run(out)
    else:
        run(target := np.empty(out.shape, out.dtype))
        out[...] = target


def _run(g: Geometry, transposed: bool, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    job = prepare_product(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = job.no_bias if b is None else np.ascontiguousarray(b, job.no_bias.dtype)
    multiply(job, address(x), address(w), address(bias), address(out))


def _run_gradient(g: Geometry, dy: np.ndarray, x: np.ndarray, out: np.ndarray, db: np.ndarray | None) -> None:
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    job = prepare_gradient(g, dtype_name(x.dtype), dtype_name(out.dtype), db is not None, get_threads())
    sum_products(job, address(dy), address(x), 0 if db is None else address(db), address(out))


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype, gradient = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    rows, vectors = tile_shape() if problem.kind == "weight_gradient" else tile(g, gradient, dtype)
    wide = vectors * machine().lanes(dtype)
    if problem.kind == "weight_gradient":
        sums = prepare_gradient(g, dtype, dtype, True, get_threads())
        n, read, packed = sums.sums.numbers, "filters", "numbers of a window"
        if sums.turned:
            read, packed = "channels", "filters"
        return (
            f"{rows} {read} by up to {wide} {packed} in registers; regions of {n['region_rows']} {read} by "
            f"{n['region_columns']} {packed.split()[0]}, summed over blocks of {n['block_images'] * n['block_pixels']} pixels in "
            f"{n['parts']} parts; {sums.sums.cut(sums.threads)}"
        )
    product = prepare_product(_padded(g) if _crops(problem) else g, gradient, dtype, dtype, get_threads())
    n, role = product.multiply.numbers, "numbers of a window" if gradient else "filters"
    return (
        f"{rows} {role} by up to {wide} pixels in registers; blocks of {n['block_panels']} such panels of pixels by "
        f"{min(n['part_groups'] * n['row_group'], n['row_count'])} {role}, each a sum of {n['reduction']} products; "
        f"{product.multiply.cut(product.threads)}" + (", then cropped" if _crops(problem) else "")
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Short lines of few rows are packed as long as they are multiplied."""
    g, rows = problem.geometry, tile_shape()[0]
    numbers = g.channels // g.groups * math.prod(g.kernel)
    done = roofline.padding(numbers if problem.kind == "input_gradient" else g.filters // g.groups, rows)
    return roofline.share(problem, done, speed=0.75, moving=1.5, storing=1)
