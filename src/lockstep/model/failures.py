"""Why a provider did not answer: pydantic-ai's errors as `Failure` values.

Only 429, 5xx, timeouts and broken connections are transient. A quota that is used up also comes as 429, but waiting
does not help, so it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lockstep.model.port import Failure, FailureKind

_SHOWN = 200  # characters of the provider's own words
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|key|api)[-_][A-Za-z0-9_\-*]{6,}(?:\.[A-Za-z0-9_\-*]+)*|\bAIza[A-Za-z0-9_\-]{10,}|\b(?:Bearer|Basic)\s+\S+",
    re.I,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s(?=[A-Z])")


def expected_errors() -> tuple[type[Exception], ...]:
    """What a request may raise: pydantic-ai's errors, transport errors, and what a body nobody can parse causes."""
    # Imported here because pydantic-ai takes a second to load and most commands never need it.
    import httpx2
    from pydantic_ai.exceptions import AgentRunError, UserError

    broken_body = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
    return (AgentRunError, UserError, httpx2.HTTPError, OSError, EOFError, RecursionError, *broken_body)


def failure_of(error: Exception, *, provider: str, secret: str = "") -> Failure:
    """The failure an error means. Its message holds the provider's first sentence, without `secret` or keys."""
    from pydantic_ai.exceptions import ModelHTTPError, ModelQuotaExceededError

    kind = _kind(error)
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    retry_after_s = getattr(error, "retry_after", None)
    said = one_sentence(_words_of(error), secret=secret)
    happened = {
        FailureKind.RATE_LIMITED: "limits the rate of requests",
        FailureKind.OVERLOADED: "is overloaded or failing",
        FailureKind.TIMEOUT: "did not answer in time",
        FailureKind.CONNECTION: "could not be reached, or the connection broke",
        FailureKind.REFUSED: "refused the request",
        FailureKind.BAD_REPLY: "sent a reply that cannot be used",
    }[kind]
    if isinstance(error, ModelQuotaExceededError):
        happened = "refused the request because the account's quota is used up"
    answer = f" ({status})" if status is not None else ""
    return Failure(
        kind=kind,
        message=f"{provider} {happened}{answer}{': ' + said if said else '.'}",
        status=status,
        retry_after_s=retry_after_s if isinstance(retry_after_s, float) else None,
    )


def _kind(error: Exception) -> FailureKind:
    import httpx2
    from pydantic_ai import exceptions

    if isinstance(error, exceptions.ModelQuotaExceededError):
        return FailureKind.REFUSED
    if isinstance(error, exceptions.ModelHTTPError):
        return _kind_of_status(error.status_code)
    kinds: tuple[tuple[FailureKind, tuple[type[Exception], ...]], ...] = (
        (FailureKind.RATE_LIMITED, (exceptions.ModelRateLimitError,)),
        (FailureKind.OVERLOADED, (exceptions.ModelUnavailableError, exceptions.ModelServerError)),
        (
            FailureKind.TIMEOUT,
            (exceptions.ModelRequestTimeout, exceptions.ModelTimeoutError, httpx2.TimeoutException, TimeoutError),
        ),
        (FailureKind.CONNECTION, (exceptions.ModelConnectionError, httpx2.TransportError, OSError, EOFError)),
        (FailureKind.REFUSED, (exceptions.ModelRequestRejectedError, exceptions.UserError)),
    )
    for kind, types in kinds:
        if isinstance(error, types):
            return kind
    return FailureKind.BAD_REPLY


def _kind_of_status(status: int) -> FailureKind:
    if status == 429:
        return FailureKind.RATE_LIMITED
    if status == 408:
        return FailureKind.TIMEOUT
    if status >= 500:
        return FailureKind.OVERLOADED
    return FailureKind.REFUSED if status >= 400 else FailureKind.BAD_REPLY


def _words_of(error: Exception) -> str:
    """The provider's own message, or else the error's; an HTML page says nothing."""
    body: object = getattr(error, "body", None)
    if body is None:
        return str(error)
    for _ in range(4):  # [{"error": {"message": …}}] is the deepest seen
        if isinstance(body, list) and body:
            body = body[0]
        elif isinstance(body, Mapping):
            body = next((body[key] for key in ("error", "message", "detail", "type") if body.get(key)), "")
    return body if isinstance(body, str) and not body.lstrip().startswith("<") else ""


def one_sentence(text: str, *, secret: str = "") -> str:
    """The first sentence of `text` on one line, at most 200 characters, without what looks like a key."""
    if secret:
        text = text.replace(secret, "[key]")
    line = _KEY_LIKE.sub("[key]", " ".join(text.split()))
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    if len(sentence) > _SHOWN:
        return sentence[: _SHOWN - 1] + "…"
    return sentence if not sentence or sentence[-1] in ".!?" else sentence + "."
