"""The engine itself, but for another CPU, or with its kernels' texts in plain Python.

Nothing of the algorithms is written again here: :func:`engine` puts stand-ins where their modules look up ``machine``,
``Job``, ``address``, ``workspace`` and the kernel factories. So a text runs with the numbers and tables that the
algorithm prepared, on memory that ends where the algorithm said it does.
"""

import contextlib
import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest

import konv.engine
from konv.engine import compile as compiling
from konv.engine import launch, memory, threads
from konv.engine.launch import address
from konv.engine.machine import machine
from konv.engine.simd import ArrayPointer
from strategies import BFLOAT16
from texts import names

MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(konv.engine.__path__, "konv.engine.")]
MACHINES = {
    name: dataclasses.replace(machine(), vector_bytes=vector_bytes, registers=registers)
    for name, vector_bytes, registers in (("AVX-512", 64, 32), ("AVX2", 32, 16), ("SSE2", 16, 16), ("NEON", 16, 32))
}
"""Widths and tile shapes of other CPUs. All of them are compiled for this one."""


def hosts_of(number):
    """The hosts that compute the case of that number: the widest, of AVX2 and SSE2 one in turns, each third also NEON.

    Each compiles kernels of its own. NEON is as wide as SSE2 and has more registers.
    """
    return ["AVX-512", ("AVX2", "SSE2")[number % 2], *(["NEON"] if number % 3 == 0 else [])]


def share_of(host, cases):
    """Of a list of cases those that the host computes (see :func:`hosts_of`)."""
    return [case for number, case in enumerate(cases) if host in hosts_of(number)]


def factories():
    """The @kernel factories of the engine by name."""
    found = {
        value.__name__: value
        for module in MODULES
        for value in vars(module).values()
        if hasattr(value, "text") and hasattr(value, "__wrapped__")
    }
    return dict(sorted(found.items()))


@contextlib.contextmanager
def engine(host=None, plain=False):
    """Inside, the engine computes as on ``host``; ``plain`` runs texts in Python. Yields the set of factories it asks."""
    asked = set()
    stand_ins = {id(machine): lambda: host or machine()}
    for name, factory in factories().items():
        stand_ins[id(factory)] = _noting(factory, name, asked, plain)
    if plain:
        known = _Memory()
        stand_ins[id(launch.Job)] = lambda *arguments, **numbers: _PlainJob(known, *arguments, **numbers)
        stand_ins[id(address)] = known.address
        stand_ins[id(memory.workspace)] = known.workspace
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if id(value) in stand_ins:
                    patch.setattr(module, name, stand_ins[id(value)])
        forget()
        try:
            yield asked
        finally:
            forget()


def forget():
    """Empty what the algorithms remember of geometries."""
    for module in MODULES:
        if module not in (compiling, launch):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _noting(factory, name, asked, plain):
    def ask(*parameters):
        asked.add(name)
        return _PlainKernel(name, *factory.__wrapped__(*parameters)) if plain else factory(*parameters)

    return ask


class _Memory:
    """The arrays whose addresses were asked for, and the workspaces, by the bytes they cover."""

    def __init__(self):
        self.regions = []

    def address(self, array):
        lying = array if array.flags.c_contiguous or array.ndim < 3 else np.moveaxis(array, 1, -1)  # channels last
        assert lying.flags.c_contiguous, "a kernel would be given an array with holes"
        self.regions.append(lying.reshape(-1).view(np.uint8))
        return address(array)

    @contextlib.contextmanager
    def workspace(self, size):
        space = np.full(size, 0xFF, np.uint8)  # NaN in every type
        self.regions.append(space)
        yield address(space)

    def pointer(self, start, others, stored):
        """The memory from ``start`` to the end of its region, or to the next of the other pointers into it."""
        region = next((r for r in reversed(self.regions) if 0 <= start - address(r) < r.nbytes), None)
        if region is None:
            raise IndexError(f"a kernel touches {start:#x}, where no array is")
        first = address(region)
        end = min([first + region.nbytes, *(other for other in others if other > start)])
        dtype = BFLOAT16 if stored == "bfloat16" else np.dtype(stored)
        cells = region[start - first : end - first]
        return ArrayPointer(cells[: len(cells) // dtype.itemsize * dtype.itemsize].view(dtype))


@dataclasses.dataclass
class _PlainKernel:
    name: str
    text: object
    pointers: dict

    @property
    def arguments(self):
        return tuple(names(self.text))


class _PlainJob:
    """As :class:`konv.engine.launch.Job`. Its pieces run from the last to the first, one slot after the other."""

    def __init__(self, known, kernel, pieces, **numbers):
        assert set(numbers) | set(kernel.pointers) == set(kernel.arguments), kernel.name
        self.known, self.kernel, self.pieces, self.numbers = known, kernel, pieces, numbers
        self.tables = {name: table for name, table in numbers.items() if isinstance(table, np.ndarray)}
        self.pointers = tuple(kernel.pointers.keys() - self.tables.keys())

    def run(self, threads, **pointers):
        self.run_on(threads, pointers)

    def run_on(self, threads, pointers):
        assert pointers.keys() == set(self.pointers)
        given = (pointers | self.tables).items()
        pointers = {n: p if isinstance(p, int) else self.known.address(p) for n, p in given}
        made = {
            name: self.known.pointer(start, pointers.values(), self.kernel.pointers[name])
            for name, start in pointers.items()
        }
        arguments = [made[name] if name in made else int(self.numbers[name]) for name in self.kernel.arguments]
        with np.errstate(all="ignore"):  # lanes that are never stored hold whatever lies in the memory
            for piece in reversed(range(self.pieces)):
                self.kernel.text(piece, piece % max(1, threads), *arguments)


def many_small_jobs(patch):
    """Small work is cut into blocks and parts, and uses several slots, as large work does."""
    patch.setattr(threads, "SMALL_WORK", 1)
    patch.setattr(threads, "_threads", 3)
    sizes = {
        "BLOCK_BYTES": 1500,
        "GRADIENT_BYTES": 1500,
        "PIECE_WORK": 1,
        "BLOCK_TILES": 1,
        "BLOCK_PIXELS": 5,
        "REGION": (9, 20),
        "COPIED_CELLS": 61,
    }
    for module in MODULES:
        for name, small in sizes.items():
            if hasattr(module, name):
                patch.setattr(module, name, small)
