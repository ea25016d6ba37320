"""Input gradients of half types in float32: what transposed convolutions with a bias and padding modes add up before rounding."""

import itertools
from collections import Counter

import numpy as np
import pytest

import konv
from compare import assert_same_bits
from konv.arrays import empty, laid_out
from konv.engine import plan
from konv.engine.machine import machine
from strategies import BFLOAT16

WIDENED = {  # x and w of convolutions whose input gradient every algorithm of half types computes at least once
    "3x3": ((2, 20, 12, 12), (24, 20, 3, 3), dict(padding=1)),
    "1x1": ((2, 20, 12, 12), (24, 20, 1, 1), {}),
    "patches": ((2, 8, 24, 24), (24, 8, 4, 4), dict(stride=4)),
    "last layer": ((2, 24, 40), (3, 24, 5), {}),
    "few channels": ((2, 4, 20, 20), (4, 4, 3, 3), {}),
    "first layer": ((2, 3, 20, 20), (8, 3, 3, 3), {}),
    "windows of few filters": ((2, 64, 200), (4, 64, 10), dict(stride=10)),
    "depthwise": ((2, 32, 12, 12), (32, 1, 3, 3), dict(padding=1, groups=32)),
    "depthwise, 7 pixels": ((2, 96, 7, 7), (96, 1, 7, 7), dict(padding=3, groups=96)),
    "depthwise, strided": ((2, 32, 13, 12), (32, 1, 3, 3), dict(padding=1, groups=32, stride=2)),
    "groups of 4": ((2, 32, 12, 12), (32, 4, 3, 3), dict(padding=1, groups=8)),
    "groups of 8": ((2, 64, 14, 14), (64, 8, 3, 3), dict(padding=1, groups=8)),
    "groups of 16": ((2, 64, 14, 14), (64, 16, 3, 3), dict(padding=1, groups=4)),
    "groups of 32": ((2, 64, 14, 14), (64, 32, 3, 3), dict(padding=1, groups=2)),
    "long": ((1, 16, 2000), (64, 16, 100), {}),
    "long, in groups": ((1, 32, 300), (32, 16, 128), dict(padding=64, groups=2)),
}
MOST = {"float16": 1, "bfloat16": 2}  # layers of each algorithm and layout: each compiles kernels of its own


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_input_gradients_of_half_types_are_written_wider_where_that_is_asked(dtype):
    """Transposed convolutions with a bias, and padding modes, ask for float32: rounded it is what is written otherwise."""
    rng, asked = np.random.default_rng(0), Counter()
    for layout, (x_shape, w_shape, options) in itertools.product(("first", "last"), WIDENED.values()):
        g = konv.geometry(x_shape, w_shape, **options)
        w, dy = (rng.integers(-2, 3, shape).astype(dtype) for shape in (w_shape, g.output_shape))
        dy = laid_out(dy, layout)
        for algorithm in plan.algorithms():
            problem = plan.Problem("input_gradient", g, dtype.name, False, layout)
            if asked[algorithm.NAME, layout] < MOST[dtype.name] and algorithm.declines(problem) is None:
                half, wide = (empty(g.x_shape, of, layout) for of in (dtype, np.dtype(np.float32)))
                half[...] = wide[...] = np.nan
                algorithm.input_gradient(dy, w, g, half)
                algorithm.input_gradient(dy, w, g, wide)
                assert_same_bits(half, wide.astype(dtype))
                asked[algorithm.NAME, layout] += 1
    other = {"strips_last", "winograd_strided"} | (set() if dtype == BFLOAT16 and machine().dots else {"pairs"})
    assert {name for name, _ in asked} == {algorithm.NAME for algorithm in plan.algorithms()} - other
