"""What the server of a tool asks back, put to the client that called: as its own question in the client's protocol era.

Marked with whose question it is; its words are the server's own. What the client answers goes to that server alone. A
client that cannot be asked leaves the run waiting, for a person and `lockstep answer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError
from mcp import MCPError, types
from mcp.server.context import ServerRequestContext
from mcp.shared.message import ServerMessageMetadata

from lockstep.agent.locked import LockedAgent
from lockstep.gateway.principals import Principal
from lockstep.kernel.state import CallState, State
from lockstep.runtime.inputs import server_of
from lockstep.tools.inputs import Asked, Request, parse
from lockstep.values import JsonObject

Context = ServerRequestContext[Any, Any]
INPUT = "input"
MODERN = "2026-07-28"


class Client:
    """The client of one request, as somebody who can be asked what a server wants to know."""

    def __init__(self, ctx: Context, principal: Principal, agent: LockedAgent) -> None:
        self._ctx = ctx
        self._principal = principal
        self._agent = agent

    @property
    def modern(self) -> bool:
        return self._ctx.protocol_version >= MODERN

    @property
    def offers(self) -> frozenset[str]:
        capabilities = self._ctx.session.client_capabilities
        if capabilities is None or not self._reachable:
            return frozenset()
        people = capabilities.elicitation if self._principal.approvals == "client" else None
        named = {"elicitation": people, "sampling": capabilities.sampling, "roots": capabilities.roots}
        return frozenset(name for name, offered in named.items() if offered is not None)

    @property
    def _reachable(self) -> bool:
        """Whether a question gets to it: in the modern era as a result, else over a channel back."""
        return self.modern or bool(self._ctx.session.can_send_request)

    def can(self, asked: Asked) -> bool:
        """Whether it can be asked all of this. A question for people is for a client that has one before it."""
        return self._reachable and all(self._can(each) for each in asked.open)

    def _can(self, request: Request) -> bool:
        if request.kind in ("sampling", "roots"):
            return request.kind in self.offers
        capabilities = self._ctx.session.client_capabilities
        elicitation = capabilities.elicitation if capabilities else None
        if elicitation is None or "elicitation" not in self.offers:
            return False
        if request.kind == "url":
            return elicitation.url is not None
        return elicitation.form is not None or elicitation.url is None

    async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
        """The client's answers; None where it has none, or cannot be asked while its call is open."""
        if self.modern or not self.can(asked):
            return None
        said: dict[str, Any] = {}
        for each in asked.open:
            try:
                said[each.key] = await self._said(each, call)
            except (MCPError, ValueError, ClosedResourceError, BrokenResourceError):  # refused, no answer, or gone
                return None
        return said

    async def _said(self, request: Request, call: CallState) -> JsonObject:
        kinds: Mapping[str, type[types.Result]] = {
            "sampling": types.CreateMessageResult,
            "roots": types.ListRootsResult,
        }
        result = await self._ctx.session.send_request(
            self._request(request, call),
            kinds.get(request.kind, types.ElicitResult),
            metadata=ServerMessageMetadata(related_request_id=self._ctx.request_id),
        )
        return as_said(result)

    def required(self, state: State, call: CallState) -> types.InputRequiredResult:
        """The question as a result of the modern era; its keys are the server's, its state is ours."""
        asked = parse(call.asked)
        return types.InputRequiredResult(
            input_requests={each.key: self._request(each, call) for each in asked.open},
            request_state=json.dumps({INPUT: call.input, "run": state.run}),
        )

    def _request(self, request: Request, call: CallState) -> Any:
        if request.kind == "roots":
            return types.ListRootsRequest()
        if request.kind == "sampling":
            return types.CreateMessageRequest.model_validate({"method": request.method, "params": request.params})
        marked = self._marked(request, call)
        if request.kind == "url":
            named = request.params.get("elicitationId")
            page = types.ElicitRequestURLParams(
                message=marked,
                url=request.url,
                elicitation_id=None if self.modern else named if isinstance(named, str) else call.input or "1",
            )
            return types.ElicitRequest(params=page)
        schema = request.params["requestedSchema"]
        return types.ElicitRequest(
            params=types.ElicitRequestFormParams(message=marked, requested_schema=dict(schema))  # type: ignore[arg-type]
        )

    def _marked(self, request: Request, call: CallState) -> str:
        """The server's words, with whose they are before them and nothing in them that steers a terminal."""
        server = _plain(server_of(self._agent.tools.get(call.name)))[:200]
        return f"{call.name} ({server}) asks:\n{_plain(request.message)}"


def as_said(result: Any) -> JsonObject:
    """A client's answer as the protocol writes it."""
    said: JsonObject = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: value for name, value in said.items() if name not in ("_meta", "resultType")}


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else f"\\u{ord(each):04x}" for each in text)
