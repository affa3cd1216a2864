"""The airline agent's tools.

They run inside a sandbox without a network of its own: `HTTP_PROXY` leads to Lockstep's egress proxy, which lets each
tool reach exactly the path its entry in `agent.toml` names and says in whose session it was called. Standard library,
`lockstep` and `arithmetic` beside this file, so that a sandbox starts quickly.

Names, descriptions and parameters are those the recorded models saw. Objects inside lists are open, as theirs were:
models copy a flight's airports along with its number and date, and the service keeps what it is given.
"""

import json
import os
from typing import Annotated, Any, Literal

from lockstep import NotDone, OutcomeUnknown, tool

REPLY_TIMEOUT_S = 20

Cabin = Literal["basic_economy", "economy", "business"]
Flight = Annotated[
    dict[str, Any],
    {
        "properties": {
            "flight_number": {"type": "string", "description": "Flight number, such as 'HAT001'."},
            "date": {
                "type": "string",
                "description": "The date for the flight in the format 'YYYY-MM-DD', such as '2024-05-01'.",
            },
        },
        "required": ["flight_number", "date"],
    },
]
Passenger = Annotated[
    dict[str, Any],
    {
        "properties": {
            "first_name": {"type": "string", "description": "The first name of the passenger, such as 'Noah'."},
            "last_name": {"type": "string", "description": "The last name of the passenger, such as 'Brown'."},
            "dob": {
                "type": "string",
                "description": "The date of birth of the passenger in the format 'YYYY-MM-DD', such as '1990-01-01'.",
            },
        },
        "required": ["first_name", "last_name", "dob"],
    },
]
PAYMENT_ID = (
    "The payment id stored in user profile, such as 'credit_card_7815826', 'gift_card_7815826', 'certificate_7815826'."
)
Payment = Annotated[
    dict[str, Any],
    {
        "properties": {
            "payment_id": {"type": "string", "description": PAYMENT_ID},
            "amount": {"type": "number", "description": "The amount to be paid."},
        },
        "required": ["payment_id", "amount"],
    },
]
Passengers = Annotated[list[Passenger], "An array of objects containing details about each passenger."]
OriginAirport = Annotated[str, "The origin city airport in three letters, such as 'JFK'."]
DestinationAirport = Annotated[str, "The destination city airport in three letters, such as 'LAX'."]
BookingUser = Annotated[str, "The ID of the user to book the reservation, such as 'sara_doe_496'."]
ReservationId = Annotated[str, "The reservation ID, such as 'ZFA04Y'."]


class AirlineError(NotDone):
    """The airline service said no, or was never reached; nothing was changed."""


@tool(read_only=False, idempotent=False)
def book_reservation(
    user_id: BookingUser,
    origin: Annotated[str, "The IATA code for the origin city, such as 'SFO'."],
    destination: Annotated[str, "The IATA code for the destination city, such as 'JFK'."],
    flight_type: Literal["one_way", "round_trip"],
    cabin: Cabin,
    flights: Annotated[list[Flight], "An array of objects containing details about each piece of flight."],
    passengers: Passengers,
    payment_methods: Annotated[list[Payment], "An array of objects containing details about each payment method."],
    total_baggages: Annotated[int, "The total number of baggage items included in the reservation."],
    nonfree_baggages: Annotated[int, "The number of non-free baggage items included in the reservation."],
    insurance: Literal["yes", "no"],
) -> str:
    """Book a reservation."""
    return _change("book_reservation", locals())


@tool(read_only=True, open_world=False)
def calculate(
    expression: Annotated[
        str,
        "The mathematical expression to calculate, such as '2 + 2'. "
        "The expression can contain numbers, operators (+, -, *, /), parentheses, and spaces.",
    ],
) -> str:
    """Calculate the result of a mathematical expression."""
    # Imported here: no other tool needs a parser.
    from arithmetic import calculate as value_of

    return value_of(expression)


@tool(read_only=False, destructive=True, idempotent=False)
def cancel_reservation(reservation_id: ReservationId) -> str:
    """Cancel the whole reservation."""
    return _change("cancel_reservation", locals())


@tool(read_only=True)
def get_reservation_details(reservation_id: Annotated[str, "The reservation id, such as '8JX2WO'."]) -> str:
    """Get the details of a reservation."""
    return _look_up("get_reservation_details", locals())


@tool(read_only=True)
def get_user_details(user_id: Annotated[str, "The user id, such as 'sara_doe_496'."]) -> str:
    """Get the details of an user."""
    return _look_up("get_user_details", locals())


@tool(read_only=True)
def list_all_airports() -> str:
    """List all airports and their cities."""
    return _look_up("list_all_airports", {})


@tool(read_only=True)
def search_direct_flight(
    origin: OriginAirport,
    destination: DestinationAirport,
    date: Annotated[str, "The date of the flight in the format 'YYYY-MM-DD', such as '2024-01-01'."],
) -> str:
    """Search direct flights between two cities on a specific date."""
    return _look_up("search_direct_flight", locals())


@tool(read_only=True)
def search_onestop_flight(
    origin: OriginAirport,
    destination: DestinationAirport,
    date: Annotated[str, "The date of the flight in the format 'YYYY-MM-DD', such as '2024-05-01'."],
) -> str:
    """Search direct flights between two cities on a specific date."""
    return _look_up("search_onestop_flight", locals())


@tool(read_only=False, idempotent=False)
def send_certificate(user_id: BookingUser, amount: Annotated[float, "Certificate amount to send."]) -> str:
    """Send a certificate to a user. Be careful!"""
    return _change("send_certificate", locals())


@tool(read_only=True, open_world=False)
def think(thought: Annotated[str, "A thought to think about."]) -> str:
    """Use the tool to think about something. It will not obtain new information or change the database, but just append the thought to the log. Use it when complex reasoning is needed."""  # noqa: E501 - word for word
    return ""


@tool(read_only=False)
def transfer_to_human_agents(summary: Annotated[str, "A summary of the user's issue."]) -> str:
    """Transfer the user to a human agent, with a summary of the user's issue. Only transfer if the user explicitly asks for a human agent, or if the user's issue cannot be resolved by the agent with the available tools."""  # noqa: E501 - word for word
    return _change("transfer_to_human_agents", locals())


@tool(read_only=False, idempotent=False)
def update_reservation_baggages(
    reservation_id: ReservationId,
    total_baggages: Annotated[int, "The updated total number of baggage items included in the reservation."],
    nonfree_baggages: Annotated[int, "The updated number of non-free baggage items included in the reservation."],
    payment_id: Annotated[str, PAYMENT_ID],
) -> str:
    """Update the baggage information of a reservation."""
    return _change("update_reservation_baggages", locals())


@tool(read_only=False, destructive=True, idempotent=False)
def update_reservation_flights(
    reservation_id: ReservationId,
    cabin: Cabin,
    flights: Annotated[
        list[Flight],
        "An array of objects containing details about each piece of flight in the ENTIRE new reservation. "
        "Even if the a flight segment is not changed, it should still be included in the array.",
    ],
    payment_id: Annotated[str, PAYMENT_ID],
) -> str:
    """Update the flight information of a reservation."""
    return _change("update_reservation_flights", locals())


@tool(read_only=False, destructive=True)
def update_reservation_passengers(reservation_id: ReservationId, passengers: Passengers) -> str:
    """Update the passenger information of a reservation."""
    return _change("update_reservation_passengers", locals())


def _look_up(name: str, arguments: dict[str, Any]) -> str:
    """Return what the service answers; any failure changed nothing.

    Raises:
        AirlineError: it refused the request, or gave no clear answer.
    """
    try:
        return _change(name, arguments)
    except OutcomeUnknown as failure:
        raise AirlineError(str(failure)) from failure


def _change(name: str, arguments: dict[str, Any]) -> str:
    """Return what the service answers.

    Raises:
        AirlineError: it refused the request, or the request never left; nothing was changed.
        OutcomeUnknown: the request left and no clear answer came back, so it may have been carried out.
    """
    # Imported here: these are most of this module's start-up time, and two tools need none of it.
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    url = f"{os.environ['AIRLINE_URL'].rstrip('/')}/v1/{name}"
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    request = Request(url, data=json.dumps(arguments).encode(), headers=headers, method="POST")
    try:
        with urlopen(request, timeout=REPLY_TIMEOUT_S) as response:
            return str(json.load(response)["result"])
    except HTTPError as error:
        if error.code < 500:
            raise AirlineError(_sentence(error)) from error
        problem, cause = f"The airline service failed with status {error.code}: {_sentence(error)}", error
    except URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise AirlineError("The airline service cannot be reached; nothing was sent.") from error
        problem, cause = f"The connection to the airline service failed: {error.reason}.", error
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        problem, cause = f"No complete answer came from the airline service ({type(error).__name__}: {error}).", error
    raise OutcomeUnknown(problem) from cause


def _sentence(error: Any) -> str:
    """Return the sentence in an HTTP error's body: the service's is JSON with an `error` field, others' may be text."""
    from http.client import HTTPException

    try:
        text = error.read(4096).decode(errors="replace").strip()
    except (OSError, HTTPException):
        text = ""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text[:300] or f"{error.code} {error.reason}"
