"""``konv train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from konv.commands.shell import fail, new_console, plain_errors, usage


@plain_errors
def train(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET", help="The images: digits (the default), mnist or fashion-mnist.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The network: simple (the default), deep or sequence.", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Passes over the training images. Default: 60 for digits, else 6.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Images per step. Default: 32 for digits, else 100.", show_default=False),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How weights are updated: adam (the default), momentum or sgd.", show_default=False
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Learning rate at the start. Default: 0.002 for adam, 0.02 for momentum, 0.1 for sgd.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Where all random numbers begin: the same seed, the same result. Default: 0.",
            show_default=False,
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            metavar="",
            help="Shift training images by a pixel or two. Default: yes.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Go on with this run: its folder, or its checkpoint file.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for checkpoint and report; must be new or empty. Default: runs/DATASET-MODEL, with a number behind it "
            "if that is taken.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with the files of mnist or fashion-mnist. Default: $KONV_DATA.",
            show_default=False,
        ),
    ] = None,
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
    from konv.training.page import duration

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

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    data = load(config.dataset, data_dir, console=console)
    trainer = Trainer(config, data, saved)
    height, width = data.image_shape
    say(
        f"{data.name}: {len(data.train_images):,} training and {len(data.test_images):,} test images "
        f"of {height} x {width} pixels, {len(data.classes)} classes"
    )
    parameters = sum(array.size for array in trainer.model.params().values())
    say(f"{config.model}: {parameters:,} parameters; {config.optimizer}, lr {config.lr:g}, seed {config.seed}")
    if saved:
        done = trainer.finished == config.epochs
        say(
            f"all {config.epochs} epochs are finished: only the report is written. To train further, give --epochs"
            if done
            else f"going on after epoch {trainer.finished} of {config.epochs}"
        )
    try:
        trainer.run(folder, console)
    except KeyboardInterrupt:
        place, epoch = (folder, trainer.saved) if trainer.saved else (resume, len(saved.history) if saved else 0)
        if place is None:
            fail("interrupted in the first epoch; nothing was saved", 130)
        again = checkpoints.resume_command(place, epochs if saved else None)
        fail(f"interrupted after epoch {epoch} of {config.epochs}. Go on with: {again}", 130)
    page = report.write(trainer, folder, config.command())
    last = trainer.history[-1]
    wrong = round((1 - last["test_accuracy"]) * len(data.test_images))
    say(
        f"test accuracy {last['test_accuracy']:.2%} ({wrong:,} of {len(data.test_images):,} misread) after "
        f"{duration(sum(entry['seconds'] for entry in trainer.history))} of training"
    )
    say(f"report: {page}")
    say(f"to read an image of your own: konv predict {folder} IMAGE")
