"""Hypothesis profiles: the same examples on every run, or (HYPOTHESIS_PROFILE=thorough) many new ones. And the algorithms."""

import contextlib
import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from konv.engine import contention
from konv.engine.plan import algorithms, prefer
from preferring import repeated

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


# Threads that wait for work sleep: they would spin on the core where other tests run. OpenMP reads it once, here with PyTorch;
# programs in processes of their own wait as users' do.
with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
    patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    import torch  # noqa: F401

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


NAMES = [a.NAME for a in algorithms() if a.NAME not in OF_FEW_LAYERS]


@pytest.fixture(scope="module", params=[None, *NAMES], ids=["as planned", *NAMES])
def every_algorithm(request):
    """The tests of a module that uses this run once as planned, and with each algorithm preferred that takes many layers."""
    with prefer(request.param) if request.param else contextlib.nullcontext():
        yield


def pytest_configure(config):
    config.addinivalue_line("markers", "layer(function): see preferring.py")


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if repeated(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish():
    """What was imported stays: searches for garbage, of which some tests ask many, pass it over."""
    gc.collect()
    gc.freeze()
