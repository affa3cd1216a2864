"""The commands with which people let calls go, or not: now, or beforehand. Only parsing; lazy imports as in `main`."""

from __future__ import annotations

from pathlib import Path

import click

from lockstep.cli.ending import finish
from lockstep.cli.options import agent_argument, because_option, by_option, json_option, store_option

id_argument = click.argument("approval", metavar="ID", help="As `lockstep approvals` lists it.")
resume_option = click.option("--resume", is_flag=True, help="Drive the run on at once.")
digest_option = click.option(
    "--digest", default="", metavar="SHA256", help="What you were shown; an answer to anything else is none."
)


def add_to(app: click.Group) -> None:
    """Make these commands part of the command line."""
    for command in (approvals, approve, refuse, answer, allow, revoke):
        app.add_command(command)


@click.command()
@click.option("--standing", is_flag=True, help="Those given beforehand instead.")
@store_option
@json_option
def approvals(standing: bool, store: Path | None, json: bool) -> None:
    """List what waits for a person: the call, where its arguments came from, the rule, the cost, what refusing does."""
    if standing:
        from lockstep.cli import standing as given

        finish(given.listing(store, json), json=json)
    from lockstep.cli import reading

    finish(reading.approvals(store, json), json=json)


@click.command()
@id_argument
@click.option("--because", default="", metavar="TEXT", help="For the record.")
@by_option
@digest_option
@resume_option
@store_option
def approve(approval: str, because: str, by: str, digest: str, resume: bool, store: Path | None) -> None:
    """Approve exactly the call that was shown."""
    from lockstep.cli import commands

    finish(commands.answer(store, approval, given=True, by=by, because=because, digest=digest, resume=resume))


@click.command()
@id_argument
@click.option("--because", default="", metavar="TEXT", help="Told to the model.")
@by_option
@digest_option
@resume_option
@store_option
def refuse(approval: str, because: str, by: str, digest: str, resume: bool, store: Path | None) -> None:
    """Refuse a call that waits for approval."""
    from lockstep.cli import commands

    finish(commands.answer(store, approval, given=False, by=by, because=because, digest=digest, resume=resume))


@click.command()
@click.argument("name", metavar="ID", help="As `lockstep approvals` lists it.")
@click.option(
    "--field",
    "fields",
    metavar="NAME=VALUE",
    multiple=True,
    help="One value; repeatable, also for several of a choice.",
)
@click.option("--accept", is_flag=True, help="With the fields given and the form's defaults.")
@click.option("--decline", is_flag=True, help="The server is told no.")
@click.option("--cancel", is_flag=True, help="The server is told that nobody chose.")
@click.option("--because", default="", metavar="TEXT", help="For the record; the server is not told.")
@by_option
@resume_option
@store_option
def answer(
    name: str,
    fields: tuple[str, ...],
    accept: bool,
    decline: bool,
    cancel: bool,
    because: str,
    by: str,
    resume: bool,
    store: Path | None,
) -> None:
    """Answer the server of a tool that asked for input: with values, or with no."""
    from lockstep.cli import commands

    words = {"accept": accept or bool(fields), "decline": decline, "cancel": cancel}
    finish(commands.answer_server(store, name, fields, words, by=by, because=because, resume=resume))


@click.command()
@agent_argument
@click.option("--tool", required=True, metavar="TOOL", help="Calls of this tool, and no other.")
@click.option("--for", "lasting", required=True, metavar="TIME", help="How long it stands: 30m, 8h, 2d.")
@click.option(
    "--where", metavar="POINTER=VALUE", multiple=True, help="Only where this argument is exactly that; repeatable."
)
@click.option("--times", type=click.IntRange(min=1), help="For so many calls at most.")
@click.option("--as", "principal", default="", metavar="NAME", help="Only for runs on this one's behalf.")
@because_option
@by_option
@store_option
@json_option
def allow(
    agent: Path,
    tool: str,
    lasting: str,
    where: tuple[str, ...],
    times: int | None,
    principal: str,
    because: str,
    by: str,
    store: Path | None,
    json: bool,
) -> None:
    """Approve calls beforehand: of one tool, under the lock as it is now, for a time."""
    from lockstep.cli import standing

    asked = standing.Allowing(
        agent=agent,
        tool=tool,
        where=where,
        lasting=lasting,
        times=times,
        principal=principal,
        by=by,
        because=because,
    )
    finish(standing.allow(asked, store, json), json=json)


@click.command()
@click.argument("approval", metavar="ID", help="As `lockstep approvals --standing` lists it.")
@because_option
@by_option
@store_option
def revoke(approval: str, because: str, by: str, store: Path | None) -> None:
    """Take a standing approval back, at once."""
    from lockstep.cli import standing

    finish(standing.revoke(approval, store, by=by, because=because))
