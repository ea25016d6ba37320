"""``konv bench downconv``: every form computes the same, reading reads everything, and wrong results are shown as wrong."""

import dataclasses

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

import konv
from konv.bench import downconv, streams
from konv.bench.results import Timing
from konv.commands import app

TINY = [downconv.Case(3, 40, 32, 2, 5, direction) for direction in downconv.PASSES]


@pytest.mark.parametrize("case", TINY, ids=downconv.PASSES)
def test_all_forms_compute_the_same(case):
    results = []
    for make in downconv.PEERS.values():
        built = make(1).build(case, case.direction)
        results.append(built.arrays(built.call()))
    assert len(results[0]) == (1 if case.direction == "forward" else 6)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_the_cases_come_out_even_and_have_goals():
    for case in downconv.CASES:
        assert case.seq_len % (case.k1 * case.m_segments) == 0 and len(case.goals) == 2


def test_operations_are_those_of_both_convolutions():
    for case in downconv.CASES:
        batch, length, features = case.x
        channels, windows = features // 16, length // case.k1
        first = konv.geometry((batch, features, length), (channels, features, case.k1), stride=case.k1)
        k2 = windows // case.m_segments
        second = konv.geometry((batch, channels, windows), (features, channels, k2), stride=k2)
        assert case.operations == first.flops + second.flops


@pytest.mark.parametrize("cached", [0, 1 << 40])
def test_reading_reads_every_number(cached, monkeypatch):
    monkeypatch.setattr(streams, "CACHED_BYTES", cached)
    x = np.random.default_rng(0).integers(-3, 4, (3, 8, 3 * 2048)).astype(np.float32)
    assert streams.reading(x, 2)().sum() == x.sum()


@pytest.mark.parametrize("past", [False, True])
def test_copying_copies_every_number(past):
    x, y = (streams.small_pages((5, 16, 2048)) for _ in range(2))
    x[...] = np.arange(x.size, dtype=np.float32).reshape(x.shape)
    streams.copying(x, y, 2, past)()
    assert (x == y).all()


def result(konv_error, case=downconv.CASES[0]):
    timing = Timing(3, 0.001, 0.001, 0.002, 0.003)
    slower = Timing(3, 0.01, 0.01, 0.01, 0.01)
    timings = {
        "konv": timing,
        "original": slower,
        "products": slower,
        "reading": timing,
        "through": slower,
        "past": timing,
    }
    errors = {"konv": konv_error, "original": 1e-7, "products": 1e-7}
    return downconv.DownResult(case, timings, errors, rate=case.operations / 0.004)


def test_the_least_time_is_that_of_memory_or_of_the_products():
    forward, step = (result(1e-7, case) for case in downconv.CASES[:2])
    assert forward.least == pytest.approx(0.004) and step.least == pytest.approx(0.004 + 0.008)
    assert "reading x takes 2 ms, its multiply-adds alone 2.0 times as long. So 4 ms at least" in downconv.limit(
        forward
    )
    assert "copying x takes 2 ms, its multiply-adds alone 4.0 times as long. So 12 ms" in downconv.limit(step)
    assert "konv takes 0.50 times that. What took no more would be 2.50x the original" in downconv.limit(forward)
    faster = dataclasses.replace(forward, rate=forward.rate * 4)
    assert faster.least == 0.002 and "its multiply-adds alone 0.5 of that. So 2 ms" in downconv.limit(faster)


@pytest.mark.parametrize("error, right", [(1e-7, True), (2e-6, False), (float("nan"), False)])
def test_a_wrong_result_is_shown_as_wrong(error, right):
    grid = downconv.grid([result(error)], 2)
    text = grid.markdown()
    assert "float32, 2 threads" in grid.title and "x expert's" in grid.columns
    assert ("5.00x" in text, "WRONG" in text, "WRONG" in downconv.line(result(error))) == (right, not right, not right)


@pytest.mark.parametrize("arguments", [["downconv", "x"], ["downconv", "--quick"]])
def test_the_command_takes_no_names(arguments):
    answer = CliRunner().invoke(app, ["bench", *arguments])
    assert answer.exit_code == 2 and "downconv takes no" in answer.output
