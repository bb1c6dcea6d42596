"""The name by which the store knows this host: whose queue a message is in, who has its copy to send again.

It is kept beside those copies, in the state folder. A host that gets another name, or a new container on the volumes of
an old one, is still the one that has them.
"""

from __future__ import annotations

import socket
from pathlib import Path

from .maps import replace_file

__all__ = ["host_of", "keep_host"]

_FILE = "host"


def host_of(state: Path) -> str:
    """The name that is kept in the state folder; the system's where none is. Raises OSError."""
    try:
        return (state / _FILE).read_text("utf-8").strip() or socket.gethostname()
    except FileNotFoundError:
        return socket.gethostname()


def keep_host(state: Path) -> str:
    """As `host_of`; from now on it is kept. Raises OSError."""
    name = host_of(state)
    replace_file(state / _FILE, f"{name}\n")
    return name
