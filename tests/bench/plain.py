"""The Postfix that everything is compared with: the sandbox's own files, with the milter taken away, or another's in.

It is a private instance on loopback like a sandbox's; what peers send goes to the addresses that the milter would
have put in, and what stands for the acks comes in by the same line.
"""

from __future__ import annotations

import smtplib
from pathlib import Path

import yaml

from harness import LOCAL, NORTH, free_port, wait_for
from mm4.postfix import maps
from mm4.postfix.children import Child, stop_leftovers
from mm4.postfix.sandbox import Sandbox
from mm4.postfix.sockets import MILTER_SOCKET

__all__ = ["PlainPostfix", "without_milter"]


def without_milter(master: str, *, milter: bool = False) -> str:
    """A master.cf without the gateway's milter, and without the command filter, whose only purpose is its DSNs.

    With `milter` the line of the milter stays, for another one behind the same socket.

    With the filter but no milter every REQ would make a success report, which a gateway's Postfix does not do.
    """
    kept, found = [], 0
    for line in master.splitlines():
        its = line.lstrip().startswith("-o { smtpd_milters")
        if its or line.lstrip().startswith("-o smtpd_command_filter"):
            found += 1
            if not (its and milter):
                continue
        kept.append(line)
    if found != 2:
        raise ValueError(f"master.cf has {found} lines of milter and command filter, expected 2")
    return "\n".join(kept) + "\n"


class PlainPostfix:
    """Postfix alone; `peer_domain` goes to `peer_hop`. With `milter` it asks one at the socket `milter`."""

    def __init__(self, config: str, folder: Path, peer_domain: str, peer_hop: str, *, milter: bool = False) -> None:
        self.smtp = f"{LOCAL}:{free_port()}"
        given = folder / "plain.yaml"
        given.write_text(config)
        sandbox = Sandbox(given, folder / "plain", [self.smtp], None)
        sandbox.folder.mkdir(mode=0o755)
        sandbox.prepare()
        self.folder, self.queue, self._log = sandbox.folder, sandbox.queue, sandbox.log
        self.milter = sandbox.sockets / MILTER_SOCKET
        self.submit = str(yaml.safe_load(sandbox.yaml.read_text())["service"]["submit"])
        """`address:port` of the private submission line."""
        master = sandbox.instance.folder / "master.cf"
        maps.replace_file(master, without_milter(master.read_text(), milter=milter))
        transport = sandbox.instance.folder / "mm4" / "transport"
        maps.replace_file(transport, f"{transport.read_text()}{peer_domain}\tmm4-out:{peer_hop}\n")
        program = Path(sandbox.instance.values("daemon_directory")["daemon_directory"]) / "master"
        self._master = Child([str(program), "-c", str(sandbox.instance.folder)], self.folder, self._log, {})
        wait_for(self._greets, f"Postfix without a milter ({self._log})")

    def _greets(self) -> bool:
        if self._master.gone():
            raise AssertionError(f"Postfix without a milter ended with {self._master.code}: {self.log()}")
        host, _, port = self.smtp.rpartition(":")
        try:
            with smtplib.SMTP(host, int(port), timeout=10, source_address=(NORTH, 0)) as client:
                return client.noop()[0] == 250
        except (OSError, smtplib.SMTPException):
            return False

    @property
    def pid(self) -> int:
        """Process id of its master."""
        return int((self.queue / "pid" / "master.pid").read_text())

    @property
    def log_file(self) -> Path:
        """Postfix's log."""
        return self._log

    def log(self) -> str:
        """Its text."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> None:
        """Stop it, and every process of it."""
        self._master.stop(10.0)
        stop_leftovers(self.folder)


