"""What of a peer's entry cannot be said in its dialect: headers of a RES, headers dropped and headers added."""

from __future__ import annotations

from collections.abc import Iterator

from ..protocol.dialect import Dialect
from ..protocol.values import READERS, Unreadable
from .peer import Peer
from .terms import KEPT_FIELDS, stays

__all__ = ["problems"]


def problems(peer: Peer, dialect: Dialect) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What of a peer's entry cannot be in its dialect: the place below the peer, and what is wrong."""
    answers = [row.answer for row in dialect.types.values() if row.answer]
    for name, wanted in peer.res.model_dump(exclude_none=True).items():
        places = [dialect.row_of[kind, name] for kind in answers if (kind, name) in dialect.row_of]
        if wanted and not places:
            yield ("res", name), f"the dialect {dialect.name} has no place for it in a RES; leave it out"
        if not wanted and any(row.presence == "mandatory" for row in places):
            yield ("res", name), f"the dialect {dialect.name} demands it in a RES; leave it out"
    for i, name in enumerate(peer.headers.drop):
        yield from ((("headers", "drop", i), text) for text in _undroppable(name, dialect))
    for name, value in peer.headers.add.items():
        yield from ((("headers", "add", name), text) for text in _unwritable(name, value, dialect))


def _undroppable(name: str, dialect: Dialect) -> Iterator[str]:
    field = dialect.by_header.get(name.lower())
    if field is None:
        return
    if field.name in KEPT_FIELDS:
        yield stays(name)
        return
    for pdu in dialect.pdus:
        row = dialect.row_of.get((pdu, field.name))
        if row is not None and row.presence == "mandatory":
            yield f"the dialect {dialect.name} demands {name} in {pdu}; leave it out"
            return


def _unwritable(name: str, value: str, dialect: Dialect) -> Iterator[str]:
    field = dialect.by_header.get(name.lower())
    if field is None:
        return
    if field.name in KEPT_FIELDS:
        yield stays(name)
        return
    try:
        _, notes = READERS[field.kind](value, field, dialect, None)
    except Unreadable as expected:
        yield f"found {value!r}; expected {expected}"
        return
    yield from (f"{value!r}: {note}" for note in notes if note.startswith("none of"))
