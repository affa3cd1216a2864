"""Files that an agent is made of, as text or bytes. Every failure becomes a sentence with file and remedy."""

from __future__ import annotations

import errno
from pathlib import Path

from lockstep.errors import ConfigError

AGENT_FILE = "agent.toml"
MAX_FILE_BYTES = 64 << 20


def inside(directory: Path, name: str) -> Path:
    """The path of a file of the agent, links followed.

    Raises:
        ConfigError: it leads out of the agent's directory: what is locked and mounted must be the agent's own.
    """
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(
            f"{path} leads out of the agent's directory.", remedy="Copy the file there instead of a link."
        )
    return path


def read_file(path: Path) -> bytes:
    """The bytes of a regular file of at most `MAX_FILE_BYTES`; a FIFO or a device would never end.

    Raises:
        OSError: missing, unreadable, too large or not a regular file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # of a directory, reading says it itself
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if path.stat().st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_BYTES >> 20} MiB", str(path))
    return path.read_bytes()


def read_text(path: Path, *, remedy: str) -> str:
    """The UTF-8 text of a file an agent names.

    Raises:
        ConfigError: missing, unreadable or not UTF-8.
    """
    try:
        return read_file(path).decode()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.", remedy=remedy) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).", remedy="Save it as UTF-8.") from error
