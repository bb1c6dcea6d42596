"""What is agreed on one link, as the configuration describes it: a peer's RES, headers, content, rates and floods.

What needs the peer's dialect to be judged is judged by `unspeakable`, once that is known.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ..protocol.dialect import builtin, read_type
from .entries import Duration, Text
from .names import SIDE_HEADER
from .section import Section, place

__all__ = [
    "KEPT_FIELDS",
    "Content",
    "Extras",
    "Flood",
    "Headers",
    "OriginatorRate",
    "PduType",
    "Rate",
    "Version",
    "stays",
]

_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){1,2}\Z")
_NAME = re.compile(r"[!-9;-~]{1,76}\Z")
_NO_NAME = "{!r} is no header name: printable US-ASCII without blanks and colons, at most 76 characters"
_MEDIA = re.compile(r"[a-z0-9!#$&^_.+-]+/(\*|[a-z0-9!#$&^_.+-]+)\Z")

KEPT_FIELDS = frozenset({
    "mms_version", "message_type", "transaction_id", "message_id", "status_code", "mm_status", "read_status",
    "sender", "sender_header", "recipients", "originator_system", "request_recipients", "ack_request", "content_type",
})  # fmt: skip
"""What an answer is matched, addressed and read by."""
_KEPT_NAMES = frozenset({
    "received", "return-path", "delivered-to", "message-id", "mime-version", "content-transfer-encoding", "bcc",
    "reply-to", "resent-to", "resent-from", SIDE_HEADER.lower(),
})  # fmt: skip
"""What loops are found by, and what a mail is read and traced by (RFC 5322 3.6)."""


def _version(text: str) -> str:
    if not _VERSION.match(text):
        raise ValueError(f'{text!r} is no version, for example "6.5.0"')
    return text


def _pdu(text: str) -> str:
    found = read_type(text, builtin("3gpp"))
    if found is None:
        raise ValueError(f"{text!r} is no PDU type; there are: {', '.join(builtin('3gpp').types)}")
    return found


def _header_value(text: str) -> str:
    if not text.strip() or not all(" " <= c <= "~" for c in text) or len(text) > 900:
        expected = "one line of printable US-ASCII, at most 900 characters"
        raise ValueError(f"{text[:40]!r} cannot stand in a header: expects {expected}")
    return text.strip()


def _media(text: str) -> str:
    if not _MEDIA.match(text.lower()):
        raise ValueError(f"{text!r} is no content type, for example image/jpeg or image/*")
    return text.lower()


Version = Annotated[Text, AfterValidator(_version)]
PduType = Annotated[Text, AfterValidator(_pdu)]
HeaderValue = Annotated[Text, AfterValidator(_header_value)]
MediaType = Annotated[Text, AfterValidator(_media)]


def stays(name: str) -> str:
    """What is said of a header that may be neither dropped nor written."""
    return f"{name} has to stay as it is: a message is read, answered or found by it; leave it out"


class Extras(Section):
    """Headers of a RES that some peers want and others do not."""

    date: bool | None = Field(None, description="Date.")
    subject: bool | None = Field(None, description="Subject, which is the message type.")
    message_class: bool | None = Field(None, description="X-Mms-Message-Class: Personal.")
    sender_header: bool | None = Field(None, description="Sender: our system address.")
    originator_system: bool | None = Field(None, description="X-Mms-Originator-System: our system address.")
    request_recipients: bool | None = Field(
        None, description="X-Mms-Request-Recipients: the numbers that the RES speaks of."
    )
    status_text: bool | None = Field(
        None, description="X-Mms-Status-Text: why a REQ was refused."
    )
    content_type: bool | None = Field(None, description="Content-Type: text/plain, and MIME-Version.")


class Headers(Section):
    """Headers that the peer does not get, or gets from us."""

    drop: list[Text] = Field(default_factory=list, description="Names of headers that are taken out.")
    add: dict[str, HeaderValue] = Field(
        default_factory=dict, description="Headers that are written, in place of those of the same name."
    )

    @model_validator(mode="after")
    def _possible(self) -> Headers:
        seen: set[str] = set()
        for key, names in (("drop", self.drop), ("add", list(self.add))):
            for name in names:
                if not _NAME.match(name):
                    raise ValueError(place(key) + _NO_NAME.format(name))
                if name.lower() in seen:
                    raise ValueError(place(key) + f"{name} stands here twice; `add` takes out what was there before")
                seen.add(name.lower())
                field = builtin("3gpp").by_header.get(name.lower())
                if name.lower() in _KEPT_NAMES or (field and field.name in KEPT_FIELDS):
                    raise ValueError(place(key) + stays(name))
        return self


class Content(Section):
    """Content types, by what the message says of itself and of each of its parts."""

    allow: list[MediaType] = Field(
        default_factory=list,
        description='Types that parts may have, for example ["image/*", "text/plain", "application/smil"]; left out: '
        "all. The multiparts around them need not be named.",
    )
    refuse: list[MediaType] = Field(default_factory=list, description="Types that no part and no multipart may have.")


class OriginatorRate(Section):
    """What one originator may send."""

    second: float | None = Field(
        None, gt=0, le=10_000, description="Messages a second, in the long run; 0.1 is one in ten seconds."
    )
    burst: int | None = Field(
        None, ge=1, le=1_000_000, description="Messages at once, after a pause. Default: what comes in one second."
    )
    day: int | None = Field(None, ge=1, description="Messages a day, which ends at midnight UTC.")

    @model_validator(mode="after")
    def _whole(self) -> OriginatorRate:
        if self.burst is not None and self.second is None:
            raise ValueError(place("burst") + "a burst needs `second`, the rate in the long run, beside it")
        return self

    @property
    def at_once(self) -> int:
        """Messages that may come at once."""
        return self.burst or max(1, math.ceil(self.second or 1))


class Rate(OriginatorRate):
    """What the peer may send."""

    originator: OriginatorRate = Field(
        default_factory=OriginatorRate,
        description="The same for each originator (From) of this peer: second, burst, day.",
    )


class Flood(Section):
    """The same content over and over."""

    window: Duration = Field(3600, ge=1, description="How long the same content is counted, from the first message on.")
    limit: int = Field(100, ge=1, description="Messages with the same content that are let through within the window.")
    action: Literal["reject", "hold", "log"] = Field(
        "hold",
        description="What becomes of one more: reject (Error-content-not-accepted, as on_violation says), hold "
        "(Postfix's hold queue, for `mm4 queue`; no RES before it is released), or log.",
    )
