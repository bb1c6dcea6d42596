"""The first children of `mm4 serve`, forked: they share what the supervisor has loaded, in time and in memory.

The supervisor forks them all at once while it has one thread, no event loop and no open store. Each keeps its own
sockets and its ends of two pipes, and nothing else that the supervisor has opened. It reads and writes them as its
standard input and output (see `control`), like the program that comes in its place when it has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["Forked", "fork"]

_LOOK_SECONDS = 0.02
_TITLE = slice(45, 47)
"""Where the arguments begin and end, in proc_pid_stat(5): fields 48 and 49, of those from the third on."""


class Forked:
    """A process that was forked, and our ends of its pipes; used as an asyncio.subprocess.Process, once connected."""

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: asyncio.WriteTransport | None = None
        self.stdout: asyncio.StreamReader | None = None
        self._ends = (stdin, stdout)

    async def connect(self) -> None:
        """Make the pipes `stdin` and `stdout`, in the loop that runs."""
        loop = asyncio.get_running_loop()
        to_it, from_it = (os.fdopen(end, mode, 0) for end, mode in zip(self._ends, ("wb", "rb"), strict=True))
        self.stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, to_it)
        self.stdout = reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), from_it)

    async def wait(self) -> int:
        """Wait until it has ended; its exit code, negative for a signal. It has closed its output: that is soon."""
        while self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # whoever started us had SIGCHLD ignored: it is known to nobody
                self.returncode = 255
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
                else:
                    await asyncio.sleep(_LOOK_SECONDS)
        return self.returncode

    def kill(self) -> None:
        """End it at once. Its number is its own until `wait` has returned."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def fork(
    children: Sequence[tuple[str, Sequence[socket.socket]]], sockets: Sequence[socket.socket], lock: int
) -> list[Forked | None]:
    """Fork a process for each module with its sockets, in which the module's main() runs on their descriptors.

    `sockets` are all that are open here, and with `lock` what a child must not keep. None for each where a thread runs
    here, a store's that hangs in a dead disk: whoever was forked now might wait for it for ever.

    From here on garbage is collected again, and what is loaded is left out.
    """
    for module, _ in children:
        importlib.import_module(module)
    gc.freeze()  # or the first collection in each child would make a copy of nearly every page
    gc.enable()
    if threading.active_count() > 1:
        return [None] * len(children)
    forked: list[Forked | None] = []
    ends = [lock]
    for module, own in children:
        sys.stdout.flush()
        sys.stderr.flush()
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        ends += [stdin, stdout]
        pid = os.fork()
        if pid == 0:
            _live(module, own, sockets, ends, (their_stdin, their_stdout))
        os.close(their_stdin)
        os.close(their_stdout)
        forked.append(Forked(pid, stdin, stdout))
    return forked


def _live(
    module: str, own: Sequence[socket.socket], sockets: Sequence[socket.socket], ends: Sequence[int],
    pipes: tuple[int, int],
) -> NoReturn:  # fmt: skip
    """The child, to its end."""
    code = 1
    try:
        os.setsid()
        _call_itself(module)
        for end in ends:
            os.close(end)
        for number, pipe in enumerate(pipes):
            os.dup2(pipe, number)
            os.close(pipe)
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        descriptors = [listener.detach() for listener in own]
        for listener in sockets:
            listener.close()
        code = sys.modules[module].main(*descriptors)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _call_itself(title: str) -> None:
    """Have ps(1) and pgrep(1) show `title` in the place of the supervisor's command, cut to the length of that."""
    with contextlib.suppress(OSError, ValueError):
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        begin, end = map(int, fields[_TITLE])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(title.encode()[: end - begin - 1].ljust(end - begin, b"\0"))
