"""The process one peer runs in. It reads a command a line as JSON from its input, and answers each with a line of JSON.

============================================================  ==================================================================
``{"do": "build", "row": ..., "direction": ..., "exact": path}``  ``{"error": e, "memory": bytes or null, "seconds": t}``,
                                                              or ``{"declined": reason}``; of what checks itself, what
                                                              its check says, and the seconds
``{"do": "exact", "row": ..., "direction": ..., "exact": path}``  writes the result to the file ``path``
``{"do": "run", "calls": k, "warm": w}``                      ``{"seconds": [t, ...]}`` of k calls, after w untimed ones
============================================================  ==================================================================

The first line it writes is ``{"versions": {...}}``. It ends with its input.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from konv.bench.exact import error_against
from konv.bench.layers import Row
from konv.bench.peers import PEERS, REFERENCE, Built, Declined

REUSE = "4000000000"  # malloc returns nothing to the system below this: a first touch of fresh memory costs more than a layer

# A group of its own for each: the system ends stopped processes whose parent dies, and with them whoever shares their group.
GROUP: dict[str, Any] = {"process_group": 0} if hasattr(os, "setpgid") else {}


def environment(threads: int) -> dict[str, str]:
    """A worker's environment: memory is reused, every library uses so many threads, this very konv is imported."""
    import konv

    places = [str(Path(konv.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    counts = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    malloc = {"MALLOC_MMAP_THRESHOLD_": REUSE, "MALLOC_TRIM_THRESHOLD_": REUSE}
    return os.environ | counts | malloc | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


class Worker:
    """The other end: starts the process of a peer and talks to it.

    Raises
    ------
    WorkerError
        From any method, when the process has died or its answer is an error; the message has its last words.
    """

    PROGRAM = (sys.executable, "-P", "-m", "konv.bench.worker")

    def __init__(self, peer: str, threads: int, program: Sequence[str] = ()):
        self.peer = peer
        # A pipe that nobody reads would stall it. close() closes the file.
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*(program or self.PROGRAM), peer, str(threads)], env=environment(threads), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.said, text=True, **GROUP,
        )  # fmt: skip
        self.versions: dict[str, str] = {}

    def start(self) -> None:
        """Wait until it has started."""
        self.versions = self._answer()["versions"]

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command, wait for its answer. The process stands still before and after: threads that wait by spinning
        would take a core from the peer whose turn is next (ONNX Runtime's made konv half as fast).
        """
        assert self.process.stdin
        self._signal("SIGCONT")
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: reading its answer tells why
        try:
            return self._answer()
        finally:
            self._signal("SIGSTOP")

    def _signal(self, name: str) -> None:
        """Send a signal, where the system has it, to a process that lives."""
        if hasattr(signal, name) and self.alive:
            self.process.send_signal(getattr(signal, name))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.said.seek(0)
            last = self.said.read().strip().splitlines()[-1:] or ["no message"]
            raise WorkerError(f"its process ended with code {code}: {last[0]}")
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


class WorkerError(Exception):
    """A peer did not compute what it should have; the message says what happened."""


def peak_memory(call: Callable[[], Any], reused: int, release: Callable[[], None]) -> int | None:
    """Bytes that a call needs at its peak, beyond its inputs and outputs; None where the system does not tell.

    Free memory is given back first, so that what the call takes shows as growth of the process.
    """
    release()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    outputs = call()
    peak = _status("VmHWM")
    made = sum(o.nbytes for o in outputs if o is not None) if outputs and not reused else 0
    return max(0, peak - before - made)


def _status(field: str) -> int:
    """A size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call. Its result is freed outside the clock."""
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    del result
    return seconds


def serve(
    peer: Any, read: Any, answer: Callable[[dict[str, Any]], None], case: Callable[[dict], Any] = Row.from_dict
) -> None:
    """Answer commands until they end. ``case`` makes what the peer builds of the entries that are sent as the row."""
    built: Built | None = None
    answer({"versions": peer.versions})
    for line in read:
        command = json.loads(line)
        try:
            if command["do"] == "run":
                assert built, "nothing is built"
                for _ in range(command["warm"]):
                    built.call()
                answer({"seconds": [timed(built.call) for _ in range(command["calls"])]})
                continue
            built = None  # frees the row before
            built = peer.build(case(command["row"]), command["direction"])
            if built.check:
                found = built.check()
                answer(found | {"memory": None, "seconds": min(timed(built.call) for _ in range(2))})
                continue
            results = built.arrays(built.call())
            if command["do"] == "exact":
                with open(command["exact"], "wb") as file:
                    np.savez(file, *results)
                built, results = None, []
                answer({})
                continue
            with np.load(command["exact"]) as exact:
                error = error_against(results, [exact[name] for name in exact.files])
            results = []
            memory = peak_memory(built.call, built.reused, getattr(peer, "release", lambda: None))
            answer({"error": error, "memory": memory, "seconds": min(timed(built.call) for _ in range(2))})
        except Declined as reason:
            answer({"declined": str(reason)})
        except Exception as error:  # reported to the other end, which shows it beside the row
            answer({"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})


def answer_commands(make: Callable[[], Any], case: Callable[[dict], Any] = Row.from_dict) -> None:
    """Make a peer and serve it on this process's input and output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    serve(make(), sys.stdin, answer, case)


def main() -> None:
    """Run a worker: ``python -m konv.bench.worker PEER THREADS``."""
    name, threads = sys.argv[1:]
    answer_commands(lambda: (PEERS | {REFERENCE.name: REFERENCE})[name].make(int(threads)))


if __name__ == "__main__":
    main()
