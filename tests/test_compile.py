"""The cache of compiled kernels: what its keys depend on, and folders that cannot be read or written."""

import ast
import importlib
import os
import pkgutil
import platform
import sys
from pathlib import Path

import pytest

import konv.engine
from konv.engine import compile as compiling
from programs import finish_program, run_program, start_program

MODULES = [info.name for info in pkgutil.walk_packages(konv.engine.__path__, "konv.engine.")]


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
        ("from konv.engine.direct import outer as o", ["konv.engine.direct", "konv.engine.direct.outer"]),
        ("from konv.engine.direct.outer import (\n    dot,\n)", ["konv.engine.direct.outer"]),
        ("import konv.engine.simd", ["konv.engine.simd"]),
        ("def f():\n    from konv.engine.machine import machine", ["konv.engine.machine"]),
        (
            "from konv.engine import (\n    simd,  # the words (all)\n    compile,\n)",
            ["konv.engine.simd", "konv.engine.compile"],
        ),
        ("from konv.geometry import Geometry", []),
        ("from konv.engine import (\n    simd,\n    compile,\n)", ["konv.engine.simd", "konv.engine.compile"]),
        ("import numpy as np", []),
    ],
)
def test_imports_are_found_in_every_form(line, found):
    assert [name for name in compiling._imports(line) if name in MODULES] == found


@pytest.mark.parametrize("module", MODULES)
def test_every_import_of_a_file_of_the_engine_is_found(module):
    """By a pattern as by Python's own reading. Relative imports, which it would not find, are none."""
    source = Path(importlib.import_module(module).__file__).read_text(encoding="utf-8")
    read = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            read |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            read |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert read & set(MODULES) == set(compiling._imports(source)) & set(MODULES)


def test_every_module_has_a_key():
    assert len({key(module) for module in MODULES if importlib.import_module(module)}) > 1


# Folders


USE = """
    import warnings
    import numpy as np
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import konv
        from konv.engine import compile as compiling
{before}
        for shape in ((2, 3, 9, 9), (1, 9, 20)):
            x, w = np.ones(shape), np.ones((5, shape[1], *[3] * (len(shape) - 2)))
            y = konv.conv(x, w)
            assert (y == shape[1] * 3 ** (len(shape) - 2)).all()
            konv.conv_backward(y, x, w)
            konv.max_pool(x, 2)
    print(len(caught), *(str(warning.message) for warning in caught))
"""


def use(folder, before=""):
    """What a program warns of that compiles into ``folder``."""
    return run_program(USE.format(before=before), KONV_CACHE=folder).strip()


def kernels(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_later_program_compiles_nothing(tmp_path):
    assert use(tmp_path) == "0"
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(made) >= 4 and all(path.suffix == ".o" for path in made)
    assert use(tmp_path, "        compiling.compile_ir = None") == "0"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    told = use(tmp_path / "file" / "kernels")
    assert told.startswith("1 konv cannot keep compiled kernels in") and "set KONV_CACHE" in told


FULL = """
        import tempfile
        class Full:
            def __init__(self, *arguments, **options):
                self.file = real(*arguments, **options)
                self.name = self.file.name
            def __enter__(self):
                return self
            def __exit__(self, *error):
                self.file.close()
            def write(self, content):
                self.file.write(content[:100])
                raise OSError(28, "No space left on device")
        real, tempfile.NamedTemporaryFile = tempfile.NamedTemporaryFile, Full
"""


def test_a_full_disk_costs_one_warning_and_leaves_no_half_files(tmp_path):
    told = use(tmp_path, FULL)
    assert told.startswith("1 konv cannot keep") and "No space left on device" in told
    assert kernels(tmp_path) == []


def test_a_damaged_file_is_made_again(tmp_path):
    use(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for number, (path, content) in enumerate(whole.items()):
        path.write_bytes([b"", content[:-1], content[:32] + b"\0" + content[33:], content[:40]][number % 4])
    assert use(tmp_path) == "0"
    assert {path: path.read_bytes()[:32] for path in whole} == {path: c[:32] for path, c in whole.items()}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_read(tmp_path):
    use(tmp_path)
    tmp_path.chmod(0o500)
    assert use(tmp_path) == "0"


def test_two_programs_at_once(tmp_path):
    programs = [start_program(USE.format(before=""), KONV_CACHE=tmp_path) for _ in range(3)]
    assert [finish_program(program).strip() for program in programs] == ["0"] * 3
    assert all(name.endswith(".o") for name in kernels(tmp_path))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 CPU")
def test_a_cpu_without_instructions_for_float16_computes_it():
    """There a conversion that LLVM leaves to a library would call address 0."""
    run_program(
        """
        import numpy as np, konv
        x = np.arange(24, dtype=np.float16).reshape(1, 2, 12)
        w = np.ones((2, 2, 1), np.float16)
        assert np.array_equal(konv.max_pool(x, 2), x[:, :, 1::2])
        dx, dw, db = konv.conv_backward(x, x, w)
        assert np.array_equal(db, [66, 210])
        """,
        KONV_CPU="nehalem",
        KONV_CPU_FEATURES="+sse4.2,+sse4.1,+ssse3,+popcnt",
    )


def test_the_process_ends_while_a_daemon_thread_compiles():
    run_program("""
        import threading, time
        from konv.engine.compile import compile_ir, compiling, load, trace
        begun = threading.Event()
        def text(piece, slot, y):
            for i in range(800):
                y[i] = y[i] + y[800 - i]
        def compile_much():
            with compiling:
                ir = trace(text, {"y": "float32"})
                begun.set()
                for _ in range(2):
                    load(compile_ir(ir))
        threading.Thread(target=compile_much, daemon=True).start()
        begun.wait()
        time.sleep(0.1)
    """)
