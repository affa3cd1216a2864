"""A record that was handed over: whole as written, and every way of tampering with it shows, with stdlib alone."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockstep.journal import audit, audit_check, codec
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_audit import SQLiteAudit
from lockstep.journal.sqlite_file import DATABASE
from lockstep.journal.standing import Standing, StandingBook
from lockstep.journal.stops import StopBook
from lockstep.values import Digest, RunId

Line = dict[str, Any]
LONG = "x" * 5000
"""Kept out of line."""
STARTED = ev.RunStarted(
    agent="travel", lock=Digest("1" * 64), lock_text=LONG, directory="/", principal="ada", session="s1", input="Bük."
)
SAID = ev.ModelReplied(
    step=1, text="word " * 200, calls=(ev.Asked(id="1.0", provider_id="p", name="t", arguments="{}"),)
)
"""Deflated in the store."""
GIVEN = Standing(
    id="g1",
    agent="travel",
    directory="/",
    lock=Digest("1" * 64),
    tool="t",
    where=(("/to", '"Bük"'),),
    from_ms=1,
    until_ms=9,
    by="ada",
)
HALF = ev.ModelReplied(step=2, text="\ud800 half of a pair")
FINISHED = ev.RunFinished(stop_reason="completed", output="done")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one session, one of another, a stop, and an approval given beforehand that was used."""
    directory = tmp_path_factory.mktemp("audit") / "store"

    async def fill() -> None:
        journal = SQLiteJournal.open(directory)
        for number, session in enumerate(("s1", "s1", "s2"), 1):
            started = replace(STARTED, session=session, input=f"run {number} {LONG if number == 3 else ''}")
            entries = [(number, event) for event in (started, SAID, HALF, FINISHED)]
            await journal.append(RunId(f"r{number}"), 1, entries)
        await journal.close()

    asyncio.run(fill())
    book = StopBook.open(directory)
    book.stop("travel", by="ada", because="why", at_ms=1)
    book.start("travel", by="ada", because="", at_ms=2)
    book.close()
    approvals = StandingBook(directory)
    approvals.give(GIVEN)
    assert approvals.use("g1", run=RunId("r1"), call="1.0", at_ms=2)
    return directory


def exported(store: Path, **what: Any) -> tuple[bytes, audit.Exported]:
    out = io.BytesIO()
    with SQLiteAudit(store, **what) as source:
        done = audit.export(source, out, store="/store")
    return out.getvalue(), done


def checked(data: bytes, digest: str = "") -> audit_check.Checked:
    return audit_check.check(io.BytesIO(data), digest)


def lines_of(data: bytes) -> list[Line]:
    return [json.loads(line) for line in data.splitlines()]


def written(lines: list[Line]) -> bytes:
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def resealed(lines: list[Line]) -> bytes:
    """A forger who knows the format: the last line is made to fit what is before it."""
    *before, last = lines
    digest = hashlib.sha256(written(before)).hexdigest()
    events = sum("hash" in line for line in before)
    blobs = len({line["blob"] for line in before if "blob" in line})
    end = {"runs": len(before[0]["runs"]), "events": events, "blobs": blobs, "digest": digest}
    return written([*before, {**last, "end": end}])


def test_a_record_of_everything_holds_and_says_what_is_in_it(store: Path) -> None:
    data, done = exported(store)
    found = checked(data, done.digest)
    assert (found.runs, found.events, found.blobs) == (3, 16, 2) == (done.runs, done.events, done.blobs)
    assert set(found.heads) == {"r1", "r2", "r3", "stops", "standing"}
    header = lines_of(data)[0]
    assert (header["format"], header["version"], header["store"]) == ("lockstep-audit", 1, "/store")
    assert [(run["run"], run["session"], run["events"]) for run in header["runs"]][:2] == [
        ("r1", "s1", 4),
        ("r2", "s1", 4),
    ]


@pytest.mark.parametrize(
    ("what", "runs"),
    [({"run": RunId("r2")}, ["r2"]), ({"session": "s1"}, ["r1", "r2"]), ({}, ["r1", "r2", "r3"])],
    ids=["run", "session", "all"],
)
def test_what_was_asked_for_is_exported_and_its_heads_are_those_of_the_journal(
    store: Path, what: dict[str, Any], runs: list[str]
) -> None:
    data, _ = exported(store, **what)

    async def heads() -> dict[str, str]:
        journal = SQLiteJournal.open_readonly(store)
        found = {run: (await journal.verify(RunId(run))).head for run in runs}
        await journal.close()
        return found

    assert {run: head for run, head in checked(data).heads.items() if run in runs} == asyncio.run(heads())


def test_a_body_is_legible_also_where_the_chain_hashes_its_deflated_form(store: Path) -> None:
    lines = [line for line in lines_of(exported(store)[0]) if line.get("type") == "model.replied"]
    assert "deflated" in lines[0]
    assert json.loads(lines[0]["body"])["text"] == SAID.text
    assert json.loads(lines[1]["body"])["text"] == HALF.text


def test_the_verifier_runs_alone_with_the_standard_library(store: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(audit_check.__file__, tmp_path / "check.py"))
    data, done = exported(store)
    (tmp_path / "record").write_bytes(data)
    (tmp_path / "changed").write_bytes(data.replace(b'"seq":2', b'"seq":7', 1))
    command = [sys.executable, "-I", "-S", str(alone)]
    ends = [
        subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        for arguments in (["record", done.digest], ["record", "0" * 64], ["changed"], ["missing"], [])
    ]
    assert [end.returncode for end in ends] == [0, 1, 1, 2, 2]
    assert ends[0].stdout == f"whole: 3 runs, 16 events, 2 bodies, digest {done.digest}\n"
    assert ends[2].stdout.startswith("broken: line ")
    assert not any("Traceback" in end.stderr for end in ends)


def test_every_changed_byte_is_noticed(store: Path) -> None:
    data, _ = exported(store, run=RunId("r1"))
    step = max(1, len(data) // 400)
    for place in [*range(0, len(data), step), *range(len(data) - 120, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(audit_check.Broken):
            checked(bytes(changed))


def _without(test: Callable[[Line], bool]) -> Callable[[list[Line]], list[Line]]:
    def forge(lines: list[Line]) -> list[Line]:
        place = next(place for place, line in enumerate(lines) if test(line))
        return lines[:place] + lines[place + 1 :]

    return forge


def _event(run: str, seq: int) -> Callable[[Line], bool]:
    return lambda line: (line.get("run"), line.get("seq")) == (run, seq)


def _changed(test: Callable[[Line], bool], **values: Any) -> Callable[[list[Line]], list[Line]]:
    return lambda lines: [{**line, **values} if test(line) else line for line in lines]


def _swapped(lines: list[Line]) -> list[Line]:
    a, b = (next(p for p, line in enumerate(lines) if _event("r1", seq)(line)) for seq in (2, 3))
    lines[a], lines[b] = lines[b], lines[a]
    return lines


def _header(change: Callable[[Line], object]) -> Callable[[list[Line]], list[Line]]:
    def forge(lines: list[Line]) -> list[Line]:
        change(lines[0])
        return lines

    return forge


def _twice(lines: list[Line]) -> list[Line]:
    return [copy for line in lines for copy in ([line, line] if _event("r1", 4)(line) else [line])]


FORGERIES: dict[str, tuple[Callable[[list[Line]], list[Line]], str]] = {
    "an event removed": (_without(_event("r1", 2)), "stands where event 2"),
    "the last event of a run removed": (_without(_event("r1", 4)), "3 events here and 4 in the header"),
    "the first event of a run removed": (_without(_event("r2", 1)), "event of run r2 stands where none"),
    "an event twice": (_twice, "stands where event 5"),
    "events swapped": (_swapped, "stands where event 2"),
    "a body changed": (_changed(_event("r1", 4), body='{"stop_reason":"cancelled"}'), "hash does not follow"),
    "a legible body changed": (_changed(_event("r1", 2), body="{}"), "not what its deflated form holds"),
    "a time changed": (_changed(_event("r1", 4), at_ms=9), "hash does not follow"),
    "a type changed": (_changed(_event("r1", 4), type="run.resumed"), "hash does not follow"),
    "a run renamed": (_changed(_event("r1", 4), run="r9"), "none of it is expected"),
    "an out-of-line body changed": (_changed(lambda line: "blob" in line, text="other"), "was changed"),
    "an out-of-line body removed": (_without(lambda line: "blob" in line), "does not stand before it"),
    "a run left out of the header": (_header(lambda line: line["runs"].pop(0)), "none of it is expected"),
    "a run added to the header": (
        _header(lambda line: line["runs"].append({"run": "r4", "events": 1, "head": "0" * 64})),
        "event of run stops stands where none",
    ),
    "a run twice in the header": (_header(lambda line: line["runs"].append(line["runs"][0])), "twice"),
    "another head in the header": (
        _header(lambda line: line["runs"][0].update(head="0" * 64)),
        "not the one in the header",
    ),
    "another person in the header": (_header(lambda line: line["runs"][0].update(principal="eve")), "the principal of"),
    "the stops left out of the header": (_header(lambda line: line.update(stops=None)), "none of it is expected"),
    "a stop removed": (_without(_event("stops", 1)), "event of run stops stands where none"),
    "the standing approvals left out of the header": (
        _header(lambda line: line.update(standing=None)),
        "none of it is expected",
    ),
    "a use of a standing approval removed": (_without(_event("standing", 2)), "1 events here and 2 in the header"),
    "a standing approval for another": (
        _changed(_event("standing", 1), body=json.dumps({"id": "g1", "by": "eve"})),
        "hash does not follow",
    ),
    "another format": (_header(lambda line: line.update(version=2)), "use a newer verifier"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_named_also_when_the_counts_and_the_digest_were_made_to_fit(store: Path, name: str) -> None:
    forge, problem = FORGERIES[name]
    with pytest.raises(audit_check.Broken, match=problem):
        checked(resealed(forge(lines_of(exported(store)[0]))))


@pytest.mark.parametrize(("kind", "whole"), [("doubt.settled", True), ("run.resumed", False)])
def test_after_the_end_of_a_run_only_a_settled_doubt_may_follow(store: Path, kind: str, whole: bool) -> None:
    """Even where somebody made the chain anew: the forger's record breaks the rules of a run."""
    lines = lines_of(exported(store, run=RunId("r1"))[0])
    head = codec.link(bytes.fromhex(lines[0]["runs"][0]["head"]), RunId("r1"), 5, 9, kind, b"{}").hex()
    added = {"run": "r1", "seq": 5, "at_ms": 9, "type": kind, "body": "{}", "hash": head}
    lines[0]["runs"][0] |= {"events": 5, "head": head}
    forged = resealed([*lines[:-1], added, lines[-1]])
    if whole:
        assert checked(forged).events == 5
    else:
        with pytest.raises(audit_check.Broken, match="follows run"):
            checked(forged)


def test_a_record_that_was_cut_or_lengthened_is_noticed(store: Path) -> None:
    data, _ = exported(store)
    lines = data.splitlines(keepends=True)
    for cut, problem in (
        (b"".join(lines[:-1]), "cut off"),
        (b"".join(lines[:-3]), "cut off"),
        (data[:-1], "cut off"),
        (data[:-30], "cut off"),
        (b"", "empty"),
        (data + lines[-1], "something follows"),
        (data + b"\n", "something follows"),
    ):
        with pytest.raises(audit_check.Broken, match=problem):
            checked(cut)


def test_a_line_written_otherwise_is_noticed(store: Path) -> None:
    data, _ = exported(store)
    doubled = data.replace(b'"seq":2', b'"seq":1,"seq":2', 1)
    with pytest.raises(audit_check.Broken, match="not as it was written"):
        checked(doubled)


def test_a_whole_forged_record_shows_against_a_digest_that_was_kept(store: Path) -> None:
    _, kept = exported(store)
    other, _ = exported(store, session="s1")
    checked(other)
    with pytest.raises(audit_check.Broken, match="another record"):
        checked(other, kept.digest)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM blobs WHERE digest = (SELECT min(digest) FROM blobs)", "not in the store any more"),
        ("UPDATE blobs SET body = 'x'", "was changed"),
        ("UPDATE events SET body = x'ff00' WHERE seq = 2", "hash does not follow|no JSON"),
        ("UPDATE events SET at = 77 WHERE seq = 2", "hash does not follow"),
        ("DELETE FROM events WHERE seq = 2", "stands where event 2"),
        ("UPDATE runs SET session = 'other'", "the session of"),
        ("UPDATE stops SET body = '{}' WHERE seq = 1", "hash does not follow"),
        ("UPDATE standing SET body = '{}' WHERE seq = 1", "hash does not follow"),
    ],
    ids=["body lost", "body changed", "event unreadable", "time", "event lost", "list of runs", "stop", "standing"],
)
def test_a_damaged_store_is_exported_as_it_is_and_does_not_pass(
    store: Path, tmp_path: Path, damage: str, problem: str
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    connection = sqlite3.connect(copy / DATABASE)
    with connection:
        assert connection.execute(damage).rowcount > 0
    connection.close()
    data, _ = exported(copy)
    with pytest.raises(audit_check.Broken, match=problem):
        checked(data)


def test_an_export_sees_one_moment_of_a_store_that_is_written_to(tmp_path: Path) -> None:
    async def work() -> bytes:
        journal = SQLiteJournal.open(tmp_path)
        await journal.append(RunId("r1"), 1, [(1, STARTED)])
        out = io.BytesIO()
        with SQLiteAudit(tmp_path) as source:
            source.runs()
            await journal.append(RunId("r1"), 2, [(2, SAID)])
            audit.export(source, out, store="")
        await journal.close()
        return out.getvalue()

    assert checked(asyncio.run(work())).events == 1


def test_the_memory_of_export_and_check_does_not_grow_with_the_events(tmp_path: Path) -> None:
    """Peaks of a process of its own over 2,000 and over 20,000 events, which would be 10 MB and more in a list."""

    async def fill(directory: Path, events: int) -> None:
        journal = SQLiteJournal.open(directory)
        await journal.append(RunId("r1"), 1, [(1, STARTED)])
        entries = [(2, SAID)] * (events - 1)
        await journal.append(RunId("r1"), 2, entries)
        await journal.close()

    code = (
        "import sys; from pathlib import Path; from lockstep.journal import audit, audit_check;"
        " from lockstep.journal.sqlite_audit import SQLiteAudit\n"
        "with SQLiteAudit(Path(sys.argv[1])) as source, open(sys.argv[2], 'wb') as out:\n"
        "    audit.export(source, out, store='')\n"
        "audit_check.check(open(sys.argv[2], 'rb'))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for events in (2_000, 20_000):
        directory = tmp_path / str(events)
        asyncio.run(fill(directory, events))
        command = [sys.executable, "-c", code, str(directory), str(tmp_path / f"{events}.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 5_000, f"KiB: {peaks}"
