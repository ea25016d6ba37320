"""The names of *Deep Learning from Scratch* (``common/layers.py``, ``common/util.py``), for the book's programs.

A program of the book runs unchanged on konv when its ``common/layers.py`` holds one line::

    from konv.book import *

Layers then compute in the dtype of their input, where the book's always went to float64.
"""

from konv.layers import (
    Affine,
    BatchNormalization,
    Convolution,
    Dropout,
    Pooling,
    Relu,
    Sigmoid,
    SoftmaxWithLoss,
)
from konv.textbook import col2im, im2col

__all__ = [
    "Affine",
    "BatchNormalization",
    "Convolution",
    "Dropout",
    "Pooling",
    "Relu",
    "Sigmoid",
    "SoftmaxWithLoss",
    "col2im",
    "im2col",
]
