"""What is said of a tool by its entry and its definition, rule by rule; and how a tool is turned to a scratch world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from inprocess import locked_tool

from lockstep.agent.effect_spec import ProbeSection, Repeats
from lockstep.agent.locked import LockedTool, Remote
from lockstep.agent.mcp_spec import OAuth
from lockstep.agent.spec import SecretSection
from lockstep.tools.semantics import static_findings
from lockstep.tools.trial import NotTried, in_scratch
from lockstep.values import Effect, JsonObject

SAID = frozenset({"effect", "timeout_s", "output_trust"})
POST = ("api.example:443 POST /pay",)
GET = ("api.example:443 GET /paid",)
TEXT: JsonObject = {"type": "string", "description": "What it is."}
PROBE = ProbeSection(tool="paid", arguments={"to": "arguments:/to"}, found="/found", settles_after_s=5)


def tool(effect: Effect, *arguments: str, hints: JsonObject | None = None, **more: Any) -> LockedTool:
    """A tool about which there is nothing to say, but for what is asked for."""
    schema: JsonObject = {
        "type": "object",
        "properties": dict.fromkeys(arguments or ("to",), TEXT),
        "required": list(arguments or ("to",)),
    }
    made = locked_tool("pay", effect, schema=schema)
    definition = {**made.definition, "annotations": {"openWorldHint": False, **(hints or {})}}
    egress = GET if effect is Effect.READ else POST
    repeats = Repeats(probe=PROBE) if effect is Effect.ONCE else Repeats()
    return replace(made, **{"definition": definition, "egress": egress, "repeats": repeats, **more})


def rules(tool: LockedTool, said: frozenset[str] = SAID, *, reads_key: bool = False) -> dict[str, str]:
    return {each.rule: each.severity for each in static_findings(tool, said=said, reads_key=reads_key)}


@pytest.mark.parametrize("effect", list(Effect), ids=lambda effect: effect.value)
def test_there_is_nothing_to_say_of_a_tool_that_is_in_order(effect: Effect) -> None:
    assert rules(tool(effect)) == {}


@pytest.mark.parametrize(
    ("found", "severity", "given"),
    [
        ("read-may-write", "warning", tool(Effect.READ, egress=POST)),
        ("read-may-write", "warning", tool(Effect.READ, egress=("api.example:443",))),
        ("read-and-hint", "error", tool(Effect.READ, hints={"readOnlyHint": False})),
        ("read-and-hint", "error", tool(Effect.READ, hints={"destructiveHint": True})),
        ("idempotent-and-hint", "error", tool(Effect.IDEMPOTENT, hints={"idempotentHint": False})),
        ("once-and-hint", "warning", tool(Effect.ONCE, hints={"readOnlyHint": True})),
        ("once-and-hint", "warning", tool(Effect.ONCE, hints={"idempotentHint": True})),
        ("once-alone", "note", tool(Effect.ONCE, egress=(), repeats=Repeats())),
        ("no-probe", "warning", tool(Effect.ONCE, repeats=Repeats())),
        ("key-unused", "error", tool(Effect.KEYED, egress=GET)),
        ("key-unused", "error", tool(Effect.KEYED, egress=())),
        ("words-tell-apart", "warning", tool(Effect.ONCE, "to", "message")),
        ("words-tell-apart", "warning", tool(Effect.KEYED, "to", "card-note")),
        ("trust-unsaid", "note", tool(Effect.READ, hints={"openWorldHint": True})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_says_its_own_and_nothing_else(found: str, severity: str, given: LockedTool) -> None:
    probed = {name: each for name, each in rules(given).items() if name != "probe-mistakes"}
    assert probed == {found: severity}


@pytest.mark.parametrize(
    "given",
    [
        tool(Effect.READ, hints={"readOnlyHint": True, "destructiveHint": True}),
        tool(Effect.IDEMPOTENT, hints={"readOnlyHint": True, "idempotentHint": False}),
        tool(Effect.ONCE, "to", "message", dedupe_on=("/to",)),
        tool(Effect.IDEMPOTENT, "to", "message"),
        tool(Effect.READ, hints={"openWorldHint": True}, output_trust="untrusted"),
        tool(Effect.READ, hints={"openWorldHint": True}, egress=()),
    ],
    ids=["read-only", "idempotent-reader", "deduplicated", "repeatable", "trust-said", "reaches-nothing"],
)
def test_what_only_looks_wrong_is_not_accused(given: LockedTool) -> None:
    assert rules(given) == {}


def test_what_an_entry_leaves_out_is_said() -> None:
    assert rules(tool(Effect.ONCE), frozenset()) == {"effect-unsaid": "warning", "no-timeout": "warning"}


def test_code_that_reads_the_key_itself_uses_it() -> None:
    assert rules(tool(Effect.KEYED, egress=()), reads_key=True) == {}


def test_a_key_that_a_tool_has_no_use_for_without_deduplication_is_no_matter_of_words() -> None:
    assert rules(tool(Effect.KEYED, "to", "message", repeats=Repeats(scope="none"))) == {}


@pytest.mark.parametrize(
    ("arguments", "dedupe_on", "found"),
    [
        ({}, ("/to",), {"probe-asks-nothing": "error"}),
        ({"to": "arguments:/to"}, ("/to", "/day"), {"probe-mistakes": "warning"}),
        ({"to": "arguments:/to"}, None, {"probe-mistakes": "warning"}),
        ({"to": "arguments:/to"}, ("/to",), {}),
        ({"who": "arguments:/to"}, ("/to/name",), {}),
        ({"key": "key"}, ("/to", "/day"), {}),
    ],
    ids=["nothing", "less", "less-than-all", "enough", "whole", "key"],
)
def test_a_probe_must_ask_by_what_tells_calls_apart(
    arguments: dict[str, Any], dedupe_on: tuple[str, ...] | None, found: dict[str, str]
) -> None:
    repeats = Repeats(probe=PROBE.model_copy(update={"arguments": arguments}))
    assert rules(tool(Effect.ONCE, "to", "day", dedupe_on=dedupe_on, repeats=repeats)) == found


def test_a_probe_that_never_says_no_is_mentioned() -> None:
    repeats = Repeats(probe=PROBE.model_copy(update={"settles_after_s": None}))
    assert rules(tool(Effect.ONCE, repeats=repeats)) == {"probe-undecided": "note"}


def test_what_a_model_is_not_told_is_said() -> None:
    given = tool(Effect.READ)
    bare: JsonObject = {"name": "pay", "inputSchema": {"type": "object", "properties": {"to": {"type": "string"}}}}
    found = rules(replace(given, definition={**bare, "annotations": {"openWorldHint": False}}))
    assert found == {"no-description": "warning", "arguments-undescribed": "note"}


# --- turned to a scratch world ---


@pytest.mark.parametrize(
    ("value", "turned"),
    [
        ("https://api.example", "http://127.0.0.1:9"),
        ("https://api.example/v1", "http://127.0.0.1:9/v1"),
        ("https://api.example:443/v1", "http://127.0.0.1:9/v1"),
        ("api.example:443", "127.0.0.1:9"),
        ("https://api.example.evil/v1", "https://api.example.evil/v1"),
        ("elsewhere", "elsewhere"),
    ],
)
def test_rules_and_variables_lead_to_the_scratch_world(value: str, turned: str) -> None:
    given = tool(Effect.ONCE, env={"SERVICE": value})
    here = in_scratch(given, [("api.example", 443)], 9)
    assert here.egress == ("http://127.0.0.1:9 POST /pay",)
    assert here.env == {"SERVICE": turned}
    assert here.pin == given.pin


def test_a_tool_that_could_reach_anything_else_is_not_turned() -> None:
    given = tool(Effect.ONCE, egress=(*POST, "other.example:443 POST"))
    with pytest.raises(NotTried, match=r"other\.example:443 POST"):
        in_scratch(given, [("api.example", 443)], 9)


def test_a_scratch_world_is_told_no_secret() -> None:
    secret = SecretSection.model_validate(
        {"env": "KEY", "from": "env:REAL_KEY", "host": "api.example:443", "header": "Authorization"}
    )
    here = in_scratch(tool(Effect.ONCE, secrets=(secret,)), [("api.example", 443)], 9)
    assert here.secrets == ()
    assert here.env["KEY"] not in ("", "env:REAL_KEY")


def test_a_server_elsewhere_is_the_one_of_the_scratch_world() -> None:
    secret = SecretSection.model_validate(
        {"env": "KEY", "from": "env:REAL_KEY", "host": "api.example:443", "header": "Authorization"}
    )
    remote = Remote(url="https://api.example/mcp", headers={"Authorization": "Bearer ${KEY}"}, oauth=OAuth())
    given = tool(Effect.ONCE, remote=remote, secrets=(secret,), egress=("api.example:443 POST /mcp",))
    here = in_scratch(given, [("api.example", 443)], 9)
    assert here.remote is not None
    assert (here.remote.url, here.remote.oauth, here.pin) == ("http://127.0.0.1:9/mcp", None, given.pin)
    assert "KEY" not in here.remote.headers["Authorization"]
