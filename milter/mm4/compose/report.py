"""Composing reports: what became of a message that our side received, for the one who sent it.

Each is one mail from one recipient to the originator (TS 23.140 8.4.4; RFC 4356 2.1.4: several recipients, several
reports), with the id of the message that it is about. The gateway addresses it to the originator's system, asks for
an ack where the peer gives one, and keeps it back where the originator asked for no report.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..protocol.address import Kind, parse_address
from ..protocol.errors import UsageError
from ..protocol.headers import join
from .addressee import addressee
from .headers import enumerated, head

__all__ = ["delivery_report", "read_report"]

_EXTENSION = "mm_status_extension"
_DELETED = {"deleted": "Deleted without being read"}


def delivery_report(
    reporter: str,
    originator: str,
    status: str,
    *,
    message_id: str,
    transaction_id: str,
    date: datetime,
    text: str | None = None,
    extension: str | None = None,
    region: str | None = None,
) -> bytes:
    """A delivery_report.REQ: `reporter` is the recipient of the message, `originator` who sent it.

    `status` is Expired, Retrieved, Rejected, Deferred, Indeterminate, Forwarded, Unrecognised or Unreachable, in any
    letter case; `message_id` that of the message, unquoted; `transaction_id` a new one of the report's own; `date` the
    aware time at which the message was handled; `text` a word for people; `extension` the Release 6 element
    X-Mms-MM-Status-Extension. Raises UsageError for what cannot be written so, ProtocolError for an id that is none.
    """
    values: dict[str, Any] = {"mm_status": enumerated("mm_status", status), "status_text": text}
    if extension is not None:
        values[_EXTENSION] = enumerated(_EXTENSION, extension)
    return _report("MM4_delivery_report.REQ", values, reporter, originator, message_id, transaction_id, date, region)


def read_report(
    reporter: str,
    originator: str,
    status: str,
    *,
    message_id: str,
    transaction_id: str,
    date: datetime,
    text: str | None = None,
    region: str | None = None,
) -> bytes:
    """A read_reply_report.REQ; `status` is Read or `Deleted without being read` (`deleted` will do), in any letter
    case; `date` the time of reading or deleting, and all else as in `delivery_report`.
    """
    found = enumerated("read_status", _DELETED.get(status.strip().lower(), status))
    values: dict[str, Any] = {"read_status": found, "status_text": text}
    return _report("MM4_read_reply_report.REQ", values, reporter, originator, message_id, transaction_id, date, region)


def _report(
    pdu_type: str,
    values: dict[str, Any],
    reporter: str,
    originator: str,
    message_id: str,
    transaction_id: str,
    date: datetime,
    region: str | None,
) -> bytes:
    if date.tzinfo is None:
        raise UsageError("date has no time zone; hand in an aware datetime")
    sender, recipient = (addressee(text, region) for text in (reporter, originator))
    values |= {
        "message_id": message_id,
        "transaction_id": transaction_id,
        "sender": sender if sender.kind is Kind.EMAIL else parse_address(sender.local_part()),
        "recipients": (recipient if recipient.kind is Kind.EMAIL else parse_address(recipient.local_part()),),
        "date": date,
    }
    lines = head(pdu_type, values, transaction_id)
    if not any(name == "Content-Type" for name, _ in lines):
        lines.append(("Content-Type", "text/plain; charset=us-ascii"))
    return join(lines, b"")
