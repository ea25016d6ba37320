"""``konv train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konv.commands.shell import fail, new_console, plain_errors, usage

if TYPE_CHECKING:
    from rich.console import Console

    from konv.training.loop import Trainer


def option(metavar: str, words: str, name: str | None = None, parser: Callable[[str], object] | None = None) -> Any:
    """An option that may be left out; its default, which may depend on others, is told in words."""
    return typer.Option(*([name] if name else []), metavar=metavar, help=words, show_default=False, parser=parser)


def whole_number(text: str) -> int:
    """typer's own message does not tell what was typed."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """As :func:`whole_number`."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


Images = Annotated[
    str | None,
    typer.Argument(
        metavar="DATASET", help="The images: digits (the default), mnist or fashion-mnist.", show_default=False
    ),
]
Network = Annotated[str | None, option("NAME", "The network: simple (the default), deep or sequence.")]
Epochs = Annotated[
    int | None,
    option("NUMBER", "Passes over the training images. Default: 60 for digits, else 6.", parser=whole_number),
]
BatchSize = Annotated[
    int | None, option("NUMBER", "Images per step. Default: 32 for digits, else 100.", parser=whole_number)
]
Optimizer = Annotated[str | None, option("NAME", "How weights are updated: adam (the default), momentum or sgd.")]
LearningRate = Annotated[
    float | None,
    option(
        "NUMBER", "Learning rate at the start. Default: 0.002 for adam, 0.02 for momentum, 0.1 for sgd.", parser=number
    ),
]
Seed = Annotated[
    int | None,
    option(
        "NUMBER", "Where all random numbers begin: the same seed, the same result. Default: 0.", parser=whole_number
    ),
]
Augment = Annotated[
    bool | None,
    option(
        "",
        "Shift training images by a pixel or two; a tenth of those of digits are drawn as by a pen. Default: yes.",
        "--augment/--no-augment",
    ),
]
Resume = Annotated[Path | None, option("FOLDER", "Go on with this run: its folder, or its checkpoint file.")]
Output = Annotated[
    Path | None,
    option(
        "FOLDER",
        "Folder for checkpoint and report; must be new or empty. Default: runs/DATASET-MODEL, with a number behind it if that "
        "is taken.",
    ),
]
DataDir = Annotated[
    Path | None, option("FOLDER", "Folder with the files of mnist or fashion-mnist. Default: $KONV_DATA.")
]


@plain_errors
def train(
    dataset: Images = None,
    model: Network = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    optimizer: Optimizer = None,
    lr: LearningRate = None,
    seed: Seed = None,
    augment: Augment = None,
    resume: Resume = None,
    output: Output = None,
    data_dir: DataDir = None,
) -> None:
    """Train a network on images and write a report.

    **digits** are 1797 small images (8 x 8) that come with scikit-learn. **mnist** and
    **fashion-mnist** have 70,000 images (28 x 28); they are looked for on this machine, else downloaded.

    **simple** is one convolution and two dense layers; **deep** has six convolutions; **sequence**
    reads an image row by row through DownConv.

    The folder of a run gets checkpoint.npz after every epoch, and at the end report.html with its pictures.

    **Examples**

    * `konv train` - digits, in less than a minute
    * `konv train mnist --epochs 3` - a bigger task
    * `konv train fashion-mnist --model deep` - clothes, with the deep network
    * `konv train --resume runs/digits-simple` - go on after an interruption
    * `konv train --resume runs/digits-simple --epochs 90` - train a finished run further
    """
    from konv.training import checkpoint as checkpoints
    from konv.training import report
    from konv.training.config import Config
    from konv.training.data import load
    from konv.training.loop import Trainer

    given: dict[str, Any] = {
        "dataset": dataset,
        "model": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "seed": seed,
        "augment": augment,
    }
    saved = checkpoints.read(resume) if resume is not None else None
    with usage():
        config = saved.config.resumed(len(saved.history), given) if saved else Config.create(**given)
        folder = checkpoints.run_folder(config, output, resume)
    console = new_console()
    trainer = Trainer(config, load(config.dataset, data_dir, console=console), saved)
    say(console, *before(trainer, resumed=saved is not None))
    try:
        trainer.run(folder, console)
    except KeyboardInterrupt:
        place, epoch = (folder, trainer.saved) if trainer.saved else (resume, len(saved.history) if saved else 0)
        if place is None:
            fail("interrupted in the first epoch; nothing was saved", 130)
        again = checkpoints.resume_command(place, epochs if saved else None)
        fail(f"interrupted after epoch {epoch} of {config.epochs}. Go on with: {again}", 130)
    say(console, after(trainer))
    try:
        page = report.write(trainer, folder, config.command())
    except KeyboardInterrupt:
        place = folder if trainer.saved or resume is None else resume  # where the network is kept
        again = checkpoints.resume_command(place, None if trainer.saved else epochs)
        fail(
            f"interrupted while the report was written. The training is finished and kept in {place}. "
            f"Write the report with: {again}", 130,
        )  # fmt: skip
    say(console, f"report: {page}", f"to read an image of your own: konv predict {folder} IMAGE")


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, long ones too."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def before(trainer: Trainer, resumed: bool) -> list[str]:
    """What is trained, on what, and where a resumed run goes on."""
    config, data = trainer.config, trainer.dataset
    height, width = data.image_shape
    parameters = sum(array.size for array in trainer.model.params().values())
    lines = [
        f"{data.name}: {len(data.train_images):,} training and {len(data.test_images):,} test images "
        f"of {height} x {width} pixels, {len(data.classes)} classes",
        f"{config.model}: {parameters:,} parameters; {config.optimizer}, lr {config.lr:g}, seed {config.seed}",
    ]
    if resumed and trainer.finished == config.epochs:
        lines.append(
            f"all {config.epochs} epochs are finished: only the report is written. To train further, give --epochs"
        )
    elif resumed:
        lines.append(f"going on after epoch {trainer.finished} of {config.epochs}")
    return lines


def after(trainer: Trainer) -> str:
    """How well it reads the test images, and how long it trained."""
    from konv.training.page import duration

    images, accuracy = len(trainer.dataset.test_images), trainer.history[-1]["test_accuracy"]
    return (
        f"test accuracy {accuracy:.2%} ({round((1 - accuracy) * images):,} of {images:,} misread) after "
        f"{duration(sum(entry['seconds'] for entry in trainer.history))} of training"
    )
