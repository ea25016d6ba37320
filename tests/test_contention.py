"""How many threads are left on a busy machine: by a clock of the test, and measured in the pool."""

import numpy as np
import pytest

from konv.engine import contention, launch
from konv.engine.compile import kernel
from konv.engine.memory import address
from konv.engine.simd import loop

MS = 1_000_000


@pytest.fixture
def clock(monkeypatch):
    """The time in milliseconds, in a list; nothing has been lost yet."""
    now = [1000.0]
    monkeypatch.setattr(contention.time, "monotonic_ns", lambda: int(now[0] * MS))
    monkeypatch.setattr(contention, "UNNOTICED", MS // 10)
    for name in ("_left_out", "_until", "_length"):
        monkeypatch.setattr(contention, name, 0)
    return now


def test_one_thread_less_for_four_times_what_was_lost(clock):
    assert contention.allowed(2) == 2
    contention.lost(MS // 10 - 1)
    assert contention.allowed(2) == 2
    contention.lost(3 * MS)
    assert [contention.allowed(n) for n in (1, 2, 8)] == [1, 1, 7]
    clock[0] += 11.9
    assert contention.allowed(2) == 1
    clock[0] += 0.2
    assert contention.allowed(2) == 2


def test_twice_as_long_where_time_is_lost_again_at_once(clock):
    lengths = []
    for _ in range(9):
        contention.lost(3 * MS)
        began = clock[0]
        while contention.allowed(2) == 1:
            clock[0] += 1
        lengths.append(clock[0] - began)
    assert lengths == [12, 24, 48, 96, 192, 384, 500, 500, 500]
    clock[0] += 501  # as long again, and nothing lost
    assert contention.allowed(2) == 2
    contention.lost(3 * MS)
    clock[0] += 12
    assert contention.allowed(2) == 2


def test_twice_as_many_left_out_where_one_is_not_enough(clock):
    left = []
    for _ in range(6):
        contention.lost(1 * MS)
        left.append(contention.allowed(16))
        clock[0] += 1
    assert left == [15, 14, 12, 8, 1, 1]


def run(job, threads):
    slots, sums = np.full(job.pieces, -1), np.zeros(job.pieces, np.int64)
    job.run(threads, slots=address(slots), sums=address(sums))
    return slots


def test_a_job_runs_in_the_threads_that_are_left(monkeypatch):
    monkeypatch.setattr(contention, "allowed", lambda threads: threads - 1)
    job = launch.Job(steps(), 100, first=1000, more=0)
    assert (run(job, 2) == 0).all()
    assert set(run(job, 3)) <= {0, 1}


@pytest.mark.skipif(launch._gomp() is None, reason="needs libgomp")
def test_what_is_lost_is_the_wait_for_a_helper(monkeypatch):
    lost = []
    monkeypatch.setattr(contention, "lost", lost.append)
    monkeypatch.setattr(contention, "allowed", lambda threads: threads)
    even, uneven = launch.Job(steps(), 40, first=10_000, more=0), launch.Job(steps(), 2, first=100_000, more=3_000_000)
    for _ in range(20):
        run(even, 2)
    assert min(lost) < 0  # who was done first waited for less than the time of two pieces
    for _ in range(100):  # the caller, as a rule, comes first and takes the short piece
        run(uneven, 2)
        if lost[-1] > 500_000:
            break
    assert lost[-1] > 500_000


@kernel
def steps():
    """``slots[piece] = slot``, after ``first + piece * more`` steps."""

    def text(piece, slot, slots, sums, first, more):
        for _ in loop(first + piece * more):
            sums[piece] = sums[piece] * 3 + 1
        slots[piece] = slot

    return text, {"slots": "int64", "sums": "int64"}
