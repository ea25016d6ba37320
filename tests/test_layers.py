"""What every layer keeps to, and what it shows of itself."""

import math

import numpy as np
import pytest

import konv
from konv.gradcheck import gradcheck
from konv.layers.sequential import Sequential
from layer_cases import BFLOAT16, DTYPES, EPS, LAYERS, affine, close, layers, normal


def test_close_rejects_a_wrong_element_and_a_nan():
    right = np.zeros(3)
    for wrong in (1.0, math.nan):
        with pytest.raises(AssertionError):
            close(np.array([0.0, 0.0, wrong]), right, 0.5)


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
    with pytest.raises(TypeError, match=r"^Pooling\(\) is missing pool_w: call Pooling\(pool_h, pool_w, \.\.\.\)$"):
        konv.Pooling(2)
    with pytest.raises(TypeError, match=r"^Affine\(\) is missing W and b: call Affine\(W, b.*\)$"):
        konv.Affine()
    with pytest.raises(TypeError, match="takes from 3 to 5 positional arguments but 6 were given"):
        konv.Pooling(2, 2, 2, 0, 0)
