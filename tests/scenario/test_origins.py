"""Where the arguments of the travel example came from, as its journal says: real sandboxes, a real service."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from commandline import FINISHED, SANDBOX, lockstep

from lockstep.journal.events import CallJudged, Origin
from lockstep.journal.sqlite import SQLiteJournal

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path.insert(0, str(TRAVEL))

from travel_world.server import serve  # noqa: E402

pytestmark = SANDBOX

REQUEST = "Find me a flight from London to New York next Tuesday; under $500, book it and add it to my calendar."
FILES = ("agent.toml", "prompt.md", "policy.cedar", "script.jsonl", "tools.py")


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Origin]]:
    """The origins of each call of one whole run, by tool and pointer."""
    agent = tmp_path_factory.mktemp("travel")
    with serve(agent / "travel.db", "127.0.0.1", 0) as service:
        for name in FILES:
            text = (TRAVEL / name).read_text().replace("127.0.0.1:8931", f"{service.host}:{service.port}")
            (agent / name).write_text(text)
        for arguments in (["lock", agent], ["run", agent, REQUEST, "--approve", "all"]):
            done = lockstep(*arguments, "--store", agent / "store")
            assert done.code == FINISHED, done.err
    return asyncio.run(_read(agent / "store"))


async def _read(store: Path) -> dict[str, dict[str, Origin]]:
    journal = SQLiteJournal.open_readonly(store)
    try:
        (row,) = await journal.runs()
        events = [item.event for item in await journal.read(row.run)]
    finally:
        await journal.close()
    tools = ("current_date", "search_flights", "book_flight", "add_calendar_entry")
    judged = (event for event in events if isinstance(event, CallJudged))
    return {tool: {each.pointer: each for each in verdict.origins} for tool, verdict in zip(tools, judged, strict=True)}


def test_the_date_came_from_the_tool_that_knows_the_day(origins: dict[str, dict[str, Origin]]) -> None:
    found = origins["search_flights"]["/date"]
    assert (found.how, found.trust, found.refs[0]) == ("exact", "trusted", "1.0/result#/next/tuesday")


def test_the_cities_came_from_the_prompt(origins: dict[str, dict[str, Origin]]) -> None:
    found = origins["search_flights"]["/origin"]
    assert (found.trust, found.refs[0]) == ("system", "system")


def test_the_price_came_from_one_field_of_the_search(origins: dict[str, dict[str, Origin]]) -> None:
    found = origins["book_flight"]["/price_usd"]
    assert (found.how, found.trust, found.refs[0]) == ("exact", "trusted", "2.0/result#/offers/0/price_usd")
    assert origins["book_flight"]["/offer_id"].refs[0] == "2.0/result#/offers/0/offer_id"


def test_the_passenger_came_from_the_prompt(origins: dict[str, dict[str, Origin]]) -> None:
    assert origins["book_flight"]["/passenger"] == Origin(
        pointer="/passenger", how="part", trust="system", refs=("system",)
    )


def test_the_title_of_the_calendar_entry_is_composed_and_worth_its_least_trusted_word(
    origins: dict[str, dict[str, Origin]],
) -> None:
    found = origins["add_calendar_entry"]["/title"]
    assert (found.how, found.trust) == ("composed", "trusted")
    assert any(ref.endswith("/flight_number") for ref in found.refs)
