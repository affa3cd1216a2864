"""The `lockstep` command. Only parsing here: bodies are in `commands`, imported when a command runs.

Lazy imports throughout this file: `lockstep --help` must not pay for what one command needs.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Literal

import click

from lockstep import __version__
from lockstep.cli import approving, oversight, serving, tooling
from lockstep.cli.ending import finish, say
from lockstep.cli.options import (
    PATH,
    Commands,
    agent_argument,
    agent_or_here,
    by_option,
    json_option,
    run_argument,
    run_or_last,
    store_option,
)

result_option = click.option(
    "--result", default="", metavar="TEXT", help="With --happened: what the tool would have answered."
)


@click.group(cls=Commands, help="Run LLM agents that act: a controlled loop, a gate, sandboxes, a record, one lock.")
@click.version_option(__version__, prog_name="lockstep", message="%(prog)s %(version)s")
def app() -> None:
    pass


@app.command()
@click.argument("name", metavar="NAME", help="Directory to make.")
def init(name: str) -> None:
    """Write a small agent that runs as it is."""
    from lockstep.cli import commands

    finish(commands.init(Path(name)))


@app.command()
@agent_or_here
@store_option
def lock(agent: Path, store: Path | None) -> None:
    """Resolve an agent into agent.lock: model, prompt, tools and environment, memory, one digest."""
    from lockstep.cli import commands

    finish(commands.lock(agent, store))


@app.command()
@click.argument("a", metavar="[A]", type=PATH, default=Path(), help="Agent directory or agent.lock (default: .).")
@click.argument("b", metavar="[B]", type=PATH, required=False, help="Another; without it, A's lock against A's disk.")
@store_option
def diff(a: Path, b: Path | None, store: Path | None) -> None:
    """Show what changed between two agents or locks, by dimension, in words."""
    from lockstep.cli import commands

    finish(commands.diff(a, b, store))


@app.command()
@agent_argument
@click.argument("message", metavar="MESSAGE", help="What the user asks; `-` reads it from standard input.")
@click.option("--session", metavar="NAME", help="Conversation to go on with.")
@click.option(
    "--approve",
    type=click.Choice(["ask", "all", "none"]),
    default="ask",
    show_default=True,
    help="What answers approvals.",
)
@click.option("--model", metavar="NAME", help="provider:model in place of the locked one.")
@click.option("--unlocked", is_flag=True, help="Run what is on disk, though it differs.")
@click.option("--as", "principal", default="", metavar="NAME", help="On whose behalf (default: your user name).")
@store_option
@json_option
def run(
    agent: Path,
    message: str,
    session: str | None,
    approve: Literal["ask", "all", "none"],
    model: str | None,
    unlocked: bool,
    principal: str,
    store: Path | None,
    json: bool,
) -> None:
    """Run a task from start to end, or until it waits for a person."""
    from lockstep.cli import commands

    text = sys.stdin.read() if message == "-" else message
    asked = commands.RunRequest(
        agent=agent,
        message=text,
        session=session,
        approve=approve,
        model=model,
        unlocked=unlocked,
        principal=principal,
        store=store,
        json=json,
    )
    finish(commands.run(asked), json=json)


@app.command()
@click.option("--session", metavar="NAME", help="Only this session.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@store_option
@json_option
def runs(session: str | None, limit: int, store: Path | None, json: bool) -> None:
    """List runs, newest first."""
    from lockstep.cli import reading

    finish(reading.runs(store, session, limit, json), json=json)


@app.command()
@run_or_last
@click.option("--save", metavar="DIR", type=PATH, help="Write the run's images and files into this directory.")
@store_option
@json_option
def show(run: str, save: Path | None, store: Path | None, json: bool) -> None:
    """Show one run: what was asked, every call with its verdict and outcome, the answer."""
    from lockstep.cli import reading

    finish(reading.show(store, run, json, save), json=json)


@app.command()
@run_or_last
@store_option
def trace(run: str, store: Path | None) -> None:
    """Draw a run as a tree with durations and where the time went."""
    from lockstep.cli import reading

    finish(reading.trace(store, run))


@app.command()
@run_or_last
@click.option("--happened/--did-not-happen", default=None, help="What became of the call in doubt.")
@result_option
@by_option
@store_option
@json_option
def resume(run: str, happened: bool | None, result: str, by: str, store: Path | None, json: bool) -> None:
    """Drive on a run that waited or whose process died."""
    from lockstep.cli import commands

    finish(commands.resume(store, run, happened=happened, result=result, by=by, json=json), json=json)


@app.command("doubts")
@store_option
@json_option
def list_doubts(store: Path | None, json: bool) -> None:
    """List the calls whose outcome nobody knows."""
    from lockstep.cli import doubts

    finish(doubts.doubts(store, json), json=json)


@app.command()
@click.argument("call", metavar="ID", help="RUN/CALL as `lockstep doubts` lists it, or RUN.")
@click.option("--happened/--did-not", required=True, help="What became of it.")
@result_option
@by_option
@store_option
def settle(call: str, happened: bool, result: str, by: str, store: Path | None) -> None:
    """Say what became of a call in doubt."""
    from lockstep.cli import commands

    finish(commands.settle(store, call, happened=happened, result=result, by=by))


@app.command()
@run_argument
@by_option
@store_option
def cancel(run: str, by: str, store: Path | None) -> None:
    """End an unfinished run for good."""
    from lockstep.cli import commands

    finish(commands.cancel(store, run, by))


@app.command()
@run_or_last
@store_option
@json_option
def verify(run: str, store: Path | None, json: bool) -> None:
    """Prove that a run's record is whole, or name the first broken event."""
    from lockstep.cli import reading

    finish(reading.verify(store, run, json), json=json)


@app.command()
@run_argument
@click.argument("file", metavar="FILE", type=PATH, help="Where to.")
@store_option
def record(run: str, file: Path, store: Path | None) -> None:
    """Save a run's model replies as a recording that runs again without a provider."""
    from lockstep.cli import reading

    finish(reading.record(store, run, file))


@app.command()
@store_option
@json_option
def doctor(store: Path | None, json: bool) -> None:
    """Say what this machine can do and what is missing."""
    from lockstep.cli import commands

    finish(commands.doctor(store, json), json=json)


@app.command()
@click.argument("tier", metavar="TIER", type=click.Choice(["gvisor", "process", "microvm"]))
@store_option
def setup(tier: str, store: Path | None) -> None:
    """Install or build what an isolation tier needs, then try it: gvisor, process or microvm."""
    from lockstep.cli import commands

    finish(commands.setup(tier, store))


oversight.add_to(app)
approving.add_to(app)
tooling.add_to(app)
serving.add_to(app)


def main() -> None:
    """The entry point: every known error is a sentence on stderr, every other one a line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the edge: always a sentence, never a traceback
        sys.exit(say(error))
