"""``konv bench models``: what is wrong inside a model is found, what is right passes, and the numbers add up."""

import copy
import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import konv.torch  # noqa: E402
from konv.bench import inside, models  # noqa: E402
from konv.bench.results import Timing  # noqa: E402
from konv.torch import tensors  # noqa: E402


def network():
    """Batch normalisation of few numbers behind each convolution: the gradients of the whole are badly conditioned."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, groups=16),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.Flatten(0, 1), nn.Conv1d(8, 4, 3, padding="same"),
    )  # fmt: skip


def step_of(model, last=False, training=True):
    x = torch.randn(1, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    if last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)

    def step():
        with torch.set_grad_enabled(training):
            y = model[:7](x).flatten(2)
            y = model[8](y)
            if training:
                y.square().sum().backward()

    return step


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_what_is_right_passes(converted, training, last):
    model = network()
    if converted:
        konv.torch.convert(model)
    assert 0 < inside.error(model, step_of(model, last, training)) < 0.5


@pytest.mark.parametrize("wrong", ["y", "dx", "dw", "db"])
@pytest.mark.parametrize("by", [0.01, math.nan])
def test_what_is_wrong_is_found(monkeypatch, wrong, by):
    """One number of one layer, wrong by a hundredth of the largest."""
    forward, gradients = tensors.forward, tensors.gradients

    def spoil(t):
        t.view(-1)[-1] += by * t.abs().max()
        return t

    def spoiled_forward(x, *rest):
        y = forward(x, *rest)
        return spoil(y) if wrong == "y" and x.shape[1] == 16 else y

    def spoiled_gradients(dy, *rest):
        found = gradients(dy, *rest)
        # A bias before batch normalisation has no gradient but rounding: of the last layer's.
        if dy.shape[1] == (4 if wrong == "db" else 16) and found[0] is not None and wrong != "y":
            spoil(found[("dx", "dw", "db").index(wrong)])
        return found

    model = network()
    konv.torch.convert(model)
    for module in inside.convolutions(model):  # by konv, whoever is faster
        vars(module).pop(konv.torch.modules.ONLY_WHERE_FASTER)
    monkeypatch.setattr(konv.torch.tensors, "forward", spoiled_forward)
    monkeypatch.setattr(konv.torch.tensors, "gradients", spoiled_gradients)
    assert not inside.error(model, step_of(model)) <= 1


def test_nothing_seen_is_not_right():
    model = nn.Sequential(nn.Linear(2, 2))
    assert math.isnan(inside.error(model, lambda: model(torch.zeros(1, 2))))


def test_hooks_are_gone_and_nothing_else_is_there():
    model = network()
    before = copy.deepcopy(model.state_dict())
    step = step_of(model, training=False)
    inside.error(model, step)
    assert 0 < inside.share_of_time(model, step_of(model)) < 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_the_table():
    timings = {peer: Timing(1, t, t, t, t) for peer, t in zip(models.PEERS, (2.0, 1.0, 1.5, 1.0))}
    errors, shares = {"konv": 0.1, "konv-last": 0.2}, {"torch": 0.75, "torch-last": 0.5}
    right = models.ModelResult(models.Case("resnet-50", 1, "inference"), timings, errors, shares)
    assert right.right and right.bound == 4 and "2.00x PyTorch of 4.00x at most" in models.line(right)
    text = models.grid([right]).markdown()
    assert "75%" in text and "1.50x" in text and "4.00x" in text and "1.25" in text
    for bad in (1.5, math.nan):
        wrong = models.ModelResult(right.case, timings, errors | {"konv-last": bad}, shares)
        assert not wrong.right and "WRONG" in models.line(wrong) and "WRONG" in models.grid([wrong]).markdown()
