"""What `agent.toml` says about a server of the Model Context Protocol: how it starts, or where it is reached."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from lockstep.agent.context import Offers
from lockstep.agent.places import AnyPath, HostPath, MountName
from lockstep.agent.secret_spec import SecretSource

_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_HEADER_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_OURS = re.compile(
    r"host|content-.*|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|accept|accept-encoding|range"
    r"|if-range|last-event-id|idempotency-key|(?:proxy|lockstep|mcp)[-_].*",
    re.IGNORECASE,
)
"""Headers that frame a request or belong to the protocol."""
_SECRET = re.compile(r"authorization|cookie|.*(?:api[-_]?key|token|secret|password).*", re.IGNORECASE)
"""Headers whose value is never a plain text in a file."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class WorkingFiles(_Section):
    """A file or directory that a server works on. One of the agent is locked with its code; one of the host is not."""

    source: AnyPath = Field(alias="from")
    write: Annotated[bool, Strict()] = False
    """True: a copy at /work/NAME that is the server's own and goes with its sandbox; else /files/NAME, read-only."""


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(?:[/?][!-~]*)?", text) or "#" in text:
        raise ValueError(f"is {text!r}: it must be a whole http or https URL, without a user, spaces or #")
    try:
        port = urlsplit(text).port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"is {text!r}, which has no usable port")
    return text


WebAddress = Annotated[str, AfterValidator(_web_address)]


class OAuth(_Section):
    """How tokens for a server are had. All of it may be left out: a client is then registered when somebody logs in."""

    grant: Literal["authorization_code", "client_credentials"] = "authorization_code"
    """`authorization_code`: somebody logs in with `lockstep tools login`; else the agent has credentials of its own."""
    issuer: WebAddress | None = None
    """The one authorization server that may be asked; needed with `client_id`, whose credentials are its."""
    client_id: str | None = None
    """Of a client that was registered beforehand."""
    client_secret: SecretSource | None = None
    """Where its secret comes from, as `from` of a secret."""
    private_key: SecretSource | None = None
    """Where the PEM key comes from with which it signs, of a client that has a key in place of a secret."""
    key_algorithm: Literal["ES256", "RS256"] = "ES256"
    client_metadata_url: WebAddress | None = None
    """Where the document lies that describes this client, for authorization servers that take its URL as a name."""
    scopes: tuple[Annotated[str, Field(pattern=r"^[!#-\[\]-~]+$")], ...] = ()
    """What is asked for where the server does not say what it needs."""
    redirect_port: Annotated[int, Strict(), Field(ge=1024, le=65535)] | None = None
    """The loopback port that the browser comes back to, for clients registered with one; absent is any free one."""
    any_port: Annotated[bool, Strict()] = False
    """Whether what a server at a private address says of its authorization server is followed to any port of the hosts
    that `url` and `issuer` name, and not only to theirs."""

    @model_validator(mode="after")
    def _whose_credentials(self) -> Self:
        if self.client_id is None and (self.client_secret or self.private_key):
            raise ValueError("has a client's secret or key and no client_id")
        if self.client_id is not None and self.issuer is None:
            raise ValueError("has a client_id and no issuer: credentials belong to one authorization server, name it")
        if self.client_secret and self.private_key:
            raise ValueError("has both client_secret and private_key: a client proves who it is in one way")
        if self.grant == "client_credentials" and not (self.client_secret or self.private_key):
            raise ValueError(
                "needs client_id, issuer, and client_secret or private_key, to have tokens without a person"
            )
        if self.grant == "authorization_code" and self.private_key:
            raise ValueError('has a private_key, which only grant = "client_credentials" signs with')
        if self.client_metadata_url is not None and not re.match(r"https://[^/]+/.", self.client_metadata_url):
            raise ValueError("has a client_metadata_url that is no https URL with a path")
        return self


class McpServer(_Section):
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    url: WebAddress | None = None
    """Where a server is that runs elsewhere, reached over Streamable HTTP."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Sent with every request to `url`; `${NAME}` stands for the secret of the entry whose `env` is NAME."""
    oauth: OAuth | None = None
    errors: Literal["unknown", "not_done"] = "unknown"
    """Whether a result that is an error says that the effect did not happen; the operator vouches for `not_done`."""
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")] | None = None
    """The model sees `PREFIX__NAME`: tools of two servers never meet."""
    runtime: dict[MountName, HostPath] = Field(default_factory=dict)
    """Directories of packages that the server consists of: read-only at /runtime/NAME, digested into the lock."""
    files: dict[MountName, WorkingFiles] = Field(default_factory=dict)
    offer: tuple[Offers, ...] = Field(default=("tools",), min_length=1)
    """What of the server is taken: its tools, and as read-only tools its resources and prompts."""
    elicitation: Literal["ask", "decline"] = "decline"
    """Whether the server may ask people for input while one of its tools is called."""
    sampling: Literal["model", "client", "decline"] = "decline"
    """Who answers what it asks of a model: the agent's own model, or a client of the gateway that offers to."""
    roots: Literal["client", "decline"] = "decline"
    task_s: Annotated[float, Strict()] | None = Field(default=None, gt=0, le=604800)
    """How long a task may take that the server makes of a call; absent, it is not told that it may make one."""

    @property
    def asks(self) -> tuple[str, ...]:
        """What it may ask for, by the names of the protocol's capabilities."""
        wanted = {"elicitation": self.elicitation, "sampling": self.sampling, "roots": self.roots}
        return tuple(name for name, said in wanted.items() if said != "decline")

    @property
    def place(self) -> str:
        """host:port of `url`, in lower case."""
        parts = urlsplit(self.url or "")
        host = parts.hostname or ""
        return f"{f'[{host}]' if ':' in host else host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    @property
    def egress(self) -> tuple[str, ...]:
        """What the host may reach for it, as an egress rule: exactly this place and path."""
        parts = urlsplit(self.url or "")
        return (f"{parts.scheme}://{self.place} DELETE,GET,POST {parts.path or '/'}",) if self.url else ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError('needs either `command = [...]` or `url = "https://..."`, and only one')
        wrong = ("runtime", "files") if self.url else ("headers", "oauth")
        if said := [key for key in wrong if getattr(self, key)]:
            raise ValueError(f"has `{said[0]}`, which only a server with `{'command' if self.url else 'url'}` has")
        return self

    @model_validator(mode="after")
    def _command_is_text(self) -> Self:
        if any("\0" in part for part in self.command or ()):
            raise ValueError("has a command with a zero byte in it")
        if self.command and self.command[0].startswith(("http://", "https://")):
            raise ValueError("has a URL as its command: write `url = ...`")
        return self

    @model_validator(mode="after")
    def _headers_can_be_sent(self) -> Self:
        for name, text in self.headers.items():
            if not _HEADER.fullmatch(name) or _OURS.fullmatch(name):
                raise ValueError(f"has the header {name!r}, which is not one to set here")
            if not _HEADER_TEXT.fullmatch(text):
                raise ValueError(f"has a header {name!r} with spaces around it or characters that no header can carry")
            if _SECRET.fullmatch(name) and not placeholders(text):
                raise ValueError(
                    f'has the value of {name!r} in the file: write ${{NAME}} and a secret with env = "NAME"'
                )
        if self.oauth and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("has both oauth and a header Authorization: the token stands there")
        return self


def placeholders(text: str) -> tuple[str, ...]:
    """The names of the secrets in the value of a header."""
    return tuple(_PLACEHOLDER.findall(text))


def filled_in(text: str, values: dict[str, str]) -> str:
    """The value of a header with secrets in place of `${NAME}`.

    Raises:
        KeyError: one has no value.
    """
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)
