"""What a person sees of a run: the live view, one run, the trace tree; and the diff of two locks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from rich.console import Console
from rich.tree import Tree

from lockstep.agent.diff import Change
from lockstep.cli.terminal import count, one_line, plain
from lockstep.journal import events as ev
from lockstep.journal.events import Recorded
from lockstep.journal.port import RunRow
from lockstep.kernel.state import CallState, State, Status
from lockstep.runtime.reading import CLIENT_WORDS, Unreadable
from lockstep.telemetry.rounds import in_words
from lockstep.telemetry.tree import STILL_OPEN, Node, Spent, build_tree
from lockstep.values import Attachment, Tier

_VERDICT_STYLE = {"allow": "green", "ask": "yellow", "deny": "red", "invalid": "red"}
_MARKS = {"ok": "[green]ok[/]", "completed": "[green]completed[/]"}
_LIVE_CHARS = 160
_SHOWN_CHARS = 500
_DETAIL_LINES = 40
_ROW_CHARS = 60


class Live:
    """Prints a run as it happens: what was asked, the verdict, the tier, the result, the cost."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._streaming = False
        self.said = ""
        """The newest text of the model, which the person has seen."""

    def text(self, piece: str) -> None:
        if not self._streaming:
            self._console.print("  [dim]model[/] ", end="")
        self._streaming = True
        self._console.print(plain(piece), end="")

    def event(self, state: State, event: ev.Event) -> None:
        streamed, self._streaming = self._streaming, False
        if streamed:
            self._console.print()
        match event:
            case ev.ContextBuilt(step=step):
                self._console.print(f"[bold]step {step}[/]")
            case ev.ModelReplied():
                self._replied(event, streamed=streamed)
            case ev.ModelFailed():
                self._line("model", f"[yellow]attempt {event.attempt} failed[/] ({event.kind}): {plain(event.message)}")
            case ev.CallJudged():
                self._judged(state.call(event.call), event)
            case ev.ApprovalAsked():
                self._line("ask", f"[yellow]{event.approval}[/] {plain(event.question)}")
            case ev.ApprovalGiven():
                self._line("ask", f"[green]approved[/] by {plain(event.by)}")
            case ev.ApprovalRefused():
                self._line("ask", f"[red]refused[/] by {plain(event.by)}{_because(event.because)}")
            case ev.RunResumed(by=by, after_crash=crash):
                self._console.print(f"[dim]resumed by {plain(by)}{' after a crash' if crash else ''}[/]")
            case _:
                self._effect(state, event)

    def _effect(self, state: State, event: ev.Event) -> None:
        """What became of a call that was let go."""
        match event:
            case ev.EffectSettled():
                said = one_line(event.text, _LIVE_CHARS)
                where = f"{_degraded(event.degraded)}[dim]({_took(event)})[/]"
                self._line("tool", f"{_name(state.call(event.call))} {_outcome(event.outcome)} {said} {where}")
            case ev.EffectDoubted():
                doubt = f"[red]in doubt[/]: {plain(event.why)} {_degraded(event.degraded)}".rstrip()
                self._line("tool", f"{_name(state.call(event.call))} {doubt}")
            case ev.EffectRetried():
                again = f"[yellow]{plain(event.outcome)}[/]: {one_line(event.why, _LIVE_CHARS)}"
                self._line("tool", f"{_name(state.call(event.call))} {again} [dim](again in {event.delay_ms} ms)[/]")
            case ev.EffectProbed():
                said = f"{plain(event.outcome)} {one_line(event.text, _LIVE_CHARS)}"
                self._line("tool", f"{_name(state.call(event.call))} {plain(event.tool or 'its probe')}: {said}")
            case ev.TaskBegun():
                self._line("tool", f"{_name(state.call(event.call))} goes on as a task of its server")
            case ev.InputAsked():
                self._line(
                    "asks", f"[yellow]{event.input}[/] the server of {_name(state.call(event.call))} asks for input"
                )
            case ev.ModelSampled():
                said = f"the agent's model says {one_line(event.text, _LIVE_CHARS)} [dim]({_spent(event)})[/]"
                if event.failure:
                    said = f"[yellow]the agent's model failed[/] ({event.failure}): {plain(event.message)}"
                self._line("asks", f"[yellow]{event.input}[/] {said}")
            case ev.InputGiven():
                because = _because(event.because)
                self._line("asks", f"[yellow]{event.input}[/] {in_words(event)} by {plain(event.by)}{because}")
            case ev.EffectReconciled():
                said = "happened" if event.happened else "did not happen"
                self._line("tool", f"{_name(state.call(event.call))} {said}, says {plain(event.by)}")

    def _replied(self, event: ev.ModelReplied, *, streamed: bool) -> None:
        if event.text and not streamed:
            self._line("model", plain(event.text))
        self.said = event.text
        for call in event.calls:
            self._line("asks", f"[bold]{plain(call.name)}[/] {one_line(call.arguments, _LIVE_CHARS)}")
        self._console.print(f"  [dim]{_spent(event)}[/]")

    def _judged(self, call: CallState, event: ev.CallJudged) -> None:
        style = _VERDICT_STYLE.get(event.verdict, "white")
        why = ", ".join(event.policies)
        if event.verdict in ("deny", "invalid") or event.duplicate_of:
            why = "; ".join(event.reasons) or event.note
        self._line("gate", f"{_name(call)} [{style}]{event.verdict}[/] {plain(why)}")

    def _line(self, who: str, markup: str) -> None:
        self._console.print(f"  [dim]{who:<5}[/] {markup}")


def print_result(console: Console, state: State, *, answered: bool = False) -> None:
    """How a run stands: its answer (unless `answered`, just printed), or why it stopped or waits, and the totals."""
    if state.unlocked:
        console.print("[yellow]unlocked run: not what agent.lock says[/]")
    if state.output and not answered:
        console.print(f"\n{plain(state.output)}\n")
    if state.status is Status.SUSPENDED:
        console.print(f"[yellow]waiting:[/] {plain(state.message)}")
    elif state.stop_reason != "completed":
        console.print(f"[red]{state.stop_reason or 'not finished'}[/] {plain(state.message)}")
    if state.lock is None:  # its record could not be read, so nothing was counted
        console.print(f"[dim]run {state.run} {state.stop_reason}[/]")
        return
    totals = f"{count(state.totals.steps, 'step')}, {count(state.totals.calls, 'call')}"
    console.print(
        f"[dim]run {state.run} {state.stop_reason or state.status.value}: {totals},"
        f" {cost_text(state.totals.cost_usd)}, lock {state.lock[:12]}[/]"
    )


def print_row(console: Console, row: RunRow, state: State | Unreadable) -> None:
    """A run as one line of the list."""
    when = datetime.fromtimestamp(row.started_at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    begin = f"{row.run}  {when}  {plain(row.agent)} "
    if isinstance(state, Unreadable):
        console.print(f"{begin} [red]unreadable[/]  [dim]session {plain(row.session)}:[/] {unreadable_text(state)}")
        return
    unlocked = " [yellow]unlocked[/]" if state.unlocked else ""
    console.print(
        f"{begin} [bold]{state.stop_reason or state.status.value}[/]{unlocked}"
        f"  {count(state.totals.steps, 'step')}, {cost_text(state.totals.cost_usd)}"
        f"  [dim]session {plain(row.session)}: {_asked_for(state)}[/]"
    )


def _asked_for(state: State) -> str:
    """What a run is about: the user's words, or the call that it is."""
    if state.input != CLIENT_WORDS or not state.all_calls:
        return one_line(state.input, _ROW_CHARS)
    call = state.all_calls[0]
    return f"{plain(call.name)} {one_line(call.arguments, _ROW_CHARS)} -> {plain(call_outcome(call))}"


def unreadable_text(run: Unreadable) -> str:
    """Why a run cannot be read, and what can be done about it."""
    ends = "" if run.finished else f"; `lockstep cancel {run.row.run}` ends it"
    return f"{plain(run.why)} `lockstep verify {run.row.run}` says more{ends}."


def details_of(recorded: Sequence[Recorded]) -> dict[str, str]:
    """By call that came to nothing good, what its operator should know: in what its tool is not the locked one, or the
    end of what its server or function wrote to standard error."""
    found: dict[str, str] = {}
    for item in recorded:
        match item.event:
            case ev.EffectSettled(outcome="ok", call=call):
                found.pop(call, None)
            case ev.EffectSettled(call=call, detail=detail) | ev.EffectDoubted(call=call, detail=detail) if detail:
                found[call] = detail
    return found


def print_run(console: Console, state: State, drift: Sequence[str], details: Mapping[str, str]) -> None:
    """One run: what was asked, every call with its verdict and outcome, the answer."""
    console.print(f"[bold]{plain(state.agent)}[/] for {plain(state.principal)}: {plain(state.input)}")
    console.print(f"[dim]session {plain(state.session)}[/]")
    if drift:
        console.print(f"[yellow]unlocked[/]: differs in {plain('; '.join(drift))}")
    for call in state.all_calls:
        how = f"{call.verdict or 'not judged'} ({', '.join(call.policies) or '-'}), {call.effect.value}"
        where = f", {call.tier}, {duration(call.duration_ms)}" if call.tier else ""
        asked = f"  {call.id} {_name(call)} {one_line(call.arguments)}"
        console.print(f"{asked} [dim]{plain(how)}{where}[/] -> {_outcome(call_outcome(call))}")
        for text in filter(None, (*call.reasons, call.why_doubted, _shortened(call.text))):
            console.print(f"      {plain(text)}")
        lines = [line for line in details.get(call.id, "").splitlines() if line.strip(" ^~")]
        if len(lines) > _DETAIL_LINES:
            console.print(f"      [dim]│ … {len(lines) - _DETAIL_LINES} lines before these; --json has them[/]")
        for line in lines[-_DETAIL_LINES:]:
            console.print(f"      [dim]│ {plain(_shortened(line))}[/]")
        for attachment in call.attachments:
            console.print(f"      [dim]{_kept(attachment)}[/]")
    print_result(console, state)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _kept(attachment: Attachment) -> str:
    kind = "image" if attachment.shown else "file"
    return plain(f"kept [{kind}: {attachment.kind}] {attachment.name}".rstrip())


def call_outcome(call: CallState) -> str:
    """`ok`, an error type, or where a call that has no outcome yet stands."""
    return call.outcome or call.phase.value


def print_trace(console: Console, recorded: Sequence[Recorded], state: State) -> None:
    """The tree of a run with durations, and where the time went."""
    root, spent = build_tree(recorded)
    unlocked = " (unlocked)" if state.unlocked else ""
    outcome = _outcome(state.stop_reason or state.status.value)
    tree = Tree(
        f"[bold]{plain(root.name)}[/] {duration(root.duration_ms)} {outcome} [dim]lock {state.lock[:12]}{unlocked}[/]"
        if state.lock
        else plain(root.name)
    )
    for child in root.children:
        _grow(tree, child)
    console.print(tree, soft_wrap=False)  # a terminal that wrapped it itself would break the tree's own lines
    console.print(_where(spent))


def print_changes(console: Console, changes: Sequence[Change]) -> None:
    """A diff of two locks, by dimension."""
    for dimension in dict.fromkeys(change.dimension for change in changes):
        console.print(f"[bold]{dimension}[/]")
        for change in (c for c in changes if c.dimension == dimension):
            console.print(f"  {plain(change.part)} [yellow]{change.kind}[/]")
            for line in change.lines:
                style = {"+": "green", "-": "red"}.get(line[:1], "white")
                console.print(f"    [{style}]{plain(line)}[/]")


def cost_text(cost: Decimal | None) -> str:
    return "cost unknown" if cost is None else f"${cost:f}"


def _spent(event: ev.ModelReplied | ev.ModelSampled) -> str:
    tokens = f"{event.input_tokens} in, {event.output_tokens} out"
    cost = "cost unknown" if event.cost_usd is None else f"${event.cost_usd}"
    return f"{plain(event.model)}: {tokens}, {cost}, {duration(event.latency_ms)}"


def _name(call: CallState) -> str:
    return f"[bold]{plain(call.name)}[/]"


def _because(reason: str) -> str:
    return f": {plain(reason)}" if reason else ""


def _grow(tree: Tree, node: Node) -> None:
    # How long something has been waiting the record cannot say: it ends with the question.
    parts = [node.kind] if node.outcome == STILL_OPEN else [node.kind, duration(node.duration_ms)]
    if node.name:
        parts.insert(1, f"[bold]{one_line(node.name, _LIVE_CHARS)}[/]")
    if node.outcome:
        parts.append(_outcome(node.outcome))
    if node.notes:
        parts.append(f"[dim]{'; '.join(one_line(note, _LIVE_CHARS) for note in node.notes)}[/]")
    branch = tree.add(" ".join(parts))
    for child in node.children:
        _grow(branch, child)


def _outcome(outcome: str) -> str:
    return _MARKS.get(outcome) or f"[yellow]{plain(outcome)}[/]"


def _where(spent: Spent) -> str:
    parts = {
        "model": spent.model,
        "sandbox start": spent.sandbox_start,
        "tools": spent.tools,
        "people": spent.people,
        "down": spent.down,
        "lockstep": spent.other,
    }
    total = spent.total or 1.0
    shown = [f"{name} {duration(ms)} ({ms / total:.0%})" for name, ms in parts.items() if ms > 0]
    return f"[dim]where the time went:[/] {', '.join(shown) or 'nowhere'}"


def _took(event: ev.EffectSettled) -> str:
    """Where a call ran and how long each part took."""
    begin = "warm" if event.warm else f"start {duration(event.start_ms)}"
    queue = f", queue {duration(event.queue_ms)}" if event.queue_ms >= 1 else ""
    tier = "emulated, not a security boundary," if event.tier == Tier.EMULATED else event.tier or "no sandbox"
    return f"{tier} {begin}{queue}, run {duration(event.run_ms)}"


def _degraded(tier: str) -> str:
    return f"[yellow]degraded: {tier} was asked for[/] " if tier else ""


def duration(ms: float) -> str:
    """A time that a person can read."""
    if ms < 1000:
        return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
    seconds = ms / 1000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
