"""Dropout."""

import math

import numpy as np
import pytest

from konv.gradcheck import gradcheck
from konv.layers.dropout import Dropout
from layer_cases import normal


def test_dropout_training_and_inference():
    dropout = Dropout(0.25, rng=3)
    x = 1 + np.abs(normal(20, 50))
    y = dropout.forward(x)
    expected = np.random.default_rng(3).random(x.shape) > 0.25
    assert np.array_equal(dropout.mask, expected)
    assert np.array_equal(y, x * expected)
    assert np.array_equal(dropout.backward(x), x * expected)
    dropout.eval()
    assert np.array_equal(dropout.forward(x), 0.75 * x)


def test_train_flg_overrides_the_mode():
    dropout = Dropout(0.5, rng=0)
    x = np.ones((4, 4))
    assert np.array_equal(dropout.forward(x, False), 0.5 * x)
    with pytest.raises(RuntimeError):
        dropout.backward(x)
    dropout.eval()
    y = dropout.forward(x, train_flg=True)
    assert set(np.unique(y)) == {0.0, 1.0}
    assert np.array_equal(dropout.backward(x), y)
    assert np.array_equal(dropout.forward(x), 0.5 * x)


def test_dropout_keeps_the_share_it_says():
    n = 100_000
    kept = Dropout(0.3, rng=0).forward(np.ones(n)).sum()
    assert abs(kept - 0.7 * n) <= 5 * math.sqrt(n * 0.3 * 0.7)  # five standard deviations of the binomial


def test_dropout_of_nothing_is_the_identity():
    x = normal(30, 30)
    assert np.array_equal(Dropout(0.0).forward(x), x)
    assert np.array_equal(Dropout(0).eval().forward(x), x)


def test_dropouts_random_numbers_come_from_rng():
    x = np.ones((5, 40))
    dropout = Dropout(rng=1)
    first, second = dropout.forward(x), dropout.forward(x)
    assert not np.array_equal(first, second)
    dropout.rng = 1
    assert np.array_equal(dropout.forward(x), first)
    generator = np.random.default_rng(1)
    dropout.rng = generator
    assert dropout.rng is generator
    assert np.array_equal(Dropout(rng=np.int64(1)).forward(x), first)
    assert not np.array_equal(Dropout().forward(x), Dropout().forward(x))


def test_gradcheck_of_dropout_with_a_fixed_seed():
    class Seeded(Dropout):
        def forward(self, x, train_flg=None):
            self.rng = 5
            return super().forward(x, train_flg)

    result = gradcheck(Seeded(0.4), normal(6, 5))
    assert result, str(result)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dropout_ratio": 1.0}, ValueError, r"0 <= dropout_ratio < 1, got 1\.0"),
        ({"dropout_ratio": -0.1}, ValueError, r"got -0\.1"),
        ({"dropout_ratio": math.nan}, ValueError, "got nan"),
        ({"dropout_ratio": "half"}, TypeError, "dropout_ratio must be a number, got str"),
        ({"dropout_ratio": True}, TypeError, "got bool"),
        ({"rng": 0.5}, TypeError, "rng must be .* got float"),
        ({"rng": np.random.RandomState(0)}, TypeError, "rng must be .* got RandomState"),
        ({"rng": -3}, ValueError, "got -3"),
    ],
)
def test_dropout_arguments_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        Dropout(**arguments)
