"""Training: options, models, the loop and its repeatability, checkpoints, the report, reading pictures."""

import dataclasses
import itertools
import json
import math
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from konv.layers import Convolution, DownConv, Dropout, SoftmaxWithLoss
from konv.training import checkpoint as checkpoints
from konv.training import report
from konv.training.config import Config
from konv.training.data import DATASETS, Dataset, load
from konv.training.errors import CheckpointError, DivergedError, PictureError
from konv.training.loop import Trainer, shifted
from konv.training.models import build
from konv.training.page import duration
from konv.training.predict import FRAMES, Frame, _thickened, _thickness, predict, prepare, prepare_file, softmax


@pytest.fixture(scope="module")
def small():
    """A part of digits, small enough for many runs."""
    full = load("digits")
    return Dataset(
        "digits",
        full.classes,
        full.train_images[:160],
        full.train_labels[:160],
        full.test_images[:50],
        full.test_labels[:50],
    )


def config(**options):
    return Config.create("digits", **{"epochs": 3, "batch_size": 50, **options})


def trained(config, dataset, epochs=None):
    trainer = Trainer(config, dataset)
    for _ in range(config.epochs if epochs is None else epochs):
        trainer.train_epoch()
    return trainer


def numbers(trainer):
    """The history without the clock."""
    return [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_second")} for entry in trainer.history]


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


# Options


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


# Models


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


# The loop


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
        trained(config(lr=lr, optimizer="sgd", epochs=8), small)


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


# Checkpoints


@pytest.fixture(scope="module")
def saved(small):
    return trained(config(model="sequence", epochs=1), small).checkpoint()


def test_checkpoint_round_trip(saved, tmp_path):
    path = tmp_path / "run.npz"
    checkpoints.write(saved, path)
    for place in (path, str(path)):
        read = checkpoints.read(place)
        assert (read.config, read.image_shape, read.classes) == (saved.config, (8, 8), tuple("0123456789"))
        assert read.history == saved.history
        assert same_bits(read.model, saved.model) and same_bits(read.optimizer, saved.optimizer)
    with zipfile.ZipFile(path) as archive:  # readable by anyone, and without pickle
        assert all(name.endswith(".npy") for name in archive.namelist())
    with np.load(path, allow_pickle=False) as arrays:
        assert json.loads(str(arrays["header"]))["version"] == 1


class DiskFullError(OSError):
    pass


@pytest.mark.parametrize("fault", [DiskFullError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["savez", "fsync", "replace"])
def test_failed_write_leaves_the_old_file(saved, tmp_path, monkeypatch, where, fault):
    path = tmp_path / "checkpoint.npz"
    checkpoints.write(saved, path)
    before = path.read_bytes()

    def broken(file, *arguments, **arrays):
        if where == "savez":
            file.write(b"half of it")
        raise fault

    monkeypatch.setattr(np if where == "savez" else os, where, broken)
    with pytest.raises(type(fault)):
        checkpoints.write(dataclasses.replace(saved, history=[]), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.npz"]


def test_write_into_a_missing_folder(saved, tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoints.write(saved, tmp_path / "none" / "checkpoint.npz")


def test_damaged_checkpoints(saved, tmp_path):
    """Any one byte changed, or the end cut off: a clear error, or (where the byte means nothing) the same content."""
    path = tmp_path / "checkpoint.npz"
    checkpoints.write(saved, path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    central = good.rindex(b"PK\x01\x02", 0, good.rindex(b"PK\x05\x06") - 200)
    places = [*rng.integers(0, len(good), 150), *range(120), *range(central, len(good))]
    refused = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read = checkpoints.read(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert read.history == saved.history and same_bits(read.model, saved.model)
    assert refused >= 0.5 * len(places)
    for end in [0, 1, 30, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:end])
        with pytest.raises(CheckpointError, match=r"checkpoint\.npz is damaged, or is no konv checkpoint"):
            checkpoints.read(path)


ENTRY = dict.fromkeys(checkpoints.ENTRY, 1)


def rewritten(path, saved, **changes):
    """A checkpoint with parts of its header replaced."""
    checkpoints.write(saved, path)
    with np.load(path) as arrays:
        content = dict(arrays)
    header = {**json.loads(str(content["header"])), **changes}
    np.savez(path, **{**content, "header": np.array(json.dumps(header))})
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"version": 2}, "its version is 2, this konv reads version 1"),
        ({"config": {}}, "config: missing"),
        ({"config": 3}, "no checkpoint that this konv can read"),
        ({"image_shape": [8]}, "no checkpoint that this konv can read"),
        ({"classes": None}, "no checkpoint that this konv can read"),
        ({"history": [1]}, "no checkpoint that this konv can read"),
        ({"image_shape": "88"}, "its image_shape is '88'; expected two integers from 8 to 256"),
        ({"image_shape": [4, 8]}, r"its image_shape is \[4, 8\]"),
        ({"image_shape": [8.0, 8]}, r"its image_shape is \[8.0, 8\]"),
        ({"image_shape": [10**6, 10**6]}, r"its image_shape is \[1000000, 1000000\]"),
        ({"classes": "0123456789"}, "its classes are no list of names"),
        ({"classes": ["\x1b[31m"] * 10}, "its classes are no list of names"),
        ({"history": None}, "its history is no list"),
        ({"history": [{}]}, "entry 1 of its history is not that of epoch 1"),
        ({"history": [{**ENTRY, "epoch": 2}]}, "entry 1 of its history is not that of epoch 1"),
        ({"history": [{**ENTRY, "loss": "low"}]}, "loss of epoch 1 in its history is 'low', no finite number"),
        ({"history": [{**ENTRY, "test_loss": math.nan}]}, "test_loss of epoch 1 in its history is nan"),
        ({"history": [{**ENTRY, "epoch": number} for number in (1, 2, 3, 4)]}, "4 epochs are finished, and it has 1"),
    ],
)
def test_foreign_headers(saved, tmp_path, changes, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoints.read(rewritten(tmp_path / "run.npz", saved, **changes))


def test_foreign_files(tmp_path):
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", header=np.array([{}], dtype=object))
    np.savez(tmp_path / "header.npz", header=np.array("not JSON"))
    np.savez(tmp_path / "deep.npz", header=np.array("[" * 100_000))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("header", "hello")
    for name in ("arrays.npz", "pickle.npz", "header.npz", "deep.npz", "array.npy", "text", "zip"):
        with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
            checkpoints.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none"):
        checkpoints.read(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.npz \(.* is a folder\)"):
        checkpoints.read(tmp_path)


def test_checkpoint_of_another_model(saved, small):
    with pytest.raises(CheckpointError, match="parameters do not fit a deep model"):
        Trainer(config(model="deep"), small, dataclasses.replace(saved, config=config(model="deep")))
    with pytest.raises(CheckpointError, match="optimizer is no momentum"):
        Trainer(config(model="sequence", optimizer="momentum"), small, saved)
    with pytest.raises(CheckpointError, match="other images or classes than those of digits"):
        Trainer(config(model="sequence"), dataclasses.replace(small, classes=("a",)), saved)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_parameters_that_are_no_finite_numbers(saved, small, tmp_path, wrong):
    model = {**saved.model, "1.b": np.full_like(saved.model["1.b"], wrong, np.float64)}
    checkpoints.write(dataclasses.replace(saved, model=model), tmp_path / "run.npz")
    with pytest.raises(CheckpointError, match=r"do not fit a sequence model: 1\.b holds infinite values or NaN"):
        predict(tmp_path / "run.npz", [])
    with pytest.raises(CheckpointError, match=r"1\.b holds infinite values or NaN"):
        Trainer(config(model="sequence"), small, checkpoints.read(tmp_path / "run.npz"))


def test_parameters_that_are_no_numbers(saved, small):
    model = {**saved.model, "1.b": saved.model["1.b"].astype("M8[s]")}
    with pytest.raises(CheckpointError, match=r"1\.b.* has dtype datetime64\[s\], not of real numbers"):
        Trainer(config(model="sequence"), small, dataclasses.replace(saved, model=model))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"m.1.b": np.zeros(3, np.float32)}, r"params\['1\.b'\] has shape"),
        ({"m.1.b": np.zeros(64)}, "takes state of float32"),
        ({"m.extra": np.zeros(3, np.float32), "v.extra": np.zeros(3, np.float32)}, "extra"),
    ],
)
def test_optimizer_state_of_another_model(saved, small, changes, words):
    """Found when the run is taken up, not as a traceback in its first step."""
    with pytest.raises(CheckpointError, match=f"optimizer is no adam: .*{words}"):
        Trainer(config(model="sequence"), small, dataclasses.replace(saved, optimizer={**saved.optimizer, **changes}))


def test_run_folder(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = config()
    assert checkpoints.run_folder(options, None, None) == Path("runs/digits-simple")
    Path("runs/digits-simple").mkdir(parents=True)
    assert checkpoints.run_folder(options, None, None) == Path("runs/digits-simple")  # empty: nothing to lose
    checkpoints.write(saved, Path("runs/digits-simple/checkpoint.npz"))
    assert checkpoints.run_folder(options, None, None) == Path("runs/digits-simple-2")
    Path("runs/digits-simple-2").write_text("a file")
    assert checkpoints.run_folder(options, None, None) == Path("runs/digits-simple-3")
    taken = Path("runs/digits-simple")
    assert checkpoints.run_folder(options, None, taken) == taken
    assert checkpoints.run_folder(options, None, taken / "checkpoint.npz") == taken
    assert checkpoints.run_folder(options, taken.resolve(), taken) == taken.resolve()
    assert checkpoints.run_folder(options, Path("new"), taken) == Path("new")
    with pytest.raises(
        ValueError, match=r"output runs/digits-simple is not empty.*konv train --resume runs/digits-simple"
    ):
        checkpoints.run_folder(options, taken, None)
    with pytest.raises(ValueError, match="digits-simple-2 is a file"):
        checkpoints.run_folder(options, Path("runs/digits-simple-2"), None)
    assert checkpoints.resume_command(Path("a b"), 9) == "konv train --resume 'a b' --epochs 9"


# The report


@pytest.mark.parametrize("model", ["simple", "sequence"])
def test_report(small, tmp_path, model):
    trainer = trained(config(model=model, epochs=2), small)
    page = report.write(trainer, tmp_path, "konv train --seed <&>")
    assert sorted(os.listdir(tmp_path)) == ["confusion.png", "curves.png", "filters.png", "misread.png", "report.html"]
    for name in ("confusion", "curves", "filters", "misread"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            colours = np.asarray(picture.convert("RGB"))
            assert min(colours.shape[:2]) > 80 and colours.std() > 5
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text  # nothing outside is needed
    assert "konv train --seed &lt;&amp;&gt;" in text and "<&>" not in text
    assert f"{trainer.history[-1]['test_accuracy']:.2%}" in text and "batch_size" in text and "numpy" in text


def test_report_uses_no_global_state_of_matplotlib(small, tmp_path):
    import matplotlib.pyplot as plt

    report.write(trained(config(epochs=1), small), tmp_path, "")
    assert plt.get_fignums() == []


def test_confusion_counts(small):
    reading = report.Reading.of(trained(config(epochs=1), small))
    for true, read in itertools.product(range(10), repeat=2):
        assert reading.confusion[true, read] == ((reading.true == true) & (reading.read == read)).sum()
    sure = reading.probabilities[reading.misread].max(axis=1)
    assert len(sure) and (np.diff(sure) <= 0).all()
    assert (reading.read[reading.misread] != reading.true[reading.misread]).all()


@pytest.mark.parametrize("mistakes", [0, 1, 7, 60])
@pytest.mark.parametrize("classes", [tuple("0123456789"), ("T-shirt/top", "Ankle boot")])
def test_pictures_of_any_number_of_mistakes(mistakes, classes):
    true = np.zeros(80, np.int64)
    read = (np.arange(80) < mistakes).astype(np.int64)
    probabilities = np.eye(len(classes))[read]
    counts = np.zeros((len(classes), len(classes)), np.int64)
    counts[0, :2] = 80 - mistakes, mistakes
    reading = report.Reading(probabilities, read, true, counts)
    assert len(reading.shown) == min(mistakes, report.MOST_MISREAD)
    assert len(report.misread(reading, np.zeros((80, 1, 8, 8)), classes).axes) >= min(mistakes, 40)
    report.misread(reading, np.zeros((80, 1, 8, 8)), classes).savefig(os.devnull, format="png")
    report.confusion(counts, classes).savefig(os.devnull, format="png")


def test_the_page_says_how_many_mistakes_it_shows(small, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_MISREAD", 3)
    trainer = trained(config(epochs=1), small)
    wrong = len(report.Reading.of(trainer).misread)
    assert wrong > 3
    assert f"3 of {wrong}, the surest mistakes first" in report.write(trainer, tmp_path, "").read_text(encoding="utf-8")


def test_duration():
    assert [duration(s) for s in (0.04, 59.94, 59.99, 61, 3599.7)] == [
        "0.0 s",
        "59.9 s",
        "60.0 s",
        "1 min 1 s",
        "1 h 0 min",
    ]


# Reading pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that reads most of digits right, and its data."""
    data = load("digits")
    trainer = trained(config(epochs=8, batch_size=32, augment=False), data)
    folder = tmp_path_factory.mktemp("run")
    checkpoints.write(trainer.checkpoint(), folder / "checkpoint.npz")
    return folder, trainer, data


def picture(image, *, invert=False, size=None, mode="L"):
    values = np.round(255 * (1 - image if invert else image)).astype(np.uint8)
    made = Image.fromarray(values)
    return (made if size is None else made.resize(size, Image.Resampling.NEAREST)).convert(mode)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"size": (80, 80)},
        {"invert": True},
        {"invert": True, "size": (200, 200), "mode": "RGB"},
        {"mode": "P", "size": (40, 40)},
    ],
)
def test_predict_reads_what_the_model_reads(run, tmp_path, how):
    folder, trainer, data = run
    scores = trainer.model.eval().forward(data.test_images[:40])
    paths = []
    for index in range(40):
        paths.append(tmp_path / f"{index}.png")
        picture(data.test_images[index, 0], **how).save(paths[-1])
    predictions = predict(folder, paths)
    assert [p.path for p in predictions] == list(map(str, paths))
    assert sum(p.best[0][0] == str(read) for p, read in zip(predictions, scores.argmax(axis=1))) >= 39
    assert sum(p.inverted == how.get("invert", False) for p in predictions) >= 39
    for p in predictions:
        shares = [share for _, share in p.best]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6


@pytest.mark.parametrize("fit", [True, False])
def test_margins_do_not_matter_where_pictures_are_framed(run, tmp_path, fit):
    folder, _, data = run
    paths = []
    for index in range(30):
        paths.append(tmp_path / f"{index}.png")
        image = np.kron(data.test_images[index, 0], np.ones((9, 9)))
        picture(np.pad(image, ((30, 80), (90, 40))), invert=True).save(paths[-1])
    right = sum(p.best[0][0] == str(label) for p, label in zip(predict(folder, paths, fit=fit), data.test_labels))
    assert right >= 27 if fit else right <= 15


def test_frame():
    """A stroke of 40 x 10 pixels, heavier to the right, somewhere on a large page."""
    page = np.zeros((300, 500))
    page[200:240, 33:43] = 100
    page[200:240, 38:43] = 200
    image, _ = prepare(page, (28, 28), frame=Frame(20 / 28))
    rows, columns = np.nonzero(image > 0.1)
    assert (rows.min(), rows.max()) == (4, 23) and (columns.min(), columns.max()) == (11, 16)
    image, _ = prepare(page, (28, 28), frame=Frame(20 / 28, by_mass=True))
    mass = image.sum(axis=0)
    assert abs((mass * (np.arange(28) + 0.5)).sum() / mass.sum() - 14) <= 0.5
    image, _ = prepare(page, (8, 8), frame=Frame(1.0))
    assert image.any(axis=1).all() and (image > 0.1).any(axis=0).sum() <= 4


@pytest.mark.parametrize("angle", [0, 20, 45, 70, 90])
@pytest.mark.parametrize("thick", [5, 16, 30])
def test_thickness_of_a_stroke(thick, angle):
    page = Image.new("L", (400, 400))
    ImageDraw.Draw(page).rectangle((100, 200 - thick / 2, 300, 200 + thick / 2 - 1), fill=255)
    stroke = np.asarray(page.rotate(angle, Image.Resampling.BILINEAR), np.float32) / 255
    assert 0.75 * thick <= _thickness(stroke) <= 1.35 * thick


def test_a_thin_pen_is_made_thicker(run):
    """A seven: what a fine pen draws looks as what a broad one draws, and broad strokes stay as they are."""

    def seven(width):
        page = Image.new("L", (280, 280))
        ImageDraw.Draw(page).line([(90, 60), (190, 60), (120, 230)], fill=255, width=width)
        return np.asarray(page, np.float32)

    fine, plain, broad = (prepare(seven(width), (8, 8), frame=Frame(1.0))[0] for width in (3, 24, 50))
    frame = FRAMES["digits"]
    assert fine.sum() < plain.sum() / 3
    assert prepare(seven(3), (8, 8), frame=frame)[0].sum() > 0.7 * plain.sum()
    assert np.array_equal(prepare(seven(50), (8, 8), frame=frame)[0], broad)


@pytest.mark.parametrize("reach", range(6))
def test_thickened(reach):
    ink = np.random.default_rng(reach).random((5, 7)).astype(np.float32)
    padded = np.pad(ink, 2 * reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
    assert np.array_equal(_thickened(ink, reach), windows.max(axis=(2, 3)))


def test_every_data_set_has_a_frame():
    assert FRAMES.keys() == set(DATASETS)


def test_predict_nothing(run):
    assert predict(run[0], []) == []


def test_prepare_keeps_an_image_of_the_right_kind(run):
    image = run[2].test_images[3, 0]
    assert image.max() == 1 and np.median(image[:, 0]) == 0
    prepared, inverted = prepare(image * 255, (8, 8))
    assert not inverted and prepared.dtype == np.float32 and abs(prepared - image).max() <= 1e-6


def test_prepare_forced(run):
    image = run[2].test_images[3, 0]
    light, _ = prepare(1 - image, (8, 8))
    forced, inverted = prepare(1 - image, (8, 8), invert=True)
    assert inverted and np.array_equal(light, forced)
    with pytest.raises(PictureError, match="nothing in the picture stands out from its border; try --invert"):
        prepare(np.pad(np.zeros((4, 4)), 2, constant_values=255), (8, 8), invert=False)


def test_prepare_keeps_proportions():
    """A tall stroke in a tall picture stays as tall, and does not get wider."""
    tall = np.zeros((80, 20))
    tall[10:70, 8:12] = 200
    image, _ = prepare(tall, (8, 8))
    assert image[1:7].any(axis=1).all() and not image[:, :3].any() and not image[:, 5:].any()


@pytest.mark.parametrize("grey", [np.zeros((9, 9)), np.full((9, 9), 255), np.full((9, 9), 128.0), np.zeros((1, 1))])
def test_prepare_empty(grey):
    with pytest.raises(PictureError, match="all of one grey"):
        prepare(grey, (8, 8))


def test_prepare_other_kinds_of_files(run, tmp_path):
    """16 bits, float, transparent, turned by EXIF: all are the same picture."""
    image = run[2].test_images[3, 0]
    expected, _ = prepare(image, (8, 8))
    Image.fromarray((image * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(image).save(tmp_path / "float.tiff")
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 3] = np.round(255 * image)  # black ink on nothing
    Image.fromarray(ink).save(tmp_path / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture(image).rotate(180).save(tmp_path / "turned.png", exif=exif)
    for name in ("16.png", "float.tiff", "transparent.png", "turned.png"):
        prepared, _ = prepare_file(tmp_path / name, (8, 8))
        assert abs(prepared - expected).max() <= 1 / 255 + 1e-6, name


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    picture(np.random.default_rng(0).random((64, 64))).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    for name, words in (("text.png", "not an image"), ("cut.png", ""), ("cut.jpg", ""), ("none.png", "No such file")):
        with pytest.raises(OSError, match=rf"{name}: .*{words}"):
            prepare_file(tmp_path / name, (8, 8))
    with pytest.raises(PictureError, match=r"black\.png: the picture is all of one grey"):
        prepare_file(tmp_path / "black.png", (8, 8))
    with pytest.raises(OSError, match="Is a directory"):
        prepare_file(tmp_path, (8, 8))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, -3e38])
def test_pictures_of_no_numbers(wrong, tmp_path):
    grey = np.full((9, 9), 3e38, np.float32)
    grey[4, 4] = wrong
    Image.fromarray(grey).save(tmp_path / "float.tiff")
    with pytest.raises(
        PictureError, match=r"float\.tiff: a pixel of the picture is infinite, far too large, or no number"
    ):
        prepare_file(tmp_path / "float.tiff", (8, 8))


def test_a_long_strip_does_not_fill_the_memory(tmp_path):
    """Framed in a square, 12,000 x 40 pixels would take 576 MB."""
    strip = Image.new("L", (12_000, 40), "white")
    strip.paste("black", (1000, 10, 11_000, 30))
    strip.save(tmp_path / "strip.png")
    tracemalloc.start()
    image, inverted = prepare_file(tmp_path / "strip.png", (8, 8), frame=Frame(1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert inverted and image.any(axis=0).all() and image.any(axis=1).sum() <= 2
    assert peak <= 40e6


def test_softmax_rows_sum_to_one():
    probabilities = softmax(np.array([[1e4, -1e4, 0], [3, 2, 1]], np.float32))
    assert np.isfinite(probabilities).all() and abs(probabilities.sum(axis=1) - 1).max() <= 3e-7
