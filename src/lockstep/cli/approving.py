"""The commands with which people let calls go, or not: now, or beforehand. Only parsing; lazy imports as in `main`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from lockstep.cli.ending import finish
from lockstep.cli.options import AgentDir, ByOption, JsonOption, StoreOption

ApprovalArg = Annotated[str, typer.Argument(metavar="ID")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Drive the run on at once.")]
DigestOption = Annotated[str, typer.Option("--digest", help="What you were shown; an answer to anything else is none.")]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of the command line."""
    for command in (approvals, approve, refuse, answer, allow, revoke):
        app.command()(command)


def approvals(
    standing: Annotated[bool, typer.Option("--standing", help="Those given beforehand instead.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List what waits for a person: the call, where its arguments came from, the rule, the cost, what refusing does."""
    from lockstep.cli import answering
    from lockstep.cli import standing as given

    finish(given.listing(store, json) if standing else answering.approvals(store, json), json=json)


def approve(
    approval: ApprovalArg,
    because: Annotated[str, typer.Option(help="For the record.")] = "",
    by: ByOption = "",
    digest: DigestOption = "",
    resume: ResumeOption = False,
    store: StoreOption = None,
) -> None:
    """Approve exactly the call that was shown."""
    from lockstep.cli import commands

    finish(commands.answer(store, approval, given=True, by=by, because=because, digest=digest, resume=resume))


def refuse(
    approval: ApprovalArg,
    because: Annotated[str, typer.Option(help="Told to the model.")] = "",
    by: ByOption = "",
    digest: DigestOption = "",
    resume: ResumeOption = False,
    store: StoreOption = None,
) -> None:
    """Refuse a call that waits for approval."""
    from lockstep.cli import commands

    finish(commands.answer(store, approval, given=False, by=by, because=because, digest=digest, resume=resume))


def answer(
    name: Annotated[str, typer.Argument(metavar="ID")],
    field: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option("--field", metavar="NAME=VALUE", help="One value; repeatable, also for several of a choice."),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help="With the fields given and the form's defaults.")] = False,
    decline: Annotated[bool, typer.Option("--decline", help="The server is told no.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="The server is told that nobody chose.")] = False,
    because: Annotated[str, typer.Option(help="For the record; the server is not told.")] = "",
    by: ByOption = "",
    resume: ResumeOption = False,
    store: StoreOption = None,
) -> None:
    """Answer the server of a tool that asked for input: with values, or with no."""
    from lockstep.cli import commands

    words = {"accept": accept or bool(field), "decline": decline, "cancel": cancel}
    finish(commands.answer_server(store, name, field or (), words, by=by, because=because, resume=resume))


def allow(
    agent: AgentDir,
    tool: Annotated[str, typer.Option("--tool", help="Calls of this tool, and no other.")],
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="How long it stands: 30m, 8h, 2d.")],
    where: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option("--where", metavar="POINTER=VALUE", help="Only where this argument is exactly that; repeatable."),
    ] = None,
    times: Annotated[Optional[int], typer.Option("--times", min=1, help="For so many calls at most.")] = None,  # noqa: UP045
    principal: Annotated[str, typer.Option("--as", help="Only for runs on this one's behalf.")] = "",
    because: Annotated[str, typer.Option(help="Why; for the record.")] = "",
    by: ByOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Approve calls beforehand: of one tool, under the lock as it is now, for a time."""
    from lockstep.cli import standing

    asked = standing.Allowing(
        agent=agent,
        tool=tool,
        where=where or (),
        lasting=lasting,
        times=times,
        principal=principal,
        by=by,
        because=because,
    )
    finish(standing.allow(asked, store, json), json=json)


def revoke(
    approval: ApprovalArg,
    because: Annotated[str, typer.Option(help="Why; for the record.")] = "",
    by: ByOption = "",
    store: StoreOption = None,
) -> None:
    """Take a standing approval back, at once."""
    from lockstep.cli import standing

    finish(standing.revoke(approval, store, by=by, because=because))
