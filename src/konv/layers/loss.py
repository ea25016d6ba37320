"""Softmax and cross-entropy loss in one layer."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from konv.arrays import accumulator, checked_array, checked_floats
from konv.layers.base import Layer


class SoftmaxWithLoss(Layer):
    """Mean cross-entropy of the softmax of x: ``loss = -1/N * sum over n, k of t[n, k] * log(softmax(x)[n, k])``.

    The logarithm is taken of the exponentials' sum, ``log softmax(x)[k] = x[k] - max(x) - log(sum(exp(x - max(x))))``, so
    that the loss is exact for a probability of any size: 1000 for x = [1000, 0] and the label 1. The book
    (*Deep Learning from Scratch*, sec. 5.6.3) adds 1e-7 to the probability instead, and gets 16.1.

    Attributes
    ----------
    loss : float, or None before the first forward
    y : float array (N, K), or None
        softmax(x) of the last forward, in x's dtype; readable in inference too.
    t : array, or None
        The labels of the last forward, as given.

    Examples
    --------
    >>> import numpy as np
    >>> layer = SoftmaxWithLoss()
    >>> loss = layer.forward(np.array([[1000.0, 0.0], [0.0, 0.0]]), np.array([1, 0]))
    >>> round(loss, 6)  # (1000 + log(2)) / 2
    500.346574
    >>> layer.y
    array([[1. , 0. ],
           [0.5, 0.5]])
    >>> layer.backward()
    array([[ 0.5 , -0.5 ],
           [-0.25,  0.25]])
    """

    def __init__(self) -> None:
        self.loss: float | None = None
        self.y: np.ndarray | None = None
        self.t: np.ndarray | None = None

    def forward(self, x: np.ndarray, t: np.ndarray) -> float:
        """The loss, a Python float.

        Parameters
        ----------
        x : float array (N, K)
            Scores, before the softmax, of K classes; N >= 1. float16 and bfloat16 are calculated in float32.
        t : int array (N,) of labels in 0 .. K - 1, or array (N, K)
            With two axes each row is one-hot, or any probabilities that sum to 1 (smoothed labels).

        Raises
        ------
        TypeError
            ``x`` is no float array, or ``t`` no array, or labels (N,) that are no integers.
        ValueError
            ``x`` has not two axes or no rows, ``t`` has another shape, a label is outside 0 .. K - 1, or a row of ``t`` is
            negative somewhere or does not sum to 1.
        """
        (x,) = checked_floats(x=x)
        if x.ndim != 2:
            raise ValueError(f"x must have shape (N, K), samples by classes, got shape {x.shape}")
        if x.size == 0:
            raise ValueError(f"x has shape {x.shape}; the mean loss over no samples or no classes is undefined")
        target = _target(t, *x.shape)
        scores = x.astype(accumulator(x.dtype), copy=False)
        with np.errstate(under="ignore"):  # exp(-1000) is 0, and that is right
            shifted = scores - scores.max(axis=1, keepdims=True)
            exponentials = np.exp(shifted)
            total = exponentials.sum(axis=1, keepdims=True)
            y = exponentials / total
        log_y = shifted - np.log(total)
        if target.ndim == 1:
            loss = 0.0 - float(log_y[np.arange(len(x)), target].mean(dtype=np.float64))
        else:
            # Only where t > 0: a class of score -inf has log_y = -inf, and 0 * -inf is no number.
            terms = np.multiply(target, log_y, where=target > 0, out=np.zeros(x.shape))
            loss = (0.0 - float(terms.sum(dtype=np.float64))) / len(x)
        self.loss = loss
        self.y, self.t = y.astype(x.dtype, copy=False), t
        self._remember((y, target, x.dtype))
        return loss

    def backward(self, dout: float = 1) -> np.ndarray:
        """``dx = dout * (y - t) / N``, (N, K), in x's dtype. ``dout`` is a number, the gradient of the loss.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError
            ``dout`` is no number.
        """
        y, target, dtype = self._recall()
        if isinstance(dout, np.ndarray) and dout.ndim == 0:
            dout = dout.item()
        if isinstance(dout, bool) or not isinstance(dout, numbers.Real):
            raise TypeError(f"dout must be a number, the gradient of the loss, got {type(dout).__name__}")
        self._answered()
        dx = y.copy()
        if target.ndim == 1:
            dx[np.arange(len(y)), target] -= 1
        else:
            dx -= target.astype(y.dtype, copy=False)
        dx *= float(dout) / len(y)
        return dx.astype(dtype, copy=False)


def _target(t: Any, samples: int, classes: int) -> np.ndarray:
    """``t`` checked: labels (N,) or probabilities (N, K), copied since backward reads them again."""
    t = checked_array("t", t)
    if t.shape == (samples, 1) and classes > 1:
        t = t[:, 0]  # a column of labels, as the book's gradient check has them
    if t.shape == (samples,):
        if t.dtype.kind not in "iu":
            raise TypeError(f"t is {t.dtype.name}; labels must be integers, convert with t.astype(np.int64)")
        wrong = np.flatnonzero((t < 0) | (t >= classes))
        if wrong.size:
            raise ValueError(
                f"t[{wrong[0]}] is {t[wrong[0]]}, but x has {classes} classes: labels must be in 0 .. {classes - 1}"
            )
        return t.astype(np.intp)
    if t.shape == (samples, classes):
        if t.dtype.kind not in "biu":
            checked_floats(t=t)
        target = t.astype(np.float64)
        rounding = 0.0 if t.dtype.kind in "biu" else 16 * _epsilon(t.dtype)  # room for how they were calculated
        fine = (target >= 0).all(axis=1) & (abs(target.sum(axis=1) - 1) <= rounding)
        if not fine.all():
            row = int(np.flatnonzero(~fine)[0])
            raise ValueError(f"t[{row}] is {t[row]}; a row of t must be one-hot, or probabilities that sum to 1")
        return target
    raise ValueError(
        f"t has shape {t.shape}, but x has shape ({samples}, {classes}): t must be labels of shape ({samples},) or "
        f"one-hot of shape ({samples}, {classes})"
    )


def _epsilon(dtype: np.dtype) -> float:
    """The distance from 1 to the next larger number."""
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)
