"""Two saved runs side by side: which rows became faster, which slower."""

from __future__ import annotations

from konv.bench.results import Mean, Result, Run
from konv.bench.table import NOTHING, Grid, milliseconds, ratio_text


def compare(before: Run, after: Run) -> Grid:
    """A table of the rows that both runs timed.

    A row is called faster or slower where the quartiles of the two do not overlap. "steadied" is the gain of konv divided by that
    of PyTorch between the two runs: what is left when the machine itself was slower or faster.

    Raises
    ------
    ValueError
        No row was timed in both.
    """
    old = {(r.row.name, r.direction): r for r in before.results}
    pairs = [(old[key], r) for r in after.results if (key := (r.row.name, r.direction)) in old]
    pairs = [(a, b) for a, b in pairs if a.row == b.row and a.seconds("konv") and b.seconds("konv")]
    if not pairs:
        raise ValueError("the two runs have no row in common that both timed")
    rows = [_row(a, b) for a, b in pairs]
    for direction in after.directions:
        chosen = [(a, b) for a, b in pairs if b.direction == direction]
        if chosen:
            gain, steady = Mean.of(_gain(a, b) for a, b in chosen), Mean.of(_steadied(a, b) for a, b in chosen)
            means = [ratio_text(mean.ratio if mean else None) for mean in (gain, steady)]
            rows += [[], [f"{len(chosen)} rows, geometric mean", direction, NOTHING, NOTHING, *means, ""]]
    title = f"{before.date} and {after.date}"
    return Grid(title, ["layer", "direction", "before ms", "after ms", "gain", "steadied", ""], rows, left=2)


def _row(a: Result, b: Result) -> list[str]:
    old, new = a.peers["konv"].timing, b.peers["konv"].timing
    assert old and new
    verdict = "faster" if new.three_quarters < old.quarter else "slower" if new.quarter > old.three_quarters else ""
    times = [milliseconds(timing.median) for timing in (old, new)]
    return [b.row.name, b.direction, *times, ratio_text(_gain(a, b)), ratio_text(_steadied(a, b)), verdict]


def _gain(a: Result, b: Result) -> float | None:
    old, new = a.seconds("konv"), b.seconds("konv")
    return old / new if old and new else None


def _steadied(a: Result, b: Result) -> float | None:
    old, new = a.against("torch"), b.against("torch")
    return new / old if old and new else None
