"""DownConv's two convolutions and the ReLU between them as one operation on (B, L, H): check -> plan -> run.

The engine's fused kernels compute it where they do not decline; else :mod:`konv.ops` computes one after the other. Which of
them follows from shapes and dtype alone. Arrays and errors as in :mod:`konv.ops`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np

from konv import ops
from konv.arguments import checked_integer
from konv.arrays import check_upstream, checked_floats, dtype_name

GRADIENTS = ("x", "w1", "b1", "w2", "b2")


def down_conv(
    x: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray | None,
    w2: np.ndarray,
    b2: np.ndarray | None,
    *,
    padding: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A convolution, ReLU and a convolution, each with its kernel for a stride, of sequences that lie as (B, L, H).

    ``h[b, w, c] = max(0, b1[c] + sum over t, f of w1[c, f, t] * x[b, w * k1 + t, f])`` for ``L // k1`` windows,
    ``y[b, s, g] = b2[g] + sum over t, c of w2[g, c, t] * h[b, s * k2 + t - padding, c]``, h being 0 outside.

    Parameters
    ----------
    x : (B, L, H)
    w1 : (C, H, k1), b1 : (C,) or None
    w2 : (G, C, k2), b2 : (G,) or None
    padding : windows of zeros at each end of h

    Returns
    -------
    y : (B, m, G), with ``m = (L // k1 + 2 * padding - k2) // k2 + 1``
    hidden : (B, m * k2, C), h as the segments read it, padding included: what :func:`down_conv_backward` needs

    Raises
    ------
    TypeError
        An array is not a NumPy array of one floating point dtype, or ``padding`` is no integer.
    ValueError
        Shapes do not meet, L is less than k1, no segment fits, or ``padding`` is negative.

    Examples
    --------
    >>> x = np.arange(12.0).reshape(1, 6, 2)
    >>> y, hidden = down_conv(x, np.ones((1, 2, 3)), None, np.ones((2, 1, 2)), np.array([0.0, 0.5]))
    >>> y, hidden
    (array([[[66. , 66.5]]]), array([[[15.],
            [51.]]]))
    """
    x, w1, b1, w2, b2 = _floats(x=x, w1=w1, b1=b1, w2=w2, b2=b2)
    shape = _shape(x, w1, w2, padding)
    for name, bias, length in (("b1", b1, shape.channels), ("b2", b2, shape.outputs)):
        if bias is not None and bias.shape != (length,):
            raise ValueError(f"{name} has shape {bias.shape}; expected ({length},), one for each filter of w{name[1]}")
    engine = _engine()
    if engine.declines(shape) is not None:
        return _layered(x, w1, b1, w2, b2, shape)
    y = np.empty((shape.batch, shape.segments, shape.outputs), x.dtype)
    contiguous = (None if a is None else np.ascontiguousarray(a) for a in (x, w1, b1, w2, b2))
    return y, engine.forward(*contiguous, shape, y)


def down_conv_backward(
    dy: np.ndarray,
    x: np.ndarray,
    hidden: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    *,
    padding: int = 0,
    need: Collection[str] = GRADIENTS,
) -> tuple[Any, ...]:
    """Gradients of :func:`down_conv`: from ``dy = dL/dy`` to ``(dL/dx, dL/dw1, dL/db1, dL/dw2, dL/db2)``.

    The ReLU's gradient at 0 is 0. x is read once, and its gradient written once.

    Parameters
    ----------
    dy : (B, m, G), x : (B, L, H), w1 : (C, H, k1), w2 : (G, C, k2)
    hidden : (B, m * k2, C), the second result of the forward call
    padding : that of the forward call
    need : which of "x", "w1", "b1", "w2", "b2" to compute

    Returns
    -------
    (dx, dw1, db1, dw2, db2) : shapes of x, w1, (C,), w2 and (G,); None where not needed

    Raises
    ------
    TypeError, ValueError
        As :func:`down_conv`; and ``dy`` and ``hidden`` must have the shapes of the forward results.

    Examples
    --------
    >>> x, w1, w2 = np.ones((1, 4, 1)), np.ones((1, 1, 2)), np.array([[[1.0, 10.0]]])
    >>> y, hidden = down_conv(x, w1, None, w2, None)
    >>> dx, dw1, db1, dw2, db2 = down_conv_backward(np.ones_like(y), x, hidden, w1, w2)
    >>> dx.ravel(), dw1.ravel(), db1, dw2.ravel(), db2
    (array([ 1.,  1., 10., 10.]), array([11., 11.]), array([11.]), array([2., 2.]), array([1.]))
    """
    dy, x, hidden, w1, w2 = checked_floats(dy=dy, x=x, hidden=hidden, w1=w1, w2=w2)
    shape = _shape(x, w1, w2, padding)
    check_upstream(dy, (shape.batch, shape.segments, shape.outputs))
    check_upstream(hidden, (shape.batch, shape.segments * shape.k2, shape.channels), "hidden")
    if not isinstance(need, Collection) or not set(need) <= set(GRADIENTS):
        raise ValueError(f"need={need!r}: expected names out of {GRADIENTS}")
    first, second = bool({"w1", "b1"} & set(need)), bool({"w2", "b2"} & set(need))
    engine = _engine()
    if engine.declines(shape) is not None:
        found = _layered_backward(dy, x, hidden, w1, w2, shape, need)
    else:
        dx = engine.empty_gradient(x) if "x" in need else None
        contiguous = (np.ascontiguousarray(a) for a in (dy, x, hidden, w1, w2))
        found = dx, *engine.backward(*contiguous, shape, dx, first, second)
    return tuple(gradient if name in need else None for name, gradient in zip(GRADIENTS, found))


def _floats(**given: np.ndarray | None) -> tuple[Any, ...]:
    """The arrays, checked; biases may be None."""
    there = {name: array for name, array in given.items() if array is not None or not name.startswith("b")}
    checked = dict(zip(there, checked_floats(**there)))
    return tuple(checked.get(name) for name in given)


def _shape(x: np.ndarray, w1: np.ndarray, w2: np.ndarray, padding: int) -> Any:
    return down_shape(x.shape, w1.shape, w2.shape, checked_integer("padding", padding, 0), dtype_name(x.dtype))


@functools.lru_cache(maxsize=256)
def down_shape(x: tuple[int, ...], w1: tuple[int, ...], w2: tuple[int, ...], padding: int, dtype: str) -> Any:
    """The engine's description of arrays of these shapes, which must fit: a ``konv.engine.downconv.down.Shape``."""
    for name, shape, axes in (("x", x, "(B, L, H)"), ("w1", w1, "(C, H, k1)"), ("w2", w2, "(G, C, k2)")):
        if len(shape) != 3 or 0 in shape[name == "x" :]:
            raise ValueError(
                f"{name} has shape {shape}; expected {axes}{', none of them 0' if len(shape) == 3 else ''}"
            )
    if w1[1] != x[2]:
        raise ValueError(f"w1 has shape {w1}, H = {w1[1]}, but x has shape {x}, H = {x[2]}")
    if w2[1] != w1[0]:
        raise ValueError(f"w2 has shape {w2}, C = {w2[1]}, but w1 has shape {w1}, C = {w1[0]}")
    if x[1] < w1[2]:
        raise ValueError(f"x has shape {x}: its length {x[1]} is less than a window, k1 = {w1[2]}")
    segments = (x[1] // w1[2] + 2 * padding - w2[2]) // w2[2] + 1
    if segments < 1:
        raise ValueError(
            f"no segment fits: L // k1 + 2 * padding = {x[1]} // {w1[2]} + 2 * {padding} = "
            f"{x[1] // w1[2] + 2 * padding} windows are less than k2 = {w2[2]}"
        )
    return _engine().Shape(*x, w1[2], w1[0], w2[2], segments, padding, w2[0], dtype)


def _layered(
    x: np.ndarray, w1: np.ndarray, b1: np.ndarray | None, w2: np.ndarray, b2: np.ndarray | None, shape: Any
) -> tuple[np.ndarray, np.ndarray]:
    """One after the other."""
    from konv.engine import rectify

    h, _ = rectify.forward(ops.conv(x.transpose(0, 2, 1), w1, b1, stride=shape.k1))
    hidden = np.zeros((shape.batch, shape.segments * shape.k2, shape.channels), x.dtype)
    hidden[:, shape.padding : shape.padding + shape.windows] = h.transpose(0, 2, 1)[:, : shape.windows]
    y = ops.conv(hidden.transpose(0, 2, 1), w2, b2, stride=shape.k2)
    return np.ascontiguousarray(y.transpose(0, 2, 1)), hidden


def _layered_backward(
    dy: np.ndarray, x: np.ndarray, hidden: np.ndarray, w1: np.ndarray, w2: np.ndarray, shape: Any,
    need: Collection[str],
) -> tuple[Any, ...]:  # fmt: skip
    from konv.engine import rectify

    before = [name for name in ("x", "w", "b") if name.replace("w", "w1").replace("b", "b1") in need]
    after = [name for name in ("w", "b") if name + "2" in need] + ["x"] * bool(before)
    dh, dw2, db2 = ops.conv_backward(dy.transpose(0, 2, 1), hidden.transpose(0, 2, 1), w2, stride=shape.k2, need=after)
    if not before:
        return None, None, None, dw2, db2
    gated = rectify.gradient(dh.transpose(0, 2, 1), hidden <= 0)[:, shape.padding : shape.padding + shape.windows]
    dwindows = np.zeros((shape.batch, shape.length // shape.k1, shape.channels), x.dtype)
    dwindows[:, : shape.windows] = gated
    dx, dw1, db1 = ops.conv_backward(
        dwindows.transpose(0, 2, 1), x.transpose(0, 2, 1), w1, stride=shape.k1, need=before
    )
    return None if dx is None else np.ascontiguousarray(dx.transpose(0, 2, 1)), dw1, db1, dw2, db2


def _engine() -> Any:
    from konv.engine.downconv import down  # imports LLVM, which takes a while

    return down
