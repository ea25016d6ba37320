"""A wrong name, and the one that was meant: for error messages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

# PyTorch's and others' names, and those of *Deep Learning from Scratch*, which the NumPy layers go by.
BOOKS = {
    "padding": "pad", "kernel_size": "pool_h and pool_w", "weight": "W", "weights": "W", "bias": "b", "p": "dropout_ratio",
}  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


def near(name: str, known: Iterable[str]) -> str:
    """``"; near: this, that"``, the known names most like one that is not among them; "" where none is.

    >>> near("Conv2D", ["Conv1d", "Conv2d", "conv2d"]), near("Linear", ["Conv2d"])
    ('; near: Conv2d, conv2d, Conv1d', '')
    """
    import difflib

    spellings: dict[str, list[str]] = {}
    for word in known:
        spellings.setdefault(word.lower(), []).append(word)
    close = difflib.get_close_matches(name.lower(), spellings, cutoff=0.5)
    found = [word for key in close for word in spellings[key]][:3]
    return f"; near: {', '.join(found)}" if found else ""


def names_told(init: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
    """A constructor whose TypeError about an argument that it does not have tells which one was meant."""
    own = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def told(self: T, *arguments: P.args, **options: P.kwargs) -> None:
        for name in options:
            if name not in own:
                book = BOOKS.get(name)
                meant = f"; the book's name is {book}" if book and book.split()[0] in own else near(name, own)
                raise TypeError(f"{type(self).__name__}() has no argument {name!r}{meant}")
        init(self, *arguments, **options)

    return told
