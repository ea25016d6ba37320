"""Optimizers: SGD, Momentum, Adam."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from konv.arrays import accumulator, checked_floats
from konv.names import names_told


class Setting:
    """A number among an optimizer's attributes: checked and made a Python float whenever it is set.

    A Python float, because a ``np.float64`` would turn float32 arrays into float64 ones.
    """

    def __init__(self, below: float = math.inf) -> None:
        self.below = below

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type) -> Any:
        return self if optimizer is None else optimizer.__dict__[self.name]

    def __set__(self, optimizer: Any, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{self.name} must be a number, got {type(value).__name__}")
        if not 0 <= value < self.below:
            limit = "and finite" if self.below == math.inf else f"and < {self.below:g}"
            raise ValueError(f"{self.name} must be >= 0 {limit}, got {value}")
        try:
            optimizer.__dict__[self.name] = float(value)
        except OverflowError:
            raise ValueError(f"{self.name} must be a number that a float can hold, got {value}") from None


class Optimizer(ABC):
    """What the optimizers share: checks, one state array per parameter and slot, and its saving.

    A subclass names its state arrays in ``slots`` and writes one update in ``_step``. State is kept by the parameters'
    names, in the parameter's dtype (float32 for float16 and bfloat16), starts at zeros, and belongs to one set of
    parameters: use one optimizer for each set.

    Parameters that are one array under several names (tied weights) are updated once, with the sum of their gradients.
    """

    slots: tuple[str, ...] = ()
    lr = Setting()

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.iter = 0
        self._state: dict[str, dict[str, np.ndarray]] = {slot: {} for slot in self.slots}

    def update(self, params: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray]) -> None:
        """One step: change the arrays of ``params`` in place, so that every layer that holds them sees it.

        Parameters
        ----------
        params : dict of float arrays
        grads : dict of float arrays
            A gradient of each parameter, under its name and in its shape; other names are not read.

        Raises
        ------
        KeyError
            ``grads`` has no gradient of a parameter, or a first update went with other parameters.
        TypeError
            ``params`` or ``grads`` is no dict, or a parameter or gradient no float array (None included: ``backward`` has not
            run).
        ValueError
            A gradient, or the saved state, does not fit its parameter, or a parameter is read-only.
            Nothing is changed by an update that raises.
        """
        _check_mapping("params", params)
        _check_mapping("grads", grads)
        checked = {name: _checked_gradient(name, param, grads) for name, param in params.items()}
        self.check_state(params)
        self.iter += 1
        for first, *others in _tied(params):
            param = params[first]
            dtype = accumulator(param.dtype.newbyteorder("="))
            grad = checked[first].astype(dtype, copy=False)
            for other in others:
                grad = grad + checked[other].astype(dtype, copy=False)
            for arrays in self._state.values():
                if first not in arrays:
                    arrays[first] = np.zeros(param.shape, dtype)
            state = [arrays[first] for arrays in self._state.values()]
            if self._in_one_pass(param, grad, *state):
                continue
            step = self._step(grad, *state)
            if param.dtype == dtype:
                param -= step
            else:  # a half type, rounded once; or foreign byte order
                param[...] = param.astype(dtype) - step

    def check_state(self, params: Mapping[str, np.ndarray]) -> None:
        """Raise what :meth:`update` would raise for ``params`` whose saved state is another's: KeyError, ValueError."""
        names = [first for first, *_ in _tied(params)]
        for slot, arrays in self._state.items():
            missing, unknown = sorted(set(names) - arrays.keys()), sorted(arrays.keys() - set(names))
            if unknown or (missing and self.iter):
                raise KeyError(
                    f"{type(self).__name__} began with other parameters: it has no state for {missing}, and state for "
                    f"{unknown}, which are not here; use one optimizer for each set of parameters"
                )
            for name, array in arrays.items():
                shape, dtype = params[name].shape, accumulator(params[name].dtype.newbyteorder("="))
                if array.shape != shape or array.dtype != dtype:
                    raise ValueError(
                        f"params[{name!r}] has shape {shape} and takes state of {dtype}, but {type(self).__name__}'s "
                        f"{slot!r} for it has shape {array.shape} and is {array.dtype}"
                    )

    def _in_one_pass(self, param: np.ndarray, grad: np.ndarray, *state: np.ndarray) -> bool:
        """Make the step, with the same bits, where these arrays allow it to be faster; whether it did."""
        return False

    @abstractmethod
    def _step(self, grad: np.ndarray, *state: np.ndarray) -> np.ndarray:
        """What to subtract from a parameter; updates its ``state`` arrays in place and leaves ``grad`` as it is."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all state, flat so that ``np.savez`` takes it: ``"iter"``, the number of updates, and ``"m.0.W"``
        (slot, then the parameter's name). Settings such as lr are not in it.
        """
        state = {
            f"{slot}.{name}": array.copy() for slot, arrays in self._state.items() for name, array in arrays.items()
        }
        return {"iter": np.array(self.iter), **state}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over (copies of) what :meth:`state_dict` gave, in place of the present state: the next update has the same
        bits as it would have had there, with the same settings.

        Raises
        ------
        KeyError
            ``"iter"`` is missing, a name begins with none of this optimizer's slots, or a parameter is in one slot only.
        TypeError
            ``state`` is no dict, or an array in it no float array.
        ValueError
            ``"iter"`` is no number >= 0.
        """
        loaded: dict[str, dict[str, np.ndarray]] = {slot: {} for slot in self.slots}
        _check_mapping("state", state)
        if "iter" not in state:
            raise KeyError(f"state has no 'iter', only {sorted(state)}")
        for key, array in state.items():
            slot, _, name = str(key).partition(".")
            if key == "iter":
                continue
            if slot not in loaded or not name:
                raise KeyError(f"state[{key!r}] is not for {type(self).__name__}, whose slots are {list(self.slots)}")
            loaded[slot][name] = checked_floats(**{f"state[{key!r}]": array})[0].copy()
        for slot, arrays in loaded.items():
            missing = sorted({name for other in loaded.values() for name in other} - arrays.keys())
            if missing:
                raise KeyError(f"state has no {f'{slot}.{missing[0]}'!r}, but other slots of that parameter")
        steps = np.asarray(state["iter"])
        if steps.shape != () or steps.dtype.kind not in "iu" or steps < 0:
            raise ValueError(f"state['iter'] must be an int >= 0, got {state['iter']!r}")
        self.iter, self._state = int(steps), loaded


class SGD(Optimizer):
    """Stochastic gradient descent: ``param -= lr * grad``.

    Source: *Deep Learning from Scratch*, sec. 6.1.2.

    Parameters
    ----------
    lr : float >= 0, the learning rate; as an attribute it may be changed between updates

    Raises
    ------
    TypeError, ValueError
        A setting is no number, or outside its range; also when it is set later.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"W": np.array([1.0, 2.0])}
    >>> SGD(lr=0.5).update(params, {"W": np.array([1.0, -1.0])})
    >>> params["W"]
    array([0.5, 2.5])
    """

    @names_told
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)

    def _step(self, grad: np.ndarray, *state: np.ndarray) -> np.ndarray:
        return self.lr * grad


class Momentum(Optimizer):
    """Gradient descent with momentum: ``v = momentum * v - lr * grad; param += v``.

    Source: *Deep Learning from Scratch*, sec. 6.1.4. With a changing lr this differs from PyTorch's form, which has lr
    outside the sum.

    Parameters
    ----------
    lr : float >= 0, the learning rate; as an attribute it may be changed between updates
    momentum : float, 0 <= momentum < 1

    Attributes
    ----------
    v : dict of arrays, the velocities by parameter name; empty before the first update

    Raises
    ------
    TypeError, ValueError
        A setting is no number, or outside its range; also when it is set later.

    Examples
    --------
    >>> import numpy as np
    >>> params, grads = {"W": np.array([1.0])}, {"W": np.array([1.0])}
    >>> optimizer = Momentum(lr=0.5, momentum=0.5)
    >>> optimizer.update(params, grads)
    >>> optimizer.update(params, grads)
    >>> params["W"], optimizer.v["W"]
    (array([-0.25]), array([-0.75]))
    """

    slots = ("v",)
    momentum = Setting(below=1)

    @names_told
    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = momentum

    @property
    def v(self) -> dict[str, np.ndarray]:
        """The velocities by parameter name."""
        return self._state["v"]

    def _step(self, grad: np.ndarray, *state: np.ndarray) -> np.ndarray:
        (v,) = state
        v *= self.momentum
        v -= self.lr * grad
        return -v


class Adam(Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

    With t the number of the update::

        m = beta1 * m + (1 - beta1) * grad           v = beta2 * v + (1 - beta2) * grad**2
        param -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + 1e-8)

    Source: Kingma and Ba, *Adam: a method for stochastic optimization* (2015), https://arxiv.org/abs/1412.6980,
    algorithm 1. The book's form (sec. 6.1.6) leaves the second correction out of the constant, which is there 1e-7.

    Parameters
    ----------
    lr : float >= 0, the learning rate; as an attribute it may be changed between updates
    beta1, beta2 : float, 0 <= beta < 1

    Attributes
    ----------
    m, v : dicts of arrays, the two averages by parameter name; empty before the first update
    iter : int, the number of updates

    Raises
    ------
    TypeError, ValueError
        A setting is no number, or outside its range; also when it is set later.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"W": np.array([1.0, 1.0])}
    >>> Adam(lr=0.25).update(params, {"W": np.array([100.0, -0.01])})
    >>> params["W"].round(5)
    array([0.75, 1.25])
    """

    slots = ("m", "v")
    beta1 = Setting(below=1)
    beta2 = Setting(below=1)
    epsilon = 1e-8

    @names_told
    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr)
        self.beta1 = beta1
        self.beta2 = beta2

    @property
    def m(self) -> dict[str, np.ndarray]:
        """The running averages of the gradients by parameter name."""
        return self._state["m"]

    @property
    def v(self) -> dict[str, np.ndarray]:
        """The running averages of the squared gradients by parameter name."""
        return self._state["v"]

    def _in_one_pass(self, param: np.ndarray, grad: np.ndarray, *state: np.ndarray) -> bool:
        from konv.engine import adam  # imports LLVM, which takes a while

        m, v = state
        told = "raise" in np.geterr().values()  # of an infinity or an overflow, which NumPy alone does
        if told or type(self) is not Adam or not adam.takes(param, grad, m, v):
            return False
        beta1, beta2, t = self.beta1, self.beta2, self.iter
        settings = beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta2**t, self.epsilon, self.lr / (1 - beta1**t)
        adam.update(param, grad, m, v, settings)
        return True

    def _step(self, grad: np.ndarray, *state: np.ndarray) -> np.ndarray:
        m, v = state
        m *= self.beta1
        m += (1 - self.beta1) * grad
        v *= self.beta2
        v += (1 - self.beta2) * grad * grad
        step = np.divide(v, 1 - self.beta2**self.iter, out=np.empty_like(v))  # out=: of a single number, too, an array
        np.sqrt(step, out=step)
        step += self.epsilon
        np.divide(m, step, out=step)
        step *= self.lr / (1 - self.beta1**self.iter)
        return step


def _tied(params: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The names of each array, more than one where it stands at several places."""
    ties: dict[tuple, list[str]] = {}
    for name, param in params.items():
        address = param.__array_interface__["data"] if param.size else name  # empty arrays may share theirs
        ties.setdefault((address, param.shape, param.strides, param.dtype), []).append(name)
    return list(ties.values())


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of arrays by name, got {type(value).__name__}")


def _checked_gradient(name: str, param: np.ndarray, grads: Mapping[str, np.ndarray]) -> np.ndarray:
    checked_floats(**{f"params[{name!r}]": param})
    if not param.flags.writeable:
        raise ValueError(f"params[{name!r}] is read-only, and an update writes into it")
    if name not in grads:
        raise KeyError(f"grads has no gradient of parameter {name!r}; it has {sorted(grads)}")
    if grads[name] is None:
        raise TypeError(f"grads[{name!r}] is None: backward has not run since the layer was made")
    (grad,) = checked_floats(**{f"grads[{name!r}]": grads[name]})
    if grad.shape != param.shape:
        raise ValueError(f"grads[{name!r}] has shape {grad.shape}, but params[{name!r}] has shape {param.shape}")
    return grad
