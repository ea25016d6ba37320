"""Convolution, ConvolutionTranspose, Pooling and AveragePooling as layers: any dimension, dtypes, modes, state."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given

import konv
from compare import assert_equal, untouched
from konv.arrays import layout_of
from strategies import (
    BFLOAT16,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    convolutions,
    integers,
    layouts,
    seeds,
    transposed_convolutions,
)


def layer_options(case):
    """A layer says ``pad`` where a function says ``padding``."""
    return {("pad" if name == "padding" else name): value for name, value in case.options.items()}


def compared(made, forward, backward, case, seed, layout):
    """A layer ``made`` of W and b that has run on x, whose results are those of the functions; x, and the layer's output."""
    rng = np.random.default_rng(seed)
    x, W, b = case.arrays(rng)
    x = LAYOUTS[layout](x)
    layer = made(W, b, **layer_options(case))
    with untouched(x, W):
        out = layer.forward(x)
        dout = integers(rng, out.shape)
        dx = layer.backward(dout)
    assert_equal(out, forward(x, W, b, **case.options), contiguous=layout_of(x))
    expected_dx, dW, db = backward(dout, x, W, **case.options)
    assert_equal(dx, expected_dx, contiguous=layout_of(x, dout))
    assert_equal(layer.dW, dW, contiguous=True)
    assert layer.db is None if b is None else (layer.db == db).all()
    return layer, x, out


@given(convolutions(modes=PADDING_MODES), seeds, layouts)
def test_convolution_computes_as_the_functions_do(case, seed, layout):
    layer, x, out = compared(konv.Convolution, konv.conv, konv.conv_backward, case, seed, layout)
    assert np.shares_memory(layer.x, x) or layout == "byte-swapped" or x.size == 0, "the input is kept, not a copy"
    if case.groups == 1:
        rows = np.moveaxis(out, 1, -1).reshape(-1, len(layer.W))
        assert_equal(layer.col @ layer.col_W + (0 if layer.b is None else layer.b), rows)


@given(transposed_convolutions(), seeds, layouts)
def test_transposed_convolution_computes_as_the_functions_do(case, seed, layout):
    compared(konv.ConvolutionTranspose, konv.conv_transpose, konv.conv_transpose_backward, case, seed, layout)


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average_pooling_computes_as_the_functions_do(count_include_pad):
    rng = np.random.default_rng(0)
    x = integers(rng, (2, 3, 7, 6))
    layer = konv.AveragePooling(3, 2, 2, ((1, 2), (0, 1)), count_include_pad=count_include_pad)
    options = dict(kernel_size=(3, 2), stride=2, padding=((1, 2), (0, 1)), count_include_pad=count_include_pad)
    out = layer.forward(x)
    dout = integers(rng, out.shape)
    assert_equal(out, konv.avg_pool(x, **options))
    assert_equal(layer.backward(dout), konv.avg_pool_backward(dout, x, **options))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_weights_choose_the_dimension(axes):
    W, x = np.ones((2, 3, *[2] * axes)), np.ones((4, 3, *[5] * axes))
    assert konv.Convolution(W, None).forward(x).shape == (4, 2, *[4] * axes)
    assert konv.ConvolutionTranspose(W, None).forward(x[:, :2]).shape == (4, 3, *[6] * axes)


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("W_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [konv.Convolution, konv.ConvolutionTranspose])
def test_a_layer_computes_in_the_type_of_x_and_keeps_the_type_of_its_parameters(kind, x_dtype, W_dtype):
    rng = np.random.default_rng(0)
    layer = kind(integers(rng, (4, 4, 3, 2), W_dtype), integers(rng, (4,), W_dtype), stride=2)
    x = integers(rng, (2, 4, 5, 6), x_dtype)
    out = layer.forward(x)
    dx = layer.backward(np.ones(out.shape))  # any floating point type upstream
    assert (out.dtype, dx.dtype, layer.dW.dtype, layer.db.dtype) == (x_dtype, x_dtype, W_dtype, W_dtype)
    assert (layer.W.dtype, layer.b.dtype) == (W_dtype, W_dtype)
    twin = kind(layer.W.astype(x_dtype), layer.b.astype(x_dtype), stride=2)
    assert_equal(out, twin.forward(x))
    twin.backward(np.ones(out.shape, x_dtype))
    assert_equal(layer.dW, twin.dW.astype(W_dtype))


LAYERS = {
    "Convolution": (lambda: konv.Convolution(np.ones((4, 2, 3, 3)), np.zeros(4)), (2, 2, 5, 5)),
    "ConvolutionTranspose": (lambda: konv.ConvolutionTranspose(np.ones((2, 4, 3, 3)), np.zeros(4)), (2, 2, 5, 5)),
    "Pooling": (lambda: konv.Pooling(2, 2), (2, 2, 5, 5)),
    "AveragePooling": (lambda: konv.AveragePooling(2, 2), (2, 2, 5, 5)),
}


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS.keys())
class TestEveryLayer:
    def test_backward_before_forward_is_refused(self, make, shape):
        with pytest.raises(RuntimeError, match="forward has not run"):
            make().backward(np.ones(shape))

    def test_an_upstream_gradient_of_another_shape_is_refused(self, make, shape):
        layer = make()
        out = layer.forward(np.ones(shape))
        with pytest.raises(ValueError, match=r"dout has shape \(2, .*the forward result has shape"):
            layer.backward(np.ones(out.shape[:3]))

    def test_inference_computes_the_same_and_keeps_nothing(self, make, shape):
        x = np.random.default_rng(0).standard_normal(shape)
        layer = make()
        expected = layer.forward(x)
        layer.eval()
        assert_equal(layer.forward(x), expected)
        assert layer.x is None
        with pytest.raises(RuntimeError, match="inference mode"):
            layer.backward(expected)
        layer.train()
        layer.forward(x)
        assert layer.backward(expected).shape == shape

    @pytest.mark.parametrize(
        "twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
    )
    def test_a_copy_computes_the_same_and_shares_nothing(self, make, shape, twin):
        layer = make()
        x = np.ones(shape)
        out = layer.forward(x)
        other = twin(layer)
        assert_equal(other.forward(x), out)
        for name, array in layer.params().items():
            array += 1
            assert (getattr(other, name) != array).all()

    def test_state_goes_through_a_state_dict(self, make, shape):
        layer, other = make(), make()
        for array in layer.params().values():
            array += 2
        state = layer.state_dict()
        other.load_state_dict(state)
        x = np.ones(shape)
        assert_equal(other.forward(x), layer.forward(x))
        for name, array in layer.params().items():
            assert not np.shares_memory(array, state[name])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_parameters_in_float32_under_half_precision_images(dtype):
    """Small updates survive: W stays float32 while the layer computes in x's half type."""
    layer = konv.Convolution(np.ones((1, 1, 2, 2), np.float32), np.zeros(1, np.float32))
    layer.forward(np.ones((1, 1, 3, 3), dtype))
    layer.backward(np.ones((1, 1, 2, 2), dtype))
    layer.W -= 1e-5 * layer.dW
    assert_equal(layer.W, np.full((1, 1, 2, 2), np.float32(1) - np.float32(1e-5) * 4))
