"""The listening sockets of `mm4 serve`, in one folder: made here, or those that systemd holds (sd_listen_fds(3)).

What systemd holds outlives a restart: who connects meanwhile waits in the backlog, and the next daemon serves him.
Those sockets are systemd's to make, to give a mode and to remove.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from ..protocol.errors import ConfigError

__all__ = ["held_by_systemd", "listeners"]

_FIRST = 3
"""The first descriptor of sd_listen_fds(3)."""
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def held_by_systemd() -> list[socket.socket]:
    """The sockets that systemd gave this process; none without it. Call it once. Raises ConfigError for what is none.

    Its variables go from the environment, so that no child takes them for its own.
    """
    said = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if said["LISTEN_PID"] != str(os.getpid()) or not said["LISTEN_FDS"].isdecimal():
        return []
    held = []
    for descriptor in range(_FIRST, _FIRST + int(said["LISTEN_FDS"])):
        try:
            held.append(socket.socket(fileno=descriptor))
        except OSError as error:
            raise ConfigError(
                f"descriptor {descriptor}, which systemd gave, is no socket ({error.strerror}): "
                "mm4.socket may have no other than ListenStream= lines"
            ) from None
        os.set_inheritable(descriptor, False)
        held[-1].setblocking(False)
    return held


def listeners(
    folder: Path, names: Sequence[str], held: Sequence[socket.socket], where: str
) -> dict[str, socket.socket]:
    """A listening, non-blocking socket for each of `names`: those that are `held`, else new ones in `folder`.

    `where` is the place of the folder in the configuration, for errors. Raises ConfigError.
    """
    if not held:
        return {name: _listen(folder / name, where) for name in names}
    wanted = {str((folder / name).resolve()): name for name in names}
    found, strange = {}, []
    for listener in held:
        name = wanted.get(_path(listener))
        if name is None or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            strange.append(_path(listener))
        else:
            found[name] = listener
    lacking = [path for path, name in wanted.items() if name not in found]
    if strange or lacking:
        problems = [f"{', '.join(lacking)} is lacking"] if lacking else []
        problems += [f"{', '.join(strange)} has no use here"] if strange else []
        raise ConfigError(
            f"{where}: the sockets that systemd gave do not fit: {'; '.join(problems)}. mm4.socket needs a line "
            f"ListenStream= for each of {', '.join(wanted)}, and no other (systemctl edit mm4.socket), or "
            "mend folders.sockets"
        )
    return {name: found[name] for name in names}


def _path(listener: socket.socket) -> str:
    at = listener.getsockname()
    if listener.family == socket.AF_UNIX and listener.type == socket.SOCK_STREAM and isinstance(at, str):
        return str(Path(at).resolve())
    return repr(at)


def _listen(path: Path, where: str) -> socket.socket:
    """Non-blocking: of two that wake for one connection the loser would sleep in accept(2) and hear no signal."""
    if len(str(path).encode()) > 100:
        raise ConfigError(f"{where}: {path} is too long for a UNIX socket (100 bytes); choose a shorter folder")
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        # Postfix connects as its own user; tokens are unguessable, the milter refuses strangers by address, and of
        # fingerprints only Postfix may tell.
        path.chmod(0o666)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{where}: cannot make {path}: {error.strerror}; the folder has to exist and be writable "
            f"for this user (install -d -o mm4 {path.parent})"
        ) from None
    listener.listen(256)
    listener.setblocking(False)
    return listener
