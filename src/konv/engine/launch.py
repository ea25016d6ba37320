"""Threads: the pieces of a job, handed out one by one from a counter for each thread's share of them.

A worker takes a slot, then the pieces of its share, which are neighbours, then what the others have left of theirs: a core
that somebody else keeps busy takes fewer pieces. Which thread computes a piece has no influence on its
result, so neither has their number. With one counter for all, threads took turns: in the next call, or the next layer, most
of what a core had written lay in the other's cache, and lines between two pieces went to and fro (7x7 at 384@14, channels
last, .40-.80 ms instead of .27).

The workers run on OpenMP's pool (libgomp; 2 us for an empty job) where there is one, PyTorch's if it is loaded.
In a process made by ``fork`` that pool is dead, and where there is no libgomp there is none: there Python threads do it.
How long the calling thread waited for one that another program keeps from its core is told to
:mod:`konv.engine.contention`, which decides how many threads the next jobs get.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import os
import queue
import struct
import time
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from konv.engine import contention
from konv.engine.compile import Kernel, compile_ir, compiling, load, stored
from konv.engine.memory import address
from konv.engine.simd.values import INT64

__all__ = ["Job", "address"]

HEADER = 8  # int64 cells before the arguments, a cache line:
# Next slot, ..., where the counts of taken pieces are (a line a share); in the pool also: functions, when the caller was done.
SLOT, PIECES, KERNEL, SHARES, COUNTS, MEMBER, CLOCK, DONE = range(HEADER)
LINE_CELLS = 8
COUNT_BYTES = 8 * LINE_CELLS
CLOCK_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 1)  # its number is the system's


class Job:
    """A kernel with its integer arguments, prepared once; each run adds the pointers.

    Parameters
    ----------
    kernel : compiled kernel
    pieces : how many pieces it has
    numbers : its integer arguments by name, and tables: arrays that are the same in every run, kept as long as the job.
        The names that are missing are its pointers, given to :meth:`run`

    Attributes
    ----------
    pointers : names of the pointers
    numbers : the integers by name
    tables : the tables by name
    """

    def __init__(self, kernel: Kernel, pieces: int, **numbers: int | np.ndarray):
        unknown = numbers.keys() - set(kernel.arguments)
        if unknown:
            raise TypeError(f"{kernel.name} has no arguments {sorted(unknown)}")
        self.kernel, self.pieces = kernel, pieces
        self.tables = {name: table for name, table in numbers.items() if isinstance(table, np.ndarray)}
        self.numbers = {name: int(number) for name, number in numbers.items() if name not in self.tables}
        numbers |= {name: address(table) for name, table in self.tables.items()}
        # What is the same in every run is packed once, so that a run packs a few pointers.
        self._cells: list[bytes | int] = [struct.pack("3q", 0, pieces, kernel.address), 1]
        counts = HEADER + len(kernel.arguments) + LINE_CELLS  # on a line that holds no arguments
        self._cells.append(struct.pack(f"{HEADER - COUNTS}q", counts, *[0] * (HEADER - COUNTS - 1)))
        self._places: dict[str, int] = {}
        for name in kernel.arguments:
            if name not in numbers:
                self._places[name] = len(self._cells)
                self._cells.append(0)
            elif isinstance(before := self._cells[-1], bytes):
                self._cells[-1] = before + struct.pack("q", int(numbers[name]))
            else:
                self._cells.append(struct.pack("q", int(numbers[name])))
        cells = "".join(f"{len(c)}s" if isinstance(c, bytes) else "q" for c in self._cells)
        self._pack = struct.Struct(f"{cells}{2 * COUNT_BYTES}x").pack  # and room for the counts of one share
        self.pointers = tuple(self._places)

    def run(self, threads: int, **pointers: np.ndarray | int) -> None:
        """Run all pieces in so many threads, which use the slots 0 .. threads - 1, and wait for them.

        ``pointers`` : arrays, or addresses.
        """
        self.run_on(threads, pointers)

    def run_on(self, threads: int, pointers: dict[str, np.ndarray | int]) -> None:
        """The same of a dictionary."""
        places, cells = self._places, self._cells.copy()
        try:
            for name, start in pointers.items():
                cells[places[name]] = address(start) if isinstance(start, np.ndarray) else start
        except KeyError:
            places = {}
        if len(pointers) != len(places):
            raise TypeError(f"{self.kernel.name} needs {sorted(self.pointers)}, got {sorted(pointers)}")
        if threads > self.pieces:
            threads = self.pieces
        if threads > 1:
            threads = contention.allowed(threads)
        # The workers count in bytes that nobody else has seen.
        if threads <= 1:
            _worker()(self._pack(*cells))
            return
        cells[1] = threads
        job = self._pack(*cells) + bytes(COUNT_BYTES * (threads - 1))
        if os.getpid() == _pool_process and (pool := _gomp()) is not None:
            before = contention.losses
            contention.lost(_in_pool()(job, threads, *pool), before)
        else:
            _in_python_threads(job, threads)

    def cut(self, threads: int) -> str:
        """Pieces and threads, in words."""
        return ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in ((self.pieces, "piece"), (threads, "thread")))


def _in_python_threads(job: bytes, threads: int) -> None:
    """Run a job where there is no pool. Whatever is raised meanwhile (Ctrl-C), no helper is left writing to its arrays."""
    begun: list[int] = []
    ended: list[int] = []
    wake: queue.SimpleQueue[None] = queue.SimpleQueue()
    raised: BaseException | None = None

    def help_out(number: int) -> None:
        try:
            _worker()(job)
        finally:
            ended.append(number)
            wake.put(None)

    try:
        # Not a loop and not threading.Thread: an interrupt finds either none or all of them, in ``begun``, not one in between.
        begun.extend(map(_thread.start_new_thread, [help_out] * (threads - 1), [(i,) for i in range(threads - 1)]))
        _worker()(job)
    except BaseException as error:
        raised = error
    while len(ended) < len(begun):
        try:
            wake.get(timeout=0.05)
        except queue.Empty:
            continue
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _process_of_the_pool() -> int | None:
    """The process in which OpenMP may be called: this one, unless it was forked from one that may have used OpenMP."""
    forked = False
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/self/stat") as stat:
        flags = int(stat.read().rpartition(")")[2].split()[6])
        forked = bool(flags & 0x40)  # Linux: forked, and no program started since
    return None if forked and _loaded_libgomp() else os.getpid()


class Pool(NamedTuple):
    """Addresses of functions: two of libgomp's, one of the C library's."""

    parallel: int
    member: int
    clock: int


@functools.cache
def _gomp() -> Pool | None:
    """What is called of the libgomp in this process, or of the system's; None where there is none."""
    loaded = _loaded_libgomp()
    # On a busy machine longer spinning costs 24-60 ms where this costs 6. Read when the library is loaded, and by it alone.
    patient = not loaded and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if patient:
        os.environ["GOMP_SPINCOUNT"] = "10000"
    try:
        for path in [*loaded, "libgomp.so.1"]:
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(path)
                functions = library.GOMP_parallel, library.omp_get_thread_num, ctypes.CDLL(None).clock_gettime
                return Pool(*(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions))
        return None
    finally:
        if patient:
            del os.environ["GOMP_SPINCOUNT"]


def _loaded_libgomp() -> list[str]:
    try:
        with open("/proc/self/maps") as maps:
            found = {line.split()[-1] for line in maps if "libgomp" in line}
    except OSError:
        return []
    return sorted(found, key=lambda path: "torch" not in path)


@functools.cache
def _code(function: str) -> int:
    """The address of a compiled function, "worker" or "in_pool"."""
    with compiling:
        return load(stored("worker", __name__, lambda: compile_ir(_worker_ir())), function)


@functools.cache
def _worker() -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_code("worker"))


@functools.cache
def _in_pool() -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, *[ctypes.c_int64] * 4)(_code("in_pool"))


def _worker_ir() -> str:
    """Takes a slot, then the pieces of its share, then those that others have left of theirs; counts are atomic.

    ``for r in (slot, slot + 1, ...) % shares: while ((piece = first(r) + counts[r]++) < first(r + 1)) kernel(piece, ...)``.
    """
    module = ir.Module("worker")
    signature = ir.FunctionType(ir.VoidType(), [INT64, INT64, ir.PointerType()])
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), "worker")
    names = "entry", "share", "begin", "take", "call", "next", "done"
    entry, share, begin, take, call, following, done = (function.append_basic_block(name) for name in names)
    builder = ir.IRBuilder(entry)

    def cell(i: Any) -> ir.Value:
        return builder.gep(function.args[0], [INT64(i) if isinstance(i, int) else i], source_etype=INT64)

    slot = builder.atomic_rmw("add", cell(SLOT), INT64(1), "monotonic")
    pieces, shares, counts = (builder.load(cell(i), typ=INT64) for i in (PIECES, SHARES, COUNTS))
    kernel = builder.inttoptr(builder.load(cell(KERNEL), typ=INT64), signature.as_pointer())
    builder.branch(share)
    builder.position_at_end(share)
    visited = builder.phi(INT64)
    visited.add_incoming(INT64(0), entry)
    builder.cbranch(builder.icmp_signed("<", visited, shares), begin, done)
    builder.position_at_end(begin)
    own = builder.srem(builder.add(slot, visited), shares)
    first, end = (builder.sdiv(builder.mul(pieces, n), shares) for n in (own, builder.add(own, INT64(1))))
    count = cell(builder.add(counts, builder.mul(own, INT64(LINE_CELLS))))
    builder.branch(take)
    builder.position_at_end(take)
    piece = builder.add(first, builder.atomic_rmw("add", count, INT64(1), "monotonic"))
    builder.cbranch(builder.icmp_signed("<", piece, end), call, following)
    builder.position_at_end(call)
    builder.call(kernel, [piece, slot, cell(HEADER)])
    builder.branch(take)
    builder.position_at_end(following)
    visited.add_incoming(builder.add(visited, INT64(1)), following)
    builder.branch(share)
    builder.position_at_end(done)
    builder.ret_void()
    _add_in_pool(module, function)
    return str(module)


def _add_in_pool(module: ir.Module, worker: ir.Function) -> None:
    """``in_pool(job, threads, *Pool)``: for how many nanoseconds the caller waited at the end, less those of two of its pieces.

    So long it may have to wait for the others' last pieces, as a job's pieces are much alike. Where one takes several times the
    mean of the caller's, the wait for it counts as lost, too.
    """
    pointer, void, int32 = ir.PointerType(), ir.VoidType(), ir.IntType(32)

    def cell(job: ir.Value, i: int) -> ir.Value:
        return builder.gep(job, [INT64(i)], source_etype=INT64)

    def function_in(number: ir.Value, returns: ir.Type, *arguments: ir.Type) -> ir.Value:
        return builder.inttoptr(number, ir.FunctionType(returns, arguments).as_pointer())

    def nanoseconds(clock: ir.Value) -> ir.Value:
        with builder.goto_entry_block():
            spec = builder.alloca(ir.LiteralStructType([INT64, INT64]))
        builder.call(function_in(clock, int32, int32, pointer), [int32(CLOCK_MONOTONIC), spec])
        seconds, rest = (builder.load(cell(spec, i), typ=INT64) for i in range(2))
        return builder.add(builder.mul(seconds, INT64(10**9)), rest)

    member = ir.Function(module, ir.FunctionType(void, [pointer]), "member")
    builder = ir.IRBuilder(member.append_basic_block("entry"))
    (job,) = member.args
    builder.call(worker, [job])
    number = builder.call(function_in(builder.load(cell(job, MEMBER), typ=INT64), int32), [])
    with builder.if_then(builder.icmp_signed("==", number, int32(0))):  # in OpenMP the caller is number 0
        builder.store(nanoseconds(builder.load(cell(job, CLOCK), typ=INT64)), cell(job, DONE))
    builder.ret_void()

    function = ir.Function(module, ir.FunctionType(INT64, [pointer, *[INT64] * 4]), "in_pool")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    job, threads, parallel, thread_number, clock = function.args
    builder.store(thread_number, cell(job, MEMBER))
    builder.store(clock, cell(job, CLOCK))
    begun = nanoseconds(clock)
    parallel = function_in(parallel, void, pointer, pointer, int32, int32)
    builder.call(parallel, [member, job, builder.trunc(threads, int32), int32(0)])
    done = builder.load(cell(job, DONE), typ=INT64)
    waited = builder.sub(nanoseconds(clock), done)
    own = builder.mul(builder.sub(done, begun), threads)
    piece = builder.sdiv(own, builder.load(cell(job, PIECES), typ=INT64))
    builder.ret(builder.sub(waited, builder.mul(piece, INT64(2))))


_pool_process = _process_of_the_pool()
