"""What every NumPy layer shares: parameters, their gradients, two modes, and one input kept for backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from konv.arrays import check_flag, check_upstream, checked_floats


class Layer:
    """A layer with an explicit ``forward`` and ``backward``.

    A subclass names its parameters in ``parameter_names``; each is an attribute (``W``) and so is its gradient (``dW``),
    as in *Deep Learning from Scratch*, ch. 5. Arrays that are saved with a model but not trained (the running mean of a
    batch normalization) stand in ``buffer_names``.

    Attributes
    ----------
    training : bool
        True after construction and :meth:`train`, False after :meth:`eval`. In training ``forward`` keeps what
        ``backward`` needs; otherwise it keeps nothing.

    Examples
    --------
    A layer of your own, with one parameter:

    >>> class Scale(Layer):
    ...     parameter_names = ("W",)
    ...     def __init__(self, W):
    ...         self.W, self.dW, self.x = W, None, None
    ...     def forward(self, x):
    ...         self.x = x if self.training else None
    ...         return x * self.W
    ...     def backward(self, dout):
    ...         self.dW = (dout * self.x).sum(axis=0)
    ...         return dout * self.W
    >>> scale = Scale(np.array([1.0, 10.0]))
    >>> scale.forward(np.array([[2.0, 3.0]]))
    array([[ 2., 30.]])
    >>> scale.backward(np.ones((1, 2))), scale.grads()
    (array([[ 1., 10.]]), {'W': array([2., 3.])})
    """

    parameter_names: tuple[str, ...] = ()
    buffer_names: tuple[str, ...] = ()
    repr_always: tuple[str, ...] = ()
    training: bool = True
    forward: Callable[..., Any]

    def __repr__(self) -> str:
        """Parameters with dtype and shape, then options that are not the constructor's defaults, or are in ``repr_always``."""
        words = []
        for name, argument in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, argument.default)
            if name in self.parameter_names:
                words.append(f"{name}={brief(value)}")
            elif isinstance(value, int | float | str | tuple | list) and (
                name in self.repr_always or repr(value) != repr(argument.default)
            ):
                words.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(words)})"

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The same as ``forward(*inputs, **options)``, as in PyTorch."""
        return self.forward(*inputs, **options)

    _saved: Any = None
    _forwards: int = 0  # since the last backward
    _backwards: int = 0  # since the last forward

    def train(self, mode: bool = True) -> Self:
        """Switch to training (or, with ``mode=False``, to inference) and return the layer.

        Raises
        ------
        TypeError
            ``mode`` is neither True nor False.
        """
        check_flag("mode", mode)
        self.training = bool(mode)
        if not self.training:
            self._saved = None
        return self

    def eval(self) -> Self:
        """Switch to inference: ``forward`` keeps nothing, ``backward`` is refused. Returns the layer."""
        return self.train(False)

    def params(self) -> dict[str, np.ndarray]:
        """The trainable arrays by name: the arrays themselves, so that an optimizer updates them in place."""
        return {name: getattr(self, name) for name in self.parameter_names if getattr(self, name) is not None}

    def grads(self) -> dict[str, np.ndarray]:
        """The gradients that the last ``backward`` left, under the names of :meth:`params` (None before it)."""
        return {name: getattr(self, "d" + name) for name in self.params()}

    def buffers(self) -> dict[str, np.ndarray]:
        """The arrays that are saved but not trained, by name."""
        return {name: getattr(self, name) for name in self.buffer_names if getattr(self, name) is not None}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by name; what :meth:`load_state_dict` takes."""
        return {name: array.copy() for name, array in {**self.params(), **self.buffers()}.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy ``state`` into the parameters and buffers, in place.

        The values may be anything that :func:`numpy.asarray` takes: arrays, lists, PyTorch's tensors on the CPU.

        Raises
        ------
        KeyError
            A name is missing from ``state`` or unknown to the layer.
        TypeError
            ``state`` is no dict, or an array is not of real numbers.
        ValueError
            An array has another shape than the layer's, or the layer's is read-only. Nothing is written in any of these cases.
        """
        own = {**self.params(), **self.buffers()}
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict of arrays by name, got {type(state).__name__}")
        missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unknown:
            raise KeyError(
                f"state does not fit {type(self).__name__}: missing {sorted(missing)}, unknown {sorted(unknown, key=str)}"
            )
        arrays = {name: np.asarray(state[name]) for name in own}  # first, so that nothing is written where one fails
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ValueError(f"state[{name!r}] has shape {array.shape}, the layer's is {own[name].shape}")
            if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
                raise TypeError(f"state[{name!r}] has dtype {array.dtype}, not of real numbers")
            if not own[name].flags.writeable:
                raise ValueError(f"the layer's {name!r} is read-only, and state cannot be copied into it")
        for name, array in own.items():
            array[...] = arrays[name]

    def _remember(self, saved: Any, training: bool | None = None) -> None:
        """Called by ``forward`` with what ``backward`` will need; kept in training only (``training`` overrides)."""
        if self._backwards:
            self._forwards = self._backwards = 0
        self._forwards += 1
        self._saved = saved if (self.training if training is None else training) else None

    def _recall(self) -> Any:
        """Called by ``backward``: what the last ``forward`` kept.

        Raises
        ------
        RuntimeError
            ``forward`` did not run in training mode, or this is a second ``backward`` after several ``forward`` calls,
            whose earlier inputs are gone.
        """
        name = type(self).__name__
        if self._saved is None:
            why = "the last one was in inference mode" if self._forwards else "forward has not run"
            if not self.training:
                why = "the layer is in inference mode, call train() first"
            raise RuntimeError(f"{name}.backward needs a forward in training mode before it: {why}")
        if self._forwards > 1 and self._backwards:
            raise RuntimeError(
                f"{name}.backward ran {self._backwards + 1} times after {self._forwards} forward calls, but a layer keeps "
                "its last input only. To use the same weights at several places, make one layer for each place with the "
                "same parameter arrays and add up their gradients."
            )
        return self._saved

    def _accepted(self, dout: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Called by ``backward``: ``dout``, once it is a float array of the output's shape."""
        (dout,) = checked_floats(dout=dout)
        check_upstream(dout, shape, "dout")
        self._answered()
        return dout

    def _answered(self) -> None:
        """Called by ``backward`` once its arguments are accepted."""
        self._backwards += 1


def brief(array: np.ndarray | None) -> str:
    """An array as its dtype and shape.

    >>> brief(np.zeros((4, 3, 5), np.float32))
    'float32[4, 3, 5]'
    """
    return "None" if array is None else f"{array.dtype}{list(array.shape)}"
