"""A run as a recording: what its model replied to what, to be run again without a provider."""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.journal import events as ev
from lockstep.journal.events import Recorded
from lockstep.kernel.apply import apply, start
from lockstep.kernel.transcript import UNSEEDED
from lockstep.model.port import AskedCall, AssistantMessage, Message, Reply, ToolMessage, Usage, UserMessage
from lockstep.model.recording import Recording, Turn
from lockstep.values import Digest, RunId, parse_usd


def recording_of(recorded: Sequence[Recorded]) -> Recording:
    """The recording of one run by itself, without the session's history before it."""
    started = recorded[0].event
    assert isinstance(started, ev.RunStarted)
    state = start(RunId(""), UNSEEDED)
    turns: list[Turn] = []
    to_servers: dict[Digest, Reply] = {}
    heard = 0
    model = ""
    for item in recorded:
        if isinstance(item.event, ev.ModelReplied):
            turns.append(Turn(expects=_said_to_model(state.transcript.messages[heard:]), reply=_reply(item.event)))
            heard = len(state.transcript.messages) + 1
            model = f"{item.event.provider}:{item.event.model}"
        elif isinstance(item.event, ev.ModelSampled) and not item.event.failure:
            to_servers.setdefault(item.event.digest, _reply(item.event))
        state = apply(state, item.event, item.at_ms)
    return Recording(
        model=model,
        turns=tuple(turns),
        unanswered=_said_to_model(state.transcript.messages[heard:]),
        agent=started.agent,
        lock=started.lock,
        to_servers=to_servers,
    )


def _said_to_model(messages: Sequence[Message]) -> tuple[UserMessage | ToolMessage, ...]:
    return tuple(message for message in messages if not isinstance(message, AssistantMessage))


def _reply(event: ev.ModelReplied | ev.ModelSampled) -> Reply:
    calls = event.calls if isinstance(event, ev.ModelReplied) else ()
    return Reply(
        text=event.text,
        calls=tuple(AskedCall(provider_id=c.provider_id, name=c.name, arguments=c.arguments) for c in calls),
        usage=Usage(
            input_tokens=event.input_tokens,
            output_tokens=event.output_tokens,
            cache_read_tokens=event.cache_read_tokens,
            cache_write_tokens=event.cache_write_tokens,
            reasoning_tokens=event.reasoning_tokens,
        ),
        cost_usd=parse_usd(event.cost_usd),
        price_book=event.price_book,
        model=event.model,
        provider=event.provider,
        finish_reason=event.finish_reason,
    )
