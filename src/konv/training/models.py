"""The networks of ``konv train``, built from konv's layers: two of the book's, and one that reads an image row by row.

All take images (N, 1, H, W) and give scores (N, classes), before the softmax. Weights are drawn from a normal distribution of
deviation ``sqrt(2 / fan_in)`` and biases are 0 (He et al., *Delving Deep into Rectifiers*, 2015), in the last layer, too, as in
the book's DeepConvNet; :class:`konv.DownConv` draws its own.
"""

from __future__ import annotations

import numpy as np

from konv.layers import Affine, Convolution, DownConv, Dropout, Pooling, ReLU, Sequential
from konv.layers.base import Layer
from konv.training.config import MODELS


def build(name: str, image_shape: tuple[int, int], classes: int, rng: np.random.Generator) -> Sequential:
    """A new network by name, in float32.

    Parameters
    ----------
    name : {"simple", "deep", "sequence"}
        :func:`simple_convnet`, :func:`deep_convnet` or :func:`row_sequence`.
    image_shape : tuple of int
        Height and width of the images, each at least 8.
    classes : int
        Number of scores.
    rng : numpy.random.Generator
        Draws the weights.

    Raises
    ------
    ValueError
        Unknown name, or images under 8 x 8.

    Examples
    --------
    >>> network = build("simple", (8, 8), 10, np.random.default_rng(0))
    >>> network.eval().forward(np.zeros((2, 1, 8, 8), np.float32)).shape
    (2, 10)
    """
    makers = {"simple": simple_convnet, "deep": deep_convnet, "sequence": row_sequence}
    if name not in makers:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    if min(image_shape) < 8:
        raise ValueError(f"images must be at least 8 x 8, got {image_shape[0]} x {image_shape[1]}")
    return makers[name](image_shape, classes, rng)


def simple_convnet(image_shape: tuple[int, int], classes: int, rng: np.random.Generator) -> Sequential:
    """conv - ReLU - pool - affine - ReLU - affine: *Deep Learning from Scratch*, sec. 7.5.

    The book's sizes: 30 filters of 5 x 5, pool 2 x 2, 100 hidden units. Below 16 x 16, where 5 x 5 would leave little to
    pool, the filters are 60 of 3 x 3 with padding 1 (in a cross-validation on digits 30 misread 1.0 %, 60 misread 0.6 %).
    """
    height, width = image_shape
    filters, size, pad = (30, 5, 0) if min(image_shape) >= 16 else (60, 3, 1)
    pooled = [(side + 2 * pad - size + 1) // 2 for side in (height, width)]
    return Sequential(
        [
            Convolution(*he(rng, (filters, 1, size, size)), stride=1, pad=pad),
            ReLU(),
            Pooling(2, 2, stride=2),
            Affine(*he(rng, (filters * pooled[0] * pooled[1], 100))),
            ReLU(),
            Affine(*he(rng, (100, classes))),
        ]
    )


def deep_convnet(image_shape: tuple[int, int], classes: int, rng: np.random.Generator) -> Sequential:
    """Three pairs of 3 x 3 convolutions, each pair then pool; affine - ReLU - dropout - affine - dropout: sec. 8.1.

    16, 32 and 64 filters, 50 hidden units, dropout 0.5. Padding is 1, and 2 in the fourth convolution where the size there
    would not halve twice without a rest: 28 x 28 becomes 14, 16, 8, 4 as in the book, 8 x 8 becomes 4, 2, 1.
    """
    layers: list[Layer] = []
    channels, sides = 1, image_shape
    for pair, filters in enumerate((16, 32, 64)):
        wide = 2 if pair == 1 and any(side % 4 == 2 for side in sides) else 1
        for pad in (1, wide):
            layers += [Convolution(*he(rng, (filters, channels, 3, 3)), stride=1, pad=pad), ReLU()]
            channels = filters
        layers.append(Pooling(2, 2, stride=2))
        sides = ((sides[0] + 2 * (wide - 1)) // 2, (sides[1] + 2 * (wide - 1)) // 2)
    layers += [Affine(*he(rng, (channels * sides[0] * sides[1], 50))), ReLU(), Dropout(0.5)]
    layers += [Affine(*he(rng, (50, classes))), Dropout(0.5)]
    return Sequential(layers)


def row_sequence(image_shape: tuple[int, int], classes: int, rng: np.random.Generator) -> Sequential:
    """An image as a sequence of its rows: affine per row - ReLU - DownConv - ReLU - affine.

    A row of W pixels becomes 64 features; :class:`konv.DownConv` with ``k1 = 2`` (1 where H is odd) compresses the H rows
    to half as many segments as its first convolution leaves, or as many where that is odd: 8 -> 4 -> 2, 28 -> 14 -> 7.
    Every row is read and no segment sees padding.
    """
    height, width = image_shape
    hidden = 64
    k1 = 2 if height % 2 == 0 else 1
    middle = height // k1
    segments = middle // 2 if middle % 2 == 0 else middle
    return Sequential(
        [
            Reshape(width),
            Affine(*he(rng, (width, hidden))),
            ReLU(),
            Reshape(height, hidden),
            DownConv(height, hidden, segments, k1, channel_reduction=2, rng=rng),
            ReLU(),
            Affine(*he(rng, (segments * hidden, classes))),
        ]
    )


def he(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and a zero bias, float32, of a convolution (filters, channels, *kernel) or an affine layer (inputs, outputs).

    Examples
    --------
    >>> w, b = he(np.random.default_rng(0), (30, 1, 5, 5))
    >>> w.shape, b.shape, abs(float(w.std()) - (2 / 25) ** 0.5) < 0.02
    ((30, 1, 5, 5), (30,), True)
    """
    affine = len(shape) == 2
    fan_in = shape[0] if affine else int(np.prod(shape[1:]))
    outputs = shape[1] if affine else shape[0]
    weights = rng.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
    return weights, np.zeros(outputs, np.float32)


class Reshape(Layer):
    """(N, ...) -> (M, *shape), where M is as many as there are: what lies between rows and sequences of rows.

    Examples
    --------
    >>> Reshape(8).forward(np.zeros((2, 1, 3, 8), np.float32)).shape
    (6, 8)
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def forward(self, x: np.ndarray) -> np.ndarray:
        """``x`` with its values in the same order."""
        self._remember((x.shape,))
        return x.reshape(-1, *self.shape)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """``dout`` in the shape of the last ``x``."""
        (shape,) = self._recall()
        self._answered()
        return dout.reshape(shape)
