"""Approvals at the terminal: what waits, the answer to one, and the question at the end of `run`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from lockstep.agent.locked import LockedAgent
from lockstep.cli.asking import print_question, question_as_json
from lockstep.cli.inputs import AtTheTerminal, ask_input, input_as_json, print_input, said
from lockstep.cli.stores import existing, looking
from lockstep.cli.terminal import account, console, is_interactive, one_line, plain, read_line, user
from lockstep.errors import ApprovalError, InputError, LockError, StoreBusy
from lockstep.journal.events import RunStarted
from lockstep.journal.inbox import Answer as Left
from lockstep.journal.inbox import Inbox
from lockstep.journal.port import Journal
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime.answers import Answer, answer_approval, approvable
from lockstep.runtime.driver import Driver
from lockstep.runtime.inputs import (
    InputQuestion,
    Said,
    answer_input,
    answerable,
    asked_input,
    input_question,
    waiting_input,
)
from lockstep.runtime.live import Attendant
from lockstep.runtime.questions import Question, question_of
from lockstep.runtime.reading import Waiting, read_run
from lockstep.tools.inputs import parse
from lockstep.values import RunId
from lockstep.wiring.approving import agent_of, terms_now

_BUSY_S = 3.0
"""How long an answer waits for whoever writes to the store at this moment."""


def asked_as_json(asked: Question | InputQuestion | None) -> dict[str, Any]:
    """What `approvals --json` adds to a call that waits."""
    if isinstance(asked, InputQuestion):
        return input_as_json(asked)
    return question_as_json(asked) if asked else {}


def print_waiting(out: Console, item: Waiting, asked: Question | InputQuestion | None) -> None:
    """A call that waits for a person, with all there is to decide by."""
    call, state = item.call, item.state
    if call.phase is Phase.DOUBTED:
        named = f"[bold]{plain(call.name)}[/] {one_line(call.arguments)}"
        out.print(f"[yellow]in doubt[/] run {state.run} for {plain(state.principal)}: {named}")
        out.print(f"    {plain(call.why_doubted)}")
        return
    if isinstance(asked, InputQuestion):
        print_input(out, asked)
        return
    if asked is not None:
        print_question(out, asked)
        return
    named = f"[bold]{plain(call.name)}[/] {one_line(call.arguments)}"
    out.print(f"[yellow]{call.approval}[/] run {state.run} for {plain(state.principal)}: {named}")
    out.print(f"    {plain(call.question)}")


async def question_for(journal: Journal, state: State, call: CallState) -> Question | InputQuestion | None:
    """What is asked; None of a call in doubt, or where the run's own lock is not readable."""
    if call.phase is Phase.DOUBTED:
        return None
    recorded = await read_run(journal, state.run)
    started = recorded[0].event
    assert isinstance(started, RunStarted)
    try:
        agent = agent_of(started)
    except LockError:
        return input_question(state, call, None) if call.phase is Phase.NEEDS_INPUT else None
    if call.phase is Phase.NEEDS_INPUT:
        return input_question(state, call, agent.tools.get(call.name))
    return question_of(state, call, recorded, agent)


async def answer(store: Path | None, approval: str, answered: Answer) -> tuple[RunId, bool]:
    """Record an answer; the run, and whether it can go on now."""
    word = "approved" if answered.given else "refused"
    inbox = Inbox(existing(store).directory)
    if inbox.is_attended():  # who takes it can tell nobody here that it came to nothing
        async with looking(store) as journal:
            await approvable(journal, approval, answered, terms_now)
    if inbox.leave(Left(approval=approval, **asdict(answered))):
        console().print(f"{word} {approval}; the gateway that serves this agent takes it from here")
        return RunId(""), False
    async with _opened_soon(store) as journal:
        state = await answer_approval(journal, approval, answered, terms_now)
    call = next(each for each in state.all_calls if each.approval == approval)
    left = call.approvers - len(call.approvals)
    if call.phase is Phase.WAITING:
        who = "1 more person" if left == 1 else f"{left} more people"
        console().print(f"{word} {approval} as {plain(answered.by)}; {who} must approve it")
        return state.run, False
    console().print(f"{word} {approval}; `lockstep resume {state.run}` drives the run on")
    return state.run, True


async def answer_server(store: Path | None, name: str, fields: Sequence[str], word: str, **about: str) -> RunId | None:
    """Record what a person says to a server that asked; the run, which can go on now, unless a gateway takes it."""
    async with looking(store) as journal:
        _, call = await asked_input(journal, name)
        answer = said(parse(call.asked), fields, word, **about)
        await answerable(journal, name, answer)
    left = Left(
        approval=name,
        given=word == "accept",
        by=answer.by,
        because=answer.because,
        login=answer.login,
        input=True,
        responses="" if answer.responses is None else dumps(answer.responses),
    )
    if Inbox(existing(store).directory).leave(left):
        console().print(f"answered {name}; the gateway that serves this agent takes it from here")
        return None
    async with _opened_soon(store) as journal:
        state = await answer_input(journal, name, answer)
    console().print(f"answered {name}; `lockstep resume {state.run}` drives the run on")
    return state.run


@asynccontextmanager
async def _opened_soon(store: Path | None) -> AsyncIterator[Journal]:
    """The store to write, also when another answer is being written at this moment."""
    where, until = existing(store), time.monotonic() + _BUSY_S
    while True:
        try:
            journal = where.journal()
            break
        except StoreBusy:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)
    try:
        yield journal
    finally:
        await journal.close()


def attendant(out: Console, agent: LockedAgent, *, asks: bool) -> Attendant | None:
    """The person at the terminal, if there is one and they may be asked."""
    return AtTheTerminal(out, agent) if asks and is_interactive() else None


async def ask_in_terminal(out: Console, driver: Driver, journal: Journal, state: State, json: bool) -> State:
    """Ask the person at the terminal about each approval; without a terminal the run stays suspended."""
    while state.status is Status.SUSPENDED and not json and is_interactive():
        if (asks := waiting_input(state)) is not None:
            if not await _answer_here(out, journal, state, asks):
                break
            state = await driver.resume(state.run, by=user())
            continue
        call = next((c for c in state.calls if c.phase is Phase.WAITING and user() not in c.approvals), None)
        if call is None:
            break
        out.print()
        asked = await question_for(journal, state, call)
        if isinstance(asked, Question):
            print_question(out, asked)
        else:
            out.print(f"  {plain(call.question)} [bold]{plain(call.name)}[/] {one_line(call.arguments)}")
        typed = await _said(out)
        if typed is None:
            break
        try:
            state = await answer_approval(journal, call.approval, typed, terms_now)
        except (ApprovalError, LockError) as refused:
            out.print(f"[red]{plain(refused.message)}[/] {plain(refused.remedy)}")
            break
        state = await driver.resume(state.run, by=user())
    return state


async def _answer_here(out: Console, journal: Journal, state: State, call: CallState) -> bool:
    """Ask the person at the terminal what a server wants to know; whether they said something."""
    question = await question_for(journal, state, call)
    assert isinstance(question, InputQuestion)
    out.print()
    print_input(out, question)
    answers = await ask_input(out, question.asked)
    if isinstance(answers, bool):
        return False
    try:
        await answer_input(journal, call.input, Said(responses=answers, by=user(), login=account()))
    except InputError as refused:
        out.print(f"[red]{plain(refused.message)}[/] {plain(refused.remedy)}")
        return False
    return True


async def _said(out: Console) -> Answer | None:
    """What was typed: `y` or `n`, and behind it a reason if there is one; None leaves it waiting."""
    typed = await read_line(out, "  approve? \\[y]es, \\[n]o, anything else leaves it waiting: ") or ""
    word, _, because = typed.strip().partition(" ")
    if word.lower() not in ("y", "yes", "n", "no"):
        return None
    given = word.lower().startswith("y")
    if not given and not because:
        because = await read_line(out, "  because: ") or ""
    return Answer(given=given, by=user(), because=because.strip(), login=account())
