"""Threads: the pieces of a job, handed out one by one from a shared counter.

A worker takes a slot, then one piece after the other until none is left; a core that somebody else keeps busy takes
fewer pieces and stalls nobody. Which thread computes a piece has no influence on its result, so neither has their number.

The workers run on OpenMP's pool (libgomp; 1.5 us for an empty job) where there is one, PyTorch's if it is loaded.
In a process made by ``fork`` that pool is dead, and where there is no libgomp there is none: there Python threads do it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from typing import Any

import numpy as np
from llvmlite import ir

from konv.engine.compile import Kernel, compile_ir, load, stored
from konv.engine.simd import INT64

HEADER = 8  # int64 cells before the arguments, a cache line: next piece, next slot, pieces, kernel
_first_process = os.getpid()


class Job:
    """A kernel with its integer arguments, prepared once; each run adds the pointers.

    Parameters
    ----------
    kernel : compiled kernel
    pieces : how many pieces it has
    numbers : its integer arguments by name; the names that are missing are its pointers, given to :meth:`run`
    """

    def __init__(self, kernel: Kernel, pieces: int, **numbers: int):
        unknown = numbers.keys() - set(kernel.arguments)
        if unknown:
            raise TypeError(f"{kernel.name} has no arguments {sorted(unknown)}")
        header = [0, 0, pieces, kernel.address] + [0] * (HEADER - 4)
        self._template = np.array(header + [numbers.get(name, 0) for name in kernel.arguments], np.int64)
        self._places = {name: HEADER + i for i, name in enumerate(kernel.arguments) if name not in numbers}
        self.kernel, self.pieces = kernel, pieces

    def run(self, threads: int, **pointers: int) -> None:
        """Run all pieces in so many threads, which use the slots 0 .. threads - 1, and wait for them."""
        if pointers.keys() != self._places.keys():
            raise TypeError(f"{self.kernel.name} needs {sorted(self._places)}, got {sorted(pointers)}")
        job = self._template.copy()
        for name, address in pointers.items():
            job[self._places[name]] = address
        address = job.__array_interface__["data"][0]
        threads = min(threads, self.pieces)
        if threads <= 1:
            _worker()(address)
        elif os.getpid() == _first_process and (parallel := _gomp()) is not None:
            parallel(_worker_address(), address, threads, 0)
        else:
            helpers = [threading.Thread(target=_worker(), args=(address,)) for _ in range(threads - 1)]
            for helper in helpers:
                helper.start()
            _worker()(address)
            for helper in helpers:
                helper.join()


def address(array: np.ndarray) -> int:
    """Where an array's data begins."""
    return array.__array_interface__["data"][0]


@functools.cache
def _gomp() -> Any:
    """``GOMP_parallel`` of the libgomp in this process, or of the system's; None where there is none."""
    os.environ.setdefault(
        "GOMP_SPINCOUNT", "10000"
    )  # on a busy machine longer spinning costs 24-60 ms where this costs 6
    for path in [*_loaded_libgomp(), "libgomp.so.1"]:
        try:
            parallel = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return parallel
    return None


def _loaded_libgomp() -> list[str]:
    try:
        with open("/proc/self/maps") as maps:
            found = {line.split()[-1] for line in maps if "libgomp" in line}
    except OSError:
        return []
    return sorted(found, key=lambda path: "torch" not in path)


@functools.cache
def _worker_address() -> int:
    return load(stored("worker", __name__, lambda: compile_ir(_worker_ir())), "worker")


@functools.cache
def _worker() -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(_worker_address())


def _worker_ir() -> str:
    """``slot = job[1]++; while ((piece = job[0]++) < job[2]) kernel(piece, slot, job + HEADER)``, the ++ atomic."""
    module = ir.Module("worker")
    signature = ir.FunctionType(ir.VoidType(), [INT64, INT64, ir.PointerType()])
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), "worker")
    entry, take, call, done = (function.append_basic_block(name) for name in ("entry", "take", "call", "done"))
    builder = ir.IRBuilder(entry)

    def cell(i: int) -> ir.Value:
        return builder.gep(function.args[0], [INT64(i)], source_etype=INT64)

    slot = builder.atomic_rmw("add", cell(1), INT64(1), "monotonic")
    pieces = builder.load(cell(2), typ=INT64)
    kernel = builder.inttoptr(builder.load(cell(3), typ=INT64), signature.as_pointer())
    builder.branch(take)
    builder.position_at_end(take)
    piece = builder.atomic_rmw("add", cell(0), INT64(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", piece, pieces), call, done)
    builder.position_at_end(call)
    builder.call(kernel, [piece, slot, cell(HEADER)])
    builder.branch(take)
    builder.position_at_end(done)
    builder.ret_void()
    return str(module)
