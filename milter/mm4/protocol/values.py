"""Reading and writing one value of each kind that a dialect row can name.

`READERS[kind](text, field, context)` gives the value and what was forgiven, or raises Unreadable with what is
expected; `WRITERS[kind](value, field, dialect)` gives the exact header value. Reading is tolerant, writing exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from .address import Address, Kind, parse_address, split_list
from .dialect import Dialect, Field, read_type, squash
from .text import decode_text, encode_text

__all__ = ["MAX_ADDRESSES", "MAX_ID", "READERS", "WRITERS", "Unreadable", "check_id", "read_id", "unquote"]

MAX_ID = 900
"""Longest transaction or message id, in characters after unquoting."""
MAX_ADDRESSES = 1000
"""Members of all lines of one list together: as many as Postfix takes recipients, and a bound for what they cost."""


class Unreadable(Exception):
    """A value cannot be read; the text says what is expected. Never leaves the protocol package."""


Reading = tuple[Any, list[str]]

_PRINTABLE = re.compile(r"[\x20-\x7e]+\Z")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\Z', re.DOTALL)
_MEDIA_TYPE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*/\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;|\Z)", re.DOTALL)
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){0,2}\Z")
_INDEXED = re.compile(r"\s*(\d{1,6})\s*,\s*(.*)\Z", re.DOTALL)
_JAVASCRIPT = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2} \d{1,2} \d{4} \d\d:\d\d:\d\d) (?:GMT|UTC)([+-]\d{4})")
_RFC_5322 = re.compile(
    r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\s*,\s*)?\d{1,2}\s+[A-Za-z]{3}\s+\d{4}\s+\d\d:\d\d(?::\d\d)?\s+"
    r"(?:[+-]\d{4}|GMT|UTC?|[ECMP][SD]T)(?:\s*\([^()]*\))?\Z",
    re.IGNORECASE,
)
_LEAP_SECOND = re.compile(r"(?<=:\d\d:)60\b")
_FLAGS = {"yes": True, "no": False}
_FLAG_SPELLINGS = {"1": True, "0": False, "true": True, "false": False, "y": True, "n": False}


def unquote(text: str) -> str:
    """An id without the quotes around it, and without their escapes."""
    match = _QUOTED.match(text)
    return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL) if match else text


def read_id(text: str) -> str:
    """A transaction or message id, unquoted. Raises Unreadable."""
    return check_id(unquote(text))


def check_id(value: str) -> str:
    """An id without quotes, if it may be one. Raises Unreadable."""
    if not value:
        raise Unreadable("an id of 1 to 900 printable US-ASCII characters; it is empty")
    if len(value) > MAX_ID:
        raise Unreadable(f"an id of at most {MAX_ID} characters; it has {len(value)}")
    if not _PRINTABLE.match(value):
        raise Unreadable("an id of printable US-ASCII characters; it holds a control or an 8-bit byte")
    return value


def _id(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    return read_id(text), []


def _version(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    if not _VERSION.match(text):
        raise Unreadable("a version of three numbers, for example 5.5.0")
    notes = [] if text.count(".") == 2 else ["a version has three numbers, for example 5.5.0"]
    return text, notes


def _type(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    name = read_type(text, dialect)
    if name is None:
        raise Unreadable("one of " + ", ".join(row.written for row in dialect.types.values()))
    written = dialect.types[name].written
    return name, [] if text == written else [f"this dialect writes {written}"]


def _address(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    address = parse_address(text.strip(" \t,;"), region)
    if address.kind is Kind.INVALID:
        raise Unreadable("an address such as +447700900101/TYPE=PLMN@mms.operator.example")
    return address, _completed(address)


def _addresses(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    # Display names may hold commas, but not so many that the list need be taken apart to be counted.
    members = split_list(text) if text.count(",") + text.count(";") <= 20 * MAX_ADDRESSES else None
    if members is None or len(members) > MAX_ADDRESSES:
        raise Unreadable(f"at most {MAX_ADDRESSES} addresses")
    addresses = [parse_address(member, region) for member in members]
    if not addresses or all(address.kind is Kind.INVALID for address in addresses):
        raise Unreadable("one or more addresses such as +447700900101/TYPE=PLMN, parted by commas")
    notes = [note for address in addresses for note in _completed(address)]
    notes += [f"{a.text.strip()[:60]!r} is no address" for a in addresses if a.kind is Kind.INVALID]
    return tuple(addresses), notes


def _completed(address: Address) -> list[str]:
    return [f"a number without plus, read as {address.value}"] if address.completed else []


def _media_type(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    match = _MEDIA_TYPE.match(text)
    if match is None:
        raise Unreadable("a media type such as multipart/related")
    return f"{match[1]}/{match[2]}".lower(), []


def _date(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    # The most particular first: Python's RFC 5322 parser reads a JavaScript date, and loses its offset.
    for read, kind in (
        (_javascript_date, "a JavaScript date"), (_iso_date, "an ISO 8601 date"), (_rfc_date, "a date in another form")
    ):  # fmt: skip
        value = read(text)
        if value is not None:
            note = f"{kind} where RFC 5322 wants one such as Thu, 12 Nov 2026 02:28:01 +0200"
            return value, [] if _RFC_5322.match(text) else [note]
    raise Unreadable("a date such as Thu, 12 Nov 2026 02:28:01 +0200")


def _rfc_date(text: str) -> datetime | None:
    try:
        value = parsedate_to_datetime(_LEAP_SECOND.sub("59", text[:200]))
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        value.astimezone(UTC)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return value


def _iso_date(text: str) -> datetime | None:
    try:
        value = datetime.fromisoformat(text)
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        value.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return value


def _javascript_date(text: str) -> datetime | None:
    match = _JAVASCRIPT.search(text)
    if match is None:
        return None
    try:
        offset = timedelta(hours=int(match[2][:3]), minutes=int(match[2][0] + match[2][3:]))
        value = datetime.strptime(match[1], "%b %d %Y %H:%M:%S").replace(tzinfo=timezone(offset))
        value.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return value


def _expiry(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    if text.isascii() and text.isdigit():
        if len(text) > 10:
            raise Unreadable("an expiry in seconds of at most 10 digits, or a date")
        return timedelta(seconds=int(text)), []
    try:
        return _date(text, field, dialect, region)
    except Unreadable:
        raise Unreadable("seconds, or a date such as Thu, 19 Nov 2026 00:28:02 GMT") from None


def _enumeration(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    spellings = {squash(v): v for v in field.values} | {squash(k): v for k, v in field.spellings.items()}
    value = spellings.get(squash(text))
    if value is None:
        if field.strict:
            raise Unreadable("one of " + ", ".join(field.values))
        return field.default, [f"none of {', '.join(field.values)}; read as {field.default or 'absent'}"]
    return value, [] if text == value else [f"written {value}"]


def _flag(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    key = text.lower()
    if key in _FLAGS:
        return _FLAGS[key], []
    if key in _FLAG_SPELLINGS:
        value = _FLAG_SPELLINGS[key]
        return value, [f"written {'Yes' if value else 'No'}"]
    return False, ["neither Yes nor No; read as No"]


def _text(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    return decode_text(text.encode("latin-1"))


def _number(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Unreadable("a whole number")
    return int(text), []


def _status(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    name = dialect.status_names.get(squash(text))
    if name is None:
        raise Unreadable("one of " + ", ".join(dialect.statuses))
    return name, [] if text == name else [f"written {name}"]


def _indexed(text: str) -> tuple[int, str]:
    match = _INDEXED.match(text)
    if match is None:
        raise Unreadable("an index, a comma and a value, for example: 0, +447700900101/TYPE=PLMN")
    return int(match[1]), match[2]


def _indexed_address(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    try:
        index, rest = _indexed(text)
    except Unreadable:
        # One operator sends the address alone, under another name.
        notes = [] if field.form == "unindexed" else ["no index; read as 0"]
        return (0, _address(text, field, dialect, region)[0]), notes
    try:
        return (index, _address(rest, field, dialect, region)[0]), []
    except Unreadable:
        # RFC 4356 2.1.3.2 allows several behind one index.
        members = split_list(rest)
        if len(members) < 2:
            raise
        return (index, _address(members[0], field, dialect, region)[0]), ["several addresses; the first is read"]


def _indexed_date(text: str, field: Field, dialect: Dialect, region: str | None) -> Reading:
    index, rest = _indexed(text)
    value, notes = _date(rest, field, dialect, region)
    return (index, value), notes


READERS: dict[str, Callable[[str, Field, Dialect, str | None], Reading]] = {
    "address": _address,
    "addresses": _addresses,
    "date": _date,
    "enumeration": _enumeration,
    "expiry": _expiry,
    "flag": _flag,
    "id": _id,
    "indexed_addresses": _indexed_address,
    "indexed_dates": _indexed_date,
    "media_type": _media_type,
    "number": _number,
    "status": _status,
    "text": _text,
    "type": _type,
    "version": _version,
}


def _write_id(value: str, dialect: Dialect) -> str:
    """Quoted where the dialect quotes, and wherever a bare id would not read back as it is."""
    if dialect.ids == "bare" and unquote(value) == value and value == value.strip():
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_date(value: datetime) -> str:
    return format_datetime(value.replace(microsecond=0))


def _write_http_date(value: datetime) -> str:
    return format_datetime(value.astimezone(UTC).replace(microsecond=0), usegmt=True)


def _write_address(address: Address, field: Field) -> str:
    if field.form == "bare" and address.kind in (Kind.E164, Kind.SHORT_CODE):
        return f"{address.value}@{address.domain}" if address.domain else address.value
    return address.write()


def _write_hop(hop: tuple[int, Address], field: Field) -> str:
    address = _write_address(hop[1], field)
    return address if field.form == "unindexed" and hop[0] == 0 else f"{hop[0]}, {address}"


WRITERS: dict[str, Callable[[Any, Field, Dialect], str]] = {
    "address": lambda value, field, _: _write_address(value, field),
    "addresses": lambda value, field, _: ",\n ".join(_write_address(address, field) for address in value),
    "date": lambda value, *_: _write_date(value),
    "enumeration": lambda value, *_: value,
    "expiry": lambda value, *_: (
        str(int(value.total_seconds())) if isinstance(value, timedelta) else _write_http_date(value)
    ),
    "flag": lambda value, *_: "Yes" if value else "No",
    "id": lambda value, _, dialect: _write_id(value, dialect),
    "indexed_addresses": lambda value, field, _: _write_hop(value, field),
    "indexed_dates": lambda value, *_: f"{value[0]}, {_write_http_date(value[1])}",
    "media_type": lambda value, *_: value,
    "number": lambda value, *_: str(value),
    "status": lambda value, *_: value,
    "text": lambda value, *_: encode_text(value),
    "type": lambda value, _, dialect: dialect.types[value].written,
    "version": lambda value, *_: value,
}
