"""A job, and what it borrows while it runs: for algorithms with one kernel, which reads x, w and a bias where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from konv.engine import memory
from konv.engine.launch import Job, address
from konv.engine.machine import wide_type
from konv.engine.threads import width


@dataclass(frozen=True)
class Prepared:
    """A job of ``threads`` threads, the ``size`` of their slots together in bytes, and zeros for its bias."""

    job: Job
    threads: int
    size: int
    no_bias: np.ndarray

    def correlate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, y: np.ndarray) -> None:
        """Run a kernel with the pointers x, w, bias, y and slots. Of half types it is given w and b in float32."""
        w = np.ascontiguousarray(w, self.no_bias.dtype)
        bias = self.no_bias if b is None else np.ascontiguousarray(b, self.no_bias.dtype)
        self.run(x=x, w=w, bias=bias, y=y)

    def run(self, **arrays: np.ndarray) -> None:
        """Run the job on arrays by the names of its pointers, with slots."""
        with memory.workspace(self.size) as slots:
            self.job.run(self.threads, slots=slots, **{name: address(array) for name, array in arrays.items()})


def prepared(job: Job, work: int, slot_size: int, dtype: str, biases: int = 0) -> Prepared:
    """Of a job of so many multiply-adds, whose slots have ``slot_size`` elements in the type that ``dtype`` is summed in."""
    wide, used = np.dtype(wide_type(dtype)), width(job.pieces, work)
    return Prepared(job, used, used * slot_size * wide.itemsize, np.zeros(biases, wide))
