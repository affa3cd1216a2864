"""`lockstep gateway` and `lockstep token`: an agent's tools for MCP clients, and who they are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lockstep.cli.report import FINISHED
from lockstep.cli.terminal import user
from lockstep.errors import ConfigError
from lockstep.gateway.principals import (
    TOKEN_ENV,
    Approvals,
    Principal,
    Principals,
    new_token,
    one_principal,
    read_principals,
)
from lockstep.wiring.stores import Store

if TYPE_CHECKING:
    from lockstep.gateway.http import Door

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayRequest:
    """What `lockstep gateway` was asked for."""

    agent: Path
    http: str | None
    session: str | None
    principal: str
    approvals: Approvals
    principals: Path | None
    open: bool
    hosts: Sequence[str]
    origins: Sequence[str]
    issuer: str | None
    resource: str | None
    keys: Path | None
    unlocked: bool
    asks: bool
    durability: Literal["full", "normal"]
    store: Path | None


async def gateway(asked: GatewayRequest) -> int:
    # Imported here: the protocol's library costs a second that no other command pays.
    try:
        from lockstep.gateway import serving
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The gateway needs {error.name}.", remedy="Install it with: pip install 'lockstep-agents[mcp]'."
        ) from error

    served = serving.Gateway(
        agent=asked.agent,
        store=Store.of(asked.agent, asked.store),
        unlocked=asked.unlocked,
        asks=asked.asks,
        full_sync=asked.durability == "full",
    )
    if asked.http is None:
        principal = Principal(name=asked.principal or user(), approvals=asked.approvals)
        await serving.serve_one(served, principal, asked.session)
    else:
        host, port = _address(asked.http)
        await serving.serve_http(served, _door(asked, host), host, port)
    return FINISHED


async def token(name: str) -> int:
    made, digest = new_token()
    print(f"# Give the token to {json.dumps(name)}; it is shown this once:")
    print(f"#   {made}")
    print(f"[[principal]]\nname = {json.dumps(name)}\ntoken_sha256 = {json.dumps(digest)}")
    return FINISHED


def _door(asked: GatewayRequest, host: str) -> Door:
    from lockstep.gateway.http import Door
    from lockstep.gateway.tokens import Issuer

    issuer = None
    if asked.issuer or asked.resource or asked.keys:
        if not (asked.issuer and asked.resource and asked.keys):
            raise ConfigError(
                "An issuer needs its name, its keys and this gateway's own name.",
                remedy="Give --issuer, --jwks and --resource together.",
            )
        issuer = Issuer.read(asked.issuer, asked.resource, asked.keys)
    principals, open_to = _principals(asked), None
    if principals is None and issuer is None:
        if not asked.open:
            raise ConfigError(
                "Nobody could be told from anybody else.",
                remedy=f"Name the principals (--principals FILE, or {TOKEN_ENV}), or an issuer; --open lets"
                " everybody on this machine in as you.",
            )
        if host not in _LOOPBACK:
            raise ConfigError("--open serves this machine alone.", remedy="Serve 127.0.0.1, or name the principals.")
        open_to = Principal(name=asked.principal or user(), approvals=asked.approvals)
    return Door(
        principals=principals or Principals({}),
        issuer=issuer,
        open_to=open_to,
        hosts=tuple(asked.hosts),
        origins=tuple(asked.origins),
    )


def _principals(asked: GatewayRequest) -> Principals | None:
    if asked.principals is not None:
        return read_principals(asked.principals)
    held = os.environ.pop(TOKEN_ENV, "")  # taken out, so that nothing that is started here inherits it
    return one_principal(asked.principal or user(), held, asked.approvals) if held else None


def _address(http: str) -> tuple[str, int]:
    """`8931`, `127.0.0.1:8931` or `[::1]:8931`; a port alone is of this machine alone."""
    host, _, port = http.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--http {http!r} names no port.", remedy="Write PORT or HOST:PORT.")
    return host.strip("[]") or "127.0.0.1", int(port)
