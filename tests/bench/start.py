"""How long a start takes: `mm4 serve` until its first message is through, and the command's help."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from contextlib import suppress

from harness import NORTH, SECONDS

from .alone import request, sqlite
from .daemon import WORKERS, Daemon
from .figures import spread
from .part import Asked, Part, Target, Wrong, table
from .wire import Conversation, conversation, drive, negotiate

__all__ = ["start"]

START = 1.5
"""Seconds from the command to the verdict on a first message."""
HELP = 0.25
"""Seconds for `mm4 --help`."""


def start(asked: Asked) -> Part:
    """Both, several times; with the computing time, which a busy machine does not change."""
    times = asked.many(max(asked.rounds, 5), 1)
    daemon = Daemon(asked.folder / "daemon", sqlite(asked.folder), WORKERS)
    served, computed = [], []
    try:
        talk = conversation(negotiate(daemon.socket), NORTH, *request("start"))
        for number in range(times):
            daemon.close()
            before, begun = _children(), time.monotonic()
            daemon.start(wait=False)
            _first(daemon, talk, number)
            served.append(time.monotonic() - begun)
            daemon.close()
            computed.append(_children() - before)
    finally:
        daemon.close()
    helped, worked = [], []
    for _ in range(times * 2):
        before, begun = _children(), time.monotonic()
        subprocess.run([sys.executable, "-m", "mm4", "--help"], check=True, stdout=subprocess.DEVNULL)
        helped.append(time.monotonic() - begun)
        worked.append(_children() - before)
    rows = [
        ["`mm4 serve`, until the verdict on a first message", f"{spread(served, 2)} s", f"{spread(computed, 2)} s"],
        ["`mm4 --help`", f"{spread([1000 * s for s in helped], 0)} ms", f"{spread([1000 * s for s in worked], 0)} ms"],
    ]
    first, help_ = statistics.median(served), statistics.median(helped)
    lines = [
        *table(["", "time", "computing time"], rows), "",
        "The daemon's computing time is that of all its processes, until they have stopped again.",
    ]  # fmt: skip
    targets = [
        Target("start to first message", f"< {START:.1f} s", f"{first:.2f} s", first < START),
        Target("`mm4 --help`", f"< {1000 * HELP:.0f} ms", f"{1000 * help_:.0f} ms", help_ < HELP),
    ]
    data = {"served": served, "computed": computed, "help": helped, "help_computed": worked}
    return Part("Start", lines, targets, data)


def _first(daemon: Daemon, talk: Conversation, number: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            drive(daemon.socket, talk, [number], 1)
            return
        time.sleep(0.002)
    raise Wrong(f"mm4 serve took no message within {SECONDS:.0f} s")


def _children() -> float:
    """Seconds that all children which are gone have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
