"""`lockstep tools login` and `logout`: who may use a server elsewhere that wants to know."""

from __future__ import annotations

import asyncio
import os
import webbrowser
from pathlib import Path

from lockstep.cli.report import FINISHED
from lockstep.cli.terminal import console, plain, user
from lockstep.wiring.logins import log_in, log_out, server_of
from lockstep.wiring.stores import Store


async def login(directory: Path, server: str | None, store: Path | None, *, principal: str, browser: bool) -> int:
    remote = server_of(directory, server)
    out = console()

    async def show(url: str) -> None:
        out.print(f"to log in at {plain(remote.server)}, open:")
        out.print(plain(url), soft_wrap=True)
        if browser and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            await asyncio.to_thread(webbrowser.open, url)

    who = principal.strip() or user()
    if await log_in(Store.of(directory, store), remote, who, show):
        out.print(f"{plain(who)} is logged in at {plain(remote.server)}")
    else:
        out.print(f"{plain(remote.server)} asks for no login so far; lock or run the agent to see whether it ever does")
    return FINISHED


async def logout(directory: Path, server: str | None, store: Path | None, *, principal: str) -> int:
    remote, who = server_of(directory, server), principal.strip() or user()
    forgot = log_out(Store.of(directory, store), remote, who)
    done = "has no login any more" if forgot else "had no login"
    console().print(f"{plain(who)} {done} at {plain(remote.server)}; the token may still be good elsewhere")
    return FINISHED
