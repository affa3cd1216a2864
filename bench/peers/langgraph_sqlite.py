"""LangGraph with its SQLite checkpointer, durability "sync". Runs in the peer's own environment.

The graph is the one of LangGraph's quickstart: a model node and a node that calls the tool, which is faster than the
prebuilt `ToolNode`. `SqliteSaver` sets WAL itself and leaves SQLite's `synchronous` at FULL. Many runs go through
`graph.batch`, which is faster here than `ainvoke` with `AsyncSqliteSaver`. `--channel delta` keeps the messages in the
beta `DeltaChannel`, which stores increments instead of the whole history in every checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Annotated, Any, TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from workload import FINAL_TEXT, USER_MESSAGE, Options, Script, parse_options, run_contender, tool_text

PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite", "langchain-core")


class DeltaState(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer)]


STATES: dict[str, Any] = {"messages": MessagesState, "delta": DeltaState}


@tool
def lookup(record: int) -> str:
    """Look up one record."""
    return tool_text(record)


def call_tools(state: dict[str, Any]) -> dict[str, Any]:
    calls = state["messages"][-1].tool_calls
    return {"messages": [ToolMessage(lookup.invoke(call["args"]), tool_call_id=call["id"]) for call in calls]}


def next_node(state: dict[str, Any]) -> str:
    return "tools" if state["messages"][-1].tool_calls else END


def build_graph(state: Any, script: Script) -> StateGraph:
    def model(state: dict[str, Any]) -> dict[str, Any]:
        record = script.next_record(len(state["messages"]))
        if record is None:
            return {"messages": [AIMessage(FINAL_TEXT)]}
        call = ToolCall(name="lookup", args={"record": record}, id=f"call-{record}")
        return {"messages": [AIMessage("", tool_calls=[call])]}

    graph = StateGraph(state)
    graph.add_node("model", model)
    graph.add_node("tools", call_tools)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", next_node, ["tools", END])
    graph.add_edge("tools", "model")
    return graph


def loop(options: Options, script: Script, *, channel: str) -> list[str]:
    with SqliteSaver.from_conn_string(str(options.directory / "checkpoints.sqlite")) as saver:
        graph = build_graph(STATES[channel], script).compile(checkpointer=saver)
        graph.invoke(asked(), thread("warm-up"), durability="sync")
        threads = [thread(f"run-{number}") for number in range(options.runs or 1)]
        script.begin(options.steps)
        if options.runs:
            states = graph.batch([asked()] * options.runs, threads, durability="sync")
        else:
            states = [graph.invoke(asked(), threads[0], durability="sync")]
        script.end()
    return [state["messages"][-1].content for state in states]


def asked() -> dict[str, Any]:
    return {"messages": [HumanMessage(USER_MESSAGE)]}


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}, "recursion_limit": 10_000}


def main() -> None:
    options, rest = parse_options()
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", choices=STATES, default="messages")
    channel = parser.parse_args(rest).channel
    name = "langgraph + SqliteSaver" + (" (delta, beta)" if channel == "delta" else "")
    run_contender(name, PACKAGES, options, functools.partial(loop, channel=channel))


if __name__ == "__main__":
    main()
