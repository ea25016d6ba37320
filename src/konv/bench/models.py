"""``konv bench models``: whole networks, as PyTorch runs them and converted by ``konv.torch.convert``.

The networks are built from configurations of Hugging Face ``transformers`` with random weights: nothing is downloaded.
Dropout is 0, so that all compute the same numbers. A training step is a forward pass, a backward pass and a step of SGD.
What the convolutions compute is checked where they stand, each by itself: see :mod:`konv.bench.inside`, which also tells how much
of PyTorch's time is theirs. The rest bounds what is gained: if convolutions took no time, a model whose time is theirs to a
share s would be ``1 / (1 - s)`` times as fast.

Run as a program it is the process of one peer: ``python -m konv.bench.models PEER THREADS``; see :mod:`konv.bench.worker`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from konv.bench import inside
from konv.bench.measure import PAUSE
from konv.bench.peers import Built
from konv.bench.results import Mean, Timing
from konv.bench.table import NOTHING, Grid, milliseconds, ratio_text
from konv.bench.worker import Worker, answer_commands

PACKAGES = ("torch", "transformers")
STEPS = ("inference", "training")
BATCHES = (1, 8)
GOALS = {"inference": 1.25, "training": 1.4}
TURN = 0.4  # seconds of timed calls in a turn
LEARNING_RATE = 1e-6  # some hundred steps change nothing to speak of


@dataclass(frozen=True)
class Network:
    """A network, named by two classes of ``transformers`` whose defaults describe it.

    Attributes
    ----------
    name : here
    configuration, model : names of the classes
    x : shape of one input
    settings : arguments of the configuration: no dropout, nothing random
    """

    name: str
    configuration: str
    model: str
    x: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


_NO_DROPOUT = ("hidden_dropout", "activation_dropout", "attention_dropout", "final_dropout", "layerdrop")
NETWORKS = {
    network.name: network
    for network in (
        Network("resnet-50", "ResNetConfig", "ResNetForImageClassification", (3, 224, 224)),
        Network("convnext-tiny", "ConvNextConfig", "ConvNextForImageClassification", (3, 224, 224)),
        Network(
            "mobilenet-v2", "MobileNetV2Config", "MobileNetV2ForImageClassification", (3, 224, 224),
            {"classifier_dropout_prob": 0.0},
        ),
        Network(
            "wav2vec2-base", "Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", (16000,),
            {"apply_spec_augment": False} | dict.fromkeys(_NO_DROPOUT, 0.0),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, the number of its inputs, "inference" or "training"."""

    network: str
    batch: int
    step: str

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Case:
        """The case that ``dataclasses.asdict`` described."""
        return cls(**entries)


class ModelPeer:
    """One way to run a network.

    Parameters
    ----------
    threads : of PyTorch, and of konv with it
    converted : by konv
    last : in PyTorch's channels_last; sequences have none and stay as they are
    """

    def __init__(self, threads: int, converted: bool = False, last: bool = False):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.transformers = torch, transformers
        self.converted, self.last = converted, last
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def build(self, case: Case, direction: str) -> Built:
        """The step of a case; its check if it is converted, else how much of its time is the convolutions'."""
        torch, network = self.torch, NETWORKS[case.network]
        torch.manual_seed(0)
        configuration = getattr(self.transformers, network.configuration)(**network.settings)
        model = getattr(self.transformers, network.model)(configuration)
        x, labels = torch.randn(case.batch, *network.x), torch.arange(case.batch) % configuration.num_labels
        if self.last and x.ndim == 4:
            model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        if self.converted:
            import konv.torch

            konv.torch.convert(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        model.train(case.step == "training")

        def infer() -> Any:
            with torch.no_grad():
                return model(x).logits

        def train() -> Any:
            optimizer.zero_grad()
            result = model(x, labels=labels)
            result.loss.backward()
            optimizer.step()
            return result.logits.detach()

        step = train if case.step == "training" else infer

        def check() -> dict[str, float]:
            return (
                {"error": inside.error(model, step)} if self.converted else {"share": inside.share_of_time(model, step)}
            )

        return Built(step, lambda logits: [logits.numpy()], check=check)


PEERS: dict[str, Callable[[int], ModelPeer]] = {
    "torch": lambda threads: ModelPeer(threads),
    "konv": lambda threads: ModelPeer(threads, converted=True),
    "torch-last": lambda threads: ModelPeer(threads, last=True),
    "konv-last": lambda threads: ModelPeer(threads, converted=True, last=True),
}


@dataclass(frozen=True)
class ModelResult:
    """What was measured of a case.

    Attributes
    ----------
    case : Case
    timings : of each peer
    errors : the largest of konv's convolutions, "konv" and "konv-last", in units of what rounding allows
    shares : of the time, that convolutions take of PyTorch's: "torch", "torch-last"
    """

    case: Case
    timings: dict[str, Timing]
    errors: dict[str, float]
    shares: dict[str, float]

    def ratio(self, rival: str, peer: str) -> float:
        """How many times faster ``peer`` is."""
        return self.timings[rival].median / self.timings[peer].median

    @property
    def right(self) -> bool:
        """Whether all convolutions of the converted model are right, in both layouts. NaN is wrong."""
        return all(self.errors[f"konv{last}"] <= 1 for last in ("", "-last"))

    @property
    def bound(self) -> float:
        """How many times faster than PyTorch the model would be if convolutions took no time."""
        return 1 / (1 - self.shares["torch"])


def cases(names: Sequence[str] = ()) -> list[Case]:
    """All cases of the networks called ``names``, or of all.

    Raises
    ------
    ValueError
        There is no such network.
    """
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no model: expected some of {', '.join(NETWORKS)}")
    chosen = [name for name in NETWORKS if not names or name in names]
    return [Case(*case) for case in itertools.product(chosen, BATCHES, STEPS)]


def missing() -> list[str]:
    """Packages that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def run(chosen: Sequence[Case], *, repeat: int, threads: int, report: Callable[[str], None]) -> list[ModelResult]:
    """Measure cases: each peer in a process of its own, in turns, its convolutions compared with float64 first."""
    results = []
    with _workers(threads) as workers:
        for case in chosen:
            results.append(_measure(case, repeat, workers))
            report(line(results[-1]))
    return results


@contextlib.contextmanager
def _workers(threads: int) -> Iterator[dict[str, Worker]]:
    workers = {name: Worker(name, threads, (sys.executable, "-P", "-m", "konv.bench.models")) for name in PEERS}
    try:
        for worker in workers.values():
            worker.start()
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _measure(case: Case, repeat: int, workers: dict[str, Worker]) -> ModelResult:
    built = {
        peer: worker.ask(do="build", row=asdict(case), direction=case.step, exact="")
        for peer, worker in workers.items()
    }
    seconds: dict[str, list[float]] = {peer: [] for peer in workers}
    for _ in range(repeat):
        for peer in workers:
            time.sleep(PAUSE)
            calls = max(1, int(TURN / built[peer]["seconds"]))
            seconds[peer] += workers[peer].ask(do="run", calls=calls, warm=1)["seconds"]
    return ModelResult(
        case,
        {peer: Timing.of(times) for peer, times in seconds.items()},
        {peer: answer["error"] for peer, answer in built.items() if "error" in answer},
        {peer: answer["share"] for peer, answer in built.items() if "share" in answer},
    )


def line(result: ModelResult) -> str:
    """A result in one line."""
    case = result.case
    wrong = "" if result.right else f", WRONG: errors {result.errors}"
    return (
        f"{case.network}, batch {case.batch}, {case.step}: {milliseconds(result.timings['konv'].median)} ms, "
        f"{ratio_text(result.ratio('torch', 'konv'))} PyTorch of {ratio_text(result.bound)} at most; channels last "
        f"{milliseconds(result.timings['konv-last'].median)} ms, {ratio_text(result.ratio('torch-last', 'konv-last'))}{wrong}"
    )


def grid(results: Sequence[ModelResult]) -> Grid:
    """All results, then the geometric means of each step.

    "of it conv": how much of PyTorch's time is the convolutions'. "at most": how many times as fast the model would be if they
    took none. Errors are in units of what rounding allows.
    """
    columns = [
        "model", "batch", "step", "PyTorch", "of it conv", "konv", "quartiles", "x PyTorch", "goal", "at most", "PyTorch last",
        "konv last", "x last", "error", "error last",
    ]  # fmt: skip
    rows = []
    for result in results:
        konv, medians = result.timings["konv"], {peer: milliseconds(t.median) for peer, t in result.timings.items()}
        rows.append(
            [
                result.case.network, str(result.case.batch), result.case.step, medians["torch"], f"{result.shares['torch']:.0%}",
                medians["konv"], f"{milliseconds(konv.quarter)}-{milliseconds(konv.three_quarters)}",
                ratio_text(result.ratio("torch", "konv")) if result.right else "WRONG", "1", ratio_text(result.bound),
                medians["torch-last"], medians["konv-last"], ratio_text(result.ratio("torch-last", "konv-last")),
                f"{result.errors['konv']:.2f}", f"{result.errors['konv-last']:.2f}",
            ]
        )  # fmt: skip
    rows.append([])
    for step in STEPS:
        of_step = [result for result in results if result.case.step == step]
        if of_step:
            mean, last, bound = (
                ratio_text(Mean.of(ratios).ratio)  # type: ignore[union-attr]
                for ratios in (
                    [r.ratio("torch", "konv") for r in of_step], [r.ratio("torch-last", "konv-last") for r in of_step],
                    [r.bound for r in of_step],
                )
            )  # fmt: skip
            goal, none = f"{GOALS[step]:g}", [NOTHING] * 2
            rows.append(["geometric mean", "", step, *none, *none, mean, goal, bound, *none, last, *none])
    return Grid("whole models, milliseconds", columns, rows, left=3)


if __name__ == "__main__":
    name, threads = sys.argv[1:]
    answer_commands(lambda: PEERS[name](int(threads)), Case.from_dict)
