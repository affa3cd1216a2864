"""`lockstep tools`: what can be said about an agent's tools before they are let loose. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from lockstep.cli.ending import finish
from lockstep.cli.options import AgentDir, JsonOption, StoreOption

tools = typer.Typer(
    name="tools",
    help="Look at an agent's tools.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def add_to(app: typer.Typer) -> None:
    """Make these commands part of the command line."""
    app.add_typer(tools)


@tools.callback()
def group() -> None:
    """Look at an agent's tools."""


@tools.command()
def check(
    agent: AgentDir,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Also call each tool, in the scratch world that [check] starts.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say where tools are not what they are declared to be, and what to do; exit code 2 if something is an error."""
    from lockstep.cli import tool_check

    finish(tool_check.check(agent, store, scratch=scratch, json=json), json=json)
