"""Resources, prompts and completion of an agent's servers for its clients: each request a call through the desk.

What a client may see of them is what policy may permit it: a server's prompts where it may get prompts, and so on.
Prompts and resource templates are those of the lock; a list of resources is asked for, as a call of its own. A server
with a prefix has its prompts under it, as its tools; URIs are nobody's to rename. So one server could list another's
and answer in its place: a URI that more than one claims is read of none.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from mcp import MCPError, types
from pydantic import BaseModel, ValidationError

from lockstep.agent.context import COMPLETE, LIST, METHODS, PROMPT, READ, listed_in, plain_name
from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.errors import AgentStopped, LockstepError, RunError
from lockstep.gateway.telling import META, nothing_done, reply_of, waiting_text
from lockstep.kernel.state import State
from lockstep.values import JsonObject

RESOURCE_NOT_FOUND = -32002
"""What servers of the legacy era call it."""
_MAX_LISTS = 200
_MAX_DISPUTED = 20
_COMPLETED = ("ref", "argument", "context")
_VARIABLE = re.compile(r"\{[^{}]*\}")

Settled = State | types.InputRequiredResult
Judged = Callable[[Any, Any, str, JsonObject], Awaitable[Settled]]
"""A call of this context's client, by these parameters of its request: a tool and its arguments."""
Offered = Callable[[Any], frozenset[str]]
T = TypeVar("T", bound=BaseModel)


class ContextFace:
    """What of an agent's servers is not tools, for any client."""

    def __init__(self, agent: LockedAgent, *, offered: Offered, judged: Judged, who: Callable[[Any], str]) -> None:
        """`who`: the principal of a request, who may be told of other resources than the next."""
        self._offered = offered
        self._who = who
        self._judged = judged
        self._by_method = {method: _of_method(agent, method) for method in METHODS}
        self._listed: OrderedDict[tuple[str, str], frozenset[str]] = OrderedDict()
        """Principal and prefix -> what that server listed last."""

    @property
    def resources(self) -> bool:
        """Whether any server offers resources."""
        return bool(self._by_method[READ])

    @property
    def prompts(self) -> bool:
        return bool(self._by_method[PROMPT])

    @property
    def completion(self) -> bool:
        return bool(self._by_method[COMPLETE])

    async def list_resources(self, ctx: Any, params: Any) -> types.ListResourcesResult:
        servers = self._servers(ctx, LIST)
        asked = [self._list(ctx, params, prefix, tool) for prefix, tool in servers.items()]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failures = [each for each in answers if isinstance(each, BaseException)]
        if failures and len(failures) == len(answers):
            raise failures[0]
        found = [each for answer in answers if not isinstance(answer, BaseException) for each in answer]
        disputed = {str(each.uri): claims for each in found if len(claims := self._claims(ctx, str(each.uri))) > 1}
        # A client must be able to tell a short list from one that lacks a server's part.
        meta = {f"{META}/failed": [str(each) for each in failures]} if failures else {}
        if disputed:
            said = [_disputed(uri, claims) for uri, claims in disputed.items()]
            meta[f"{META}/disputed"] = said[:_MAX_DISPUTED]
        kept = [each for each in found if str(each.uri) not in disputed]
        return types.ListResourcesResult(resources=kept, _meta=meta or None)

    async def list_templates(self, ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
        locked = [each for tool in self._servers(ctx, READ).values() for each in listed_in(tool.definition)]
        return types.ListResourceTemplatesResult(resource_templates=list(_known(types.ResourceTemplate, locked)))

    async def read_resource(
        self, ctx: Any, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult | types.InputRequiredResult:
        uri = str(params.uri)
        settled = await self._call(ctx, params, await self._owner(ctx, uri), {"uri": uri})
        if isinstance(settled, types.InputRequiredResult):
            return settled
        read = _result(types.ReadResourceResult, settled, {"uri": uri})
        return read.model_copy(update={"ttl_ms": read.ttl_ms or 0, "cache_scope": "private"})

    async def list_prompts(self, ctx: Any, params: Any) -> types.ListPromptsResult:
        found = []
        for prefix, tool in self._servers(ctx, PROMPT).items():
            for each in _known(types.Prompt, listed_in(tool.definition)):
                found.append(each.model_copy(update={"name": f"{prefix}{each.name}"}))
        return types.ListPromptsResult(prompts=found)

    async def get_prompt(
        self, ctx: Any, params: types.GetPromptRequestParams
    ) -> types.GetPromptResult | types.InputRequiredResult:
        tool, name = self._prompt(ctx, params.name)
        given = {} if params.arguments is None else {"arguments": dict(params.arguments)}
        settled = await self._call(ctx, params, tool, {"name": name, **given})
        if isinstance(settled, types.InputRequiredResult):
            return settled
        return _result(types.GetPromptResult, settled, {"name": params.name})

    async def complete(self, ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
        asked = params.model_dump(by_alias=True, exclude_none=True, mode="json")
        ref = asked["ref"]
        if isinstance(params.ref, types.PromptReference):
            tool, ref["name"] = self._prompt(ctx, params.ref.name)
            source = tool.source
        else:
            having = [tool for tool in self._servers(ctx, READ).values() if params.ref.uri in _templates(tool)]
            source = having[0].source if len(having) == 1 else ""
        completes = [tool for tool in self._servers(ctx, COMPLETE).values() if tool.source == source]
        if not completes:
            return types.CompleteResult(completion=types.Completion(values=[]))
        arguments: JsonObject = {name: asked[name] for name in _COMPLETED if name in asked}
        settled = await self._call(ctx, params, completes[0], arguments)
        assert isinstance(settled, State)  # nothing is asked of a client that is not an answer to its own request
        return _result(types.CompleteResult, settled, {})

    async def _call(self, ctx: Any, params: Any, tool: LockedTool, arguments: JsonObject) -> Settled:
        with said_as_errors():
            return await self._judged(ctx, params, tool.name, arguments)

    async def _list(self, ctx: Any, params: Any, prefix: str, tool: LockedTool) -> list[types.Resource]:
        settled = await self._call(ctx, params, tool, {})
        assert isinstance(settled, State)
        _require_done(settled, {})
        found = list(_known(types.Resource, reply_of(settled.calls[0]).get("resources", ())))
        self._listed[self._who(ctx), prefix] = frozenset(str(each.uri) for each in found)
        self._listed.move_to_end((self._who(ctx), prefix))
        while len(self._listed) > _MAX_LISTS:
            self._listed.popitem(last=False)
        return found

    def _servers(self, ctx: Any, method: str) -> dict[str, LockedTool]:
        """Prefix -> what this client may call of the method."""
        offered = self._offered(ctx)
        return {prefix: tool for prefix, tool in self._by_method[method].items() if tool.name in offered}

    def owned(self, who: str, source: str, uris: Iterable[str]) -> frozenset[str]:
        """Those of these resources that the server with this source claims, as this principal knows."""
        having = {prefix: tool for prefix, tool in self._by_method[READ].items() if tool.source == source}
        return frozenset(uri for uri in uris for prefix, tool in having.items() if self._has(who, prefix, tool, uri))

    def _has(self, who: str, prefix: str, tool: LockedTool, uri: str) -> bool:
        """Whether a server claims a resource: by what it listed last, or by a template of the lock."""
        return uri in self._listed.get((who, prefix), ()) or any(_fits(uri, each) for each in _templates(tool))

    def _claims(self, ctx: Any, uri: str) -> list[LockedTool]:
        """Whose resource this is, as the servers have it."""
        who = self._who(ctx)
        return [tool for prefix, tool in self._servers(ctx, READ).items() if self._has(who, prefix, tool, uri)]

    async def _owner(self, ctx: Any, uri: str) -> LockedTool:
        """The one server that is asked for this resource.

        Raises:
            MCPError: no server claims it, or more than one.
        """
        servers, claims = list(self._servers(ctx, READ).values()), self._claims(ctx, uri)
        if not claims and len(servers) > 1:  # nobody asked yet what there is
            await self.list_resources(ctx, types.PaginatedRequestParams())
            claims = self._claims(ctx, uri)
        if len(claims) > 1:
            raise MCPError(types.INVALID_PARAMS, _disputed(uri, claims), {"uri": uri})
        if not claims and len(servers) != 1:
            raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
        return (claims or servers)[0]

    def _prompt(self, ctx: Any, shown: str) -> tuple[LockedTool, str]:
        """Whose prompt this is, and its own name.

        Raises:
            MCPError: nobody's, or one that more than one server has: one without a prefix may call its own like that.
        """
        found = [
            (tool, own)
            for prefix, tool in self._servers(ctx, PROMPT).items()
            if shown.startswith(prefix) and (own := shown.removeprefix(prefix)) in _names(tool)
        ]
        if len(found) > 1:
            raise MCPError(types.INVALID_PARAMS, _disputed(shown, [tool for tool, _ in found]))
        if not found:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {shown:.100}")
        return found[0]


@contextmanager
def said_as_errors() -> Iterator[None]:
    """What keeps a call from being made, as an error of the protocol."""
    try:
        yield
    except (AgentStopped, RunError) as error:
        raise MCPError(types.INVALID_REQUEST, error.message) from error
    except LockstepError as error:
        raise MCPError(types.INTERNAL_ERROR, nothing_done(error)) from error


def is_context(tool: LockedTool) -> bool:
    return tool.method in METHODS


def _of_method(agent: LockedAgent, method: str) -> dict[str, LockedTool]:
    suffix = plain_name(method)
    return {name.removesuffix(suffix): tool for name, tool in agent.tools.items() if tool.method == method}


def _result(kind: type[T], state: State, about: Mapping[str, str]) -> T:
    """What the server answered, as the protocol has it.

    Raises:
        MCPError: it answered with an error, or was not asked.
    """
    _require_done(state, about)
    call = state.calls[0]
    meta = {f"{META}/run": state.run, f"{META}/call": call.id}
    reply = reply_of(call)
    try:
        return kind.model_validate({**reply, "_meta": {**reply.get("_meta", {}), **meta}})
    except ValidationError as error:
        raise MCPError(types.INTERNAL_ERROR, f"{call.name} answered with what the protocol does not know.") from error


def _require_done(state: State, about: Mapping[str, str]) -> None:
    call = state.calls[0]
    data = {**about, f"{META}/run": state.run}
    if call.open:
        raise MCPError(types.INVALID_REQUEST, waiting_text(state, call), data)
    if call.outcome == "ok":
        return
    error = reply_of(call).get("error")
    if isinstance(error, dict):
        code = types.INVALID_PARAMS if error["code"] == RESOURCE_NOT_FOUND else error["code"]
        given = error.get("data")
        raise MCPError(code, str(error.get("message", "")), {**data, **given} if isinstance(given, dict) else data)
    refused = call.outcome in ("policy_denied", "tool_args_malformed", "budget", "approval_refused")
    raise MCPError(types.INVALID_PARAMS if refused else types.INTERNAL_ERROR, call.text, data)


def _known(kind: type[T], listed: Iterable[Any]) -> Iterator[T]:
    """Those that the protocol knows."""
    for each in listed:
        try:
            yield kind.model_validate(each)
        except ValidationError:
            continue


def _names(tool: LockedTool) -> list[object]:
    return [each.get("name") for each in listed_in(tool.definition)]


def _templates(tool: LockedTool) -> list[str]:
    return [str(each.get("uriTemplate", "")) for each in listed_in(tool.definition)]


def _disputed(uri: str, claims: Iterable[LockedTool]) -> str:
    names = " and ".join(tool.name for tool in claims)
    return (
        f"{uri:.200} is claimed by more than one server ({names}), so none is asked for it. The operator can let only"
        " one of them offer it, or permit only one by policy."
    )


def _fits(uri: str, template: str) -> bool:
    """Whether the fixed parts of a template stand in a URI, in their order. Linear, since a stranger wrote it."""
    first, *parts = _VARIABLE.split(template)
    if not uri.startswith(first):
        return False
    at = len(first)
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        found = len(uri) - len(part) if last and uri.endswith(part) else -1 if last else uri.find(part, at)
        if found < at:
            return False
        at = found + len(part)
    return at == len(uri) or not parts
