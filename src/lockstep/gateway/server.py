"""The MCP server of one agent: its tools as policy lets the caller see them, and the agent itself as a tool.

Built on the SDK's low-level server, which speaks both eras. Nothing here runs a tool: a call goes to the desk, which
has it judged, run and recorded. Approvals are put to the client's user where the client can (elicitation, or a result
that requires input), bound to the one call they are about; else the call waits, and says for whom.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mcp import MCPError, types
from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from pydantic import ValidationError

from lockstep.agent.context import READ
from lockstep.errors import AgentStopped, InputError, LockstepError, RunError
from lockstep.gate.arguments import MAX_BYTES
from lockstep.gateway.asking import INPUT, MODERN, Client, Context, as_said, client_name
from lockstep.gateway.context import ContextFace, Settled, is_context
from lockstep.gateway.notices import Notices
from lockstep.gateway.principals import Principal
from lockstep.gateway.tasks import Faces, Handing, TaskFace, approving
from lockstep.gateway.telling import error_of_call, failed, nothing_done, question_of, result_of_ask, result_of_call
from lockstep.journal.port import Journal
from lockstep.kernel.state import CallState, State
from lockstep.kernel.transcript import definitions
from lockstep.model.port import ToolDefinition
from lockstep.runtime.answers import Answer, TermsNow, answer_approval
from lockstep.runtime.calling import Desk
from lockstep.runtime.following import Follower
from lockstep.runtime.inputs import Said, answer_input, problem_of, waiting_input
from lockstep.runtime.reading import read_state
from lockstep.runtime.sessions import Caller
from lockstep.tools.inputs import parse
from lockstep.values import JsonObject

SESSION_META = "lockstep/session"
SESSION_HEADER = "lockstep-session"
APPROVAL = "approval"
LIST_TTL_MS = 60_000
_MAX_SESSION_CHARACTERS = 100
_CACHED: Mapping[CacheableMethod, CacheHint] = {
    "tools/list": CacheHint(ttl_ms=LIST_TTL_MS),
    "prompts/list": CacheHint(ttl_ms=LIST_TTL_MS),
    "resources/templates/list": CacheHint(ttl_ms=LIST_TTL_MS),
    "resources/list": CacheHint(),
    "resources/read": CacheHint(),
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"approve": {"type": "boolean", "title": "Approve", "description": "Run exactly this call."}},
    "required": ["approve"],
}
_ASK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"message": {"type": "string", "minLength": 1, "description": "What is asked of the agent."}},
    "required": ["message"],
    "additionalProperties": False,
}

WhoCalls = Callable[[Context], Principal]
Begin = Callable[[Caller, Client, Follower], Awaitable[State]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What is served, to whom: `who` says whose request it is, `session` the session of a face that has one itself."""

    desk: Desk
    journal: Journal
    version: str
    description: str
    who: WhoCalls
    terms_now: TermsNow
    session: str = ""
    asks: bool = True
    """Whether the agent itself is offered."""


def build_server(served: Served) -> Server[Any]:
    """The server, for any face."""
    face = _Face(served)
    context = face.context
    server: Server[Any] = _Locked(
        served.desk.agent.name,
        version=served.version,
        instructions=served.description or None,
        cache_hints=_CACHED,
        on_list_tools=face.list_tools,
        on_call_tool=cast(Any, face.call_tool),  # a task is a result of an extension, which the SDK's types do not know
        on_list_resources=context.list_resources if context.resources else None,
        on_list_resource_templates=context.list_templates if context.resources else None,
        on_read_resource=context.read_resource if context.resources else None,
        on_list_prompts=context.list_prompts if context.prompts else None,
        on_get_prompt=context.get_prompt if context.prompts else None,
        on_completion=context.complete if context.completion else None,
    )
    face.tell_of(server)
    face.tasks.offer(server)
    security = RequestStateSecurity.ephemeral(audience=f"lockstep:{served.desk.agent.name}")
    server.middleware.append(RequestStateBoundary(security, default_audience=None))
    return server


class _Locked(Server[Any]):
    """A server whose tools and prompts are those of a lock: they do not change while it serves."""

    def get_capabilities(self, *args: Any, **more: Any) -> types.ServerCapabilities:
        said = super().get_capabilities(*args, **more)
        for capability in (said.tools, said.prompts):
            if capability is not None:
                capability.list_changed = False
        return said


class _Face:
    def __init__(self, served: Served) -> None:
        self._served = served
        self._desk = served.desk
        agent = served.desk.agent
        self._shown = {
            each.name: _tool(each, agent.tools[each.name].definition)
            for each in definitions(agent)
            if not is_context(agent.tools[each.name])
        }
        asking = f"ask_{agent.name}".replace("-", "_")
        self._asking = asking if served.asks and asking not in agent.tools else ""
        self._offered: dict[str, frozenset[str]] = {}
        self.context = ContextFace(
            agent,
            offered=lambda ctx: self.offered_to(served.who(ctx).name),
            judged=self.judged,
            who=lambda ctx: served.who(ctx).name,
        )
        self.notices = Notices(self._may_read, self.context.owned)
        self.tasks = TaskFace(
            faces=Faces(
                desk=self._desk,
                journal=served.journal,
                who=served.who,
                told=lambda ctx, state, asks: self._told(ctx, state, asks=asks),
                question=_question_for,
                approve=self._approve,
            )
        )

    async def list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        offered = self.offered_to(self._served.who(ctx).name)
        tools = [tool for name, tool in self._shown.items() if name in offered]
        if ctx.protocol_version < MODERN:
            tools = [_legacy(tool) for tool in tools]
        if self._asking:
            says = self._served.description or f"The agent {self._desk.agent.name}."
            about = f"{says} Answers when its run is over; everything it does is judged and recorded."
            tools.append(types.Tool(name=self._asking, description=about, input_schema=_ASK_SCHEMA))
        return types.ListToolsResult(tools=tools)

    async def call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult | dict[str, Any]:
        principal = self._served.who(ctx)
        asks = bool(self._asking) and params.name == self._asking
        if asks and not _is_question(params.arguments):
            what = f"message, a text with words, of at most {MAX_BYTES} characters"
            raise MCPError(types.INVALID_PARAMS, f"{self._asking} takes one argument: {what}.")
        tool = self._desk.agent.tools.get(params.name)
        if tool is not None and is_context(tool):
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name:.100}")

        async def begin(caller: Caller, client: Client, follower: Follower) -> State:
            if asks:
                return await self._desk.ask(caller, str((params.arguments or {})["message"]), client, follower)
            return await self._desk.call(caller, params.name, params.arguments, client, follower)

        try:
            made = await self._made_in_time(ctx, principal, params, begin, asks=asks)
            if isinstance(made, dict):
                return made
            state, asking = made
            if not asks and params.name not in self.offered_to(principal.name):  # refused, recorded, and not described
                raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name:.100}")
            settled = await self._settled(ctx, principal, params, state, elicits=asking)
            if isinstance(settled, types.InputRequiredResult):
                return settled
            if settled.suspended_for in ("approval", "input") and self.tasks.taken_by(ctx):
                return self.tasks.made(settled, asks=asks)
            return await self._told(ctx, settled, asks=asks)
        except (AgentStopped, RunError) as error:
            return failed(error.message)
        except LockstepError as error:
            raise MCPError(types.INTERNAL_ERROR, nothing_done(error)) from error

    async def judged(self, ctx: Context, params: Any, name: str, arguments: JsonObject) -> Settled:
        """A call that a request of the client other than `tools/call` comes to."""
        principal = self._served.who(ctx)

        async def begin(caller: Caller, client: Client, follower: Follower) -> State:
            return await self._desk.call(caller, name, arguments, client, follower)

        state, asking = await self._made(ctx, principal, params, begin)
        if not isinstance(params, types.InputResponseRequestParams):
            return state  # of a request that cannot be retried with an answer nothing is asked
        return await self._settled(ctx, principal, params, state, elicits=asking)

    async def _made_in_time(
        self, ctx: Context, principal: Principal, params: types.CallToolRequestParams, begin: Begin, *, asks: bool
    ) -> tuple[State, bool] | dict[str, Any]:
        """As `_made`; the task that it is from now on, where it takes long and the client takes that for an answer."""
        if not self.tasks.taken_by(ctx):
            return await self._made(ctx, principal, params, begin)
        handing = Handing()
        return await self.tasks.within(self._made(ctx, principal, params, begin, handing), handing, asks=asks)

    async def _made(
        self, ctx: Context, principal: Principal, params: Any, begin: Begin, handing: Handing | None = None
    ) -> tuple[State, bool]:
        """The run of this request, begun by it or gone on with the answer that it brings; and whether its client may
        be asked about an approval, which it has not just closed."""
        caller, client = self._caller(ctx, principal), Client(ctx, principal, self._desk.agent)
        retried = isinstance(params, types.InputResponseRequestParams)
        async with self.notices.told(ctx, _connection(ctx, principal), principal.name) as told:
            follower = handing.follow(told) if handing is not None else told
            answered = await self._answered(params, caller, client, follower) if retried else None
            state = answered or await begin(caller, client, follower)
        return state, answered is not None or not retried or params.input_responses is None

    async def _settled(
        self,
        ctx: Context,
        principal: Principal,
        params: types.InputResponseRequestParams,
        state: State,
        *,
        elicits: bool,
    ) -> Settled:
        """The run, or what is asked of the client before it goes on: by its server, or whether it may go on at all."""
        caller, client = self._caller(ctx, principal), Client(ctx, principal, self._desk.agent)
        state = await self._answered_by_client(state, client, caller, params)
        if (waits := waiting_input(state)) is not None and client.modern and client.can(parse(waits.asked)):
            return client.required(state, waits)
        return await self._approved(ctx, principal, state, elicits=elicits)

    async def _answered_by_client(
        self, state: State, client: Client, caller: Caller, params: types.InputResponseRequestParams
    ) -> State:
        """The run after all that its servers asked and its client answered.

        A legacy client does while its call is open; a modern one may with the call itself, where the server wants no
        state back.
        """
        upfront = params.input_responses if not params.request_state else None
        while (waits := waiting_input(state)) is not None and client.can(asked := parse(waits.asked)):
            if client.modern and (upfront is None or asked.state is not None):
                break
            given = {key: as_said(each) for key, each in (upfront or {}).items()}
            responses = given if client.modern else await client.answer(state, waits, asked)
            upfront = None
            if responses is not None and problem_of(asked, responses):
                break  # the run waits, and whoever looks sees what it waits for
            because = "" if responses is not None else "the client has no answer"
            said = Said(responses=responses, by=caller.principal, because=because, login=f"asked by {caller.client}")
            with contextlib.suppress(InputError):  # somebody else was faster, or it has expired: it goes on with that
                await answer_input(self._served.journal, waits.input, said)
            state = await self._desk.go_on(state.run, by=caller.principal, fetched=True, attendant=client)
        return state

    async def _approved(self, ctx: Context, principal: Principal, state: State, *, elicits: bool) -> Settled:
        """The run; while it waits for an approval that the client may put to its user, that question first."""
        elicits = elicits and principal.approvals == "client" and _can_elicit(ctx)
        answered = ""
        while elicits and (call := approving(state)) is not None and call.approval != answered:
            if ctx.protocol_version >= MODERN:
                return _input_required(state, call, principal)
            try:
                said = await ctx.session.elicit_form(question_of(call, principal.name), _SCHEMA, ctx.request_id)
            except (MCPError, ValueError):  # no answer, or none to a form: it still waits
                break
            given = _given(said)
            if given is None:
                break
            answered = call.approval  # where another person must approve too, it still waits
            state = await self._answer(answered, given=given, by=principal.name, client=client_name(ctx))
        return state

    async def _told(self, ctx: Context, state: State, *, asks: bool) -> types.CallToolResult:
        if asks:
            return result_of_ask(state)
        call = state.calls[0]
        if (error := error_of_call(call)) is not None:
            raise error
        result = result_of_call(state, self._desk.agent.tools.get(call.name), await self._desk.first_of(call))
        if ctx.protocol_version < MODERN and not isinstance(result.structured_content, dict):
            result.structured_content = None  # which could only be an object there; the text says it too
        return result

    async def _answered(
        self, params: types.InputResponseRequestParams, caller: Caller, client: Client, follower: Follower
    ) -> State | None:
        """The run that went on because this retry of its call answers what was asked of it; None when it answers
        nothing. The state was sealed for this call and this principal, so it can be no other's."""
        if not params.request_state or not params.input_responses:
            return None
        asked = json.loads(params.request_state)
        if INPUT in asked:
            return await self._input_answered(asked, params.input_responses, caller, client, follower)
        said = params.input_responses.get(APPROVAL)
        given = _given(said) if isinstance(said, types.ElicitResult) else None
        if given is None:
            return None
        return await self._answer(asked["approval"], given=given, by=caller.principal, client=caller.client)

    async def _input_answered(
        self, asked: Mapping[str, Any], given: Mapping[str, Any], caller: Caller, client: Client, follower: Follower
    ) -> State:
        """The run that goes on with what its server asked; as it was, where that is not what was said."""
        responses = {key: as_said(each) for key, each in given.items()}
        said = Said(responses=responses, by=caller.principal, login=f"asked by {caller.client}")
        try:
            state = await answer_input(self._served.journal, asked[INPUT], said)
        except InputError:
            state = await read_state(self._served.journal, asked["run"])
            if waiting_input(state) is not None:
                return state  # asked once more
        return await self._desk.go_on(state.run, by=caller.principal, fetched=True, attendant=client, follower=follower)

    async def _answer(self, approval: str, *, given: bool, by: str, client: str) -> State:
        state = await self._record(approval, given=given, by=by, client=client)
        return await self._desk.go_on(state.run, by=by, fetched=True)

    async def _record(self, approval: str, *, given: bool, by: str, client: str) -> State:
        said = Answer(given=given, by=by, login=f"asked by {client}")
        return await answer_approval(self._served.journal, approval, said, self._served.terms_now)

    async def _approve(self, call: CallState, said: Any, principal: Principal, client: str) -> bool:
        """Record what a client's user says of a call that waits for them; whether they decided anything."""
        try:
            given = _given(types.ElicitResult.model_validate(said))
        except ValidationError as problem:
            raise MCPError(types.INVALID_PARAMS, "The answer is none to a form.") from problem
        if given is not None:
            await self._record(call.approval, given=given, by=principal.name, client=client)
        return given is not None

    def _caller(self, ctx: Context, principal: Principal) -> Caller:
        return Caller(principal=principal.name, client=client_name(ctx), session=self._served.session or _session(ctx))

    def tell_of(self, server: Server[Any]) -> None:
        """Offer to tell clients what servers say beside results. Each era has its own methods for it."""
        if any(tool.source.startswith("mcp:") for tool in self._desk.agent.tools.values()):
            server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, self._set_level)
        if self.context.resources:
            server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, self._subscribe)
            server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, self._unsubscribe)
            server.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, self._listen)

    async def _set_level(self, ctx: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
        principal = self._served.who(ctx)
        self.notices.set_level(_connection(ctx, principal), params.level, principal.name)
        return types.EmptyResult()

    async def _subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        principal = self._served.who(ctx)
        if not self._may_read(principal.name):
            raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": str(params.uri)})
        self.notices.subscribe(_connection(ctx, principal), str(params.uri), ctx.session, principal.name)
        return types.EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        principal = self._served.who(ctx)
        self.notices.unsubscribe(_connection(ctx, principal), str(params.uri), principal.name)
        return types.EmptyResult()

    async def _listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        principal = self._served.who(ctx).name
        if not self._may_read(principal):
            none = {"resource_subscriptions": None, "resources_list_changed": None}
            params = params.model_copy(update={"notifications": params.notifications.model_copy(update=none)})
        return await self.notices.listen(ctx, params, principal)

    def _may_read(self, principal: str, server: str | None = None) -> bool:
        """Whether this principal may read resources, of this server or of any."""
        offered = self.offered_to(principal)
        reads = [tool for tool in self._desk.agent.tools.values() if tool.method == READ and tool.name in offered]
        return any(server in (None, tool.source) for tool in reads)

    def offered_to(self, principal: str) -> frozenset[str]:
        known = self._offered.get(principal)
        if known is None:
            known = self._offered[principal] = self._desk.offered(principal)
        return known


def _tool(shown: ToolDefinition, definition: Mapping[str, Any]) -> types.Tool:
    return types.Tool.model_validate({**definition, "name": shown.name, "inputSchema": shown.input_schema})


def _legacy(tool: types.Tool) -> types.Tool:
    """A tool for a client of the legacy era, where a structured result could only be an object."""
    schema = tool.output_schema
    if schema is None or schema.get("type") == "object":
        return tool
    return tool.model_copy(update={"output_schema": None})


def _is_question(arguments: Mapping[str, Any] | None) -> bool:
    message = (arguments or {}).get("message")
    words = isinstance(message, str) and len(message) <= MAX_BYTES and bool(message.strip())
    return words and len(arguments or {}) == 1


def _can_elicit(ctx: Context) -> bool:
    capabilities = ctx.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    if elicitation is None:
        return False
    url_only = elicitation.url is not None and elicitation.form is None
    return not url_only and (ctx.protocol_version >= MODERN or ctx.session.can_send_request)


def _question_for(ctx: Context, call: CallState, principal: Principal) -> types.ElicitRequest | None:
    """What this client's user is asked about a call; None where the client is not to be asked."""
    return _question(call, principal) if principal.approvals == "client" and _can_elicit(ctx) else None


def _question(call: CallState, principal: Principal) -> types.ElicitRequest:
    asked = types.ElicitRequestFormParams(message=question_of(call, principal.name), requested_schema=_SCHEMA)
    return types.ElicitRequest(params=asked)


def _input_required(state: State, call: CallState, principal: Principal) -> types.InputRequiredResult:
    return types.InputRequiredResult(
        input_requests={APPROVAL: _question(call, principal)},
        request_state=json.dumps({"approval": call.approval, "run": state.run}),
    )


def _given(said: types.ElicitResult) -> bool | None:
    """What a person decided; None when they closed the question."""
    if said.action == "cancel":
        return None
    return said.action == "accept" and (said.content or {}).get("approve") is True


def _connection(ctx: Context, principal: Principal) -> str:
    """What tells this client's connection from others, where it has one that lasts."""
    headers = getattr(ctx.request, "headers", None) or {}
    return f"{principal.name}\0{headers.get('mcp-session-id', '')}"


def _session(ctx: Context) -> str:
    """The session that a client named, in the call or in a header; empty for the principal's own.

    Never its transport's: many clients connect anew for each call, or to try again what they gave up, and what was
    done must then be remembered.
    """
    headers = getattr(ctx.request, "headers", None) or {}
    for named in (cast(Mapping[str, Any], ctx.meta or {}).get(SESSION_META), headers.get(SESSION_HEADER)):
        if named is None:
            continue
        if not (isinstance(named, str) and named.isprintable() and 0 < len(named) <= _MAX_SESSION_CHARACTERS):
            what = f"A session is named by 1 to {_MAX_SESSION_CHARACTERS} printable characters."
            raise MCPError(types.INVALID_PARAMS, f"{what} Nothing was done.")  # and not in a session that others share
        return named
    return ""
