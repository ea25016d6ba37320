"""The data sets of ``konv train``: found on disk, or downloaded; in every case checked against known contents.

``digits``
    1797 images of 8 x 8 pixels, shipped inside scikit-learn (a copy of the test set of UCI's *Optical Recognition of
    Handwritten Digits*, Alpaydin and Kaynak, 1998). It has no official split; :func:`split_digits` fixes one.
``mnist``, ``fashion-mnist``
    60,000 training and 10,000 test images of 28 x 28 pixels, in the official split. LeCun, Bottou, Bengio, Haffner,
    *Gradient-based learning applied to document recognition*, 1998; Xiao, Rasul, Vollgraf, *Fashion-MNIST*, 2017.

Where the files of the last two are looked for, in this order; each file may be plain or compressed with gzip:

1. the folder given (``--data-dir``), else the one in the environment variable ``KONV_DATA``;
2. konv's cache folder;
3. ``data/MNIST/raw`` or ``data/FashionMNIST/raw`` below the working folder, where torchvision keeps them;
4. for Fashion-MNIST, ``/usr/share/datasets/fashion-mnist``: Debian's package ``dataset-fashion-mnist``.

In a folder of 1 the files may lie directly, in ``NAME/`` or in torchvision's ``MNIST/raw/``. What is downloaded goes to
``NAME/`` in the folder of 1 if there is one, else to the cache folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from konv.training.download import download_file
from konv.training.idx import parse_idx, read_bytes
from konv.training.sources import DIGIT_NAMES, SOURCES, RemoteFile, Source, wrong_content

if TYPE_CHECKING:
    from rich.console import Console

DATASETS = ("digits", *SOURCES)
SPLIT_SEED = 0
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """A labelled set of grey images, split in two.

    Attributes
    ----------
    name : str
        As in ``konv train NAME``.
    classes : tuple of str
        The name of each label.
    train_images, test_images : float32 array (N, 1, H, W)
        Brightness in [0, 1]; 0 is the background.
    train_labels, test_labels : int64 array (N,)
        Indices into ``classes``.
    """

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.train_images.shape[2:]
        return height, width


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    console: Console | None = None,
) -> Dataset:
    """A data set by name.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion-mnist"}
        Which one.
    data_dir : path, optional
        A folder to look in first, and to download to. Not used by digits, which needs no file.
    download : bool
        Whether to download what is not on disk.
    console : rich.console.Console, optional
        Where to say what is downloaded or passed over; silent without one.

    Raises
    ------
    ValueError
        Unknown name.
    NotADirectoryError
        ``data_dir`` is given and is a file.
    FileNotFoundError
        The files are nowhere on disk and could not be downloaded; the message lists every place and says what to do.

    Examples
    --------
    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.test_images.shape
    ((1438, 1, 8, 8), (359, 1, 8, 8))
    >>> digits.train_images.dtype, float(digits.train_images.max())
    (dtype('float32'), 1.0)
    """
    if name not in DATASETS:
        raise ValueError(f"data set must be one of {', '.join(DATASETS)}; got {name!r}")
    if name == "digits":
        return _load_digits()
    return load_source(SOURCES[name], data_dir, download=download, console=console)


def split_digits(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The split of digits: of every class a fifth, drawn with seed 0, is for testing.

    Parameters
    ----------
    labels : int array (N,)
        The labels in scikit-learn's order.

    Returns
    -------
    train, test : int64 arrays
        Indices in rising order; together every index once.

    Examples
    --------
    >>> train, test = split_digits(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
    >>> len(train), len(test)
    (8, 2)
    """
    rng = np.random.default_rng(SPLIT_SEED)
    test = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test.append(members[: round(TEST_SHARE * len(members))])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images / 16).astype(np.float32)[:, None]  # 16 is the most a pixel can count
    labels = raw.target.astype(np.int64)
    train, test = split_digits(labels)
    return Dataset("digits", DIGIT_NAMES, images[train], labels[train], images[test], labels[test])


def load_source(
    source: Source,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    console: Console | None = None,
) -> Dataset:
    """A data set of four IDX files, as :func:`load` does for those it knows."""
    root = data_dir if data_dir is not None else os.environ.get("KONV_DATA") or None
    if root is not None and Path(root).exists() and not Path(root).is_dir():
        raise NotADirectoryError(f"the data folder {root} is a file; it must be the folder that holds the files")
    folders = _folders(source, root)
    target = (Path(root) if root is not None else cache_folder()) / source.name
    arrays = []
    for file in source.files:
        content, passed_over = _find(file, folders)
        if console and passed_over:
            console.print(*(f"passed over {reason}" for reason in passed_over), sep="\n", markup=False, soft_wrap=True)
        if content is None:
            failures: list[str] = []
            if download:
                content, failures = download_file(file, source.addresses, target, console)
            if content is None:
                raise FileNotFoundError(_nowhere(source, file, folders, passed_over, failures, download))
        arrays.append(parse_idx(content, file.name))
    images, labels = [_unit(arrays[0]), _unit(arrays[2])], [a.astype(np.int64) for a in (arrays[1], arrays[3])]
    return Dataset(source.name, source.classes, images[0], labels[0], images[1], labels[1])


def cache_folder() -> Path:
    """Where downloads go when no folder is named: the user's cache folder of the operating system, then ``konv``."""
    import pooch

    return Path(pooch.os_cache("konv"))


def _unit(images: np.ndarray) -> np.ndarray:
    """Bytes (N, H, W) as float32 (N, 1, H, W) in [0, 1]."""
    return (images[:, None] / np.float32(255)).astype(np.float32, copy=False)


def _folders(source: Source, root: str | os.PathLike[str] | None) -> list[Path]:
    raw = Path(source.torchvision_folder, "raw")
    own = [Path(root), Path(root, source.name), Path(root, raw)] if root is not None else []
    return [*own, cache_folder() / source.name, Path("data") / raw, *map(Path, source.system_folders)]


def _find(file: RemoteFile, folders: list[Path]) -> tuple[bytes | None, list[str]]:
    """The file's content from the first folder that has it right, and why other candidates were passed over."""
    dotted = file.name.replace("-idx", ".idx")  # the spelling of some archives
    passed_over: list[str] = []
    for folder in folders:
        for name in (file.name, file.name + ".gz", dotted, dotted + ".gz"):
            path = folder / name
            if not path.is_file():
                continue
            try:
                content = read_bytes(path)
                reason = wrong_content(content, file, path)
            except (OSError, ValueError) as error:
                reason = str(error)
            if not reason:
                return content, passed_over
            passed_over.append(reason)
    return None, passed_over


def _nowhere(
    source: Source,
    file: RemoteFile,
    folders: list[Path],
    passed_over: list[str],
    failures: list[str],
    download: bool,
) -> str:
    """The message for a data set that is neither on disk nor to be had."""
    lines = [f"{source.name}: {file.name} is not on this machine" + (", and could not be downloaded" * download) + "."]
    lines += ["Looked in (plain or .gz):", *(f"  {folder}" for folder in folders)]
    if passed_over:
        lines += ["Found, but passed over:", *(f"  {reason}" for reason in passed_over)]
    if failures:
        lines += ["Tried to download:", *(f"  {reason}" for reason in failures)]
    names = ", ".join(f"{f.name}.gz" for f in source.files)
    lines += [
        "What to do:",
        f"  put {names} into a folder and name it with --data-dir or in KONV_DATA;",
        *([f"  or {source.hint};"] if source.hint else []),
        "  or train on digits, which needs no download: konv train digits",
    ]
    return "\n".join(lines)
