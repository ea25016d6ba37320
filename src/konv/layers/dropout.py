"""Dropout."""

from __future__ import annotations

import numbers

import numpy as np

from konv.arrays import accumulator, checked_floats
from konv.layers.base import Layer
from konv.names import names_told


class Dropout(Layer):
    """Drops values at random in training, scales them down in inference, so that the expected output is the same.

    ``y = x * mask`` with ``mask = uniform > dropout_ratio`` in training, ``y = x * (1 - dropout_ratio)`` in inference.
    This is the paper's form and the book's. Frameworks mostly use the "inverted" one instead, which divides by
    ``1 - dropout_ratio`` in training and does nothing in inference.

    Source: Hinton et al., https://arxiv.org/abs/1207.0580; *Deep Learning from Scratch*, sec. 6.4.3.

    Parameters
    ----------
    dropout_ratio : float
        Share of the values to drop, 0 <= dropout_ratio < 1.
    rng : numpy.random.Generator, int or None
        Where the random numbers come from: a generator, a seed for a new one, or None for a new one without a seed.
        The attribute ``rng`` takes the same, so that a training loop can reseed.

    Attributes
    ----------
    dropout_ratio : float
    rng : numpy.random.Generator
    mask : bool array like x, or None
        True where the last training input passed; None outside training.

    Raises
    ------
    TypeError
        ``dropout_ratio`` is no number, or ``rng`` none of the above.
    ValueError
        ``dropout_ratio`` is outside [0, 1), or the seed is negative.

    Examples
    --------
    >>> import numpy as np
    >>> dropout = Dropout(0.5, rng=0)
    >>> dropout.forward(np.ones((1, 6)))
    array([[1., 0., 0., 0., 1., 1.]])
    >>> dropout.backward(np.full((1, 6), 3.0))
    array([[3., 0., 0., 0., 3., 3.]])
    >>> dropout.forward(np.ones((1, 6)), train_flg=False)
    array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])
    """

    @names_told
    def __init__(self, dropout_ratio: float = 0.5, rng: np.random.Generator | int | None = None) -> None:
        if isinstance(dropout_ratio, bool) or not isinstance(dropout_ratio, numbers.Real):
            raise TypeError(f"dropout_ratio must be a number, got {type(dropout_ratio).__name__}")
        if not 0 <= dropout_ratio < 1:
            raise ValueError(f"dropout_ratio must satisfy 0 <= dropout_ratio < 1, got {dropout_ratio}")
        self.dropout_ratio: float = float(dropout_ratio)
        self.rng = rng

    @property
    def rng(self) -> np.random.Generator:
        """The generator of the random numbers. Set it to a generator, a seed or None."""
        return self._rng

    @rng.setter
    def rng(self, rng: np.random.Generator | int | None) -> None:
        if isinstance(rng, bool) or not (rng is None or isinstance(rng, (np.random.Generator, numbers.Integral))):
            raise TypeError(f"rng must be a numpy.random.Generator, an int or None, got {type(rng).__name__}")
        if isinstance(rng, numbers.Integral) and rng < 0:
            raise ValueError(f"rng as a seed must be >= 0, got {rng}")
        self._rng = np.random.default_rng(rng)  # returns a generator as it is

    @property
    def mask(self) -> np.ndarray | None:
        """True where the last training input passed (bool, like x); None outside training."""
        return None if self._saved is None else self._saved[0]

    def forward(self, x: np.ndarray, train_flg: bool | None = None) -> np.ndarray:
        """``x`` of any shape and floating dtype -> an array of the same shape and dtype.

        Parameters
        ----------
        x : float array
        train_flg : bool or None
            True or False choose training or inference for this call (the book's argument), None follows ``training``.

        Raises
        ------
        TypeError
            ``x`` is no floating-point array.
        """
        (x,) = checked_floats(x=x)
        training = self.training if train_flg is None else bool(train_flg)
        if training:
            mask = np.asarray(
                np.greater(self.rng.random(x.shape), self.dropout_ratio)
            )  # of no axes it would be a scalar
            self._remember((mask, x.dtype), training)
            return np.asarray(x * mask)
        self._remember(None, training)
        return np.asarray(x.astype(accumulator(x.dtype), copy=False) * (1.0 - self.dropout_ratio), x.dtype)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """``dx = dout * mask`` in x's dtype. ``dout`` has x's shape.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError, ValueError
            ``dout`` is no float array, or has another shape.
        """
        mask, dtype = self._recall()
        dout = self._accepted(dout, mask.shape)
        return np.asarray(dout.astype(dtype, copy=False) * mask)
