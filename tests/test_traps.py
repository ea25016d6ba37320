"""The traps of the book's own layers, by name: each of these tests fails on the original."""

import tracemalloc

import numpy as np
import pytest

import konv
from compare import assert_equal
from konv.engine.memory import release
from strategies import BFLOAT16, DTYPES, integers

DTYPES = [d for d in DTYPES if d != np.float64]  # float64 is what the original turns everything into


def small_layer(dtype=np.float64, **options):
    rng = np.random.default_rng(0)
    W, b = integers(rng, (3, 2, 3, 3), dtype), integers(rng, (3,), dtype)
    return konv.Convolution(W, b, **options), integers(rng, (2, 2, 6, 5), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_trap_float_types_become_float64(dtype):
    layer, x = small_layer(dtype, pad=1)
    out = layer.forward(x)
    dx = layer.backward(out)
    assert [a.dtype for a in (out, dx, layer.dW, layer.db, layer.col, layer.col_W)] == [dtype] * 6
    pooling = konv.Pooling(2, 2, 2)
    out = pooling.forward(x)
    assert out.dtype == pooling.backward(out).dtype == dtype
    col = konv.im2col(x, 3, 3)
    assert col.dtype == dtype and konv.col2im(col, x.shape, 3, 3).dtype == dtype


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_trap_integers_become_float64_silently(dtype):
    layer, x = small_layer()
    with pytest.raises(TypeError, match=r"x has dtype (int64|uint8|bool).*x\.astype\(np\.float32\)"):
        layer.forward(x.astype(dtype))
    with pytest.raises(TypeError, match=r"x has dtype (int64|uint8|bool).*x\.astype\(np\.float32\)"):
        konv.Pooling(2, 2).forward(x.astype(dtype))
    with pytest.raises(TypeError, match=r"W has dtype (int64|uint8|bool).*W\.astype\(np\.float32\)"):
        konv.Convolution(layer.W.astype(dtype), layer.b)
    col = konv.im2col(x.astype(dtype), 3, 3)  # moving cells needs no arithmetic: any type is kept
    assert col.dtype == dtype


def test_trap_complex_loses_its_imaginary_part():
    layer, x = small_layer()
    with pytest.raises(TypeError, match="x has dtype complex128"):
        layer.forward(x + 1j)
    with pytest.raises(TypeError, match="x has dtype complex64"):
        konv.Pooling(2, 2).forward(x.astype(np.complex64))
    col = konv.im2col(x + 1j, 2, 2)
    assert (col.imag == 1).all()
    assert (konv.col2im(col, x.shape, 2, 2).imag >= 1).all()


@pytest.mark.parametrize("shape", [(2, 2, 6, 5), (1, 2, 3, 3), (4, 2, 3, 7)])
def test_trap_results_are_not_contiguous(shape):
    layer, _ = small_layer(pad=1)
    out = layer.forward(np.ones(shape))
    dx = layer.backward(np.asfortranarray(out))
    pooling = konv.Pooling(2, 2, 1)
    pooled = pooling.forward(np.ones(shape))
    results = dict(out=out, dx=dx, dW=layer.dW, db=layer.db, pooled=pooled, dpooled=pooling.backward(pooled))
    assert [name for name, array in results.items() if not array.flags.c_contiguous] == []
    larger = [name for name, array in results.items() if array.base is not None and array.base.nbytes > array.nbytes]
    assert larger == [], "these keep a larger array alive"


def traced(function, *arguments):
    """(result, bytes that are held after the call beside it, most bytes allocated on the way)"""
    release()
    tracemalloc.start()
    try:
        result = function(*arguments)
        _, peak = tracemalloc.get_traced_memory()
        release()  # the workspace, which the next operation would use again
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, held - result.nbytes, peak


@pytest.mark.parametrize("training", [True, False])
def test_trap_memory_held_and_used(training):
    """For a 6.4 MB input the original holds 116 MB after forward, also at inference, and uses 238 MB and 258 MB on the way."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 16, 32, 31), dtype=np.float32)
    layer = konv.Convolution(rng.standard_normal((16, 16, 3, 3), dtype=np.float32), np.zeros(16, np.float32), pad=1)
    layer.backward(layer.forward(x))  # tables of the first call
    layer.dW = layer.db = None
    layer.eval()
    layer.train(training)
    out, held, peak = traced(layer.forward, x)
    assert held <= (layer.W.nbytes if training else 0) + 10_000
    assert peak <= 6 * x.nbytes
    if training:
        _, held, peak = traced(layer.backward, out)
        assert held <= layer.dW.nbytes + layer.db.nbytes + 10_000
        assert peak <= 6 * x.nbytes


def test_trap_inference_keeps_the_input():
    layer, x = small_layer()
    layer.forward(x)
    assert layer.eval() is layer
    assert layer.x is None, "switching to inference lets go of what training kept"
    layer.forward(x)
    assert layer.x is layer.col is layer.col_W is None
    with pytest.raises(RuntimeError, match="inference mode"):
        layer.backward(np.ones((2, 3, 4, 3)))
    pooling = konv.Pooling(2, 2).eval()
    pooling.forward(x)
    assert pooling.x is pooling.arg_max is None


def test_trap_an_update_of_W_between_forward_and_backward_changes_dx():
    layer, x = small_layer()
    out = layer.forward(x)
    expected = layer.backward(out)
    out = layer.forward(x)
    col_W = layer.col_W.copy()
    layer.W += 1  # an optimizer's step, in place
    assert_equal(layer.col_W, col_W)
    assert_equal(layer.backward(out), expected)
    assert_equal(layer.forward(x), konv.conv(x, layer.W, layer.b))  # and the next forward uses the new W


def test_trap_a_layer_called_twice_forgets_its_first_input():
    layer, x = small_layer()
    first, second = layer.forward(x), layer.forward(2 * x)
    expected, _, _ = konv.conv_backward(second, 2 * x, layer.W)
    assert_equal(layer.backward(second), expected)
    with pytest.raises(RuntimeError, match="after 2 forward calls, but a layer keeps its last input only"):
        layer.backward(first)


def test_a_layer_called_again_after_its_backward_is_fine():
    layer, x = small_layer()
    for scale in (1, 2, 3):
        out = layer.forward(scale * x)
        expected, dW, db = konv.conv_backward(out, scale * x, layer.W)
        assert_equal(layer.backward(out), expected)
        assert_equal(layer.dW, dW)
        assert_equal(layer.db, db)


def test_an_upstream_gradient_that_was_refused_does_not_count_as_a_backward():
    layer, x = small_layer()
    layer.forward(x)
    out = layer.forward(x)
    with pytest.raises(ValueError, match="dout has shape"):
        layer.backward(out[:1])
    assert layer.backward(out).shape == x.shape


def test_trap_a_filter_larger_than_the_input():
    layer, _ = small_layer()
    with pytest.raises(
        ValueError, match=r"window is longer than the padded input.*1 \* \(3 - 1\) \+ 1 = 3 > 2 \+ 0 \+ 0 = 2"
    ):
        layer.forward(np.ones((1, 2, 7, 2)))
    with pytest.raises(ValueError, match="window is longer than the padded input"):
        konv.Pooling(3, 3).forward(np.ones((1, 1, 2, 5)))


def test_trap_tuples_for_stride_and_pad():
    rng = np.random.default_rng(1)
    x, W, b = integers(rng, (2, 3, 9, 8)), integers(rng, (4, 3, 3, 2)), integers(rng, (4,))
    layer = konv.Convolution(W, b, stride=(2, 3), pad=(1, 2))
    out = layer.forward(x)
    assert_equal(out, konv.conv(np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2))), W, b, stride=(2, 3)))
    assert layer.backward(out).shape == x.shape
    assert konv.Pooling(2, 2, stride=(2, 3), pad=(1, 0)).forward(x).shape == (2, 3, 5, 3)
    assert konv.im2col(x, 3, 2, stride=(2, 3), pad=(1, 2)).shape == (2 * 5 * 4, 3 * 6)


def test_trap_no_bias():
    _, x = small_layer()
    W = np.ones((3, 2, 3, 3))
    layer = konv.Convolution(W, None)
    out = layer.forward(x)
    assert_equal(out, konv.Convolution(W, np.zeros(3)).forward(x))
    assert layer.backward(out).shape == x.shape
    assert layer.db is None and list(layer.params()) == list(layer.grads()) == ["W"]


def test_trap_pooling_forgets_its_padding():
    x = -np.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    layer = konv.Pooling(3, 3, stride=2, pad=1)
    out = layer.forward(x)
    assert_equal(out, np.array([[[[-1.0, -2.0], [-5.0, -6.0]]]]))  # the largest real cell: a padding zero never wins
    dx = layer.backward(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert_equal(dx[0, 0], np.array([[1.0, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))


def test_trap_output_sizes_that_are_not_integers():
    """The original's ``conv_output_size(28, 5, 2)`` is 12.5."""
    output = konv.geometry((1, 1, 28, 28), (1, 1, 5, 5), stride=2).output
    assert output == (12, 12) and all(type(n) is int for n in output)
    layer = konv.Convolution(np.ones((1, 1, 5, 5)), None, stride=2)
    assert layer.forward(np.ones((1, 1, 28, 28))).shape == (1, 1, 12, 12)
    assert layer.backward(np.ones((1, 1, 12, 12))).shape == (1, 1, 28, 28)


def test_trap_bfloat16_is_a_type_like_the_others():
    layer, x = small_layer(BFLOAT16)
    assert_equal(
        layer.forward(x),
        konv.conv(x.astype(np.float64), *(p.astype(np.float64) for p in (layer.W, layer.b))).astype(BFLOAT16),
    )
