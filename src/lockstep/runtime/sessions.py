"""Sessions of clients: what each must remember between its calls, read from the journal when it is first heard of.

What is kept here follows from the journal, so a session that is given up is only read again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lockstep.agent.context import COMPLETE
from lockstep.agent.locked import LockedAgent
from lockstep.errors import RunError
from lockstep.journal.events import ENDED
from lockstep.journal.port import Journal, RunRow
from lockstep.kernel.state import Receipt, State, Status
from lockstep.memory.window import window
from lockstep.model.port import AssistantMessage, Message, ToolMessage
from lockstep.runtime.reading import History, read_history, read_row, read_state
from lockstep.values import Json, RunId, digest_json, new_token, sha256

SESSION_IDLE_S = 3600.0
"""After this long without a call, a session that a principal did not name is over, and its next call begins another."""
MAX_SESSIONS = 1000
MAX_HELD_BYTES = 256 * 2**20
"""Sessions held in memory, and about how much all their windows may take. Beyond either the one that was used longest
ago goes, and is read from the journal again when it is heard of."""
_LOOKED_AT = 10
"""How many times its size the window is looked for in the runs of a session that is opened again."""
_OWN = "mcp-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who calls: the authenticated principal, through which client, in which session (empty: the principal's own)."""

    principal: str
    client: str
    session: str = ""


@dataclass(kw_only=True)
class Session:
    """What one session must remember between its calls."""

    name: str
    receipts: dict[str, Receipt] = field(default_factory=dict)
    window: deque[tuple[RunId, tuple[Message, ...]]]
    pending: dict[str, RunId] = field(default_factory=dict)
    """Runs that wait, by what was asked: who asks the same again is told of that run, not given another."""
    broken: set[RunId] = field(default_factory=set)
    """Runs that an error ended while they were driven. What they did stands in the journal, and not in `receipts`."""
    mending: asyncio.Task[None] | None = None
    effects: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: float = field(default_factory=time.monotonic)
    busy: int = 0
    held_bytes: int = 0
    """About what its window takes."""

    def measure(self) -> None:
        self.held_bytes = sum(_size(messages) for _, messages in self.window)

    def remember(self, run: RunId, messages: tuple[Message, ...]) -> None:
        """The newest run of its window, whose oldest makes way."""
        if self.window.maxlen:
            gone = _size(self.window[0][1]) if len(self.window) == self.window.maxlen else 0
            self.window.append((run, messages))
            self.held_bytes += _size(messages) - gone

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Not given up meanwhile."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            self.used = time.monotonic()

    def key_of(self, run: RunId) -> str:
        """By what was asked, where this run waits; "" for any other."""
        return next((key for key, waits in self.pending.items() if waits == run), "")

    def history(self) -> History:
        messages = tuple(message for _, messages in self.window for message in messages)
        return History(messages=messages, receipts=self.receipts, emitted={})


class Sessions:
    """The sessions of all clients of one agent."""

    def __init__(self, journal: Journal, agent: LockedAgent) -> None:
        self._journal = journal
        self._agent = agent
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        """By principal and name."""
        self._own: dict[str, str] = {}
        """Of each principal, the session that it did not name."""
        self._opening = asyncio.Lock()

    async def of(self, caller: Caller) -> Session:
        """One object for a session, however it is come by: its locks are what keeps two from driving one run.

        Raises:
            RunError: the session is another agent's, or another principal's.
        """
        async with self._opening:
            name = await (self._theirs(caller) if caller.session else self._own_session(caller.principal))
            key = (caller.principal, name)
            if key not in self._sessions:
                self._sessions[key] = await self._open(name, caller)
            self._sessions.move_to_end(key)
            self._make_room(key)
            return self._sessions[key]

    async def of_run(self, state: State) -> Session:
        """The session of a client's run. Raises as `of`."""
        return await self.of(Caller(principal=state.principal, client=state.client, session=state.session))

    def held(self, principal: str, name: str) -> Session | None:
        """The session, where it is in memory."""
        return self._sessions.get((principal, name))

    def all_held(self) -> list[Session]:
        """Those in memory."""
        return list(self._sessions.values())

    def keep(self, session: Session, key: str, state: State, *, receipts: bool, held: bool = False) -> None:
        """Remember what a run leaves: its receipts, its part of the window, and by what was asked if it waits or its
        result is held for whoever asks the same again."""
        if receipts:
            session.receipts = state.left.after(session.receipts)
        session.pending.pop(key, None)
        if key and (held or state.status is not Status.FINISHED):
            session.pending[key] = state.run
        new = all(run != state.run for run, _ in session.window)
        if state.status is Status.FINISHED and new and self._is_remembered(state):
            session.remember(state.run, state.transcript.messages[state.history :])

    def _make_room(self, but: tuple[str, str]) -> None:
        held = sum(each.held_bytes for each in self._sessions.values())
        if len(self._sessions) <= MAX_SESSIONS and held <= MAX_HELD_BYTES:
            return
        for key, session in list(self._sessions.items()):
            if len(self._sessions) <= MAX_SESSIONS and held <= MAX_HELD_BYTES:
                return
            if session.busy or key == but:
                continue
            held -= self._sessions.pop(key).held_bytes
            if self._own.get(key[0]) == key[1]:
                del self._own[key[0]]

    async def _theirs(self, caller: Caller) -> str:
        """The session that this principal calls so. Where another was first to give one that name, whoever that is
        neither keeps this one from its own nor is told of it: theirs has a name with a mark of the principal."""
        plain, marked = caller.session, f"{caller.session}~{sha256(caller.principal.encode())[:12]}"
        for name in (marked, plain):
            if (caller.principal, name) in self._sessions:
                return name
        if await self._journal.runs(session=marked, limit=1):
            return marked
        first = next(iter(await self._journal.runs(session=plain, limit=1)), None)
        held = any(name == plain for _, name in self._sessions)
        return marked if held or (first is not None and first.principal != caller.principal) else plain

    async def _own_session(self, principal: str) -> str:
        """The session that this principal used last and did not name, while it is fresh; else a new one."""
        known = self._sessions.get((principal, self._own.get(principal, "")))
        if known is None or not (known.busy or time.monotonic() - known.used < SESSION_IDLE_S):
            self._own[principal] = await self._own_recorded(principal) or new_token(_OWN)
        return self._own[principal]

    async def _own_recorded(self, principal: str) -> str:
        for row in await self._journal.runs(principal=principal, agent=self._agent.name, limit=MAX_SESSIONS):
            fresh = time.time() - row.last_at_ms / 1000 < SESSION_IDLE_S
            if fresh and row.session.startswith(_OWN):
                return row.session
        return ""

    async def _open(self, name: str, caller: Caller) -> Session:
        rows = await self._journal.runs(session=name)
        if any((row.principal, row.agent) != (caller.principal, self._agent.name) for row in rows):
            raise RunError("This session belongs to another agent, or to somebody else.", remedy="Begin another one.")
        finished = [row.run for row in reversed(rows) if row.last in ENDED]
        history = await read_history(self._journal, name, (), before=None, receipts=True)
        session = Session(name=name, receipts=dict(history.receipts), window=deque(maxlen=self._agent.window_runs))
        for run in reversed(window(finished, _LOOKED_AT * self._agent.window_runs)):
            if len(session.window) == self._agent.window_runs:
                break
            state = await read_state(self._journal, run)
            if self._is_remembered(state):
                session.window.appendleft((run, state.transcript.messages))
        session.measure()
        session.pending = await self._waiting(rows)
        return session

    def _is_remembered(self, state: State) -> bool:
        """Whether a run has a place in the window: not the completions of what somebody types, one for each key."""
        tool = self._agent.tools.get(state.calls[0].name) if state.client and state.calls else None
        return tool is None or tool.method != COMPLETE

    async def _waiting(self, rows: list[RunRow]) -> dict[str, RunId]:
        pending = {}
        for row in rows:
            state = None if row.last in ENDED else await read_row(self._journal, row)
            if isinstance(state, State) and state.status is Status.SUSPENDED:
                pending[key_of(state)] = row.run
        return pending


def key_of(state: State) -> str:
    """What was asked of this run, as `key_for` says it."""
    if not state.client:
        return key_for("ask", state.input, None)
    call = state.calls[0]
    return key_for("call", call.name, json.loads(call.arguments))


def key_for(kind: str, name: str, arguments: Json) -> str:
    """The same for what is asked again word for word."""
    asked: Json = [kind, name, {} if arguments is None else arguments]
    try:
        return digest_json(asked)
    except ValueError:  # has no canonical form; the gate says so
        return sha256(json.dumps(asked, sort_keys=True).encode())


def _size(messages: Iterable[Message]) -> int:
    """About how much memory messages take, in bytes."""
    size = 0
    for message in messages:
        size += len(message.text)
        if isinstance(message, AssistantMessage):
            size += sum(len(call.arguments) for call in message.calls)
        elif isinstance(message, ToolMessage):
            size += sum(len(image.data) for image in message.images)
    return size
