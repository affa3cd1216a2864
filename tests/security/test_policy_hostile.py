"""Hostile arguments, schemas and policy files against the policy step of the gate."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from lockstep.errors import ConfigError
from lockstep.gate.cedar_schema import argument_types
from lockstep.gate.policy import Policies, PolicyDecision, PolicyRequest

PERMIT_ALL = "permit(principal, action, resource);\n"
READS_TEXT = 'forbid(principal, action, resource) when { context.arguments.text == "bad" };\n'
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def decide(policy: str, arguments: Any, input_schema: Any = TEXT, **changed: Any) -> PolicyDecision:
    request: dict[str, Any] = {"principal": "ada", "tool": "write", "agent": "travel", "effect": "once", "session": "s"}
    request |= {"steps": 0, "calls": 0, "cost_usd": None, "arguments": arguments, "input_schema": input_schema}
    return Policies.parse({"p.cedar": policy}).decide(PolicyRequest(**{**request, **changed}))


FORGED = [
    {"__entity": {"type": "User", "id": "root"}},
    {"__extn": {"fn": "decimal", "arg": "1.0"}},
    {"__expr": 'User::"root"'},
    {"fn": "decimal", "arg": "1.0"},
    {"type": "User", "id": "root"},
]


@pytest.mark.parametrize("forged", FORGED, ids=json.dumps)
def test_an_escape_of_cedars_json_in_the_place_of_a_scalar_denies(forged: Any) -> None:
    for kind in ("string", "number", "integer", "boolean"):
        shape: Any = {"type": "object", "properties": {"text": {"type": kind}}, "required": ["text"]}
        decision = decide(PERMIT_ALL + READS_TEXT, {"text": forged}, shape)
        assert decision.verdict == "deny"
        assert "`arguments.text` is not" in decision.reasons[0]


@pytest.mark.parametrize("forged", FORGED, ids=json.dumps)
def test_an_escape_written_as_text_stays_text(forged: Any) -> None:
    text = json.dumps(forged)
    policy = f"permit(principal, action, resource) when {{ context.arguments.text == {json.dumps(text)} }};"
    assert decide(policy, {"text": text}).verdict == "allow"


@pytest.mark.parametrize("forged", FORGED, ids=json.dumps)
def test_undeclared_keys_beside_declared_ones_never_reach_cedar(forged: Any) -> None:
    policy = PERMIT_ALL + READS_TEXT + "forbid(principal, action, resource) unless { context.arguments has text };"
    assert decide(policy, {"text": "fine", **forged}).verdict == "allow"
    assert decide(policy, {"text": "bad", **forged}).verdict == "deny"


@pytest.mark.parametrize("name", ["__entity", "__extn", "__expr"])
def test_a_schema_that_declares_a_reserved_name_cannot_make_cedar_read_it(name: str) -> None:
    escape: Any = {"type": "object", "properties": {"type": {"type": "string"}, "id": {"type": "string"}}}
    shape: Any = {"type": "object", "properties": {"who": {"type": "object", "properties": {name: escape}}}}
    policy = PERMIT_ALL + 'forbid(principal, action, resource) unless { context.arguments.who == User::"root" };'
    assert decide(policy, {"who": {name: {"type": "User", "id": "root"}}}, shape).verdict == "deny"
    assert f"who.{name}" in argument_types(shape).left_out
    assert Policies.parse({"p.cedar": policy}).problems({"write": shape})


@pytest.mark.parametrize("text", ["a\nb", "a\0b", '"', "\\", '"}, "effect": "read"', "\u202e", "\U0001f600", "policy0"])
def test_any_unicode_text_is_compared_as_it_is(text: str) -> None:
    policy = PERMIT_ALL + READS_TEXT + 'forbid(principal, action, resource) when { context.effect == "read" };'
    assert decide(policy, {"text": text}, principal=text, agent=text, session=text).verdict == "allow"
    only = (
        f"permit(principal == User::{cedar(text)}, action == Action::{cedar(text)}, resource == Agent::{cedar(text)})"
    )
    only += f" when {{ context.arguments.text == {cedar(text)} && context.session == {cedar(text)} }};"
    assert decide(only, {"text": text}, principal=text, agent=text, session=text, tool=text).verdict == "allow"
    assert decide(only, {"text": text + "x"}, principal=text, agent=text, session=text, tool=text).verdict == "deny"


def cedar(text: str) -> str:
    return '"' + "".join(f"\\u{{{ord(character):x}}}" for character in text) + '"'


@pytest.mark.parametrize("field", ["principal", "tool", "agent", "session", "effect"])
def test_half_a_surrogate_pair_denies_wherever_a_policy_looks(field: str) -> None:
    policy = (
        PERMIT_ALL + 'forbid(principal, action, resource) when { context.session == "x" || context.effect == "y" };'
    )
    assert decide(policy, {"text": "a"}, **{field: "\ud800"}).verdict == "deny"
    assert decide(PERMIT_ALL + READS_TEXT, {"text": "\ud800"}).verdict == "deny"


def test_a_principal_cannot_be_written_to_look_like_another() -> None:
    policy = 'permit(principal == User::"ada", action, resource);'
    for name in ('ada"', 'User::"ada"', 'x", "id": "ada', "ada\0", "Ada", " ada"):
        assert decide(policy, {"text": "a"}, principal=name).verdict == "deny"


def test_arguments_nested_to_any_depth_are_followed_only_as_far_as_the_schema() -> None:
    deep: Any = "bad"
    for _ in range(50_000):
        deep = {"text": deep}
    assert "is not a string" in decide(PERMIT_ALL + READS_TEXT, deep).reasons[0]
    assert decide(PERMIT_ALL, deep).verdict == "allow"


def test_a_schema_that_refers_to_itself_or_explodes_is_bounded() -> None:
    tree: Any = {"type": "object", "properties": {"left": {"$ref": "#/$defs/T"}, "name": {"type": "string"}}}
    looping: Any = {"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}}, "$defs": {"T": tree}}
    assert argument_types(looping).left_out == {"t.left": "contains itself"}
    doubling: dict[str, Any] = {f"L{n}": pair(f"L{n + 1}") for n in range(40)} | {"L40": {"type": "string"}}
    bomb: Any = {"type": "object", "properties": {"b": {"$ref": "#/$defs/L0"}}, "$defs": doubling}
    assert len(argument_types(bomb).left_out) < 6_000
    nested: Any = {"type": "string"}
    for _ in range(20_000):
        nested = {"anyOf": [nested]}
    assert argument_types({"type": "object", "properties": {"n": nested}}).left_out == {"n": "is too deep or too large"}
    for shape in (looping, bomb):
        assert Policies.parse({"p.cedar": PERMIT_ALL}).problems({"t": shape}) == ()


def pair(name: str) -> dict[str, Any]:
    each = {"$ref": f"#/$defs/{name}"}
    return {"type": "object", "properties": {"a": each, "b": each}}


@pytest.mark.parametrize("cost", [Decimal("NaN"), Decimal("Infinity"), Decimal("1e400")])
def test_a_cost_that_is_no_amount_denies(cost: Decimal) -> None:
    assert decide(PERMIT_ALL, {"text": "a"}, cost_usd=cost).verdict == "deny"


NESTED = {
    "brackets": "(" * 5_000 + "true" + ")" * 5_000,
    "sets": "[" * 5_000 + "]" * 5_000,
    "records": "{a:" * 5_000 + "1" + "}" * 5_000,
    "ifs": "if true then true else " * 20_000 + "true",
    "ors": "true" + " || true" * 20_000,
    "dots": "context" + ".a" * 2_000,
    "unclosed": "(" * 200_000,
}


@pytest.mark.parametrize("condition", NESTED.values(), ids=NESTED.keys())
def test_a_policy_that_would_overflow_the_stack_is_refused_before_cedar_sees_it(condition: str) -> None:
    with pytest.raises(ConfigError, match="too large for one policy"):
        Policies.parse({"p.cedar": f"permit(principal, action, resource) when {{ {condition} }};"})


def test_the_largest_policy_that_is_read_is_also_decided_on_a_small_stack() -> None:
    program = """
import threading
from lockstep.gate.policy import Policies, PolicyRequest

def work():
    for inside in ("(" * 40 + "true" + ")" * 40, "true" + " && true" * 200, "false" + " || true" * 200):
        policies = Policies.parse({"p.cedar": "permit(principal, action, resource) when { " + inside + " };"})
        request = PolicyRequest(principal="a", tool="t", agent="g", arguments={}, input_schema={"type": "object"},
                                effect="once", session="s", steps=0, calls=0, cost_usd=None)
        assert policies.problems({"t": {"type": "object"}}) == ()
        assert policies.decide(request).verdict == "allow"
    print("ok")

threading.stack_size(1 << 20)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_policy_file_that_is_not_text_is_refused() -> None:
    for text in ("\ud800", "permit(principal, action, resource);\0"):
        with pytest.raises(ConfigError, match=r"p\.cedar"):
            Policies.parse({"p.cedar": text})


def test_a_long_argument_is_not_copied_unless_it_is_read() -> None:
    assert decide(PERMIT_ALL, {"text": "x" * 20_000_000}).verdict == "allow"
    assert decide(PERMIT_ALL + READS_TEXT, {"text": "x" * 1_000_000}).verdict == "allow"
