"""Between MMS and Internet mail, after RFC 4356: ordinary mail to a number, and an MMS to an e-mail address.

Only headers are mapped; the body is MIME on both sides and passes as it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pydantic import Field

from ..protocol.address import Address, Kind
from ..protocol.dialect import Dialect
from ..protocol.headers import Header, unfold
from ..protocol.pdu import Pdu
from ..protocol.reader import read
from ..protocol.transaction import INTERNET
from ..protocol.values import Unreadable, read_id
from ..protocol.writer import write_value
from .edits import Edit
from .entries import Domain, NextHop
from .forms import FORMED, Form, formed_edits, hidden, hidden_edits
from .localside import Local
from .names import public_name
from .section import Section
from .template import fill

__all__ = [
    "INTERNET",
    "MMS_FORM",
    "InternetMail",
    "as_request",
    "is_ordinary",
    "mail_edits",
    "mail_sender",
    "request_values",
]

FORWARD = "MM4_forward.REQ"
MMS_FORM = "{number}/TYPE=PLMN"
"""How ordinary mail's numbers are written in the MMS that it becomes."""
MAIL_FORM = "{number}@{domain}"

PRIORITIES: Mapping[str, str] = MappingProxyType({"High": "High", "Low": "Low"})
"""X-Mms-Priority and Importance (RFC 4356 2.1.3.2; Normal is left out)."""

_IMPORTANCE = {"high": "High", "low": "Low", "1": "High", "2": "High", "4": "Low", "5": "Low"}
"""Importance (RFC 2421) and X-Priority by their first word."""


class InternetMail(Section):
    """Internet mail beside MMS (docs/addresses.md)."""

    submit: bool = Field(
        False, description="Whether mail without MM4 headers from a client of ours to a number goes out as an MMS."
    )
    next_hop: NextHop | None = Field(
        None,
        description="Where an MMS to an e-mail address goes, as Internet mail (RFC 4356). Left out: it is refused.",
    )
    domain: Domain | None = Field(
        None, description="What stands behind our numbers in such mail. Default: `domain` of our side."
    )


# -- ordinary mail that becomes an MMS


def as_request(headers: Sequence[Header], region: str | None) -> Pdu:
    """Ordinary mail, read as the forward.REQ that it is to become: the type stands nowhere yet."""
    pdu = read([*headers, Header("X-Mms-Message-Type", FORWARD.encode())], "3gpp", region)
    return replace(pdu, found={name: places for name, places in pdu.found.items() if name != "message_type"})


def is_ordinary(pdu: Pdu) -> bool:
    """Whether this is ordinary mail, read by `as_request`."""
    return pdu.type == FORWARD and "message_type" not in pdu.found


def request_values(headers: Sequence[Header], pdu: Pdu) -> dict[str, Any]:
    """What the headers of ordinary mail say in MMS (RFC 4356 2.1.3.2): id, priority, and whether a report is wanted.

    Whoever has no number gets no read report, because none could reach him.
    """
    said = {header.name.lower(): unfold(header.value).decode("latin-1").strip() for header in reversed(headers)}
    values: dict[str, Any] = {}
    with contextlib.suppress(Unreadable):
        values["message_id"] = read_id(said.get("message-id", "").strip("<>"))
    important = re.split(r"[\s;(]", (said.get("importance") or said.get("x-priority") or "").lower())[0]
    if important in _IMPORTANCE:
        values["priority"] = _IMPORTANCE[important]
    sender = pdu.get("sender")
    if "disposition-notification-to" in said and isinstance(sender, Address) and sender.number:
        values["read_reply"] = True
    return values


# -- an MMS that becomes Internet mail


def mail_edits(
    pdu: Pdu, headers: Sequence[Header], dialect: Dialect, domain: str, token: str, now: datetime
) -> Iterator[Edit]:
    """A forward.REQ on its way to e-mail addresses (RFC 4356 2.1.3.2): nothing that only MMS knows goes along.

    `domain` stands behind numbers. Raises ProtocolError.
    """
    form = Form(MAIL_FORM, domain)
    seen: dict[str, int] = {}
    for header in headers:
        name = header.name.lower()
        seen[name] = seen.get(name, 0) + 1
        if name.startswith("x-mms-"):
            yield Edit("delete", header.name, seen[name])
    hide = hidden(pdu)
    sender = pdu.get("sender")
    if hide:
        yield from (edit for edit in hidden_edits(pdu, headers) if not edit.header.lower().startswith("x-mms-"))
    plain = {field: places for field, places in pdu.found.items() if not places[0].name.lower().startswith("x-mms-")}
    yield from formed_edits(replace(pdu, found=plain), form, ("recipients",) if hide else FORMED)
    priority = PRIORITIES.get(pdu.get("priority") or "")
    if priority and "importance" not in seen:
        yield Edit("add", "Importance", 0, priority)
    numbered = isinstance(sender, Address) and sender.kind in (Kind.E164, Kind.SHORT_CODE)
    if pdu.get("read_reply") and numbered and not hide and "disposition-notification-to" not in seen:
        yield Edit("add", "Disposition-Notification-To", 0, form.write(sender))
    if "message-id" not in seen:
        yield Edit("add", "Message-ID", 0, f"<{public_name(token, 'mail')}@{domain}>")
    if "date" not in seen:
        yield Edit("add", "Date", 0, write_value(now, dialect.fields["date"], dialect))
    if "mime-version" not in seen and "content-type" in seen:
        yield Edit("add", "MIME-Version", 0, "1.0")


def mail_sender(pdu: Pdu, originator: Address | None, local: Local, token: str) -> tuple[str, str]:
    """Envelope sender of Internet mail: the originator's number in our own domain, so that bounces come home.

    Our system for one who has no number, or hides.
    """
    known = originator is not None and originator.kind in (Kind.E164, Kind.SHORT_CODE) and not hidden(pdu)
    written = fill(MAIL_FORM, originator, domain=local.domain) if known and originator is not None else None
    return written or local.system_address, f"RET=HDRS ENVID={token}"
