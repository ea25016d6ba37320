"""The report of a training run: four pictures and one self-contained page.

``curves.png``, ``filters.png``, ``confusion.png``, ``misread.png``, and ``report.html``, which has the pictures inside
and can be sent as one file.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.layers import Convolution
from konv.training.loop import Trainer, scores_of
from konv.training.page import page
from konv.training.predict import softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#1f5fa8", "#d9730d", "#b3261e", "#6b7280"
MOST_MISREAD = 40  # pictures shown of misread images


@dataclass(frozen=True)
class Reading:
    """How the model reads the test images.

    Attributes
    ----------
    probabilities : float array (N, classes)
    read, true : int64 arrays (N,)
        The most probable class, and the label.
    confusion : int64 array (classes, classes)
        Images of true class (row) read as class (column).
    """

    probabilities: np.ndarray
    read: np.ndarray
    true: np.ndarray
    confusion: np.ndarray

    @classmethod
    def of(cls, trainer: Trainer) -> Reading:
        """Read the test images with the trainer's model."""
        data = trainer.dataset
        probabilities = softmax(np.concatenate(list(scores_of(trainer.model, data.test_images))))
        read, classes = probabilities.argmax(axis=1), len(data.classes)
        confusion = np.bincount(data.test_labels * classes + read, minlength=classes**2).reshape(classes, classes)
        return cls(probabilities, read, data.test_labels, confusion)

    @property
    def misread(self) -> np.ndarray:
        """Indices of the misread images, those first of which the model was surest."""
        wrong = np.flatnonzero(self.read != self.true)
        return wrong[np.argsort(-self.probabilities[wrong, self.read[wrong]], kind="stable")]

    @property
    def shown(self) -> np.ndarray:
        """Those of :attr:`misread` that the report has pictures of, at most :data:`MOST_MISREAD`."""
        return self.misread[:MOST_MISREAD]


def write(trainer: Trainer, folder: Path, command: str) -> Path:
    """Write the pictures and the page of a run into ``folder``, over those of an earlier report.

    Parameters
    ----------
    trainer : Trainer
        With at least one finished epoch.
    folder : Path
        Exists.
    command : str
        What was typed, for the page.

    Returns
    -------
    path : Path
        Of ``report.html``.

    Raises
    ------
    OSError
        The folder is not writable.
    """
    reading = Reading.of(trainer)
    figures = {
        "curves": curves(trainer.history),
        "filters": first_layer(trainer),
        "confusion": confusion(reading.confusion, trainer.dataset.classes),
        "misread": misread(reading, trainer.dataset.test_images, trainer.dataset.classes),
    }
    pictures = {}
    for name, figure in figures.items():
        content = _png(figure)
        (folder / f"{name}.png").write_bytes(content)
        pictures[name] = base64.b64encode(content).decode()
    path = folder / "report.html"
    path.write_text(page(trainer, reading, pictures, command), encoding="utf-8")
    return path


def curves(history: list[dict[str, Any]]) -> Figure:
    """Loss (logarithmic) and accuracy over the epochs, in training and on the test images."""
    figure = _figure(10, 3.9)
    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(epochs) <= 12 else ""
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, key, title in ((loss_axes, "loss", "Loss"), (accuracy_axes, "accuracy", "Accuracy")):
        for prefix, color, label in (("", BLUE, "training"), ("test_", ORANGE, "test")):
            axes.plot(epochs, [e[prefix + key] for e in history], color=color, label=label, marker=marker, ms=4, lw=1.8)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True, color="#e5e7eb", lw=0.8)
        axes.legend(frameon=False, loc="upper right" if key == "loss" else "lower right")
        axes.spines[["top", "right"]].set_visible(False)
    if min(e[key] for e in history for key in ("loss", "test_loss")) > 0:
        loss_axes.set_yscale("log")
        _plain_log_ticks(loss_axes)
    accuracy_axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    return figure


def first_layer(trainer: Trainer) -> Figure:
    """What the first layer has learned: a tile per filter of a convolution, else the matrix of weights."""
    layer = next(layer for layer in trainer.model.layers if hasattr(layer, "W"))
    weights = np.asarray(layer.W, np.float32)
    limit = float(abs(weights).max()) or 1.0
    options: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    if not isinstance(layer, Convolution):
        figure = _figure(10, 0.8 + 9 * weights.shape[0] / weights.shape[1])
        axes = figure.subplots()
        image = axes.imshow(weights, **options)
        axes.set_xlabel("hidden unit")
        axes.set_ylabel("pixel of the row")
        figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01, label="weight")
        return figure
    columns = min(len(weights), 10)
    rows = math.ceil(len(weights) / columns)
    figure = _figure(10, 0.95 * rows + 0.2)
    grid = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    for index, axes in enumerate(grid.ravel()):
        axes.axis("off")
        if index < len(weights):
            image = axes.imshow(weights[index, 0], **options)
    figure.colorbar(image, ax=list(grid.ravel()), fraction=0.02, pad=0.01, label="weight")
    return figure


def confusion(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """How many images of each true class (row) were read as each class (column); errors in red."""
    size = len(classes)
    long_names = max(map(len, classes)) > 2
    figure = _figure(7.6 if long_names else 6.4, 7 if long_names else 6)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(size, dtype=bool)
    worst = float(share[~right].max(initial=0))
    axes.imshow(np.where(right, share, np.nan), cmap="Blues", vmin=0, vmax=1.2)
    axes.imshow(np.where(~right & (counts > 0), share, np.nan), cmap="Reds", vmin=-worst / 3, vmax=max(2 * worst, 0.1))
    for true, read in np.argwhere(counts > 0):
        color = "white" if true == read and share[true, read] > 0.6 else "#111827"
        axes.text(read, true, f"{counts[true, read]}", ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(size), classes, rotation=40 if long_names else 0, ha="right" if long_names else "center")
    axes.set_yticks(range(size), classes)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="#e5e7eb", lw=0.8)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_color("#9ca3af")
    axes.set_xlabel("read as")
    axes.set_ylabel("true class")
    return figure


def misread(reading: Reading, images: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """The misread test images, the surest mistakes first, each with what was read and what it is."""
    shown = reading.shown
    if not len(shown):
        figure = _figure(10, 1.2)
        figure.text(0.5, 0.5, "No test image was misread.", ha="center", va="center", fontsize=13, color=GREY)
        return figure
    long_names = max(map(len, classes)) > 2
    columns = 8 if long_names else 10
    rows = math.ceil(len(shown) / columns)
    figure = _figure(10, (1.75 if long_names else 1.4) * rows)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
        if index >= len(shown):
            continue
        image = shown[index]
        read, true = reading.read[image], reading.true[image]
        axes.imshow(images[image, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        sure = f"{100 * reading.probabilities[image, read]:.0f} %"
        if long_names:
            title = f"read {classes[read]}\nis {classes[true]}\n{sure}"
        else:
            title = f"read {classes[read]}, is {classes[true]}\n{sure}"
        axes.set_title(title, fontsize=8, color=RED, pad=3)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, apart from pyplot's global state; it is drawn with Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _plain_log_ticks(axes: Axes) -> None:
    """0.02 and not 2 x 10^-2."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
