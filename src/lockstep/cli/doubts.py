"""`lockstep doubts`: effects whose outcome nobody knows."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from lockstep.cli.report import FINISHED, unreadable, waiting_as_json
from lockstep.cli.show import unreadable_text
from lockstep.cli.stores import looking
from lockstep.cli.terminal import console, one_line, plain, print_json
from lockstep.kernel.state import Status
from lockstep.runtime.reading import Unreadable
from lockstep.runtime.reading import doubts as read_doubts


async def doubts(store: Path | None, json: bool) -> int:
    async with looking(store) as journal:
        found = await read_doubts(journal)
    broken = [each for each in found if isinstance(each, Unreadable)]
    items = [each for each in found if not isinstance(each, Unreadable)]
    if json:
        listed = [waiting_as_json(item) | {"finished": item.state.status is Status.FINISHED} for item in items]
        print_json({"doubts": listed, "unreadable": unreadable(broken)})
        return FINISHED
    out = console()
    for item in items:
        call, state = item.call, item.state
        since = datetime.fromtimestamp(call.doubted_at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
        ended = f", whose run has ended ({state.stop_reason})" if state.status is Status.FINISHED else ""
        out.print(
            f"[yellow]{state.run}/{call.id}[/] for {plain(state.principal)}{ended}:"
            f" [bold]{plain(call.name)}[/] {one_line(call.arguments)}"
        )
        out.print(f"    since {since}: {plain(call.why_doubted)}")
        out.print(f"    [dim]`lockstep settle {state.run}/{call.id} --happened` or `--did-not`, once you know[/]")
    for each in broken:
        out.print(f"[red]unreadable[/] run {each.row.run} for {plain(each.row.principal)}: {unreadable_text(each)}")
    if not found:
        out.print("nothing is in doubt")
    return FINISHED
