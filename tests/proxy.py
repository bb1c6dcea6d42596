"""A line to a server that a test can cut, hold or let lose an answer: the network between a gateway and its database."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

from harness import LOCAL, free_port

__all__ = ["Proxy"]

_PIECE = 1 << 16


class Proxy:
    """Listens on loopback and passes on to the UNIX socket at `target`, until told otherwise."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.port = free_port()
        self.lost = 0
        """Answers to COMMIT that were lost."""
        self._losing = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    @property
    def host(self) -> str:
        """As a store's URL names it."""
        return f"{LOCAL}:{self.port}"

    def __enter__(self) -> Proxy:
        self._listen()
        return self

    def __exit__(self, *_: Any) -> None:
        self.cut()

    def hang(self) -> None:
        """Pass on nothing more, and close nothing: a cut cable, a server whose disk stands still."""
        self._flowing.clear()

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._break()

    def lose_commits(self, losing: bool = True) -> None:
        """Bring each COMMIT to the server, and break the connection when the answer comes."""
        self._losing = losing

    def restore(self) -> None:
        """All is well again; what was held is lost with its connections."""
        self._break()
        self._losing = False
        self._flowing.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server((LOCAL, self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _break(self) -> None:
        with self._lock:
            ended, self._sockets = self._sockets, set()
        for each in ended:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self.target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            committing = threading.Event()
            for source, sink, asking in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, sink, asking, committing), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, asking: bool, committing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._flowing.wait()
                if asking and self._losing and b"COMMIT" in piece:
                    committing.set()
                if not asking and committing.is_set():
                    self.lost += 1
                    break
                sink.sendall(piece)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= {source, sink}
        if not asking:
            source.close()
            sink.close()
