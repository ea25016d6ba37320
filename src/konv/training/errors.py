"""Errors that are no bug: the command line shows their message and no traceback."""

# By their names: "konv[train]" finds no clone, ".[train]" no installed konv.
INSTALL = (
    "konv's command line needs more packages than konv itself. Install them with: "
    "pip install typer rich scikit-learn matplotlib pillow pooch ml-dtypes"
)


class UserError(Exception):
    """The base of those below and elsewhere in this package, beside a built-in type that says what kind it is."""


class CheckpointError(UserError, ValueError):
    """A file is no checkpoint that konv can use; the message says which file and why."""


class DivergedError(UserError, ArithmeticError):
    """The loss is no longer a finite number; the message says where, and what to try."""


class PictureError(UserError, ValueError):
    """There is nothing to read in a picture."""
