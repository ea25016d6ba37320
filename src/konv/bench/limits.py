"""What the machine can do, measured with the engine's own kernel language: multiply-adds, and bytes moved, per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from konv.bench.layers import Row
from konv.engine.compile import Kernel, compile_ir, load, trace
from konv.engine.launch import Job, address
from konv.engine.machine import machine
from konv.engine.simd import Variable, fma, loop

ROUNDS = 10_000  # of one piece: 50 us and more
SECONDS = 0.3  # spent on each limit at the start
SIZES = (1 << 19, 1 << 20, 4 << 20, 16 << 20, 128 << 20)  # bytes moved together by all threads: from L2 to memory


@dataclass(frozen=True)
class Limits:
    """The best that any kernel could do here.

    Attributes
    ----------
    threads : how many worked together
    fma : floating point operations per second in float32 and float64, two to a multiply-add
    memory : (bytes, bytes per second): how fast so many bytes, together, are read and written again and again
    """

    threads: int
    fma: dict[str, float]
    memory: tuple[tuple[int, float], ...]

    def bandwidth(self, size: int) -> float:
        """Bytes per second for a working set of ``size`` bytes: that of the next larger one measured.

        Examples
        --------
        >>> Limits(1, {}, ((1000, 3.0), (9000, 2.0))).bandwidth(1001)
        2.0
        """
        return next((speed for measured, speed in self.memory if size <= measured), self.memory[-1][1])

    def least_seconds(self, row: Row, direction: str) -> tuple[float, str]:
        """The least time of a row and what sets it: "FMA" or "memory"."""
        work = row.flops(direction) / self.fma["float64" if row.dtype == "float64" else "float32"]
        moved = row.bytes(direction) / self.bandwidth(row.bytes(direction))
        return (work, "FMA") if work >= moved else (moved, "memory")


def fma_rate(dtype: str, threads: int, seconds: float = SECONDS) -> float:
    """Floating point operations per second, two to a multiply-add, the best in about so many seconds."""
    call, operations = _multiply_adds(dtype, threads)
    return operations / _fastest(call, seconds)


class Meter:
    """Measures the limits, again and again in the course of a run: a limit is the best that was ever seen.

    A neighbour that takes a core away for a while spoils one measurement, but not all of them.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._work = {dtype: _multiply_adds(dtype, threads) for dtype in ("float32", "float64")}
        self._moves = {size: _moves(size, threads) for size in SIZES}
        self._best: dict[str | int, float] = {}

    def measure(self, seconds: float = SECONDS) -> None:
        """Spend about so many seconds on each of the limits."""
        for name, (call, amount) in (self._work | self._moves).items():
            self._best[name] = max(self._best.get(name, 0.0), amount / _fastest(call, seconds))

    @property
    def limits(self) -> Limits:
        """The best so far."""
        memory: list[tuple[int, float]] = []
        for size in reversed(
            SIZES
        ):  # what fits a small cache fits the large ones too: measured slower, it was disturbed
            memory.insert(0, (size, max(self._best[size], memory[0][1] if memory else 0.0)))
        return Limits(self.threads, {dtype: self._best[dtype] for dtype in self._work}, tuple(memory))


def _compiled(name: str, text: Callable[..., None], pointers: dict[str, str], arguments: tuple[str, ...]) -> Kernel:
    """A kernel that is not kept on disk: the cache knows the engine's sources only."""
    return Kernel(name, load(compile_ir(trace(text, pointers))), arguments)


def _multiply_adds(dtype: str, threads: int) -> tuple[Callable[[], None], float]:
    """A job and its operations: as many chains of multiply-adds as a register tile has, nothing read or written between."""
    lanes, (vectors, pixels) = machine().lanes(dtype), machine().tile
    chains = vectors * pixels

    def text(piece, slot, a, out, rounds):
        factor, sums = a.vec(0, lanes), [Variable(a.vec(c, lanes)) for c in range(chains)]  # equal ones would be merged
        for _ in loop(rounds):
            for total in sums:
                total.set(fma(total.get(), factor, factor))
        for total in sums:
            out.put(piece * lanes, out.vec(piece * lanes, lanes) + total.get())

    pieces = 4 * threads
    a, out = np.linspace(0.4, 0.5, lanes + chains, dtype=dtype), np.zeros(pieces * lanes, dtype)  # sums stay below 1
    job = Job(
        _compiled(f"limit_{dtype}", text, {"a": dtype, "out": dtype}, ("a", "out", "rounds")), pieces, rounds=ROUNDS
    )
    return lambda: job.run(threads, a=address(a), out=address(out)), 2 * chains * lanes * ROUNDS * pieces


def _moves(size: int, threads: int) -> tuple[Callable[[], None], float]:
    """A job and its bytes: ``y = x``, half of ``size`` read, half written; each thread has its share, small ones many times."""
    lanes, half = machine().lanes("float32"), size // 8
    block = half // threads // (4 * lanes) * 4 * lanes
    rounds = max(1, (16 << 20) // size)

    def text(piece, slot, x, y, block, rounds):
        for _ in loop(rounds):
            for i in loop(block // (4 * lanes)):
                for j in range(4):
                    at = piece * block + (i * 4 + j) * lanes
                    y.put(at, x.vec(at, lanes))

    x, y = np.ones(half, np.float32), np.ones(half, np.float32)
    kernel = _compiled("limit_memory", text, {"x": "float32", "y": "float32"}, ("x", "y", "block", "rounds"))
    job = Job(kernel, threads, block=block, rounds=rounds)
    return lambda: job.run(threads, x=address(x), y=address(y)), 8 * threads * block * rounds


def _fastest(call: Callable[[], None], seconds: float) -> float:
    """Seconds of the fastest call, after one that is not counted."""
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
