"""From a kernel's text to machine code: traced once, optimised by LLVM, kept in this process and on disk.

A *factory* is a function of compile-time parameters (dtype, lanes, tile shape, ...) that returns a kernel's text and the
element types of its pointers. Decorated with :func:`kernel`, calling it returns the compiled :class:`Kernel`::

    @kernel
    def scale(dtype, lanes):
        def text(piece, slot, x, y, factor):
            y.put(lanes * piece, x.vec(lanes * piece, lanes) * factor[0])
        return text, {"x": dtype, "y": dtype, "factor": dtype}

A kernel does one *piece* of a job in one *slot* (which workspace it may use) and takes its arguments from an array of
int64: pointers for the names in the dict, integers for the others. Compiled code is stored under a hash of everything
it depends on: the factory's file and those of the engine that it imports, the parameters, the CPU, LLVM's version.
Nothing in the cache can go stale.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import hashlib
import inspect
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from konv.engine.machine import machine
from konv.engine.simd.pointers import Pointer
from konv.engine.simd.values import INT64, Value, trace_into

Text = Callable[..., None]
Factory = Callable[..., tuple[Text, dict[str, str]]]

compiling = threading.RLock()  # LLVM is used by one thread at a time, and never while the process forks: see below
_warned: set[Path] = set()  # cache folders that could not be written
_loaded: list[Any] = []  # LLVM's engines own the code: they live as long as the process


@dataclass(frozen=True)
class Kernel:
    """Compiled code: ``void (int64 piece, int64 slot, const int64* arguments)`` at ``address``."""

    name: str
    address: int
    arguments: tuple[str, ...]


def kernel(factory: Factory) -> Any:
    """Compile what ``factory`` returns, once for each set of parameters; ``.text(...)`` gives the uncompiled text."""

    @functools.cache
    def compiled(*parameters: Any) -> Kernel:
        with compiling:
            name = f"{factory.__name__}_{'_'.join(map(str, parameters))}"
            text, pointers = factory(*parameters)
            code = stored(name, factory.__module__, lambda: compile_ir(trace(text, pointers)))
            return Kernel(name, load(code), _arguments(text))

    @functools.wraps(factory)
    def call(*parameters: Any) -> Kernel:
        return compiled(*parameters)

    call.text = lambda *parameters: factory(*parameters)[0]  # type: ignore[attr-defined]
    return call


def trace(text: Text, pointers: dict[str, str]) -> str:
    """LLVM IR of a kernel's text, as a string."""
    with _uncollected():
        return _traced(text, pointers)


def _traced(text: Text, pointers: dict[str, str]) -> str:
    module = ir.Module("konv")
    module.triple = llvm.get_default_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64, INT64, ir.PointerType()]), "kernel")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    body = function.append_basic_block("start")
    with trace_into(builder):
        arguments: list[Any] = [Value(function.args[0]), Value(function.args[1])]
        for i, name in enumerate(_arguments(text)):
            number = builder.load(builder.gep(function.args[2], [INT64(i)], source_etype=INT64), typ=INT64)
            stored = pointers.get(name)
            arguments.append(Pointer(builder.inttoptr(number, ir.PointerType()), stored) if stored else Value(number))
        builder.branch(body)
        builder.position_at_end(body)
        text(*arguments)
    builder.ret_void()
    return str(module)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No searches for garbage: a trace drops nothing, but what it makes starts many: in a large program 3/4 of its time."""
    searching = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if searching:
            gc.enable()


def compile_ir(text: str) -> bytes:
    """Object code of LLVM IR for this machine. Loops stay as they are written: the texts unroll and vectorise themselves.

    Of 40 kernels passes take 4.0 s, instructions 4.1; at level 2 3.7 and 4.4, at level 1 3.4 and 4.7, and the code differs.
    """
    target = _target()
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return target.emit_object(module)


def load(code: bytes, symbol: str = "kernel") -> int:
    """Load object code into the process and return the address of ``symbol``."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _loaded.append(engine)
    return engine.get_function_address(symbol)


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$KONV_CACHE``, or ``konv`` in the user's cache folder."""
    if folder := os.environ.get("KONV_CACHE"):
        return Path(folder)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "konv" / "kernels"
    home = os.path.expanduser("~")  # "~" stays where there is no home: not writable
    return Path(home) / ".cache" / "konv" / "kernels"


def _arguments(text: Text) -> tuple[str, ...]:
    """The names after ``piece`` and ``slot``."""
    return tuple(inspect.signature(text).parameters)[2:]


@functools.cache
def sources(module: str) -> bytes:
    """A hash of the files that a kernel of ``module`` is made of: its own, this one, and what they import of the engine."""
    found: dict[str, str] = {}
    waiting = [module, __name__]
    while waiting:
        name = waiting.pop()
        if name in found or name not in sys.modules:  # imported for type checkers only
            continue
        found[name] = Path(str(sys.modules[name].__file__)).read_text("utf-8")
        waiting += _imports(found[name])
    return hashlib.sha256("\0".join(found[name] for name in sorted(found)).encode()).digest()


def _imports(source: str) -> Iterator[str]:
    """The modules of the engine that a file imports, and the names that it imports from them, which may be modules too."""
    for module, names, plain in _IMPORT.findall(re.sub("#.*", "", source)):  # 0.1 ms a file; the ast module takes 10
        yield from re.findall(r"konv\.engine\.[\w.]+", plain)
        if module not in ("", "konv.engine"):
            yield module
        for name in names.strip("()\n ").split(","):
            if name.strip():
                yield f"{module}.{name.split()[0]}"


_IMPORT = re.compile(
    r"^[ \t]*(?:from (konv\.engine(?:\.[\w.]+)?) import (\([^)]*\)|[^\n#]*)|import ([^\n#]*))",
    re.MULTILINE,
)


def stored(name: str, module: str, make: Callable[[], bytes]) -> bytes:
    """Object code under ``name`` from the cache folder, made of ``module``'s text and put there if it is missing."""
    host = machine()
    key = hashlib.sha256(sources(module) + "\0".join([name, host.cpu, host.features, llvmlite.__version__]).encode())
    path = cache_folder() / f"{key.hexdigest()[:40]}.o"
    if (code := _read(path)) is not None:
        return code
    _announce()
    code = make()
    _keep(path, code)
    return code


def _keep(path: Path, code: bytes) -> None:
    """Put object code into the cache folder, whole or not at all. A folder that takes none costs one warning."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = file.name
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(part, path)
    except OSError as error:
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)
        if path.parent not in _warned:
            _warned.add(path.parent)
            why = error.strerror or type(error).__name__
            warnings.warn(f"konv cannot keep compiled kernels in {path.parent} ({why}); set KONV_CACHE", stacklevel=2)


def _read(path: Path) -> bytes | None:
    """The object code in a cache file, or None: not there yet, not readable, or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


@functools.cache
def _announce() -> None:
    if sys.stderr.isatty():
        print(f"konv: compiling kernels for this CPU (once; kept in {cache_folder()})", file=sys.stderr, flush=True)


def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = machine()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=host.cpu, features=host.features, opt=3, jit=True)


# A child that inherited LLVM's lock, held by a thread that it lacks, would wait forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=compiling.acquire, after_in_parent=compiling.release, after_in_child=compiling.release)

# At its end the process takes LLVM apart: a daemon thread that still compiles would crash it. Wait for it, let none begin.
atexit.register(compiling.acquire)
