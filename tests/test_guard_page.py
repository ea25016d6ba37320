"""Memory that ends, or begins, at a page which may not be touched: one byte read or written outside ends the process.

Outputs are given by ``out=`` in such memory too, filled with NaN before.
"""

import ctypes
import mmap
import sys

import numpy as np
import pytest

import konv
from compare import assert_equal
from konv import textbook
from konv.geometry import transposed_geometry
from preferring import layer, of_options
from strategies import BFLOAT16, integers

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect"),
    pytest.mark.usefixtures("every_algorithm"),
]

PROT_NONE = 0
PAGE = mmap.PAGESIZE


def guarded(array, end):
    """``array`` copied into pages of its own: its last byte (or with ``end=False`` its first) is beside a forbidden page."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    pages = -(-max(1, array.nbytes) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if libc.mprotect(address + page * PAGE, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = (pages + 1) * PAGE - array.nbytes if end else PAGE
    copy = np.frombuffer(memory, np.uint8)[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


SHAPES = [
    # x, w, options
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 3, 17), (5, 3, 3), dict(padding=1)),
    ((1, 4, 64), (8, 2, 7), dict(stride=3, groups=2)),
    ((2, 6, 33), (6, 1, 4), dict(dilation=3, groups=6, padding="causal")),
    ((1, 4, 300), (4, 1, 5), dict(groups=4, padding=((3, 1),))),
    ((2, 3, 13, 9), (4, 3, 3, 3), dict(padding="same")),
    ((1, 16, 8, 8), (16, 16, 1, 1), {}),
    ((1, 8, 8, 8), (3, 8, 2, 2), dict(stride=2)),
    ((2, 4, 7, 7), (4, 1, 3, 3), dict(groups=4, padding=((2, 0), (0, 1)))),
    ((1, 3, 7, 6), (4, 3, 3, 3), dict(padding=2, padding_mode="reflect")),
    ((1, 3, 7, 6), (4, 3, 3, 3), dict(padding=2, padding_mode="circular")),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), dict(stride=(1, 2, 1), padding=(1, 0, 1))),
]


@layer(lambda end, **of: of_options(**of))
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize(
    "x_shape, w_shape, options, dtype",  # each layer in float32 and, for each compiles kernels, in one other type
    [
        (*layer, np.dtype(dtype))
        for number, layer in enumerate(SHAPES)
        for dtype in (np.float32, (np.float64, np.float16, BFLOAT16)[number % 3])
    ],
)
def test_convolution(x_shape, w_shape, options, dtype, end):
    rng = np.random.default_rng(0)
    x, w, b = (guarded(integers(rng, shape, dtype), end) for shape in (x_shape, w_shape, w_shape[:1]))
    plain = [a.astype(np.float64) for a in (x, w, b)]
    expected = textbook.conv(*plain, **options)
    out = guarded(np.full(expected.shape, np.nan, dtype), end)
    konv.conv(x, w, b, **options, out=out)
    assert_equal(out, expected.astype(dtype))
    dy = guarded(integers(rng, expected.shape, dtype), end)
    gradients = konv.conv_backward(dy, x, w, **options)
    for actual, expected in zip(gradients, textbook.conv_backward(dy.astype(np.float64), *plain[:2], **options)):
        assert_equal(actual, expected.astype(dtype))


@layer(lambda x_shape, w_shape, options, end: ([transposed_geometry(x_shape, w_shape, **options)], np.float32))
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize(
    "x_shape, w_shape, options",
    [
        ((2, 3, 9), (3, 4, 3), {}),
        ((1, 6, 5), (6, 2, 4), dict(stride=3, padding=((1, 2),), groups=3, output_padding=2)),
        ((2, 4, 5, 6), (4, 3, 3, 2), dict(stride=2, padding=1, output_padding=1)),
        ((1, 2, 3, 4, 3), (2, 1, 2, 2, 2), dict(dilation=2, groups=2)),
    ],
)
def test_transposed_convolution(x_shape, w_shape, options, end):
    rng = np.random.default_rng(0)
    x, w = (guarded(integers(rng, shape, np.float32), end) for shape in (x_shape, w_shape))
    y = konv.conv_transpose(x, w, **options)
    assert_equal(y, textbook.conv_transpose(x, w, **options))
    dy = guarded(integers(rng, y.shape, np.float32), end)
    gradients = konv.conv_transpose_backward(dy, x, w, **options)
    for actual, expected in zip(gradients, textbook.conv_transpose_backward(dy, x, w, **options)):
        assert_equal(actual, expected)


@layer(None)
@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "shape, options",
    [
        ((2, 3, 9), dict(kernel_size=2)),
        ((1, 3, 8, 7), dict(kernel_size=3, stride=2, padding=1)),
        ((2, 2, 5, 4, 6), dict(kernel_size=(2, 1, 3), stride=1)),
    ],
)
def test_pooling_and_unfolding(shape, options, dtype, end):
    rng = np.random.default_rng(0)
    x = guarded(integers(rng, shape, dtype), end)
    y = konv.max_pool(x, **options)
    assert_equal(y, textbook.max_pool(x, **options))
    dy = guarded(integers(rng, y.shape, dtype), end)
    assert_equal(konv.max_pool_backward(dy, x, **options), textbook.max_pool_backward(dy, x, **options))
    wide_x, wide_dy = x.astype(np.float32), dy.astype(np.float32)
    assert_equal(konv.avg_pool(x, **options), konv.avg_pool(wide_x, **options).astype(dtype))
    mean_gradient = konv.avg_pool_backward(wide_dy, wide_x, **options).astype(dtype)
    assert_equal(konv.avg_pool_backward(dy, x, **options), mean_gradient)
    columns = guarded(konv.unfold(x, **options), end)
    assert_equal(columns, konv.unfold(x.copy(), **options))
    assert_equal(konv.fold(columns, shape[2:], **options), konv.fold(columns.copy(), shape[2:], **options))


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_streaming(end):
    rng = np.random.default_rng(0)
    layer = konv.CausalConv1d(guarded(integers(rng, (4, 2, 3), np.float32), end), stride=2, dilation=2, groups=2)
    x = integers(rng, (2, 4, 21), np.float32)
    expected, _ = layer.forward(x)
    state, parts = None, []
    for chunk in np.split(x, [5, 6, 13], axis=2):
        y, state = layer.forward(guarded(chunk, end), state)
        state = guarded(state, end)
        parts.append(y)
    assert_equal(np.concatenate(parts, axis=2), expected)


@layer(None)
def test_the_page_really_is_forbidden():
    """A process of its own reads one byte too far, and must not live to tell."""
    import subprocess

    program = (
        "import numpy as np; from numpy.lib.stride_tricks import as_strided; from test_guard_page import guarded;"
        "x = guarded(np.ones(5), True); print(x.sum(), flush=True); print(as_strided(x, (6,)).sum())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "5.0\n" and result.returncode < 0
