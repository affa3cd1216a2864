"""Answers to approvals and servers, left beside the store for the process that holds it: a gateway while it serves.

An answer is a small file that appears whole. It says what a person said, not what follows: whoever takes it checks it
like every other answer and records it in the journal. It is as trustworthy as the right to write into the store.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

_ATTENDED = "attended"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a person said of one approval, or of one question of a server."""

    approval: str
    given: bool
    by: str
    because: str = ""
    login: str = ""
    digest: str = ""
    input: bool = False
    """It answers a server that asked for input, with `responses`, or ends its call."""
    responses: str = ""
    """JSON; empty where it is told nothing."""


class Inbox:
    """The answers that lie in a store's directory."""

    def __init__(self, store: Path) -> None:
        self._directory = store / "answers"
        self._fd: int | None = None

    def attend(self) -> None:
        """Say that this process takes what is left here, until `close`."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._fd = os.open(self._directory / _ATTENDED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def leave(self, answer: Answer) -> bool:
        """Leave an answer; False, and nothing left, where nobody takes it."""
        if not answer.approval.isalnum() or not self.is_attended():
            return False
        draft = self._directory / f".{answer.approval}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(answer)))
        draft.rename(self._directory / f"{answer.approval}.json")
        return True

    def left(self) -> list[Answer]:
        """What lies there until it is `taken`; a file that is none of ours is taken away and means nothing."""
        answers = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                answer = Answer(**json.loads(path.read_text(errors="replace")))
            except (ValueError, TypeError):
                answer = None
            if answer is not None and answer.approval == path.stem and type(answer.given) is bool:
                answers.append(answer)
            else:
                path.unlink()
        return answers

    def taken(self, answer: Answer) -> None:
        """It is in the journal, or came to nothing: only now may it be forgotten here."""
        (self._directory / f"{answer.approval}.json").unlink(missing_ok=True)

    def is_attended(self) -> bool:
        """Whether a process takes what is left here."""
        try:
            fd = os.open(self._directory / _ATTENDED, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False
