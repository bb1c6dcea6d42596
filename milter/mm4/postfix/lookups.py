"""Who answers what the routes of a configuration ask: reach lists from their files, ENUM, number portability.

One object a process, for all threads; answers are kept over a reload. A list is read again when its file changes, while
the old one goes on answering; where the new one is wrong the old one stays, and one log line says why. What was never
read answers nothing: that is temporary for the client, as every failure here.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ..gateway.config import Config
from ..gateway.logline import logline
from ..gateway.routes import Enum, EnumRoute, Http, HttpRoute, ReachRoute
from ..lookup.http import Portability
from ..lookup.reach import Reach, Reached, read_reach
from ..protocol.errors import LookupUnavailable, ReachError

if TYPE_CHECKING:
    from ..lookup.enum import Enum as EnumZone

__all__ = ["RouteLookups", "check_files"]

log = logging.getLogger("mm4.routes")

T = TypeVar("T")
_Mark = tuple[int, int, int]

LOOK_SECONDS = 1.0
"""How often files are looked at; one that changed is read when it has been the same for so long."""


def _nothing(kind: str, result: str) -> None: ...


class RouteLookups:
    """Answers for one configuration, and after `use` for the next. `count` is told of every question and its result."""

    def __init__(self, config: Config, count: Callable[[str, str], None] = _nothing) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._lists: dict[tuple[str, str | None], _List] = {}
        self._zones: dict[tuple[object, ...], EnumZone] = {}
        self._services: dict[tuple[object, ...], Portability] = {}
        self._watcher: threading.Thread | None = None
        self._peers: frozenset[str] = frozenset()
        self.use(config)

    def use(self, config: Config) -> None:
        """Answer for this configuration. Lists are read when they are asked for the first time, or by `read`."""
        peers = frozenset(config.peers)
        rows = [route for route in config.routes if isinstance(route, ReachRoute)]
        keys = [(route.reach, route.peer) for route in rows]
        with self._lock:
            kept = self._lists if peers >= self._peers else {}
            self._lists = {key: kept.get(key) or _List(*key, peers) for key in keys}
            for one in self._lists.values():
                one.peers = peers
            self._peers = peers
            enums = [_zone_key(route.enum) for route in config.routes if isinstance(route, EnumRoute)]
            https = [_service_key(route.http) for route in config.routes if isinstance(route, HttpRoute)]
            self._zones = {key: zone for key, zone in self._zones.items() if key in enums}
            self._services = {key: service for key, service in self._services.items() if key in https}
        for route in config.routes:
            if isinstance(route, EnumRoute):
                self.zone(route.enum)

    def read(self) -> None:
        """Read every list that was not read yet, so that no recipient waits for it. What is wrong is logged."""
        for one in list(self._lists.values()):
            one.look()

    def watch(self) -> None:
        """From now on read lists again that change, in a thread of its own."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="reach", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        wait = threading.Event()
        while True:
            wait.wait(LOOK_SECONDS)
            self.read()

    # -- the questions of routes

    def reach(self, route: ReachRoute, number: str) -> Reached | None:
        """The row of the list with the longest prefix. Raises LookupUnavailable where no list could be read."""
        return self._counted("reach", lambda: self._list(route).find(number))

    def enum(self, asked: Enum, number: str) -> str | None:
        """The mailto: or tel: URI in DNS. Raises LookupUnavailable."""
        return self._counted("enum", lambda: self.zone(asked).find(number))

    def http(self, asked: Http, number: str) -> str | None:
        """The service's value. Raises LookupUnavailable."""
        return self._counted("http", lambda: self.service(asked).find(number))

    def zone(self, asked: Enum) -> EnumZone:
        """Who asks this zone."""
        key = _zone_key(asked)
        with self._lock:
            if key not in self._zones:
                from ..lookup.enum import Enum as EnumZone  # noqa: PLC0415 - loads dnspython, for few configurations

                servers = [(server.host, server.port) for server in asked.servers]
                self._zones[key] = EnumZone(asked.zone, servers, asked.timeout)
            return self._zones[key]

    def service(self, asked: Http) -> Portability:
        """Who asks this service. Raises LookupUnavailable where its certificates cannot be read."""
        key = _service_key(asked)
        with self._lock:
            if key not in self._services:
                try:
                    made = Portability(asked.url, asked.value, asked.timeout, asked.cache, asked.ca)
                except OSError as error:
                    raise LookupUnavailable(f"{asked.ca}: {error.strerror or error}") from None
                self._services[key] = made
            return self._services[key]

    def _list(self, route: ReachRoute) -> Reach:
        with self._lock:
            one = self._lists.get((route.reach, route.peer))
        if one is None:
            raise LookupUnavailable(f"{route.reach}: is of another configuration")  # a message older than a reload
        if one.reach is None:
            one.look()
        if one.reach is None:
            raise LookupUnavailable(one.problem or f"{route.reach}: not read yet")
        return one.reach

    def _counted(self, kind: str, ask: Callable[[], T | None]) -> T | None:
        try:
            found = ask()
        except LookupUnavailable:
            self._count(kind, "failed")
            raise
        self._count(kind, "none" if found is None else "found")
        return found


class _List:
    """A reach list and its file."""

    def __init__(self, path: str, peer: str | None, peers: frozenset[str]) -> None:
        self.path = path
        self.peer = peer
        self.peers = peers
        self.reach: Reach | None = None
        self._looked = False
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._read: _Mark | None = None
        """What the file was when it was last read, well or not."""
        self._seen: _Mark | None = None
        self._since = -math.inf
        """What it was at the last look, and since when."""

    def look(self) -> None:
        """Read the file if it changed, and has been so for a while: somebody may be writing it."""
        with self._lock:
            try:
                mark = _mark(self.path)
            except OSError as error:
                self._wrong(f"{self.path}: cannot be read: {error.strerror}")
                mark = None
            if mark != self._seen:
                # What is there at the very first look need not prove itself.
                self._since = time.monotonic() if self._looked else -math.inf
                self._seen = mark
            self._looked = True
            if mark in (None, self._read) or time.monotonic() - self._since < LOOK_SECONDS:
                return
            try:
                reach = read_file(self.path, self.peers, self.peer)
            except ReachError as error:
                self._read = mark
                self._wrong(str(error))
                return
            self._read, self.problem, again = mark, None, self.reach is not None
            self.reach = reach
            log.info(logline(reach=self.path, rows=len(reach), read="again" if again else "first"))

    def _wrong(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            what = "the old list stays" if self.reach is not None else "nothing is routed by it"
            log.error(logline(reach=self.path, why=what, problem=problem))


def check_files(config: Config) -> Iterator[tuple[str, str]]:
    """Read what routes name, and tell what is wrong: the key of the row and the problem, with file and line."""
    for i, route in enumerate(config.routes):
        if isinstance(route, ReachRoute):
            try:
                read_file(route.reach, frozenset(config.peers), route.peer)
            except ReachError as error:
                yield f"routes.{i}.reach", str(error)
        elif isinstance(route, HttpRoute) and route.http.ca is not None:
            try:
                Portability(route.http.url, route.http.value, 1, 0, route.http.ca)
            except OSError as error:
                yield f"routes.{i}.http.ca", f"{route.http.ca}: cannot be used: {error.strerror or error}"


def read_file(path: str, peers: frozenset[str], peer: str | None) -> Reach:
    """The list in a file. Raises ReachError, also where the file cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return read_reach(file, path, peers, peer)
    except OSError as error:
        raise ReachError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ReachError(f"{path}: is not UTF-8 (byte {error.start})") from None


def _mark(path: str) -> _Mark:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _zone_key(asked: Enum) -> tuple[object, ...]:
    return asked.zone, tuple(asked.servers), asked.timeout


def _service_key(asked: Http) -> tuple[object, ...]:
    return asked.url, asked.value, asked.timeout, asked.cache, asked.ca
