"""Checks each row against float64, then times the peers in turns."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from konv.bench.exact import tolerance
from konv.bench.layers import Row
from konv.bench.limits import Meter
from konv.bench.peers import PEERS, REFERENCE
from konv.bench.results import BUSY, PeerResult, Result, Run, Timing
from konv.bench.worker import Worker, WorkerError
from konv.info import info

TURN = 0.02  # seconds of timed calls in a turn
MOST_CALLS = 200  # in a turn
SLOW = 0.25  # a call that takes longer is not warmed up in each turn, and has but SLOW_TURNS
SLOW_TURNS = 3
AGAIN = 0.005  # seconds that each of the machine's limits is measured again before a row
PEERS_MARGIN = 10  # another peer may be less exact, and is compared all the same, while it computes the same thing
PAUSE = 0.005  # between turns: the threads of the peer before have gone to sleep


class Workers:
    """One process for each peer, started together; one that dies is started again."""

    def __init__(self, peers: Sequence[str], threads: int):
        self.threads = threads
        self._running = {name: Worker(name, threads) for name in [REFERENCE.name, *peers]}
        self._started: set[str] = set()
        self.versions: dict[str, str] = {}

    def ask(self, peer: str, **command: object) -> dict:
        """Send a command to a peer's process, wait for its answer."""
        worker = self._running[peer]
        if peer in self._started and not worker.alive:
            worker.close()
            self._running[peer] = worker = Worker(peer, self.threads)
            self._started.remove(peer)
        if peer not in self._started:
            self._started.add(peer)
            worker.start()
            self.versions |= worker.versions
        return worker.ask(**command)

    def close(self) -> None:
        """End all processes."""
        for worker in self._running.values():
            worker.close()


@contextlib.contextmanager
def workers(peers: Sequence[str], threads: int) -> Iterator[Workers]:
    """Processes for these peers, ended at the end of the context, whatever happens in it."""
    running = Workers(peers, threads)
    try:
        yield running
    finally:
        running.close()


def available(names: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """(peers that can run, "name: what is missing" of the others), of those named, or of all.

    Raises
    ------
    ValueError
        There is no such peer.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no peer: expected some of {', '.join(PEERS)}")
    chosen = [PEERS[name] for name in PEERS if not names or name in names or name == "konv"]
    there = [peer.name for peer in chosen if not peer.missing]
    return there, [f"{peer.title}: {', '.join(peer.missing)} not installed" for peer in chosen if peer.missing]


def run(
    rows: Sequence[Row],
    directions: Sequence[str],
    *,
    repeat: int,
    threads: int,
    peers: Sequence[str],
    report: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Measure rows.

    Parameters
    ----------
    rows, directions : what to measure
    repeat : turns of each peer
    threads : of each peer, and of the machine's limits
    peers : names out of :data:`konv.bench.peers.PEERS`, "konv" first
    report : called with each result as it comes

    Returns
    -------
    Run
        What was measured until the end, or until Ctrl-C; ``settings["interrupted"]`` tells which.
    """
    began, load = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), _load()
    meter = Meter(threads)
    meter.measure()
    results, interrupted = [], False
    with workers(peers, threads) as running, tempfile.TemporaryDirectory(prefix="konv-bench-") as folder:
        try:
            for row, direction in itertools.product(rows, directions):
                meter.measure(AGAIN)
                result = measure(row, direction, repeat, peers, running, Path(folder) / "exact.npz")
                report(result)
                results.append(result)
        except KeyboardInterrupt:  # minutes of measurements are not thrown away
            interrupted = True
        versions = running.versions
    settings = {
        "threads": threads,
        "repeat": repeat,
        "peers": list(peers),
        "load": load + _load(),
        "interrupted": interrupted,
    }
    return Run(began, info().as_dict(), versions, settings, meter.limits, results)


def _load() -> list[float]:
    """How many processes want a core, averaged over a minute; empty where the system does not tell."""
    return [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []


def busy_now() -> str:
    """The warning that a run which begins now is disturbed by what else runs; empty where it is not."""
    load, cores = _load(), info()["cores_usable"]
    if not load or load[0] <= BUSY * cores:
        return ""
    return f"The machine is busy: load {load[0]:.1f}, on {cores} cores. Believe ratios at most."


def measure(row: Row, direction: str, repeat: int, peers: Sequence[str], running: Workers, exact: Path) -> Result:
    """One row: the exact result, then each peer's result beside it, then the turns of those that are right."""
    if row.dtype == "bfloat16" and find_spec("ml_dtypes") is None:
        return Result(row, direction, 0.0, "NumPy has no bfloat16 without ml_dtypes, which is not installed")
    task = {"row": row.as_dict(), "direction": direction, "exact": str(exact)}
    allowed = tolerance(row, direction)
    running.ask(REFERENCE.name, do="exact", **task)
    checked: dict[str, PeerResult] = {}
    guesses: dict[str, float] = {}
    for peer in peers:
        checked[peer], seconds = check(peer, allowed, task, running)
        if seconds is not None:
            guesses[peer] = seconds
        elif peer.startswith("konv"):  # in either layout: nothing of a wrong row is shown as a result
            return Result(row, direction, allowed, f"{PEERS[peer].title}: {checked[peer].note}", checked)
    exact.unlink()
    times: dict[str, list[float]] = {peer: [] for peer in guesses}
    for turn in range(repeat):
        for peer, guess in guesses.items():
            slow = guess > SLOW
            if slow and turn >= SLOW_TURNS:
                continue
            time.sleep(PAUSE)
            calls = max(1, min(MOST_CALLS, int(TURN / max(guess, 1e-9))))
            times[peer] += running.ask(peer, do="run", calls=calls, warm=0 if slow else max(1, calls // 10))["seconds"]
    timed = {
        peer: PeerResult(Timing.of(times[peer]), done.note, done.error, done.memory) if peer in times else done
        for peer, done in checked.items()
    }
    return Result(row, direction, allowed, "", timed)


def check(peer: str, allowed: float, task: dict, running: Workers) -> tuple[PeerResult, float | None]:
    """A peer's result beside the exact one, and a first guess of its seconds; None if it is not to be timed."""
    try:
        answer = running.ask(peer, do="build", **task)
    except WorkerError as error:
        return PeerResult(note=str(error)), None
    if "declined" in answer:
        return PeerResult(note=answer["declined"]), None
    if not peer.startswith("konv"):
        allowed *= PEERS_MARGIN
    right = answer["error"] <= allowed  # NaN is wrong
    note = "" if right else f"error {answer['error']:.1e}, at most {allowed:.1e} is right"
    return PeerResult(None, note, answer["error"], answer["memory"]), answer["seconds"] if right else None
