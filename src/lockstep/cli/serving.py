"""The commands that serve an agent to others. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from lockstep.cli.ending import finish
from lockstep.cli.options import AgentDir, StoreOption


def add_to(app: typer.Typer) -> None:
    """Make these commands part of the command line."""
    app.command()(gateway)
    app.command()(token)


def gateway(
    agent: AgentDir,
    http: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this at run time
        typer.Option("--http", metavar="[HOST:]PORT", help="Serve Streamable HTTP there; without it, stdio."),
    ] = None,
    session: Annotated[Optional[str], typer.Option(help="stdio: the session to go on with.")] = None,  # noqa: UP045
    principal: Annotated[str, typer.Option("--as", help="Who a client without a name is (default: you).")] = "",
    approvals: Annotated[
        Literal["client", "operator"],
        typer.Option(help="Whether a client may put an approval to its own user, or an operator answers it."),
    ] = "client",
    principals: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--principals", metavar="FILE", help="HTTP: who may call, as `lockstep token` prints it."),
    ] = None,
    open_to_all: Annotated[bool, typer.Option("--open", help="HTTP: no token; this machine alone.")] = False,
    host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--host", help="HTTP: a name clients reach it by beside localhost; may be repeated."),
    ] = None,
    origin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--origin", help="HTTP: a web page's origin that may call; may be repeated."),
    ] = None,
    issuer: Annotated[Optional[str], typer.Option(help="OAuth: whose tokens are taken.")] = None,  # noqa: UP045
    resource: Annotated[Optional[str], typer.Option(help="OAuth: this gateway's own URL.")] = None,  # noqa: UP045
    jwks: Annotated[Optional[Path], typer.Option("--jwks", metavar="FILE", help="OAuth: the issuer's keys.")] = None,  # noqa: UP045
    unlocked: Annotated[bool, typer.Option("--unlocked", help="Serve what is on disk, though it differs.")] = False,
    ask: Annotated[bool, typer.Option("--ask/--no-ask", help="Offer the agent itself as a tool.")] = True,
    durability: Annotated[
        Literal["full", "normal"], typer.Option(help="full: a power cut loses nothing; normal: the newest events.")
    ] = "full",
    store: StoreOption = None,
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
        hosts=host or (),
        origins=origin or (),
        issuer=issuer,
        resource=resource,
        keys=jwks,
        unlocked=unlocked,
        asks=ask,
        durability=durability,
        store=store,
    )
    finish(body.gateway(asked))


def token(name: Annotated[str, typer.Argument(metavar="NAME", help="The principal it is for.")]) -> None:
    """Make a bearer token for the gateway; only its digest is kept, in the table that is printed."""
    from lockstep.cli import gateway as body

    finish(body.token(name))
