"""Local delivery without an MMSC: one Maildir a number, served over LMTP.

virtual(8) refuses computed paths, so this is ours. A delivery is acknowledged only when the file and its
folder entry are on disk (the standard library's `mailbox` syncs the file but never the folder, so a power
cut could take an acknowledged message). A full disk is 452, any other fault of storage 451: Postfix keeps
the message. CRLF becomes LF, as is usual in a Maildir; nothing else of the message changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..protocol.errors import Reply
from .lmtp import Envelope
from .mailpath import split_address
from .synced import sync_folder

__all__ = ["Maildir", "store_in"]

log = logging.getLogger("mm4.maildir")

# 3 digits: the shortest short code. 20: more than E.164's 15, less than any limit of a file name.
_NUMBER = re.compile(r"\+?([0-9]{3,20})(?:/TYPE=PLMN)?", re.IGNORECASE)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_counter = itertools.count()
_making = threading.Lock()


def _host() -> str:
    # A Maildir name may hold neither of these; the convention writes them in octal.
    return socket.gethostname().replace("/", "\\057").replace(":", "\\072")


def _make_folder(folder: Path) -> None:
    """Make a folder (0700) and those above it. Each new entry is synced: a power cut could take it else."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


def store_in(folder: Path, mail_from: str, recipient: str, data: bytes) -> Path:
    """Write one message into the Maildir `folder`, which is made if need be, and return its path.

    `data` has CRLF line ends; `Return-Path` and `Delivered-To` are put in front. Blocks for two or three
    fsyncs. Raises OSError; then nothing of the message is left behind.
    """
    # Under a lock, so that nobody takes a folder for lasting that another thread has made but not yet synced.
    with _making:
        for part in ("tmp", "new", "cur"):
            _make_folder(folder / part)
    now = time.time_ns()
    name = f"{now // 10**9}.M{now // 1000 % 10**6}P{os.getpid()}Q{next(_counter)}.{_host()}"
    top = f"Return-Path: <{mail_from}>\nDelivered-To: {recipient}\n".encode("utf-8", "surrogateescape")
    temporary, final = folder / "tmp" / name, folder / "new" / name
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(top)
            file.write(data.replace(b"\r\n", b"\n"))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    try:
        sync_folder(final.parent)
    except OSError:
        # The client is told to try again, so this copy would become a duplicate.
        with contextlib.suppress(OSError):
            final.unlink()
        raise
    return final


class Maildir:
    """An LMTP handler that stores into `<base>/<digits>/new`.

    The digits are those of the recipient's local part (`+447700900101`, `447700900101/TYPE=PLMN`); any
    other local part gets 550 5.1.1, so that no address can name a path. The domain is not looked at:
    Postfix's transport table decides what comes here. `threads` deliveries run at a time.
    """

    def __init__(self, base: Path, *, threads: int = 4) -> None:
        self._base = base
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mm4-maildir")

    def rcpt(self, envelope: Envelope, address: str) -> Reply:
        """Accept a number, refuse anything else for good."""
        if self.folder(address) is None:
            log.warning("status=refused recipient=%s reason=no-number", ascii(address))
            return Reply(550, "5.1.1", "Not a number of this system")
        return Reply(250, "2.1.5", "Ok")

    def folder(self, address: str) -> Path | None:
        """Return the Maildir of an address; None where its local part is no number."""
        match = _NUMBER.fullmatch(split_address(address)[0])
        return self._base / match[1] if match else None

    def wanted(self, envelope: Envelope) -> int | None:
        """Want the whole message."""
        return None

    async def deliver(self, envelope: Envelope, data: bytes) -> list[Reply]:
        """Store once a recipient; each gets its own reply."""
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._pool, self._store, envelope, r, data) for r in envelope.recipients]
        return await asyncio.gather(*jobs)

    def _store(self, envelope: Envelope, recipient: str, data: bytes) -> Reply:
        folder = self.folder(recipient)
        if folder is None:
            raise ValueError(f"not accepted at RCPT: {recipient!r}")
        try:
            path = store_in(folder, envelope.mail_from, recipient, data)
        except OSError as error:
            log.error("status=deferred recipient=%s error=%s", ascii(recipient), ascii(str(error)))
            if error.errno in _FULL:
                return Reply(452, "4.3.1", "Mail system full, try again later")
            return Reply(451, "4.3.0", "Mailbox unavailable, try again later")
        log.info("status=stored recipient=%s bytes=%d file=%s", ascii(recipient), len(data), path.name)
        return Reply(250, "2.0.0", "Stored")

    def close(self) -> None:
        """Let running deliveries end and stop the threads."""
        self._pool.shutdown()
