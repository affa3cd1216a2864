"""Images and files of a run, written out: names that are safe anywhere, and nothing that is there is touched."""

from __future__ import annotations

import itertools
import mimetypes
import re
from pathlib import Path

from lockstep.kernel.state import State
from lockstep.values import Attachment

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_CHARACTERS = 100


def save_attachments(directory: Path, state: State) -> list[Path]:
    """Write every attachment of a run as `CALL-NAME`; the paths, in order. One saved before is left as it is.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return [
        _save(directory, call.id, _file_name(number, attachment), attachment.data)
        for call in state.all_calls
        for number, attachment in enumerate(call.attachments, start=1)
    ]


def _file_name(number: int, attachment: Attachment) -> str:
    """Tools call files what they like: a name loses all but plain characters. It follows the call's id."""
    name = _UNSAFE.sub("_", attachment.name).strip("._")[-_MAX_CHARACTERS:]
    if not name:
        kind = "image" if attachment.shown else "file"
        name = f"{kind}-{number}{mimetypes.guess_extension(attachment.mime_type) or ''}"
    return name


def _save(directory: Path, call: str, name: str, data: bytes) -> Path:
    for number in itertools.count(1):
        path = directory / (f"{call}-{name}" if number == 1 else f"{call}-{number}-{name}")
        try:
            with path.open("xb") as file:  # exclusive: a link that lies there is not followed either
                file.write(data)
        except FileExistsError:
            if not path.is_symlink() and path.is_file() and path.read_bytes() == data:
                return path
        else:
            return path
    raise AssertionError("there is always a next number")
