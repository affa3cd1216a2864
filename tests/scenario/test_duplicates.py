"""Repeated calls in recorded conversations: `make duplicates`, and what its counts rest on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DUPLICATES = ROOT / "examples/duplicates"
sys.path[:0] = [str(DUPLICATES), str(ROOT / "examples/airline")]

import measure  # noqa: E402
from agents import agent_of  # noqa: E402
from conversation import renamed  # noqa: E402
from data import Recording, load_recordings, read_text  # noqa: E402

from lockstep.gate.effect_checks import effect_problems  # noqa: E402
from lockstep.values import Effect  # noqa: E402

DATA = Path(os.environ.get("LOCKSTEP_DATA", ROOT.parent / "shared/data"))
AIRLINE, RETAIL, TAU2 = (DATA / name for name in measure.RECORDINGS)
WORLDS = DATA / "worlds_tau1.json.zst"
RECORDED = pytest.mark.skipif(
    not all(path.exists() for path in (AIRLINE, RETAIL, TAU2, WORLDS)),
    reason=f"no recordings at {DATA} (set LOCKSTEP_DATA)",
)


@RECORDED
def test_every_recorded_repeat_is_caught_and_every_other_write_let_through() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == (
        "duplicates: caught 6/6, legitimate writes refused 0/120, re-emissions served 109/109"
    )


@RECORDED
def test_without_the_declared_fields_the_double_booking_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    (double,) = [each for each in load_recordings(AIRLINE) if each.id == "tau-bench/airline/gpt-4o/t0/r3"]
    assert measured(double).caught == (1, 1)
    undeclared = agent_of("airline", ())
    tools = {name: replace(tool, dedupe_on=None) for name, tool in undeclared.tools.items()}
    monkeypatch.setattr(measure, "agent_for", lambda _: replace(undeclared, tools=tools))
    found = measured(double)
    assert found.caught == (0, 1)
    assert found.lines == (f"{double.id}, call 9 book_reservation: missed duplicate (ok)",)


@RECORDED
def test_injected_503s_are_recovered_from_by_infrastructure_and_no_write_is_retried() -> None:
    recordings = load_recordings(RETAIL)
    orders = json.loads(read_text(WORLDS))["tau1_retail_at_59a200c"]["database"]["orders"]

    def recover(name: str, arguments: Any) -> str:
        assert name == "get_order_details"
        return json.dumps(orders[arguments["order_id"]])

    injected = 0
    for one in asyncio.run(measure.replay_all(recordings, recover)):
        faults = one.recording.labels["injected_fault_calls"]
        injected += len(faults)
        assert one.retried == dict.fromkeys(faults, 1)
        for place in faults:
            call = one.calls[place]
            assert (call.outcome, one.attempts[place]) == ("ok", 2)
            assert json.loads(call.text)["order_id"] == json.loads(call.arguments)["order_id"]
        agent = measure.agent_for(one.recording)
        writes = [place for place, call in enumerate(one.calls) if agent.tools[call.name].effect is not Effect.READ]
        assert all(one.attempts[place] == 1 for place in writes)
    assert injected == 31


@RECORDED
@pytest.mark.parametrize("domain", ["airline", "retail"])
def test_the_declared_fields_are_arguments_of_the_recorded_tools(domain: str) -> None:
    world = next(each for name, each in json.loads(read_text(WORLDS)).items() if domain in name)
    tools = dict(agent_of(domain, ()).tools)
    for schema in world["tool_schemas"]:
        definition = {"name": schema["name"], "inputSchema": schema["parameters"]}
        tools[schema["name"]] = replace(tools[schema["name"]], definition=definition)
    assert [problem for tool in tools.values() for problem in effect_problems(tool, tools)] == []


# --- small conversations, without the data -----------------------------------


def asked(call_id: str, name: str, answer: str, **arguments: Any) -> list[dict[str, Any]]:
    """A reply that asks for one call, and what it was answered."""
    return [
        {"role": "assistant", "content": "", "tool_calls": [{"id": call_id, "name": name, "args": arguments}]},
        {"role": "tool", "content": answer, "tool_call_id": call_id, "name": name},
    ]


def user(text: str = "Go on.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def said(text: str = "Done.") -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def recorded(path: Path, *parts: list[dict[str, Any]], **labels: Any) -> Recording:
    messages = [message for part in (user(), *parts, said()) for message in part]
    record = {"id": "c", "domain": "airline", "messages": messages, "final_state_changes": {}, "labels": labels}
    (path / "one.jsonl").write_text(json.dumps(record) + "\n")
    (only,) = load_recordings(path / "one.jsonl")
    return only


def measured(recording: Recording) -> measure.Verdicts:
    return asyncio.run(measure.measure([recording]))


def replayed(recording: Recording) -> Any:
    (one,) = asyncio.run(measure.replay_all([recording]))
    return one


CANCEL = ("cancel_reservation", '{"reservation_id": "A"}')


def test_a_call_emitted_again_in_a_later_turn_is_served(tmp_path: Path) -> None:
    again = asked("c1", *CANCEL, reservation_id="A")
    found = measured(recorded(tmp_path, again, said(), user(), again, repeated_call_id_same_call=[1]))
    assert (found.served, found.refused, found.perfect) == ((1, 1), (0, 1), True)


def test_a_failed_call_that_is_emitted_again_is_made_again(tmp_path: Path) -> None:
    first = asked("c1", "cancel_reservation", "Error: busy", reservation_id="A")
    labels = {"failed_calls": [0], "repeated_call_id_same_call": [1]}
    one = recorded(tmp_path, first, asked("c1", *CANCEL, reservation_id="A"), **labels)
    assert replayed(one).attempts == (1, 1)
    assert measured(one).served == (0, 0)


def test_a_read_that_is_emitted_again_after_a_change_is_made_again_and_said(tmp_path: Path) -> None:
    look = asked("c1", "get_reservation_details", "{}", reservation_id="A")
    one = recorded(tmp_path, look, asked("c2", *CANCEL, reservation_id="A"), look, repeated_call_id_same_call=[2])
    found = measured(one)
    assert (found.served, found.perfect) == ((0, 0), True)
    assert found.lines == ("c, call 2 get_reservation_details: read again, after a change (ok)",)


def test_an_id_that_is_used_for_another_call_says_nothing(tmp_path: Path) -> None:
    calls = [asked("c1", "cancel_reservation", "{}", reservation_id=name) for name in "AB"]
    one = recorded(tmp_path, *calls, repeated_call_id_different_call=[1])
    assert replayed(one).attempts == (1, 1)
    assert measured(one).perfect


def test_a_write_that_is_refused_is_listed(tmp_path: Path) -> None:
    calls = [asked(call_id, *CANCEL, reservation_id="A") for call_id in ("c1", "c2")]
    found = measured(recorded(tmp_path, *calls))
    assert found.refused == (1, 2)
    assert found.lines == ("c, call 1 cancel_reservation: refused legitimate write; joined to call 0",)
    assert not found.perfect


def booking(call_id: str, made: str, paid: str) -> list[dict[str, Any]]:
    flights = [{"flight_number": "HAT1", "date": "2024-05-20"}]
    passengers = [{"first_name": "Mia", "last_name": "Li", "dob": "1990-04-05"}]
    named = {"user_id": "mia", "flights": flights, "passengers": passengers, "payment_methods": [{"payment_id": paid}]}
    return asked(call_id, "book_reservation", json.dumps({"reservation_id": made}), **named)


def test_whoever_undoes_a_repeat_that_was_caught_undoes_what_there_is(tmp_path: Path) -> None:
    """The recorded model cancels its second booking. There is only the first, which it was told of instead."""
    one = recorded(
        tmp_path,
        booking("c1", "FIRST", "card"),
        booking("c2", "SECOND", "gift"),
        asked("c3", "cancel_reservation", "{}", reservation_id="SECOND"),
        booking("c4", "THIRD", "card"),
        semantic_duplicate_calls=[[0, 1]],
    )
    again = replayed(one)
    assert again.joined_to == {1: 0}
    assert json.loads(again.calls[2].arguments) == {"reservation_id": "FIRST"}
    found = measured(one)
    assert (found.caught, found.refused) == ((1, 1), (0, 3))


def test_the_same_update_twice_in_one_reply_is_made_once_whatever_stands_between(tmp_path: Path) -> None:
    def bags(call_id: str, number: int) -> list[dict[str, Any]]:
        named = {"reservation_id": "A", "total_baggages": number, "nonfree_baggages": 0, "payment_id": "card"}
        return asked(call_id, "update_reservation_baggages", "{}", **named)

    parts = [bags("c1", 1), bags("c2", 2), bags("c3", 1)]
    together = [
        {"role": "assistant", "content": "", "tool_calls": [part[0]["tool_calls"][0] for part in parts]},
        *(part[1] for part in parts),
    ]
    assert replayed(recorded(tmp_path, together)).attempts == (1, 1, 0)
    assert replayed(recorded(tmp_path, *parts)).attempts == (1, 1, 1)


@pytest.mark.parametrize(
    "then, now, names",
    [
        ('{"id": "B", "at": "x"}', '{"id": "A", "at": "x"}', {"B": "A"}),
        ("Certificate c_2 added.", "Certificate c_1 added.", {"c_2": "c_1"}),
        ("Certificate c_2 added to mia.", "No.", {}),
        ("[1]", "{}", {}),
    ],
    ids=["fields", "words", "other-words", "no-record"],
)
def test_the_names_in_which_two_answers_differ_are_found(then: str, now: str, names: dict[str, str]) -> None:
    assert {before: after for before, after in renamed(then, now).items() if before != after} == names


def test_a_domain_without_an_agent_is_a_sentence(tmp_path: Path) -> None:
    record = {"id": "c", "domain": "telecom", "messages": user() + said(), "final_state_changes": {}}
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    done = run("--recording", str(tmp_path / "one.jsonl"))
    assert done.returncode == 2
    assert done.stderr == "duplicates: c is of the domain 'telecom'; there are agents for airline, retail.\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DUPLICATES / "measure.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
