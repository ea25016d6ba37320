"""Pooling and its gradients.

::

    pool.py            the jobs
    pool_kernels.py    their kernels
"""
