"""The commands of whoever answers for an agent: why it acted, its record for others, the kill switch. Only parsing.

Lazy imports throughout, as in `main`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lockstep.cli.ending import finish
from lockstep.cli.options import ByOption, JsonOption, RunArg, StoreOption

AgentName = Annotated[str, typer.Argument(metavar="AGENT", help="Name of an agent, or its directory.")]

audit = typer.Typer(
    name="audit",
    help="Hand the record of runs to somebody else, and check one that was handed over.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def add_to(app: typer.Typer) -> None:
    """Make these commands part of the command line."""
    app.command()(why)
    app.command()(stop)
    app.command()(start)
    app.add_typer(audit)


def why(
    run: RunArg = "last",
    call: Annotated[Optional[str], typer.Argument(metavar="CALL", help="One call, such as 2.0.")] = None,  # noqa: UP045
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say why a run did what it did: for each action its grounds, the rule, the person, the outcome, the cost."""
    from lockstep.cli import explaining

    finish(explaining.why(store, run, call, json), json=json)


def stop(
    agent: AgentName,
    because: Annotated[str, typer.Option(help="Why; told to everybody who is refused.")] = "",
    by: ByOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Stop an agent at once: no permits, its sandboxes killed, its runs suspended."""
    from lockstep.cli import stopping

    finish(stopping.stop(agent, store, by=by, because=because, json=json), json=json)


def start(
    agent: AgentName,
    because: Annotated[str, typer.Option(help="Why; for the record.")] = "",
    by: ByOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Let a stopped agent run again; its suspended runs go on with `resume`."""
    from lockstep.cli import stopping

    finish(stopping.start(agent, store, by=by, because=because, json=json), json=json)


@audit.command()
def export(
    run: Annotated[Optional[str], typer.Argument(metavar="RUN", help="One run, or `last`.")] = None,  # noqa: UP045
    session: Annotated[Optional[str], typer.Option(help="Every run of this session.")] = None,  # noqa: UP045
    everything: Annotated[bool, typer.Option("--all", help="Every run of the store, and who stopped what.")] = False,
    file: Annotated[Optional[Path], typer.Option("--output", "-o", metavar="FILE", help="Where to.")] = None,  # noqa: UP045
    verifier: Annotated[bool, typer.Option("--verifier", help="Print where the stand-alone verifier is.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write the hash-chained record as JSON lines that a stranger can check."""
    from lockstep.cli import auditing

    if verifier:
        finish(auditing.verifier())
    finish(auditing.export(store, run, session, everything, file, json), json=json)


@audit.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    digest: Annotated[str, typer.Option(help="The digest that the export printed, if it was kept elsewhere.")] = "",
    json: JsonOption = False,
) -> None:
    """Check an exported record; needs nothing but the file."""
    from lockstep.cli import auditing

    finish(auditing.verify(file, digest, json), json=json)
