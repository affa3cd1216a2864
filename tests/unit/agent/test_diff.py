"""The difference between two locks, in words a person can act on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clerk import Clerk

from lockstep.agent.diff import Change, diff
from lockstep.agent.lock import from_text, to_text


@pytest.fixture
def clerk(tmp_path: Path) -> Clerk:
    return Clerk(tmp_path)


def changes(clerk: Clerk, *edits: Callable[[Clerk], None]) -> list[Change]:
    before = clerk.lock()
    for edit in edits:
        edit(clerk)
    return list(diff(before, clerk.lock()))


def only(found: list[Change]) -> Change:
    assert len(found) == 1, found
    return found[0]


def test_equal_locks_have_no_difference(clerk: Clerk) -> None:
    assert changes(clerk) == []


def test_a_changed_field_of_a_schema_is_named_by_its_path(clerk: Clerk) -> None:
    def edit(clerk: Clerk) -> None:
        clerk.definitions[1][0]["inputSchema"]["properties"]["cents"]["maximum"] = 6000

    change = only(changes(clerk, edit))
    assert (change.dimension, change.part, change.kind) == ("tools", "tool pay", "changed")
    assert change.lines == ("definition.inputSchema.properties.cents.maximum: 5000 -> 6000",)


def test_added_and_removed_fields_show_their_values(clerk: Clerk) -> None:
    def edit(clerk: Clerk) -> None:
        cents = clerk.definitions[1][0]["inputSchema"]["properties"]["cents"]
        del cents["maximum"]
        cents["minimum"] = 1

    assert only(changes(clerk, edit)).lines == (
        "definition.inputSchema.properties.cents.maximum: removed 5000",
        "definition.inputSchema.properties.cents.minimum: added 1",
    )


def test_a_number_that_became_a_truth_is_a_change(clerk: Clerk) -> None:
    def edit(clerk: Clerk) -> None:
        clerk.definitions[1][0]["inputSchema"]["properties"]["cents"]["maximum"] = True

    clerk.definitions[1][0]["inputSchema"]["properties"]["cents"]["maximum"] = 1
    assert only(changes(clerk, edit)).lines == ("definition.inputSchema.properties.cents.maximum: 1 -> true",)


def test_the_prompt_differs_by_lines(clerk: Clerk) -> None:
    change = only(changes(clerk, lambda clerk: clerk.change("prompt.md", "bills", "invoices")))
    assert (change.dimension, change.part) == ("prompt", "prompt.md")
    assert change.lines == ("@@ -1,2 +1,2 @@", "-You pay bills.", "+You pay invoices.", " Ask before you pay.")


def test_a_missing_newline_at_the_end_is_a_difference_too(clerk: Clerk) -> None:
    change = only(changes(clerk, lambda clerk: clerk.change("prompt.md", "pay.\n", "pay.")))
    assert change.lines[-1] == "+Ask before you pay. (no newline at the end)"


def test_a_policy_differs_by_lines(clerk: Clerk) -> None:
    change = only(changes(clerk, lambda clerk: clerk.change("policy.cedar", "permit", "forbid")))
    assert (change.dimension, change.part) == ("tools", "policy policy.cedar")
    assert change.lines[-2:] == ("-permit (principal, action, resource);", "+forbid (principal, action, resource);")


def test_changed_code_shows_its_lines_when_both_sides_are_at_hand(clerk: Clerk) -> None:
    change = only(changes(clerk, lambda clerk: clerk.change("server.py", "# pays", "# pays twice")))
    assert change.part == "tool pay"
    assert change.lines[0].startswith("file server.py: ")
    assert change.lines[-2:] == ("-# pays", "+# pays twice")


def test_changed_code_shows_its_digests_when_one_side_is_only_a_lock(clerk: Clerk) -> None:
    before = from_text(to_text(clerk.lock()), "agent.lock")
    clerk.change("server.py", "# pays", "# pays twice")
    change = only(list(diff(before, clerk.lock())))
    assert len(change.lines) == 1
    assert change.lines[0].startswith("file server.py: ")
    assert " -> " in change.lines[0]


def test_code_that_two_tools_share_shows_its_lines_once(clerk: Clerk) -> None:
    clerk.change("agent.toml", '"look"', '"look", "unused"')
    found = changes(clerk, lambda clerk: clerk.change("tools.py", "looks", "Looks"))
    assert [change.part for change in found] == ["tool look", "tool unused"]
    assert "+# Looks things up" in found[0].lines
    assert found[1].lines == found[0].lines[:1]


def test_added_and_removed_files_are_named(clerk: Clerk) -> None:
    def edit(clerk: Clerk) -> None:
        (clerk.directory / "table/a.json").rename(clerk.directory / "table/b.json")

    assert only(changes(clerk, edit)).lines == ("file table/a.json: removed", "file table/b.json: added")


def test_added_and_removed_tools_are_named(clerk: Clerk) -> None:
    found = changes(clerk, lambda clerk: clerk.change("agent.toml", 'include = ["look"]', 'include = ["unused"]'))
    assert [(change.part, change.kind) for change in found] == [("tool look", "removed"), ("tool unused", "added")]


def test_a_new_name_and_a_new_script_stand_under_their_own_headings(clerk: Clerk) -> None:
    found = changes(
        clerk,
        lambda clerk: clerk.change("agent.toml", '"clerk"', '"payer"'),
        lambda clerk: clerk.change("script.jsonl", "Nothing", "All"),
    )
    assert [(change.dimension, change.part) for change in found] == [("agent", "name"), ("model", "file script.jsonl")]
    assert found[0].lines == ("'clerk' -> 'payer'",)
    assert '+{"say": "All to pay."}' in found[1].lines
