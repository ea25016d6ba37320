"""The numbers of a run, and the JSON file that keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from konv.bench.layers import GROUPS, Group, Row, group_of
from konv.bench.limits import Limits

FORMAT = 1
RIVALS = ("torch", "torch-last", "onnxruntime", "textbook")
BUSY = 0.5  # of the cores at work before a run begins disturb it


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: how many were timed, the fastest, the quartiles."""

    calls: int
    fastest: float
    quarter: float
    median: float
    three_quarters: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Timing:
        """The quantiles of some calls."""
        times = np.array(list(seconds))
        return cls(len(times), *(float(q) for q in np.quantile(times, (0, 0.25, 0.5, 0.75))))


@dataclass(frozen=True)
class PeerResult:
    """What one peer did with one row.

    Attributes
    ----------
    timing : None where it was not timed
    note : why it was not
    error : against float64, relative to the largest number of each result
    memory : bytes at the peak beyond input and output
    """

    timing: Timing | None = None
    note: str = ""
    error: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Result:
    """One row in one direction.

    Attributes
    ----------
    row, direction : what was measured
    tolerance : how far a right result may be from float64
    failed : why it was not timed; empty if it was
    peers : name of a peer -> what it did
    """

    row: Row
    direction: str
    tolerance: float
    failed: str = ""
    peers: dict[str, PeerResult] = field(default_factory=dict)

    def seconds(self, peer: str) -> float | None:
        """Median seconds of a peer, None where it was not timed."""
        timing = self.peers[peer].timing if peer in self.peers else None
        return timing.median if timing else None

    def ratio(self, rival: str, peer: str = "konv") -> float | None:
        """How many times faster ``peer`` is than ``rival``; None where either was not timed."""
        mine, other = self.seconds(peer), self.seconds(rival)
        return other / mine if mine and other else None

    @property
    def best_rival(self) -> str | None:
        """The fastest of the others, None where none was timed."""
        timed = [(seconds, rival) for rival in RIVALS if (seconds := self.seconds(rival)) is not None]
        return min(timed)[1] if timed else None

    def against(self, rival: str) -> float | None:
        """:meth:`ratio` to a peer by name, or to the "best"."""
        name = self.best_rival if rival == "best" else rival
        return self.ratio(name) if name else None


@dataclass(frozen=True)
class Mean:
    """Geometric mean of the ratios of some rows: how many rows, the mean, how many are below 1."""

    rows: int
    ratio: float
    losing: int

    @classmethod
    def of(cls, ratios: Iterable[float | None]) -> Mean | None:
        """The mean of those that are there; None if there are none."""
        known = [ratio for ratio in ratios if ratio is not None]
        if not known:
            return None
        return cls(len(known), math.exp(math.fsum(map(math.log, known)) / len(known)), sum(r < 1 for r in known))


@dataclass(frozen=True)
class Run:
    """A whole run.

    Attributes
    ----------
    date : ISO 8601, in UTC
    machine : :func:`konv.info` as a dict
    versions : of the peers
    settings : threads, repeat and peers as asked for; the machine's load before and after; whether it was interrupted
    limits : what the machine can do
    results : one for each row and direction
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    limits: Limits
    results: list[Result]

    def of(self, direction: str) -> list[Result]:
        """The results of one direction."""
        return [result for result in self.results if result.direction == direction]

    def groups(self, direction: str) -> list[tuple[Group, list[Result]]]:
        """The same by group, in the table's order."""
        found = [(g, [r for r in self.of(direction) if group_of(r.row.group) == g]) for g in GROUPS]
        return [(group, results) for group, results in found if results]

    @property
    def directions(self) -> list[str]:
        """Those that were measured."""
        return [d for d in ("forward", "backward") if self.of(d)]

    @property
    def failed(self) -> list[Result]:
        """Rows that were not timed, because konv's result was wrong."""
        return [result for result in self.results if result.failed]

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        path.write_text(json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Run:
    """Read a JSON file that :meth:`Run.save` wrote.

    Raises
    ------
    ValueError
        The file is no JSON, or is of another format; the message names it.
    OSError
        It cannot be read.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries["format"] != FORMAT:
            raise ValueError(f"format {entries['format']}, expected {FORMAT}")
        limits = entries["limits"]
        return Run(
            entries["date"], entries["machine"], entries["versions"], entries["settings"],
            Limits(limits["threads"], limits["fma"], tuple((size, speed) for size, speed in limits["memory"])),
            [_result(result) for result in entries["results"]],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not saved by konv bench: {type(error).__name__}: {error}") from error


def _result(entries: dict[str, Any]) -> Result:
    peers = {
        name: PeerResult(**peer | {"timing": Timing(**peer["timing"]) if peer["timing"] else None})
        for name, peer in entries["peers"].items()
    }
    return Result(**entries | {"row": Row.from_dict(entries["row"]), "peers": peers})
