"""``konv bench``, ``konv bench models`` and ``konv bench downconv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from konv.commands.shell import fail, new_console, plain_errors, usage

if TYPE_CHECKING:
    from rich.console import Console

    from konv.bench.table import Grid


@plain_errors
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Rows or groups of --list, or patterns such as 'resnet-*'. Default: all. After 'models': names of networks.",
            show_default=False,
        ),
    ] = None,
    forward: Annotated[bool, typer.Option("--forward", metavar="", help="Only the forward pass.")] = False,
    backward: Annotated[
        bool, typer.Option("--backward", metavar="", help="Only the backward pass: dx, dw and db together.")
    ] = False,
    repeat: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            min=1,
            help="How often each is timed; the median is shown. Default: 10; with --quick 3, models 5.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER", min=1, help="Threads that each may use. Default: all cores.", show_default=False
        ),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What konv is timed beside: konv-last (konv, channels last), torch, torch-last, onnxruntime or textbook; may be "
            "repeated. Default: all that are installed.",
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

    In the tables **x PyTorch**, **x best** and **x last** tell how many times faster konv is than PyTorch, than the fastest peer,
    and, both with channels last, than PyTorch; **of limit** is the share of what this machine's multiply-adds (FMA) or memory
    allow at most; **goal** is how many times faster konv is meant to be.

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

    console = new_console()
    if compare is not None:
        with usage():
            grid = comparison.compare(*map(results.load, compare))
        _show(console, grid)
        return
    with usage():
        rows = layers.select(names or [], quick)
        chosen, missing = measure.available(peers or [])
        if save is not None and save.suffix != ".json":
            raise ValueError(f"--save {save}: expected a name that ends in .json")
        if save is not None and not save.parent.is_dir():  # told before the measuring, not after
            raise ValueError(f"--save {save}: there is no folder {save.parent}")
    if list_rows:
        _show(console, table.listing(rows))
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
        _show(console, grid)
    for note in [table.MEANS_NOTE, *table.caveats(run), *table.left_out(run)]:
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


def _show(console: Console, grid: Grid) -> None:
    for part in grid.fitting(console.width):
        console.print(part.rich())


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
    console = new_console()
    _show(console, downconv.grid(results, threads))
    console.print(downconv.NOTE, highlight=False, soft_wrap=True)
    for result in results:
        console.print(downconv.limit(result), highlight=False, soft_wrap=True)
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
    console = new_console()
    _show(console, models.grid(results))
    console.print(table.GOAL_NOTE, highlight=False, soft_wrap=True)
    if wrong := [models.line(result) for result in results if not result.right]:
        fail("wrong results\n  " + "\n  ".join(wrong))
