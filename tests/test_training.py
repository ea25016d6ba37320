"""Training: options, models, the loop and its repeatability."""

import dataclasses
import itertools
import json
import os
import re

import numpy as np
import pytest
from rich.console import Console

from konv.layers import Convolution, DownConv, Dropout, SoftmaxWithLoss
from konv.training import checkpoint as checkpoints
from konv.training import report
from konv.training.config import Config
from konv.training.data import load
from konv.training.errors import DivergedError
from konv.training.loop import Trainer, shifted
from konv.training.models import build
from training_runs import config, part_of_digits, same_bits, trained


@pytest.fixture(scope="module")
def small():
    return part_of_digits()


def numbers(trainer):
    """The history without the clock."""
    return [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_second")} for entry in trainer.history]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dataset": "cifar"}, ValueError, "dataset must be one of digits, mnist, fashion-mnist; got 'cifar'"),
        ({"model": "big"}, ValueError, "model must be one of simple, deep, sequence; got 'big'"),
        ({"optimizer": "rmsprop"}, ValueError, "optimizer must be one of sgd, momentum, adam; got 'rmsprop'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, TypeError, "epochs must be an int, got 2.5"),
        ({"batch_size": -3}, ValueError, "batch_size must be at least 1, got -3"),
        ({"batch_size": True}, TypeError, "batch_size must be an int, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"lr": 0}, ValueError, "lr must be a finite number above 0, got 0"),
        ({"lr": float("nan")}, ValueError, "lr must be a finite number above 0, got nan"),
        ({"lr": float("inf")}, ValueError, "lr must be a finite number above 0, got inf"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"augment": "yes"}, TypeError, "augment must be True or False, got 'yes'"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=re.escape(words)):
        Config.create(**options)


def test_config_round_trip_and_command():
    first = Config.create("mnist", model="deep", epochs=7, lr=0.5, augment=False)
    assert Config.from_dict(json.loads(json.dumps(first.as_dict()))) == first
    with pytest.raises(ValueError, match=r"missing \['seed'\], unknown \['sede'\]"):
        values = first.as_dict()
        Config.from_dict({**{k: v for k, v in values.items() if k != "seed"}, "sede": 1})
    assert first.command() == (
        "konv train mnist --model deep --epochs 7 --batch-size 100 --optimizer adam --lr 0.5 --seed 0 --no-augment"
    )


def test_resumed_options():
    first = config(epochs=5)
    assert first.resumed(2, {"epochs": None, "seed": None}) == first
    assert first.resumed(2, {"epochs": 9, "model": "simple"}) == dataclasses.replace(first, epochs=9)
    with pytest.raises(
        ValueError, match="seed is 0 in the checkpoint and 4 now; model is simple in the checkpoint and deep"
    ):
        first.resumed(2, {"seed": 4, "model": "deep"})
    with pytest.raises(ValueError, match="4 epochs are finished and epochs=3 is asked for"):
        first.resumed(4, {"epochs": 3})


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (9, 13), (17, 8)])
@pytest.mark.parametrize("name", ["simple", "deep", "sequence"])
def test_models_of_any_size(name, shape):
    """In float32 throughout, forward and backward, and without a warning (which would be an error here)."""
    network = build(name, shape, 7, np.random.default_rng(0))
    x = np.random.default_rng(1).random((3, 1, *shape), np.float32)
    scores = network.forward(x)
    assert scores.shape == (3, 7) and scores.dtype == np.float32
    assert network.backward(np.ones_like(scores)).shape == x.shape
    for key, array in {**network.params(), **network.grads()}.items():
        assert array.dtype == np.float32 and np.isfinite(array).all(), key
    assert same_bits(network.state_dict(), build(name, shape, 7, np.random.default_rng(0)).state_dict())


def test_models_are_the_books():
    """For 28 x 28 the sizes are those of ch07/simple_convnet.py and ch08/deep_convnet.py."""
    rng = np.random.default_rng(0)
    simple = build("simple", (28, 28), 10, rng).params()
    assert [array.shape for array in simple.values()] == [
        *((30, 1, 5, 5), (30,), (30 * 12 * 12, 100), (100,), (100, 10), (10,)),
    ]
    deep = build("deep", (28, 28), 10, rng)
    assert [array.shape for name, array in deep.params().items() if name.endswith("W")] == [
        *((16, 1, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)),
        *((64 * 4 * 4, 50), (50, 10)),
    ]
    assert [layer.pad for layer in deep.layers if isinstance(layer, Convolution)] == [1, 1, 1, 2, 1, 1]
    assert [layer.dropout_ratio for layer in deep.layers if isinstance(layer, Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(("height", "segments"), [(8, 2), (28, 7), (9, 9), (10, 5)])
def test_row_sequence_reads_every_row(height, segments):
    (layer,) = (
        x for x in build("sequence", (height, 12), 10, np.random.default_rng(0)).layers if isinstance(x, DownConv)
    )
    assert layer.m == segments
    geometry = layer.geometry()
    assert not len(geometry.unread) and not len(geometry.padding_only)


def test_he_initialisation():
    for name, array in build("deep", (28, 28), 10, np.random.default_rng(0)).params().items():
        fan_in = array.shape[0] if array.ndim == 2 else array[0].size
        if name.endswith("b"):
            assert not array.any()
        else:  # the deviation of n normal numbers is off by more than 5 / sqrt(2 n) once in two million
            assert abs(array.std() / np.sqrt(2 / fan_in) - 1) <= 5 / np.sqrt(2 * array.size)


@pytest.mark.parametrize(
    ("name", "shape", "words"), [("big", (8, 8), "model must be one of"), ("deep", (28, 7), "28 x 7")]
)
def test_models_refused(name, shape, words):
    with pytest.raises(ValueError, match=words):
        build(name, shape, 10, np.random.default_rng(0))


def test_shifted():
    images = np.random.default_rng(0).random((400, 1, 8, 8), np.float32) + 1
    before = images.copy()
    moved = shifted(images, np.random.default_rng(1))
    assert moved.shape == images.shape and moved.dtype == np.float32
    np.testing.assert_array_equal(images, before)
    seen = set()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for image, around in zip(moved, padded):
        (found,) = (
            (i - 1, j - 1)
            for i, j in itertools.product(range(3), repeat=2)
            if np.array_equal(image, around[:, i : i + 8, j : j + 8])
        )
        seen.add(found)
    assert seen == set(itertools.product((-1, 0, 1), repeat=2))
    stayed = (moved == images).all(axis=(1, 2, 3)).sum()
    assert 180 <= stayed <= 265  # half, and a ninth of the others: 222 expected, deviation 10


def test_larger_images_move_further():
    images = np.zeros((300, 1, 28, 28), np.float32)
    images[:, 0, 14, 14] = 1
    _, _, rows, columns = np.nonzero(shifted(images, np.random.default_rng(0)))
    assert set(rows) == set(columns) == {12, 13, 14, 15, 16}


@pytest.mark.parametrize("model", ["simple", "deep", "sequence"])
def test_it_learns(small, model):
    trainer = trained(config(model=model, epochs=25, batch_size=20, augment=False), small)
    assert trainer.history[-1]["loss"] < 0.75 * trainer.history[0]["loss"]
    assert trainer.history[-1]["test_accuracy"] >= 0.5  # chance is 0.1
    assert [entry["epoch"] for entry in trainer.history] == list(range(1, 26))


@pytest.mark.parametrize(
    ("model", "optimizer"), [("simple", "adam"), ("deep", "momentum"), ("sequence", "sgd"), ("deep", "adam")]
)
def test_resumed_run_has_the_same_bits(small, model, optimizer, tmp_path):
    """Three epochs at once; one, then two from a file; two in one process and a longer run after."""
    options = config(model=model, optimizer=optimizer)
    whole = trained(options, small)
    first = trained(options, small, epochs=1)
    checkpoints.write(first.checkpoint(), tmp_path / "one.npz")
    second = Trainer(options, small, checkpoints.read(tmp_path / "one.npz"))
    second.train_epoch()
    second.train_epoch()
    assert numbers(second) == numbers(whole)
    assert same_bits(second.model.state_dict(), whole.model.state_dict())
    assert same_bits(second.optimizer.state_dict(), whole.optimizer.state_dict())
    shorter = trained(dataclasses.replace(options, epochs=2), small)
    longer = Trainer(shorter.config.resumed(2, {"epochs": 3}), small, shorter.checkpoint())
    longer.train_epoch()
    assert numbers(longer) == numbers(whole)


def test_the_default_run_reads_985_of_1000_digits():
    """What `konv train` promises, all 60 epochs: a change that costs a network its last percent shows nowhere else."""
    trainer = Trainer(Config.create(), load("digits"))
    while trainer.finished < trainer.config.epochs:
        entry = trainer.train_epoch()
    assert entry["test_accuracy"] >= 0.985


def test_seeds_differ(small):
    a, b = (trained(config(epochs=1, seed=seed), small) for seed in (0, 1))
    assert not same_bits(a.model.state_dict(), b.model.state_dict())


def test_each_epoch_has_its_own_order_and_dropout(small):
    trainer = Trainer(config(model="deep", epochs=2), small)
    orders, masks = [], []

    def on_step(seen, *rest):
        orders.append(seen)
        masks.append([layer.mask.copy() for layer in trainer.model.layers if isinstance(layer, Dropout)])

    trainer.train_epoch(on_step)
    trainer.train_epoch(on_step)
    assert orders == [50, 100, 150, 160] * 2  # the last batch is a short one, and is not dropped
    assert not np.array_equal(masks[0][0], masks[4][0]) and not np.array_equal(masks[0][0][:, :10], masks[0][1])


def test_training_loss_and_accuracy_are_means_over_the_images(small):
    """With steps too small to change a weight, they are those of the first model, whatever a short last batch weighs."""
    trainer = Trainer(config(lr=1e-30, optimizer="sgd", augment=False), small)
    scores = trainer.model.forward(small.train_images)
    expected = SoftmaxWithLoss().forward(scores, small.train_labels)
    entry = trainer.train_epoch()
    assert abs(entry["loss"] - expected) <= 1e-5 * expected  # a short batch that counted in full: 1e-1
    assert entry["accuracy"] == (scores.argmax(axis=1) == small.train_labels).mean()


def test_learning_rate_halves(small):
    trainer = trained(config(lr=0.5, optimizer="sgd"), small, epochs=0)
    trainer.history = [{}] * 12  # as if 12 epochs were finished
    trainer.train_epoch()
    assert trainer.optimizer.lr == 0.25


@pytest.mark.parametrize("model", ["simple", "deep"])  # with deep, dropout shows whether the test is in inference mode
def test_reported_accuracy_is_the_models(small, model):
    trainer = trained(config(model=model, epochs=2), small)
    read = trainer.model.eval().forward(small.test_images).argmax(axis=1)
    assert trainer.history[-1]["test_accuracy"] == (read == small.test_labels).mean()
    reading = report.Reading.of(trainer)
    assert np.array_equal(reading.read, read) and np.array_equal(reading.true, small.test_labels)
    assert reading.confusion.trace() == (read == small.test_labels).sum()


@pytest.mark.parametrize("lr", [1e30, 1e8])
def test_diverged(small, lr):
    with pytest.raises(
        DivergedError, match=rf"the loss became (nan|inf) in epoch \d, after \d+ images.*lr={re.escape(f'{lr:g}')}"
    ):
        trained(config(lr=lr, optimizer="sgd", epochs=8, augment=False), small)


def test_diverged_in_the_last_step(small):
    """The training loss was still finite; the test finds it."""
    with pytest.raises(DivergedError, match=r"in epoch 1, after 160 images"):
        trained(config(lr=1e38, optimizer="sgd", batch_size=160, epochs=1), small)


def test_run_writes_lines_and_checkpoints(small, tmp_path, capsys):
    trainer = Trainer(config(epochs=2), small)
    trainer.run(tmp_path / "a/b", Console(width=40))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(
        r"epoch \d/2  loss \d+\.\d{4}  accuracy +[\d.]+%  test loss \d+\.\d{4}  test accuracy +[\d.]+%  [\d,]+ images/s", line
    ) for line in lines)  # fmt: skip
    assert os.listdir(tmp_path / "a/b") == ["checkpoint.npz"]
    assert checkpoints.read(tmp_path / "a/b").history == trainer.history


def test_progress_bar_on_a_terminal(small, tmp_path, capsys):
    Trainer(config(epochs=2), small).run(tmp_path, Console(force_terminal=True, width=100))
    assert "images/s" in capsys.readouterr().out
