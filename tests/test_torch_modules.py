"""The modules of konv.torch against those of torch.nn over their constructors' arguments; CausalConv1d against its own whole."""

import copy
import itertools
import pickle
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import konv  # noqa: E402
import konv.torch as kt  # noqa: E402

CONVOLUTIONS = ["Conv1d", "Conv2d", "Conv3d"]
TRANSPOSED = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
CONSTRUCTORS = [
    {},
    {"stride": 2, "padding": 1, "bias": False},
    {"groups": 2, "dilation": 2, "padding": 2},
    {"dtype": torch.float64},
]
OF_CONVOLUTIONS = [
    {"padding": "same"},
    {"padding": "valid", "stride": 2},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "groups": 4},
    {"padding": "same", "padding_mode": "circular", "dilation": 2},
]
OF_TRANSPOSED = [{"stride": 3, "output_padding": 2, "padding": 1}, {"stride": 2, "groups": 4}]
CASES = [
    *itertools.product(CONVOLUTIONS + TRANSPOSED, CONSTRUCTORS),
    *itertools.product(CONVOLUTIONS, OF_CONVOLUTIONS),
    *itertools.product(TRANSPOSED, OF_TRANSPOSED),
]


def pair(name, *args, **options):
    """konv's module and PyTorch's, each made after the same seed, with weights that are small integers."""
    made = []
    for source in (kt, nn):
        torch.manual_seed(7)
        made.append(getattr(source, name)(*args, **options))
    for ours, theirs in zip(made[0].parameters(), made[1].parameters()):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        for module in made:
            for parameter in module.parameters():
                parameter.copy_((parameter * 100).round().remainder(7) - 3)
    return made


def sequence(axes, dtype=torch.float32):
    return torch.randint(-3, 4, (2, 4, *(8, 7, 6)[:axes]), generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def not_pytorch(monkeypatch):
    """Fails where PyTorch's functions are called."""

    def refuse(*args, **options):
        raise AssertionError("PyTorch computed")

    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        monkeypatch.setattr(torch.nn.functional, name, refuse)


@pytest.fixture
def exact():
    """Integers come out as they are: no Winograd."""
    konv.set_exact(True)
    yield
    konv.set_exact(False)


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_equals_pytorchs_module(exact, name, options):
    ours, theirs = pair(name, 4, 8, 3, **options)
    assert isinstance(ours, getattr(nn, name)) and repr(ours) == repr(theirs)
    x = sequence(int(name[-2]), options.get("dtype", torch.float32))
    results = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        y = module(given)
        (y * y).sum().backward()
        results.append((y, given.grad, *(p.grad for p in module.parameters())))
    for actual, expected in zip(*results):
        assert torch.equal(actual, expected)
    assert torch.equal(ours(x[0]), theirs(x[0]))


def test_konv_computes_them(not_pytorch):
    for name in CONVOLUTIONS + TRANSPOSED:
        getattr(kt, name)(4, 8, 3)(sequence(int(name[-2])))


@pytest.mark.parametrize("name", CONVOLUTIONS + TRANSPOSED)
def test_state_goes_both_ways_and_copies_are_equal(name):
    ours, theirs = pair(name, 4, 8, 3, stride=2)
    x = sequence(int(name[-2]))
    other = getattr(nn, name)(4, 8, 3, stride=2)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(x), ours(x))
    back = getattr(kt, name)(4, 8, 3, stride=2)
    back.load_state_dict(theirs.state_dict())
    for copied in (back, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is getattr(kt, name) and torch.equal(copied(x), ours(x))


@pytest.mark.parametrize("name", CONVOLUTIONS + TRANSPOSED)
def test_lazy_modules_become_konvs(name):
    torch.manual_seed(3)
    lazy = getattr(kt, f"Lazy{name}")(8, 3)
    torch.manual_seed(3)
    expected = getattr(nn, f"Lazy{name}")(8, 3)
    x = sequence(int(name[-2]))
    torch.manual_seed(4)
    y = lazy(x)
    torch.manual_seed(4)
    expected(x)
    assert type(lazy) is getattr(kt, name) and lazy.in_channels == 4
    assert torch.equal(lazy.weight, expected.weight) and torch.equal(lazy(x), y)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_output_size(name):
    axes = int(name[-2])
    ours, theirs = pair(name, 4, 8, 3, stride=2, padding=1)
    x = sequence(axes)
    for extra in (0, 1):
        size = [2 * n - 1 + extra for n in x.shape[2:]]
        assert list(ours(x, output_size=size).shape[2:]) == size
        assert torch.equal(ours(x, size), theirs(x, size))
    for wrong in ([1] * axes, [50] * axes, [9] * (axes + 3)):
        messages = []
        for module in (ours, theirs):
            with pytest.raises(ValueError) as error:
                module(x, wrong)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("name", CONVOLUTIONS + TRANSPOSED)
def test_refuses_what_pytorch_refuses(name):
    wrong = [(0, 8, 3), (3, 8, 3), (4, 8, 3, 0), (4, 8, -3), (4, 8, 3, 1, "samey"), (4, 7, 3)]
    for args in wrong:
        found = []
        for source in (kt, nn):
            try:
                options = {"groups": 2} if args in (wrong[1], wrong[-1]) else {}
                getattr(source, name)(*args, **options)(sequence(int(name[-2])))
                found.append(None)
            except Exception as error:
                found.append((type(error), str(error)))
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "layer",
    [
        konv.torch.Conv2d(1, 1, 1),
        konv.torch.ConvTranspose1d(1, 1, 1),
        konv.torch.CausalConv1d(1, 1, 1),
        konv.torch.DownConv(4, 16, 2, 2),
        konv.torch.convert(nn.Conv1d(1, 1, 1)).model,
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_array_is_told_from_a_tensor(layer):
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, not a numpy.ndarray: pass torch.from_numpy\("):
        layer(np.zeros((1, 1, 4), np.float32))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name, position", [("input", 0), ("weight", 1), ("bias", 2)])
def test_a_function_tells_an_array_from_a_tensor(transposed, name, position):
    arguments = [torch.zeros(1, 2, 5, 5), torch.zeros(2, 2, 3, 3), torch.zeros(2)]
    arguments[position] = arguments[position].numpy()
    words = rf"{name} must be a torch\.Tensor.*torch\.from_numpy\({name}\); konv\.conv{'_transpose' * transposed} takes arrays"
    with pytest.raises(TypeError, match=words):
        (kt.conv_transpose2d if transposed else kt.conv2d)(*arguments)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: kt.Conv2d(3, 4, 3, pad=1), "Conv2d() has no argument 'pad'; here it is called padding"),
        (
            lambda: kt.LazyConvTranspose1d(4, 3, strides=1),
            "LazyConvTranspose1d() has no argument 'strides'; near: stride",
        ),
        (
            lambda: kt.Conv1d(3, 4),
            "Conv1d() is missing kernel_size: call Conv1d(in_channels, out_channels, kernel_size, ...)",
        ),
        (lambda: kt.DownConv(hidden=64), "DownConv() has no argument 'hidden'; near: hidden_size"),
        (lambda: kt.CausalConv1d(2, 2, 3, padding_mode="zeros"), "CausalConv1d() has no argument 'padding_mode'"),
        (lambda: kt.convert(nn.ReLU(), dryrun=True), "convert() has no argument 'dryrun'; near: dry_run"),
    ],
)
def test_a_name_that_is_not_there_is_told(call, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        call()


def test_weight_norm_and_hooks_work():
    ours, theirs = pair("Conv2d", 4, 8, 3)
    seen = []
    for module in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(module)
        module.register_forward_hook(lambda m, x, y: seen.append(y))
        module(sequence(2)).sum().backward()
    torch.testing.assert_close(seen[0], seen[1])
    for a, e in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-4, atol=1e-3)


CAUSAL = [
    {"kernel_size": 5},
    {"kernel_size": 4, "stride": 3, "dilation": 2, "bias": False},
    {"kernel_size": 3, "groups": 4},
    {"kernel_size": 3, "stride": 3},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 31, "groups": 4, "dtype": torch.float64},
]


def streamed(layer, x, cuts):
    state, pieces = None, []
    for start, end in itertools.pairwise([0, *cuts, x.shape[2]]):
        y, state = layer(x[:, :, start:end], state)
        pieces.append(y)
    return torch.cat(pieces, dim=2), state


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_chunks_give_the_very_bits_of_the_whole(options, not_pytorch):
    torch.manual_seed(0)
    layer = kt.CausalConv1d(4, 8, **options)
    x = torch.randn(2, 4, 150, dtype=layer.weight.dtype)
    whole, state = layer(x)
    chosen = np.random.default_rng(0)
    for cuts in ([], [1], [0, 0, 75], range(1, 150, 2), *(sorted(chosen.integers(0, 151, 4)) for _ in range(5))):
        y, last = streamed(layer, x, [int(cut) for cut in cuts])
        assert torch.equal(y, whole) and torch.equal(last, state)


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_causal_equals_the_numpy_layer_and_its_gradients(options):
    torch.manual_seed(0)
    layer = kt.CausalConv1d(4, 8, **options).double()
    x = torch.randint(-3, 4, (2, 4, 40)).double().requires_grad_()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    y, state = streamed(layer, x, [7, 8, 8, 30])
    arrays = [None if p is None else p.detach().numpy() for p in (layer.weight, layer.bias)]
    numpy_layer = konv.CausalConv1d(*arrays, stride=layer.stride[0], dilation=layer.dilation[0], groups=layer.groups)
    expected, expected_state = numpy_layer.forward(x.detach().numpy())
    assert np.array_equal(y.detach().numpy(), expected) and np.array_equal(state.detach().numpy(), expected_state)
    dy, dstate = torch.randint(-3, 4, y.shape).double(), torch.randint(-3, 4, state.shape).double()
    torch.autograd.backward([y, state], [dy, dstate])
    dx, _ = numpy_layer.backward(dy.numpy(), dstate.numpy())
    assert np.array_equal(x.grad.numpy(), dx) and np.array_equal(layer.weight.grad.numpy(), numpy_layer.dW)


def test_causal_refuses_what_does_not_fit():
    layer = kt.CausalConv1d(4, 8, 3, stride=2)
    x = torch.zeros(2, 4, 10)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 10\): expected \(N, C, L\) with C = in_channels = 4"):
        layer(torch.zeros(2, 5, 10))
    with pytest.raises(ValueError, match=r"past_state has shape \(2, 4, 5\): expected \(2, 4, 2 to 3\)"):
        layer(x, torch.zeros(2, 4, 5))
    with pytest.raises(TypeError, match=r"past_state is torch.float64 and x is torch.float32"):
        layer(x, torch.zeros(2, 4, 2).double())
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        kt.CausalConv1d(4, 8, 3, groups=3)


def test_causal_state_dict_is_conv1ds():
    torch.manual_seed(0)
    plain = nn.Conv1d(4, 8, 3, dilation=2)
    torch.manual_seed(0)
    causal = kt.CausalConv1d(4, 8, 3, dilation=2)
    causal.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 30)
    torch.testing.assert_close(causal(x)[0], plain(torch.nn.functional.pad(x, (4, 0))))


def test_memory_does_not_grow():
    layer = kt.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 16, 16)

    def steps(count):
        for _ in range(count):
            layer(x).sum().backward()
            layer.zero_grad()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    try:
        resident()
    except OSError:
        pytest.skip("this system does not tell")
    steps(100)
    before = resident()
    steps(1000)
    assert resident() - before <= 4 << 20  # a leak of one activation a step would be 16 MiB
