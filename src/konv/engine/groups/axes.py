"""The axes of correlations, phase by phase, for the kernels with pixels in lanes (see :mod:`konv.engine.direct.direct`)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

from konv.geometry import Geometry

FORWARD = -1  # a phase number: those of the input gradient count from 0


@dataclass(frozen=True)
class Axis:
    """One axis of a correlation: output o reads cell ``o * stride + taps[k] - pad`` and is written to ``start + o * step``.

    ``weights[k]`` is the kernel index that belongs to ``taps[k]``.
    """

    length: int
    out: int
    stride: int
    pad: int
    taps: tuple[int, ...]
    weights: tuple[int, ...]
    start: int = 0
    step: int = 1

    @property
    def window(self) -> int:
        """Cells that one output spans; none where a phase of an input gradient has no taps."""
        return max(self.taps, default=-1) + 1

    @property
    def ascending(self) -> Axis:
        """The same, its taps in the order of the cells: those of an input gradient run backwards."""
        pairs = sorted(zip(self.taps, self.weights))
        return replace(self, taps=tuple(tap for tap, _ in pairs), weights=tuple(weight for _, weight in pairs))


Axes = tuple[Axis, ...]


@functools.lru_cache(maxsize=512)
def gradient_phases(g: Geometry) -> tuple[int, ...]:
    """The phases of the input gradient that compute anything: those with taps and cells on every axis."""
    return tuple(i for i, axes in enumerate(gradient_axes(g)) if all(axis.taps and axis.out > 0 for axis in axes))


@functools.lru_cache(maxsize=512)
def leaves_cells(g: Geometry) -> bool:
    """Whether some phase of the input gradient has no tap, so that its cells are zero."""
    return not all(axis.taps for axes in gradient_axes(g) for axis in axes)


def axes_of(g: Geometry, phase: int) -> Axes:
    """The axes of the forward correlation (``FORWARD``), or of a phase of the input gradient."""
    return forward_axes(g) if phase == FORWARD else gradient_axes(g)[phase]


@functools.lru_cache(maxsize=512)
def forward_axes(g: Geometry) -> Axes:
    """The three axes of the forward correlation."""
    axes = []
    for i in range(g.axes):
        taps = tuple(k * g.dilation[i] for k in range(g.kernel[i]))
        axes.append(Axis(g.spatial[i], g.output[i], g.stride[i], g.padding[i][0], taps, tuple(range(g.kernel[i]))))
    return _three(axes)


@functools.lru_cache(maxsize=512)
def gradient_axes(g: Geometry) -> tuple[Axes, ...]:
    """The axes of each phase of the input gradient."""
    choices = []
    for i in range(g.axes):
        stride, dilation, low, length = g.stride[i], g.dilation[i], g.padding[i][0], g.spatial[i]
        phases = []
        for phase in range(stride):
            kernel = tuple(t for t in range(g.kernel[i]) if t * dilation % stride == phase)
            back = [(t * dilation - phase) // stride for t in kernel]  # o = m - back
            first = -(-(low - phase) // stride)  # the first m whose cell lies past the low padding
            start = first * stride + phase - low
            count = max(0, -(-(length - start) // stride))
            far = max(back, default=0)
            taps = tuple(far - b for b in back)
            phases.append(Axis(g.output[i], count, 1, far - first, taps, kernel, start, stride))
        choices.append(phases)
    return tuple(_three(list(axes)) for axes in itertools.product(*choices))


def _three(axes: list[Axis]) -> Axes:
    return (*[Axis(1, 1, 1, 0, (0,), (0,))] * (3 - len(axes)), *axes)
