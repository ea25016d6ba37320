"""The report of a run: its page, its pictures, its counts."""

import itertools
import os
import re

import numpy as np
import pytest
from PIL import Image

from konv.training import report
from konv.training.page import duration
from training_runs import config, part_of_digits, trained


@pytest.fixture(scope="module")
def small():
    return part_of_digits()


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
