"""Advice on PDUs that break no row and yet go wrong: lost acks, lost reports, ids that do not match again.

One row each, with the place where that was seen or is written. `problems` say what is wrong by the tables;
these say what a peer is likely to make of what is right by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .address import Address, Kind
from .dialect import Dialect
from .pdu import Pdu, Problem, Severity

__all__ = ["ADVICE", "DOMAIN", "Advice", "domain_of"]

DOMAIN = "<your domain>"
"""Stands in a line to write where the PDU does not tell the sender's domain."""

_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE | re.DOTALL)
_PLAIN_BOUNDARY = re.compile(r"[A-Za-z0-9_.=-]{1,70}\Z")


@dataclass(frozen=True, slots=True)
class Advice:
    """One row: of which PDUs (end of the type), about which field, when, and in words.

    `shows` is the field whose line is shown. `mend` and `asks` are templates: {header} is the field's header,
    {value} its value, {media} the content type but for its boundary, {domain} the sender's domain, {sender} the
    originator without domain.
    """

    rule: str
    types: str
    field: str
    shows: str
    when: Callable[[Pdu], bool]
    text: str
    asks: str
    mend: str
    source: str

    def holds(self, pdu: Pdu) -> bool:
        """Whether the row speaks of this PDU."""
        return (pdu.type or "").endswith(self.types) and self.when(pdu)

    def problem(self, pdu: Pdu, dialect: Dialect) -> Problem:
        """The row as a warning about this PDU."""
        field, shown = dialect.fields[self.field], dialect.fields[self.shows]
        value, sender = pdu.get(self.field), pdu.get("sender")
        places = pdu.found.get(self.shows, ())
        known = {
            "header": field.header,
            "value": value.local_part() if isinstance(value, Address) else str(value).strip("<>"),
            "media": _BOUNDARY.sub("", pdu.raw("content_type") or "").rstrip("; \t").replace("\t", " "),
            "domain": domain_of(pdu) or DOMAIN,
            "sender": sender.local_part() if isinstance(sender, Address) else "+<number>/TYPE=PLMN",
        }
        return Problem(
            self.field, shown.header if places else field.header, Severity.WARNING, self.rule, self.text,
            source=self.source, place=places[0] if places else None,
            asks=self.asks.format(**known), mend=self.mend.format(**known),
        )  # fmt: skip


def _has_domain(pdu: Pdu, *names: str) -> bool:
    return any(isinstance(a := pdu.get(name), Address) and a.domain is not None for name in names)


def domain_of(pdu: Pdu) -> str | None:
    """The domain of whoever sent the PDU, where it tells."""
    addresses = (pdu.get(name) for name in ("originator_system", "sender_header", "sender"))
    return next((a.domain for a in addresses if isinstance(a, Address) and a.domain), None)


def _ack_without_system(pdu: Pdu) -> bool:
    return pdu.ack_request and pdu.get("originator_system") is None


def _system(pdu: Pdu) -> Address | None:
    address = pdu.get("originator_system")
    return address if isinstance(address, Address) and pdu.ack_request else None


def _boundary(pdu: Pdu) -> str | None:
    """The boundary of a multipart; empty where it has none, None for all else."""
    if not str(pdu.get("content_type") or "").startswith("multipart/"):
        return None
    match = _BOUNDARY.search(pdu.raw("content_type") or "")
    return (match[1] or match[2] or "") if match else ""


ADVICE: tuple[Advice, ...] = (
    Advice(
        "answerable", "forward.REQ", "originator_system", "ack_request",
        lambda pdu: _ack_without_system(pdu) and _has_domain(pdu, "sender_header"),
        "asks for an ack and names no system that wants it: the RES goes to Sender, which is a subscriber",
        "{header} wherever an ack is asked for", "add {header}: system-user@{domain}",
        "TS 23.140 8.4.4; Mbuni answers to Sender where it is absent",
    ),
    Advice(
        "answerable", "forward.REQ", "originator_system", "ack_request",
        lambda pdu: _ack_without_system(pdu) and not _has_domain(pdu, "sender_header"),
        "asks for an ack, and nothing says where to: no RES can come, or one to an address that the peer makes up",
        "{header} wherever an ack is asked for", "add {header}: system-user@{domain}",
        "TS 23.140 8.4.4; Mbuni makes up system-user@ and a domain of its own configuration",
    ),
    Advice(
        "answerable", ".REQ", "originator_system", "originator_system",
        lambda pdu: (system := _system(pdu)) is not None and system.domain is None,
        "has no domain: a RES cannot be sent there", "an address with a domain", "{header}: {value}@{domain}",
        "RFC 5321 2.3.5: the domain says where a mail goes",
    ),
    Advice(
        "answerable", ".REQ", "originator_system", "originator_system",
        lambda pdu: (system := _system(pdu)) is not None and system.kind is Kind.E164 and system.domain is not None,
        "is a subscriber's number: the RES goes to a phone, not to the system that waits for it",
        "the address of a system", "{header}: system-user@{domain}",
        "TS 23.140 8.4.4: the system's address; a number was traced",
    ),
    Advice(
        "answerable", "report.REQ", "sender_header", "ack_request",
        lambda pdu: _ack_without_system(pdu) and not _has_domain(pdu, "sender_header"),
        "asks for an ack, and neither Originator-System nor Sender says at which domain: no RES can come",
        "an address with a domain in Sender, as reports have no originator system of their own",
        "add {header}: {sender}@{domain}",
        "TS 23.140 8.4.4; the acks of traced reports go to Sender",
    ),
    Advice(
        "reportable", "forward.REQ", "sender_header", "sender",
        lambda pdu: (bool(pdu.get("delivery_report") or pdu.get("read_reply"))
                     and not _has_domain(pdu, "sender", "sender_header")),
        "asks for a report, and neither From nor Sender has a domain: it can only go where the envelope came from",
        "the originator's address with its domain in Sender", "add {header}: {sender}@{domain}",
        "traced REQs carry it; a report is addressed to the originator at its domain",
    ),
    Advice(
        "bare-id", "", "transaction_id", "transaction_id",
        lambda pdu: _in_angles(pdu.get("transaction_id")),
        "angle brackets are part of this id: a peer that drops them answers with another one",
        "an id without angle brackets", '{header}: "{value}"', "RFC 5322 3.6.4 has them in Message-ID; MM4 has not",
    ),
    Advice(
        "bare-id", "", "message_id", "message_id",
        lambda pdu: _in_angles(pdu.get("message_id")),
        "angle brackets are part of this id: reports that name it without them find no message",
        "an id without angle brackets", '{header}: "{value}"',
        "RFC 5322 3.6.4 has them in Message-ID; Mbuni answers so where a REQ has no X-Mms-Message-ID",
    ),
    Advice(
        "made-up-id", ".RES", "transaction_id", "transaction_id",
        lambda pdu: pdu.get("transaction_id") == "001",
        "001 is what one MMSC answers to a REQ without transaction id: it matches no REQ",
        "the transaction id of the REQ", 'send the REQ with {header}: "<id>"',
        "Mbuni invents 001 and reports success",
    ),
    Advice(
        "content", "forward.REQ", "content_type", "content_type",
        lambda pdu: _boundary(pdu) == "",
        "a multipart without boundary: its parts cannot be told apart, and the message arrives empty",
        "a boundary parameter", '{header}: {media}; boundary="<boundary>"', "RFC 2046 5.1.1",
    ),
    Advice(
        "content", "forward.REQ", "content_type", "content_type",
        lambda pdu: bool(boundary := _boundary(pdu) or "") and not _PLAIN_BOUNDARY.match(boundary),
        "a boundary with unusual characters: one operator's MMSC could not take such a message apart",
        "a boundary of at most 70 letters, digits, _ . = and -", '{header}: {media}; boundary="----=_Part_1"',
        "RFC 2046 5.1.1 allows more; seen by NowSMS",
    ),
)  # fmt: skip
"""Every row that holds is told."""


def _in_angles(value: object) -> bool:
    return isinstance(value, str) and value.startswith("<") and value.endswith(">") and len(value) > 2
