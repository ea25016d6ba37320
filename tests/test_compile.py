"""The cache of compiled kernels: what its keys depend on."""

import importlib
import pkgutil
import sys

import pytest

import konv.engine
from konv.engine import compile as compiling

MODULES = [f"konv.engine.{info.name}" for info in pkgutil.iter_modules(konv.engine.__path__)]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module of the engine, in a file that may be changed, and one that it imports."""
    for name in ("made_up", "made_up_table"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "made_up.py").write_text("from konv.engine.made_up_table import ROWS\n")
    (tmp_path / "made_up_table.py").write_text("ROWS = 3\n")
    monkeypatch.setattr(konv.engine, "__path__", [*konv.engine.__path__, str(tmp_path)])
    importlib.import_module("konv.engine.made_up")
    yield tmp_path
    for name in ("made_up", "made_up_table"):
        del sys.modules[f"konv.engine.{name}"]
    compiling.sources.cache_clear()


def key(module):
    compiling.sources.cache_clear()
    return compiling.sources(module)


@pytest.mark.parametrize("changed", ["made_up", "made_up_table"])
def test_a_change_of_any_file_that_a_kernel_depends_on_changes_its_key(package, changed):
    before = key("konv.engine.made_up")
    assert key("konv.engine.made_up") == before
    with open(package / f"{changed}.py", "a") as file:
        file.write("# changed\n")
    assert key("konv.engine.made_up") != before


def test_other_files_do_not(package):
    before = key("konv.engine.simd")
    (package / "made_up.py").write_text("")
    assert key("konv.engine.simd") == before


@pytest.mark.parametrize(
    "line, found",
    [
        ("from konv.engine import simd, compile as c", ["konv.engine.simd", "konv.engine.compile"]),
        ("from konv.engine.simd import fma", ["konv.engine.simd"]),
        ("import konv.engine.simd", ["konv.engine.simd"]),
        ("def f():\n    from konv.engine.machine import machine", ["konv.engine.machine"]),
        ("from konv.geometry import Geometry", []),
        ("from konv.engine import (\n    simd,\n    compile,\n)", ["konv.engine.simd", "konv.engine.compile"]),
        ("import numpy as np", []),
    ],
)
def test_imports_are_found_in_every_form(line, found):
    assert list(compiling._imports(line)) == found


def test_every_module_has_a_key():
    assert len({key(module) for module in MODULES if importlib.import_module(module)}) > 1
