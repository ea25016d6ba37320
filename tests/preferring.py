"""Tests that run once with each algorithm preferred: which of them would compute again what the plan's own choice computes.

Where the preferred algorithm declines a layer, the plan chooses as it does by itself, which the run "as planned" tests.
"""

import dataclasses

import numpy as np
import pytest

from konv import geometry
from konv.engine import plan

layer = pytest.mark.layer.with_args
"""``@layer(function)``: the layers' geometries and types, of the test's parameters; None: no layer, one run is enough."""


def repeats_the_plan(g, *dtypes, preferred=None):
    """Whether the preferred algorithm declines all three computations of a layer, in each type and both layouts."""
    preferred = preferred or plan._preferred
    if g.padding_mode != "zeros":  # with which alone the engine pads
        g = dataclasses.replace(g, spatial=g.padded, padding=((0, 0),) * g.axes, padding_mode="zeros")
    return preferred is not None and all(
        algorithm.declines(plan.problem(kind, g, np.dtype(dtype).name, layout)) is not None
        for algorithm in plan.algorithms()
        if preferred == algorithm.NAME
        for kind in plan.KINDS
        for dtype in dtypes
        for layout in ("first", "last")
    )


def of_options(x_shape, w_shape, options, dtype=np.float32):
    """For ``layer``, of tests with these parameters."""
    return [geometry(x_shape, w_shape, **options)], dtype


def repeated(item):
    """Whether a collected test computes what the run as planned computes."""
    mark = item.get_closest_marker("layer")
    if mark is None or not hasattr(item, "callspec"):
        return False
    parameters = dict(item.callspec.params)
    preferred = parameters.pop("every_algorithm")
    if preferred is None:
        return False
    if mark.args[0] is None:
        return True
    geometries, dtype = mark.args[0](**parameters)
    return all(repeats_the_plan(g, dtype, preferred=preferred) for g in geometries)
