"""Small groups, depthwise layers above all: little is multiplied with each number that is read.

::

    grouped.py            who computes what, of layers that are not for the plan's other entries
    planes_jobs.py        pixels in lanes, channels first              planes.py                     their kernel
    planes_weights.py     the same, the weight gradient                planes_outer.py               its kernel
    planes_tile.py        what these do with a tile
    axes.py               what an output reads, phase by phase, for these
    depthwise_fixed.py    2-D, planes of a size that is compiled in    depthwise_fixed_kernels.py    its kernels
    depthwise_paired.py   the same, two rows for three quarters        depthwise_paired_kernels.py   its kernels
    depthwise_spread.py   input gradients of strided layers
    depthwise_long.py     1-D, many taps: the weight gradient          depthwise_long_kernels.py     its kernel
    small_planes.py       channels in lanes, planes of few pixels      small_planes_kernels.py       its kernels
    small_groups.py       channels in lanes, groups of 8 and 16        small_groups_kernels.py       its kernels
    depthwise.py          channels last: its jobs                      channels.py                   their kernels
    depthwise_rows.py     the same, 2-D depthwise                      depthwise_rows_kernels.py     its kernels
                          where arrays are near                        depthwise_sliding_kernels.py  their kernel

``grouped``, ``depthwise_paired``, ``small_planes`` and ``small_groups`` are asked by the plan; the others do parts of their work.
"""
