"""`lockstep tools check`: one finding a line, worst first."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from lockstep.cli.report import BAD_INPUT, FINISHED
from lockstep.cli.terminal import console, count, plain, print_json
from lockstep.tools.semantics import RANK, Finding, Severity
from lockstep.wiring import stores
from lockstep.wiring.checking import check_tools
from lockstep.wiring.stores import Store

_COLOUR = {"error": "red", "warning": "yellow", "note": "dim"}


async def check(directory: Path, store: Path | None, *, scratch: bool, json: bool) -> int:
    where = Store.of(directory, store)
    async with stores.opened_tools(where) as tools:
        found = await check_tools(directory, tools, where.code(), scratch=scratch)
    how_many: Counter[Severity] = Counter(each.severity for each in found)
    if json:
        counts = {f"{severity}s": how_many[severity] for severity in RANK}
        print_json({"scratch": scratch, **counts, "findings": [asdict(each) for each in found]})
    else:
        _print(found, how_many)
    return BAD_INPUT if how_many["error"] else FINISHED


def _print(found: list[Finding], how_many: Counter[Severity]) -> None:
    out = console()
    wide = max((len(each.tool) for each in found), default=0)
    for each in found:
        colour = _COLOUR[each.severity]
        what = f"{each.what[0].upper()}{each.what[1:]}. To do: {each.then}. ({each.rule})"
        line = f"[{colour}]{each.severity:<7}[/] {plain(each.tool):<{wide}}  {plain(what)}"
        out.print(line, soft_wrap=True)
    out.print(", ".join(count(how_many[severity], severity) for severity in RANK))
