"""Every layer's gradients against central differences: the list behind ``konv check``.

A case is a name and a function that draws a layer and its input and hands both to :func:`konv.gradcheck`. The sizes are
small and odd: none divides another, so that a gradient that lands in the wrong cell cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from konv.gradcheck import GradcheckResult, gradcheck
from konv.layers import (
    Affine,
    AveragePooling,
    BatchNormalization,
    CausalConv1d,
    Convolution,
    ConvolutionTranspose,
    DownConv,
    Dropout,
    Pooling,
    ReLU,
    Sequential,
    Sigmoid,
    SoftmaxWithLoss,
)

Check = Callable[[np.random.Generator], GradcheckResult]


def run(seed: int = 0) -> Iterator[tuple[str, GradcheckResult]]:
    """Check every layer, one after another.

    Parameters
    ----------
    seed : int
        Draws weights and inputs.

    Yields
    ------
    name : str
        Of the layer and its options.
    result : GradcheckResult
        True if all its gradients agree; its ``worst`` tells the worst element.

    Examples
    --------
    >>> name, result = next(run())
    >>> name, bool(result)
    ('Convolution 1-D', True)
    """
    for index, (name, check) in enumerate(CASES.items()):
        yield name, check(np.random.default_rng([seed, index]))


def _convolution(x_shape: tuple[int, ...], w_shape: tuple[int, ...], kind: Any = Convolution, **options: Any) -> Check:
    """A convolution of either direction, whose bias is as long as the output has channels."""

    def check(rng: np.random.Generator) -> GradcheckResult:
        filters = w_shape[1] * options.get("groups", 1) if kind is ConvolutionTranspose else w_shape[0]
        layer = kind(rng.standard_normal(w_shape), rng.standard_normal(filters), **options)
        return gradcheck(layer, rng.standard_normal(x_shape))

    return check


def _layer(make: Callable[[np.random.Generator], Any], *x_shape: int) -> Check:
    return lambda rng: gradcheck(make(rng), rng.standard_normal(x_shape))


def _causal_chunk(rng: np.random.Generator) -> GradcheckResult:
    """The second chunk of a sequence, so that the gradient goes through the state, too."""
    layer = CausalConv1d(rng.standard_normal((4, 3, 3)), rng.standard_normal(4), dilation=2)
    return gradcheck(layer, rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 4)))


def _dropout(rng: np.random.Generator) -> GradcheckResult:
    layer = Dropout(0.3)

    def forward(x: np.ndarray) -> np.ndarray:
        layer.rng = np.random.default_rng(5)  # the same values dropped in every call
        return layer.forward(x)

    return gradcheck(forward, rng.standard_normal((5, 7)), backward=lambda dy, x: layer.backward(dy))


def _softmax_with_loss(rng: np.random.Generator) -> GradcheckResult:
    layer, labels = SoftmaxWithLoss(), rng.integers(0, 7, 5)
    # Of a mean over 5 the gradients are small; times 5 they are far above the check's tolerance.
    return gradcheck(
        lambda x: 5 * layer.forward(x, labels),
        rng.standard_normal((5, 7)),
        backward=lambda dy, x: layer.backward(5 * dy),
    )


def _network(rng: np.random.Generator) -> GradcheckResult:
    """Several layers at once: what each hands to the next has to fit."""
    network = Sequential(
        Convolution(rng.standard_normal((4, 2, 3, 3)), rng.standard_normal(4), stride=1, pad=1),
        BatchNormalization(rng.standard_normal(4), rng.standard_normal(4)),
        Sigmoid(),
        AveragePooling(2, 2),
        Affine(rng.standard_normal((4 * 3 * 2, 5)), rng.standard_normal(5)),
    )
    return gradcheck(network, rng.standard_normal((3, 2, 6, 4)))


CASES: dict[str, Check] = {
    "Convolution 1-D": _convolution((2, 3, 11), (5, 3, 4), stride=3, pad=2),
    "Convolution 1-D, groups, dilation": _convolution((2, 6, 13), (9, 2, 3), groups=3, dilation=2, pad=((3, 1),)),
    "Convolution 2-D": _convolution((2, 3, 7, 5), (4, 3, 3, 2), stride=(2, 1), pad=(1, 2)),
    "Convolution 2-D, depthwise": _convolution((2, 4, 7, 6), (4, 1, 3, 3), groups=4, pad="same"),
    "Convolution 2-D, groups, dilation": _convolution((2, 4, 9, 7), (6, 2, 3, 2), groups=2, dilation=(2, 3), pad=1),
    "Convolution 2-D, reflect": _convolution((1, 2, 5, 6), (3, 2, 3, 3), pad=2, padding_mode="reflect"),
    "Convolution 2-D, replicate": _convolution((1, 2, 5, 6), (3, 2, 3, 3), pad=2, padding_mode="replicate"),
    "Convolution 2-D, circular": _convolution((1, 2, 5, 6), (3, 2, 3, 3), pad=2, padding_mode="circular"),
    "Convolution 3-D": _convolution((2, 2, 5, 4, 6), (3, 2, 2, 3, 2), stride=(2, 1, 1), pad=1),
    "Convolution 3-D, groups, dilation": _convolution((1, 4, 5, 6, 4), (4, 2, 2, 2, 2), groups=2, dilation=(2, 1, 2)),
    "ConvolutionTranspose 1-D": _convolution((2, 3, 5), (3, 4, 3), ConvolutionTranspose, stride=2, output_padding=1),
    "ConvolutionTranspose 2-D, groups, dilation": _convolution(
        (2, 4, 4, 3), (4, 3, 3, 2), ConvolutionTranspose, stride=2, pad=1, groups=2, dilation=2
    ),
    "ConvolutionTranspose 3-D": _convolution((1, 2, 3, 2, 4), (2, 3, 2, 3, 2), ConvolutionTranspose, stride=(2, 1, 2)),
    "Pooling": _layer(lambda rng: Pooling(3, 2, stride=2, pad=1), 2, 3, 7, 6),
    "AveragePooling": _layer(lambda rng: AveragePooling(3, 2, stride=2, pad=1), 2, 3, 7, 6),
    "CausalConv1d": _convolution((2, 3, 11), (4, 3, 3), CausalConv1d, stride=2, dilation=2),
    "CausalConv1d, depthwise": _convolution((2, 4, 9), (4, 1, 5), CausalConv1d, groups=4),
    "CausalConv1d, second chunk": _causal_chunk,
    "Affine": _layer(lambda rng: Affine(rng.standard_normal((12, 5)), rng.standard_normal(5)), 3, 4, 3),
    "ReLU": _layer(lambda rng: ReLU(), 5, 7),
    "Sigmoid": _layer(lambda rng: Sigmoid(), 5, 7),
    "BatchNormalization": _layer(lambda rng: BatchNormalization(rng.standard_normal(6), rng.standard_normal(6)), 7, 6),
    "BatchNormalization, images": _layer(
        lambda rng: BatchNormalization(rng.standard_normal(3), rng.standard_normal(3)), 4, 3, 5, 2
    ),
    "Dropout": _dropout,
    "SoftmaxWithLoss": _softmax_with_loss,
    "DownConv": _layer(lambda rng: DownConv(24, 6, 3, 4, channel_reduction=2, dtype=np.float64, rng=rng), 2, 24, 6),
    "a network of five": _network,
}
