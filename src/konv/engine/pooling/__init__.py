"""Pooling and its gradients.

::

    pool.py              the jobs
    pool_kernels.py      any windows        pool_gradients.py    and their gradients
    pool_apart.py        windows that share no cell, and their gradients
    pool_windows.py      which taps lie in x, which windows hold a cell
"""
