"""The functions of konv.torch against those of torch.nn.functional: results, gradients, refusals, and who computes."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import konv.torch as kt  # noqa: E402
from konv.torch import ops, tensors  # noqa: E402

NAMES = [f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)]
HALVES = [torch.float16, *([torch.bfloat16] if torch.bfloat16 in tensors.DTYPES else [])]
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "groups": 2, "padding": (2,)},
    {"stride": 3, "groups": 4, "bias": False},
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_results_and_gradients_are_pytorchs_exactly(name, dtype, options, konv_computes):
    options = dict(options)
    x, w, b = arguments(name, options.get("groups", 1), options.pop("bias", True), dtype)
    ours, theirs = both(name)
    for layout in (torch.contiguous_format, LAST.get(int(name[-2]))):
        if layout is None:
            continue
        mine, others = (differentiable(x.to(memory_format=layout), w, b) for _ in range(2))
        y, expected = ours(*mine, **options), theirs(*others, **options)
        as_theirs = layout is not LAST[3]  # which they forget for float64
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
