"""The cut of a sequence against counting, the numbers that errors and warnings offer, and bad input."""

import itertools
import math
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest

from konv.segments import Segments, SegmentWarning, check_input, down_conv_segments, segments

# Every length to 40 with every k1 to 9 that fits and every m to 12: 3,888 configurations, 1,200 of them cut wrongly.
GRID = [(length, m, k1) for length in range(1, 41) for k1 in range(1, min(length, 9) + 1) for m in range(1, 13)]


def counted(seq_len, m_segments, k1):
    """The cut by laying out windows one after the other, as the two convolutions do: (k2, padding, inputs, real, unread)."""
    middle = Fraction(seq_len, k1)
    k2 = math.ceil(middle / m_segments)
    padding = math.ceil((k2 * m_segments - middle) / 2)
    windows, start = [], 0
    while start + k1 <= seq_len:
        windows.append(list(range(start, start + k1)))
        start += k1
    padded = [None] * padding + windows + [None] * padding
    inputs, real, start = [], [], 0
    while start + k2 <= len(padded):
        seen = [window for window in padded[start : start + k2] if window is not None]
        inputs.append([position for window in seen for position in window])
        real.append(len(seen))
        start += k2
    read = {position for positions in inputs for position in positions}
    return k2, padding, inputs, real, [position for position in range(seq_len) if position not in read]


def works(seq_len, m_segments, k1, evenly=False):
    """Whether a DownConv can be built, and (``evenly``) without a warning, by counting."""
    if min(seq_len, m_segments, k1) < 1 or seq_len < k1:
        return False
    _, _, _, real, unread = counted(seq_len, m_segments, k1)
    return len(real) == m_segments and not (evenly and (unread or 0 in real))


def offered(message):
    """The values that a message offers: {"seq_len": [40, 60], ...}."""
    nearest = message.split("Nearest", 1)[1]
    return {
        name: [int(v) for v in values.split(" or ")] for name, values in re.findall(r"(\w+)=(\d+(?: or \d+)?)", nearest)
    }


def test_the_grid_equals_counting():
    assert len(GRID) >= 2_000
    wrong = 0
    for arguments in GRID:
        k2, padding, inputs, real, unread = counted(*arguments)
        cut = segments(*arguments)
        assert (cut.k2, cut.padding, cut.count) == (k2, padding, len(real)), arguments
        assert [list(positions) for positions in cut.inputs] == inputs, arguments
        assert list(cut.real_windows) == real, arguments
        assert cut.padding_share == tuple(1 - Fraction(n, k2) for n in real) or np.allclose(
            cut.padding_share, [1 - n / k2 for n in real], rtol=0, atol=1e-15
        )
        assert list(cut.unread) == unread, arguments
        assert list(cut.padding_only) == [segment for segment, n in enumerate(real) if n == 0], arguments
        assert cut.windows == arguments[0] // arguments[2]
        assert cut.even == (len(real) == arguments[1] and not unread and 0 not in real), arguments
        wrong += len(real) != arguments[1]
    assert wrong > 1_000


def test_the_grid_equals_what_two_convolutions_read(request):
    torch = pytest.importorskip("torch")
    conv1d = torch.nn.functional.conv1d
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)  # the convolutions are tiny
    for seq_len, m, k1 in GRID[::3]:
        cut = segments(seq_len, m, k1)
        one_hot = torch.eye(seq_len)[:, None, :]  # a batch of sequences, the i-th of which is 1 at i
        windows = conv1d(one_hot, torch.ones(1, 1, k1), stride=k1)
        read = conv1d(windows, torch.ones(1, 1, cut.k2), stride=cut.k2, padding=cut.padding)[:, 0].numpy()
        expected = np.zeros((seq_len, cut.count))
        for segment, positions in enumerate(cut.inputs):
            expected[list(positions), segment] = 1
        np.testing.assert_array_equal(read, expected, err_msg=str((seq_len, m, k1)))


def test_drawn_large_cuts_equal_counting_and_the_original_float_formula():
    rng = np.random.default_rng(0)
    for _ in range(300):
        k1 = int(rng.integers(1, 200))
        seq_len, m = k1 * int(rng.integers(1, 400)) + int(rng.integers(0, k1)), int(rng.integers(1, 300))
        cut = segments(seq_len, m, k1)
        middle = seq_len / k1
        k2 = math.ceil(middle / m)
        assert (cut.k2, cut.padding) == (k2, math.ceil((k2 * m - middle) / 2.0))
        k2, padding, _, real, unread = counted(seq_len, m, k1)
        assert (cut.k2, cut.padding, list(cut.real_windows), list(cut.unread)) == (k2, padding, real, unread)


def test_known_cuts():
    assert segments(200, 4, 10).even
    assert segments(50, 6, 10).count == 7
    cut = segments(50, 4, 10)
    assert cut.real_windows == (0, 2, 2, 1)
    assert cut.padding_only == (0,) and cut.padding_share == (1.0, 0.0, 0.0, 0.5)
    assert cut.inputs == (range(0, 0), range(0, 20), range(20, 40), range(40, 50))
    assert segments(205, 4, 10).unread == range(200, 205)


def test_windows_left_over_are_unread():
    cut = Segments(57, 2, 10, k2=2, padding=0)  # not a cut of DownConv's: five windows, two by two
    assert cut.count == 2 and cut.unread == range(40, 57) and not cut.even


def test_a_wrong_number_of_segments_is_refused_and_only_that():
    for seq_len, m, k1 in GRID:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SegmentWarning)
            if works(seq_len, m, k1):
                down_conv_segments(seq_len, 2, m, k1, 1)
            else:
                with pytest.raises(ValueError, match=f"m_segments={m}, k1={k1} would give {m + 1} segments, not {m}:"):
                    down_conv_segments(seq_len, 2, m, k1, 1)


def nearest(arguments, name, **kind):
    """The nearest working value of one argument on each side, by trying all to 160."""
    value = arguments[name]
    sides = (range(value - 1, 0, -1), range(value + 1, 160))
    found = [next((v for v in side if works(**(arguments | {name: v}), **kind)), None) for side in sides]
    return [v for v in found if v is not None]


@pytest.mark.parametrize("evenly", [False, True])
def test_messages_offer_exactly_the_nearest_that_work(evenly):
    tried = 0
    for seq_len, m, k1 in GRID[:: 11 if evenly else 5]:
        if works(seq_len, m, k1, evenly) or (evenly and not works(seq_len, m, k1)):
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                down_conv_segments(seq_len, 2, m, k1, 1)
                message = str(caught[0].message)
            except ValueError as error:
                message = str(error)
        arguments = {"seq_len": seq_len, "m_segments": m, "k1": k1}
        expected = {name: values for name in arguments if (values := nearest(arguments, name, evenly=evenly))}
        assert offered(message) == expected, (arguments, message)
        tried += 1
    assert tried > 50


def test_the_error_shows_the_formula_with_unequal_numbers():
    with pytest.raises(ValueError) as caught:
        down_conv_segments(71, 64, 12, 10, 16)
    message = str(caught.value)
    assert "seq_len=71, m_segments=12, k1=10 would give 13 segments, not 12" in message
    assert "(7 + 2 * 3 - 1) // 1 + 1 = 13" in message
    assert offered(message) == {"seq_len": [69, 80], "m_segments": [11, 13], "k1": [8, 11]}


def warned(*arguments):
    with pytest.warns(SegmentWarning) as caught:
        down_conv_segments(*arguments)
    assert len(caught) == 1
    assert caught[0].category is SegmentWarning and issubclass(SegmentWarning, UserWarning)
    return str(caught[0].message)


def test_the_warning_says_which_inputs_are_never_read():
    message = warned(205, 64, 4, 10, 16)
    assert "the last 5 of the 205 inputs (200 .. 204) are never read: seq_len % k1 = 205 % 10 = 5" in message
    assert "padding alone" not in message
    assert offered(message) == {"seq_len": [200, 210], "k1": [5]}


def test_the_warning_says_which_segments_see_padding_alone():
    message = warned(50, 64, 4, 10, 16)
    assert "1 of the 4 segments (index 0) would see padding alone" in message and "padding = 2 >= k2 = 2" in message
    assert "never read" not in message
    assert offered(message) == {"seq_len": [40, 60], "m_segments": [3, 5], "k1": [5]}
    assert "(index 0 .. 1 and 5 .. 6)" in warned(30, 64, 7, 10, 16)


def test_one_warning_tells_both():
    message = warned(52, 64, 4, 10, 16)
    assert "never read" in message and "padding alone" in message


def test_an_even_cut_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert down_conv_segments(200, 64, 4, 10, 16) == Segments(200, 4, 10, k2=5, padding=0)


GOOD = {"seq_len": 200, "hidden_size": 64, "m_segments": 4, "k1": 10, "channel_reduction": 16}
WRONG_TYPES = [True, np.True_, 4.0, "4", None, [4], (4,), np.array([4]), np.float64(4.0), 4 + 0j]


@pytest.mark.parametrize(("name", "value"), list(itertools.product(GOOD, WRONG_TYPES)))
def test_sizes_must_be_integers(name, value):
    with pytest.raises(TypeError, match=f"{name}="):
        down_conv_segments(**(GOOD | {name: value}))


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint64, np.array])
def test_integers_of_numpy_are_integers(kind):
    cut = segments(100, kind(4), kind(10))
    assert cut == segments(100, 4, 10)
    assert all(type(number) is int for number in (cut.m_segments, cut.k1, cut.k2, cut.padding, cut.count))


BAD_VALUES = [
    ({"seq_len": 0}, "seq_len=0: must be at least 1"),
    ({"seq_len": -200}, "seq_len=-200: must be at least 1"),
    ({"hidden_size": 0}, "hidden_size=0: must be at least 1"),
    ({"m_segments": 0}, "m_segments=0: must be at least 1"),
    ({"m_segments": -4}, "m_segments=-4: must be at least 1"),
    ({"k1": 0}, "k1=0: must be at least 1"),
    ({"channel_reduction": 0}, "channel_reduction=0: must be at least 1"),
    ({"channel_reduction": -1}, "channel_reduction=-1: must be at least 1"),
    ({"seq_len": 7}, "seq_len=7 is shorter than one window of the first convolution, k1=10"),
    ({"k1": 201}, "seq_len=200 is shorter than one window of the first convolution, k1=201"),
    ({"hidden_size": 15}, "hidden_size=15 is less than channel_reduction=16"),
    ({"hidden_size": 15}, "Nearest that work: hidden_size=16, or channel_reduction=15"),
    ({"channel_reduction": 65}, "hidden_size=64 is less than channel_reduction=65"),
    ({"seq_len": 50, "m_segments": 6}, "would give 7 segments, not 6"),
    ({"seq_len": 10**12}, "conv2a.weight would have shape (64, 4, 25000000000), 6,400,000,000,000 numbers"),
    ({"seq_len": 10**12, "k1": 10**11}, "conv1a.weight would have shape (4, 64, 100000000000)"),
    ({"hidden_size": 10**12}, "conv1a.weight would have shape (62500000000, 1000000000000, 10)"),
    ({"m_segments": 10**12}, "the output for one sequence would have shape (1000000000000, 64)"),
    ({"seq_len": 2**48 + 1}, "seq_len=281474976710657: must be at most 2**48"),
    ({"m_segments": 10**400}, "must be at most 2**48"),
    ({"k1": 10**30}, "must be at most 2**48"),
]


@pytest.mark.parametrize(("change", "words"), BAD_VALUES)
def test_bad_values_are_refused_in_words(change, words):
    with pytest.raises(ValueError) as caught:
        down_conv_segments(**(GOOD | change))
    assert words in str(caught.value)


def test_a_sequence_shorter_than_a_window_gets_an_offer_that_works():
    with pytest.raises(ValueError) as caught:
        segments(5, 4, 10)
    assert offered(str(caught.value)) == {"seq_len": [20], "k1": [2]}


def test_lengths_cost_nothing():
    cut = segments(10**12, 4, 10)
    assert cut.even and cut.inputs[3] == range(75 * 10**10, 10**12)
    message = warned(10**12 + 3, 16, 4, 10**6, 16)
    assert offered(message)["seq_len"] == [10**12, 10**12 + 10**6]
    cut = segments(2**48, 2**48, 1)
    assert cut.even and cut.count == 2**48
    assert len(str(cut).splitlines()) < 20


def test_far_from_any_even_cut_a_length_is_still_offered():
    with pytest.warns(SegmentWarning) as caught:
        down_conv_segments(10, 1, 10_002, 1, 1)
    assert offered(str(caught[0].message)) == {"seq_len": [10_002], "m_segments": [10]}


def test_hidden_size_need_not_be_a_multiple_of_the_reduction():
    assert down_conv_segments(200, 70, 4, 10, 16) == down_conv_segments(200, 64, 4, 10, 16)


def test_a_cut_prints_itself():
    lines = str(segments(52, 4, 10)).splitlines()
    assert lines[0] == "sequence of 52 -> 5 windows of k1 = 10 -> 4 segments of k2 = 2 windows (padding 2)"
    assert lines[2].split() == ["0", "none", "0", "of", "2", "100.0%"]
    assert lines[5].split() == ["3", "40", "..", "49", "1", "of", "2", "50.0%"]
    assert lines[6:] == ["never read:    50 .. 51", "padding alone: 0"]
    long = str(segments(1000, 50, 10)).splitlines()
    assert len(long) == 17 and long[13].strip() == "..."
    assert [line.split()[0] for line in long[2:13]] == [str(i) for i in range(11)] and long[14].split()[0] == "49"


def test_a_cut_is_a_frozen_value():
    cut = segments(200, 4, 10)
    assert cut == segments(200, 4, 10) and hash(cut) == hash(segments(200, 4, 10)) and cut != segments(200, 5, 10)
    with pytest.raises(AttributeError):
        cut.k2 = 3


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 190, 64), "length is 190, but this DownConv was built for (B, seq_len, hidden_size) = (B, 200, 64)"),
        ((2, 190, 64), "build a DownConv with seq_len=190"),
        ((2, 0, 64), "length is 0"),
        ((2, 200, 63), "last axis is 63"),
        ((2, 64, 200), "swap the last two axes of x"),
        ((200, 64), "pass x[None]"),
        ((200,), "1 axes"),
        ((), "0 axes"),
        ((2, 3, 200, 64), "4 axes"),
    ],
)
def test_another_input_shape_is_refused_in_words(shape, words):
    with pytest.raises(ValueError) as caught:
        check_input(shape, segments(200, 4, 10), 64)
    assert words in str(caught.value)
    assert f"shape {shape}" in str(caught.value)


def test_the_right_input_shape_passes_for_any_batch():
    for batch in (0, 1, 7):
        check_input((batch, 200, 64), segments(200, 4, 10), 64)
