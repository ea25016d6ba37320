"""Hypothesis profiles: the same examples on every run, or (HYPOTHESIS_PROFILE=thorough) many new ones. And the algorithms."""

import os

import pytest
from hypothesis import HealthCheck, settings

from konv.engine.plan import algorithms, prefer

settings.register_profile(
    "default",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,  # of each property, once for every algorithm that is preferred
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=2_000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="module", params=[algorithm.NAME for algorithm in algorithms()])
def every_algorithm(request):
    """The tests of a module that uses this run once with each algorithm of the engine preferred."""
    with prefer(request.param):
        yield
