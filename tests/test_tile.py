"""The register tile: its text in plain Python and compiled, against the sum it says."""

import numpy as np
import pytest

from compare import assert_equal
from konv.engine.tile import Tile, multiply
from strategies import integers
from texts import both

SHAPES = [
    Tile(16, 2, 2, 7),
    Tile(16, 2, 3, 4),
    Tile(16, 3, 2, 4),
    Tile(16, 1, 4, 7),
    Tile(8, 2, 2, 3),
    Tile(4, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", SHAPES, ids=str)
def test_a_tile(tile, dtype):
    def text(piece, slot, x, panel, offsets, sums, places, taps, step, pitch):
        runs = [places[i] for i in range(tile.runs)]
        targets = [sums.at(i * tile.run * pitch) for i in range(tile.runs)]
        multiply(tile, panel, offsets, taps, [x.at(place) for place in runs], step, targets, pitch, targets, pitch)

    rng = np.random.default_rng(0)
    pointers = {"x": dtype, "panel": dtype, "offsets": "int64", "sums": dtype, "places": "int64"}
    for taps, step in ((0, 1), (1, 1), (5, 2), (40, 1)):
        x, panel = integers(rng, (200,), dtype), integers(rng, (taps, tile.filters), dtype)
        offsets, places = rng.integers(0, 80, taps), rng.integers(0, 80, tile.runs)
        pitch = tile.filters + 3
        sums = integers(rng, (tile.runs * tile.run, pitch), dtype)
        cells = places[:, None] + step * np.arange(tile.run)
        expected = sums.copy()
        expected[:, : tile.filters] += x[cells.reshape(-1, 1) + offsets] @ panel
        arrays = dict(x=x, panel=panel.reshape(-1), offsets=offsets, sums=sums.reshape(-1), places=places)
        result = both(text, pointers, taps=taps, step=step, pitch=pitch, **arrays)
        assert_equal(result["sums"].reshape(sums.shape), expected)
