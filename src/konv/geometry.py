"""Shapes: kernel, stride, padding, dilation and groups -> what a convolution reads, pads and writes.

Everything here is integer arithmetic on shapes; no array of data is touched. Every shape error of konv is raised here, or
for one argument by itself in :mod:`konv.arguments`, with the formula and the caller's numbers. Along one spatial axis of
length ``L`` the convention is::

    window = dilation * (kernel - 1) + 1
    out    = (L + low + high - window) // stride + 1
    output o reads the padded cells  o * stride + k * dilation,  k = 0 .. kernel - 1
    and padded cell p is input cell  p - low
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from konv.arguments import (
    PADDING_MODES,
    IntOrAxes,
    Padding,
    channels_last_hint,
    checked_integer,
    checked_shapes,
    checked_x_shape,
    padding_pairs,
    per_axis,
    source_cells,
)
from konv.names import names_told

MAX_BYTES = np.iinfo(np.intp).max


@dataclass(frozen=True)
class Geometry:
    """The shape of one convolution, checked. Made by :func:`geometry`.

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


@names_told
def geometry(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    dtype: Any = np.float32,
) -> Geometry:
    """Check the shapes of a convolution and return its :class:`Geometry`. No data is needed, none is allocated.

    Parameters
    ----------
    x_shape : (N, C, *spatial), 1 to 3 spatial axes; N may be 0
    w_shape : (F, C // groups, *kernel)
    stride, dilation : int, or one int per spatial axis, at least 1
    padding : int | one int per axis | a (low, high) pair per axis | str
        ``"valid"``: none. ``"same"``: ``ceil(L / stride)`` outputs, the odd cell at the end; ``"same_lower"``: the odd
        cell at the start. ``"causal"`` (1-D): ``dilation * (kernel - 1)`` cells before, none after.
    groups : int that divides C and F
    padding_mode : "zeros" | "reflect" (``cb|abc|ba``) | "replicate" (``aa|abc|cc``) | "circular" (``bc|abc|ab``)
    dtype : element type, for byte counts only

    Returns
    -------
    Geometry
        The shapes as checked numbers, one for each axis; as text a table of shapes, work, unread cells and padding.

    Raises
    ------
    TypeError
        An argument is not an integer (bool included) or a sequence of them.
    ValueError
        The shapes do not meet, a window is longer than its padded axis, or an array would exceed the address space.

    Examples
    --------
    >>> g = geometry((1, 3, 7), (8, 3, 3), stride=2, padding="same")
    >>> g.output_shape, g.padding
    ((1, 8, 4), ((1, 1),))
    >>> geometry((1, 1, 8), (1, 1, 3), stride=3).read(0)  # the tail is never read
    array([ True,  True,  True,  True,  True,  True, False, False])
    >>> geometry((1, 1, 4), (1, 1, 3), padding=1).padding_share()
    array([0.33333333, 0.        , 0.        , 0.33333333])
    """
    groups = checked_integer("groups", groups, 1)
    x_shape, w_shape = checked_shapes(x_shape, w_shape, groups, transposed=False)
    axes = len(x_shape) - 2
    (batch, channels, *spatial), (filters, group_channels, *kernel) = x_shape, w_shape
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups={groups} must divide the channels of x (C={channels}) and the filters of w (F={filters})"
            + channels_last_hint(x_shape, group_channels * groups)
        )
    if group_channels != channels // groups:
        raise ValueError(
            f"w has shape {w_shape}, x has shape {x_shape}: w's second axis must be C // groups = "
            f"{channels} // {groups} = {channels // groups}, it is {group_channels}"
            + channels_last_hint(x_shape, group_channels * groups)
        )
    strides, dilations = per_axis("stride", stride, axes), per_axis("dilation", dilation, axes)
    if not isinstance(padding_mode, str) or padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode!r}: expected one of {', '.join(map(repr, PADDING_MODES))}")
    windows = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations))
    pads = padding_pairs(padding, tuple(spatial), windows, strides)
    for axis, (length, pair) in enumerate(zip(spatial, pads)):
        _check_padding_mode(padding_mode, axis, length, pair)
    output = tuple(
        _output_length(axis, *numbers)
        for axis, numbers in enumerate(zip(spatial, pads, windows, strides, kernel, dilations))
    )
    result = Geometry(
        batch, channels, filters, groups, tuple(spatial), tuple(kernel), strides, pads, dilations, output,
        padding_mode, np.dtype(dtype).itemsize,
    )  # fmt: skip
    _check_sizes(result)
    return _within_reach(result)


def transposed_geometry(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    dtype: Any = np.float32,
) -> Geometry:
    """The convolution whose input gradient is this transposed convolution.

    A transposed convolution of x (N, C, *spatial) with w (C, F // groups, *kernel) gives y (N, F, *out),
    ``out = (L - 1) * stride - low - high + dilation * (kernel - 1) + 1 + output_padding``. It is the input gradient of
    the convolution that takes y's shape to x's, and that convolution's geometry is returned: its ``x_shape`` is the
    result's shape, its ``output_shape`` is the shape of x. (With ``stride <= output_padding < dilation`` that convolution has
    room for more outputs than x has cells; the geometry has those of x.)

    Parameters
    ----------
    x_shape, w_shape : as above
    stride, dilation, groups : as for :func:`geometry`
    padding : cells cut from each end of the result: int, one per axis, or a (low, high) pair per axis, or "valid"
    output_padding : int or one per axis, less than ``max(stride, dilation)``: cells added at the end of the result

    Raises
    ------
    TypeError, ValueError
        As :func:`geometry`; and when the result would have no cell on an axis.

    Examples
    --------
    >>> transposed_geometry((1, 8, 5), (8, 4, 3), stride=2, padding=1, output_padding=1).x_shape
    (1, 4, 10)
    """
    groups = checked_integer("groups", groups, 1)
    x_shape, w_shape = checked_shapes(x_shape, w_shape, groups, transposed=True)
    axes = len(x_shape) - 2
    (batch, channels, *spatial), (w_channels, group_filters, *kernel) = x_shape, w_shape
    if channels != w_channels:
        raise ValueError(
            f"x has {channels} channels (shape {x_shape}) but w has {w_channels} on its first axis ({w_shape})"
            + channels_last_hint(x_shape, w_channels)
        )
    if channels % groups:
        raise ValueError(f"groups={groups} must divide the channels of x (C={channels})")
    strides, dilations = per_axis("stride", stride, axes), per_axis("dilation", dilation, axes)
    extra = per_axis("output_padding", output_padding, axes, minimum=0)
    windows = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations))
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding={padding!r}: a transposed convolution takes numbers, (low, high) pairs, or 'valid'")
    pads = padding_pairs(padding, tuple(spatial), windows, strides)
    out = []
    for axis, (length, (low, high)) in enumerate(zip(spatial, pads)):
        if extra[axis] >= max(strides[axis], dilations[axis]):
            raise ValueError(
                f"output_padding={extra[axis]} on spatial axis {axis} must be less than max(stride, dilation) = "
                f"max({strides[axis]}, {dilations[axis]})"
            )
        out.append((length - 1) * strides[axis] - low - high + windows[axis] + extra[axis])
        if out[-1] < 1:
            raise ValueError(
                f"spatial axis {axis}: (L - 1) * stride - low - high + dilation * (kernel - 1) + 1 + output_padding = "
                f"({length} - 1) * {strides[axis]} - {low} - {high} + {windows[axis]} + {extra[axis]} = {out[-1]}; "
                "the result needs at least one cell"
            )
    result = Geometry(
        batch, group_filters * groups, channels, groups, tuple(out), tuple(kernel), strides, pads, dilations,
        tuple(spatial), "zeros", np.dtype(dtype).itemsize,
    )  # fmt: skip
    _check_sizes(result)
    return _within_reach(result)


def window_geometry(
    x_shape: Sequence[int],
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    dtype: Any = np.float32,
) -> Geometry:
    """The geometry of windows that slide over each channel by itself: of im2col, unfold and pooling.

    Raises
    ------
    TypeError, ValueError
        As :func:`geometry`.

    Examples
    --------
    >>> window_geometry((1, 3, 28, 28), 5, stride=2).output_shape
    (1, 3, 12, 12)
    """
    x_shape = checked_x_shape(x_shape)
    channels, kernel = x_shape[1], per_axis("kernel_size", kernel_size, len(x_shape) - 2)
    w_shape = (channels, 1, *kernel)
    return geometry(x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=channels, dtype=dtype)


def pooling_geometry(
    x_shape: Sequence[int],
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    dtype: Any = np.float32,
) -> Geometry:
    """The geometry of a pooling: ``stride`` is the kernel size where None, and no window may see padding alone.

    Raises
    ------
    TypeError, ValueError
        As :func:`geometry`; and when a window would see padding alone.

    Examples
    --------
    >>> pooling_geometry((1, 3, 28, 28), 2).output_shape
    (1, 3, 14, 14)
    """
    g = window_geometry(
        x_shape, kernel_size, stride=kernel_size if stride is None else stride, padding=padding, dilation=dilation,
        dtype=dtype,
    )  # fmt: skip
    for axis in range(g.axes):
        count = g.output[axis]
        outputs = np.array([0, count - 1])  # the ends first: numbers for all may not fit, where padding has no end
        if g.real_taps(axis, outputs).all():
            outputs = np.arange(count)
        empty = outputs[g.real_taps(axis, outputs) == 0]
        if empty.size:
            raise ValueError(
                f"spatial axis {axis}: pooling window {empty[0]} of {count} would see padding alone (length "
                f"{g.spatial[axis]}, padding {g.padding[axis]}, kernel {g.kernel[axis]}, stride {g.stride[axis]}); "
                "use less padding"
            )
    return g


def are_plain(options: tuple[Any, ...]) -> bool:
    """Whether all are exact ints, strings and None, or tuples of such: a geometry that was checked for them may be kept.

    True and 1.0 equal 1, and would find its geometry, no error.
    """
    return _PLAIN.issuperset(map(type, options)) or all(
        type(option) in _PLAIN or (type(option) is tuple and are_plain(option)) for option in options
    )


_PLAIN = frozenset((int, str, type(None)))


def _output_length(
    axis: int, length: int, pair: tuple[int, int], window: int, stride: int, kernel: int, dilation: int
) -> int:
    low, high = pair
    out = (length + low + high - window) // stride + 1
    if length + low + high < window:
        raise ValueError(
            f"spatial axis {axis}: the window is longer than the padded input: dilation * (kernel - 1) + 1 = "
            f"{dilation} * ({kernel} - 1) + 1 = {window} > {length} + {low} + {high} = {length + low + high} (length + padding)"
        )
    return out


def _check_padding_mode(mode: str, axis: int, length: int, pair: tuple[int, int]) -> None:
    limit = {"reflect": length - 1, "circular": length}.get(mode)
    if limit is not None and max(pair) > limit:
        formula = "length - 1" if mode == "reflect" else "length"
        raise ValueError(
            f"padding={pair} on spatial axis {axis}: padding_mode={mode!r} can add at most {formula} = {limit} cells at an "
            f"end of an axis of {length}"
        )


def _check_sizes(g: Geometry) -> None:
    padded = (g.batch, g.channels, *g.padded)
    for name, shape in (("x", g.x_shape), ("padded x", padded), ("w", g.w_shape), ("the result", g.output_shape)):
        # Axes of length 0 hide what the others ask for: NumPy cannot index those shapes either.
        size = math.prod(max(1, n) for n in shape) * g.itemsize
        if size > MAX_BYTES:
            raise ValueError(
                f"{name} would have shape {shape}: {size:,} bytes, more than an array can have ({MAX_BYTES:,})"
            )


def _within_reach(g: Geometry) -> Geometry:
    """``g`` with no stride or dilation beyond its axis.

    A stride without a second output, and the dilation of one tap, may be any number and mean nothing: kept, 2**40 would ask for
    memory, and 2**70 for more than 64 bits. One cell past the axis they mean as little, and still are no stride of 1.
    """
    ends = tuple(length + 1 for length in g.padded)
    if all(s <= end and d <= end for s, d, end in zip(g.stride, g.dilation, ends)):
        return g
    stride, dilation = tuple(map(min, g.stride, ends)), tuple(map(min, g.dilation, ends))
    return dataclasses.replace(g, stride=stride, dilation=dilation)
