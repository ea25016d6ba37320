"""What algorithms prepare once for a geometry, and the ways in that they share.

A computation is a job, perhaps with others :class:`Step` by step before it (weights are laid out) or after it (sums are added
up). All of them read and write arrays, which a run is given, and *regions* of one workspace, which is borrowed while it runs:
a job's pointers are looked up by their names in both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from konv.arrays import all_finite
from konv.engine import columns, memory
from konv.engine.launch import Job
from konv.engine.machine import wide_type
from konv.engine.threads import width
from konv.geometry import Geometry


class Step(NamedTuple):
    """A job, its threads, and what its pointers are called where that is another name."""

    job: Job
    threads: int = 1
    names: dict[str, str] = {}  # noqa: RUF012 - only read


@dataclass(frozen=True)
class Prepared:
    """A computation, ready to run.

    Attributes
    ----------
    job : the one that takes the time, of ``threads`` threads
    size : bytes of the workspace
    regions : where in it each begins, in bytes; the last are the threads' slots
    steps : all jobs in their order; empty where there is but one, whose pointers have the names of arrays and regions
    no_bias : zeros in the type and of the length in which a bias is read: of all filters, or of whole tiles
    sums : shape of the sums that are left to be added up
    taps : indices into w, flat, of weights in the order in which they are read; None: as they are
    """

    job: Job
    threads: int
    size: int
    regions: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    no_bias: np.ndarray
    sums: tuple[int, ...]
    taps: np.ndarray | None

    @property
    def cut(self) -> str:
        """Pieces and threads, in words."""
        return self.job.cut(self.threads)

    @property
    def sums_size(self) -> int:
        """Bytes of the sums, which are not in the workspace."""
        return math.prod(self.sums) * self.no_bias.itemsize if self.sums else 0

    @property
    def weights_size(self) -> int:
        """Bytes of the weights in their order, which are not in the workspace."""
        return 0 if self.taps is None else self.taps.size * self.no_bias.itemsize

    def weights(self, w: np.ndarray) -> np.ndarray:
        """w as it is read: in the order of ``taps``, and of half types in float32."""
        return np.ascontiguousarray(w if self.taps is None else w.take(self.taps), self.no_bias.dtype)

    def bias(self, b: np.ndarray | None) -> np.ndarray:
        """A bias (F,) as it is read; see :func:`whole_bias`."""
        return self.no_bias if b is None else whole_bias(b, self.no_bias)

    def run(self, **given: np.ndarray | int) -> None:
        """Run all steps on arrays, or what lies at addresses, by name."""
        if not self.regions and not self.steps:
            self.job.run_on(self.threads, given)
            return
        with memory.workspace(self.size) as space:
            for name, start in self.regions:
                given[name] = space + start
            if not self.steps:
                self.job.run_on(self.threads, given)
            for job, threads, names in self.steps:
                job.run_on(threads, {name: given[names.get(name, name)] for name in job.pointers})

    def correlate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, y: np.ndarray) -> None:
        """Run a kernel with the pointers x, w, bias and y."""
        self.run(x=x, w=self.weights(w), bias=self.bias(b), y=y)

    def accumulate(self, dy: np.ndarray, x: np.ndarray, db: np.ndarray, zeros: bool = False) -> tuple[np.ndarray, bool]:
        """Run a kernel with the pointers x, dy, sums and biases, parts of a gradient; write dL/db (F,) into ``db``.

        ``zeros`` : it adds to them.
        The sums of all parts, and whether the biases', and so dy, are finite: where taps in the padding are left out, a
        number that is not would have made NaN of them.
        """
        parts, wide = self.sums[0], self.no_bias.dtype
        sums, biases = ((np.zeros if zeros else np.empty)(shape, wide) for shape in (self.sums, (parts, len(db))))
        self.run(x=x, dy=dy, sums=sums, biases=biases)
        db[...] = biases.sum(axis=0)
        return sums.sum(axis=0) if parts > 1 else sums[0], all_finite(biases)


def prepared(
    job: Job,
    work: int,
    slot_size: int,
    dtype: str,
    biases: int = 0,
    *,
    sums: tuple[int, ...] = (),
    taps: np.ndarray | None = None,
    slots: str = "slots",
    names: dict[str, str] | None = None,
    before: Sequence[Step] = (),
    after: Sequence[Step] = (),
    threads: int | None = None,
    **regions: int,
) -> Prepared:
    """Of a job of so many multiply-adds, or ``threads``.

    ``slot_size``, and ``regions`` by name: elements of the type that ``dtype`` is summed in; ``slots``: what the job calls its
    slots, if it has any; ``names``: see :class:`Step`; ``before``, ``after``: other jobs.
    """
    wide, used = np.dtype(wide_type(dtype)), threads or width(job.pieces, work)
    if slot_size:
        regions[slots] = used * slot_size
    ends = [0, *itertools.accumulate(cells * wide.itemsize for cells in regions.values())]
    steps = (*before, Step(job, used, names or {}), *after) if before or after or names else ()
    return Prepared(job, used, ends[-1], tuple(zip(regions, ends)), steps, np.zeros(biases, wide), sums, taps)


def whole_bias(b: np.ndarray | None, zeros: np.ndarray) -> np.ndarray:
    """A bias (F,) in the type of ``zeros``, which stand for none, and as long."""
    if b is None:
        return zeros
    if len(b) == len(zeros):
        return np.ascontiguousarray(b, zeros.dtype)
    bias = np.zeros_like(zeros)
    bias[: len(b)] = b
    return bias


Forward = Callable[[np.ndarray, np.ndarray, "np.ndarray | None", Geometry, np.ndarray], None]
Gradient = Callable[[np.ndarray, np.ndarray, Geometry, np.ndarray], None]


def both_ways(correlate: Callable[..., Any], finite: bool = False) -> tuple[Forward, Gradient]:
    """``forward`` and ``input_gradient`` by ``correlate(x, w, b, g, transposed, out)``, where there is anything to compute.

    ``finite`` : not of weights that are not: padding that is left out, times infinity, would have been NaN
    """

    def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
        """Write conv(x, w) + b into ``out`` (N, F, *output)."""
        if finite and not all_finite(w):
            columns.forward(x, w, b, g, out)
        elif out.size:
            correlate(x, w, b, g, False, out)

    def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
        """Write dL/dx (N, C, *spatial) into ``out``."""
        if finite and not all_finite(w):
            columns.input_gradient(dy, w, g, out)
        elif out.size:
            correlate(dy, w, None, g, True, out)

    return forward, input_gradient


def without_bias(weight_and_bias_gradient: Callable[..., None]) -> Gradient:
    """``weight_gradient`` by one that computes the bias gradient with it."""

    def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
        """Write dL/dw (F, C // groups, *kernel) into ``out``."""
        weight_and_bias_gradient(dy, x, g, out, np.empty(g.filters, out.dtype))

    return weight_gradient
