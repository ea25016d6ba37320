"""``konv.torch.convert``: what it swaps, what it keeps, what it leaves, and back."""

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402
from torch.nn.utils import spectral_norm as old_spectral_norm  # noqa: E402

import konv.torch  # noqa: E402
from konv.engine.plan import exactly  # noqa: E402
from konv.torch import convert, faster  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"
KINDS = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


def network():
    """Convolutions of several kinds, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, groups=16, bias=False),
        nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 4, 1, padding="same"),
    ).double()  # fmt: skip


def step(model, x):
    """Results and all gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(ours, theirs, tolerance=1e-11):
    """Of order 1, sums of at most a few thousand products in float64."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert (a - b).abs().max().item() <= tolerance * scale


IMAGES = torch.randn(2, 3, 13, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_converted_model_computes_the_same():
    model = network()
    expected = step(copy.deepcopy(model), IMAGES)
    conversion = convert(model)
    assert set(conversion.swapped) == {"0", "2", "4", "5"} and not conversion.left
    assert all(type(model[i]).__module__ == "konv.torch.modules" for i in (0, 2, 4, 5))
    assert_same(step(model, IMAGES), expected)


def test_undo_gives_the_classes_back_and_keeps_what_was_learned():
    model = network()
    classes = [type(m) for m in model.modules()]
    conversion = convert(model)
    with torch.no_grad():
        model[0].weight.mul_(2)
    weight = model[0].weight
    assert "undone" not in str(conversion)
    conversion.undo()
    conversion.undo()  # nothing more to do
    assert "computed by konv, until it was undone" in str(conversion).splitlines()[0]
    assert [type(m) for m in model.modules()] == classes and model[0].weight is weight
    assert vars(model[0]).keys() == vars(network()[0]).keys()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_and_a_model_that_is_one(name):
    layer = getattr(nn, name)(4, 6, 3)
    conversion = convert(layer)
    assert type(layer) is getattr(konv.torch, name)
    assert conversion.swapped == {"": f"{name}(4, 6, kernel_size={layer.kernel_size}, stride={layer.stride})"}
    assert "(the model)" in str(conversion)


def test_parameters_keep_their_identity():
    model = network()
    model[2].weight.requires_grad_(False)
    before, state = dict(model.named_parameters()), model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert not model[2].weight.requires_grad
    assert model.state_dict().keys() == state.keys()
    step(model, IMAGES)
    old = model[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, old)


def test_state_is_exchanged_in_both_directions():
    model, other = network(), network()
    convert(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[0].weight, model[0].weight)
    fresh = network()
    convert(fresh)
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)


def test_hooks_stay():
    model, called = network(), []
    model[0].register_forward_hook(lambda *_: called.append("forward"))
    model[0].register_full_backward_hook(lambda *_: called.append("backward"))
    convert(model)
    step(model, IMAGES)
    assert called == ["forward", "backward"]


def test_a_module_that_is_used_twice_is_swapped_once():
    layer = nn.Conv2d(3, 3, 3, padding=1).double()
    model = nn.Sequential(layer, nn.ReLU(), layer)
    expected = step(copy.deepcopy(model), IMAGES)
    assert list(convert(model).swapped) == ["0"]
    assert model[0] is model[2]
    assert_same(step(model, IMAGES), expected)


@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        old_spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "spectral_norm by hooks"],
)
def test_normed_weights(norm):
    def normed():
        torch.manual_seed(0)
        return nn.Sequential(norm(nn.Conv2d(3, 5, 3).double()))

    model, plain = normed(), normed()
    conversion = convert(model)
    assert list(conversion.swapped) == ["0"] and isinstance(model[0], konv.torch.Conv2d)
    assert_same(step(model, IMAGES), step(plain, IMAGES))
    if parametrize.is_parametrized(model[0]):
        copied = copy.deepcopy(model)
        assert_same(step(copied, IMAGES), step(model, IMAGES))
        expected = step(model.eval(), IMAGES)
        parametrize.remove_parametrizations(model[0], "weight")
        assert type(model[0]) is konv.torch.Conv2d
    else:
        expected = step(model.eval(), IMAGES)
    conversion.undo()
    assert not isinstance(model[0], konv.torch.Conv2d)
    assert_same(step(model, IMAGES)[:2], expected[:2])  # there are gradients of one weight now, or of two parts of it


def test_copies_and_files(tmp_path):
    model = network()
    convert(model)
    expected = step(model, IMAGES)
    torch.save(model, tmp_path / "model.pt")
    for other in (
        copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "model.pt", weights_only=False),
    ):  # fmt: skip
        assert type(other[0]) is konv.torch.Conv2d
        assert_same(step(other, IMAGES), expected, 0)


class Standardized(nn.Conv2d):
    """A class that changes what is computed."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_symbolic_traces():
    model = network()
    expected = step(copy.deepcopy(model), IMAGES)
    convert(model)
    traced = torch.fx.symbolic_trace(model)
    assert {node.target for node in traced.graph.nodes} >= {torch.conv2d, torch.conv_transpose2d}
    assert_same(step(traced, IMAGES), expected)


@pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")
def test_down_conv_is_computed_as_before(monkeypatch):
    down = konv.torch.DownConv(53, 10, 4, 5, 3)
    x = torch.randn(2, 53, 10)
    expected = down(x)
    assert len(convert(down).swapped) == 2
    asked, original = [], konv.torch.downconv.down_conv
    monkeypatch.setattr(konv.torch.downconv, "down_conv", lambda *a: asked.append(1) or original(*a))
    assert torch.equal(down(x), expected) and asked


def test_what_is_left_and_why():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Standardized(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[2].forward = lambda x: x
    convert(model, only="3")
    assert type(model[0]) is nn.Conv2d
    conversion = convert(model)
    assert list(conversion.swapped) == ["0"] and conversion.already == ["3"]
    assert conversion.left == {
        "1": f"{__name__}.Standardized is a class of its own",
        "2": "its forward was replaced",
    }
    assert str(conversion).splitlines()[0] == "2 of 4 convolutions computed by konv"
    assert "3 was konv's already" in str(conversion)
    assert "2 stays as it is: its forward was replaced" in str(conversion)


def test_a_dry_run_changes_nothing():
    model = network()
    classes = [type(m) for m in model.modules()]
    conversion = convert(model, dry_run=True)
    assert len(conversion.swapped) == 4 and "would be computed" in str(conversion)
    assert [type(m) for m in model.modules()] == classes


@pytest.mark.parametrize(
    "only, names",
    [
        ("0", ["0"]),
        (["0", "4"], ["0", "4"]),
        ("[24]", ["2", "4"]),
        (lambda name, module: module.bias is None, ["2"]),
        ([], []),
    ],
)
def test_only(only, names):
    assert list(convert(network(), only=only).swapped) == names


@pytest.mark.parametrize(
    "model, only, error, message",
    [
        ("resnet", None, TypeError, r"model='resnet': expected a torch\.nn\.Module"),
        (nn.Conv2d, None, TypeError, r"expected a torch\.nn\.Module"),
        (nn.Linear(2, 2), "conv1", ValueError, r"'conv1' fits no convolution of the model; near: it has none"),
        (
            nn.Sequential(nn.Conv1d(1, 1, 1)),
            ["1"],
            ValueError,
            r"only=\['1'\]: '1' fits no convolution of the model; near: 0",
        ),
        (nn.Conv1d(1, 1, 1), 3, TypeError, r"only=3: expected names of modules"),
        (nn.Conv1d(1, 1, 1), [nn.Conv1d], TypeError, r"only=\[<class"),
    ],
)
def test_mistakes(model, only, error, message):
    with pytest.raises(error, match=message):
        convert(model, only=only)


def test_the_report_is_not_the_model():
    with pytest.raises(TypeError, match="call the model itself"):
        convert(network())(IMAGES)


def test_a_layer_without_weights_is_computed_from_its_first_input_on():
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.Conv1d(4, 4, 1))
    conversion = convert(model)
    assert str(conversion) == (
        "1 of 2 convolutions computed by konv, 1 more from its first input on\n"
        "  0: LazyConv1d(0, 4, kernel_size=(3,), stride=(1,)), from its first input on\n"
        "  1: Conv1d(4, 4, kernel_size=(1,), stride=(1,))"
    )
    model(torch.zeros(1, 2, 5))
    assert type(model[0]) is konv.torch.Conv1d
    conversion.undo()
    assert type(model[0]) is nn.Conv1d


def test_a_model_without_convolutions():
    assert str(convert(nn.Linear(2, 2))) == "0 of 0 convolutions computed by konv"


def test_two_processes_have_the_gradients_of_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    gradients = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.pt"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
        done = subprocess.run(
            [sys.executable, *launcher, str(EXAMPLE), "--epochs", "1", "--save-gradients", str(file)],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"3 of 3 convolutions computed by konv[\s\S]*epoch 1: test accuracy", done.stdout)
        gradients.append(torch.load(file))
    for one, two in zip(*gradients, strict=True):
        # Sums over 64 images in another order, means of two halves; Winograd's error, 2e-6, through three layers.
        assert (one - two).abs().max() <= 2e-5 * two.abs().max()


@pytest.mark.parametrize(
    "x, w, options, layout, forward, backward",
    [
        ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "first", True, True),
        ((8, 64, 56, 56), (256, 64, 1, 1), {}, "first", True, True),
        ((8, 64, 56, 56), (256, 64, 1, 1), {}, "last", True, True),
        ((8, 128, 28, 28), (512, 128, 1, 1), {}, "last", False, False),
        ((8, 24, 56, 56), (144, 24, 1, 1), {}, "last", True, False),
        ((1, 24, 56, 56), (144, 24, 1, 1), {}, "last", False, False),
        ((1, 192, 28, 28), (32, 192, 1, 1), {}, "last", False, False),
        ((1, 1024, 7, 7), (512, 1024, 1, 1), {}, "last", True, True),
        ((1, 320, 7, 7), (1280, 320, 1, 1), {}, "last", True, False),
        ((1, 320, 7, 7), (1280, 320, 1, 1), {}, "first", True, False),
        ((1, 64, 14, 14), (384, 64, 1, 1), {}, "first", False, False),
        ((8, 64, 14, 14), (384, 64, 1, 1), {}, "first", True, True),
        ((1, 384, 14, 14), (768, 384, 2, 2), {"stride": 2}, "last", True, True),
        ((1, 96, 56, 56), (192, 96, 2, 2), {"stride": 2}, "last", False, True),
        ((8, 256, 28, 28), (256, 256, 3, 3), {"padding": 1, "stride": 2}, "first", True, True),
        ((1, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}, "last", False, True),
        ((1, 512, 14, 14), (512, 512, 3, 3), {"padding": 1, "stride": 2}, "first", True, True),
        ((1, 64, 28, 28), (64, 64, 3, 3), {"padding": 1, "stride": 2}, "first", False, True),
        ((8, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}, "first", True, True),
        ((8, 3, 224, 224), (32, 3, 3, 3), {"padding": 1, "stride": 2}, "first", True, True),
        ((8, 3, 224, 224), (32, 3, 3, 3), {"padding": 1, "stride": 2}, "last", False, False),
        ((8, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}, "last", True, True),
        ((1, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}, "last", False, False),
        ((8, 384, 14, 14), (384, 1, 7, 7), {"padding": 3, "groups": 384}, "last", False, True),
        ((8, 96, 56, 56), (96, 1, 7, 7), {"padding": 3, "groups": 96}, "last", True, True),
        ((8, 144, 56, 56), (144, 1, 3, 3), {"padding": 1, "groups": 144}, "last", True, True),
        ((8, 192, 28, 28), (192, 1, 3, 3), {"padding": 1, "stride": 2, "groups": 192}, "last", False, False),
    ],
)
def test_who_computes(x, w, options, layout, forward, backward):
    from konv.geometry import geometry
    from konv.torch.faster import gains

    g = geometry(x, w, **options)
    directions = ("forward", "backward")
    assert [gains(direction, g, "float32", layout, False) for direction in directions] == [forward, backward]
    assert all(
        gains(direction, g, dtype, layout, False) for direction in directions for dtype in ("float16", "float64")
    )


def test_who_computes_without_a_graph():
    from konv.geometry import geometry
    from konv.torch.faster import gains

    g = geometry((1, 64, 14, 14), (384, 64, 1, 1))
    assert gains("inference", g, "float32", "first", False) and not gains("forward", g, "float32", "first", False)
    assert not gains("inference", g, "float32", "last", False)


def test_few_strided_outputs_are_direct_sums():
    x, options = torch.randn(1, 128, 48, 48), {"stride": 2, "padding": 1}
    layer = nn.Conv2d(128, 128, 3, **options)
    konv.torch.convert(nn.Sequential(layer))
    arrays = [t.detach().numpy() for t in (x, layer.weight, layer.bias)]
    with exactly():
        direct = konv.conv(*arrays, **options)
    assert not np.array_equal(konv.conv(*arrays, **options), direct)
    assert np.array_equal(layer(x).detach().numpy(), direct)
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), direct)


def test_exact_sums_are_konvs():
    from konv.geometry import geometry
    from konv.torch.faster import gains

    g = geometry((8, 64, 28, 28), (256, 64, 1, 1))
    assert not gains("forward", g, "float32", "last", False)
    konv.set_exact(True)
    try:
        assert gains("forward", g, "float32", "last", False)
    finally:
        konv.set_exact(False)
    assert not gains("forward", g, "float32", "last", False)


def test_transposed_layers_are_judged_by_their_own_channels():
    """64 channels to 256 filters and back, kernel == stride, channels last: written by the one, read by the other."""
    from konv.geometry import transposed_geometry
    from konv.torch.faster import gains

    wide, narrow = (transposed_geometry((8, c, 28, 28), (c, f, 2, 2), stride=2) for c, f in ((64, 256), (256, 64)))
    assert not gains("forward", wide, "float32", "last", True) and gains("forward", narrow, "float32", "last", True)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pytorch_computes_what_konv_would_not_gain(monkeypatch, direction):
    """The same numbers, whoever computes; the other direction is konv's."""
    from konv.torch import aten

    called = []
    for name in ("forward", "gradients"):
        original = getattr(aten, name)
        monkeypatch.setattr(
            aten, name, lambda *given, name=name, original=original: called.append(name) or original(*given)
        )
    monkeypatch.setattr(faster, "_expected", lambda asked, *_: asked != direction)
    model = network()
    expected = step(copy.deepcopy(model), IMAGES)
    convert(model)
    assert_same(step(model, IMAGES), expected)
    assert called == ["forward" if direction == "forward" else "gradients"] * 4


def test_what_konv_would_not_gain_at_all_is_pytorchs_own_call(monkeypatch):
    """No operator and no function of ours around it: they would cost more than a small layer."""

    monkeypatch.setattr(faster, "_expected", lambda *_: False)
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    expected = layer(x)
    convert(layer)
    y = layer(x)
    assert torch.equal(y, expected) and y.grad_fn.name() == expected.grad_fn.name()
    monkeypatch.setattr(faster, "_expected", lambda direction, *_: direction == "backward")
    assert layer(x).grad_fn.name() == expected.grad_fn.name()  # it has met such a call
    assert layer(x[:1]).grad_fn.name() != expected.grad_fn.name()
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    konv.set_exact(True)  # a promise that PyTorch does not make
    try:
        assert layer(x).grad_fn.name() != expected.grad_fn.name()
    finally:
        konv.set_exact(False)


@pytest.mark.parametrize("padding", [1, "same"])
def test_what_pytorch_computes_lies_as_konvs(monkeypatch, padding):
    """As the operators' fakes say; PyTorch forgets channels_last_3d, and the gradient is cropped where "same" pads one side."""
    monkeypatch.setattr(faster, "_expected", lambda *_: False)
    layer = nn.Conv3d(4, 6, 2, padding=padding).double().to(memory_format=torch.channels_last_3d)
    convert(layer)
    x = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64).to(memory_format=torch.channels_last_3d).requires_grad_()
    y = layer(x)
    found = torch.autograd.grad(y.sum(), [x, layer.weight])
    assert all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in (y, *found))


def test_what_a_layer_has_met_holds_only_while_nothing_else_has_changed():
    """Options, weights, bias, inputs of other kinds, graphs, autocast, transforms, profilers, copies: after a call as before."""
    from konv.torch.modules import ONLY_WHERE_FASTER

    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, 3)
    ours, x = copy.deepcopy(theirs), torch.randn(2, 4, 9, 8)
    convert(ours)

    def agree(given=x):
        for recorded in (False, True):
            with torch.set_grad_enabled(recorded):
                y, expected = ours(given), theirs(given)
            assert y.dtype == expected.dtype and y.shape == expected.shape and y.requires_grad == expected.requires_grad
            torch.testing.assert_close(y, expected)

    agree()
    assert None not in (met := vars(ours)[ONLY_WHERE_FASTER].kinds).values() and len(met) == 2
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert not vars(copied)[ONLY_WHERE_FASTER].kinds and torch.equal(copied(x), ours(x))
    torch.testing.assert_close(torch.func.vmap(ours)(x[None])[0], theirs(x))
    with torch.profiler.profile() as seen:
        ours(x)
    assert "konv::convolution" in {event.name for event in seen.events()}
    for given in (x.to(memory_format=torch.channels_last), x[:, :, 1:-1, ::2], x[0], x.double()[:0].float(), x):
        agree(given)
    for name, value in (("stride", (2, 1)), ("padding", (1, 0)), ("padding_mode", "circular"), ("dilation", (1, 2))):
        for layer in (ours, theirs):
            setattr(layer, name, value)
            layer._reversed_padding_repeated_twice = [0, 0, 1, 1]
        agree()
    for layer in (ours, theirs):
        layer.bias = None
        layer.weight.data = layer.weight.data[:, :, :2, :2].clone() * 2
    agree()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    agree(x.double().to(torch.float32))
    with pytest.raises(RuntimeError):
        ours(x.double())
    with pytest.raises(TypeError):
        ours([1.0])
    assert ours.to("meta")(x.to("meta")).is_meta


def test_options_that_change_in_place_hold_at_once():
    layer = nn.Conv2d(4, 6, 3)
    convert(layer)
    layer.stride = [1, 1]
    x = torch.randn(2, 4, 9, 8)
    shapes = [layer(x).shape[2:] for _ in range(2)]
    layer.stride[0] = 2
    assert [tuple(shape) for shape in [*shapes, layer(x).shape[2:]]] == [(7, 6), (7, 6), (4, 6)]
    layer.stride = (1, 1)
    assert layer(x).shape == layer(x).shape == (2, 6, 7, 6)
    layer.stride = (True, True)  # equals (1, 1)
    with pytest.raises(TypeError):
        layer(x)


@pytest.mark.parametrize("freed", ["weight", "bias", "input"])
@pytest.mark.parametrize("size, kernel", [(16, 3), (64, 1)])
def test_a_freed_storage_is_refused(size, kernel, freed):
    """As PyTorch refuses it, not read."""
    layer, x = nn.Conv2d(size, size, kernel, padding=kernel // 2), torch.randn(2, size, 14, 14)
    convert(layer)
    with torch.no_grad():
        layer(x)
        # What was seen as an array, PyTorch does not let go.
        with pytest.raises(RuntimeError, match=r"no memory|not resizable"):
            {"weight": layer.weight, "bias": layer.bias, "input": x}[freed].untyped_storage().resize_(0)
            layer(x)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, stride=2)], ids=str
)
def test_calls_under_autocast_are_alike(monkeypatch, layer, recorded):
    """Behind a first layer x is bfloat16, the weights are not: each call casts them, the second as the first.

    Two roundings of 2^-8 and the first layer's in all products of the second: below 2^-6 of numbers of order 1.
    """
    monkeypatch.setattr(faster, "_expected", lambda *_: True)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), copy.deepcopy(layer))
    x, found = torch.randn(2, 3, 12, 12), []
    expected, gradients = _under_autocast(copy.deepcopy(model), x, recorded)
    convert(model)
    for _ in range(3):
        y, grads = _under_autocast(model, x, recorded)
        found.append((y, *grads))
        torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6)
        for grad, other in zip(grads, gradients, strict=True):
            torch.testing.assert_close(grad, other, rtol=2**-5, atol=2**-5 * float(other.abs().max()))
    assert all(torch.equal(t, first) for call in found[1:] for t, first in zip(call, found[0], strict=True))


def _under_autocast(model, x, recorded):
    model.zero_grad()
    with torch.set_grad_enabled(recorded), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    if recorded:
        y.float().sum().backward()
    return y.detach(), [p.grad.clone() for p in model.parameters()] if recorded else []


def test_calls_compile_nothing_anew():
    """What a layer has met is nothing that torch.compile asks for."""
    counted = CompileCounter()
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    convert(model)
    compiled, x = torch.compile(model, backend=counted), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        for size in range(9, 13):
            model(torch.randn(1, 4, size, size))
            compiled(x)
    assert counted.frame_count == 1
