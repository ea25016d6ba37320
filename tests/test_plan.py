"""The seam of the engine: an ordered table of algorithms, each of which accepts or says why not."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import konv
from compare import assert_equal
from konv.engine import columns, roofline
from konv.engine import plan as planning
from konv.engine.plan import KINDS, Problem, algorithms, choose, prefer
from strategies import BFLOAT16, PADDING_MODES, convolutions, integers

REASON = "it only computes kernels of 3"


class Counting:
    """An algorithm that computes kernels of 3, by way of ``columns``, and counts how often it was used."""

    NAME = "counting"

    def __init__(self):
        self.calls = dict.fromkeys(KINDS, 0)
        self.asked = []

    def declines(self, problem):
        self.asked.append(problem)
        return None if problem.geometry.kernel[0] == 3 else REASON

    def workspace(self, problem):
        return 12_345

    def blocking(self, problem):
        return "as columns do; 1 piece, 1 thread"

    def share(self, problem):
        return 0.25

    def forward(self, x, w, b, g, out):
        self.calls["forward"] += 1
        self.seen = x, w, b
        columns.forward(x, w, b, g, out)

    def input_gradient(self, dy, w, g, out):
        self.calls["input_gradient"] += 1
        columns.input_gradient(dy, w, g, out)

    def weight_gradient(self, dy, x, g, out):
        self.calls["weight_gradient"] += 1
        columns.weight_gradient(dy, x, g, out)


@pytest.fixture
def counting(monkeypatch):
    algorithm = Counting()
    table = [algorithm, *algorithms()]
    monkeypatch.setattr(planning, "algorithms", lambda: table)
    planning.forget()
    yield algorithm
    planning.forget()


def test_the_first_that_accepts_computes(counting):
    rng = np.random.default_rng(0)
    x, w, b = integers(rng, (2, 4, 9)), integers(rng, (4, 4, 3)), integers(rng, (4,))
    y = konv.conv(x, w, b)
    assert counting.calls == {"forward": 1, "input_gradient": 0, "weight_gradient": 0}
    konv.conv_backward(y, x, w)
    assert counting.calls == {"forward": 1, "input_gradient": 1, "weight_gradient": 1}
    konv.conv_transpose(y, w)
    konv.conv_transpose_backward(x, y, w)
    assert counting.calls == {"forward": 2, "input_gradient": 2, "weight_gradient": 2}
    konv.conv_backward(y, x, w, need="w")
    konv.conv_backward(y, x, w, need="b")
    assert counting.calls == {"forward": 2, "input_gradient": 2, "weight_gradient": 3}


def test_one_that_declines_does_not_compute_and_its_reason_is_printed(counting):
    rng = np.random.default_rng(0)
    konv.conv(integers(rng, (2, 4, 9)), integers(rng, (4, 4, 2)))
    assert sum(counting.calls.values()) == 0 and len(counting.asked) == 1
    text = str(konv.plan((2, 4, 9), (4, 4, 2)))
    assert "algorithm    grouped" in text and f"passed over  counting: {REASON}" in text
    text = str(konv.plan((2, 4, 9), (4, 4, 3)))
    assert "algorithm    counting" in text and "12,345 bytes" in text and "passed over" not in text


def test_a_problem_is_planned_once(counting):
    x, w = np.ones((2, 4, 9)), np.ones((4, 4, 3))
    for _ in range(3):
        konv.conv(x, w)
    assert counting.calls["forward"] == 3 and len(counting.asked) == 1


def test_an_algorithm_sees_zero_padding_and_native_arrays(counting):
    x = np.arange(8.0).reshape(1, 1, 8)
    konv.conv(x.astype(">f8"), np.ones((1, 1, 3)), padding=1, padding_mode="circular")
    (problem,) = counting.asked
    assert problem.geometry.padding_mode == "zeros" and problem.geometry.padding == ((0, 0),)
    assert_equal(counting.seen[0], np.concatenate([x[..., -1:], x, x[..., :1]], axis=-1))


def test_a_table_without_an_answer_says_so(monkeypatch):
    class Never(Counting):
        def declines(self, problem):
            return "never"

    monkeypatch.setattr(planning, "algorithms", lambda: [Never()])
    planning.forget()
    try:
        with pytest.raises(LookupError, match=r"no algorithm computes .*never"):
            konv.conv(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
    finally:
        planning.forget()


@given(
    convolutions(modes=PADDING_MODES),
    st.sampled_from(KINDS),
    st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
)
def test_the_last_always_accepts_and_the_first_that_accepts_is_chosen(case, kind, dtype):
    g = konv.geometry(case.x_shape, case.w_shape, **case.options)
    problem = Problem(kind, dataclasses.replace(g, padding_mode="zeros"), dtype)
    table = algorithms()
    assert table[-1].declines(problem) is None
    reasons = [algorithm.declines(problem) for algorithm in table]
    assert all(reason is None or (isinstance(reason, str) and reason) for reason in reasons)
    plan = choose(problem)
    place = reasons.index(None)
    assert plan.algorithm is table[place]
    assert plan.passed_over == tuple((a.NAME, r) for a, r in zip(table[:place], reasons))
    assert isinstance(plan.workspace, int) and plan.workspace >= 0  # some need none
    for algorithm, reason in zip(table, reasons):
        if reason is None:
            assert algorithm.blocking(problem)
            assert 0 <= algorithm.share(problem) < MOST_SHARES.get(algorithm.NAME, 1)
    assert choose(problem) is plan


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_prints_shapes_work_and_workspace(kind):
    text = str(konv.plan((8, 6, 11), (4, 3, 5), kind=kind, stride=2, padding="same", groups=2, dtype=np.float64))
    assert f"{kind} of x (8, 6, 11), w (4, 3, 5) -> y (8, 4, 6), float64" in text
    assert "5,760 FLOP on 6,240 bytes" in text
    assert "workspace" in text and "algorithm    " in text


MOST_SHARES = {
    "winograd_rows": 2,
    "pairs": 4,
    "winograd": 4,
    "winograd_groups": 4,
    "winograd_strided": 2,
    "depthwise_paired": 1.3,
    "fourier": 50,
    "fourier_groups": 20,
}  # they multiply less
LAYERS = {
    "pairs": ((8, 64, 28, 28), (96, 64, 1, 1), {}, "bfloat16"),
    "products": ((8, 64, 28, 28), (96, 64, 1, 1), {}, "float32"),
    "repeats": ((8, 64, 2000), (4, 64, 10), dict(stride=10), "float32"),
    "folded": ((8, 3, 64, 64), (32, 3, 7, 7), dict(stride=2), "float32"),
    "joined": ((2, 3, 8, 64, 64), (32, 3, 3, 7, 7), dict(stride=(1, 2, 2)), "float32"),
    "grouped": ((8, 32, 112, 112), (32, 1, 3, 3), dict(padding=1, groups=32), "float32"),
    "fourier": ((8, 1, 3000), (64, 1, 120), {}, "float32"),
    "fourier_groups": ((8, 96, 400), (96, 48, 120), dict(groups=2), "float32"),
    "strips": ((8, 3, 98, 98), (32, 3, 3, 3), {}, "float32"),
    "small_planes": ((8, 96, 7, 7), (96, 1, 7, 9), dict(padding=(3, 4), groups=96), "float32"),
    "depthwise_paired": ((8, 96, 28, 28), (96, 1, 7, 7), dict(padding=3, groups=96), "float32"),
    "small_groups": ((8, 64, 28, 28), (64, 8, 3, 3), dict(padding=1, stride=2, groups=8), "float32"),
    "winograd_groups": ((8, 64, 28, 28), (64, 16, 3, 3), dict(padding=1, groups=4), "float32"),
    "winograd_rows": ((8, 64, 28, 28), (64, 8, 3, 3), dict(padding=1, groups=8), "float32"),
    "winograd_small": ((8, 128, 14, 14), (128, 16, 3, 3), dict(padding=1, groups=8), "float32"),
    "winograd_strided": ((8, 256, 28, 28), (256, 256, 3, 3), dict(padding=1, stride=2), "float32"),
    "winograd": ((8, 64, 28, 28), (96, 64, 3, 3), dict(padding=1), "float32"),
    "direct": ((8, 64, 28, 28), (96, 64, 3, 3), dict(stride=2), "float32"),
}


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_plan_tells_how_it_cuts_the_work_and_what_it_expects(name, kind, layout):
    x_shape, w_shape, options, dtype = LAYERS[name]
    g = konv.geometry(x_shape, w_shape, **options, dtype=BFLOAT16 if dtype == "bfloat16" else dtype)
    plan = choose(Problem(kind, g, dtype, layout=layout))
    text = str(plan)
    assert f"blocking     {plan.blocking}" in text and re.search(r"; \d+ pieces?, \d+ threads?", plan.blocking)
    assert f"expected     {plan.share:.0%} of the {plan.limit} limit" in text
    assert 0.02 < plan.share < MOST_SHARES.get(plan.algorithm.NAME, 1)
    assert plan.share > 1 or plan.algorithm.NAME not in ("pairs", "winograd", "fourier")
    assert plan.limit == ("memory" if name == "grouped" else "multiply-add")
    planning.forget()
    assert (choose(Problem(kind, g, dtype, layout=layout)).blocking, plan.share) == (plan.blocking, plan.share)
    fewer = dataclasses.replace(g, batch=1)
    assert roofline.share(Problem(kind, fewer, dtype), 1, speed=0.8, moving=1, storing=1) < roofline.share(
        Problem(kind, g, dtype), 1, speed=0.8, moving=1, storing=1
    )  # what a call costs counts for more


def test_every_algorithm_is_among_these_layers():
    """With what ``columns`` tells below, and what is only computed with channels last."""
    told = {
        choose(Problem(kind, konv.geometry(x, w, **options), dtype, layout=layout)).algorithm.NAME
        for x, w, options, dtype in LAYERS.values()
        for kind in KINDS
        for layout in ("first", "last")
    }
    assert told | {"columns"} == {algorithm.NAME for algorithm in algorithms()}


def test_a_plan_says_what_its_algorithm_tells(counting):
    plan = konv.plan((2, 4, 9), (4, 4, 3))
    assert plan.algorithm is counting and plan.share == 0.25
    assert "\nblocking     as columns do; 1 piece" in str(plan) and "\nexpected     25% of the " in str(plan)


def test_the_columns_are_told():
    with prefer("columns"):
        text = str(konv.plan((8, 64, 28, 28), (96, 64, 3, 3)))
    assert "blocking     the windows of " in text and "of the multiply-add limit" in text


def test_the_names_of_the_algorithms_differ():
    names = [algorithm.NAME for algorithm in algorithms()]
    assert len(set(names)) == len(names)


@given(convolutions(axes=1, modes=PADDING_MODES), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_what_computes_streams_does_not_depend_on_their_length(case, dtype):
    """CausalConv1d promises the same bits for any chunks: a BLAS does not keep that, and no plan may change with the length."""
    g = konv.geometry(case.x_shape, case.w_shape, **case.options)
    for stride in (1, g.kernel[0]):
        short = dataclasses.replace(g, padding_mode="zeros", stride=(stride,))
        longer = dataclasses.replace(short, spatial=(g.spatial[0] + 100 * stride,), output=(g.output[0] + 100,))
        for exact in (False, True):
            names = {choose(Problem("forward", problem, dtype, exact)).algorithm.NAME for problem in (short, longer)}
            assert len(names) == 1 and "columns" not in names
