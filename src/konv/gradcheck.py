"""Gradient check: the gradients that ``backward`` gives, beside those that differences of ``forward`` give.

For one fixed random ``dy`` of the output's shape the scalar ``L = sum(forward(x) * dy)`` has the gradient
``backward(dy)``. Each element of it is compared with the central difference::

    (L(x + h) - L(x - h)) / 2h  =  L'(x) + h**2 / 6 * L'''(x) + rounding of about eps * |L| / h

where eps = 2.2e-16 is float64's. The two errors balance at about h = eps ** (1/3) = 6e-6, where they are 4e-11 times the
size of L''' and of L: that is the step taken. The outputs are subtracted before they are summed, so only those count for
L that the element reaches, and the rounding is estimated from them: ``eps * sum(|dy| * (|above| + |below|)) / 2h``.
"""

from __future__ import annotations

import copy
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from konv.gradcheck_parameters import float64_parameters, gradients_of, is_float
from konv.gradcheck_result import ArrayResult, Element, GradcheckResult
from konv.names import names_told

EPSILON = float(np.finfo(np.float64).eps)
STEP = EPSILON ** (1 / 3)


@names_told
def gradcheck(
    function: Any,
    *inputs: Any,
    backward: Callable[..., Any] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    eps: float = STEP,
    seed: int = 0,
    max_elements: int = 1000,
) -> GradcheckResult:
    """Compare analytical gradients with central differences, in float64.

    Parameters
    ----------
    function : layer or function
        A layer has ``forward(*inputs)`` and ``backward(dy)``, which returns the gradient of the input, or a tuple of one
        for each input. Its parameters are checked too: those that ``params()`` and ``grads()`` name, or, without these
        methods, every float array ``W`` that has a sibling attribute ``dW``, as in the classes of *Deep Learning from
        Scratch*. The layer itself is not touched: a deep copy of it is checked.
        A function is called as ``function(*inputs)`` and comes with ``backward``.
        The output is a float, a float64 array, or a tuple of them; of a tuple, ``backward`` gets one dy for each part.
    *inputs : arrays and other values
        Float arrays of any shape are copied to float64 and checked. Everything else (labels, flags, floats, None) is
        handed on as it is.
    backward : function, only with a function
        ``backward(dy, *inputs)`` -> the gradient of the input, or a tuple of one for each input or for each float array
        among them; None leaves an input out of the check.
    rtol, atol : float
        An element passes with ``|numerical - analytical| <= atol + rtol * |numerical| + rounding``. The rounding is that
        of the difference, estimated from the outputs (see the head of this module). The other error, 4e-11 times a
        sixth of the third derivative, has to fit into ``atol``: the default has room for third derivatives of 1000.
        Where all gradients are smaller than ``atol`` (the table tells the largest) nothing is shown: scale the
        function up.
    eps : float
        The step is ``h = eps * max(1, |x|)``.
    seed : int
        Draws dy and the elements.
    max_elements : int
        Arrays with more elements are checked at so many, drawn by ``seed``.

    Returns
    -------
    GradcheckResult
        True if every element passed. NaN and infinity, numerical or analytical, never pass; neither does a parameter
        whose gradient is None, or a gradient of another shape or dtype than its array.

    Raises
    ------
    TypeError
        ``function`` is neither; ``backward`` is missing, or given to a layer; an input is complex; an output is not of
        float64; a setting is no number.
    ValueError
        Two calls of ``forward`` differ (random numbers, as in Dropout), an input is written to, the number of gradients
        is not that of the inputs, there is nothing to check, or a setting is out of range.
    RuntimeError
        From the layer: it is in inference mode.

    Notes
    -----
    At a kink (ReLU at 0, two equal largest values in a max pooling window) there is no gradient, and the difference is
    a mean of both sides: it means nothing there. Keep the inputs away from kinks by much more than h; normal random
    numbers are.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.array([0.5, -1.0]), np.array([3.0, 4.0])
    >>> result = gradcheck(lambda x, w: x * w, x, w, backward=lambda dy, x, w: (dy * w, dy * x))
    >>> result.passed, result.elements
    (True, 4)
    >>> wrong = gradcheck(lambda x: x**3, x, backward=lambda dy, x: x**2 * dy)
    >>> wrong.passed, wrong.worst.array, wrong.worst.index
    (False, 'x', (1,))
    """
    _check_settings(rtol, atol, eps, max_elements)
    layer, forward, run_backward = _both_passes(function, backward)
    names = _input_names(forward, len(inputs))
    values = [_float64_copy(name, value) for name, value in zip(names, inputs)]
    before = copy.deepcopy(values)
    parameters = float64_parameters(layer)
    rng = np.random.default_rng(seed)

    outputs = _outputs(forward(*values))
    _check_repeatable(outputs, _outputs(forward(*values)))
    dys = [rng.choice([-1.0, 1.0], y.shape) * rng.uniform(0.5, 1.5, y.shape) for y in outputs]
    returned = run_backward([dy.copy() if dy.ndim else float(dy) for dy in dys], values)
    for name, value, was in zip(names, values, before):
        if is_float(value) and not np.array_equal(value, was, equal_nan=True):
            raise ValueError(f"forward or backward writes into its input {name}, so its gradient there has no meaning")
    pairs = [
        (name, value, gradient)
        for name, value, gradient in zip(names, values, _one_per_input(returned, values, names, layer is not None))
        if is_float(value) and gradient is not None
    ]
    found = gradients_of(layer)
    for array, tied in parameters:
        parts = [found.get(name) for name in tied]
        pairs.append((" = ".join(tied), array, _total(parts, array.shape)))

    def slope(array: np.ndarray, index: tuple[int, ...]) -> tuple[float, float]:
        """The central difference, and the rounding error in it."""
        middle = float(array[index])
        h = eps * max(1.0, abs(middle))
        array[index] = high = middle + h
        above = _outputs(forward(*values))
        array[index] = low = middle - h
        below = _outputs(forward(*values))
        array[index] = middle
        change = rounding = 0.0
        with np.errstate(invalid="ignore"):  # inf - inf becomes the worst element, not a warning
            for a, b, dy in zip(above, below, dys):
                change += float(((a - b) * dy).sum())
                rounding += EPSILON * float(((abs(a) + abs(b)) * abs(dy))[a != b].sum())
        return change / (high - low), rounding / (high - low)

    results = []
    for name, array, gradient in pairs:
        where = rng.choice(array.size, min(max_elements, array.size), replace=False) if array.size else ()
        results.append(_compare(name, array, gradient, sorted(map(int, where)), slope, rtol, atol))
    _check_repeatable(outputs, _outputs(forward(*values)))
    passed, elements = all(result.passed for result in results), sum(result.checked for result in results)
    if passed and not elements:
        raise ValueError("nothing to check: no float array with a gradient among the inputs, and no parameters")
    worst = max((result.worst for result in results), key=lambda element: element.excess)
    return GradcheckResult(passed, worst, elements, tuple(results))


def _compare(
    name: str,
    array: np.ndarray,
    gradient: Any,
    where: Sequence[int],
    slope: Callable[[np.ndarray, tuple[int, ...]], tuple[float, float]],
    rtol: float,
    atol: float,
) -> ArrayResult:
    """The elements at the flat indices ``where``, beside the difference that ``slope`` takes there."""
    problem = ""
    if gradient is None:
        problem = "backward left no gradient (None)"
    elif np.shape(gradient) != array.shape:
        problem = f"the gradient has shape {np.shape(gradient)}, the array {array.shape}"
    elif np.asarray(gradient).dtype != np.float64:
        problem = f"the gradient is {np.asarray(gradient).dtype}, the array float64"
    if problem:
        worst = Element(name, (), math.nan, math.nan, math.inf, atol, problem)
        return ArrayResult(name, array.shape, 0, array.size, math.nan, worst)
    worst = Element(name, (), 0.0, 0.0, 0.0, atol)  # stands only for an array without elements
    largest = 0.0
    for count, flat in enumerate(where):
        index = tuple(int(i) for i in np.unravel_index(flat, array.shape))
        (numerical, rounding), analytical = slope(array, index), float(np.asarray(gradient)[index])
        tolerance = atol + rtol * abs(numerical) + rounding
        element = Element(name, index, numerical, analytical, abs(numerical - analytical), tolerance)
        largest = max(largest, abs(numerical))
        if not count or element.excess > worst.excess:
            worst = element
    return ArrayResult(name, array.shape, len(where), array.size, largest, worst)


def _both_passes(function: Any, backward: Callable[..., Any] | None) -> tuple[Any, Callable, Callable]:
    """A copy of the layer (None for a function), ``forward(*inputs)`` and ``run_backward(dys, inputs)``."""
    if callable(getattr(function, "forward", None)) and callable(getattr(function, "backward", None)):
        if isinstance(function, type):
            raise TypeError(f"function is the class {function.__name__}; pass an instance, {function.__name__}(...)")
        if backward is not None:
            raise TypeError(f"{type(function).__name__} has a backward of its own; pass backward= with a function only")
        layer = copy.deepcopy(function)
        return layer, layer.forward, lambda dys, inputs: layer.backward(*dys)
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"function must be a function or a layer (with forward and backward), got {kind}")
    if not callable(backward):
        raise TypeError("a function needs backward=, a function (dy, *inputs) -> gradients of the inputs")
    return None, function, lambda dys, inputs: backward(*dys, *inputs)


def _input_names(forward: Callable, count: int) -> list[str]:
    """The names of forward's first arguments, for the table."""
    try:
        arguments = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):  # functions written in C may have no signature
        arguments = []
    names = [a.name for a in arguments[:count] if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)]
    return names + [f"input {i}" for i in range(len(names), count)]


def _float64_copy(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "c":
        raise TypeError(f"{name} is {value.dtype}; only real gradients are checked")
    return np.array(value, np.float64) if is_float(value) else value


def _outputs(y: Any) -> list[np.ndarray]:
    """The parts of an output, copied, since a layer may use its memory again."""
    parts = [np.array(part) for part in (y if isinstance(y, tuple) else (y,))]
    for part in parts:
        if part.dtype != np.float64:
            raise TypeError(f"forward returned {part.dtype} for float64 inputs; differences need float64 throughout")
    return parts


def _check_repeatable(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Equal up to rounding, since sums may be taken in another order."""

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        scale = abs(a[np.isfinite(a)]).max(initial=0.0)
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=1e-9 * scale, equal_nan=True)

    if len(first) != len(second) or not all(map(same, first, second)):
        raise ValueError(
            "two calls of forward with the same inputs differ, so differences would measure chance. If it draws random "
            "numbers (Dropout), check a function that fixes the seed before each call (layer.rng = 0), or leave that "
            "layer out"
        )


def _one_per_input(returned: Any, values: list[Any], names: list[str], is_layer: bool) -> list[Any]:
    """The gradient of each input. A layer may return more: those of optional inputs that were not given."""
    given = list(returned) if isinstance(returned, tuple) else [returned]
    if len(given) == len(values) or (is_layer and len(given) > len(values)):
        return given[: len(values)]
    floats = [is_float(value) for value in values]
    if len(given) == sum(floats):
        return [given.pop(0) if checked else None for checked in floats]
    raise ValueError(
        f"backward returned {len(given)} gradients for {len(values)} inputs ({', '.join(names)}), of which {sum(floats)} "
        "are float arrays; it must return one for each (None leaves one out). Labels are passed as integers"
    )


def _total(parts: list[Any], shape: tuple[int, ...]) -> Any:
    """The gradient of an array that stands at several places: the sum of theirs, or a part that can be no summand."""
    for part in parts:
        if len(parts) == 1 or part is None or np.shape(part) != shape:
            return part
    return np.sum(parts, axis=0)


def _check_settings(rtol: float, atol: float, eps: float, max_elements: int) -> None:
    for name, value in (("rtol", rtol), ("atol", atol), ("eps", eps)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not (0 <= value < math.inf) or (name == "eps" and value == 0):
            raise ValueError(f"{name} must be finite and {'> 0' if name == 'eps' else '>= 0'}, got {value}")
    if isinstance(max_elements, bool) or not isinstance(max_elements, numbers.Integral):
        raise TypeError(f"max_elements must be an int, got {type(max_elements).__name__}")
    if max_elements < 1:
        raise ValueError(f"max_elements must be >= 1, got {max_elements}")
