"""Which taps of a window lie in x, and which windows hold a cell: for the kernels of pooling."""

from __future__ import annotations

from konv.engine.simd import maximum, minimum, within

LOWEST = float("-inf")


def inside(first, dilation, taps, length):
    """(low, high): the taps low .. high - 1 of a window that begins at cell ``first`` lie in 0 .. length - 1."""
    low = (maximum(0 - first, 0) + (dilation - 1)) // dilation
    return low, minimum(taps, maximum(length - 1 - first + dilation, 0) // dilation)


def meeting(cell, dilation, tap, stride, out):
    """(output, how often): the window in which the padded ``cell`` is tap ``tap`` begins there, if one does (0 or 1 times)."""
    begin = cell - tap * dilation
    output = maximum(begin, 0) // stride
    return output, within(begin, out * stride) * within(maximum(begin, 0) % stride, 1)


def steps(n, stride):
    """ceil(n / stride), 0 where n is negative."""
    return (maximum(n, 0) + (stride - 1)) // stride
