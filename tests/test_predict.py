"""Reading pictures: what the network reads, and what it learned from drawings."""

import numpy as np
import pytest
from PIL import Image

from konv.training import checkpoint as checkpoints
from konv.training.data import load
from konv.training.predict import predict, softmax
from training_runs import config, trained


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


def test_predict_nothing(run):
    assert predict(run[0], []) == []


def test_softmax_rows_sum_to_one():
    probabilities = softmax(np.array([[1e4, -1e4, 0], [3, 2, 1]], np.float32))
    assert np.isfinite(probabilities).all() and abs(probabilities.sum(axis=1) - 1).max() <= 3e-7
