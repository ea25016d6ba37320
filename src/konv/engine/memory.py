"""Workspaces: borrowed for the length of one operation, kept for the next, bounded.

A first touch of fresh memory costs more than many a convolution (70 ms for 25 MB in 4 KB pages, 0.1 ms when it is used
again), so buffers are kept. A buffer belongs to one operation at a time, whatever thread it runs in.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

KEPT_BYTES = 64 << 20  # at most so much stays allocated between operations
LINE = 64

_free: list[np.ndarray] = []
_lock = threading.Lock()


@contextlib.contextmanager
def workspace(size: int) -> Iterator[int]:
    """Borrow at least ``size`` bytes: the address of uninitialised memory, aligned to a cache line."""
    buffer = _take(size + LINE)
    try:
        yield -(-buffer.__array_interface__["data"][0] // LINE) * LINE
    finally:
        _give_back(buffer)


def release() -> None:
    """Give all kept buffers back to the system."""
    with _lock:
        _free.clear()


def _take(size: int) -> np.ndarray:
    with _lock:
        fitting = [i for i, buffer in enumerate(_free) if buffer.nbytes >= size]
        if fitting:
            return _free.pop(min(fitting, key=lambda i: _free[i].nbytes))
        if _free:  # too small for this operation: likely for the next one too
            _free.pop(0)
    return np.empty(size, np.uint8)


def _give_back(buffer: np.ndarray) -> None:
    with _lock:
        _free.append(buffer)
        while sum(kept.nbytes for kept in _free) > KEPT_BYTES:
            _free.pop(0)
