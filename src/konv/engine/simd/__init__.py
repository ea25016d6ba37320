"""The kernel language: one text that runs on NumPy arrays in plain Python and, traced once, becomes machine code.

A kernel is a Python function over pointers, integers and vectors. Python's own loops and lists unroll while it is traced;
what is to happen at run time is said with a few words:

=============================  ===============================================================================
``for k in loop(n): ...``      a run-time loop, k = 0 .. n - 1, empty when n <= 0
``acc = Variable(value)``      a value that a run-time loop changes: ``acc.set(fma(a, b, acc.get()))``
``p[i]``, ``p[i] = value``     one element; ``p.at(i)`` is the pointer moved by i elements
``p.vec(i, lanes)``            neighbouring elements as a vector; ``p.put(i, vector)`` writes one. With ``count`` only the
                               first lanes are touched (the others read as ``fill``), with ``start`` only later ones
``p.gather``, ``p.scatter``    the same with a stride between the elements; ``p.alternate`` reads every other one, ``p.both``
                               those and the others, ``p.weave`` writes two vectors' lanes in turns: of bfloat16 cheapest
``p.zero p.full whole``        vectors of one number
``p.prefetch(i)``              asks for the cache line of an element
``p.stream(i, vector)``        ``put`` past the caches, where a vector's lines begin; ``fence`` after the last
``fma splat shuffle``          vector instructions;  ``+ - *`` work on vectors and integers
``transpose interleave``       other orders of several vectors' lanes; ``deinterleave`` undoes the latter
``pair(low, high)``            two vectors of bfloat16 numbers as one of pairs, in integers of 32 bits; ``p.pairs`` reads such
``dot(a, b, c)``               the products of two vectors of pairs, added to c; ``p.as_`` sees other elements in memory
``pinned(vector)``             the vector; pinned ones are computed in the order in which they are written
``beats equal select``         comparisons lane by lane, and a choice between two vectors
``/``, ``root``                of vectors of floats: a quotient, the square root
``minimum maximum // %``       index arithmetic (``//`` and ``%`` for numbers that are not negative)
``has_nan``                    1 where a lane is NaN, else 0
``within pick bits``           1 or 0; a choice between two integers or pointers without a branch; a mask of lanes as an integer
=============================  ===============================================================================

Called with :class:`ArrayPointer` and Python integers the same function runs in plain Python: for tests, for debugging,
for a reader. Called by :mod:`konv.engine.compile` the words leave LLVM IR behind. No source text is ever generated.
Elements are stored as float32, float64, float16, bfloat16, int64, int32 or uint8; the half types are widened to float32
when read and rounded to nearest even when written, uint8 is int32 in vectors. What is known at run time only has no truth:
``if`` and ``and`` on a traced value are refused.

Kernels import the words from here. They are written in

::

    words.py        what works on numbers and vectors
    pointers.py     memory, traced              arrays.py     memory, as NumPy arrays
    values.py       what is traced              elements.py   how elements are stored
"""
# ruff: noqa: F401

from __future__ import annotations

from konv.engine.simd.arrays import ArrayPointer
from konv.engine.simd.elements import ITEMSIZE
from konv.engine.simd.pointers import Pointer
from konv.engine.simd.words import (
    Variable,
    beats,
    bits,
    deinterleave,
    dot,
    equal,
    fence,
    fma,
    has_nan,
    interleave,
    loop,
    maximum,
    minimum,
    pair,
    pick,
    pinned,
    root,
    select,
    shuffle,
    splat,
    transpose,
    whole,
    within,
)
