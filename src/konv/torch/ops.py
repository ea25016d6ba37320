"""The boundary between PyTorch and konv: two operators, and when a call goes through them.

::

    functional.py --> convolution --who watches?-- a compiler, a transform, a mode: torch.ops.konv.convolution --.
                                   '-- nobody: an autograd.Function, or nothing where no gradient is needed ----+
                                                                                                                |
                                                              the engine <-- tensors.py: forward, gradients <---'

``konv::convolution`` and ``konv::convolution_backward`` have fake implementations, batching rules (``vmap``) and derivatives.
Both are linear in each tensor, so the derivative of the second is made of the same two operators.

An operator in Python costs 18 us a call and 47 with derivatives; the ``autograd.Function`` costs 7 and computes the same.
Under torch.func it is an ``autograd.Function`` of another style; forward-mode derivatives are PyTorch's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from konv.torch import aten, tensors
from konv.torch.faster import expected, forward, gradients, sums
from konv.torch.tensors import DTYPES, Call, Options, call, memory_format, weight_format

ORDINARY = (Tensor, torch.nn.Parameter)


def computes(x: Any, w: Any, b: Any) -> bool:
    """Whether konv computes with such tensors (their shapes are another matter)."""
    dtype = getattr(x, "dtype", None)
    if dtype not in DTYPES:
        return False
    for t in (x, w) if b is None else (x, w, b):
        if type(t) not in ORDINARY and not (isinstance(t, (FakeTensor, FunctionalTensor)) and not quiet()):
            return False  # fake ones have no memory: only who watches may see them
        if t.dtype != dtype or not t.is_cpu or t.layout != torch.strided or t.is_nested:
            return False
    return True


def leaves() -> bool:
    """Whether the call is recorded for elsewhere (a trace, ONNX) or has forward-mode derivatives, which are PyTorch's."""
    if torch.compiler.is_compiling():
        return torch.onnx.is_in_onnx_export() or torch._C._are_functorch_transforms_active()
    return torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0


def quiet() -> bool:
    """Whether nobody need see an operator: no compiler, trace, transform, mode, profiler, forward-mode derivative."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )


def convolution(x: Tensor, w: Tensor, b: Tensor | None, options: Options) -> Tensor:
    """The convolution, or with ``options.transposed`` the transposed one, of tensors and options that fit."""
    if _batched_by_autograd(x, w):
        return aten.forward(x, w, b, options)
    if quiet():
        known = call(x, w, options)
        return _recorded(x, w, b, known) if differentiable(x, w, b) else forward(x, w, b, known)
    if _transformed():
        return _Transformed.apply(x, w, b, options)
    return _operator(x, w, b, *options)


def quiet_convolution(known: Call, recorded: bool) -> tuple[Callable[..., Tensor], Call] | None:
    """:func:`convolution` where it is known that nobody watches, as a function of x, w, b and a call.

    None where PyTorch's function would do all of it.
    """
    ours = not known.options.where_faster or expected("forward" if recorded else "inference", known)
    whole = known.geometry.axes < 3  # of volumes PyTorch's forgets the layout
    if recorded:
        return None if not ours and whole and not expected("backward", known) else (_recorded, known)
    if ours:
        return tensors.forward, sums(known)
    return None if whole else (forward, known)


def differentiable(x: Tensor, w: Tensor, b: Tensor | None) -> bool:
    """Whether a graph of derivatives is recorded."""
    return torch.is_grad_enabled() and (x.requires_grad or w.requires_grad or (b is not None and b.requires_grad))


def _transformed() -> bool:
    """Whether torch.func's grad or vmap are at work."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _batched_by_autograd(*tensors: Tensor) -> bool:
    """Whether some are many at once (``is_grads_batched``, ``vectorize=True``), of a kind that only PyTorch's operations know."""
    if torch.compiler.is_compiling():  # which cannot read the question
        return False
    return any(map(torch._C._functorch.is_legacy_batchedtensor, tensors))


def convolution_backward(dy: Tensor, x: Tensor, w: Tensor, options: Options, mask: list[bool]) -> list[Tensor | None]:
    """dL/dx, dL/dw, dL/db from dy = dL/dy, None where ``mask`` is False."""
    if _transformed():
        found = _TransformedBackward.apply(dy, x, w, options, mask)
    elif forward_ad._current_level >= 0 or _batched_by_autograd(dy, x, w):  # of a graph that was made before
        return aten.gradients(dy, x, w, options, mask)
    elif torch.is_grad_enabled() or not quiet():
        found = _backward_operator(dy, x, w, *options, mask)
    else:
        return gradients(dy, x, w, call(x, w, options), mask)
    return [gradient if wanted else None for gradient, wanted in zip(found, mask)]


class _Function(torch.autograd.Function):
    """For the ordinary call. (The style that torch.func needs costs 15 us more.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, known: Call) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.known = known
        return forward(x, w, b, known)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x, w), mask = ctx.saved_tensors, list(ctx.needs_input_grad[:3])
        if quiet() and not torch.is_grad_enabled() and not _batched_by_autograd(dy):
            return *gradients(dy, x, w, ctx.known, mask), None
        return *convolution_backward(dy, x, w, ctx.known.options, mask), None


# What ``_Function.apply`` calls after questions that only torch.func's tensors answer otherwise, in 2 us.
_recorded = super(torch.autograd.Function, _Function).apply


class _Transformed(torch.autograd.Function):
    """The same for torch.func, whose ``grad`` cannot differentiate operators of torch.library (PyTorch 2.13)."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, options: Options) -> Tensor:
        return convolution(x, w, b, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, _, ctx.options = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return *convolution_backward(dy, x, w, ctx.options, list(ctx.needs_input_grad[:3])), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, options: Options) -> Any:
        return _batched(info, in_dims, x, w, b, *options)


class _TransformedBackward(torch.autograd.Function):
    @staticmethod
    def forward(dy: Tensor, x: Tensor, w: Tensor, options: Options, mask: list[bool]) -> tuple[Tensor, ...]:
        return _three(convolution_backward(dy, x, w, options, mask), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, w, ctx.options, ctx.mask = inputs
        ctx.save_for_backward(dy, x, w)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return *_second_derivative(ctx, *upstream), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, dy: Tensor, x: Tensor, w: Tensor, options: Options, mask: list[bool]) -> Any:
        return _batched_backward(info, in_dims, dy, x, w, *options, mask)


def _three(found: list[Tensor | None], x: Tensor) -> tuple[Tensor, ...]:
    """An operator cannot return None."""
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in found)


def _second_derivative(ctx: Any, vx: Tensor, vw: Tensor, vb: Tensor) -> tuple[Tensor | None, ...]:
    """Of ``dx = A(dy, w), dw = B(dy, x), db = sum of dy``, all linear: conv(vx, w) + conv(x, vw) + vb, A(dy, vw), B(dy, vx)."""
    (dy, x, w), options, (has_x, has_w, has_b) = ctx.saved_tensors, ctx.options, ctx.mask
    for_dy = for_x = for_w = None
    if ctx.needs_input_grad[0]:
        parts = []
        if has_x:
            parts.append(convolution(vx, w, None, options))
        if has_w:
            parts.append(convolution(x, vw, None, options))
        if has_b:
            parts.append(vb.reshape(-1, *[1] * (dy.dim() - 2)).expand_as(dy))
        for_dy = functools.reduce(torch.add, parts)
    if ctx.needs_input_grad[1] and has_w:
        for_x = convolution_backward(dy, x, vw, options, [True, False, False])[0]
    if ctx.needs_input_grad[2] and has_x:
        for_w = convolution_backward(dy, vx, w, options, [False, True, False])[1]
    return for_dy, for_x, for_w


# The operators

_OPTIONS = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups, "
    "bool exact, bool where_faster"
)


@torch.library.custom_op(
    "konv::convolution",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, Tensor w, Tensor? b, {_OPTIONS}) -> Tensor",
)
def _operator(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    return forward(x, w, b, call(x, w, _hashable(options)))


@torch.library.custom_op(
    "konv::convolution_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor dy, Tensor x, Tensor w, {_OPTIONS}, bool[] mask) -> (Tensor, Tensor, Tensor)",
)
def _backward_operator(dy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, mask = rest
    return _three(gradients(dy, x, w, call(x, w, _hashable(options)), mask), x)


def _hashable(options: Any) -> Options:
    """From the lists that the dispatcher makes of tuples."""
    return Options._make(tuple(option) if isinstance(option, (list, tuple)) else option for option in options)


@_operator.register_fake
def _(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    o = Options(*options)
    spatial, kernel = x.shape[2:], w.shape[2:]
    size = []
    for length, k, s, d, low, high, extra in zip(
        spatial, kernel, o.stride, o.dilation, o.padding[::2], o.padding[1::2], o.output_padding
    ):
        window = d * (k - 1) + 1
        if o.transposed:
            size.append((length - 1) * s - low - high + window + extra)
        else:
            size.append((length + low + high - window) // s + 1)
    filters = w.shape[1] * o.groups if o.transposed else w.shape[0]
    return torch.empty((x.shape[0], filters, *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x, w))


@_backward_operator.register_fake
def _(dy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, mask = rest
    o = Options(*options)
    filters = w.shape[1] * o.groups if o.transposed else w.shape[0]
    shapes = x.shape, w.shape, (filters,)
    layouts = memory_format(x, w), weight_format(w.shape, w.stride()), torch.contiguous_format
    return tuple(
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout) if wanted else x.new_empty(0)
        for shape, layout, wanted in zip(shapes, layouts, mask)
    )


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, w, _, *options = inputs
    ctx.save_for_backward(x, w)
    ctx.options = _hashable(options)


def _derivative(ctx: Any, dy: Tensor) -> Any:
    x, w = ctx.saved_tensors
    found = convolution_backward(dy, x, w, ctx.options, list(ctx.needs_input_grad[:3]))
    return *found, *[None] * len(ctx.options)


def _keep_backward(ctx: Any, inputs: Any, output: Any) -> None:
    dy, x, w, *options, ctx.mask = inputs
    ctx.save_for_backward(dy, x, w)
    ctx.options = _hashable(options)


def _derivative_of_backward(ctx: Any, *upstream: Tensor) -> Any:
    return *_second_derivative(ctx, *upstream), *[None] * (len(ctx.options) + 1)


_operator.register_autograd(_derivative, setup_context=_keep)
_backward_operator.register_autograd(_derivative_of_backward, setup_context=_keep_backward)


def _leading(t: Tensor, dim: int | None, size: int) -> Tensor:
    """The batched axis in front; a tensor that has none is repeated without a copy."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _side_by_side(t: Tensor) -> Tensor:
    """(batched, N, C, ...) -> (N, batched * C, ...)"""
    return t.transpose(0, 1).flatten(1, 2)


def _batched(info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Any:
    """Many inputs of one layer are one batch; many layers are one layer of as many groups more."""
    size, o = info.batch_size, _hashable(options)
    x = _leading(x, in_dims[0], size)
    if in_dims[1] is None and (b is None or in_dims[2] is None):
        return convolution(x.flatten(0, 1), w, b, o).unflatten(0, x.shape[:2]), 0
    w = _leading(w, in_dims[1], size).flatten(0, 1)
    b = None if b is None else _leading(b, in_dims[2], size).flatten(0, 1)
    y = convolution(_side_by_side(x), w, b, o._replace(groups=o.groups * size))
    return y.unflatten(1, (size, y.shape[1] // size)), 1


def _batched_backward(info: Any, in_dims: Any, dy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> Any:
    *options, mask = rest
    size, o = info.batch_size, _hashable(options)
    dy, x = (_leading(t, dim, size) for t, dim in zip((dy, x), in_dims))
    if in_dims[2] is None and not mask[1] and not mask[2]:
        dx = _three(convolution_backward(dy.flatten(0, 1), x.flatten(0, 1), w, o, mask), x)[0]
        return (dx.unflatten(0, x.shape[:2]), x.new_empty(0), x.new_empty(0)), (0, None, None)
    w = _leading(w, in_dims[2], size)
    o = o._replace(groups=o.groups * size)
    found = _three(convolution_backward(_side_by_side(dy), _side_by_side(x), w.flatten(0, 1), o, mask), x)
    dims = [axis if wanted else None for axis, wanted in zip((1, 0, 0), mask)]
    split = [t if axis is None else t.unflatten(axis, (size, t.shape[axis] // size)) for t, axis in zip(found, dims)]
    return tuple(split), tuple(dims)


_operator.register_vmap(_batched)
_backward_operator.register_vmap(_batched_backward)
