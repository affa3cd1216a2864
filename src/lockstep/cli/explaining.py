"""`lockstep why`: the account of a run or of one of its calls, in words and as JSON."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lockstep.cli.report import FINISHED
from lockstep.cli.show import duration
from lockstep.cli.stores import find, looking
from lockstep.cli.terminal import console, count, one_line, plain, print_json
from lockstep.errors import RunError
from lockstep.runtime.reading import lock_of_run, read_run
from lockstep.telemetry.rounds import Input
from lockstep.telemetry.why import Action, Argument, Cost, End, Interruption, Why, explain

_SHOWN_CHARS = 300
_HOW = {"exact": "exact in", "part": "part of", "normalised": "as", "composed": "composed of"}


async def why(store: Path | None, name: str, call: str | None, json: bool) -> int:
    async with looking(store) as journal:
        run = await find(journal, name)
        _, lock = await lock_of_run(journal, run)
        account = explain(run, await read_run(journal, run), lock)
    one = None if call is None else _chosen(account, call)
    if json:
        print_json(as_json(account if one is None else replace(account, actions=[one])))
    elif one is not None:
        _print_call(console(), account, one)
    else:
        _print_run(console(), account)
    return FINISHED


def as_json(account: Why) -> dict[str, Any]:
    """The object that `--json` prints; docs/why.md says what is in it. Money is a decimal string, as it is recorded."""
    return asdict(account)


def _chosen(account: Why, call: str) -> Action:
    wanted = call.removeprefix(f"{account.run}/")
    for action in account.actions:
        if action.call == wanted:
            return action
    known = ", ".join(action.call for action in account.actions) or "none"
    raise RunError(f"Run {account.run} has no call {call!r:.100}.", remedy=f"It has: {known}.")


def _print_run(out: Console, account: Why) -> None:
    out.print(f"[bold]run {account.run}[/] of {plain(account.agent)} for {plain(account.principal)}")
    out.print(f"asked: {one_line(account.input, _SHOWN_CHARS)}")
    _print_version(out, account)
    for action in account.actions:
        out.print(f"\n[bold]{action.call} {plain(action.tool)}[/] {_outcome(action)}")
        grounds = [_argument(account, each) for each in action.arguments if each.how]
        for line in [*grounds[:3], *([f"and {len(grounds) - 3} more"] if len(grounds) > 3 else [])]:
            out.print(f"    {line}")
        for line in (
            _verdict(action),
            _approval(action),
            _effect(action),
            _retries(action),
            _inputs(action),
            _doubt(action),
        ):
            if line:
                out.print(f"    {line}")
    if account.actions:
        out.print()
    for each in account.interruptions:
        out.print(_interruption(each))
    out.print(_end(account.end))


def _print_call(out: Console, account: Why, action: Action) -> None:
    out.print(f"[bold]{action.call} {plain(action.tool)}[/] {_outcome(action)}")
    out.print(
        f"[dim]run {account.run}, step {action.step}, asked for by {plain(action.model)} (event {action.event})[/]"
    )
    _print_version(out, account)
    for label, lines in _parts(account, action):
        for place, line in enumerate(lines):
            out.print(f"{label if place == 0 else '':<10} {line}")


def _parts(account: Why, action: Action) -> Iterator[tuple[str, list[str]]]:
    yield "given", _given(account, action)
    arguments = [_argument(account, each) for each in action.arguments]
    if action.arguments_text is not None:
        arguments = [one_line(action.arguments_text)]
    if action.origins_left_out:
        arguments.append(f"and {action.origins_left_out} whose sources were not kept")
    yield "arguments", arguments or ["none"]
    for label, line in (
        ("verdict", _verdict(action)),
        ("approval", _approval(action)),
        ("effect", _effect(action)),
        ("retries", _retries(action)),
        ("input", _inputs(action)),
        ("task", f"it went on as {one_line(action.task, _SHOWN_CHARS)}" if action.task else ""),
        ("doubt", _doubt(action)),
        ("receipt", _receipt(action)),
        ("sandbox", _sandbox(action)),
        ("cost", _cost(action.cost)),
    ):
        if line:
            yield label, [line]


def _print_version(out: Console, account: Why) -> None:
    version = account.version
    parts = ", ".join(f"{name} {digest[:12]}" for name, digest in version.dimensions.items())
    out.print(f"[dim]lock {version.lock[:12]}: {parts}[/]")
    prompt = f"prompt {plain(version.prompt_file)} {version.prompt_sha256[:12]}"
    out.print(f"[dim]model {plain(version.model)}, {prompt}[/]")
    if version.unlocked:
        out.print(f"[yellow]unlocked[/]: differs in {plain('; '.join(version.drift))}")


def _given(account: Why, action: Action) -> list[str]:
    given = action.given
    names = {each.call: each.tool for each in account.actions}
    results = ", ".join(f"{call} {plain(names.get(call, ''))}".rstrip() for call in given.results)
    return [
        f"system message {given.system_sha256[:12]}, user message (event {given.user_message})",
        f"earlier runs: {', '.join(given.earlier_runs) or 'none'}",
        f"results of this run: {results or 'none'}",
        f"[dim]prompt {given.prompt_sha256[:12]}[/]",
    ]


def _argument(account: Why, each: Argument) -> str:
    shown = f"{plain(each.pointer)} {one_line(json_text.dumps(each.value, ensure_ascii=False), _SHOWN_CHARS)}"
    if not each.how:
        return f"{shown} [dim]<- source not recorded[/]"
    if each.how == "none":
        return f"{shown} [yellow]<- from nowhere[/]"
    if each.how == "schema":
        return f"{shown} <- says nothing of its own, or is named by the tool's schema"
    names = {action.call: action.tool for action in account.actions}
    sources = " and ".join(_source(names, ref) for ref in each.sources)
    style = "yellow" if each.trust in ("untrusted", "none") else "green"
    return f"{shown} <- {_HOW.get(each.how, each.how)} {sources}, [{style}]{plain(each.trust)}[/]"


def _source(names: dict[str, str], ref: str) -> str:
    """A reference in words: `2.0/result#/offers/0/price_usd` is in the result of search_flights (2.0)."""
    where, _, pointer = ref.partition("#")
    call, _, what = where.rpartition("/")
    at = f", {plain(pointer)}" if pointer else ""
    if call in names:
        return f"the {plain(what)} of {plain(names[call])} ({plain(call)}){at}"
    said = {"input": "the user's message", "system": "the system message"}.get(where, plain(where))
    return f"{said}{at}"


def _outcome(action: Action) -> str:
    if action.joined_to:
        return f"joined to {plain(action.joined_to)}, not run again"
    if action.receipt:
        return plain(action.receipt.outcome)
    if action.doubt:
        settled = {True: "happened", False: "did not happen", None: "[red]in doubt[/]"}
        return settled[action.doubt.happened]
    if action.approval and action.approval.answer == "refused":
        return "refused"
    if action.verdict and action.verdict.verdict in ("deny", "invalid"):
        return f"not run: {plain(action.verdict.error_type)}"
    return "not run"


def _verdict(action: Action) -> str:
    if action.verdict is None:
        return "not judged"
    rules = f" by {plain(', '.join(action.verdict.policies))}" if action.verdict.policies else ""
    reasons = f": {plain('; '.join(action.verdict.reasons))}" if action.verdict.reasons else ""
    return f"{action.verdict.verdict}{rules}{reasons}"


def _approval(action: Action) -> str:
    asked = action.approval
    if asked is None:
        return ""
    shown = f"shown {plain(repr(asked.question))} with these arguments (call digest {asked.shown_digest[:12]})"
    if not asked.answer:
        return f"asked at {_when(asked.asked_at_ms)}, not answered; {shown}"
    because = f" because {plain(asked.because)}" if asked.because else ""
    word = "approved" if asked.answer == "given" else "refused"
    word += f" beforehand ({asked.standing})" if asked.standing else ""
    return f"{word} by {plain(asked.by)} at {_when(asked.answered_at_ms)}{because}; {shown}"


def _effect(action: Action) -> str:
    if not action.effect:
        return ""
    permits = ", then ".join(f"permit {each.id} (event {each.event})" for each in action.permits)
    key = f", key {action.permits[-1].key[:12]}" if action.permits else ""
    again = ", a deliberate repeat" if action.again else ""
    return f"{action.effect}{again}{f', {permits}' if permits else ''}{key}"


def _doubt(action: Action) -> str:
    doubt = action.doubt
    if doubt is None:
        return ""
    asked = "".join(f"; {plain(each.tool)} was asked: {plain(each.outcome)}" for each in doubt.probes)
    begin = f"in doubt since {_when(doubt.at_ms)}: {plain(doubt.why)}{asked}"
    if doubt.happened is None:
        return f"{begin}; settled by its own result, which came late" if action.receipt else begin
    said = "it happened" if doubt.happened else "it did not happen"
    return f"{begin}; {said}, as {plain(doubt.by)} said at {_when(doubt.settled_at_ms)}"


def _retries(action: Action) -> str:
    return ", then ".join(
        f"attempt {each.attempt} {plain(each.outcome)}, again after {duration(each.delay_ms)}"
        for each in action.retries
    )


def _inputs(action: Action) -> str:
    return "; then ".join(
        f"its server asked {plain(repr(each.words))}, {_told(each)} (event {each.event})" for each in action.inputs
    )


def _told(asked: Input) -> str:
    if asked.given is None:
        return "not answered"
    because = f" because {plain(asked.because)}" if asked.because else ""
    said = f"told {one_line(asked.given, _SHOWN_CHARS)}" if asked.given else "told nothing"
    costs = [each.cost_usd for each in asked.sampled if not each.failure]
    if costs:
        said += f" (the agent's model, {' + '.join('cost unknown' if each is None else f'${each}' for each in costs)})"
    return f"{said} by {plain(asked.by)} at {_when(asked.given_at_ms)}{because}"


def _receipt(action: Action) -> str:
    receipt = action.receipt
    if receipt is None:
        return ""
    said = one_line(receipt.text, _SHOWN_CHARS)
    return f"{plain(receipt.outcome)} at {_when(receipt.at_ms)} (event {receipt.event}): {said}"


def _sandbox(action: Action) -> str:
    box = action.sandbox
    if box is None:
        return ""
    weaker = f", [yellow]degraded: {plain(box.degraded)} was asked for[/]" if box.degraded else ""
    begin = " warm," if box.warm else "" if box.start_ms is None else f" start {duration(box.start_ms)},"
    left = f", {count(len(box.requests), 'request')} outward" if box.requests else ""
    return f"{box.tier}{begin} run {duration(box.run_ms)}{weaker}{left}"


def _cost(cost: Cost) -> str:
    model = "model unknown" if cost.model_usd is None else f"model ${cost.model_usd}"
    share = f" (one of {cost.calls_of_step} calls of the step)" if cost.calls_of_step > 1 else ""
    return f"{model}{share}{f', fee ${cost.fee_usd}' if cost.fee_usd else ''}"


def _interruption(each: Interruption) -> str:
    if each.what == "suspended":
        return f"suspended at {_when(each.at_ms)}: {plain(each.message)}"
    crash = " after a crash" if each.reason == "crash" else ""
    return f"resumed at {_when(each.at_ms)} by {plain(each.by)}{crash}"


def _end(end: End | None) -> str:
    if end is None:
        return "not finished"
    cost = "cost unknown" if end.cost_usd is None else f"${end.cost_usd}"
    message = f" {plain(end.message)}" if end.message else ""
    totals = f"{count(end.steps, 'step')}, {count(end.calls, 'call')}, {cost}"
    return f"ended at {_when(end.at_ms)}: [bold]{plain(end.stop_reason)}[/]{message} ({totals})"


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
