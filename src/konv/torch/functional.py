"""The functions of ``torch.nn.functional`` that konv computes, argument for argument; and who computes a call.

konv computes strided tensors in the CPU's memory, all of one dtype: float16, float32, float64 and, where ``ml_dtypes`` is
installed, bfloat16. Everything else (complex, integer, quantised, sparse, meta, CUDA, MPS, subclasses that mean something of
their own, forward-mode derivatives, traces that leave for elsewhere) goes to PyTorch's function as it came, and so does what
does not fit together: its errors are PyTorch's.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from konv.engine.plan import asked as plan_asked
from konv.torch.ops import ORDINARY, computes, convolution, differentiable, leaves, quiet, quiet_convolution
from konv.torch.tensors import Call, Options, call_of

IntOrAxes = int | Sequence[int]
MOST_MET = 64  # kinds of calls that a layer keeps
_THEIRS: tuple[dict[int, Callable[..., Tensor]], ...] = (
    {1: F.conv1d, 2: F.conv2d, 3: F.conv3d},
    {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d},
)

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: str | IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv1d`, computed by konv.

    Parameters
    ----------
    input : (N, C, L) or (C, L)
    weight : (F, C // groups, K)
    bias : (F,) or None
    stride, padding, dilation, groups : as there; ``padding`` may be "valid" or "same"

    Returns
    -------
    (N, F, L_out) or (F, L_out), of the dtype of ``input`` (or autocast's)

    Raises
    ------
    RuntimeError, TypeError
        Where PyTorch's function does, by that function; TypeError for NumPy's arrays.

    Examples
    --------
    >>> conv1d(torch.arange(5.0).reshape(1, 1, 5), torch.ones(1, 1, 3), padding="same")
    tensor([[[1., 3., 6., 9., 7.]]])
    """
    return _face(1, F.conv1d, False, input, weight, bias, stride, padding, dilation, groups, 0)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: str | IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv2d`, computed by konv; see :func:`conv1d`.

    The result is channels_last where PyTorch's is: where ``input`` or ``weight`` is.

    Examples
    --------
    >>> conv2d(torch.zeros(8, 3, 32, 32), torch.zeros(16, 3, 3, 3), stride=2, padding=1).shape
    torch.Size([8, 16, 16, 16])
    """
    return _face(2, F.conv2d, False, input, weight, bias, stride, padding, dilation, groups, 0)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: str | IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv3d`, computed by konv; see :func:`conv1d`.

    Examples
    --------
    >>> conv3d(torch.zeros(1, 2, 4, 8, 8), torch.zeros(4, 2, 3, 3, 3), padding="same").shape
    torch.Size([1, 4, 4, 8, 8])
    """
    return _face(3, F.conv3d, False, input, weight, bias, stride, padding, dilation, groups, 0)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: IntOrAxes = 0,
    output_padding: IntOrAxes = 0,
    groups: int = 1,
    dilation: IntOrAxes = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv_transpose1d`, computed by konv.

    Parameters
    ----------
    input : (N, C, L) or (C, L)
    weight : (C, F // groups, K)
    bias : (F,) or None
    stride, padding, output_padding, groups, dilation : as there, in its order

    Returns
    -------
    (N, F, L_out) or (F, L_out), of the dtype of ``input`` (or autocast's)

    Raises
    ------
    RuntimeError, TypeError
        Where PyTorch's function does, by that function.

    Examples
    --------
    >>> conv_transpose1d(torch.tensor([[[1.0, 10.0]]]), torch.tensor([[[1.0, 2.0, 3.0]]]), stride=2)
    tensor([[[ 1.,  2., 13., 20., 30.]]])
    """
    return _face(1, F.conv_transpose1d, True, input, weight, bias, stride, padding, dilation, groups, output_padding)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: IntOrAxes = 0,
    output_padding: IntOrAxes = 0,
    groups: int = 1,
    dilation: IntOrAxes = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv_transpose2d`, computed by konv; see :func:`conv_transpose1d`.

    Examples
    --------
    >>> conv_transpose2d(torch.zeros(8, 16, 16, 16), torch.zeros(16, 3, 2, 2), stride=2).shape
    torch.Size([8, 3, 32, 32])
    """
    return _face(2, F.conv_transpose2d, True, input, weight, bias, stride, padding, dilation, groups, output_padding)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: IntOrAxes = 0,
    output_padding: IntOrAxes = 0,
    groups: int = 1,
    dilation: IntOrAxes = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv_transpose3d`, computed by konv; see :func:`conv_transpose1d`.

    Examples
    --------
    >>> conv_transpose3d(torch.zeros(1, 4, 2, 4, 4), torch.zeros(4, 2, 2, 2, 2), stride=2).shape
    torch.Size([1, 2, 4, 8, 8])
    """
    return _face(3, F.conv_transpose3d, True, input, weight, bias, stride, padding, dilation, groups, output_padding)


def exact_conv1d(x: Tensor, w: Tensor, b: Tensor | None, stride: Any, dilation: Any, groups: int) -> Tensor:
    """:func:`conv1d` without padding, each output summed in an order that does not depend on the length of x."""
    return _face(1, F.conv1d, False, x, w, b, stride, 0, dilation, groups, 0, exact=True)


class Met:
    """The kinds of calls that a layer has met: its options then, who computed and of what; None of one that is PyTorch's.

    Who copies or saves the layer gets an empty one. No dictionary itself: ``torch.compile`` would ask for its length ever after.
    """

    def __init__(self) -> None:
        self.kinds: dict[Any, tuple[Any, Callable[..., Tensor], Call] | None] = {}

    def __reduce__(self) -> Any:
        return Met, ()


def where_faster(
    met: Met | None, asked: Tensor, axes: int, transposed: bool, x: Tensor, w: Tensor, b: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, output_padding: Any,
) -> Tensor:  # fmt: skip
    """The convolution, by konv where it is expected to be faster, else by PyTorch.

    Forward and backward are decided for themselves; see :mod:`konv.torch.faster`. The kind of call that the layer was asked,
    with ``asked``, is put into ``met``: for :func:`again`, or for PyTorch's function if that does all of it.
    """
    theirs = _THEIRS[transposed][axes]
    more = stride, padding, dilation, groups, output_padding
    return _face(axes, theirs, transposed, x, w, b, *more, where_faster=True, met=met, asked=asked)


def kind_of_call(x: Tensor, w: Tensor, b: Tensor | None) -> Any:
    """What decides, of a layer's call, who computes, but its options; None where that is not kept."""
    if torch.compiler.is_compiling():
        return None
    for t in (x, w) if b is None else (x, w, b):
        if type(t) not in ORDINARY or not t.is_cpu or t.layout is not torch.strided or t.is_nested:
            return None
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    bias = None if b is None else (b.shape, b.dtype)
    recorded = differentiable(x, w, b)
    return x.shape, x.stride(), x.dtype, w.shape, w.stride(), w.dtype, bias, recorded, cast, plan_asked()


def again(found: Any, options: tuple[Any, ...], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor | None:
    """A call of a kind that was met, with these options; None where they are others, or somebody watches."""
    then, compute, known = found  # (True, True) equals (1, 1), but is refused
    return compute(x, w, b, known) if all(map(operator.is_, then, options)) and quiet() else None


def check_tensor(name: str, value: Any, or_else: str = "") -> None:
    """Refuse an array of NumPy's, for which PyTorch's error is a list of signatures; all else is PyTorch's to judge."""
    if isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor, not a numpy.ndarray: pass torch.from_numpy({name}){or_else}")


def _left(
    theirs: Callable[..., Tensor], transposed: bool, x: Tensor, w: Tensor, b: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, output_padding: Any,
) -> Tensor:  # fmt: skip
    """PyTorch's result or error; konv's for NumPy's arrays."""
    for name, t in (("input", x), ("weight", w), ("bias", b)):
        check_tensor(name, t, f"; konv.conv{'_transpose' * transposed} takes arrays")
    if transposed:
        return theirs(x, w, b, stride, padding, output_padding, groups, dilation)
    return theirs(x, w, b, stride, padding, dilation, groups)


def autocast(t: Any) -> Any:
    """As the dispatcher casts the arguments of a convolution: float64 and what is elsewhere stays."""
    if not torch.is_autocast_enabled("cpu") or not isinstance(t, Tensor):
        return t
    if not t.is_cpu or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype("cpu"))


def _face(
    axes: int, theirs: Callable[..., Tensor], transposed: bool, x: Tensor, w: Tensor, b: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, output_padding: Any, exact: bool = False, where_faster: bool = False,
    met: Met | None = None, asked: Any = None,
) -> Tensor:  # fmt: skip
    """konv's result where it computes such a call, else PyTorch's result or error."""
    given = (x, w, b)
    if torch.is_autocast_enabled("cpu"):
        x, w, b = (autocast(t) for t in given)
    alone = quiet()
    if computes(x, w, b) and (alone or not leaves()):
        given_options = stride, padding, dilation, groups, output_padding
        known = _plain(given_options)
        if known is not None:
            shapes = x.shape, w.shape, b if b is None else b.shape
            if alone and x.dim() == axes + 2:
                found = _known(axes, transposed, *shapes, exact, where_faster, *known, x.stride(), w.stride(), x.dtype)
                how = None if found is None else quiet_convolution(found, differentiable(x, w, b))
                if found is not None and met is not None and len(met.kinds) < MOST_MET:
                    kind, as_asked = kind_of_call(asked, *given[1:]), x is asked and w is given[1] and b is given[2]
                    if how is None:
                        met.kinds[kind] = None
                    elif as_asked and known is given_options:  # neither padded nor cast; and no lists, which may change
                        met.kinds[kind] = (stride, padding, dilation, groups), *how
                if how is not None:
                    compute, found = how
                    return compute(x, w, b, found)
            elif (options := _options(axes, transposed, *shapes, exact, where_faster, *known)) is not None:
                if x.dim() == axes + 2:
                    return convolution(x, w, b, options)
                return convolution(x.unsqueeze(0), w, b, options).squeeze(0)
    return _left(theirs, transposed, *given, stride, padding, dilation, groups, output_padding)


@functools.lru_cache(maxsize=1024)
def _known(
    axes: int, transposed: bool, x_shape: Any, w_shape: Any, b_shape: Any, exact: bool, where_faster: bool,
    stride: Any, padding: Any, dilation: Any, groups: Any, output_padding: Any, x_stride: Any, w_stride: Any, dtype: Any,
) -> Call | None:  # fmt: skip
    """What is known of a call that was met before: a small layer takes less time than to find it all anew."""
    shapes = x_shape, w_shape, b_shape
    options = _options(
        axes, transposed, *shapes, exact, where_faster, stride, padding, dilation, groups, output_padding
    )
    return None if options is None else call_of(x_shape, x_stride, w_shape, w_stride, dtype, options)


def _plain(options: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Ints, strings and tuples of ints; None where PyTorch may take or refuse another thing (True, 1.0, a tensor)."""
    for option in options:
        kind = type(option)
        if kind is list:
            return _plain(tuple(tuple(o) if type(o) is list else o for o in options))
        if kind is tuple:
            for number in option:
                if type(number) is not int:
                    return None
        elif kind is not int and kind is not str:
            return None
    return options


def _options(
    axes: int, transposed: bool, x_shape: Any, w_shape: Any, b_shape: Any, exact: bool, where_faster: bool,
    stride: Any, padding: Any, dilation: Any, groups: Any, output_padding: Any,
) -> Options | None:  # fmt: skip
    """The options of the operator, one for each axis; None where they or the shapes do not fit. Sizes may be symbolic."""
    if len(x_shape) not in (axes + 1, axes + 2) or len(w_shape) != axes + 2 or type(groups) is not int or groups < 1:
        return None
    channels, spatial, kernel = x_shape[-axes - 1], x_shape[-axes:], w_shape[2:]
    filters = w_shape[1] * groups if transposed else w_shape[0]
    if channels != (w_shape[0] if transposed else w_shape[1] * groups) or filters % groups or channels % groups:
        return None
    if channels < 1 or filters < 1 or (b_shape is not None and (len(b_shape) != 1 or b_shape[0] != filters)):
        return None
    strides, dilations = _per_axis(stride, axes, 1), _per_axis(dilation, axes, 1)
    extra = _per_axis(output_padding, axes, 0)
    if strides is None or dilations is None or extra is None:
        return None
    pairs = _pairs(padding, axes, kernel, strides, dilations, transposed)
    if pairs is None:
        return None
    for a in range(axes):
        length, window = spatial[a], dilations[a] * (kernel[a] - 1) + 1
        low, high = pairs[2 * a], pairs[2 * a + 1]
        if kernel[a] < 1 or length < 1 or extra[a] >= max(strides[a], dilations[a]):
            return None
        if transposed:
            room = (length - 1) * strides[a] - low - high + window - 1 + extra[a]
        else:
            room = length + low + high - window
        if room < 0:
            return None
    return Options(strides, pairs, dilations, transposed, extra, groups, exact, where_faster)


def _per_axis(option: Any, axes: int, least: int) -> tuple[int, ...] | None:
    """As PyTorch reads it: a number for all axes, alone or in a tuple, or one for each."""
    values = (option,) if type(option) is int else option
    if type(values) is not tuple or len(values) not in (1, axes) or min(values) < least:
        return None
    return values if len(values) == axes else values * axes


def _pairs(
    padding: Any, axes: int, kernel: Any, strides: tuple[int, ...], dilations: tuple[int, ...], transposed: bool
) -> tuple[int, ...] | None:
    """(low, high) of the first axis, of the second, ..."""
    if type(padding) is not str:
        amounts = _per_axis(padding, axes, 0)
        return None if amounts is None else tuple(amount for amount in amounts for _ in range(2))
    if transposed or padding not in ("valid", "same"):
        return None
    if padding == "valid":
        return (0,) * (2 * axes)
    if strides != (1,) * axes:
        return None
    whole = [d * (k - 1) for d, k in zip(dilations, kernel)]
    return tuple(amount for n in whole for amount in (n // 2, n - n // 2))
