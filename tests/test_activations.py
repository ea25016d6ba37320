"""ReLU and Sigmoid."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from konv.layers.activations import ReLU, Relu, Sigmoid
from layer_cases import DTYPES, EPS, close, normal


def test_relu_on_integers_is_exact():
    x = np.array([[-3.0, 0.0, 2.0, -0.0]], np.float32)
    relu = ReLU()
    assert np.array_equal(relu.forward(x), [[0, 0, 2, 0]])
    assert np.array_equal(relu.mask, [[True, True, False, True]])
    assert np.array_equal(relu.backward(np.array([[5, 6, 7, 8]], np.float32)), [[0, 0, 7, 0]])
    assert Relu is ReLU


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_at_infinities_and_nan(dtype):
    relu = ReLU()
    x = np.array([-math.inf, math.inf, math.nan, -1.0, 1.0], dtype)
    y = relu.forward(x).astype(np.float64)
    assert np.array_equal(y, [0, math.inf, math.nan, 0, 1], equal_nan=True)
    dout = np.array([math.inf, -math.inf, 1.0, math.nan, math.nan], dtype)
    # Below zero nothing comes through, not even what times 0 would be NaN.
    dx = relu.backward(dout).astype(np.float64)
    assert np.array_equal(dx, [0, -math.inf, 1, 0, math.nan], equal_nan=True)


def test_the_books_relu_writes_into_dout_and_ours_does_not():
    relu = ReLU()
    relu.forward(np.array([-1.0, 1.0]))
    dout = np.array([3.0, 4.0])
    relu.backward(dout)
    assert np.array_equal(dout, [3, 4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sigmoid_is_stable_everywhere(dtype):
    sigmoid = Sigmoid()
    with np.errstate(all="raise"):
        y = sigmoid.forward(np.array([-1000, -60, 0, 60, 1000, -math.inf, math.inf], dtype))
        dx = sigmoid.backward(np.ones(7, dtype))
    exact = np.array([0, 8.75651076269652e-27, 0.5, 1, 1, 0, 1])  # exp(-60) = 8.7565e-27
    close(y, exact, 4 * EPS[dtype] * exact + float(ml_dtypes.finfo(dtype).tiny))
    close(dx, exact * (1 - exact), EPS[dtype] + 0 * exact)
    assert np.isnan(sigmoid.forward(np.array([math.nan], dtype))).all()


def test_sigmoid_like_pytorch():
    x = 5 * normal(50, 7)
    theirs = torch.from_numpy(x).requires_grad_()
    dy = normal(50, 7, seed=1)
    torch.sigmoid(theirs).backward(torch.from_numpy(dy))
    sigmoid = Sigmoid()
    close(sigmoid.forward(x), torch.sigmoid(theirs).detach().numpy(), 4 * EPS[np.dtype(np.float64)])
    close(sigmoid.backward(dy), theirs.grad.numpy(), 4 * EPS[np.dtype(np.float64)] * np.abs(dy))


def test_writing_into_sigmoids_output_does_not_change_its_gradient():
    sigmoid = Sigmoid()
    y = sigmoid.forward(np.zeros(2))
    y[...] = 1
    assert np.array_equal(sigmoid.backward(np.ones(2)), [0.25, 0.25])
    assert np.array_equal(sigmoid.out, [0.5, 0.5])
