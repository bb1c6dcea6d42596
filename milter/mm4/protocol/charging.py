"""Charging records after 3GPP TS 32.270: which there are at MM4, what stands in them, and how a line of one is written.

A record is about one PDU and one recipient. TS 32.270 clause 6.1 has the content of each, TS 32.298 the numbers.
Our own names stand in the field table beside those of TS 32.270; docs/charging.md says which of its fields are unknown
here.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal

__all__ = ["FIELDS", "FORMATS", "RECORD_TYPES", "Event", "Field", "Format", "Record", "RecordType", "written"]

Event = Literal["sent", "answered", "received"]
"""What makes a record: Postfix has our REQ, the first RES to it came, Postfix has a peer's REQ."""
Format = Literal["jsonl", "csv"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv")


@dataclass(frozen=True, slots=True)
class RecordType:
    """One kind of record: its number in TS 32.298, the REQ it is about, and what makes it."""

    name: str
    number: int
    request: str
    event: Event
    source: str


_FORWARD, _DELIVERY, _READ = "MM4_forward.REQ", "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"

RECORD_TYPES = (
    RecordType("MMO4FRq", 31, _FORWARD, "sent", "TS 32.270 6.1.1, originator MM4 forward request"),
    RecordType("MMO4FRs", 32, _FORWARD, "answered", "TS 32.270 6.1.1, originator MM4 forward response"),
    RecordType("MMO4D", 33, _DELIVERY, "received", "TS 32.270 6.1.1, originator MM4 delivery report"),
    RecordType("MMO4R", 35, _READ, "received", "TS 32.270 6.1.1, originator MM4 read reply report"),
    RecordType("MMR4F", 38, _FORWARD, "received", "TS 32.270 6.1.2, recipient MM4 forward"),
    RecordType("MMR4DRq", 43, _DELIVERY, "sent", "TS 32.270 6.1.2, recipient MM4 delivery report request"),
    RecordType("MMR4DRs", 44, _DELIVERY, "answered", "TS 32.270 6.1.2, recipient MM4 delivery report response"),
    RecordType("MMR4RRq", 46, _READ, "sent", "TS 32.270 6.1.2, recipient MM4 read reply report request"),
    RecordType("MMR4RRs", 47, _READ, "answered", "TS 32.270 6.1.2, recipient MM4 read reply report response"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One charging record; what is not known is None. Times are aware, addresses what `Address.key` gives.

    Originator and recipient are those of the multimedia message, in the records of a report too.
    """

    sequence_number: int
    record_type: str
    record_time: datetime
    request_time: datetime
    peer: str
    originator: str
    recipient: str
    message_id: str
    transaction_id: str
    message_size: int | None
    time_of_expiry: datetime | None
    ack_requested: bool
    delivery_report_requested: bool
    read_reply_requested: bool
    request_status: str | None
    mm_status: str | None
    read_status: str | None
    queue_id: str
    host: str
    token: str


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record: its name here and in TS 32.270 (None: a record extension of ours)."""

    name: str
    ts_32_270: str | None


FIELDS = (
    Field("sequence_number", "Local Record Sequence Number"),
    Field("record_type", "Record Type"),
    Field("record_time", "Record Time Stamp"),
    Field("request_time", None),
    Field("peer", None),
    Field("originator", "Originator Address"),
    Field("recipient", "Recipient Address"),
    Field("message_id", "Message ID"),
    Field("transaction_id", None),
    Field("message_size", "Message Size"),
    Field("time_of_expiry", "Time of Expiry"),
    Field("ack_requested", "Acknowledgement Request"),
    Field("delivery_report_requested", "Delivery Report Requested"),
    Field("read_reply_requested", "Read Reply Requested"),
    Field("request_status", "Request Status Code"),
    Field("mm_status", "MM Status Code"),
    Field("read_status", "Read Status"),
    Field("queue_id", None),
    Field("host", None),
    Field("token", None),
)
_NAMES = tuple(field.name for field in fields(Record))


def written(records: Iterable[Record], form: Format) -> Iterator[bytes]:
    """The records as the lines of a file, each with its line end; CSV has a head line, and `\\n` ends lines too.

    ASCII only in JSON lines, UTF-8 in CSV. Times are ISO 8601 with offset. The same records give the same bytes.
    """
    if form == "csv":
        yield _csv_line(_NAMES)
    for record in records:
        values = {name: _plain(getattr(record, name)) for name in _NAMES}
        if form == "csv":
            yield _csv_line(_csv_cell(value) for value in values.values())
        else:
            yield json.dumps(values).encode("ascii") + b"\n"


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _csv_cell(value: object) -> object:
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _csv_line(cells: Iterable[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode("utf-8", "backslashreplace")
