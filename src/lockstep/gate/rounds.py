"""A call that goes on after its server asked for input: the same effect, with more said, and a permit for each round.

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
    """What goes on: the answers by key, and the server's own state, as it came; None where it gave none."""

    responses: JsonObject
    state: str | None


def round_of(call: CallState) -> Round | None:
    """What this call goes on with; None in its first round."""
    if not call.rounds:
        return None
    return Round(responses=json.loads(call.answers), state=json.loads(call.asked).get("state"))


def round_digest(call: CallState, digest: Digest) -> Digest:
    """The identity of the next round of a call with this digest: its own, in the first."""
    if not call.rounds:
        return digest
    return digest_json(
        {"answers": sha256(call.answers.encode()), "asked": call.asked_digest, "call": digest, "round": call.rounds}
    )
