"""Which algorithm computes a problem: the first of an ordered table that does not decline, and why the others did."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from konv.arguments import IntOrAxes, Padding
from konv.arrays import FLOAT_TYPES
from konv.engine.addresses import OnAddresses
from konv.engine.threads import using
from konv.geometry import Geometry, geometry
from konv.names import names_told

KINDS = ("forward", "input_gradient", "weight_gradient")
LAYOUTS = ("first", "last")


@dataclass(frozen=True)
class Problem:
    """One computation: what is wanted, on which shapes, in which dtype.

    Attributes
    ----------
    kind : "forward", "input_gradient" or "weight_gradient"
    geometry : the checked shapes; its padding is zeros (other modes are applied before)
    dtype : name of the element type, "float16", "bfloat16", "float32" or "float64"
    exact : every output is the sum of its own products, as the formula says (no Winograd, no Fourier transforms)
    layout : "first" or "last": where the channels of x, y and their gradients lie in memory
    """

    kind: str
    geometry: Geometry
    dtype: str
    exact: bool = False
    layout: str = "first"


def set_exact(exact: bool) -> None:
    """Whether every output must be the sum of its own products, as the formula says; False at the start.

    Winograd's algorithm computes tiles of outputs together from sums and differences: its error is up to three times a
    direct sum's, and a NaN may fill a whole tile. Fourier transforms compute whole blocks of a row together: a small output
    has the rounding of the largest in its block. Depthwise kernels of five to seven rows add two rows of x before they multiply:
    an output has the rounding of the largest input that either row's windows hold, and an infinity there may become NaN. True
    refuses all three, for every following operation of konv in this process.

    Raises
    ------
    TypeError
        ``exact`` is not a bool.

    Examples
    --------
    >>> set_exact(True)
    >>> plan((8, 64, 56, 56), (64, 64, 3, 3), padding=1).algorithm.NAME
    'direct'
    >>> set_exact(False)
    >>> plan((8, 64, 56, 56), (64, 64, 3, 3), padding=1).algorithm.NAME
    'winograd'
    """
    global _exact
    if not isinstance(exact, bool):
        raise TypeError(f"exact={exact!r}: expected True or False")
    _exact = exact


_exact = False
_exact_here: contextvars.ContextVar[bool] = contextvars.ContextVar("exact", default=False)


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Inside, in this thread, every output is the sum of its own products, as after ``set_exact(True)``."""
    token = _exact_here.set(True)
    try:
        yield
    finally:
        _exact_here.reset(token)


def exact() -> bool:
    """Whether exact sums are asked for, here and now: :func:`set_exact`, :func:`exactly`."""
    return _exact or _exact_here.get()


def asked() -> tuple[bool, str | None, int]:
    """All that decides who computes a problem, beside the problem: for the keys of who keeps what follows from a plan."""
    return _exact or _exact_here.get(), _preferred, _forgotten


def problem(kind: str, g: Geometry, dtype: str, layout: str = "first") -> Problem:
    """The problem that :func:`set_exact` makes of a computation."""
    return Problem(kind, g, dtype, exact(), layout)


class Algorithm(Protocol):
    """What a module in the table offers; see :mod:`konv.engine`. A computation that it always declines may be missing.

    Beside what follows a module may offer these; who calls it asks whether it does:

    ``weight_and_bias_gradient(dy, x, g, out, db)``
        Writes dL/dw into ``out`` and dL/db (F,) into ``db``, and reads dy once for both. ``weight_gradient`` is made of it by
        :func:`konv.engine.prepared.without_bias`.
    ``input_gradient_and_bias(dy, w, b, g, out)``
        Writes dL/dx + b, b (C,), into ``out``: a transposed convolution.
    ``on_addresses(problem)``
        The computation as an :class:`~konv.engine.addresses.OnAddresses`, for who makes the same one again and again; None
        where it looks at arrays.
    ``forward_rectified``, ``input_gradient_rectified``
        With the ReLU before or behind; see :mod:`konv.rectified`.
    ``WEIGHTS_LAST = True``
        w, and dL/dw, may lie channels last, too.
    """

    NAME: str

    def declines(self, problem: Problem) -> str | None:
        """Why this algorithm does not compute ``problem``, or None if it does."""

    def workspace(self, problem: Problem) -> int:
        """Bytes it allocates beside inputs and output."""

    def blocking(self, problem: Problem) -> str:
        """How it cuts the problem, in words: tile, blocks, pieces, threads."""

    def share(self, problem: Problem) -> float:
        """The least time that the machine's limits allow over the one expected; see :mod:`konv.engine.roofline`.

        An algorithm whose share may be more than 1 says why in ``BEYOND``.
        """

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
        """Write y = conv(x, w) + b into ``out``."""

    def input_gradient(self, dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
        """Write dL/dx into ``out``."""

    def weight_gradient(self, dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
        """Write dL/dw into ``out``."""


@functools.cache
def algorithms() -> list[Algorithm]:
    """The table, asked from the top; the last takes everything. Imported when first asked: LLVM takes a while."""
    from konv.engine import columns
    from konv.engine.direct import direct
    from konv.engine.fourier import fourier, fourier_groups
    from konv.engine.groups import depthwise_paired, grouped, small_groups, small_planes
    from konv.engine.machine import machine
    from konv.engine.products import pairs, products, products_last, repeats
    from konv.engine.stems import folded, joined, strips, strips_last
    from konv.engine.winograd import winograd, winograd_groups, winograd_rows, winograd_small, winograd_strided

    if not machine().fused:  # a CPU of before 2013: its BLAS is faster than kernels made of calls
        return [cast(Algorithm, columns)]
    few = winograd_rows, winograd_small, winograd_groups, small_groups, depthwise_paired, small_planes, grouped
    modules = (
        pairs,
        repeats,
        products,
        products_last,
        fourier,
        fourier_groups,
        strips,
        strips_last,
        folded,
        joined,
        *few,
        winograd_strided,
        winograd,
        direct,
        columns,
    )
    return [cast(Algorithm, module) for module in modules]


@dataclass(frozen=True)
class Plan:
    """How a problem will be computed. ``print`` it.

    Attributes
    ----------
    problem : Problem
    algorithm : the one that computes it
    workspace : int, bytes allocated beside inputs and output
    passed_over : tuple of (name, reason), the algorithms asked before it
    blocking : str, how the algorithm cuts the problem: tile, blocks, pieces, threads
    limit : "multiply-add" or "memory", whichever takes longer: the formula's operations, or reading x and w and writing y
    share : float, of that limit, that is expected to be reached: from shapes and figures measured once, not from this
        machine; within a factor of 1.3 for most layers. More than 1 where an algorithm multiplies less than the formula
    """

    problem: Problem
    algorithm: Algorithm
    passed_over: tuple[tuple[str, str], ...]

    @property
    def workspace(self) -> int:
        """See above: with as many threads as there are now."""
        return self.algorithm.workspace(self.problem)

    @property
    def blocking(self) -> str:
        """See above."""
        return self.algorithm.blocking(self.problem)

    @property
    def limit(self) -> str:
        """See above."""
        from konv.engine.roofline import binds

        return binds(self.problem)

    @property
    def share(self) -> float:
        """See above."""
        return self.algorithm.share(self.problem)

    def __str__(self) -> str:
        g, share = self.problem.geometry, self.share
        beyond = f": {getattr(self.algorithm, 'BEYOND', '')}" if share > 1 else ""
        lines = [
            f"{self.problem.kind} of x {g.x_shape}, w {g.w_shape} -> y {g.output_shape}, {self.problem.dtype}"
            + (", channels last" if self.problem.layout == "last" else ""),
            f"algorithm    {self.algorithm.NAME}",
            f"work         {g.flops:,} FLOP on {g.bytes:,} bytes",
            f"workspace    {self.workspace:,} bytes",
            f"blocking     {self.blocking}",
            f"expected     {share:.0%} of the {self.limit} limit{beyond}",
        ]
        lines += [f"passed over  {name}: {reason}" for name, reason in self.passed_over]
        return "\n".join(lines)


def algorithm_for(kind: str, g: Geometry, dtype: str, layout: str) -> Algorithm:
    """Who computes a problem, found at once where it was asked before."""
    return _algorithm_for(kind, g, dtype, layout, exact(), _preferred)


def on_addresses(kind: str, g: Geometry, dtype: str, layout: str, threads: int) -> OnAddresses | None:
    """The computation by who computes a problem, on so many threads; None where that looks at arrays."""
    return _on_addresses(kind, g, dtype, layout, exact(), _preferred, threads)


def choose(problem: Problem) -> Plan:
    """The plan for ``problem``: deterministic, nothing is timed.

    Raises
    ------
    LookupError
        Every algorithm of the table declined (the shipped table's last never does).
    """
    return _choose(problem, _preferred)


@contextlib.contextmanager
def prefer(name: str) -> Iterator[None]:
    """For experiments: inside this context the algorithm called ``name`` computes whatever it does not decline.

    Raises
    ------
    ValueError
        There is no such algorithm.

    Examples
    --------
    >>> with prefer("columns"):
    ...     plan((1, 1, 9), (1, 1, 3)).algorithm.NAME
    'columns'
    """
    global _preferred
    names = [algorithm.NAME for algorithm in algorithms()]
    if name not in names:
        raise ValueError(f"name={name!r}: expected one of {', '.join(map(repr, names))}")
    before, _preferred = _preferred, name
    try:
        yield
    finally:
        _preferred = before


def forget() -> None:
    """Plan anew: after a change of :func:`algorithms`."""
    global _forgotten
    _forgotten += 1
    _choose.cache_clear()
    _algorithm_for.cache_clear()
    _on_addresses.cache_clear()


_preferred: str | None = None
_forgotten = 0  # times


@functools.lru_cache(maxsize=1024)
def _algorithm_for(kind: str, g: Geometry, dtype: str, layout: str, exact: bool, preferred: str | None) -> Algorithm:
    return _choose(Problem(kind, g, dtype, exact, layout), preferred).algorithm


@functools.lru_cache(maxsize=1024)
def _on_addresses(
    kind: str, g: Geometry, dtype: str, layout: str, exact: bool, preferred: str | None, threads: int
) -> OnAddresses | None:
    make = getattr(_algorithm_for(kind, g, dtype, layout, exact, preferred), "on_addresses", None)
    if make is None or not g.batch:
        return None
    with using(threads):
        return make(Problem(kind, g, dtype, exact, layout))


@functools.lru_cache(maxsize=1024)
def _choose(problem: Problem, preferred: str | None) -> Plan:
    passed_over: list[tuple[str, str]] = []
    for algorithm in sorted(algorithms(), key=lambda algorithm: preferred != algorithm.NAME):
        reason = algorithm.declines(problem)
        if reason is None:
            return Plan(problem, algorithm, tuple(passed_over))
        passed_over.append((algorithm.NAME, reason))
    raise LookupError(f"no algorithm computes {problem}: {passed_over}")


@names_told
def plan(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    kind: str = "forward",
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    dtype: Any = np.float32,
    layout: str = "first",
) -> Plan:
    """How konv would compute a convolution of these shapes, without computing it.

    Parameters
    ----------
    x_shape, w_shape, stride, padding, dilation, groups, dtype : as for :func:`konv.geometry`
    kind : "forward", "input_gradient" or "weight_gradient"
    layout : "first" for arrays that are (N, C, *spatial) in memory, "last" for (N, *spatial, C)

    Raises
    ------
    TypeError, ValueError
        As :func:`konv.geometry`; and for an unknown ``kind`` or ``layout``, or a dtype that is not floating point.

    Examples
    --------
    >>> print(plan((8, 64, 56, 56), (64, 64, 3, 3), padding=1))
    forward of x (8, 64, 56, 56), w (64, 64, 3, 3) -> y (8, 64, 56, 56), float32
    algorithm    winograd
    work         1,849,688,064 FLOP on 12,992,512 bytes
    workspace    ... bytes
    blocking     tiles of 4 x 4 outputs; blocks of ...
    expected     ...% of the multiply-add limit: few products stand for many of the formula's
    passed over  pairs: float32; it multiplies pairs of bfloat16
    passed over  repeats: it computes layers of one axis and one group, channels first
    passed over  products: windows see padding
    passed over  ...
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(map(repr, LAYOUTS))}")
    if np.dtype(dtype).name not in FLOAT_TYPES:
        raise TypeError(f"dtype={np.dtype(dtype)}: konv computes in {', '.join(FLOAT_TYPES)}")
    g = geometry(x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=dtype)
    return choose(problem(kind, g, np.dtype(dtype).name, layout))
