"""Sequential."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import konv
from konv.gradcheck import gradcheck
from konv.layers.activations import ReLU, Sigmoid
from konv.layers.affine import Affine
from konv.layers.base import Layer
from konv.layers.dropout import Dropout
from konv.layers.loss import SoftmaxWithLoss
from konv.layers.sequential import Sequential
from layer_cases import LAYERS, affine, batch_normalization, close, normal


class Recorder:
    """Neither derived from Layer nor with any parameters: forward and backward are all that is needed."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def forward(self, x):
        self.log.append(f"forward {self.name}")
        return x

    def backward(self, dout):
        self.log.append(f"backward {self.name}")
        return dout


def test_sequential_runs_in_order_and_back():
    log = []
    net = Sequential(Recorder("a", log), Sequential([Recorder("b", log)]), Recorder("c", log))
    net.backward(net.forward(np.ones(1)))
    assert log == ["forward a", "forward b", "forward c", "backward c", "backward b", "backward a"]
    assert net.params() == net.grads() == net.buffers() == {}
    net.eval()


def test_sequential_names_nested_parameters_and_buffers():
    inner = Sequential(affine(), batch_normalization())
    net = Sequential([ReLU(), affine(), inner])
    assert list(net.params()) == ["1.W", "1.b", "2.0.W", "2.0.b", "2.1.gamma", "2.1.beta"]
    assert list(net.buffers()) == ["2.1.running_mean", "2.1.running_var"]
    assert net.params()["2.0.W"] is inner[0].W
    assert set(net.grads()) == set(net.params())
    assert set(net.state_dict()) == set(net.params()) | set(net.buffers())
    with pytest.raises(KeyError, match=r"2\.0\.W"):
        net.load_state_dict({name: a for name, a in net.state_dict().items() if name != "2.0.W"})


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (np.full(4, "a"), TypeError, r"state\['1\.beta'\] has dtype <U1, not of real numbers"),
        (np.full(4, None), TypeError, "dtype object"),
        (np.full(4, 1j), TypeError, "dtype complex128"),
        (np.zeros(4, "M8[s]"), TypeError, "datetime64"),
        (np.zeros(4, [("a", float)]), TypeError, "not of real numbers"),
        ([[1.0], [2.0, 3.0]], ValueError, "inhomogeneous"),
    ],
    ids=["text", "objects", "complex", "dates", "structure", "ragged"],
)
def test_a_state_that_cannot_be_converted_is_refused_before_anything_is_written(last, error, words):
    net = Sequential(affine(), batch_normalization())
    before = net.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    beta = next(name for name in state if name.endswith("beta"))
    last = np.resize(last, before[beta].shape) if isinstance(last, np.ndarray) else last
    with pytest.raises(error, match=words):
        net.load_state_dict({**state, beta: last})
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


@pytest.mark.parametrize("state", [None, ["0.W"], "0.W"])
def test_a_state_that_is_no_dict_is_refused(state):
    with pytest.raises(TypeError, match=f"state must be a dict of arrays by name, got {type(state).__name__}"):
        Sequential(affine()).load_state_dict(state)


def test_a_state_for_a_read_only_parameter_is_refused_before_anything_is_written():
    net = Sequential(affine(), batch_normalization())
    net.layers[1].beta = np.broadcast_to(net.layers[1].beta[:1], net.layers[1].beta.shape)
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"the layer's '1\.beta' is read-only"):
        net.load_state_dict({name: array + 1 for name, array in before.items()})
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


@pytest.mark.parametrize("mode", ["no", 0, None])
def test_a_mode_that_is_no_flag_is_refused(mode):
    for layer in (affine(), Sequential(affine()), konv.DownConv()):
        with pytest.raises(TypeError, match=f"mode={mode!r}: expected True or False"):
            layer.train(mode)
        assert layer.training
        assert not layer.train(np.bool_(False)).training


def test_a_layer_of_several_outputs_is_refused_by_name():
    W, x = normal(3, 2, 4), normal(2, 2, 9)
    with pytest.raises(
        TypeError, match=r"layer 1, a CausalConv1d, returned 2 values.*Convolution\(W, b, pad='causal'\)"
    ):
        Sequential(ReLU(), konv.CausalConv1d(W, None), ReLU()).forward(x)
    whole, _ = konv.CausalConv1d(W, None).forward(x)
    assert np.allclose(Sequential(konv.Convolution(W, None, pad="causal")).forward(x), whole, rtol=1e-12, atol=1e-12)


def test_sequential_modes_reach_every_layer():
    dropout = Dropout(0.5, rng=0)
    net = Sequential(ReLU(), Sequential(dropout))
    assert net.eval() is net
    assert not dropout.training
    assert net.train() is net
    assert dropout.training


def test_sequential_is_a_sequence():
    first, second, third = ReLU(), affine(), Sigmoid()
    net = Sequential(first, second, third)
    assert len(net) == 3
    assert list(net) == [first, second, third]
    assert net[1] is second
    assert net[-1] is third
    assert list(net[:2]) == [first, second]
    assert isinstance(net[:2], Sequential)
    assert len(Sequential()) == len(Sequential([])) == 0
    assert len(Sequential(layer for layer in (first, second))) == 2
    with pytest.raises(IndexError):
        net[3]


def test_sequential_like_pytorch():
    x, labels = normal(9, 6), np.arange(9) % 4
    net, loss = LAYERS["Sequential"](), SoftmaxWithLoss()
    norm, linear = torch.nn.BatchNorm1d(6, eps=1e-6).double(), torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        for theirs, ours in [
            (norm.weight, net[0].gamma),
            (norm.bias, net[0].beta),
            (linear.weight, net[2].W.T),
            (linear.bias, net[2].b),
        ]:
            theirs.copy_(torch.from_numpy(ours.copy()))
    x_tensor = torch.from_numpy(x).requires_grad_()
    value = F.cross_entropy(torch.sigmoid(linear(torch.relu(norm(x_tensor)))), torch.from_numpy(labels))
    value.backward()
    assert loss.forward(net.forward(x), labels) == pytest.approx(value.item(), rel=1e-14)
    close(net.backward(loss.backward()), x_tensor.grad.numpy(), 1e-15)
    grads = net.grads()
    for name, theirs in [
        ("0.gamma", norm.weight.grad),
        ("0.beta", norm.bias.grad),
        ("2.W", linear.weight.grad.T),
        ("2.b", linear.bias.grad),
    ]:
        close(grads[name], theirs.numpy(), 1e-15)


def test_one_layer_at_two_places_is_refused():
    relu = ReLU()
    with pytest.raises(ValueError, match=r"layers 0 and 2 are the same ReLU object.*one input"):
        Sequential(relu, affine(), relu)
    with pytest.raises(ValueError, match=r"layers 0 and 1\.0 are the same"):
        Sequential(relu, Sequential(relu))
    inner = Sequential(ReLU())
    with pytest.raises(ValueError, match=r"layers 0 and 1 are the same Sequential"):
        Sequential(inner, inner)


def test_two_layers_may_share_their_arrays():
    W, b = normal(3, 3), normal(3, seed=1)
    net = Sequential(Affine(W, b), ReLU(), Affine(W, b))
    assert net.params()["0.W"] is net.params()["2.W"]
    result = gradcheck(net, normal(2, 3, seed=2))
    assert result, str(result)
    assert [array.name for array in result.arrays] == ["x", "0.W = 2.W", "0.b = 2.b"]


class BooksAffine:
    """A layer as the book writes it: W and dW, no params()."""

    def __init__(self, W):
        self.W, self.dW, self.x = W, None, None

    def forward(self, x):
        self.x = x
        return x @ self.W

    def backward(self, dout):
        self.dW = self.x.T @ dout
        return dout @ self.W.T


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ReLU(), np.tanh), "layer 1 is a ufunc without forward"),
        ((torch.nn.ReLU(),), "layer 0 is a ReLU without backward"),
        ((ReLU,), r"layer 0 is the class ReLU.*ReLU\(\.\.\.\)"),
        ((None,), "layer 0 is a NoneType"),
        (([ReLU(), 3],), "layer 1 is a int"),
        ((BooksAffine(np.eye(2)),), r"layer 0 is a BooksAffine with parameters \['W'\] but without params\(\)"),
    ],
)
def test_what_is_no_layer_is_refused(arguments, words):
    with pytest.raises(TypeError, match=words):
        Sequential(*arguments)


def test_every_layer_is_a_layer():
    for make in LAYERS.values():
        assert isinstance(make(), Layer)
