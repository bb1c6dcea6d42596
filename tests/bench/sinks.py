"""What stands at the next hops: Postfix's smtp-sink, which takes mail, counts it and, where asked, keeps it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

from harness import free_port, wait_for

__all__ = ["Sink"]

_COUNT = re.compile(rb"mesg=(\d+)")
_TRANSACTION = re.compile(rb'^X-Mms-Transaction-ID: "?([^"\r\n]+)', re.MULTILINE | re.IGNORECASE)


class Sink:
    """One smtp-sink on loopback. With `keep`, what it takes goes to a file in `folder`, of which ids are read."""

    def __init__(self, folder: Path, name: str, *, keep: bool = False) -> None:
        program = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise SystemExit("bench: smtp-sink is not on this host; it comes with Debian's package postfix")
        self.server = f"127.0.0.1:{free_port()}"
        self.hop = f"[127.0.0.1]:{self.server.rpartition(':')[2]}"
        self._dump = folder / f"{name}.mbox"
        self._counters = (folder / f"{name}.counters").open("w+b")
        keeping = ["-D", str(self._dump)] if keep else []
        libc = ctypes.CDLL(None)
        self.process = subprocess.Popen(
            [program, "-u", "postfix", "-c", *keeping, self.server, "200"],
            stdin=subprocess.DEVNULL, stdout=self._counters,
            # PR_SET_PDEATHSIG: it goes when the bench goes, however that ends.
            preexec_fn=lambda: libc.prctl(1, signal.SIGTERM, 0, 0, 0),  # noqa: PLW1509 - there are no threads here
        )  # fmt: skip
        wait_for(self._accepts, f"smtp-sink {name}")

    def _accepts(self) -> bool:
        host, _, port = self.server.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def count(self) -> int:
        """Messages taken since the start."""
        size = os.fstat(self._counters.fileno()).st_size
        found = _COUNT.findall(os.pread(self._counters.fileno(), 200, max(0, size - 200)))
        return int(found[-1]) if found else 0

    def transactions(self) -> Counter[str]:
        """How often each transaction id came in."""
        data = self._dump.read_bytes() if self._dump.exists() else b""
        return Counter(match.decode("latin-1") for match in _TRANSACTION.findall(data))

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(10)
        self._counters.close()
