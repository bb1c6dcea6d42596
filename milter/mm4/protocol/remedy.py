"""What mends a problem: for people who read a PDU's problems, what its row asks and the line to write.

Tables by kind of value and by rule. Only `read_message` asks for it; the milter has no time for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .address import Kind
from .advice import ADVICE, DOMAIN, domain_of
from .dialect import Dialect, Field, squash
from .errors import ProtocolError
from .headers import MAX_HEADER_BYTES, MAX_HEADERS, Header
from .pdu import Found, Pdu, Problem
from .values import MAX_ID, READERS, Unreadable
from .writer import write_value

__all__ = ["LONGEST_LINE", "explained"]

LONGEST_LINE = 200
"""Characters of a header line that are shown; a peer may have written 60,000."""

_ASKS: dict[str, str] = {
    "address": "an address such as +447700900101/TYPE=PLMN@mms.operator.example",
    "addresses": "addresses such as +447700900101/TYPE=PLMN, parted by commas",
    "date": "an RFC 5322 date",
    "expiry": "an HTTP-date, or seconds from now",
    "flag": "Yes or No",
    "id": f"an id of 1 to {MAX_ID} printable US-ASCII characters, in quotes or bare",
    "indexed_addresses": "an index from 0, a comma and an address; one line a hop",
    "indexed_dates": "an index from 0, a comma and an HTTP-date; one line a hop",
    "media_type": "a media type with its parameters",
    "number": "a whole number",
    "text": "text in US-ASCII, other characters as RFC 2047 encoded words",
    "version": "three numbers parted by full stops",
}
"""By kind of value. What is chosen from a list (types, statuses, enumerations) names the list."""

_EXAMPLES: dict[str, str] = {
    "address": "+<number>/TYPE=PLMN@<domain>",
    "addresses": "+<number>/TYPE=PLMN",
    "date": "Thu, 12 Nov 2026 02:28:01 +0200",
    "expiry": "Thu, 19 Nov 2026 00:28:02 GMT",
    "flag": "Yes",
    "id": "<id>",
    "indexed_addresses": "0, +<number>/TYPE=PLMN",
    "indexed_dates": "0, Thu, 12 Nov 2026 00:28:01 GMT",
    "media_type": "text/plain; charset=us-ascii",
    "number": "1",
    "status": "Ok",
    "text": "<text>",
}
"""By kind of value, where no row of `_PARTICULAR` fits. Enumerations have their default or their first value."""

_PARTICULAR: tuple[tuple[str, str, str], ...] = (
    (".RES", "transaction_id", "<id of the REQ>"),
    (".RES", "message_id", "<id of the REQ>"),
    ("report.REQ", "message_id", "<id of the message reported>"),
    ("forward.REQ", "content_type", 'multipart/related; type="application/smil"; boundary="<boundary>"'),
    ("report.REQ", "sender", "+<number of the recipient>/TYPE=PLMN"),
    ("report.REQ", "recipients", "+<number of the originator>/TYPE=PLMN"),
    ("", "sender", "+<number>/TYPE=PLMN"),
    ("", "originator_system", f"system-user@{DOMAIN}"),
    ("", "mm_status", "Retrieved"),
)
"""End of the PDU's type, field, value; the first row that fits counts."""


_NEAR = 0.75
"""How alike a value and one of its list have to be, of 1, for a slip of the pen."""
_OTHERWISE = {"status": "Error-unspecified", "type": "<one of these>"}
"""What is proposed for a value that is near none of its list, where the first of the list would be a guess."""


def explained(
    pdu: Pdu, dialect: Dialect, region: str | None, headers: Sequence[Header], lines: Sequence[int]
) -> Pdu:
    """The PDU with line, asks, found and mend in each of its problems, and with its advice.

    `dialect`, `region` and `headers` are those by which it was read, `lines` the number of each header in its file.
    """
    advice = tuple(row.problem(pdu, dialect) for row in ADVICE if row.holds(pdu))
    if not pdu.problems and not advice:
        return pdu
    numbers: dict[tuple[str, int], int] = {}
    counts: dict[str, int] = {}
    for header, line in zip(headers, lines, strict=True):
        name = header.name.lower()
        counts[name] = counts.get(name, 0) + 1
        numbers[name, counts[name]] = line
    return replace(
        pdu,
        problems=tuple(_Case(problem, pdu, dialect, region, numbers).explained() for problem in pdu.problems),
        advice=tuple(
            replace(p, line=_line(p.place, numbers), found=_shown(p.place), mend=_cut(p.mend or "")) for p in advice
        ),
    )


def _line(place: Found | None, numbers: Mapping[tuple[str, int], int]) -> int | None:
    return numbers.get((place.name.lower(), place.occurrence)) if place else None


def _shown(place: Found | None) -> str | None:
    if place is None:
        return None
    return _cut(f"{place.name}: {place.raw[:LONGEST_LINE].decode('latin-1')}".rstrip())


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 1] + "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class _Case:
    """One problem and all that is known about it."""

    problem: Problem
    pdu: Pdu
    dialect: Dialect
    region: str | None
    numbers: Mapping[tuple[str, int], int]

    def explained(self) -> Problem:
        place = self.place
        return replace(
            self.problem,
            place=place,
            line=_line(place, self.numbers),
            asks=_RULE_ASKS.get(self.problem.rule, _Case.row)(self),
            found=_shown(place),
            mend=_cut(_RULE_MENDS.get(self.problem.rule, _Case.example)(self)),
        )

    @property
    def place(self) -> Found | None:
        """Its line; where a mandatory value is missing, the line that stands there without one."""
        empty = self.pdu.found.get(self.problem.field or "", ()) if self.problem.rule == "mandatory" else ()
        return self.problem.place or next(iter(empty), None)

    @property
    def field(self) -> Field:
        """Its field; that of the message type where there is none."""
        return self.dialect.fields[self.problem.field or "message_type"]

    @property
    def listed(self) -> tuple[str, ...]:
        """The values of which its field has one; none where it is free."""
        match self.field.kind:
            case "type":
                return tuple(row.written for row in self.dialect.types.values())
            case "status":
                return tuple(self.dialect.statuses)
            case _:
                return self.field.values

    # -- what is asked

    def row(self) -> str:
        kind = "one of " + ", ".join(self.listed) if self.listed else _ASKS.get(self.field.kind, "a value")
        row = self.dialect.row_of.get((self.pdu.type or "", self.field.name))
        return f"{row.presence} in {self.pdu.type}: {kind}" if row else kind

    def one_line(self) -> str:
        return f"one {self.field.header} line, with one value"

    def own_name(self) -> str:
        return f"the name {self.field.header} in the dialect {self.dialect.name}"

    def bounds(self) -> str:
        return f"at most {MAX_HEADERS} header lines, of {MAX_HEADER_BYTES // 1_000_000} MB together"

    # -- what mends it

    def value(self) -> str:
        """What may stand in the field."""
        field, pdu_type = self.field, self.pdu.type or ""
        if field.kind in ("type", "status") or field.values:
            # What is almost a value of the list was meant to be that one.
            place = self.place
            wrote = squash(place.raw[:80].decode("latin-1")) if place else ""
            near = difflib.get_close_matches(wrote, [squash(v) for v in self.listed], 1, _NEAR) if wrote else []
            if near:
                return next(v for v in self.listed if squash(v) == near[0])
            if wrote and field.kind in _OTHERWISE:
                return _OTHERWISE[field.kind]
        for end, name, value in _PARTICULAR:
            if field.name == name and pdu_type.endswith(end):
                value = value.replace(DOMAIN, domain_of(self.pdu) or DOMAIN)  # noqa: PLW2901 - the row's, filled in
                return f'"{value}"' if field.kind == "id" and self.dialect.ids != "bare" else value
        if field.kind == "id":
            return '"<id>"' if self.dialect.ids != "bare" else "<id>"
        if field.kind == "version":
            return self.dialect.version
        return field.default or _EXAMPLES.get(field.kind) or next(iter(self.listed), "<value>")

    def example(self) -> str:
        return f"{self.field.header}: {self.value()}"

    def absent(self) -> str:
        return self.example() if self.place else f"add {self.example()}"

    def no_type(self) -> str:
        return self.example() if self.pdu.mm4 else f"add {self.example()}, and all else that such a PDU needs"

    def unreadable(self) -> str:
        place = self.place
        bare = place is not None and not place.raw and self.problem.severity == "warning"
        return f"delete the line, or write {self.example()}" if bare else self.example()

    def exact(self) -> str:
        """The value that was read, as we would write it; an example where that is not to be had."""
        place, field = self.place, self.field
        # Of a media type the type alone would be written, and a version as it stands.
        if place is None or field.kind in ("media_type", "version"):
            return self.example()
        try:
            value, _ = READERS[field.kind](place.raw.decode("latin-1"), field, self.dialect, self.region)
            if field.kind == "addresses":  # what is no address goes
                value = tuple(address for address in value if address.kind is not Kind.INVALID)
            text = write_value(value, field, self.dialect).replace("\n", "")
        except (Unreadable, ProtocolError):
            return self.example()
        return f"{field.header}: {text}" if len(text) <= LONGEST_LINE else self.example()

    def renamed(self) -> str:
        place, field = self.place, self.field
        if place is None or place in self.pdu.beside.get(field.name, ()):
            return f"delete the line: {field.header} holds"
        return self.exact() if field.kind == "type" else f"{field.header}: {place.raw.decode('latin-1')}"

    def one_of_two(self) -> str:
        name = self.problem.place.name.lower() if self.problem.place else ""
        first = next((p for p in self.pdu.found.get(self.field.name, ()) if p.name.lower() == name), None)
        here, there = _line(self.problem.place, self.numbers), _line(first, self.numbers)
        return f"delete line {here}" + (f", or line {there}" if there not in (None, here) else "")

    def fewer(self) -> str:
        return "leave out what is not needed: Received and X- lines of the way to here"


_RULE_ASKS: Mapping[str, Callable[[_Case], str]] = {
    "headers": _Case.bounds,
    "name": _Case.own_name,
    "one-value": _Case.one_line,
}
_RULE_MENDS: Mapping[str, Callable[[_Case], str]] = {
    "headers": _Case.fewer,
    "listed": _Case.example,
    "mandatory": _Case.absent,
    "name": _Case.renamed,
    "one-value": _Case.one_of_two,
    "readable": _Case.unreadable,
    "spelling": _Case.exact,
    "type": _Case.no_type,
}
"""What each rule of the reader asks and what mends it."""
