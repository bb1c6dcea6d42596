"""A PDU as it was read: typed values, where each stood, and what is wrong with it.

Values only; `reader` makes them, `gateway` judges them. `as_json` is the object that `mm4 lint --json` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .address import Address

__all__ = ["Found", "Pdu", "Problem", "Severity"]

LIST_KINDS = frozenset({"recipients", "request_recipients"})
FLAGS = ("ack_request", "delivery_report", "read_reply", "originator_rs_report")
_JSON_FIELDS = (
    "mms_version", "transaction_id", "message_id", "sender", "recipients", "originator_system", "ack_request",
    "delivery_report", "read_reply", "message_class", "priority", "sender_visibility", "date", "expiry", "subject",
    "forward_counter", "previously_sent", "content_type", "status_code", "status_text", "request_recipients",
    "mm_status", "read_status", "originator_rs_report", "mm_status_extension", "forward_to_originator_ua", "applic_id",
    "reply_applic_id", "aux_applic_info", "content_class", "drm_content", "adaptation_allowed", "mmsip_address",
    "forward_route", "return_route",
)  # fmt: skip


class Severity:
    """How much a problem matters."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a PDU breaks: the field, the header line's name, the rule, and in words what is wrong.

    The reader says which line it is (`place`). `remedy` adds the rest for people: they stay None in the milter.
    """

    field: str | None
    header: str | None
    severity: str
    rule: str
    text: str
    status: str | None = None
    """The request status that a RES would carry for it; None for a warning."""
    source: str | None = None
    place: Found | None = None
    """The header line; None where none stands."""
    line: int | None = None
    """Number of that line in the file, from 1."""
    asks: str | None = None
    """What the row asks."""
    found: str | None = None
    """The line as found, unfolded; None where none stands."""
    mend: str | None = None
    """How to mend it: mostly the line to write."""

    def as_json(self) -> dict[str, Any]:
        """The object under `problems`."""
        return {
            "field": self.field,
            "header": self.header,
            "severity": self.severity,
            "rule": self.rule,
            "text": self.text,
            "source": self.source,
            "line": self.line,
            "asks": self.asks,
            "found": self.found,
            "mend": self.mend,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """One header line that holds a field: its name as written, its number among those (from 1), its unfolded value."""

    name: str
    occurrence: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Pdu:
    """One mail, read as MM4 by one dialect.

    `type` is the 3GPP name, None where it is no known MM4; `type_text` is what stood in its place, None without
    such a header. `mm4` says whether any MM4 header stood there at all.
    """

    type: str | None
    type_text: str | None
    dialect: str
    mm4: bool
    values: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, tuple[Found, ...]] = field(default_factory=dict)
    """The lines that hold each field."""
    beside: Mapping[str, tuple[Found, ...]] = field(default_factory=dict)
    """Lines of a field under other names than the one that counts."""
    problems: tuple[Problem, ...] = ()
    advice: tuple[Problem, ...] = ()
    """What breaks no row and yet goes wrong with some peers: warnings, from `read_message` alone."""

    def get(self, name: str) -> Any:
        """The value of a field, None where it is absent or unreadable."""
        return self.values.get(name)

    def raw(self, name: str) -> str | None:
        """A field's first value as it stood, byte for byte but for folds; None where absent."""
        places = self.found.get(name)
        return places[0].raw.decode("latin-1") if places else None

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that make the PDU invalid."""
        return tuple(p for p in self.problems if p.severity == Severity.ERROR)

    @property
    def valid(self) -> bool:
        """A known type without errors."""
        return self.type is not None and not self.errors

    @property
    def is_request(self) -> bool:
        """Whether the type, known or not, is no RES."""
        return self.type_text is not None and not self.is_answer

    @property
    def is_answer(self) -> bool:
        """Whether the type, known or not, ends in RES: never to be answered."""
        name = self.type or self.type_text or ""
        return name.upper().endswith("RES")

    @property
    def ack_request(self) -> bool:
        """Whether a RES was asked for."""
        return bool(self.get("ack_request"))

    @property
    def recipients(self) -> tuple[Address, ...]:
        """To and Cc."""
        return self.get("recipients") or ()

    @property
    def status(self) -> str | None:
        """The request status that a RES to it would carry; None for a RES and for what is no MM4."""
        if not self.mm4 or (self.type is not None and self.is_answer):
            return None
        return self.errors[0].status if self.errors else "Ok"

    def as_json(self, file: str | None = None, message: int | None = None) -> dict[str, Any]:
        """The object that `mm4 lint --json` prints (docs/lint.md).

        `message` is the number of the message in a file that may hold several, from 1; the key stands only then.
        """
        return {
            "file": file,
            **({"message": message} if message is not None else {}),
            "type": self.type,
            "dialect": self.dialect,
            "valid": self.valid,
            "status": self.status,
            "problems": [p.as_json() for p in self.problems],
            "advice": [p.as_json() for p in self.advice],
            "fields": {name: self._json_value(name) for name in _JSON_FIELDS} if self.mm4 else {},
        }

    def _json_value(self, name: str) -> Any:
        if name == "previously_sent":
            return self._previously_sent()
        value = self.values.get(name)
        if name in FLAGS:
            return bool(value)
        if name in LIST_KINDS:
            return [_address(a) for a in value or ()]
        if name == "originator_system":
            return value.as_given() if isinstance(value, Address) else None
        return _plain(value)

    def _previously_sent(self) -> list[dict[str, Any]]:
        hops: dict[int, dict[str, Any]] = {}
        for index, address in self.get("previously_sent_by") or ():
            hops.setdefault(index, {"index": index, "address": None, "date": None})["address"] = _address(address)
        for index, date in self.get("previously_sent_date") or ():
            hops.setdefault(index, {"index": index, "address": None, "date": None})["date"] = date.isoformat()
        return [hops[index] for index in sorted(hops)]


def _address(address: Address) -> dict[str, str | None]:
    return {"kind": str(address.kind), "value": address.value, "domain": address.domain}


def _plain(value: Any) -> Any:
    if isinstance(value, Address):
        return _address(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return {"seconds": int(value.total_seconds())}
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    return value
