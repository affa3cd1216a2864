"""Flights as a pure function of route and date: any week has some, and every run of a demo sees the same ones."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from http import HTTPStatus

from travel_world.request import Record, Refusal, parse_date, quoted


@dataclass(frozen=True)
class City:
    code: str
    name: str
    airports: str  # codes, separated by spaces
    latitude: float
    longitude: float
    utc_offset_hours: int
    summer_time: str  # "eu", "us" or "none"; spelled out here because a minimal host has no time zone database


@dataclass(frozen=True, kw_only=True)
class Airline:
    code: str
    name: str
    price_factor: float
    departs: time


@dataclass(frozen=True, kw_only=True)
class Offer:
    offer_id: str
    airline: str
    flight_number: str
    origin: str
    destination: str
    departs_at: datetime
    arrives_at: datetime
    price_cents: int
    seats: int

    def record(self, *, seats_sold: int = 0) -> Record:
        """Return the offer as JSON; `seats` is what is left."""
        return {
            "offer_id": self.offer_id,
            "airline": self.airline,
            "flight_number": self.flight_number,
            "origin": self.origin,
            "destination": self.destination,
            "departs_at": self.departs_at.isoformat(),
            "arrives_at": self.arrives_at.isoformat(),
            "price_usd": self.price_cents / 100,
            "seats": max(0, self.seats - seats_sold),
        }


CITIES = (
    City("LON", "London", "LHR LGW STN", 51.5, -0.1, 0, "eu"),
    City("NYC", "New York", "JFK EWR LGA", 40.7, -74.0, -5, "us"),
    City("PAR", "Paris", "CDG ORY", 48.9, 2.4, 1, "eu"),
    City("AMS", "Amsterdam", "", 52.4, 4.9, 1, "eu"),
    City("BER", "Berlin", "", 52.5, 13.4, 1, "eu"),
    City("CHI", "Chicago", "ORD MDW", 41.9, -87.6, -6, "us"),
    City("SFO", "San Francisco", "", 37.8, -122.4, -8, "us"),
    City("TYO", "Tokyo", "HND NRT", 35.7, 139.7, 9, "none"),
)
_CITY_BY_CODE = {code: city for city in CITIES for code in (city.code, *city.airports.split())}

# On London-New York (about $430 at factor 1) the first two airlines are always below $500, the last two always above.
AIRLINES = (
    Airline(code="SK", name="Skylark", price_factor=0.88, departs=time(9, 20)),
    Airline(code="BB", name="Bluebird Atlantic", price_factor=0.99, departs=time(16, 5)),
    Airline(code="NK", name="Norrsken", price_factor=1.15, departs=time(11, 45)),
    Airline(code="MD", name="Meridian", price_factor=1.36, departs=time(18, 30)),
    Airline(code="AL", name="Albion Airways", price_factor=1.70, departs=time(13, 10)),
)

_OFFER_ID = re.compile(r"([A-Z]{3})-([A-Z]{3})-([0-9]{4}-[0-9]{2}-[0-9]{2})-[A-Z]{2}[0-9]{3}")


def find_city(code: str) -> City:
    """Return the city of a city or airport code; unknown codes are a 404 that lists the known ones."""
    city = _CITY_BY_CODE.get(code.strip().upper())
    if city is None:
        known = ", ".join(f"{city.code} ({city.name})" for city in CITIES)
        raise Refusal(HTTPStatus.NOT_FOUND, f"No city or airport {quoted(code)} is served; known are {known}.")
    return city


def offers_on(origin: City, destination: City, day: date) -> list[Offer]:
    """Return every airline's offer for the route on that day, cheapest first."""
    offers = [_offer(airline, origin, destination, day) for airline in AIRLINES]
    return sorted(offers, key=lambda offer: (offer.price_cents, offer.offer_id))


def find_offer(offer_id: str) -> Offer:
    """Return the offer with that id (it names route, day and flight), else a 404."""
    for offer in _offers_beside(offer_id):
        if offer.offer_id == offer_id:
            return offer
    sentence = f"No offer {quoted(offer_id)} exists; search for flights to get current offers."
    raise Refusal(HTTPStatus.NOT_FOUND, sentence)


def _offers_beside(offer_id: str) -> list[Offer]:
    """Return all offers of the route and day an id names, none when it names no such thing."""
    match = _OFFER_ID.fullmatch(offer_id)
    if match is None or match[1] == match[2]:
        return []
    try:
        return offers_on(find_city(match[1]), find_city(match[2]), parse_date(match[3]))
    except Refusal:
        return []


def _offer(airline: Airline, origin: City, destination: City, day: date) -> Offer:
    distance_km = _distance_km(origin, destination)
    flight_number = f"{airline.code}{100 + _draw(airline.code, origin.code, destination.code) % 900}"
    offer_id = f"{origin.code}-{destination.code}-{day.isoformat()}-{flight_number}"
    swing = 0.94 + 0.12 * (_draw("price", offer_id) % 1000) / 1000
    delay_minutes = 5 * (_draw("time", offer_id) % 10)
    departs_at = datetime.combine(day, airline.departs, _zone(origin, day)) + timedelta(minutes=delay_minutes)
    in_the_air = timedelta(minutes=5 * round((45 + distance_km / 850 * 60) / 5))
    return Offer(
        offer_id=offer_id,
        airline=airline.name,
        flight_number=flight_number,
        origin=origin.code,
        destination=destination.code,
        departs_at=departs_at,
        arrives_at=(departs_at + in_the_air).astimezone(_zone(destination, day)),
        price_cents=10 * round((120 + 0.055 * distance_km) * airline.price_factor * swing * 10),
        seats=9 + _draw("seats", offer_id) % 32,
    )


def _draw(*parts: str) -> int:
    """Return a number that looks random and is always the same for the same parts."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8])


def _distance_km(a: City, b: City) -> float:
    """Return the great-circle distance (haversine formula, mean Earth radius)."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(b.longitude - a.longitude) / 2
    haversine = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * 6371 * math.asin(math.sqrt(haversine))


def _zone(city: City, day: date) -> timezone:
    """Return the city's UTC offset at noon of that day."""
    summer = False
    if city.summer_time == "eu":  # last Sunday of March to last Sunday of October
        summer = _sunday_from(date(day.year, 3, 25)) <= day < _sunday_from(date(day.year, 10, 25))
    elif city.summer_time == "us":  # second Sunday of March to first Sunday of November
        summer = _sunday_from(date(day.year, 3, 8)) <= day < _sunday_from(date(day.year, 11, 1))
    return timezone(timedelta(hours=city.utc_offset_hours + summer))


def _sunday_from(day: date) -> date:
    return day + timedelta(days=6 - day.weekday())
