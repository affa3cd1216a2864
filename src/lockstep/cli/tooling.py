"""`lockstep tools`: what can be said about an agent's tools before they are let loose. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from typing import Annotated, Optional

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
def pin(agent: AgentDir, store: StoreOption = None, json: JsonOption = False) -> None:
    """List the tools of MCP servers with their pins, and whether each is the one that was approved."""
    from lockstep.cli import tool_pins

    finish(tool_pins.pins(agent, store, json=json), json=json)


@tools.command()
def diff(agent: AgentDir, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show how tools of MCP servers differ from what was approved; exit code 2 if one does."""
    from lockstep.cli import tool_pins

    finish(tool_pins.diff(agent, store, json=json), json=json)


@tools.command()
def approve(
    agent: AgentDir,
    names: Annotated[Optional[list[str]], typer.Argument(metavar="TOOL...", help="As the model knows them.")] = None,  # noqa: UP045
    every: Annotated[bool, typer.Option("--all", help="Every tool as it is now.")] = False,
    store: StoreOption = None,
) -> None:
    """Approve new or changed tools of MCP servers: write the lock with them."""
    from lockstep.cli import tool_pins

    if not names and not every:
        raise typer.BadParameter("name the tools, or say --all")
    finish(tool_pins.approve(agent, store, None if every else names or ()))


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


ServerArg = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this at run time
    typer.Argument(metavar="SERVER", help="Its prefix or URL; needed where there are several."),
]
PrincipalOption = Annotated[str, typer.Option("--principal", help="For whom (default: your user name).")]


@tools.command()
def login(
    agent: AgentDir,
    server: ServerArg = None,
    principal: PrincipalOption = "",
    browser: Annotated[bool, typer.Option(help="Open a browser where there is a display.")] = True,
    store: StoreOption = None,
) -> None:
    """Log in at a server that an agent reaches by URL; the token is kept in the store, for its owner alone to read."""
    from lockstep.cli import tool_login

    finish(tool_login.login(agent, server, store, principal=principal, browser=browser))


@tools.command()
def logout(
    agent: AgentDir, server: ServerArg = None, principal: PrincipalOption = "", store: StoreOption = None
) -> None:
    """Forget the token of such a login."""
    from lockstep.cli import tool_login

    finish(tool_login.logout(agent, server, store, principal=principal))
