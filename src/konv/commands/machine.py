"""``konv warmup`` and ``konv info``: this machine, and the kernels compiled for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from konv.commands.shell import fail, new_console, plain_errors

LINE_EVERY = 5  # seconds between lines of progress where there is no terminal


@plain_errors
def warmup() -> None:
    """Compile the kernels of all usual layers now, so that no program has to wait for them later.

    Takes some minutes, once for each CPU and version of konv. What is compiled already, also before a Ctrl-C, is not compiled
    again. Kernels are kept in the folder that `KONV_CACHE` names, else in konv/kernels below `XDG_CACHE_HOME` or ~/.cache.
    """
    import time

    from rich.console import Console
    from rich.progress import Progress

    from konv.bench.warmup import calls
    from konv.engine.compile import cache_folder

    folder, began = cache_folder(), time.monotonic()
    _try_writing(folder)
    before = _kernels(folder)
    work = list(calls())
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=len(work))
        told = began - LINE_EVERY
        for done, (name, call) in enumerate(work):
            progress.update(task, description=name)
            if not console.is_terminal and time.monotonic() >= told + LINE_EVERY:  # no bar there
                told = time.monotonic()
                console.print(f"{done} of {len(work)}: {name}", markup=False, highlight=False, soft_wrap=True)
            try:
                call()
            except KeyboardInterrupt:
                kept = len(_kernels(folder) - before)
                fail(f"interrupted; kernels compiled so far are kept ({kept} new). Go on with: konv warmup", 130)
            progress.advance(task)
    now = _kernels(folder)
    size = sum(path.stat().st_size for path in now)
    new_console().print(
        f"{len(now - before)} kernels compiled in {time.monotonic() - began:.0f} s, {len(now)} are there ({size / 1e6:.1f} MB): "
        f"{folder}", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _try_writing(folder: Path) -> None:
    """Minutes of compiling are in vain where nothing can be kept: tell it before."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        fail(f"kernels cannot be kept in {folder} ({why}); set KONV_CACHE to a folder that can be written")


def _kernels(folder: Path) -> set[Path]:
    return set(folder.glob("*.o"))


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
    new_console().print(table)
