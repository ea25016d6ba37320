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
import math
from collections.abc import Sequence
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
)
from konv.names import names_told
from konv.shapes import Geometry

MAX_BYTES = np.iinfo(np.intp).max


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
