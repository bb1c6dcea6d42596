"""Header edits as values, and the one order in which they may be applied.

Deleting a header moves the index of those behind it (deleting 1 then 2 of three leaves the second), and a milter
can only name them by index: so changes go first, while every index still means what was read, then
deletions from the last to the first, then additions, which go to the end.

Postfix applies a milter's edits. Those of a further side of a message are applied here, to the mail of the first side:
what was done for that is undone, and what this side gets is done, so that every other line stays byte for byte.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..protocol.errors import ProtocolError
from ..protocol.headers import Header

__all__ = ["MAX_CHANGED", "Edit", "in_order", "rewritten", "undoing"]

MAX_CHANGED = 50_000
"""Bytes of the longest header that may be changed: a milter sees at most some 60,000 of any, and would cut the rest."""

_ORDER = {"change": 0, "delete": 1, "add": 2}
_LINE = re.compile(rb"([!-9;-~]+)[ \t]*:[^\n]*(?:\n|\Z)(?:[ \t][^\n]*(?:\n|\Z))*")


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit: `op` is add, change or delete; `occurrence` counts headers of this name from 1, 0 for add.

    `value` is ASCII, folds are LF; None for delete. Only `undoing` gives an insert, whose `occurrence` is the index
    among all lines, from 0, and values of others' bytes (Latin-1).
    """

    op: str
    header: str
    occurrence: int = 0
    value: str | None = None

    def as_json(self) -> list[str | int | None]:
        """`[op, header, occurrence, value]`, as `mm4 explain --json` prints it."""
        return [self.op, self.header, self.occurrence, self.value]


def in_order(edits: Iterable[Edit]) -> list[Edit]:
    """The edits in an order in which every occurrence still names the header that was read."""
    return sorted(edits, key=lambda e: (_ORDER[e.op], -e.occurrence if e.op == "delete" else 0))


def undoing(edits: Sequence[Edit], headers: Sequence[Header]) -> list[Edit]:
    """The edits that turn what `edits` (in order) made of these headers back into them, in order.

    Raises ProtocolError for a line of which not all was seen: it could not be put back.
    """
    places: dict[str, list[int]] = {}
    for index, header in enumerate(headers):
        places.setdefault(header.name.lower(), []).append(index)
    deleted: list[int] = []
    changed: list[Edit] = []
    added: Counter[str] = Counter()
    for edit in edits:
        there = places.get(edit.header.lower(), [])
        if edit.op == "add":
            added[edit.header.lower()] += 1
            continue
        before = headers[there[edit.occurrence - 1]]
        if len(before.value) >= MAX_CHANGED:
            raise ProtocolError(f"{before.name} is too long to be changed")
        if edit.op == "delete":
            deleted.append(there[edit.occurrence - 1])
        else:
            changed.append(Edit("change", before.name, edit.occurrence, before.value.decode("latin-1")))
    back = [Edit("insert", headers[i].name, i, headers[i].value.decode("latin-1")) for i in sorted(deleted)]
    for name, count in added.items():
        stood = len(places.get(name, []))
        back += [Edit("delete", name, occurrence) for occurrence in range(stood + count, stood, -1)]
    return back + changed


def rewritten(message: bytes, edits: Iterable[Edit]) -> bytes:
    """A message (CRLF line ends) with its header lines edited as Postfix would do it; the rest is byte for byte."""
    lines: list[tuple[bytes, bytes]] = []
    position = 0
    while match := _LINE.match(message, position):
        lines.append((match[1].lower(), match[0]))
        position = match.end()
    for edit in edits:
        name = edit.header.encode("ascii")
        line = name + b": " + (edit.value or "").replace("\n", "\r\n").encode("latin-1") + b"\r\n"
        places = [index for index, (found, _) in enumerate(lines) if found == name.lower()]
        if edit.op == "add":
            lines.append((name.lower(), line))
        elif edit.op == "insert":
            lines.insert(edit.occurrence, (name.lower(), line))
        elif edit.occurrence <= len(places) and edit.op == "delete":
            del lines[places[edit.occurrence - 1]]
        elif edit.occurrence <= len(places):
            lines[places[edit.occurrence - 1]] = (name.lower(), line)
    return b"".join(line for _, line in lines) + message[position:]
