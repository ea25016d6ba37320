"""Large results: memory lent to the caller, taken back when the last array on it is gone, and lent again.

The system clears fresh memory page by page when it is first written, for as long as many a convolution takes: 6 ms for the
26 MB of a ResNet-50 layer, 30 where a virtual machine must ask its host for them. A training step makes the same results
again and again. So what was lent stays with konv, as a caching allocator keeps a GPU's memory: never more than was lent at
one time, and at most ``KEPT_BYTES``. Smaller arrays are NumPy's, which the C library reuses by itself.

Losing: huge pages alone (``madvise``), which clear 64 MB in 7 ms instead of 31 once, but took three times as long as small
pages in every step where the host backs them one by one.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from typing import Any

import numpy as np

LENT_BYTES = 1 << 20  # smaller arrays are not lent
KEPT_BYTES = 1 << 30
WASTE = 8  # a block is lent for an array that leaves at most an eighth of it unused
LINE = 64


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As ``np.empty``, C-contiguous; a large one begins at a cache line and gives its memory back when it is gone.

    Views and tensors on it keep it, as they keep any array.

    >>> y = empty((1024, 1024), np.float32)
    >>> where = y.ctypes.data
    >>> del y
    >>> empty((1024, 1000), np.float32).ctypes.data == where
    True
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Who finds the accounts in use does not wait: a finaliser may ask, on a thread that is in the midst of them.
    if size < LENT_BYTES or _lock.locked():
        return np.empty(shape, dtype)
    with _lock:
        block = _take(size)
    return np.asarray(_Loan(block, size)).view(dtype).reshape(shape)


def release() -> None:
    """Give what is kept back to the system. What is lent stays lent."""
    global _most
    with _lock:
        _most = 0
        _sort()
        _most = _lent


class _Loan:
    """What an array rests on: NumPy asks for the interface once and holds the object."""

    def __init__(self, block: np.ndarray, size: int):
        start = -block.ctypes.data % LINE
        self.block = block
        self.__array_interface__ = block[start : start + size].__array_interface__

    def __del__(self) -> None:
        # Anywhere, also inside _take where the lock is held: then the block waits for whoever sorts next.
        _returned.append(self.block)
        if not _lock.locked():
            with _lock:
                _sort()


def _take(size: int) -> np.ndarray:
    """The smallest kept block that fits, or a new one in place of kept ones that did not. Under the lock."""
    global _lent, _most, _idle
    needed = size + LINE
    most = needed * WASTE // (WASTE - 1)
    _sort()
    fitting = [(block.nbytes, -place) for place, block in enumerate(_kept) if needed <= block.nbytes <= most]
    if fitting:
        block = _kept.pop(-min(fitting)[1])  # of equal ones the last: the caches may still know it
        _idle -= block.nbytes
    else:
        _forget(needed)
        block = np.empty(needed, np.uint8)
    _lent += block.nbytes
    _most = max(_most, _lent)
    return block


def _sort() -> None:
    """Count what came back as kept. Under the lock."""
    global _lent, _idle
    while _returned:
        block = _returned.popleft()
        _lent -= block.nbytes
        _idle += block.nbytes
        _kept.append(block)
    _forget()


def _forget(more: int = 0) -> None:
    """Drop the longest unused blocks: with ``more``, what is lent and kept stays within the most that was ever lent."""
    global _idle
    most = max(_most, _lent + more)
    while _kept and (_idle > KEPT_BYTES or _idle + _lent + more > most):
        _idle -= _kept.pop(0).nbytes


_returned: deque[np.ndarray] = deque()
_kept: list[np.ndarray] = []  # the longest unused first
_lent = _idle = _most = 0  # bytes: lent now, kept now, lent at most at one time
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit the lock as another thread held it
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
