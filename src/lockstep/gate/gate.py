"""The gate: judges every tool call and mints the permits. It never executes.

In order: the tool is in the lock; the arguments are valid, and each is traced to where it came from; the call is not
one that must not be repeated; the budget has room; Cedar policy allows it, asks a person, or (by default) denies. That
the tool's live definition matches its pin is checked where the definition is seen: in the sandbox, before the call is
sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lockstep.agent.context import READ
from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.agent.pointers import Missing
from lockstep.errors import PermitError
from lockstep.gate.approvals import Terms, bound_digest, require_bound
from lockstep.gate.arguments import ArgumentChecker, Arguments, Malformed, read
from lockstep.gate.effects import (
    Repeat,
    digest_of,
    effect_key,
    emitted_before,
    freed_by,
    frees,
    probe_arguments,
    split_again,
    standing,
    told,
)
from lockstep.gate.fields import fields_of, present
from lockstep.gate.permit import Permit, PermitMint
from lockstep.gate.policy import Policies, PolicyDecision, PolicyRequest
from lockstep.gate.rounds import Round, round_digest, round_of
from lockstep.gate.sources import Provenance, Tracing
from lockstep.gate.uris import uri_problem
from lockstep.journal.events import ApprovalAsked, CallJudged
from lockstep.journal.port import Stops
from lockstep.journal.stops import require_running
from lockstep.kernel.state import CallState, Phase, State
from lockstep.kernel.usage import fee_too_high, tool_used_up
from lockstep.values import Digest, Effect, JsonObject, canonical, digest_json, new_token, now_ms

PERMIT_TTL_MS = 60_000
"""A permit is for now: long enough for a queue, too short to be kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A call let go: the right to run it, and exactly what that right is for."""

    permit: Permit
    tool: LockedTool
    arguments: JsonObject
    digest: Digest
    key: Digest
    """The same for calls that mean the same effect in a session."""
    round: Round | None = None
    """What a call goes on with whose server asked for input."""


class Gate:
    """The gate of one locked agent. Holds no state of runs: what it must know comes with the run's `State`.

    Whether the agent is stopped is asked of `stops` before every permit.
    """

    def __init__(self, agent: LockedAgent, policies: Policies, stops: Stops) -> None:
        self.agent = agent
        self._stops = stops
        self._policies = policies
        self._arguments = ArgumentChecker({name: tool.input_schema for name, tool in agent.tools.items()})
        self._mint = PermitMint()
        self._tracing = Tracing(agent)
        self._fields = {name: fields_of(tool) for name, tool in agent.tools.items()}

    def judge(self, state: State, call: CallState) -> CallJudged:
        """The verdict on a call the model asked for; every reason is in it."""
        tool = self.agent.tools.get(call.name)
        if tool is None or not (state.client or tool.for_models):
            known = ", ".join(name for name, each in self.agent.tools.items() if each.for_models) or "none"
            return _invalid(call, "tool_hallucinated", f"There is no tool {call.name!r:.100}. Tools: {known}.")
        try:
            arguments, again = split_again(tool, read(call.arguments))
            self._arguments.check(tool.name, arguments)
            if tool.method == READ and (problem := uri_problem(str(arguments.value["uri"]))):
                raise Malformed(f"this uri could be read as another one: {problem}")
        except Malformed as problem:
            note = f"Invalid arguments for {tool.name}: {problem}. Correct them and call again."
            return _invalid(call, "tool_args_malformed", note)
        provenance = self._tracing.of_call(state, tool.name, arguments.value)
        origins, left_out = provenance.recorded()
        verdict = self._judge_valid(state, call, tool, arguments, again, provenance)
        return replace(verdict, origins=origins, origins_left_out=left_out)

    def _judge_valid(
        self,
        state: State,
        call: CallState,
        tool: LockedTool,
        arguments: Arguments,
        again: bool,
        provenance: Provenance,
    ) -> CallJudged:
        digest = _call_digest(state, call, tool, arguments)
        key = effect_key(state, self.agent.name, tool, arguments) if tool.once_only else ""
        done = standing(state, key) if key else None
        if done and not (again and not done.in_doubt):
            return _repeated(call, tool, digest, key, done)
        if done is None and (emitted := emitted_before(state, call, tool, arguments)):
            return _repeated(call, tool, digest, "", emitted)
        if (over := self._over_budget(state, call, tool, digest)) is not None:
            return over
        decision = self._by_policy(state, tool, arguments, provenance)
        if decision.verdict == "deny":
            return _denied(call, tool, digest, "policy_denied", decision.reasons, decision.policies)
        asks, window_s = decision.verdict == "ask", tool.repeats.window_s
        judged = CallJudged(
            call=call.id,
            verdict=decision.verdict,
            digest=digest,
            effect=tool.effect.value,
            policies=decision.policies,
            reasons=decision.reasons if asks else (),
            question=decision.question,
            approvers=self._approvers(decision.approvers) if asks else 1,
            dedupe_key=key,
            dedupe_until_ms=state.last_at_ms + int(window_s * 1000) if key and window_s is not None else None,
            frees=frees(self.agent.tools, tool, arguments.value),
            own_key=done is None and key in state.receipts,
        )
        return _repeat_on_purpose(judged, tool, done, self._approvers(judged.approvers)) if done else judged

    def ask(self, state: State, call: CallState, now_ms: int) -> ApprovalAsked:
        """The question to people about a call that was judged so; it is bound to all that the answer is good for."""
        assert call.digest is not None
        asked = replace(
            call,
            approval=new_token("a"),
            approval_expires_ms=now_ms + int(self.agent.approval_expires_s * 1000),
            principal_may_approve=self.agent.principal_may_approve,
        )
        return ApprovalAsked(
            call=call.id,
            approval=asked.approval,
            digest=call.digest,
            question=call.question or f"Run {call.name}?",
            expires_at_ms=asked.approval_expires_ms,
            bound=bound_digest(state, asked, Terms.of(self.agent)),
            approvers=call.approvers,
            principal_may_approve=asked.principal_may_approve,
        )

    def offered(self, principal: str) -> frozenset[str]:
        """The tools that policy may permit this principal; of the others it permits no call at all."""
        return frozenset(
            name for name in self.agent.tools if self._policies.may_permit(principal, name, self.agent.name)
        )

    def release(self, state: State, call: CallState, now_ms: int) -> Release:
        """Let go of a call that was allowed or approved; its permit is for exactly what was judged, and for once.

        A call that goes on with what its server asked for has another permit, for that round of it, and so has one that
        goes on as a task, for asking after that.

        Raises:
            PermitError: it was not let through, or what would run is not what was judged; nothing ran.
            AgentStopped: somebody stopped the agent.
            StoreError: whether it is stopped cannot be read.
        """
        asks = call.phase is Phase.DOUBTED and call.task_due
        if call.phase not in (Phase.ALLOWED, Phase.APPROVED, Phase.INTENDED, Phase.ANSWERED) and not asks:
            raise PermitError(f"Call {call.id} of run {state.run} was not allowed: it is {call.phase.value}.")
        require_bound(state, call, Terms.of(self.agent))
        tool = self.agent.tools[call.name]
        arguments, _ = split_again(tool, read(call.arguments))
        digest = _call_digest(state, call, tool, arguments)
        if digest != call.digest:
            raise PermitError(
                f"Call {call.id} of run {state.run} is not the one that was judged.",
                remedy=f"`lockstep verify {state.run}` says whether its record was changed.",
            )
        digest = round_digest(call, digest)
        return Release(
            permit=self._permit(digest, now_ms),
            tool=tool,
            arguments=arguments.value,
            digest=digest,
            key=self._key(state, call, tool, arguments),
            round=round_of(call),
        )

    def release_probe(self, state: State, call: CallState, now_ms: int) -> Release:
        """Let go of the question whether a call in doubt happened: a read of its own, which policy must allow.

        Raises:
            PermitError: it has no probe, or the probe may not be asked; nothing ran.
        """
        tool = self.agent.tools[call.name]
        probe = tool.repeats.probe
        if call.phase is not Phase.DOUBTED or probe is None:
            raise PermitError(f"Call {call.id} of run {state.run} is not in doubt, or has no probe.")
        asked = self.agent.tools[probe.tool]
        arguments, _ = split_again(tool, read(call.arguments))
        key = self._key(state, call, tool, arguments)
        try:
            value = probe_arguments(probe, arguments.value, key)
            question = Arguments(value, canonical(value))
            self._arguments.check(asked.name, question)
        except (Missing, Malformed) as problem:
            raise PermitError(f"{asked.name} cannot be asked about this call: {problem}.") from problem
        probing = replace(call, id=f"{call.id}?{call.probes + 1}", name=asked.name)
        digest = _call_digest(state, probing, asked, question)
        decision = self._by_policy(state, asked, question, self._tracing.of_call(state, asked.name, value))
        if decision.verdict != "allow":
            raise PermitError(f"Policy does not allow {asked.name}: {'; '.join(decision.reasons)}")
        permit = self._permit(digest, now_ms)
        return Release(permit=permit, tool=asked, arguments=value, digest=digest, key=digest)

    def _permit(self, digest: Digest, now_ms: int) -> Permit:
        require_running(self._stops, self.agent.name)
        return self._mint.issue(digest, expires_at_ms=now_ms + PERMIT_TTL_MS)

    def freed_by(self, call: CallState, text: str) -> tuple[str, ...]:
        """The terms that end the receipt of this call, now that its result is known."""
        tool = self.agent.tools[call.name]
        return freed_by(tool, read(call.arguments).value, text) if tool.repeats.released_by else ()

    def _key(self, state: State, call: CallState, tool: LockedTool, arguments: Arguments) -> Digest:
        """The idempotency key: of every attempt at this call, and of another try where this one comes to nothing.

        What is to be carried out although the same was before has one of its own, or the service would answer with
        the first: a deliberate repeat, the same call after its receipt has ended, a tool without deduplication.
        """
        key = call.dedupe_key or effect_key(state, self.agent.name, tool, arguments)
        if call.again or call.own_key or not call.dedupe_key:
            return digest_json({"again": f"{state.run}/{call.id}", "key": key})
        return Digest(key)

    def _over_budget(self, state: State, call: CallState, tool: LockedTool, digest: Digest) -> CallJudged | None:
        budget = self.agent.budget
        if not (tool.fee_usd or budget.calls_per_tool or budget.scopes):
            return None  # nothing that what was used would have to be counted for
        others, used = state.others, state.used(state.last_at_ms)
        if (why := tool_used_up(tool.name, used.by_tool.get(tool.name, 0), others, budget)) is not None:
            note = f"Not run: {why}, and that is used up. Do not ask for it again."
            return replace(_denied(call, tool, digest, "budget", (why,)), note=note)
        if (why := fee_too_high(tool.name, tool.fee_usd, used, others, budget)) is not None:
            return _denied(call, tool, digest, "budget", (why,))
        return None

    def _by_policy(
        self, state: State, tool: LockedTool, arguments: Arguments, provenance: Provenance
    ) -> PolicyDecision:
        return self._policies.decide(
            PolicyRequest(
                principal=state.principal,
                tool=tool.name,
                agent=self.agent.name,
                arguments=arguments.value,
                input_schema=tool.input_schema,
                effect=tool.effect.value,
                session=state.session,
                steps=state.totals.steps,
                calls=state.totals.calls,
                cost_usd=state.totals.cost_usd,
                fields=present(self._fields[tool.name], arguments.value),
                provenance=provenance.context,
                guidance=lambda: self._tracing.pointing(state).guidance(arguments.value, provenance.origins),
            )
        )

    def _approvers(self, asked: int) -> int:
        return max(asked, 2 if self.agent.four_eyes else 1)


def _call_digest(state: State, call: CallState, tool: LockedTool, arguments: Arguments) -> Digest:
    """The identity of exactly this call: what approvals and permits are bound to."""
    rest = {"call": call.id, "pin": tool.pin, "run": state.run, "tool": tool.name}
    return digest_of("arguments", arguments.canonical, rest)


def _invalid(call: CallState, error_type: str, note: str) -> CallJudged:
    return CallJudged(call=call.id, verdict="invalid", error_type=error_type, note=note, effect=Effect.READ.value)


def _denied(
    call: CallState,
    tool: LockedTool,
    digest: Digest,
    error_type: str,
    reasons: tuple[str, ...],
    policies: tuple[str, ...] = (),
) -> CallJudged:
    # The model learns that and by what rule it was denied, not the operator's details of the evaluation.
    by = f" ({', '.join(policies)})" if policies else ""
    note = f"Not run: {tool.name} with these arguments was denied by {error_type.removesuffix('_denied')}{by}."
    return CallJudged(
        call=call.id,
        verdict="deny",
        digest=digest,
        effect=tool.effect.value,
        policies=policies,
        reasons=reasons,
        error_type=error_type,
        note=note,
    )


def _repeated(call: CallState, tool: LockedTool, digest: Digest, key: str, done: Repeat) -> CallJudged:
    if done.in_doubt:
        reason = f"the same call is in doubt at {done.where}: settle that first"
        return replace(_denied(call, tool, digest, "in_doubt", (reason,)), note=told(tool.name, done))
    return CallJudged(
        call=call.id,
        verdict="allow",
        digest=digest,
        effect=tool.effect.value,
        reasons=(f"already done at {done.where}",),
        note=told(tool.name, done),
        dedupe_key=key,
        duplicate_of=done.where,
    )


def _repeat_on_purpose(judged: CallJudged, tool: LockedTool, done: Repeat, approvers: int) -> CallJudged:
    """A person is asked before a call is made a second time, whatever policy says of the first."""
    question = f"Run {tool.name} once more? The same call was already made ({done.where})."
    return replace(
        judged,
        verdict="ask",
        again=True,
        approvers=approvers,
        question="\n".join(filter(None, (question, judged.question))),
        reasons=(*judged.reasons, f"a deliberate repeat of {done.where}"),
    )


class Describing:
    """Permits to ask a tool source what it offers: the one sandbox start that is not a call."""

    def __init__(self) -> None:
        self._mint = PermitMint()

    def permit(self, source: LockedTool) -> tuple[Permit, Digest]:
        """A permit and the digest it is bound to: this source with this code, asked once."""
        digest = digest_json({"describe": source.source, "code": dict(source.code)})
        return self._mint.issue(digest, expires_at_ms=now_ms() + PERMIT_TTL_MS), digest
