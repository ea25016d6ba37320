"""gradcheck: it passes right gradients, and fails on each kind of wrong one."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

from konv.gradcheck import GradcheckResult, gradcheck
from konv.layers.activations import ReLU, Sigmoid
from konv.layers.affine import Affine
from konv.layers.base import Layer
from konv.layers.dropout import Dropout
from konv.layers.loss import SoftmaxWithLoss
from konv.layers.normalization import BatchNormalization
from konv.layers.sequential import Sequential


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def product(x, w):
    return x * w


def product_backward(dy, x, w):
    return dy * w, dy * x


X, W = normal(3, 4), normal(3, 4, seed=1)


# Right gradients pass


@pytest.mark.parametrize(
    ("function", "backward"),
    [
        (np.sin, lambda dy, x: dy * np.cos(x)),
        (np.exp, lambda dy, x: dy * np.exp(x)),
        (lambda x: x**5, lambda dy, x: dy * 5 * x**4),
        (lambda x: 1e4 * x, lambda dy, x: 1e4 * dy),
        (np.sum, lambda dy, x: np.full(x.shape, dy)),
        (lambda x: float(x.mean()), lambda dy, x: np.full(x.shape, dy / x.size)),
        (lambda x: np.cumsum(x, axis=1), lambda dy, x: np.cumsum(dy[:, ::-1], axis=1)[:, ::-1]),
        (lambda x: x.T @ x, lambda dy, x: x @ (dy + dy.T)),
        (lambda x: np.ones(3), lambda dy, x: np.zeros(x.shape)),
    ],
)
def test_right_gradients_of_functions_pass(function, backward):
    result = gradcheck(function, X, backward=backward)
    assert result, str(result)
    assert result.passed is True
    assert result.elements == X.size
    assert 0 <= result.worst.excess <= 0.5  # twice the room that is needed


def test_rounding_is_allowed_for_and_no_more():
    def far(x):  # eps * 1e6 / 6e-6 = 4e-5: that large are the differences' errors
        return 1e6 + x

    result = gradcheck(far, X, backward=lambda dy, x: dy)
    assert result, str(result)
    assert 1e-6 <= result.worst.difference <= 1e-4
    assert not gradcheck(far, X, backward=lambda dy, x: dy + 1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e12])
def test_the_step_follows_the_size_of_x(scale):
    result = gradcheck(lambda x: x**3, scale * X, backward=lambda dy, x: 3 * dy * x**2)
    assert result, str(result)


def test_several_inputs():
    result = gradcheck(product, X, W, backward=product_backward)
    assert result
    assert [array.name for array in result.arrays] == ["x", "w"]
    assert result.elements == 24


def test_none_leaves_an_input_out():
    result = gradcheck(product, X, W, backward=lambda dy, x, w: (None, dy * x))
    assert result
    assert [array.name for array in result.arrays] == ["w"]


def test_what_is_no_float_array_is_handed_on():
    def take(x, index, factor, mode):
        assert (type(factor), mode) == (float, None)
        return factor * x[index]

    def take_backward(dy, x, index, factor, mode):
        dx = np.zeros_like(x)
        np.add.at(dx, index, factor * dy)
        return dx

    result = gradcheck(take, X, np.array([0, 0, 2]), 2.5, None, backward=take_backward)
    assert result, str(result)
    assert result.elements == 12


def test_a_tuple_of_outputs():
    def both(x):
        return x**2, x.sum()

    assert gradcheck(both, X, backward=lambda dy, dtotal, x: 2 * dy * x + dtotal)
    assert not gradcheck(both, X, backward=lambda dy, dtotal, x: 2 * dy * x)


class Running(Layer):
    """y = cumulative sum of x after an optional past; the second output is the state to go on from."""

    def forward(self, x, past=None):
        start = np.zeros(x.shape[1]) if past is None else past
        y = start + np.cumsum(x, axis=0)
        self._remember(x.shape)
        return y, 3 * y[-1]

    def backward(self, dy, dstate):
        self._recall()
        dy = dy.copy()
        dy[-1] += 3 * dstate
        dx = np.cumsum(dy[::-1], axis=0)[::-1]
        return dx, dx[0]


def test_a_layer_with_state_going_in_and_out():
    result = gradcheck(Running(), X, normal(4, seed=2))
    assert result, str(result)
    assert [array.name for array in result.arrays] == ["x", "past"]
    assert gradcheck(Running(), X)  # the optional input left out, its gradient returned all the same

    class Forgetful(Running):
        def backward(self, dy, dstate):
            return super().backward(dy, 0 * dstate)

    assert not gradcheck(Forgetful(), X, normal(4, seed=2))


def test_konvs_causal_convolution():
    from konv.layers.causal import CausalConv1d

    layer = CausalConv1d(normal(2, 3, 3, seed=1), normal(2, seed=2), dilation=2)
    result = gradcheck(layer, normal(2, 3, 5), normal(2, 3, 4, seed=3))
    assert result, str(result)
    assert [array.name for array in result.arrays] == ["x", "past_state", "W", "b"]


def test_konvs_convolution():
    from konv.layers.convolution import Convolution

    result = gradcheck(Convolution(normal(4, 3, 3, 2), normal(4), 2, 1), normal(2, 3, 5, 4, seed=1))
    assert result, str(result)


@pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")
def test_konvs_downconv_whose_parameters_are_in_its_parts():
    from konv.layers.downconv import DownConv

    layer = DownConv(seq_len=12, hidden_size=4, m_segments=2, k1=3, channel_reduction=2, rng=0)
    result = gradcheck(layer, normal(2, 12, 4))
    assert result, str(result)
    assert len(result.arrays) == 5
    assert layer.conv1a.W.dtype == np.float32


# The classes of the book, as a reader has them: no params(), no base class, and a backward that writes into dout


class BooksAffine:
    def __init__(self, W, b):
        self.W, self.b, self.x, self.dW, self.db = W, b, None, None, None

    def forward(self, x):
        self.x = x
        return np.dot(x, self.W) + self.b

    def backward(self, dout):
        self.dW, self.db = np.dot(self.x.T, dout), np.sum(dout, axis=0)
        return np.dot(dout, self.W.T)


class BooksRelu:
    def forward(self, x):
        self.mask = x <= 0
        return np.where(self.mask, 0.0, x)

    def backward(self, dout):
        dout[self.mask] = 0
        return dout


def test_the_books_classes():
    layer = BooksAffine(normal(4, 2, seed=1).astype(np.float32), normal(2, seed=2))
    result = gradcheck(layer, X)
    assert result, str(result)
    assert [array.name for array in result.arrays] == ["x", "W", "b"]
    assert layer.W.dtype == np.float32
    assert layer.dW is None
    assert gradcheck(BooksRelu(), X)


# Wrong gradients fail


def test_one_wrong_element_is_found_and_named():
    def backward(dy, x, w):
        dx, dw = dy * w, dy * x
        dw[1, 2] += 1e-5
        return dx, dw

    result = gradcheck(product, X, W, backward=backward)
    assert not result
    assert result.passed is False
    worst = result.worst
    assert (worst.array, worst.index) == ("w", (1, 2))
    assert abs(worst.analytical - worst.numerical - 1e-5) <= 1e-9
    assert worst.difference == abs(worst.numerical - worst.analytical)
    assert 1 <= worst.tolerance / (1e-8 + 1e-6 * abs(worst.numerical)) <= 1.01  # and some rounding
    assert [array.passed for array in result.arrays] == [True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_in_the_gradient_never_pass(bad):
    def backward(dy, x, w):
        dx, dw = dy * w, dy * x
        dx[0, 3] = bad
        dw[0, 0] += 1  # a wrong number beside it is not the worst
        return dx, dw

    result = gradcheck(product, X, W, backward=backward, rtol=1e300, atol=1e300)
    assert not result
    assert (result.worst.array, result.worst.index) == ("x", (0, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_in_the_function_never_pass(bad):
    def function(x, w):
        return np.where(x == x[1, 1], bad, x) * w

    x = X.copy()
    result = gradcheck(function, x, W, backward=product_backward)
    assert not result
    assert not math.isfinite(result.worst.numerical)

    x[1, 1] = bad
    result = gradcheck(product, x, W, backward=product_backward)
    assert not result
    assert not math.isfinite(result.worst.numerical)


def test_infinite_on_both_sides_does_not_pass():
    # |inf - inf| is NaN, and a tolerance relative to inf is inf.
    with np.errstate(all="ignore"):
        result = gradcheck(lambda x: 1e300 * x * 1e300, X, backward=lambda dy, x: np.full(x.shape, math.inf))
    assert not result


def test_a_jump_to_infinity_does_not_pass():
    # The difference and the tolerance relative to it are both infinite.
    result = gradcheck(lambda x: np.where(x > 0, math.inf, 0.0), np.zeros(2), backward=lambda dy, x: dy)
    assert not result
    assert math.isinf(result.worst.numerical)
    assert math.isinf(result.worst.difference)


def test_a_backward_that_doubles_dout_in_place_fails():
    class Doubles:
        def forward(self, x):
            return x.copy()

        def backward(self, dout):
            dout *= 2
            return dout

    assert not gradcheck(Doubles(), X)


def test_a_swapped_pair_fails():
    assert not gradcheck(product, X, W, backward=lambda dy, x, w: (dy * x, dy * w))


def forgetting(layer):
    """A class of layers that has no gradient of b after backward."""

    class Forgets(layer):
        def backward(self, dout):
            dx = super().backward(dout)
            self.db = None
            return dx

    return Forgets


def test_a_missing_or_misshapen_gradient_fails_and_is_named():
    result = gradcheck(forgetting(BooksAffine)(normal(4, 2), normal(2)), X)
    assert not result
    assert result.worst.array == "b"
    assert "no gradient" in str(result.worst)
    assert "no gradient" in str(result)

    class Flat(BooksAffine):
        def backward(self, dout):
            dx = super().backward(dout)
            self.dW = self.dW.ravel()
            return dx

    result = gradcheck(Flat(normal(4, 2), normal(2)), X)
    assert not result
    assert "shape (8,), the array (4, 2)" in str(result)

    class Swaps(BooksAffine):
        def backward(self, dout):
            dx = super().backward(dout)
            self.dW, self.db = self.db, self.dW
            return dx

    assert not gradcheck(Swaps(normal(4, 2), normal(2)), X)


def test_a_missing_gradient_of_a_konv_layer_fails():
    result = gradcheck(forgetting(Affine)(normal(4, 2), normal(2)), X)
    assert not result
    assert result.worst.array == "b"


def test_a_gradient_in_float32_fails():
    result = gradcheck(product, X, W, backward=lambda dy, x, w: ((dy * w).astype(np.float32), dy * x))
    assert not result
    assert "float32" in str(result.worst)


def test_a_wrong_parameter_gradient_in_a_network_is_named():
    class Wrong(Affine):
        def backward(self, dout):
            dx = super().backward(dout)
            self.dW = 2 * self.dW
            return dx

    net = Sequential(Affine(normal(4, 3), normal(3)), Sequential(Sigmoid(), Wrong(normal(3, 2), normal(2))))
    result = gradcheck(net, X)
    assert not result
    assert result.worst.array == "1.1.W"
    assert [a.name for a in result.arrays if not a.passed] == ["1.1.W"]


def test_half_a_gradient_of_a_shared_array_fails():
    shared, bias = normal(4, 4), normal(4, seed=1)
    right = Sequential(Affine(shared, bias), Sigmoid(), Affine(shared, bias))
    result = gradcheck(right, X)
    assert result, str(result)
    assert [array.name for array in result.arrays] == ["x", "0.W = 2.W", "0.b = 2.b"]

    class Half(Affine):
        def backward(self, dout):
            dx = super().backward(dout)
            self.dW = 0 * self.dW
            return dx

    assert not gradcheck(Sequential(Affine(shared, bias), Sigmoid(), Half(shared, bias)), X)


def test_the_forgotten_constant_of_a_batch_normalization_is_seen():
    class Forgets(BatchNormalization):
        def backward(self, dout):
            dx = super().backward(dout)
            return dx * (1 + 1e-5)

    assert gradcheck(BatchNormalization(np.ones(4), np.zeros(4)), X)
    assert not gradcheck(Forgets(np.ones(4), np.zeros(4)), X)


# The layer stays as it is


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_layer_and_the_inputs_are_not_touched(dtype):
    norm = BatchNormalization(np.ones(4, dtype), np.zeros(4, dtype))
    net = Sequential(norm, Affine(normal(4, 3).astype(dtype), normal(3).astype(dtype)))
    x = X.astype(dtype)
    x.flags.writeable = False
    arrays, before = {**net.params(), **net.buffers()}, net.state_dict()
    y = net.forward(np.ones((2, 4), dtype))
    before = net.state_dict()
    result = gradcheck(net, x)
    assert result, str(result)
    for name, array in {**net.params(), **net.buffers()}.items():
        assert array is arrays[name]
        assert np.array_equal(array, before[name])
    assert net.grads()["1.W"] is None
    net.backward(np.zeros_like(y))  # the forward before is still the one that backward belongs to


def test_the_layer_is_not_touched_by_an_exception():
    class Fails(Affine):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 5:
                raise ZeroDivisionError
            return super().forward(x)

    layer = Fails(normal(4, 2).astype(np.float32), normal(2))
    W, before = layer.W, layer.W.copy()
    with pytest.raises(ZeroDivisionError):
        gradcheck(layer, X)
    assert layer.W is W
    assert np.array_equal(W, before)
    assert (layer.calls, layer.x, layer.dW) == (0, None, None)


# Budget, seed, result


def test_a_budget_of_elements():
    x = normal(30, 30)
    result = gradcheck(np.sin, x, backward=lambda dy, x: dy * np.cos(x), max_elements=50)
    assert (result.elements, result.arrays[0].checked, result.arrays[0].size) == (50, 50, 900)

    def one_wrong(dy, x):
        dx = dy * np.cos(x)
        dx[7, 7] += 1
        return dx

    verdicts = [bool(gradcheck(np.sin, x, backward=one_wrong, max_elements=450, seed=seed)) for seed in range(12)]
    assert set(verdicts) == {True, False}  # half of the elements: drawn anew by each seed
    assert not gradcheck(np.sin, x, backward=one_wrong)


def test_the_same_seed_gives_the_same_result():
    first, second, third = (gradcheck(product, X, W, backward=product_backward, seed=s) for s in (1, 1, 2))
    assert first == second
    assert first.worst.numerical != third.worst.numerical


def test_the_result_is_frozen_and_readable():
    result = gradcheck(Affine(normal(4, 2), normal(2)), X)
    assert isinstance(result, GradcheckResult)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.passed = False
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines] == ["array", "x", "W", "b", "gradients"]
    assert "12 of 12" in lines[1]
    assert lines[1].endswith("ok")
    assert lines[-1].startswith("gradients agree (22 elements); worst: ")
    wrong = gradcheck(product, X, W, backward=lambda dy, x, w: (dy * w, 0 * x))
    lines = str(wrong).splitlines()
    assert lines[1].endswith("ok")
    assert lines[2].endswith("WRONG")
    assert lines[-1].startswith("gradients differ (24 elements); worst: w[")


def test_a_kink_is_where_numbers_mean_nothing():
    assert not gradcheck(ReLU(), np.array([0.0, 1.0, -1.0]))
    assert gradcheck(ReLU(), np.array([0.5, 1.0, -1.0]))


# What cannot be checked


def test_random_layers_are_refused_with_the_way_out():
    for layer in (Dropout(0.5), Sequential(Affine(normal(4, 3), normal(3)), Dropout(0.5))):
        with pytest.raises(ValueError, match=r"two calls of forward .* differ.*Dropout.*seed.*layer\.rng = 0"):
            gradcheck(layer, normal(20, 4))


def test_a_layer_in_inference_mode_is_refused():
    with pytest.raises(RuntimeError, match=r"inference mode.*train\(\)"):
        gradcheck(Affine(normal(4, 2), normal(2)).eval(), X)


def test_writing_into_an_input_is_refused():
    class Writes(BooksRelu):
        def forward(self, x):
            x[x < 0] = 0
            return super().forward(x)

    with pytest.raises(ValueError, match="writes into its input x"):
        gradcheck(Writes(), X)


class Int:
    def __init__(self):
        self.W = np.zeros(2, np.int64)

    def forward(self, x):
        return x

    def backward(self, dout):
        return dout

    def params(self):
        return {"W": self.W}

    def grads(self):
        return {"W": self.W}


class Hidden(Int):
    def params(self):
        return {"W": np.zeros(2)}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((3, X), {}, TypeError, "function must be a function or a layer .* got int"),
        ((np.sin, X), {}, TypeError, "a function needs backward="),
        ((ReLU, X), {}, TypeError, r"function is the class ReLU.*ReLU\(\.\.\.\)"),
        ((ReLU(), X), {"backward": np.sin}, TypeError, "ReLU has a backward of its own"),
        ((np.sin, X.astype(complex)), {"backward": np.sin}, TypeError, "complex128"),
        ((Int(), X), {}, TypeError, "parameter 'W' is no float array"),
        ((Hidden(), X), {}, TypeError, "parameter 'W' could not be put in float64"),
        ((lambda x: x.astype(np.float32), X), {"backward": lambda dy, x: dy}, TypeError, "forward returned float32"),
        ((np.sign, np.arange(3)), {"backward": lambda dy, x: dy}, TypeError, "forward returned int64"),
        ((lambda n: np.ones(n), 3), {"backward": lambda dy, n: None}, ValueError, "nothing to check"),
        ((np.sin, np.zeros((0, 3))), {"backward": lambda dy, x: dy}, ValueError, "nothing to check"),
        (
            (product, X, W),
            {"backward": lambda dy, x, w: dy * w},
            ValueError,
            r"returned 1 gradients for 2 inputs \(x, w\)",
        ),
        ((product, X, W), {"backward": lambda dy, x, w: (dy, dy, dy)}, ValueError, "returned 3 gradients for 2"),
        ((SoftmaxWithLoss(), X[:, :3], np.eye(3)), {}, ValueError, "Labels are passed as integers"),
        ((np.sin, X), {"backward": np.cos, "rtol": -1.0}, ValueError, "rtol must be finite and >= 0, got -1"),
        ((np.sin, X), {"backward": np.cos, "atol": math.nan}, ValueError, "atol .* got nan"),
        ((np.sin, X), {"backward": np.cos, "eps": 0.0}, ValueError, "eps must be finite and > 0"),
        ((np.sin, X), {"backward": np.cos, "eps": "small"}, TypeError, "eps must be a number, got str"),
        ((np.sin, X), {"backward": np.cos, "max_elements": 0}, ValueError, "max_elements must be >= 1, got 0"),
        ((np.sin, X), {"backward": np.cos, "max_elements": 2.0}, TypeError, "max_elements must be an int, got float"),
    ],
)
def test_arguments_are_checked(arguments, options, error, words):
    with pytest.raises(error, match=words):
        gradcheck(*arguments, **options)
