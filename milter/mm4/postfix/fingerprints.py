"""Fingerprints of client certificates: Postfix has no milter macro for them, but its policy protocol tells them.

Postfix asks us (SMTPD_POLICY_README, `check_policy_service`) at every MAIL, before it asks the milter, and is always
told to go on. The milter then asks here for what Postfix said of the client at that address and port. What was never
said is no answer: without it nobody can tell who a client is, and that is temporary.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import struct
from collections import OrderedDict

from ..gateway.identity import Client
from ..protocol.errors import InternalError

__all__ = ["Fingerprints", "fingerprint_of_client"]

_SECONDS = 5.0
"""Longest wait for an answer from the process beside us."""
_KEPT = 50_000
"""Clients that are remembered: far more than smtpd processes, and each is said again at its next MAIL."""
_CREDENTIALS = struct.Struct("iII")  # unix(7), SO_PEERCRED: process, user, group


class Fingerprints:
    """Serves both questions on a listening UNIX socket that somebody else owns. Only Postfix may tell."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._said: OrderedDict[tuple[str, str], str] = OrderedDict()
        # Whoever may write here may be any peer: other users of this host may only ask.
        self._tellers = {0, os.geteuid()}
        with contextlib.suppress(KeyError):
            self._tellers.add(pwd.getpwnam("postfix").pw_uid)

    async def start(self) -> None:
        """Begin to serve."""
        # Not start_unix_server, which removes the socket's file at its end: that outlives this process.
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    def stop(self) -> None:
        """Accept nobody any more."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        request: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                name, equals, value = line.decode("utf-8", "replace").rstrip("\r\n").partition("=")
                if equals:
                    request[name] = value
                    continue
                writer.write(f"{self._answer(request, user in self._tellers)}\n\n".encode())
                await writer.drain()
                request = {}
        writer.close()

    def _answer(self, request: dict[str, str], may_tell: bool) -> str:
        # Postfix and libmilter may write one address in two ways.
        client = str(Client(request.get("client_address", "")).ip), request.get("client_port", "")
        if request.get("request") != "smtpd_access_policy":
            said = self._said.get(client)
            return "unknown" if said is None else f"fingerprint={said}"
        if not may_tell:
            return "action=DEFER only Postfix says who a client is"
        self._said[client] = request.get("ccert_fingerprint", "")
        self._said.move_to_end(client)
        if len(self._said) > _KEPT:
            self._said.popitem(last=False)
        return "action=DUNNO"


def fingerprint_of_client(path: str, address: str, port: int) -> str | None:
    """What Postfix last said of the client at `address` and `port`: its certificate's fingerprint, None without one.

    Raises InternalError where it said nothing, or nobody answers at `path`.
    """
    question = f"request=fingerprint\nclient_address={address}\nclient_port={port}\n\n"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(path)
            connection.sendall(question.encode())
            with connection.makefile("rb") as stream:
                name, _, value = stream.readline().decode().strip().partition("=")
    except OSError as error:
        raise InternalError(f"{path}: {error}") from None
    if name != "fingerprint":
        raise InternalError(
            f"Postfix did not say the certificate of {address}: the MM4 line lacks check_policy_service; mm4 check"
        )
    return value or None
