"""What happened, as events: a model's reply, a tool's outcome, a probe's answer, the end of a run."""

from __future__ import annotations

from typing import Any

from lockstep.gate.effects import probed, told
from lockstep.gate.gate import Gate
from lockstep.journal import events as ev
from lockstep.journal.attachments import pack
from lockstep.kernel import decide as do
from lockstep.kernel.apply import JOINED
from lockstep.kernel.state import CallState, Phase, Receipt, State
from lockstep.model.port import AskedCall, Failure, Reply
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.tools.samples import Sample
from lockstep.values import Effect, format_usd

CLIENT = "mcp-client"
"""What stands as the provider where a client asked for a call and no model did."""


def replied(command: do.Infer, answer: Reply | Failure, latency_ms: float) -> ev.Event:
    if isinstance(answer, Failure):
        return ev.ModelFailed(
            step=command.step,
            attempt=command.attempt,
            kind=answer.kind.value,
            message=answer.message,
            transient=answer.kind.transient,
            status=answer.status,
            retry_after_s=answer.retry_after_s,
            latency_ms=latency_ms,
        )
    calls = tuple(
        ev.Asked(id=f"{command.step}.{place}", provider_id=c.provider_id, name=c.name, arguments=c.arguments)
        for place, c in enumerate(answer.calls)
    )
    return ev.ModelReplied(step=command.step, calls=calls, latency_ms=latency_ms, **_said(answer))


def sampled(
    call_id: str, question: str, key: str, sample: Sample, answer: Reply | Failure, latency_ms: float
) -> ev.ModelSampled:
    """What came of asking the model for a server. Calls that it asks for there are nobody's."""
    about: dict[str, Any] = _said(answer) if isinstance(answer, Reply) else _failed(answer)
    return ev.ModelSampled(
        call=call_id,
        input=question,
        key=key,
        digest=sample.prompt.digest,
        ignored=sample.ignored,
        latency_ms=latency_ms,
        **about,
    )


def _said(answer: Reply) -> dict[str, Any]:
    """What both events of a reply have of it."""
    return {
        "text": answer.text,
        "model": answer.model,
        "provider": answer.provider,
        "finish_reason": answer.finish_reason,
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "cache_read_tokens": answer.usage.cache_read_tokens,
        "cache_write_tokens": answer.usage.cache_write_tokens,
        "reasoning_tokens": answer.usage.reasoning_tokens,
        "cost_usd": format_usd(answer.cost_usd),
        "price_book": answer.price_book,
    }


def _failed(answer: Failure) -> dict[str, Any]:
    return {
        "failure": answer.kind.value,
        "message": answer.message,
        "transient": answer.kind.transient,
        "retry_after_s": answer.retry_after_s,
    }


def called(client: str, asked: AskedCall) -> ev.ModelReplied:
    """A client's call, as the reply of a model that asks for this and nothing else; it costs nothing."""
    call = ev.Asked(id="1.0", provider_id=asked.provider_id, name=asked.name, arguments=asked.arguments)
    return ev.ModelReplied(
        step=1, calls=(call,), model=client, provider=CLIENT, finish_reason="tool_calls", cost_usd="0"
    )


def answered(
    call: CallState, *, given: bool, by: str, because: str = "", login: str = "", standing: str = ""
) -> ev.ApprovalGiven | ev.ApprovalRefused:
    """An answer to exactly what was asked."""
    assert call.digest is not None
    if given:
        return ev.ApprovalGiven(
            call=call.id,
            approval=call.approval,
            digest=call.digest,
            by=by,
            bound=call.bound,
            because=because,
            login=login,
            standing=standing,
        )
    return ev.ApprovalRefused(
        call=call.id,
        approval=call.approval,
        digest=call.digest,
        by=by,
        because=because,
        bound=call.bound,
        login=login,
    )


def finished(state: State, command: do.Finish) -> ev.RunFinished:
    totals = state.totals
    return ev.RunFinished(
        stop_reason=command.stop_reason,
        output=state.output if state.replied else "",
        message=command.message,
        steps=totals.steps,
        calls=totals.calls,
        cost_usd=format_usd(totals.cost_usd),
    )


def retried(call: CallState, outcome: Outcome) -> ev.EffectRetried:
    attempt = call.attempts + 1
    delays_s = do.TASK_RETRY_S if call.kept_task else do.RETRY_S
    return ev.EffectRetried(
        call=call.id,
        attempt=attempt,
        outcome=outcome.kind,
        why=outcome.text,
        delay_ms=int(delays_s[min(attempt, len(delays_s)) - 1] * 1000),
        unknown=outcome.unknown,
        heard=outcome.heard,
        detail=outcome.detail,
        tier=outcome.tier.value,
        run_ms=outcome.run_ms,
        egress=outcome.egress,
    )


def doubted(call_id: str, outcome: Outcome) -> ev.EffectDoubted:
    why = outcome.text if outcome.unknown else f"an earlier attempt may have been carried out; then: {outcome.text}"
    return ev.EffectDoubted(
        call=call_id,
        why=why,
        detail=outcome.detail,
        tier=outcome.tier.value,
        degraded=outcome.degraded,
        run_ms=outcome.run_ms,
        egress=outcome.egress,
    )


def dropped(call: CallState, outcome: str, why: str) -> ev.EffectSettled | ev.EffectDoubted:
    """A call that ends between two rounds: not carried out, unless a request of an earlier round may have been."""
    if call.unsure and call.effect in (Effect.ONCE, Effect.KEYED):
        why = f"it asked for input after a request that may have changed something, and went no further: {why}"
        return ev.EffectDoubted(call=call.id, why=why)
    text = f"Not carried out: {call.name} asked for input and went no further, because {why.rstrip('.')}."
    return ev.EffectSettled(call=call.id, outcome=outcome, text=text)


def cancelled(state: State, by: str, why: str) -> list[ev.Event]:
    """The end of an unfinished run for good. What was let go and is not settled stays in doubt."""
    intended = [call for call in state.calls if call.phase is Phase.INTENDED]
    asking = [call for call in state.calls if call.phase in (Phase.NEEDS_INPUT, Phase.ANSWERED)]
    unknown = [call.name for call in asking if call.unsure]
    doubted = unknown + [call.name for call in state.calls if call.phase in (Phase.DOUBTED, Phase.INTENDED)]
    message = f"Cancelled by {by}."
    if doubted:
        message += f" {', '.join(doubted)} may have happened: nobody settled it."
    totals = state.totals
    end = ev.RunFinished(
        stop_reason="cancelled",
        message=message,
        steps=totals.steps,
        calls=totals.calls,
        cost_usd=format_usd(totals.cost_usd),
    )
    return [
        *(ev.EffectDoubted(call=call.id, why=why) for call in intended),
        *(dropped(call, "not_continued", "the run was cancelled") for call in asking),
        end,
    ]


def settled(
    item: PermittedCall, outcome: Outcome, *, late: bool, freed_by: tuple[str, ...], reply: str = ""
) -> ev.EffectSettled:
    fee = item.tool.fee_usd if outcome.kind == "ok" else None
    return ev.EffectSettled(
        call=item.id,
        outcome=outcome.kind,
        text=outcome.text,
        detail=outcome.detail,
        attachments=pack(outcome.attachments),
        reply=reply,
        tier=outcome.tier.value,
        degraded=outcome.degraded,
        warm=outcome.warm,
        queue_ms=outcome.queue_ms,
        start_ms=outcome.start_ms,
        run_ms=outcome.run_ms,
        cpu_s=outcome.cpu_s,
        peak_memory_bytes=outcome.peak_memory_bytes,
        fee_usd=format_usd(fee) if fee else None,
        egress=outcome.egress,
        freed_by=freed_by,
        late=late,
    )


def joined(call: CallState, other: Receipt) -> ev.EffectSettled:
    """A call that was let go and did not run: another session of the principal had intended the same one before."""
    outcome = "in_doubt_elsewhere" if other.in_doubt else JOINED
    return ev.EffectSettled(call=call.id, outcome=outcome, text=told(call.name, other), detail=other.where)


def answer_of_probe(gate: Gate, call: CallState, asked: str, outcome: Outcome, now_ms: int) -> ev.Event:
    """What an answer decides: that it happened, that it did not, or nothing yet."""
    probe = gate.agent.tools[call.name].repeats.probe
    assert probe is not None
    said = probed(probe, outcome.text) if outcome.kind == "ok" else "unclear"
    if said == "found":
        text = f"{call.name} did happen: {asked} found it. It says: {outcome.text}"
        freed_by = gate.freed_by(call, outcome.text)
        return ev.EffectReconciled(call=call.id, happened=True, by=asked, text=text, freed_by=freed_by)
    settles_at_ms = None
    if probe.settles_after_s is not None and not call.kept_task:  # which may still be carried out, whenever that is
        settles_at_ms = call.doubted_at_ms + int(probe.settles_after_s * 1000)
    if said == "not_found" and settles_at_ms is not None and now_ms >= settles_at_ms:
        text = f"{call.name} did not happen: {asked} did not find it. It may be called again."
        return ev.EffectReconciled(call=call.id, happened=False, by=asked, text=text)
    again_at_ms = settles_at_ms if said == "not_found" else None
    if again_at_ms is None and call.probes < len(do.PROBE_S):
        again_at_ms = now_ms + int(do.PROBE_S[call.probes] * 1000)
    kind = "not_found" if said == "not_found" else outcome.kind if outcome.kind != "ok" else "unclear"
    return ev.EffectProbed(call=call.id, tool=asked, outcome=kind, text=outcome.text, again_at_ms=again_at_ms)
