"""``konv predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konv.commands.shell import columns_that_fit, fail, new_console, plain_errors

PATH = 32  # letters of a line of a file's name, for which no other column has to go


@plain_errors
def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="The folder of a run, or a checkpoint file.", show_default=False),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files: PNG, JPEG, GIF, ...", show_default=False)
    ],
    invert: Annotated[
        bool | None,
        typer.Option(
            "--invert/--no-invert",
            metavar="",
            help="Exchange dark and light, or do not. Default: if the border is light, as on paper.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit/--no-fit",
            metavar="",
            help="Crop the picture and frame it as the training images are. Default: yes. Without, it must be framed so already.",
            show_default=False,
        ),
    ] = True,
) -> None:
    """Read images with a trained network.

    A picture is made grey, light on dark as the training images are, cropped to what it shows, and as small as those. It
    should show one digit (or one piece of clothing), upright, on a background without lines. What cannot be read is told after
    the others, and the exit code is 1.

    **Examples**

    * `konv train` - makes runs/digits-simple
    * `konv predict runs/digits-simple PICTURE.png` - any picture of a digit, of yours
    * `konv predict runs/mnist-simple *.jpg`
    """
    from rich.table import Table
    from rich.text import Text

    from konv.training.predict import predict as read

    errors: list[Exception] = []
    predictions = read(checkpoint, images, invert=invert, fit=fit, on_error=errors.append)
    console = new_console()
    if len(images) == 1 and predictions:
        (one,) = predictions
        console.print(f"{one.best[0][0]}", highlight=False, markup=False, style="bold")
        for name, probability in one.best:
            console.print(f"  {name:<12} {probability:7.2%}", highlight=False, markup=False)
        return
    rows = []
    for one in predictions:
        (name, probability), *others = one.best
        rows.append((one.path, name, f"{probability:.1%}", *(f"{other} {share:.1%}" for other, share in others)))
    if rows:
        heads = ("image", "read as", "probability", *["then"] * (len(rows[0]) - 3))
        widths = [max(map(len, column)) for column in zip(heads, *rows)]
        widths[0] = min(widths[0], PATH)
        kept = columns_that_fit(widths, range(len(heads) - 1, 2, -1), console.width)
        table = Table()
        for number in kept:
            table.add_column(heads[number], overflow="fold", no_wrap=number > 0)  # a long path takes several lines
        for row in rows:
            table.add_row(*(Text(row[number], style="bold" if number == 1 else "") for number in kept))
        console.print(table)
    if errors:
        fail("\nError: ".join(map(str, errors)))
