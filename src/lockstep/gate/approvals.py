"""What an approval is good for: exactly this call, for this principal, under this lock and these policies.

Pure. The digest over it stands in `approval.asked`, and is made anew when somebody answers and when the permit is
minted: what has changed since is then not what was approved.
"""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.agent.locked import LockedAgent
from lockstep.errors import PermitError
from lockstep.kernel.state import CallState, State
from lockstep.values import Digest, digest_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Under what an approval is asked for and given."""

    lock: Digest
    policy: Digest

    @classmethod
    def of(cls, agent: LockedAgent) -> Terms:
        return cls(lock=agent.digest, policy=agent.policy_digest)


def bound_digest(state: State, call: CallState, terms: Terms) -> Digest:
    """The digest of all that this approval is good for; the call's own digest has its run and arguments in it."""
    return digest_json(
        {
            "approval": call.approval,
            "approvers": call.approvers,
            "call": call.digest,
            "expires_at_ms": call.approval_expires_ms,
            "lock": terms.lock,
            "policy": terms.policy,
            "principal": state.principal,
            "principal_may_approve": call.principal_may_approve,
        }
    )


def require_bound(state: State, call: CallState, terms: Terms) -> None:
    """Refuse the permit of an approved call that is no longer what was approved.

    Raises:
        PermitError: with what is wrong; nothing ran.
    """
    if not call.approval:
        return
    if len(call.approvals) < call.approvers:
        raise PermitError(f"Call {call.id} of run {state.run} was not approved by {call.approvers} people.")
    if call.bound is None:
        raise PermitError(
            f"Approval {call.approval} of run {state.run} is of a version that did not bind it to a lock and policies.",
            remedy=f"`lockstep cancel {state.run}` ends the run.",
        )
    if bound_digest(state, call, terms) != call.bound:
        raise PermitError(
            f"Approval {call.approval} of run {state.run} was given for another call, lock, policy or principal.",
            remedy=f"`lockstep verify {state.run}` says whether its record was changed.",
        )
