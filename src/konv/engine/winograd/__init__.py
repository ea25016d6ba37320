"""Winograd's algorithm: few products, of sums and differences, for many of the formula's. Kernels of two to five taps.

::

    winograd.py              any number of channels: its jobs     winograd_kernels.py   their kernels
    winograd_weights.py      the weight gradient                  winograd_outer.py     its kernels
    winograd_formulas.py     the schemes F(m, r), from their points
    winograd_axes.py         strides and long kernels as sums of short ones
    winograd_tiles.py        tiles between arrays and points
    winograd_cuts.py         how a convolution is cut into pieces, by the cost of each way
    winograd_groups.py       small groups, channels in lanes      winograd_groups_kernels.py   its kernels
    winograd_rows.py         small groups, rows in lanes           winograd_rows_kernels.py, winograd_rows_outer.py: its kernels
    winograd_rows_channels.py   the same, weights, channels in lanes
    winograd_small.py        small groups, tiles in lanes         winograd_small_kernels.py    its kernels
    winograd_strided.py      3 x 3 with stride 2, forward         winograd_strided_kernels.py  its kernels

Begin with the formulas. ``konv.set_exact(True)`` refuses all of them.
"""
