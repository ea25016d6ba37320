"""The book's layers: the same numbers, attributes and usage as *Deep Learning from Scratch*, ch. 7 and 8.

Expected values are loops over the formulas that the two layers are defined by; konv's own text is not used for them.
"""

import inspect
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

import konv
from compare import assert_equal, untouched
from konv.engine.plan import prefer
from strategies import integers

HERE = Path(__file__).parent


def out_size(size, window, stride, pad):
    return 1 + (size + 2 * pad - window) // stride


# (N, C, H, W), (FN, FH, FW), stride, pad: every combination in which the filter fits.
CONFIGURATIONS = [
    (x_shape, filters, stride, pad)
    for x_shape, filters, stride, pad in itertools.product(
        [(1, 1, 3, 3), (2, 3, 5, 4), (3, 2, 4, 7), (1, 4, 6, 6), (2, 1, 7, 5)],
        [(1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 3, 1), (4, 2, 3)],
        [1, 2, 3],
        [0, 1, 2],
    )
    if x_shape[2] + 2 * pad >= filters[1] and x_shape[3] + 2 * pad >= filters[2]
]


def windows_of(input_shape, filter_h, filter_w, stride, pad):
    """(row of col, column of col, n, c, row of the image, column of the image), for each cell of col."""
    n_images, channels, height, width = input_shape
    out_h, out_w = out_size(height, filter_h, stride, pad), out_size(width, filter_w, stride, pad)
    for n, i, j in itertools.product(range(n_images), range(out_h), range(out_w)):
        for c, u, v in itertools.product(range(channels), range(filter_h), range(filter_w)):
            row, column = (n * out_h + i) * out_w + j, (c * filter_h + u) * filter_w + v
            yield row, column, n, c, i * stride + u - pad, j * stride + v - pad


def book_im2col(images, filter_h, filter_w, stride=1, pad=0):
    n_images, channels, height, width = images.shape
    positions = out_size(height, filter_h, stride, pad) * out_size(width, filter_w, stride, pad)
    col = np.zeros((n_images * positions, channels * filter_h * filter_w))
    for row, column, n, c, y, x in windows_of(images.shape, filter_h, filter_w, stride, pad):
        if 0 <= y < height and 0 <= x < width:
            col[row, column] = images[n, c, y, x]
    return col


def book_col2im(col, input_shape, filter_h, filter_w, stride=1, pad=0):
    images = np.zeros(input_shape)
    for row, column, n, c, y, x in windows_of(input_shape, filter_h, filter_w, stride, pad):
        if 0 <= y < input_shape[2] and 0 <= x < input_shape[3]:
            images[n, c, y, x] += col[row, column]
    return images


def book_convolution(x, W, b, dout, stride, pad):
    """Everything that the book's layer holds after forward and backward."""
    n_filters, _, filter_h, filter_w = W.shape
    col = book_im2col(x, filter_h, filter_w, stride, pad)
    col_W = W.reshape(n_filters, -1).T
    out = (col @ col_W + b).reshape(len(x), *dout.shape[2:], n_filters).transpose(0, 3, 1, 2)
    rows = dout.transpose(0, 2, 3, 1).reshape(-1, n_filters)
    return {
        "out": out,
        "col": col,
        "col_W": col_W,
        "db": rows.sum(axis=0),
        "dW": (col.T @ rows).T.reshape(W.shape),
        "dx": book_col2im(rows @ col_W.T, x.shape, filter_h, filter_w, stride, pad),
    }


def book_pooling(x, dout, pool_h, pool_w, stride):
    col = book_im2col(x, pool_h, pool_w, stride, 0).reshape(-1, pool_h * pool_w)
    arg_max = col.argmax(axis=1)
    n, channels = x.shape[:2]
    out = col.max(axis=1).reshape(n, *dout.shape[2:], channels).transpose(0, 3, 1, 2)
    dcol = np.zeros_like(col)
    dcol[np.arange(len(col)), arg_max] = dout.transpose(0, 2, 3, 1).ravel()
    dcol = dcol.reshape(-1, channels * pool_h * pool_w)
    return {"out": out, "arg_max": arg_max, "dx": book_col2im(dcol, x.shape, pool_h, pool_w, stride, 0)}


def upstream(rng, x_shape, filters, stride, pad):
    n_filters, filter_h, filter_w = filters
    height, width = out_size(x_shape[2], filter_h, stride, pad), out_size(x_shape[3], filter_w, stride, pad)
    return integers(rng, (x_shape[0], n_filters, height, width))


def test_there_are_at_least_a_hundred_configurations():
    print(len(CONFIGURATIONS), "configurations")
    assert len(CONFIGURATIONS) >= 150
    assert len({str(c) for c in CONFIGURATIONS}) == len(CONFIGURATIONS)


@pytest.mark.parametrize("x_shape, filters, stride, pad", CONFIGURATIONS[::4])
def test_the_same_numbers(x_shape, filters, stride, pad):
    check_the_same_numbers(x_shape, filters, stride, pad)


@pytest.mark.parametrize("x_shape, filters, stride, pad", CONFIGURATIONS)
def test_the_same_numbers_without_a_kernel_to_compile(x_shape, filters, stride, pad):
    with prefer("columns"):
        check_the_same_numbers(x_shape, filters, stride, pad)


def check_the_same_numbers(x_shape, filters, stride, pad):
    rng = np.random.default_rng(len(str((x_shape, filters))) + stride + 10 * pad)
    n_filters, filter_h, filter_w = filters
    x, W, b = (
        integers(rng, x_shape),
        integers(rng, (n_filters, x_shape[1], filter_h, filter_w)),
        integers(rng, (n_filters,)),
    )
    dout = upstream(rng, x_shape, filters, stride, pad)
    expected = book_convolution(x, W, b, dout, stride, pad)

    col = konv.im2col(x, filter_h, filter_w, stride, pad)
    assert_equal(col, expected["col"], contiguous=True)
    dcol = integers(rng, col.shape)
    image = konv.col2im(dcol, x_shape, filter_h, filter_w, stride, pad)
    assert_equal(image, book_col2im(dcol, x_shape, filter_h, filter_w, stride, pad), contiguous=True)

    layer = konv.Convolution(W, b, stride, pad)
    with untouched(x, W, b, dout):
        out = layer.forward(x)
        dx = layer.backward(dout)
    actual = {"out": out, "dx": dx, **{name: getattr(layer, name) for name in ("col", "col_W", "dW", "db")}}
    for name, value in expected.items():
        assert_equal(actual[name], value)
    assert_equal(layer.x, x)

    if pad == 0:
        dout = upstream(rng, x_shape, (x_shape[1], filter_h, filter_w), stride, 0)
        expected = book_pooling(x, dout, filter_h, filter_w, stride)
        pooling = konv.Pooling(filter_h, filter_w, stride, pad)
        assert_equal(pooling.forward(x), expected["out"])
        assert_equal(pooling.arg_max, expected["arg_max"])
        assert_equal(pooling.backward(dout), expected["dx"])
        assert_equal(pooling.x, x)


@pytest.mark.parametrize(
    "callable, signature",
    [
        (konv.Convolution, ["W", "b", "stride=1", "pad=0"]),
        (konv.Pooling, ["pool_h", "pool_w", "stride=2", "pad=0"]),
        (konv.im2col, ["input_data", "filter_h", "filter_w", "stride=1", "pad=0"]),
        (konv.col2im, ["col", "input_shape", "filter_h", "filter_w", "stride=1", "pad=0"]),
        (konv.Convolution.forward, ["self", "x"]),
        (konv.Convolution.backward, ["self", "dout"]),
        (konv.Pooling.forward, ["self", "x"]),
        (konv.Pooling.backward, ["self", "dout"]),
    ],
)
def test_the_same_arguments(callable, signature):
    parameters = [p for p in inspect.signature(callable).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters] == signature


def test_parameters_are_the_arrays_given():
    """An optimizer updates the network's dictionary, which shares its arrays with the layers."""
    W, b = np.ones((2, 1, 2, 2)), np.zeros(2)
    layer = konv.Convolution(W, b)
    assert layer.W is W and layer.b is b
    x = np.ones((1, 1, 2, 2))
    assert layer.forward(x)[0, 0, 0, 0] == 4
    W *= 2
    b += 1
    assert layer.forward(x)[0, 0, 0, 0] == 9
    layer.W, layer.b = 3 * np.ones((5, 1, 2, 2)), np.zeros(5)  # as the book's load_params does
    assert_equal(layer.forward(x), np.full((1, 5, 1, 1), 12.0))


@pytest.mark.parametrize("b", [0, 0.0], ids=repr)
def test_a_number_for_b_stands_for_all_filters(b):
    """ch07/apply_filter.py builds its layers with ``b = 0``."""
    W, x = np.ones((3, 1, 2, 2)), np.ones((1, 1, 4, 4))
    layer = konv.Convolution(W, b)
    out = layer.forward(x)
    assert_equal(out, konv.Convolution(W, np.zeros(3)).forward(x))
    layer.backward(out)
    assert_equal(layer.db, out.sum(axis=(0, 2, 3)))


def test_gradients_before_and_after_backward():
    layer = konv.Convolution(np.ones((2, 1, 2, 2)), np.zeros(2))
    assert layer.x is layer.col is layer.col_W is layer.dW is layer.db is None
    out = layer.forward(np.ones((1, 1, 3, 3)))
    assert layer.dW is None
    layer.backward(out)
    first = layer.dW
    kept = first.copy()
    layer.backward(2 * out)
    assert_equal(layer.dW, 2 * first)
    assert_equal(first, kept)  # a gradient that was handed out is not written to again


# The programs of the book, in small. They know nothing of konv: common/layers.py is one line, from konv.book import *.


@pytest.fixture
def programs(monkeypatch):
    monkeypatch.syspath_prepend(HERE / "book_programs")
    import deep_net
    import simple_net

    yield simple_net.SimpleNet, deep_net.DeepNet
    for name in ("common", "common.layers", "simple_net", "deep_net"):
        sys.modules.pop(name, None)


def striped_images(count, seed=0, dtype=np.float32):
    """Images (count, 1, 12, 12) of horizontal, vertical or diagonal stripes in noise, and which they show."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    y, x = np.mgrid[:12, :12]
    kinds = [np.sin(y), np.sin(x), np.sin((x + y) / 1.4)]
    images = np.stack([np.roll(kinds[label], rng.integers(6), axis=(0, 1)) for label in labels])
    return (images + 0.3 * rng.standard_normal(images.shape)).astype(dtype)[:, None], labels


def train(network, images, labels, steps, lr):
    losses = []
    for step in range(steps):
        batch = slice(step * 16 % len(images), step * 16 % len(images) + 16)
        grads = network.gradient(images[batch], labels[batch])
        for key in network.params:
            network.params[key] -= lr * grads[key]  # in place: the layers see it
        losses.append(network.last_layer.forward(network.predict(images[batch]), labels[batch]))  # without Dropout
    return losses


@pytest.mark.parametrize("number, steps, lr", [(0, 150, 0.1), (1, 150, 0.05)], ids=["SimpleNet", "DeepNet"])
def test_the_books_programs_train(programs, number, steps, lr):
    network = programs[number]()
    for seed, layer in enumerate(network.layers):
        if isinstance(layer, konv.Dropout):
            layer.rng = seed
    images, labels = striped_images(160)
    test_images, test_labels = striped_images(90, seed=1)
    losses = train(network, images, labels, steps, lr)
    assert np.mean(losses[-5:]) <= 0.5 * np.mean(losses[:5])
    assert network.accuracy(test_images, test_labels) >= 0.95
    assert {p.dtype for p in network.params.values()} == {np.dtype(np.float64)}
    assert network.predict(images[:2]).dtype == np.float32  # the images' type, where the book's layers go to float64


def test_the_books_gradient_check_passes(programs):
    """Numerical gradients by moving parameters in place, as ch07/gradient_check.py does."""
    network = programs[0](filters=2, hidden=4)
    images, labels = striped_images(2, dtype=np.float64)
    numerical, backprop = network.numerical_gradient(images, labels), network.gradient(images, labels)
    for key in numerical:
        # A central difference is off by h^2 / 6 times a third derivative, which is a few units here: h is 1e-4.
        assert np.abs(numerical[key] - backprop[key]).max() <= 1e-6, key


def test_labels_in_a_column(programs):
    """ch07/gradient_check.py gives its one label as an array of shape (1, 1)."""
    network = programs[0]()
    images, labels = striped_images(1)
    expected = network.gradient(images, labels)
    assert network.loss(images, labels.reshape(1, 1)) == network.loss(images, labels)
    for key, grad in network.gradient(images, labels.reshape(1, 1)).items():
        assert_equal(grad, expected[key])


def test_one_hot_labels_give_the_same_gradients(programs):
    network = programs[0]()
    images, labels = striped_images(4)
    by_index, by_row = network.gradient(images, labels), network.gradient(images, np.eye(3)[labels])
    for key, grad in by_index.items():
        assert_equal(by_row[key], grad)


@pytest.mark.parametrize("number", [0, 1], ids=["SimpleNet", "DeepNet"])
def test_saved_parameters_are_loaded_by_assignment(programs, number):
    trained, fresh = programs[number](seed=1), programs[number](seed=2)
    images, _ = striped_images(8)
    assert np.abs(trained.predict(images) - fresh.predict(images)).max() > 0.01
    fresh.load_params({key: value.copy() for key, value in trained.params.items()})
    assert_equal(fresh.predict(images), trained.predict(images))
