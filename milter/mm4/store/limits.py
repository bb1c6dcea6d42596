"""Limits over time, shared by all processes and hosts: read, counted and forgotten again.

The arithmetic is `protocol.limits`; here it is done in a transaction of the writer, so that no two messages take the
same token. A row whose moment has passed says nothing: such rows go a few at a time, whenever a message is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Delete, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ..protocol.limits import Limit, Standing, Taken, take
from .schema import limits

__all__ = ["standings", "take_limits"]

_SELECT = select(limits.c.key, limits.c.until, limits.c.used).where(
    limits.c.key.in_(bindparam("keys", expanding=True))
)
_MOST_FORGOTTEN = 100
"""Rows that one message removes: enough to keep up, and too few to be felt."""
_MOST_LOCKED = 4
"""Of PostgreSQL, which keeps a lock for each in its memory: still more than a message leaves behind."""


def _forgetting(most: int, *conditions: ColumnElement[bool]) -> Delete:
    over = select(limits.c.key).where(limits.c.until <= bindparam("now", type_=limits.c.until.type), *conditions)
    # Of two hosts that look at once, each takes rows of its own.
    return delete(limits).where(limits.c.key.in_(over.limit(most).with_for_update(skip_locked=True)))


_FORGET = {
    "sqlite": _forgetting(_MOST_FORGOTTEN),
    # What another host is about to count is left alone: each would wait for a row that the other removes.
    "postgresql": _forgetting(_MOST_LOCKED, func.pg_try_advisory_xact_lock(func.hashtext(limits.c.key))),
}
_UPSERTS = {
    name: statement.on_conflict_do_update(
        index_elements=[limits.c.key], set_={"until": statement.excluded.until, "used": statement.excluded.used}
    )
    for name, statement in (("sqlite", sqlite.insert(limits)), ("postgresql", postgresql.insert(limits)))
}

def standings(connection: Connection, keys: Collection[str]) -> dict[str, Standing]:
    """Read how far limits are used, by key; what nobody used is not among them."""
    return {row.key: Standing(row.until, row.used) for row in connection.execute(_SELECT, {"keys": list(keys)})}


def take_limits(connection: Connection, wanted: Sequence[Limit], now: datetime) -> Taken:
    """Count one message for all limits, or for none where it is over one of them.

    The keys are locked by the caller: a row that is not there yet cannot be.
    """
    keys = [limit.key for limit in wanted]
    taken = take(wanted, standings(connection, keys), now)
    if taken.kept:
        rows = [{"key": key, "until": kept.until, "used": kept.count} for key, kept in taken.kept.items()]
        connection.execute(_UPSERTS[connection.dialect.name], rows)
        connection.execute(_FORGET[connection.dialect.name], {"now": now})
    return taken
