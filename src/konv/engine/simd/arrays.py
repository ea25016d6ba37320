"""Pointers of plain Python: the twin of traced ones on NumPy arrays, for tests, for debugging, for a reader."""

from __future__ import annotations

from typing import Any

import numpy as np

from konv.engine.simd.words import pair


class ArrayPointer:
    """The twin of :class:`Pointer` on a one-dimensional NumPy array: bounds are checked, nothing is compiled."""

    def __init__(self, array: np.ndarray, base: int = 0):
        self.array, self.base = array, base

    def at(self, i: int) -> ArrayPointer:
        """As :meth:`Pointer.at`."""
        return ArrayPointer(self.array, self.base + i)

    def as_(self, stored: str) -> ArrayPointer:
        """As :meth:`Pointer.as_`."""
        size, first = np.dtype(stored).itemsize, self.base * self.array.itemsize
        cells = self.array.view(np.uint8)[first % size :]
        return ArrayPointer(cells[: len(cells) // size * size].view(stored), first // size)

    def __getitem__(self, i: int) -> Any:
        element = self._read(self._cells(np.array([i])) - self.base, np.array([0]), 1, 0)[0]
        return int(element) if isinstance(element, np.integer) else element

    def __setitem__(self, i: int, value: Any) -> None:
        self.array[self._cells(np.array([i]))] = value

    def vec(
        self, i: int, lanes: int, count: int | None = None, start: int | None = None, bits: int | None = None,
        fill: float = 0,
    ) -> np.ndarray:  # fmt: skip
        """As :meth:`Pointer.vec`."""
        used = _used(lanes, count, start, bits)
        return self._read(i + used, used, lanes, fill)

    def pairs(self, i: int, lanes: int, count: int | None = None, bits: int | None = None) -> np.ndarray:
        """As :meth:`Pointer.pairs`."""
        return pair(*self.vec(i, 2 * lanes, count, bits=bits).reshape(lanes, 2).T)

    def put(
        self, i: int, vector: np.ndarray, count: int | None = None, start: int | None = None, bits: int | None = None
    ) -> None:
        """As :meth:`Pointer.put`."""
        used = _used(len(vector), count, start, bits)
        self.array[self._cells(i + used)] = vector[used]

    def stream(self, i: int, vector: np.ndarray) -> None:
        """As :meth:`Pointer.stream`."""
        self.put(i, vector)

    def gather(
        self, i: int, stride: int, lanes: int, count: int, start: int | None = None, fill: float = 0
    ) -> np.ndarray:
        """As :meth:`Pointer.gather`."""
        used = _used(lanes, count, start)
        return self._read(i + stride * used, used, lanes, fill)

    def scatter(self, i: int, stride: int, vector: np.ndarray, count: int) -> None:
        """As :meth:`Pointer.scatter`."""
        used = _used(len(vector), count, None)
        self.array[self._cells(i + stride * used)] = vector[used]

    def alternate(self, i: int, lanes: int, bits: int | None = None) -> np.ndarray:
        """As :meth:`Pointer.alternate`."""
        used = _used(2 * lanes, None, None, bits)
        used = used[used % 2 == 0]
        return self._read(i + used, used // 2, lanes, 0)

    def both(self, i: int, lanes: int, bits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Pointer.both`."""
        cells = self.vec(i, 2 * lanes, bits=bits)
        return cells[::2], cells[1::2]

    def weave(self, i: int, even: np.ndarray, odd: np.ndarray, count: int | None = None) -> None:
        """As :meth:`Pointer.weave`."""
        self.put(i, np.stack([even, odd], axis=1).reshape(-1), count)

    def zero(self, lanes: int) -> np.ndarray:
        """As :meth:`Pointer.zero`."""
        return np.zeros(lanes, self._wide)

    def full(self, lanes: int, number: float) -> np.ndarray:
        """As :meth:`Pointer.full`."""
        return np.full(lanes, number, self._wide)

    def prefetch(self, i: int, write: bool = False, later: bool = False) -> None:
        """As :meth:`Pointer.prefetch`: nothing."""

    @property
    def _wide(self) -> np.dtype:
        if self.array.dtype == np.uint8:
            return np.dtype(np.int32)
        return self.array.dtype if self.array.dtype.itemsize >= 4 else np.dtype(np.float32)

    def _read(self, cells: np.ndarray, used: np.ndarray, lanes: int, fill: float) -> np.ndarray:
        vector = np.full(lanes, fill, self._wide)
        vector[used] = self.array[self._cells(cells)]
        return vector

    def _cells(self, cells: np.ndarray) -> np.ndarray:
        cells = self.base + cells
        if cells.size and (cells.min() < 0 or cells.max() >= self.array.size):
            raise IndexError(
                f"a kernel touches elements {cells.min()} .. {cells.max()} of an array of {self.array.size}"
            )
        return cells


def _used(lanes: int, count: int | None, start: int | None, bits: int | None = None) -> np.ndarray:
    """The lanes start .. count - 1, or those of ``bits``."""
    lane = np.arange(lanes)
    if bits is not None:
        return lane[[bool(bits >> i & 1) for i in range(lanes)]]
    return lane[(lane < (lanes if count is None else count)) & (lane >= (0 if start is None else start))]
