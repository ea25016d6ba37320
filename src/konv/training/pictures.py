"""From a picture to what the networks were taught to see: grey, light on dark, framed as the makers of the images did."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from konv.training.errors import PictureError

SMALLEST_CONTRAST = 8 / 255  # less between the lightest and the darkest pixel is an empty page
INK = 0.2  # of the brightest; what is darker does not count when the picture is cropped to what it shows
RIM = 16  # the border is a 16th of the shorter side wide
ROUNDS = 15  # of the fit of the page's brightness
LONGEST = 2048  # pixels of a side that are looked at; a thin strip of 60,000 would be framed in a square of 14 GB
ENOUGH = 256  # pixels of the shorter side; means of more cells have less grain
GRAIN = 0.02  # standard deviation of the noise, of the contrast; with more, the means of more cells are taken
COARSE = 64  # pixels of the shorter side that these leave
SPECK = 1 / 30  # of the area of the largest thing shown; what is smaller is dirt
EDGE = 1 / 5  # of the shorter side: what lies along half a side and is nowhere further from the border is no writing


@dataclass(frozen=True)
class Frame:
    """How the makers of a data set cut their images.

    Attributes
    ----------
    fill : float
        How much of the image's side the longer side of the shown thing takes, in (0, 1].
    by_mass : bool
        Whether the middle of the image is the thing's centre of mass; else it is the middle of its box.
    stroke : float
        How thick a pen's stroke is at least, as a share of the longer side of what is shown; 0 asks for nothing.
    """

    fill: float
    by_mass: bool = False
    stroke: float = 0.0


# A thin pen vanishes in 8 x 8 pixels: of 100 digits drawn with a line of a fiftieth of the page, 37 were read right, with
# stroke=0.14 92. That is as thin as a twentieth of the training images are. In 28 x 28 pixels it gains nothing.
# Framed as wide as the training images are (5 of 8 columns) no more is read right; thicker strokes gain sevens and lose nines.
FRAMES = {
    "digits": Frame(1.0, stroke=0.14),
    "mnist": Frame(20 / 28, by_mass=True),
    "fashion-mnist": Frame(1.0),
}


def prepare_file(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int],
    *,
    invert: bool | None = None,
    frame: Frame | None = None,
) -> tuple[np.ndarray, bool]:
    """An image file as :func:`prepare` gives it; transparent parts count as white paper.

    A picture with sides of 512 pixels and more, or one of more than 2048, is first made smaller, by the mean of n x n pixels.

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
            grey = _smaller(np.asarray(_grey(upright), np.float32))
    except UnidentifiedImageError:
        raise OSError(f"{os.fspath(path)}: not an image that can be read") from None
    except (Image.DecompressionBombError, SyntaxError, ValueError, EOFError) as error:  # damaged files
        raise OSError(f"{os.fspath(path)}: not an image that can be read ({error})") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{os.fspath(path)}: {reason}") from None
    try:
        return prepare(grey, image_shape, invert=invert, frame=frame)
    except PictureError as error:
        raise PictureError(f"{os.fspath(path)}: {error}") from None


def prepare(
    grey: np.ndarray, image_shape: tuple[int, int], *, invert: bool | None = None, frame: Frame | None = None
) -> tuple[np.ndarray, bool]:
    """A grey picture as the models were taught to see: light on a background of 0, the brightest pixel 1.

    The background is what most of the border shows (its median); where light falls off over the page, the surface of second
    degree through most of it. Where the border shows noise, pixels are first averaged. Where the darkest pixel is further
    from the background than the brightest, as with ink on paper, dark and light are exchanged. What is darker than the
    background after that becomes background. Then the picture is cropped to what it shows if there is a ``frame``, specks and
    what lies along the border left out, its strokes are made as thick as that asks for, it is padded with background to the
    proportions of ``image_shape``, and resized, each new pixel the mean of the old ones below it. A picture that has
    ``image_shape`` keeps its pixels where they are.

    Parameters
    ----------
    grey : float array (h, w)
        Brightness on any scale, larger is lighter.
    image_shape : tuple of int
        Height and width to resize to.
    invert : bool, optional
        Whether to exchange dark and light; None decides by what stands out more.
    frame : Frame, optional
        Crop to what is shown, and place it as this says.

    Returns
    -------
    image : float32 array of ``image_shape``
        In [0, 1].
    inverted : bool
        Whether dark and light were exchanged.

    Raises
    ------
    PictureError
        The picture is empty: all of one grey, or all darker than its border where ``invert`` is forced; or a pixel is infinite,
        too large to subtract or no number, as float pictures may hold.

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
    if not highest - lowest <= float(np.finfo(np.float32).max):  # a NaN is not
        raise PictureError("a pixel of the picture is infinite, far too large, or no number")
    span = max(highest, 1.0 if highest <= 1 else 255.0)
    if grey.shape != image_shape:
        grey = _calmer(grey)
    paper = _paper(grey, even=grey.shape == image_shape)
    ink = grey - paper
    darkest, brightest = -float(ink.min()), float(ink.max())
    inverted = darkest > brightest if invert is None else invert
    if max(darkest, brightest) < SMALLEST_CONTRAST * span:
        raise PictureError("the picture is all of one grey; there is nothing to read")
    if (darkest if inverted else brightest) < SMALLEST_CONTRAST * span:
        other = "--no-invert" if inverted else "--invert"
        raise PictureError(f"nothing in the picture stands out from its border; try {other}")
    if inverted:
        ink = -ink / np.maximum(paper, paper.max() / 8) if paper.min() > 0 else -ink  # ink takes a share of the light
    noise = 0.0 if grey.shape == image_shape else _noise(ink)
    ink = np.maximum(ink, 0)
    if grey.shape == image_shape:
        return (ink / ink.max()).astype(np.float32), inverted
    if 3 * noise > INK * ink.max():  # taking out fainter noise lost up to 3 of 74 digits
        ink[ink < 3 * noise] = 0
    if frame:
        ink = _clean(ink)
    ink /= ink.max()
    height, width = image_shape
    if frame:
        ink = _cropped(ink)
        ink = _thickened(ink, (frame.stroke * max(ink.shape) - _thickness(ink)) / 2)
    ink = _framed(ink, height / width, frame or Frame(1.0))
    kind = Image.Resampling.BOX if ink.shape[0] >= height else Image.Resampling.BILINEAR
    resized = Image.fromarray(ink.astype(np.float32), mode="F").resize((width, height), kind)
    return np.clip(np.asarray(resized, np.float32), 0, 1), inverted


def _paper(grey: np.ndarray, even: bool) -> np.ndarray:
    """The brightness of the empty page: (1, 1) where it is even, else (h, w).

    It is what most of the border shows, its median. Where light falls off over the page, that is far from most of the border;
    then it is the surface of second degree with the smallest sum of absolute distances from the border, which is what the
    median is among constants. Each round of the fit weighs pixels by the inverse of their last distance.
    """
    height, width = grey.shape
    rim = max(min(height, width) // RIM, 1)
    inside = np.zeros(grey.shape, bool)
    inside[rim:-rim, rim:-rim] = True
    border = grey[~inside].astype(np.float64)
    level = np.median(border)
    distance = border - level
    before = float(np.abs(distance).sum())
    if even or min(height, width) < RIM or not before:
        return np.full((1, 1), level)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    known = terms[~inside]
    for _ in range(ROUNDS):
        weighted = known.T / np.maximum(np.abs(distance), before / len(border) / 100)
        surface = np.linalg.solve(weighted @ known, weighted @ border)
        distance = border - known @ surface
    return terms @ surface if np.abs(distance).sum() < before / 3 else np.full((1, 1), level)


def _grey(image: object) -> np.ndarray:
    """Brightness of a Pillow image; 16-bit and float pictures keep their own scale."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("L"))


def _smaller(grey: np.ndarray) -> np.ndarray:
    """``grey`` with no side longer than :data:`LONGEST`, the shorter one less than twice :data:`ENOUGH`.

    Each pixel is the mean of n x n, at the ends of fewer.
    """
    from PIL import Image

    factor = max(-(-max(grey.shape) // LONGEST), min(grey.shape) // ENOUGH)
    return grey if factor == 1 else np.asarray(Image.fromarray(grey, mode="F").reduce(factor))


def _noise(grey: np.ndarray) -> float:
    """Standard deviation of the noise from pixel to pixel, by the median difference of neighbours along the border."""
    if grey.size == 1:
        return 0.0
    grey = grey.astype(np.float64)
    rim = max(min(grey.shape) // RIM, 1)
    steps = [np.diff(part, axis=1) for part in (grey[:rim], grey[-rim:])]
    steps += [np.diff(part, axis=0) for part in (grey[:, :rim], grey[:, -rim:])]
    return 1.4826 / 2**0.5 * float(np.median(np.abs(np.concatenate([part.ravel() for part in steps]))))


def _calmer(grey: np.ndarray) -> np.ndarray:
    """``grey``, the mean of n x n pixels where there is noise."""
    from PIL import Image

    bearable = GRAIN * float(grey.max() - grey.min())
    factor = min(int(np.ceil(_noise(grey) / bearable)) if bearable else 1, min(grey.shape) // COARSE)
    return grey if factor <= 1 else np.asarray(Image.fromarray(grey.astype(np.float32), mode="F").reduce(factor))


def _clean(ink: np.ndarray) -> np.ndarray:
    """``ink`` without what lies along the border, as a table beside the page does, and then without specks."""
    ink = _without(ink, _bands)
    return _without(ink, _specks)


def _without(ink: np.ndarray, unwanted: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """``ink`` without those connected parts that ``unwanted`` picks, and without their soft rims; all of it if nothing is left.

    ``unwanted`` is given the number of each cell's part (h, w), 0 for background, and the parts' sizes, 0 for background.
    """
    from scipy import ndimage  # comes with scikit-learn

    parts, count = ndimage.label(ink > INK * ink.max(), np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    dropped = unwanted(parts, sizes) & (sizes > 0)
    if not dropped.any() or dropped[1:].all():
        return ink
    near = ndimage.binary_dilation(dropped[parts], np.ones((3, 3)), iterations=2) & (dropped[parts] | (parts == 0))
    return np.where(near, 0, ink)


def _bands(parts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which parts lie along half a side, and nowhere far from the border."""
    deep = max(round(min(parts.shape) * EDGE), 1)
    inner = parts[deep:-deep, deep:-deep]
    lines = (parts[0], parts[-1], parts[:, 0], parts[:, -1])
    along = np.max([np.bincount(line, minlength=len(sizes)) / len(line) for line in lines], axis=0)
    return (along >= 0.5) & (np.bincount(inner.ravel(), minlength=len(sizes)) == 0)


def _specks(parts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which parts are far smaller than the largest."""
    return sizes < SPECK * sizes.max()


def _cropped(ink: np.ndarray) -> np.ndarray:
    """The part between the first and the last row, and column, with ink."""
    rows, columns = (np.flatnonzero((ink > INK).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thickness(ink: np.ndarray) -> float:
    """About how thick strokes are, in cells.

    A stroke ``t`` thick and ``l`` long has the area ``t * l`` and the outline ``2 * l``. An outline crosses ``4 / pi``
    borders of cells for each cell of its length, on the average over all directions (Crofton).
    """
    inside = np.pad(ink > 0.5, 1)
    borders = sum(int((a != b).sum()) for a, b in ((inside[1:], inside[:-1]), (inside[:, 1:], inside[:, :-1])))
    return 2 * int(inside.sum()) / (np.pi / 4 * max(borders, 1))


def _thickened(ink: np.ndarray, reach: float) -> np.ndarray:
    """Each cell becomes the largest up to ``reach`` cells away along both axes; the picture grows by that at each end."""
    cells = round(reach)
    if cells < 1:
        return ink
    ink = np.pad(ink, 2 * cells)
    for axis in (0, 1):
        ink = np.moveaxis(ink, axis, 0)
        seen = 1  # cells that each value is the largest of; doubled until it is all
        while seen < 2 * cells + 1:
            step = min(seen, 2 * cells + 1 - seen)
            ink = np.maximum(ink[step:], ink[:-step])
            seen += step
        ink = np.moveaxis(ink, 0, axis)
    return ink


def _framed(ink: np.ndarray, proportion: float, frame: Frame) -> np.ndarray:
    """``ink`` amid zeros whose height is ``proportion`` of their width; it takes ``frame.fill`` of the tighter side."""
    h, w = ink.shape
    height = max(h, w * proportion) / frame.fill
    free = max(round(height) - h, 0), max(round(height / proportion) - w, 0)
    before = [cells // 2 for cells in free]
    if frame.by_mass:
        for axis, (cells, length) in enumerate(zip(free, ink.shape)):
            mass = ink.sum(axis=1 - axis)
            centre = float((mass * (np.arange(length) + 0.5)).sum() / mass.sum())
            before[axis] = min(max(round((length + cells) / 2 - centre), 0), cells)
    return np.pad(ink, [(start, cells - start) for start, cells in zip(before, free)])
