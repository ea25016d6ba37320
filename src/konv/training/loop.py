"""The training loop: shuffle, forward, loss, backward, update; measure and save after every epoch.

Every random number comes from the seed, a purpose and the epoch, never from what ran before. So a run that is resumed
after epoch e goes on with the very numbers, and on the same machine the very bits, of a run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.layers import SGD, Adam, Dropout, Momentum, SoftmaxWithLoss
from konv.training import checkpoint as checkpoints
from konv.training.checkpoint import Checkpoint
from konv.training.config import HALF_LIFE, Config
from konv.training.data import Dataset
from konv.training.errors import CheckpointError, DivergedError
from konv.training.models import build
from konv.training.pen import mixed

if TYPE_CHECKING:
    from rich.console import Console

WEIGHTS, SHUFFLE, SHIFT, DROPOUT, DRAWING = range(5)  # the purposes of random numbers
EVALUATION_BATCH = 500  # images; only memory depends on it

OnStep = Callable[[int, float, float, float], None]


class Trainer:
    """A model, its optimizer and what they have gone through.

    Parameters
    ----------
    config : Config
        The run's options.
    dataset : Dataset
        The images, which must be those that ``config.dataset`` names.
    saved : Checkpoint, optional
        Where to go on from; a new model without one.

    Attributes
    ----------
    config, dataset : as given
    model : konv.Sequential
        Images (N, 1, H, W) -> scores (N, classes).
    history : list of dict
        One entry per finished epoch: ``epoch`` (from 1), ``loss`` and ``accuracy`` (means over the training images, each
        at the time of its step, dropout, shifts and drawings included), ``test_loss``, ``test_accuracy`` (after the epoch),
        ``seconds`` (of training, without the test) and ``images_per_second``.
    saved : int
        The epoch of the last checkpoint that :meth:`run` has written; 0 before the first.

    Raises
    ------
    CheckpointError
        ``saved`` does not fit the data set or the model.

    Examples
    --------
    >>> from konv.training.data import load
    >>> trainer = Trainer(Config.create("digits", epochs=1, seed=1), load("digits"))
    >>> entry = trainer.train_epoch()
    >>> entry["epoch"], entry["test_accuracy"] > 0.5
    (1, True)
    """

    def __init__(self, config: Config, dataset: Dataset, saved: Checkpoint | None = None) -> None:
        self.config = config
        self.dataset = dataset
        self.model = build(config.model, dataset.image_shape, len(dataset.classes), self._rng(WEIGHTS))
        self.optimizer: Any = {"sgd": SGD, "momentum": Momentum, "adam": Adam}[config.optimizer](lr=config.lr)
        self.loss = SoftmaxWithLoss()
        self.history: list[dict[str, Any]] = []
        self.saved = 0
        if saved is not None:
            if (saved.image_shape, saved.classes) != (dataset.image_shape, dataset.classes):
                raise CheckpointError(
                    f"the checkpoint was trained on other images or classes than those of {dataset.name}"
                )
            load_model(self.model, saved)
            try:
                self.optimizer.load_state_dict(saved.optimizer)
                self.optimizer.check_state(self.model.params())
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"the checkpoint's optimizer is no {config.optimizer}: {error}") from None
            self.history = list(saved.history)

    @property
    def finished(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def train_epoch(self, on_step: OnStep | None = None) -> dict[str, Any]:
        """One pass over the training images, then a test; returns the entry that is added to the history.

        Parameters
        ----------
        on_step : callable, optional
            Called after every step with the number of images so far in this epoch, the mean loss and accuracy over them,
            and the images per second.

        Raises
        ------
        DivergedError
            The loss became infinite or no number. The model is spoilt; the last checkpoint is not.
        """
        images, labels = self.dataset.train_images, self.dataset.train_labels
        epoch = self.finished
        if self.config.augment and self.config.dataset == "digits":
            images, labels = mixed(images, labels, self._rng(DRAWING, epoch))
        order = self._rng(SHUFFLE, epoch).permutation(len(images))
        shifts = self._rng(SHIFT, epoch)
        self._seed_dropout(epoch)
        self.optimizer.lr = self.config.lr * 0.5 ** (epoch / HALF_LIFE[self.config.dataset])
        self.model.train()
        params = self.model.params()
        seen, loss_sum, correct, start = 0, 0.0, 0, time.perf_counter()
        # An overflow shows in the loss, which is checked: one clear error instead of a stream of warnings.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for begin in range(0, len(order), self.config.batch_size):
                chosen = order[begin : begin + self.config.batch_size]
                x, t = images[chosen], labels[chosen]
                if self.config.augment:
                    x = shifted(x, shifts)
                scores = self.model.forward(x)
                loss = self.loss.forward(scores, t)
                if not math.isfinite(loss):
                    raise DivergedError(self._diverged(loss, epoch, seen))
                self.model.backward(self.loss.backward(), need_dx=False)
                self.optimizer.update(params, self.model.grads())
                seen += len(chosen)
                loss_sum += loss * len(chosen)
                correct += int((scores.argmax(axis=1) == t).sum())
                if on_step is not None:
                    on_step(seen, loss_sum / seen, correct / seen, seen / (time.perf_counter() - start))
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = self.test()
        if not math.isfinite(test_loss):
            raise DivergedError(self._diverged(test_loss, epoch, seen))
        entry = {
            "epoch": epoch + 1,
            "loss": loss_sum / seen,
            "accuracy": correct / seen,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }
        self.history.append(entry)
        return entry

    def test(self) -> tuple[float, float]:
        """Mean loss and accuracy over the test images."""
        labels = self.dataset.test_labels
        scores = np.concatenate(list(scores_of(self.model, self.dataset.test_images)))
        with np.errstate(over="ignore", invalid="ignore"):
            loss = SoftmaxWithLoss().forward(scores, labels)
        return loss, float((scores.argmax(axis=1) == labels).mean())

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        return Checkpoint(
            config=self.config,
            image_shape=self.dataset.image_shape,
            classes=self.dataset.classes,
            history=list(self.history),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )

    def run(self, folder: Path, console: Console) -> None:
        """Train until ``config.epochs`` are finished; after each, write ``checkpoint.npz`` in ``folder`` and one line.

        On a terminal a progress bar stands below the lines.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _progress(self, console) as on_step:
            while self.finished < self.config.epochs:
                entry = self.train_epoch(on_step)
                checkpoints.write(self.checkpoint(), folder / checkpoints.FILE_NAME)
                self.saved = self.finished
                console.print(line(entry, self.config.epochs), highlight=False, markup=False, soft_wrap=True)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *key])

    def _seed_dropout(self, epoch: int) -> None:
        for index, layer in enumerate(self.model.layers):
            if isinstance(layer, Dropout):
                layer.rng = self._rng(DROPOUT, epoch, index)

    def _diverged(self, loss: float, epoch: int, seen: int) -> str:
        return (
            f"the loss became {loss} in epoch {epoch + 1}, after {seen} images: the steps are too large for this model. "
            f"Try a smaller learning rate than lr={self.config.lr:g}"
        )


def scores_of(model: Any, images: np.ndarray) -> Iterator[np.ndarray]:
    """The model's scores (n, classes) for ``images``, in inference mode, a batch at a time."""
    model.eval()
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(images), EVALUATION_BATCH):
            yield model.forward(images[begin : begin + EVALUATION_BATCH])


def load_model(model: Any, saved: Checkpoint) -> None:
    """Put a checkpoint's parameters into ``model``; CheckpointError if they are another model's, or not all finite."""
    try:
        with np.errstate(over="ignore"):
            model.load_state_dict(saved.model)
        for name, array in model.state_dict().items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds infinite values or NaN")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's parameters do not fit a {saved.config.model} model: {error}") from None


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images (N, 1, H, W), drawn at random, moved by whole pixels along either axis, zeros moving in.

    Each by its own distance: up to one pixel below 16 x 16, up to two from there. Half of them stay, because the digits
    fill their 8 x 8 pixels, and a shift cuts something off.

    Examples
    --------
    >>> bool(shifted(np.ones((1, 1, 8, 8), np.float32), np.random.default_rng(0)).sum() >= 49)
    True
    """
    count, _, height, width = images.shape
    reach = 1 if min(height, width) < 16 else 2
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    down, right = np.where(rng.random(count) < 0.5, rng.integers(0, 2 * reach + 1, (2, count)), reach)
    return windows[np.arange(count), :, down, right]


def line(entry: dict[str, Any], epochs: int) -> str:
    """An epoch's entry of the history as one line of text."""
    return (
        f"epoch {entry['epoch']:>{len(str(epochs))}}/{epochs}  loss {entry['loss']:.4f}  "
        f"accuracy {entry['accuracy']:6.2%}  test loss {entry['test_loss']:.4f}  "
        f"test accuracy {entry['test_accuracy']:6.2%}  {entry['images_per_second']:,.0f} images/s"
    )


@contextmanager
def _progress(trainer: Trainer, console: Console) -> Iterator[OnStep | None]:
    """A progress bar over all epochs; None where the console is no terminal."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn())
    images, epochs = len(trainer.dataset.train_images), trainer.config.epochs
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=epochs * images, completed=trainer.finished * images, now="")

        def on_step(seen: int, loss: float, accuracy: float, speed: float) -> None:
            progress.update(
                task,
                description=f"epoch {trainer.finished + 1}/{epochs}",
                completed=trainer.finished * images + seen,
                now=f"loss {loss:.4f}  accuracy {accuracy:.1%}  {speed:,.0f} images/s",
            )

        yield on_step
