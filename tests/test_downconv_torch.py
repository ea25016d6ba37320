"""konv.torch.DownConv, the module: strides, dtypes, what it refuses, hooks, replaced parts, computed weights, tracing."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

from downconv_cases import TorchDownConv, exact_pair  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")


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


def test_torch_gives_an_empty_batch_its_gradients():
    module = TorchDownConv()
    x = torch.zeros(0, 200, 64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == (0, 200, 64)
    assert all(not parameter.grad.any() for parameter in module.parameters())


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


def test_torch_refuses_parameters_that_are_no_floating_point():
    for dtype in (torch.int32, torch.complex64, torch.bool, np.float32, "float32"):
        with pytest.raises(TypeError, match="dtype="):
            TorchDownConv(dtype=dtype)


def test_torch_takes_a_device():
    module = TorchDownConv(device="meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert module(torch.zeros(2, 200, 64, device="meta")).shape == (2, 4, 64)


def test_torch_copies_pickles_and_saves_whole():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    saved = io.BytesIO()
    torch.save(module, saved)
    loaded = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(other(x), original(x))
        assert other.geometry() == module.geometry()


def test_torch_prints_its_sizes():
    assert "seq_len=200, hidden_size=64, m_segments=4, k1=10, channel_reduction=16, k2=5, padding=0" in str(
        TorchDownConv()
    )


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
                prune.l1_unstructured(part, "weight", amount=0.5)
            elif norm == "weight_norm":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    nn.utils.weight_norm(part)
            else:
                getattr(parametrizations, norm.split(".")[1])(part)
        y = changed(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(changed.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= torch.finfo(torch.float32).eps * 1_000 * theirs.abs().max()


def test_torch_without_biases_and_with_frozen_parts():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    for changed in (module, original):
        changed.conv1a.bias = changed.conv2a.bias = None
        changed.conv1a.requires_grad_(False)
    assert torch.equal(module(x), original(x))
    module(x).sum().backward()
    assert module.conv1a.weight.grad is None and module.conv2a.weight.grad is not None


def test_torch_traces_for_any_batch():
    module, original, x = exact_pair(53, 10, 4, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: shapes are checked once, deprecated
        traced = torch.jit.trace(module, x[:2])
    assert torch.equal(traced(x), original(x))
