"""What is allocated on the way and what is held afterwards, as tracemalloc sees it (NumPy reports its arrays to it)."""

import gc
import tracemalloc

import numpy as np
import pytest

import konv
from konv.engine import columns, plan
from konv.engine.direct.weights_cut import BLOCK_BYTES as UNIT_BYTES
from konv.engine.memory import release
from konv.engine.plan import Problem, choose
from konv.geometry import transposed_geometry
from preferring import layer, of_options

SLACK = 100_000  # Python objects, NumPy's iterators and buffers
pytestmark = pytest.mark.usefixtures("every_algorithm")

MIB = 1 << 20


def traced(function):
    """(result, bytes held beside it, most bytes allocated at a time beside it)"""
    function()  # caches of the first call
    release()
    gc.collect()
    tracemalloc.start()
    try:
        result = function()
        _, peak = tracemalloc.get_traced_memory()
        release()  # the workspace, which the next operation would use again
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    results = [a for a in (result if isinstance(result, tuple) else (result,)) if a is not None]
    size = sum(a.nbytes for a in results)
    return results, held - size, peak - size


# Each needs many blocks of the size below, and at most a few MiB.
LAYERS = {
    "3x3, many samples": ((40, 8, 16, 16), (8, 8, 3, 3), dict(padding=1)),
    "3x3, one large image": ((1, 8, 100, 101), (8, 8, 3, 3), dict(padding=1)),
    "5x5 of few channels": ((16, 3, 28, 28), (8, 3, 5, 5), {}),
    "1x1": ((32, 32, 14, 14), (32, 32, 1, 1), {}),
    "stride equals kernel": ((8, 3, 64, 64), (32, 3, 8, 8), dict(stride=8)),
    "1x1 with a large stride": ((96, 4, 64, 64), (4, 4, 1, 1), dict(stride=16)),
    "depthwise": ((16, 32, 14, 14), (32, 1, 3, 3), dict(padding=1, groups=32)),
    "depthwise, small planes": ((8, 96, 7, 7), (96, 1, 7, 7), dict(padding=3, groups=96)),
    "groups of 8, strided": ((16, 64, 20, 20), (64, 8, 3, 3), dict(padding=1, groups=8, stride=2)),
    "long sequence": ((2, 16, 8_000), (16, 16, 5), dict(padding=2)),
    "wide sequence": ((4, 128, 100), (128, 128, 3), dict(padding=2)),
    "volume": ((2, 4, 12, 13, 14), (8, 4, 3, 3, 3), dict(padding=1)),
}
BLOCK_BYTES = MIB // 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small arrays need several blocks when a block is small."""
    monkeypatch.setattr(columns, "BLOCK_BYTES", BLOCK_BYTES)
    plan.forget()
    yield
    plan.forget()


def whole_tiles(g):
    """Bytes of the weights, with filters, and channels of a kernel row, rounded up to what a tile computes."""
    rows, run = -(-g.filters // g.groups // 32) * 32, g.channels // g.groups * g.kernel[-1]
    return 4 * g.groups * rows * int(np.prod(g.kernel[:-1])) * -(-run // 14) * 14


def arrays(x_shape, w_shape, dtype, options):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype)
    return x, w, konv.geometry(x_shape, w_shape, **options, dtype=dtype)


@layer(lambda name, dtype: of_options(*LAYERS[name], dtype))
@pytest.mark.parametrize(
    "name, dtype",
    [
        *((name, np.float32) for name in LAYERS),
        ("volume", np.float64),
        ("1x1", np.float16),
        ("wide sequence", np.float16),
    ],
)
def test_a_plan_says_truly_what_it_allocates(name, dtype):
    """The workspace of each computation, measured, is at most a quarter more than the plan's figure, and at least half."""
    x_shape, w_shape, options = LAYERS[name]
    x, w, g = arrays(x_shape, w_shape, dtype, options)
    dy = np.ones(g.output_shape, dtype)
    calls = {
        "forward": lambda: konv.conv(x, w, **options),
        "input_gradient": lambda: konv.conv_backward(dy, x, w, **options, need="x"),
        "weight_gradient": lambda: konv.conv_backward(dy, x, w, **options, need="w"),
    }
    for kind, call in calls.items():
        _, held, peak = traced(call)
        workspace = choose(Problem(kind, g, np.dtype(dtype).name)).workspace
        assert held <= SLACK, kind
        assert peak <= 1.25 * workspace + SLACK, (kind, peak, workspace)
        assert peak >= 0.5 * workspace - SLACK, (kind, peak, workspace)


@layer(of_options)
@pytest.mark.parametrize("x_shape, w_shape, options", LAYERS.values(), ids=LAYERS.keys())
def test_memory_is_bounded_by_blocks_and_not_by_the_batch(x_shape, w_shape, options):
    """A few blocks, the sample that is being read, and the weights: whatever the batch is."""
    x, w, g = arrays(x_shape, w_shape, np.float32, options)
    sample = 4 * g.channels * int(np.prod(g.padded)) + 4 * g.filters * int(np.prod(g.output))
    bound = max(4 * BLOCK_BYTES, 4 * UNIT_BYTES) + 2 * sample + 3 * whole_tiles(g) + SLACK
    _, _, peak = traced(lambda: konv.conv(x, w, **options))
    assert peak <= bound, "forward"
    dy = np.ones(g.output_shape, np.float32)
    for need in "xw":
        _, _, peak = traced(lambda need=need: konv.conv_backward(dy, x, w, **options, need=need))
        assert peak <= bound, need


@layer(lambda: ([konv.geometry((batch, 32, 12, 12), (32, 32, 3, 3), padding=1) for batch in (100, 1000)], np.float32))
def test_a_batch_ten_times_as_large_needs_no_more_workspace():
    w = np.ones((32, 32, 3, 3), np.float32)
    peaks = []
    for batch in (100, 1000):
        x = np.ones((batch, 32, 12, 12), np.float32)
        peaks.append(traced(lambda x=x: konv.conv(x, w, padding=1))[2])
    assert peaks[1] <= 1.1 * peaks[0] + SLACK
    assert min(peaks) > 10_000, "nothing was measured"


@layer(lambda dtype: of_options((64, 8, 32, 32), (8, 8, 3, 3), dict(padding=1), dtype))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_out_allocates_no_result(dtype):
    x, w, g = arrays((64, 8, 32, 32), (8, 8, 3, 3), dtype, dict(padding=1))
    out = np.empty(g.output_shape, dtype)
    peaks = []
    for _ in range(3):  # what is kept for further calls of a layer
        konv.conv(x, w, padding=1, out=out)
    for given in (None, out):
        tracemalloc.start()
        try:
            konv.conv(x, w, padding=1, out=given)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] + out.nbytes <= peaks[0] + SLACK


def test_transposed_convolutions_hold_nothing():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, 16, 20, 20)), rng.standard_normal((16, 8, 4, 4))
    g = transposed_geometry(x.shape, w.shape, stride=2)
    b = np.ones(8)
    _, held, peak = traced(lambda: konv.conv_transpose(x, w, b, stride=2))
    workspace = choose(Problem("input_gradient", g, "float64")).workspace
    assert held <= SLACK and peak <= 1.25 * workspace + SLACK


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: konv.Convolution(np.ones((8, 4, 3, 3), np.float32), np.zeros(8, np.float32)), (32, 4, 40, 40)),
        (
            lambda: konv.ConvolutionTranspose(np.ones((4, 8, 3, 3), np.float32), np.zeros(8, np.float32)),
            (32, 4, 40, 40),
        ),
        (lambda: konv.Pooling(2, 2), (32, 4, 40, 40)),
        (lambda: konv.AveragePooling(2, 2), (32, 4, 40, 40)),
        (lambda: konv.CausalConv1d(np.ones((4, 1, 3), np.float32), groups=4), (32, 4, 1600)),
    ],
    ids=["Convolution", "ConvolutionTranspose", "Pooling", "AveragePooling", "CausalConv1d"],
)
def test_a_layer_in_inference_holds_nothing(make, shape):
    layer = make().eval()
    x = np.ones(shape, np.float32)
    _, held, _ = traced(lambda: layer.forward(x))
    assert held <= SLACK // 5
    layer.train()
    layer.forward(x)  # tables of the first call
    layer.eval()
    layer.train()
    release()
    tracemalloc.start()
    try:
        layer.forward(x)  # the result is dropped, what is held is for backward
        release()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    streaming = isinstance(layer, konv.CausalConv1d)  # keeps the chunk with the state before it, in one array
    winners = 32 * 4 * 20 * 20 if isinstance(layer, konv.Pooling) else 0  # a byte for each window
    assert held <= (1.1 * x.nbytes if streaming else winners + SLACK // 5)


@layer(None)
def test_average_pooling_lets_its_input_go():
    """Its gradient needs a shape only."""
    layer = konv.AveragePooling(2, 2)
    x = np.ones((2, 3, 4, 4))
    layer.forward(x)
    assert not np.shares_memory(layer._saved[0], x)
    assert layer.backward(np.ones((2, 3, 2, 2))).shape == x.shape


@layer(None)
@pytest.mark.parametrize(
    "pool, back", [(konv.max_pool, konv.max_pool_backward), (konv.avg_pool, konv.avg_pool_backward)]
)
def test_pooling_uses_a_few_times_its_input(pool, back):
    x = np.ones((16, 8, 64, 64), np.float32)
    y, held, peak = traced(lambda: pool(x, 3, stride=2, padding=1))
    assert held <= SLACK and peak <= 3 * x.nbytes
    _, held, peak = traced(lambda: back(y[0], x, 3, stride=2, padding=1))
    assert held <= SLACK and peak <= 5 * x.nbytes
