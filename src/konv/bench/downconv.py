"""``konv bench downconv``: DownConv as one operation beside its original form and an expert's, and the least time it could take.

Run as a program it is the process of one peer: ``python -m konv.bench.downconv PEER THREADS``; see :mod:`konv.bench.worker`.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from konv.bench import streams
from konv.bench.limits import fma_rate
from konv.bench.measure import PAUSE, PEERS_MARGIN
from konv.bench.peers import Built
from konv.bench.results import Timing
from konv.bench.table import WRONG, Grid, milliseconds, ratio_text
from konv.bench.worker import Worker, answer_commands, timed

PASSES = ("forward", "step")
TURN = 0.1  # seconds of timed calls in a turn
NOTE = (
    "goal: how many times faster konv is meant to be; least: what memory or the multiply-adds alone take, as said below; "
    "reading: of x, once"
)
TIMED = ("konv", "original", "products")
STREAMS = ("reading", "through", "past")  # reading x; copying it through the caches, and past them


@dataclass(frozen=True)
class Case:
    """A DownConv whose windows and segments come out even, on a batch; "forward", or the "step" forward and back."""

    batch: int
    seq_len: int
    hidden_size: int
    m_segments: int
    k1: int
    direction: str

    @property
    def x(self) -> tuple[int, int, int]:
        """The input's shape."""
        return self.batch, self.seq_len, self.hidden_size

    @property
    def operations(self) -> int:
        """Of the forward pass, two for each multiply-add; backward has twice as many."""
        channels = self.hidden_size // 16  # DownConv's channel_reduction
        windows = self.seq_len // self.k1
        return 2 * self.batch * windows * channels * (self.k1 * self.hidden_size + self.hidden_size)

    @property
    def goals(self) -> tuple[float, float]:
        """How many times faster than the original, and than the products, konv wants to be."""
        return GOALS[self.x, self.direction]


SIZES = ((256, 200, 64, 4, 10), (8, 16384, 128, 64, 32))
GOALS = {
    ((256, 200, 64), "forward"): (8, 2),
    ((256, 200, 64), "step"): (12, 3),
    ((8, 16384, 128), "forward"): (25, 1.4),
    ((8, 16384, 128), "step"): (30, 3),
}
CASES = [Case(*sizes, direction) for sizes, direction in itertools.product(SIZES, PASSES)]


def original(torch: Any, module: Any, x: Any) -> Any:
    """As its authors wrote it: ``nn.Conv1d`` on a permuted tensor."""
    return module.conv2a(torch.relu_(module.conv1a(x.permute(0, 2, 1)))).permute(0, 2, 1)


def products(torch: Any, module: Any, x: Any) -> Any:
    """As an expert writes it: each convolution a matrix product with bias on a reshaped view."""
    first, last = (part.weight.transpose(1, 2).flatten(1).T for part in (module.conv1a, module.conv2a))
    h = torch.relu(torch.addmm(module.conv1a.bias, x.reshape(-1, first.shape[0]), first))
    return torch.addmm(module.conv2a.bias, h.reshape(-1, last.shape[0]), last).reshape(len(x), module.m, -1)


class DownPeer:
    """One way to compute it; ``form`` is None for konv's."""

    def __init__(self, threads: int, form: Callable[[Any, Any, Any], Any] | None, dtype: str = "float32"):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.form, self.dtype = torch, form, getattr(torch, dtype)
        self.versions = {"torch": torch.__version__}

    def build(self, case: Case, direction: str) -> Built:
        """A pass of a case. Its results: y, and of a step all gradients."""
        import konv.torch

        torch, form = self.torch, self.form
        torch.manual_seed(0)
        module = konv.torch.DownConv(case.seq_len, case.hidden_size, case.m_segments, case.k1)
        x, dy = torch.randn(case.x), torch.randn(case.batch, case.m_segments, case.hidden_size)
        module, x, dy = module.to(self.dtype), x.to(self.dtype), dy.to(self.dtype)

        def compute() -> Any:
            return module(x) if form is None else form(torch, module, x)

        if direction == "forward":

            def forward() -> list[Any]:
                with torch.no_grad():
                    return [compute()]

            return Built(forward, _arrays)
        x.requires_grad_()

        def step() -> list[Any]:
            module.zero_grad()
            x.grad = None
            y = compute()
            y.backward(dy)
            return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]

        return Built(step, _arrays)


def _arrays(tensors: Sequence[Any]) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


PEERS: dict[str, Callable[[int], DownPeer]] = {
    "exact": lambda threads: DownPeer(threads, products, "float64"),
    "konv": lambda threads: DownPeer(threads, None),
    "original": lambda threads: DownPeer(threads, original),
    "products": lambda threads: DownPeer(threads, products),
}


@dataclass(frozen=True)
class DownResult:
    """What was measured of a case: each peer's time and its error against float64; what memory and multiply-adds take at least.

    ``timings`` has those of the peers, of reading x once and of copying it. ``rate``: operations per second.
    """

    case: Case
    timings: dict[str, Timing]
    errors: dict[str, float]
    rate: float

    def ratio(self, rival: str) -> float:
        """How many times faster konv is."""
        return self.timings[rival].median / self.timings["konv"].median

    @property
    def right(self) -> bool:
        """Whether konv's error is at most ten times that of PyTorch's products. NaN is wrong."""
        return self.errors["konv"] <= PEERS_MARGIN * self.errors["products"]

    @property
    def passes(self) -> list[tuple[str, float, float]]:
        """What is done to x, the seconds for it and those for the multiply-adds: forward, then backward."""
        arithmetic, copying = self.case.operations / self.rate, min(self.timings[c].median for c in STREAMS[1:])
        forward = ("reading x", self.timings["reading"].median, arithmetic)
        return [forward] if self.case.direction == "forward" else [forward, ("copying x", copying, 2 * arithmetic)]

    @property
    def least(self) -> float:
        """Seconds: of each pass the larger of the two."""
        return sum(max(memory, arithmetic) for _, memory, arithmetic in self.passes)


def run(*, repeat: int, threads: int, report: Callable[[str], None]) -> list[DownResult]:
    """Measure all cases: each peer in a process of its own, in turns, its results compared with float64 first."""
    program = (sys.executable, "-P", "-m", "konv.bench.downconv")
    workers = {name: Worker(name, threads, program) for name in PEERS}
    results = []
    try:
        for worker in workers.values():
            worker.start()
        with tempfile.TemporaryDirectory(prefix="konv-bench-") as folder:
            for case in CASES:
                results.append(_measure(case, repeat, threads, workers, Path(folder) / "exact.npz"))
                report(line(results[-1]))
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _measure(case: Case, repeat: int, threads: int, workers: dict[str, Worker], exact: Path) -> DownResult:
    task = {"row": asdict(case), "direction": case.direction, "exact": str(exact)}
    workers["exact"].ask(do="exact", **task)
    built = {peer: workers[peer].ask(do="build", **task) for peer in TIMED}
    x, y = streams.small_pages(case.x), streams.small_pages(case.x)
    calls = dict(
        zip(STREAMS, (streams.reading(x, threads), *(streams.copying(x, y, threads, p) for p in (False, True))))
    )
    seconds: dict[str, list[float]] = {name: [] for name in (*TIMED, *STREAMS)}
    rate = 0.0
    for _ in range(repeat):
        for peer in TIMED:
            time.sleep(PAUSE)
            count = max(1, int(TURN / built[peer]["seconds"]))
            seconds[peer] += workers[peer].ask(do="run", calls=count, warm=max(1, count // 10))["seconds"]
        for name, call in calls.items():
            call()
            seconds[name] += [timed(call) for _ in range(10)]
        rate = max(rate, fma_rate("float32", threads, TURN))
    timings = {name: Timing.of(times) for name, times in seconds.items()}
    return DownResult(case, timings, {peer: built[peer]["error"] for peer in TIMED}, rate)


def line(result: DownResult) -> str:
    """A result in one line."""
    wrong = "" if result.right else f", WRONG: errors {result.errors}"
    konv = result.timings["konv"]
    times = (
        f"{milliseconds(konv.median)} ms (quartiles {milliseconds(konv.quarter)}-{milliseconds(konv.three_quarters)})"
    )
    return (
        f"{result.case.x} {result.case.direction}: {times}, {ratio_text(result.ratio('original'))} the original, "
        f"{ratio_text(result.ratio('products'))} an expert's form, error {result.errors['konv']:.1e}{wrong}"
    )


def limit(result: DownResult) -> str:
    """In words: the least time, why it is that, and what it leaves of the goals."""
    parts = []
    for what, memory, arithmetic in result.passes:
        share = (
            f"{arithmetic / memory:.1f} times as long" if arithmetic >= memory else f"{arithmetic / memory:.1f} of that"
        )
        parts.append(f"{what} takes {milliseconds(memory)} ms, its multiply-adds alone {share}")
    konv, original = (result.timings[peer].median for peer in TIMED[:2])
    return (
        f"{result.case.x} {result.case.direction}: {'; '.join(parts)}. So {milliseconds(result.least)} ms at least; konv takes "
        f"{konv / result.least:.2f} times that. What took no more would be {ratio_text(original / result.least)} the original."
    )


def grid(results: Sequence[DownResult], threads: int) -> Grid:
    """All results, as measured with so many threads."""
    rows = []
    for result in results:
        konv, least = result.timings["konv"].median, result.least
        medians = {peer: milliseconds(t.median) for peer, t in result.timings.items()}
        goals = [f"{goal:g}" for goal in result.case.goals]
        against = [ratio_text(result.ratio(rival)) if result.right else WRONG for rival in TIMED[1:]]
        rows.append(
            [
                str(result.case.x), result.case.direction, medians["konv"], medians["original"], against[0], goals[0],
                medians["products"], against[1], goals[1], milliseconds(least), f"{konv / least:.2f}",
                f"{konv / result.timings['reading'].median:.2f}",
            ]
        )  # fmt: skip
    columns = [
        "x", "pass", "konv", "original", "x original", "goal", "expert's", "x expert's", "goal", "least", "konv / least",
        "konv / reading",
    ]  # fmt: skip
    return Grid(f"DownConv, float32, {threads} thread{'s' * (threads > 1)}, milliseconds", columns, rows, left=2)


if __name__ == "__main__":
    name, threads = sys.argv[1:]
    answer_commands(lambda: PEERS[name](int(threads)), lambda entries: Case(**entries))
