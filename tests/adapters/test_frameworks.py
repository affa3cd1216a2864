"""docs/adapters: every script on the pages is run as it stands there, in the framework's own environment.

The gateway, the sandboxes and the travel service are real. The model is a local server that speaks OpenAI's wire
formats and says what a test wrote down.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from frameworks import framework
from world import ROOT, TOKEN, World, book

pytestmark = [
    pytest.mark.adapters,
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]
PAGES = ROOT / "docs/adapters"
SEARCH = ("search_flights", {"origin": "LON", "destination": "NYC", "date": "2031-03-04"})
SKYLARK = book("LON-NYC-2031-03-04-SK136", 373.1)
IN_OTHER_WORDS = book("LON-NYC-2031-03-04-SK136", 373.1, passenger=" sam  CARTER")
BLUEBIRD = book("LON-NYC-2031-03-04-BB137", 417.6)
TOO_DEAR = book("LON-NYC-2031-03-04-NK787", 513.4)
SLOW_S = 14.0
"""Longer than the frameworks below wait, who wait as long for a gateway to start."""


@dataclass(frozen=True)
class Page:
    name: str
    patience: str
    """How long it waits for a call, as the page writes it."""
    impatient: str
    """The same, shorter than a booking takes."""
    notes: bool = True
    """Whether its model sees what is said beside a structured result."""


LANGGRAPH = Page("langgraph", "timedelta(seconds=120)", "timedelta(seconds=10)")
OPENAI = Page("openai-agents", "client_session_timeout_seconds=120", "client_session_timeout_seconds=10")
PYDANTIC = Page("pydantic-ai", "read_timeout=120", "read_timeout=10", notes=False)
FRAMEWORKS = pytest.mark.parametrize("page", [LANGGRAPH, OPENAI, PYDANTIC], ids=lambda page: page.name)


def script(page: Page, section: str) -> str:
    """The one script under this heading of a page."""
    text = (PAGES / f"{page.name}.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Bookings need a person, and nobody can be asked whether one happened."""
    with World.open(tmp_path_factory.mktemp("asking"), probes=False) as world:
        yield world


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Bookings need nobody."""
    with World.open(tmp_path_factory.mktemp("free"), people=False) as world:
        yield world


@FRAMEWORKS
def test_what_becomes_of_a_call_reaches_the_model(page: Page, asking: World) -> None:
    world, python = asking.anew(), framework(page.name)

    def fail() -> None:
        world.service.faults.fail_bookings = 1  # it books, and its reply is lost

    with world.gateway() as url:
        text = script(page, "Over HTTP").replace("http://127.0.0.1:8940/mcp", url)
        first = [SEARCH, TOO_DEAR, SKYLARK, world.approve, SKYLARK, IN_OTHER_WORDS]
        then = [BLUEBIRD, fail, world.approve, BLUEBIRD, BLUEBIRD, "Done."]
        done = world.run(python, text, *first, *then)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Done."
    found, denied, waits, booked, again, waits_too, lost, still = world.model.heard
    assert "LON-NYC-2031-03-04-SK136" in found
    assert "denied by policy (price-limit)" in denied
    assert "waits for a person" in waits
    assert '"booking_id":"BK-' in booked
    assert '"booking_id":"BK-' in again
    assert ("This call was already made" in again) == page.notes
    assert "waits for a person" in waits_too
    assert "Nobody knows whether book_flight happened" in lost
    assert "Nobody knows whether book_flight happened" in still
    assert [row["offer_id"][-5:] for row in world.service.bookings()] == ["SK136", "BB137"]
    assert {run["session"] for run in world.runs()} == {"chat-42"}


@FRAMEWORKS
def test_a_booking_that_takes_longer_than_the_framework_waits_is_one_booking(page: Page, free: World) -> None:
    """The incident: slow, given up, asked for again."""
    world, python = free.anew(slow_s=SLOW_S), framework(page.name)
    text = script(page, "Over stdio")
    assert page.patience in text
    text = text.replace(page.patience, page.impatient)
    if page is LANGGRAPH:  # its run ends; whoever started it starts it again
        done = world.run(python, text, SKYLARK, "Done.")
        assert done.returncode == 1, done.stdout
        assert world.model.heard == []
        done = world.run(python, text.replace(page.impatient, page.patience), IN_OTHER_WORDS, "Done.")
    else:
        done = world.run(python, text, SKYLARK, IN_OTHER_WORDS, "Done.")
        assert "ry again" in world.model.heard[0] or "imed out" in world.model.heard[0]
    assert done.returncode == 0, done.stderr
    assert "BK-" in world.model.heard[-1]
    assert len(world.service.bookings()) == 1


def test_what_the_framework_itself_tries_again_over_another_connection_is_one_booking(free: World) -> None:
    world, python = free.anew(slow_s=SLOW_S), framework(OPENAI.name)
    with world.gateway() as url:
        text = script(OPENAI, "Over HTTP").replace("http://127.0.0.1:8940/mcp", url)
        text = text.replace(OPENAI.patience, f"{OPENAI.impatient}, max_retry_attempts=3")
        done = world.run(python, text, SKYLARK, "Done.")
    assert done.returncode == 0, done.stderr
    (booked,) = world.model.heard
    assert "This call was already made" in booked
    assert len(world.service.bookings()) == 1


@pytest.mark.parametrize(("page", "said"), [(LANGGRAPH, "y"), (PYDANTIC, "n")], ids=["langgraph-y", "pydantic-ai-n"])
def test_an_approval_is_put_to_whoever_runs_the_program(page: Page, said: str, asking: World) -> None:
    world, python = asking.anew(), framework(page.name)
    done = world.run(python, script(page, "Approvals in your program"), SKYLARK, "Done.", stdin=f"{said}\n")
    assert done.returncode == 0, done.stderr
    assert "Book this flight?" in done.stdout
    assert '"price_usd": 373.1' in done.stdout
    (heard,) = world.model.heard
    assert ("BK-" in heard) == (said == "y")
    assert len(world.service.bookings()) == (said == "y")


@FRAMEWORKS
def test_a_page_says_how_its_framework_is_installed(page: Page) -> None:
    import relock

    text = (PAGES / f"{page.name}.md").read_text()
    assert f"pip install {relock.ADAPTERS[page.name]}" in text.replace('"', "")
    assert TOKEN not in text


def test_every_page_of_a_framework_is_among_the_tested() -> None:
    tested = {page.name for page in (LANGGRAPH, OPENAI, PYDANTIC)}
    assert {path.stem for path in PAGES.glob("*.md")} - {"editors"} == tested


def test_no_script_of_a_page_is_left_out() -> None:
    for page, scripts in ((LANGGRAPH, 3), (OPENAI, 2), (PYDANTIC, 3)):
        assert (PAGES / f"{page.name}.md").read_text().count("```python\n") == scripts
