"""konv.torch.DownConv: when the engine computes its convolutions together, and that all else is PyTorch's, silently right."""

import gc
import tracemalloc
import warnings
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402

from konv.engine import memory  # noqa: E402
from konv.engine.downconv import down  # noqa: E402
from konv.torch import DownConv  # noqa: E402
from konv.torch import down as konv_down  # noqa: E402
from konv.torch.down import down_conv, in_matrix_form  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")
SIZES = (53, 10, 4, 5, 3)  # a tail that is not read, padding, 3 channels


@pytest.fixture
def fused(monkeypatch):
    """A list of what the engine was asked for."""
    asked = []
    for name in ("forward", "backward"):
        real = getattr(down, name)
        monkeypatch.setattr(down, name, lambda *a, real=real, name=name: (asked.append(name), real(*a))[1])
    return asked


def made(dtype=torch.float64, batch=2, sizes=SIZES):
    torch.manual_seed(0)
    module = DownConv(*sizes, dtype=dtype)
    return module, torch.randn(batch, sizes[0], sizes[1], dtype=dtype)


def by_pytorch(module, x):
    parts = module.conv1a, module.conv2a
    return in_matrix_form(x, *(t for part in parts for t in (part.weight, part.bias)), module.padding)


def gradients(y, module, x, dy):
    return torch.autograd.grad(y, [x, *module.parameters()], dy)


def close(ours, theirs, dtype=torch.float64):
    limit = 200 * torch.finfo(dtype).eps
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert ((a - b).abs() <= limit * b.abs().max().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["plain", "permuted", "expanded"])
def test_the_engine_computes_both_directions(dtype, layout, fused):
    module, x = made(dtype)
    if layout == "permuted":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded":
        x = x[:1].expand(3, -1, -1)
    x = x.requires_grad_()
    dy = torch.randn(len(x), 4, 10, dtype=dtype)
    y = module(x)
    close([y, *gradients(y, module, x, dy)], [y := by_pytorch(module, x), *gradients(y, module, x, dy)], dtype)
    assert fused == ["forward", "backward"]
    with torch.no_grad():
        close([module(x)], [y], dtype)
    assert fused == ["forward", "backward", "forward"]


def test_no_gradient_is_computed_that_nobody_asked_for(fused):
    module, x = made()
    module.conv1a.requires_grad_(False)
    y = module(x)
    y.sum().backward()
    assert x.grad is None and module.conv1a.weight.grad is None and module.conv2a.weight.grad is not None
    close([module.conv2a.weight.grad], torch.autograd.grad(by_pytorch(module, x).sum(), module.conv2a.weight))
    module.requires_grad_(False)
    assert not module(x).requires_grad
    frozen = x.clone().requires_grad_()
    close(
        torch.autograd.grad(module(frozen).sum(), frozen), torch.autograd.grad(by_pytorch(module, frozen).sum(), frozen)
    )
    assert fused == ["forward", "backward", "forward", "forward", "backward"]


def test_derivatives_of_the_gradients(fused):
    module, x = made()
    x, dy = x.requires_grad_(), torch.randn(2, 4, 10, dtype=torch.float64, requires_grad=True)
    results = []
    for y in (module(x), by_pytorch(module, x)):
        first = torch.autograd.grad(y, [x, *module.parameters()], dy, create_graph=True)
        total = sum(gradient.square().sum() for gradient in first)
        results.append([*first, *torch.autograd.grad(total, [dy, x, module.conv1a.weight, module.conv2a.weight])])
    close(*results)
    assert fused == ["forward"]


def test_many_upstream_gradients_at_once():
    module, x = made()
    x, many = x.requires_grad_(), torch.randn(5, 2, 4, 10, dtype=torch.float64)
    results = [
        torch.autograd.grad(y, [x, *module.parameters()], many, is_grads_batched=True)
        for y in (module(x), by_pytorch(module, x))
    ]
    close(*results)


def test_forward_mode_derivatives(fused):
    module, x = made()
    tangent = torch.randn_like(x)
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dual = forward_ad.make_dual(x, tangent)
        close(*([forward_ad.unpack_dual(f(dual)).tangent] for f in (module, lambda t: by_pytorch(module, t))))
    assert not fused


def test_torch_func(fused):
    module, x = made()
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, x[None]).square().sum()

    def plain(parameters, x):
        w1, b1, w2, b2 = parameters.values()
        return in_matrix_form(x[None], w1, b1, w2, b2, module.padding).square().sum()

    results = [torch.func.vmap(torch.func.grad(f), (None, 0))(parameters, x) for f in (loss, plain)]
    close(*(list(result.values()) for result in results))
    assert not fused


def test_autocast(fused):
    module, x = made(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, right = module(x), by_pytorch(module, x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, right) and not fused
    with torch.autocast("cpu", enabled=False):
        module(x)
    assert fused == ["forward"]


def test_a_compiler_sees_pytorchs_operations(fused):
    module, x = made()
    x = x.requires_grad_()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    y, right = compiled(x), by_pytorch(module, x)
    close([y, *gradients(y, module, x, y.detach())], [right, *gradients(right, module, x, y.detach())])
    assert not fused


def test_what_the_engine_declines(fused, monkeypatch):
    module, x = made()
    monkeypatch.setattr(down, "declines", lambda shape: "a test says so")
    assert torch.equal(module(x), by_pytorch(module, x)) and not fused


def test_bfloat16_in_pairs_is_pytorchs(fused, monkeypatch):
    for dots, channels, asked in ((True, 8, 0), (False, 8, 1), (True, 7, 1)):
        monkeypatch.setattr(konv_down, "machine", lambda dots=dots: SimpleNamespace(dots=dots))
        fused.clear()
        module, x = made(torch.bfloat16, sizes=(20, channels, 2, 5, 1))
        module(x)
        assert len(fused) == asked


def test_a_subclass_of_tensors_is_pytorchs(fused):
    class Other(torch.Tensor):
        pass

    module, x = made()
    assert isinstance(module(x.as_subclass(Other)), Other) and not fused


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_as_pytorchs(dtype):
    module, x = made(dtype)
    wide = DownConv(*SIZES, dtype=torch.float64)
    wide.load_state_dict(module.state_dict())
    results = []
    for m, t in ((module, x), (wide, x.double())):
        t = t.requires_grad_()
        y = m(t)
        results.append([g.double() for g in (y, *gradients(y, m, t, torch.ones_like(y)))])
    for ours, right in zip(*results):
        assert ((ours - right).abs() <= 8 * torch.finfo(dtype).eps * right.abs().max()).all()


def test_the_input_may_not_change_between_forward_and_backward():
    module, x = made()
    y = module(x := x.requires_grad_().clone())
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_bits_do_not_depend_on_pytorchs_threads():
    module, x = made(torch.float32, 300, (200, 64, 4, 10))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            t = x.clone().requires_grad_()
            y = module(t)
            results.append([y, *gradients(y, module, t, torch.ones_like(y))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_function_takes_no_biases():
    module, x = made()
    w1, w2 = module.conv1a.weight, module.conv2a.weight
    y = down_conv(x, w1, None, w2, None, module.padding)
    close([y], [in_matrix_form(x, w1, None, w2, None, module.padding)])
    y.sum().backward()
    assert w1.grad is not None


def test_a_thousand_steps_hold_no_more_memory():
    module, x = made(torch.float32)
    x.requires_grad_()

    def steps(number):
        for _ in range(number):
            module.zero_grad()
            module(x).sum().backward()
        gc.collect()
        memory.release()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    tensors = steps(900)
    tracemalloc.start()
    try:
        assert steps(100) == tensors
        assert tracemalloc.get_traced_memory()[0] <= 1 << 16
    finally:
        tracemalloc.stop()
