"""A model's convolutions where they stand: what they compute, compared with float64, and how much of the time is theirs.

Results of a whole model cannot tell whether a training step is right. In training batch normalisation divides by what a few
numbers vary, layer after layer: of one image, the first and last gradients of MobileNetV2 are 4e-5 of their largest number
off float64 in one of PyTorch's layouts and 5e-3 in the other, those of ResNet-50 0.3, and yet all are right. A single
convolution has no such trouble. So each is given, in float64, the very x, weights and dy that it got inside the model, and
what it made of them is compared.

The error of a result is the largest difference, relative to the largest sum of the products' magnitudes, :math:`\\sum |x| |w|`
(of dx :math:`\\sum |dy| |w|`, and so on): rounding is of that order, also where the products cancel, as those of a gradient
behind batch normalisation do, and so the comparison is as sharp there as elsewhere. A missing or a wrong product is of the
order of ``1 / terms`` of it or more.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from konv.bench.exact import rounding

STEPS = 5  # that are timed


def convolutions(model: Any) -> list[Any]:
    """Its convolutions, whatever class of :class:`torch.nn`'s convolutions they have become."""
    import torch

    return [module for module in model.modules() if isinstance(module, torch.nn.modules.conv._ConvNd)]


def error(model: Any, step: Callable[[], Any]) -> float:
    """The largest error of a convolution's results in a step, in units of what rounding allows: at most 1 is right.

    ``model`` is what ``step()`` runs, forwards or forwards and back. Of layers of the same shapes and options, which the same
    kernels compute, the first is compared. NaN where a result has one, or none was seen.
    """
    worst, seen = [-math.inf], set()

    def compare(found: Any, exact: Any, scale: Any, terms: int) -> None:
        import torch

        name = str(found.dtype).removeprefix("torch.")
        share = float((found.double() - exact).abs().max() / scale.abs().max().clamp_min(torch.finfo(scale.dtype).tiny))
        share /= rounding(name, terms)
        worst[0] = share if math.isnan(share) else max(worst[0], share)  # max() keeps the NaN that comes first

    def forward(module: Any, inputs: Any, output: Any) -> None:
        import torch

        (x,), (w, b), found = inputs, _parameters(module), output.detach()
        kind = (
            x.shape,
            x.requires_grad,
            w.shape,
            b is None,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )
        if kind in seen:
            return
        seen.add(kind)
        with torch.no_grad():
            compare(found, _apply(module, x.double(), w, b), _apply(module, x.abs(), w.abs(), _abs(b)), _taps(w))
        if output.grad_fn is not None:
            x = x.detach()
            output.grad_fn.register_hook(lambda made, upstream: backward(module, x, w, b, made, upstream[0].detach()))

    def backward(module: Any, x: Any, w: Any, b: Any, made: Any, dy: Any) -> None:
        exact = _gradients(module, x.double(), w.double(), b if b is None else b.double(), dy.double())
        scale = _gradients(module, x.abs(), w.abs(), _abs(b), dy.abs())
        outputs = dy.numel() // dy.shape[1]  # that a weight met
        terms = w.shape[0] // module.groups * w[0, 0].numel(), outputs, outputs
        for one in zip(made, exact, scale, terms):
            if one[0] is not None and one[1] is not None:
                compare(*one)

    with _hooked(model, forward):
        step()
    return worst[0] if worst[0] >= 0 else math.nan


def share_of_time(model: Any, step: Callable[[], Any]) -> float:
    """How much of the time of ``step()`` the model's convolutions take, forwards and back: the median of some steps."""
    spent, began = [0.0], [0.0]

    def start(*_: Any) -> None:
        began[0] = time.perf_counter()

    def stop(*_: Any) -> None:
        spent[0] += time.perf_counter() - began[0]

    def forward(module: Any, inputs: Any, output: Any) -> None:
        stop()
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(start)
            output.grad_fn.register_hook(stop)

    shares = []
    with _hooked(model, forward, start):
        step()
        for _ in range(STEPS):
            spent[0] = 0.0
            whole = time.perf_counter()
            step()
            shares.append(spent[0] / (time.perf_counter() - whole))
    return statistics.median(shares)


@contextlib.contextmanager
def _hooked(model: Any, forward: Callable[..., None], before: Callable[..., None] | None = None) -> Iterator[None]:
    hooks = [module.register_forward_hook(forward) for module in convolutions(model)]
    if before is not None:
        hooks += [module.register_forward_pre_hook(before) for module in convolutions(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parameters(module: Any) -> tuple[Any, Any]:
    return module.weight.detach(), None if module.bias is None else module.bias.detach()


def _abs(b: Any) -> Any:
    return None if b is None else b.abs()


def _taps(w: Any) -> int:
    return w[0].numel()


def _apply(module: Any, x: Any, w: Any, b: Any) -> Any:
    """The module's convolution as PyTorch's class computes it, in the dtype of x."""
    from torch import nn

    theirs: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[w.dim() - 3]
    return theirs._conv_forward(module, x, w.to(x.dtype), b if b is None else b.to(x.dtype))


def _gradients(module: Any, x: Any, w: Any, b: Any, dy: Any) -> list[Any]:
    """dx, dw and db in the order that the graph has them."""
    import torch

    with torch.enable_grad():
        inputs = [t.requires_grad_() for t in (x, w, b) if t is not None]
        return list(torch.autograd.grad(_apply(module, x, w, b), inputs, dy))
