"""The register tile: the multiply that most of the engine's time is spent in.

::

    sums[p, f] = start[p, f] + sum over k < taps of  x[offsets[k] + p] * panel[k, f]      f in lanes, p a pixel

A tile is a few *runs* of neighbouring pixels that begin at any places of ``x``, so that short rows (7 pixels) fill it too, times
one, two, three or five vectors of filters. All of it stays in registers while k runs; one step reads each of the pixels
into all lanes (which is part of the multiply-add where it can be) and the filters as vectors. With two vectors it reaches
98 % of the limit of the multiply-add units where ``taps`` is 144 or more, 86 % at 27; with one 81 to 85 %, with five 90 to
95 %. docs/engine.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from konv.engine.simd import Variable, fma, loop, pinned, splat


@dataclass(frozen=True)
class Tile:
    """The shape of a tile: ``runs`` of ``run`` pixels, times ``vectors`` of ``lanes`` filters."""

    lanes: int
    vectors: int
    runs: int
    run: int

    @property
    def filters(self) -> int:
        """The filters of a tile."""
        return self.lanes * self.vectors


def multiply(
    tile: Tile,
    panel: Any,
    offsets: Any,
    taps: Any,
    pixels: list[Any],
    step: Any,
    start: Any,
    start_step: Any,
    sums: list[Any],
    sums_step: Any,
) -> None:
    """Compute one tile.

    Parameters
    ----------
    panel : (taps, filters), contiguous
    offsets : int64, where the pixels of tap k lie
    pixels : where each run begins; its pixels are ``step`` apart
    start : what is added to, for each run: filters of pixels ``start_step`` apart; 0 repeats one
    sums : where the results go, for each run, ``sums_step`` apart
    """
    lanes = tile.lanes
    totals = [[[Variable(panel.zero(lanes)) for _ in range(tile.vectors)] for _ in range(tile.run)] for _ in pixels]
    for k in loop(taps):
        filters = [panel.vec(k * tile.filters + lanes * j, lanes) for j in range(tile.vectors)]
        offset = offsets[k]
        for run, at in zip(totals, pixels):
            cells = at.at(offset)
            for i, pixel in enumerate(run):
                value = splat(cells[step * i], lanes)
                for total, row in zip(pixel, filters):
                    total.set(pinned(fma(value, row, total.get())))
    for run, source, target in zip(totals, start, sums):
        for i, pixel in enumerate(run):
            for j, total in enumerate(pixel):
                target.put(sums_step * i + lanes * j, source.vec(start_step * i + lanes * j, lanes) + total.get())
