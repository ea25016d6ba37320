"""The direct algorithm: the formula as it stands, filters in lanes, for every problem that nobody else takes.

::

    direct.py         forward and input gradient: their jobs     correlate.py        their kernel
    sweeps.py         what an output reads, axis by axis, as tables: all phases of a row together
    weights.py        the weight gradient: its jobs              outer.py            its kernels
    weights_cut.py    how the weight gradient is cut             outer_packing.py    and laid out
"""
