"""Reading header lines into a PDU by a dialect's tables: tolerant, complete, and without a foreign exception.

Whatever the bytes, a Pdu comes out; what it breaks stands in its problems, each with its rule and source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .dialect import Dialect, Field, builtin, squash
from .headers import MAX_HEADER_BYTES, MAX_HEADERS, Header, split, unfold
from .pdu import Found, Pdu, Problem, Severity
from .remedy import explained
from .values import MAX_ADDRESSES, READERS, Unreadable, unquote

__all__ = ["read", "read_message"]

CORRUPT = "Error-message-format-corrupt"
UNRESOLVED = "Error-sending-address-unresolved"
UNSUPPORTED = "Error-unsupported-message"

# Kinds of which a PDU may carry several lines; every other field has one value.
_LISTS = frozenset({"addresses", "indexed_addresses", "indexed_dates"})


def read_message(
    message: bytes, dialect: Dialect | str = "3gpp", region: str | None = None, first_line: int = 1
) -> Pdu:
    """A whole mail as a PDU, its problems with line numbers and remedies, and with advice.

    `first_line` is the number of the mail's first line in its file. Never raises for what the bytes hold.
    """
    tables = builtin(dialect) if isinstance(dialect, str) else dialect
    headers, _, lines = split(message)
    pdu = read(headers, tables, region)
    return explained(pdu, tables, region, headers, [first_line - 1 + line for line in lines])


def read(headers: Sequence[Header], dialect: Dialect | str = "3gpp", region: str | None = None) -> Pdu:
    """Header lines, in order, as a PDU.

    `region` is the country in which a number without plus is completed. Raises DialectError for a dialect
    that does not exist, nothing else.
    """
    tables = builtin(dialect) if isinstance(dialect, str) else dialect
    return _Reading(headers, tables, region).pdu()


class _Reading:
    """One pass over one message."""

    def __init__(self, headers: Sequence[Header], dialect: Dialect, region: str | None) -> None:
        self.dialect = dialect
        self.region = region
        self.problems: list[Problem] = []
        self.values: dict[str, object] = {}
        self.mm4 = False
        kept = list(_bounded(headers))
        self.too_many = len(kept) < len(headers)
        self.places = self._locate(kept)

    def _locate(self, headers: Iterable[Header]) -> dict[str, list[Found]]:
        """Where each field stands, own name before aliases."""
        counts: dict[str, int] = {}
        places: dict[str, list[Found]] = {}
        by_header = self.dialect.by_header
        for header in headers:
            name = header.name.lower()
            counts[name] = number = counts.get(name, 0) + 1
            field = by_header.get(name)
            if name.startswith("x-mms-"):
                self.mm4 = True
            if field is not None:
                places.setdefault(field.name, []).append(Found(header.name, number, unfold(header.value)))
        return places

    def pdu(self) -> Pdu:
        type_places = self._chosen(self.dialect.fields["message_type"])
        type_name, type_text = self._read_type(type_places)
        if not self.mm4:
            self._error(None, None, "type", "no MM4 header stands in this message", None)
            return Pdu(None, None, self.dialect.name, False, problems=tuple(self.problems))
        if self.too_many:
            self._error(None, None, "headers", f"over {MAX_HEADERS} header lines, or over 2 MB of them", CORRUPT)
        found: dict[str, tuple[Found, ...]] = {}
        beside: dict[str, tuple[Found, ...]] = {}
        for field in self.dialect.fields.values():
            if field.name not in self.places:
                continue
            if field.kind == "type":
                found[field.name] = type_places
                continue
            found[field.name] = self._chosen(field)
            self._read_field(field, type_name, found[field.name])
        for name, places in found.items():
            if len(places) == len(self.places[name]):
                continue
            chosen = {p.name.lower() for p in places}
            others = tuple(p for p in self.places[name] if p.name.lower() not in chosen)
            if others:
                beside[name] = others
        if type_name is not None:
            self._demand_mandatory(type_name)
        order = {UNSUPPORTED: 0, CORRUPT: 1, UNRESOLVED: 2}
        problems = sorted(self.problems, key=lambda p: (p.severity != Severity.ERROR, order.get(p.status or "", 3)))
        return Pdu(
            type_name,
            type_text,
            self.dialect.name,
            True,
            self.values,
            found,
            beside,
            tuple(problems),
        )

    def _read_type(self, places: tuple[Found, ...]) -> tuple[str | None, str | None]:
        field = self.dialect.fields["message_type"]
        if not places or not places[0].raw:
            if self.mm4:
                self._error(
                    field,
                    None,
                    "mandatory",
                    "no message type; a PDU names one, for example "
                    f"{field.header}: {self.dialect.types['MM4_forward.REQ'].written}",
                    CORRUPT,
                )
            return None, None
        text = places[0].raw.decode("latin-1")
        self._one_value(field, places, None)
        try:
            name, notes = READERS["type"](text, field, self.dialect, self.region)
        except Unreadable as expected:
            what = f"{text[:80]!r} is no MM4 message type; expected {expected}"
            self._error(field, places[0], "type", what, UNSUPPORTED)
            return None, text
        self._note(field, places[0], notes, self.dialect.types[name].source)
        self.values["message_type"] = name
        return name, text

    def _chosen(self, field: Field) -> tuple[Found, ...]:
        """The lines that count: those under the field's own name, else those under the first alias that stands."""
        places = self.places.get(field.name, [])
        if len(places) == 1 and places[0].name == field.header:  # as nearly every line of nearly every peer is
            return (places[0],)
        own = {field.header.lower(), *(name.lower() for name in field.also)}
        chosen = [p for p in places if p.name.lower() in own]
        if not chosen and places:
            first = places[0].name.lower()
            chosen = [p for p in places if p.name.lower() == first]
            self._warn(field, places[0], "name", f"this dialect writes {field.header}")
        elif chosen and len(places) > len(chosen):
            other = next(p for p in places if p.name.lower() not in own)
            self._warn(field, other, "name", f"stands beside {field.header}, which holds")
        return tuple(chosen)

    def _read_field(self, field: Field, type_name: str | None, places: tuple[Found, ...]) -> None:
        if not places or self._read_plain(field, places):
            return
        row = self.dialect.row_of.get((type_name or "", field.name))
        counts = type_name is not None and row is not None
        # A RES is never answered, and what it has to say stands in its mandatory fields: the rest may be odd.
        beside_the_point = row is not None and row.presence == "optional" and (type_name or "").endswith(".RES")
        strict = counts and not field.lenient and not beside_the_point
        if field.kind not in _LISTS:
            self._one_value(field, places, row.source if row else None, counts)
            places = places[:1]
        values: list[object] = []
        members = 0
        for place in places:
            text = place.raw.decode("latin-1")
            if members > MAX_ADDRESSES:
                # A bound for the time that one PDU takes; the members of one line are counted exactly.
                what = f"over {MAX_ADDRESSES} members in {len(places)} lines"
                if strict:
                    self._error(field, place, "readable", what, CORRUPT, row.source if row else None)
                else:
                    self._warn(field, place, "readable", what)
                break
            members += 1 + text.count(",") + text.count(";")
            if not text and field.kind not in ("text", "id"):
                self._warn(field, place, "readable", "stands there without a value; read as absent")
                continue
            try:
                value, notes = READERS[field.kind](text, field, self.dialect, self.region)
            except Unreadable as expected:
                status = UNRESOLVED if field.name == "sender" else CORRUPT
                what = f"found {text[:80]!r}; expected {expected}"
                if strict:
                    self._error(field, place, "readable", what, status, row.source if row else None)
                else:
                    self._warn(field, place, "readable", what)
                continue
            self._note(field, place, notes)
            values.extend(value if field.kind == "addresses" else [value])
        if field.kind in _LISTS:
            if values:
                self.values[field.name] = tuple(values)
        elif values:
            self.values[field.name] = values[0]

    def _read_plain(self, field: Field, places: tuple[Found, ...]) -> bool:
        """Read a field that stands there once, as nearly all do; False where there is more to say of it."""
        if len(places) != 1 or field.kind in _LISTS or not places[0].raw:
            return False
        try:
            value, notes = READERS[field.kind](places[0].raw.decode("latin-1"), field, self.dialect, self.region)
        except Unreadable:
            return False
        if notes:
            self._note(field, places[0], notes)
        self.values[field.name] = value
        return True

    def _one_value(self, field: Field, places: Sequence[Found], source: str | None, counts: bool = True) -> None:
        if len(places) == 1:
            return
        first = unquote(places[0].raw.decode("latin-1"))
        for other in places[1:]:
            if unquote(other.raw.decode("latin-1")) == first:
                self._warn(field, other, "one-value", "stands there twice, with one value")
            elif field.kind == "text" or not counts:
                self._warn(field, other, "one-value", "stands there with two different values; the first holds")
            else:
                self._error(field, other, "one-value", "stands there with two different values", CORRUPT, source)

    def _demand_mandatory(self, type_name: str) -> None:
        unreadable = {p.field for p in self.problems if p.severity == Severity.ERROR}
        for row in self.dialect.pdus.get(type_name, ()):
            if row.presence != "mandatory" or row.field in self.values or row.field in unreadable:
                continue
            field = self.dialect.fields[row.field]
            if field.lenient and row.field in self.places:
                continue  # it stands there, and that it cannot be read has been said
            self._error(field, None, "mandatory", f"{field.header} is mandatory in {type_name}", CORRUPT, row.source)

    def _error(self, field: Field | None, place: Found | None, rule: str, text: str, status: str | None,
               source: str | None = None) -> None:  # fmt: skip
        self._add(field, place, Severity.ERROR, rule, text, status, source)

    def _warn(self, field: Field, place: Found, rule: str, text: str) -> None:
        self._add(field, place, Severity.WARNING, rule, text, None, None)

    def _note(self, field: Field, place: Found, notes: Iterable[str], source: str | None = None) -> None:
        for note in notes:
            rule = "listed" if note.startswith("none of") else "spelling"
            self._add(field, place, Severity.WARNING, rule, note, None, source)

    def _add(self, field: Field | None, place: Found | None, severity: str, rule: str, text: str,
             status: str | None, source: str | None) -> None:  # fmt: skip
        header = place.name if place else None
        self.problems.append(
            Problem(
                field.name if field else None,
                field.header if field and (header is None or squash(header) == squash(field.header)) else header,
                severity,
                rule,
                text,
                status,
                source or (field.source if field else None),
                place,
            )
        )


def _bounded(headers: Iterable[Header]) -> Iterator[Header]:
    """As many lines as a PDU may have."""
    size = 0
    for number, header in enumerate(headers):
        size += header.size
        if number >= MAX_HEADERS or size > MAX_HEADER_BYTES:
            return
        yield header
