"""``konv bench downconv``: every form computes the same, reading reads everything, and wrong results are shown as wrong."""

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from konv.bench import downconv
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


def test_reading_reads_every_number():
    x = np.random.default_rng(0).integers(-3, 4, (3, 8, 3 * 2048)).astype(np.float32)
    assert downconv.reading(x, 2)().sum() == x.sum()


def result(konv_error):
    timing = Timing(3, 0.001, 0.001, 0.002, 0.003)
    slower = Timing(3, 0.01, 0.01, 0.01, 0.01)
    timings = {"konv": timing, "original": slower, "products": slower, "reading": timing}
    errors = {"konv": konv_error, "original": 1e-7, "products": 1e-7}
    return downconv.DownResult(downconv.CASES[0], timings, errors, timing)


@pytest.mark.parametrize("error, right", [(1e-7, True), (2e-6, False), (float("nan"), False)])
def test_a_wrong_result_is_shown_as_wrong(error, right):
    grid = downconv.grid([result(error)], 2)
    text = grid.markdown()
    assert "float32, 2 threads" in grid.title and "expert's form" in grid.columns
    assert ("5.00x" in text, "WRONG" in text, "WRONG" in downconv.line(result(error))) == (right, not right, not right)


@pytest.mark.parametrize("arguments", [["downconv", "x"], ["downconv", "--quick"]])
def test_the_command_takes_no_names(arguments):
    answer = CliRunner().invoke(app, ["bench", *arguments])
    assert answer.exit_code == 2 and "downconv takes no" in answer.output
