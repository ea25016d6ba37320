"""DownConv: NumPy and PyTorch against the formulas, each other, and a class written as the original is."""

import copy
import io
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konv.gradcheck import gradcheck
from konv.layers.downconv import DownConv
from konv.segments import SegmentWarning

try:
    import torch
    import torch.nn.utils.parametrizations
    import torch.nn.utils.prune
    from torch import nn
except ModuleNotFoundError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")

NAMES = ["conv1a.weight", "conv1a.bias", "conv2a.weight", "conv2a.bias"]
NUMPY_TYPES = ["float16", "float32", "float64", "bfloat16"]

if torch is not None:
    from konv.torch import DownConv as TorchDownConv

    class Original(nn.Module):
        """The layer as its authors wrote it down: ORIGIN's formulas, on permuted tensors, by nn.Conv1d."""

        def __init__(self, seq_len=200, hidden_size=64, m_segments=4, k1=10, channel_reduction=16):
            super().__init__()
            middle = seq_len / k1
            k2 = math.ceil(middle / m_segments)
            channels = hidden_size // channel_reduction
            self.conv1a = nn.Conv1d(hidden_size, channels, kernel_size=k1, stride=k1)
            self.relu1a = nn.ReLU(inplace=True)
            self.conv2a = nn.Conv1d(
                channels, hidden_size, kernel_size=k2, stride=k2, padding=math.ceil((k2 * m_segments - middle) / 2.0)
            )

        def forward(self, input_tensor):
            return self.conv2a(self.relu1a(self.conv1a(input_tensor.permute(0, 2, 1)))).permute(0, 2, 1)


def numpy_dtype(name):
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name)) if name == "bfloat16" else np.dtype(name)


def reference(layer, x):
    """Forward by loops over segments and windows, in float64."""
    w1, b1, w2, b2 = (layer.params()[name].astype(np.float64) for name in NAMES)
    cut = layer.geometry()
    y = np.zeros((len(x), cut.count, layer.hidden_size)) + b2
    for segment in range(cut.count):
        for tap in range(cut.k2):
            window = segment * cut.k2 + tap - cut.padding
            if 0 <= window < cut.windows:
                z = b1 + np.einsum("blh,chl->bc", x[:, window * cut.k1 : (window + 1) * cut.k1].astype(np.float64), w1)
                y[:, segment] += np.maximum(z, 0) @ w2[:, :, tap].T
    return y


@st.composite
def cuts(draw):
    """Arguments that give the right number of segments: with tails, with padding alone, with one segment, with many."""
    k1, windows = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    m = draw(st.integers(1, windows) | st.integers(0, 3).map(lambda extra: windows + 2 * extra))
    reduction, channels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    hidden = reduction * channels + draw(st.integers(0, reduction - 1))
    return windows * k1 + draw(st.integers(0, k1 - 1)), hidden, m, k1, reduction


def whole_numbers(rng, shape, dtype):
    """Whole numbers from -3 to 3: every sum of the layer is exact, in any order, and ReLU often meets an exact 0."""
    return rng.integers(-3, 4, shape).astype(dtype)


def strided(rng, shape, dtype, layout):
    """Whole numbers in a memory layout that a user may bring."""
    batch, length, hidden = shape
    if layout == "permuted":
        return whole_numbers(rng, (batch, hidden, length), dtype).transpose(0, 2, 1)
    if layout == "sliced":
        return whole_numbers(rng, (batch, length + 5, hidden + 2), dtype)[:, 3:-2, 1:-1]
    if layout == "reversed":
        return whole_numbers(rng, shape, dtype)[:, ::-1, ::-1]
    if layout == "expanded":
        return np.broadcast_to(whole_numbers(rng, (1, length, hidden), dtype), shape)
    if layout == "swapped bytes":
        return whole_numbers(rng, shape, np.dtype(dtype).newbyteorder())
    x = whole_numbers(rng, shape, dtype)
    x.flags.writeable = layout != "read-only"
    return np.asfortranarray(x) if layout == "Fortran" else x


LAYOUTS = ["plain", "permuted", "sliced", "reversed", "expanded", "swapped bytes", "read-only", "Fortran"]


def with_whole_numbers(arguments, rng, dtype):
    """A NumPy layer whose parameters are whole numbers."""
    layer = DownConv(*arguments, dtype=dtype, rng=rng)
    layer.load_state_dict({name: whole_numbers(rng, array.shape, dtype) for name, array in layer.params().items()})
    return layer


def tensors(state):
    return {name: torch.tensor(array) for name, array in state.items()}


def run_torch(module, x, dout):
    """Output, gradient of x, gradients of the parameters, as arrays."""
    x = x.detach().requires_grad_()
    y = module(x)
    grads = torch.autograd.grad(y, [x, *(module.get_parameter(name) for name in NAMES)], dout)
    return [array.detach().numpy() for array in (y, *grads)]


def run_numpy(layer, x, dout):
    y = layer.forward(x)
    return [y, layer.backward(dout), *(layer.grads()[name] for name in NAMES)]


# ------------------------------------------------------------------------------------------------ results


@needs_torch
@settings(max_examples=150, deadline=None)
@given(
    cuts(), st.integers(0, 3), st.sampled_from(["float32", "float64"]), st.sampled_from(LAYOUTS), st.integers(0, 2**32)
)
def test_numpy_torch_and_the_original_give_the_same_numbers(arguments, batch, dtype, layout, seed):
    rng = np.random.default_rng(seed)
    layer = with_whole_numbers(arguments, rng, dtype)
    module, original = (
        TorchDownConv(*arguments, dtype=getattr(torch, dtype)),
        Original(*arguments).to(getattr(torch, dtype)),
    )
    module.load_state_dict(tensors(layer.state_dict()))
    original.load_state_dict(module.state_dict())
    x = strided(rng, (batch, layer.seq_len, layer.hidden_size), dtype, layout)
    dout = strided(rng, (batch, layer.m, layer.hidden_size), dtype, layout)
    before = x.copy(), dout.copy()

    results = run_numpy(layer, x, dout)
    np.testing.assert_array_equal(results[0], reference(layer, x))
    plain = [torch.tensor(array.astype(dtype, order="C")) for array in (x, dout)]
    expected = run_torch(original, *plain)
    for result, other, right in zip(results, run_torch(module, *plain), expected, strict=True):
        assert result.dtype == other.dtype == right.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(result, right)
        np.testing.assert_array_equal(other, right)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(dout, before[1])


def largest_sums(layer, x, dout):
    """A bound for each result: what its sum would be if every term had the same sign."""
    same = DownConv(layer.seq_len, layer.hidden_size, layer.m, layer.k1, layer.channel_reduction, dtype=np.float64)
    same.load_state_dict({name: np.abs(array) for name, array in layer.params().items()})
    return [array.max(initial=0.0) for array in run_numpy(same, np.abs(x), np.abs(dout))]


@needs_torch
@settings(max_examples=60, deadline=None)
@given(cuts(), st.sampled_from(["float32", "float64"]), st.integers(0, 2**32))
def test_numpy_equals_torch_within_rounding(arguments, dtype, seed):
    rng = np.random.default_rng(seed)
    layer, module = DownConv(*arguments, dtype=dtype, rng=rng), TorchDownConv(*arguments, dtype=getattr(torch, dtype))
    module.load_state_dict(tensors(layer.state_dict()))
    x = rng.standard_normal((2, layer.seq_len, layer.hidden_size)).astype(dtype)
    dout = rng.standard_normal((2, layer.m, layer.hidden_size)).astype(dtype)
    # Rounding, at each of the terms of the longest sum, of the largest sum; twice, as both sides round.
    terms = layer.hidden_size * layer.k1 + layer.k2 * layer.hidden_size + 2 * layer.seq_len * layer.hidden_size
    tolerances = [2 * np.finfo(dtype).eps * terms * bound for bound in largest_sums(layer, x, dout)]
    results = run_numpy(layer, x, dout), run_torch(module, torch.tensor(x), torch.tensor(dout))
    for ours, theirs, tolerance in zip(*results, tolerances, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance


@pytest.mark.parametrize(
    "arguments", [(200, 64, 4, 10, 16), (37, 10, 5, 3, 3), (50, 8, 4, 10, 2), (9, 4, 1, 9, 4), (6, 3, 10, 1)]
)
def test_numpy_equals_the_loops(arguments):
    rng = np.random.default_rng(0)
    arguments = arguments if len(arguments) == 5 else (*arguments, 1)
    layer = DownConv(*arguments, dtype=np.float64, rng=rng)
    x = rng.standard_normal((3, layer.seq_len, layer.hidden_size))
    right = reference(layer, x)
    terms = layer.hidden_size * layer.k1 + layer.k2 * layer.hidden_size
    bound = largest_sums(layer, x, np.ones(right.shape))[0]
    assert np.abs(layer.forward(x) - right).max() <= np.finfo(float).eps * terms * bound


@pytest.mark.parametrize("arguments", [(20, 4, 3, 3, 2), (17, 5, 4, 2, 2), (6, 3, 5, 2, 1), (9, 4, 1, 9, 4)])
def test_gradients_of_the_numpy_layer_are_those_of_its_function(arguments):
    layer = DownConv(*arguments, dtype=np.float64, rng=1)
    result = gradcheck(layer, np.random.default_rng(0).standard_normal((2, layer.seq_len, layer.hidden_size)))
    assert result, result


@needs_torch
def test_gradients_of_the_torch_layer_are_those_of_its_function():
    torch.manual_seed(0)
    module = TorchDownConv(17, 4, 3, 2, 2, dtype=torch.float64)
    x = torch.randn(2, 17, 4, dtype=torch.float64, requires_grad=True)
    values = [x, *(module.get_parameter(name).detach().requires_grad_() for name in NAMES)]

    def call(x, *parameters):
        return torch.func.functional_call(module, dict(zip(NAMES, parameters)), x)

    assert torch.autograd.gradcheck(call, values)
    assert torch.autograd.gradgradcheck(call, values)


def test_unread_inputs_get_no_gradient_and_a_segment_of_padding_gives_the_bias():
    layer = DownConv(53, 8, 4, 10, 2, dtype=np.float64, rng=0)
    x = np.random.default_rng(1).standard_normal((2, 53, 8))
    y = layer.forward(x)
    np.testing.assert_array_equal(y[:, 0], np.broadcast_to(layer.conv2a.b, (2, 8)))
    dx = layer.backward(np.ones_like(y))
    assert list(layer.geometry().unread) == [50, 51, 52]
    assert not dx[:, 50:].any() and dx[:, :50].any()


# ------------------------------------------------------------------------------------------------ the original's contract


@needs_torch
@pytest.mark.parametrize("arguments", [(), (200, 64, 4, 10), (97, 20, 6, 4, 3)])
def test_the_same_seed_gives_the_original_its_weights_and_results(arguments):
    torch.manual_seed(5)
    original = Original(*arguments)
    torch.manual_seed(5)
    module = TorchDownConv(*arguments)
    ours, theirs = module.state_dict(), original.state_dict()
    assert list(ours) == list(theirs) == NAMES
    for name in NAMES:
        assert torch.equal(ours[name], theirs[name])
    x = torch.randn(3, module.seq_len, module.hidden_size)
    terms = module.hidden_size * module.k1 + module.k2 * module.hidden_size
    assert (module(x) - original(x)).abs().max() <= torch.finfo(torch.float32).eps * terms * x.abs().max()


@needs_torch
def test_a_state_of_the_original_loads_into_both_and_back():
    original, module, layer = Original(97, 20, 6, 4, 3), TorchDownConv(97, 20, 6, 4, 3), DownConv(97, 20, 6, 4, 3)
    saved = io.BytesIO()
    torch.save(original.state_dict(), saved)
    state = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    module.load_state_dict(state)
    layer.load_state_dict(state)
    for name, array in layer.params().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, original.get_parameter(name).detach().numpy())
        assert torch.equal(module.get_parameter(name), original.get_parameter(name))
    again = Original(97, 20, 6, 4, 3)
    again.load_state_dict(tensors(layer.state_dict()))
    for name in NAMES:
        assert torch.equal(again.get_parameter(name), original.get_parameter(name))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_arguments_and_attributes_are_the_originals(kind):
    if kind == "torch" and torch is None:
        pytest.skip("PyTorch is not installed")
    layer = (DownConv if kind == "numpy" else TorchDownConv)(
        seq_len=97, hidden_size=20, m_segments=6, k1=4, channel_reduction=3
    )
    assert (layer.m, layer.k1, layer.channel_reduction) == (6, 4, 3)
    assert (layer.k2, layer.padding, layer.seq_len, layer.hidden_size) == (5, 3, 97, 20)
    assert {"conv1a", "relu1a", "conv2a"} <= set(vars(layer) if kind == "numpy" else dict(layer.named_children()))
    assert layer.geometry().real_windows == (2, 5, 5, 5, 5, 2)
    default = (DownConv if kind == "numpy" else TorchDownConv)()
    assert (default.seq_len, default.hidden_size, default.m, default.k1, default.channel_reduction) == (
        200,
        64,
        4,
        10,
        16,
    )


def layers():
    return [DownConv] if torch is None else [DownConv, TorchDownConv]


@pytest.mark.parametrize("kind", layers())
def test_a_mismatch_is_an_error_and_a_defect_a_warning_at_the_users_line(kind):
    with pytest.raises(ValueError, match="would give 7 segments, not 6"):
        kind(50, 64, 6, 10)
    with pytest.raises(ValueError, match="hidden_size=15 is less than channel_reduction=16"):
        kind(200, 15)
    with pytest.raises(TypeError, match=r"k1=10\.0"):
        kind(200, 64, 4, 10.0)
    with pytest.raises(ValueError, match="25000000000"):
        kind(10**12)
    for arguments, words in [((205, 64, 4, 10), "200 .. 204"), ((50, 64, 4, 10), "padding alone")]:
        with pytest.warns(SegmentWarning, match=words) as caught:
            kind(*arguments)
        assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind()


@pytest.mark.parametrize("kind", layers())
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 190, 64), "length is 190"),
        ((2, 256, 64), "length is 256"),
        ((2, 39, 64), "build a DownConv with seq_len=39"),
        ((2, 200, 32), "last axis is 32"),
        ((2, 64, 200), "swap the last two axes"),
        ((200, 64), r"\[None\]"),
        ((2, 2, 200, 64), "4 axes"),
    ],
)
def test_another_shape_is_refused_at_forward(kind, shape, words):
    x = np.zeros(shape, np.float32) if kind is DownConv else torch.zeros(shape)
    with pytest.raises(ValueError, match=words):
        kind().forward(x)


# ------------------------------------------------------------------------------------------------ NumPy's layer


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
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


@needs_torch
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


# ------------------------------------------------------------------------------------------------ PyTorch's module


def exact_pair(*arguments):
    """A module and an original with the same whole-number weights, and an input."""
    rng = np.random.default_rng(0)
    module, original = TorchDownConv(*arguments), Original(*arguments)
    module.load_state_dict(tensors(with_whole_numbers(arguments, rng, np.float32).state_dict()))
    original.load_state_dict(module.state_dict())
    return module, original, torch.tensor(whole_numbers(rng, (3, module.seq_len, module.hidden_size), np.float32))


@needs_torch
def test_torch_takes_any_strides_and_writes_to_none():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    base = torch.cat([x, x, x], 1)
    views = [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        base[:, 7:60],
        base.transpose(0, 1).contiguous().transpose(0, 1)[:, 53:106],
        torch.cat([x, x], 2)[:, :, 10:],
        x[:1].expand(4, -1, -1),
        x[:, :1].expand(-1, 53, -1),
        x[..., :1].expand(-1, -1, 10),
        x[:0],
    ]
    for view in views:
        before = view.clone()
        y = module(view)
        assert torch.equal(y, original(view)) and y.shape == (len(view), 4, 10)
        assert torch.equal(view, before)


@needs_torch
def test_torch_gives_an_empty_batch_its_gradients():
    module = TorchDownConv()
    x = torch.zeros(0, 200, 64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == (0, 200, 64)
    assert all(not parameter.grad.any() for parameter in module.parameters())


@needs_torch
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_torch_keeps_the_dtype(name):
    dtype = getattr(torch, name)
    module = TorchDownConv(53, 10, 4, 5, 3, dtype=dtype)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    x = torch.randn(2, 53, 10, dtype=dtype, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == module.conv1a.weight.grad.dtype == dtype
    exact = TorchDownConv(53, 10, 4, 5, 3, dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    # The sums have 50 and 9 terms below 4 in all; what is rounded is each term at most.
    assert (y - exact(x.double())).abs().max() <= torch.finfo(dtype).eps * 60 * max(1, x.abs().max().item())


@needs_torch
def test_torch_under_autocast_gives_bfloat16_as_the_original_does():
    module, original, x = exact_pair(50, 8, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y, right = module(x), original(x)
        (module.conv1a.weight.grad,) = torch.autograd.grad(y.float().sum(), module.conv1a.weight)
        double = x.to(torch.bfloat16)
        assert torch.equal(module(double), y)
    assert y.dtype == right.dtype == torch.bfloat16
    assert module.conv1a.weight.grad.dtype == torch.float32
    assert (y - right).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * right.abs().max()


@needs_torch
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.zeros(2, 200, 64, dtype=torch.int64), r"int64.*\.float\(\)"),
        (lambda: torch.zeros(2, 200, 64, dtype=torch.bool), r"bool.*\.float\(\)"),
        (lambda: torch.zeros(2, 200, 64, dtype=torch.complex64), r"complex64.*\.real"),
        (lambda: torch.zeros(2, 200, 64, dtype=torch.float64), r"float64 but the parameters are torch.float32"),
        (lambda: np.zeros((2, 200, 64)), r"torch\.Tensor, not a numpy\.ndarray: pass torch\.from_numpy"),
        (lambda: None, "torch.Tensor, not NoneType"),
    ],
)
def test_torch_refuses_what_is_no_fitting_tensor(make, words):
    with pytest.raises(TypeError, match=words):
        TorchDownConv()(make())


@needs_torch
def test_torch_refuses_parameters_that_are_no_floating_point():
    for dtype in (torch.int32, torch.complex64, torch.bool, np.float32, "float32"):
        with pytest.raises(TypeError, match="dtype="):
            TorchDownConv(dtype=dtype)


@needs_torch
def test_torch_takes_a_device():
    module = TorchDownConv(device="meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert module(torch.zeros(2, 200, 64, device="meta")).shape == (2, 4, 64)


@needs_torch
def test_torch_copies_pickles_and_saves_whole():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    saved = io.BytesIO()
    torch.save(module, saved)
    loaded = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(other(x), original(x))
        assert other.geometry() == module.geometry()


@needs_torch
def test_torch_prints_its_sizes():
    assert "seq_len=200, hidden_size=64, m_segments=4, k1=10, channel_reduction=16, k2=5, padding=0" in str(
        TorchDownConv()
    )


@needs_torch
@pytest.mark.parametrize("part", ["conv1a", "relu1a", "conv2a"])
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_torch_hooks_of_the_parts_see_what_they_saw_in_the_original(part, register):
    seen = []
    for module in exact_pair(53, 10, 4, 5, 3)[:2]:
        # Not in place, as a full backward hook needs it; the original's own hook on relu1a would fail there too.
        module.relu1a.inplace = False
        getattr(getattr(module, part), register)(lambda _, *values: seen.append(values) and None)
        x = torch.ones(2, 53, 10, requires_grad=True)
        module(x).sum().backward()
    assert len(seen) == 2

    def flat(values):
        return [v for value in values for v in (flat(value) if isinstance(value, tuple) else [value])]

    for ours, theirs in zip(flat(seen[0]), flat(seen[1]), strict=True):
        assert torch.equal(ours, theirs)


@needs_torch
def test_torch_parts_may_be_replaced():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    for change in (
        lambda m: setattr(m, "relu1a", nn.Tanh()),
        lambda m: setattr(m, "conv1a", nn.Sequential(m.conv1a, nn.BatchNorm1d(3, affine=False))),
        lambda m: setattr(m, "conv2a", nn.Sequential(m.conv2a)),
        lambda m: setattr(m, "conv2a", nn.Conv1d(3, 10, 3, padding="same", bias=False).requires_grad_(False)),
        lambda m: setattr(m, "conv1a", nn.Conv1d(10, 3, 3, stride=5)),
        lambda m: setattr(m.conv1a, "forward", lambda x, conv=m.conv1a: 2 * nn.Conv1d.forward(conv, x)),
    ):
        torch.manual_seed(0)
        ours, theirs = copy.deepcopy(module), copy.deepcopy(original)
        for changed in (ours, theirs):
            torch.manual_seed(1)
            change(changed)
        assert torch.equal(ours(x), theirs(x))
        assert not torch.equal(ours(x), original(x)) or isinstance(ours.conv2a, nn.Sequential)


@needs_torch
@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_torch_subclassed_parts_are_called(method):
    def doubled(self, *arguments):
        return 2 * getattr(nn.Conv1d, method)(self, *arguments)

    module, original, x = exact_pair(53, 10, 4, 5, 3)
    for changed in (module, original):
        changed.conv2a.__class__ = type("Doubled", (nn.Conv1d,), {method: doubled})
    y = module(x)
    assert torch.equal(y, original(x))
    module.conv2a.__class__ = nn.Conv1d
    assert torch.equal(y, 2 * module(x))


@needs_torch
@pytest.mark.parametrize(
    "norm", ["parametrizations.weight_norm", "weight_norm", "prune", "parametrizations.orthogonal"]
)
def test_torch_weights_may_be_computed(norm):
    results = []
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    for changed in (module, original):
        torch.manual_seed(0)
        for part in (changed.conv1a, changed.conv2a):
            if norm == "prune":
                torch.nn.utils.prune.l1_unstructured(part, "weight", amount=0.5)
            elif norm == "weight_norm":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.nn.utils.weight_norm(part)
            else:
                getattr(torch.nn.utils.parametrizations, norm.split(".")[1])(part)
        y = changed(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(changed.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= torch.finfo(torch.float32).eps * 1_000 * theirs.abs().max()


@needs_torch
def test_torch_without_biases_and_with_frozen_parts():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    for changed in (module, original):
        changed.conv1a.bias = changed.conv2a.bias = None
        changed.conv1a.requires_grad_(False)
    assert torch.equal(module(x), original(x))
    module(x).sum().backward()
    assert module.conv1a.weight.grad is None and module.conv2a.weight.grad is not None


@needs_torch
def test_torch_traces_for_any_batch():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: shapes are checked once, deprecated
        traced = torch.jit.trace(module, x[:2])
    assert torch.equal(traced(x), original(x))


def test_without_torch_the_import_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import konv.torch"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert 'ImportError: konv.torch needs PyTorch, which is not installed: pip install "konv[torch]"' in result.stderr


def test_numpy_and_the_cut_do_not_load_torch():
    code = "import sys, konv.layers.downconv, konv.segments; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_forward_replaced_on_a_part_is_called():
    layer, called = DownConv(seq_len=40, hidden_size=16, m_segments=4, k1=2, channel_reduction=4), []
    forward = layer.conv1a.forward
    layer.conv1a.forward = lambda x: called.append(x.shape) or forward(x)
    layer.forward(np.zeros((2, 40, 16), np.float32))
    assert called == [(2, 16, 40)]
