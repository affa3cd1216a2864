"""What a tool's entry and its definition say of it, and where the two, or either and good practice, do not agree.

Pure. Hints of a definition may tighten what an entry declares and never loosen it: a declaration that they contradict
is an error, one that is stricter than they are holds, and is mentioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lockstep.agent.locked import LockedTool
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.values import Effect

Severity = Literal["error", "warning", "note"]
RANK: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_FREE_TEXT = frozenset(
    {"body", "comment", "content", "description", "message", "note", "notes", "reason", "subject", "summary", "text"}
    | {"title", "memo"}
)
"""Names of arguments that a model words anew each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was found about one tool, and what to do about it."""

    tool: str
    rule: str
    """A name for programs, such as `no-probe`."""
    severity: Severity
    what: str
    then: str


def static_findings(tool: LockedTool, *, said: frozenset[str], reads_key: bool) -> list[Finding]:
    """What can be seen without calling it. `said`: keys of its entry; `reads_key`: its code names `lockstep/key`."""
    return [*_effect(tool, said, reads_key), *_hints(tool), *_repeats(tool), *_probe(tool), *_words(tool, said)]


def _finding(tool: LockedTool, severity: Severity, rule: str, what: str, then: str) -> Finding:
    return Finding(tool=tool.name, rule=rule, severity=severity, what=what, then=then)


def _effect(tool: LockedTool, said: frozenset[str], reads_key: bool) -> Iterator[Finding]:
    writing = [rule for rule in tool.egress if _may_write(rule)]  # all that is said to a server elsewhere is a POST
    if "effect" not in said and not tool.source.startswith("builtin:"):
        what = "it does not say its effect, so it counts as once"
        yield _finding(tool, "warning", "effect-unsaid", what, "declare read, idempotent, keyed or once")
    if tool.effect is Effect.READ and writing and not tool.remote:
        what = f"it is declared read, and its egress allows more than reading: {'; '.join(writing)}"
        then = "name GET in the rule, or declare its effect; a service that is asked by POST: try it with --scratch"
        yield _finding(tool, "warning", "read-may-write", what, then)
    if tool.effect is Effect.KEYED and not writing and not reads_key:
        what = "it is declared keyed, and nothing uses the key: no egress rule lets a request out that writes"
        then = "open what it writes to (the proxy adds Idempotency-Key), read lockstep/key of _meta, or declare once"
        yield _finding(tool, "error", "key-unused", what, then)
    if tool.effect is Effect.ONCE and not tool.egress and not tool.run_lifetime:
        what = "it is declared once, and reaches nothing that outlives its sandbox"
        yield _finding(tool, "note", "once-alone", what, 'effect = "read" spares its callers doubts and refusals')


def _hints(tool: LockedTool) -> Iterator[Finding]:
    hints = _annotations(tool)
    reads = hints.get("readOnlyHint")
    writes = "readOnlyHint = false" if reads is False else ""
    if reads is not True and hints.get("destructiveHint") is True:
        writes = "destructiveHint = true"
    if tool.effect is Effect.READ and writes:
        what = f"it is declared read, and its definition says {writes}"
        yield _finding(tool, "error", "read-and-hint", what, "declare what it does, or correct the hint")
    if tool.effect is Effect.IDEMPOTENT and reads is not True and hints.get("idempotentHint") is False:
        what = "it is declared idempotent, and its definition says idempotentHint = false"
        yield _finding(tool, "error", "idempotent-and-hint", what, "declare keyed or once, or correct the hint")
    looser = next((name for name in ("readOnlyHint", "idempotentHint") if hints.get(name) is True), None)
    if tool.effect is Effect.ONCE and looser:
        what = f"it is declared once, and its definition says {looser} = true; a hint loosens nothing, so once holds"
        then = f'effect = "{"read" if looser == "readOnlyHint" else "idempotent"}" if the hint is right'
        yield _finding(tool, "warning", "once-and-hint", what, then)


def _repeats(tool: LockedTool) -> Iterator[Finding]:
    worded = [name for name, schema in _properties(tool).items() if _is_free_text(name, schema)]
    if tool.once_only and tool.dedupe_on is None and worded:
        what = f"the same call in other words is another call: {', '.join(worded)} counts, and models word it anew"
        then = "dedupe_on = the arguments that say what it is about"
        yield _finding(tool, "warning", "words-tell-apart", what, then)


def _probe(tool: LockedTool) -> Iterator[Finding]:
    probe = tool.repeats.probe
    if probe is None:
        if tool.effect is Effect.ONCE and (tool.egress or tool.run_lifetime):
            what = "when its reply is lost, only a person can say whether it happened"
            then = 'name a read tool that finds it as probe, or declare keyed if its service takes "Idempotency-Key"'
            yield _finding(tool, "warning", "no-probe", what, then)
        return
    asked = [source.partition(":")[2] for source in probe.arguments.values() if source != "key"]
    if not probe.arguments:
        what = f"its probe {probe.tool} is asked nothing about the call, so any call is taken for this one"
        then = "probe.arguments = what tells this call from others"
        yield _finding(tool, "error", "probe-asks-nothing", what, then)
    elif "key" not in probe.arguments.values() and (left := [p for p in _identity(tool) if not _covers(asked, p)]):
        what = f"its probe {probe.tool} does not ask by {', '.join(left)}: a call that differs there is taken for it"
        yield _finding(tool, "warning", "probe-mistakes", what, 'add them to probe.arguments, or ask by "key"')
    if probe.settles_after_s is None:
        what = f'its probe {probe.tool} never says that it did not happen: "not found" is left to a person'
        then = "probe.settles_after_s = how long its service may still carry a request out"
        yield _finding(tool, "note", "probe-undecided", what, then)


def _words(tool: LockedTool, said: frozenset[str]) -> Iterator[Finding]:
    if "timeout_s" not in said:
        what = f"it does not say its deadline, so it is {tool.timeout_s:g} s"
        yield _finding(tool, "warning", "no-timeout", what, "timeout_s = somewhat more than its service needs at worst")
    open_world = _annotations(tool).get("openWorldHint") is not False
    if open_world and tool.egress and tool.output_trust is None:
        what = "whose words its results are is not said, so they are untrusted"
        yield _finding(tool, "note", "trust-unsaid", what, 'output_trust = "untrusted", or "trusted" if they are yours')
    if not str(tool.definition.get("description", "")).strip():
        yield _finding(tool, "warning", "no-description", "the model is not told what it does", "describe it")
    bare = [name for name, schema in _properties(tool).items() if not _described(schema)]
    if bare:
        what = f"the model is not told what these arguments mean: {', '.join(bare)}"
        yield _finding(tool, "note", "arguments-undescribed", what, "describe them in the schema")


def _may_write(rule: str) -> bool:
    methods = parse_rule(rule).methods
    return not methods or not _SAFE_METHODS.issuperset(methods)


def _identity(tool: LockedTool) -> tuple[str, ...]:
    """Pointers to what makes two calls different ones."""
    if tool.dedupe_on is not None:
        return tool.dedupe_on
    required = tool.input_schema.get("required")
    return tuple(f"/{name}" for name in required) if isinstance(required, list | tuple) else ()


def _covers(asked: list[str], pointer: str) -> bool:
    return any(pointer == each or pointer.startswith(f"{each}/") for each in asked)


def _is_free_text(name: str, schema: Any) -> bool:
    if not isinstance(schema, Mapping) or schema.get("type") != "string":
        return False
    fixed = any(key in schema for key in ("enum", "const", "format", "pattern"))
    return not fixed and bool(_FREE_TEXT.intersection(name.lower().replace("-", "_").split("_")))


def _described(schema: Any) -> bool:
    return not isinstance(schema, Mapping) or bool(schema.get("description"))


def _annotations(tool: LockedTool) -> Mapping[str, Any]:
    found = tool.definition.get("annotations")
    return found if isinstance(found, Mapping) else {}


def _properties(tool: LockedTool) -> Mapping[str, Any]:
    found = tool.input_schema.get("properties")
    return found if isinstance(found, Mapping) else {}
