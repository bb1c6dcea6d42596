"""Which peers the operator has paused, and since when: one file a peer below the state folder.

It is state of this host's Postfix, not of the store, which several hosts may share, and not of the YAML, which is
about what is normal. It outlives restarts, `mm4 postfix maps` and changes of the YAML.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path

from ..gateway.config import Config
from ..gateway.names import PEER_NAME
from ..protocol.errors import PostfixError
from .synced import sync_folder

__all__ = ["note", "paused_peers", "strike"]


def paused_peers(config: Config) -> dict[str, datetime]:
    """Name and since when, of every peer that is paused. Raises PostfixError where that cannot be read."""
    folder = _folder(config)
    found = {}
    try:
        for path in sorted(folder.iterdir()):
            if PEER_NAME.match(path.name):
                found[path.name] = _moment(path)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise PostfixError(f"{error.filename or folder}: {error.strerror}: paused peers are kept there") from error
    return found


def note(config: Config, name: str, at: datetime) -> None:
    """Remember that a peer is paused since `at`, on disk when this returns. Raises PostfixError."""
    folder = _folder(config)
    try:
        # Not its parents: the state folder is the daemon's, who could not use one that root made.
        folder.mkdir(mode=0o755, exist_ok=True)
        temporary = folder / f".{name}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(at.isoformat() + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
        sync_folder(folder)
    except FileNotFoundError as error:
        hint = "start mm4 serve once, or mend folders.state"
        raise PostfixError(f"{folder.parent}: there is no such folder; {hint}") from error
    except OSError as error:
        raise PostfixError(f"{error.filename or folder}: cannot be written: {error.strerror}; run as root") from error


def strike(config: Config, name: str) -> None:
    """Forget that a peer is paused; no error where it is not. Raises PostfixError."""
    folder = _folder(config)
    try:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
            sync_folder(folder)
    except OSError as error:
        raise PostfixError(f"{error.filename or folder}: cannot be removed: {error.strerror}; run as root") from error


def _folder(config: Config) -> Path:
    return Path(config.folders.state) / "paused"


def _moment(path: Path) -> datetime:
    try:
        found = datetime.fromisoformat(path.read_text("utf-8").strip())
    except ValueError:  # somebody made the file by hand: what counts is that it is there
        found = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return found if found.tzinfo else found.astimezone()
