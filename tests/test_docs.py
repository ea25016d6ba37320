"""The documentation is true: its programs run, its sessions print what they show, its links and commands exist."""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import konv
import konv.book
from konv.engine.plan import algorithms, forget
from programs import SECONDS
from test_architecture import place

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^print\(.*\) +# (\(.*\))$", re.MULTILINE)  # print(y.shape)  # (8, 4)


def blocks(page: Path, *languages: str) -> list[tuple[int, str, str]]:
    """(line, language, code) of the fenced blocks in one of ``languages``."""
    text = page.read_text(encoding="utf-8")
    found = ((text.count("\n", 0, m.start(2)), m[1], m[2]) for m in FENCE.finditer(text))
    return [block for block in found if block[1] in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def run_session(code: str, namespace: dict, name: str, line: int) -> None:
    test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False)
    assert tried and not failed, "".join(said)
    namespace.update(test.globs)


def run_program(code: str, namespace: dict, name: str, line: int) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * line + code, name, "exec"), namespace)
    for shown in SHOWN.findall(code):
        assert shown in printed.getvalue(), f"{name}: says {shown}, printed {printed.getvalue()}"


@pytest.fixture
def engine_as_it_is():
    """A page may put an algorithm into the engine's table; whatever happens to it, the next test has the old table."""
    before = algorithms().copy()
    yield
    algorithms()[:] = before
    forget()


@pytest.mark.parametrize("name", [n for n, page in zip(NAMES, PAGES) if blocks(page, "python", "pycon")])
def test_programs_run(name, tmp_path, monkeypatch, engine_as_it_is):
    """All blocks of a page, in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    page = blocks(ROOT / name, "python", "pycon")
    if any("torch" in code for _, _, code in page):
        pytest.importorskip("torch")
    namespace: dict = {"__name__": "page"}
    for line, _, code in page:
        run = run_session if code.startswith(">>>") else run_program
        run(code, namespace, name, line)


def test_runner_sees_mistakes():
    with pytest.raises(AssertionError, match="Got"):
        run_session(">>> 1 + 1\n3\n", {}, "page", 0)
    with pytest.raises(AssertionError):
        run_session("no session\n", {}, "page", 0)
    with pytest.raises(ZeroDivisionError):
        run_program("1 / 0", {}, "page", 0)
    with pytest.raises(AssertionError, match="says"):
        run_program("print((1, 2))  # (1, 3)\n", {}, "page", 0)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_known(name):
    """A misspelt language would keep a block from being run."""
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(FENCE.findall(text)), "a fence is not closed"
    assert {m[1] for m in FENCE.finditer(text)} <= {"python", "pycon", "bash", "text"}
    for _, language, code in blocks(page, "python", "pycon"):
        assert code.startswith(">>>") == (language == "pycon")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(ROOT / name)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (ROOT / name).parent / file if file else ROOT / name
        assert page.exists(), f"{name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name} links to {target}, but {file} has {headings}"


def slug(heading: str) -> str:
    """The anchor that Markdown's table of contents gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}


def documented() -> list[str]:
    """The names behind ``:::`` in the reference."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    return [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)]


def named(path: str) -> object:
    """The object behind a dotted name: the longest module there is, then attributes."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name not in (path, ".".join(parts[:end])):
                raise
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise LookupError(path)


def test_reference_is_whole():
    import_torch = pytest.importorskip("torch") is not None
    reference = {id(named(path)): path for path in documented()}
    assert import_torch and len(reference) == len(documented()), "a name stands in the reference twice"
    modules = [konv, konv.book, importlib.import_module("konv.torch")]
    missing = [f"{m.__name__}.{name}" for m in modules for name in m.__all__ if id(getattr(m, name)) not in reference]
    assert not missing


def commands() -> list[tuple[str, str]]:
    """(page, command) for every ``konv ...`` line of a bash block and every `konv ...` in the text."""
    found = []
    for name, page in zip(NAMES, PAGES):
        lines = [line for _, _, code in blocks(page, "bash") for line in code.splitlines()]
        lines += re.findall(r"`(konv [a-z][^`]*)`", prose(page))
        words = [shlex.split(line, comments=True) for line in lines if line.strip().startswith("konv ")]
        found += [(name, shlex.join(line)) for line in words]
    return sorted(set(found))


@functools.cache
def help_of(*command: str) -> str:
    environment = os.environ | {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    code = "from konv.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"konv {' '.join(command)} --help: {done.stderr}"
    return done.stdout


def test_commands_are_quoted():
    used = {shlex.split(line)[1] for _, line in commands()}
    assert used >= {"train", "predict", "check", "info"}


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_exist(page, line):
    _, *words = shlex.split(line)
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    text = help_of(words[0]) if not words[0].startswith("-") else help_of()
    unknown = [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)]
    assert not unknown, f"{page}: {line}"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [line for page in PAGES for _, _, code in blocks(page, "bash") for line in code.splitlines()]
    text = "\n".join(lines) + "\n".join(prose(page) for page in PAGES)
    used = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert {"run", "test"} <= used
    assert not {target for target in used if not re.search(rf"^{target}:", makefile, re.MULTILINE)}


def test_the_house_is_as_drawn():
    """docs/design.md draws every module and package of konv once, from the top down as the ladder of imports has them."""
    drawing = next(code for _, _, code in blocks(ROOT / "docs/design.md", "text") if "geometry.py" in code)
    rows = [line.partition("  ")[0].split() for line in drawing.splitlines()]
    package = ROOT / "src" / "konv"
    parts = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    there = {path.name if path.is_file() else f"{path.name}/" for path in parts} - {"__init__.py"}
    drawn = [name for row in rows for name in row]
    assert sorted(drawn) == sorted(there)
    rungs = [[place(f"konv.{name.removesuffix('.py').rstrip('/')}")[0] for name in row] for row in rows]
    assert all(max(upper) <= min(lower) for upper, lower in itertools.pairwise(rungs))
