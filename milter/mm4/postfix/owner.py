"""Who may serve: one supervisor for a folder of sockets, or, while none does, a command that needs it so."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..protocol.errors import ConfigError

__all__ = ["Served", "own"]


class Served(ConfigError):
    """A daemon serves with these sockets."""


def own(folder: Path, where: str) -> int:
    """Be the only supervisor of the sockets in `folder`, for as long as the returned descriptor is open.

    A lock and not a look at the sockets: after a supervisor was killed its children still answer there while they
    finish what has begun, and the next one must not be kept from starting by them. Raises Served, and ConfigError where
    the folder cannot be locked; both name `where`.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Served(f"{where}: another mm4 serves in {folder}; stop it first") from None
    except OSError as error:
        raise ConfigError(f"{where}: {folder} cannot be locked: {error.strerror}") from None
    return descriptor
