"""A round trip through a peer that behaves as the open-source MMSC Mbuni was seen to: its exact bytes, its quirks.

It strips the quotes of ids, sends no From, no Date and no Message-ID, one RES a recipient, a RES to a read report
without message id, its errors without one too, takes an unknown type for ordinary mail, and answers `001` where it
found no transaction id.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from harness import LOCAL, Link, Mail, NextHop, Sandbox, forward_req, new_ids, send, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
SOURCE = "127.0.0.25"
OURS, THEIRS, SECOND = "+491511000001", "+447700900101", "+447700900102"
SYSTEM, OUR_SYSTEM = "system-user@mms.mbuni.example", "system-user@mms.gw.example"
STATUS = "X-Mms-Request-Status-Code"


class Mbuni(NextHop):
    """Answers each REQ, once a recipient, as Mbuni's recipe with a pipe does; `refusing` are numbers it denies."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway: Sandbox | None = None
        self.refusing: set[str] = set()
        self.ordinary: list[Mail] = []
        """What it took for ordinary mail: it knows no such type."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        reply = await super().handle_DATA(server, session, envelope)
        mail = self.mails[-1]
        # It is piped to a program of its own, while Postfix already said 250.
        threading.Thread(target=self._take, args=(mail,), daemon=True).start()
        return reply

    def _take(self, mail: Mail) -> None:
        kind = re.fullmatch(r"(MM4_(forward|delivery_report|read_reply_report))\.(REQ|RES)", mail.header("X-Mms-Message-Type") or "", re.IGNORECASE)
        if kind is None:
            self.ordinary.append(mail)
        if kind is None or kind[3].upper() == "RES" or (mail.header("X-Mms-Ack-Request") or "").lower() != "yes":
            return
        for recipient in mail.rcpt:
            self._answer(mail, f"{kind[1]}.RES", any(number in recipient for number in self.refusing))

    def _answer(self, mail: Mail, kind: str, denied: bool) -> None:
        lines = [
            "X-Mms-3GPP-MMS-Version: 5.5.0",
            f"X-Mms-Transaction-ID: {(mail.header('X-Mms-Transaction-ID') or '001').strip().strip(chr(34))}",
            f"X-Mms-Message-Type: {kind}",
        ]
        if not denied and kind != "MM4_read_reply_report.RES":
            lines.append(f"X-Mms-Message-ID: {(mail.header('X-Mms-Message-ID') or '').strip().strip(chr(34))}")
        system = mail.header("X-Mms-Originator-System") or mail.header("Sender") or ""
        lines += [f"{STATUS}: {'Error-service-denied' if denied else 'Ok'}", f"Sender: {SYSTEM}", f"To: {system}"]
        content = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
        assert self.gateway is not None
        assert send(self.gateway.smtp, content, source=SOURCE, mail_from=SYSTEM, rcpt=(system,)).code == 250


@pytest.fixture(scope="module", params=["3gpp", "mbuni"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    hops = {"mmsc": NextHop(), "mbuni": Mbuni()}
    with Link(YAML, hops, dialect=request.param) as made:
        made.mbuni.gateway = made.gateway  # type: ignore[attr-defined]
        yield made


def state(link: Link, transaction_id: str, wanted: str, recipient: str | None = None) -> dict[str, Any]:
    """The transaction once it is so; from a trace by its own id."""
    def look() -> list[dict[str, Any]]:
        found = link.gateway.trace(transaction_id)
        return [t for t in found if t["state"] == wanted and recipient in (None, t["recipient"])]

    return wait_for(look, f"{transaction_id} {wanted}")[0]


def sent(link: Link, *numbers: str) -> tuple[str, str]:
    """A message of ours, with quoted ids; its ids without."""
    ids = new_ids("mms.gw.example")
    content = forward_req(ids=(f'"{ids[0]}"', f'"{ids[1]}"'), sender=OURS, to=numbers[0], system=None, drop=("Sender",))
    content = content.replace(b"Delivery-Report: No", b"Delivery-Report: Yes").replace(b"Read-Reply: No", b"Read-Reply: Yes")
    rcpt = tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
    return ids


def arrived(link: Link) -> tuple[str, str]:
    """Its forward.REQ as it came over the wire, after its own Postfix had put its domain behind every address."""
    queue = new_ids()[0][2:14]
    message_id = f"q-a5-{queue}.88@mms.mbuni.example"
    transaction_id = f"{OURS}/TYPE=PLMN-mms.mbuni.example-{message_id.partition('@')[0]}"
    content = (
        "X-Mms-MMS-Version: 1.0\r\n"
        f"From: {THEIRS}/TYPE=PLMN@mms.mbuni.example\r\n"
        f"To: {OURS}/TYPE=PLMN@mms.mbuni.example\r\n"
        "Subject: Hello peer\r\n"
        "X-Mms-Message-Class: Personal\r\n"
        "X-Mms-Delivery-Report: Yes\r\n"
        "X-Mms-Read-Reply: Yes\r\n"
        "Date: Sun, 22 Nov 2026 11:11:43 GMT\r\n"
        "MIME-Version: 1.0\r\n"
        'Content-Type: multipart/related;  type="application/smil"; start="<smil>"; boundary=_boundary_1_2_J_o_bd3\r\n'
        "X-Mbuni-Tool: mmssend\r\n"
        "X-Mbuni-CalledFrom: Terminal\r\n"
        f'X-Mms-Message-ID: "{message_id}"\r\n'
        f"Message-ID: <{message_id}>\r\n"
        "X-Mms-3GPP-MMS-Version: 5.5.0\r\n"
        f"X-Mms-Originator-System: {SYSTEM}\r\n"
        "X-Mms-Message-Type: MM4_forward.REQ\r\n"
        "X-Mms-Ack-Request: Yes\r\n"
        f"Sender: {THEIRS}/TYPE=PLMN@mms.mbuni.example\r\n"
        f'X-Mms-Transaction-ID: "{transaction_id}"\r\n'
        "\r\n\r\n--_boundary_1_2_J_o_bd3\r\nContent-Type: text/plain\r\n\r\nhello\r\n--_boundary_1_2_J_o_bd3--\r\n"
    ).encode()
    mail_from = f"{THEIRS}/TYPE=PLMN@mms.mbuni.example"
    done = link.gateway.send(content, source=SOURCE, mail_from=mail_from, rcpt=(f"{OURS}/TYPE=PLMN@mms.gw.example",))
    assert done.code == 250
    return transaction_id, message_id


def test_its_res_without_quotes_and_with_nothing_else_is_taken(link: Link) -> None:
    ids = sent(link, THEIRS)
    done = state(link, ids[0], "answered")
    assert (done["peer"], done["status"]) == ("mbuni", "Ok")
    (mail,) = link.mbuni.wait_for(ids[1])
    assert mail.header("X-Mms-Transaction-ID") == f'"{ids[0]}"'
    assert link.mbuni.ordinary == []  # type: ignore[attr-defined]


def test_two_recipients_bring_two_res_with_one_id(link: Link) -> None:
    ids = sent(link, THEIRS, SECOND)
    first, second = state(link, ids[0], "answered", THEIRS), state(link, ids[0], "answered", SECOND)
    assert (first["status"], second["status"]) == ("Ok", "Ok")
    link.gateway.quiet()


def test_its_error_names_no_message_and_is_taken(link: Link) -> None:
    link.mbuni.refusing.add(SECOND)  # type: ignore[attr-defined]
    try:
        ids = sent(link, SECOND)
        assert state(link, ids[0], "answered")["status"] == "Error-service-denied"
    finally:
        link.mbuni.refusing.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "says"),
    [("MM4_delivery_report.REQ", "X-Mms-MM-Status-Code: Retrieved"), ("MM4_read_reply_report.REQ", "X-Mms-Read-Status: Read")],
)
def test_its_reports_reach_our_mmsc_and_get_their_res(link: Link, kind: str, says: str) -> None:
    """It says our message's id twice, once as its mail's own, and its phone is From, Sender and MAIL FROM."""
    ids = sent(link, THEIRS)
    state(link, ids[0], "answered")
    transaction_id = f"{OURS}/TYPE=PLMN-mms.mbuni.example-{new_ids()[0][2:14]}"
    phone = f"{THEIRS}/TYPE=PLMN@mms.mbuni.example"
    content = (
        f"From: {phone}\r\nTo: {OURS}/TYPE=PLMN@mms.gw.example\r\nX-Mms-Message-ID: \"{ids[1]}\"\r\n"
        f"Message-ID: <{ids[1]}>\r\nDate: Sun, 22 Nov 2026 11:12:43 GMT\r\n{says}\r\nX-Mbuni-User-Agent: a phone\r\n"
        f"X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Originator-System: {SYSTEM}\r\nX-Mms-Message-Type: {kind}\r\n"
        f"X-Mms-Ack-Request: Yes\r\nSender: {phone}\r\nX-Mms-Transaction-ID: \"{transaction_id}\"\r\n\r\n"
    ).encode()
    done = link.gateway.send(content, source=SOURCE, mail_from=phone, rcpt=(f"{OURS}/TYPE=PLMN@mms.gw.example",))
    assert done.code == 250
    (inside,) = link.mmsc.wait_for(transaction_id)
    assert inside.header("X-Mms-Message-Type") == kind
    assert inside.rcpt == [f"{OURS}@mmsc.gw.example"]
    (answer,) = link.mbuni.wait_for(transaction_id)
    assert answer.rcpt == [SYSTEM]
    assert answer.all(STATUS) == ["Ok"]
    assert answer.all("X-Mms-Transaction-ID") == [f'"{transaction_id}"']
    assert answer.all("X-Mms-Message-ID") == [f'"{ids[1]}"']


def test_its_message_gets_a_res_with_its_ids_to_the_byte(link: Link) -> None:
    transaction_id, message_id = arrived(link)
    (inside,) = link.mmsc.wait_for(message_id)
    assert inside.rcpt == [f"{OURS}@mmsc.gw.example"]
    (answer,) = link.mbuni.wait_for(message_id)
    assert answer.rcpt == [SYSTEM]
    assert answer.header("X-Mms-Message-Type") == "MM4_forward.RES"
    assert answer.all("X-Mms-Transaction-ID") == [f'"{transaction_id}"']
    assert answer.all("X-Mms-Message-ID") == [f'"{message_id}"']
    assert answer.all(STATUS) == ["Ok"]


@pytest.mark.parametrize(
    ("kind", "says"),
    [("MM4_delivery_report.REQ", "X-Mms-MM-Status-Code: Retrieved"), ("MM4_read_reply_report.REQ", "X-Mms-Read-Status: Read")],
)
def test_our_reports_are_understood_and_answered(link: Link, kind: str, says: str) -> None:
    """The RES to a read report names no message."""
    _, message_id = arrived(link)
    link.mmsc.wait_for(message_id)
    transaction_id = new_ids("mms.gw.example")[0]
    content = (
        f"From: {OURS}/TYPE=PLMN\r\nTo: {THEIRS}/TYPE=PLMN\r\nDate: Sun, 22 Nov 2026 11:12:43 +0000\r\n"
        f"X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: {kind}\r\nX-Mms-Transaction-ID: {transaction_id}\r\n"
        f"X-Mms-Message-ID: {message_id}\r\nX-Mms-Ack-Request: No\r\n{says}\r\n\r\n"
    ).encode()
    rcpt = (f"{THEIRS}/TYPE=PLMN@mms.mbuni.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=OUR_SYSTEM, rcpt=rcpt).code == 250
    done = state(link, transaction_id, "answered")
    assert (done["type"], done["direction"], done["status"]) == (kind, "out", "Ok")
    (mail,) = link.mbuni.wait_for(transaction_id)
    assert mail.rcpt == list(rcpt)
    assert link.mbuni.ordinary == []  # type: ignore[attr-defined]


def test_what_we_complete_it_never_answers_with_001(link: Link) -> None:
    """A message of ours without transaction id gets one; without it the RES would name `001`."""
    unique = new_ids()[1]
    content = forward_req(ids=("dropped", unique), sender=OURS, to=THEIRS, drop=("X-Mms-Transaction-ID", "Sender"), system=None)
    rcpt = (f"{THEIRS}/TYPE=PLMN@mms.gw.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
    done = wait_for(lambda: [t for t in link.gateway.trace(unique) if t["state"] == "answered"], "the RES")[0]
    assert len(done["transaction_id"]) > 10
