"""Bounces as values: who failed, how, and which PDU it was; delivery status notifications (RFC 3464) and plain ones.

Postfix's own bounces and those of an MMSC or a peer's mail system come in here. Reading is tolerant and
never raises: what cannot be read as a report is None, and the caller keeps the mail. One report may hold
several recipients; the suffix by which this gateway chooses a next hop is taken off their addresses.
"""

from __future__ import annotations

import email
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email import policy
from email.message import Message

from ..gateway.names import strip_via
from ..protocol.dialect import builtin, read_type

__all__ = ["Recipient", "Report", "parse_plain", "parse_report"]

log = logging.getLogger("mm4.dsn")

_BLANK_LINES = re.compile(rb"\r?\n(?:[ \t]*\r?\n)+")
_TYPE_HEADERS = tuple(name.lower() for name in builtin("3gpp").fields["message_type"].headers)
_PLAIN_LINE = {
    # Within the body, quoted or indented as some systems do it.
    name: re.compile(rb"^[> \t]*" + name.encode() + rb"[ \t]*:([^\n]*)", re.IGNORECASE | re.MULTILINE)
    for name in ("x-mms-transaction-id", "x-mms-message-id", *_TYPE_HEADERS)
}
_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")  # the second: RFC 6533
_RETURNED_TYPES = (
    "message/rfc822",
    "message/global",
    "text/rfc822-headers",
    "message/rfc822-headers",
    "message/global-headers",
)


@dataclass(frozen=True, slots=True)
class Recipient:
    """One group of per-recipient fields. Addresses are without their type (`rfc822;`), "" where absent.

    `action` is in lower case (failed, delayed, delivered, relayed, expanded, or whatever was written),
    `status` the enhanced code (`5.1.1`), `diagnostic` the Diagnostic-Code unfolded, with its type.
    """

    original_recipient: str
    final_recipient: str
    action: str
    status: str
    diagnostic: str


@dataclass(frozen=True, slots=True)
class Report:
    """A delivery status notification. What is absent is None.

    `envelope_id` is Original-Envelope-Id as written, `message_id` and `transaction_id` are the X-Mms ids of
    the returned headers, unquoted, `type` is the returned PDU's by its 3GPP name. A plain bounce has no groups but
    `text`, what it says in front of the returned copy.
    """

    envelope_id: str | None
    recipients: tuple[Recipient, ...]
    message_id: str | None = None
    transaction_id: str | None = None
    type: str | None = None
    text: str | None = None


def parse_report(data: bytes) -> Report | None:
    """Read a mail as a report. None: it is no multipart/report with a delivery-status part. Never raises."""
    try:
        return _parse(data)
    except Exception:
        # email raises KeyError, LookupError, RecursionError and others on odd bytes, and what it raises
        # changes with Python's version. The caller keeps a mail that it cannot read.
        log.warning("a report of %d bytes cannot be read", len(data), exc_info=True)
        return None


def parse_plain(data: bytes) -> Report | None:
    """Read a mail as a bounce without groups (qmail's, or an old system's): words, and below them a copy of the PDU.

    None: no header of a PDU with a transaction id stands in its body. Never raises.
    """
    head, _, body = data.replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = {name: _PLAIN_LINE[name].search(body) for name in _PLAIN_LINE}
    copied = [match for match in lines.values() if match]
    if lines["x-mms-transaction-id"] is None or _PLAIN_LINE["x-mms-transaction-id"].search(head):
        return None
    said = {name: match and _text(match[1].decode("utf-8", "surrogateescape")) for name, match in lines.items()}
    return Report(
        envelope_id=None,
        recipients=(),
        message_id=_unquoted(said["x-mms-message-id"]),
        transaction_id=_unquoted(said["x-mms-transaction-id"]),
        type=_type(said),
        text=_text(body[: min(match.start() for match in copied)].decode("utf-8", "surrogateescape")),
    )


def _parse(data: bytes) -> Report | None:
    mail = email.message_from_bytes(data, policy=policy.compat32)
    if mail.get_content_type() != "multipart/report" or not mail.is_multipart():
        return None
    kind = str(mail.get_param("report-type", "delivery-status")).lower()
    if kind not in ("delivery-status", "global-delivery-status"):
        return None
    parts = [part for part in mail.get_payload() if isinstance(part, Message)]
    status = next((part for part in parts if part.get_content_type() in _STATUS_TYPES), None)
    if status is None:
        return None
    blocks = [block for block in _blocks(status) if block]
    # Some systems leave the per-message fields out, or put them into the first group.
    recipients = tuple(_recipient(b) for b in blocks if "final-recipient" in b or "original-recipient" in b)
    envelope_id = next((b["original-envelope-id"] for b in blocks if b.get("original-envelope-id")), None)
    returned = next((part for part in parts if part.get_content_type() in _RETURNED_TYPES), None)
    headers = _returned_headers(returned) if returned is not None else {}
    return Report(
        envelope_id=envelope_id,
        recipients=recipients,
        message_id=_unquoted(headers.get("x-mms-message-id")),
        transaction_id=_unquoted(headers.get("x-mms-transaction-id")),
        type=_type(headers),
    )


def _text(value: str) -> str:
    """Unfold a raw header value and undo the parser's surrogates."""
    decoded = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return re.sub(r"\s+", " ", decoded).strip()


def _fields(message: Message) -> dict[str, str]:
    """Return the headers by lower-case name; the first of several equal ones counts."""
    fields: dict[str, str] = {}
    for name, value in message.raw_items():
        fields.setdefault(name.lower(), _text(str(value)))
    return fields


def _blocks(part: Message) -> Iterator[dict[str, str]]:
    """Yield the groups of fields of a delivery-status part."""
    payload = part.get_payload()
    if part.get_content_type() == "message/delivery-status" and isinstance(payload, list):
        # The email package has cut these at the blank lines.
        yield from (_fields(block) for block in payload if isinstance(block, Message))
        return
    # Any other message/* is parsed as one mail: its headers are the first group, its body the others.
    for inner in payload if isinstance(payload, list) else [part]:
        if not isinstance(inner, Message):
            continue
        if inner is not part:
            yield _fields(inner)
        body = inner.get_payload(decode=True)
        for block in _BLANK_LINES.split(body) if isinstance(body, bytes) else ():
            yield _fields(email.message_from_bytes(block.lstrip() + b"\n\n", policy=policy.compat32))


def _returned_headers(part: Message) -> dict[str, str]:
    payload = part.get_payload()
    if isinstance(payload, list):
        return _fields(payload[0]) if payload and isinstance(payload[0], Message) else {}
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return {}
    return _fields(email.message_from_bytes(content, policy=policy.compat32))


def _address(value: str | None) -> str:
    """Take `rfc822;` and our next-hop suffix off.

    The address is not xtext-decoded: Postfix writes it decoded, and decoding `+447700900101` again would
    make `D7700900101` of it.
    """
    text = value or ""
    kind, semicolon, address = text.partition(";")
    if semicolon and "@" not in kind:
        text = address.strip()
    return strip_via(text.removeprefix("<").removesuffix(">").removesuffix("."))


def _recipient(block: dict[str, str]) -> Recipient:
    status = re.search(r"\b[245]\.[0-9]{1,3}\.[0-9]{1,3}\b", block.get("status", ""))
    return Recipient(
        original_recipient=_address(block.get("original-recipient")),
        final_recipient=_address(block.get("final-recipient")),
        action=block.get("action", "").partition("(")[0].strip().lower(),
        status=status[0] if status else "",
        diagnostic=block.get("diagnostic-code", ""),
    )


def _type(headers: Mapping[str, str | None]) -> str | None:
    """The 3GPP name of the returned PDU, under whichever dialect's header it stands."""
    written = next((headers[name] for name in _TYPE_HEADERS if headers.get(name)), None)
    return read_type(written, builtin("3gpp")) if written else None


def _unquoted(value: str | None) -> str | None:
    if value is not None and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value or None
