"""``konv bench``: the table of layers, the whole path on tiny rows, what is refused, and what is written."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from konv import commands, textbook
from konv.bench import chart, compare, layers, limits, measure, peers, results, table
from konv.bench.exact import Inputs, error_against, tolerance
from konv.bench.layers import DIRECTIONS, GROUPS, ROWS, Row, group_of, select
from konv.bench.results import Mean, PeerResult, Result, Timing
from konv.bench.worker import Worker, WorkerError

TINY = (
    Row("tiny-2d", "3x3", (2, 4, 7, 6), (6, 4, 3, 3), padding=1),
    Row("tiny-depthwise", "depthwise-1d", (2, 6, 40), (6, 1, 5), stride=2, padding=4, dilation=2, groups=6),
    Row("tiny-3d", "general", (1, 3, 4, 5, 6), (2, 3, 2, 2, 2)),
    Row("tiny-transposed", "transposed", (2, 4, 5, 5), (4, 3, 4, 4), stride=2, padding=1, transposed=True),
    Row("tiny-half", "float16", (2, 3, 6, 6), (4, 3, 3, 3), dtype="float16"),
    Row("tiny-brain", "bfloat16", (2, 3, 6, 6), (4, 3, 3, 3), dtype="bfloat16"),
)


@pytest.fixture(scope="module", autouse=True)
def short_limits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SIZES", (1 << 19, 1 << 22))
        patch.setattr(limits.Meter.measure, "__defaults__", (0.005,))
        patch.setattr(measure, "TURN", 0.0)
        yield


@pytest.fixture(scope="module")
def run(short_limits):
    """All tiny rows by all peers that are installed."""
    there, _ = measure.available()
    return measure.run(TINY, DIRECTIONS, repeat=2, threads=2, peers=there)


# The table


def test_names_are_unique_and_groups_are_known():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 70
    assert {row.group for row in ROWS} == {group.name for group in GROUPS}
    assert len({group.name for group in GROUPS}) == len(GROUPS)
    assert not {row.name for row in ROWS} & {group.name for group in GROUPS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_a_valid_layer(row):
    g = row.geometry
    assert min(row.y) >= 1 and row.y[0] == row.x[0]
    assert row.filters == (row.w[1] * row.groups if row.transposed else row.w[0])
    assert row.bytes("backward") > row.bytes("forward") and row.flops("backward") == 2 * g.flops > 0
    assert row.flops("forward") <= 12e9, "takes too long"
    assert Row.from_dict(json.loads(json.dumps(row.as_dict()))) == row
    if row.group in {"depthwise", "depthwise-7x7", "depthwise-1d"}:
        assert row.groups == row.x[1]
    if row.group == "3x3":
        assert row.w[2:] == (3, 3) and min(row.x[2:]) >= 14 and min(row.x[1], row.filters) >= 64
    if row.group == "patch":
        assert set(g.kernel) == set(g.stride)
    assert row.dtype in (row.group, "float32")


@pytest.mark.filterwarnings("ignore::konv.segments.SegmentWarning")
def test_rows_of_downconv_are_downconvs():
    from konv.segments import down_conv_segments

    for length, hidden, m in ((200, 64, 4), (16384, 128, 64)):
        cut = down_conv_segments(length, hidden, m, 10, 16)
        first, second = select([f"downconv-{length}-*"])
        assert first.x[1:] == (hidden, length) and first.w == (hidden // 16, hidden, 10) and first.stride == 10
        assert second.x[1:] == first.y[1:] and second.w == (hidden, hidden // 16, cut.k2)
        assert (second.stride, second.padding, second.y[2]) == (cut.k2, cut.padding, m)


def test_rows_are_chosen_by_name_group_and_pattern():
    assert select() == list(ROWS)
    assert [row.name for row in select(["vit-patch16", "tiny-8@8", "VIT-*"])] == ["vit-patch16", "tiny-8@8"]
    assert {row.group for row in select(["1x1", "book"])} == {"1x1", "book"}
    quick = select(quick=True)
    assert [row.group for row in quick] == [row.group for row in {r.group: r for r in ROWS}.values()]
    with pytest.raises(ValueError, match=r"'resnt-3x3' is no row and no group.*resnet-3x3"):
        select(["3x3", "resnt-3x3"])


# Right and wrong


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("row", TINY, ids=lambda row: row.name)
def test_reference_without_torch(row, direction, monkeypatch):
    """A sample at a time by the textbook: what the textbook gives for the whole batch."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    built = peers.Reference(1).build(row, direction)
    whole = peers.textbook_call(textbook, row, direction, Inputs.of(row, direction).widened())
    assert error_against(built.arrays(built.call()), whole.arrays(whole.call())) <= 1e-13
    assert all(array.dtype == np.float64 for array in built.arrays(built.call()))


def test_without_torch_the_textbook_is_left(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    there, missing = measure.available()
    assert there == ["konv", "konv-last", "textbook"]
    assert any("PyTorch: torch not installed" in note for note in missing)
    assert measure.available(["textbook"])[0] == ["konv", "textbook"]
    with pytest.raises(ValueError, match="'jax' is no peer"):
        measure.available(["jax"])


@pytest.mark.parametrize(("load", "busy"), [([], False), ([1.0], False), ([1.1], True)])
def test_a_busy_machine_is_told_at_the_start(load, busy, monkeypatch):
    monkeypatch.setattr(measure, "info", lambda: {"cores_usable": 2})
    monkeypatch.setattr(measure, "_load", lambda: load)
    assert measure.busy_now() == ("The machine is busy: load 1.1, on 2 cores. Believe ratios at most." if busy else "")


def test_error_sees_what_is_wrong():
    exact = [np.array([1.0, -4.0]), np.array([[2.0]])]
    assert error_against([a.copy() for a in exact], exact) == 0
    assert error_against([np.array([1.0, -3.0]), exact[1]], exact) == 0.25
    assert np.isnan(error_against([np.array([1.0, np.nan]), exact[1]], exact))
    assert np.isnan(error_against([exact[0], np.array([[np.nan]])], exact))
    assert np.isnan(error_against([np.array([np.nan, 1.0]), np.array([[1.0]])], exact))
    with pytest.raises(ValueError, match="shape"):
        error_against([exact[0], np.array([2.0])], exact)
    with pytest.raises(ValueError, match="zip"):
        error_against(exact[:1], exact)


def test_tolerance_is_that_of_the_dtype():
    row = TINY[0]
    allowed = [tolerance(dataclasses.replace(row, dtype=d), "forward") for d in ("float64", "float32", "float16")]
    assert allowed == sorted(allowed) and 1e-14 < allowed[0] < 1e-13 and 1e-5 < allowed[1] < 2e-5 < allowed[2] < 2e-3


class Answers:
    """In place of the processes: one answer for each peer's "build"."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def ask(self, peer, do, **command):
        self.asked.append((peer, do))
        if do == "exact":
            open(command["exact"], "wb").close()
        return {"seconds": [0.5]} if do == "run" else self.answers[peer.replace("-", "_")] if do == "build" else {}


RIGHT = {"error": 0.0, "memory": None, "seconds": 0.5}


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 1.0])
def test_what_is_wrong_is_not_timed(error, tmp_path):
    answers = Answers(konv=RIGHT | {"error": error}, torch=RIGHT)
    result = measure.measure(TINY[0], "forward", 2, ["konv", "torch"], answers, tmp_path / "exact")
    assert result.failed and ("konv", "run") not in answers.asked and ("torch", "run") not in answers.asked
    answers = Answers(konv=RIGHT, konv_last=RIGHT | {"error": error})
    result = measure.measure(TINY[0], "forward", 2, ["konv", "konv-last"], answers, tmp_path / "exact")
    assert result.failed.startswith("konv channels_last: error") and ("konv", "run") not in answers.asked
    answers = Answers(konv=RIGHT, torch=RIGHT | {"error": error}, textbook={"declined": "too large"})
    result = measure.measure(TINY[0], "forward", 2, ["konv", "torch", "textbook"], answers, tmp_path / "exact")
    assert not result.failed and result.seconds("konv") == 0.5 and result.peers["konv"].timing.calls == 2
    assert result.seconds("torch") is None and "is right" in result.peers["torch"].note
    assert result.peers["textbook"].note == "too large" and ("textbook", "run") not in answers.asked


WRONG = """
import konv
right = konv.conv
konv.conv = lambda *arrays, out, **more: [right(*arrays, out=out, **more), out.__imul__(1.0001)][1]
from konv.bench.worker import main
main()
"""


@pytest.mark.parametrize("peer", ["konv", "konv-last", "torch", "onnxruntime"])
def test_others_may_be_less_exact_but_not_konv(peer):
    answers = Answers(**{peer.replace("-", "_"): RIGHT | {"error": 5e-5}})
    _, seconds = measure.check(peer, 1e-5, {}, answers)
    assert (seconds is None) == peer.startswith("konv")


def test_a_failing_row_goes_all_the_way(tmp_path, monkeypatch, run):
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.setattr(Worker, "PROGRAM", (sys.executable, str(tmp_path / "wrong.py")))
    bad = measure.run(TINY[:1], ["forward"], repeat=1, threads=1, peers=["konv", "textbook"])
    (result,) = bad.failed
    assert (
        re.match(r"konv: error 1\.0e-04, at most 1\.\de-05 is right", result.failed) and result.seconds("konv") is None
    )
    assert result.peers.keys() == {"konv"}
    assert (
        "WRONG" in table.markdown(bad) and "WRONG, not timed" in table.line(result) and "1 WRONG" in table.markdown(bad)
    )
    chart.draw(bad, tmp_path / "bad.png")
    with pytest.raises(ValueError, match="no row in common"):
        compare.compare(bad, run)


def test_a_dead_process_is_reported_and_started_again():
    with measure.workers(["konv"], 1) as running:
        task = {"row": TINY[0].as_dict(), "direction": "forward", "exact": "/nowhere/exact"}
        with pytest.raises(WorkerError, match="FileNotFoundError"):
            running.ask("konv", do="build", **task)
        running._running["konv"].process.kill()
        running._running["konv"].process.wait()
        with pytest.raises(WorkerError, match="FileNotFoundError"):
            running.ask("konv", do="build", **task)
        running._running["konv"].process.kill()
        with pytest.raises(WorkerError, match="ended with code -9"):
            running._running["konv"].ask(do="build", **task)


# The whole path


def test_everything_is_timed_and_right(run):
    assert [(r.row, r.direction) for r in run.results] == [(row, d) for row in TINY for d in DIRECTIONS]
    for result in run.results:
        assert not result.failed, table.line(result)
        assert 0 <= result.peers["konv"].error <= result.tolerance
        for name in ("konv", "konv-last", "textbook"):
            if result.row.dtype == "bfloat16" and name == "textbook":
                continue
            timing = result.peers[name].timing
            assert timing.calls >= 2, (result.row.name, name, result.peers[name].note)
            assert 0 < timing.fastest <= timing.quarter <= timing.median <= timing.three_quarters
    assert run.versions["konv"] and not run.failed and not run.settings["interrupted"]


def test_torch_is_timed_in_both_layouts(run):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    for result in run.results:
        assert result.seconds("torch"), (result.row, result.peers["torch"].note)
        assert result.seconds("torch-last"), (result.row, result.peers["torch-last"].note)
        assert result.against("torch") == result.seconds("torch") / result.seconds("konv")
        assert result.against("best") <= result.against("torch")


def test_json_round_trip(run, tmp_path):
    run.save(tmp_path / "run.json")
    assert results.load(tmp_path / "run.json") == run
    entries = json.loads((tmp_path / "run.json").read_text())
    assert entries["machine"]["versions"]["numpy"] == np.__version__ and entries["date"].startswith("20")
    for content, problem in (
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"format": 0}', "format 0"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=rf"bad.json was not saved by konv bench: .*{problem}"):
            results.load(tmp_path / "bad.json")


def test_markdown_has_every_row(run):
    text = table.markdown(run)
    grids = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(grids) == 5
    for grid in grids:
        assert len({line.count("|") for line in grid.splitlines()}) == 1, "rows of different length"
    for row in TINY:
        assert text.count(f"| {row.name} |") == 4
        assert f"| {group_of(row.group).title} | 1 |" in text
    assert "| all rows | 6 |" in text and run.machine["cpu"] in text


def test_chart_is_a_picture(run, tmp_path):
    chart.draw(run, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def made(konv, torch, last=None, direction="forward", row=TINY[0]):
    """A result with these medians."""
    seconds = {"konv": konv, "torch": torch, "torch-last": last}
    timed = {name: PeerResult(Timing(3, s * 0.9, s * 0.95, s, s * 1.05)) for name, s in seconds.items() if s}
    return Result(row, direction, 1e-5, "", timed)


def test_ratios_and_means():
    result = made(2.0, 6.0, 1.0)
    assert (result.against("torch"), result.against("best"), result.best_rival) == (3.0, 0.5, "torch-last")
    assert made(1.0, None).against("best") is None
    assert Mean.of([2.0, 0.5, None]) == Mean(2, 1.0, 1)
    assert Mean.of([None]) is None
    assert Timing.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Timing(5, 1.0, 2.0, 3.0, 4.0)


def test_losing_rows_are_counted(run):
    two = [made(1.0, 4.0), made(1.0, 0.25, row=dataclasses.replace(TINY[0], name="other"))]
    grid = table.means(dataclasses.replace(run, results=two))
    assert grid.rows[-1][:4] == ["all rows", "2", "1.00x", "2.2, best 1.4"] and grid.rows[-1][-1] == "1 of 2"


def test_compare_tells_faster_from_slower(run):
    before = dataclasses.replace(run, results=[made(2.0, 4.0), made(1.0, 4.0, direction="backward")])
    after = dataclasses.replace(run, results=[made(1.0, 8.0), made(1.04, 4.0, direction="backward")])
    first, second, *means = compare.compare(before, after).rows
    assert first == ["tiny-2d", "forward", "2e+03", "1e+03", "2.00x", "4.00x", "faster"]
    assert second[-3:] == ["0.96x", "0.96x", ""]
    assert [row[4] for row in means if row] == ["2.00x", "0.96x"]
    assert compare.compare(after, before).rows[0][-1] == "slower"


def test_what_was_measured_before_an_interrupt_is_kept(monkeypatch):
    def stop(result):
        if result.direction == "backward":
            raise KeyboardInterrupt

    answers = Answers(konv=RIGHT)
    answers.versions = {}
    monkeypatch.setattr(measure, "workers", lambda peers, threads: contextlib.nullcontext(answers))
    run = measure.run(TINY[:1], DIRECTIONS, repeat=1, threads=1, peers=["konv"], report=stop)
    assert run.settings["interrupted"] and [r.direction for r in run.results] == ["forward"]
    assert "Interrupted" in table.markdown(run)


def test_limits_are_those_of_a_machine():
    meter = limits.Meter(1)
    meter.measure()
    first = meter.limits
    meter.measure()
    found = meter.limits
    assert all(found.fma[dtype] >= speed for dtype, speed in first.fma.items())
    assert found.fma["float32"] > found.fma["float64"] > 1e8
    speeds = [speed for _, speed in found.memory]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] > 1e7
    for row in TINY:
        seconds, kind = found.least_seconds(row, "forward")
        assert seconds > 0 and kind in ("FMA", "memory")


def test_a_table_is_parted_where_it_does_not_fit():
    grid = table.Grid(
        "title", ["layer", "kind", "one", "two", "three"], [["long name", "a", "1.00", "2", "3"], [], list("bcdef")], 2
    )
    assert grid.fitting(200) == [grid]
    parts = grid.fitting(40)
    assert [part.columns for part in parts] == [["layer", "kind", "one", "two"], ["layer", "kind", "three"]]
    assert [part.title for part in parts] == ["title", "title (continued)"]
    assert parts[1].rows == [["long name", "a", "3"], [], ["b", "c", "f"]] and parts[1].left == 2
    narrow = grid.fitting(22)
    assert [part.columns[1:] for part in narrow] == [["kind"], ["one"], ["two"], ["three"]]
    for width in (40, 22):
        console = Console(file=io.StringIO(), width=width)
        for part in grid.fitting(width):
            console.print(part.rich())
        text = console.file.getvalue()
        assert "…" not in text and "long name" in text and max(map(len, text.splitlines())) <= width


# The command


def invoke(*words):
    result = CliRunner().invoke(
        commands.app, ["bench", *map(str, words)], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    return result.exit_code, result.stdout, result.stderr


def test_command_lists_and_refuses(tmp_path):
    code, out, _ = invoke("1x1-strided", "--list")
    assert code == 0 and "2 rows" in out and "(8, 256, 56, 56)" in out
    assert invoke("depthwize")[0] == 2 and "near: depthwise" in invoke("depthwize")[2]
    assert invoke("nothing")[0] == 2 and re.search(r"the groups are 3x3, .*--list", invoke("nothing")[2])
    assert invoke("--save", tmp_path / "run.txt", "--list")[0] == 2
    code, _, err = invoke("--save", tmp_path / "none" / "run.json")
    assert code == 2 and f"there is no folder {tmp_path / 'none'}" in err
    assert invoke("--peers", "jax", "--list")[0] == 2
    code, _, err = invoke("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 1 and "a.json" in err and "Traceback" not in err
    (tmp_path / "a.json").write_text("{}")
    assert invoke("--compare", tmp_path / "a.json", tmp_path / "a.json")[0] == 2


def test_command_measures_saves_and_compares(tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "ROWS", TINY[:1])
    path = tmp_path / "run.json"
    code, out, err = invoke("3x3", "--forward", "--repeat", 1, "--threads", 1, "--peers", "textbook", "--save", path)
    assert code == 0 and "tiny-2d forward: " in err and "geometric means" in out
    assert (tmp_path / "run.md").read_text().count("tiny-2d") == 2
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = invoke("--compare", path, path)
    assert code == 0 and "1.00x" in out
