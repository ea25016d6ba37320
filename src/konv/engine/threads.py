"""How many threads konv's operations use."""

from __future__ import annotations

import os
import threading

from konv.arguments import checked_integer
from konv.info import usable_cores

SMALL_WORK = 1 << 21  # multiply-adds, 20 us: what is gained below is lost where a second thread has to wait for a core
_threads: int | None = None
_here = threading.local()


def set_threads(n: int) -> None:
    """Use n threads for every following operation of konv, in this process.

    Results do not depend on n, bit for bit. The default is the number of cores that the process may use, or
    ``OMP_NUM_THREADS`` where that is set.

    Raises
    ------
    TypeError, ValueError
        n is not an integer, or less than 1.

    Examples
    --------
    >>> import konv
    >>> before = konv.get_threads()
    >>> konv.set_threads(1)
    >>> konv.set_threads(before)
    """
    global _threads
    _threads = checked_integer("n", n, 1)


def get_threads() -> int:
    """How many threads konv's operations use."""
    global _threads
    own = getattr(_here, "threads", None)
    if own is not None:
        return own
    if _threads is None:
        wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        _threads = int(wanted) if wanted.isdigit() and int(wanted) else usable_cores()
    return _threads


class using:  # reads as a function: ``with using(2):``
    """Within this block operations of the calling thread use n threads, whatever the process's number is."""

    __slots__ = ("_before", "_threads")

    def __init__(self, n: int):
        self._threads = n

    def __enter__(self) -> None:
        self._before = getattr(_here, "threads", None)
        _here.threads = self._threads

    def __exit__(self, *error: object) -> None:
        _here.threads = self._before


def width(pieces: int, work: int) -> int:
    """How many threads, and so slots, a job of so many pieces and multiply-adds uses."""
    return 1 if work < SMALL_WORK else max(1, min(get_threads(), pieces))
