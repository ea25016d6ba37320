"""The entry of the command ``konv``. The commands themselves are in :mod:`konv.commands`, which needs typer and rich."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec

from konv.training.errors import INSTALL


def main() -> None:
    """Run the command line with the arguments of this process; never returns.

    Raises
    ------
    SystemExit
        With the exit code: 0 done; 1 it could not be done (no data, a diverged loss, a failed check, a file that cannot be
        read, packages not installed); 2 the command was typed wrong; 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that is no text, or a terminal with few letters: a question mark instead of a traceback.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    if find_spec("typer") is None or find_spec("rich") is None:
        print(INSTALL, file=sys.stderr)
        raise SystemExit(1)
    from konv.commands import app

    app(prog_name="konv")


if __name__ == "__main__":
    main()
