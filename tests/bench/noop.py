"""A milter that does nothing, as fast as pymilter can: what the gateway's is compared with.

Same callbacks, same negotiation, same macros, same number of processes on one socket; no logic, no store, no edits.
As a program it is one worker, with the number of the listening socket's descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import Milter

__all__ = ["Noop"]


class _Nothing(Milter.Base):  # type: ignore[misc]
    """The gateway's callbacks (mm4.postfix.milter), each with nothing in it."""

    def setsymlist(self, stage: int, *macros: str) -> None:
        # As the gateway's: pymilter's own makes bytes, which its C half refuses.
        self._ctx.setsymlist(stage, " ".join(macros))

    def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
        return int(Milter.CONTINUE)

    @Milter.symlist("{cert_subject}", "{auth_authen}", "{tls_version}")  # type: ignore[untyped-decorator]
    @Milter.decode("bytes")  # type: ignore[untyped-decorator]
    def envfrom(self, path: bytes, *parameters: bytes) -> int:
        return int(Milter.CONTINUE)

    @Milter.decode("bytes")  # type: ignore[untyped-decorator]
    def envrcpt(self, path: bytes, *parameters: bytes) -> int:
        return int(Milter.CONTINUE)

    @Milter.noreply  # type: ignore[untyped-decorator]
    def data(self) -> int:
        return int(Milter.CONTINUE)

    @Milter.decode("bytes")  # type: ignore[untyped-decorator]
    @Milter.noreply  # type: ignore[untyped-decorator]
    def header(self, name: str, value: bytes) -> int:
        return int(Milter.CONTINUE)

    @Milter.noreply  # type: ignore[untyped-decorator]
    def eoh(self) -> int:
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        return int(Milter.ACCEPT)

    def abort(self) -> int:
        return int(Milter.CONTINUE)

    def close(self) -> int:
        return int(Milter.CONTINUE)


class Noop:
    """`workers` such processes behind the UNIX socket `path`, to which anybody may connect."""

    def __init__(self, path: Path, workers: int) -> None:
        self.socket = path
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o777)
            listener.listen(200)
            listener.setblocking(False)
            libc = ctypes.CDLL(None)
            self.processes = [
                subprocess.Popen(
                    [sys.executable, __file__, str(listener.fileno())],
                    stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()],
                    # PR_SET_PDEATHSIG: it goes when the bench goes, however that ends.
                    preexec_fn=lambda: libc.prctl(1, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - no threads here
                )
                for _ in range(workers)
            ]  # fmt: skip

    @property
    def workers(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self.processes]

    def close(self) -> None:
        """Stop them. libmilter's own stop takes seconds, and there is nothing to lose."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(10)
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()


def _worker(descriptor: int) -> None:
    Milter.factory = _Nothing
    # What the gateway asks for.
    Milter.set_flags(
        Milter.CHGHDRS | Milter.ADDHDRS | Milter.ADDRCPT | Milter.ADDRCPT_PAR | Milter.DELRCPT | Milter.CHGFROM
        | Milter.QUARANTINE
    )  # fmt: skip
    Milter.milter.setbacklog(200)
    Milter.runmilter("noop", f"fd:{descriptor}", rmsock=False)


if __name__ == "__main__":
    _worker(int(sys.argv[1]))
