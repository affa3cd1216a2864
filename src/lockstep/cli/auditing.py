"""`lockstep audit`: the record handed over as a file, and a file that was handed over checked."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from lockstep.cli.report import FINISHED, INTERNAL
from lockstep.cli.stores import existing, find, looking
from lockstep.cli.terminal import console, count, plain, print_json
from lockstep.errors import ConfigError
from lockstep.journal import audit, audit_check
from lockstep.wiring import stores


async def verifier() -> int:
    console().print(plain(audit_check.__file__))
    return FINISHED


async def export(
    store: Path | None, run: str | None, session: str | None, everything: bool, file: Path | None, json: bool
) -> int:
    if file is None:
        raise ConfigError("Where to?", remedy="Name the file: `lockstep audit export RUN -o FILE`.")
    if sum((run is not None, session is not None, everything)) != 1:
        raise ConfigError("What is to be exported?", remedy="Name one: RUN (or `last`), --session S, or --all.")
    where = existing(store)
    run_id = None
    if run is not None:
        async with looking(where.directory) as journal:
            run_id = await find(journal, run)
    with stores.audited(where, run=run_id, session=session) as source, _replacing(file) as out:
        if session is not None and not source.runs():
            raise ConfigError(f"There is no run of session {session!r} in this store.", remedy="`lockstep runs`.")
        done = audit.export(source, out, store=str(where.directory))
    if json:
        print_json({"file": str(file), **asdict(done), "verifier": audit_check.__file__})
        return FINISHED
    what = f"{count(done.runs, 'run')}, {count(done.events, 'event')}, {count(done.blobs, 'body')}"
    lost = f", [red]{done.absent} absent from the store[/]" if done.absent else ""
    out_ = console()
    out_.print(f"wrote {plain(str(file))}: {what}{lost}")
    out_.print(f"digest {done.digest} (kept elsewhere, it tells this record from any other)")
    return FINISHED


async def verify(file: Path, digest: str, json: bool) -> int:
    problem, line = "", None
    checked = None
    try:
        with file.open("rb") as opened:
            checked = audit_check.check(opened, digest)
    except audit_check.Broken as broken:
        problem, line = broken.problem, broken.line or None
    if json:
        found = {} if checked is None else checked._asdict()
        print_json({"whole": checked is not None, **found, "problem": problem or None, "line": line})
    elif checked is not None:
        what = f"{count(checked.runs, 'run')}, {count(checked.events, 'event')}, {count(checked.blobs, 'body')}"
        console().print(f"{plain(str(file))}: whole: {what}, digest {checked.digest}")
    else:
        at = f"line {line}: " if line else ""
        console().print(f"{plain(str(file))}: [red]broken[/]: {at}{plain(problem)}")
    return FINISHED if checked is not None else INTERNAL


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes this name only when it is whole; conversations are in it, so it is for the user alone."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
