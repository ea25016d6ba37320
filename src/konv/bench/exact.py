"""What is computed, and when a result is right: the inputs of a row, its error against float64, the error allowed."""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass

import numpy as np

from konv.bench.layers import Row
from konv.engine.memory import aligned

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """The numbers of a row: standard normal; weights divided by the root of their number per output, so that y is of order 1."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray
    dy: np.ndarray

    @classmethod
    def of(cls, row: Row, direction: str) -> Inputs:
        """The inputs of a row, the same in every process; they begin at cache lines, as PyTorch's tensors and konv's results."""
        rng = np.random.default_rng(zlib.crc32(row.name.encode()))
        shapes = row.x, row.w, (row.filters,), row.y if direction == "backward" else (0,)
        scales = 1.0, row.reduction("forward") ** -0.5, 1.0, 1.0
        arrays = [aligned(shape, row.dtype_of_numpy) for shape in shapes]
        for array, scale in zip(arrays, scales):
            array[...] = rng.standard_normal(array.shape, np.float32) * np.float32(scale)
        return cls(*arrays)

    def widened(self) -> Inputs:
        """The same numbers in float64."""
        return Inputs(*(array.astype(np.float64) for array in (self.x, self.w, self.b, self.dy)))


def error_against(arrays: Arrays, reference: Arrays) -> float:
    """The largest difference, each array's relative to its own largest number; NaN if there is one in either."""
    worst = 0.0
    for array, exact in zip(arrays, reference, strict=True):
        if array.shape != exact.shape:
            raise ValueError(f"a result has shape {array.shape}, expected {exact.shape}")
        wide = array.astype(np.float64)
        scale = float(np.abs(exact).max(initial=0)) or 1.0
        worst = float(np.maximum(worst, np.abs(wide - exact).max(initial=0) / scale))  # np.maximum keeps NaN
    return worst


def tolerance(row: Row, direction: str) -> float:
    """How far a right result may be from float64, relative to its largest number.

    ``eps + eps_sum * (84 + sqrt(K))``: the rounding of the result; Winograd's transforms, 1e-5 in float32; and a sum of K random
    products, in the type that sums are kept in. The random walk of such a sum is about a tenth of ``sqrt(K)``.
    """
    return rounding(row.dtype, row.reduction(direction))


def rounding(dtype: str, terms: int) -> float:
    """The same of a sum of so many products."""
    eps = float((importlib.import_module("ml_dtypes") if dtype == "bfloat16" else np).finfo(dtype).eps)
    eps_sum = float(np.finfo(np.float64 if dtype == "float64" else np.float32).eps)
    return eps + eps_sum * (84 + terms**0.5)
