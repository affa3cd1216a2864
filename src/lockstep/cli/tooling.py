"""`lockstep tools`: what can be said about an agent's tools before they are let loose. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from pathlib import Path

import click

from lockstep.cli.ending import finish
from lockstep.cli.options import Commands, agent_argument, agent_or_here, json_option, store_option

server_argument = click.argument(
    "server", metavar="[SERVER]", required=False, help="Its prefix or URL; needed where there are several."
)
principal_option = click.option("--principal", default="", metavar="NAME", help="For whom (default: your user name).")


def add_to(app: click.Group) -> None:
    """Make these commands part of the command line."""
    app.add_command(tools)


@click.group(cls=Commands, help="Look at an agent's tools.")
def tools() -> None:
    pass


@tools.command()
@agent_or_here
@store_option
@json_option
def pin(agent: Path, store: Path | None, json: bool) -> None:
    """List the tools of MCP servers with their pins, and whether each is the one that was approved."""
    from lockstep.cli import tool_pins

    finish(tool_pins.pins(agent, store, json=json), json=json)


@tools.command()
@agent_or_here
@store_option
@json_option
def diff(agent: Path, store: Path | None, json: bool) -> None:
    """Show how tools of MCP servers differ from what was approved; exit code 2 if one does."""
    from lockstep.cli import tool_pins

    finish(tool_pins.diff(agent, store, json=json), json=json)


@tools.command()
@agent_argument
@click.argument("names", metavar="[TOOL]...", nargs=-1, help="As the model knows them.")
@click.option("--all", "every", is_flag=True, help="Every tool as it is now.")
@store_option
def approve(agent: Path, names: tuple[str, ...], every: bool, store: Path | None) -> None:
    """Approve new or changed tools of MCP servers: write the lock with them."""
    from lockstep.cli import tool_pins

    if not names and not every:
        raise click.BadParameter("name the tools, or say --all")
    finish(tool_pins.approve(agent, store, None if every else names))


@tools.command()
@agent_or_here
@click.option("--scratch", is_flag=True, help="Also call each tool, in the scratch world that [check] starts.")
@store_option
@json_option
def check(agent: Path, scratch: bool, store: Path | None, json: bool) -> None:
    """Say where tools are not what they are declared to be, and what to do; exit code 2 if something is an error."""
    from lockstep.cli import tool_check

    finish(tool_check.check(agent, store, scratch=scratch, json=json), json=json)


@tools.command()
@agent_argument
@server_argument
@principal_option
@click.option("--browser/--no-browser", default=True, help="Open a browser where there is a display.")
@store_option
def login(agent: Path, server: str | None, principal: str, browser: bool, store: Path | None) -> None:
    """Log in at a server that an agent reaches by URL; the token is kept in the store, for its owner alone to read."""
    from lockstep.cli import tool_login

    finish(tool_login.login(agent, server, store, principal=principal, browser=browser))


@tools.command()
@agent_argument
@server_argument
@principal_option
@store_option
def logout(agent: Path, server: str | None, principal: str, store: Path | None) -> None:
    """Forget the token of such a login."""
    from lockstep.cli import tool_login

    finish(tool_login.logout(agent, server, store, principal=principal))
