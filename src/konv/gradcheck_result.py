"""What a gradient check found: element by element, array by array."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Element:
    """One compared element; or, with ``problem``, an array that could not be compared."""

    array: str
    index: tuple[int, ...]
    numerical: float
    analytical: float
    difference: float
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Both numbers finite, and not further apart than the tolerance."""
        finite = math.isfinite(self.numerical) and math.isfinite(self.analytical)
        return finite and not self.problem and self.difference <= self.tolerance

    @property
    def excess(self) -> float:
        """``difference / tolerance``, at most 1 where it passed; infinite where no number can tell."""
        if self.difference == 0:
            return 0.0
        ratio = self.difference / self.tolerance if self.tolerance else math.inf
        return ratio if math.isfinite(ratio) else math.inf

    def __str__(self) -> str:
        place = f"{self.array}[{', '.join(map(str, self.index))}]" if self.index else self.array
        if self.problem:
            return f"{place}: {self.problem}"
        return (
            f"{place}: numerical {self.numerical:.10g}, analytical {self.analytical:.10g}, "
            f"difference {self.difference:.3g}, tolerance {self.tolerance:.3g}"
        )


@dataclass(frozen=True)
class ArrayResult:
    """The check of one array: ``checked`` of its ``size`` elements, its largest numerical gradient, its worst element."""

    name: str
    shape: tuple[int, ...]
    checked: int
    size: int
    largest: float
    worst: Element

    @property
    def passed(self) -> bool:
        """Every checked element passed."""
        return self.worst.passed


@dataclass(frozen=True)
class GradcheckResult:
    """What :func:`gradcheck` found. It is true exactly if ``passed``; as text it is a table with a row for each array.

    Attributes
    ----------
    passed : bool
    worst : Element
        That with the largest difference / tolerance over all arrays, a NaN or infinity before any number.
    elements : int
        How many elements were compared.
    arrays : tuple of ArrayResult
        Inputs first, then parameters.
    """

    passed: bool
    worst: Element
    elements: int
    arrays: tuple[ArrayResult, ...]

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        head = ("array", "shape", "checked", "largest gradient", "worst difference", "tolerance", "")
        rows = [head]
        for a in self.arrays:
            worst = ("-", "-") if a.worst.problem else (f"{a.worst.difference:.2e}", f"{a.worst.tolerance:.2e}")
            largest = "-" if a.worst.problem else f"{a.largest:.3g}"
            verdict = "ok" if a.passed else "WRONG"
            rows.append((a.name, str(a.shape), f"{a.checked} of {a.size}", largest, *worst, verdict))
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        verdict = "gradients agree" if self.passed else "gradients differ"
        return "\n".join([*table, f"{verdict} ({self.elements} elements); worst: {self.worst}"])
