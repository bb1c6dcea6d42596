"""Composing an MMS: text and attachments to a multipart/related mail with a SMIL that shows its parts.

The header block is written by the protocol's own writer, the MIME body by the standard library. The result goes to
the MM4 service as a local client's mail: the gateway completes, routes and records it.
"""

from __future__ import annotations

import mimetypes
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from email import encoders, policy
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from html import escape
from pathlib import Path
from typing import Any

from .protocol.address import Address, Kind, parse_address
from .protocol.dialect import builtin
from .protocol.errors import UsageError
from .protocol.headers import join
from .protocol.writer import Verbatim, write

__all__ = ["Part", "compose", "part_of_file", "text_part"]

_REGIONS = {"image": "Image", "video": "Image", "text": "Text"}
_ELEMENTS = {"image": "img", "video": "video", "audio": "audio", "text": "text"}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message: its name (Content-Location and Content-ID), media type and bytes."""

    name: str
    media_type: str
    content: bytes
    charset: str | None = None


def text_part(text: str) -> Part:
    """A text part in UTF-8."""
    return Part("text.txt", "text/plain", text.encode("utf-8", "replace"), "utf-8")


def part_of_file(path: str | Path) -> Part:
    """A file as a part, its media type by its name. Raises UsageError where it cannot be read."""
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return Part(re.sub(r"[^A-Za-z0-9._-]", "_", file.name)[-60:], media_type, content)


def compose(
    sender: str,
    recipients: list[str],
    parts: list[Part],
    *,
    message_id: str,
    now: datetime,
    subject: str | None = None,
    region: str | None = None,
    delivery_report: bool = False,
    read_reply: bool = False,
) -> bytes:
    """A forward.REQ as a local client hands it in: a mail with CRLF line ends.

    Addresses are numbers (`+447700900101`), short codes or e-mail; `region` completes national numbers; `now` is an
    aware datetime. Raises UsageError for what is no address, ProtocolError for an id that cannot be written.
    """
    names = [part.name for part in parts]
    parts = [Part(_unique(p.name, names, i), p.media_type, p.content, p.charset) for i, p in enumerate(parts)]
    values: dict[str, Any] = {
        "message_id": message_id,
        "recipients": tuple(_address(r, region) for r in recipients),
        "sender": _address(sender, region),
        "date": now,
        "message_class": "Personal",
        "priority": "Normal",
        "sender_visibility": "Show",
        "delivery_report": delivery_report,
        "read_reply": read_reply,
        "subject": subject,
    }
    body = _related(parts)
    values["content_type"] = Verbatim(_folded(body["Content-Type"]))
    # The gateway gives it a transaction id: it knows what it sends to whom.
    lines = write("MM4_forward.REQ", values, builtin("3gpp"), partial=True)
    lines += [("MIME-Version", "1.0"), ("Message-ID", f"<{message_id}>")]
    content = body.as_bytes(policy=policy.SMTP).partition(b"\r\n\r\n")[2]
    return join(lines, content)


def _address(text: str, region: str | None) -> Address:
    address = parse_address(text, region)
    if address.kind is Kind.INVALID or address.kind is Kind.SYSTEM:
        raise UsageError(f"{text!r} is no address: a number such as +447700900101, a short code or e-mail")
    return address if address.kind is Kind.EMAIL else parse_address(address.local_part())


def _unique(name: str, names: list[str], index: int) -> str:
    return name if names.index(name) == index else f"{index}-{name}"


def _folded(content_type: str) -> str:
    return re.sub(r"\s*\r?\n\s*", "\n ", content_type)


def _related(parts: list[Part]) -> MIMEMultipart:
    """The parts behind a SMIL that shows one after the other, text below pictures."""
    boundary = f"mm4_{secrets.token_hex(12)}"
    body = MIMEMultipart("related", boundary=boundary, policy=policy.compat32)
    body.set_param("type", "application/smil")
    body.set_param("start", "<smil>")
    smil = Part("smil.smil", "application/smil", _smil(parts).encode("utf-8"), "utf-8")
    body.attach(_mime(smil, "smil"))
    for part in parts:
        body.attach(_mime(part, part.name))
    return body


def _mime(part: Part, content_id: str) -> MIMENonMultipart:
    main, _, sub = part.media_type.partition("/")
    parameters = {"name": part.name} | ({"charset": part.charset} if part.charset else {})
    mime = MIMENonMultipart(main, sub, policy=policy.compat32, **parameters)
    mime.set_payload(part.content)
    encoders.encode_base64(mime)
    del mime["MIME-Version"]
    mime["Content-ID"] = f"<{content_id}>"
    mime["Content-Location"] = part.name
    return mime


def _smil(parts: list[Part]) -> str:
    shown = []
    for part in parts:
        kind = part.media_type.partition("/")[0]
        region = f' region="{_REGIONS[kind]}"' if kind in _REGIONS else ""
        shown.append(f'<{_ELEMENTS.get(kind, "ref")} src="cid:{escape(part.name)}"{region}/>')
    return (
        '<smil><head><layout><root-layout width="320" height="480"/>'
        '<region id="Image" left="0" top="0" width="320" height="320" fit="meet"/>'
        '<region id="Text" left="0" top="320" width="320" height="160" fit="scroll"/></layout></head>'
        f'<body><par dur="10s">{"".join(shown)}</par></body></smil>'
    )
