"""Long 1-D kernels by Fourier transforms of blocks of their rows.

::

    fourier.py           few channels: its jobs            fourier_kernels.py           their kernels
    fourier_groups.py    groups of many channels           fourier_groups_kernels.py    its kernels
    fourier_passes.py    the transforms, as pieces of kernels' texts

``konv.set_exact(True)`` refuses them.
"""
