"""How a sequence is cut into m segments: what each segment reads, what nothing reads, where padding is read instead.

The cut of ``DownConv`` is made by two convolutions whose stride is their kernel, so that their windows lie side by side::

    conv1a:  windows  = seq_len // k1                                    each reads k1 inputs
    conv2a:  k2       = ceil(seq_len / k1 / m_segments)
             padding  = ceil((k2 * m_segments - seq_len / k1) / 2)       windows of zeros added at both ends
             segments = (windows + 2 * padding - k2) // k2 + 1           each reads k2 windows

Two things follow that nobody asks for: the last ``seq_len % k1`` inputs are in no window, and a ``padding`` of ``k2`` or
more makes segments of zeros alone. And where ``m_segments > windows``, every second ``m_segments`` comes out one too many.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from konv.arguments import checked_integer

LARGEST = 2**48
"""Sizes beyond this are refused: no memory holds such a sequence, and floats begin to skip whole numbers."""

LARGEST_ARRAY = 2**31 - 1
"""Numbers in one weight, or in the output for one sequence: 8 GiB of float32, beyond any use of this layer."""

SEARCHED = 2_000  # values tried on each side of the user's, when an error or a warning names the nearest that work
SHOWN = 12  # rows of a printed cut


class SegmentWarning(UserWarning):
    """A ``DownConv`` works, but leaves inputs unread or has segments that see padding alone."""


@dataclass(frozen=True)
class Segments:
    """The cut of a sequence into segments. Made by :func:`segments`.

    Attributes
    ----------
    seq_len : int
        Length of the sequence.
    m_segments : int
        Segments asked for; :attr:`count` is the number that comes out.
    k1 : int
        Inputs in a window of conv1a.
    k2 : int
        Windows in a segment, the kernel of conv2a.
    padding : int
        Windows of zeros at each end.
    """

    seq_len: int
    m_segments: int
    k1: int
    k2: int
    padding: int

    @property
    def windows(self) -> int:
        """Number of windows, the outputs of conv1a: ``seq_len // k1``."""
        return self.seq_len // self.k1

    @property
    def count(self) -> int:
        """Number of segments that come out: ``(windows + 2 * padding - k2) // k2 + 1``."""
        return (self.windows + 2 * self.padding - self.k2) // self.k2 + 1

    @property
    def inputs(self) -> tuple[range, ...]:
        """For each segment the positions of the sequence that it reads (an empty range where it reads none)."""
        return tuple(range(self.k1 * first, self.k1 * last) for first, last in map(self._span, range(self.count)))

    @property
    def real_windows(self) -> tuple[int, ...]:
        """For each segment how many of its ``k2`` windows lie in the sequence; the others are padding."""
        return tuple(last - first for first, last in map(self._span, range(self.count)))

    @property
    def padding_share(self) -> tuple[float, ...]:
        """For each segment the share of its ``k2`` windows that is padding, from 0.0 to 1.0."""
        return tuple((self.k2 - real) / self.k2 for real in self.real_windows)

    @property
    def unread(self) -> range:
        """The positions that no segment reads: the tail ``seq_len % k1``, and windows left over behind the last segment.

        A cut that gives ``m_segments`` leaves no window over; other cuts are why it is computed.
        """
        _, last = self._span(self.count - 1)
        return range(self.k1 * last, self.seq_len)

    @property
    def padding_only(self) -> tuple[int, ...]:
        """The segments that see padding alone: their output is the bias of conv2a, whatever the sequence."""
        front, back = self._padding_ends()
        return (*front, *back)

    @property
    def even(self) -> bool:
        """Whether ``m_segments`` come out, every input is read, and every segment reads one."""
        return self.count == self.m_segments and not self.unread and not any(self._padding_ends())

    def _span(self, segment: int) -> tuple[int, int]:
        """First and last + 1 of the windows that a segment reads in the sequence."""
        start = segment * self.k2 - self.padding
        return min(max(start, 0), self.windows), min(max(start + self.k2, 0), self.windows)

    def _padding_ends(self) -> tuple[range, range]:
        """The segments that see padding alone, before and behind the sequence."""
        front = min(self.padding // self.k2, self.count)
        behind = -(-(self.padding + self.windows) // self.k2)
        return range(front), range(behind, self.count)

    def __str__(self) -> str:
        padding_only = " and ".join(_indexes(ends) for ends in self._padding_ends() if ends)
        lines = [
            f"sequence of {self.seq_len:,} -> {self.windows:,} windows of k1 = {self.k1:,} -> {self.count:,} segments of "
            f"k2 = {self.k2:,} windows (padding {self.padding:,})",
            f"{'segment':>9}  {'inputs':<24} {'windows':>14}  padding",
        ]
        for segment in range(self.count) if self.count <= SHOWN else (*range(SHOWN - 1), self.count - 1):
            if self.count > SHOWN and segment == self.count - 1:
                lines.append(f"{'...':>9}")
            first, last = self._span(segment)
            read = _indexes(range(self.k1 * first, self.k1 * last)) if first < last else "none"
            share = (self.k2 - last + first) / self.k2
            lines.append(f"{segment:>9,}  {read:<24} {f'{last - first:,} of {self.k2:,}':>14}  {share:7.1%}")
        lines.append(f"never read:    {_indexes(self.unread) if self.unread else 'no input'}")
        lines.append(f"padding alone: {padding_only or 'no segment'}")
        return "\n".join(lines)


def segments(seq_len: int, m_segments: int, k1: int) -> Segments:
    """Return how ``DownConv`` cuts a sequence. Integer arithmetic only: the length costs nothing.

    Parameters
    ----------
    seq_len : int
        Length of the sequence, at least ``k1``.
    m_segments : int
        Segments asked for, at least 1. A different number may come out (:attr:`Segments.count`); the layers refuse that.
    k1 : int
        Inputs in a window of the first convolution, at least 1.

    Raises
    ------
    TypeError
        An argument is not an integer (bool included).
    ValueError
        An argument is less than 1 or more than 2**48, or the sequence is shorter than one window.

    Notes
    -----
    ``k2`` and ``padding`` as in Zhu et al., "Progressive Self-Attention Network with Unsymmetrical Positional Encoding for
    Sequential Recommendation" (SIGIR 2022), Eq. 2, and its official code, which divides ``seq_len / k1`` in floating point.

    Examples
    --------
    >>> print(segments(50, 4, 10))
    sequence of 50 -> 5 windows of k1 = 10 -> 4 segments of k2 = 2 windows (padding 2)
      segment  inputs                          windows  padding
            0  none                             0 of 2   100.0%
            1  0 .. 19                          2 of 2     0.0%
            2  20 .. 39                         2 of 2     0.0%
            3  40 .. 49                         1 of 2    50.0%
    never read:    no input
    padding alone: 0
    >>> segments(205, 4, 10).unread
    range(200, 205)
    >>> segments(50, 6, 10).count
    7
    """
    seq_len = _length("seq_len", seq_len)
    m_segments = _length("m_segments", m_segments)
    k1 = _length("k1", k1)
    if seq_len < k1:
        raise ValueError(
            f"seq_len={seq_len} is shorter than one window of the first convolution, k1={k1}: seq_len // k1 windows must be "
            f"at least 1.{_nearest(seq_len, m_segments, k1, _right_count)}"
        )
    return _cut(seq_len, m_segments, k1)


def down_conv_segments(
    seq_len: int, hidden_size: int, m_segments: int, k1: int, channel_reduction: int, *, stacklevel: int = 4
) -> Segments:
    """Check the arguments of a ``DownConv``, NumPy's or PyTorch's, and return its cut. Nothing is allocated.

    Parameters
    ----------
    seq_len, hidden_size, m_segments, k1, channel_reduction : int
        As ``DownConv`` takes them.
    stacklevel : int
        As for :func:`warnings.warn`; 4 shows the line that calls the caller through :func:`konv.names.names_told`.

    Raises
    ------
    TypeError
        An argument is not an integer (bool included).
    ValueError
        As :func:`segments`; ``m_segments`` is not what would come out; ``hidden_size // channel_reduction`` is 0; or a
        weight would have more than 2**31 - 1 numbers.

    Warns
    -----
    SegmentWarning
        Inputs stay unread, or segments see padding alone.

    Examples
    --------
    >>> down_conv_segments(200, 64, 4, 10, 16)
    Segments(seq_len=200, m_segments=4, k1=10, k2=5, padding=0)
    """
    hidden_size = _length("hidden_size", hidden_size)
    channel_reduction = _length("channel_reduction", channel_reduction)
    cut = segments(seq_len, m_segments, k1)
    channels = hidden_size // channel_reduction
    if not channels:
        raise ValueError(
            f"hidden_size={hidden_size} is less than channel_reduction={channel_reduction}: the hidden_size // "
            f"channel_reduction channels between the convolutions must be at least 1. Nearest that work: "
            f"hidden_size={channel_reduction}, or channel_reduction={hidden_size}."
        )
    if cut.count != cut.m_segments:
        raise ValueError(
            f"seq_len={cut.seq_len}, m_segments={cut.m_segments}, k1={cut.k1} would give {cut.count} segments, not "
            f"{cut.m_segments}: (seq_len // k1 + 2 * padding - k2) // k2 + 1 = ({cut.windows} + 2 * {cut.padding} - {cut.k2}) "
            f"// {cut.k2} + 1 = {cut.count}.{_nearest(cut.seq_len, cut.m_segments, cut.k1, _right_count)}"
        )
    for name, shape in (
        ("conv1a.weight", (channels, hidden_size, cut.k1)),
        ("conv2a.weight", (hidden_size, channels, cut.k2)),
        ("the output for one sequence", (cut.m_segments, hidden_size)),
    ):
        if math.prod(shape) > LARGEST_ARRAY:
            raise ValueError(
                f"{name} would have shape {shape}, {math.prod(shape):,} numbers; at most 2**31 - 1 are allowed "
                f"(seq_len={cut.seq_len}, hidden_size={hidden_size}, m_segments={cut.m_segments}, k1={cut.k1}, "
                f"channel_reduction={channel_reduction})"
            )
    if not cut.even:
        warnings.warn(_defects(cut), SegmentWarning, stacklevel=stacklevel)
    return cut


def check_input(shape: Sequence[int], cut: Segments, hidden_size: int, name: str = "x") -> None:
    """Check the shape of the input of a ``DownConv``; ``name`` is the argument that the messages speak of.

    Raises
    ------
    ValueError
        ``shape`` is not (B, cut.seq_len, hidden_size).

    Examples
    --------
    >>> check_input((8, 190, 64), segments(200, 4, 10), 64)
    Traceback (most recent call last):
    ...
    ValueError: x has shape (8, 190, 64): its length is 190, but this DownConv was built for (B, seq_len, hidden_size) = \
(B, 200, 64). Pad or cut x to 200, or build a DownConv with seq_len=190.
    """
    shape = tuple(shape)
    if len(shape) == 3 and shape[1:] == (cut.seq_len, hidden_size):
        return
    built = f"this DownConv was built for (B, seq_len, hidden_size) = (B, {cut.seq_len}, {hidden_size})"
    if shape == (cut.seq_len, hidden_size):
        raise ValueError(f"{name} has shape {shape}, but {built}; for one sequence pass {name}[None]")
    if len(shape) != 3:
        raise ValueError(f"{name} has shape {shape}, {len(shape)} axes, but {built}")
    if shape[1:] == (hidden_size, cut.seq_len):
        raise ValueError(f"{name} has shape {shape}, but {built}: swap the last two axes of {name}")
    if shape[2] != hidden_size:
        raise ValueError(f"{name} has shape {shape}: its last axis is {shape[2]}, but {built}")
    raise ValueError(
        f"{name} has shape {shape}: its length is {shape[1]}, but {built}. Pad or cut {name} to {cut.seq_len}, or build a "
        f"DownConv with seq_len={shape[1]}."
    )


def _cut(seq_len: int, m_segments: int, k1: int) -> Segments:
    middle = seq_len / k1  # a float, as in the original; whole numbers give the same while all three are below 2**26
    k2 = math.ceil(middle / m_segments)
    return Segments(seq_len, m_segments, k1, k2, math.ceil((k2 * m_segments - middle) / 2.0))


def _length(name: str, value: int) -> int:
    number = checked_integer(name, value, 1)
    if number > LARGEST:
        raise ValueError(f"{name}={number}: must be at most 2**48 = {LARGEST}; no memory holds more")
    return number


def _right_count(cut: Segments) -> bool:
    return cut.count == cut.m_segments


def _defects(cut: Segments) -> str:
    """What a cut that works leaves to be desired, and the nearest without it."""
    said = []
    if cut.unread:
        said.append(
            f"the last {len(cut.unread):,} of the {cut.seq_len:,} inputs ({_indexes(cut.unread)}) are never read: "
            f"seq_len % k1 = {cut.seq_len} % {cut.k1} = {cut.seq_len % cut.k1}"
        )
    front, back = cut._padding_ends()
    if front or back:
        where = " and ".join(_indexes(ends) for ends in (front, back) if ends)
        said.append(
            f"{len(front) + len(back):,} of the {cut.count:,} segments (index {where}) would see padding alone, the same for "
            f"every sequence: padding = {cut.padding} >= k2 = {cut.k2}"
        )
    return (
        f"DownConv with seq_len={cut.seq_len}, m_segments={cut.m_segments}, k1={cut.k1}: {'; and '.join(said)}."
        f"{_nearest(cut.seq_len, cut.m_segments, cut.k1, lambda other: other.even, 'without')}"
    )


def _nearest(seq_len: int, m_segments: int, k1: int, good: Callable[[Segments], bool], that: str = "that work") -> str:
    """A sentence with the nearest values of each argument, the others as they are, whose cut is good."""
    windows = seq_len // k1
    tried = {
        # Only whole windows count: a multiple of k1, or one less where a shorter tail is allowed.
        "seq_len": (
            (length for n in range(windows, 0, -1) for length in (n * k1, n * k1 - 1) if length < seq_len),
            itertools.chain(
                itertools.islice((n * k1 for n in itertools.count(windows + 1)), SEARCHED),
                (-(-seq_len // (m_segments * k1)) * m_segments * k1,),  # a multiple of both is always even
            ),
        ),
        # Beyond the number of windows some segment always sees padding alone.
        "m_segments": (
            itertools.chain((m_segments - 1,), range(min(m_segments - 2, windows), 0, -1)),
            itertools.chain((m_segments + 1,), range(m_segments + 2, windows + 1)),
        ),
        "k1": (range(min(k1 - 1, seq_len), 0, -1), range(k1 + 1, seq_len + 1)),
    }
    given = {"seq_len": seq_len, "m_segments": m_segments, "k1": k1}
    found = []
    for name, sides in tried.items():
        values = []
        for side in sides:
            for value in itertools.islice(side, SEARCHED + 1):
                other = given | {name: value}
                if other["m_segments"] >= 1 and 1 <= other["k1"] <= other["seq_len"] <= LARGEST and good(_cut(**other)):
                    values.append(str(value))
                    break
        if values:
            found.append(f"{name}={' or '.join(values)}")
    return f" Nearest {that}: {'; '.join(found)}." if found else ""


def _indexes(indexes: range) -> str:
    return f"{indexes[0]:,} .. {indexes[-1]:,}" if len(indexes) > 1 else f"{indexes[0]:,}"
