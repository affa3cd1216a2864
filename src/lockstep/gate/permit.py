"""Permits: the single-use right to execute exactly one call. Only the gate mints them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from lockstep.errors import PermitError
from lockstep.values import Digest, new_token


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Permit:
    """The right to run the call with this digest, once, before it expires. Worthless without its mint."""

    id: str
    call_digest: Digest
    expires_at_ms: int
    mint: PermitMint = field(repr=False, compare=False)

    def redeem(self, call_digest: Digest, now_ms: int) -> None:
        """Spend the permit on this call; everything that executes does this first.

        Raises:
            PermitError: unknown to its mint, already spent, expired, or for another call; nothing ran.
        """
        self.mint.redeem(self, call_digest, now_ms)


class PermitMint:
    """Makes permits and remembers which are unspent. One per gate; a permit of another mint is worthless."""

    def __init__(self) -> None:
        self._unspent: WeakValueDictionary[str, Permit] = WeakValueDictionary()  # what nobody holds cannot be spent
        self._lock = threading.Lock()

    def issue(self, call_digest: Digest, *, expires_at_ms: int) -> Permit:
        permit = Permit(id=new_token("p"), call_digest=call_digest, expires_at_ms=expires_at_ms, mint=self)
        with self._lock:
            self._unspent[permit.id] = permit
        return permit

    def redeem(self, permit: Permit, call_digest: Digest, now_ms: int) -> None:
        with self._lock:
            known = self._unspent.pop(permit.id, None)
        if known is not permit:
            raise PermitError(f"Permit {permit.id} is spent or was not made by this gate.")
        if permit.call_digest != call_digest:
            raise PermitError(f"Permit {permit.id} is for another call.")
        if now_ms >= permit.expires_at_ms:
            raise PermitError(f"Permit {permit.id} has expired.")
