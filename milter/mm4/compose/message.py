"""Composing an MMS: parts to a multipart/related mail with a SMIL that shows them.

The header block is written by the protocol's own writer, the MIME body by the standard library. The result goes to
the MM4 service as a local client's mail: the gateway completes, routes and records it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from email import encoders, policy
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from typing import Any

from ..protocol.address import Address, Kind, parse_address
from ..protocol.errors import UsageError
from ..protocol.headers import join
from ..protocol.values import MAX_ADDRESSES
from ..protocol.writer import Verbatim
from .addressee import addressee
from .headers import enumerated, head
from .part import Part, wire_names
from .slides import checked
from .slides import smil as shown

__all__ = ["compose"]

_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_.+-]+\Z")
_SMIL_ID, _SMIL_NAME = "smil", "smil.smil"
_LONGEST_EXPIRY = timedelta(seconds=10**10 - 1)
"""What every reader of ours takes: ten digits of seconds."""


def compose(
    sender: str,
    recipients: Iterable[str],
    parts: Iterable[Part],
    *,
    message_id: str,
    now: datetime,
    subject: str | None = None,
    region: str | None = None,
    delivery_report: bool = False,
    read_reply: bool = False,
    expiry: timedelta | datetime | None = None,
    priority: str = "Normal",
    message_class: str = "Personal",
    visibility: str = "Show",
    smil: str | None = None,
) -> bytes:
    """A forward.REQ as a local client hands it in: a mail with CRLF line ends, ASCII only.

    Addresses are numbers (`+447700900101`), short codes or e-mail, at most 1000 recipients; `region` (ISO 3166)
    completes national numbers; `now` is an aware datetime. `expiry` is a time from now, or an aware datetime after it.
    `priority` is Low, Normal or High; `message_class` Personal, Advertisement, Informational or Auto; `visibility`
    Show or Hide; all in any letter case. Without `smil` one is made that shows the parts, the text beside the picture;
    a given one may name parts as `cid:name` or `name` only. Who acknowledges what is between gateway and peer.

    Raises UsageError for what cannot be written so, ProtocolError for an id that is none.
    """
    given = list(parts)
    if not given:
        raise UsageError("an MMS needs at least one part")
    values: dict[str, Any] = {
        "message_id": message_id,
        "recipients": _recipients(recipients, region),
        "sender": _address(sender, region),
        "date": _aware(now, "now"),
        "message_class": enumerated("message_class", message_class),
        "expiry": _expiry(expiry, now),
        "priority": enumerated("priority", priority),
        "sender_visibility": enumerated("sender_visibility", visibility),
        "delivery_report": delivery_report,
        "read_reply": read_reply,
        "subject": subject,
    }
    body = _body(given, smil)
    values["content_type"] = Verbatim(_folded(body["Content-Type"]))
    content = body.as_bytes(policy=policy.SMTP).partition(b"\r\n\r\n")[2]
    return join(head("MM4_forward.REQ", values, message_id), content)


def _recipients(texts: Iterable[str], region: str | None) -> tuple[Address, ...]:
    found: dict[str, Address] = {}
    for text in texts:
        address = _address(text, region)
        found.setdefault(address.key, address)
    if not 0 < len(found) <= MAX_ADDRESSES:
        raise UsageError(f"an MMS has 1 to {MAX_ADDRESSES} recipients, not {len(found)}")
    return tuple(found.values())


def _address(text: str, region: str | None) -> Address:
    """Without a domain, which is the gateway's to write."""
    address = addressee(text, region)
    return address if address.kind is Kind.EMAIL else parse_address(address.local_part())


def _aware(moment: datetime, name: str) -> datetime:
    if moment.tzinfo is None:
        raise UsageError(f"{name} has no time zone; hand in an aware datetime")
    return moment


def _expiry(expiry: timedelta | datetime | None, now: datetime) -> timedelta | datetime | None:
    if isinstance(expiry, timedelta):
        if not timedelta(seconds=1) <= expiry <= _LONGEST_EXPIRY:
            raise UsageError(f"an expiry of {expiry} is none: at least a second, at most ten digits of seconds")
    elif expiry is not None and _aware(expiry, "expiry") <= now:
        raise UsageError(f"the expiry {expiry.isoformat(' ', 'seconds')} is over already")
    return expiry


def _folded(content_type: str) -> str:
    return re.sub(r"\s*\r?\n\s*", "\n ", content_type)


def _body(parts: Sequence[Part], given: str | None) -> MIMEMultipart:
    """The parts behind a SMIL that shows them; side by side where there is nothing to show."""
    names = wire_names(parts, (_SMIL_ID, _SMIL_NAME))
    text = shown(parts, names) if given is None else checked(given, parts, names)
    # Letters and digits alone: a boundary with more in it has stopped an operator's MMSC.
    boundary = f"mm4{secrets.token_hex(12)}"
    body = MIMEMultipart("mixed" if text is None else "related", boundary=boundary, policy=policy.compat32)
    if text is not None:
        body.set_param("type", "application/smil")
        body.set_param("start", f"<{_SMIL_ID}>")
        presentation = Part(_SMIL_NAME, "application/smil", text.encode("utf-8"), "utf-8")
        body.attach(_mime(presentation, _SMIL_NAME, _SMIL_ID))
    for part, name in zip(parts, names, strict=True):
        body.attach(_mime(part, name, name))
    return body


def _mime(part: Part, name: str, content_id: str) -> MIMENonMultipart:
    main, _, sub = part.media_type.partition("/")
    if not _TOKEN.match(main) or not _TOKEN.match(sub) or part.kind in ("multipart", "message"):
        raise UsageError(f"{part.name!r}: {part.media_type!r} is no media type of a part, for example image/jpeg")
    if part.charset is not None and not _TOKEN.match(part.charset):
        raise UsageError(f"{part.name!r}: {part.charset!r} is no charset, for example utf-8")
    parameters = {"name": name} | ({"charset": part.charset} if part.charset else {})
    mime = MIMENonMultipart(main, sub, policy=policy.compat32, **parameters)
    mime.set_payload(part.content)
    # Text too: so it arrives byte for byte, whatever its line ends.
    encoders.encode_base64(mime)
    del mime["MIME-Version"]
    mime["Content-ID"] = f"<{content_id}>"
    mime["Content-Location"] = name
    return mime
