"""One request on its way out: its bounds, and what becomes its record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lockstep.sandbox.contract import EgressRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class EgressCaps:
    """Bounds of one proxy. Sizes in bytes of body, times in seconds."""

    request_bytes: int = 8 * 2**20
    reply_bytes: int = 32 * 2**20
    head_s: float = 10.0
    connect_s: float = 10.0
    total_s: float = 120.0
    connections: int = 16
    requests: int = 1000


@dataclass(kw_only=True, slots=True)
class Exchange:
    """One request on its way: what becomes its record."""

    began: float = field(default_factory=time.monotonic)
    method: str = ""
    url: str = ""
    allowed: bool = False
    status: int | None = None
    reason: str = ""
    bytes_out: int = 0
    bytes_in: int = 0
    flag: str = ""
    purpose: str = ""

    def record(self) -> EgressRecord:
        return EgressRecord(
            method=self.method[:32],
            url=self.url[:2048],
            allowed=self.allowed,
            status=self.status,
            reason=self.reason,
            bytes_out=self.bytes_out,
            bytes_in=self.bytes_in,
            duration_ms=(time.monotonic() - self.began) * 1000,
            flag=self.flag,
            purpose=self.purpose,
        )
