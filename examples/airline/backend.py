"""The airline: what each tool does to a database of flights, reservations and users. No HTTP, no files, no clock.

`Airline` is one session's view of a database. Records are values here: a change puts a new record into the session's
own layer and leaves the shared database as it was, so a session costs what it changed and nothing else.

Every tool answers in text: JSON of a record, a short confirmation, or a sentence that starts "Error: ". As the written
policy says, the API checks little: who may cancel, change or be compensated is the agent's business.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date as Date
from datetime import timedelta
from typing import Any, Literal

from arithmetic import calculate

Record = dict[str, Any]
Collection = Literal["users", "reservations"]

NOW = "2024-05-15T15:00:00"
"""The world stands still at the time the policy names."""
NEW_RESERVATIONS = ("HATHAT", "HATHAU", "HATHAV")
NEW_CERTIFICATES = ("certificate_3221322", "certificate_3221323", "certificate_3221324")
BAGGAGE_FEE_USD = 50
INSURANCE_FEE_USD = 30
AIRPORTS = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}


class Refused(Exception):
    """The airline says no; the text is what the model is told after "Error: ". Nothing was changed."""


def _tool(method: Callable[..., str]) -> Callable[..., str]:
    """Let a method refuse by exception while its caller always gets text."""

    @functools.wraps(method)
    def answer(*arguments: Any, **named: Any) -> str:
        try:
            return method(*arguments, **named)
        except Refused as refusal:
            return f"Error: {refusal}"

    answer.is_tool = True  # type: ignore[attr-defined]
    return answer


class Airline:
    """One session's airline over a shared database that is never written to.

    Args:
        database: `flights`, `reservations` and `users`, each a mapping from id to record.
    """

    def __init__(self, database: Mapping[str, Mapping[str, Record]]) -> None:
        self._database = database
        self._written: dict[Collection, dict[str, Record]] = {"reservations": {}, "users": {}}

    def changes(self) -> dict[str, dict[str, Record]]:
        """Return the records that differ from the starting database, by collection and id; collections without any are
        absent.
        """
        differing = {
            collection: {
                key: record for key, record in written.items() if record != self._database[collection].get(key)
            }
            for collection, written in self._written.items()
        }
        return {collection: json.loads(json.dumps(records)) for collection, records in differing.items() if records}

    @_tool
    def list_all_airports(self) -> str:
        """Return airport codes and their cities."""
        return json.dumps(AIRPORTS)

    @_tool
    def get_user_details(self, user_id: str) -> str:
        """Return a user's profile."""
        return json.dumps(self._user(user_id))

    @_tool
    def get_reservation_details(self, reservation_id: str) -> str:
        """Return a reservation."""
        return json.dumps(self._reservation(reservation_id))

    @_tool
    def search_direct_flight(self, origin: str, destination: str, date: str) -> str:
        """Return the flights that can be booked on that day."""
        flights = self._database["flights"].values()
        return json.dumps(
            [
                day_of(flight, date)
                for flight in flights
                if flight["origin"] == origin and flight["destination"] == destination and is_available(flight, date)
            ]
        )

    @_tool
    def search_onestop_flight(self, origin: str, destination: str, date: str) -> str:
        """Return the pairs of flights that can be booked, the first leaving on that day; each flight has its date."""
        pairs = connections(self._database["flights"].values(), origin, destination, date)
        return json.dumps([[{**day_of(flight, day), "date": day} for flight, day in pair] for pair in pairs])

    @_tool
    def book_reservation(
        self,
        user_id: str,
        origin: str,
        destination: str,
        flight_type: str,
        cabin: str,
        flights: list[Record],
        passengers: list[Record],
        payment_methods: list[Record],
        total_baggages: int,
        nonfree_baggages: int,
        insurance: str,
    ) -> str:
        """Book flights, charge the payment methods as stated and return the reservation."""
        user = self._user(user_id)
        reservation_id = self._unused_reservation_id()
        segments = [self._segment(flight, cabin, len(passengers)) for flight in flights]
        price = len(passengers) * sum(segment["price"] for segment in segments)
        price += BAGGAGE_FEE_USD * nonfree_baggages
        if insurance == "yes":
            price += INSURANCE_FEE_USD * len(passengers)
        methods = pay_booking(user["payment_methods"], payment_methods, price)
        reservation = {
            "reservation_id": reservation_id,
            "user_id": user_id,
            "origin": origin,
            "destination": destination,
            "flight_type": flight_type,
            "cabin": cabin,
            "flights": segments,
            "passengers": passengers,
            "payment_history": payment_methods,
            "created_at": NOW,
            "total_baggages": total_baggages,
            "nonfree_baggages": nonfree_baggages,
            "insurance": insurance,
        }
        reservations = [*user["reservations"], reservation_id]
        self._write("users", user_id, {**user, "payment_methods": methods, "reservations": reservations})
        return self._write("reservations", reservation_id, reservation)

    @_tool
    def cancel_reservation(self, reservation_id: str) -> str:
        """Cancel a reservation, note a refund of every payment and return it.

        Nothing is credited yet: refunds take days to arrive, says the policy.
        """
        reservation = self._reservation(reservation_id)
        history = reservation["payment_history"]
        refunds = [{"payment_id": payment["payment_id"], "amount": -payment["amount"]} for payment in history]
        changed = {**reservation, "payment_history": [*history, *refunds], "status": "cancelled"}
        return self._write("reservations", reservation_id, changed)

    @_tool
    def update_reservation_flights(
        self, reservation_id: str, cabin: str, flights: list[Record], payment_id: str
    ) -> str:
        """Replace a reservation's flights, charge or refund the difference in price and return the reservation.

        The cabin decides prices and seats but is not written into the reservation: the recorded airline never did.
        """
        reservation = self._reservation(reservation_id)
        passengers = len(reservation["passengers"])
        segments = [
            self._kept_segment(reservation, flight, cabin) or self._segment(flight, cabin, passengers)
            for flight in flights
        ]
        before = sum(segment["price"] for segment in reservation["flights"])
        difference = passengers * (sum(segment["price"] for segment in segments) - before)
        return self._charge({**reservation, "flights": segments}, payment_id, difference)

    @_tool
    def update_reservation_baggages(
        self, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
    ) -> str:
        """Set a reservation's baggage, charge for each further paid piece and return the reservation."""
        reservation = self._reservation(reservation_id)
        fee = BAGGAGE_FEE_USD * max(0, nonfree_baggages - reservation["nonfree_baggages"])
        changed = {**reservation, "total_baggages": total_baggages, "nonfree_baggages": nonfree_baggages}
        return self._charge(changed, payment_id, fee)

    @_tool
    def update_reservation_passengers(self, reservation_id: str, passengers: list[Record]) -> str:
        """Replace a reservation's passengers by as many others and return the reservation."""
        reservation = self._reservation(reservation_id)
        if len(passengers) != len(reservation["passengers"]):
            raise Refused("number of passengers does not match")
        return self._write("reservations", reservation_id, {**reservation, "passengers": passengers})

    @_tool
    def send_certificate(self, user_id: str, amount: float) -> str:
        """Add a travel certificate to a user's payment methods and say which."""
        user = self._user(user_id)
        methods = user["payment_methods"]
        new = next((each for each in NEW_CERTIFICATES if each not in methods), None)
        if new is None:
            raise Refused("too many certificates")
        certificate = {"source": "certificate", "amount": amount, "id": new}
        self._write("users", user_id, {**user, "payment_methods": {**methods, new: certificate}})
        return f"Certificate {new} added to user {user_id} with amount {amount}."

    @_tool
    def transfer_to_human_agents(self, summary: str) -> str:
        """Confirm the transfer; the summary goes nowhere."""
        return "Transfer successful"

    @_tool
    def think(self, thought: str) -> str:
        """Return nothing: thinking changes nothing."""
        return ""

    @_tool
    def calculate(self, expression: str) -> str:
        """Return the value of an arithmetic expression."""
        return calculate(expression)

    def _find(self, collection: Collection, key: str) -> Record | None:
        return self._written[collection].get(key) or self._database[collection].get(key)

    def _user(self, user_id: str) -> Record:
        if (user := self._find("users", user_id)) is None:
            raise Refused("user not found")
        return user

    def _reservation(self, reservation_id: str) -> Record:
        if (reservation := self._find("reservations", reservation_id)) is None:
            raise Refused("reservation not found")
        return reservation

    def _write(self, collection: Collection, key: str, record: Record) -> str:
        self._written[collection][key] = record
        return json.dumps(record)

    def _unused_reservation_id(self) -> str:
        for candidate in NEW_RESERVATIONS:
            if self._find("reservations", candidate) is None:
                return candidate
        raise Refused("too many reservations")

    def _segment(self, asked: Record, cabin: str, passengers: int) -> Record:
        """Return a flight as a reservation holds it, at the day's price.

        Raises:
            Refused: it does not exist, cannot be booked that day, or has too few seats.
        """
        number, date = asked["flight_number"], asked["date"]
        flight = self._database["flights"].get(number)
        if flight is None:
            raise Refused(f"flight {number} not found")
        day = flight["dates"].get(date)
        if day is None:
            raise Refused(f"flight {number} not found on date {date}")
        if day["status"] != "available":
            raise Refused(f"flight {number} not available on date {date}")
        if day["available_seats"][cabin] < passengers:
            raise Refused(f"not enough seats on flight {number}")
        return priced(asked, day["prices"][cabin], flight)

    def _kept_segment(self, reservation: Record, asked: Record, cabin: str) -> Record | None:
        """Return a flight the reservation already has in this cabin, at the price it was booked for, else None.

        A kept flight is not asked for seats or status.
        """
        if cabin != reservation["cabin"]:
            return None
        wanted = (asked["flight_number"], asked["date"])
        for segment in reservation["flights"]:
            if (segment["flight_number"], segment["date"]) == wanted:
                return priced(asked, segment["price"], segment)
        return None

    def _charge(self, reservation: Record, payment_id: str, amount: int) -> str:
        """Store a changed reservation and settle what the change costs; a negative amount is a refund.

        Raises:
            Refused: the user has no such method, it is a certificate, or the gift card holds too little.
        """
        user = self._user(reservation["user_id"])
        method = user["payment_methods"].get(payment_id)
        if method is None:
            raise Refused("payment method not found")
        if method["source"] == "certificate":
            raise Refused("certificate cannot be used to update reservation")
        if method["source"] == "gift_card" and method["amount"] < amount:
            raise Refused("gift card balance is not enough")
        if amount:
            history = [*reservation["payment_history"], {"payment_id": payment_id, "amount": amount}]
            reservation = {**reservation, "payment_history": history}
            methods = debit(user["payment_methods"], payment_id, amount)
            self._write("users", reservation["user_id"], {**user, "payment_methods": methods})
        return self._write("reservations", reservation["reservation_id"], reservation)


TOOLS = frozenset(name for name, value in vars(Airline).items() if getattr(value, "is_tool", False))
"""The names of the methods that are tools."""


def is_available(flight: Record, date: str) -> bool:
    """Whether a flight can still be booked for that day."""
    return bool(flight["dates"].get(date, {}).get("status") == "available")


def day_of(flight: Record, date: str) -> Record:
    """Return a flight as a search shows it: its timetable and that day's status, seats and prices."""
    return {**{key: value for key, value in flight.items() if key != "dates"}, **flight["dates"][date]}


def connections(
    flights: Iterable[Record], origin: str, destination: str, date: str
) -> Iterator[tuple[tuple[Record, str], tuple[Record, str]]]:
    """Yield each pair of bookable flights with one stop, every flight with the day it leaves, in timetable order."""
    flights = list(flights)
    into = [flight for flight in flights if flight["destination"] == destination]
    for first in flights:
        if first["origin"] != origin or not is_available(first, date):
            continue
        arrival = first["scheduled_arrival_time_est"]
        day = next_day(date) if arrival.endswith("+1") else date
        for second in into:
            if second["origin"] != first["destination"] or not is_available(second, day):
                continue
            # HH:MM:SS sorts as text; on the next day the mark "+1" makes an arrival later than the same minute.
            if arrival <= second["scheduled_departure_time_est"]:
                yield (first, date), (second, day)


def next_day(date: str) -> str:
    """Return the day after a date such as 2024-05-20."""
    return (Date.fromisoformat(date) + timedelta(days=1)).isoformat()


def priced(asked: Record, price: int, flight: Record) -> Record:
    """Return a flight as asked for, in the order and with all it was asked for with, plus price and airports."""
    return {**asked, "price": price, "origin": flight["origin"], "destination": flight["destination"]}


def pay_booking(methods: Mapping[str, Record], payments: list[Record], price: int) -> dict[str, Record]:
    """Return the payment methods after a booking was paid with them.

    Raises:
        Refused: a method is missing or holds too little, or the payments are not the price.
    """
    left = dict(methods)
    for payment in payments:
        payment_id, amount = payment["payment_id"], payment["amount"]
        if payment_id not in left:
            raise Refused(f"payment method {payment_id} not found")
        balance = left[payment_id].get("amount")  # a credit card has none
        if balance is not None and balance < amount:
            raise Refused(f"not enough balance in payment method {payment_id}")
        left = debit(left, payment_id, amount)
    paid = sum(payment["amount"] for payment in payments)
    if paid != price:
        raise Refused(f"payment amount does not add up, total price is {price}, but paid {paid}")
    return left


def debit(methods: Mapping[str, Record], payment_id: str, amount: float) -> dict[str, Record]:
    """Return payment methods after a payment: a gift card holds less, a certificate is gone, a card stays as it was."""
    method = methods[payment_id]
    if method["source"] == "certificate":
        return {key: each for key, each in methods.items() if key != payment_id}
    if method["source"] == "gift_card":
        return {**methods, payment_id: {**method, "amount": method["amount"] - amount}}
    return dict(methods)
