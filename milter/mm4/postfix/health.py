"""Whether a gateway answers now: its MM4 lines, and the sockets that Postfix asks behind them.

Where they are is read from master.cf, and not from the YAML: that may be in the middle of an edit, while the gateway
goes on with what it has.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from ..protocol.errors import PostfixError
from .instance import Instance
from .mastercf import Service, services_of
from .sockets import FINGERPRINTS_SOCKET, MILTER_SOCKET, RESPONDER_SOCKET, Probe, greeting, negotiate, question

__all__ = ["health"]

_SECONDS = 5.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
_MILTER = re.compile(rf"unix:([^\s,}}]+)/{re.escape(MILTER_SOCKET)}\b")


def health(instance: Instance) -> list[Probe]:
    """Ask milter, responder, the table of fingerprints where it is used, and each MM4 line of Postfix.

    Sends no message, and looks nothing up. Raises PostfixError where this Postfix has no MM4 line.
    """
    path = instance.folder / "master.cf"
    try:
        services = services_of(path.read_text("utf-8", "surrogateescape"))
    except OSError as error:
        raise PostfixError(f"{path}: cannot be read: {error.strerror}") from None
    lines = [(service, found[1]) for service in services if (found := _MILTER.search(_milters(service)))]
    if not lines:
        raise PostfixError(f"{path} has no MM4 line: mm4 postfix wire puts it there")
    queue = Path(instance.values("queue_directory")["queue_directory"])
    asked: dict[Path, Callable[[Path], None]] = {}
    for service, folder in lines:
        asked[queue / folder / MILTER_SOCKET] = negotiate
        asked[queue / folder / RESPONDER_SOCKET] = greeting
        if FINGERPRINTS_SOCKET in (service.value("smtpd_sender_restrictions") or ""):
            asked[queue / folder / FINGERPRINTS_SOCKET] = question
    return [*_sockets(asked), *(_line(service.name) for service, _ in lines)]


def _milters(service: Service) -> str:
    return (service.type == "inet" and service.value("smtpd_milters")) or ""


def _sockets(asked: dict[Path, Callable[[Path], None]]) -> Iterator[Probe]:
    for path, ask in asked.items():
        try:
            ask(path)
        except OSError as error:
            yield Probe(str(path), False, f"does not answer: {error.strerror or error}")
        else:
            yield Probe(str(path), True, "answers")


def _line(name: str) -> Probe:
    """Postfix's greeting on a line of master.cf: an smtpd is free, and has done with the milter."""
    host, _, port = name.rpartition(":")
    host = host.strip("[]")
    what = f"the MM4 line, {name}"
    try:
        with socket.create_connection((_ANYWHERE.get(host, host), int(port)), timeout=_SECONDS) as client:
            said = client.recv(512).decode("utf-8", "replace").strip()
            client.sendall(b"QUIT\r\n")
    except OSError as error:
        return Probe(what, False, f"does not answer: {error.strerror or error}")
    return Probe(what, said.startswith("220"), said or "hung up")
