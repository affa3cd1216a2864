"""The `lockstep` command. Only parsing here: bodies are in `commands`, imported when a command runs.

Lazy imports throughout this file: `lockstep --help` must not pay for what one command needs.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from lockstep.cli import approving, oversight, serving, tooling
from lockstep.cli.ending import finish, say
from lockstep.cli.options import AgentDir, ByOption, JsonOption, RunArg, StoreOption

app = typer.Typer(
    name="lockstep",
    help="Run LLM agents that act: a controlled loop, a gate, sandboxes, a record, one lock.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def init(name: Annotated[str, typer.Argument(metavar="NAME", help="Directory to make.")]) -> None:
    """Write a small agent that runs as it is."""
    from lockstep.cli import commands

    finish(commands.init(Path(name)))


@app.command()
def lock(agent: AgentDir = Path(), store: StoreOption = None) -> None:
    """Resolve an agent into agent.lock: model, prompt, tools and environment, memory, one digest."""
    from lockstep.cli import commands

    finish(commands.lock(agent, store))


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Agent directory or agent.lock.")] = Path(),
    b: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="B", help="Another; without it, A's lock against A's disk."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Show what changed between two agents or locks, by dimension, in words."""
    from lockstep.cli import commands

    finish(commands.diff(a, b, store))


@app.command()
def run(
    agent: AgentDir,
    message: Annotated[
        str, typer.Argument(metavar="MESSAGE", help="What the user asks; `-` reads it from standard input.")
    ],
    session: Annotated[Optional[str], typer.Option(help="Conversation to go on with.")] = None,  # noqa: UP045
    approve: Annotated[Literal["ask", "all", "none"], typer.Option(help="What answers approvals.")] = "ask",
    model: Annotated[Optional[str], typer.Option(help="provider:model in place of the locked one.")] = None,  # noqa: UP045
    unlocked: Annotated[bool, typer.Option("--unlocked", help="Run what is on disk, though it differs.")] = False,
    principal: Annotated[str, typer.Option("--as", help="On whose behalf (default: your user name).")] = "",
    store: StoreOption = None,
    json: JsonOption = False,
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
def runs(
    session: Annotated[Optional[str], typer.Option(help="Only this session.")] = None,  # noqa: UP045
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    from lockstep.cli import commands

    finish(commands.runs(store, session, limit, json), json=json)


@app.command()
def show(
    run: RunArg = "last",
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--save", metavar="DIR", help="Write the run's images and files into this directory."),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show one run: what was asked, every call with its verdict and outcome, the answer."""
    from lockstep.cli import commands

    finish(commands.show(store, run, json, save), json=json)


@app.command()
def trace(run: RunArg = "last", store: StoreOption = None) -> None:
    """Draw a run as a tree with durations and where the time went."""
    from lockstep.cli import commands

    finish(commands.trace(store, run))


@app.command()
def resume(
    run: RunArg = "last",
    happened: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--happened/--did-not-happen", help="What became of the call in doubt."),
    ] = None,
    result: Annotated[str, typer.Option(help="With --happened: what the tool would have answered.")] = "",
    by: ByOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Drive on a run that waited or whose process died."""
    from lockstep.cli import commands

    finish(commands.resume(store, run, happened=happened, result=result, by=by, json=json), json=json)


@app.command()
def doubts(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the calls whose outcome nobody knows."""
    from lockstep.cli import doubts

    finish(doubts.doubts(store, json), json=json)


@app.command()
def settle(
    call: Annotated[str, typer.Argument(metavar="ID", help="RUN/CALL as `lockstep doubts` lists it, or RUN.")],
    happened: Annotated[bool, typer.Option("--happened/--did-not", help="What became of it.")],
    result: Annotated[str, typer.Option(help="With --happened: what the tool would have answered.")] = "",
    by: ByOption = "",
    store: StoreOption = None,
) -> None:
    """Say what became of a call in doubt."""
    from lockstep.cli import doubts

    finish(doubts.settle(store, call, happened=happened, result=result, by=by))


@app.command()
def cancel(run: RunArg, by: ByOption = "", store: StoreOption = None) -> None:
    """End an unfinished run for good."""
    from lockstep.cli import commands

    finish(commands.cancel(store, run, by))


@app.command()
def verify(run: RunArg = "last", store: StoreOption = None, json: JsonOption = False) -> None:
    """Prove that a run's record is whole, or name the first broken event."""
    from lockstep.cli import commands

    finish(commands.verify(store, run, json), json=json)


@app.command()
def record(run: RunArg, file: Annotated[Path, typer.Argument(metavar="FILE")], store: StoreOption = None) -> None:
    """Save a run's model replies as a recording that runs again without a provider."""
    from lockstep.cli import commands

    finish(commands.record(store, run, file))


@app.command()
def doctor(store: StoreOption = None, json: JsonOption = False) -> None:
    """Say what this machine can do and what is missing."""
    from lockstep.cli import commands

    finish(commands.doctor(store, json), json=json)


@app.command()
def setup(
    tier: Annotated[Literal["gvisor", "process", "microvm"], typer.Argument(metavar="TIER")], store: StoreOption = None
) -> None:
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
