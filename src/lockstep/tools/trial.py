"""Tries a tool in a scratch world: called once and a second time, does it do what its entry declares?

The tool is the locked one in its own sandbox, with its egress rules turned to the scratch world: those that name a
place which the world stands for name the world instead, and so do its variables. A tool with any other rule is not
called, and it gets no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lockstep.agent.locked import LockedTool
from lockstep.agent.mcp_spec import filled_in
from lockstep.agent.pointers import Missing, select
from lockstep.gate.arguments import Malformed
from lockstep.gate.effects import as_json, probe_arguments, probed
from lockstep.gate.trial import Trying
from lockstep.sandbox.egress_rules import format_rule, parse_rule
from lockstep.tools.port import Outcome, PermittedCall, ToolHost
from lockstep.tools.semantics import Finding, Severity
from lockstep.values import Digest, Effect, Json, JsonObject, RunId, digest_json

Place = tuple[str, int]
"""Host and port."""
_RUN = RunId("scratch")
_IN_SECRETS_PLACE = "no-secret-in-a-scratch-world"


class Scratch(Protocol):
    """A scratch world that runs."""

    port: int

    async def state(self) -> Digest:
        """What can be seen of it, digested.

        Raises:
            ConfigError: it cannot be seen.
        """


class NotTried(Exception):
    """The tool cannot be tried; the text says why, without its full stop, and `then` what to do.

    An error, but for what nobody has said how to try: `severity`.
    """

    def __init__(self, what: str, then: str, severity: Severity = "error") -> None:
        super().__init__(what)
        self.then = then
        self.severity = severity


def in_scratch(tool: LockedTool, instead_of: Iterable[Place], port: int) -> LockedTool:
    """The tool as it runs in the scratch world.

    Raises:
        NotTried: it may reach what the world does not stand for.
    """
    places = set(instead_of)
    rules = []
    for text in tool.egress:
        rule = parse_rule(text)
        if (rule.host, rule.port) not in places:
            then = f"add {rule.host}:{rule.port} to check.instead_of if the scratch world stands for it"
            raise NotTried(f"it was not tried: {text!r} leads out of the scratch world", then, "warning")
        rules.append(format_rule(replace(rule, scheme="http", host="127.0.0.1", port=port)))
    env = {name: _turned(value, places, port) for name, value in tool.env.items()}
    remote = tool.remote
    if remote is not None:
        given = {secret.env: _IN_SECRETS_PLACE for secret in tool.secrets}
        headers = {name: filled_in(text, given) for name, text in remote.headers.items()}
        remote = replace(remote, url=_turned(remote.url, places, port), headers=headers, oauth=None)
    return replace(
        tool,
        remote=remote,
        egress=tuple(rules),
        env={**env, **{secret.env: _IN_SECRETS_PLACE for secret in tool.secrets}},
        secrets=(),
        repeats=tool.repeats.model_copy(update={"late_s": 0.0}),
    )


def _turned(value: str, places: Iterable[Place], port: int) -> str:
    """A variable's value with the world's address in place of those it stands for."""
    there = f"127.0.0.1:{port}"
    for host, named in sorted(places):
        for scheme, usual in (("https", 443), ("http", 80)):
            value = value.replace(f"{scheme}://{host}:{named}", f"http://{there}")
            if named == usual and value.removeprefix(f"{scheme}://{host}")[:1] in ("", "/"):
                value = value.replace(f"{scheme}://{host}", f"http://{there}")
        value = value.replace(f"{host}:{named}", there)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """Everything that trying the tools of an agent needs."""

    tools: Mapping[str, LockedTool]
    host: ToolHost
    permits: Trying
    world: Callable[[], AbstractAsyncContextManager[Scratch]]
    """A new one each time."""
    instead_of: tuple[Place, ...]
    examples: Mapping[str, Sequence[Mapping[str, Any]]]

    async def of(self, name: str) -> list[Finding]:
        """What is found by calling this tool in a world of its own.

        Raises:
            ConfigError: the world cannot be had, or its state cannot be seen.
        """
        tool = self.tools[name]
        if not tool.egress:
            return []  # it reaches nothing that could be seen to change
        try:
            async with self.world() as world:
                return await _Trial(self, tool, world).findings()
        except NotTried as problem:
            return [_found(tool, problem.severity, "not-tried", str(problem), problem.then)]


class _Trial:
    """One tool in one world."""

    def __init__(self, trials: Trials, tool: LockedTool, world: Scratch) -> None:
        self._trials = trials
        self._tool = tool
        self._world = world
        self._asked = 0
        self._results: dict[str, Json] = {}

    async def findings(self) -> list[Finding]:
        example, *others = self._examples(self._tool.name)
        arguments = await self._filled(example)
        at_rest = await self._world.state()
        if at_rest != await self._world.state():
            what = "the scratch world changes by itself, so nothing can be said about this tool"
            raise NotTried(what, "leave clocks, counters and logs out of check.state")
        key = self._key("first")
        found = await self._probed("before", arguments, key)
        first = await self._ok(self._tool, arguments, key)
        once = await self._world.state()
        found += await self._probed("after", arguments, key) if once != at_rest else []
        for other in others:
            found += await self._probed("other", await self._filled(other), self._key("other"))
        if self._tool.effect is Effect.READ or first.kind == "result_unusable":
            return [*found, *self._of_one(at_rest != once)]
        second = await self._call(self._tool, arguments, key)
        twice = await self._world.state()
        return [*found, *self._of_one(at_rest != once), *self._of_two(once != twice, second)]

    def _of_one(self, changed: bool) -> list[Finding]:
        if self._tool.effect is Effect.READ and changed:
            then = "declare what it does: as read it is repeated after a lost reply, and several run at once"
            return [self._found("error", "read-writes", "it is declared read, and one call changed the state", then)]
        if self._tool.effect is not Effect.READ and not changed:
            what = f"it is declared {self._tool.effect.value}, and one call changed nothing that check.state shows"
            return [self._found("warning", "nothing-seen", what, "show it in check.state, or declare read")]
        return []

    def _of_two(self, changed: bool, second: Outcome) -> list[Finding]:
        effect = self._tool.effect
        if effect is Effect.IDEMPOTENT and changed:
            then = "declare keyed or once: as idempotent it is repeated after a lost reply"
            what = "it is declared idempotent, and a second call changed the state again"
            return [self._found("error", "idempotent-repeats", what, then)]
        if effect is Effect.KEYED and changed:
            then = "declare once, or have its service honour Idempotency-Key"
            what = "it is declared keyed, and a second call with the same key changed the state again"
            return [self._found("error", "key-ignored", what, then)]
        if effect in (Effect.IDEMPOTENT, Effect.KEYED) and second.kind != "ok":
            what = f"it is declared {effect.value}, and a second call failed: {second.text.rstrip('.')}"
            return [self._found("warning", "repeat-fails", what, "answer a repeat as the first, or declare once")]
        if effect is Effect.ONCE and second.kind == "ok" and not changed:
            what = "it is declared once, and a second call changed nothing more"
            return [self._found("note", "repeat-harmless", what, "declare idempotent if that is always so")]
        return []

    async def _probed(self, when: str, arguments: JsonObject, key: str) -> list[Finding]:
        """What the tool's probe says of a call: `before` it was made, `after`, or of an `other` that was not made."""
        probe = self._tool.repeats.probe
        if probe is None:
            return []
        asked = self._trials.tools[probe.tool]
        try:
            said_by = await self._call(asked, probe_arguments(probe, arguments, key), self._key("probe"))
        except Missing as missing:
            raise NotTried(f"its probe cannot be asked: no {missing}", "correct probe.arguments") from missing
        said = probed(probe, said_by.text) if said_by.kind == "ok" else f"failed: {said_by.text.rstrip('.')}"
        if said == ("found" if when == "after" else "not_found"):
            return []
        what = {
            "before": f"its probe {probe.tool} says {said!r} of a call that was not made",
            "after": f"its probe {probe.tool} says {said!r} of a call that was made",
            "other": f"its probe {probe.tool} says {said!r} of a call that was not made, after another that was",
        }[when]
        then = "correct probe.arguments or probe.found: it decides whether a lost call is made again"
        return [self._found("error", f"probe-wrong-{when}", what, then)]

    def _examples(self, name: str) -> Sequence[Mapping[str, Any]]:
        given = self._trials.examples.get(name)
        if given is None and self._trials.tools[name].input_schema.get("required"):
            then = f"say some: [check.arguments] {name} = {{ ... }}"
            raise NotTried(f"it was not tried: there are no arguments for {name}", then, "warning")
        return given or [{}]

    async def _filled(self, example: Mapping[str, Any]) -> JsonObject:
        """An example with what it takes from results of other tools; those are called now, once each."""
        return {name: await self._value(value) for name, value in example.items()}

    async def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return await self._filled(value)
        if isinstance(value, list):
            return [await self._value(each) for each in value]
        if not isinstance(value, str) or not value.startswith("result:"):
            return value
        name, _, pointer = value.removeprefix("result:").partition(":")
        if name not in self._trials.tools or name == self._tool.name:
            raise NotTried(f"it was not tried: {value!r} names no other tool", "write result:TOOL:/POINTER")
        if name not in self._results:
            self._results[name] = None  # also while it is being called: two that wait for each other end here
            arguments = await self._filled(self._examples(name)[0])
            outcome = await self._ok(self._trials.tools[name], arguments, self._key(name))
            self._results[name] = as_json(outcome.text)
        try:
            return select(self._results[name], pointer)
        except Missing as missing:
            what = f"it was not tried: there is no {pointer} in the result of {name}"
            raise NotTried(what, "correct check.arguments") from missing

    async def _ok(self, tool: LockedTool, arguments: JsonObject, key: str) -> Outcome:
        outcome = await self._call(tool, arguments, key)
        if outcome.kind not in ("ok", "result_unusable"):
            what = f"it was not tried: {tool.name} failed ({outcome.kind}): {outcome.text.rstrip('.')}"
            raise NotTried(what, "correct check.arguments, or the tool; its address must come from env")
        return outcome

    async def _call(self, tool: LockedTool, arguments: JsonObject, key: str) -> Outcome:
        self._asked += 1
        call = f"{self._tool.name}.{self._asked}"
        here = in_scratch(tool, self._trials.instead_of, self._world.port)
        try:
            permit, digest = self._trials.permits.permit(here, call, arguments)
        except Malformed as problem:
            what = f"it was not tried: {tool.name} does not take these arguments: {problem}"
            raise NotTried(what, "correct check.arguments") from problem
        item = PermittedCall(
            run=_RUN, session=str(_RUN), id=call, tool=here, arguments=arguments, digest=digest, key=key
        )
        return await self._trials.host.call(item, permit)

    def _key(self, what: str) -> str:
        return digest_json({"scratch": self._tool.name, "what": what})

    def _found(self, severity: Severity, rule: str, what: str, then: str) -> Finding:
        return _found(self._tool, severity, rule, what, then)


def _found(tool: LockedTool, severity: Severity, rule: str, what: str, then: str) -> Finding:
    return Finding(tool=tool.name, rule=rule, severity=severity, what=what, then=then)
