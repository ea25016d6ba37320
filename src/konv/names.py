"""A wrong name, and the one that was meant: for error messages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

# Names of the same thing: of konv's functions, of *Deep Learning from Scratch* (the NumPy layers), PyTorch's and others'.
SYNONYMS = (
    {"padding", "pad"},
    {"w", "W", "weight", "weights", "filters"},
    {"b", "bias"},
    {"x", "input", "inputs", "input_data", "images"},
    {"kernel_size", "pool_size", "filter_size", "pool_h and pool_w", "filter_h and filter_w"},
    {"dropout_ratio", "p"},
    {"lr", "learning_rate", "alpha"},
)

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


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """``"; did you mean 'this'?"``, the choice most like a value that is none; "" where none is like it.

    >>> did_you_mean("DIGITS", ["digits", "mnist"]), did_you_mean("cifar", ["digits", "mnist"])
    ("; did you mean 'digits'?", '')
    """
    import difflib

    spellings = {word.lower(): word for word in known}
    close = difflib.get_close_matches(value.lower(), spellings, n=1) if isinstance(value, str) else []
    return f"; did you mean {spellings[close[0]]!r}?" if close else ""


def meant(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not among ``known``: what that is called here, else those near it, else nothing.

    >>> meant("pad", ["x", "w", "padding"]), meant("paddings", ["x", "w", "padding"])
    ('; here it is called padding', '; near: padding')
    """
    known = list(known)
    for same in SYNONYMS:
        if name in same and (here := [other for other in sorted(same) if other.split()[0] in known]):
            return f"; here it is called {here[0]}"
    return near(name, known)


def names_told(function: Callable[P, T]) -> Callable[P, T]:
    """A function or constructor whose TypeError about an argument that it does not have tells which one was meant.

    And one about an argument that is missing tells which the call needs. What stands around a function costs each of its
    calls 0.1 us.
    """
    signature = inspect.signature(function)
    known = [name for name in signature.parameters if name != "self"]
    needed = [
        name for name in known
        if signature.parameters[name].default is inspect.Parameter.empty
        and signature.parameters[name].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]  # fmt: skip

    @functools.wraps(function)
    def told(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return function(*arguments, **options)
        except TypeError:
            called = type(arguments[0]).__name__ if function.__name__ == "__init__" else function.__name__
            for name in options:
                if name not in known:
                    raise TypeError(f"{called}() has no argument {name!r}{meant(name, known)}") from None
            try:
                given = signature.bind_partial(*arguments, **options).arguments
            except TypeError:
                given = dict(signature.parameters)  # too many, or one twice: Python's own words tell it
            if missing := [name for name in needed if name not in given]:
                call = f"{called}({', '.join([*needed, '...'][: len(known)])})"
                raise TypeError(f"{called}() is missing {' and '.join(missing)}: call {call}") from None
            raise

    return told
