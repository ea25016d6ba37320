"""DownConv: NumPy and PyTorch against the formulas, each other, and a class written as the original is."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downconv_cases import (
    LAYOUTS,
    NAMES,
    Original,
    TorchDownConv,
    cuts,
    reference,
    run_numpy,
    run_torch,
    strided,
    tensors,
    torch,
    with_whole_numbers,
)
from konv.gradcheck import gradcheck
from konv.layers.downconv import DownConv
from konv.segments import SegmentWarning

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")


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


def test_without_torch_the_import_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import konv.torch"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "ImportError: konv.torch needs PyTorch, which is not installed: pip install torch ml-dtypes" in result.stderr


def test_numpy_and_the_cut_do_not_load_torch():
    code = "import sys, konv.layers.downconv, konv.segments; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
