"""The functions of konv.torch against those of torch.nn.functional: results, gradients, refusals, and who computes."""

import itertools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import func  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.library import opcheck  # noqa: E402

import konv  # noqa: E402
import konv.torch as kt  # noqa: E402
from compare import assert_close  # noqa: E402
from konv.engine import threads  # noqa: E402
from konv.engine.plan import on_addresses  # noqa: E402
from konv.torch import functional, ops, tensors  # noqa: E402

NAMES = [f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)]
HALVES = [torch.float16, *([torch.bfloat16] if torch.bfloat16 in tensors.DTYPES else [])]
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "groups": 2, "padding": (2,)},
    {"stride": 3, "groups": 4, "bias": False},
]
CASES = [(name, torch.float32, options) for name in NAMES for options in OPTIONS]
CASES += [
    (name, dtype, OPTIONS[(i + j) % len(OPTIONS)])
    for i, name in enumerate(NAMES)
    for j, dtype in enumerate([torch.float64, *HALVES])
]


def integers(*shape, dtype=torch.float64, seed=0):
    """Small integers: every sum is exact, in every dtype but the halves' last rounding."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arguments(name, groups=1, bias=True, dtype=torch.float64):
    axes = int(name[-2])
    channels, filters = 4, 8
    w = (channels, filters // groups) if "transpose" in name else (filters, channels // groups)
    kernel, spatial = (3, 2, 3)[:axes], (7, 6, 5)[:axes]
    b = integers(filters, dtype=dtype, seed=2) if bias else None
    return integers(2, channels, *spatial, dtype=dtype), integers(*w, *kernel, dtype=dtype, seed=1), b


def both(name):
    return getattr(kt, name), getattr(F, name)


def differentiable(*args):
    return [None if a is None else a.detach().clone().requires_grad_() for a in args]


@pytest.fixture
def konv_computes(monkeypatch):
    """Fails where PyTorch computed."""
    counted = []
    for name in ("forward", "gradients"):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, original=original: counted.append(1) or original(*a))
    yield counted
    assert counted


@pytest.mark.parametrize("name, dtype, options", CASES, ids=str)
def test_results_and_gradients_are_pytorchs_exactly(name, dtype, options, konv_computes):
    options = dict(options)
    x, w, b = arguments(name, options.get("groups", 1), options.pop("bias", True), dtype)
    ours, theirs = both(name)
    for layout in (torch.contiguous_format, LAST.get(int(name[-2]))):
        if layout is None:
            continue
        mine, others = (differentiable(x.to(memory_format=layout), w, b) for _ in range(2))
        y, expected = ours(*mine, **options), theirs(*others, **options)
        as_theirs = layout is not LAST[3]  # which they forget for most dtypes
        assert y.dtype == dtype and (y.stride() == expected.stride() or not as_theirs)
        assert torch.equal(y, expected)
        dy = integers(*y.shape, dtype=dtype, seed=3)
        for a, e in zip(
            *(torch.autograd.grad(r, [t for t in p if t is not None], dy) for r, p in ((y, mine), (expected, others)))
        ):
            assert a.dtype == dtype and a.shape == e.shape
            assert torch.equal(a, e) or (
                dtype in HALVES and torch.allclose(a, e, rtol=2 * torch.finfo(dtype).eps, atol=0)
            )


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name, konv_computes):
    options = {"stride": 2, "padding": 1, "groups": 2}
    axes = int(name[-2])
    shapes = (1, 2, *(4, 3, 2)[:axes]), (2, 1, *[2] * axes), (2,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours, _ = both(name)
    assert torch.autograd.gradcheck(lambda *a: ours(*a, **options), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: ours(*a, **options), inputs)


@pytest.mark.parametrize("name", ["conv1d", "conv_transpose2d"])
def test_many_upstream_gradients_at_once(name):
    x, w, b = arguments(name)
    many, results = None, []
    for function in both(name):
        inputs = differentiable(x, w, b)
        y = function(*inputs, padding=1)
        many = integers(3, *y.shape, seed=4) if many is None else many
        found = torch.autograd.grad(y, inputs, many, is_grads_batched=True)
        twice = torch.autograd.functional.hessian(lambda v, f=function: f(x[:1], v).square().sum(), w, vectorize=True)
        results.append([*found, twice])
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


def test_fake_tensors_outside_their_mode():
    with FakeTensorMode():
        x, w, b = (torch.empty(t.shape) for t in arguments("conv2d"))
    assert kt.conv2d(x, w, b).shape == F.conv2d(x, w, b).shape


# Where PyTorch's machinery must see an operator


def differentiable_calls(name):
    """(function of the tensors, tensors): a call with gradients, for one axis and for two."""
    ours, theirs = both(name)
    tensors_ = [t.detach() for t in arguments(name, groups=2)]
    options = {"stride": 2, "padding": 1, "groups": 2}
    return (lambda *a: ours(*a, **options)), (lambda *a: theirs(*a, **options)), tensors_


OPERATOR = {
    "conv": ([2, 1], [1, 1, 0, 1], [1, 1], False, [0, 0], 2, False, False),
    "conv_transpose": ([2, 1], [1, 1, 0, 1], [1, 1], True, [1, 0], 2, False, True),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", OPERATOR)
def test_opcheck(name, layout):
    options = OPERATOR[name]
    x, w, b = arguments(f"{name}2d", groups=2)
    x, w, b = differentiable(x.to(memory_format=layout), w, b)
    opcheck(torch.ops.konv.convolution.default, (x, w, b, *options))
    (dy,) = differentiable(torch.ops.konv.convolution(x, w, b, *options))
    mask = [layout is torch.contiguous_format, True, layout is torch.contiguous_format]
    opcheck(torch.ops.konv.convolution_backward.default, (dy, x, w, *options, mask))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
        self.b = torch.nn.Parameter(torch.randn(4))

    def forward(self, x):
        return kt.conv2d(x, self.w, self.b, padding="same").relu()


def theirs_of(network, x):
    return F.conv2d(x, network.w, network.b, padding="same").relu()


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_takes_the_whole_graph(dynamic):
    torch._dynamo.reset()
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for x in (torch.randn(2, 3, 8, 8), torch.randn(5, 3, 8, 9).to(memory_format=torch.channels_last)):
        x.requires_grad_()
        y, expected = compiled(x), theirs_of(network, x)
        torch.testing.assert_close(y, expected)
        for a, e in zip(*(torch.autograd.grad(t.sum(), (x, network.w, network.b)) for t in (y, expected))):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_export_holds_konvs_operator(strict):
    network, x = Network(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(network, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}}, strict=strict)
    assert "konv.convolution" in str(program.graph)
    more = torch.randn(5, 3, 8, 8)
    assert torch.equal(program.module()(more), network(more))


@pytest.mark.parametrize("name", ["conv1d", "conv_transpose2d"])
def test_torch_func(name):
    ours, theirs, (x, w, b) = differentiable_calls(name)

    def compare(transform):
        for a, e in zip(*(transform(lambda *t, f=f: f(*t).square().sum()) for f in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, e)

    compare(lambda loss: func.grad(loss, (0, 1, 2))(x, w, b))
    compare(lambda loss: func.vmap(func.grad(loss, (1, 2)), (0, None, None))(x[:, None], w, b))  # of each sample
    many = torch.stack([w, 2 * w, -w])
    compare(lambda loss: func.vmap(func.grad(loss, (0, 1)), (None, 0, None))(x, many, b))  # an ensemble
    compare(lambda loss: [func.hessian(loss, 2)(x, w, b), func.jacrev(func.jacrev(loss, 1), 1)(x[:1], w, b)])
    compare(lambda loss: func.jvp(loss, (x, w, b), (x, w, b)))
    compare(lambda loss: [torch.compile(func.grad(loss, 1), backend="aot_eager", fullgraph=True)(x, w, b)])


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose1d"])
def test_vmap_over_every_choice_of_batched_arguments(name):
    ours, theirs, given = differentiable_calls(name)
    for dims in np.ndindex(3, 3, 3):
        dims = [None if d == 2 else d for d in dims]
        if dims == [None] * 3:
            continue
        args = [t if d is None else torch.stack([t, 2 * t], dim=d) for t, d in zip(given, dims)]
        assert torch.equal(func.vmap(ours, tuple(dims))(*args), func.vmap(theirs, tuple(dims))(*args)), dims


def test_functional_call_per_sample():
    network, x = Network(), torch.randn(5, 3, 8, 8)
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters, sample):
        return func.functional_call(network, parameters, (sample[None],)).square().sum()

    found = func.vmap(func.grad(loss), (None, 0))(parameters, x)
    for i in range(len(x)):
        network.zero_grad()
        theirs_of(network, x[i : i + 1]).square().sum().backward()
        torch.testing.assert_close(found["w"][i], network.w.grad, rtol=1e-4, atol=1e-3)


def test_forward_mode_is_pytorchs():
    network, x = Network(), torch.randn(2, 3, 8, 8)
    old = network(x.requires_grad_())
    with forward_ad.dual_level():
        for function in (network, lambda x: theirs_of(network, x)):
            y = function(forward_ad.make_dual(x, x))
            assert forward_ad.unpack_dual(y).tangent is not None
        dual = forward_ad.make_dual(torch.ones_like(old), torch.ones_like(old))
        (gradient,) = torch.autograd.grad(old, x, dual)  # of a graph that konv made before
        primal, tangent = forward_ad.unpack_dual(gradient)
        torch.testing.assert_close(tangent, primal)


def test_third_derivatives():
    x, w, _ = arguments("conv1d")

    def third(function):
        xs, ws = differentiable(x / 3, w / 3)
        (g,) = torch.autograd.grad(function(xs, ws).pow(2).sum(), xs, create_graph=True)
        (g,) = torch.autograd.grad(g.pow(2).sum(), ws, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), xs)[0]

    torch.testing.assert_close(third(kt.conv1d), third(F.conv1d))


def test_a_gradient_that_is_zero_without_memory():
    x, w, b = differentiable(*arguments("conv2d"))
    y = kt.conv2d(x, w, b)
    for gradient in torch.autograd.grad(y, (x, w, b), torch._efficientzerotensor(y.shape, dtype=y.dtype)):
        assert not gradient.any()


def test_modes_and_profiler_see_the_operator():
    network, x = Network(), torch.randn(2, 3, 8, 8)
    with torch.autograd.profiler.profile() as profile:
        network(x)
    assert any(event.key == "konv::convolution" for event in profile.key_averages())
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(str(operator))
            return operator(*args, **(kwargs or {}))

    with Mode():
        network(x).sum().backward()
    assert "konv.convolution.default" in seen and "konv.convolution_backward.default" in seen
    with torch.device("cpu"):
        network(x)


def test_checkpointing_and_saved_tensor_hooks():
    network, x = Network(), torch.randn(2, 3, 8, 8)
    network(x).sum().backward()
    expected, network.w.grad = network.w.grad, None
    torch.utils.checkpoint.checkpoint(network, x, use_reentrant=False).sum().backward()
    assert torch.equal(network.w.grad, expected)
    y = network(x)
    with torch.no_grad():
        network.w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# What is PyTorch's


@pytest.fixture
def konv_is_silent(monkeypatch):
    def refuse(*args):
        raise AssertionError("konv computed")

    for name in ("forward", "gradients"):
        monkeypatch.setattr(ops, name, refuse)


class Subclass(torch.Tensor):
    pass


FOREIGN = {
    "complex": lambda t: t.to(torch.complex64),
    "int64": lambda t: t.long(),
    "meta": lambda t: t.to("meta"),
    "subclass": lambda t: t.as_subclass(Subclass),
    "mkldnn": lambda t: t.float().to_mkldnn(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_tensors_go_to_pytorch(kind, konv_is_silent):
    x, w, _ = (t if t is None else FOREIGN[kind](t) for t in arguments("conv2d", bias=False))
    with torch.no_grad():
        y, expected = kt.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1)
    assert type(y) is type(expected) and y.dtype == expected.dtype and y.layout == expected.layout
    assert y.shape == expected.shape and y.device == expected.device
    if kind != "meta":
        assert torch.equal(*(t.to_dense() if kind == "mkldnn" else t for t in (y, expected)))


def test_quantised_and_sparse_tensors_get_pytorchs_errors():
    x, w, _ = arguments("conv2d", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
    for wrong in ((quantised, w), (x.to_sparse(), w), (x, w.to_sparse())):
        assert_same_refusal(lambda f, wrong=wrong: f(*wrong), "conv2d")


def test_traces_hold_pytorchs_operator(konv_is_silent):
    network, x = Network(), torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, x, check_trace=False)
    more = torch.randn(3, 3, 9, 9)
    assert torch.equal(traced(more), theirs_of(network, more))


def assert_same_refusal(call, name):
    found = []
    for function in both(name):
        try:
            call(function)
            found.append(None)
        except Exception as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1] and found[1] is not None


@pytest.mark.parametrize("name", NAMES)
def test_refusals_are_pytorchs(name):
    x, w, b = arguments(name, groups=2, dtype=torch.float32)
    axes = int(name[-2])
    rest = [1, 0, *([0] if "transpose" in name else []), *([2, 1] if "transpose" in name else [1, 2])]
    wrong = [
        (x, w, b, 0, *rest[1:]),
        (x, w, b, -1, *rest[1:]),
        (x, w, b, True, *rest[1:]),
        (x, w, b, 1.0, *rest[1:]),
        (x, w, b, (1,) * (axes + 1), *rest[1:]),
        (x, w, b, 1, -1, *rest[2:]),
        (x, w, b, 1, "samey", *rest[2:]),
        (x, w, b, 2, "same", *rest[2:]),
        (x, w, b[:-1], *rest),
        (x, w, b.double(), *rest),
        (x, w.double(), b, *rest),
        (x.double(), w, b, *rest),
        (x[:, :3], w, b, *rest),
        (x[0, 0, 0], w, b, *rest),
        (x[None], w, b, *rest),
        (x[:, :, :0], w, b, *rest),
        (x, w[:, :, :0], b, *rest),
        (x.tolist(), w, b, *rest),
        (x, None, b, *rest),
    ]
    if "transpose" in name:
        wrong += [(x, w, b, 1, 0, 1, 2, 1), (x, w, b, 1, 9, 0, 2, 1)]
    else:
        wrong += [(x[..., :1], w, b, *rest), (x, w, b, 1, 0, 9, 2), (x, w, b, 1, 0, 0, 2), (x, w, b, 1, 0, 1, 3)]
    for args in wrong:
        assert_same_refusal(lambda f, args=args: f(*args), name)


# Memory, threads, autocast


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv_transpose2d"])
def test_any_strides_and_views(name, konv_computes):
    x, w, b = arguments(name)
    ours, theirs = both(name)
    axes = int(name[-2])
    wide = torch.repeat_interleave(x, 2, dim=-1)
    hostile = {
        "slice": (wide[..., ::2], w, b),
        "transposed": (x.transpose(0, -1).contiguous().transpose(0, -1), w.mT.contiguous().mT, b),
        "expanded": (x[:1].expand(3, *x.shape[1:]), w[:1].expand(w.shape), b[:1].expand(8)),
        "negative": (torch._neg_view(x), torch._neg_view(w), torch._neg_view(b)),
        "empty batch": (x[:0], w, b),
        "one sample": (x[0], w, b),
        "offset": (x[1:], w, b),
    }
    for kind, given in hostile.items():
        copies = [t.clone() for t in given]
        y, expected = ours(*given), theirs(*given)
        assert torch.equal(y, expected) and y.shape == expected.shape, kind
        assert all(torch.equal(t, c) for t, c in zip(given, copies)), kind
        for dense in (True, False):
            mine, others = differentiable(*given), differentiable(*given)
            for r in (ours(*mine), theirs(*others)):
                dy = torch.ones_like(r) if dense else r.new_ones(()).expand(r.shape)  # stride 0
                r.backward(dy)
            assert all(torch.equal(m.grad, o.grad) for m, o in zip(mine, others)), kind
    assert axes == x.dim() - 2


def test_only_the_gradients_that_are_needed():
    given = arguments("conv2d")
    for wanted in np.ndindex(2, 2, 2):
        tensors_ = [t.clone().requires_grad_(bool(flag)) for t, flag in zip(given, wanted)]
        y = kt.conv2d(*tensors_)
        assert y.requires_grad == any(wanted)
        if any(wanted):
            y.sum().backward()
        assert [t.grad is not None for t in tensors_] == [bool(flag) for flag in wanted]
    with torch.inference_mode():
        assert torch.equal(kt.conv2d(*given), F.conv2d(*given))


def test_threads_are_pytorchs(monkeypatch):
    used = []
    original = tensors.algorithm
    monkeypatch.setattr(tensors, "algorithm", lambda *a: used.append(threads.get_threads()) or original(*a))
    before, of_konv = torch.get_num_threads(), konv.get_threads()
    x, w, b = differentiable(*arguments("conv2d"))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            kt.conv2d(x, w, b).sum().backward()
            assert set(used) == {count} and konv.get_threads() == of_konv
            used.clear()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast(dtype, konv_computes):
    x, w, b = differentiable(*arguments("conv2d", dtype=torch.float32))
    with torch.autocast("cpu", dtype=dtype):
        y, expected = kt.conv2d(x, w, b), F.conv2d(x, w, b)
        assert y.dtype == expected.dtype == dtype and torch.equal(y, expected)
        assert kt.conv2d(x.double(), w.double()).dtype == torch.float64
        assert_same_refusal(lambda f: f(x.double(), w), "conv2d")
    y.sum().backward()
    assert x.grad.dtype == w.grad.dtype == torch.float32


def test_exact_sums_refuse_winograd(monkeypatch):
    asked = []
    monkeypatch.setattr(tensors, "choose", lambda problem: asked.append(problem) or konv.engine.plan.choose(problem))
    functional.exact_conv1d(*arguments("conv1d"), 1, 1, 1)
    assert [problem.exact for problem in asked] == [True]


# PyTorch's own samples


EVERY = 5  # of PyTorch's samples: most differ in their options alone, which every test here varies
SAMPLED = [torch.float64, torch.float32, *([torch.bfloat16] if torch.bfloat16 in tensors.DTYPES else [])]


@pytest.fixture(scope="module")
def op_infos():
    pytest.importorskip("expecttest")
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    return {info.name.removeprefix("nn.functional."): info for info in methods.op_db}


def as_array(t):
    return tensors.view_of(t.detach().resolve_neg().contiguous())


def with_gradients(function, dy, given, sample_args, sample_kwargs):
    leaves = [t.detach().clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in given]
    y = function(*leaves, *sample_args, **sample_kwargs)
    if dy is None:
        dy = torch.ones_like(y)
    return [y, *torch.autograd.grad(y, [t for t in leaves if isinstance(t, torch.Tensor)], dy)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", SAMPLED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_op_info_samples(name, dtype, op_infos):
    """The oracle is PyTorch in float64; counts and scales of the sums are the same call on ones and on absolute values."""
    ours, theirs = both(name)
    for sample in itertools.islice(op_infos[name].sample_inputs("cpu", dtype, requires_grad=True), 0, None, EVERY):
        # Arguments may come in a tuple or by name.
        tensors_ = [sample.input, *(a for a in sample.args if isinstance(a, torch.Tensor) or a is None)]
        rest = [a for a in sample.args if not (isinstance(a, torch.Tensor) or a is None)]
        options = dict(sample.kwargs)
        while len(tensors_) < 3:
            tensors_.append(options.pop(["input", "weight", "bias"][len(tensors_)], None))

        def run(function, change, dy, tensors_=tensors_, rest=rest, options=options):
            return with_gradients(function, dy, [t if t is None else change(t) for t in tensors_], rest, options)

        dy = torch.randn(theirs(*tensors_, *rest, **options).shape, dtype=torch.float64).to(dtype)
        found = run(ours, lambda t: t, dy)
        expected = run(theirs, lambda t: t.double(), dy.double())
        scales = run(theirs, lambda t: t.double().abs(), dy.double().abs())
        counts = run(theirs, lambda t: torch.ones_like(t, dtype=torch.float64), None)
        assert len(found) == len(expected)
        for actual, right, scale, count in zip(found, expected, scales, counts):
            assert actual.dtype == dtype
            if actual.numel():
                length = int(count.max()) + 1
                assert_close(
                    as_array(actual),
                    as_array(right),
                    dtype=as_array(actual).dtype,
                    length=length,
                    scale=as_array(scale),
                )
            else:
                assert actual.shape == right.shape


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_op_info_samples_of_other_types_are_pytorchs(dtype, op_infos, konv_is_silent):
    for name in NAMES:
        ours, theirs = both(name)
        for sample in itertools.islice(op_infos[name].sample_inputs("cpu", dtype), 0, None, EVERY):
            args = sample.input, *sample.args
            assert torch.equal(ours(*args, **sample.kwargs), theirs(*args, **sample.kwargs))


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d"])
def test_op_info_error_inputs(name, op_infos):
    ours, _ = both(name)
    for wrong in op_infos[name].error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type, match=wrong.error_regex):
            ours(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options", "layout"),
    [
        ((2, 24, 7, 7), (40, 24, 1, 1), {}, "first"),
        ((2, 3, 8, 8), (16, 3, 4, 4), {"stride": 4}, "first"),
        ((2, 64, 7, 7), (64, 1, 3, 3), {"padding": 1, "groups": 64}, "first"),
        ((2, 32, 9, 11), (32, 1, 3, 3), {"groups": 32}, "first"),
        ((2, 32, 9, 11), (32, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 32}, "first"),
        ((2, 8, 6, 9), (16, 2, 3, 3), {"padding": 1, "groups": 4}, "first"),
        ((2, 32, 7, 7), (32, 1, 7, 7), {"padding": 3, "groups": 32}, "last"),
        ((1, 32, 14, 14), (32, 32, 3, 3), {"padding": 1}, "first"),
        ((1, 32, 14, 14), (32, 32, 3, 3), {"padding": 1}, "last"),
    ],
    ids=["1x1", "patches", "depthwise", "planes", "strided", "groups", "depthwise last", "winograd", "winograd last"],
)
def test_what_is_run_on_addresses_has_the_bits_of_what_is_run_on_arrays(x_shape, w_shape, options, layout, infinite):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[0]))
    if infinite:
        w[-1, 0, 0, 0] = np.inf
    g = konv.geometry(x_shape, w_shape, dtype=np.float32, **options)
    assert on_addresses("forward", g, "float32", layout, 2) is not None
    assert on_addresses("input_gradient", g, "float32", layout, 2) is not None
    dy = rng.standard_normal(g.output_shape).astype(np.float32)
    form = LAST[2] if layout == "last" else torch.contiguous_format
    tx, tdy = (torch.from_numpy(a).contiguous(memory_format=form) for a in (x, dy))
    leaves = [t.requires_grad_() for t in (tx, torch.from_numpy(w), torch.from_numpy(b))]
    with np.errstate(all="ignore"):
        x, dy = tx.detach().numpy(), tdy.numpy()  # laid out so
        y, gradients = konv.conv(x, w, b, **options), konv.conv_backward(dy, x, w, **options)
        found = kt.conv2d(*leaves, **options)
        found.backward(tdy)
    for expected, result in zip((y, *gradients), (found.detach(), *(t.grad for t in leaves))):
        np.testing.assert_array_equal(result.numpy(), expected)
