"""A call that goes on after its server asked for input, or as a task: the same effect, with a permit for each round.

Pure. The digest of a round is over the call's own and everything that is added to it, so a permit for one round is
good for no other, nor for other answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from lockstep.kernel.state import CallState
from lockstep.values import Digest, JsonObject, digest_json, sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What goes on: the answers by key, and the server's own state, as it came; None where it gave none.

    Where the call has become a `task`, that is asked after, and the call is never made again.
    """

    responses: JsonObject
    state: str | None
    task: str = ""


def round_of(call: CallState) -> Round | None:
    """What this call goes on with; None in its first round, and where it begins anew."""
    if not _goes_on(call):
        return None
    responses = json.loads(call.answers) if call.answers else {}
    state = None if call.task else json.loads(call.asked).get("state")
    return Round(responses=responses, state=state, task=call.task)


def round_digest(call: CallState, digest: Digest) -> Digest:
    """The identity of the next round of a call with this digest: its own, in the first."""
    if not _goes_on(call):
        return digest
    task = {"task": call.task} if call.task else {}
    said = {"answers": sha256(call.answers.encode()), "asked": call.asked_digest, "round": call.rounds}
    return digest_json({"call": digest, **said, **task})


def _goes_on(call: CallState) -> bool:
    """Whether something was asked of it that is good still: not of a task that is no more, nor of before that."""
    return bool(call.task or (call.rounds and (call.asked or call.answers)))
