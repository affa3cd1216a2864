"""The travel example's service, over real HTTP: what it promises, and the ways it is deliberately careless."""

from __future__ import annotations

import http.client
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

TRAVEL = Path(__file__).parents[2] / "examples" / "travel"
sys.path.insert(0, str(TRAVEL))

from travel_world.server import TravelService, serve  # noqa: E402
from travel_world.store import Store  # noqa: E402

DAY = "2030-01-15"  # a Tuesday
ENTRY = {"title": "Flight", "starts_at": "2030-01-15T09:20:00+00:00", "ends_at": "2030-01-15T12:00:00-05:00"}
WAIT_S = 30


@pytest.fixture
def service(tmp_path: Path) -> Iterator[TravelService]:
    with serve(tmp_path / "travel.db") as running:
        yield running


def ask(
    url: str, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Send one request and return status and parsed reply; `body` is JSON unless it is bytes already."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)
    try:
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def search(url: str, origin: str = "LON", destination: str = "NYC", date: str = DAY) -> list[dict[str, Any]]:
    status, reply = ask(url, "GET", f"/flights?origin={origin}&destination={destination}&date={date}")
    assert status == 200
    return list(reply["offers"])


def order(offer: dict[str, Any], **changes: object) -> dict[str, object]:
    return {"offer_id": offer["offer_id"], "passenger": "Sam Carter", "price_usd": offer["price_usd"], **changes}


def raw_reply(url: str, request: bytes) -> tuple[int, Any]:
    """Send bytes as they are and return the first reply."""
    netloc = urlsplit(url)
    with socket.create_connection((netloc.hostname, netloc.port), timeout=WAIT_S) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


# Searching.


def test_offers_come_cheapest_first_with_some_under_and_some_over_500_on_any_day(service: TravelService) -> None:
    for day in ("2025-12-02", DAY, "2031-08-19", "2028-02-29"):
        prices = [offer["price_usd"] for offer in search(service.url, date=day)]
        assert prices == sorted(prices)
        assert prices[0] < 500 < prices[-1]


def test_the_same_route_and_day_always_give_the_same_offers(service: TravelService, tmp_path: Path) -> None:
    first = search(service.url)
    with serve(tmp_path / "another.db") as another:
        assert search(another.url) == first
    assert search(service.url, date="2030-01-16") != first


def test_an_offer_has_all_its_fields_in_local_time(service: TravelService) -> None:
    offer = search(service.url, date="2030-07-16")[0]
    fields = "offer_id airline flight_number origin destination departs_at arrives_at price_usd seats"
    assert list(offer) == fields.split()
    assert offer["departs_at"].startswith("2030-07-16")
    assert offer["departs_at"].endswith("+01:00")
    assert offer["arrives_at"].endswith("-04:00")
    flight = datetime.fromisoformat(offer["arrives_at"]) - datetime.fromisoformat(offer["departs_at"])
    assert 6 <= flight.total_seconds() / 3600 <= 9


@pytest.mark.parametrize(
    ("day", "london", "new_york"),
    [
        ("2030-03-09", "+00:00", "-05:00"),
        ("2030-03-10", "+00:00", "-04:00"),  # New York changes first
        ("2030-03-31", "+01:00", "-04:00"),
        ("2030-10-26", "+01:00", "-04:00"),
        ("2030-10-27", "+00:00", "-04:00"),  # London changes back first
        ("2030-11-03", "+00:00", "-05:00"),
    ],
)
def test_summer_time_begins_and_ends_on_the_right_sundays(
    service: TravelService, day: str, london: str, new_york: str
) -> None:
    offer = search(service.url, date=day)[0]
    assert (offer["departs_at"][-6:], offer["arrives_at"][-6:]) == (london, new_york)


@pytest.mark.parametrize(("origin", "destination"), [("LHR", "JFK"), ("LGW", "EWR"), ("lon", "nyc")])
def test_airport_codes_stand_for_their_city(service: TravelService, origin: str, destination: str) -> None:
    assert search(service.url, origin, destination) == search(service.url)


def test_an_unknown_city_is_a_404_that_names_it_and_the_known_ones(service: TravelService) -> None:
    status, reply = ask(service.url, "GET", f"/flights?origin=LON&destination=XYZ&date={DAY}")
    assert status == 404
    assert "'XYZ'" in reply["error"]
    assert "NYC (New York)" in reply["error"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("destination=NYC&date=2030-01-15", "'origin'"),
        ("origin=LON&date=2030-01-15", "'destination'"),
        ("origin=LON&destination=NYC", "'date'"),
        ("origin=&destination=NYC&date=2030-01-15", "'origin'"),
        ("origin=LON&destination=NYC&date=2030-02-30", "'date'"),
        ("origin=LON&destination=NYC&date=20300115", "'date'"),
        ("origin=LON&destination=NYC&date=next+Tuesday", "'date'"),
        ("origin=LON&destination=NYC&date=9999-12-31", "'date'"),
        ("origin=LON&destination=LHR&date=2030-01-15", "'destination'"),
        ("origin=LON&destination=NYC&date=2030-01-15&cabin=first", "'cabin'"),
    ],
)
def test_a_bad_search_is_a_400_that_names_the_parameter(service: TravelService, query: str, named: str) -> None:
    status, reply = ask(service.url, "GET", f"/flights?{query}")
    assert status == 400
    assert named in reply["error"]


# Booking.


def test_a_booking_is_confirmed_and_can_be_read_back(service: TravelService) -> None:
    offer = search(service.url)[0]
    status, booking = ask(service.url, "POST", "/bookings", order(offer))
    assert status == 201
    same = ("offer_id", "airline", "flight_number", "departs_at", "arrives_at", "price_usd")
    assert {name: booking[name] for name in same} == {name: offer[name] for name in same}
    assert booking["passenger"] == "Sam Carter"
    assert ask(service.url, "GET", f"/bookings/{booking['booking_id']}") == (200, booking)
    assert service.bookings() == [booking]
    assert search(service.url)[0]["seats"] == offer["seats"] - 1


def test_two_identical_booking_requests_make_two_bookings(service: TravelService) -> None:
    body = order(search(service.url)[0])
    first = ask(service.url, "POST", "/bookings", body)
    second = ask(service.url, "POST", "/bookings", body)
    assert first[0] == second[0] == 201
    assert first[1]["booking_id"] != second[1]["booking_id"]
    assert len(service.bookings()) == 2


def test_an_idempotency_key_is_stored_but_not_honoured(service: TravelService) -> None:
    body = order(search(service.url)[0])
    for _ in range(2):
        assert ask(service.url, "POST", "/bookings", body, headers={"Idempotency-Key": "k-1"})[0] == 201
    assert [booking["idempotency_key"] for booking in service.bookings()] == ["k-1", "k-1"]


@pytest.mark.parametrize("change", [0.01, -100, 1e300])
def test_another_price_than_the_offers_is_a_409_and_books_nothing(service: TravelService, change: float) -> None:
    offer = search(service.url)[0]
    wrong = order(offer, price_usd=offer["price_usd"] + change)
    status, reply = ask(service.url, "POST", "/bookings", wrong)
    assert status == 409
    assert f"${offer['price_usd']:.2f}" in reply["error"]
    assert service.bookings() == []


def test_the_price_may_be_written_with_more_zeros(service: TravelService) -> None:
    offer = search(service.url)[0]
    text = json.dumps(order(offer)).replace(str(offer["price_usd"]), f"{offer['price_usd']:.4f}")
    assert ask(service.url, "POST", "/bookings", text.encode())[0] == 201


@pytest.mark.parametrize(
    "offer_id",
    ["nonsense", "LON-NYC-2030-01-15-ZZ999", "LON-LON-2030-01-15-SK100", "AAA-NYC-2030-01-15-SK100",
     "LON-NYC-2030-13-45-SK100", "LON-NYC-9999-12-31-SK100", "' OR 1=1 --"],
)  # fmt: skip
def test_an_unknown_offer_is_a_404(service: TravelService, offer_id: str) -> None:
    status, reply = ask(
        service.url, "POST", "/bookings", {"offer_id": offer_id, "passenger": "Sam Carter", "price_usd": 400}
    )
    assert status == 404
    assert "search" in reply["error"]


def test_concurrent_bookings_fill_an_offer_exactly_and_the_rest_are_told_it_is_sold_out(service: TravelService) -> None:
    offer = search(service.url)[0]
    attempts = offer["seats"] + 20
    with ThreadPoolExecutor(attempts) as pool:
        replies = list(pool.map(lambda _: ask(service.url, "POST", "/bookings", order(offer)), range(attempts)))
    assert Counter(status for status, _ in replies) == {201: offer["seats"], 409: 20}
    assert len({reply["booking_id"] for status, reply in replies if status == 201}) == offer["seats"]
    assert len(service.bookings()) == offer["seats"]
    assert offer["offer_id"] not in [other["offer_id"] for other in search(service.url)]
    assert "sold out" in next(reply["error"] for status, reply in replies if status == 409)


def test_bookings_can_be_probed_by_offer_and_passenger(service: TravelService) -> None:
    cheap, dear = search(service.url)[:2]
    for offer, passenger in ((cheap, "Sam Carter"), (cheap, "Zoë Ng"), (dear, "Sam Carter")):
        assert ask(service.url, "POST", "/bookings", order(offer, passenger=passenger))[0] == 201

    def found(query: str) -> list[tuple[str, str]]:
        status, reply = ask(service.url, "GET", f"/bookings{query}")
        assert status == 200
        return [(booking["offer_id"], booking["passenger"]) for booking in reply["bookings"]]

    assert len(found("")) == 3
    assert found(f"?offer_id={cheap['offer_id']}&passenger=Zo%C3%AB%20Ng") == [(cheap["offer_id"], "Zoë Ng")]
    assert found(f"?offer_id={dear['offer_id']}") == [(dear["offer_id"], "Sam Carter")]
    assert found("?passenger=Nobody") == []


@pytest.mark.parametrize("booking_id", ["BK-00001", "BK-1", "1", "BK-99999999999999999999999", "x"])
def test_an_unknown_booking_is_a_404(service: TravelService, booking_id: str) -> None:
    assert ask(service.url, "GET", f"/bookings/{booking_id}")[0] == 404


# The calendar.


def test_a_calendar_entry_is_added_and_listed(service: TravelService) -> None:
    status, entry = ask(service.url, "POST", "/calendar/entries", {**ENTRY, "notes": "Window seat"})
    assert status == 201
    assert {**ENTRY, "notes": "Window seat", "entry_id": entry["entry_id"]} == entry
    assert ask(service.url, "GET", "/calendar/entries") == (200, {"entries": [entry]})
    assert service.entries() == [entry]


def test_calendar_entries_are_found_by_title_and_start_however_its_offset_is_written(service: TravelService) -> None:
    _, entry = ask(service.url, "POST", "/calendar/entries", ENTRY)
    ask(service.url, "POST", "/calendar/entries", {**ENTRY, "title": "Another"})
    by_both = urlencode({"title": ENTRY["title"], "starts_at": ENTRY["starts_at"].replace("+00:00", "Z")})
    assert ask(service.url, "GET", f"/calendar/entries?{by_both}") == (200, {"entries": [entry]})
    later = urlencode({"title": ENTRY["title"], "starts_at": ENTRY["ends_at"]})
    assert ask(service.url, "GET", f"/calendar/entries?{later}") == (200, {"entries": []})
    assert ask(service.url, "GET", "/calendar/entries?starts_at=noon")[0] == 400


def test_notes_may_be_left_out(service: TravelService) -> None:
    status, entry = ask(service.url, "POST", "/calendar/entries", ENTRY)
    assert status == 201
    assert entry["notes"] is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"starts_at": "tomorrow"}, "'starts_at'"),
        ({"starts_at": "2030-01-15T09:20:00"}, "'starts_at'"),
        ({"ends_at": "2030-01-15"}, "'ends_at'"),
        ({"ends_at": "2030-01-15T04:20:00-05:00"}, "'ends_at'"),
        ({"starts_at": "0001-01-01T00:00:00+14:00"}, "'starts_at'"),
        ({"title": "   "}, "'title'"),
        ({"title": "x" * 2001}, "'title'"),
        ({"title": "\ud800"}, "'title'"),
        ({"notes": 7}, "'notes'"),
        ({"place": "Heathrow"}, "'place'"),
    ],
)
def test_a_bad_calendar_entry_is_a_400_that_names_the_field(
    service: TravelService, changes: dict[str, object], named: str
) -> None:
    status, reply = ask(service.url, "POST", "/calendar/entries", {**ENTRY, **changes})
    assert status == 400
    assert named in reply["error"]
    assert service.entries() == []


# Bad input.


@pytest.mark.parametrize("name", ["offer_id", "passenger", "price_usd"])
def test_a_missing_field_of_a_booking_is_a_400_that_names_it(service: TravelService, name: str) -> None:
    body = order(search(service.url)[0])
    del body[name]
    assert ask(service.url, "POST", "/bookings", body) == (400, {"error": f"Field '{name}' is missing."})


@pytest.mark.parametrize(
    ("name", "value"),
    [("price_usd", "400"), ("price_usd", True), ("price_usd", None), ("passenger", ""), ("passenger", ["Sam"]),
     ("offer_id", 7)],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_a_400_that_names_it(service: TravelService, name: str, value: object) -> None:
    status, reply = ask(service.url, "POST", "/bookings", order(search(service.url)[0], **{name: value}))
    assert status == 400
    assert f"'{name}'" in reply["error"]
    assert service.bookings() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe\x00", b'{"price_usd": NaN}', b'{"price_usd": Infinity}',
     b'{"price_usd": 1e99999999999999999999}', b"[" * 60_000],
    ids=["empty", "cut", "array", "string", "not utf-8", "nan", "infinity", "huge exponent", "deep"],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_a_400(service: TravelService, body: bytes) -> None:
    status, reply = ask(service.url, "POST", "/bookings", body)
    assert status == 400
    assert "JSON" in reply["error"]


def test_an_absurdly_large_price_is_only_a_wrong_price(service: TravelService) -> None:
    offer_id = search(service.url)[0]["offer_id"]
    body = f'{{"offer_id": "{offer_id}", "passenger": "Sam Carter", "price_usd": 1e99999999}}'.encode()
    assert ask(service.url, "POST", "/bookings", body)[0] == 409


def test_a_connection_stays_usable_after_an_error(service: TravelService) -> None:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=WAIT_S)
    statuses = []
    requests = (
        ("POST", "/bookings", b"{"),
        ("PUT", "/bookings", b"{}"),
        ("GET", "/no", b"!"),
        ("GET", "/bookings", None),
    )
    for method, path, body in requests:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()
    assert statuses == [400, 405, 404, 200]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /bookings HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
        (b"POST /bookings HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /bookings HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /bookings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"BREW /coffee HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"GET /two words HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_malformed_http_is_refused_with_a_sentence(service: TravelService, request_bytes: bytes, status: int) -> None:
    got, reply = raw_reply(service.url, request_bytes)
    assert got == status
    assert reply["error"]


def test_the_absolute_form_a_proxy_may_send_is_understood(service: TravelService) -> None:
    request = f"GET {service.url}/calendar/entries HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert raw_reply(service.url, request.encode()) == (200, {"entries": []})


# Who called.


def test_every_request_is_logged_with_the_session_run_and_call_that_made_it(service: TravelService) -> None:
    headers = {"Lockstep-Session": "s-1", "Lockstep-Run": "r-1", "Lockstep-Call": "c-1"}
    ask(service.url, "POST", "/bookings", {}, headers=headers)
    ask(service.url, "GET", "/bookings?passenger=Sam")
    seen = [
        {name: entry[name] for name in ("method", "path", "session", "run", "call", "status")}
        for entry in service.requests()
    ]
    assert seen == [
        {"method": "POST", "path": "/bookings", "session": "s-1", "run": "r-1", "call": "c-1", "status": 400},
        {"method": "GET", "path": "/bookings?passenger=Sam", "session": None, "run": None, "call": None, "status": 200},
    ]


# Going wrong on purpose.


def test_a_slow_booking_is_made_long_before_its_reply(service: TravelService) -> None:
    offer = search(service.url)[0]
    service.faults.slow_bookings_s = 3600
    replies: list[tuple[int, Any]] = []
    client = threading.Thread(target=lambda: replies.append(ask(service.url, "POST", "/bookings", order(offer))))
    client.start()
    deadline = time.monotonic() + WAIT_S
    while not ask(service.url, "GET", "/bookings")[1]["bookings"]:
        assert time.monotonic() < deadline
    assert replies == []
    assert [entry["status"] for entry in service.requests() if entry["method"] == "POST"] == [None]
    service.close()  # lets the late reply leave now
    client.join(WAIT_S)
    assert [status for status, _ in replies] == [201]


def test_a_client_that_gives_up_on_a_slow_reply_has_booked_all_the_same(service: TravelService) -> None:
    offer = search(service.url)[0]
    service.faults.slow_bookings_s = 3600
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=0.1)
    connection.request("POST", "/bookings", json.dumps(order(offer)))
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    deadline = time.monotonic() + WAIT_S
    while not ask(service.url, "GET", "/bookings")[1]["bookings"]:
        assert time.monotonic() < deadline
    assert len(service.bookings()) == 1


def test_failing_bookings_answer_503_after_booking_until_the_ordered_number_is_used_up(service: TravelService) -> None:
    body = order(search(service.url)[0])
    service.faults.fail_bookings = 2
    assert [ask(service.url, "POST", "/bookings", body)[0] for _ in range(3)] == [503, 503, 201]
    assert len(service.bookings()) == 3


def test_bookings_that_fail_before_booking_answer_503_and_book_nothing(service: TravelService) -> None:
    body = order(search(service.url)[0])
    service.faults.fail_bookings_before = 2
    assert [ask(service.url, "POST", "/bookings", body)[0] for _ in range(3)] == [503, 503, 201]
    assert len(service.bookings()) == 1


def test_the_two_kinds_of_failure_look_the_same_to_the_caller(service: TravelService) -> None:
    body = order(search(service.url)[0])
    service.faults.fail_bookings = service.faults.fail_bookings_before = 1
    before = ask(service.url, "POST", "/bookings", body)
    after = ask(service.url, "POST", "/bookings", body)
    assert before == after == (503, {"error": "The booking system is unavailable."})


def test_a_refused_booking_does_not_use_up_an_ordered_failure_after_booking(service: TravelService) -> None:
    offer = search(service.url)[0]
    service.faults.fail_bookings = 1
    assert ask(service.url, "POST", "/bookings", order(offer, price_usd=1))[0] == 409
    assert ask(service.url, "POST", "/bookings", order(offer))[0] == 503


# Its life.


def test_what_happened_outlives_the_service_and_can_be_read_while_it_runs(tmp_path: Path) -> None:
    database = tmp_path / "travel.db"
    with serve(database) as service:
        ask(service.url, "POST", "/bookings", order(search(service.url)[0]))
        reader = Store(database)
        assert reader.bookings() == service.bookings()
        made = reader.bookings()
        reader.close()
    with serve(database) as again:
        assert again.bookings() == made
        assert ask(again.url, "GET", "/bookings") == (200, {"bookings": made})


def test_closing_twice_is_harmless_and_frees_the_port(tmp_path: Path) -> None:
    service = serve(tmp_path / "travel.db")
    service.close()
    service.close()
    with serve(tmp_path / "travel.db", port=service.port) as again:
        assert again.port == service.port


@contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(TRAVEL / "service.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], WAIT_S)[0], "the service did not say that it is ready"
    start, url = process.stdout.readline().strip().rsplit(" ", 1)
    assert start == "travel service on"
    return url


def test_the_command_says_where_it_listens_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    with command("--db", tmp_path / "travel.db", "--port", 0) as process:
        url = ready_url(process)
        assert ask(url, "POST", "/bookings", order(search(url)[0]))[0] == 201
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=WAIT_S) == ("", "")
        assert process.returncode == 0
    store = Store(tmp_path / "travel.db")
    assert len(store.bookings()) == 1
    store.close()


def test_sigterm_does_not_wait_for_a_slow_reply(tmp_path: Path) -> None:
    with command("--db", tmp_path / "travel.db", "--slow-bookings", 3600) as process:
        url = ready_url(process)
        netloc = urlsplit(url)
        body = json.dumps(order(search(url)[0]))
        connection = http.client.HTTPConnection(netloc.netloc, timeout=WAIT_S)
        connection.request("POST", "/bookings", body)
        deadline = time.monotonic() + WAIT_S
        while not ask(url, "GET", "/bookings")[1]["bookings"]:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        connection.close()


def test_the_command_takes_the_fault_modes_as_flags(tmp_path: Path) -> None:
    flags = ("--fail-bookings", 1, "--fail-bookings-before", 1, "--slow-bookings", 0.001)
    with command("--db", tmp_path / "travel.db", *flags) as process:
        url = ready_url(process)
        body = order(search(url)[0])
        assert [ask(url, "POST", "/bookings", body)[0] for _ in range(3)] == [503, 503, 201]
        assert len(ask(url, "GET", "/bookings")[1]["bookings"]) == 2


def test_a_port_in_use_is_one_sentence_and_exit_2(service: TravelService, tmp_path: Path) -> None:
    with command("--db", tmp_path / "other.db", "--port", service.port) as process:
        _, error = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert error == (f"The travel service cannot start: port {service.port} is in use; choose another with --port.\n")


def test_a_database_that_cannot_be_opened_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is not a database, and long enough to be sure of it" * 20)
    for path in (tmp_path / "missing" / "travel.db", tmp_path / "notes.txt"):
        with command("--db", path) as process:
            _, error = process.communicate(timeout=WAIT_S)
        assert process.returncode == 2
        assert error.startswith(f"The travel service cannot start: {path} cannot be used as its database")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [("--port", "70000"), ("--fail-bookings", "-1"), ("--slow-bookings", "nan"), ("--slow-bookings", "soon")]
)
def test_a_bad_flag_is_exit_2_and_names_it(tmp_path: Path, flags: tuple[str, str]) -> None:
    with command("--db", tmp_path / "travel.db", *flags) as process:
        _, error = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert flags[0] in error
