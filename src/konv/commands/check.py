"""``konv check``."""

from __future__ import annotations

from typing import Annotated

import typer

from konv.commands.shell import fail, new_console, plain_errors


@plain_errors
def check(
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="Where the random weights and inputs begin.")] = 0,
) -> None:
    """Check the gradients of every layer against numerical differences.

    For each layer the table shows how many elements were compared, in float64, and the worst: the gradient of which array,
    where, how far the two numbers are apart, and how far they may be. The exit code is 1 if a layer fails.
    """
    from rich.table import Table
    from rich.text import Text

    from konv import checks

    table = Table("layer", "elements", "worst element", "difference", "tolerance", "")
    for number, column in enumerate(table.columns):
        column.justify = "right" if number in (1, 3, 4) else "left"
        column.overflow = "fold"  # where a terminal is narrow, nothing is cut short
        column.no_wrap = number not in (0, 2)
    failed = []
    for name, result in checks.run(seed):
        worst = result.worst
        place = f"{worst.array}[{', '.join(map(str, worst.index))}]"
        verdict = Text("ok", style="green") if result else Text("WRONG", style="bold red")
        numbers = ("", "") if worst.problem else (f"{worst.difference:.1e}", f"{worst.tolerance:.1e}")
        table.add_row(name, f"{result.elements}", Text(worst.problem or place), *numbers, verdict)
        if not result:
            failed.append(f"{name}: {worst}")
    new_console().print(table)
    if failed:
        fail("gradients differ\n  " + "\n  ".join(failed))
    typer.echo(f"{table.row_count} layers, all gradients agree")
