"""Policies: read, checked against tools, asked about a call. Real Cedar throughout."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from lockstep.errors import ConfigError
from lockstep.gate.cedar_schema import Attribute, Record, Scalar, SetOf, argument_types
from lockstep.gate.cedar_values import paths_read
from lockstep.gate.policy import Policies, PolicyDecision, PolicyRequest

STRING, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def schema(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


BOOK = schema("price_usd", "flight", price_usd=NUMBER, flight=STRING, note=STRING)
SEARCH = schema("to", to=STRING)
TOOLS = {"book": BOOK, "search": SEARCH}

PERMIT_ALL = '@id("all") permit(principal, action, resource);\n'
PRICE_LIMIT = """@id("limit") forbid(principal, action == Action::"book", resource)
when { context.arguments.price_usd.greaterThanOrEqual(decimal("500.0")) };
"""


def decide(
    text: str, arguments: dict[str, Any], tool: str = "book", input_schema: Any = None, **changed: Any
) -> PolicyDecision:
    request: dict[str, Any] = {
        "principal": "ada",
        "agent": "travel",
        "effect": "once",
        "session": "s1",
        "steps": 2,
        "calls": 3,
        "cost_usd": Decimal("0.01"),
    }
    request |= {"tool": tool, "arguments": arguments, "input_schema": input_schema or TOOLS[tool], **changed}
    return Policies.parse({"p.cedar": text}).decide(PolicyRequest(**request))


def booking(price: Any, **more: Any) -> dict[str, Any]:
    return {"price_usd": price, "flight": "LH1", **more}


def problems(text: str, tools: Any = None) -> tuple[str, ...]:
    return Policies.parse({"p.cedar": text}).problems(TOOLS if tools is None else tools)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Policies.parse({"first.cedar": PERMIT_ALL, "p.cedar": text})
    assert caught.value.remedy
    return str(caught.value)


# Reading


def test_a_policy_keeps_its_name_file_line_effect_and_question() -> None:
    text = (
        '// header; not a policy\n\n@id("limit")\n@ask("Really?")\nforbid(principal, action, resource);\n' + PERMIT_ALL
    )
    first, second, third = Policies.parse({"a.cedar": text, "b.cedar": "permit(principal, action, resource);"}).policies
    assert (first.name, first.file, first.line, first.effect, first.question) == (
        "limit",
        "a.cedar",
        3,
        "forbid",
        "Really?",
    )
    assert (second.name, second.line, second.question) == ("all", 6, None)
    assert (third.name, third.line, third.effect) == ("b.cedar:1", 1, "permit")


def test_semicolons_in_strings_and_comments_do_not_end_a_policy() -> None:
    text = 'permit(principal, action, resource) // one; two\rwhen { context.effect != "a;\\"//b" };\n' + PRICE_LIMIT
    assert [policy.line for policy in Policies.parse({"p.cedar": text}).policies] == [1, 2]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (PERMIT_ALL + "\n// c\nforbid(principal action, resource);", "line 4, column 18", "unexpected token `action`"),
        ("permit(principal, action, resource)\n when { 1 ^ 2 };", "line 2, column 11", "invalid token"),
        ("permit(principal, action, resource)\nwhen { nosuch(3) };", "line 2, column 8", "not a valid function"),
        ("permit(principal, action, resource)", "line 1, column 35", "unexpected end of input"),
        (PERMIT_ALL.replace("all", "x") + ' permit(principal, action == "', "line 2, column 30", "invalid token"),
        ("allow(principal, action, resource);", "line 1, column 1", "invalid policy effect"),
        ("permit(principal, action, resource);;", "line 1, column 37", "unexpected token `;`"),
        ("\ufeffpermit(principal, action, resource);", "line 1, column 1", "invalid token"),
    ],
)
def test_a_syntax_error_names_file_line_column_and_what_cedar_says(text: str, where: str, what: str) -> None:
    message = refused(text)
    assert message.startswith(f"p.cedar, {where}: ")
    assert what in message


def test_two_policies_with_one_id_are_refused_across_files() -> None:
    assert "p.cedar:2: the name `all` is taken by first.cedar:1." in refused("\n" + PERMIT_ALL)


def test_two_unnamed_policies_on_one_line_need_an_id() -> None:
    assert "@id" in refused("permit(principal, action, resource); forbid(principal, action, resource);")


def test_ask_on_a_permit_is_refused() -> None:
    assert "`@ask` has no meaning on a `permit`" in refused('@ask("?") permit(principal, action, resource);')


def test_a_template_is_refused() -> None:
    assert "is a template" in refused("permit(principal == ?principal, action, resource);")


# Deciding


def test_no_policy_at_all_denies_and_says_that_nothing_permits() -> None:
    for files in ({}, {"empty.cedar": "// nothing yet\n"}):
        policies = Policies.parse(files)
        assert policies.problems(TOOLS) == ()
    decision = decide("", booking(1))
    assert (decision.verdict, decision.policies) == ("deny", ())
    assert decision.reasons == ("No policy permits `book` here, and what is not permitted is denied.",)


def test_an_allowed_call_names_the_policies_that_permit_it() -> None:
    decision = decide(PERMIT_ALL + PRICE_LIMIT, booking(10))
    assert decision == PolicyDecision(
        verdict="allow", policies=("all",), reasons=("p.cedar:1, policy `all`: permits it.",)
    )


def test_a_tool_no_policy_names_is_denied() -> None:
    text = 'permit(principal, action == Action::"search", resource);'
    assert decide(text, {"to": "Oslo"}, tool="search").verdict == "allow"
    assert decide(text, booking(1)).verdict == "deny"
    assert decide(text, {}, tool="launch", input_schema=schema()).verdict == "deny"


@pytest.mark.parametrize(
    ("price", "verdict"),
    [(499.99, "allow"), (499.9999, "allow"), (-0.0, "allow"), (500, "deny"), (500.0, "deny")],
)
def test_a_price_limit_holds_for_numbers_however_they_are_written(price: float, verdict: str) -> None:
    decision = decide(PERMIT_ALL + PRICE_LIMIT, booking(price))
    assert decision.verdict == verdict
    assert decision.policies == (("limit",) if verdict == "deny" else ("all",))


@pytest.mark.parametrize(
    ("price", "because"),
    [
        (1e22, "beyond the range"),
        pytest.param(10**5000, "beyond the range", id="a huge integer"),
        (922337203685477.6, "beyond the range"),
        (0.1 + 0.2, "more than four decimal places"),
        (1e-7, "more than four decimal places"),
        (float("nan"), "not a finite number"),
        (float("inf"), "not a finite number"),
        (True, "not a number"),
        ("500", "not a number"),
        (None, "not present"),
    ],
)
def test_a_number_that_cedar_cannot_hold_exactly_denies_and_is_never_rounded(price: Any, because: str) -> None:
    decision = decide(PERMIT_ALL + PRICE_LIMIT, booking(price))
    assert (decision.verdict, decision.policies) == ("deny", ())
    assert because in decision.reasons[0]
    assert "`arguments.price_usd`" in decision.reasons[0]


def test_an_integer_beyond_64_bits_denies() -> None:
    count = schema("n", n=INTEGER)
    text = PERMIT_ALL + "forbid(principal, action, resource) when { context.arguments.n > 5 };"
    assert decide(text, {"n": 5}, input_schema=count).verdict == "allow"
    assert decide(text, {"n": 6.0}, input_schema=count).verdict == "deny"
    assert decide(text, {"n": -(2**63)}, input_schema=count).verdict == "allow"
    assert "beyond 64 bits" in decide(text, {"n": 2**63}, input_schema=count).reasons[0]
    assert "not an integer" in decide(text, {"n": 5.5}, input_schema=count).reasons[0]


def test_an_argument_that_no_policy_reads_cannot_stop_a_call() -> None:
    place = schema("latitude", latitude=NUMBER)
    assert decide(PERMIT_ALL, {"latitude": 59.913868}, input_schema=place).verdict == "allow"


def test_reading_the_arguments_as_a_whole_counts_as_reading_each() -> None:
    text = PERMIT_ALL + "forbid(principal, action, resource) when { [context.arguments].contains(context.run) };"
    assert decide(text, booking(1e22)).verdict == "deny"


def test_a_forbid_that_reads_a_missing_argument_denies_instead_of_being_skipped() -> None:
    text = PERMIT_ALL + '@id("note") forbid(principal, action, resource) when { context.arguments.note == "x" };'
    decision = decide(text, booking(1))
    assert (decision.verdict, decision.policies) == ("deny", ("note",))
    assert decision.reasons == (
        "p.cedar:2, policy `note`: cannot be evaluated: record does not have the attribute `note`.",
    )
    guarded = text.replace("{ context", "{ context.arguments has note && context")
    assert decide(guarded, booking(1)).verdict == "allow"
    assert decide(guarded, booking(1, note="x")).policies == ("note",)


def test_a_permit_that_errors_denies_although_another_permits() -> None:
    text = PERMIT_ALL + '@id("vip") permit(principal, action, resource) when { principal.vip };'
    assert decide(text, booking(1)).policies == ("vip",)
    assert decide(text, booking(1)).verdict == "deny"


def test_a_null_argument_is_an_absent_attribute() -> None:
    nullable = schema("note", note={"anyOf": [STRING, {"type": "null"}]})
    text = PERMIT_ALL + "forbid(principal, action, resource) when { context.arguments has note };"
    assert decide(text, {"note": None}, input_schema=nullable).verdict == "allow"
    assert decide(text, {"note": "x"}, input_schema=nullable).verdict == "deny"


def test_policies_see_effect_session_principal_agent_and_the_run_so_far() -> None:
    text = """permit(principal == User::"ada", action, resource == Agent::"travel") when {
        context.effect == "once" && context.session == "s1" && context.run.steps == 2 && context.run.calls == 3
        && context.run has cost_usd && context.run.cost_usd == decimal("0.0101") };"""
    assert decide(text, booking(1), cost_usd=Decimal("0.01001")).verdict == "allow"  # cost is rounded up
    assert decide(text, booking(1), cost_usd=None).verdict == "deny"
    assert decide(text, booking(1), principal="eve").verdict == "deny"
    assert decide(text, booking(1), agent="other").verdict == "deny"


def test_lists_and_records_are_mapped_by_their_schema() -> None:
    shape = schema("seats", "who", seats={"type": "array", "items": STRING}, who={"$ref": "#/$defs/Person"})
    shape["$defs"] = {"Person": schema("name", name=STRING, age=NUMBER)}
    text = """permit(principal, action, resource) when {
        context.arguments.seats.contains("1A") && context.arguments.who.name == "Ada"
        && context.arguments.who.age.lessThan(decimal("40.0")) };"""
    assert decide(text, {"seats": ["2B", "1A"], "who": {"name": "Ada", "age": 36}}, input_schema=shape).reasons == (
        "p.cedar:1: permits it.",
    )
    assert decide(text, {"seats": [], "who": {"name": "Ada", "age": 36}}, input_schema=shape).verdict == "deny"


def test_a_changed_input_schema_is_not_judged_by_the_old_one() -> None:
    policies = Policies.parse({"p.cedar": PERMIT_ALL + PRICE_LIMIT})

    def verdict(input_schema: Any) -> str:
        request = PolicyRequest(
            principal="a",
            tool="book",
            agent="b",
            arguments=booking(500),
            input_schema=input_schema,
            effect="once",
            session="s",
            steps=0,
            calls=0,
            cost_usd=None,
        )
        return policies.decide(request).reasons[0]

    assert "forbids" in verdict(BOOK)
    assert "cannot be evaluated" in verdict(schema("price_usd", price_usd=INTEGER))
    assert "forbids" in verdict(json.loads(json.dumps(BOOK)))


# Asking

ASK = '@id("ask1") @ask("Book it?") forbid(principal, action == Action::"book", resource);\n'
ASK_TWO = '@id("ask2") @ask("Sure?") forbid(principal, action, resource) when { context.effect == "once" };\n'
FORBID = '@id("no") forbid(principal, action == Action::"book", resource);\n'


def test_an_annotated_forbid_asks_a_person() -> None:
    decision = decide(PERMIT_ALL + ASK, booking(1))
    assert (decision.verdict, decision.policies, decision.question) == ("ask", ("ask1",), "Book it?")
    assert decision.reasons == ("p.cedar:2, policy `ask1`: asks a person first.",)


def test_every_question_is_put() -> None:
    decision = decide(PERMIT_ALL + ASK_TWO + ASK, booking(1))
    assert (decision.verdict, decision.policies, decision.question) == ("ask", ("ask2", "ask1"), "Sure?\nBook it?")


def test_one_forbid_without_ask_makes_it_a_deny() -> None:
    decision = decide(PERMIT_ALL + ASK + FORBID + ASK_TWO, booking(1))
    assert (decision.verdict, decision.policies, decision.question) == ("deny", ("no",), "")


def test_a_person_is_not_asked_about_what_nothing_permits() -> None:
    decision = decide(ASK, booking(1))
    assert (decision.verdict, decision.policies, decision.question) == ("deny", ("ask1",), "")
    assert "nothing to ask" in decision.reasons[0]


def test_an_error_in_any_policy_outweighs_a_question() -> None:
    broken = '@id("broken") permit(principal, action, resource) when { context.arguments.note == "x" };'
    assert decide(PERMIT_ALL + ASK + broken, booking(1)).policies == ("broken",)
    decision = decide(PERMIT_ALL + ASK + FORBID + broken, booking(1))
    assert (decision.verdict, decision.policies) == ("deny", ("no", "broken"))


def test_a_bare_ask_still_has_a_question() -> None:
    decision = decide(PERMIT_ALL + "@ask forbid(principal, action, resource);", booking(1))
    assert (decision.verdict, decision.question) == ("ask", "Policy `p.cedar:2` wants a person to decide.")


# Checking against the tools


def test_sound_policies_have_no_problems() -> None:
    guarded = (
        'forbid(principal, action, resource) when { context.arguments has note && context.arguments.note == "x" };'
    )
    assert problems(PERMIT_ALL + PRICE_LIMIT + ASK + guarded) == ()


def test_an_unknown_tool_is_named_with_the_one_that_was_meant() -> None:
    assert problems('\npermit(principal, action == Action::"boook", resource);') == (
        "p.cedar:2: names the tool `boook`, which the agent does not have (did you mean `book`?).",
    )
    assert "does not have." in problems('permit(principal, action == Action::"x", resource);', {})[0]
    assert problems(PERMIT_ALL, {}) == ()


def test_an_unscoped_policy_says_which_tools_lack_the_argument() -> None:
    text = '@id("x") forbid(principal, action, resource) when { context.arguments.price_usd == decimal("1.0") };'
    assert problems(text) == (
        "p.cedar:1, policy `x`: reads `context.arguments.price_usd`, which the tool `search` does not have; "
        "name the tools that have it in the policy's scope, or test it with `has` first.",
    )


def on_book(condition: str) -> str:
    return f'forbid(principal, action == Action::"book", resource) when {{ {condition} }};'


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ('context.arguments.note == "x"', "which a call of the tool `book` may lack; test it with `has` first"),
        ("context.run.cost_usd == decimal(context.effect)", "may lack"),
        ("context.arguments.price == 1", "reads `context.arguments.price`, which the tool `book` does not have"),
        ("context.arguments has price", "which no tool it applies to has, so the test never holds"),
        (
            "context.arguments.price_usd > 500",
            'a JSON `number` is a decimal, compared as `.lessThan(decimal("500.0"))`',
        ),
        ("context.arguments.flight > 500", "expected Long but saw String"),
        ('principal in Group::"staff"', "unrecognized entity type `Group`"),
    ],
)
def test_each_mistake_gets_a_sentence_of_its_own(condition: str, sentence: str) -> None:
    found = problems(PERMIT_ALL + on_book(condition))
    assert any(each.startswith("p.cedar:2: ") and sentence in each for each in found)


def test_an_argument_without_a_cedar_type_cannot_be_read_and_the_reason_is_given() -> None:
    tools = {"book": schema("bag", bag={"type": "object"}, mixed={"anyOf": [STRING, INTEGER]})}
    assert problems(on_book('context.arguments.bag == "x"'), tools) == (
        "p.cedar:1: reads `context.arguments.bag`, which the tool `book` does not have as a Cedar value "
        "(in `book` it is an object of any shape).",
    )
    assert "in `book` it may be of several types" in problems(on_book("context.arguments has mixed"), tools)[0]


def test_names_that_are_not_identifiers_can_be_read() -> None:
    tools = {"book": schema("two words", "", "é", "if", **{"two words": STRING, "": STRING, "é": STRING, "if": STRING})}
    readable = " && ".join(f'context.arguments["{name}"] == "x"' for name in ("two words", "", "é", "if"))
    assert problems(on_book(readable), tools) == ()
    arguments = {"two words": "x", "": "x", "é": "x", "if": "x"}
    assert decide(PERMIT_ALL + on_book(readable), arguments, input_schema=tools["book"]).policies == ("p.cedar:2",)
    missing = problems(on_book('context.arguments["not here"] == "x"'), tools)
    assert 'reads `context.arguments["not here"]`' in missing[0]


# Types and paths


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "boolean"}, Attribute(Scalar.BOOLEAN, required=False)),
        ({"enum": ["a", "b"]}, Attribute(Scalar.STRING, required=False)),
        ({"const": "a"}, Attribute(Scalar.STRING, required=False)),
        ({"enum": [1, 2]}, Attribute(Scalar.LONG, required=False)),
        ({"enum": ["a", None]}, Attribute(Scalar.STRING, required=False)),
        ({"type": ["string", "null"]}, Attribute(Scalar.STRING, required=False)),
        ({"type": ["integer", "number"]}, Attribute(Scalar.DECIMAL, required=False)),
        ({"anyOf": [INTEGER, NUMBER]}, Attribute(Scalar.DECIMAL, required=False)),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}]}, Attribute(Scalar.LONG, required=False)),
        (
            {"type": "array", "items": {"type": "array", "items": NUMBER}},
            Attribute(SetOf(SetOf(Scalar.DECIMAL)), False),
        ),
        ({"properties": {"x": STRING}, "required": ["x"]}, Attribute(Record({"x": Attribute(Scalar.STRING)}), False)),
        ({"type": "null"}, None),
        ({"type": "array"}, None),
        ({"type": "array", "items": {"type": ["string", "null"]}}, None),
        ({"type": "array", "prefixItems": [STRING], "items": STRING}, None),
        ({"enum": ["a", 1]}, None),
        ({"type": "object", "additionalProperties": STRING}, None),
        ({"$ref": "https://elsewhere.example/schema"}, None),
        ({"$ref": "#/$defs/nowhere"}, None),
        ({"$ref": "#"}, None),
        ({}, None),
        (True, None),
        ({"type": 7}, None),
    ],
)
def test_json_schema_has_a_cedar_type_or_is_left_out_with_a_reason(part: Any, expected: Attribute | None) -> None:
    types = argument_types({**schema(p=part), "$defs": {"a/b": INTEGER}})
    assert types.record.attributes.get("p") == expected
    assert ("p" in types.left_out) == (expected is None)


def test_only_a_required_argument_that_cannot_be_null_is_a_required_attribute() -> None:
    types = argument_types(schema("a", "b", a=STRING, b={"type": ["string", "null"]}, c=STRING))
    assert {name: each.required for name, each in types.record.attributes.items()} == {
        "a": True,
        "b": False,
        "c": False,
    }


@pytest.mark.parametrize(
    ("condition", "paths"),
    [
        ("context.arguments.a.b == 1", {("arguments", "a", "b")}),
        ("context has arguments.a", {("arguments",), ("arguments", "a")}),
        ("context == {}", {()}),
        ("(if true then context else context).arguments.a == 1", {()}),
        ('{".": context.effect, Var: "context"} == {}', {("effect",)}),
        ("principal.a == 1", set()),
    ],
)
def test_the_paths_a_condition_reads_are_never_too_few(condition: str, paths: set[tuple[str, ...]]) -> None:
    text = f"permit(principal, action, resource) when {{ {condition} }};"
    (policy,) = Policies.parse({"p.cedar": text}).policies
    assert policy.reads == paths
    assert paths_read([]) == frozenset()


# Provenance


def test_policies_that_read_provenance_are_checked_when_an_agent_is_locked() -> None:
    sound = """@id("x") forbid(principal, action, resource)
    when { context.provenance.untrusted.containsAny(["/to", "/a/*/b"]) && context.provenance.read_untrusted };"""
    assert problems(PERMIT_ALL + sound) == ()
    (wrong,) = problems(PERMIT_ALL + sound.replace("untrusted.contains", "tainted.contains"))
    assert "reads `context.provenance.tainted`, which the tools `book` and `search` do not have" in wrong
    (mistyped,) = problems(PERMIT_ALL + sound.replace("context.provenance.read_untrusted", "context.provenance.user"))
    assert "p.cedar:2, policy `x`" in mistyped


def test_provenance_is_made_only_where_a_policy_reads_it_and_without_it_such_a_policy_denies() -> None:
    made = []

    def provenance() -> dict[str, Any]:
        made.append(1)
        return {"untrusted": ["/to"], "ungrounded": [], "user": [], "trusted": [], "read_untrusted": True}

    assert decide(PERMIT_ALL, booking(1), provenance=provenance).verdict == "allow"
    assert made == []
    reads = PERMIT_ALL + 'forbid(principal, action, resource) when { context.provenance.user.contains("/x") };'
    assert decide(reads, booking(1), provenance=provenance).verdict == "allow"
    assert made == [1]
    denied = decide(reads, booking(1))
    assert denied.verdict == "deny"
    assert "`provenance` is not present" in denied.reasons[0]
