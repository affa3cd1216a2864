"""The commands of whoever answers for an agent: why it acted, its record for others, the kill switch. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from pathlib import Path

import click

from lockstep.cli.ending import finish
from lockstep.cli.options import PATH, Commands, because_option, by_option, json_option, run_or_last, store_option

agent_name = click.argument("agent", metavar="AGENT", help="Name of an agent, or its directory.")


def add_to(app: click.Group) -> None:
    """Make these commands part of the command line."""
    for command in (why, stop, start, audit):
        app.add_command(command)


@click.command()
@run_or_last
@click.argument("call", metavar="[CALL]", required=False, help="One call, such as 2.0.")
@store_option
@json_option
def why(run: str, call: str | None, store: Path | None, json: bool) -> None:
    """Say why a run did what it did: for each action its grounds, the rule, the person, the outcome, the cost."""
    from lockstep.cli import explaining

    finish(explaining.why(store, run, call, json), json=json)


@click.command()
@agent_name
@click.option("--because", default="", metavar="TEXT", help="Why; told to everybody who is refused.")
@by_option
@store_option
@json_option
def stop(agent: str, because: str, by: str, store: Path | None, json: bool) -> None:
    """Stop an agent at once: no permits, its sandboxes killed, its runs suspended."""
    from lockstep.cli import stopping

    finish(stopping.stop(agent, store, by=by, because=because, json=json), json=json)


@click.command()
@agent_name
@because_option
@by_option
@store_option
@json_option
def start(agent: str, because: str, by: str, store: Path | None, json: bool) -> None:
    """Let a stopped agent run again; its suspended runs go on with `resume`."""
    from lockstep.cli import stopping

    finish(stopping.start(agent, store, by=by, because=because, json=json), json=json)


@click.group(cls=Commands, help="Hand the record of runs to somebody else, and check one that was handed over.")
def audit() -> None:
    pass


@audit.command()
@click.argument("run", metavar="[RUN]", required=False, help="One run, or `last`.")
@click.option("--session", metavar="NAME", help="Every run of this session.")
@click.option("--all", "everything", is_flag=True, help="Every run of the store, and who stopped what.")
@click.option("--output", "-o", "file", metavar="FILE", type=PATH, help="Where to.")
@click.option("--verifier", is_flag=True, help="Print where the stand-alone verifier is.")
@store_option
@json_option
def export(
    run: str | None,
    session: str | None,
    everything: bool,
    file: Path | None,
    verifier: bool,
    store: Path | None,
    json: bool,
) -> None:
    """Write the hash-chained record as JSON lines that a stranger can check."""
    from lockstep.cli import auditing

    if verifier:
        finish(auditing.verifier())
    finish(auditing.export(store, run, session, everything, file, json), json=json)


@audit.command()
@click.argument("file", metavar="FILE", type=PATH, help="The exported record.")
@click.option(
    "--digest", default="", metavar="SHA256", help="The digest that the export printed, if it was kept elsewhere."
)
@json_option
def verify(file: Path, digest: str, json: bool) -> None:
    """Check an exported record; needs nothing but the file."""
    from lockstep.cli import auditing

    finish(auditing.verify(file, digest, json), json=json)
