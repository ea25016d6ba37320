"""Workspaces: kept for the next operation, bounded, given back; and a long run over many shapes."""

import gc
import tracemalloc

import numpy as np
import pytest

import konv
from konv.engine import memory
from konv.engine.memory import release

MIB = 1 << 20


def test_many_calls_of_varying_shapes_do_not_grow():
    """1,500 small calls of some hundred shapes: what the process holds after the first third stays what it is."""
    rng = np.random.default_rng(0)

    def call():
        channels, filters, size = (int(n) for n in rng.choice([1, 3, 8], 3))
        x = np.ones((int(rng.integers(1, 3)), channels, size + 2, int(rng.choice([3, 17, 40]))), np.float32)
        w = np.ones((filters, channels, 3, 3), np.float32)
        y = konv.conv(x, w, padding=1)
        konv.conv_backward(y, x, w, padding=1, need=("x", "w") if rng.integers(2) else ("b",))
        konv.max_pool(x, 2)

    held = []
    tracemalloc.start()
    try:
        for _ in range(3):
            for _ in range(500):
                call()
            gc.collect()
            assert sum(buffer.size for buffer in memory._free) <= memory.KEPT_BYTES
            release()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[2] <= 1.2 * held[1] + 2 * MIB, held


def test_kept_buffers_are_bounded_and_the_smallest_that_fits_is_taken():
    release()
    sizes = (1 * MIB, 9 * MIB, 3 * MIB)
    with memory.workspace(sizes[0]) as a, memory.workspace(sizes[1]) as b, memory.workspace(sizes[2]) as c:
        assert len({a, b, c}) == 3 and all(start % memory.LINE == 0 for start in (a, b, c))
    with memory.workspace(2 * MIB) as again:
        assert again == c
    borrowed = [memory.workspace(40 * MIB) for _ in range(3)]
    for space in borrowed:
        space.__enter__()
    for space in borrowed:
        space.__exit__(None, None, None)
    assert sum(buffer.size for buffer in memory._free) <= memory.KEPT_BYTES
    release()
    assert not memory._free


def test_an_error_inside_gives_the_buffer_back():
    release()
    with pytest.raises(KeyError), memory.workspace(100):
        raise KeyError
    assert len(memory._free) == 1
    release()
