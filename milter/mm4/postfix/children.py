"""Processes that a sandbox starts, and their end: none may outlive it.

Each child leads a process group and carries the sandbox's folder in its environment, by which leftovers of a
killed sandbox are known without doubt. The kernel sends SIGTERM to a child whose parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from ..protocol.errors import PostfixError

__all__ = ["MARK", "Child", "Signals", "leftovers", "stop_leftovers"]

MARK = "MM4_SANDBOX"
"""The variable whose value is the sandbox's folder. Postfix's master hands on what `import_environment` names."""

_PR_SET_PDEATHSIG = 1
_POLL = 0.02
_libc = ctypes.CDLL(None, use_errno=True)


class Signals:
    """SIGTERM, SIGINT and SIGHUP ask to stop; these and SIGCHLD end a `wait`."""

    def __init__(self) -> None:
        self.stop = False
        self._reader, self._writer = socket.socketpair()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._wakeup = -1

    def __enter__(self) -> Signals:
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._asked)
        # A handler of any kind: without one the signal does not wake.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as a signal comes."""
        if not self.stop and select.select([self._reader], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)


class Child:
    """One process with its group; output goes to the end of `log`."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path, extra: Mapping[str, str]) -> None:
        """Start it. Raises PostfixError where the program cannot be run."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died before that
                os._exit(1)

        self.command = list(command)
        self.code: int | None = None
        with log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env={**os.environ, **extra, MARK: str(folder)},
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - there are no threads here
                )
            except OSError as error:
                raise PostfixError(f"{command[0]}: cannot be run: {error.strerror}") from error

    def gone(self) -> bool:
        """Whether it has ended; then `code` is its exit status, negative for a signal.

        It stays unreaped until `stop`, so that its process group's number cannot be anybody else's.
        """
        if self.code is None:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended:
                self.code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self.code is not None

    def stop(self, patience: float) -> None:
        """SIGTERM, SIGKILL after `patience` seconds; then the same for what is left of its group."""
        if not self.gone():
            self._process.terminate()
        end = time.monotonic() + patience
        while not self.gone() and time.monotonic() < end:
            time.sleep(_POLL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Children of the child are reaped by others; the number is free when the last is gone.
        end = time.monotonic() + 5.0
        while _group_lives(self._process.pid) and time.monotonic() < end:
            time.sleep(_POLL)


class _Status(NamedTuple):
    """What `/proc/<pid>/stat` says; the defaults are those of a process that is not there."""

    group: int = 0
    runs: bool = False
    """Whether it is no zombie."""
    ending: bool = False
    """Whether it gives back what it has."""


_PF_EXITING = 0x4
"""Of the kernel's flags (linux/sched.h)."""


def _group_lives(group: int) -> bool:
    return any(_status(pid)[:2] == (group, True) for pid in _pids())


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _status(pid: int) -> _Status:
    try:
        # The command may hold blanks and brackets: what counts comes after the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return _Status()
    return _Status(int(fields[2]), fields[0] not in "ZX", bool(int(fields[6]) & _PF_EXITING))


def leftovers(folder: Path) -> list[int]:
    """Processes that a sandbox in `folder` started and that still run, however near their end."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            status = _status(pid)  # after it: a process that is only about to run another program has none either
            # The kernel takes memory and mark first, files, sockets and locks later, and the place last.
            ours = mark in environment.split(b"\0") or (status.ending and not environment and _worked_in(folder, pid))
            if pid != os.getpid() and ours and status.runs:
                found.append(pid)
    return found


def _worked_in(folder: Path, pid: int) -> bool:
    return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder)


def stop_leftovers(folder: Path, patience: float = 10.0) -> None:
    """End them: SIGTERM, after `patience` seconds SIGKILL. Raises PostfixError that names what does not go."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for pid in leftovers(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + seconds
        while leftovers(folder):
            if time.monotonic() > end:
                break
            time.sleep(_POLL)
        else:
            return
    pids = ", ".join(str(pid) for pid in leftovers(folder))
    raise PostfixError(f"processes of an earlier sandbox in {folder} do not end: {pids}")
