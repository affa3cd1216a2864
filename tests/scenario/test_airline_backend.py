"""The airline behaves as the one the models were recorded with: every recorded result, and what no recording shows."""

from __future__ import annotations

import copy
import http.client
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

AIRLINE = Path(__file__).resolve().parents[2] / "examples" / "airline"
sys.path.insert(0, str(AIRLINE))

import data  # noqa: E402
from arithmetic import calculate  # noqa: E402
from backend import TOOLS, Airline  # noqa: E402

# Loaded by path under names of their own: other examples have a `service` and `tools` too.


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"airline_{name}", AIRLINE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


service = _load("service")


def _data_file(name: str) -> Path:
    path = data.data_directory() / name
    if not path.is_file():
        pytest.skip(f"{path} is missing; LOCKSTEP_DATA names the directory with the public recordings")
    return path


@pytest.fixture(scope="module")
def world() -> data.World:
    return data.load_world(_data_file(data.WORLDS))


@pytest.fixture(scope="module")
def recordings() -> list[data.Recording]:
    return data.load_recordings(_data_file(data.RECORDINGS))


def _flight(number: str, origin: str, destination: str, departure: str, arrival: str, **dates: Any) -> dict[str, Any]:
    return {
        "flight_number": number,
        "origin": origin,
        "destination": destination,
        "scheduled_departure_time_est": departure,
        "scheduled_arrival_time_est": arrival,
        "dates": {date.replace("_", "-").removeprefix("d"): day for date, day in dates.items()},
    }


def _open_day(economy: int, seats: int = 9) -> dict[str, Any]:
    return {
        "status": "available",
        "available_seats": {"basic_economy": 9, "economy": seats, "business": 9},
        "prices": {"basic_economy": 50, "economy": economy, "business": 400},
    }


@pytest.fixture
def database() -> dict[str, dict[str, Any]]:
    flights = [
        _flight("HAT001", "JFK", "ORD", "06:00:00", "08:00:00", d2024_05_20=_open_day(100), d2024_05_21=_open_day(110)),
        _flight("HAT002", "ORD", "SEA", "08:00:00", "12:00:00", d2024_05_20=_open_day(120, seats=1)),
        _flight("HAT003", "JFK", "ORD", "21:00:00", "01:00:00+1", d2024_05_20=_open_day(90)),
        _flight("HAT004", "ORD", "SEA", "02:00:00", "06:00:00", d2024_05_20=_open_day(70), d2024_05_21=_open_day(80)),
        _flight("HAT005", "JFK", "ORD", "09:00:00", "11:00:00", d2024_05_20={"status": "delayed"}),
    ]
    passenger = {"first_name": "Ada", "last_name": "Lee", "dob": "1990-01-01"}
    reservation = {
        "reservation_id": "ABC123",
        "user_id": "ada_lee_1",
        "origin": "JFK",
        "destination": "ORD",
        "flight_type": "one_way",
        "cabin": "economy",
        "flights": [
            {"origin": "JFK", "destination": "ORD", "flight_number": "HAT001", "date": "2024-05-20", "price": 60}
        ],
        "passengers": [passenger, {**passenger, "first_name": "Bo"}],
        "payment_history": [{"payment_id": "credit_card_1", "amount": 120}],
        "created_at": "2024-05-10T10:00:00",
        "total_baggages": 1,
        "nonfree_baggages": 1,
        "insurance": "no",
    }
    user = {
        "name": {"first_name": "Ada", "last_name": "Lee"},
        "payment_methods": {
            "credit_card_1": {"source": "credit_card", "brand": "visa", "last_four": "1111", "id": "credit_card_1"},
            "gift_card_1": {"source": "gift_card", "amount": 75, "id": "gift_card_1"},
            "certificate_1": {"source": "certificate", "amount": 50, "id": "certificate_1"},
        },
        "membership": "silver",
        "reservations": ["ABC123"],
    }
    return {
        "flights": {flight["flight_number"]: flight for flight in flights},
        "reservations": {"ABC123": reservation},
        "users": {"ada_lee_1": user},
    }


@pytest.fixture
def airline(database: dict[str, dict[str, Any]]) -> Iterator[Airline]:
    before = copy.deepcopy(database)
    yield Airline(database)
    assert database == before, "a session wrote to the shared database"


ADA = {"first_name": "Ada", "last_name": "Lee", "dob": "1990-01-01"}


def _book(airline: Airline, *, price: int = 100, payment_id: str = "credit_card_1", **changed: Any) -> str:
    arguments: dict[str, Any] = {
        "user_id": "ada_lee_1",
        "origin": "JFK",
        "destination": "ORD",
        "flight_type": "one_way",
        "cabin": "economy",
        "flights": [{"flight_number": "HAT001", "date": "2024-05-20"}],
        "passengers": [ADA],
        "payment_methods": [{"payment_id": payment_id, "amount": price}],
        "total_baggages": 0,
        "nonfree_baggages": 0,
        "insurance": "no",
    }
    return airline.book_reservation(**{**arguments, **changed})


def _change_flights(
    airline: Airline, *flights: dict[str, Any], cabin: str = "economy", pay: str = "credit_card_1"
) -> str:
    return airline.update_reservation_flights("ABC123", cabin, list(flights), pay)


# What the recordings show


def test_every_recorded_result_and_final_state_comes_out_again(
    world: data.World, recordings: list[data.Recording]
) -> None:
    results, states = [], []
    for recording in recordings:
        airline = Airline(world.database)
        for call, expected in recording.exchanges():
            actual = getattr(airline, call.name)(**call.arguments)
            results.append((recording.id, call.name, actual == expected))
        states.append((recording.id, airline.changes() == recording.final_state_changes))
    assert len(recordings) == 60
    assert len(results) == 413
    assert [each for each in results if not each[-1]] == []
    assert [each for each in states if not each[-1]] == []


def test_the_tools_offer_the_schemas_the_recorded_models_saw(world: data.World) -> None:
    from lockstep.tools.schema import definition

    tools = _load("tools")
    assert {schema["name"] for schema in world.tool_schemas} == TOOLS
    for schema in world.tool_schemas:
        ours = definition(getattr(tools, schema["name"]))
        assert ours["name"] == schema["name"]
        assert ours["description"] == schema["description"]
        parameters = {"required": [], **ours["inputSchema"]}
        parameters.pop("additionalProperties", None)  # only the outermost object is closed
        parameters.pop("$schema", None)
        assert parameters == schema["parameters"]


def test_a_conversation_splits_into_runs_at_its_user_messages(recordings: list[data.Recording]) -> None:
    turns = [turn for recording in recordings for turn in recording.turns]
    assert all(turn.messages for turn in turns)
    assert all(isinstance(turn.messages[0], data.AssistantMessage) for turn in turns)
    ends = [recording.turns[-1].messages[-1] for recording in recordings]
    assert any(isinstance(end, data.ToolMessage) for end in ends)
    assert all(recording.policy.startswith("# Airline Agent Policy") for recording in recordings)


# Looking things up


def test_a_direct_search_shows_only_what_can_be_booked_that_day(airline: Airline) -> None:
    found = json.loads(airline.search_direct_flight("JFK", "ORD", "2024-05-20"))
    assert [flight["flight_number"] for flight in found] == ["HAT001", "HAT003"]
    assert "dates" not in found[0]
    assert json.loads(airline.search_direct_flight("JFK", "ORD", "2031-01-01")) == []


def test_a_connection_after_midnight_leaves_the_next_day(airline: Airline) -> None:
    pairs = json.loads(airline.search_onestop_flight("JFK", "SEA", "2024-05-20"))
    shown = [[(flight["flight_number"], flight["date"]) for flight in pair] for pair in pairs]
    assert shown == [
        [("HAT001", "2024-05-20"), ("HAT002", "2024-05-20")],  # no time to change planes is time enough
        [("HAT003", "2024-05-20"), ("HAT004", "2024-05-21")],
    ]


@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("get_user_details", ["nobody"], "Error: user not found"),
        ("get_reservation_details", ["NONE00"], "Error: reservation not found"),
        ("cancel_reservation", ["NONE00"], "Error: reservation not found"),
        ("send_certificate", ["nobody", 100], "Error: user not found"),
        ("update_reservation_passengers", ["NONE00", []], "Error: reservation not found"),
        ("update_reservation_baggages", ["NONE00", 1, 1, "credit_card_1"], "Error: reservation not found"),
        ("update_reservation_flights", ["NONE00", "economy", [], "credit_card_1"], "Error: reservation not found"),
        ("transfer_to_human_agents", ["Please help."], "Transfer successful"),
        ("think", ["Hmm."], ""),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(
    airline: Airline, tool: str, arguments: list[Any], answer: str
) -> None:
    assert getattr(airline, tool)(*arguments) == answer
    assert airline.changes() == {}


# Booking


def test_a_booking_costs_seats_bags_and_insurance_and_is_on_the_users_list(airline: Airline) -> None:
    booked = json.loads(_book(airline, price=180, nonfree_baggages=1, total_baggages=1, insurance="yes"))
    assert booked["reservation_id"] == "HATHAT"
    assert booked["created_at"] == "2024-05-15T15:00:00"
    assert booked["flights"] == [
        {"flight_number": "HAT001", "date": "2024-05-20", "price": 100, "origin": "JFK", "destination": "ORD"}
    ]
    assert airline.changes()["reservations"] == {"HATHAT": booked}
    assert airline.changes()["users"]["ada_lee_1"]["reservations"] == ["ABC123", "HATHAT"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"user_id": "nobody"}, "user not found"),
        ({"flights": [{"flight_number": "HAT900", "date": "2024-05-20"}]}, "flight HAT900 not found"),
        (
            {"flights": [{"flight_number": "HAT001", "date": "2024-06-20"}]},
            "flight HAT001 not found on date 2024-06-20",
        ),
        (
            {"flights": [{"flight_number": "HAT005", "date": "2024-05-20"}]},
            "flight HAT005 not available on date 2024-05-20",
        ),
        (
            {"flights": [{"flight_number": "HAT002", "date": "2024-05-20"}], "passengers": [ADA, ADA]},
            "not enough seats on flight HAT002",
        ),
        ({"payment_id": "credit_card_9"}, "payment method credit_card_9 not found"),
        ({"payment_id": "gift_card_1"}, "not enough balance in payment method gift_card_1"),
        ({"payment_id": "certificate_1"}, "not enough balance in payment method certificate_1"),
        ({"price": 99}, "payment amount does not add up, total price is 100, but paid 99"),
    ],
)
def test_a_booking_that_cannot_be_made_changes_nothing(
    airline: Airline, changed: dict[str, Any], sentence: str
) -> None:
    assert _book(airline, **changed) == f"Error: {sentence}"
    assert airline.changes() == {}


def test_a_gift_card_pays_what_is_asked_and_a_certificate_is_used_up(airline: Airline) -> None:
    payments = [{"payment_id": "gift_card_1", "amount": 70}, {"payment_id": "certificate_1", "amount": 30}]
    assert json.loads(_book(airline, payment_methods=payments))["payment_history"] == payments
    methods = airline.changes()["users"]["ada_lee_1"]["payment_methods"]
    assert methods["gift_card_1"]["amount"] == 5
    assert "certificate_1" not in methods


def test_one_gift_card_named_twice_cannot_pay_more_than_it_holds(airline: Airline) -> None:
    payments = [{"payment_id": "gift_card_1", "amount": 50}, {"payment_id": "gift_card_1", "amount": 50}]
    assert _book(airline, payment_methods=payments) == "Error: not enough balance in payment method gift_card_1"


def test_a_session_has_room_for_three_new_reservations_cancelled_or_not(airline: Airline) -> None:
    assert json.loads(_book(airline))["reservation_id"] == "HATHAT"
    assert json.loads(_book(airline))["reservation_id"] == "HATHAU"
    airline.cancel_reservation("HATHAU")
    assert json.loads(_book(airline))["reservation_id"] == "HATHAV"
    assert _book(airline) == "Error: too many reservations"


# Changing


def test_cancelling_notes_the_refunds_but_credits_nothing_yet(airline: Airline) -> None:
    cancelled = json.loads(airline.cancel_reservation("ABC123"))
    assert cancelled["status"] == "cancelled"
    assert cancelled["payment_history"][1:] == [{"payment_id": "credit_card_1", "amount": -120}]
    assert set(airline.changes()) == {"reservations"}


def test_a_kept_flight_keeps_its_price_and_a_new_one_has_todays(airline: Airline) -> None:
    kept, new = {"flight_number": "HAT001", "date": "2024-05-20"}, {"flight_number": "HAT004", "date": "2024-05-21"}
    changed = json.loads(_change_flights(airline, kept, new))
    assert [flight["price"] for flight in changed["flights"]] == [60, 80]
    assert changed["payment_history"][1:] == [{"payment_id": "credit_card_1", "amount": 160}]


def test_another_cabin_reprices_every_flight_and_stays_unwritten(airline: Airline) -> None:
    changed = json.loads(_change_flights(airline, {"flight_number": "HAT001", "date": "2024-05-20"}, cabin="business"))
    assert changed["flights"][0]["price"] == 400
    assert changed["cabin"] == "economy"


def test_a_cheaper_flight_is_refunded_to_the_gift_card(airline: Airline) -> None:
    flight = {"flight_number": "HAT001", "date": "2024-05-20"}
    changed = json.loads(_change_flights(airline, flight, cabin="basic_economy", pay="gift_card_1"))
    assert changed["payment_history"][1:] == [{"payment_id": "gift_card_1", "amount": -20}]
    assert airline.changes()["users"]["ada_lee_1"]["payment_methods"]["gift_card_1"]["amount"] == 95


def test_a_change_that_costs_nothing_leaves_no_payment(airline: Airline) -> None:
    changed = json.loads(_change_flights(airline, {"flight_number": "HAT001", "date": "2024-05-20"}))
    assert len(changed["payment_history"]) == 1
    assert "users" not in airline.changes()


def test_a_flight_keeps_what_it_was_asked_for_with_in_that_order(airline: Airline) -> None:
    asked = {"origin": "x", "price": 1, "flight_number": "HAT001", "date": "2024-05-21", "seat": "1A"}
    changed = json.loads(_change_flights(airline, asked))
    assert list(changed["flights"][0].items()) == [
        ("origin", "JFK"),
        ("price", 110),
        ("flight_number", "HAT001"),
        ("date", "2024-05-21"),
        ("seat", "1A"),
        ("destination", "ORD"),
    ]


@pytest.mark.parametrize(
    ("flight", "pay", "sentence"),
    [
        ("HAT900", "credit_card_1", "flight HAT900 not found"),
        ("HAT005", "credit_card_1", "flight HAT005 not available on date 2024-05-20"),
        ("HAT002", "credit_card_1", "not enough seats on flight HAT002"),
        ("HAT003", "credit_card_9", "payment method not found"),
        ("HAT003", "certificate_1", "certificate cannot be used to update reservation"),
        ("HAT001", "certificate_1", "certificate cannot be used to update reservation"),
    ],
)
def test_flights_that_cannot_be_changed_stay(airline: Airline, flight: str, pay: str, sentence: str) -> None:
    assert _change_flights(airline, {"flight_number": flight, "date": "2024-05-20"}, pay=pay) == f"Error: {sentence}"
    assert airline.changes() == {}


def test_a_gift_card_that_holds_too_little_changes_nothing(airline: Airline) -> None:
    flight = {"flight_number": "HAT001", "date": "2024-05-21"}
    assert _change_flights(airline, flight, pay="gift_card_1") == "Error: gift card balance is not enough"
    assert airline.changes() == {}


@pytest.mark.parametrize(("nonfree", "fees"), [(3, [100]), (1, []), (0, [])])
def test_only_further_paid_bags_are_charged(airline: Airline, nonfree: int, fees: list[int]) -> None:
    changed = json.loads(airline.update_reservation_baggages("ABC123", 4, nonfree, "credit_card_1"))
    assert [payment["amount"] for payment in changed["payment_history"][1:]] == fees
    assert (changed["total_baggages"], changed["nonfree_baggages"]) == (4, nonfree)


def test_setting_what_already_holds_is_no_change(airline: Airline) -> None:
    airline.update_reservation_baggages("ABC123", 1, 1, "credit_card_1")
    assert airline.changes() == {}


def test_passengers_can_be_replaced_by_as_many_others(airline: Airline) -> None:
    refused = airline.update_reservation_passengers("ABC123", [ADA])
    assert refused == "Error: number of passengers does not match"
    assert json.loads(airline.update_reservation_passengers("ABC123", [ADA, ADA]))["passengers"] == [ADA, ADA]


def test_certificates_are_numbered_and_run_out(airline: Airline) -> None:
    answers = [airline.send_certificate("ada_lee_1", 100) for _ in range(4)]
    assert answers[0] == "Certificate certificate_3221322 added to user ada_lee_1 with amount 100."
    assert [answer.split()[1] for answer in answers[1:3]] == ["certificate_3221323", "certificate_3221324"]
    assert answers[3].startswith("Error: ")
    methods = airline.changes()["users"]["ada_lee_1"]["payment_methods"]
    assert methods["certificate_3221324"] == {"source": "certificate", "amount": 100, "id": "certificate_3221324"}


def test_two_sessions_over_one_database_do_not_see_each_other(database: dict[str, dict[str, Any]]) -> None:
    one, other = Airline(database), Airline(database)
    _book(one)
    assert other.get_reservation_details("HATHAT") == "Error: reservation not found"
    assert other.changes() == {}


# Arithmetic


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2", "4.0"),
        (" 498 * 1.5", "747.0"),
        ("100 / 3", "33.33"),
        ("-(3 - 10) * 2", "14.0"),
        ("2 ** 3 // 3", "2.0"),
    ],
)
def test_arithmetic_is_rounded_to_cents(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize("expression", ["$5 + 1", "1,000 * 2", "__import__('os')", "5 % 2", "2 x 3"])
def test_characters_that_are_not_arithmetic_are_refused(expression: str) -> None:
    assert calculate(expression) == "Error: invalid characters in expression"


@pytest.mark.parametrize(
    "expression", ["", "1 +", "(1", "1 / 0", "9 ** 9 ** 9", "...", "(1)(2)", "(0 - 8) ** 0.5", "(" * 1900, "9" * 5000]
)
def test_what_is_no_sum_is_a_sentence(expression: str) -> None:
    assert calculate(expression).startswith("Error: ")


# The service


@pytest.fixture
def server(database: dict[str, dict[str, Any]]) -> Iterator[Any]:
    with service.serve(database) as running:
        yield running


def _post(server: Any, path: str, body: bytes, session: str | None = "s1") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    headers = {} if session is None else {"Lockstep-Session": session}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_the_service_keeps_a_state_for_each_session(server: Any) -> None:
    arguments = json.dumps({"reservation_id": "ABC123"}).encode()
    status, answer = _post(server, "/v1/cancel_reservation", arguments)
    assert status == 200
    assert json.loads(answer["result"])["status"] == "cancelled"
    assert "status" not in json.loads(_post(server, "/v1/get_reservation_details", arguments, "s2")[1]["result"])
    assert list(server.changes("s1")["reservations"]) == ["ABC123"]
    assert server.changes("s2") == server.changes("never seen") == {}
    server.forget("s1")
    assert server.changes("s1") == {}


@pytest.mark.parametrize(
    ("path", "body", "session", "status"),
    [
        ("/v1/list_all_airports", b"{}", None, 400),
        ("/v1/list_all_airports", b"{}", " ", 400),
        ("/v1/list_all_airports", b"{}", "x" * 201, 400),
        ("/v1/list_all_airports", b"{", "s", 400),
        ("/v1/list_all_airports", b"[]", "s", 400),
        ("/v1/list_all_airports", b"\xff", "s", 400),
        ("/v1/list_all_airports", b'{"more": 1}', "s", 400),
        ("/v1/get_user_details", b"{}", "s", 400),
        ("/v1/get_user_details", b'{"self": 1, "user_id": "x"}', "s", 400),
        ("/v1/get_user_details", b'{"user_id": []}', "s", 400),
        ("/v1/send_certificate", b'{"user_id": "ada_lee_1", "amount": NaN}', "s", 400),
        ("/v1/changes", b"{}", "s", 404),
        ("/v1/_user", b"{}", "s", 404),
        ("/changes", b"{}", "s", 404),
        ("/v1/think", b" " * 300_000, "s", 413),
    ],
)
def test_a_request_that_is_not_understood_gets_a_sentence(
    server: Any, path: str, body: bytes, session: str | None, status: int
) -> None:
    answered, answer = _post(server, path, body, session)
    assert answered == status
    assert answer["error"].endswith(".")
    assert server.changes("s") == {}


def test_another_method_is_refused_in_the_same_form(server: Any) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", "/v1/list_all_airports", headers={"Lockstep-Session": "s"})
    response = connection.getresponse()
    assert response.status == 501
    assert "error" in json.loads(response.read())
    connection.close()


def test_calls_of_many_threads_all_count(server: Any) -> None:
    body = json.dumps({"user_id": "ada_lee_1", "amount": 5}).encode()
    answers: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(_post(server, "/v1/send_certificate", body)[1]["result"]), daemon=True
        )
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(answers) == 12
    assert len({answer for answer in answers if answer.startswith("Certificate ")}) == 3


def test_the_tools_reach_the_service_and_tell_a_refusal_from_a_doubt(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = _load("tools")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("AIRLINE_URL", server.url)
    with pytest.raises(tools.AirlineError, match="Lockstep-Session"):  # stamped by the proxy, which is not here
        tools.list_all_airports()
    server.close()
    with pytest.raises(tools.AirlineError, match="cannot be reached"):
        tools.cancel_reservation("ABC123")
    assert tools.calculate("1 + 1") == "2.0"
    assert tools.think("Hmm.") == ""


# Reading files


def _line(*messages: dict[str, Any]) -> str:
    return json.dumps({"id": "r", "messages": list(messages), "final_state_changes": {}}) + "\n"


def test_payments_made_after_a_booking_are_taken_out_of_its_arguments(tmp_path: Path) -> None:
    paid = [{"payment_id": "credit_card_1", "amount": 5}]
    arguments = {"payment_methods": [*paid, {"payment_id": "credit_card_1", "amount": -5}]}
    call = {"id": "c", "name": "book_reservation", "args": arguments}
    line = _line(
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Book."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "name": call["name"], "content": json.dumps({"payment_history": paid})},
        {"role": "user", "content": "###STOP###"},
    )
    (tmp_path / "r.jsonl").write_text(line + "\n" + line)
    recordings = data.load_recordings(tmp_path / "r.jsonl", limit=1)
    assert len(recordings) == 1
    assert recordings[0].policy == "Be kind."
    assert [turn.user for turn in recordings[0].turns] == ["Book."]
    ((asked, _),) = recordings[0].exchanges()
    assert asked.arguments == {"payment_methods": paid}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "line 1"),
        (b"[]\n", "line 1"),
        (b'{"id": "r"}\n', "'messages' is missing"),
        (b"\xff\xfe", "UTF-8"),
        (b"\x28\xb5\x2f\xfd broken", "cannot be unpacked"),
        (b"(\xb5/\xfd *\xa5\x00\x00pa b c d e f g \x01\x00\xc1", "cannot be unpacked"),
        (b"[" * 100_000, "line 1 is no recorded conversation"),
        (b"\n", "holds no conversation"),
        (
            _line(
                {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "think", "args": {}}]}
            ).encode(),
            "calls a tool before the user",
        ),
    ],
)
def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=problem) as refusal:
        data.load_recordings(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"database": {}, "tool_schemas": [], "policy": ""}'])
def test_a_world_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "w.json"
    path.write_text(content)
    with pytest.raises(data.DataError, match=r"w\.json"):
        data.load_world(path)
    with pytest.raises(data.DataError, match="LOCKSTEP_DATA"):
        data.load_world(tmp_path / "missing.json")


def test_plausible_conversations_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """A greeting first, users in a row, a reused call id, answers in another order, no content, a number as id."""
    calls = [{"id": "c", "name": "think", "args": {"thought": "x"}}, {"id": "d", "name": "calculate", "args": {}}]
    line = json.loads(
        _line(
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "d", "name": "calculate", "content": "2.0"},
            {"role": "tool", "tool_call_id": "c", "name": "think", "content": None},
            {"role": "assistant", "content": None, "tool_calls": [calls[0]]},
            {"role": "tool", "tool_call_id": "c", "name": "think", "content": "again"},
        )
    )
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({**line, "id": 7}))
    (recording,) = data.load_recordings(path)
    assert recording.id == "7"
    assert [turn.user for turn in recording.turns] == ["a\nb"]
    assert [(call.name, text) for call, text in recording.exchanges()] == [
        ("think", ""),
        ("calculate", "2.0"),
        ("think", "again"),
    ]
