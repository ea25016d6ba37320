"""The commands ``konv train | predict | check | bench | warmup | info``: parse, call, print. One imports what it calls."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

from konv.commands.bench import bench
from konv.commands.check import check
from konv.commands.machine import info, warmup
from konv.commands.predict import predict
from konv.commands.train import train


class _PlainHelp:
    """``--help`` takes no value, so its line in the table of options shows none, as with the flags of konv.

    Nor do arguments show the names of Python's types.
    """

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if param.param_type_name == "argument":
                param.display_type = lambda ctx: None
        return params

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.metavar = ""
        return option


class Group(_PlainHelp, typer.core.TyperGroup):
    """``konv``."""


class Command(_PlainHelp, typer.core.TyperCommand):
    """``konv NAME``."""


app = typer.Typer(
    name="konv",
    cls=Group,
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def konv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show konv's version and exit.")] = False,
) -> None:
    """Convolution layers you can read, as fast as the machine allows.

    Start with `konv train`: it trains a small convolutional network on handwritten digits in less than a minute, shows how
    it learns, and writes a report with pictures. Every command explains itself, as in `konv train --help`.
    """
    if version:
        from konv import __version__

        typer.echo(f"konv {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (train, predict, check, bench, warmup, info):
    app.command(cls=Command)(command)
