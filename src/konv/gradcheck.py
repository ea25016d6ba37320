"""Gradient check: the gradients that ``backward`` gives, beside those that differences of ``forward`` give.

For one fixed random ``dy`` of the output's shape the scalar ``L = sum(forward(x) * dy)`` has the gradient
``backward(dy)``. Each element of it is compared with the central difference::

    (L(x + h) - L(x - h)) / 2h  =  L'(x) + h**2 / 6 * L'''(x) + rounding of about eps * |L| / h

where eps = 2.2e-16 is float64's. The two errors balance at h = eps ** (1/3) = 6e-6, where both are about 4e-11 times the
size of L''' and L: the step taken. The outputs are subtracted before they are summed, so that |L| above is the sum over
those outputs only that the element reaches.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STEP = float(np.finfo(np.float64).eps) ** (1 / 3)


@dataclass(frozen=True)
class Element:
    """One compared element; or, with ``problem``, an array that could not be compared."""

    array: str
    index: tuple[int, ...]
    numerical: float
    analytical: float
    difference: float
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Both numbers finite, and not further apart than the tolerance."""
        finite = math.isfinite(self.numerical) and math.isfinite(self.analytical)
        return finite and not self.problem and self.difference <= self.tolerance

    @property
    def excess(self) -> float:
        """``difference / tolerance``, at most 1 where it passed; infinite where no number can tell."""
        if self.passed:
            return self.difference / self.tolerance if self.tolerance else 0.0
        ratio = self.difference / self.tolerance if self.tolerance else math.inf
        return ratio if math.isfinite(ratio) else math.inf

    def __str__(self) -> str:
        place = f"{self.array}[{', '.join(map(str, self.index))}]" if self.index else self.array
        if self.problem:
            return f"{place}: {self.problem}"
        return (
            f"{place}: numerical {self.numerical:.10g}, analytical {self.analytical:.10g}, "
            f"difference {self.difference:.3g}, tolerance {self.tolerance:.3g}"
        )


@dataclass(frozen=True)
class ArrayResult:
    """The check of one array: ``checked`` of its ``size`` elements, its largest numerical gradient, its worst element."""

    name: str
    shape: tuple[int, ...]
    checked: int
    size: int
    largest: float
    worst: Element

    @property
    def passed(self) -> bool:
        """Every checked element passed."""
        return self.worst.passed


@dataclass(frozen=True)
class GradcheckResult:
    """What :func:`gradcheck` found. It is true exactly if ``passed``; as text it is a table with a row for each array.

    Attributes
    ----------
    passed : bool
    worst : Element
        That with the largest difference / tolerance over all arrays, a NaN or infinity before any number.
    elements : int
        How many elements were compared.
    arrays : tuple of ArrayResult
        Inputs first, then parameters.
    """

    passed: bool
    worst: Element
    elements: int
    arrays: tuple[ArrayResult, ...]

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        head = ("array", "shape", "checked", "largest gradient", "worst difference", "tolerance", "")
        rows = [head]
        for a in self.arrays:
            worst = ("-", "-") if a.worst.problem else (f"{a.worst.difference:.2e}", f"{a.worst.tolerance:.2e}")
            largest = "-" if a.worst.problem else f"{a.largest:.3g}"
            verdict = "ok" if a.passed else "WRONG"
            rows.append((a.name, str(a.shape), f"{a.checked} of {a.size}", largest, *worst, verdict))
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        verdict = "gradients agree" if self.passed else "gradients differ"
        return "\n".join([*table, f"{verdict} ({self.elements} elements); worst: {self.worst}"])


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
        An element passes with ``|numerical - analytical| <= atol + rtol * |numerical|``. The errors of the difference
        (see the head of this module) are about 4e-11 times the size of the outputs and of the third derivative, so the
        defaults leave room for sizes up to some hundreds; give a larger ``atol`` beyond. Where all gradients are
        smaller than ``atol`` (the table tells the largest), nothing is shown: scale the function up.
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
        whose gradient is None, or a gradient of another shape than its array.

    Raises
    ------
    TypeError
        ``function`` is neither; ``backward`` is missing, or given to a layer; an input is complex; an output is not of
        float64.
    ValueError
        Two calls of ``forward`` differ (random numbers, as in Dropout), an input is written to, the number of gradients
        is not that of the inputs, there is nothing to check, or a setting is out of range.

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
    >>> print(gradcheck(lambda x: x**3, np.array([2.0]), backward=lambda dy, x: 3 * x * dy).worst)  # doctest: +ELLIPSIS
    x[0]: numerical 1.508..., analytical 0.7543..., difference 0.754, tolerance 1.52e-06
    """
    _check_settings(rtol=rtol, atol=atol, eps=eps)
    if isinstance(max_elements, bool) or not isinstance(max_elements, int) or max_elements < 1:
        raise ValueError(f"max_elements must be an int >= 1, got {max_elements!r}")
    forward, run_backward, layer = _both_passes(function, backward)
    names = _input_names(forward, len(inputs))
    values = [_float64_copy(name, value) for name, value in zip(names, inputs)]
    rng = np.random.default_rng(seed)

    tied = _parameters(layer) if layer is not None else {}
    outputs = _outputs(forward(*values))
    again = _outputs(forward(*values))
    _check_repeatable(outputs, again)
    dys = [rng.standard_normal(y.shape) for y in outputs]
    pristine = [value.copy() if _checked(value) else value for value in values]
    given = [float(dy) if y.ndim == 0 else dy.copy() for y, dy in zip(outputs, dys)]
    gradients = _one_per_input(run_backward(*given, *values), values, names)
    for name, value, before in zip(names, values, pristine):
        if _checked(value) and not np.array_equal(value, before, equal_nan=True):
            raise ValueError(f"forward or backward writes into its input {name}, which a check cannot follow")

    jobs: list[tuple[str, np.ndarray, Any]] = []
    for name, value, gradient in zip(names, values, gradients):
        if _checked(value) and gradient is not None:
            jobs.append((name, value, gradient))
    found = _gradients(layer) if layer is not None else {}
    for label, (array, places) in tied.items():
        parts = [found.get(place) for place in places]
        whole = None if any(part is None for part in parts) else sum(np.asarray(part, np.float64) for part in parts)
        jobs.append((label, array, whole))
    if not jobs:
        raise ValueError("nothing to check: no float array among the inputs (with a gradient), and no parameters")

    def slope(array: np.ndarray, index: tuple[int, ...]) -> float:
        middle = array[index]
        h = eps * max(1.0, abs(middle))
        high, low = middle + h, middle - h
        try:
            array[index] = high
            above = _outputs(forward(*values))
            array[index] = low
            below = _outputs(forward(*values))
        finally:
            array[index] = middle
        with np.errstate(invalid="ignore"):  # inf - inf is reported as the worst element, not as a warning
            change = sum(float(((a - b) * dy).sum()) for a, b, dy in zip(above, below, dys))
        return change / (high - low)

    arrays = []
    for name, array, gradient in jobs:
        where = rng.choice(array.size, max_elements, replace=False) if array.size > max_elements else range(array.size)
        arrays.append(_compare(name, array, gradient, sorted(map(int, where)), slope, rtol, atol))
    _check_repeatable(outputs, _outputs(forward(*values)))
    worst = max((a.worst for a in arrays), key=lambda element: element.excess)
    return GradcheckResult(all(a.passed for a in arrays), worst, sum(a.checked for a in arrays), tuple(arrays))


def _compare(
    name: str,
    array: np.ndarray,
    gradient: Any,
    where: Sequence[int],
    slope: Callable[[np.ndarray, tuple[int, ...]], float],
    rtol: float,
    atol: float,
) -> ArrayResult:
    problem = ""
    if gradient is None:
        problem = "backward left no gradient (None)"
    elif np.shape(gradient) != array.shape:
        problem = f"the gradient has shape {np.shape(gradient)}, the array {array.shape}"
    elif np.asarray(gradient).dtype.kind not in "fV":
        problem = f"the gradient is {np.asarray(gradient).dtype}, not a float array"
    if problem:
        worst = Element(name, (), math.nan, math.nan, math.inf, 0.0, problem)
        return ArrayResult(name, array.shape, 0, array.size, math.nan, worst)
    gradient = np.asarray(gradient, np.float64)
    worst = Element(name, (), 0.0, 0.0, 0.0, atol)
    largest = 0.0
    for flat in where:
        index = tuple(int(i) for i in np.unravel_index(flat, array.shape))
        numerical, analytical = slope(array, index), float(gradient[index])
        tolerance = atol + rtol * abs(numerical)
        element = Element(name, index, numerical, analytical, abs(numerical - analytical), tolerance)
        largest = max(largest, abs(numerical))
        if flat == where[0] or element.excess > worst.excess:
            worst = element
    return ArrayResult(name, array.shape, len(where), array.size, largest, worst)


def _both_passes(function: Any, backward: Callable[..., Any] | None) -> tuple[Callable, Callable, Any]:
    """``forward(*inputs)``, ``backward(*dys, *inputs)``, and a copy of the layer (None for a function)."""
    if callable(getattr(function, "forward", None)) and callable(getattr(function, "backward", None)):
        if isinstance(function, type):
            raise TypeError(f"function is the class {function.__name__}; pass an instance, {function.__name__}(...)")
        if backward is not None:
            raise TypeError(f"{type(function).__name__} has a backward of its own; pass backward= with a function only")
        layer = copy.deepcopy(function)
        outputs = 1

        def forward(*inputs: Any) -> Any:
            nonlocal outputs
            y = layer.forward(*inputs)
            outputs = len(y) if isinstance(y, tuple) else 1
            return y

        forward.__wrapped__ = layer.forward  # type: ignore[attr-defined]  # the names of its arguments
        return forward, lambda *arguments: layer.backward(*arguments[:outputs]), layer
    if not callable(function):
        raise TypeError(
            f"function must be a layer (with forward and backward) or a function, got {type(function).__name__}"
        )
    if not callable(backward):
        raise TypeError("a function needs backward=, a function (dy, *inputs) -> gradients of the inputs")
    return function, backward, None


def _input_names(forward: Callable, count: int) -> list[str]:
    try:
        arguments = [
            p
            for p in inspect.signature(forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):  # built-in functions may have no signature
        arguments = []
    names = [p.name for p in arguments[:count]]
    return names + [f"input {i}" for i in range(len(names), count)]


def _checked(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def _float64_copy(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "c":
        raise TypeError(f"{name} is {value.dtype}; only real gradients are checked")
    return np.array(value, np.float64) if _is_float(value) else value


def _outputs(y: Any) -> list[np.ndarray]:
    """The output's parts, copied, since a layer may reuse its memory."""
    parts = [np.array(part) for part in (y if isinstance(y, tuple) else (y,))]
    for part in parts:
        if part.dtype != np.float64:
            raise TypeError(f"forward returned {part.dtype} for float64 inputs; differences need float64 throughout")
    return parts


def _check_repeatable(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Up to rounding, since sums may be taken in another order."""
    shapes = [a.shape for a in first] == [b.shape for b in second]
    if not shapes or not all(np.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True) for a, b in zip(first, second)):
        raise ValueError(
            "two calls of forward with the same inputs differ, so differences would measure chance. If it draws random "
            "numbers (Dropout), check a function that fixes the seed before each call (layer.rng = 0), or check the rest "
            "of the network with that layer left out or in inference mode (eval())"
        )


def _one_per_input(gradients: Any, values: list[Any], names: list[str]) -> list[Any]:
    given = list(gradients) if isinstance(gradients, tuple) else [gradients]
    floats = [i for i, value in enumerate(values) if _checked(value)]
    if len(given) == len(values):
        return given
    if len(given) == len(floats):
        result: list[Any] = [None] * len(values)
        for i, gradient in zip(floats, given):
            result[i] = gradient
        return result
    raise ValueError(
        f"backward returned {len(given)} gradients for {len(values)} inputs ({', '.join(names)}), of which "
        f"{len(floats)} are float arrays; return one for each, None for those to leave out"
    )


def _named_parameters(layer: Any) -> dict[str, np.ndarray]:
    if callable(getattr(layer, "params", None)):
        return dict(layer.params())
    pairs = {name: value for name, value in vars(layer).items() if hasattr(layer, "d" + name)}
    return {name: value for name, value in pairs.items() if _is_float(value) and name not in ("x", "y", "out")}


def _gradients(layer: Any) -> dict[str, Any]:
    if callable(getattr(layer, "grads", None)):
        return dict(layer.grads())
    return {name: getattr(layer, "d" + name) for name in _named_parameters(layer)}


def _parameters(layer: Any) -> dict[str, tuple[np.ndarray, list[str]]]:
    """The float64 parameters of ``layer``, made so in place: label -> (array, its names). Tied names share one row."""
    float64: dict[int, np.ndarray] = {}
    originals = _named_parameters(layer)  # also keeps them alive: their ids stay theirs
    for name, array in originals.items():
        if not _is_float(array):
            raise TypeError(f"parameter {name!r} is no float array")
        float64.setdefault(id(array), np.array(array, np.float64))
    _replace(layer, float64, set())
    tied: dict[int, tuple[np.ndarray, list[str]]] = {}
    for name, array in _named_parameters(layer).items():
        if array.dtype != np.float64:
            raise TypeError(f"parameter {name!r} could not be put in float64: no attribute, list or dict holds it")
        tied.setdefault(id(array), (array, []))[1].append(name)
    return {" = ".join(names): (array, names) for array, names in tied.values()}


def _replace(holder: Any, arrays: dict[int, np.ndarray], seen: set[int]) -> None:
    """Put ``arrays[id(a)]`` in the place of each array a, in every attribute, list and dict that is reached from holder."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    for container, key, value in list(_members(holder)):
        if isinstance(value, np.ndarray):
            if id(value) in arrays and container is not None:
                container[key] = arrays[id(value)]
        else:
            _replace(value, arrays, seen)


def _members(holder: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(where it can be set, its key there, value) of all that ``holder`` holds directly."""
    if isinstance(holder, dict):
        yield from ((holder, key, value) for key, value in holder.items())
    elif isinstance(holder, list):
        yield from ((holder, index, value) for index, value in enumerate(holder))
    elif isinstance(holder, tuple):
        yield from ((None, None, value) for value in holder)
    elif hasattr(holder, "__dict__") and not isinstance(holder, type) and not inspect.ismodule(holder):
        yield from ((vars(holder), name, value) for name, value in vars(holder).items())


def _check_settings(**settings: float) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        if value < 0 or (name == "eps" and value == 0):
            raise ValueError(f"{name} must be {'> 0' if name == 'eps' else '>= 0'}, got {value}")
