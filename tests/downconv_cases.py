"""DownConv in loops, as its authors wrote it down, and inputs for its tests."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st

from konv.layers.downconv import DownConv

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    torch = Original = TorchDownConv = None


NAMES = ["conv1a.weight", "conv1a.bias", "conv2a.weight", "conv2a.bias"]


if torch is not None:
    from konv.torch import DownConv as TorchDownConv

    class Original(nn.Module):
        """The layer as its authors wrote it down: strided nn.Conv1d on permuted tensors."""

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


def exact_pair(*arguments):
    """A module and an original with the same whole-number weights, and an input."""
    rng = np.random.default_rng(0)
    module, original = TorchDownConv(*arguments), Original(*arguments)
    module.load_state_dict(tensors(with_whole_numbers(arguments, rng, np.float32).state_dict()))
    original.load_state_dict(module.state_dict())
    return module, original, torch.tensor(whole_numbers(rng, (3, module.seq_len, module.hidden_size), np.float32))
