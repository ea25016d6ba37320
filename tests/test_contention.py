"""How many threads are left on a busy machine: by a clock of the test, and measured in the pool."""

import ctypes
import itertools
import threading
import time

import numpy as np
import pytest

import konv
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
    contention.lost(MS // 10 - 1, contention.losses)
    assert contention.allowed(2) == 2
    contention.lost(3 * MS, contention.losses)
    assert [contention.allowed(n) for n in (1, 2, 8)] == [1, 1, 7]
    clock[0] += 11.9
    assert contention.allowed(2) == 1
    clock[0] += 0.2
    assert contention.allowed(2) == 2


def test_twice_as_long_where_time_is_lost_again_at_once(clock):
    lengths = []
    for _ in range(9):
        contention.lost(3 * MS, contention.losses)
        began = clock[0]
        while contention.allowed(2) == 1:
            clock[0] += 1
        lengths.append(clock[0] - began)
    assert lengths == [12, 24, 48, 96, 192, 384, 500, 500, 500]
    clock[0] += 501  # as long again, and nothing lost
    assert contention.allowed(2) == 2
    contention.lost(3 * MS, contention.losses)
    clock[0] += 12
    assert contention.allowed(2) == 2


def test_twice_as_many_left_out_where_one_is_not_enough(clock):
    left = []
    for _ in range(6):
        contention.lost(1 * MS, contention.losses)
        left.append(contention.allowed(16))
        clock[0] += 1
    assert left == [15, 14, 12, 8, 1, 1]


def test_jobs_that_run_at_once_lose_once(clock):
    for _ in range(5):
        before = contention.losses
        for _ in range(8):
            contention.lost(3 * MS, before)
        assert [contention.allowed(n) for n in (2, 8)] == [1, 7]
        while contention.allowed(2) == 1:
            clock[0] += 1


def test_layers_have_the_same_bits_while_their_threads_come_and_go(monkeypatch):
    """Four Python threads whose jobs lose time as soon as anybody waits; and fewer threads in turns, for where nobody does."""
    monkeypatch.setattr(contention, "UNNOTICED", 100)
    rng = np.random.default_rng(0)
    layers = [
        ((8, 32, 20, 20), (32, 32, 3, 3), 1, 1),
        ((8, 96, 14, 14), (64, 96, 1, 1), 0, 1),
        ((8, 64, 28, 28), (64, 1, 3, 3), 1, 64),
    ]
    data = [
        [*(rng.standard_normal(shape).astype(np.float32) for shape in (x, w)), padding, groups]
        for x, w, padding, groups in layers
    ]
    allowed, given, wrong, before = contention.allowed, set(), [], konv.get_threads()
    turns = itertools.count()

    def counted(threads):
        given.add(found := min(allowed(threads), next(turns) % threads + 1))
        return found

    def compute(x, w, padding, groups):
        y = konv.conv(x, w, padding=padding, groups=groups)
        return [part.tobytes() for part in (y, *konv.conv_backward(y, x, w, padding=padding, groups=groups))]

    def work(number):
        for turn in range(12):
            i = (number + turn) % len(data)
            if compute(*data[i]) != right[i]:
                wrong.append(i)

    konv.set_threads(1)
    right = [compute(*layer) for layer in data]
    konv.set_threads(4)
    try:
        monkeypatch.setattr(contention, "allowed", counted)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        konv.set_threads(before)
        contention._left_out = 0
    assert not wrong and (launch._gomp() is None or len(given) > 1)


def run(job, threads):
    slots, sums = np.full(job.pieces, -1), np.zeros(job.pieces, np.int64)
    job.run(threads, slots=address(slots), sums=address(sums))
    return slots


def test_a_job_runs_in_the_threads_that_are_left(monkeypatch):
    monkeypatch.setattr(contention, "allowed", lambda threads: threads - 1)
    job = launch.Job(steps(), 100, steps=1000)
    assert (run(job, 2) == 0).all()
    assert set(run(job, 3)) <= {0, 1}


@pytest.mark.parametrize("helper, lost", [(1_000_000_000, 999_999_600), (401, 1), (399, -1), (0, -400)])
def test_what_is_lost_is_the_wait_for_a_helper(monkeypatch, helper, lost):
    """A pool in this thread alone, by a clock of the test: of 3 pieces the caller takes 300 ns and then waits for the helper."""
    now, thread, heard = [5_999_999_900], [0], []  # ns: the second changes meanwhile

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64))
    def clock(number, spec):
        assert number == time.CLOCK_MONOTONIC
        spec[0], spec[1] = divmod(now[0], 10**9)
        return 0

    @ctypes.CFUNCTYPE(ctypes.c_int)
    def number():
        now[0] += helper if thread[0] else 300
        return thread[0]

    @ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int] * 2)
    def parallel(member, job, threads, flags):
        for thread[0] in range(threads):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(member)(job)

    pool = launch.Pool(*(ctypes.cast(function, ctypes.c_void_p).value for function in (parallel, number, clock)))
    monkeypatch.setattr(launch, "_gomp", lambda: pool)
    monkeypatch.setattr(contention, "lost", lambda nanoseconds, before: heard.append(nanoseconds))
    monkeypatch.setattr(contention, "allowed", lambda threads: threads)
    assert (run(launch.Job(steps(), 3, steps=1), 2) == 0).all()
    assert heard == [lost]  # two pieces of 200 ns are the wait of an even job


@pytest.mark.skipif(launch._gomp() is None, reason="needs libgomp")
def test_an_even_job_loses_nothing(monkeypatch):
    lost = []
    monkeypatch.setattr(contention, "lost", lambda nanoseconds, before: lost.append(nanoseconds))
    monkeypatch.setattr(contention, "allowed", lambda threads: threads)
    even = launch.Job(steps(), 40, steps=10_000)
    for _ in range(1000):  # on a busy machine some do
        run(even, 2)
        if lost[-1] < 0:
            break
    assert lost[-1] < 0


@kernel
def steps():
    """``slots[piece] = slot``, after ``steps`` steps."""

    def text(piece, slot, slots, sums, steps):
        for _ in loop(steps):
            sums[piece] = sums[piece] * 3 + 1
        slots[piece] = slot

    return text, {"slots": "int64", "sums": "int64"}
