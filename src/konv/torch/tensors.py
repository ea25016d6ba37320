"""Tensors to the engine and back: plain CPU tensors that fit together in, new tensors out, nothing copied that need not be.

The engine sees NumPy views of the tensors' memory, in the layout that the result will have: channels last where PyTorch's
result is. It uses as many threads as PyTorch does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from konv import arrays
from konv.engine.addresses import OnAddresses
from konv.engine.plan import Algorithm, Problem, algorithm_for, asked, choose, on_addresses
from konv.engine.threads import using
from konv.geometry import Geometry, geometry, transposed_geometry

DTYPES = {torch.float16: "float16", torch.float32: "float32", torch.float64: "float64"}
if importlib.util.find_spec("ml_dtypes") is not None:  # NumPy has no bfloat16 without it
    DTYPES[torch.bfloat16] = "bfloat16"
# Smaller results are PyTorch's: it makes its next one where the last one died, in the caches. Lent from a mebibyte on, where BN's
# and ReLU's were not, those took twice as long behind a layer, and ResNet-50's inference up to 4 % longer, near the noise.
LENT_BYTES = 8 << 20
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_FIRST = torch.contiguous_format


class Options(NamedTuple):
    """What a convolution is told beside its tensors: a number for each spatial axis, of ``padding`` a low and a high one.

    ``exact`` asks for sums whose order does not depend on the length of the input, ``where_faster`` for PyTorch's own
    computation where konv's is not expected to be faster.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    exact: bool = False
    where_faster: bool = False


def forward(x: Tensor, w: Tensor, b: Tensor | None, known: Call) -> Tensor:
    """x (N, C, *spatial), w (F, C // groups, *kernel), or transposed (C, F // groups, *kernel) -> y (N, F, *output)."""
    options, g, layout = known.options, known.geometry, known.layout
    if not options.transposed and (y := _quickly("forward", known, x, w, b, known.y, known.laid)) is not None:
        return y
    source, weights = array_of(x, layout), array_of(w, _FIRST)
    with using(torch.get_num_threads()):
        if not options.transposed:
            y, target = _result(x, known.y)
            bias = None if b is None else array_of(b, _FIRST)
            algorithm("forward", known).forward(source, weights, bias, g, target)
            return y
        wide = x.dtype if b is None or x.dtype.itemsize > 2 else torch.float32  # half types are rounded once
        y, target = empty(g.x_shape, wide, layout)
        algorithm("input_gradient", known).input_gradient(source, weights, g, target)
    if b is not None:
        y = y.add_(b.detach().view(-1, *[1] * g.axes)).to(x.dtype)
    return y


def _quickly(
    kind: str, known: Call, x: Tensor, w: Tensor, b: Tensor | None, blank: Blank, laid: bool = False
) -> Tensor | None:
    """A result of an algorithm that asks for addresses alone, which takes half the time outside of kernels; else None.

    ``laid``: it is known that x and w lie as they are read.
    """
    if known.options.exact:
        return None
    prepared = _on_addresses(kind, known, torch.get_num_threads(), asked())
    if prepared is None:
        return None
    if not laid:
        x = x.contiguous(memory_format=known.layout)
        w = w.contiguous(memory_format=known.layout if kind == "weight_gradient" else _FIRST)
    for t in (x, w) if b is None else (x, w, b):
        if t._is_zerotensor() or t.is_neg() or not t.data_ptr():
            return None
    if b is not None and not b.is_contiguous():
        return None
    if prepared.finite_weights and not arrays.all_finite(view_of(w)):
        return None
    if blank.stride is None:
        out, _ = empty(blank.shape, x.dtype, blank.layout)
    else:
        out = x.new_empty_strided(blank.shape, blank.stride)
    prepared.run(x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr())
    return out


@functools.lru_cache(maxsize=4096)
def _on_addresses(kind: str, known: Call, threads: int, asked: object) -> OnAddresses | None:
    return on_addresses(kind, known.geometry, known.dtype, known.where, threads)


def gradients(dy: Tensor, x: Tensor, w: Tensor, known: Call, mask: list[bool]) -> list[Tensor | None]:
    """dL/dx, dL/dw, dL/db from dy = dL/dy, None where ``mask`` is False."""
    transposed = known.options.transposed
    dx = dw = db = None
    if mask[0]:
        dx = _quickly("forward" if transposed else "input_gradient", known, dy, w, None, known.x)
    if mask[1] and transposed:
        dw = _quickly("weight_gradient", known, x, dy, None, known.w)
    elif mask[1]:
        db = x.new_empty(known.geometry.filters) if mask[2] else None
        dw = _quickly("weight_gradient", known, dy, x, db, known.w)
        db = None if dw is None else db
    if [t is not None for t in (dx, dw, db)] != mask:
        upstream = array_of(dy, known.layout)
        with using(torch.get_num_threads()):
            if mask[0] and dx is None:
                dx = _input_gradient(upstream, x, w, known)
            if mask[1] and dw is None:
                dw, db = _weight_gradient(upstream, x, known, with_bias=mask[2])
            if mask[2] and db is None:
                db = _bias_gradient(upstream, x.dtype)
    # As w: where a gradient lies otherwise than its parameter, PyTorch copies it once more.
    return [dx, dw if dw is None else dw.contiguous(memory_format=known.weights), db]


def _input_gradient(upstream: np.ndarray, x: Tensor, w: Tensor, known: Call) -> Tensor:
    transposed = known.options.transposed
    dx, target = _result(x, known.x)
    chosen = algorithm("forward" if transposed else "input_gradient", known)
    weights = array_of(w, known.weights if getattr(chosen, "WEIGHTS_LAST", False) else _FIRST)
    if transposed:
        chosen.forward(upstream, weights, None, known.geometry, target)
    else:
        chosen.input_gradient(upstream, weights, known.geometry, target)
    return dx


def _weight_gradient(upstream: np.ndarray, x: Tensor, known: Call, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """dL/dw, and dL/db where it is wanted and the algorithm gives it on the way."""
    g, chosen = known.geometry, algorithm("weight_gradient", known)
    dw, target = _result(x, known.w_last if getattr(chosen, "WEIGHTS_LAST", False) else known.w)
    source = array_of(x, known.layout)
    if known.options.transposed:
        chosen.weight_gradient(source, upstream, g, target)
        return dw, None
    both = getattr(chosen, "weight_and_bias_gradient", None)
    if not with_bias or both is None:
        chosen.weight_gradient(upstream, source, g, target)
        return dw, None
    db = torch.empty(g.filters, dtype=x.dtype)
    both(upstream, source, g, target, view_of(db))
    return dw, db


def _bias_gradient(upstream: np.ndarray, dtype: torch.dtype) -> Tensor:
    from konv.engine.bias import bias_gradient  # LLVM takes a while to import

    return tensor_of(bias_gradient(upstream), dtype)


class Blank(NamedTuple):
    """A result that is not made yet; ``stride`` is None of one whose memory is lent."""

    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    layout: torch.memory_format


def _blank(shape: Sequence[int], dtype: str, layout: torch.memory_format) -> Blank:
    lent = math.prod(shape) * _numpy_dtype(dtype).itemsize >= LENT_BYTES
    return Blank(tuple(shape), None if lent else _strides(shape, layout), layout)


def _strides(shape: Sequence[int], layout: torch.memory_format) -> tuple[int, ...]:
    inner = range(len(shape) - 1, 0, -1) if layout is _FIRST else (1, *range(len(shape) - 1, 1, -1))
    stride, step = [1] * len(shape), 1
    for axis in (*inner, 0):
        stride[axis], step = step, step * max(1, shape[axis])
    return tuple(stride)


def _contiguous(shape: Any, strides: Any, layout: torch.memory_format) -> bool:
    """Whether ``contiguous`` would give the tensor itself. (False of empty ones: those are asked.)"""
    return all(n == 1 or s == wanted for n, s, wanted in zip(shape, strides, _strides(shape, layout)))


def _result(x: Tensor, blank: Blank) -> tuple[Tensor, np.ndarray]:
    """:func:`empty` of the type of x."""
    if blank.stride is None:
        return empty(blank.shape, x.dtype, blank.layout)
    t = x.new_empty_strided(blank.shape, blank.stride)
    return t, view_of(t)


def empty(shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format = _FIRST) -> tuple[Tensor, np.ndarray]:
    """An uninitialised tensor and its memory; a large one's is that of earlier results, see :mod:`konv.lending`."""
    if math.prod(shape) * dtype.itemsize < LENT_BYTES:
        t = torch.empty(shape, dtype=dtype, memory_format=layout)
        return t, view_of(t)
    array = arrays.empty(tuple(shape), _numpy_dtype(DTYPES[dtype]), "first" if layout is _FIRST else "last")
    return tensor_of(array, dtype), array


def memory_format(x: Tensor, w: Tensor) -> torch.memory_format:
    """Of a convolution's results: channels last where x or w is, as PyTorch has it. With one axis never."""
    return _layout(x.shape, x.stride(), w.shape, w.stride())


def weight_format(shape: Any, strides: Any) -> torch.memory_format:
    """Of weights that lie so, and of their gradient."""
    return _LAST[len(shape)] if len(shape) > 3 and _is_last(shape, strides) else _FIRST


def _layout(x_shape: Any, x_stride: Any, w_shape: Any, w_stride: Any) -> torch.memory_format:
    last = len(x_shape) > 3 and (_is_last(x_shape, x_stride) or _is_last(w_shape, w_stride))
    return _LAST[len(x_shape)] if last else _FIRST


def _is_last(shape: Any, strides: Any) -> bool:
    """Whether the strides grow in the order C, W, H, N. PyTorch's rule: those of a single channel or cell tell too."""
    if strides[1] == 0 or strides[-1] < strides[1]:  # the second is the usual case, found at once
        return False
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * shape[axis] if shape[axis] > 1 else strides[axis]
    return True


@dataclass(frozen=True, eq=False)  # a key that is itself: nothing is hashed anew
class Call:
    """What is known of a call before its numbers: options, checked shapes (of a transposed convolution those of the one that
    runs the other way), PyTorch's name of the layout and of that of the weights and their gradient, the engine's name of the
    layout, and its name of the dtype; and whether x and w lie as a forward pass reads them."""

    options: Options
    geometry: Geometry
    layout: torch.memory_format
    weights: torch.memory_format
    where: str
    dtype: str
    laid: bool

    @functools.cached_property
    def exactly(self) -> Call:
        """The same, of exact sums."""
        return replace(self, options=self.options._replace(exact=True))

    @functools.cached_property
    def y(self) -> Blank:
        """Of a convolution that is no transposed one."""
        return _blank(self.geometry.output_shape, self.dtype, self.layout)

    @functools.cached_property
    def x(self) -> Blank:
        """Of dx."""
        g = self.geometry
        return _blank(g.output_shape if self.options.transposed else g.x_shape, self.dtype, self.layout)

    @functools.cached_property
    def w(self) -> Blank:
        """Of dw, as most algorithms write it."""
        return _blank(self.geometry.w_shape, self.dtype, _FIRST)

    @functools.cached_property
    def w_last(self) -> Blank:
        """Of dw, as those with ``WEIGHTS_LAST`` do."""
        return _blank(self.geometry.w_shape, self.dtype, self.weights)


def call(x: Tensor, w: Tensor, options: Options) -> Call:
    """What is known of a convolution of x and w."""
    return call_of(x.shape, x.stride(), w.shape, w.stride(), x.dtype, options)


@functools.lru_cache(maxsize=1024)
def call_of(x_shape: Any, x_stride: Any, w_shape: Any, w_stride: Any, dtype: torch.dtype, options: Options) -> Call:
    """The same of tensors that are described."""
    layout, name = _layout(x_shape, x_stride, w_shape, w_stride), DTYPES[dtype]
    g, where = _geometry(x_shape, w_shape, options, name), "first" if layout is _FIRST else "last"
    laid = _contiguous(x_shape, x_stride, layout) and _contiguous(w_shape, w_stride, _FIRST)
    return Call(options, g, layout, weight_format(w_shape, w_stride), where, name, laid)


def _geometry(x_shape: Any, w_shape: Any, options: Options, name: str) -> Geometry:
    pairs = tuple(zip(options.padding[::2], options.padding[1::2]))
    stride, dilation, groups, dtype = options.stride, options.dilation, options.groups, _numpy_dtype(name)
    if not options.transposed:
        return geometry(x_shape, w_shape, stride=stride, padding=pairs, dilation=dilation, groups=groups, dtype=dtype)
    return transposed_geometry(
        x_shape, w_shape, stride=stride, padding=pairs, output_padding=options.output_padding, dilation=dilation,
        groups=groups, dtype=dtype,
    )  # fmt: skip


def algorithm(kind: str, known: Call) -> Algorithm:
    """Who computes it here and now."""
    if known.options.exact:
        return choose(Problem(kind, known.geometry, known.dtype, True, known.where)).algorithm
    return algorithm_for(kind, known.geometry, known.dtype, known.where)


def array_of(t: Tensor, layout: torch.memory_format = _FIRST) -> np.ndarray:
    """A view of the tensor where it is contiguous in ``layout``, else of a copy, which PyTorch makes with all threads."""
    if t._is_zerotensor():  # some derivatives of PyTorch's have no memory
        t = torch.zeros(t.shape, dtype=t.dtype)
    return view_of(t.contiguous(memory_format=layout))


def view_of(t: Tensor) -> np.ndarray:
    """The memory of a tensor; of a negated one, which is a view of what it negates, that of a copy.

    RuntimeError where its storage was freed (``untyped_storage().resize_(0)``).
    """
    if not t.data_ptr() and t.numel():
        raise RuntimeError(f"a tensor of shape {tuple(t.shape)} has no memory: its storage was freed")
    if t.dtype is torch.bfloat16:
        return t.resolve_neg().detach().view(torch.int16).numpy().view(_numpy_dtype("bfloat16"))
    return t.numpy(force=True)


def tensor_of(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A tensor of ``dtype`` on the memory of an array of that type."""
    if dtype is not torch.bfloat16:
        return torch.from_numpy(array)
    t = torch.from_numpy(array.view(np.int16))
    return torch.empty(0, dtype=dtype).set_(t.untyped_storage(), t.storage_offset(), t.shape, t.stride())  # no view


@functools.cache
def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
