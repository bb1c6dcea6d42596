"""An MMS from a peer: delivered once, acknowledged once, both exactly as they have to be.

Every test runs twice, with acks by sendmail and by the private submission line, and finds its own mails by ids
that no other message has.
"""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import NORTH, SOUTH, Link, Mail, forward_req, headers_of, new_ids, talk, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
RETICENT, SILENT = "127.0.0.23", "127.0.0.24"
NUMBER = "+447700900002/TYPE=PLMN"

RES_3GPP = [
    "X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type", "X-Mms-Transaction-ID", "X-Mms-Message-ID",
    "X-Mms-Request-Status-Code", "From", "To", "Date", "Content-Type", "Message-ID", "MIME-Version",
]  # fmt: skip
RES_TYNTEC = [
    "X-Mms-MMS-Version", "X-Mms-MM1-Message-Type", "X-Mms-Transaction-ID", "X-Mms-Message-ID",
    "X-Mms-Request-Status-Code", "Content-Type", "From", "To", "Date", "Message-ID", "MIME-Version",
]  # fmt: skip


@pytest.fixture(scope="module", params=["sendmail", "smtp"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    with Link(YAML, submit=request.param) as made:
        yield made


def ours(mail: Mail) -> list[tuple[str, str]]:
    """The headers that stand below Postfix's Received lines, in order."""
    return [(name, value.decode("latin-1")) for name, value in headers_of(mail.content) if name != "Received"]


# -- the RES itself


def test_asked_for_is_acknowledged_once_with_the_ids_as_they_were(link: Link) -> None:
    transaction_id, message_id = new_ids()
    dialogue = link.gateway.send(forward_req(ids=(f'"{transaction_id}"', f'"{message_id}"')))
    assert dialogue.code == 250
    (delivered,) = link.mmsc.wait_for(message_id)
    (answer,) = link.north.wait_for(message_id)
    assert delivered.rcpt == ["+491511000001@mmsc.gw.example"]
    assert answer.rcpt == ["PostMaster@mms.north.example"]
    assert answer.mail_from == "system-user@mms.gw.example"
    # From the first header of ours on, byte for byte what explain would show: nothing rewritten, nothing added.
    assert [name for name, _ in ours(answer)] == RES_3GPP
    values = dict(ours(answer))
    assert values["X-Mms-3GPP-MMS-Version"] == "5.5.0"
    assert values["X-Mms-Message-Type"] == "MM4_forward.RES"
    assert values["X-Mms-Transaction-ID"] == f'"{transaction_id}"'
    assert values["X-Mms-Message-ID"] == f'"{message_id}"'
    assert values["X-Mms-Request-Status-Code"] == "Ok"
    assert values["From"] == "system-user@mms.gw.example"
    assert values["To"] == "PostMaster@mms.north.example"
    assert answer.content.partition(b"\r\n\r\n")[2] == b""
    (transaction,) = wait_for(
        lambda: [t for t in link.gateway.trace(message_id) if t["state"] == "answered"], "the answer"
    )
    assert transaction["status"] == "Ok"
    assert transaction["queue_id"] == dialogue.queue_id
    link.gateway.quiet()
    assert len(link.mmsc.carrying(message_id)) == len(link.north.carrying(message_id)) == 1


def test_a_peer_of_another_dialect_gets_its_own_names_and_letter_case(link: Link) -> None:
    ids = new_ids("mm4.south.example")
    link.gateway.send(forward_req(ids=ids, system=None, tyntec=True), source=SOUTH)
    (answer,) = link.south.wait_for(ids[1])
    assert [name for name, _ in ours(answer)] == RES_TYNTEC
    values = dict(ours(answer))
    assert values["X-Mms-MM1-Message-Type"] == "MM4_Forward.RES"
    assert values["X-Mms-Request-Status-Code"] == "Ok"
    assert (values["X-Mms-Transaction-ID"], values["X-Mms-Message-ID"]) == ids
    assert answer.rcpt == ["system@mm4.south.example"]


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(("{}" + "a" * 887, "{}" + "m" * 887), id="bare-900"),
        pytest.param(('"{}' + "a" * 887 + '"', '"{}' + "m" * 887 + '"'), id="quoted-900"),
        # 900 characters as the peer counts them, 1,342 on the wire.
        pytest.param(
            ('"{}' + r"\"\\" * 220 + "x" * 447 + '"', '"{}' + r"\"" * 440 + "y" * 447 + '"'), id="escapes-900"
        ),
        pytest.param(
            ('"+14445550100/TYPE=PLMN-mms.mbuni.test-q-a5-{}.1.x320.88"', '"q-a5-{}.1.x320.88@mms.mbuni.test"'),
            id="mbuni",
        ),
        pytest.param(("{}/a+b==", 'in"side"{}'), id="base64-and-quotes-inside"),
        pytest.param(
            ("{} a  b <c>;d,e(f)@g\\h", "{} =?utf-8?B?w6k=?= %s%n $(x) `y` !z%w"), id="what-others-would-rewrite"
        ),
        pytest.param(("'{}'", '"{}'), id="one-quote-only"),
    ],
)
def test_ids_come_back_byte_for_byte(link: Link, ids: tuple[str, str]) -> None:
    unique = new_ids()[0][2:14] + "-"
    transaction_id, message_id = (text.replace("{}", unique) for text in ids)
    assert link.gateway.send(forward_req(ids=(transaction_id, message_id))).code == 250
    (answer,) = link.north.wait_for(unique)
    (delivered,) = link.mmsc.wait_for(unique)
    for mail in (answer, delivered):
        assert mail.all("X-Mms-Transaction-ID") == [transaction_id]
        assert mail.all("X-Mms-Message-ID") == [message_id]
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"


@pytest.mark.parametrize("ack", [None, "No", "no", ""])
def test_without_a_request_there_is_no_ack(link: Link, ack: str | None) -> None:
    ids = new_ids()
    dialogue = link.gateway.send(forward_req(ids=ids, ack=ack))
    assert dialogue.code == 250
    (delivered,) = link.mmsc.wait_for(ids[1])
    # The responder is done with it when Postfix is, and a later message's ack has come by.
    link.gateway.quiet()
    later = new_ids()
    link.gateway.send(forward_req(ids=later))
    link.north.wait_for(later[1])
    assert link.north.carrying(ids[0]) == []
    assert delivered.header("X-Mms-Ack-Request") == ack
    (transaction,) = link.gateway.trace(dialogue.queue_id)
    assert transaction["state"] == "accepted"


@pytest.mark.parametrize("ack", ["yes", "YES", "1", " Yes "])
def test_other_spellings_of_yes_are_a_request(link: Link, ack: str) -> None:
    ids = new_ids()
    link.gateway.send(forward_req(ids=ids, ack=ack))
    (answer,) = link.north.wait_for(ids[1])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    (delivered,) = link.mmsc.wait_for(ids[1])
    assert delivered.all("X-Mms-Ack-Request") == ["No"]


def test_two_recipients_of_one_message_are_one_ack(link: Link) -> None:
    ids = new_ids()
    rcpt = ("+491511000001/TYPE=PLMN@mms.gw.example", "+491511000002/TYPE=PLMN@mms.gw.example")
    dialogue = link.gateway.send(forward_req(ids=ids), rcpt=rcpt)
    link.north.wait_for(ids[1])
    link.gateway.quiet()
    (_,) = link.north.carrying(ids[1])
    served = [recipient for mail in link.mmsc.carrying(ids[1]) for recipient in mail.rcpt]
    assert sorted(served) == ["+491511000001@mmsc.gw.example", "+491511000002@mmsc.gw.example"]
    assert {(t["recipient"], t["state"]) for t in link.gateway.trace(dialogue.queue_id)} == {
        ("+491511000001", "answered"), ("+491511000002", "answered")
    }  # fmt: skip


# -- to whom


def request(sender: str | None, **arguments: Any) -> bytes:
    """A forward.REQ with this Sender, or with none."""
    message = forward_req(**arguments, drop=("Sender",))
    return f"Sender: {sender}\r\n".encode() + message if sender else message


def answer_to(link: Link, message: bytes, unique: str, source: str, mail_from: str) -> Mail:
    dialogue = link.gateway.send(message, source=source, mail_from=mail_from)
    assert dialogue.code == 250, dialogue
    hop = link.south if source in (SOUTH, RETICENT) else link.north
    (answer,) = hop.wait_for(unique)
    return answer


@pytest.mark.parametrize(
    ("system", "sender", "mail_from", "target"),
    [
        # The originator system holds wherever it lies in the peer's domains, in whatever letter case.
        ("admin@north.test", None, f"{NUMBER}@mms.north.example", "admin@north.test"),
        ("PostMaster@MMS.North.Example", None, "", "PostMaster@MMS.North.Example"),
        ("MMSC <relay.7@mms.north.example>", None, "", "relay.7@mms.north.example"),
        # One that is no address, or names no domain, leaves it to the others.
        ("PostMaster", f"{NUMBER}@mms.north.example", "", f"{NUMBER}@mms.north.example"),
        ("a@mms.north.example@evil.example", f"{NUMBER}@mms.north.example", "", f"{NUMBER}@mms.north.example"),
        (None, f"{NUMBER}@mms.north.example", "x@north.test", f"{NUMBER}@mms.north.example"),
        # A Sender elsewhere, or without a domain, is passed over for the envelope sender.
        (None, f"{NUMBER}@mms.elsewhere.example", "relay@mms.north.example", "relay@mms.north.example"),
        (None, NUMBER, f"{NUMBER}@mms.north.example", f"{NUMBER}@mms.north.example"),
        (None, None, "relay@north.test", "relay@north.test"),
    ],
)
def test_an_ack_goes_to_the_first_address_in_the_peers_domains(
    link: Link, system: str | None, sender: str | None, mail_from: str, target: str
) -> None:
    ids = new_ids()
    answer = answer_to(link, request(sender, ids=ids, system=system), ids[1], NORTH, mail_from)
    assert answer.rcpt == [target]
    assert answer.header("To") == target


@pytest.mark.parametrize(
    ("sender", "mail_from", "target"),
    [
        (None, "", "system@mm4.south.example"),
        (
            "+447700900002/TYPE=PLMN@mms.operator.example",
            "+447700900002@mms.operator.example",
            "system@mm4.south.example",
        ),
        ("hub7@mm4.south.example", "", "hub7@mm4.south.example"),
        (None, "relay@mm4.south.example", "relay@mm4.south.example"),
    ],
)
def test_a_peer_whose_document_has_no_originator_system_is_answered_at_its_system_address(
    link: Link, sender: str | None, mail_from: str, target: str
) -> None:
    ids = new_ids("mm4.south.example")
    message = request(sender, ids=ids, system=None, tyntec=True)
    assert answer_to(link, message, ids[1], SOUTH, mail_from).rcpt == [target]


@pytest.mark.parametrize("source", [NORTH, RETICENT])
def test_where_no_address_for_the_ack_is_known_the_message_is_refused(link: Link, source: str) -> None:
    ids = new_ids()
    message = request(None, ids=ids, system=None, tyntec=source == RETICENT)
    dialogue = link.gateway.send(message, source=source, mail_from="")
    assert dialogue.data is not None
    assert dialogue.data[0] == 550
    assert dialogue.data[1].startswith("5.7.1 ")
    # Without a request nothing is missing.
    quiet = new_ids()
    message = request(None, ids=quiet, system=None, ack="No", tyntec=source == RETICENT)
    assert link.gateway.send(message, source=source, mail_from="").code == 250
    link.mmsc.wait_for(quiet[1])
    link.gateway.quiet()
    for hop in link.hops.values():
        assert hop.carrying(ids[0]) == []


def test_a_peer_may_want_its_acks_without_an_envelope_sender(link: Link) -> None:
    ids = new_ids("mms.silent.example")
    message = forward_req(ids=ids, system="PostMaster@mms.silent.example")
    answer = answer_to(link, message, ids[1], SILENT, f"{NUMBER}@mms.silent.example")
    assert answer.mail_from.strip("<>") == ""
    assert answer.rcpt == ["PostMaster@mms.silent.example"]
    assert answer.header("From") == "system-user@mms.gw.example"


# -- the REQ on its way


def test_the_req_reaches_the_local_side_unchanged_but_for_the_ack_request(link: Link) -> None:
    ids = new_ids()
    message = forward_req(
        ids=ids,
        extra=(
            ("Subject", "Stra\xdfe und =?utf-8?B?w6k=?="),
            ("X-Mms-Previously-sent-by", "0, +447700900003/TYPE=PLMN"),
            ("X-Mms-Previously-sent-by", "1, +447700900004/TYPE=PLMN"),
            ("x-mms-forwarded-by", "+447700900005"),
            ("Cc", "+447700900006/TYPE=PLMN, \r\n\t+447700900007/TYPE=PLMN"),
            ("Reply-To", "PostMaster"),
            ("Errors-To", "a!b%c"),
            ("Resent-To", "+447700900008/TYPE=PLMN"),
            ("X-Empty", ""),
            ("X-Blank", "  \t "),
            ("X-Long", "x" * 3000),
            ("X-BrightMail-Tracker", "AAAA\r\n BBBB\r\n\tCCCC"),
        ),
    )
    link.gateway.send(message)
    (delivered,) = link.mmsc.wait_for(ids[1])
    before = [(n, b"No" if n == "X-Mms-Ack-Request" else v) for n, v in headers_of(message)]
    after = [(n, v) for n, v in headers_of(delivered.content) if n != "Received"]
    assert after == before
    assert delivered.content.partition(b"\r\n\r\n")[2] == message.partition(b"\r\n\r\n")[2]


def test_an_address_without_a_domain_stays_without(link: Link) -> None:
    ids = new_ids()
    link.gateway.send(request("PostMaster", ids=ids))
    (delivered,) = link.mmsc.wait_for(ids[1])
    assert delivered.header("From") == "+447700900002/TYPE=PLMN"
    assert delivered.header("To") == "+491511000001/TYPE=PLMN"
    assert delivered.header("Sender") == "PostMaster"


# -- one connection, several messages


def test_messages_of_one_connection_do_not_mix(link: Link) -> None:
    """A reset in the middle, a refused message, another recipient: each starts from nothing."""
    host, _, port = link.gateway.smtp.rpartition(":")
    first, reset, bad, second, third = (new_ids() for _ in range(5))
    other = ("+491511000002/TYPE=PLMN@mms.gw.example",)
    with smtplib.SMTP(host, int(port), timeout=120, source_address=(NORTH, 0)) as client:
        assert talk(client, forward_req(ids=first)).code == 250
        assert client.docmd(f"MAIL FROM:<{NUMBER}@mms.north.example>")[0] == 250
        assert client.docmd("RCPT TO:<+491511000009/TYPE=PLMN@mms.gw.example>")[0] == 250
        assert client.docmd("RSET")[0] == 250
        # Headers of a message that is refused at its end, none of which the next one may inherit.
        refused = talk(client, forward_req(ids=bad, ack=None, drop=("Date",)))
        assert refused.code == 554
        assert talk(client, forward_req(ids=second), rcpt=other).code == 250
        assert talk(client, forward_req(ids=reset), rcpt=("+447700900001@mms.gw.example",)).code == 550
        assert talk(client, forward_req(ids=third, ack=None), rcpt=other).code == 250
    for ids, number in ((first, "+491511000001"), (second, "+491511000002"), (third, "+491511000002")):
        (delivered,) = link.mmsc.wait_for(ids[1])
        assert delivered.rcpt == [f"{number}@mmsc.gw.example"]
    for ids in (first, second):
        (answer,) = link.north.wait_for(ids[1])
        assert answer.all("X-Mms-Transaction-ID") == [ids[0]]
    link.gateway.quiet()
    for ids in (bad, reset, third):
        assert link.north.carrying(ids[0]) == []
    assert link.mmsc.carrying(bad[0]) == link.mmsc.carrying(reset[0]) == []
    assert not [mail for mail in link.mmsc.mails if "+491511000009@mmsc.gw.example" in mail.rcpt]
