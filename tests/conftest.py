"""Hypothesis profiles: the same examples on every run, or (HYPOTHESIS_PROFILE=thorough) many new ones. And the algorithms."""

import os

import pytest
from hypothesis import HealthCheck, settings

from konv.engine import contention
from konv.engine.plan import algorithms, prefer

settings.register_profile(
    "default",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,  # of each property, once for every algorithm that is preferred
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=2_000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


contention.UNNOTICED = 1 << 62  # what tests threads has them, however busy the machine is


# Their layers are hardly ever among those drawn: test_pairs, test_fourier and test_channels_in_lanes draw their own.
OF_FEW_LAYERS = {
    "pairs",
    "fourier",
    "fourier_groups",
    "winograd_groups",
    "winograd_rows",
    "winograd_small",
    "winograd_strided",
    "small_groups",
    "small_planes",
    "depthwise_paired",
}


@pytest.fixture(scope="module", params=[a.NAME for a in algorithms() if a.NAME not in OF_FEW_LAYERS])
def every_algorithm(request):
    """The tests of a module that uses this run once with each algorithm of the engine preferred that takes many layers."""
    with prefer(request.param):
        yield
