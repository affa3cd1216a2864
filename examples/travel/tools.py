"""The travel agent's tools.

They run inside a sandbox without a network of its own: `HTTP_PROXY` leads to Lockstep's egress proxy, which lets each
tool reach exactly the path its entry in `agent.toml` names. Standard library and `lockstep` only, so that a sandbox
starts quickly.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict, cast

from lockstep import NotDone, OutcomeUnknown, tool

REPLY_TIMEOUT_S = 20


class TravelError(NotDone):
    """The travel service said no, or was never reached; nothing was changed."""


class NextWeekdays(TypedDict):
    monday: str
    tuesday: str
    wednesday: str
    thursday: str
    friday: str
    saturday: str
    sunday: str


class CurrentDate(TypedDict):
    today: str
    weekday: str
    next: NextWeekdays


class Offer(TypedDict):
    offer_id: str
    airline: str
    flight_number: str
    origin: str
    destination: str
    departs_at: str
    arrives_at: str
    price_usd: float
    seats: int


class Offers(TypedDict):
    offers: list[Offer]


class Booking(TypedDict):
    booking_id: str
    offer_id: str
    passenger: str
    price_usd: float
    airline: str
    flight_number: str
    departs_at: str
    arrives_at: str


class Bookings(TypedDict):
    bookings: list[Booking]


class CalendarEntry(TypedDict):
    entry_id: str
    title: str
    starts_at: str
    ends_at: str


class CalendarEntries(TypedDict):
    entries: list[CalendarEntry]


@tool(title="Current date", read_only=True, open_world=False)
def current_date() -> CurrentDate:
    """Say which day it is, and the date of the next Monday, Tuesday and so on.

    Dates are YYYY-MM-DD. `next` holds the first such weekday after today, never today itself; use it instead of
    counting days.
    """
    today = datetime.now(UTC).date()
    coming = {day.strftime("%A").lower(): day.isoformat() for day in (today + timedelta(days=n) for n in range(1, 8))}
    following = cast(NextWeekdays, {name: coming[name] for name in NextWeekdays.__annotations__})
    return {"today": today.isoformat(), "weekday": today.strftime("%A"), "next": following}


@tool(title="Search flights", read_only=True)
def search_flights(
    origin: Annotated[str, "City or airport code the flight leaves from, such as LON or LHR."],
    destination: Annotated[str, "City or airport code the flight goes to, such as NYC or JFK."],
    date: Annotated[str, "Day of departure as YYYY-MM-DD."],
) -> Offers:
    """Find flights for one day, cheapest first.

    Prices are in US dollars for one passenger. Times are local to each airport, with UTC offset.
    """
    from urllib.parse import urlencode

    query = urlencode({"origin": origin, "destination": destination, "date": date})
    return cast(Offers, _request("GET", f"/flights?{query}"))


@tool(title="Book a flight", read_only=False, destructive=True, idempotent=False)
def book_flight(
    offer_id: Annotated[str, "The offer_id of an offer found by search_flights."],
    passenger: Annotated[str, "Full name of the traveller."],
    price_usd: Annotated[float, "The offer's price_usd, exactly as found; the booking is refused if it has changed."],
) -> Booking:
    """Book one seat on an offer for one passenger. This spends money, and each call is another booking.

    Call it once. If it ends without a confirmation the booking may still have been made: do not call it again.
    """
    reply = _request("POST", "/bookings", {"offer_id": offer_id, "passenger": passenger, "price_usd": price_usd})
    return _booking(reply)


@tool(title="Find bookings", read_only=True)
def find_bookings(
    offer_id: Annotated[str, "The offer_id that was booked."],
    passenger: Annotated[str, "Full name of the traveller, as booked."],
) -> Bookings:
    """Find the bookings of one passenger on one offer."""
    from urllib.parse import urlencode

    reply = _request("GET", f"/bookings?{urlencode({'offer_id': offer_id, 'passenger': passenger})}")
    return {"bookings": [_booking(each) for each in reply["bookings"]]}


def _booking(record: dict[str, Any]) -> Booking:
    return cast(Booking, {name: record.get(name) for name in Booking.__annotations__})


@tool(title="Add a calendar entry", read_only=False, destructive=False, idempotent=False, open_world=False)
def add_calendar_entry(
    title: Annotated[str, "What the entry is about, such as 'Flight SK214 London to New York'."],
    starts_at: Annotated[str, "Start as date and time with UTC offset, such as 2030-01-31T09:30:00+00:00."],
    ends_at: Annotated[str, "End, in the same form and later than the start."],
) -> CalendarEntry:
    """Add one entry to the traveller's calendar."""
    return _entry(_request("POST", "/calendar/entries", {"title": title, "starts_at": starts_at, "ends_at": ends_at}))


@tool(title="Find calendar entries", read_only=True, open_world=False)
def find_calendar_entries(
    title: Annotated[str, "What the entry is about, word for word."],
    starts_at: Annotated[str, "Its start as date and time with UTC offset."],
) -> CalendarEntries:
    """Find the entries of the traveller's calendar with this title and start."""
    from urllib.parse import urlencode

    reply = _request("GET", f"/calendar/entries?{urlencode({'title': title, 'starts_at': starts_at})}")
    return {"entries": [_entry(each) for each in reply["entries"]]}


def _entry(record: dict[str, Any]) -> CalendarEntry:
    return cast(CalendarEntry, {name: record.get(name) for name in CalendarEntry.__annotations__})


def _request(method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    """Send one request to the travel service and return the JSON object it answers.

    Raises:
        TravelError: the service refused, or the request never left; for a GET, any failure.
        OutcomeUnknown: a POST left and no clear answer came back, so it may have been carried out.
    """
    # Imported here: these are most of this module's start-up time, and current_date needs none of it.
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    data = None if body is None else json.dumps(body).encode()
    request = Request(os.environ["TRAVEL_URL"].rstrip("/") + path, data=data, method=method)
    request.add_header("Accept", "application/json")
    if data is not None:
        request.add_header("Content-Type", "application/json")
    cause: Exception | None = None
    try:
        with urlopen(request, timeout=REPLY_TIMEOUT_S) as response:
            reply = json.load(response)
        if isinstance(reply, dict):
            return reply
        problem = "The travel service answered with something other than a JSON object"
    except HTTPError as error:
        if error.code < 500:
            raise TravelError(_sentence(error)) from error
        problem, cause = f"The travel service failed ({error.code}: {_sentence(error)})", error
    except URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise TravelError("The travel service cannot be reached; nothing was sent.") from error
        problem, cause = f"The connection to the travel service failed ({error.reason})", error
    except (OSError, HTTPException, ValueError) as error:
        what = " ".join(str(error).split())
        problem, cause = f"No complete answer came from the travel service ({type(error).__name__}: {what})", error
    if method == "GET":
        raise TravelError(f"{problem}.") from cause
    raise OutcomeUnknown(f"{problem}. The request may have been carried out.") from cause


def _sentence(error: Any) -> str:
    """Return the sentence in an HTTP error's body: ours is JSON with an `error` field, others may send plain text."""
    from http.client import HTTPException

    try:
        text = error.read(4096).decode(errors="replace").strip()
    except (OSError, HTTPException):
        text = ""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text[:300] or f"{error.code} {error.reason}"
