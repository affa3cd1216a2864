"""A gateway from start to end: the agent's parts put together, what an earlier one left settled, a face served."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.lowlevel.server import Server
from starlette.types import ASGIApp

from lockstep import __version__
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import to_text
from lockstep.agent.locked import LockedAgent
from lockstep.errors import ConfigError, LockstepError, RunError, StoreError
from lockstep.gate.policy import Policies
from lockstep.gateway.complaints import complaining, complaint
from lockstep.gateway.connections import Connection
from lockstep.gateway.http import PATH, Door, build_app
from lockstep.gateway.principals import Principal
from lockstep.gateway.server import Served, WhoCalls, build_server
from lockstep.gateway.stdio import require_client, serve_stdio
from lockstep.journal.events import RunStarted
from lockstep.journal.inbox import Answer, Inbox
from lockstep.journal.port import Journal
from lockstep.runtime.answers import Answer as Said
from lockstep.runtime.answers import answer_approval
from lockstep.runtime.calling import Desk
from lockstep.runtime.inputs import Said as ToServer
from lockstep.runtime.inputs import answer_input
from lockstep.wiring import models, running, stores
from lockstep.wiring.approving import terms_now
from lockstep.wiring.stores import Store

GRACE_S = 10.0
"""How long calls that are under way may take to end when the gateway is told to."""
_FOR_CLIENTS = "An MCP client is what starts this command and speaks here; --http PORT serves many. Ctrl-D ends it."
_LOOK_S = 0.5
_RETRY_S = 5.0
"""Before an answer that could not be recorded is tried again."""
"""How often answers that other processes left are looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """What a gateway serves: the agent, where its record stands, and how durable a record must be."""

    agent: Path
    store: Store
    unlocked: bool = False
    asks: bool = True
    full_sync: bool = True


async def serve_one(gateway: Gateway, principal: Principal, session: str | None) -> None:
    """Serve the process that started us over stdio, as this principal, until it is told to stop.

    In the session that is named; without one, in the principal's own.

    Raises:
        ConfigError: nobody can be at the other end.
    """
    require_client()

    async def serve() -> None:
        async with _opened(gateway, lambda ctx: principal, session or "") as server:
            if sys.stdin.isatty():  # a person, who would otherwise wait for a word of it
                print(f"lockstep: serving {server.name} on this terminal. {_FOR_CLIENTS}", file=sys.stderr, flush=True)
            await serve_stdio(server)

    await _until_told_to_stop(serve())


async def serve_http(gateway: Gateway, door: Door, host: str, port: int) -> None:
    """Serve Streamable HTTP until told to stop; port 0 takes a free one. The address goes to standard error.

    Raises:
        ConfigError: the address cannot be had.
    """
    listening = listen(host, port)

    async def serve() -> None:
        async with _opened(gateway, door.who, "") as server:
            web = _WebServer(configured(build_app(server, door)))
            _when_told_to_stop(lambda: setattr(web, "should_exit", True))  # what is under way may end first
            address = f"http://{host}:{listening.getsockname()[1]}{PATH}"
            print(f"lockstep: serving {server.name} ({gateway.agent}) at {address}", file=sys.stderr, flush=True)
            await web.serve([listening])

    await _until_told_to_stop(serve())


def configured(app: ASGIApp) -> uvicorn.Config:
    """How the application is served over HTTP."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=3,
    )


class _WebServer(uvicorn.Server):
    """Leaves signals to us. Its own way is to die of them when it has stopped serving, before the rest has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _until_told_to_stop(serving: Coroutine[Any, Any, None]) -> None:
    """Serve until that ends, or SIGTERM or SIGINT comes: an end in order, with calls settled and no sandbox left."""
    task = asyncio.create_task(serving)
    _when_told_to_stop(task.cancel)
    with complaining(), contextlib.suppress(asyncio.CancelledError):
        await task


def _when_told_to_stop(stop: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


@asynccontextmanager
async def _opened(gateway: Gateway, who: WhoCalls, session: str) -> AsyncIterator[Server[Any]]:
    where, code = gateway.store, gateway.store.code()
    async with stores.opened_tools(where) as tools:
        prepared = await running.prepare(gateway.agent, tools, code, unlocked=gateway.unlocked)
        agent = locked_agent(prepared.lock)
        await running.require_secrets(agent)
        await running.require_tiers(tools, agent)
        async with models.opened_model(agent, code) as model, _journal(gateway) as journal:
            await tools.sweep()  # what a gateway that died here left running
            await tools.prepare(agent.tools.values(), sessions=True)
            prepared = running.with_address(prepared, model)
            driver = running.open_driver(
                prepared.lock,
                directory=gateway.agent,
                journal=journal,
                tools=tools,
                code=code,
                standing=where.standing(),
                model=model,
            )
            template = RunStarted(
                agent=agent.name,
                lock=prepared.lock.digest,
                lock_text=to_text(prepared.lock),
                directory=str(gateway.agent.resolve()),
                principal="",
                session="",
                input="",
                unlocked=prepared.unlocked,
                drift=prepared.drift,
            )
            _say_what_is_closed(agent)
            desk = Desk(driver, journal, template)
            await desk.recover()
            description = load_spec(gateway.agent).agent.description or ""
            served = Served(
                desk=desk,
                journal=journal,
                version=__version__,
                description=description,
                who=who,
                terms_now=terms_now,
                session=session,
                asks=gateway.asks,
            )
            async with _answers_taken(where, journal, desk):
                try:
                    server = build_server(served)
                    gc.collect()
                    gc.freeze()  # what is loaded by now stays: looking through it again held up a call by 0.2 s
                    yield server
                finally:
                    await desk.close(GRACE_S)


def _say_what_is_closed(agent: LockedAgent) -> None:
    """Tell the operator which tools no client will ever see: an empty list is all that a client would tell."""
    closed = Policies.parse(agent.policies).unpermitted(agent.tools)
    if closed:
        print(
            f"lockstep: no policy names these in a permit, so no client sees them: {', '.join(closed)}", file=sys.stderr
        )


@asynccontextmanager
async def _journal(gateway: Gateway) -> AsyncIterator[Journal]:
    journal = gateway.store.make().journal(full_sync=gateway.full_sync)
    try:
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def _answers_taken(store: Store, journal: Journal, desk: Desk) -> AsyncIterator[None]:
    """Take what `lockstep approve` and `refuse` leave while this process holds the store."""
    inbox = Inbox(store.directory)
    inbox.attend()
    taking = asyncio.create_task(_take_answers(inbox, journal, desk))
    try:
        yield
    finally:
        inbox.close()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def _take_answers(inbox: Inbox, journal: Journal, desk: Desk) -> None:
    going_on: dict[str, asyncio.Task[None]] = {}
    while True:
        going_on = {approval: task for approval, task in going_on.items() if not task.done()}
        for answer in inbox.left():
            if answer.approval not in going_on:
                going_on[answer.approval] = asyncio.create_task(_go_on(answer, inbox, journal, desk))
        await asyncio.sleep(_LOOK_S)


async def _go_on(left: Answer, inbox: Inbox, journal: Journal, desk: Desk) -> None:
    """Record an answer, and have its run go on. It lies in the inbox until it is recorded."""
    try:
        if left.input:
            responses = json.loads(left.responses) if left.responses else None
            answer = ToServer(responses=responses, by=left.by, because=left.because, login=left.login)
            state = await answer_input(journal, left.approval, answer)
        else:
            said = Said(given=left.given, by=left.by, because=left.because, login=left.login, digest=left.digest)
            state = await answer_approval(journal, left.approval, said, terms_now)
        inbox.taken(left)
        with contextlib.suppress(RunError):  # the agent was stopped: the answer stands, and the run goes on later
            await desk.go_on(state.run, by=left.by, fetched=False)
    except StoreError as error:
        _say(f"the answer to {left.approval} is not recorded yet: {complaint(str(error))}")
        await asyncio.sleep(_RETRY_S)
    except LockstepError as error:
        inbox.taken(left)
        _say(f"the answer to {left.approval} came to nothing: {complaint(str(error))}")


def _say(what: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: no reason to do less
        print(f"lockstep: {what}", file=sys.stderr, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections there from now on.

    Raises:
        ConfigError: the address cannot be had.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(512)
    except OSError as error:
        listening.close()
        what = f"{host}:{port} cannot be served: {error.strerror}."
        raise ConfigError(what, remedy="Choose another --http.") from error
    return listening
