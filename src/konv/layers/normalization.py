"""Batch normalization."""

from __future__ import annotations

import math
import numbers

import numpy as np

from konv.arrays import accumulator, checked_floats
from konv.layers.base import Layer
from konv.names import names_told


class BatchNormalization(Layer):
    """Normalizes each feature over the batch: ``y = gamma * (x - mean) / sqrt(var + 1e-6) + beta``.

    In training ``mean`` and ``var`` are those of the batch, and the running averages move towards them::

        running = momentum * running + (1 - momentum) * batch

    In inference they are the running averages. Source: Ioffe and Szegedy, https://arxiv.org/abs/1502.03167; *Deep Learning
    from Scratch*, sec. 6.3, from which come the meaning of ``momentum``, the constant (there ``10e-7``) and the biased
    variance (divided by the number of values) in both places.

    Parameters
    ----------
    gamma, beta : float arrays (F,)
        What a feature is follows from F. For x (N, C, *spatial), F = C makes one feature of each channel, over the batch
        and all positions; F = C * prod(spatial) one of each cell, over the batch alone, as in the book. For x (N, D),
        F = D.
    momentum : float in [0, 1]
        Share of the old running average that a batch leaves.
    running_mean, running_var : float arrays (F,), copied; by default zeros and ones
        The book starts the variance at zeros. With ones, inference before the first training batch is
        ``gamma * x + beta``; with zeros it would multiply x by 1000. Pass ``np.zeros(F)`` for the book's very numbers.

    Attributes
    ----------
    gamma, beta : the arrays given, not copies
    dgamma, dbeta : float arrays like gamma and beta
        Gradients left by :meth:`backward`; None before it.
    running_mean, running_var : float32 or float64 arrays (F,)
        Buffers: saved in ``state_dict``, not trained.
    momentum : float
    xc, xn : float arrays like x, or None
        The last input of a training forward less its mean, and that divided by ``std``; None outside training.
    std : float array (F,), or None
        ``sqrt(var + 1e-6)`` in that forward.
    input_shape : tuple of int, or None
        The last input's shape.
    batch_size : int, or None
        N of the last training forward.

    Raises
    ------
    TypeError
        An array is no floating-point array, or ``momentum`` no number.
    ValueError
        gamma has not one axis, another array not gamma's shape, or ``momentum`` is outside [0, 1].

    Notes
    -----
    The layer calculates in x's dtype, in float32 for float16 and bfloat16; means are summed up in float64 for every dtype.
    A training batch of one value per feature is refused, since its variance is 0 and its output would be beta whatever x
    is. An empty batch gives an empty output, leaves the running averages as they are, and has gradients of zero.

    PyTorch's ``BatchNorm`` calls ``momentum`` what is 1 - momentum here, adds 1e-5, and divides the variance that it averages
    (not the one it normalizes by) by one less than the number of values.

    Examples
    --------
    >>> import numpy as np
    >>> norm = BatchNormalization(np.ones(2), np.zeros(2))
    >>> norm.forward(np.array([[1.0, 10.0], [3.0, 10.0]])).round(3)
    array([[-1.,  0.],
           [ 1.,  0.]])
    >>> norm.running_mean, norm.running_var
    (array([0.2, 1. ]), array([1. , 0.9]))
    >>> norm.eval().forward(np.array([[1.2, 1.0]])).round(3)
    array([[1., 0.]])
    """

    parameter_names = ("gamma", "beta")
    buffer_names = ("running_mean", "running_var")
    epsilon = 10e-7

    @names_told
    def __init__(
        self,
        gamma: np.ndarray,
        beta: np.ndarray,
        momentum: float = 0.9,
        running_mean: np.ndarray | None = None,
        running_var: np.ndarray | None = None,
    ) -> None:
        if isinstance(momentum, bool) or not isinstance(momentum, numbers.Real):
            raise TypeError(f"momentum must be a number, got {type(momentum).__name__}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must satisfy 0 <= momentum <= 1, got {momentum}")
        self.gamma: np.ndarray = gamma
        self.beta: np.ndarray = beta
        self.momentum: float = float(momentum)
        self.dgamma: np.ndarray | None = None
        self.dbeta: np.ndarray | None = None
        self.input_shape: tuple[int, ...] | None = None
        self.batch_size: int | None = None
        dtype = accumulator(checked_floats(gamma=gamma)[0].dtype)
        self.running_mean: np.ndarray = np.zeros(gamma.shape, dtype)
        self.running_var: np.ndarray = np.ones(gamma.shape, dtype)
        if running_mean is not None:
            self.running_mean = checked_floats(running_mean=running_mean)[0].astype(dtype)
        if running_var is not None:
            self.running_var = checked_floats(running_var=running_var)[0].astype(dtype)
        self._check_arrays()

    def _check_arrays(self) -> None:
        """Also before each forward, since all four may be replaced by assignment."""
        if checked_floats(gamma=self.gamma)[0].ndim != 1:
            raise ValueError(f"gamma must have shape (F,), one value for each feature, got shape {self.gamma.shape}")
        for name in ("beta", "running_mean", "running_var"):
            (array,) = checked_floats(**{name: getattr(self, name)})
            if array.shape != self.gamma.shape:
                raise ValueError(
                    f"{name} has shape {array.shape}, but gamma has shape {self.gamma.shape}; they must agree"
                )

    @property
    def xn(self) -> np.ndarray | None:
        """The normalized input of the last training forward, like x; None outside training."""
        return None if self._saved is None else self._saved[0].reshape(self._saved[3])

    @property
    def xc(self) -> np.ndarray | None:
        """The centered input of the last training forward, like x; calculated when read, None outside training."""
        return None if self._saved is None else (self._saved[0] * self._saved[1]).reshape(self._saved[3])

    @property
    def std(self) -> np.ndarray | None:
        """The standard deviation of each feature, (F,), in the last training forward; None outside training."""
        return None if self._saved is None else self._saved[1][:, 0]

    def _positions(self, shape: tuple[int, ...]) -> int:
        """How many cells of one sample make up a feature: 1, or all of a channel's."""
        if len(shape) < 2:
            raise ValueError(f"x must have shape (N, D) or (N, C, *spatial), got shape {shape}")
        channels, cells = shape[1], math.prod(shape[2:])
        features = self.gamma.shape[0]
        if features == channels:
            return cells
        if features == channels * cells:
            return 1
        per_cell = (
            "" if len(shape) == 2 else f" or {channels} * {cells} = {channels * cells} values (one for each cell)"
        )
        raise ValueError(
            f"x has shape {shape}: gamma must have {channels} values (one for each channel){per_cell}, got {features}"
        )

    def forward(self, x: np.ndarray, train_flg: bool | None = None) -> np.ndarray:
        """``x`` (N, D) or (N, C, *spatial) -> an array of the same shape and dtype.

        Parameters
        ----------
        x : float array
        train_flg : bool or None
            True or False choose training or inference for this call (the book's argument), None follows ``training``.

        Raises
        ------
        TypeError
            ``x`` is no floating-point array.
        ValueError
            ``x`` does not fit gamma, or has one value per feature in training.
        """
        (x,) = checked_floats(x=x)
        self._check_arrays()
        positions = self._positions(x.shape)
        training = self.training if train_flg is None else bool(train_flg)
        working = accumulator(x.dtype)
        values = x.shape[0] * positions
        if training and values == 1 and x.size:
            raise ValueError(
                f"x has shape {x.shape}: one value per feature, whose variance is 0; training needs two or more "
                "(a larger batch), inference (eval() or train_flg=False) takes one"
            )
        features = x.reshape(x.shape[0], self.gamma.shape[0], positions).astype(working, copy=False)
        gamma, beta = (array.astype(working)[:, None] for array in (self.gamma, self.beta))
        mean, var = (array.astype(working)[:, None] for array in (self.running_mean, self.running_var))
        if training and values:
            mean[:, 0] = features.mean(axis=(0, 2), dtype=np.float64)
        xn = features - mean
        if training and values:
            var[:, 0] = np.mean(xn * xn, axis=(0, 2), dtype=np.float64)
            for running, batch in ((self.running_mean, mean), (self.running_var, var)):
                running *= self.momentum
                running += (1 - self.momentum) * batch[:, 0]
        std = np.sqrt(var + self.epsilon)
        xn /= std
        self.input_shape = x.shape
        self.batch_size = x.shape[0]
        self._remember((xn, std, gamma, x.shape, x.dtype), training)
        out = xn * gamma
        out += beta
        return out.reshape(x.shape).astype(x.dtype, copy=False)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """``dx`` in x's shape and dtype; sets ``dgamma = sum(dout * xn)`` and ``dbeta = sum(dout)`` over each feature.

        With m values per feature, ``dx = gamma / std * (dout - dbeta / m - xn * dgamma / m)``: the upstream gradient less
        its part that the mean and the variance take back. ``dout`` has x's shape.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError, ValueError
            ``dout`` is no float array, or has another shape.
        """
        xn, std, gamma, shape, dtype = self._recall()
        dout = self._accepted(dout, shape)
        dout = dout.reshape(xn.shape).astype(xn.dtype, copy=False)
        values = max(1, xn.shape[0] * xn.shape[2])
        dbeta = dout.sum(axis=(0, 2), dtype=np.float64)
        dgamma = (dout * xn).sum(axis=(0, 2), dtype=np.float64)
        self.dgamma = dgamma.astype(self.gamma.dtype.newbyteorder("="))
        self.dbeta = dbeta.astype(self.beta.dtype.newbyteorder("="))
        shared = (dbeta / values).astype(xn.dtype)[:, None] + xn * (dgamma / values).astype(xn.dtype)[:, None]
        return (gamma / std * (dout - shared)).reshape(shape).astype(dtype, copy=False)
