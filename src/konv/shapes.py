"""The shape of one convolution as checked numbers, and what follows from them: work, unread cells, padding, the receptive field.

:mod:`konv.geometry` checks the arguments and tells how output and window are counted.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.arguments import checked_integer, source_cells


@dataclass(frozen=True)
class Geometry:
    """The shape of one convolution, checked. Made by :func:`konv.geometry`.

    Attributes
    ----------
    batch, channels, filters, groups : int
    spatial, kernel, stride, dilation, output : tuple of int, one per spatial axis
        A stride or dilation beyond the padded axis, where it means nothing, is shown as the axis's length + 1.
    padding : tuple of (low, high), cells added before and after each axis
    padding_mode : "zeros", "reflect", "replicate" or "circular"
    itemsize : bytes per element, for :attr:`bytes`
    """

    batch: int
    channels: int
    filters: int
    groups: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output: tuple[int, ...]
    padding_mode: str = "zeros"
    itemsize: int = 4

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.x_shape, self.w_shape, self.stride, self.padding, self.dilation, self.output, self.itemsize))

    def __hash__(self) -> int:  # a geometry is the key of every plan: computed once
        return self._hash

    @property
    def axes(self) -> int:
        """Number of spatial axes: 1, 2 or 3."""
        return len(self.spatial)

    @functools.cached_property
    def x_shape(self) -> tuple[int, ...]:
        """(N, C, *spatial)"""
        return (self.batch, self.channels, *self.spatial)

    @functools.cached_property
    def w_shape(self) -> tuple[int, ...]:
        """(F, C // groups, *kernel)"""
        return (self.filters, self.channels // self.groups, *self.kernel)

    @functools.cached_property
    def output_shape(self) -> tuple[int, ...]:
        """(N, F, *output)"""
        return (self.batch, self.filters, *self.output)

    @property
    def padded(self) -> tuple[int, ...]:
        """Length of each spatial axis with its padding."""
        return tuple(low + length + high for length, (low, high) in zip(self.spatial, self.padding))

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """Cells that one output spans on each axis: ``dilation * (kernel - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation))

    @property
    def flops(self) -> int:
        """Floating point operations of the forward pass: two (multiply, add) for each output and weight it meets."""
        return 2 * math.prod(self.output_shape) * (self.channels // self.groups) * math.prod(self.kernel)

    @property
    def bytes(self) -> int:
        """Bytes of x, w and y together: the least that the forward pass moves."""
        elements = math.prod(self.x_shape) + math.prod(self.w_shape) + math.prod(self.output_shape)
        return elements * self.itemsize

    def read(self, axis: int) -> np.ndarray:
        """Which cells of spatial axis ``axis`` some window reads: bool, shape (spatial[axis],).

        A cell of the input is read exactly if it is read on every axis.

        Raises
        ------
        TypeError, ValueError
            ``axis`` is no integer, or there is no such spatial axis.
        """
        self._check_axis(axis)
        length, (low, high) = self.spatial[axis], self.padding[axis]
        kernel, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        out, window = self.output[axis], self.receptive_field[axis]
        touched = np.zeros(low + length + high, bool)
        if kernel <= out:
            for k in range(kernel):
                touched[k * dilation : k * dilation + (out - 1) * stride + 1 : stride] = True
        else:
            for o in range(out):
                touched[o * stride : o * stride + window : dilation] = True
        if self.padding_mode == "zeros":
            return touched[low : low + length]
        result = np.zeros(length, bool)
        result[source_cells(length, (low, high), self.padding_mode)[touched]] = True
        return result

    def _check_axis(self, axis: int) -> None:
        if checked_integer("axis", axis, 0) >= self.axes:
            raise ValueError(f"axis={axis}: expected one of the {self.axes} spatial axes, 0 to {self.axes - 1}")

    @property
    def unread_cells(self) -> int:
        """Input cells of one channel that no window reads."""
        return math.prod(self.spatial) - math.prod(int(self.read(a).sum()) for a in range(self.axes))

    def real_taps(self, axis: int, outputs: np.ndarray | None = None) -> np.ndarray:
        """For outputs along ``axis`` (all of them), how many of the ``kernel`` taps fall on input, not on padding: int.

        Raises
        ------
        TypeError, ValueError
            As :meth:`read`.
        """
        self._check_axis(axis)
        length, (low, _) = self.spatial[axis], self.padding[axis]
        kernel, dilation = self.kernel[axis], self.dilation[axis]
        if outputs is None:
            outputs = np.arange(self.output[axis], dtype=np.int64)
        start = outputs * self.stride[axis] - low
        first = np.maximum(0, -(start // dilation))  # ceil(-start / dilation)
        last = np.minimum(kernel - 1, (length - 1 - start) // dilation)
        return np.maximum(0, last - first + 1)

    def padding_share(self) -> np.ndarray:
        """Share of each output's window that is padding: float64 in [0, 1], shape ``output``."""
        real = np.ones(())
        for axis in range(self.axes):
            real = np.multiply.outer(real, self.real_taps(axis) / self.kernel[axis])
        return 1.0 - real

    def _real_share(self, axis: int) -> tuple[float, float]:
        """Mean and least share of real cells in the windows along ``axis``. Only windows at the ends can see padding."""
        (low, _), stride, out = self.padding[axis], self.stride[axis], self.output[axis]
        front = min(out, -(-low // stride))
        back = max(front, (self.spatial[axis] - self.receptive_field[axis] + low) // stride + 1)
        ends = self.real_taps(axis, np.r_[0:front, back : max(back, out)])
        kernel = self.kernel[axis]
        mean = (ends.sum() + kernel * (out - len(ends))) / (kernel * out)
        return float(mean), float(ends.min(initial=kernel)) / kernel

    def __str__(self) -> str:
        means, least = zip(*(self._real_share(axis) for axis in range(self.axes)))
        lines = [
            f"x {self.x_shape}, w {self.w_shape} -> y {self.output_shape}",
            f"stride {self.stride}, padding {self.padding} {self.padding_mode}, dilation {self.dilation}, groups {self.groups}",
            f"receptive field  {' x '.join(map(str, self.receptive_field))}",
            f"work             {self.flops:,} FLOP on {self.bytes:,} bytes",
            f"never read       {self.unread_cells:,} of {math.prod(self.spatial):,} cells of each channel",
            f"padding          {1 - math.prod(means):.1%} of the windows' cells, {1 - math.prod(least):.1%} of the worst",
        ]
        return "\n".join(lines)
