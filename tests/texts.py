"""Kernel texts run two ways, as machine code and in plain Python, on copies of the same arrays."""

import ctypes
import inspect

import numpy as np

from compare import assert_equal
from konv.engine.compile import compile_ir, load, trace
from konv.engine.simd import ArrayPointer

MARGIN = 37  # cells before and after an array, which nothing may write; odd, so vectors are not aligned
SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def compiled(text, pointers):
    """``run(piece, slot, *arguments)``: the text traced and compiled, arrays given as such; nothing is kept on disk."""
    function = SIGNATURE(load(compile_ir(trace(text, pointers))))

    def run(piece, slot, *arguments):
        cells = [a.__array_interface__["data"][0] if isinstance(a, np.ndarray) else int(a) for a in arguments]
        packed = np.array(cells, np.int64)
        function(piece, slot, packed.__array_interface__["data"][0])

    return run


def both(text, pointers, *, run=None, nan_equal=False, piece=0, slot=0, **arguments):
    """Run both ways, compare every array afterwards, return them by name. ``run`` is the compiled text, where at hand."""
    machine = run_compiled(text, pointers, run=run, piece=piece, slot=slot, **arguments)
    plain = run_plain(text, pointers, piece=piece, slot=slot, **arguments)
    for name in pointers:
        assert_equal(machine[name], plain[name], nan_equal=nan_equal)
    return machine


def run_compiled(text, pointers, *, run=None, piece=0, slot=0, **arguments):
    """Run the compiled text on copies within a margin that must stay as it is."""
    run = run or compiled(text, pointers)
    frames = {name: np.full(arguments[name].size + 2 * MARGIN, 77, arguments[name].dtype) for name in pointers}
    copies = {name: frame[MARGIN:-MARGIN] for name, frame in frames.items()}
    for name, copy in copies.items():
        copy[...] = arguments[name]
    run(piece, slot, *(copies.get(name, arguments[name]) for name in names(text)))
    for name, frame in frames.items():
        assert (frame[:MARGIN] == 77).all() and (frame[-MARGIN:] == 77).all(), f"{name}: written outside"
    return copies


def run_plain(text, pointers, *, piece=0, slot=0, **arguments):
    """Run the text in plain Python on copies, where touching a cell outside raises IndexError."""
    copies = {name: arguments[name].copy() for name in pointers}
    text(piece, slot, *(ArrayPointer(copies[name]) if name in copies else arguments[name] for name in names(text)))
    return copies


def names(text):
    """The arguments of a text after ``piece`` and ``slot``."""
    return list(inspect.signature(text).parameters)[2:]
