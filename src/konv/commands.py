"""``konv train | predict | check | bench | warmup | info``: parse, call, print. A command imports what it calls."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from konv.training.errors import INSTALL, UserError

if TYPE_CHECKING:
    from rich.console import Console

EXTRAS = {"sklearn", "matplotlib", "PIL", "pooch", "requests", "threadpoolctl"}

app = typer.Typer(
    name="konv",
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def konv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show konv's version and exit.")] = False,
) -> None:
    """Convolution layers you can read, as fast as the machine allows.

    Start with `konv train`: it trains a small convolutional network on handwritten digits in less than a minute, shows how
    it learns, and writes a report with pictures. Every command explains itself, as in `konv train --help`.
    """
    if version:
        from konv import __version__

        typer.echo(f"konv {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def fail(message: str, code: int = 1) -> NoReturn:
    """Say on stderr what is wrong, and exit."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Around the checks of what was typed: a ValueError or TypeError there is the user's, and no bug."""
    try:
        yield
    except (ValueError, TypeError) as error:
        fail(str(error), 2)


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Give errors of the user's files, disk and settings as one message; leave any other exception its traceback."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except BrokenPipeError:  # the reader of a pipe went away
            raise
        except OSError as error:
            fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except ModuleNotFoundError as error:
            if error.name and error.name.split(".")[0] in EXTRAS:
                fail(f"{error.name} is not installed. {INSTALL}")
            raise
        except UserError as error:
            fail(str(error))

    return wrapped


def _console() -> Console:
    """Where results go. A pipe or a file gets no colours, and lines as long as they are."""
    import os

    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=160)
    return console


@app.command()
@plain_errors
def train(
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="DATASET", help="digits (the default), mnist or fashion-mnist.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="simple (the default), deep or sequence.", show_default=False),
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
        str | None, typer.Option(metavar="NAME", help="adam (the default), momentum or sgd.", show_default=False)
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
            help="Of all random numbers: the same seed, the same result. Default: 0.",
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
    console = _console()

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


@app.command()
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
            help="Crop the picture and frame it as the training images are. Default: yes.",
            show_default=False,
        ),
    ] = True,
) -> None:
    """Read images with a trained network.

    A picture is made grey, light on dark as the training images are, cropped to what it shows, and as small as those. It
    should show one digit (or one piece of clothing), upright, on an even background. What cannot be read is told after
    the others, and the exit code is 1.

    **Examples**

    * `konv predict runs/digits-simple seven.png`
    * `konv predict runs/mnist-simple *.jpg`
    """
    from rich.table import Table
    from rich.text import Text

    from konv.training.predict import predict as read

    errors: list[Exception] = []
    predictions = read(checkpoint, images, invert=invert, fit=fit, on_error=errors.append)
    console = _console()
    if len(images) == 1 and predictions:
        (one,) = predictions
        console.print(f"{one.best[0][0]}", highlight=False, markup=False, style="bold")
        for name, probability in one.best:
            console.print(f"  {name:<12} {probability:7.2%}", highlight=False, markup=False)
        return
    table = Table("image", "read as", "probability", "then", "then")
    for one in predictions:
        (name, probability), *others = one.best
        rest = [f"{other} {share:.1%}" for other, share in others]
        table.add_row(Text(one.path), Text(name, style="bold"), f"{probability:.1%}", *map(Text, rest))
    if predictions:
        console.print(table)
    if errors:
        fail("\nError: ".join(map(str, errors)))


@app.command()
@plain_errors
def check(
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="Draws the weights and inputs.")] = 0,
) -> None:
    """Check the gradients of every layer against numerical differences.

    For each layer the table shows how many elements were compared, in float64, and the worst: the gradient of which array,
    where, how far the two numbers are apart, and how far they may be. The exit code is 1 if a layer fails.
    """
    from rich.table import Table
    from rich.text import Text

    from konv import checks

    table = Table("layer", "elements", "worst element", "difference", "tolerance", "")
    for column in (1, 3, 4):
        table.columns[column].justify = "right"
    failed = []
    for name, result in checks.run(seed):
        worst = result.worst
        place = f"{worst.array}[{', '.join(map(str, worst.index))}]"
        verdict = Text("ok", style="green") if result else Text("WRONG", style="bold red")
        numbers = ("", "") if worst.problem else (f"{worst.difference:.1e}", f"{worst.tolerance:.1e}")
        table.add_row(name, f"{result.elements}", Text(worst.problem or place), *numbers, verdict)
        if not result:
            failed.append(f"{name}: {worst}")
    _console().print(table)
    if failed:
        fail("gradients differ\n  " + "\n  ".join(failed))
    typer.echo(f"{table.row_count} layers, all gradients agree")


@app.command()
@plain_errors
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Rows, groups, or patterns such as 'resnet-*'. Default: all. After 'models': whole networks.",
            show_default=False,
        ),
    ] = None,
    forward: Annotated[bool, typer.Option("--forward", metavar="", help="Only the forward pass.")] = False,
    backward: Annotated[
        bool, typer.Option("--backward", metavar="", help="Only the gradients: dx, dw and db together.")
    ] = False,
    repeat: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", min=1, help="Turns of each peer. Default: 10, quick 3.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=1, help="Of each peer. Default: all cores.", show_default=False)
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="konv-last, torch, torch-last, onnxruntime, textbook; may be repeated. Default: "
            "all that are installed.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", metavar="", help="One row of each group, few turns.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Keep the numbers, with a chart (.png) and a table (.md) beside them.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A.json B.json", help="Measure nothing; show two saved runs side by side.", show_default=False
        ),
    ] = None,
    list_rows: Annotated[bool, typer.Option("--list", metavar="", help="Measure nothing; show the rows.")] = False,
) -> None:
    """Time layers of real networks: konv beside PyTorch, ONNX Runtime and the textbook.

    Each result is checked against float64 first; a row that is wrong is not timed, and the exit code is 1. Every peer runs in a
    process of its own, in turns with the others. Leave the machine alone meanwhile: all rows take some minutes.

    **Examples**

    * `konv bench --quick` - one layer of each kind
    * `konv bench 3x3 1x1 --forward` - two groups, forward only
    * `konv bench 'resnet-*' --save after.json` - the layers of one network, kept
    * `konv bench models` - whole networks, converted by konv.torch.convert and as they are
    * `konv bench downconv` - DownConv beside its original and an expert's form
    * `konv bench --compare before.json after.json` - what a change did
    """
    if names and names[0] in ("models", "downconv"):
        if forward or backward or peers or quick or save or compare or list_rows:
            raise typer.BadParameter(f"{names[0]} takes no options but --repeat and --threads")
        _bench_models(names[1:], repeat, threads) if names[0] == "models" else _bench_downconv(names, repeat, threads)
        return
    from konv.bench import compare as comparison
    from konv.bench import layers, measure, results, table
    from konv.engine.threads import get_threads

    console = _console()
    if compare is not None:
        with usage():
            grid = comparison.compare(*map(results.load, compare))
        console.print(grid.rich())
        return
    with usage():
        rows = layers.select(names or [], quick)
        chosen, missing = measure.available(peers or [])
        if save is not None and save.suffix != ".json":
            raise ValueError(f"--save {save}: expected a name that ends in .json")
    if list_rows:
        console.print(table.listing(rows).rich())
        return
    for note in missing:
        typer.echo(note, err=True)
    _warn_if_busy()
    directions = [d for d, wanted in (("forward", forward), ("backward", backward)) if wanted] or layers.DIRECTIONS
    run = measure.run(
        rows, directions, repeat=repeat or (3 if quick else 10), threads=threads or get_threads(), peers=chosen,
        report=lambda result: typer.echo(table.line(result), err=True),
    )  # fmt: skip
    if save is not None:
        run.save(save)
    for grid in table.grids(run):
        console.print(grid.rich())
    for note in [*table.caveats(run), *table.left_out(run)]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if save is not None:
        from konv.bench import chart

        save.with_suffix(".md").write_text(table.markdown(run) + "\n", encoding="utf-8")
        chart.draw(run, save.with_suffix(".png"))
        console.print(
            f"saved: {save}, and beside it the same as .md and .png", markup=False, highlight=False, soft_wrap=True
        )
    if run.failed:
        fail("wrong results\n  " + "\n  ".join(table.line(result) for result in run.failed))
    if run.settings["interrupted"]:
        fail("interrupted", 130)


def _warn_if_busy() -> None:
    from konv.bench.measure import busy_now

    if warning := busy_now():
        typer.echo(warning, err=True)


def _bench_downconv(names: Sequence[str], repeat: int | None, threads: int | None) -> None:
    """``konv bench downconv``."""
    from importlib.util import find_spec

    from konv.bench import downconv
    from konv.engine.threads import get_threads

    if len(names) > 1:
        raise typer.BadParameter(f"downconv takes no names; {names[1]!r} is one too many")
    if find_spec("torch") is None:
        fail("konv bench downconv needs torch: pip install torch")
    threads = threads or get_threads()
    _warn_if_busy()
    results = downconv.run(repeat=repeat or 10, threads=threads, report=lambda text: typer.echo(text, err=True))
    console = _console()
    console.print(downconv.grid(results, threads).rich())
    console.print(downconv.NOTE, highlight=False)
    for result in results:
        console.print(downconv.limit(result), highlight=False)
    if wrong := [downconv.line(result) for result in results if not result.right]:
        fail("wrong results\n  " + "\n  ".join(wrong))


def _bench_models(names: Sequence[str], repeat: int | None, threads: int | None) -> None:
    """``konv bench models``."""
    from konv.bench import models, table
    from konv.engine.threads import get_threads

    with usage():
        chosen = models.cases(names)
    if missing := models.missing():
        fail(f"konv bench models needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    _warn_if_busy()
    results = models.run(
        chosen, repeat=repeat or 5, threads=threads or get_threads(), report=lambda text: typer.echo(text, err=True)
    )
    console = _console()
    console.print(models.grid(results).rich())
    console.print(table.GOAL_NOTE, highlight=False)
    if wrong := [models.line(result) for result in results if not result.right]:
        fail("wrong results\n  " + "\n  ".join(wrong))


@app.command()
@plain_errors
def warmup() -> None:
    """Compile the kernels of all usual layers now, so that no program has to wait for them later.

    Takes a minute or two, once for each CPU and version of konv. What is compiled already is not compiled again. Kernels are
    kept in a folder that `KONV_CACHE` chooses.
    """
    import time

    from rich.console import Console
    from rich.progress import Progress

    from konv.bench.warmup import calls
    from konv.engine.compile import cache_folder

    folder, began = cache_folder(), time.monotonic()
    before = _kernels(folder)
    work = list(calls())
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiling", total=len(work))
        for name, call in work:
            progress.update(task, description=name)
            call()
            progress.advance(task)
    now = _kernels(folder)
    size = sum(path.stat().st_size for path in now)
    _console().print(
        f"{len(now - before)} kernels compiled in {time.monotonic() - began:.0f} s, {len(now)} are there ({size / 1e6:.1f} MB): "
        f"{folder}", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _kernels(folder: Path) -> set[Path]:
    return set(folder.glob("*.o"))


@app.command()
@plain_errors
def info(
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, for programs.")] = False,
) -> None:
    """Show versions, the CPU, its vector features, caches and memory.

    Paste this into a bug report.
    """
    from konv.info import info as machine

    if as_json:
        typer.echo(json.dumps(machine().as_dict(), indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, text in machine().rows():
        table.add_row(Text(name, style="bold"), Text(text))
    _console().print(table)
