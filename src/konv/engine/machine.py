"""What the kernels are compiled for: the CPU's name and features, and the tile shapes that fit its registers."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np

from konv.arrays import dtype_name

__all__ = ["Machine", "dtype_name", "machine", "wide_type", "widened"]


@dataclass(frozen=True)
class Machine:
    """A target of the compiler.

    Attributes
    ----------
    cpu, features : LLVM's name of the CPU, and its features as LLVM writes them (``+avx2,+fma,...``)
    vector_bytes : width of a vector register
    registers : how many vector registers there are
    """

    cpu: str
    features: str
    vector_bytes: int
    registers: int

    def lanes(self, dtype: str) -> int:
        """Vector lanes of the type that elements of ``dtype`` are computed in (float32 for the half types)."""
        return self.vector_bytes // (8 if dtype == "float64" else 4)

    @property
    def fused(self) -> bool:
        """Whether a multiply-add is one instruction. Without it every one would be a call."""
        return any(f"+{name}" in self.features.split(",") for name in ("fma", "avx512f", "neon", "vfp4"))

    @property
    def halves(self) -> bool:
        """Whether float16 is converted by an instruction."""
        return any(f"+{name}" in self.features.split(",") for name in ("f16c", "avx512f", "neon", "fp16"))

    @property
    def dots(self) -> bool:
        """Whether pairs of bfloat16 are multiplied by an instruction, :func:`konv.engine.simd.dot`."""
        return {"+avx512bf16", "+avx512bw", "+avx512vl"} <= set(self.features.split(","))

    @property
    def reads_twice(self) -> bool:
        """Whether two numbers are read in the time of one multiply-add: Zen 4 computes vectors of 64 bytes in halves."""
        return self.cpu == "znver4" and self.vector_bytes == 64

    @property
    def tile(self) -> tuple[int, int]:
        """(vectors, pixels) of the register tile: ``vectors * pixels`` accumulators, one pixel, ``vectors`` filters.

        14 x 2 of 32 registers and 6 x 2 of 16 come within 5 % of the multiply-add limit; 13 x 2 and 8 x 3 are slower for
        64, 128, 256 filters. An even number of pixels lets a tile be two halves.
        """
        return (2, 14) if self.registers >= 32 else (2, 6)


def wide_type(dtype: str) -> str:
    """The type that sums are kept in: float32 for the half types.

    >>> wide_type("bfloat16"), wide_type("float64")
    ('float32', 'float64')
    """
    return "float64" if dtype == "float64" else "float32"


def widened(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a copy in the type that sums are taken in; 0 where the numbers are of that type already.

    >>> widened((4, 3), "float16"), widened((4, 3), "float32")
    (48, 0)
    """
    wide = wide_type(dtype)
    return 0 if dtype == wide else math.prod(shape) * np.dtype(wide).itemsize


@functools.cache
def machine() -> Machine:
    """This machine, or the one that ``KONV_CPU`` and ``KONV_CPU_FEATURES`` describe in LLVM's words (for tests)."""
    cpu = os.environ.get("KONV_CPU") or llvm.get_host_cpu_name()
    features = os.environ.get("KONV_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
    has = set(features.split(","))
    if "+avx512f" in has:
        return Machine(cpu, features, 64, 32)
    if "+avx2" in has and "+fma" in has:
        return Machine(cpu, features, 32, 16)
    return Machine(cpu, features, 16, 32 if "+neon" in has else 16)
