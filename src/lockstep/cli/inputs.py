"""What a server asks for before it goes on with a call: how that looks, and how a person answers it at the terminal.

The server's own words are shown as such: behind a bar, with what would steer a terminal escaped. No address is opened
by us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from lockstep.agent.locked import LockedAgent
from lockstep.cli.asking import expires
from lockstep.cli.terminal import account, one_line, plain, read_line, user
from lockstep.errors import InputError
from lockstep.kernel.decide import MAX_ROUNDS
from lockstep.kernel.state import CallState, State
from lockstep.runtime.inputs import InputQuestion, Said, all_say, filled, live_question
from lockstep.tools.forms import BadValue, Field, Form
from lockstep.tools.inputs import Asked, Request
from lockstep.values import JsonObject

_SHOWN_CHARS = 300


def print_input(out: Console, asked: InputQuestion) -> None:
    """Everything a person needs to answer a server, or not to."""
    out.print(f"[yellow]{asked.input}[/] [dim]run {asked.run} of {plain(asked.agent)} for[/] {plain(asked.principal)}")
    nth = f", question {asked.round} of at most {MAX_ROUNDS}" if asked.round > 1 else ""
    server = one_line(asked.server, _SHOWN_CHARS)
    out.print(f"  asks      the server of [bold]{plain(asked.tool)}[/]: {server}[dim]{nth}[/]")
    out.print(f"  call      [bold]{plain(asked.tool)}[/] {one_line(asked.arguments, _SHOWN_CHARS)}")
    for request in asked.asked.requests:
        _print_request(out, request, named=len(asked.asked.requests) > 1)
    out.print("  answered  the values go to that server and into the record; no model sees them")
    out.print(f"  expires   {expires(asked.expires_at_ms)}")


def _print_request(out: Console, request: Request, *, named: bool) -> None:
    if request.refused:
        out.print(f"  refused   {plain(request.key)}: {plain(request.refused)}")
        return
    if request.by_model:
        out.print(f"  model     {plain(request.key)}: the agent's own model answers this part")
        return
    says = request.message or f"(it asks for {request.kind}, which only a client that is connected can answer)"
    for place, line in enumerate(says.splitlines() or [""]):
        out.print(f"  {'says' if place == 0 else '':<9} [yellow]│ {plain(line)}[/]")
    if named:
        out.print(f"  {'as':<9} {plain(request.key)}")
    if request.kind == "url":
        out.print(f"  address   {plain(request.url)}")
        out.print(f"  {'':<9} [yellow]a page of {plain(request.host)}; open it yourself, then accept[/]")
    for place, field in enumerate(request.form.fields if request.form else ()):
        out.print(f"  {'field' if place == 0 else '':<9} {_field(field)}")


def _field(field: Field) -> str:
    needed = ", needed" if field.required and field.default is None else ""
    default = "" if field.default is None else f", {plain(_shown(field.default))} if you say nothing"
    words = " ".join(filter(None, (field.title if field.title != field.name else "", field.description)))
    about = f" [yellow]│ {one_line(words, _SHOWN_CHARS)}[/]" if words else ""
    warned = " [red](it sounds like a secret: what you type is recorded)[/]" if field.sounds_secret else ""
    return f"[bold]{plain(field.name)}[/] {one_line(field.takes, _SHOWN_CHARS)}{needed}{default}{about}{warned}"


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ",".join(map(str, value))
    return str(value)


def input_as_json(asked: InputQuestion) -> dict[str, Any]:
    """What `approvals --json` says of a call that waits for input."""
    return {
        "run_id": asked.run,
        "call": asked.call,
        "input": asked.input,
        "agent": asked.agent,
        "principal": asked.principal,
        "tool": asked.tool,
        "server": asked.server,
        "arguments": asked.arguments,
        "round": asked.round,
        "expires_at_ms": asked.expires_at_ms,
        "requests": [_request_as_json(each) for each in asked.asked.requests],
    }


def _request_as_json(request: Request) -> dict[str, Any]:
    fields = [asdict(each) | {"takes": each.takes} for each in request.form.fields] if request.form else []
    return {
        "key": request.key,
        "kind": request.kind,
        "message": request.message,
        "url": request.url or None,
        "fields": fields,
        "refused": request.refused or None,
        "by_model": request.by_model,
    }


def said(asked: Asked, fields: Sequence[str], word: str, *, by: str, because: str) -> Said:
    """What `lockstep answer` says; `word` is `accept`, `decline` or `cancel`.

    Raises:
        InputError: the values are not those that were asked for.
    """
    responses = filled(asked, _by_name(fields)) if word == "accept" else all_say(asked, word)
    return Said(responses=responses, by=by, because=because, login=account())


def _by_name(fields: Sequence[str]) -> Mapping[str, Sequence[str]]:
    given: dict[str, list[str]] = {}
    for each in fields:
        name, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"--field {each!r:.100} says no value.", remedy="Say --field NAME=VALUE.")
        given.setdefault(name, []).append(value)
    return given


async def ask_input(out: Console, asked: Asked, otherwise: str = "leaves it waiting") -> JsonObject | bool | None:
    """What the person at the terminal answers: by key; None ends the call; False leaves it waiting."""
    typed = await read_line(out, f"  answer? \\[y]es, \\[d]ecline, \\[c]ancel, anything else {otherwise}: ")
    word = (typed or "").lower()
    if word in ("d", "decline", "n", "no"):
        return all_say(asked, "decline")
    if word in ("c", "cancel"):
        return all_say(asked, "cancel")
    if word not in ("y", "yes"):
        return False
    given: dict[str, Sequence[str]] = {}
    for request in asked.open:
        for field in request.form.fields if request.form else ():
            if (value := await _typed(out, field)) is None:
                return False
            if value:
                given[f"{request.key}/{field.name}"] = [value]
    try:
        answers = filled(asked, given)
    except InputError as problem:
        out.print(f"  [red]{plain(problem.message)}[/]")
        return False
    sent = await read_line(out, f"  send this? \\[y]es, anything else {otherwise}: ")
    return answers if (sent or "").lower() in ("y", "yes") else False


async def _typed(out: Console, field: Field) -> str | None:
    """What was typed for this field, until it takes it; empty for nothing, None when the terminal was closed."""
    while True:
        typed = await read_line(out, f"  {one_line(field.name)} ({one_line(field.takes, _SHOWN_CHARS)}): ")
        if typed is None:
            return None
        try:
            Form(fields=(field,)).fill({field.name: [typed]} if typed else {})
        except BadValue as problem:
            out.print(f"  [red]{plain(str(problem))}[/]")
            continue
        return typed


class AtTheTerminal:
    """The person at the terminal, asked at once what a server holds its call open for."""

    offers = frozenset({"elicitation"})

    def __init__(self, out: Console, agent: LockedAgent) -> None:
        self._out = out
        self._agent = agent
        self.by = user()
        self.login = account()

    async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
        shown = live_question(state, call, asked, self._agent.tools.get(call.name))
        self._out.print()
        print_input(self._out, shown)
        answers = await ask_input(self._out, asked, "is a cancel")
        return answers if isinstance(answers, dict) else None
