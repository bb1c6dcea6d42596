"""Copies of what went to peers that may have to get it again: one file a token below the state folder.

A copy is there before the store says that Postfix has the message, on disk, folder entry included; it goes when
nobody waits for a RES any more. Beyond the quota none is kept. What Postfix delivers to the responder is what the
peer got; its own Received line comes off, since sending it again puts one on.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Collection
from pathlib import Path

from ..gateway.names import TOKEN
from .synced import sync_folder

__all__ = ["Spool", "as_received"]

_RECEIVED = re.compile(rb"Received:(?:[^\r\n]|\r?\n[ \t])*\r?\n", re.IGNORECASE)
# `postsuper -r` gives a message a new id and puts one more line on top of that of the first.
_REQUEUED = re.compile(rb"\s\(Postfix, from userid [0-9]+\)\s+id\s")
_SENDER = re.compile(rb"Return-Path: <([^\r\n]*)>\r\n")
_TEMPORARY = ".tmp"


def as_received(data: bytes) -> bytes:
    """The message without the Received lines that this Postfix put on top of it."""
    while match := _RECEIVED.match(data):
        data = data[match.end() :]
        if _REQUEUED.search(match[0]) is None:
            break
    return data


class Spool:
    """The copies in `folder`, which together take at most `quota` bytes. One process uses it; its threads may at once.

    `open` comes first. Every other method may raise OSError.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self.quota = quota
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._used = 0

    def open(self) -> None:
        """Make the folder, drop what a crash left unfinished, and see what is there. Raises OSError."""
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if TOKEN.match(entry.name):
                    self._sizes[entry.name] = entry.stat().st_size
                elif entry.name.endswith(_TEMPORARY):
                    os.unlink(entry.path)
        self._used = sum(self._sizes.values())

    @property
    def used(self) -> int:
        """Bytes that the copies take."""
        return self._used

    def tokens(self) -> list[str]:
        """Whose copies there are."""
        with self._lock:
            return list(self._sizes)

    def keep(self, token: str, mail_from: str, message: bytes) -> bool:
        """Keep a copy, on disk when this returns; False where the quota leaves no room. A second one is the first."""
        top = f"Return-Path: <{mail_from}>\r\n".encode("utf-8", "surrogateescape")
        size = len(top) + len(message)
        with self._lock:
            if token in self._sizes:
                return True
            if self._used + size > self.quota:
                return False
            self._sizes[token] = size
            self._used += size
        final = self._folder / token
        temporary = final.with_suffix(_TEMPORARY)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(top)
                file.write(message)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
            sync_folder(self._folder)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self.remove([token])
            raise
        return True

    def read(self, token: str) -> tuple[str, bytes] | None:
        """Envelope sender and message of a copy; None where there is none."""
        try:
            data = (self._folder / token).read_bytes()
        except FileNotFoundError:
            return None
        match = _SENDER.match(data)
        return (match[1].decode("utf-8", "surrogateescape"), data[match.end() :]) if match else None

    def remove(self, tokens: Collection[str]) -> None:
        """Drop copies. Not synced: one that comes back by a power cut is an orphan, and is dropped again."""
        for token in tokens:
            (self._folder / token).unlink(missing_ok=True)
            with self._lock:
                self._used -= self._sizes.pop(token, 0)
