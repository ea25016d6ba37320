"""konv.DownConv, the NumPy layer: its dtypes, parameters and states, inference, what it refuses."""

import copy
import math
import pickle

import numpy as np
import pytest

from downconv_cases import (
    NAMES,
    TorchDownConv,
    numpy_dtype,
    run_numpy,
    torch,
    whole_numbers,
    with_whole_numbers,
)
from konv.layers.downconv import DownConv

pytestmark = pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_numpy_keeps_the_dtype(dtype):
    dtype = numpy_dtype(dtype)
    rng = np.random.default_rng(0)
    layer = with_whole_numbers((50, 6, 5, 2, 3), rng, dtype)
    x, dout = whole_numbers(rng, (2, 50, 6), dtype), whole_numbers(rng, (2, 5, 6), dtype)
    results = run_numpy(layer, x, dout)
    assert {array.dtype for array in results} == {dtype}
    assert {array.dtype for array in layer.state_dict().values()} == {dtype}
    right = with_whole_numbers((50, 6, 5, 2, 3), rng, np.float64)
    right.load_state_dict(layer.state_dict())
    y = right.forward(x.astype(np.float64))
    # The windows are whole numbers up to 111; bfloat16 holds those, and each output is one rounding of an exact sum.
    assert np.abs(layer.forward(x).astype(np.float64) - y).max() <= 2.0**-8 * np.abs(y).max()


def test_numpy_computes_in_the_inputs_dtype_and_keeps_the_parameters():
    layer = DownConv(rng=0)
    y = layer.forward(np.ones((1, 200, 64)))
    dx = layer.backward(np.ones(y.shape))
    assert y.dtype == dx.dtype == np.float64
    assert {array.dtype for array in layer.grads().values()} == {np.dtype(np.float32)}


def test_numpy_initial_parameters_are_uniform_within_the_bound_of_the_fan_in():
    layer = DownConv(400, 128, 4, 10, 4, rng=0)
    for name, fan_in in zip(NAMES, (1280, 1280, 320, 320)):
        array, bound = layer.params()[name], 1 / math.sqrt(fan_in)
        assert array.dtype == np.float32
        assert 0.9 * bound <= np.abs(array).max() <= bound
        assert np.abs(array.mean()) <= 5 * bound / math.sqrt(3 * array.size)
    same, other = DownConv(400, 128, 4, 10, 4, rng=np.random.default_rng(0)), DownConv(400, 128, 4, 10, 4)
    for name, array in layer.params().items():
        np.testing.assert_array_equal(array, same.params()[name])
        assert (array != other.params()[name]).any()


def test_numpy_parameters_are_live_and_states_are_copies():
    layer = DownConv(rng=0)
    assert layer.params()["conv1a.weight"] is layer.conv1a.W
    assert list(layer.params()) == list(layer.grads()) == list(layer.state_dict()) == NAMES
    assert set(layer.grads().values()) == {None}
    state = layer.state_dict()
    layer.conv2a.b += 1
    assert not np.array_equal(state["conv2a.bias"], layer.conv2a.b)
    held = layer.conv2a.b
    layer.load_state_dict({name: array.tolist() for name, array in state.items()})
    assert layer.conv2a.b is held
    np.testing.assert_array_equal(held, state["conv2a.bias"])


def test_numpy_refuses_a_state_that_does_not_fit_and_writes_nothing():
    layer = DownConv(rng=0)
    before = layer.state_dict()
    good = DownConv(rng=1).state_dict()
    for state, error, words in [
        ({name: good[name] for name in NAMES[:3]}, KeyError, "conv2a.bias"),
        (good | {"conv3a.bias": np.zeros(4)}, KeyError, "conv3a.bias"),
        (good | {"conv2a.weight": np.zeros((64, 4, 6))}, ValueError, r"\(64, 4, 6\)"),
    ]:
        with pytest.raises(error, match=words):
            layer.load_state_dict(state)
    for name, array in layer.params().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
def test_numpy_writes_nothing_where_a_value_cannot_be_converted():
    layer, module = DownConv(rng=0), TorchDownConv()
    before = layer.state_dict()
    with pytest.raises(RuntimeError, match="requires grad"):
        layer.load_state_dict(module.state_dict() | {"conv2a.bias": module.conv2a.bias})
    for name, array in layer.params().items():
        np.testing.assert_array_equal(array, before[name])


def test_numpy_inference_keeps_nothing_and_gives_the_same():
    layer = DownConv(rng=0)
    x = np.random.default_rng(0).standard_normal((2, 200, 64)).astype(np.float32)
    y = layer.forward(x)
    assert layer.conv1a.x is not None
    assert layer.eval() is layer
    parts = (layer, layer.conv1a, layer.relu1a, layer.conv2a)
    assert not any(part.training for part in parts)
    np.testing.assert_array_equal(layer.forward(x), y)
    assert all(part._saved is None for part in parts)
    with pytest.raises(RuntimeError, match=r"DownConv\.backward.*inference"):
        layer.backward(y)
    assert layer.train() is layer and all(part.training for part in parts)
    with pytest.raises(RuntimeError, match=r"DownConv.backward.*inference mode"):
        layer.backward(y)


def test_numpy_keeps_the_input_not_a_copy():
    layer = DownConv(rng=0)
    x = np.zeros((2, 200, 64), np.float32)
    layer.forward(x)
    assert np.shares_memory(layer.conv1a.x, x)


def test_numpy_takes_an_empty_batch():
    layer = DownConv(rng=0)
    assert layer.forward(np.zeros((0, 200, 64), np.float32)).shape == (0, 4, 64)
    assert layer.backward(np.zeros((0, 4, 64), np.float32)).shape == (0, 200, 64)
    assert not any(array.any() for array in layer.grads().values())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((2, 200, 64), int), "astype"),
        (np.zeros((2, 200, 64), bool), "bool"),
        (np.zeros((2, 200, 64), complex), "complex128"),
        ([[0.0]], "list"),
        (None, "=None: expected a NumPy array"),
    ],
)
def test_numpy_refuses_what_is_no_floating_point_array(value, words):
    layer = DownConv(rng=0)
    with pytest.raises(TypeError, match=words):
        layer.forward(value)
    layer.forward(np.zeros((2, 200, 64)))
    with pytest.raises(TypeError, match=words):
        layer.backward(value)


def test_numpy_refuses_a_gradient_of_another_shape():
    layer = DownConv(rng=0)
    layer.forward(np.zeros((2, 200, 64)))
    with pytest.raises(ValueError, match=r"dout has shape \(2, 64, 4\), but forward returned shape \(2, 4, 64\)"):
        layer.backward(np.zeros((2, 64, 4)))


@pytest.mark.parametrize("dtype", [int, bool, complex, "S3", object, np.longdouble])
def test_numpy_refuses_parameters_that_are_no_floating_point(dtype):
    with pytest.raises(TypeError, match="dtype="):
        DownConv(dtype=dtype)


def test_numpy_pickles_and_copies():
    layer = DownConv(rng=0)
    x = np.ones((1, 200, 64), np.float32)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(other.forward(x), layer.forward(x))
        assert other.conv1a.W is not layer.conv1a.W


def test_a_forward_replaced_on_a_part_is_called():
    layer, called = DownConv(seq_len=40, hidden_size=16, m_segments=4, k1=2, channel_reduction=4), []
    forward = layer.conv1a.forward
    layer.conv1a.forward = lambda x: called.append(x.shape) or forward(x)
    layer.forward(np.zeros((2, 40, 16), np.float32))
    assert called == [(2, 16, 40)]
