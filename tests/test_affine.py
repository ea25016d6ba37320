"""Affine."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from konv.layers.affine import Affine
from layer_cases import BFLOAT16, DTYPES, EPS, affine, close, normal


def test_affine_on_integers_is_exact():
    rng = np.random.default_rng(0)
    x, W, b, dy = (rng.integers(-4, 5, shape) for shape in [(5, 2, 3, 4), (24, 7), (7,), (5, 7)])
    for dtype in DTYPES[:1] + DTYPES[2:]:  # sums of 24 products of at most 16 are exact in float16 too
        layer = Affine(W.astype(dtype), b.astype(dtype))
        y, dx = layer.forward(x.astype(dtype)), layer.backward(dy.astype(dtype))
        rows = x.reshape(5, 24)
        assert np.array_equal(y, rows @ W + b)
        assert np.array_equal(dx, (dy @ W.T).reshape(x.shape))
        assert np.array_equal(layer.dW, rows.T @ dy)
        assert np.array_equal(layer.db, dy.sum(axis=0))
        assert np.array_equal(layer.x, rows)
        assert layer.original_x_shape == (5, 2, 3, 4)


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=2, max_size=5), outputs=st.integers(1, 6), bias=st.booleans())
def test_affine_like_pytorch(shape, outputs, bias):
    values = math.prod(shape[1:])
    x, W, dy = normal(*shape), normal(values, outputs, seed=1), normal(shape[0], outputs, seed=2)
    b = normal(outputs, seed=3) if bias else None
    tensors = [None if a is None else torch.from_numpy(a).requires_grad_() for a in (x, W, b)]
    theirs = F.linear(tensors[0].flatten(1), tensors[1].T, tensors[2])
    theirs.backward(torch.from_numpy(dy))
    layer = Affine(W, b)
    # eps times the number of terms times their size, which is below 5 * 5 for normal numbers
    eps = 25 * EPS[np.dtype(np.float64)]
    close(layer.forward(x), theirs.detach().numpy(), (values + 1) * eps)
    close(layer.backward(dy), tensors[0].grad.numpy(), outputs * eps)
    close(layer.dW, tensors[1].grad.numpy(), shape[0] * eps)
    if bias:
        close(layer.db, tensors[2].grad.numpy(), shape[0] * eps)
    else:
        assert layer.db is None
        assert list(layer.grads()) == ["W"]


def test_half_types_are_summed_in_float32():
    # 4096 ones: a sum kept in float16 stops at 2048, in bfloat16 at 256.
    for dtype in (np.dtype(np.float16), BFLOAT16):
        layer = Affine(np.ones((4096, 1), dtype), np.zeros(1, dtype))
        assert float(layer.forward(np.ones((1, 4096), dtype))[0, 0]) == 4096
        layer = Affine(np.ones((1, 1), dtype), np.zeros(1, dtype))
        layer.forward(np.ones((4096, 1), dtype))
        layer.backward(np.ones((4096, 1), dtype))
        assert (float(layer.dW[0, 0]), float(layer.db[0])) == (4096, 4096)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update_of_W_in_place_between_forward_and_backward_does_not_change_dx(dtype):
    layer = affine(dtype)
    x, dy = normal(2, 6).astype(dtype), np.ones((2, 4), dtype)
    layer.forward(x)
    before = layer.backward(dy)
    layer.forward(x)
    layer.W *= dtype.type(2)
    assert np.array_equal(layer.backward(dy), before)
    layer.forward(x)
    assert np.array_equal(layer.backward(dy), before * dtype.type(2))


def test_a_layer_sees_updates_of_its_parameters_in_place_and_new_arrays():
    W, b = np.ones((2, 1)), np.zeros(1)
    layer = Affine(W, b)
    assert layer.params()["W"] is W
    W += 1
    b += 5
    assert layer.forward(np.ones((1, 2)))[0, 0] == 9
    layer.W = np.full((2, 1), 10.0)  # as the book's load_params does
    assert layer.forward(np.ones((1, 2)))[0, 0] == 25


@pytest.mark.parametrize(
    ("W", "b", "error", "words"),
    [
        (np.zeros((3, 2, 1)), np.zeros(2), ValueError, r"W must have shape \(D, M\).*\(3, 2, 1\)"),
        (np.zeros((3, 2)), np.zeros(3), ValueError, r"b has shape \(3,\).*W \(3, 2\) has 2 outputs.*\(2,\)"),
        (np.zeros((3, 2)), np.zeros((1, 2)), ValueError, r"b has shape \(1, 2\)"),
        (np.zeros((3, 2), int), np.zeros(2), TypeError, r"W .*int64.*W\.astype"),
        (np.zeros((3, 2)), np.zeros(2, int), TypeError, r"b .*int64.*b\.astype"),
        ([[1.0]], np.zeros(1), TypeError, r"np\.asarray\(W\)"),
    ],
)
def test_affine_parameters_are_checked(W, b, error, words):
    with pytest.raises(error, match=words):
        Affine(W, b)


def test_affine_input_shapes_are_checked():
    with pytest.raises(ValueError, match=r"x has shape \(2, 7\): 7 values .* W \(6, 4\) takes 6"):
        affine().forward(np.zeros((2, 7)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 5\): 15 values"):
        affine().forward(np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match=r"\(\)"):
        affine().forward(np.zeros(()))
