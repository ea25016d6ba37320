"""DownConv, fused: both convolutions and the ReLU between them.

::

    down.py           forward and backward: the jobs, one after the other
    down_plan.py      which jobs, and how they are cut
    down_kernels.py   forward's kernels
    down_outer.py     backward's kernels
"""
