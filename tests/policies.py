"""The table of a peer's policy keys: what each accepts, what it refuses, and what the peer reads.

Each row is a peer of its own in one configuration. `tests/unit/test_policy.py` drives every row through the Session;
`tests/integration/t-33-policy` sends the same rows through a real gateway and holds `mm4 explain` against it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness import forward_req

# The private line adds no header of its own to a RES that leaves one out.
LOCAL_YAML = """\
submit: smtp
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  region: DE
  numbers: ["+491511"]
  clients: [127.0.0.1/32]
  deliver_to: "{number}@mmsc.gw.example"
  next_hop: "@mmsc@"
"""
MAIL_FROM = "MAIL FROM"
"""Stands in `reads` for the envelope sender."""


@dataclass(frozen=True)
class Row:
    """One peer with one message from it (`in`), or to it (`out`).

    `says` is the last reply to it: at MAIL, of the last recipient, or at the end. `status` is the RES that the peer
    gets; `reads` what stands in that RES, or in the message: None is a header that does not stand there.
    """

    key: str
    name: str
    entry: str
    way: Literal["in", "out"] = "in"
    change: Mapping[str, Any] = field(default_factory=dict)
    swap: tuple[tuple[bytes, bytes], ...] = ()
    rcpt: int = 1
    size: int | None = None
    """Said at MAIL; None is the true one."""
    times: int = 1
    """How often the message is sent, each time with ids of its own; the last one counts."""
    says: str = "250 2.0.0"
    action: str = "accept"
    status: str | None = "Ok"
    reads: Mapping[str, str | None] = field(default_factory=dict)

    def message(self, number: int, turn: int = 1) -> bytes:
        """The message of the row's peer."""
        peer = name_of(number)
        ids = (f"t{turn}-{peer}@test.example", f"m{turn}-{peer}@test.example")
        arguments: dict[str, Any] = {"ids": ids, "system": f"PostMaster@mms.{peer}.example"}
        if self.way == "out":
            arguments |= {"sender": "+491511000001", "to": outward(number), "system": "mmsc@mmsc.gw.example"}
        arguments |= self.change
        content = forward_req(**arguments)
        for old, new in self.swap:
            assert old in content, old
            content = content.replace(old, new)
        return content

    def client(self, number: int) -> str:
        """Whose address it comes from."""
        return address_of(number) if self.way == "in" else "127.0.0.1"

    def mail_from(self, number: int) -> str:
        """The envelope sender."""
        here = f"+447700900002/TYPE=PLMN@mms.{name_of(number)}.example"
        return here if self.way == "in" else "+491511000001/TYPE=PLMN@mms.gw.example"

    def recipients(self, number: int) -> tuple[str, ...]:
        """The envelope recipients."""
        if self.way == "in":
            return tuple(f"+4915110{number:03}{i:02}/TYPE=PLMN@mms.gw.example" for i in range(self.rcpt))
        return tuple(f"{outward(number)}{i}/TYPE=PLMN@mms.gw.example" for i in range(self.rcpt))


def name_of(number: int) -> str:
    """The peer of a row."""
    return f"p{number:02}"


def address_of(number: int) -> str:
    """The client address of a row's peer."""
    return f"127.0.1.{number + 1}"


def outward(number: int) -> str:
    """The prefix of the numbers behind a row's peer."""
    return f"+4477009{number:03}"


def picture(size: int) -> bytes:
    """The picture of the message, of so many bytes."""
    return base64.encodebytes(bytes(n % 251 for n in range(size))).replace(b"\n", b"\r\n")


def delivery_report() -> tuple[tuple[bytes, bytes], ...]:
    return ((b"X-Mms-Message-Type: MM4_forward.REQ", b"X-Mms-MM-Status-Code: Retrieved\r\nX-Mms-Message-Type: MM4_delivery_report.REQ"),)


RES = ((b"X-Mms-Message-Type: MM4_forward.REQ", b"X-Mms-Request-Status-Code: Ok\r\nX-Mms-Message-Type: MM4_forward.RES"),)
NOT_ACCEPTED = "Error-content-not-accepted"
REFUSED = {"X-Mms-Request-Status-Code": NOT_ACCEPTED}
SMIL_ONLY = (b"image/gif", b"application/smil")
NESTED = (
    b"Content-Type: image/gif;Name=dot.gif\r\nContent-Transfer-Encoding: base64\r\nContent-ID:<pic>\r\n\r\n",
    b"Content-Type: multipart/alternative; boundary=in\r\n\r\n--in\r\nContent-Type: video/mp4\r\n\r\nx\r\n--in--\r\n",
)
VERSION, RES_TEXT = "X-Mms-3GPP-MMS-Version", "X-Mms-Status-Text"
RATE = "rate: {second: 0.001, burst: 2}"
TOO_OFTEN = "451 4.7.1"

ROWS = [
    Row("dialect", "of-the-res", "dialect: tyntec", reads={"X-Mms-MMS-Version": "5.5.0", VERSION: None}),
    Row("dialect", "of-the-message", "dialect: tyntec", "out", reads={"X-Mms-MM1-Message-Type": "MM4_Forward.REQ"}),
    Row("mail_from", "system", "mail_from: system", reads={MAIL_FROM: "system-user@mms.gw.example"}),
    Row("mail_from", "null", "mail_from: null", reads={MAIL_FROM: ""}),
    Row("mms_version", "of-the-res", 'mms_version: "6.5.0"', reads={VERSION: "6.5.0"}),
    Row("mms_version", "of-the-message", 'mms_version: "6.5.0"', "out", reads={VERSION: "6.5.0"}),
    Row("mms_version", "in-its-dialect", '{dialect: tyntec, mms_version: "1.2"}', reads={"X-Mms-MMS-Version": "1.2"}),
    Row("mms_version", "left-out", "{}", "out", reads={VERSION: "5.5.0"}),
    Row("res.date", "off", "res: {date: no}", reads={"Date": None}),
    Row("res.subject", "on", "res: {subject: yes}", reads={"Subject": "MM4_forward.RES"}),
    Row("res.message_class", "on", "res: {message_class: yes}", reads={"X-Mms-Message-Class": "Personal"}),
    Row("res.sender_header", "on", "res: {sender_header: yes}", reads={"Sender": "system-user@mms.gw.example"}),
    Row("res.originator_system", "on", "res: {originator_system: yes}",
        reads={"X-Mms-Originator-System": "system-user@mms.gw.example", "X-Mms-Message-Class": None}),
    Row("res.request_recipients", "on", "res: {request_recipients: yes}", rcpt=2,
        reads={"X-Mms-Request-Recipients": "+491511001300/TYPE=PLMN, +491511001301/TYPE=PLMN"}),
    Row("res.status_text", "off", "{max_content: 10B, res: {status_text: no}}", status=NOT_ACCEPTED, reads={RES_TEXT: None}),
    Row("res.content_type", "off", "res: {content_type: no}", reads={"Content-Type": None, "MIME-Version": None}),
    Row("headers.drop", "of-the-message", "headers: {drop: [x-mms-priority, X-Any]}", "out",
        change={"extra": (("X-Any", "1"), ("X-Any", "2"))}, reads={"X-Mms-Priority": None, "X-Any": None}),
    Row("headers.drop", "of-the-res", "{dialect: bare-ids, headers: {drop: [X-Mms-Message-Class]}, res: {message_class: yes}}",
        reads={"X-Mms-Message-Class": None}),
    Row("headers.add", "to-the-message", "headers: {add: {X-Mms-Priority: High, X-Carrier: gw}}", "out",
        reads={"X-Mms-Priority": "High", "X-Carrier": "gw"}),
    Row("headers.add", "to-the-res", "headers: {add: {X-Mms-Priority: High, X-Carrier: gw}}",
        reads={"X-Mms-Priority": None, "X-Carrier": "gw"}),
    Row("pdus", "among-them", "pdus: [MM4_forward.REQ, MM4.Forward.RES]"),
    Row("pdus", "not-among-them", "pdus: [MM4_forward.REQ, MM4_forward.RES]", swap=delivery_report(),
        status="Error-service-denied"),
    Row("pdus", "a-res", "{pdus: [MM4_forward.REQ], ack: {request: no}}", swap=RES, says="550 5.7.1", action="reject", status=None),
    Row("max_size", "small-enough", "max_size: 2kB"),
    Row("max_size", "at-mail", "max_size: 2kB", size=2001, says="552 5.3.4", action="reject", status=None),
    Row("max_size", "outward", "max_size: 2kB", "out", size=2001, says="552 5.3.4", action="reject", status=None),
    Row("max_size", "by-what-came", "{max_size: 2kB, max_content: 1MB}", change={"body": picture(3000)}, size=1000,
        status=NOT_ACCEPTED, reads=REFUSED),
    Row("max_content", "to-the-byte", "max_content: 50B", change={"body": picture(43)}),
    Row("max_content", "one-byte-more", "max_content: 50B", change={"body": picture(44)}, status=NOT_ACCEPTED,
        reads={RES_TEXT: "the content has 51 bytes, 50 are agreed"}),
    Row("max_content", "outward", "max_content: 50B", "out", change={"body": picture(44)}, says="552 5.3.4", action="reject",
        status=None),
    Row("max_recipients", "as-many", "max_recipients: 2", rcpt=2),
    Row("max_recipients", "one-more", "max_recipients: 2", rcpt=3, says="452 4.5.3"),
    Row("max_recipients", "outward", "max_recipients: 1", "out", rcpt=2, says="452 4.5.3"),
    Row("content.allow", "all-of-them", 'content: {allow: [application/smil, "image/*"]}'),
    Row("content.allow", "one-is-not", 'content: {allow: [application/smil, "image/*"]}', swap=((b"image/gif", b"Video/MP4"),),
        status=NOT_ACCEPTED, reads={RES_TEXT: "video/mp4 is none of the content types agreed"}),
    Row("content.allow", "outward", "content: {allow: [text/plain]}", "out", says="552 5.3.4", action="reject", status=None),
    Row("content.refuse", "none-of-them", 'content: {refuse: ["video/*"]}'),
    Row("content.refuse", "deep-inside", 'content: {refuse: ["video/*"]}', swap=(NESTED,), status=NOT_ACCEPTED,
        reads={RES_TEXT: "video/mp4 is refused"}),
    Row("content.refuse", "a-multipart", "content: {refuse: [multipart/alternative]}", swap=(NESTED,), status=NOT_ACCEPTED),
    Row("content.refuse", "unreadable", 'content: {refuse: ["video/*"]}', swap=((b'boundary="', b'nothing="'),),
        status=NOT_ACCEPTED, reads={RES_TEXT: "the content cannot be judged: a multipart/related without a boundary"}),
    Row("rate.second", "within", RATE, times=2),
    Row("rate.second", "over", RATE, times=3, says=TOO_OFTEN, action="tempfail", status=None),
    Row("rate.burst", "left-out", "rate: {second: 0.001}", times=2, says=TOO_OFTEN, action="tempfail", status=None),
    Row("rate.day", "within", "rate: {day: 2}", times=2),
    Row("rate.day", "over", "rate: {day: 2}", times=3, says=TOO_OFTEN, action="tempfail", status=None),
    Row("rate.originator.second", "over", "rate: {originator: {second: 0.001}}", times=2, says=TOO_OFTEN, action="tempfail",
        status=None),
    Row("rate.originator.burst", "within", "rate: {originator: {second: 0.001, burst: 2}}", times=2),
    Row("rate.originator.day", "over", "rate: {originator: {day: 1}}", times=2, says=TOO_OFTEN, action="tempfail", status=None),
    Row("flood.limit", "within", "flood: {limit: 2, action: reject}", times=2),
    Row("flood.action", "reject", "flood: {limit: 1, action: reject}", times=2, status=NOT_ACCEPTED, reads=REFUSED),
    Row("flood.action", "hold", "flood: {limit: 1, action: hold}", times=2, action="hold"),
    Row("flood.action", "log", "flood: {limit: 1, action: log}", times=2),
    Row("flood.window", "in-which-it-counts", "flood: {limit: 1, window: 1d, action: reject}", times=3, status=NOT_ACCEPTED),
    Row("on_violation", "respond", "{max_content: 10B, on_violation: respond}", status=NOT_ACCEPTED, reads=REFUSED),
    Row("on_violation", "reject", "{max_content: 10B, on_violation: reject}", says="552 5.3.4", action="reject", status=None),
    Row("on_violation", "monitor", "{max_content: 10B, on_violation: monitor}"),
    Row("ack.request", "no", "ack: {request: no}", "out", reads={"X-Mms-Ack-Request": "No"}),
]  # fmt: skip


def configuration() -> str:
    """One YAML with a peer for each row; every peer's next hop is `@north@`."""
    lines = [LOCAL_YAML, "peers:\n"]
    for number, row in enumerate(ROWS):
        name = name_of(number)
        lines.append(
            f"  {name}: {{domains: [mms.{name}.example], networks: [{address_of(number)}/32], next_hop: \"@north@\", "
            f"{row.entry.removeprefix('{').removesuffix('}') if row.entry[0] == '{' else row.entry}}}\n"
        )
    lines.append("routes:\n")
    lines += [f'  - {{prefix: "{outward(number)}", peer: {name_of(number)}}}\n' for number in range(len(ROWS))]
    return "".join(lines)
