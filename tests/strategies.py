"""What the property tests draw: shapes that fit, element types, memory layouts, and small integers to fill them with.

Whatever is drawn is valid; wrong input stands in ``test_bad_input.py``. Shapes are drawn from the window outwards: kernel
and dilation first, then padding, then a length that the window fits. Values are small integers, so that every partial
sum is exact in float32 and results can be compared exactly.
"""

from dataclasses import asdict, dataclass, replace

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), BFLOAT16)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Case:
    """The arguments of one convolution (or, with ``output_padding``, of one transposed convolution)."""

    x_shape: tuple
    w_shape: tuple
    bias: bool
    stride: object
    padding: object
    dilation: object
    groups: int
    padding_mode: str = "zeros"
    output_padding: object = None

    @property
    def options(self):
        """The keyword arguments of ``konv.conv`` (of ``konv.conv_transpose``)."""
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if self.output_padding is not None:
            return {**options, "output_padding": self.output_padding}
        return {**options, "padding_mode": self.padding_mode}

    @property
    def filters(self):
        return self.w_shape[1] * self.groups if self.output_padding is not None else self.w_shape[0]

    def arrays(self, rng, dtype=np.float64):
        """x, w and b (or None) of small integers."""
        b = integers(rng, (self.filters,), dtype) if self.bias else None
        return integers(rng, self.x_shape, dtype), integers(rng, self.w_shape, dtype), b


@dataclass(frozen=True)
class Window:
    """The arguments of one pooling, unfold or fold."""

    x_shape: tuple
    kernel_size: object
    stride: object
    padding: object
    dilation: object

    @property
    def options(self):
        return {name: value for name, value in asdict(self).items() if name != "x_shape"}


seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)


def integers(rng, shape, dtype=np.float64, limit=3):
    """Whole numbers from -limit to limit."""
    return rng.integers(-limit, limit + 1, shape).astype(dtype)


@st.composite
def int_or_axes(draw, axes, low, high):
    """An int for all axes, or a tuple or list with one for each."""
    if draw(st.booleans()):
        return draw(st.integers(low, high))
    return draw(st.sampled_from([tuple, list]))(draw(st.integers(low, high)) for _ in range(axes))


@st.composite
def paddings(draw, axes, high=3, names=("valid", "same", "same_lower", "causal")):
    """Every form that ``padding`` takes."""
    names = [name for name in names if name != "causal" or axes == 1]
    form = draw(st.sampled_from(["int", "axes", "pairs", "pairs", *names]))
    amount = st.integers(0, high)
    if form == "int":
        return draw(amount)
    if form == "axes":
        return tuple(draw(amount) for _ in range(axes))
    if form == "pairs":
        return tuple((draw(amount), draw(amount)) for _ in range(axes))
    return form


@st.composite
def convolutions(draw, axes=None, modes=("zeros",), min_batch=0):
    """A :class:`Case` of ``konv.conv``: dense, grouped or depthwise."""
    axes = axes or draw(st.integers(1, 3))
    mode = draw(st.sampled_from(modes))
    kernel = [draw(st.integers(1, 4 if axes < 3 else 3)) for _ in range(axes)]
    stride, dilation = draw(int_or_axes(axes, 1, 3)), draw(int_or_axes(axes, 1, 3))
    padding = draw(paddings(axes))
    spatial = [
        _length(draw, window, pair, mode)
        for window, pair in zip(windows(kernel, dilation), _least_pairs(padding, kernel, stride, dilation))
    ]
    groups, per_group, filters = draw(channel_counts())
    return Case(
        (draw(st.integers(min_batch, 3)), groups * per_group, *spatial),
        (groups * filters, per_group, *kernel),
        draw(st.booleans()), stride, padding, dilation, groups, mode,
    )  # fmt: skip


@st.composite
def transposed_convolutions(draw, axes=None, min_batch=0):
    """A :class:`Case` of ``konv.conv_transpose``."""
    axes = axes or draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4 if axes < 3 else 3)) for _ in range(axes)]
    stride, dilation = draw(int_or_axes(axes, 1, 3)), draw(int_or_axes(axes, 1, 3))
    padding = draw(paddings(axes, high=2, names=("valid",)))
    strides, dilations = spread(stride, axes), spread(dilation, axes)
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations))
    spatial = []
    for window, s, e, pair in zip(windows(kernel, dilation), strides, extra, pairs_of(padding, axes)):
        shortest = max(1, -((window + e - sum(pair) - 1) // s) + 1)  # (L - 1) * s - low - high + window + e >= 1
        spatial.append(draw(st.integers(shortest, shortest + 3)))
    groups, per_group, filters = draw(channel_counts())
    return Case(
        (draw(st.integers(min_batch, 3)), groups * per_group, *spatial),
        (groups * per_group, filters, *kernel),
        draw(st.booleans()), stride, padding, dilation, groups, output_padding=extra,
    )  # fmt: skip


@st.composite
def sliding_windows(draw, axes=None, min_batch=0, pooling=True):
    """A :class:`Window`; for pooling no window sees padding alone, and ``stride`` may be None."""
    axes = axes or draw(st.integers(1, 3))
    kernel_size = draw(int_or_axes(axes, 1, 4 if axes < 3 else 3))
    kernel = spread(kernel_size, axes)
    dilation = draw(int_or_axes(axes, 1, 2))
    stride = draw(st.none() | int_or_axes(axes, 1, 3)) if pooling else draw(int_or_axes(axes, 1, 3))
    padding, spatial = [], []
    for k, d, window in zip(kernel, spread(dilation, axes), windows(kernel, dilation)):
        # At least one tap of the first and of the last window stays inside.
        most = (k - 1) * d if pooling else 3
        pair = (draw(st.integers(0, min(most, 3))), draw(st.integers(0, min(most, 3))))
        shortest = max(1, window - sum(pair), d if pooling else 1)
        padding.append(pair)
        spatial.append(draw(st.integers(shortest, shortest + 5)))
    shape = (draw(st.integers(min_batch, 3)), draw(st.integers(1, 3)), *spatial)
    return Window(shape, kernel_size, stride, tuple(padding), dilation)


@st.composite
def channel_counts(draw):
    """(groups, channels in a group, filters in a group): dense, grouped, depthwise."""
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise"]))
    if kind == "dense":
        return 1, draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups = draw(st.integers(2, 4))
    return groups, 1 if kind == "depthwise" else draw(st.integers(1, 3)), draw(st.integers(1, 2))


def without_bias(case):
    return replace(case, bias=False)


def spread(value, axes):
    """An int or a sequence as a tuple with one entry for each axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


def windows(kernel, dilation):
    return [d * (k - 1) + 1 for k, d in zip(kernel, spread(dilation, len(kernel)))]


def pairs_of(padding, axes):
    """Numeric padding (or "valid") as (low, high) pairs."""
    if padding == "valid":
        return [(0, 0)] * axes
    return [(p, p) if isinstance(p, int) else tuple(p) for p in spread(padding, axes)]


def _least_pairs(padding, kernel, stride, dilation):
    """The padding that is there at any length: of "same" the most that a mode must be able to add."""
    if padding in ("same", "same_lower"):
        return [None] * len(kernel)
    if padding == "causal":
        return [(windows(kernel, dilation)[0] - 1, 0)]
    return pairs_of(padding, len(kernel))


def _length(draw, window, pair, mode):
    if pair is None:  # "same": up to window - 1 cells in all, the larger part on one side
        shortest, widest = 1, (window - 1) - (window - 1) // 2
    else:
        shortest, widest = max(1, window - sum(pair)), max(pair)
    if mode == "reflect":
        shortest = max(shortest, widest + 1)
    if mode == "circular":
        shortest = max(shortest, widest)
    return draw(st.integers(shortest, shortest + 5))


def _larger(array, step):
    """``array`` cut out of a NaN-filled one, every ``step``-th cell of the last axis."""
    shape = [n + 2 for n in array.shape]
    shape[-1] = array.shape[-1] * abs(step) + 2
    larger = np.full(shape, np.nan, array.dtype)
    inside = tuple(slice(1, 1 + n) for n in array.shape[:-1])
    view = larger[(*inside, slice(1, 1 + array.shape[-1] * abs(step), abs(step)))]
    view = view[..., ::-1] if step < 0 else view
    view[...] = array
    return view


def _reversed(array):
    whole = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[whole])[whole]


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _byte_swapped(array):
    swapped = array.dtype.newbyteorder("S")
    return array.copy() if swapped == array.dtype else array.astype(swapped)


def _unaligned(array):
    buffer = np.empty(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _repeated(array):
    """Stride 0: the first entry of axis 0 (and of the last axis, where there is one more) stands for all of them."""
    if 0 in array.shape:
        return array.copy()
    cut = array[:1] if array.ndim == 1 else array[:1, ..., :1]
    return np.broadcast_to(cut, array.shape)


LAYOUTS = {
    "C": np.ndarray.copy,
    "Fortran": lambda a: np.array(a, order="F"),
    "channels last": lambda a: np.moveaxis(
        np.ascontiguousarray(np.moveaxis(a, min(1, a.ndim - 1), -1)), -1, min(1, a.ndim - 1)
    ),
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1),
    "slice": lambda a: _larger(a, 1),
    "every second": lambda a: _larger(a, 2),
    "negative strides": lambda a: _larger(a, -2),
    "reversed": _reversed,
    "read-only": _read_only,
    "byte-swapped": _byte_swapped,
    "unaligned": _unaligned,
    "repeated": _repeated,
}
"""From a name to a function that gives an array in that memory layout: equal to its argument, but for "repeated"."""

WRITABLE_LAYOUTS = tuple(name for name in LAYOUTS if name not in ("read-only", "byte-swapped", "repeated"))
layouts = st.sampled_from(sorted(LAYOUTS))


def plain(array):
    """A C-contiguous float64 copy: what the oracles are given."""
    return None if array is None else np.array(array, np.float64, order="C")
