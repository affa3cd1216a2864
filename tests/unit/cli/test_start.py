"""What a command loads before it does its work: those that only read a record load nothing that it takes to run one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from inprocess import BOOK, Functions, ListedModel, call, driver_of, locked_agent, reply, started

from lockstep.agent.lock import Lock, Part, to_text
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.values import JsonObject, digest_json, sha256

HEAVY = (
    "cedarpy",
    "cryptography",
    "genai_prices",
    "h11",
    "httpx2",
    "jsonschema_rs",
    "lockstep.gate.gate",
    "lockstep.runtime.driver",
    "lockstep.tools.host",
    "mcp",
    "pydantic",
    "pydantic_ai",
)
PROGRAM = f"""\
import sys
from lockstep.cli.main import main
sys.argv[0] = "lockstep"
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished run that made a call."""
    directory = tmp_path_factory.mktemp("store")

    async def work() -> None:
        journal = SQLiteJournal.open(directory)
        model = ListedModel(reply(call("book", {"flight": "BA1"})), reply(text="Booked."))
        settings: JsonObject = {"name": "scripted:script.jsonl"}
        lock = Lock(
            agent="traveller",
            parts={
                "model": {"settings": Part(sha256=digest_json(settings), value=settings)},
                "prompt": {"prompt.md": Part(sha256=sha256(b"Book."), text="Book.")},
                "tools": {},
                "memory": {},
            },
        )
        driver = driver_of(journal, model, Functions(), locked_agent(BOOK))
        await driver.advance(await driver.start(started(lock_text=to_text(lock))))
        await journal.close()

    asyncio.run(work())
    return directory


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs"], "traveller"),
        (["show"], "Booked."),
        (["show", "--json"], '"output": "Booked."'),
        (["trace"], "where the time went"),
        (["verify"], "chain whole"),
        (["why"], "book"),
        (["doubts"], "nothing is in doubt"),
        (["approvals"], "nothing waits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_reading_a_record_loads_nothing_that_a_run_needs(store: Path, arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--store", str(store)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert done.stderr.strip() == "[]"


def test_the_version_is_said_without_loading_what_does_the_work() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("lockstep ")
    assert done.stderr.strip() == "[]"
