"""Number portability over HTTP: one GET a number, and the value at a path of the JSON that comes.

The standard library's client: it follows no redirect, asks no proxy of the environment and keeps no connection that
could have died. What it lacks is a deadline for the whole exchange (its timeout is for each read), hence the threads:
who asks waits no longer than was said, and the connection is shut under the thread that still does.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import socket
import ssl
import threading
from typing import Any
from urllib.parse import quote, urlsplit

from ..protocol.errors import LookupUnavailable
from .cache import Cache

__all__ = ["Portability"]

_MOST = 50_000  # answers kept
_LARGEST = 65_536  # bytes of an answer
_AT_ONCE = 16  # questions to one service
_LONGEST_VALUE = 200


class Portability:
    """One service. `url` holds `{number}` (with its plus, quoted) or `{digits}`; `path` leads to the value, by dots.

    Safe for any number of threads. Raises OSError where the file of certificates `ca` cannot be read.
    """

    def __init__(self, url: str, path: str, seconds: float, keep: float, ca: str | None = None) -> None:
        self._url = url
        self._path = path.split(".")
        self._seconds = seconds
        self._keep = keep
        self._tls = ssl.create_default_context(cafile=ca) if url.lower().startswith("https:") else None
        self._cache: Cache[str | None] = Cache(_MOST)
        self._threads = concurrent.futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="portability")

    def url(self, number: str) -> str:
        """What is asked about a number."""
        return self._url.replace("{number}", quote(number, safe="")).replace("{digits}", number.removeprefix("+"))

    def find(self, number: str) -> str | None:
        """The value for an E.164 number (with its plus); None where the service knows none (404, null).

        Raises LookupUnavailable for every other answer, and where none comes in time.
        """
        kept = self._cache.get(number)
        if kept is not None:
            return kept[0]
        url = self.url(number)
        exchange = _Exchange(url, self._seconds, self._tls)
        waiting = self._threads.submit(exchange.run)
        try:
            status, body = waiting.result(self._seconds)
        except TimeoutError:
            waiting.cancel()
            exchange.abandon()
            raise LookupUnavailable(f"GET {url}: no answer within {self._seconds:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LookupUnavailable(f"GET {url}: {error or type(error).__name__}") from None
        value = None if status == 404 else self._value(url, status, body)
        self._cache.put(number, value, self._keep)
        return value

    def probe(self) -> None:
        """Ask whether somebody listens there. Raises LookupUnavailable."""
        exchange = _Exchange(self.url("+"), self._seconds, self._tls)
        try:
            exchange.connect()
        except (OSError, ValueError) as error:
            raise LookupUnavailable(f"{self._url}: {error or type(error).__name__}") from None
        finally:
            exchange.close()

    def _value(self, url: str, status: int, body: bytes) -> str | None:
        if status != 200:
            raise LookupUnavailable(f"GET {url}: status {status}")
        if len(body) > _LARGEST:
            raise LookupUnavailable(f"GET {url}: the answer is larger than {_LARGEST} bytes")
        try:
            value: Any = json.loads(body)
        except (ValueError, RecursionError):
            raise LookupUnavailable(f"GET {url}: the answer is no JSON") from None
        for step in self._path:
            if not isinstance(value, dict) or step not in value:
                raise LookupUnavailable(f"GET {url}: the answer has no {'.'.join(self._path)}")
            value = value[step]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int) or not 0 < len(f"{value}") <= _LONGEST_VALUE:
            raise LookupUnavailable(f"GET {url}: {'.'.join(self._path)} is no word and no number")
        return f"{value}"


class _Exchange:
    """One GET, which another thread may end."""

    def __init__(self, url: str, seconds: float, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connection = (
            http.client.HTTPSConnection(host, port, timeout=seconds, context=tls)
            if tls is not None
            else http.client.HTTPConnection(host, port, timeout=seconds)
        )
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._abandoned = False

    def connect(self) -> None:
        """Connect, TLS included. Raises OSError."""
        self._connection.connect()

    def close(self) -> None:
        """Leave nothing open."""
        self._connection.close()

    def run(self) -> tuple[int, bytes]:
        """Status and the beginning of the body. Raises OSError, HTTPException, ValueError."""
        try:
            self.connect()
            with self._lock:
                self._socket = self._connection.sock
                if self._abandoned:
                    raise TimeoutError("too late")
            self._connection.request(
                "GET", self._target, headers={"Accept": "application/json", "User-Agent": "mm4", "Connection": "close"}
            )
            response = self._connection.getresponse()
            return response.status, response.read(_LARGEST + 1)
        finally:
            self.close()

    def abandon(self) -> None:
        """End it: whoever reads from its connection sees its end."""
        with self._lock, contextlib.suppress(OSError):
            self._abandoned = True
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
