"""What each request means: routes, their handlers, and the faults that can be ordered."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from decimal import Decimal
from http import HTTPStatus

from travel_world.flights import find_city, find_offer, offers_on
from travel_world.request import (
    Record,
    Refusal,
    Request,
    bad_request,
    moment_field,
    number_field,
    parse_date,
    quoted,
    text_field,
)
from travel_world.store import Store


class Faults:
    """How bookings go wrong; plain attributes, to be changed at any time while the service runs.

    Attributes:
        slow_bookings_s: seconds between making a booking and replying.
        fail_bookings: that many of the next booking requests book and are answered 503 *afterwards*.
        fail_bookings_before: that many of the next booking requests are answered 503 and book nothing.
    """

    def __init__(self, *, slow_bookings_s: float = 0.0, fail_bookings: int = 0, fail_bookings_before: int = 0) -> None:
        self.slow_bookings_s = slow_bookings_s
        self.fail_bookings = fail_bookings
        self.fail_bookings_before = fail_bookings_before
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Use up one failure of that attribute; False when none is left."""
        with self._lock:
            left: int = getattr(self, name)
            if left > 0:
                setattr(self, name, left - 1)
            return left > 0


class Api:
    """Answers requests from a store. `closing`, once set, cuts slow replies short."""

    def __init__(self, store: Store, faults: Faults, closing: threading.Event) -> None:
        self.store = store
        self.faults = faults
        self.closing = closing

    def answer(self, method: str, path: str, request: Request) -> tuple[HTTPStatus, Record]:
        """Carry the request out; raises `Refusal` for everything that is answered with an error."""
        allowed = []
        for route_method, pattern, status, handle in _ROUTES:
            if match := pattern.fullmatch(path):
                if route_method == method:
                    return status, handle(self, request, *match.groups())
                allowed.append(route_method)
        if allowed:
            takes = " and ".join(sorted(allowed))
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {takes}, not {method}.")
        raise Refusal(HTTPStatus.NOT_FOUND, f"Nothing is at {quoted(path)}.")

    def get_flights(self, request: Request) -> Record:
        query = request.query(required=("origin", "destination", "date"))
        origin, destination = find_city(query["origin"]), find_city(query["destination"])
        if origin == destination:
            raise bad_request(f"Parameters 'origin' and 'destination' are both {origin.name}; name two cities.")
        sold = self.store.seats_sold()
        offers = offers_on(origin, destination, parse_date(query["date"]))
        records = [offer.record(seats_sold=sold.get(offer.offer_id, 0)) for offer in offers]
        return {"offers": [record for record in records if record["seats"]]}

    def post_booking(self, request: Request) -> Record:
        body = request.body(required=("offer_id", "passenger", "price_usd"))
        offer_id, passenger = text_field(body, "offer_id"), text_field(body, "passenger")
        price_usd = number_field(body, "price_usd")
        if self.faults.take("fail_bookings_before"):
            raise _unavailable()
        offer = find_offer(offer_id)
        if price_usd != Decimal(offer.price_cents) / 100:
            price = f"${offer.price_cents / 100:.2f}"
            sentence = f"Offer {offer_id} costs {price}, not ${price_usd}; nothing was booked."
            raise Refusal(HTTPStatus.CONFLICT, sentence)
        booking = self.store.book(offer, passenger, request.header("Idempotency-Key"))
        if self.faults.slow_bookings_s > 0:
            self.closing.wait(self.faults.slow_bookings_s)
        if self.faults.take("fail_bookings"):
            raise _unavailable()
        return booking

    def get_bookings(self, request: Request) -> Record:
        query = request.query(optional=("offer_id", "passenger"))
        found = self.store.bookings(offer_id=query.get("offer_id"), passenger=query.get("passenger"))
        return {"bookings": found}

    def get_booking(self, request: Request, booking_id: str) -> Record:
        request.query()
        booking = self.store.booking(booking_id)
        if booking is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"No booking {quoted(booking_id)} exists.")
        return booking

    def post_entry(self, request: Request) -> Record:
        body = request.body(required=("title", "starts_at", "ends_at"), optional=("notes",))
        title = text_field(body, "title")
        starts_at, ends_at = moment_field(body, "starts_at"), moment_field(body, "ends_at")
        if ends_at <= starts_at:
            raise bad_request("Field 'ends_at' must be later than 'starts_at'.")
        notes = None if body.get("notes") is None else text_field(body, "notes")
        return self.store.add_entry(title, starts_at.isoformat(), ends_at.isoformat(), notes)

    def get_entries(self, request: Request) -> Record:
        query = request.query(optional=("title", "starts_at"))
        title = text_field(query, "title") if "title" in query else None
        starts_at = moment_field(query, "starts_at").isoformat() if "starts_at" in query else None
        return {"entries": self.store.entries(title=title, starts_at=starts_at)}


def _unavailable() -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The booking system is unavailable.")


_ROUTES: tuple[tuple[str, re.Pattern[str], HTTPStatus, Callable[..., Record]], ...] = (
    ("GET", re.compile(r"/flights"), HTTPStatus.OK, Api.get_flights),
    ("POST", re.compile(r"/bookings"), HTTPStatus.CREATED, Api.post_booking),
    ("GET", re.compile(r"/bookings"), HTTPStatus.OK, Api.get_bookings),
    ("GET", re.compile(r"/bookings/([^/]+)"), HTTPStatus.OK, Api.get_booking),
    ("POST", re.compile(r"/calendar/entries"), HTTPStatus.CREATED, Api.post_entry),
    ("GET", re.compile(r"/calendar/entries"), HTTPStatus.OK, Api.get_entries),
)
