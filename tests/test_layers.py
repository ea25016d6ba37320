"""Affine, ReLU, Sigmoid, BatchNormalization, Dropout, SoftmaxWithLoss, Sequential."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import konv
from konv.gradcheck import gradcheck
from konv.layers.activations import ReLU, Relu, Sigmoid
from konv.layers.affine import Affine
from konv.layers.base import Layer
from konv.layers.dropout import Dropout
from konv.layers.loss import SoftmaxWithLoss
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


def test_close_rejects_a_wrong_element_and_a_nan():
    right = np.zeros(3)
    for wrong in (1.0, math.nan):
        with pytest.raises(AssertionError):
            close(np.array([0.0, 0.0, wrong]), right, 0.5)


# What every layer keeps to


@layers
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parameter_dtype", [np.dtype(np.float64), np.dtype(np.float32), BFLOAT16], ids=str)
def test_dtype_in_is_dtype_out_and_gradients_have_the_parameters(make, dtype, parameter_dtype):
    layer, wide = make(parameter_dtype), make(parameter_dtype)
    x = normal(8, 6).astype(dtype)
    y = layer.forward(x)
    dy = normal(*y.shape, seed=3).astype(dtype)
    dx = layer.backward(dy)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert dx.shape == x.shape
    assert all(gradient.dtype == parameter_dtype for gradient in layer.grads().values())
    # The numbers of a calculation in float64: 8 samples, sums of 6 products, gradients amplified by 1 / std < 4.
    close(y, wide.forward(x.astype(np.float64)), 64 * EPS[dtype])
    close(dx, wide.backward(dy.astype(np.float64)), 128 * EPS[dtype])
    for name, gradient in layer.grads().items():
        close(gradient, wide.grads()[name], 256 * max(EPS[dtype], EPS[parameter_dtype]))


@layers
def test_inputs_are_left_alone_and_may_be_read_only(make):
    layer = make()
    x = normal(8, 6)
    x.flags.writeable = False
    dy = normal(*layer.forward(x).shape, seed=3)
    dy.flags.writeable = False
    before = {name: array.copy() for name, array in layer.params().items()}
    y, dx = layer.forward(x), layer.backward(dy)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(dx, dy)
    for name, array in layer.params().items():
        assert np.array_equal(array, before[name])


@layers
@pytest.mark.parametrize("layout", ["strided", "reversed", "fortran", "byte-swapped"])
def test_memory_layout_does_not_matter(make, layout):
    def arranged(array):
        if layout == "strided":
            parent = np.full((2 * array.shape[0], 3 * array.shape[1]), np.nan)
            parent[::2, ::3] = array
            return parent[::2, ::3]
        if layout == "reversed":
            return array[::-1, ::-1].copy()[::-1, ::-1]
        return np.asfortranarray(array) if layout == "fortran" else array.astype(">f8")

    plain, other = make(), make()
    x = normal(8, 6)
    y, y_other = plain.forward(x), other.forward(arranged(x))
    dy = normal(*y.shape, seed=3)
    dx, dx_other = plain.backward(dy), other.backward(arranged(dy))
    assert y_other.dtype == dx_other.dtype == np.float64
    close(y_other, y, 1e-14)  # 60 eps: sums of 6 and 8 terms of size 1 may be taken in another order
    close(dx_other, dx, 1e-14)
    for name, gradient in plain.grads().items():
        close(other.grads()[name], gradient, 1e-13)


@layers
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(make, dtype):
    layer = make()
    y = layer.forward(np.zeros((0, 6), dtype))
    dx = layer.backward(np.zeros(y.shape, dtype))
    assert y.shape[0] == 0
    assert (y.dtype, dx.shape, dx.dtype) == (dtype, (0, 6), dtype)
    for name, gradient in layer.grads().items():
        assert np.array_equal(gradient, np.zeros_like(layer.params()[name]))


@layers
def test_inference_keeps_nothing_and_refuses_backward(make):
    layer = make()
    x = normal(8, 6)
    dy = np.ones_like(layer.forward(x))
    assert layer.eval() is layer
    with pytest.raises(RuntimeError, match="inference mode"):
        layer.backward(dy)
    layer.forward(x)
    for part in layer if isinstance(layer, Sequential) else [layer]:
        assert part._saved is None
        assert not part.training
    with pytest.raises(RuntimeError, match="inference mode"):
        layer.backward(dy)
    layer.train().forward(x)
    layer.backward(dy)


@layers
def test_backward_without_forward_is_refused(make):
    with pytest.raises(RuntimeError, match="forward has not run"):
        make().backward(np.zeros((2, 4)))


def test_backward_for_two_forwards_is_refused():
    layer = affine()
    layer.forward(normal(2, 6))
    layer.forward(normal(2, 6, seed=1))
    layer.backward(np.ones((2, 4)))
    with pytest.raises(RuntimeError, match="last input only"):
        layer.backward(np.ones((2, 4)))


@layers
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((8, 6), np.int64), r"x .*int64.* x\.astype\(np\.float32\)"),
        (np.zeros((8, 6), bool), r"x .*bool.* x\.astype\(np\.float32\)"),
        (np.zeros((8, 6), np.uint8), r"x .*uint8.* x\.astype\(np\.float32\)"),
        (np.zeros((8, 6), np.complex128), "complex128"),
        ([[0.0] * 6] * 8, r"np\.asarray\(x\)"),
        (np.ma.zeros((8, 6)), "mask"),
        (None, "x"),
    ],
    ids=["int", "bool", "uint8", "complex", "list", "masked", "None"],
)
def test_what_is_no_float_array_is_refused(make, x, words):
    with pytest.raises(TypeError, match=words):
        make().forward(x)


@layers
def test_upstream_gradient_is_checked(make):
    layer = make()
    y = layer.forward(normal(8, 6))
    with pytest.raises(ValueError, match=rf"dout has shape \(5, {y.shape[1]}\).*\(8, {y.shape[1]}\)"):
        layer.backward(np.zeros((5, y.shape[1])))
    with pytest.raises(TypeError, match=r"dout .*int64.*dout\.astype"):
        layer.backward(np.zeros(y.shape, np.int64))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "Dropout"])  # which has its own, with a fixed seed
def test_gradcheck(name):
    result = gradcheck(LAYERS[name](), normal(8, 6))
    assert result, str(result)


@layers
def test_upstream_gradient_of_another_dtype_is_taken(make):
    layer = make()
    y = layer.forward(normal(8, 6).astype(np.float32))
    assert layer.backward(np.ones(y.shape)).dtype == np.float32


@layers
def test_state_dict_round_trip(make):
    source, target = make(), make()
    for array in target.params().values():
        array[...] = 0
    source.forward(normal(8, 6))
    target.load_state_dict(source.state_dict())
    x = normal(3, 6, seed=9)
    assert np.array_equal(target.eval().forward(x), source.eval().forward(x))


# ReLU, Sigmoid


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


# Affine


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


# Dropout


def test_dropout_training_and_inference():
    dropout = Dropout(0.25, rng=3)
    x = 1 + np.abs(normal(20, 50))
    y = dropout.forward(x)
    expected = np.random.default_rng(3).random(x.shape) > 0.25
    assert np.array_equal(dropout.mask, expected)
    assert np.array_equal(y, x * expected)
    assert np.array_equal(dropout.backward(x), x * expected)
    dropout.eval()
    assert np.array_equal(dropout.forward(x), 0.75 * x)


def test_train_flg_overrides_the_mode():
    dropout = Dropout(0.5, rng=0)
    x = np.ones((4, 4))
    assert np.array_equal(dropout.forward(x, False), 0.5 * x)
    with pytest.raises(RuntimeError):
        dropout.backward(x)
    dropout.eval()
    y = dropout.forward(x, train_flg=True)
    assert set(np.unique(y)) == {0.0, 1.0}
    assert np.array_equal(dropout.backward(x), y)
    assert np.array_equal(dropout.forward(x), 0.5 * x)


def test_dropout_keeps_the_share_it_says():
    n = 100_000
    kept = Dropout(0.3, rng=0).forward(np.ones(n)).sum()
    assert abs(kept - 0.7 * n) <= 5 * math.sqrt(n * 0.3 * 0.7)  # five standard deviations of the binomial


def test_dropout_of_nothing_is_the_identity():
    x = normal(30, 30)
    assert np.array_equal(Dropout(0.0).forward(x), x)
    assert np.array_equal(Dropout(0).eval().forward(x), x)


def test_dropouts_random_numbers_come_from_rng():
    x = np.ones((5, 40))
    dropout = Dropout(rng=1)
    first, second = dropout.forward(x), dropout.forward(x)
    assert not np.array_equal(first, second)
    dropout.rng = 1
    assert np.array_equal(dropout.forward(x), first)
    generator = np.random.default_rng(1)
    dropout.rng = generator
    assert dropout.rng is generator
    assert np.array_equal(Dropout(rng=np.int64(1)).forward(x), first)
    assert not np.array_equal(Dropout().forward(x), Dropout().forward(x))


def test_gradcheck_of_dropout_with_a_fixed_seed():
    class Seeded(Dropout):
        def forward(self, x, train_flg=None):
            self.rng = 5
            return super().forward(x, train_flg)

    result = gradcheck(Seeded(0.4), normal(6, 5))
    assert result, str(result)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dropout_ratio": 1.0}, ValueError, r"0 <= dropout_ratio < 1, got 1\.0"),
        ({"dropout_ratio": -0.1}, ValueError, r"got -0\.1"),
        ({"dropout_ratio": math.nan}, ValueError, "got nan"),
        ({"dropout_ratio": "half"}, TypeError, "dropout_ratio must be a number, got str"),
        ({"dropout_ratio": True}, TypeError, "got bool"),
        ({"rng": 0.5}, TypeError, "rng must be .* got float"),
        ({"rng": np.random.RandomState(0)}, TypeError, "rng must be .* got RandomState"),
        ({"rng": -3}, ValueError, "got -3"),
    ],
)
def test_dropout_arguments_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        Dropout(**arguments)


# BatchNormalization


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


# SoftmaxWithLoss


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


# Sequential


class Recorder:
    """Neither derived from Layer nor with any parameters: forward and backward are all that is needed."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def forward(self, x):
        self.log.append(f"forward {self.name}")
        return x

    def backward(self, dout):
        self.log.append(f"backward {self.name}")
        return dout


def test_sequential_runs_in_order_and_back():
    log = []
    net = Sequential(Recorder("a", log), Sequential([Recorder("b", log)]), Recorder("c", log))
    net.backward(net.forward(np.ones(1)))
    assert log == ["forward a", "forward b", "forward c", "backward c", "backward b", "backward a"]
    assert net.params() == net.grads() == net.buffers() == {}
    net.eval()


def test_sequential_names_nested_parameters_and_buffers():
    inner = Sequential(affine(), batch_normalization())
    net = Sequential([ReLU(), affine(), inner])
    assert list(net.params()) == ["1.W", "1.b", "2.0.W", "2.0.b", "2.1.gamma", "2.1.beta"]
    assert list(net.buffers()) == ["2.1.running_mean", "2.1.running_var"]
    assert net.params()["2.0.W"] is inner[0].W
    assert set(net.grads()) == set(net.params())
    assert set(net.state_dict()) == set(net.params()) | set(net.buffers())
    with pytest.raises(KeyError, match=r"2\.0\.W"):
        net.load_state_dict({name: a for name, a in net.state_dict().items() if name != "2.0.W"})


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (np.full(4, "a"), TypeError, r"state\['1\.beta'\] has dtype <U1, not of real numbers"),
        (np.full(4, None), TypeError, "dtype object"),
        (np.full(4, 1j), TypeError, "dtype complex128"),
        (np.zeros(4, "M8[s]"), TypeError, "datetime64"),
        (np.zeros(4, [("a", float)]), TypeError, "not of real numbers"),
        ([[1.0], [2.0, 3.0]], ValueError, "inhomogeneous"),
    ],
    ids=["text", "objects", "complex", "dates", "structure", "ragged"],
)
def test_a_state_that_cannot_be_converted_is_refused_before_anything_is_written(last, error, words):
    net = Sequential(affine(), batch_normalization())
    before = net.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    beta = next(name for name in state if name.endswith("beta"))
    last = np.resize(last, before[beta].shape) if isinstance(last, np.ndarray) else last
    with pytest.raises(error, match=words):
        net.load_state_dict({**state, beta: last})
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


@pytest.mark.parametrize("state", [None, ["0.W"], "0.W"])
def test_a_state_that_is_no_dict_is_refused(state):
    with pytest.raises(TypeError, match=f"state must be a dict of arrays by name, got {type(state).__name__}"):
        Sequential(affine()).load_state_dict(state)


def test_a_state_for_a_read_only_parameter_is_refused_before_anything_is_written():
    net = Sequential(affine(), batch_normalization())
    net.layers[1].beta = np.broadcast_to(net.layers[1].beta[:1], net.layers[1].beta.shape)
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"the layer's '1\.beta' is read-only"):
        net.load_state_dict({name: array + 1 for name, array in before.items()})
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


@pytest.mark.parametrize("mode", ["no", 0, None])
def test_a_mode_that_is_no_flag_is_refused(mode):
    for layer in (affine(), Sequential(affine()), konv.DownConv()):
        with pytest.raises(TypeError, match=f"mode={mode!r}: expected True or False"):
            layer.train(mode)
        assert layer.training
        assert not layer.train(np.bool_(False)).training


def test_a_layer_of_several_outputs_is_refused_by_name():
    W, x = normal(3, 2, 4), normal(2, 2, 9)
    with pytest.raises(
        TypeError, match=r"layer 1, a CausalConv1d, returned 2 values.*Convolution\(W, b, pad='causal'\)"
    ):
        Sequential(ReLU(), konv.CausalConv1d(W, None), ReLU()).forward(x)
    whole, _ = konv.CausalConv1d(W, None).forward(x)
    assert np.allclose(Sequential(konv.Convolution(W, None, pad="causal")).forward(x), whole, rtol=1e-12, atol=1e-12)


def test_sequential_modes_reach_every_layer():
    dropout = Dropout(0.5, rng=0)
    net = Sequential(ReLU(), Sequential(dropout))
    assert net.eval() is net
    assert not dropout.training
    assert net.train() is net
    assert dropout.training


def test_sequential_is_a_sequence():
    first, second, third = ReLU(), affine(), Sigmoid()
    net = Sequential(first, second, third)
    assert len(net) == 3
    assert list(net) == [first, second, third]
    assert net[1] is second
    assert net[-1] is third
    assert list(net[:2]) == [first, second]
    assert isinstance(net[:2], Sequential)
    assert len(Sequential()) == len(Sequential([])) == 0
    assert len(Sequential(layer for layer in (first, second))) == 2
    with pytest.raises(IndexError):
        net[3]


def test_sequential_like_pytorch():
    x, labels = normal(9, 6), np.arange(9) % 4
    net, loss = LAYERS["Sequential"](), SoftmaxWithLoss()
    norm, linear = torch.nn.BatchNorm1d(6, eps=1e-6).double(), torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        for theirs, ours in [
            (norm.weight, net[0].gamma),
            (norm.bias, net[0].beta),
            (linear.weight, net[2].W.T),
            (linear.bias, net[2].b),
        ]:
            theirs.copy_(torch.from_numpy(ours.copy()))
    x_tensor = torch.from_numpy(x).requires_grad_()
    value = F.cross_entropy(torch.sigmoid(linear(torch.relu(norm(x_tensor)))), torch.from_numpy(labels))
    value.backward()
    assert loss.forward(net.forward(x), labels) == pytest.approx(value.item(), rel=1e-14)
    close(net.backward(loss.backward()), x_tensor.grad.numpy(), 1e-15)
    grads = net.grads()
    for name, theirs in [
        ("0.gamma", norm.weight.grad),
        ("0.beta", norm.bias.grad),
        ("2.W", linear.weight.grad.T),
        ("2.b", linear.bias.grad),
    ]:
        close(grads[name], theirs.numpy(), 1e-15)


def test_one_layer_at_two_places_is_refused():
    relu = ReLU()
    with pytest.raises(ValueError, match=r"layers 0 and 2 are the same ReLU object.*one input"):
        Sequential(relu, affine(), relu)
    with pytest.raises(ValueError, match=r"layers 0 and 1\.0 are the same"):
        Sequential(relu, Sequential(relu))
    inner = Sequential(ReLU())
    with pytest.raises(ValueError, match=r"layers 0 and 1 are the same Sequential"):
        Sequential(inner, inner)


def test_two_layers_may_share_their_arrays():
    W, b = normal(3, 3), normal(3, seed=1)
    net = Sequential(Affine(W, b), ReLU(), Affine(W, b))
    assert net.params()["0.W"] is net.params()["2.W"]
    result = gradcheck(net, normal(2, 3, seed=2))
    assert result, str(result)
    assert [array.name for array in result.arrays] == ["x", "0.W = 2.W", "0.b = 2.b"]


class BooksAffine:
    """A layer as the book writes it: W and dW, no params()."""

    def __init__(self, W):
        self.W, self.dW, self.x = W, None, None

    def forward(self, x):
        self.x = x
        return x @ self.W

    def backward(self, dout):
        self.dW = self.x.T @ dout
        return dout @ self.W.T


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ReLU(), np.tanh), "layer 1 is a ufunc without forward"),
        ((torch.nn.ReLU(),), "layer 0 is a ReLU without backward"),
        ((ReLU,), r"layer 0 is the class ReLU.*ReLU\(\.\.\.\)"),
        ((None,), "layer 0 is a NoneType"),
        (([ReLU(), 3],), "layer 1 is a int"),
        ((BooksAffine(np.eye(2)),), r"layer 0 is a BooksAffine with parameters \['W'\] but without params\(\)"),
    ],
)
def test_what_is_no_layer_is_refused(arguments, words):
    with pytest.raises(TypeError, match=words):
        Sequential(*arguments)


def test_every_layer_is_a_layer():
    for make in LAYERS.values():
        assert isinstance(make(), Layer)


# What a layer shows of itself


W32 = np.zeros((4, 2, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (konv.Convolution(W32, None), "Convolution(W=float32[4, 2, 3, 3], b=None)"),
        (konv.Convolution(W32, 0.0, 1, "same"), "Convolution(W=float32[4, 2, 3, 3], b=float32[4], pad='same')"),
        (konv.Convolution(W32, None, stride=(2, 1)), "Convolution(W=float32[4, 2, 3, 3], b=None, stride=(2, 1))"),
        (konv.CausalConv1d(W32[0], dilation=2), "CausalConv1d(W=float32[2, 3, 3], b=None, dilation=2)"),
        (konv.Pooling(2, 3), "Pooling(pool_h=2, pool_w=3, stride=2)"),
        (konv.AveragePooling(2, 2, pad=1), "AveragePooling(pool_h=2, pool_w=2, stride=2, pad=1)"),
        (konv.ReLU(), "ReLU()"),
        (konv.Dropout(0.3, rng=1), "Dropout(dropout_ratio=0.3)"),
        (konv.BatchNormalization(np.ones(3), np.zeros(3)), "BatchNormalization(gamma=float64[3], beta=float64[3])"),
        (konv.SoftmaxWithLoss(), "SoftmaxWithLoss()"),
        (
            konv.DownConv(20, 8, 2, 5, 4),
            "DownConv(seq_len=20, hidden_size=8, m_segments=2, k1=5, channel_reduction=4)",
        ),
        (konv.Sequential(), "Sequential()"),
        (
            konv.Sequential(konv.Sequential(konv.ReLU()), konv.Sigmoid()),
            "Sequential(\n  0: Sequential(\n    0: ReLU()\n  )\n  1: Sigmoid()\n)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


def test_a_call_is_forward():
    net = konv.Sequential(konv.Convolution(W32 + 1, None, pad=1), konv.Pooling(2, 2))
    x = np.ones((1, 2, 4, 4), np.float32)
    assert np.array_equal(net(x), net.forward(x)) and net.backward(net(x)).shape == x.shape
    causal = konv.CausalConv1d(W32[0] + 1)
    sequence = np.ones((1, 3, 4), np.float32)
    state = causal(sequence)[1]
    assert np.array_equal(causal(sequence, state)[0], causal.forward(sequence, state)[0])
    assert konv.SoftmaxWithLoss()(np.zeros((3, 2)), np.array([0, 1, 1])) == pytest.approx(np.log(2))


def test_a_missing_argument_names_the_layer():
    with pytest.raises(TypeError, match=r"^Pooling\.__init__\(\) missing .*'pool_w'"):
        konv.Pooling(2)
