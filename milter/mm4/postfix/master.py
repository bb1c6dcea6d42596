"""The running master of one Postfix instance: whether it runs, and how it is made to read its files again.

A reload opens and closes the listeners of master.cf and cuts no session. A restart is needed where inet_interfaces
changed, and after a line of smtpd has died of a bad setting: master then keeps it throttled, reload or not.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from pathlib import Path

from ..protocol.errors import PostfixError
from .instance import Instance, tool

__all__ = ["Master", "in_foreground", "unit_of"]

_UNIT = re.compile(r"/(postfix(?:@[^/]+)?\.service)$", re.MULTILINE)
_SECONDS = 60.0


def unit_of(cgroup: str) -> str | None:
    """The systemd unit of Postfix that /proc/PID/cgroup names; None for a session, a container, a test."""
    match = _UNIT.search(cgroup)
    return match[1] if match else None


def in_foreground(command: bytes) -> bool:
    """Whether a master with this /proc/PID/cmdline was started by `postfix start-fg`: with -i as process 1, else -s."""
    return not {b"-i", b"-s"}.isdisjoint(command.split(b"\0"))


class Master:
    """The master process of the instance in a configuration folder."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance

    def pid(self) -> int | None:
        """Its process id; None where it does not run. Raises PostfixError."""
        if not self.instance.running():
            return None
        queue = self.instance.values("queue_directory")["queue_directory"]
        try:
            return int((Path(queue) / "pid" / "master.pid").read_text("ascii").strip())
        except (OSError, ValueError):
            return None

    def reload(self) -> str:
        """Make it read its files again; what was done. Raises PostfixError."""
        self.instance.reload()
        return "reload"

    def restart(self) -> str:
        """Stop and start it, by its systemd unit where it has one of its own; what was done. Raises PostfixError.

        One that somebody keeps in the foreground, as in a container, can only be reloaded: he would end with it.
        """
        pid = self.pid()
        unit = self._unit(pid) if pid else None
        if unit and self._run("systemctl", "restart", unit) is None:
            return f"systemctl restart {unit}"
        if pid and in_foreground(self._command(pid)):
            self.instance.reload()
            return "reload (it runs in the foreground: for another address in inet_interfaces restart the container)"
        folder = str(self.instance.folder)
        if pid and (said := self._run(tool("postfix"), "-c", folder, "stop")):
            raise PostfixError(f"postfix -c {folder} stop: {said}")
        end = time.monotonic() + _SECONDS
        while self.instance.running() and time.monotonic() < end:
            time.sleep(0.1)
        if said := self._run(tool("postfix"), "-c", folder, "start"):
            raise PostfixError(f"postfix -c {folder} start: {said}; start it by hand")
        return "restart"

    def _unit(self, pid: int) -> str | None:
        with contextlib.suppress(OSError):
            unit = unit_of(Path(f"/proc/{pid}/cgroup").read_text("utf-8"))
            # One unit for all instances would restart the others too.
            alone = not self.instance.values("multi_instance_directories").get("multi_instance_directories")
            return unit if unit is None or "@" in unit or alone else None
        return None

    def _command(self, pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            raise PostfixError(
                f"Postfix runs on the queue of {self.instance.folder}, but not here (no process {pid}): is that queue "
                "another container's?"
            ) from None

    @staticmethod
    def _run(*command: str) -> str | None:
        """None where the command did it, else what it said."""
        try:
            # Not through pipes: what it starts would keep them open.
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if done.returncode == 0 else f"exit {done.returncode}, see Postfix's log"
