"""Arguments and options that several commands share, and the types of values on the command line."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
_AGENT_HELP = "Directory with agent.toml."


class Commands(click.Group):
    """Commands listed in the order they are written in, which is that of the work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole first sentence: click would cut it where the line ends."""
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


agent_argument = click.argument("agent", metavar="AGENT", type=PATH, help=_AGENT_HELP)
agent_or_here = click.argument(
    "agent", metavar="[AGENT]", type=PATH, default=Path(), help=f"{_AGENT_HELP} (default: .)"
)
run_argument = click.argument("run", metavar="RUN", help="Run id, a unique beginning of one, or `last`.")
run_or_last = click.argument(
    "run", metavar="[RUN]", default="last", help="Run id, a unique beginning of one, or `last` (the default)."
)
store_option = click.option(
    "--store",
    type=PATH,
    metavar="DIR",
    envvar="LOCKSTEP_STORE",
    show_envvar=True,
    help="Store directory (default: .lockstep beside the agent).",
)
json_option = click.option("--json", is_flag=True, help="Print one JSON object on stdout.")
by_option = click.option("--by", default="", metavar="NAME", help="Who says so (default: your user name).")
because_option = click.option("--because", default="", metavar="TEXT", help="Why; for the record.")
