"""Convolutions that are matrix products on views: 1x1 kernels, and kernels as long as their stride.

::

    products.py                 channels first: what it declines and offers
    products_jobs.py            its forward and input gradient      products_kernels.py         their kernels
    products_weight_jobs.py     its weight gradient                 products_weights.py         its kernels
    products_grids.py           how windows lie in x and y, for both
    products_last.py            channels last: its jobs             products_last_kernels.py    their kernels
    products_last_weights.py    its weight gradient             products_last_few.py        its forward of few filters
    pairs.py                    1x1 in bfloat16, two products an instruction
                                pairs_kernels.py, pairs_last_kernels.py: its kernels
    pairs_outer.py              its weight gradient
    repeats.py                  1-D, few filters                    repeats_kernels.py          its kernels
                                repeats_outer.py: its weight gradient

The words that they share are in ``windows.py``, one floor above.
"""
