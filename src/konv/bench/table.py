"""A run as tables: in the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from konv.bench.layers import Row
from konv.bench.peers import PEERS
from konv.bench.results import BUSY, Mean, Result, Run

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "–"
LONGEST_NAME = 32  # a text with more letters may be broken into lines
GOAL_NOTE = "goal: how many times faster konv is meant to be"
MEANS_NOTE = (
    f"x: how many times faster konv is than PyTorch, or than the fastest of all peers; {GOAL_NOTE}; "
    "losing rows: those in which PyTorch is faster"
)
WRONG = "WRONG"


@dataclass(frozen=True)
class Grid:
    """A table of texts: a title, the columns' names, and rows; an empty row is a line."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: int = 1
    """So many columns are flush left."""

    def markdown(self) -> str:
        """The table in Markdown."""
        rules = [":--"] * self.left + ["--:"] * (len(self.columns) - self.left)
        rows = [self.columns, rules, *(row for row in self.rows if row)]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

    def fitting(self, width: int) -> list[Grid]:
        """The table in parts that are no wider than ``width``, each with the rows' names in front: numbers are not cut short."""
        widths = [min(longest, LONGEST_NAME) + 3 for longest in self._longest()]
        if sum(widths) < width:
            return [self]
        names = self.left if 2 * sum(widths[: self.left]) <= width else 1
        parts = _parts(widths, names, width)
        while width > 0 and len(fewer := _parts(widths, names, width - 1)) == len(parts):
            parts, width = fewer, width - 1  # about as wide as each other
        grids = []
        for number, part in enumerate(parts):
            chosen = [*range(names), *part]
            columns, rows = [self.columns[c] for c in chosen], [[row[c] for c in chosen if row] for row in self.rows]
            title = f"{self.title} (continued)" if number else self.title
            grids.append(Grid(title, columns, rows, sum(c < self.left for c in chosen)))
        return grids

    def _longest(self) -> list[int]:
        """Of each column, the letters of its longest text."""
        return [max(map(len, column)) for column in zip(self.columns, *filter(None, self.rows))]

    def rich(self) -> Table:
        """The table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title, title_justify="left")
        for i, (column, longest) in enumerate(zip(self.columns, self._longest())):
            no_wrap = i < self.left and longest <= LONGEST_NAME
            table.add_column(column, justify="left" if i < self.left else "right", no_wrap=no_wrap)
        for row in self.rows:
            if row:
                style = "red" if WRONG in row else ""
                table.add_row(*(Text(cell, style="red" if _losing(cell) else style) for cell in row))
            else:
                table.add_section()
        return table


def _parts(widths: Sequence[int], names: int, width: int) -> list[list[int]]:
    """The columns behind the names of the rows, as many in each part as fit beside those; one at least."""
    parts: list[list[int]] = [[]]
    for column in range(names, len(widths)):
        if parts[-1] and sum(widths[:names]) + sum(widths[c] for c in [*parts[-1], column]) >= width:
            parts.append([])
        parts[-1].append(column)
    return parts


def grids(run: Run) -> list[Grid]:
    """For each direction times, then memory and errors; then the means."""
    return [*(make(run, d) for d in run.directions for make in (times, costs)), means(run)]


def times(run: Run, direction: str) -> Grid:
    """Milliseconds of all rows of a direction, and what follows from them."""
    peers = [p for p in PEERS if p != "konv" and any(result.seconds(p) is not None for result in run.of(direction))]
    columns = [
        "layer", "konv", "quartiles", *(PEERS[peer].column for peer in peers), "x PyTorch", "x best", "x last",
        "GFLOP/s", "of limit",
    ]  # fmt: skip
    rows: list[list[str]] = []
    for _, results in run.groups(direction):
        rows += [*([[]] if rows else []), *(_times(run, result, peers) for result in results)]
    return Grid(f"{direction}, milliseconds", columns, rows)


def _times(run: Run, result: Result, peers: Sequence[str]) -> list[str]:
    timing = result.peers["konv"].timing if "konv" in result.peers else None
    if timing is None:
        return [result.row.name, WRONG, *[NOTHING] * (len(peers) + 6)]
    least, kind = run.limits.least_seconds(result.row, result.direction)
    return [
        result.row.name, milliseconds(timing.median), f"{milliseconds(timing.quarter)}-{milliseconds(timing.three_quarters)}",
        *(milliseconds(result.seconds(peer)) for peer in peers), ratio_text(result.against("torch")),
        ratio_text(result.against("best")), ratio_text(result.ratio("torch-last", "konv-last")),
        f"{result.row.flops(result.direction) / timing.median / 1e9:.3g}", f"{least / timing.median:.0%} {kind}",
    ]  # fmt: skip


def costs(run: Run, direction: str) -> Grid:
    """Peak memory beyond input and output, and error against float64, of konv and of PyTorch."""
    rows: list[list[str]] = []
    for _, results in run.groups(direction):
        rows += [*([[]] if rows else []), *map(_costs, results)]
    columns = ["layer", "konv MiB", "PyTorch MiB", "konv error", "PyTorch error", "allowed"]
    return Grid(f"{direction}, peak memory beyond input and output, error against float64", columns, rows)


def _costs(result: Result) -> list[str]:
    both = [result.peers.get(name) for name in ("konv", "torch")]
    memory = [f"{p.memory / 2**20:.1f}" if p and p.memory is not None else NOTHING for p in both]
    errors = [f"{p.error:.1e}" if p and p.error is not None else NOTHING for p in both]
    return [result.row.name, *memory, *errors, f"{result.tolerance:.1e}"]


def means(run: Run) -> Grid:
    """Geometric means of the ratios, for each group and over all rows."""
    directions = run.directions
    columns = ["group", "rows"]
    for direction in directions:
        columns += [f"{direction} x PyTorch", "goal", "x best", "losing rows"]
    titles = {group.title: group for direction in directions for group, _ in run.groups(direction)}
    rows: list[list[str]] = []
    for title, group in titles.items():
        row = [title, str(len({r.row.name for r in run.results if r.row.group == group.name}))]
        for direction in directions:
            goal = group.forward if direction == "forward" else group.backward
            row += _means([r for r in run.of(direction) if r.row.group == group.name], f"{goal:g}")
        rows.append(row)
    rows += [[], ["all rows", str(len({r.row.name for r in run.results}))]]
    for direction in directions:
        rows[-1] += _means(run.of(direction), "2.2, best 1.4" if direction == "forward" else "3, best 2")
    return Grid("geometric means", columns, rows)


def _means(results: Sequence[Result], goal: str) -> list[str]:
    torch, best = (Mean.of(result.against(rival) for result in results) for rival in ("torch", "best"))
    wrong = sum(bool(result.failed) for result in results)
    losing = NOTHING if torch is None else f"{torch.losing} of {torch.rows}"
    return [
        ratio_text(torch.ratio if torch else None), goal, ratio_text(best.ratio if best else None),
        losing + (f", {wrong} WRONG" if wrong else ""),
    ]  # fmt: skip


def listing(rows: Sequence[Row]) -> Grid:
    """The rows of the table with their shapes, nothing measured."""
    names = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    texts: list[list[str]] = []
    for row in rows:
        more = [f"{name} {value}" for name, value in row.arguments.items() if value != names[name]]
        more += ["transposed"] * row.transposed + [row.dtype] * (row.dtype != "float32")
        texts.append(
            [row.name, row.group, str(row.x), str(row.w), ", ".join(more), f"{row.flops('forward') / 1e9:.3g}"]
        )
    return Grid(f"{len(rows)} rows", ["layer", "group", "x", "w", "", "GFLOP forward"], texts, left=5)


def markdown(run: Run) -> str:
    """The whole run as Markdown, with what it ran on."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))
    fma = " and ".join(f"{speed / 1e9:.0f} GFLOP/s in {dtype}" for dtype, speed in run.limits.fma.items())
    memory = ", ".join(f"{speed / 1e9:.0f} GB/s on {size / 2**20:g} MiB" for size, speed in run.limits.memory)
    lines = [
        f"{run.machine['cpu']}, {run.settings['threads']} threads, {run.date[:10]}; {versions}.",
        f"Limits measured: {fma}; {memory}.",
        f"Medians of calls in {run.settings['repeat']} turn{'s' * (run.settings['repeat'] > 1)}; {MEANS_NOTE}.",
        *(f"**{caveat}**" for caveat in caveats(run)),
    ]
    return "\n".join([*lines, *(f"\n**{grid.title}**\n\n{grid.markdown()}" for grid in grids(run)), "", *left_out(run)])


def caveats(run: Run) -> list[str]:
    """What a reader must know before believing the numbers: the machine was busy, the run was cut short."""
    load, cores, threads = run.settings["load"], run.machine["cores_usable"], run.settings["threads"]
    busy = bool(load) and (load[0] > BUSY * cores or load[1] > threads + BUSY * cores)
    told = (
        f"The machine was busy: load {load[0]:.1f} before and {load[1]:.1f} at the end, on {cores} cores."
        if busy
        else ""
    )
    cut = "Interrupted: rows are missing." if run.settings["interrupted"] else ""
    return [caveat for caveat in (told, cut) if caveat]


def left_out(run: Run) -> list[str]:
    """Which peers were not timed in which rows, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in run.results:
        for name, peer in result.peers.items():
            if peer.note and name != "konv":
                reasons.setdefault((PEERS[name].title, peer.note), []).append(f"{result.row.name} {result.direction}")
    lines = []
    for (title, note), places in reasons.items():
        where = places[0] if len(places) == 1 else f"{len(places)} rows"
        lines.append(f"- {title} not timed in {where}: {note}")
    return lines


def line(result: Result) -> str:
    """A result in one line, for a progress report."""
    if result.failed:
        return f"{result.row.name} {result.direction}: WRONG, not timed: {result.failed}"
    parts = [f"{milliseconds(result.seconds('konv'))} ms"]
    for rival, title in (("torch", "PyTorch"), ("best", "the best peer")):
        if (ratio := result.against(rival)) is not None:
            parts.append(f"{ratio_text(ratio)} as fast as {title}")
    return f"{result.row.name} {result.direction}: {', '.join(parts)}"


def milliseconds(seconds: float | None) -> str:
    """Three digits of a time in milliseconds."""
    return NOTHING if seconds is None else f"{seconds * 1e3:.3g}"


def ratio_text(ratio: float | None) -> str:
    """A ratio as it stands in the tables."""
    return NOTHING if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _losing(cell: str) -> bool:
    return cell.startswith("0.") and cell.endswith("x")
