"""Saving a training run and reading it back: one .npz file, no pickle, written whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from konv.training.config import Config
from konv.training.errors import CheckpointError

FORMAT = "konv checkpoint"
VERSION = 1
FILE_NAME = "checkpoint.npz"
SIDES = range(
    8, 257
)  # of the images; a model for far larger ones would fill the memory before its parameters are compared
ENTRY = {"epoch", "loss", "accuracy", "test_loss", "test_accuracy", "seconds", "images_per_second"}


@dataclass(frozen=True)
class Checkpoint:
    """A training run after some epoch.

    Attributes
    ----------
    config : Config
        The run's options.
    image_shape : tuple of int
        Height and width of the images that the model takes.
    classes : tuple of str
        The name of each label.
    history : list of dict
        One entry per finished epoch, as :class:`konv.training.loop.Trainer` writes them.
    model : dict of str to array
        The model's ``state_dict()``: parameters and buffers.
    optimizer : dict of str to array
        The optimizer's ``state_dict()``.
    """

    config: Config
    image_shape: tuple[int, int]
    classes: tuple[str, ...]
    history: list[dict[str, Any]]
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]


def write(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write ``checkpoint`` to ``path``; at every moment ``path`` is the old file whole or the new file whole.

    The new file grows under a temporary name in the same folder, is forced to the disk, and then takes the name over.

    Raises
    ------
    OSError
        The folder is missing or not writable, or the disk is full. The old file is left as it was.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.as_dict(),
        "image_shape": checkpoint.image_shape,
        "classes": checkpoint.classes,
        "history": checkpoint.history,
    }
    arrays = {"header": np.array(json.dumps(header))}
    arrays |= {f"model/{name}": array for name, array in checkpoint.model.items()}
    arrays |= {f"optimizer/{name}": array for name, array in checkpoint.optimizer.items()}

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, must leave no litter
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last; systems that cannot sync a folder do without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find(path: str | os.PathLike[str]) -> Path:
    """The checkpoint file that ``path`` means: itself, or ``checkpoint.npz`` in it if it is a run's folder.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}" + (f" ({path} is a folder)" if path.is_dir() else ""))
    return file


def run_folder(config: Config, output: Path | None, resume: Path | None) -> Path:
    """The folder for a run's files.

    Parameters
    ----------
    config : Config
        Names the folder where nobody else does.
    output : Path, optional
        The folder asked for.
    resume : Path, optional
        The checkpoint, or its folder, that the run goes on from.

    Returns
    -------
    folder : Path
        ``output``; else the folder of ``resume``; else ``runs/DATASET-MODEL``, or the first of ``runs/DATASET-MODEL-2``,
        ``-3`` and so on that does not exist or is empty. It is not made here.

    Raises
    ------
    ValueError
        ``output`` exists, is not empty, and is not the folder of ``resume``; or it is a file.
    """
    home = find(resume).parent if resume is not None else None
    if output is not None:
        if output.exists() and not output.is_dir():
            raise ValueError(f"output {output} is a file; it must be a folder")
        if _is_free(output) or (home is not None and home.resolve() == output.resolve()):
            return output
        raise ValueError(
            f"output {output} is not empty, and a run does not write over another. Choose a new folder, or go on with "
            f"that run: konv train --resume {output}"
        )
    if home is not None:
        return home
    base = Path("runs", f"{config.dataset}-{config.model}")
    return next(folder for folder in _numbered(base) if _is_free(folder))


def resume_command(folder: Path, epochs: int | None) -> str:
    """What to type to go on with the run in ``folder``, to ``epochs`` where they are not its own."""
    return shlex.join(["konv", "train", "--resume", str(folder), *(["--epochs", str(epochs)] if epochs else [])])


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for number in itertools.count(2):
        yield base.with_name(f"{base.name}-{number}")


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what :func:`write` wrote, from a file or a run's folder.

    Raises
    ------
    FileNotFoundError, OSError
        There is no such file, or it cannot be read.
    CheckpointError
        The file is damaged, is something else, or comes from a newer konv.
    """
    path = find(path)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # before NumPy believes any size in it
        if bad is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of its part {bad!r} is wrong")
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
    except (CheckpointError, FileNotFoundError, PermissionError):
        raise
    # What zipfile and NumPy raise for damaged bytes: RuntimeError and NotImplementedError for flags of other archivers.
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        KeyError,
        EOFError,
        OSError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise CheckpointError(f"{path} is damaged, or is no konv checkpoint ({error})") from None
    return _parse(content, path)


def _parse(content: dict[str, np.ndarray], path: Path) -> Checkpoint:
    if "header" not in content:
        raise CheckpointError(f"{path} is no konv checkpoint: it has no header")
    try:
        header = json.loads(str(content["header"]))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}")
        version = header["version"]
        if version != VERSION:
            raise ValueError(f"its version is {version}, this konv reads version {VERSION}; a newer konv may read it")
        config, history = Config.from_dict(header["config"]), _history(header["history"])
        if len(history) > config.epochs:
            raise ValueError(f"{len(history)} epochs are finished, and it has {config.epochs}")
        return Checkpoint(
            config=config,
            image_shape=_image_shape(header["image_shape"]),
            classes=_classes(header["classes"]),
            history=history,
            model=_part(content, "model/"),
            optimizer=_part(content, "optimizer/"),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no checkpoint that this konv can read: {error}") from None


def _image_shape(sides: Any) -> tuple[int, int]:
    if not (isinstance(sides, list) and len(sides) == 2 and all(type(n) is int and n in SIDES for n in sides)):
        raise ValueError(f"its image_shape is {sides!r}; expected two integers from {SIDES[0]} to {SIDES[-1]}")
    return sides[0], sides[1]


def _classes(names: Any) -> tuple[str, ...]:
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name.isprintable() for name in names)):
        raise ValueError("its classes are no list of names")
    return tuple(names)


def _history(entries: Any) -> list[dict[str, Any]]:
    if not isinstance(entries, list):
        raise ValueError("its history is no list")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or ENTRY - entry.keys() or entry["epoch"] != number:
            raise ValueError(f"entry {number} of its history is not that of epoch {number}")
        for name in ENTRY:
            if type(entry[name]) not in (int, float) or not math.isfinite(entry[name]):
                raise ValueError(f"{name} of epoch {number} in its history is {entry[name]!r}, no finite number")
    return entries


def _part(content: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in content.items() if name.startswith(prefix)}
