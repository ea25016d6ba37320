"""Python programs in processes of their own."""

import os
import subprocess
import sys
import textwrap

SECONDS = 120  # a child that has not ended by then hangs; on a machine with work for four, one took 20


def start_program(text, **environment):
    """A running process with the tests' own import path, warnings as errors; ``None`` takes a variable away."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        env={name: str(value) for name, value in given.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_program(process):
    """What it printed. A failure, or an end that does not come, is an error here."""
    try:
        output, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, f"exit status {process.returncode}\n{output}{errors}"
    return output


def run_program(text, **environment):
    return finish_program(start_program(text, **environment))
