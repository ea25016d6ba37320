"""A run as a picture: how many times faster than PyTorch each row is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from konv.bench.results import Result, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREY = "#1f5fa8", "#b3261e", "#6b7280"


def draw(run: Run, path: Path) -> None:
    """Write a PNG: a bar for each row and direction, a mark for the best peer; losing rows in red, wrong ones named.

    Without PyTorch the bars are against the best peer there was.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rival = "torch" if any(result.against("torch") for result in run.results) else "best"
    rows = max((len(run.of(direction)) for direction in run.directions), default=1)
    figure = Figure(
        figsize=(6.5 * max(1, len(run.directions)), 1.6 + 0.19 * rows), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(run.directions)), squeeze=False)[0]
    for axes, direction in zip(panels, run.directions):
        _panel(axes, [r for _, results in run.groups(direction) for r in results], rival)
        axes.set_title(direction, fontsize=10)
    other = "PyTorch" if rival == "torch" else "the best peer"
    marks = "; mark: against the best of all peers and layouts" if rival == "torch" else ""
    figure.suptitle(f"konv: times faster than {other} ({run.settings['threads']} threads{marks})", fontsize=10)
    figure.savefig(path, format="png", dpi=110)


def _panel(axes: Axes, results: list[Result], rival: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for place, result in enumerate(results):
        ratio, best = result.against(rival), result.against("best")
        if ratio is None:
            axes.text(1, place, " wrong" if result.failed else " not compared", fontsize=6, color=RED, va="center")
            continue
        axes.barh(place, ratio - 1, left=1, height=0.7, color=BLUE if ratio >= 1 else RED)
        if best is not None:
            axes.plot(best, place, marker="|", markersize=7, markeredgewidth=1.5, color="black")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_formatter(NullFormatter())
    low = min((r for result in results if (r := result.against("best")) is not None), default=1.0)
    high = max((r for result in results if (r := result.against(rival)) is not None), default=1.0)
    left, right = min(0.8, low * 0.8), max(2.5, high * 1.25)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right < 100 * left else (1,)))
    axes.set_yticks(range(len(results)), [result.row.name for result in results], fontsize=6.5)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
