"""Large results: memory lent to the caller, and lent again when the last array on it is gone.

The system clears fresh memory page by page when it is first written, for as long as many a convolution takes: 6 ms for the
26 MB of a ResNet-50 layer, 30 where a virtual machine must ask its host for them. A training step makes the same results
again and again. So what was lent stays with konv, as a caching allocator keeps a GPU's memory: never more than was lent at
one time, and at most ``KEPT_BYTES``. Smaller arrays are NumPy's, which the C library reuses by itself.

An array and its views hold the block that they lie on, as NumPy's arrays hold each other's memory. So a block that nobody but
this file holds is free: Python counts who does, and nothing needs to be told when an array dies.

Losing: huge pages alone (``madvise``), which clear 64 MB in 7 ms instead of 31 once, but took three times as long as small
pages in every step where the host backs them one by one. Objects that give their block back when they are finalised: a loan
took 12 us instead of 2, and 80 inside a model, where other operations emptied the caches.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import Any, NamedTuple

import numpy as np

LENT_BYTES = 1 << 20  # smaller arrays are not lent
KEPT_BYTES = 1 << 30
WASTE = 8  # a block is lent for an array that leaves at most an eighth of it unused
LINE = 64
PAGE = 4096


class Block(NamedTuple):
    """Memory that arrays are lent on, and where it is; they begin at a cache line."""

    memory: np.ndarray
    address: int


def empty(shape: tuple[int, ...], dtype: Any, beside: int | None = None) -> np.ndarray:
    """As ``np.empty``, C-contiguous; a large one begins at a cache line, on memory of an earlier one where there is some.

    Views and tensors on it keep it, as they keep any array. ``beside``: the address of an array that is read while this one is
    written, both from beginning to end. They then begin half a page apart, page for page: two large arrays of the C library
    lie alike in their pages, and a CPU that at first compares the last twelve bits alone takes what it reads for what it has
    just written, and waits (DownConv's backward took 1.2 to 1.35 times as long; depthwise layers were not slower).

    >>> y = empty((1024, 1024), np.float32)
    >>> where = y.ctypes.data
    >>> del y
    >>> empty((1024, 1000), np.float32).ctypes.data == where
    True
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Who finds the accounts in use does not wait: a finaliser may ask, on a thread that is in the midst of them.
    if size < LENT_BYTES or not _lock.acquire(blocking=False):
        return np.empty(shape, dtype)
    try:
        memory, address = _take(size + LINE + PAGE * (beside is not None))
        start = -address % LINE
        if beside is not None:
            start += (beside + PAGE // 2 - address - start) % PAGE // LINE * LINE
        return np.ndarray(shape, dtype, memory, start)
    finally:
        _lock.release()
        _release_if_asked()


def release() -> None:
    """Give what is kept back to the system. What is lent stays lent.

    Where the accounts are in use it does not wait, for a finaliser may ask on the very thread that uses them: that thread does
    it, when it is done.
    """
    global _asked
    _asked = True
    _release_if_asked()


def _release_if_asked() -> None:
    global _asked, _most
    while _asked and _lock.acquire(blocking=False):
        try:
            _asked = False
            _most = 0
            _forget()
            _most = _lent()
        finally:
            _lock.release()


def lent() -> int:
    """Bytes of the blocks that arrays lie on. Not for finalisers: it waits for who uses the accounts."""
    with _lock:
        found = _lent()
    _release_if_asked()
    return found


def kept() -> int:
    """Bytes of the blocks that are there for the next. Not for finalisers, either."""
    with _lock:
        found = _all() - _lent()
    _release_if_asked()
    return found


def _take(size: int) -> Block:
    """The smallest free block that fits, or a new one in place of free ones that did not. Under the lock."""
    # Blocks of other sizes are not looked at where one of this size is free: in a model they are in no cache.
    for block in _blocks.get(size, ()):
        if _free(block):
            _blocks[size] = _blocks.pop(size)  # the last to be forgotten
            return block
    for length in sorted(other for other in _blocks if size < other <= size * WASTE // (WASTE - 1)):
        for block in _blocks[length]:
            if _free(block):
                return block
    _forget(size)
    memory = np.empty(size, np.uint8)
    block = Block(memory, memory.ctypes.data)
    if _all() + size <= KEPT_BYTES:
        _blocks[size] = [*_blocks.pop(size, ()), block]
    return block  # else of the C library alone


def _forget(more: int = 0) -> None:
    """Drop free blocks, sizes that were not used for long first: with ``more``, all stay within the most that was ever lent."""
    global _most
    _most = max(_most, _lent() + more)
    excess = _all() + more - min(_most, KEPT_BYTES)
    for length, blocks in list(_blocks.items()):
        for block in blocks.copy():
            if excess > 0 and _free(block):
                excess -= length
                blocks[:] = [other for other in blocks if other is not block]
        if not blocks:
            del _blocks[length]


def _all() -> int:
    return sum(length * len(blocks) for length, blocks in _blocks.items())


def _lent() -> int:
    return sum(length for length, blocks in _blocks.items() for block in blocks if not _free(block))


def _free(block: Block) -> bool:
    return _holders(block) == _UNUSED


def _holders(block: Block) -> int:
    return sys.getrefcount(block.memory)


# Of each size, lent and free; the size that was not used for the longest time first.
_blocks: dict[int, list[Block]] = {}
_most = 0  # bytes that were lent at one time
_nobodys = Block(np.empty(0), 0)
_UNUSED = _holders(_nobodys)
_lock = threading.Lock()
_asked = False  # to release what is kept, by who did not wait for the lock
if hasattr(os, "register_at_fork"):  # a child must not inherit the lock as another thread held it
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
