"""CPU seconds and memory by group of processes, from /proc: who spends what on a message.

A process's own time and that of children it has waited for are summed over all that live, so that nothing is missed
when a short-lived one (sendmail, a Postfix daemon after its hundredth job) ends between two readings.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GROUPS", "Process", "memory", "memory_of", "processes", "spent", "total"]

GROUPS = ("Postfix", "milter workers", "responder", "sendmail", "client and sinks")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table; seconds of its own, and of children that it has waited for."""

    pid: int
    parent: int
    command: str
    own: float
    waited: float


def processes() -> dict[int, Process]:
    """All that live now."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                folder = Path(entry.path)
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                own, waited = (int(fields[i]) + int(fields[i + 1]) for i in (11, 13))
                found[int(entry.name)] = Process(int(entry.name), int(fields[1]), command, own * _TICK, waited * _TICK)
    return found


def total() -> tuple[float, float]:
    """CPU seconds of the whole machine since its start: worked, by whomever, and idle."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle, iowait
    return (sum(ticks) - idle) * _TICK, idle * _TICK


def memory(pid: int) -> float:
    """MB that a process holds in memory now."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_of(table: dict[int, Process], root: int) -> dict[str, list[float]]:
    """MB of each worker and of the responder below `root`."""
    found: dict[str, list[float]] = {}
    for process in table.values():
        for group, module in (("milter workers", "mm4.postfix.worker"), ("responder", "mm4.postfix.answerer")):
            if module in process.command and root in _ancestry(table, process.pid):
                with contextlib.suppress(OSError):
                    found.setdefault(group, []).append(memory(process.pid))
    return found


def spent(
    table: dict[int, Process], root: int, others: Iterable[int] = (), workers: Iterable[int] = ()
) -> dict[str, float]:
    """Seconds by group since the start: what `root` began (a sandbox or a Postfix master), `others`, and `workers`
    that nobody of these began.
    """
    seconds = dict.fromkeys(GROUPS, 0.0)
    for process in table.values():
        if process.pid in workers:
            seconds["milter workers"] += process.own
            continue
        if process.pid in others:
            seconds["client and sinks"] += process.own
            continue
        line = _ancestry(table, process.pid)
        if root not in line:
            continue
        commands = [table[pid].command for pid in line[: line.index(root) + 1]]
        own, waited = _groups(commands)
        seconds[own] += process.own
        seconds[waited] += process.waited
    return seconds


def _ancestry(table: dict[int, Process], pid: int) -> list[int]:
    """The process, its parent, and so on."""
    line: list[int] = []
    while pid in table and pid not in line:
        line.append(pid)
        pid = table[pid].parent
    return line


def _groups(commands: list[str]) -> tuple[str, str]:
    """Group of a process, and of the children it has waited for, by the commands of itself and its ancestors."""
    is_: Callable[[str], bool] = lambda name: any(name in command for command in commands)  # noqa: E731
    if is_("mm4.postfix.answerer"):
        itself = "mm4.postfix.answerer" in commands[0]
        return ("responder" if itself else "sendmail"), "sendmail"
    if is_("mm4.postfix.worker"):
        return "milter workers", "milter workers"
    if is_(" serve ") or is_(" sandbox "):
        # Postfix's master is a child of the sandbox; the sandbox and the supervisor do next to nothing while mail flows.
        return ("Postfix", "Postfix") if is_("/master ") else ("milter workers", "milter workers")
    return "Postfix", "Postfix"
