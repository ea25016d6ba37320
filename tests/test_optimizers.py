"""SGD, Momentum and Adam."""

import copy
import io
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

from konv.engine import adam
from konv.layers.affine import Affine
from konv.layers.optimizers import SGD, Adam, Momentum
from konv.layers.sequential import Sequential
from plain_engine import MACHINES, engine

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
OPTIMIZERS = {"SGD": SGD, "Momentum": Momentum, "Adam": Adam}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def gradients(step, dtype=np.float64):
    rng = np.random.default_rng(step)
    return {"W": rng.standard_normal((3, 4)).astype(dtype), "b": rng.standard_normal(4).astype(dtype)}


def parameters(dtype=np.float64):
    return gradients(1000, dtype)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (Momentum(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),  # the same while lr is constant
        (Adam(0.1, 0.8, 0.95), lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.95), eps=1e-8)),
    ],
    ids=["SGD", "Momentum", "Adam"],
)
def test_like_pytorch(ours, theirs):
    params = parameters()
    tensors = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in params.items()}
    optimizer = theirs(tensors.values())
    for step in range(20):
        grads = gradients(step)
        ours.update(params, grads)
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[name])
        optimizer.step()
    for name, tensor in tensors.items():
        # 20 steps of a size below 1, each rounded a few times
        difference = np.abs(params[name] - tensor.detach().numpy())
        assert (difference <= 20 * 8 * 2.2e-16).all()


def test_formulas_by_hand():
    params, grads = {"W": np.array([1.0, -2.0])}, {"W": np.array([4.0, 8.0])}
    SGD(lr=0.25).update(params, grads)
    assert np.array_equal(params["W"], [0, -4])

    momentum = Momentum(lr=0.25, momentum=0.5)
    momentum.update(params, grads)
    assert np.array_equal(momentum.v["W"], [-1, -2])
    assert np.array_equal(params["W"], [-1, -6])
    momentum.update(params, grads)
    assert np.array_equal(momentum.v["W"], [-1.5, -3])
    assert np.array_equal(params["W"], [-2.5, -9])

    adam, params = Adam(lr=0.5), {"W": np.array([1.0, -2.0])}
    m = v = np.zeros(2)
    expected = params["W"].copy()
    for t in range(1, 6):
        adam.update(params, grads)
        m = 0.9 * m + 0.1 * grads["W"]
        v = 0.999 * v + 0.001 * grads["W"] ** 2
        expected -= 0.5 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert (np.abs(params["W"] - expected) <= 1e-14).all()
    assert adam.iter == 5
    assert (np.abs(adam.m["W"] - m) <= 1e-14).all()
    assert (np.abs(adam.v["W"] - v) <= 1e-14).all()


def test_adams_constant_stands_outside_the_corrected_root():
    # A gradient of the constant's size: the paper's first step is lr * g / (g + 1e-8), half of lr.
    params = {"W": np.array([0.0])}
    Adam(lr=1.0).update(params, {"W": np.array([1e-8])})
    assert abs(params["W"][0] + 0.5) <= 1e-12


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(make, dtype):
    params, wide, optimizer, reference = parameters(dtype), parameters(), make(), make()
    for step in range(5):
        optimizer.update(params, gradients(step, dtype))
        reference.update(wide, gradients(step))
    for name, array in params.items():
        assert array.dtype == dtype
        # a rounding of a parameter of size < 4 in each step, and in the beginning
        difference = np.abs(array.astype(np.float64) - wide[name])
        assert (difference <= 6 * 4 * float(ml_dtypes.finfo(dtype).eps)).all()
    wide_enough = np.float64 if dtype == np.float64 else np.float32
    for key, state in optimizer.state_dict().items():
        assert key == "iter" or state.dtype == wide_enough


@every
def test_gradients_of_another_dtype_are_taken(make):
    params = parameters(np.float32)
    make().update(params, gradients(0, np.float64))
    assert params["W"].dtype == np.float32


@every
def test_a_numpy_float_as_lr_keeps_float32(make):
    params = parameters(np.float32)
    expected = copy.deepcopy(params)
    grads = gradients(0, np.float32)
    optimizer = make(lr=np.float64(0.01))
    optimizer.update(params, grads)
    make(lr=0.01).update(expected, grads)
    assert type(optimizer.lr) is float
    for name, array in params.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, expected[name])


@every
def test_update_is_in_place_so_that_layers_see_it(make):
    net = Sequential(Affine(*parameters().values()))
    W = net[0].W
    before = W.copy()
    y = net.forward(np.ones((2, 3)))
    net.backward(np.ones_like(y))
    grads = {name: gradient.copy() for name, gradient in net.grads().items()}
    make().update(net.params(), net.grads())
    assert net[0].W is W
    assert not np.isin(W, before).any()
    for name, gradient in net.grads().items():
        assert np.array_equal(gradient, grads[name])


@every
def test_views_and_foreign_byte_order_are_updated_in_place(make):
    grads = gradients(0)
    expected = parameters()
    make().update(expected, grads)
    parent = np.full((6, 8), 7.0)
    parent[::2, ::2] = parameters()["W"]
    swapped = parameters()["b"].astype(">f8")
    make().update({"W": parent[::2, ::2], "b": swapped}, grads)
    assert np.array_equal(parent[::2, ::2], expected["W"])
    assert (parent[1::2] == 7).all()
    assert (parent[:, 1::2] == 7).all()
    assert np.array_equal(swapped, expected["b"])


@every
def test_one_array_under_two_names_is_updated_once_with_the_sum(make):
    W, other = parameters()["W"], parameters()["W"]
    first, second = gradients(0)["W"], gradients(1)["W"]
    tied, single = make(), make()
    for _ in range(3):
        tied.update({"0.W": W, "2.W": W[:]}, {"0.W": first, "2.W": second})
        single.update({"W": other}, {"W": first + second})
    assert np.array_equal(W, other)


@every
def test_empty_parameters_are_no_ties(make):
    empty = np.zeros((0, 3))
    optimizer = make()
    optimizer.update({"a": empty, "b": empty[:]}, {"a": empty, "b": empty})
    optimizer.update({"a": empty, "b": np.zeros((0, 3))}, {"a": empty, "b": empty})


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resume_gives_the_same_bits(make, dtype):
    params, optimizer = parameters(dtype), make()
    for step in range(3):
        optimizer.update(params, gradients(step, dtype))
    file = io.BytesIO()
    np.savez(file, **optimizer.state_dict())
    file.seek(0)
    saved_params = copy.deepcopy(params)
    resumed = make()
    resumed.load_state_dict(np.load(file))
    assert resumed.iter == optimizer.iter == 3
    for step in range(3, 6):
        optimizer.update(params, gradients(step, dtype))
        resumed.update(saved_params, gradients(step, dtype))
    for name, array in params.items():
        assert np.array_equal(array, saved_params[name])
    for key, array in optimizer.state_dict().items():
        assert np.array_equal(array, resumed.state_dict()[key])


@every
def test_state_is_copied_both_ways(make):
    params, optimizer = parameters(), make()
    optimizer.update(params, gradients(0))
    state = optimizer.state_dict()
    other = make()
    other.load_state_dict(state)
    for array in state.values():
        array[...] = 9
    fresh = optimizer.state_dict()
    for key, array in other.state_dict().items():
        assert np.array_equal(array, fresh[key])
        assert not (array == 9).any()


@every
def test_pickle(make):
    params, optimizer = parameters(), make(lr=0.5)
    optimizer.update(params, gradients(0))
    twin, twin_params = pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(params)
    optimizer.update(params, gradients(1))
    twin.update(twin_params, gradients(1))
    assert np.array_equal(params["W"], twin_params["W"])


@every
def test_lr_may_change_between_updates(make):
    params, optimizer = parameters(), make(lr=0.1)
    optimizer.lr = 0
    before = params["b"].copy()
    optimizer.update(params, gradients(0))
    assert np.array_equal(params["b"], before)
    optimizer.lr = 0.1
    optimizer.update(params, gradients(0))
    assert (params["b"] != before).any()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: SGD(-0.1), ValueError, r"lr must be >= 0 and finite, got -0\.1"),
        (lambda: SGD(math.nan), ValueError, "lr .* got nan"),
        (lambda: Adam(math.inf), ValueError, "lr .* got inf"),
        (lambda: Momentum("0.1"), TypeError, "lr must be a number, got str"),
        (lambda: SGD(None), TypeError, "got NoneType"),
        (lambda: SGD(True), TypeError, "got bool"),
        (lambda: Momentum(0.1, 1), ValueError, "momentum must be >= 0 and < 1, got 1"),
        (lambda: Momentum(0.1, -0.5), ValueError, r"momentum .* got -0\.5"),
        (lambda: Adam(0.1, 1.0), ValueError, r"beta1 must be >= 0 and < 1, got 1\.0"),
        (lambda: Adam(0.1, 0.9, 1.5), ValueError, r"beta2 .* got 1\.5"),
        (lambda: setattr(SGD(0.1), "lr", -1), ValueError, "lr .* got -1"),
        (lambda: setattr(Adam(), "beta1", "x"), TypeError, "beta1"),
    ],
)
def test_settings_are_checked(make, error, words):
    with pytest.raises(error, match=words):
        make()


def readonly(array):
    array.flags.writeable = False
    return array


@every
@pytest.mark.parametrize(
    ("params", "grads", "error", "words"),
    [
        ({}, {"b": None}, KeyError, r"no gradient of parameter 'W'.*\['b'\]"),
        ({}, {"W": None, "b": np.zeros(4)}, TypeError, r"grads\['W'\] is None: backward has not run"),
        ({}, {"W": np.zeros((4, 3)), "b": np.zeros(4)}, ValueError, r"\['W'\] has shape \(4, 3\), .* \(3, 4\)"),
        ({}, {"W": np.zeros((3, 4), int), "b": np.zeros(4)}, TypeError, r"grads\['W'\] .*int64"),
        ({}, {"W": 0.0, "b": np.zeros(4)}, TypeError, r"grads\['W'\]=0.0: expected a NumPy array"),
        ({"c": np.zeros(2, int)}, {"c": np.zeros(2)}, TypeError, r"params\['c'\] .*int64"),
        ({"c": [1.0]}, {"c": np.zeros(1)}, TypeError, r"params\['c'\] is a list"),
        ({"c": readonly(np.zeros(2))}, {"c": np.zeros(2)}, ValueError, r"params\['c'\] is read-only"),
    ],
)
def test_arrays_are_checked_and_nothing_is_changed_by_an_error(make, params, grads, error, words):
    params = {**parameters(), **params}
    if "W" not in grads and "b" not in grads:
        grads = {**gradients(0), **grads}
    optimizer = make()
    optimizer.update(parameters(), gradients(0))
    if "c" in params:
        optimizer = make()
    before = {key: array.copy() for key, array in optimizer.state_dict().items()}
    with pytest.raises(error, match=words):
        optimizer.update(params, grads)
    for name, array in parameters().items():
        assert np.array_equal(params[name], array)
    for key, array in optimizer.state_dict().items():
        assert np.array_equal(array, before[key])


@pytest.mark.parametrize("make", [Momentum, Adam])
def test_one_optimizer_for_one_set_of_parameters(make):
    optimizer = make()
    params = parameters()
    optimizer.update(params, gradients(0))
    with pytest.raises(KeyError, match=r"no state for \['c'\].*for \[\].*one optimizer for each set"):
        optimizer.update({**params, "c": np.zeros(1)}, {**gradients(0), "c": np.zeros(1)})
    with pytest.raises(KeyError, match=r"no state for \[\].*for \['b'\]"):
        optimizer.update({"W": params["W"]}, gradients(0))
    with pytest.raises(ValueError, match=r"params\['b'\] has shape \(2,\).* has shape \(4,\)"):
        optimizer.update({**params, "b": np.zeros(2)}, {**gradients(0), "b": np.zeros(2)})
    with pytest.raises(ValueError, match=r"params\['W'\] .*state of float32.*is float64"):
        optimizer.update(parameters(np.float32), gradients(0, np.float32))
    assert optimizer.iter == 1


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({}, KeyError, "no 'iter'"),
        ({"iter": -1}, ValueError, "iter.* >= 0, got -1"),
        ({"iter": 1.5}, ValueError, r"got 1\.5"),
        ({"iter": np.array([1])}, ValueError, "iter"),
        ({"iter": 1, "v.W": np.zeros(2)}, KeyError, r"no 'm\.W'"),
        ({"iter": 1, "m.W": np.zeros(2), "v.W": np.zeros(2), "h.W": np.zeros(2)}, KeyError, r"'h\.W'.*\['m', 'v'\]"),
        ({"iter": 1, "m": np.zeros(2), "v": np.zeros(2)}, KeyError, "'m'"),
        ({"iter": 1, "m.W": np.zeros(2, int), "v.W": np.zeros(2)}, TypeError, r"m\.W.*int64"),
    ],
)
def test_state_is_checked_and_the_old_one_kept(state, error, words):
    optimizer = Adam()
    optimizer.update(parameters(), gradients(0))
    with pytest.raises(error, match=words):
        optimizer.load_state_dict(state)
    assert optimizer.iter == 1
    assert set(optimizer.m) == {"W", "b"}


def test_the_state_of_another_optimizer_is_refused():
    momentum = Momentum()
    momentum.update(parameters(), gradients(0))
    with pytest.raises(KeyError, match=r"no 'm\.W'"):
        Adam().load_state_dict(momentum.state_dict())
    with pytest.raises(KeyError, match=r"'v\.W'.*SGD"):
        SGD().load_state_dict(momentum.state_dict())


@every
def test_a_parameter_of_no_axes(make):
    params, vector = {"w": np.array(2.0)}, {"w": np.array([2.0])}
    number, other = make(), make()
    for gradient in (0.5, -3.0):
        number.update(params, {"w": np.array(gradient)})
        other.update(vector, {"w": np.array([gradient])})
    assert params["w"].shape == () and params["w"] == vector["w"][0] != 2


@every
@pytest.mark.parametrize("wrong", [None, [np.zeros(2)], np.zeros(2)], ids=["None", "list", "array"])
def test_what_is_no_dict_is_refused(make, wrong):
    optimizer, kind = make(), type(wrong).__name__
    with pytest.raises(TypeError, match=f"params must be a dict of arrays by name, got {kind}"):
        optimizer.update(wrong, {})
    with pytest.raises(TypeError, match=f"grads must be a dict of arrays by name, got {kind}"):
        optimizer.update(parameters(), wrong)
    with pytest.raises(TypeError, match=f"state must be a dict of arrays by name, got {kind}"):
        optimizer.load_state_dict(wrong)
    with pytest.raises(KeyError, match=r"state\[3\] is not for"):
        optimizer.load_state_dict({"iter": 1, 3: np.zeros(2)})


@every
def test_a_small_problem_is_solved(make):
    rng = np.random.default_rng(0)
    A, target = rng.standard_normal((30, 3)), np.array([1.0, -2.0, 3.0])
    params, optimizer = {"w": np.zeros(3)}, make(lr={SGD: 0.5, Momentum: 0.1, Adam: 0.3}[make])
    for _ in range(400):
        optimizer.update(params, {"w": A.T @ (A @ (params["w"] - target)) / len(A)})
    assert (np.abs(params["w"] - target) <= 1e-3).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 17, 9000])
def test_adam_in_one_pass_has_the_bits_of_its_operations(size, dtype):
    """Every second number of an array is updated by NumPy's operations, what lies together by the kernel."""
    rng = np.random.default_rng(0)
    together = {"W": rng.standard_normal(size).astype(dtype)}
    apart = {"W": np.repeat(together["W"], 2)[::2]}
    ours, numpys = Adam(), Adam()
    for _ in range(4):
        grads = {"W": (rng.standard_normal(size) * 10.0 ** rng.integers(-25, 5, size)).astype(dtype)}
        grads["W"][-1:] = 0
        ours.update(together, grads)
        numpys.update(apart, grads)
        for one, other in ((together, apart), (ours.m, numpys.m), (ours.v, numpys.v)):
            assert np.array_equal(one["W"].view(f"u{dtype().itemsize}"), other["W"].copy().view(f"u{dtype().itemsize}"))


@pytest.mark.parametrize("host", MACHINES)
def test_adams_text_on_numpy(host):
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(11).astype(np.float32) for _ in range(4)]
    given[3] **= 2
    numbers = 0.9, 0.1, 0.999, 0.001, 0.1, 1e-8, 0.5
    compiled, plain = [array.copy() for array in given], [array.copy() for array in given]
    adam.update(*compiled, numbers)
    with engine(MACHINES[host], plain=True):
        adam.update(*plain, numbers)
    assert all(np.array_equal(one, other) for one, other in zip(compiled, plain))


def test_adam_raises_what_numpy_is_asked_to_raise():
    params, grads = {"W": np.ones(8, np.float32)}, {"W": np.full(8, np.inf, np.float32)}
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        Adam().update(params, grads)
