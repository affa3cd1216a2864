"""A run as a tree of what took time: steps, inferences, gate, waits, sandboxes. A reading of the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lockstep.journal import events as ev
from lockstep.journal.events import Recorded
from lockstep.telemetry.rounds import Input, in_words

STILL_OPEN = "still open"
"""The outcome of what had not ended when the record did."""


@dataclass(kw_only=True, slots=True)
class Node:
    """One thing that took time: a run, step, model, call, approval, attempt, doubt, input, sandbox, tool or stop."""

    kind: str
    name: str
    start_ms: float
    duration_ms: float = 0.0
    outcome: str = ""
    notes: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Where the time of a run went, in milliseconds. `other` is ours: gate, journal, scheduling."""

    total: float
    model: float
    sandbox_start: float
    tools: float
    people: float
    down: float
    """Between a crash and its resumption."""

    @property
    def other(self) -> float:
        return max(0.0, self.total - self.model - self.sandbox_start - self.tools - self.people - self.down)


def build_tree(recorded: Sequence[Recorded]) -> tuple[Node, Spent]:
    """The tree of a run and the sums over it."""
    builder = _Builder(recorded[0])
    for item in recorded:
        builder.add(item)
    return builder.finish()


class _Builder:
    def __init__(self, first: Recorded) -> None:
        self._root = Node(kind="run", name="", start_ms=first.at_ms)
        self._step: Node | None = None
        self._calls: dict[str, Node] = {}
        self._open: dict[str, Node] = {}
        self._suspended_at: int | None = None
        self._last_at = first.at_ms
        self._spent = {"model": 0.0, "people": 0.0, "down": 0.0}
        self._ran: list[tuple[float, float]] = []
        """When tools ran; calls of one reply may overlap."""
        self._busy: list[tuple[float, float]] = []
        """The same with their sandboxes' starts."""
        self._thought: list[tuple[float, float]] = []
        """When the model answered servers, whose tools may be said to run meanwhile."""

    def add(self, item: Recorded) -> None:
        event, at = item.event, item.at_ms
        match event:
            case ev.ContextBuilt():
                self._enter(event.step, at)
            case ev.ModelReplied() | ev.ModelFailed():
                self._model(event, at)
            case ev.CallJudged():
                call = self._calls[event.call]
                call.outcome = event.error_type or ("already done" if event.duplicate_of else event.verdict)
                rule = f" by {', '.join(event.policies)}" if event.policies else ""
                call.notes.append(f"gate: {event.verdict}{rule}")
                if event.duplicate_of:
                    call.notes.append(f"joined to {event.duplicate_of}: not run again")
            case ev.ApprovalAsked():
                self._wait(event.call, "approval", event.question, at)
            case ev.ApprovalGiven() | ev.ApprovalRefused():
                given = isinstance(event, ev.ApprovalGiven)
                self._answered(event.call, f"{'approved' if given else 'refused'} by {event.by}", at)
            case ev.EffectSettled():
                self._settled(event, at)
            case ev.InputAsked():
                self._asked(event, at)
            case ev.ModelSampled():
                self._sampled(event, at)
            case ev.InputGiven():
                node = self._open.pop(event.input)
                node.outcome, node.duration_ms = f"{in_words(event)} by {event.by}", at - node.start_ms
                node.notes += filter(None, [event.because])
            case (
                ev.EffectRetried() | ev.EffectDoubted() | ev.EffectProbed() | ev.EffectReconciled() | ev.DoubtSettled()
            ):
                self._unsettled(event, at)
            case _:
                self._run_event(event, at)
        self._last_at = at

    def _asked(self, event: ev.InputAsked, at: int) -> None:
        """A server's question: it ends a round of the call, or is waited for within one."""
        call = self._calls[event.call]
        if not event.live:
            run = Node(kind="tool", name="round", start_ms=at - event.run_ms, duration_ms=event.run_ms)
            run.notes += [_request(record) for record in event.egress]
            call.children.append(run)
            self._ran.append((run.start_ms, at))
            self._busy.append((run.start_ms - event.start_ms, at))
        call.outcome = "asks for input"
        words = Input(id=event.input, asked=event.asked, live=event.live, event=0, at_ms=at).words
        self._open[event.input] = node = Node(kind="input", name=words, start_ms=at)
        call.children.append(node)

    def _unsettled(
        self,
        event: ev.EffectRetried | ev.EffectDoubted | ev.EffectProbed | ev.EffectReconciled | ev.DoubtSettled,
        at: int,
    ) -> None:
        """What became of a call other than its result."""
        match event:
            case ev.EffectRetried():
                node = Node(kind="attempt", name=str(event.attempt), start_ms=at - event.run_ms, outcome=event.outcome)
                node.duration_ms = event.run_ms
                node.notes += [event.why, *(_request(record) for record in event.egress)]
                self._calls[event.call].children.append(node)
                self._ran.append((node.start_ms, at))
                self._busy.append((node.start_ms, at))
            case ev.EffectDoubted():
                self._calls[event.call].outcome = "in doubt"
                if event.call in self._open:  # past its deadline it was in doubt already; now it has ended
                    self._open[event.call].notes.append(event.why)
                else:
                    self._wait(event.call, "doubt", event.why, at)
            case ev.EffectProbed():
                self._open[event.call].notes.append(f"{event.tool or 'its probe'}: {event.outcome}")
            case _:
                said = "happened" if event.happened else "did not happen"
                self._answered(event.call, f"{said}, says {event.by}", at)

    def _run_event(self, event: ev.Event, at: int) -> None:
        match event:
            case ev.RunStarted():
                self._root.name = event.agent
            case ev.TaskBegun():
                self._calls[event.call].notes.append(f"goes on as the task {event.task}")
            case ev.RunSuspended():
                self._suspended_at = at
            case ev.RunResumed():
                if not self._stop_waiting(at):
                    self._spent["down"] += at - self._last_at
            case ev.RunFinished():
                self._stop_waiting(at)
                self._root.outcome = event.stop_reason

    def _enter(self, step: int, at: int) -> None:
        """The node of a step; its context is built anew when a crash or a wait came before the reply."""
        if self._step is None or self._step.name != str(step):
            self._step = Node(kind="step", name=str(step), start_ms=at)
            self._root.children.append(self._step)

    def _stop_waiting(self, at: int) -> bool:
        since, self._suspended_at = self._suspended_at, None
        if since is not None:
            self._spent["people"] += at - since
        return since is not None

    def finish(self) -> tuple[Node, Spent]:
        self._root.duration_ms = self._last_at - self._root.start_ms
        for node in self._open.values():
            node.outcome, node.duration_ms = STILL_OPEN, self._last_at - node.start_ms
        for step in self._root.children:
            step.duration_ms = (
                max((c.start_ms + c.duration_ms for c in step.children), default=step.start_ms) - step.start_ms
            )
        thought = _covered(self._thought)
        tools = _covered(self._ran + self._thought) - thought
        starts = _covered(self._busy + self._thought) - thought - tools
        return self._root, Spent(total=self._root.duration_ms, tools=tools, sandbox_start=starts, **self._spent)

    def _model(self, event: ev.ModelReplied | ev.ModelFailed, at: int) -> None:
        self._enter(event.step, at)  # begun by its context, where a model was given one; a client has none of ours
        assert self._step is not None
        node = Node(kind="model", name="", start_ms=at - event.latency_ms, duration_ms=event.latency_ms)
        self._spent["model"] += event.latency_ms
        self._step.children.append(node)
        if isinstance(event, ev.ModelFailed):
            node.name, node.outcome = f"attempt {event.attempt}", event.kind
            node.notes.append(event.message)
            return
        _told(node, event)
        for asked in event.calls:
            call = Node(kind="call", name=asked.name, start_ms=at, notes=[asked.arguments])
            self._calls[asked.id] = call
            self._step.children.append(call)

    def _sampled(self, event: ev.ModelSampled, at: int) -> None:
        """The model is asked within the question of a server, whose call may be held open meanwhile."""
        node = Node(kind="model", name="", start_ms=at - event.latency_ms, duration_ms=event.latency_ms)
        self._spent["model"] += event.latency_ms
        self._thought.append((node.start_ms, at))
        self._open[event.input].children.append(node)
        if event.failure:
            node.name, node.outcome = "for its server", event.failure
            node.notes.append(event.message)
        else:
            _told(node, event)

    def _wait(self, call_id: str, kind: str, name: str, at: int) -> None:
        node = Node(kind=kind, name=name, start_ms=at)
        self._calls[call_id].children.append(node)
        self._open[call_id] = node

    def _answered(self, call_id: str, outcome: str, at: int) -> None:
        node = self._open.pop(call_id)
        node.outcome, node.duration_ms = outcome, at - node.start_ms
        call = self._calls[call_id]
        call.outcome, call.duration_ms = outcome, at - call.start_ms

    def _settled(self, event: ev.EffectSettled, at: int) -> None:
        if event.call in self._open:  # it was in doubt
            self._answered(event.call, "settled by its late result", at)
        call = self._calls[event.call]
        call.outcome = event.outcome
        call.duration_ms = at - call.start_ms
        ran = at - event.run_ms
        begin = "warm" if event.warm else "start"
        start = Node(
            kind="sandbox", name=f"{begin} {event.tier}", start_ms=ran - event.start_ms, duration_ms=event.start_ms
        )
        if event.queue_ms >= 1:
            start.notes.append(f"queued {event.queue_ms:.0f} ms")
        if event.degraded:
            start.notes.append(f"degraded: {event.degraded} was asked for")
        run = Node(kind="tool", name="run", start_ms=ran, duration_ms=event.run_ms, outcome=event.outcome)
        run.notes += [_request(record) for record in event.egress]
        if event.cpu_s is not None:
            run.notes.append(f"{event.cpu_s:.2f} s CPU")
        call.children += [start, run]
        self._ran.append((ran, at))
        self._busy.append((ran - event.start_ms - event.queue_ms, at))


def _told(node: Node, event: ev.ModelReplied | ev.ModelSampled) -> None:
    """What a reply of the model was, and cost."""
    node.name, node.outcome = event.model, "ok"
    node.notes.append(f"{event.input_tokens} in, {event.output_tokens} out")
    node.notes.append("cost unknown" if event.cost_usd is None else f"${event.cost_usd}")


def _request(record: Mapping[str, str | int | float | bool | None]) -> str:
    flag = f" ({record['flag']})" if record.get("flag") else ""
    purpose = f" {record['purpose']}" if record.get("purpose") else ""
    return (
        f"{record['method']} {record['url']}{purpose} -> {record['status'] if record['allowed'] else 'refused'}{flag}"
    )


def _covered(spans: list[tuple[float, float]]) -> float:
    """How much time lies in at least one span."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
