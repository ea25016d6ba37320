"""``konv check``."""

from __future__ import annotations

from typing import Annotated

import typer

from konv.commands.shell import columns_that_fit, fail, new_console, plain_errors

PLACE = 11  # letters of a line of "worst element" at least


@plain_errors
def check(
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="Where the random weights and inputs begin.")] = 0,
) -> None:
    """Check the gradients of every layer against numerical differences.

    For each layer the table shows how many elements were compared, in float64, and the worst: the gradient of which array,
    where, how far the two numbers are apart, and how far they may be; a narrow terminal gets fewer columns. The exit code is 1
    if a layer fails.
    """
    from rich.table import Table
    from rich.text import Text

    from konv import checks

    rows, failed = [], []
    for name, result in checks.run(seed):
        worst = result.worst
        place = worst.problem or f"{worst.array}[{', '.join(map(str, worst.index))}]"
        numbers = ("", "") if worst.problem else (f"{worst.difference:.1e}", f"{worst.tolerance:.1e}")
        rows.append((name, f"{result.elements}", place, *numbers, "ok" if result else "WRONG"))
        if not result:
            failed.append(f"{name}: {worst}")
    heads = ("layer", "elements", "worst element", "difference", "tolerance", "")
    longest = [max(map(len, column)) for column in zip(heads, *rows)]
    widths = longest.copy()
    widths[0] = max(len(word) for name, *_ in rows for word in name.split())  # these two may be broken into lines
    widths[2] = min(widths[2], PLACE)
    console, table = new_console(), Table()
    kept = columns_that_fit(widths, (4, 3, 1, 2), console.width)
    room = console.width - 1 - sum(widths[number] + 3 for number in kept)
    for number in (2, 0):
        if number in kept:
            more = min(room, longest[number] - widths[number])
            widths[number], room = max(1, widths[number] + more), room - more
    for number in kept:
        broken = number in (0, 2)
        table.add_column(
            heads[number], justify="left" if broken or number == 5 else "right", overflow="fold", no_wrap=not broken,
            width=widths[number],
        )  # fmt: skip
    for row in rows:
        style = "green" if row[5] == "ok" else "bold red"
        table.add_row(*(Text(row[number], style=style if number == 5 else "") for number in kept))
    console.print(table)
    if failed:
        fail("gradients differ\n  " + "\n  ".join(failed))
    typer.echo(f"{table.row_count} layers, all gradients agree")
