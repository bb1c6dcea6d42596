"""Reach lists: which operator a number range belongs to, and which peer leads there. A million rows stay small.

A list is a CSV file: a head line with `prefix` first, then any of `operator`, `mcc`, `mnc`, `peer`; a prefix is
digits, with a plus or without. Of the prefixes that fit a number the longest counts. In memory a row is twelve bytes:
its prefix in a sorted array, and beside it the number of what stands behind the prefix, which is kept once. A look-up
is a few binary searches.
"""

from __future__ import annotations

import csv
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from operator import eq
from typing import NamedTuple

from ..protocol.errors import ReachError

__all__ = ["COLUMNS", "Reach", "Reached", "read_reach"]

COLUMNS = ("prefix", "operator", "mcc", "mnc", "peer")

_DIGITS = 15  # of an E.164 number
_SCALE = [16 * 10 ** (_DIGITS - n) for n in range(_DIGITS + 1)]
"""What makes n digits the beginning of a key: the prefix filled up with zeros to 15 digits, then 4 bits of length."""
_VALUE = 24  # bits of the number of a row behind prefixes
_VALUES = (1 << _VALUE) - 1


class Reached(NamedTuple):
    """What a list says of a number: the prefix with its plus, and the row's other columns, empty where it has none."""

    prefix: str
    operator: str = ""
    mcc: str = ""
    mnc: str = ""
    peer: str = ""


class Reach:
    """One list, as it was read. Nothing in it changes, so that any number of threads may ask it."""

    def __init__(self, keys: array[int], values: array[int], rows: tuple[Reached, ...]) -> None:
        self._keys = keys
        self._values = values
        self._rows = rows
        present = {*map(15 .__and__, keys)}
        self._below = [max((n for n in present if n <= size), default=0) for size in range(_DIGITS + 1)]
        """For a number of digits the longest prefix that is not longer."""

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, number: str) -> Reached | None:
        """The row with the longest prefix of an E.164 number (with its plus); None where none fits."""
        digits = number[1:]
        keys, last, below, scale = self._keys, len(self._keys), self._below, _SCALE
        length = below[len(digits)]
        while length:
            start = int(digits[:length]) * scale[length]
            # The last key that is not behind the number's first digits. Where it does not begin as they do, nothing of
            # their length fits.
            last = bisect_right(keys, start + length, 0, last)
            if not last:
                return None
            key = keys[last - 1]
            size = key & 15
            if size <= length and start // scale[size] == key // scale[size]:
                row = self._rows[self._values[last - 1]]
                return Reached("+" + digits[:size], row.operator, row.mcc, row.mnc, row.peer)
            length = below[length - 1]
        return None


def read_reach(lines: Iterable[str], name: str, peers: Iterable[str], peer: str | None) -> Reach:
    """The list in `lines`; `name` is the file's, for messages.

    `peer` is whose the rows are that name none; `peers` are all there are. Raises ReachError that names file and line.
    """
    rows = iter(lines)
    behind = _Behind(_head(next(rows, ""), name), frozenset(peers), peer)
    numbers, scale = behind.numbers, _SCALE
    # By their first digits: a thousand short lists are sorted in half the time of a long one. They hold numbers
    # of Python's own, which take four times the memory, only while they are sorted.
    groups: defaultdict[str, tuple[array[int], array[int]]] = defaultdict(lambda: (array("Q"), array("I")))
    line = 1
    try:
        for line, row in enumerate(rows, 2):  # noqa: B007 - told where a row is wrong
            prefix, _, rest = row.partition(",")
            size = len(prefix)
            if size > _DIGITS or not (prefix.isdecimal() and prefix.isascii()):
                prefix = prefix.strip().strip('"').removeprefix("+")
                size = len(prefix)
                if size > _DIGITS or not (prefix.isdecimal() and prefix.isascii()):
                    if not row.strip():
                        continue
                    raise ValueError(f"{prefix.strip()[:40]!r} is no prefix: 1 to {_DIGITS} digits")
            try:
                value = numbers[rest]
            except KeyError:
                value = behind.number(rest)
            found, places = groups[prefix[:3]]
            found.append(int(prefix) * scale[size] + size)
            places.append(value)
    except (ValueError, csv.Error) as error:
        raise ReachError(f"{name}:{line}: {error}") from None
    keys, values = array("Q"), array("I")
    for start in sorted(groups):
        group = sorted([key << _VALUE | value for key, value in zip(*groups.pop(start), strict=True)])
        keys.extend([row >> _VALUE for row in group])
        values.extend([row & _VALUES for row in group])
    for place, same in enumerate(map(eq, keys, islice(keys, 1, None))):
        if same and values[place] != values[place + 1]:
            size = keys[place] & 15
            prefix = f"{keys[place] // _SCALE[size]:0{size}d}"
            raise ReachError(f"{name}: prefix +{prefix} has two different rows; keep one")
    return Reach(keys, values, tuple(behind.rows))


def _head(line: str, name: str) -> list[str]:
    try:
        cells = next(csv.reader([line.removeprefix("\ufeff")]), [])
    except csv.Error:
        cells = []  # a line of any length, of a file that is no list
    columns = [column.strip().lower() for column in cells]
    strange = [column for column in columns if column not in COLUMNS]
    if columns[:1] != ["prefix"] or strange or len(set(columns)) < len(columns):
        raise ReachError(
            f"{name}:1: the head line has to be {','.join(COLUMNS)} (prefix first, of the others any), found "
            f"{line.strip()[:80]!r}"
        )
    return columns[1:]


class _Behind:
    """What stands behind prefixes, each text once."""

    def __init__(self, columns: list[str], peers: frozenset[str], peer: str | None) -> None:
        self.columns = columns
        self.peers = peers
        self.peer = peer
        self.rows: list[Reached] = []
        self.numbers: dict[str, int] = {}

    def number(self, rest: str) -> int:
        """The place of a new text. Raises ValueError that says what is wrong with it."""
        cells = [cell.strip() for cell in next(csv.reader([rest]), []) or [""]] if self.columns else []
        if len(cells) != len(self.columns) or (not self.columns and rest.strip()):
            raise ValueError(f"expects {len(self.columns) + 1} columns, as in the head line")
        if len(self.rows) > _VALUES:
            raise ValueError(f"holds more than {_VALUES} different rows")
        row = dict(zip(self.columns, cells, strict=True))
        peer = row.get("peer") or self.peer
        if not peer:
            raise ValueError("names no peer, and neither does the route")
        if peer not in self.peers:
            raise ValueError(f"no peer is named {peer!r}; there are: {', '.join(sorted(self.peers)) or 'none'}")
        for column, sizes in (("mcc", (3,)), ("mnc", (2, 3))):
            code = row.get(column) or ""
            if code and not (code.isdecimal() and code.isascii() and len(code) in sizes):
                raise ValueError(f"{column} {code[:40]!r} is not {' or '.join(map(str, sizes))} digits")
        self.rows.append(Reached("", row.get("operator") or "", row.get("mcc") or "", row.get("mnc") or "", peer))
        self.numbers[rest] = len(self.rows) - 1
        return self.numbers[rest]
