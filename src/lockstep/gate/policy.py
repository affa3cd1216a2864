"""Cedar policies: read from files, checked against the tools' schemas, asked about one call.

Default deny. A `forbid` with `@ask("...")` asks a person instead, when nothing else stands against the call. Two of
Cedar's habits are closed here: it skips a policy whose evaluation errors (any error denies), and it has no floats and
no null (`cedar_values` writes arguments exactly or not at all). Refuses to validate arguments and to make permits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from lockstep.gate.cedar_schema import FIELD_KINDS, Record, argument_types, cedar_schema, context_type
from lockstep.gate.cedar_values import Unmappable, cost_to_decimal, prune, to_cedar
from lockstep.gate.policy_check import Findings
from lockstep.gate.policy_text import Policy, is_unicode, read_policies
from lockstep.values import JsonObject

_CEDAR_ID = re.compile(r"`?policy(\d+)`?")


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRequest:
    """One call as policies see it; `arguments` are already valid under `input_schema`."""

    principal: str
    tool: str
    agent: str
    arguments: JsonObject
    input_schema: JsonObject
    effect: str
    session: str
    steps: int
    calls: int
    cost_usd: Decimal | None
    """None is unknown: the attribute `context.run.cost_usd` is then absent."""
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Kind -> JSON pointers of this call's arguments that are of it: `context.fields`."""
    provenance: Callable[[], JsonObject] | None = None
    """Gives `context.provenance`, and is called only where a policy reads of it; without it such a policy denies."""
    guidance: Callable[[], JsonObject] | None = None
    """Gives `context.guidance`, likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyDecision:
    """The verdict, the names of the policies that determined it, and why, in sentences for the operator."""

    verdict: Literal["allow", "deny", "ask"]
    policies: tuple[str, ...]
    reasons: tuple[str, ...]
    question: str = ""
    approvers: int = 1
    """How many people must approve, where the verdict is to ask."""


class Policies:
    """The policies of one agent, parsed once. Immutable; `decide` may be called from several threads."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        import cedarpy  # lazy: 30 ms that `lockstep --help` does not pay

        self.policies = tuple(policies)
        self._cedar = cedarpy
        self._all = cedarpy.PolicySet.from_str(_joined(self.policies))
        self._unasked = cedarpy.PolicySet.from_str(_joined(each for each in self.policies if each.question is None))
        self._scopes = cedarpy.PolicySet.from_str("\n".join(map(_scope, filter(_final, self.policies))))
        self._no_entities = cedarpy.Entities.from_json_str("[]")
        self._reads = frozenset(path for policy in self.policies for path in policy.reads)
        self._contexts: dict[str, tuple[JsonObject, Record]] = {}

    @classmethod
    def parse(cls, files: Mapping[str, str]) -> Policies:
        """Read Cedar files (name -> text). None at all is fine and denies everything.

        Raises:
            ConfigError: Cedar refuses a file (the message says where and why), a template, `@ask` on a permit, or two
                policies with one name.
        """
        return cls(read_policies(files))

    def problems(self, tools: Mapping[str, JsonObject]) -> tuple[str, ...]:
        """What is wrong with the policies for these tools (name -> input schema), a sentence each; empty when sound."""
        arguments = {tool: argument_types(schema) for tool, schema in tools.items()}
        contexts = {tool: context_type(types.record) for tool, types in arguments.items()}
        result = self._cedar.validate_policies(_joined(self.policies), json.dumps(cedar_schema(contexts)))
        messages: dict[int, list[str]] = {index: [] for index in range(len(self.policies))}
        for error in result.errors:
            number = _CEDAR_ID.fullmatch(error.policy_id)
            if number is None:
                return (f"The policies cannot be checked against the tools: {error.error}.",)
            messages[int(number[1])].append(error.error)
        found = (
            sentence
            for index, policy in enumerate(self.policies)
            for sentence in Findings(policy, arguments, contexts).sentences(messages[index])
        )
        return tuple(found)

    def decide(self, request: PolicyRequest) -> PolicyDecision:
        """Allow, deny or ask. Anything that cannot be evaluated exactly is a deny that says so."""
        try:
            question = self._question_for_cedar(request)
        except Unmappable as why:
            reason = f"The policies cannot judge this call: {why}."  # the tool may be what is not text
            return PolicyDecision(verdict="deny", policies=(), reasons=(reason,))
        answer = self._cedar.is_authorized(question, self._all, self._no_entities)
        determining = self._named(answer.diagnostics.reasons)
        if answer.diagnostics.errors:
            return self._unevaluated(answer.diagnostics.errors, determining)
        if answer.allowed:
            return _decision("allow", determining, "permits it")
        if not determining:
            reason = f"No policy permits `{request.tool}` here, and what is not permitted is denied."
            return PolicyDecision(verdict="deny", policies=(), reasons=(reason,))
        firm = [policy for policy in determining if policy.question is None]
        if firm:
            return _decision("deny", firm, "forbids it")
        if not self._cedar.is_authorized(question, self._unasked, self._no_entities).allowed:
            reason = f"No policy permits `{request.tool}` here, so there is nothing to ask a person."
            return PolicyDecision(verdict="deny", policies=_names(determining), reasons=(reason,))
        return _decision("ask", determining, "asks a person first")

    def may_permit(self, principal: str, tool: str, agent: str) -> bool:
        """Whether any call of this tool might be permitted: by scopes alone, as if every condition were as it should.

        Never false for a call that `decide` would allow or ask about.
        """
        if not all(map(is_unicode, (principal, tool, agent))):
            return False
        question = {
            "principal": {"type": "User", "id": principal},
            "action": {"type": "Action", "id": tool},
            "resource": {"type": "Agent", "id": agent},
            "context": "{}",
        }
        return bool(self._cedar.is_authorized(question, self._scopes, self._no_entities).allowed)

    def unpermitted(self, tools: Iterable[str]) -> tuple[str, ...]:
        """Those of these tools that no `permit` names, in their order: every call of them is denied."""
        permits = [policy.tools for policy in self.policies if policy.effect == "permit"]
        return tuple(tool for tool in tools if not any(named is None or tool in named for named in permits))

    def _question_for_cedar(self, request: PolicyRequest) -> dict[str, Any]:
        for text in (request.principal, request.tool, request.agent):
            if not text.isascii() and not is_unicode(text):
                raise Unmappable("the name of the principal, the tool or the agent is not Unicode text")
        run = {"steps": request.steps, "calls": request.calls, "cost_usd": cost_to_decimal(request.cost_usd)}
        context: dict[str, Any] = {
            "arguments": request.arguments,
            "effect": request.effect,
            "session": request.session,
            "run": run,
            "fields": {kind: list(request.fields.get(kind, ())) for kind in FIELD_KINDS},
        }
        declared = self._context_type(request.tool, request.input_schema)
        if request.provenance is not None and "provenance" in declared.attributes:
            context["provenance"] = request.provenance()
        if request.guidance is not None and "guidance" in declared.attributes:
            context["guidance"] = request.guidance()
        return {
            "principal": {"type": "User", "id": request.principal},
            "action": {"type": "Action", "id": request.tool},
            "resource": {"type": "Agent", "id": request.agent},
            "context": json.dumps(to_cedar(context, declared)),
        }

    def _context_type(self, tool: str, input_schema: JsonObject) -> Record:
        known = self._contexts.get(tool)
        if known is None or (known[0] is not input_schema and known[0] != input_schema):
            types = argument_types(input_schema)
            known = (input_schema, prune(context_type(types.record), self._reads))
            self._contexts[tool] = known
        return known[1]

    def _named(self, cedar_ids: Iterable[str]) -> list[Policy]:
        return [self.policies[index] for index in sorted(int(each.removeprefix("policy")) for each in cedar_ids)]

    def _unevaluated(self, errors: Sequence[str], determining: Sequence[Policy]) -> PolicyDecision:
        forbids = [policy for policy in determining if policy.effect == "forbid" and policy.question is None]
        policies, reasons = set(forbids), [f"{policy.place}: forbids it." for policy in forbids]
        for error in sorted(errors):
            head, _, what = error.partition(": ")
            number = _CEDAR_ID.search(head)
            if head.startswith("error while evaluating policy") and number:
                policy = self.policies[int(number[1])]
                policies.add(policy)
                reasons.append(f"{policy.place}: cannot be evaluated: {what}.")
            else:
                reasons.append(f"The policies cannot be evaluated: {error}.")
        ordered = [policy for policy in self.policies if policy in policies]
        return PolicyDecision(verdict="deny", policies=_names(ordered), reasons=tuple(reasons))


def _decision(verdict: Literal["allow", "deny", "ask"], policies: Sequence[Policy], does: str) -> PolicyDecision:
    questions = dict.fromkeys(policy.question or "" for policy in policies) if verdict == "ask" else {}
    return PolicyDecision(
        verdict=verdict,
        policies=_names(policies),
        reasons=tuple(f"{policy.place}: {does}." for policy in policies),
        question="\n".join(questions),
        approvers=max((policy.approvers for policy in policies), default=1),
    )


def _final(policy: Policy) -> bool:
    """Whether its scope alone says something: of a `forbid` only when it has no condition and asks nobody."""
    return policy.effect == "permit" or (policy.question is None and not policy.conditional)


def _scope(policy: Policy) -> str:
    """The policy without its conditions."""
    import cedarpy  # lazy: see `Policies`

    form = json.loads(cedarpy.policies_to_json_str(policy.text))
    for each in form["staticPolicies"].values():
        each |= {"conditions": [], "annotations": {}}
    return str(cedarpy.policies_from_json_str(json.dumps(form)))


def _names(policies: Iterable[Policy]) -> tuple[str, ...]:
    return tuple(policy.name for policy in policies)


def _joined(policies: Iterable[Policy]) -> str:
    """One text of these policies; Cedar numbers them `policy0`, `policy1`, ... in this order."""
    return "\n".join(policy.text for policy in policies)
