"""`mm4 serve` by itself: its milter and responder on their UNIX sockets, a store, and no Postfix."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from harness import LOCAL, NORTH, SECONDS

from .cpu import processes

__all__ = ["PEER", "WORKERS", "Daemon"]

PEER = "mms.north.example"
WORKERS = 2
"""The gateway's own default."""


class Daemon:
    """One daemon in `folder` with a store and so many workers; it serves when the constructor is through.

    `submit` (address:port) takes its acks, where the responder gets mail.
    """

    def __init__(self, folder: Path, store: str, workers: int, submit: str = f"{LOCAL}:9") -> None:
        folder.mkdir(exist_ok=True)
        self.store = store
        self.log = folder / "log"
        sockets, state, postfix = (folder / name for name in ("sockets", "state", "postfix"))
        for each in (sockets, state, postfix):
            each.mkdir(exist_ok=True)
        self.socket = sockets / "milter.sock"
        self.yaml = folder / "mm4.yaml"
        self.yaml.write_text(
            yaml.safe_dump(
                {
                    "local": {
                        "clients": [f"{LOCAL}/32"],
                        "domain": "mms.gw.example", "system_address": "system-user@mms.gw.example",
                        "numbers": ["+491511"], "deliver_to": "{number}@mmsc.gw.example", "next_hop": f"[{LOCAL}]:9",
                    },
                    "peers": {"north": {"domains": [PEER], "networks": [f"{NORTH}/32"], "next_hop": f"[{LOCAL}]:9"}},
                    "routes": [{"prefix": "+44", "peer": "north"}],
                    "submit": "smtp",
                    "store": store,
                    "service": {"workers": workers, "drain": "0s", "submit": submit},
                    "folders": {"state": str(state), "sockets": str(sockets), "postfix": str(postfix)},
                }
            )
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until every child serves unless told otherwise. Raises AssertionError."""
        said = self.log.stat().st_size if self.log.exists() else 0
        libc = ctypes.CDLL(None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mm4", "serve", "--config", str(self.yaml)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # PR_SET_PDEATHSIG: it goes when the bench goes, however that ends.
                preexec_fn=lambda: libc.prctl(1, signal.SIGTERM, 0, 0, 0),  # noqa: PLW1509 - there are no threads here
            )  # fmt: skip
        end = time.monotonic() + SECONDS
        while wait and b"serving=" not in self.log.read_bytes()[said:]:
            text = self.log.read_text(errors="replace")[-2000:]
            assert self.process.poll() is None, f"mm4 serve ended with {self.process.returncode}: {text}"
            assert time.monotonic() < end, f"mm4 serve: not ready within {SECONDS:.0f} s: {text}"
            time.sleep(0.01)

    @property
    def workers(self) -> list[int]:
        """Process ids of the milter's workers."""
        return self._children("mm4.postfix.worker")

    @property
    def responder(self) -> int:
        """Process id of the responder."""
        (pid,) = self._children("mm4.postfix.answerer")
        return pid

    def _children(self, module: str) -> list[int]:
        assert self.process is not None
        return [p.pid for p in processes().values() if p.parent == self.process.pid and module in p.command]

    def close(self) -> None:
        """Stop it."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait(10)
