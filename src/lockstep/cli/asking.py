"""How a question to a person looks: on the terminal, and as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console

from lockstep.cli.show import cost_text
from lockstep.cli.terminal import count, plain
from lockstep.runtime.questions import Question
from lockstep.values import format_usd


def print_question(out: Console, asked: Question) -> None:
    """Everything a person needs to decide, whoever asks them."""
    unlocked = ", [yellow]unlocked: not what agent.lock says[/]" if asked.unlocked else ""
    out.print(
        f"[yellow]{asked.approval}[/] [dim]run {asked.run} of {plain(asked.agent)} for[/] {plain(asked.principal)}"
        f"[dim], lock {str(asked.lock)[:12]}[/]{unlocked}"
    )
    out.print(f"  asks      [yellow]{plain(asked.question)}[/]")
    title = f" [dim]({plain(asked.title)})[/]" if asked.title else ""
    out.print(f"  call      [bold]{plain(asked.tool)}[/]{title}")
    for place, given in enumerate(asked.arguments):
        style = "yellow" if given.trust in ("untrusted", "none") else "dim"
        origin = f"  [{style}]{plain(given.origin)}[/]" if given.origin else ""
        name = given.pointer.removeprefix("/") or "arguments"
        out.print(f"  {'with' if place == 0 else '':<9} {plain(name)} = {plain(given.value)}{origin}")
    rule = ", ".join(asked.policies) or "a deliberate repeat"
    out.print(f"  rule      {plain(rule)}[dim]{''.join(f'; {plain(each)}' for each in asked.reasons)}[/]")
    out.print(f"  effect    {asked.effect}: {asked.effect_means}")
    out.print(f"  cost      {_cost(asked)}")
    out.print(f"  refused   {plain(asked.if_refused)}")
    out.print(f"  expires   {expires(asked.expires_at_ms)}")
    if asked.approvers > 1 or not asked.principal_may_approve:
        out.print(f"  people    {plain(_people(asked))}")


def _cost(asked: Question) -> str:
    fee = f"fee ${asked.fee_usd:f}" if asked.fee_usd else "no fee"
    limit = "" if asked.limit_usd is None else f" of ${asked.limit_usd:f}"
    return f"{fee}; the run so far: {cost_text(asked.spent_usd)}{limit}"


def expires(at_ms: int) -> str:
    """When something ends, and how long that is from now."""
    when = datetime.fromtimestamp(at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    left_s = at_ms / 1000 - time.time()
    if left_s <= 0:
        return f"{when} [red](it has)[/]"
    left = f"{left_s / 3600:.0f} h" if left_s >= 7200 else f"{max(left_s / 60, 1):.0f} min"
    return f"{when} [dim](in {left})[/]"


def _people(asked: Question) -> str:
    """Who must approve, and who has."""
    need = f"{count(asked.approvers, 'person') if asked.approvers == 1 else f'{asked.approvers} different people'}"
    but = "" if asked.principal_may_approve else f", not {asked.principal}"
    so_far = f"; so far {', '.join(asked.approvals)}" if asked.approvals else ""
    return f"{need} must approve{but}{so_far}"


def question_as_json(asked: Question) -> dict[str, Any]:
    """What `approvals --json` adds to a call that waits for approval. Money is a decimal string."""
    return {
        "agent": asked.agent,
        "principal": asked.principal,
        "lock": asked.lock,
        "unlocked": asked.unlocked,
        "title": asked.title,
        "given": [asdict(each) for each in asked.arguments],
        "policies": list(asked.policies),
        "reasons": list(asked.reasons),
        "effect": asked.effect,
        "if_refused": asked.if_refused,
        "fee_usd": format_usd(asked.fee_usd),
        "spent_usd": format_usd(asked.spent_usd),
        "limit_usd": format_usd(asked.limit_usd),
        "approvers": asked.approvers,
        "approvals": list(asked.approvals),
        "principal_may_approve": asked.principal_may_approve,
        "bound": asked.bound,
    }
