"""The commands that serve an agent to others. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from lockstep.cli.ending import finish
from lockstep.cli.options import PATH, agent_argument, store_option


def add_to(app: click.Group) -> None:
    """Make these commands part of the command line."""
    app.add_command(gateway)
    app.add_command(token)


@click.command()
@agent_argument
@click.option("--http", metavar="[HOST:]PORT", help="Serve Streamable HTTP there; without it, stdio.")
@click.option("--session", metavar="NAME", help="stdio: the session to go on with.")
@click.option("--as", "principal", default="", metavar="NAME", help="Who a client without a name is (default: you).")
@click.option(
    "--approvals",
    type=click.Choice(["client", "operator"]),
    default="client",
    show_default=True,
    help="Whether a client may put an approval to its own user, or an operator answers it.",
)
@click.option("--principals", metavar="FILE", type=PATH, help="HTTP: who may call, as `lockstep token` prints it.")
@click.option("--open", "open_to_all", is_flag=True, help="HTTP: no token; this machine alone.")
@click.option(
    "--host",
    "hosts",
    metavar="NAME",
    multiple=True,
    help="HTTP: a name clients reach it by beside localhost; may be repeated.",
)
@click.option(
    "--origin",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="HTTP: a web page's origin that may call; may be repeated.",
)
@click.option("--issuer", metavar="URL", help="OAuth: whose tokens are taken.")
@click.option("--resource", metavar="URL", help="OAuth: this gateway's own URL.")
@click.option("--jwks", metavar="FILE", type=PATH, help="OAuth: the issuer's keys.")
@click.option("--unlocked", is_flag=True, help="Serve what is on disk, though it differs.")
@click.option("--ask/--no-ask", default=True, show_default=True, help="Offer the agent itself as a tool.")
@click.option(
    "--durability",
    type=click.Choice(["full", "normal"]),
    default="full",
    show_default=True,
    help="full: a power cut loses nothing; normal: the newest events.",
)
@store_option
def gateway(
    agent: Path,
    http: str | None,
    session: str | None,
    principal: str,
    approvals: Literal["client", "operator"],
    principals: Path | None,
    open_to_all: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    issuer: str | None,
    resource: str | None,
    jwks: Path | None,
    unlocked: bool,
    ask: bool,
    durability: Literal["full", "normal"],
    store: Path | None,
) -> None:
    """Lend an agent's gate, sandboxes and record to any MCP client: its tools, and the agent as a tool."""
    from lockstep.cli import gateway as body

    asked = body.GatewayRequest(
        agent=agent,
        http=http,
        session=session,
        principal=principal,
        approvals=approvals,
        principals=principals,
        open=open_to_all,
        hosts=hosts,
        origins=origins,
        issuer=issuer,
        resource=resource,
        keys=jwks,
        unlocked=unlocked,
        asks=ask,
        durability=durability,
        store=store,
    )
    finish(body.gateway(asked))


@click.command()
@click.argument("name", metavar="NAME", help="The principal it is for.")
def token(name: str) -> None:
    """Make a bearer token for the gateway; only its digest is kept, in the table that is printed."""
    from lockstep.cli import gateway as body

    finish(body.token(name))
