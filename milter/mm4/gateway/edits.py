"""Header edits as values, and the one order in which they may be applied.

Deleting a header moves the index of those behind it (deleting 1 then 2 of three leaves the second), and a milter
can only name them by index: so changes go first, while every index still means what was read, then
deletions from the last to the first, then additions, which go to the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MAX_CHANGED", "Edit", "in_order"]

MAX_CHANGED = 50_000
"""Bytes of the longest header that may be changed: a milter sees at most some 60,000 of any, and would cut the rest."""

_ORDER = {"change": 0, "delete": 1, "add": 2}


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit: `op` is add, change or delete; `occurrence` counts headers of this name from 1, 0 for add.

    `value` is ASCII, folds are LF; None for delete.
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
