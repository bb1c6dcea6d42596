"""Writing a PDU's header lines exactly as a dialect wants them: its names, its order, its letter case.

ASCII only. A value that cannot be written as the dialect's row says is a ProtocolError that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .address import Address, Kind
from .dialect import Dialect, Field
from .errors import ProtocolError
from .values import WRITERS, Unreadable, check_id

__all__ = ["Verbatim", "write", "write_value"]


_UNWRITABLE = re.compile(r"[^\x20-\x7e\t\n]")


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A value to be written as it stands: an id echoed byte for byte, quotes and all."""

    text: str


def write(
    pdu_type: str, values: Mapping[str, Any], dialect: Dialect, *, partial: bool = False
) -> list[tuple[str, str]]:
    """Header lines (name, value folded with LF) of a PDU of the 3GPP type `pdu_type`, in the dialect's order.

    `values` holds typed values by field, None or absent for what is not written; version and type are
    filled in. Raises ProtocolError where a mandatory field has no value (unless `partial`: the answer to a REQ
    that named no id can name none), a value does not fit its field, or a field has no place in this PDU.
    """
    rows = dialect.pdus.get(pdu_type)
    if rows is None:
        raise ProtocolError(f"{dialect.name} knows no PDU {pdu_type}")
    given: dict[str, Any] = {"mms_version": dialect.version, "message_type": pdu_type}
    given |= {name: value for name, value in values.items() if value is not None}
    misplaced = given.keys() - {row.field for row in rows}
    if misplaced:
        raise ProtocolError(f"{sorted(misplaced)[0]} has no place in {pdu_type} ({dialect.name})")
    lines: list[tuple[str, str]] = []
    for row in rows:
        field = dialect.fields[row.field]
        value = given.get(row.field)
        if value is None or value == ():
            if row.presence == "mandatory" and not partial:
                raise ProtocolError(f"{field.header} is mandatory in {pdu_type} ({row.source})")
            continue
        several = field.kind in ("indexed_addresses", "indexed_dates")
        lines += [(field.header, write_value(item, field, dialect)) for item in (value if several else (value,))]
    return lines


def write_value(value: Any, field: Field, dialect: Dialect) -> str:
    """One value as its header carries it. Raises ProtocolError."""
    if isinstance(value, Verbatim):
        text = value.text
    else:
        _check(value, field, dialect)
        text = WRITERS[field.kind](value, field, dialect)
    if _UNWRITABLE.search(text):
        raise ProtocolError(f"{field.header}: {text[:40]!r} is not printable US-ASCII")
    if "\n" in text and any(line[:1] not in (" ", "\t") or not line.strip() for line in text.split("\n")[1:]):
        raise ProtocolError(f"{field.header}: a line end inside the value")
    return text


def _check(value: Any, field: Field, dialect: Dialect) -> None:
    match field.kind:
        case "id":
            try:
                check_id(value)
            except Unreadable as expected:
                raise ProtocolError(f"{field.header}: expected {expected}") from None
        case "address" | "addresses" | "indexed_addresses":
            one = value[1] if field.kind == "indexed_addresses" else value
            members = value if field.kind == "addresses" else (one,)
            for address in members:
                if not isinstance(address, Address) or address.kind is Kind.INVALID:
                    raise ProtocolError(f"{field.header}: {getattr(address, 'text', address)!r} is no address")
        case "enumeration":
            if value not in field.values:
                raise ProtocolError(f"{field.header}: {value!r} is none of {', '.join(field.values)}")
        case "status":
            if value not in dialect.statuses:
                raise ProtocolError(f"{field.header}: {value!r} is none of {', '.join(dialect.statuses)}")
        case "type":
            if value not in dialect.types:
                raise ProtocolError(f"{field.header}: {value!r} is no message type")
        case _:
            pass
