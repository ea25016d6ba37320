"""Workspaces: kept for the next operation, bounded, given back; and a long run over many shapes."""

import gc
import importlib
import os
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import konv
from konv.engine import memory, plan
from konv.engine.memory import release

MIB = 1 << 20


def small_call(rng):
    """One operation on small arrays of one of some hundred shapes, by the algorithm that takes it or by one that is preferred."""
    channels, filters, size = (int(n) for n in rng.choice([1, 3, 8], 3))
    x = np.ones((int(rng.integers(1, 3)), channels, size + 2, int(rng.choice([3, 17, 40]))), np.float32)
    w = np.ones((filters, channels, 3, 3), np.float32)
    names = [algorithm.NAME for algorithm in plan.algorithms()]
    with plan.prefer(names[int(rng.integers(len(names)))]):
        match int(rng.integers(5)):
            case 0:
                konv.conv(x, w, padding=1)
            case 1:
                dy = np.ones((len(x), filters, *x.shape[2:]), np.float32)
                konv.conv_backward(dy, x, w, padding=1, need="xwb"[int(rng.integers(3))])
            case 2:
                konv.conv_transpose(x, np.ones((channels, filters, 3, 3), np.float32), padding=1)
            case 3:
                konv.max_pool(x, 2)
            case 4:
                konv.unfold(x, 3)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_calls_of_varying_shapes_do_not_grow():
    """What the process holds after the first half stays what it is, by the system's count."""
    held = []
    for _ in range(2):  # the same 5,000
        rng = np.random.default_rng(0)
        for _ in range(5_000):
            small_call(rng)
        assert sum(buffer.size for buffer in memory._free) <= memory.KEPT_BYTES
        release()
        gc.collect()
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert held[1] <= held[0] + 8 * MIB, held


def test_what_is_remembered_of_shapes_is_bounded():
    """Every cache forgets, but those of a few names, types and compiled kernels."""
    counted = {}
    for info in pkgutil.walk_packages(konv.__path__, "konv."):
        if info.name.split(".")[1] in ("ops", "arrays", "pooling", "geometry", "segments", "textbook", "engine"):
            for name, value in vars(importlib.import_module(info.name)).items():
                if hasattr(value, "cache_parameters") and value.__module__ == info.name:
                    counted[f"{info.name}.{name}"] = value.cache_parameters()["maxsize"]
    endless = {name.rpartition(".")[2] for name, most in counted.items() if most is None}
    assert endless == {
        "dtype_name", "machine", "algorithms", "sources", "_announce", "_gomp", "_code", "_worker", "_in_pool",
    }  # fmt: skip
    assert len(counted) > 15 and max(most for most in counted.values() if most) <= 1024


def test_kept_buffers_are_bounded_and_the_smallest_that_fits_is_taken():
    release()
    sizes = (1 * MIB, 9 * MIB, 3 * MIB)
    with memory.workspace(sizes[0]) as a, memory.workspace(sizes[1]) as b, memory.workspace(sizes[2]) as c:
        assert len({a, b, c}) == 3 and all(start % memory.LINE == 0 for start in (a, b, c))
    with memory.workspace(2 * MIB) as again:
        assert again == c
    with memory.workspace(9 * MIB) as again, memory.workspace(1024), memory.workspace(8 * MIB) as other:
        assert again == b != other
    # The one given back last is that of 9 MiB: a small operation leaves it to others.
    with memory.workspace(1024) as small, memory.workspace(9 * MIB) as again:
        assert again == b != small
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
