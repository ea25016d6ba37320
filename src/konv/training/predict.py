"""Reading image files with a trained model: ``konv predict``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from konv.training import checkpoint as checkpoints
from konv.training.errors import PictureError
from konv.training.loop import load_model, scores_of
from konv.training.models import build

SMALLEST_CONTRAST = 8 / 255  # less between the lightest and the darkest pixel is an empty page


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
    checkpoint: str | os.PathLike[str], images: Iterable[str | os.PathLike[str]], *, invert: bool | None = None
) -> list[Prediction]:
    """Read image files with the model of a checkpoint.

    Parameters
    ----------
    checkpoint : path
        A checkpoint file, or the folder of a run.
    images : iterable of paths
        Files of any format that Pillow reads.
    invert : bool, optional
        As in :func:`prepare`.

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
    prepared = [prepare_file(path, saved.image_shape, invert=invert) for path in paths]
    if not prepared:
        return []
    scores = np.concatenate(list(scores_of(model, np.stack([image for image, _ in prepared])[:, None])))
    return [
        Prediction(path, _best(row, saved.classes), inverted)
        for path, (_, inverted), row in zip(paths, prepared, softmax(scores))
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


def prepare_file(
    path: str | os.PathLike[str], image_shape: tuple[int, int], *, invert: bool | None = None
) -> tuple[np.ndarray, bool]:
    """An image file as :func:`prepare` gives it; transparent parts count as white paper.

    Raises
    ------
    OSError
        The file is missing, or Pillow cannot read it as an image.
    PictureError
        As :func:`prepare`, naming the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            grey = np.asarray(_grey(upright), np.float32)
    except UnidentifiedImageError:
        raise OSError(f"{os.fspath(path)}: not an image that can be read") from None
    except (Image.DecompressionBombError, SyntaxError, ValueError, EOFError) as error:  # damaged files
        raise OSError(f"{os.fspath(path)}: not an image that can be read ({error})") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{os.fspath(path)}: {reason}") from None
    try:
        return prepare(grey, image_shape, invert=invert)
    except PictureError as error:
        raise PictureError(f"{os.fspath(path)}: {error}") from None


def prepare(
    grey: np.ndarray, image_shape: tuple[int, int], *, invert: bool | None = None
) -> tuple[np.ndarray, bool]:
    """A grey picture as the models were taught to see: light on a background of 0, the brightest pixel 1.

    The background is what most of the border shows (its median). Where the border is lighter than the middle of the
    picture's range, as with ink on paper, dark and light are exchanged. What is darker than the background after that
    becomes background. The picture is padded with background to the proportions of ``image_shape`` and resized, each new
    pixel the mean of the old ones below it.

    Parameters
    ----------
    grey : float array (h, w)
        Brightness on any scale, larger is lighter.
    image_shape : tuple of int
        Height and width to resize to.
    invert : bool, optional
        Whether to exchange dark and light; None decides by the border.

    Returns
    -------
    image : float32 array of ``image_shape``
        In [0, 1].
    inverted : bool
        Whether dark and light were exchanged.

    Raises
    ------
    PictureError
        The picture is empty: all of one grey, or all darker than its border where ``invert`` is forced.

    Examples
    --------
    >>> paper = np.full((16, 16), 255.0)
    >>> paper[4:12, 6:10] = 0
    >>> image, inverted = prepare(paper, (8, 8))
    >>> inverted, image[3].tolist()
    (True, [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    """
    from PIL import Image

    lowest, highest = float(grey.min()), float(grey.max())
    span = max(highest, 1.0 if highest <= 1 else 255.0)
    if highest - lowest < SMALLEST_CONTRAST * span:
        raise PictureError("the picture is all of one grey; there is nothing to read")
    border = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    background = float(np.median(border))
    inverted = background > (lowest + highest) / 2 if invert is None else invert
    ink = background - grey if inverted else grey - background
    ink = np.maximum(ink, 0)
    if ink.max() < SMALLEST_CONTRAST * span:
        other = "--no-invert" if inverted else "--invert"
        raise PictureError(f"nothing in the picture stands out from its border; try {other}")
    ink = _pad_to(ink / ink.max(), image_shape)
    height, width = image_shape
    if ink.shape == image_shape:
        return ink.astype(np.float32), inverted
    smaller = ink.shape[0] >= height
    filter_ = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    resized = Image.fromarray(ink.astype(np.float32), mode="F").resize((width, height), filter_)
    return np.clip(np.asarray(resized, np.float32), 0, 1), inverted


def _grey(image: object) -> np.ndarray:
    """Brightness of a Pillow image; 16-bit and float pictures keep their own scale."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("L"))


def _pad_to(picture: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """``picture`` amid zeros, so that its proportions are those of ``image_shape``."""
    (h, w), (height, width) = picture.shape, image_shape
    new_h, new_w = max(h, round(w * height / width)), max(w, round(h * width / height))
    top, left = (new_h - h) // 2, (new_w - w) // 2
    return np.pad(picture, ((top, new_h - h - top), (left, new_w - w - left)))


def _best(probabilities: np.ndarray, classes: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-probabilities, kind="stable")[:3]
    return tuple((classes[index], float(probabilities[index])) for index in order)
