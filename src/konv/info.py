"""What konv runs on: versions, CPU, caches, memory. For bug reports, and for reading a benchmark's numbers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

UNKNOWN = "unknown"

# What NumPy and konv's kernels can use, widest first; a name that the CPU lacks is not shown.
VECTOR_FEATURES = (
    *("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512vnni", "avx512bf16", "avx512fp16", "amx-bf16"),
    *("avx2", "fma", "f16c", "avx", "sse4.2", "sve2", "sve", "neon", "fullfp16", "bf16", "dotprod"),
)
PACKAGES = (
    "numpy",
    "llvmlite",
    "torch",
    "onnx",
    "onnxruntime",
    "ml-dtypes",
    "scikit-learn",
    "matplotlib",
    "pillow",
    "pooch",
)


@dataclass(frozen=True, eq=False)
class Info(Mapping[str, Any]):
    """A read-only mapping, printed as a table of two columns.

    Attributes
    ----------
    entries : mapping
        ``versions`` (mapping: package -> version or None), ``platform``, ``cpu``, ``features`` (tuple of str),
        ``cores_usable``, ``cores`` (logical cores: those this process may use, and all), ``caches`` (mapping such as
        ``{"L1d": 32768}``, in bytes), ``memory`` (bytes), ``blas`` (the library behind NumPy's matrix product).
        What the machine does not tell is None.
    """

    entries: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self) -> list[tuple[str, str]]:
        """The entries as (name, text) pairs, for a table."""
        versions = [(name, version) for name, version in self["versions"].items() if version]
        absent = [name for name, version in self["versions"].items() if not version]
        cores = f"{self['cores_usable']} usable of {self['cores'] or UNKNOWN}"
        caches = ", ".join(f"{name} {binary_size(size)}" for name, size in self["caches"].items())
        return [
            *versions,
            *([("not installed", ", ".join(absent))] if absent else []),
            ("platform", self["platform"]),
            ("CPU", self["cpu"] or UNKNOWN),
            ("vector features", " ".join(self["features"]) or UNKNOWN),
            ("cores", cores),
            ("caches", caches or UNKNOWN),
            ("memory", binary_size(self["memory"]) if self["memory"] else UNKNOWN),
            ("NumPy's BLAS", self["blas"] or UNKNOWN),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The entries as plain dicts, lists, strings and numbers, for JSON."""
        plain: dict[str, Any] = {}
        for name, value in self.items():
            if isinstance(value, Mapping):
                value = dict(value)
            plain[name] = list(value) if isinstance(value, tuple) else value
        return plain

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def info() -> Info:
    """Versions, CPU, caches and memory of this machine, as konv sees them.

    Returns
    -------
    Info
        A read-only mapping with a readable ``str``. Torch and the other extras are not imported to learn their versions.

    Examples
    --------
    >>> machine = info()
    >>> machine["cores_usable"] >= 1
    True
    >>> machine["versions"]["numpy"] == np.__version__
    True
    """
    import platform

    # Looked up, not imported: the package stands above this file.
    versions = {"konv": getattr(sys.modules["konv"], "__version__", None), "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    name, features = _cpu()
    return Info(
        MappingProxyType(
            {
                "versions": MappingProxyType(versions),
                "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
                "cpu": name,
                "features": features,
                "cores_usable": usable_cores(),
                "cores": os.cpu_count(),
                "caches": MappingProxyType(_caches()),
                "memory": _memory(),
                "blas": _blas(),
            }
        )
    )


def binary_size(size: int) -> str:
    """A number of bytes in the largest binary unit that leaves at least one.

    Examples
    --------
    >>> binary_size(49152), binary_size(1_572_864), binary_size(100)
    ('48 KiB', '1.5 MiB', '100 B')
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.3g} {unit}" if size < 1000 * 1024**power else f"{size // 1024**power} {unit}"
    return f"{size} B"


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str | None, tuple[str, ...]]:
    """The CPU's name and those of :data:`VECTOR_FEATURES` that it has."""
    import re

    from llvmlite import binding

    has = binding.get_host_cpu_features()
    features = tuple(name for name in VECTOR_FEATURES if has.get(name))
    name = _sysctl("machdep.cpu.brand_string")
    if name is None and (cpuinfo := _read(Path("/proc/cpuinfo"))):
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        name = found.group(1) if found else None
    llvm_name = binding.get_host_cpu_name()
    return (f"{name} ({llvm_name})" if name else llvm_name or None), features


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Sizes in bytes of the caches that core 0 sees, by name: L1d, L1i, L2, L3."""
    import re

    sizes = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (_read(index / part) for part in ("level", "type", "size"))
        found = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level and kind and found:
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            sizes[f"L{level}{letter}"] = int(found.group(1)) * 1024 ** " KMG".index(found.group(2) or " ")
    if not sizes:
        for name, key in (("L1d", "hw.l1dcachesize"), ("L1i", "hw.l1icachesize"), ("L2", "hw.l2cachesize")):
            if (text := _sysctl(key)) and text.isdigit():
                sizes[name] = int(text)
    return sizes


def _memory() -> int | None:
    """Bytes of memory: the machine's, or the control group's limit where that is lower."""
    sizes = []
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        if (text := _sysctl("hw.memsize")) and text.isdigit():
            sizes.append(int(text))
    limit = _read(Path("/sys/fs/cgroup/memory.max"))
    if limit and limit.isdigit():
        sizes.append(int(limit))
    return min(sizes, default=None)


def _blas() -> str | None:
    """Name and version of the BLAS that NumPy was built with, as NumPy tells it."""
    build: Any = np.show_config(mode="dicts")
    blas = build.get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(blas[key]) for key in ("name", "version") if blas.get(key)) or None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _sysctl(key: str) -> str | None:
    if sys.platform != "darwin":
        return None
    import subprocess

    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
