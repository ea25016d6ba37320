"""``CausalConv1d``: fed in any chunks it gives the very bits that the whole gives, and the same gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import konv
from compare import assert_close, assert_equal, assert_same_bits, untouched
from oracles import with_gradients
from strategies import BFLOAT16, DTYPES, LAYOUTS, channel_counts, convolutions, dtypes, integers, layouts, plain, seeds


@st.composite
def streams(draw):
    """(layer arguments, shapes, chunk lengths): dense, grouped, depthwise; any kernel, stride and dilation."""
    groups, per_group, filters = draw(channel_counts())
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    chunks = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    w_shape, bias = (groups * filters, per_group, kernel), draw(st.booleans())
    options = dict(stride=stride, dilation=dilation, groups=groups)
    return options, w_shape, bias, (draw(st.integers(0, 3)), groups * per_group, sum(chunks)), chunks


def split(x, chunks):
    return np.split(x, np.cumsum(chunks)[:-1], axis=2)


def fill(stream, seed, dtype, values):
    rng = np.random.default_rng(seed)
    options, w_shape, bias, x_shape, chunks = stream
    W, x = values(rng, w_shape).astype(dtype), values(rng, x_shape).astype(dtype)
    b = values(rng, w_shape[:1]).astype(dtype) if bias else None
    return konv.CausalConv1d(W, b, **options), x, chunks


def normal(rng, shape):
    return rng.standard_normal(shape)


@given(streams(), seeds, dtypes, layouts)
def test_any_chunks_give_the_bits_of_the_whole(stream, seed, dtype, layout):
    layer, x, chunks = fill(stream, seed, dtype, normal)
    expected, final = layer.forward(x)
    state, parts = None, []
    for chunk in split(x, chunks):
        chunk = LAYOUTS["C" if layout == "repeated" else layout](chunk)  # a repeated chunk has other values
        with untouched(chunk):
            y, state = layer.forward(chunk, state)
        parts.append(y)
        assert y.dtype == state.dtype == dtype and y.flags.c_contiguous and state.flags.c_contiguous
    assert_same_bits(np.concatenate(parts, axis=2), expected)
    assert_same_bits(state, final)


@given(streams(), seeds)
def test_one_sample_and_one_step_at_a_time_give_the_bits_of_the_whole(stream, seed):
    layer, x, _ = fill(stream, seed, np.float32, normal)
    layer.eval()
    expected, final = layer.forward(x)
    for n in range(len(x)):
        state, parts = None, [np.empty((1, len(layer.W), 0), x.dtype)]
        for time in range(x.shape[2]):
            y, state = layer.forward(x[n : n + 1, :, time : time + 1], state)
            parts.append(y)
        assert_same_bits(np.concatenate(parts, axis=2), expected[n : n + 1].copy())
        if x.shape[2]:
            assert_same_bits(state, final[n : n + 1].copy())


@given(streams(), seeds)
def test_equals_a_left_padded_convolution_of_pytorch(stream, seed):
    layer, x, _ = fill(stream, seed, np.float64, integers)
    assume(0 not in x.shape)
    y, _ = layer.forward(x)
    dy = integers(np.random.default_rng(seed), y.shape)
    dx, _ = layer.backward(dy)
    options = dict(stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
    bias = np.zeros(len(layer.W)) if layer.b is None else layer.b

    def causal(x, W, b):
        return F.conv1d(F.pad(x, (layer.history, 0)), W, b, **options)

    expected, (expected_dx, dW, db) = with_gradients(causal, dy, x, layer.W, bias)
    assert_equal(y, expected)
    assert_equal(dx, expected_dx)
    assert_equal(layer.dW, dW)
    if layer.b is not None:
        assert_equal(layer.db, db)
    padded = konv.conv(x, layer.W, layer.b, padding="causal", **options)
    assert_equal(y, padded)


@given(streams(), seeds)
def test_gradients_through_chunks_equal_those_of_the_whole(stream, seed):
    """Each chunk has a layer of its own with the same arrays; the states' gradients run from chunk to chunk."""
    whole, x, chunks = fill(stream, seed, np.float64, integers)
    rng = np.random.default_rng(seed + 1)
    y, final = whole.forward(x)
    dy, dfinal = integers(rng, y.shape), integers(rng, final.shape)
    expected, expected_start = whole.backward(dy, dfinal)
    options = dict(stride=whole.stride, dilation=whole.dilation, groups=whole.groups)
    layers = [konv.CausalConv1d(whole.W, whole.b, **options) for _ in chunks]
    state, lengths = None, []
    for layer, chunk in zip(layers, split(x, chunks)):
        part, state = layer.forward(chunk, state)
        lengths.append(part.shape[2])
    dstate, dxs = dfinal, []
    for layer, dpart in zip(reversed(layers), reversed(split(dy, lengths))):
        dx, dstate = layer.backward(dpart, dstate)
        dxs.insert(0, dx)
    assert_equal(np.concatenate(dxs, axis=2), expected)
    assert_equal(dstate, expected_start)
    assert_equal(sum(layer.dW for layer in layers), whole.dW)
    if whole.b is not None:
        assert_equal(sum(layer.db for layer in layers), whole.db)


@given(streams(), seeds)
def test_without_a_gradient_of_the_state_it_counts_as_zero(stream, seed):
    layer, x, _ = fill(stream, seed, np.float64, integers)
    y, state = layer.forward(x)
    dy = integers(np.random.default_rng(seed), y.shape)
    for actual, expected in zip(layer.backward(dy), layer.backward(dy, np.zeros_like(state))):
        assert_equal(actual, expected)


@given(streams(), seeds)
def test_the_state_is_what_a_later_chunk_needs(stream, seed):
    layer, x, _ = fill(stream, seed, np.float64, normal)
    _, state = layer.forward(x)
    length, phase = x.shape[2], x.shape[2] % layer.stride
    assert state.shape == (*x.shape[:2], layer.history + phase)
    seen = np.concatenate([np.zeros((*x.shape[:2], layer.history)), x], axis=2)
    assert_equal(state, seen[:, :, length - phase :])
    assert not np.shares_memory(state, x), "a caller may reuse the memory of x"


@given(streams(), seeds, st.sampled_from([np.dtype(np.float16), BFLOAT16]))
def test_half_types_are_the_float32_result_rounded_once(stream, seed, dtype):
    layer, x, _ = fill(stream, seed, dtype, normal)
    y, state = layer.forward(x)
    expected, expected_state = layer.forward(x.astype(np.float32))
    assert_same_bits(y, expected.astype(dtype))
    assert_same_bits(state, expected_state.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_floats_are_off_by_rounding_only(dtype):
    rng = np.random.default_rng(0)
    W, b, x = (rng.standard_normal(shape).astype(dtype) for shape in ((6, 4, 5), (6,), (2, 8, 50)))
    y, _ = konv.CausalConv1d(W, b, dilation=2, groups=2).forward(x)
    options = dict(dilation=2, groups=2, padding="causal")
    expected = konv.textbook.conv(plain(x), plain(W), plain(b), **options)
    scale = konv.textbook.conv(abs(plain(x)), abs(plain(W)), abs(plain(b)), **options)
    assert_close(y, expected, dtype=dtype, length=4 * 5 + 1, scale=scale)


def test_inference_keeps_nothing():
    layer = konv.CausalConv1d(np.ones((2, 1, 3)), groups=2).eval()
    y, _ = layer.forward(np.ones((1, 2, 5)))
    assert layer.x is None
    with pytest.raises(RuntimeError, match="inference mode"):
        layer.backward(y)


def test_x_is_the_last_chunk():
    layer = konv.CausalConv1d(np.ones((2, 1, 3)), groups=2)
    first, second = integers(np.random.default_rng(0), (2, 1, 2, 4))
    _, state = layer.forward(first)
    layer.forward(second, state)
    assert_equal(layer.x, second)


def test_weights_updated_between_forward_and_backward_do_not_change_the_gradient():
    layer = konv.CausalConv1d(np.ones((1, 1, 2)))
    x = np.arange(4.0).reshape(1, 1, 4)
    y, _ = layer.forward(x)
    expected, _ = layer.backward(y)
    layer.forward(x)
    layer.W *= 5
    assert_equal(layer.backward(y)[0], expected)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("lengths", [(7,), (3, 1, 5), (1, 1, 1, 1)], ids=str)
def test_equals_onnx_causal_conv_with_state(kernel, lengths):
    """ONNX's own reference of the operator whose names and meaning ``forward`` has (depthwise, stride 1)."""
    pytest.importorskip("onnx", minversion="1.21")
    from onnx import TensorProto, defs, helper
    from onnx.reference import ReferenceEvaluator

    if not defs.has("CausalConvWithState"):
        pytest.skip("this onnx has no CausalConvWithState")
    names = ["input", "weight", "bias", "past_state"], ["output", "present_state"]
    node = helper.make_node("CausalConvWithState", *names)
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in side] for side in names]
    version = max(27, defs.get_schema("CausalConvWithState").since_version)
    graph = helper.make_graph([node], "stream", *values)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)]))

    rng = np.random.default_rng(kernel)
    W, b = integers(rng, (3, 1, kernel), np.float32), integers(rng, (3,), np.float32)
    layer = konv.CausalConv1d(W, b, groups=3)
    past = integers(rng, (2, 3, kernel - 1), np.float32)
    state, onnx_state = past, past
    for length in lengths:
        x = integers(rng, (2, 3, length), np.float32)
        y, state = layer.forward(x, state)
        feeds = dict(zip(names[0], (x, W, b, onnx_state)))
        onnx_y, onnx_state = evaluator.run(None, feeds)
        assert_equal(y, onnx_y)
        assert_equal(state, onnx_state)


def test_a_long_stream_in_small_chunks_is_what_pytorch_computes_at_once():
    rng = np.random.default_rng(0)
    W, x = integers(rng, (16, 1, 4), np.float32), integers(rng, (1, 16, 1000), np.float32)
    layer, state, parts = konv.CausalConv1d(W, groups=16), None, []
    for chunk in np.split(x, 125, axis=2):
        y, state = layer.forward(chunk, state)
        parts.append(y)
    expected = F.conv1d(F.pad(torch.tensor(x), (3, 0)), torch.tensor(W), groups=16).numpy()
    assert_equal(np.concatenate(parts, axis=2), expected)


@given(convolutions(axes=1, min_batch=1), seeds, st.integers(1, 9))
def test_outputs_have_the_same_bits_at_any_length(case, seed, more):
    """Cells that are appended to x cannot change the bits of the outputs that do not see them."""
    options = {**case.options, "padding": 0}
    rng = np.random.default_rng(seed)
    window = konv.geometry(case.x_shape, case.w_shape, **case.options).receptive_field[0]
    x = rng.standard_normal((*case.x_shape[:2], window + 3 + more), dtype=np.float32)
    w = rng.standard_normal(case.w_shape, dtype=np.float32)
    longer, shorter = konv.conv(x, w, **options), konv.conv(x[:, :, : window + 3], w, **options)
    assert_same_bits(shorter, np.ascontiguousarray(longer[:, :, : shorter.shape[2]]))
