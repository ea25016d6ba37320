"""The door for arrays: which ones konv takes, in what words it refuses the others, and where results go."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from konv import lending

FLOAT_TYPES = ("float16", "float32", "float64", "bfloat16")
# Axes of (N, C, *spatial) in the order (N, *spatial, C) and back, by their number; np.moveaxis takes 3 us to find them.
TO_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
TO_FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}
FEW = 10_000  # elements, of which OpenBLAS leaves a product to the calling thread
# bfloat16 has no dtype until ml_dtypes is imported.
_KNOWN = frozenset(map(np.dtype, ("float16", "float32", "float64")))


@functools.cache
def dtype_name(dtype: np.dtype) -> str:
    """``dtype.name``, which NumPy builds anew each time.

    >>> dtype_name(np.dtype(np.float32))
    'float32'
    """
    return dtype.name


def accumulator(dtype: np.dtype) -> np.dtype:
    """The type that sums are kept in: the type itself, float32 for the half types.

    >>> accumulator(np.dtype("float16")), accumulator(np.dtype("float64"))
    (dtype('float32'), dtype('float64'))
    """
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def checked_array(name: str, value: Any) -> np.ndarray:
    """``value``, which must be a NumPy array (a masked one is refused: its mask would be ignored).

    >>> checked_array("x", [1.0, 2.0])
    Traceback (most recent call last):
    TypeError: x is a list, not a NumPy array; pass np.asarray(x)
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass {name}.filled(...)")
    if not isinstance(value, np.ndarray):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        if isinstance(value, (int, float, type(None))):
            raise TypeError(f"{name}={value!r}: expected a NumPy array")
        convert = (
            f"{name}.detach().numpy()" if type(value).__module__.split(".")[0] == "torch" else f"np.asarray({name})"
        )
        raise TypeError(f"{name} is a {kind}, not a NumPy array; pass {convert}")
    return value


def checked_floats(**arrays: np.ndarray | None) -> tuple[Any, ...]:
    """The arrays, checked and in native byte order; they share the dtype of the first. A bias ``b`` may be None.

    >>> checked_floats(x=np.zeros(3), w=np.zeros(3, np.float32))
    Traceback (most recent call last):
    TypeError: x is float64 and w is float32; convert one, e.g. w.astype(x.dtype)
    """
    dtype = getattr(next(iter(arrays.values())), "dtype", None)
    for name, value in arrays.items():
        if (type(value) is not np.ndarray or value.dtype is not dtype) and not (value is None and name == "b"):
            break
    else:
        if dtype in _KNOWN:
            return tuple(arrays.values())  # what follows would find nothing
    checked: dict[str, np.ndarray | None] = {}
    for name, value in arrays.items():
        if value is None and name == "b":
            checked[name] = None
            continue
        array = checked_array(name, value)
        if array.dtype not in _KNOWN and array.dtype.name not in FLOAT_TYPES:
            hint = "" if array.dtype.kind == "c" else f"; convert it with {name}.astype(np.float32)"
            raise TypeError(f"{name} has dtype {array.dtype}; konv computes in {', '.join(FLOAT_TYPES)}{hint}")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        checked[name] = array if type(array) is np.ndarray else array.view(np.ndarray)
    first_name, first = next(iter(checked.items()))
    for name, other in checked.items():
        if other is not None and first is not None and other.dtype != first.dtype:
            raise TypeError(
                f"{first_name} is {first.dtype} and {name} is {other.dtype}; convert one, e.g. {name}.astype({first_name}.dtype)"
            )
    return tuple(checked.values())


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite.

    >>> all_finite(np.array([1e300, 2.0])), all_finite(np.array([1.0, np.inf]))
    (True, False)
    """
    # Squares that add up to a number are of numbers: one call, where the two below take three times as long; half, of float16.
    # (dot takes half as long as vdot, but warns where they overflow.)
    if array.size <= FEW and array.itemsize > 2 and array.dtype in _KNOWN and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def check_upstream(dy: np.ndarray, expected: tuple[int, ...], name: str = "dy") -> None:
    """Refuse an upstream gradient that has not the shape of the forward result."""
    if dy.shape != expected:
        raise ValueError(f"{name} has shape {dy.shape}; the forward result has shape {expected}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False: "no" would count as True."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r}: expected True or False")


def output_array(
    out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, layout: str, **inputs: np.ndarray | None
) -> np.ndarray:
    """Where a result in ``layout`` is written: ``out``, or a new array where that lies otherwise in memory.

    ``out`` is checked to fit the result, and to overlap neither an input nor itself.

    >>> output_array(np.zeros((2, 3)), (2, 4), np.dtype(np.float64), "first")
    Traceback (most recent call last):
    ValueError: out has shape (2, 3) and dtype float64; the result has (2, 4) and float64
    """
    if checked_array("out", out).shape != shape or out.dtype != dtype:
        raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}; the result has {shape} and {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    for name, array in inputs.items():
        if array is not None and np.may_share_memory(out, array):
            raise ValueError(f"out shares memory with {name}, which would be overwritten while it is read")
    lying = out if layout == "first" else out.transpose(TO_LAST[out.ndim])
    if lying.flags.c_contiguous:
        return out
    reach = out.itemsize  # bytes from the first cell to the end of the last, over the axes of smaller strides
    for stride, length in sorted(
        (abs(stride), length) for stride, length in zip(out.strides, out.shape) if length > 1 and out.size
    ):
        if stride < reach:
            raise ValueError(f"out has strides {out.strides}: its cells overlap")
        reach += stride * (length - 1)
    return empty(shape, dtype, layout)


def layout_of(*arrays: np.ndarray) -> str:
    """Which of the two layouts (N, C, *spatial) arrays have, or are to be copied to: "first" or "last".

    "last": (N, *spatial, C) is how it lies in memory, without gaps. Where both fit (one channel, or one cell) the next array
    decides, and at the end "first".

    >>> image = np.zeros((2, 5, 6, 3))  # N, H, W, C
    >>> layout_of(np.moveaxis(image, -1, 1)), layout_of(image)
    ('last', 'first')
    """
    for array in arrays:
        first = array.flags.c_contiguous or array.ndim < 3
        if first and array.ndim > 2 and array.shape[1] > 1 and array.shape[-1] > 1 and array.size:
            return "first"  # most arrays: found without a transposed view
        last = array.transpose(TO_LAST[array.ndim]).flags.c_contiguous if array.ndim >= 3 else False
        if not (first and last):
            return "last" if last else "first"
    return "first"


def known_layout(*arrays: np.ndarray) -> str:
    """The layout that all arrays have, which are contiguous in one: "last" unless all are "first" (one cell is both).

    >>> known_layout(np.zeros((2, 3, 4)), np.zeros((2, 3, 1)))
    'first'
    """
    for array in arrays:
        if not array.flags.c_contiguous:
            return "last"
    return "first"


def empty(shape: tuple[int, ...], dtype: np.dtype, layout: str) -> np.ndarray:
    """An uninitialised (N, C, *spatial) array, channels first or last in memory.

    >>> empty((2, 3, 5, 6), np.dtype(np.float32), "last").strides
    (360, 4, 72, 12)
    """
    if layout == "first":
        return lending.empty(shape, dtype)
    return lending.empty((shape[0], *shape[2:], shape[1]), dtype).transpose(TO_FIRST[len(shape)])


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The array itself if it is contiguous in ``layout``, else a copy that is.

    >>> laid_out(np.zeros((3, 2)).T, "first").flags.c_contiguous
    True
    """
    if layout == "first":
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array.transpose(TO_LAST[array.ndim])).transpose(TO_FIRST[array.ndim])
