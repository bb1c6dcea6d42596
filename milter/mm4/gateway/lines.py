"""Headers that a peer's entry takes out of what goes to that peer, or writes into it.

A header that the dialect knows is written only into a PDU in which it has a place; any other into all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..protocol.dialect import Dialect
from ..protocol.errors import ProtocolError
from ..protocol.headers import Header
from .edits import MAX_CHANGED, Edit
from .peer import Peer

__all__ = ["adapted", "adapting_edits"]


def adapted(lines: Sequence[tuple[str, str]], peer: Peer, dialect: Dialect, pdu: str) -> list[tuple[str, str]]:
    """The header lines of a mail of our own to the peer."""
    gone, added = _changes(peer, dialect, pdu)
    return [line for line in lines if line[0].lower() not in gone] + added


def adapting_edits(
    headers: Iterable[Header], edits: list[Edit], peer: Peer, dialect: Dialect, pdu: str
) -> list[Edit]:
    """The edits of a message to the peer, and those that its entry asks for, which have the last word.

    Raises ProtocolError for a line of which not all was seen: for another side it could not be put back.
    """
    gone, added = _changes(peer, dialect, pdu)
    if not gone:
        return edits
    result = [edit for edit in edits if edit.header.lower() not in gone]
    seen: Counter[str] = Counter()
    for header in headers:
        name = header.name.lower()
        if name in gone:
            if len(header.value) >= MAX_CHANGED:
                raise ProtocolError(f"{header.name} is too long to be changed")
            seen[name] += 1
            result.append(Edit("delete", header.name, seen[name]))
    return result + [Edit("add", name, 0, value) for name, value in added]


def _changes(peer: Peer, dialect: Dialect, pdu: str) -> tuple[frozenset[str], list[tuple[str, str]]]:
    """Names that go, in lower case, and lines that come in their place."""
    added = [(name, value) for name, value in peer.headers.add.items() if _has_place(name, dialect, pdu)]
    return frozenset(name.lower() for name in (*peer.headers.drop, *(name for name, _ in added))), added


def _has_place(name: str, dialect: Dialect, pdu: str) -> bool:
    field = dialect.by_header.get(name.lower())
    return field is None or (pdu, field.name) in dialect.row_of
