"""What servers ask for before they go on with a call: as events, as a question to people, and their answers to it.

An answer goes to the server that asked, and to nobody else: no model reads it, and it is no source of later arguments.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lockstep.agent.locked import LockedTool
from lockstep.errors import FenceConflict, InputError
from lockstep.journal import events as ev
from lockstep.journal.port import Journal
from lockstep.journal.stops import require_running
from lockstep.kernel.decide import MAX_ROUNDS
from lockstep.kernel.sampling import unsampled
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime.answers import append
from lockstep.runtime.live import Attendant, Live
from lockstep.runtime.reading import read_state, unfinished
from lockstep.runtime.sampling import MODEL, Sampler, said_by_model
from lockstep.tools.forms import BadValue
from lockstep.tools.inputs import ELICIT, Asked, Request, parse
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.tools.samples import for_model
from lockstep.values import JsonObject, new_token, now_ms

LOCKSTEP = "lockstep"
"""Who answers where nobody is asked: a question that may not be put to people, or none at all."""
ACTIONS = ("accept", "decline", "cancel")
MAX_ANSWER_BYTES = 2**20
ATTEND_S = 600.0
"""How long somebody who is there has to answer a server that holds its call open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputQuestion:
    """Everything that a person is shown of what a server asks for."""

    run: str
    call: str
    agent: str
    principal: str
    input: str
    tool: str
    server: str
    arguments: str
    round: int
    asked: Asked
    expires_at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a person, or their client, answers. `responses` None ends the call: its server gets no answer."""

    responses: JsonObject | None
    by: str
    because: str = ""
    login: str = ""


def input_question(state: State, call: CallState, tool: LockedTool | None) -> InputQuestion:
    """The question that this call waits for an answer to."""
    return InputQuestion(
        run=state.run,
        call=call.id,
        agent=state.agent,
        principal=state.principal,
        input=call.input,
        tool=call.name,
        server=server_of(tool),
        arguments=call.arguments,
        round=call.rounds,
        asked=parse(call.asked),
        expires_at_ms=call.input_expires_ms,
    )


def live_question(state: State, call: CallState, asked: Asked, tool: LockedTool | None) -> InputQuestion:
    """The question that the server of this call holds it open for."""
    expires_at_ms = now_ms() + int(ATTEND_S * 1000)
    held = replace(call, input=call.live, rounds=1, asked=asked.text, input_expires_ms=expires_at_ms)
    return input_question(state, held, tool)


def server_of(tool: LockedTool | None) -> str:
    """Who asks: the command or address of the tool's server, as the lock has it."""
    return tool.source.partition(":")[2] if tool else "a server that is not in the lock"


def round_asked(call: CallState, outcome: Outcome, expires_s: float, *, samples: bool = False) -> list[ev.Event]:
    """A result that requires input, as events: with the answer, where nobody is to be asked. `samples`: the agent's own
    model answers what is for a model."""
    assert outcome.asked is not None
    asked = for_model(outcome.asked) if samples else outcome.asked
    event = ev.InputAsked(
        call=call.id,
        input=new_token("q"),
        asked=asked.text,
        digest=asked.digest,
        expires_at_ms=call.input_expires_ms or now_ms() + int(expires_s * 1000),
        acted=outcome.acted,
        tier=outcome.tier.value,
        start_ms=outcome.queue_ms + outcome.start_ms,
        run_ms=outcome.run_ms,
        egress=outcome.egress,
    )
    because = asked.unanswerable
    if call.rounds >= MAX_ROUNDS:
        because = f"it asked for input more than {MAX_ROUNDS} times"
    if because:
        return [event, _given(event, None, by=LOCKSTEP, because=because)]
    if not asked.open and not asked.for_model:
        why = "; ".join(each.refused for each in asked.requests)
        return [event, _given(event, asked.responses({}), by=LOCKSTEP, because=why)]
    return [event]


def ask_live(live: Live, item: PermittedCall, sampler: Sampler) -> Ask | None:
    """How a server that holds its call open is answered: by who is there, within `ATTEND_S`; else it is cancelled. What
    it asks of a model, by the agent's own where its entry says so."""
    if not item.tool.asks:
        return None
    left = MAX_ROUNDS

    async def ask(asked: Asked) -> JsonObject | None:
        nonlocal left
        left -= 1
        asked = for_model(asked) if item.tool.samples else asked
        async with live.asking:
            event = ev.InputAsked(
                call=item.id,
                input=new_token("q"),
                asked=asked.text,
                digest=asked.digest,
                expires_at_ms=now_ms() + int(ATTEND_S * 1000),
                live=True,
            )
            live.record(event)
            await live.flush()
            why = "; ".join(each.refused for each in asked.requests if each.refused)
            if not why and left < 0:
                why = f"it asked for input more than {MAX_ROUNDS} times"
            said = None
            if asked.for_model and not why:
                why = await sampler.held_open(live, item.id, event.input, asked.for_model[0])
                said = None if why else said_by_model(live.state.call(item.id), event.input)
            elif not why and live.attendant is not None:
                said = await _attended(live.attendant, live.state, live.state.call(item.id), asked)
            if said is not None and asked.for_model:
                given = _given(event, said, by=MODEL)
            elif said is not None and live.attendant is not None:
                given = _given(event, said, by=live.attendant.by, login=live.attendant.login)
            else:
                said = _nobody_says(asked, "decline" if why else "cancel")
                given = _given(event, said, by=LOCKSTEP, because=why or "nobody was there to answer")
            live.record(given)
            await live.flush()
            return said

    return ask


def _nobody_says(asked: Asked, action: str) -> JsonObject | None:
    """What a server is told where nobody answers it; None where the protocol has no word for that."""
    if any(each.method != ELICIT for each in asked.requests):
        return None
    return {each.key: {"action": action} for each in asked.requests}


async def _attended(attendant: Attendant, state: State, call: CallState, asked: Asked) -> JsonObject | None:
    try:
        async with asyncio.timeout(ATTEND_S):
            said = await attendant.answer(state, call, asked)
    except TimeoutError:
        return None
    return None if said is None or problem_of(asked, said) else cleaned(asked, said)


def _given(
    asked: ev.InputAsked, responses: JsonObject | None, *, by: str, because: str = "", login: str = ""
) -> ev.InputGiven:
    return ev.InputGiven(
        call=asked.call,
        input=asked.input,
        digest=asked.digest,
        responses=_as_text(responses),
        by=by,
        because=because,
        login=login,
    )


def _as_text(responses: JsonObject | None) -> str:
    """As the event holds them; empty where the server is told nothing."""
    return "" if responses is None else json.dumps(responses, separators=(",", ":"))


async def answer_input(journal: Journal, name: str, said: Said) -> State:
    """Record an answer to what a server asked; exactly that question, once.

    Returns:
        The state after it; whoever drives the run goes on with the call.
    Raises:
        InputError: nothing waits for it, it has expired, or the answer is none that was asked for.
        AgentStopped: somebody stopped the agent; ending the call is possible all the same.
    """
    state, call = await answerable(journal, name, said)
    if said.responses is not None:
        asked = parse(call.asked)
        said = replace(said, responses={**cleaned(asked, said.responses), **said_by_model(call, call.input)})
    assert call.asked_digest is not None
    event = ev.InputGiven(
        call=call.id,
        input=call.input,
        digest=call.asked_digest,
        responses=_as_text(said.responses),
        by=said.by,
        because=said.because,
        login=said.login,
    )
    try:
        await append(journal, state, event)
    except FenceConflict:
        await asked_input(journal, name)  # says that somebody was faster
        raise
    return await read_state(journal, state.run)


async def answerable(journal: Journal, name: str, said: Said) -> tuple[State, CallState]:
    """The call that this answer would be for. Only reads: also for whoever hands the answer to another process.

    Raises:
        InputError, AgentStopped: the answer would come to nothing, as for `answer_input`.
    """
    state, call = await asked_input(journal, name)
    if said.responses is not None:
        require_running(journal, state.agent)
        if unsampled(call) is not None:
            raise InputError(
                "The agent's model has not answered its part of it yet.",
                remedy=f"`lockstep resume {state.run}` has it asked; then answer.",
            )
        if problem := problem_of(parse(call.asked), said.responses):
            raise InputError(problem, remedy="`lockstep approvals` shows what it takes.")
    return state, call


async def asked_input(journal: Journal, name: str) -> tuple[State, CallState]:
    """The call that waits for this answer.

    Raises:
        InputError: none does.
    """
    for state in await unfinished(journal):
        if not isinstance(state, State):
            continue
        for call in state.calls:
            if call.input != name or not name:
                continue
            if call.phase is not Phase.NEEDS_INPUT:
                raise InputError(f"{name} was already answered.", remedy=f"`lockstep show {state.run}` says more.")
            if now_ms() >= call.input_expires_ms:
                raise InputError(f"{name} has expired.", remedy=f"`lockstep resume {state.run}` goes on without it.")
            return state, call
    raise InputError(f"Nothing waits for {name}.", remedy="`lockstep approvals` lists what waits.")


def waiting_input(state: State) -> CallState | None:
    """The call of a suspended run that waits for an answer to its server."""
    if state.status is not Status.SUSPENDED:
        return None
    return next((call for call in state.calls if call.phase is Phase.NEEDS_INPUT), None)


def problem_of(asked: Asked, responses: Mapping[str, Any]) -> str:
    """Why these answers are not those that were asked for, as a sentence; empty when they are."""
    if len(json.dumps(responses)) > MAX_ANSWER_BYTES:
        return f"An answer has at most {MAX_ANSWER_BYTES} bytes."
    for request in asked.open:
        if request.key not in responses:
            return f"{request.key!r:.100} is not answered."
        if problem := _problem_of(request, responses[request.key]):
            return problem
    return ""


def cleaned(asked: Asked, responses: Mapping[str, Any]) -> JsonObject:
    """Answers without what was not asked for, and with a decline where a question was refused."""
    said: dict[str, Any] = {}
    for request in asked.open:
        answer = responses[request.key]
        if request.method == ELICIT:
            kept = ("action", "content") if request.form and answer["action"] == "accept" else ("action",)
            answer = {name: answer[name] for name in kept if name in answer}
        said[request.key] = answer
    return asked.responses(said)


def _problem_of(request: Request, said: Any) -> str:
    if not isinstance(said, Mapping):
        return f"The answer to {request.key!r:.100} is none."
    match request.kind:
        case "sampling":
            return "" if "content" in said and "role" in said else "A message has a role and content."
        case "roots":
            return "" if isinstance(said.get("roots"), list) else "Roots are a list."
    if said.get("action") not in ACTIONS:
        return f"An answer is one of {', '.join(ACTIONS)}."
    if request.form is None or said["action"] != "accept":
        return ""
    content = said.get("content")
    try:
        request.form.check(content if isinstance(content, Mapping) else {})
    except BadValue as problem:
        return str(problem)
    return ""


def filled(asked: Asked, fields: Mapping[str, Sequence[str]]) -> JsonObject:
    """The answers of a person who accepts, from what they typed by field; `KEY/NAME` where several forms are open.

    Raises:
        InputError: a value is missing, unknown, or none that is taken; or nobody can answer it here.
    """
    if unable := next((each for each in asked.open if each.kind in ("sampling", "roots")), None):
        raise InputError(
            f"It asks for {unable.kind}, which only a client that is connected can answer.",
            remedy="`--cancel` ends the call.",
        )
    by_key: dict[str, dict[str, Sequence[str]]] = {each.key: {} for each in asked.open}
    for name, texts in fields.items():
        key, field = _place(asked, name)
        by_key[key][field] = texts
    said: dict[str, Any] = {}
    for request in asked.open:
        said[request.key] = {"action": "accept"}
        try:
            if request.form is not None:
                said[request.key]["content"] = request.form.fill(by_key[request.key])
        except BadValue as problem:
            raise InputError(str(problem), remedy="`lockstep approvals` shows what it takes.") from problem
    return said


def _place(asked: Asked, name: str) -> tuple[str, str]:
    """Which form a field is of."""
    forms = [each for each in asked.open if each.form is not None]
    for each in forms:
        if name.startswith(f"{each.key}/"):
            return each.key, name.removeprefix(f"{each.key}/")
    having = [each.key for each in forms if each.form and any(field.name == name for field in each.form.fields)]
    if len(having) > 1:
        raise InputError(f"{len(having)} of the forms have a field {name!r}.", remedy=f"Say {having[0]}/{name}=...")
    if not having and not forms:
        raise InputError("No fields are asked for.", remedy="`--accept` answers it.")
    return (having or [forms[0].key])[0], name


def all_say(asked: Asked, action: str) -> JsonObject | None:
    """One word to all questions; None, which ends the call, where the protocol has no such word for one of them."""
    if any(each.kind in ("sampling", "roots") for each in asked.open):
        return None
    return {each.key: {"action": action} for each in asked.open}
