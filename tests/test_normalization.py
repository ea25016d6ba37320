"""BatchNormalization."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from konv.gradcheck import gradcheck
from konv.layers.normalization import BatchNormalization
from layer_cases import DTYPES, EPS, batch_normalization, close, normal


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(2, 6),
    channels=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 4), max_size=3),
    momentum=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_batch_normalization_like_pytorch(batch, channels, spatial, momentum):
    x, dy = (2 + 3 * normal(batch, channels, *spatial, seed=seed) for seed in (0, 1))
    gamma, beta = 1 + normal(channels, seed=2) / 4, normal(channels, seed=3)
    running_mean, running_var = normal(channels, seed=4), 1 + normal(channels, seed=5) ** 2
    layer = BatchNormalization(gamma, beta, momentum, running_mean, running_var)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, gamma, beta)]
    mean, var = torch.from_numpy(running_mean.copy()), torch.from_numpy(running_var.copy())
    theirs = F.batch_norm(tensors[0], mean, var, tensors[1], tensors[2], training=True, momentum=1 - momentum, eps=1e-6)
    theirs.backward(torch.from_numpy(dy))

    values = batch * math.prod(spatial)
    eps = EPS[np.dtype(np.float64)]
    y, dx = layer.forward(x), layer.backward(dy)
    size = 20 / layer.std.min()  # of (x - mean) / std and of what rounding in it becomes
    close(y, theirs.detach().numpy(), 16 * values * size * eps)
    close(dx, tensors[0].grad.numpy(), 16 * values * size**3 * eps)
    close(layer.dgamma, tensors[1].grad.numpy(), 64 * values * size * eps)
    close(layer.dbeta, tensors[2].grad.numpy(), 64 * values * eps)
    close(layer.running_mean, mean.numpy(), 64 * values * eps)
    # PyTorch divides the running variance by values - 1, the book by values.
    batch_var = x.swapaxes(0, 1).reshape(channels, -1).var(axis=1)
    close(layer.running_var, momentum * running_var + (1 - momentum) * batch_var, 1024 * values * eps)

    inference = F.batch_norm(
        tensors[0].detach(),
        *(torch.from_numpy(a) for a in (layer.running_mean, layer.running_var, gamma, beta)),
        training=False,
        eps=1e-6,
    )
    scale = 20 / math.sqrt(layer.running_var.min() + 1e-6)
    close(layer.eval().forward(x), inference.numpy(), 16 * scale * eps)


def test_batch_normalization_per_cell_is_the_books():
    # With C * H * W values each cell is a feature, normalized over the batch alone.
    x = normal(7, 2, 3, 4)
    gamma, beta = 1 + normal(24, seed=1) / 4, normal(24, seed=2)
    layer = BatchNormalization(gamma, beta, running_mean=np.zeros(24), running_var=np.zeros(24))
    flat = x.reshape(7, 24)
    mean, var = flat.mean(axis=0), flat.var(axis=0)
    expected = gamma * (flat - mean) / np.sqrt(var + 10e-7) + beta
    close(layer.forward(x), expected.reshape(x.shape), 1e-13)
    close(layer.running_mean, 0.1 * mean, 1e-15)
    close(layer.running_var, 0.1 * var, 1e-15)
    assert layer.input_shape == (7, 2, 3, 4)
    assert layer.batch_size == 7
    close(layer.xc, (flat - mean).reshape(x.shape), 1e-14)
    close(layer.xn, ((flat - mean) / np.sqrt(var + 10e-7)).reshape(x.shape), 1e-13)
    close(layer.std, np.sqrt(var + 10e-7), 1e-14)
    flat_layer = BatchNormalization(gamma, beta)
    flat_layer.forward(flat)
    dy = normal(7, 24, seed=3)
    close(layer.backward(dy.reshape(x.shape)), flat_layer.backward(dy).reshape(x.shape), 1e-15)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (3, 3, 2, 2), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("per_cell", [False, True])
def test_gradcheck_of_batch_normalization(shape, per_cell):
    features = math.prod(shape[1:]) if per_cell else shape[1]
    x = np.random.default_rng(0).permuted(np.linspace(-2, 2, math.prod(shape))).reshape(shape)
    if shape[0] == 2 and per_cell:
        x[1] = x[0] + 1  # two values per feature: keep their distance, and so the third derivative, moderate
    layer = BatchNormalization(1 + normal(features, seed=1) / 4, normal(features, seed=2))
    result = gradcheck(layer, x)
    assert result, str(result)


def test_inference_before_training_is_sane():
    layer = BatchNormalization(np.full(3, 2.0), np.ones(3)).eval()
    x = normal(4, 3)
    close(layer.forward(x), 2 * x + 1, 1e-5)  # 1 / sqrt(1 + 1e-6) is 1 - 5e-7
    assert sorted(layer.state_dict()) == ["beta", "gamma", "running_mean", "running_var"]


def test_running_averages_are_the_layers_own_and_updated_in_place():
    mean, var = np.zeros(2), np.ones(2)
    layer = BatchNormalization(np.ones(2), np.zeros(2), 0.5, mean, var)
    buffers = layer.buffers()
    layer.forward(np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert np.array_equal(mean, [0, 0])
    assert np.array_equal(var, [1, 1])
    assert layer.buffers()["running_mean"] is buffers["running_mean"]
    assert np.array_equal(buffers["running_mean"], [1, 2])
    assert np.array_equal(buffers["running_var"], [1, 2.5])
    before = layer.state_dict()
    layer.eval().forward(np.ones((4, 2)))
    layer.train().forward(np.ones((4, 2)), train_flg=False)
    assert all(np.array_equal(array, before[name]) for name, array in layer.state_dict().items())


def test_train_flg_of_batch_normalization():
    layer = BatchNormalization(np.ones(2), np.zeros(2))
    x = normal(5, 2)
    trained = layer.forward(x, True)
    inferred = layer.forward(x, False)
    assert not np.array_equal(trained, inferred)
    with pytest.raises(RuntimeError):
        layer.backward(x)
    layer.eval()
    assert np.array_equal(layer.forward(x, train_flg=True), trained)
    layer.backward(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_running_averages_of_half_types_are_float32(dtype):
    layer = batch_normalization(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    assert layer.running_mean.dtype == layer.running_var.dtype == wide
    layer.forward(normal(4, 6).astype(dtype))
    assert layer.running_mean.dtype == layer.running_var.dtype == wide


def test_statistics_of_float16_do_not_overflow():
    # Sums and squares of these leave float16's range (65504).
    x = np.array([[1000.0], [-1000.0]] * 500, np.float16)
    layer = BatchNormalization(np.ones(1, np.float16), np.zeros(1, np.float16))
    assert np.array_equal(np.abs(layer.forward(x)), np.ones((1000, 1)))


def test_mean_of_a_long_float32_batch_is_accurate():
    # Summed naively in float32, one row after the other, the mean of these is off by more than their spread.
    x = (10_000 + normal(200_000, 2)).astype(np.float32)
    y = BatchNormalization(np.ones(2), np.zeros(2)).forward(x)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    close(y, exact, 10_000 * EPS[np.dtype(np.float32)])  # the mean itself is rounded to float32


def test_update_of_gamma_in_place_between_forward_and_backward_does_not_change_dx():
    layer = batch_normalization()
    x, dy = normal(4, 6), normal(4, 6, seed=5)
    layer.forward(x)
    before = layer.backward(dy)
    layer.forward(x)
    layer.gamma *= 2
    assert np.array_equal(layer.backward(dy), before)


def test_one_value_per_feature_is_refused_in_training_only():
    layer = BatchNormalization(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\): one value per feature.*larger batch"):
        layer.forward(np.ones((1, 3)))
    assert np.array_equal(layer.running_mean, np.zeros(3))
    assert layer.forward(np.ones((1, 3)), train_flg=False).shape == (1, 3)
    assert layer.forward(np.ones((1, 3, 2))).shape == (1, 3, 2)


def test_an_empty_batch_leaves_the_running_averages():
    layer = BatchNormalization(np.ones(3), np.zeros(3))
    for shape in [(0, 3), (0, 3, 4), (2, 3, 0)]:
        assert layer.forward(np.zeros(shape)).shape == shape
        assert layer.backward(np.zeros(shape)).shape == shape
    assert np.array_equal(layer.running_mean, np.zeros(3))
    assert np.array_equal(layer.running_var, np.ones(3))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.ones(3), np.zeros(2)), ValueError, r"beta has shape \(2,\), but gamma has shape \(3,\)"),
        ((np.ones((1, 3)), np.zeros((1, 3))), ValueError, r"gamma must have shape \(F,\).*\(1, 3\)"),
        ((np.ones(3), np.zeros(3), 1.5), ValueError, r"0 <= momentum <= 1, got 1\.5"),
        ((np.ones(3), np.zeros(3), math.nan), ValueError, "got nan"),
        ((np.ones(3), np.zeros(3), "0.9"), TypeError, "momentum must be a number, got str"),
        ((np.ones(3, int), np.zeros(3)), TypeError, r"gamma .*int64.*gamma\.astype"),
        ((1.0, 0.0), TypeError, "gamma"),
        ((np.ones(3), np.zeros(3), 0.9, np.zeros(4)), ValueError, r"running_mean has shape \(4,\)"),
        ((np.ones(3), np.zeros(3), 0.9, None, np.zeros(4)), ValueError, r"running_var has shape \(4,\)"),
    ],
)
def test_batch_normalization_arguments_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        BatchNormalization(*arguments)


def test_batch_normalization_shapes_are_checked():
    layer = BatchNormalization(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\): gamma must have 4 values .*got 3"):
        layer.forward(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\(2, 4, 5\): gamma must have 4 values .* or 4 \* 5 = 20 values .*got 3"):
        layer.forward(np.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match=r"\(N, D\) or \(N, C, \*spatial\), got shape \(3,\)"):
        layer.forward(np.zeros(3))
