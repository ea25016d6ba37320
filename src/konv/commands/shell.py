"""What every command needs: where its results go, and how errors of the user become one message and an exit code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from konv.training.errors import INSTALL, UserError

if TYPE_CHECKING:
    from rich.console import Console

EXTRAS = {"sklearn", "matplotlib", "ml_dtypes", "PIL", "pooch", "requests"}


def fail(message: str, code: int = 1) -> NoReturn:
    """Say on stderr what is wrong, and exit."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Around the checks of what was typed: a ValueError or TypeError there is the user's, and no bug."""
    try:
        yield
    except (ValueError, TypeError) as error:
        fail(str(error), 2)


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Give errors of the user's files, disk and settings as one message; leave any other exception its traceback."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except BrokenPipeError:  # the reader of a pipe went away
            raise
        except OSError as error:
            fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except ModuleNotFoundError as error:
            if error.name and error.name.split(".")[0] in EXTRAS:
                fail(f"{error.name} is not installed. {INSTALL}")
            raise
        except UserError as error:
            fail(str(error))

    return wrapped


def new_console() -> Console:
    """Where results go. A pipe or a file gets no colours, and lines as long as they are."""
    import os

    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=1000)
    return console


def columns_that_fit(widths: Sequence[int], to_drop: Sequence[int], width: int) -> list[int]:
    """The columns of a table, so wide at least, of which those ``to_drop`` go, the first of them first, till it fits.

    >>> columns_that_fit([20, 8, 11], [1, 2], 80), columns_that_fit([20, 8, 11], [1, 2], 40)
    ([0, 1, 2], [0, 2])
    """
    kept = list(range(len(widths)))
    for column in to_drop:
        if sum(widths[c] + 3 for c in kept) + 1 <= width:  # a rule and two spaces each, and the last rule
            break
        kept.remove(column)
    return kept
