"""A ReLU in passing: the bits of the convolution, the pooling and the ReLU one after the other, alone and in a Sequential."""

import copy
import weakref

import numpy as np
import pytest

from compare import assert_same_bits
from konv import ops, pooling, rectified
from konv.arrays import laid_out
from konv.engine import rectify
from konv.engine.winograd import winograd
from konv.geometry import geometry
from konv.layers import Affine, Convolution, Pooling, ReLU, Sequential
from konv.layers.base import Layer
from plain_engine import MACHINES, engine
from strategies import BFLOAT16
from test_guard_page import guarded

# x, w, options: Winograd's algorithm, strips, and what does not do it in passing; Winograd's does not for dx with a stride
CASES = [
    ((2, 16, 7, 6), (16, 16, 3, 3), dict(padding=1)),
    ((2, 1, 19, 21), (16, 1, 3, 3), dict(padding=1)),
    ((1, 16, 8, 8), (16, 16, 3, 3), dict(padding=1, stride=(1, 2))),
    ((1, 8, 6), (8, 1, 3), dict(padding="causal", groups=8)),
    ((1, 8, 6), (8, 1, 3), dict(padding=1, padding_mode="reflect", groups=8)),
]


def drawn(x_shape, w_shape, options, dtype=np.float32, layout="first"):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape, w_shape[:1]))
    x.flat[:: x.size // 5] = [np.nan, 0, -0.0, np.inf, 1, -np.inf][: len(x.flat[:: x.size // 5])]
    dy = rng.standard_normal(ops.conv(x, w, **options).shape).astype(dtype)
    return laid_out(dy, layout), laid_out(x, layout), w, b


def check(dy, x, w, b, options):
    y, (dx, dw, db) = ops.conv(x, w, b, **options), ops.conv_backward(dy, x, w, **options)
    expected, _ = rectify.forward(y)
    actual = rectified.conv(x, w, b, **options)
    assert actual.strides == y.strides
    assert_same_bits(actual.copy(order="C"), expected.copy(order="C"))
    found = rectified.conv_backward(dy, x, w, **options)
    assert found[0].strides == dx.strides
    for gradient, right in zip(found, (rectify.gradient(dx, x <= 0), dw, db)):
        assert_same_bits(gradient.copy(order="C"), right.copy(order="C"))


@pytest.mark.parametrize("case, layout", [*((case, "first") for case in CASES), (CASES[0], "last")], ids=str)
def test_in_passing(case, layout):
    check(*drawn(*case, layout=layout), case[2])


@pytest.mark.parametrize("host, dtype", [("AVX2", np.float32), ("SSE2", BFLOAT16)], ids=str)
def test_texts_on_numpy(host, dtype):
    with engine(MACHINES[host], plain=True), np.errstate(invalid="ignore"):
        for shape, filters in (((1, 9, 4, 3), 9), ((1, 1, 4, 17), 16)):
            case = shape, (filters, shape[1], 3, 3), dict(padding=1)
            check(*drawn(*case, dtype=dtype), case[2])


@pytest.mark.parametrize("end", [True, False], ids=["page after", "page before"])
def test_guard_pages(end):
    x_shape, w_shape, options = CASES[0]
    dy, x, w, b = drawn(x_shape, w_shape, options)
    g = geometry(x_shape, w_shape, **options)
    y, dx = (guarded(np.full(shape, np.nan, np.float32), end) for shape in (dy.shape, x_shape))
    winograd.forward_rectified(*(guarded(a, end) for a in (x, w, b)), g, y)
    assert_same_bits(y.copy(), rectified.conv(x, w, b, **options))
    winograd.input_gradient_rectified(*(guarded(a, end) for a in (dy, w, x)), g, dx)
    assert_same_bits(dx.copy(), rectified.conv_backward(dy, x, w, **options)[0])


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("size, stride, side", [(2, 2, 8), (2, 2, 13), (3, 2, 9)])
def test_pooling(size, stride, side, layout):
    rng = np.random.default_rng(0)
    x = laid_out(rng.integers(-3, 2, (2, 5, side, side)).astype(np.float32), layout)  # many windows of nothing positive
    x[0, 0, 0, 0] = np.nan
    y, winners = pooling.max_pool_winners(x, size, stride=stride)
    dy = rng.standard_normal(y.shape, dtype=np.float32)
    dx = pooling.max_pool_from_winners(dy, x, winners, size, stride=stride)
    found = pooling.max_pool_from_winners(dy, x, winners, size, stride=stride, rectified=y)
    assert np.array_equal(found, np.where(x <= 0, 0, dx))


def network(rng, *behind):
    def he(*shape):
        return rng.standard_normal(shape, np.float32), rng.standard_normal(shape[0], np.float32)

    w, b = he(7, 16 * 3 * 3)
    layers = [
        Convolution(*he(16, 16, 3, 3), pad=1),
        ReLU(),
        Convolution(*he(16, 16, 3, 3), pad=1),
        ReLU(),
        Pooling(2, 2),
    ]
    return [*layers, Affine(w.T.copy(), b), *behind]


def images(rng):
    return rng.standard_normal((2, 16, 7, 6), np.float32), rng.standard_normal((2, 7), np.float32)


def one_by_one(layers, x, dout):
    """Forward and backward without what a Sequential knows of neighbours."""
    for layer in layers:
        x = layer.forward(x)
    for layer in reversed(layers):
        dout = layer.backward(dout)
    return x, dout


def test_a_sequential_has_the_bits_of_its_layers():
    rng = np.random.default_rng(0)
    layers = network(rng, ReLU())
    alone, net = copy.deepcopy(layers), Sequential(layers)
    x, dout = images(rng)
    x[0, 0, 3, 3] = np.nan
    out, dx = one_by_one(alone, x, dout)
    assert_same_bits(net.forward(x), out)
    assert layers[1]._output is layers[2].x  # in passing
    assert_same_bits(net.backward(dout), dx)
    for mine, other in zip(layers, alone):
        for name, gradient in other.grads().items():
            assert_same_bits(mine.grads()[name], gradient)
        if isinstance(mine, ReLU):
            assert np.array_equal(mine.mask, other.mask)
        if isinstance(mine, Pooling):
            assert np.array_equal(mine.arg_max, other.arg_max)
    net.eval()
    assert_same_bits(net.forward(x), out)
    with pytest.raises(RuntimeError, match="inference"):
        net.backward(dout)


def test_layers_may_be_taken_back_one_by_one():
    """After a Sequential's forward, each layer's own backward gives what it gives alone."""
    rng = np.random.default_rng(1)
    layers = network(rng)
    alone = copy.deepcopy(layers)
    x, dout = images(rng)
    _, dx = one_by_one(alone, x, dout)
    Sequential(layers).forward(x)
    for layer in reversed(layers):
        dout = layer.backward(dout)
    assert_same_bits(dout, dx)


def test_without_dx_the_other_gradients_are_the_same():
    rng = np.random.default_rng(4)
    layers = network(rng)
    net, other = Sequential(layers), Sequential(copy.deepcopy(layers))
    x, dout = images(rng)
    assert_same_bits(net.forward(x), other.forward(x))
    assert other.backward(dout).shape == x.shape
    assert net.backward(dout, need_dx=False) is None
    for name, gradient in other.grads().items():
        assert_same_bits(net.grads()[name], gradient)
    net = Sequential(Affine(np.ones((2, 1)), None))
    assert net.backward(net.forward(np.ones((1, 2))), need_dx=False) is None
    assert net[0].dW.shape == (2, 1)
    with pytest.raises(TypeError, match="need_dx='no': expected True or False"):
        net.backward(np.ones((1, 1)), need_dx="no")


class Doubling(Convolution):
    def forward(self, x):
        return 2 * super().forward(x)


class Halving(ReLU):
    def backward(self, dout):
        return super().backward(dout) / 2


def test_what_is_no_plain_layer_is_asked_as_ever():
    """Subclasses, and layers whose methods were replaced, keep what they do; what may write into its input gets its own."""
    rng = np.random.default_rng(2)
    x, dout = images(rng)
    for place, kind in ((2, Doubling), (3, Halving)):
        layers = network(rng)
        layers[place].__class__ = kind
        alone = copy.deepcopy(layers)
        net = Sequential(layers)
        out, dx = one_by_one(alone, x, dout)
        assert_same_bits(net.forward(x), out)
        assert_same_bits(net.backward(dout), dx)
    layers = network(rng)
    calls = []
    for layer in layers[:2]:
        for name in ("forward", "backward"):
            method = getattr(layer, name)
            setattr(layer, name, lambda array, method=method, name=name: calls.append(name) or method(array))
    net = Sequential(layers)
    net.backward(np.ones_like(net.forward(x)))
    assert calls == ["forward"] * 2 + ["backward"] * 2


@pytest.mark.parametrize("kind", [Convolution, ReLU, Pooling, Affine])
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_class_whose_method_was_replaced_is_asked_as_ever(monkeypatch, kind, name):
    rng, calls, method = np.random.default_rng(6), [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda layer, array: calls.append(layer) or method(layer, array))
    x, dout = images(rng)
    net = Sequential(network(rng))
    net.forward(x)
    net.backward(dout)
    assert len(calls) == sum(type(layer) is kind for layer in net.layers) > 0


REPLACED = [*((place, "forward") for place in range(1, 6)), (2, "backward"), (4, "backward"), (5, "backward")]


@pytest.mark.parametrize("place, name", REPLACED)
def test_what_replaces_a_method_may_use_its_input_as_scratch(place, name):
    rng = np.random.default_rng(5)
    layers = network(rng)
    alone = copy.deepcopy(layers)
    for layer in (layers[place], alone[place]):
        method = getattr(layer, name)

        def scribbling(array, layer=layer, method=method):
            result = method(array)
            (array if name == "forward" else layer._saved[0])[...] = 1
            return result

        setattr(layer, name, scribbling)
    x, dout = images(rng)
    net = Sequential(layers)
    out, dx = one_by_one(alone, x, dout)
    assert_same_bits(net.forward(x), out)
    assert_same_bits(net.backward(dout), dx)


class InPlace(Layer):
    """Writes into its input."""

    def forward(self, x):
        x[...] = 1
        return x

    def backward(self, dout):
        return dout


@pytest.mark.parametrize("behind", [[], [Pooling(2, 2)], [Pooling(2, 2), InPlace()]], ids=len)
def test_an_output_that_others_may_write_to_tells_nothing(behind):
    rng = np.random.default_rng(6)
    layers = [*network(rng)[:2], *behind]
    alone = copy.deepcopy(layers)
    x, _ = images(rng)
    net = Sequential(layers)
    out = net.forward(x)
    dout = rng.standard_normal(out.shape, np.float32)
    _, dx = one_by_one(alone, x, dout)
    out[...] = 1
    assert np.array_equal(net[1].mask, alone[1].mask)
    assert_same_bits(net.backward(dout), dx)


def test_a_pooling_keeps_its_output_only_where_it_tells_something():
    x, _ = images(np.random.default_rng(7))
    for pooling_alone in (Pooling(2, 2), Sequential(ReLU(), Pooling(2, 2))):
        out = weakref.ref(pooling_alone.forward(x))
        assert out() is None


def test_what_a_layer_refuses_a_sequential_refuses():
    rng = np.random.default_rng(3)
    net = Sequential(network(rng))
    with pytest.raises(ValueError, match="second axis"):
        net.forward(np.ones((1, 3, 7, 6), np.float32))
    net[0].b = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"b has shape \(5,\); expected \(F,\) = \(16,\)"):
        net.forward(np.ones((1, 16, 7, 6), np.float32))
