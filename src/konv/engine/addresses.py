"""What an algorithm may offer to who makes the same computation again and again: a run on addresses.

A small call costs as much for views of arrays, and what is asked of them, as for all else: with them PyTorch's face spends 12.7
us on a forward pass of a 1x1 layer beside its kernel, 28 on its gradients; so 7.2 and 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class OnAddresses(NamedTuple):
    """A computation for who makes the same one again and again, and has addresses.

    ``run(x, w, b, out)`` is given where C-contiguous arrays begin (``known_layout`` is the problem's), b may be 0; of an input
    gradient ``(dy, w, 0, out)``, of a weight gradient ``(dy, x, db or 0, out)``. ``finite_weights``: only if all of w is finite.
    """

    run: Callable[[int, int, int, int], None]
    finite_weights: bool = False
