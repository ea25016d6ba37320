"""Checkpoints: written whole or not at all, read with care, refused where they do not fit; the folder of a run."""

import dataclasses
import json
import math
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from konv.training import checkpoint as checkpoints
from konv.training.errors import CheckpointError
from konv.training.loop import Trainer
from konv.training.predict import predict
from training_runs import config, part_of_digits, same_bits, trained


@pytest.fixture(scope="module")
def small():
    return part_of_digits()


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
