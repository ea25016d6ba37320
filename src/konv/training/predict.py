"""Reading image files with a trained model: ``konv predict``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from konv.training import checkpoint as checkpoints
from konv.training.errors import PictureError
from konv.training.loop import load_model, scores_of
from konv.training.models import build
from konv.training.pictures import FRAMES, prepare_file


@dataclass(frozen=True)
class Prediction:
    """What a model reads in one image.

    Attributes
    ----------
    path : str
        The image file.
    best : tuple of (str, float)
        The three most probable classes with their probabilities, the most probable first.
    inverted : bool
        Whether dark and light were exchanged before reading.
    """

    path: str
    best: tuple[tuple[str, float], ...]
    inverted: bool


def predict(
    checkpoint: str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    invert: bool | None = None,
    fit: bool = True,
    on_error: Callable[[Exception], object] | None = None,
) -> list[Prediction]:
    """Read image files with the model of a checkpoint.

    Parameters
    ----------
    checkpoint : path
        A checkpoint file, or the folder of a run.
    images : iterable of paths
        Files of any format that Pillow reads.
    invert : bool, optional
        As in :func:`konv.training.pictures.prepare`.
    fit : bool
        Whether a picture is cropped to what it shows and framed as the training images are. One that has the size of a
        training image already is taken as it is.
    on_error : callable, optional
        Called with the OSError or PictureError of each image that cannot be read, which is then left out; without it the
        first one is raised.

    Raises
    ------
    OSError
        A file is missing, or is no image.
    CheckpointError
        The checkpoint is damaged or is something else.
    PictureError
        An image is empty.
    """
    saved = checkpoints.read(checkpoint)
    model = build(saved.config.model, saved.image_shape, len(saved.classes), np.random.default_rng(0))
    load_model(model, saved)
    paths = [os.fspath(path) for path in images]
    frame = FRAMES[saved.config.dataset] if fit else None
    read, prepared = [], []
    for path in paths:
        try:
            prepared.append(prepare_file(path, saved.image_shape, invert=invert, frame=frame))
        except (OSError, PictureError) as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            read.append(path)
    if not prepared:
        return []
    scores = np.concatenate(list(scores_of(model, np.stack([image for image, _ in prepared])[:, None])))
    return [
        Prediction(path, _best(row, saved.classes), inverted)
        for path, (_, inverted), row in zip(read, prepared, softmax(scores))
    ]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) from scores (N, classes).

    Examples
    --------
    >>> softmax(np.array([[0.0, 0.0], [1000.0, 0.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    with np.errstate(under="ignore"):
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


def _best(probabilities: np.ndarray, classes: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-probabilities, kind="stable")[:3]
    return tuple((classes[index], float(probabilities[index])) for index in order)
