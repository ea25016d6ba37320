"""Arguments of a convolution, as numbers: shapes, strides, paddings are checked here, one by one.

How they meet is the matter of :mod:`konv.geometry`. Each error names the argument and the caller's value.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""The padding modes (PyTorch's names) and what ``numpy.pad`` calls them."""

NAMED_PADDINGS = ("valid", "same", "same_lower", "causal")

IntOrAxes = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


def checked_integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int, at least ``minimum``; a bool or a float is a TypeError that names the argument.

    >>> checked_integer("stride", 1.5, 1)
    Traceback (most recent call last):
    TypeError: stride=1.5: expected an integer, not float
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r}: expected an integer, not a bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an integer, not {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name}={number}: must be at least {minimum}")
    return number


def per_axis(name: str, value: IntOrAxes, axes: int, minimum: int = 1) -> tuple[int, ...]:
    """``value`` as one int for each of ``axes`` spatial axes, each at least ``minimum``.

    >>> per_axis("stride", 2, 3), per_axis("stride", (1, 2), 2)
    ((2, 2, 2), (1, 2))
    """
    if _is_sequence(value):
        values = tuple(value)  # type: ignore[arg-type]
        if len(values) != axes:
            raise ValueError(
                f"{name}={value!r} has {len(values)} entries; expected an int or one for each of {axes} axes"
            )
        return tuple(checked_integer(f"{name}[{i}]", v, minimum) for i, v in enumerate(values))
    return (checked_integer(name, value, minimum),) * axes


def padding_pairs(
    padding: Padding,
    spatial: tuple[int, ...],
    windows: tuple[int, ...],
    strides: tuple[int, ...],
    name: str = "padding",
) -> tuple[tuple[int, int], ...]:
    """``padding`` as a (low, high) pair for each axis.

    >>> padding_pairs("same", (7, 8), (4, 4), (1, 1))
    ((1, 2), (1, 2))
    """
    axes = len(spatial)
    if isinstance(padding, str):
        if padding not in NAMED_PADDINGS:
            raise ValueError(f"{name}={padding!r}: expected one of {', '.join(map(repr, NAMED_PADDINGS))}, or numbers")
        if padding == "valid":
            return ((0, 0),) * axes
        if padding == "causal":
            if axes != 1:
                raise ValueError(f"{name}='causal' needs one spatial axis (time), x has {axes}")
            return ((windows[0] - 1, 0),)
        totals = [max(0, (-(-n // s) - 1) * s + w - n) for n, w, s in zip(spatial, windows, strides)]
        pairs = [(total // 2, total - total // 2) for total in totals]
        return tuple(pairs) if padding == "same" else tuple((high, low) for low, high in pairs)
    if not _is_sequence(padding):
        return ((checked_integer(name, padding, 0),) * 2,) * axes
    entries = tuple(padding)  # type: ignore[arg-type]
    if len(entries) != axes:
        hint = f"; for one (low, high) pair write {name}=({entries!r},)" if axes == 1 and len(entries) == 2 else ""
        raise ValueError(
            f"{name}={padding!r} has {len(entries)} entries; expected an int, one for each of {axes} axes, or a (low, high) "
            f"pair for each{hint}"
        )
    return tuple(_pair(f"{name}[{i}]", entry) for i, entry in enumerate(entries))


def _pair(name: str, entry: Any) -> tuple[int, int]:
    if not _is_sequence(entry):
        return (checked_integer(name, entry, 0),) * 2
    if len(entry) != 2:
        raise ValueError(f"{name}={entry!r} has {len(entry)} entries; expected an int or a (low, high) pair")
    return checked_integer(f"{name}[0]", entry[0], 0), checked_integer(f"{name}[1]", entry[1], 0)


def source_cells(length: int, pair: tuple[int, int], padding_mode: str) -> np.ndarray:
    """For each cell of a padded axis the input cell it repeats: int64, (low + length + high,). Not for "zeros".

    >>> source_cells(3, (2, 2), "reflect"), source_cells(3, (1, 2), "circular")
    (array([2, 1, 0, 1, 2, 1, 0]), array([2, 0, 1, 2, 0, 1]))
    """
    return np.pad(np.arange(length, dtype=np.int64), pair, mode=PADDING_MODES[padding_mode])  # type: ignore[call-overload]


def checked_shapes(
    x_shape: Any, w_shape: Any, groups: int, transposed: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of x and w as integers: x (N, C, *spatial), w of as many axes, none of them empty but the batch."""
    x, w = _shape("x", x_shape), _shape("w", w_shape)
    channels = (w[0] if transposed else w[1] * groups) if len(w) > 1 else 0
    hint = _missing_axis(x, w, channels)
    checked_x_shape(x, hint)
    if len(w) != len(x):
        layout = "(C, F // groups, *kernel)" if transposed else "(F, C // groups, *kernel)"
        raise ValueError(f"w has shape {w} and x {x}: w {layout} needs as many axes as x (N, C, *spatial){hint}")
    return x, w


def checked_x_shape(shape: Any, hint: str = "") -> tuple[int, ...]:
    """The shape of x as integers: (N, C, *spatial) with 1, 2 or 3 spatial axes."""
    shape = _shape("x", shape)
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"x has shape {shape}: expected (N, C, *spatial) with 1, 2 or 3 spatial axes{hint}")
    return shape


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if hasattr(shape, "shape") and len(shape.shape) != 1:
        raise TypeError(f"{name}_shape must be a shape, not an array; pass the shape of yours, {tuple(shape.shape)}")
    if not _is_sequence(shape):
        raise TypeError(f"{name}_shape must be a sequence of integers, not {type(shape).__name__}")
    result = tuple(checked_integer(f"{name}_shape[{i}]", n, 0) for i, n in enumerate(shape))
    for i, n in enumerate(result):
        if n == 0 and not (name == "x" and i == 0):
            raise ValueError(
                f"{name} has shape {result}: axis {i} is empty; only the batch axis of x may have length 0"
            )
    return result


def _missing_axis(x: tuple[int, ...], w: tuple[int, ...], channels: int) -> str:
    """How an x that lacks its axis of samples, of channels or both is given them, or nothing where that does not help."""
    if len(x) == len(w) - 1 and len(x) > 1 and x[0] == channels:
        return "; for one sample pass x[None]"
    if channels == 1 and 0 < len(w) - len(x) <= 2 and x:
        missing = "x[:, None]" if len(x) == len(w) - 1 else "x[None, None]"
        return f"; for x without an axis of channels pass {missing}"
    return ""


def channels_last_hint(x: tuple[int, ...], channels: int) -> str:
    """How an x (N, *spatial, C) is given its channels on axis 1; nothing where its last axis does not fit either."""
    return "; if x has its channels last, pass np.moveaxis(x, -1, 1)" if x[-1] == channels else ""


def _is_sequence(value: Any) -> bool:
    return (isinstance(value, Sequence) and not isinstance(value, (str, bytes))) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )
