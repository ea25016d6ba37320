"""Workspaces: borrowed for the length of one operation, kept for the next, bounded.

A first touch of fresh memory costs more than many a convolution (70 ms for 25 MB in 4 KB pages, 0.1 ms when it is used
again), so buffers are kept. A buffer belongs to one operation at a time, whatever thread it runs in.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import operator
from typing import Any, NamedTuple

import numpy as np

from konv import lending

KEPT_BYTES = 64 << 20  # at most so much stays allocated between operations
LINE = 64


def _asked_address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _read_address(array: np.ndarray) -> int:
    """The first field of NumPy's array object, after Python's header: 0.15 us, where asking takes 1.5."""
    return _pointer_at(id(array) + _HEADER).value or 0


_pointer_at, _HEADER, _probe = ctypes.c_void_p.from_address, object.__basicsize__, np.empty(1)
_plain_objects = hasattr(ctypes, "pythonapi") and _read_address(_probe) == _asked_address(_probe)  # not so in PyPy
address = _read_address if _plain_objects else _asked_address
"""``address(array)``: where its data begins."""


class Buffer(NamedTuple):
    """Memory to borrow: its first whole cache line, and the bytes from there on."""

    start: int
    size: int
    array: np.ndarray


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that begins where a cache line does: vectors that cross lines are read at half the speed."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -address(memory) % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


class workspace:  # reads as a function: ``with workspace(size) as start``
    """Borrow at least ``size`` bytes: the address of uninitialised memory, aligned to a cache line."""

    __slots__ = ("_buffer", "_size")

    def __init__(self, size: int):
        self._size = size

    def __enter__(self) -> int:
        self._buffer = _take(self._size)
        return self._buffer.start

    def __exit__(self, *error: object) -> None:
        _give_back(self._buffer)


def release() -> None:
    """Give all kept buffers back to the system, those for results too: see :func:`konv.lending.release`."""
    _free.clear()
    lending.release()


# No lock: a finaliser may borrow on a thread that is in the midst of these lines. Each touches the list once.


def _take(size: int) -> Buffer:
    """The last that was given back, which is in the caches, where it fits; else the smallest that is large enough, or a new one.

    A much larger one is left to who needs it: another Python thread that works on large arrays would get fresh pages each time.
    """
    try:
        last = _free.pop()
    except IndexError:
        pass
    else:
        if size <= last.size <= 4 * size:
            return last
        _free.append(last)
    fitting = [buffer for buffer in _free.copy() if buffer.size >= size]
    while fitting:
        best = min(fitting, key=_size)
        fitting.remove(best)
        with contextlib.suppress(ValueError):  # another thread has taken it since
            _free.remove(best)
            return best
    with contextlib.suppress(IndexError):  # too small for this operation: likely for the next one too
        _free.pop(0)
    array = np.empty(size + LINE, np.uint8)
    start = -(-address(array) // LINE) * LINE
    return Buffer(start, size, array)


def _give_back(buffer: Buffer) -> None:
    _free.append(buffer)
    if len(_free) == 1 and buffer.size <= KEPT_BYTES:
        return
    while sum(map(_size, _free.copy())) > KEPT_BYTES:
        with contextlib.suppress(IndexError):
            _free.pop(0)


_size = operator.attrgetter("size")
_free: list[Buffer] = []
