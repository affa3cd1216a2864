"""The commands that only read the record of runs. Nothing is imported here that it takes to run one."""

from __future__ import annotations

from pathlib import Path

from lockstep.cli.report import FINISHED, INTERNAL, as_json, row_as_json, unreadable, waiting_as_json
from lockstep.cli.saving import save_attachments
from lockstep.cli.show import details_of, print_row, print_run, print_trace, unreadable_text
from lockstep.cli.stores import find, looking
from lockstep.cli.terminal import console, count, plain, print_json
from lockstep.kernel.state import State
from lockstep.model.recording import write_recording
from lockstep.runtime.reading import (
    Unreadable,
    lock_of_run,
    read_row,
    read_run,
    read_state,
    unfinished,
    verify_run,
    waiting,
)
from lockstep.runtime.recording import recording_of


async def runs(store: Path | None, session: str | None, limit: int, json: bool) -> int:
    async with looking(store) as journal:
        rows = [(row, await read_row(journal, row)) for row in await journal.runs(session=session, limit=limit)]
    if json:
        listed = [row_as_json(row, state) for row, state in rows if isinstance(state, State)]
        print_json({"runs": listed, "unreadable": unreadable(state for _, state in rows)})
        return FINISHED
    out = console()
    for row, state in rows:
        print_row(out, row, state)
    if not rows:
        out.print(f"no run of session {plain(session)}" if session else "no runs yet")
    return FINISHED


async def show(store: Path | None, name: str, json: bool, save: Path | None) -> int:
    async with looking(store) as journal:
        run_id = await find(journal, name)
        started, _ = await lock_of_run(journal, run_id)
        state = await read_state(journal, run_id)
        details = details_of(await read_run(journal, run_id))
    if json:
        print_json(as_json(state, details))
    else:
        print_run(console(), state, started.drift, details)
    if save is not None:
        saved = save_attachments(save, state)
        for path in saved:
            console(stderr=json).print(f"wrote {plain(str(path))}")
        if not saved:
            console(stderr=json).print("this run kept no images and no files")
    return FINISHED


async def trace(store: Path | None, name: str) -> int:
    async with looking(store) as journal:
        run_id = await find(journal, name)
        print_trace(console(), await read_run(journal, run_id), await read_state(journal, run_id))
    return FINISHED


async def verify(store: Path | None, name: str, json: bool) -> int:
    async with looking(store) as journal:
        run_id = await find(journal, name)
        seen = await verify_run(journal, run_id)
    whole = seen.broken_seq is None
    if json:
        print_json(
            {
                "run_id": run_id,
                "whole": whole,
                "events": seen.events,
                "head": seen.head,
                "broken_event": seen.broken_seq,
                "problem": seen.problem or None,
            }
        )
    elif whole:
        console().print(f"run {run_id}: {count(seen.events, 'event')}, chain whole, head {seen.head[:16]}")
    else:
        console().print(f"run {run_id}: [red]broken[/]: {plain(seen.problem)}")
    return FINISHED if whole else INTERNAL


async def record(store: Path | None, name: str, file: Path) -> int:
    async with looking(store) as journal:
        run_id = await find(journal, name)
        recording = recording_of(await read_run(journal, run_id))
    write_recording(file, recording)
    replies = f"{len(recording.turns)} {'reply' if len(recording.turns) == 1 else 'replies'} of {recording.model}"
    console().print(f"wrote {plain(f'{file}: {replies}; run it with --model recorded:{file}')}")
    return FINISHED


async def approvals(store: Path | None, json: bool) -> int:
    async with looking(store) as journal:
        open_runs = await unfinished(journal)
        items = []
        for item in waiting(open_runs):
            # Lazy: what is asked is said in the terms of agent.toml, whose models take 0.2 s; often nothing waits.
            from lockstep.cli import answering

            items.append((item, await answering.question_for(journal, item.state, item.call)))
    if json:
        listed = [waiting_as_json(item) | answering.asked_as_json(asked) for item, asked in items]
        print_json({"waiting": listed, "unreadable": unreadable(open_runs)})
        return FINISHED
    out = console()
    for item, asked in items:
        answering.print_waiting(out, item, asked)
    broken = [run for run in open_runs if isinstance(run, Unreadable)]
    for run in broken:
        out.print(f"[red]unreadable[/] run {run.row.run} for {plain(run.row.principal)}: {unreadable_text(run)}")
    if not items:
        out.print("nothing waits for a person" if not broken else "nothing else waits for a person")
    return FINISHED
