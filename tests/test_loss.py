"""SoftmaxWithLoss."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from konv.gradcheck import gradcheck
from konv.layers.loss import SoftmaxWithLoss
from layer_cases import BFLOAT16, DTYPES, EPS, close, normal


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 8), classes=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_softmax_with_loss_like_pytorch(samples, classes, scale):
    x = scale * normal(samples, classes)
    labels = np.random.default_rng(1).integers(0, classes, samples)
    smooth = np.random.default_rng(2).dirichlet(np.ones(classes), samples)
    eps = EPS[np.dtype(np.float64)]
    for t in (labels, np.eye(classes)[labels], smooth):
        theirs = torch.from_numpy(x).requires_grad_()
        loss = F.cross_entropy(theirs, torch.from_numpy(t))
        loss.backward()
        layer = SoftmaxWithLoss()
        value = layer.forward(x, t)
        assert type(value) is float
        assert abs(value - loss.item()) <= 16 * eps * (np.abs(x).max() + classes)
        # exp(x - max) carries the rounding of x - max, eps * |x|
        close(layer.y, torch.softmax(theirs, 1).detach().numpy(), 8 * eps * (np.abs(x).max() + classes))
        close(layer.backward(), theirs.grad.numpy(), 8 * eps * (np.abs(x).max() + classes))


def test_one_hot_labels_give_what_labels_give():
    x, labels = normal(6, 4), np.array([0, 3, 1, 1, 2, 0])
    plain = SoftmaxWithLoss()
    loss, dx = plain.forward(x, labels), plain.backward()
    for dtype in (np.int64, np.uint8, bool, np.float32, np.float16, BFLOAT16):
        layer = SoftmaxWithLoss()
        assert layer.forward(x, np.eye(4)[labels].astype(dtype)) == pytest.approx(loss, rel=1e-15)
        close(layer.backward(), dx, 1e-16)
    for dtype in (np.uint8, np.int8, np.int32, np.uint64):
        assert SoftmaxWithLoss().forward(x, labels.astype(dtype)) == loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_is_exact_where_the_books_is_not(dtype):
    layer = SoftmaxWithLoss()
    assert layer.forward(np.array([[1000.0, 0.0]], dtype), np.array([1])) == 1000
    close(layer.backward(), np.array([[1.0, -1.0]]), 0.0)
    perfect = layer.forward(np.array([[1000.0, 0.0]], dtype), np.array([0]))
    assert perfect == 0
    assert math.copysign(1, perfect) == 1
    # log1p(exp(-10)) = 4.53989e-05; with 1e-7 added to the probability it would be 4.52989e-05. The sum 1 + exp(-10)
    # is rounded to eps / 2, of float32 for the half types.
    small = layer.forward(np.array([[10.0, 0.0]], dtype), np.array([0]))
    assert abs(small - 4.539889921686465e-05) <= min(EPS[dtype], EPS[np.dtype(np.float32)]) / 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_gradient_dtype_scale_and_precision(dtype):
    x = np.array([[8.0, 0.0], [0.0, 0.0]], dtype)
    layer = SoftmaxWithLoss()
    layer.forward(x, np.array([0, 1]))
    dx = layer.backward(2)
    p = math.exp(-8) / (1 + math.exp(-8))  # y - t at a good prediction: lost if y were kept in a half type
    assert dx.dtype == layer.y.dtype == dtype
    expected = np.array([[-p, p], [0.5, -0.5]])
    close(dx, expected, 2 * EPS[dtype] * np.abs(expected) + (1e-7 if dtype != np.float64 else 1e-15))
    close(layer.backward(np.float32(4)), 2 * expected, 4 * EPS[dtype] * np.abs(expected) + 2e-7)
    close(layer.backward(np.array(1.0)), expected / 2, 2 * EPS[dtype] * np.abs(expected) + 1e-7)


def test_a_class_of_probability_zero():
    x = np.array([[0.0, -math.inf, 0.0]])
    for t in (np.array([2]), np.array([[0.0, 0.0, 1.0]])):
        layer = SoftmaxWithLoss()
        assert layer.forward(x, t) == pytest.approx(math.log(2), rel=1e-15)
        close(layer.backward(), np.array([[0.5, 0.0, -0.5]]), 1e-15)


def test_gradcheck_of_softmax_with_loss():
    result = gradcheck(SoftmaxWithLoss(), normal(5, 4), np.array([0, 1, 2, 3, 0]))
    assert result, str(result)
    assert result.elements == 20


def test_softmax_inference_keeps_the_readable_alone():
    layer = SoftmaxWithLoss().eval()
    loss = layer.forward(np.zeros((2, 4)), np.array([0, 1]))
    assert layer.loss == loss == pytest.approx(math.log(4))
    assert np.array_equal(layer.y, np.full((2, 4), 0.25))
    with pytest.raises(RuntimeError, match="inference"):
        layer.backward()


def test_labels_changed_after_forward_do_not_change_the_gradient():
    layer, t = SoftmaxWithLoss(), np.array([0, 1])
    layer.forward(np.zeros((2, 2)), t)
    t[...] = 1 - t
    assert np.array_equal(layer.backward(), [[-0.25, 0.25], [0.25, -0.25]])


@pytest.mark.parametrize(
    ("x", "t", "error", "words"),
    [
        (np.zeros(3), np.array([1]), ValueError, r"x must have shape \(N, K\).*\(3,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, r"\(0, 3\).*no samples"),
        (np.zeros((2, 3)), np.array([0, 3]), ValueError, r"t\[1\] is 3, but x has 3 classes.*0 \.\. 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), ValueError, r"t\[0\] is -1"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), TypeError, r"t is float64; labels must be integers.*np\.int64"),
        (np.zeros((2, 3)), np.array([True, False]), TypeError, "t is bool"),
        (
            np.zeros((2, 3)),
            np.array([0, 1, 2]),
            ValueError,
            r"t has shape \(3,\).*x has shape \(2, 3\).*\(2,\).*\(2, 3\)",
        ),
        (np.zeros((2, 3)), np.zeros((3, 2)), ValueError, r"t has shape \(3, 2\)"),
        (np.zeros((2, 3)), np.array([[1, 0, 0], [1, 1, 0]]), ValueError, r"t\[1\] is \[1 1 0\].*one-hot"),
        (np.zeros((2, 3)), np.array([[2.0, -1.0, 0.0], [1.0, 0.0, 0.0]]), ValueError, r"t\[0\].*one-hot"),
        (np.zeros((1, 2)), np.array([[math.nan, 1.0]]), ValueError, r"t\[0\] is \[nan"),
        (np.zeros((2, 3)), np.zeros((2, 3)), ValueError, r"t\[0\]"),
        (np.zeros((2, 3)), [0, 1], TypeError, r"np\.asarray\(t\)"),
        (np.zeros((2, 3), int), np.array([0, 1]), TypeError, r"x .*int64.*x\.astype"),
        (np.zeros((2, 3)), np.zeros((2, 3), complex), TypeError, "complex"),
    ],
)
def test_softmax_arguments_are_checked(x, t, error, words):
    with pytest.raises(error, match=words):
        SoftmaxWithLoss().forward(x, t)


def test_softmax_dout_is_checked():
    layer = SoftmaxWithLoss()
    layer.forward(np.zeros((2, 3)), np.array([0, 1]))
    for dout in (np.ones(2), "1", None, True):
        with pytest.raises(TypeError, match="dout must be a number"):
            layer.backward(dout)
