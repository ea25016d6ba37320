"""Fewer threads while other programs want the cores: what a job lost decides how many threads the next ones get.

OpenMP's threads wait for each other at the end of a job, also for one that has lost its core or not got one yet, for as
long as the system gives that core to somebody else: 3 to 30 ms, for a job of perhaps 0.1. And two threads get hardly more
of a busy machine than one, where it is shared out to sessions or containers. So after a job in which the caller waited
longer than it should the next ones leave a thread out, for four times as long as was lost; twice as many threads where
that was not enough, twice as long where time is lost again at once. So at most a quarter of the time is lost, soon much
less, and a hiccup of a quiet machine costs as little as it was. Results do not depend on the number of threads.

With 1, 2, 4, 8 busy processes on two cores a training step of the digits' net took 3.1, 3.1, 3.3, 3.8 times as long in two
threads as in one; now 1.0, 1.1, 1.1, 1.2 times. Losing: a pool of our own, whose jobs wait only for who is in the midst of a
piece (1.4, 1.7, 1.0, 1.4: threads that spin until the next job cost the caller its share of the machine, and those that
sleep were woken on the caller's own core, which left it alone on a quiet machine, too). The thread's CPU time instead of the
wall's, which also sees that the caller itself lost its core (0.9, 1.2, 1.0, 1.0): reading that clock twice costs 1.3 us a job,
and in a virtual machine some time was always missing: one thread for good, on a quiet machine.
"""

from __future__ import annotations

import time

__all__ = ["allowed", "lost"]  # and losses

UNNOTICED = 100_000  # ns: less is nobody's time slice
LONGEST = 500_000_000

losses = 0  # that were counted

# Written without a lock: of two losses at once either may be forgotten.
_left_out = 0  # threads, until then:
_until = 0
_length = 0  # of that time; all in ns


def allowed(threads: int) -> int:
    """How many of so many threads a job gets now."""
    global _left_out
    if not _left_out:
        return threads
    now = time.monotonic_ns()
    if now < _until:
        return max(1, threads - _left_out)
    if now >= _until + _length:
        _left_out = 0  # nothing was lost again
    return threads


def lost(nanoseconds: int, before: int) -> None:
    """The caller of a job that has just ended waited for so long in vain. It began when there were ``before`` losses.

    Of jobs that several Python threads run at once one is enough: the others had begun with as many threads as it.
    """
    global losses, _left_out, _until, _length
    if nanoseconds < UNNOTICED or before != losses:
        return
    losses += 1
    now = time.monotonic_ns()
    if not _left_out or now >= _until + _length:
        _left_out, _length = 1, 0
    elif now < _until:
        _left_out *= 2
    _length = min(max(4 * nanoseconds, 2 * _length), LONGEST)
    _until = now + _length
