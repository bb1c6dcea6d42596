"""Sessions with PostgreSQL: how long each waits for what, and which of several servers it has to be with.

All bounds lie below the end of a message (`EOM_SECONDS`, 20 s), which lies below Postfix's content_timeout (60 s):
whoever waits for the store hears of its failure from us. They are multiples of `busy_seconds`, 5 s as a rule.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import Connection, OperationalError
from psycopg.abc import PQGen
from sqlalchemy import URL, Engine, create_engine

from .database import NO_ANSWER, Role

__all__ = ["BOUNDS", "arguments", "open_engine"]

T = TypeVar("T")

BOUNDS = {
    # Of the server (PostgreSQL 15, 20.11 and 20.3): what it gives up.
    "lock_timeout": 1.0,
    "statement_timeout": 2.0,
    # A host that vanishes in a transaction leaves its locks to the others before their own time is over.
    "idle_in_transaction_session_timeout": 0.5,
    # Of libpq (34.1.2): in all, over all hosts of the URL.
    "connect_timeout": 1.0,
    # A server that vanishes is noticed by the kernel, too, and not after its two hours.
    "tcp_user_timeout": 2.0,
    "keepalives_idle": 1.0,
    # Ours: an answer to one statement. A server, disk or proxy that stands still says nothing and breaks nothing.
    "answer": 2.2,
}
"""Longest waits, in `busy_seconds`."""
_SHORTEST_CONNECT = 2
"""Seconds: psycopg takes less for this."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a role asks of its sessions."""

    server: str
    """libpq's target_session_attrs: `read-write` is refused to a session that itself may not write."""
    bounded: bool
    reading: bool
    flushed: bool = True
    """Whether a commit waits for the disk, and for the standby where it is synchronous."""


_KINDS: dict[Role, _Kind] = {
    "reader": _Kind("primary", bounded=True, reading=True),
    "scanner": _Kind("primary", bounded=False, reading=True),
    "writer": _Kind("read-write", bounded=True, reading=False),
    "purger": _Kind("read-write", bounded=True, reading=False, flushed=False),
    "migrator": _Kind("read-write", bounded=False, reading=False),
}


class _NoAnswerError(OperationalError):
    """A session was given up because nothing came back."""

    sqlstate = NO_ANSWER


class _Session(Connection[Any]):
    """A session that waits for an answer no longer than it may."""

    answer_seconds = 10.0

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's own, which waits for ever.

        Nothing is cancelled: a COMMIT that waits for its standby would end as a success if it were. Whether it was
        done, nobody knows.
        """
        end = time.monotonic() + self.answer_seconds
        poll = select.poll()
        try:
            # What is wanted and what is ready are the bits 1 (to read) and 2 (to write).
            wanted = next(gen)
            poll.register(self.pgconn.socket, _events(wanted))
            while True:
                found = poll.poll(max(0.0, end - time.monotonic()) * 1000)
                if not found:
                    self.pgconn.finish()
                    raise _NoAnswerError(f"no answer within {self.answer_seconds:g} s")
                event = found[0][1]
                # A broken connection is ready for both: libpq then says how it broke.
                ready = wanted & ((1 if event & ~select.POLLOUT else 0) | (2 if event & ~select.POLLIN else 0))
                now = gen.send(ready)
                if now != wanted:
                    wanted = now
                    poll.modify(self.pgconn.socket, _events(wanted))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def _events(wanted: int) -> int:
    return (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0)


def arguments(url: URL, role: Role, busy_seconds: float) -> dict[str, Any]:
    """What libpq is told for a session, beside what the URL says."""
    kind = _KINDS[role]
    bounds = {name: factor * busy_seconds for name, factor in BOUNDS.items()}
    settings: dict[str, object] = {
        "timezone": "UTC",
        # What server or role have set otherwise must not change what a statement sees.
        "default_transaction_isolation": r"read\ committed",
    }
    for name in ("lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout"):
        if kind.bounded or name != "statement_timeout":
            settings[name] = max(1, round(bounds[name] * 1000))
    if kind.reading:
        settings["default_transaction_read_only"] = "on"
    if not kind.flushed:
        settings["synchronous_commit"] = "off"
    hosts = _hosts(url)
    told: dict[str, Any] = {
        "connect_timeout": max(_SHORTEST_CONNECT, round(bounds["connect_timeout"] / hosts)),
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        "tcp_user_timeout": round(bounds["tcp_user_timeout"] * 1000),
        "keepalives_idle": max(1, round(bounds["keepalives_idle"])),
        "keepalives_interval": 1,
        "keepalives_count": 5,
    }
    if url.query.get("prepare_threshold") == "none":
        # For a pooler that gives each transaction another session: there a statement's name may be another's statement.
        told["prepare_threshold"] = None
    if role != "scanner" or hosts > 1:
        # A command that only reads may be sent to a standby, by a URL that names no other.
        told["target_session_attrs"] = kind.server
    return told


def open_engine(url: URL, role: Role, busy_seconds: float, pool: dict[str, Any]) -> Engine:
    """The engine whose connections are sessions of this role."""
    kind = _KINDS[role]
    told = arguments(url, role, busy_seconds)
    plain = url.difference_update_query(["target_session_attrs"])
    engine = create_engine(plain, connect_args=told, pool_pre_ping=kind.reading, **pool)
    if kind.bounded:
        def connect(*args: Any, **kwargs: Any) -> _Session:
            session = _Session.connect(*args, **kwargs)
            session.answer_seconds = BOUNDS["answer"] * busy_seconds
            return session

        # The hook for the driver's own function; `creator` would have to read the URL itself.
        engine.dialect.connect = connect  # type: ignore[method-assign,assignment]
    return engine


def _hosts(url: URL) -> int:
    """How many hosts the URL names, which psycopg tries one after the other."""
    named = url.query.get("host", ())
    return max(1, len(named.split(",") if isinstance(named, str) else named))
