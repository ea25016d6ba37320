"""Layers for the tests of :mod:`konv.layers`, and how near to each other their results must be."""

import ml_dtypes
import numpy as np
import pytest

from konv.layers.activations import ReLU, Sigmoid
from konv.layers.affine import Affine
from konv.layers.dropout import Dropout
from konv.layers.normalization import BatchNormalization
from konv.layers.sequential import Sequential

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
EPS = {dtype: float(ml_dtypes.finfo(dtype).eps) for dtype in DTYPES}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def affine(dtype=np.float64):
    return Affine(normal(6, 4, seed=1).astype(dtype), normal(4, seed=2).astype(dtype))


def batch_normalization(dtype=np.float64):
    return BatchNormalization(1 + normal(6, seed=1).astype(dtype) / 4, normal(6, seed=2).astype(dtype))


LAYERS = {
    "ReLU": lambda dtype=np.float64: ReLU(),
    "Sigmoid": lambda dtype=np.float64: Sigmoid(),
    "Affine": affine,
    "BatchNormalization": batch_normalization,
    "Dropout": lambda dtype=np.float64: Dropout(0.3, rng=7),
    "Sequential": lambda dtype=np.float64: Sequential(batch_normalization(dtype), ReLU(), affine(dtype), Sigmoid()),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def close(a, b, tolerance):
    """Elementwise within ``tolerance``; NaN never is."""
    assert a.shape == b.shape
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    assert (difference <= tolerance).all(), f"largest difference {difference.max()}, tolerance {tolerance}"
