"""Layers of few channels, as networks begin with: pictures of 3 channels, sound of one.

::

    strips.py            forward and weights, channels first     strips_kernels.py        its kernel
    strips_cut.py        how their rows are cut
    strips_weights.py    the weight gradient: its job            strips_outer.py          its kernel
    strips_last.py       forward, channels last                  strips_last_kernels.py   its kernel
    folded.py            the input gradient as a product         folded_kernels.py        its kernel
    joined.py            the input gradient of long kernels: neighbouring cells in the lanes of
                         the direct algorithm's tile, which computes it
"""
