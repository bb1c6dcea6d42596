"""What our own side sends: exact at the peer, complete in its dialect, and its RES ends here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from click.testing import CliRunner

from harness import (
    LOCAL,
    NORTH,
    SOUTH,
    Dialogue,
    Link,
    Mail,
    NextHop,
    exchange,
    forward_req,
    headers_of,
    new_ids,
    wait_for,
)
from mm4.cli.trace import trace
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
ORIGINATOR = "+491511000001/TYPE=PLMN@mms.gw.example"
TO_NORTH = ("+447700900101/TYPE=PLMN@mms.gw.example",)
TO_SOUTH = ("+33600000001/TYPE=PLMN@mms.gw.example",)
OUR_SYSTEM = "system-user@mms.gw.example"
DIALECT = {"north": "3gpp", "south": "tyntec"}


class Careful(NextHop):
    """A peer that offers DSN, keeps the parameters of MAIL, and refuses one of RCPT (as aiosmtpd does): so what
    arrives here came without NOTIFY and ORCPT."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[str] = []

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-DSN", responses[-1]]

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        self.parameters += options
        return "250 OK"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, {"mmsc": NextHop(), "north": Careful(), "south": Careful()}) as made:
        yield made


def message(ids: tuple[str, str], **arguments: Any) -> bytes:
    """A forward.REQ as our MMSC writes it: its own system, no originator's domain."""
    arguments = {"sender": "+491511000001", "to": "+447700900101", "system": "mmsc@mmsc.gw.example", **arguments}
    return forward_req(ids=ids, **arguments).replace(b"/TYPE=PLMN@mms.north.example", b"/TYPE=PLMN@mms.gw.example")


def submit(link: Link, content: bytes, rcpt: tuple[str, ...] = TO_NORTH, mail_from: str = ORIGINATOR) -> Dialogue:
    return link.gateway.send(content, source=LOCAL, mail_from=mail_from, rcpt=rcpt)


def res(ids: tuple[str, str], status: str = "Ok", *, tyntec: bool = False, drop: tuple[str, ...] = ()) -> bytes:
    """A forward.RES as a peer writes it."""
    lines = [
        ("X-Mms-MMS-Version" if tyntec else "X-Mms-3GPP-MMS-Version", "5.5.0"),
        ("X-Mms-MM1-Message-Type", "MM4_Forward.RES") if tyntec else ("X-Mms-Message-Type", "MM4_forward.RES"),
        ("X-Mms-Transaction-ID", ids[0]),
        ("X-Mms-Message-ID", ids[1]),
        ("X-Mms-Request-Status-Code", status),
        ("X-Mms-Ack-Request", "Yes"),
        ("From", "postmaster"),
        ("To", OUR_SYSTEM),
        ("Date", "Thu, 12 Nov 2026 02:28:03 +0200"),
        ("Content-Type", "text/plain"),
    ]
    return "".join(f"{name}: {value}\r\n" for name, value in lines if name not in drop).encode() + b"\r\n"


def answer(link: Link, content: bytes, source: str = NORTH, rcpt: str = OUR_SYSTEM, mail_from: str = "") -> Dialogue:
    return link.gateway.send(content, source=source, mail_from=mail_from, rcpt=(rcpt,))


def below_received(mail: Mail) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in headers_of(mail.content) if name != "Received"]


def traced(link: Link, identifier: str) -> list[dict[str, Any]]:
    """What `mm4 trace --json` prints, without the start of another Python each time."""
    done = CliRunner().invoke(trace, ["--config", link.gateway.config, "--json", identifier])
    return list(json.loads(done.stdout)["transactions"])


def in_state(link: Link, identifier: str, state: str) -> dict[str, Any]:
    """The one transaction of this id, once it is in this state."""
    (found,) = wait_for(lambda: [t for t in traced(link, identifier) if t["state"] == state], f"{identifier} {state}")
    return found


# -- on the way to the peer


def test_the_peer_sees_exact_envelope_and_headers(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    content = message(ids)
    dialogue = submit(link, content)
    assert dialogue.code == 250
    (mail,) = link.north.wait_for(ids[1])
    assert mail.mail_from == ORIGINATOR
    assert mail.rcpt == ["+447700900101/TYPE=PLMN@mms.north.example"]
    before = [(n, OUR_SYSTEM.encode() if n == "X-Mms-Originator-System" else v) for n, v in headers_of(content)]
    assert below_received(mail) == before
    assert mail.content.partition(b"\r\n\r\n")[2] == content.partition(b"\r\n\r\n")[2]
    waiting = in_state(link, ids[1], "waiting")
    assert waiting | {"events": None, "host": None} == {
        "peer": "north", "direction": "out", "type": "MM4_forward.REQ", "transaction_id": ids[0],
        "originator": "+491511000001", "recipient": "+447700900101", "state": "waiting", "status": None, "report": None,
        "queue_id": dialogue.queue_id, "events": None, "host": None,
    }  # fmt: skip


def test_nothing_of_our_inside_is_seen_at_the_peer(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    # Our own client's wish for reports is not the peer's affair either.
    number = TO_NORTH[0].replace("+", "+2B")
    replies = exchange(
        link.gateway.smtp, LOCAL, "EHLO mmsc", f"MAIL FROM:<{ORIGINATOR}> RET=FULL ENVID=ours",
        f"RCPT TO:<{TO_NORTH[0]}> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;{number}", "DATA",
        f"{message(ids).decode('latin-1')}.",
    )  # fmt: skip
    assert replies[-1].startswith("250"), replies
    (mail,) = link.north.wait_for(ids[1])
    assert re.search(rb"via-|mm4\.invalid|responder", mail.content, re.IGNORECASE) is None
    for parameter in link.north.parameters:  # type: ignore[attr-defined]
        assert parameter.partition("=")[0] in ("SIZE", "BODY")


def test_headers_take_the_peers_names_and_letter_case(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    content = message(
        ids,
        extra=(
            ("X-Mms-Previously-sent-by", "0, +491511000003/TYPE=PLMN"),
            ("X-Mms-Previously-sent-by", "1, +491511000004/TYPE=PLMN"),
            ("X-Mms-Previously-sent-date-and-time", "0, Thu, 12 Nov 2026 02:28:01 GMT"),
            ("Subject", "=?utf-8?B?w6k=?="),
        ),
    )
    assert submit(link, content, TO_SOUTH).code == 250
    (mail,) = link.south.wait_for(ids[1])
    assert mail.rcpt == ["+33600000001/TYPE=PLMN@recipients.south.example"]
    assert mail.mail_from == ORIGINATOR
    names = [name for name, _ in below_received(mail)]
    for foreign in ("X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type", "X-Mms-Previously-sent-date-and-time"):
        assert foreign not in names
    assert mail.all("X-Mms-MMS-Version") == ["5.5.0"]
    assert mail.all("X-Mms-MM1-Message-Type") == ["MM4_Forward.REQ"]
    assert mail.all("Previously-sent-date-and-time") == ["0, Thu, 12 Nov 2026 02:28:01 GMT"]
    assert mail.all("X-Mms-Previously-Sent-By") == ["0, +491511000003/TYPE=PLMN", "1, +491511000004/TYPE=PLMN"]
    assert mail.all("X-Mms-Originator-System") == [OUR_SYSTEM]
    untouched = {"Date", "From", "Sender", "To", "Message-ID", "Content-Type", "X-Mms-Transaction-ID", "Subject",
                 "X-Mms-Message-ID", "X-Mms-Expiry", "X-Mms-Originator-R/S-Delivery-Report"}  # fmt: skip
    before = dict(headers_of(content))
    after = dict(below_received(mail))
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}


def test_a_version_of_another_interface_beside_ours_does_not_reach_the_peer_as_a_second_one(link: Link) -> None:
    """One open-source MMSC writes MM1's version under the name that is the tyntec dialect's own."""
    ids = new_ids("mms.gw.example")
    submit(link, message(ids, extra=(("X-Mms-MMS-Version", "1.0"),)), TO_SOUTH)
    (mail,) = link.south.wait_for(ids[1])
    assert mail.all("X-Mms-MMS-Version") == ["5.5.0"]
    assert mail.header("X-Mms-3GPP-MMS-Version") is None


@pytest.mark.parametrize("peer", ["north", "south"])
@pytest.mark.parametrize(
    "field",
    ["X-Mms-Transaction-ID", "X-Mms-Message-ID", "Date", "X-Mms-Originator-System", "X-Mms-3GPP-MMS-Version", "To",
     "From", "Content-Type", "X-Mms-Transaction-ID X-Mms-Message-ID Date X-Mms-Originator-System Sender To From"],
)  # fmt: skip
def test_what_the_local_side_left_out_is_completed(link: Link, field: str, peer: str) -> None:
    unique = new_ids()[0][2:14]
    content = message(
        (f"t-{unique}", f"m-{unique}"), drop=tuple(field.split()), extra=(("X-Test", unique),), to="+33600000001"
    )
    assert submit(link, content, TO_SOUTH if peer == "south" else TO_NORTH).code == 250
    (mail,) = link.hops[peer].wait_for(unique)
    pdu = read_message(mail.content, DIALECT[peer])
    assert pdu.valid, pdu.problems
    assert pdu.type == "MM4_forward.REQ"
    assert mail.all("X-Mms-Originator-System") == [OUR_SYSTEM]
    names = [name.lower() for name, _ in below_received(mail)]
    assert sorted(set(names)) == sorted(names)
    assert pdu.get("sender").value == "+491511000001"
    for name in field.split():
        if name == "Sender" and peer == "south":
            continue  # a field that this dialect's document does not have
        assert mail.header(name) or name == "X-Mms-3GPP-MMS-Version", name
    if "To" in field.split():
        assert [a.value for a in pdu.recipients] == ["+33600000001" if peer == "south" else "+447700900101"]
    # What was made is what was recorded: an answer to it finds the transaction.
    (row,) = traced(link, pdu.get("message_id"))
    assert row["transaction_id"] == pdu.get("transaction_id")


def test_a_missing_to_is_not_completed_where_it_would_tell_of_others(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    rcpt = (*TO_NORTH, "+447700900102/TYPE=PLMN@mms.gw.example")
    dialogue = submit(link, message(ids, drop=("To",)), rcpt)
    assert dialogue.data is not None
    assert dialogue.data[0] == 554
    assert "To" in dialogue.data[1]
    link.gateway.quiet()
    assert link.north.carrying(ids[1]) == []


@pytest.mark.parametrize(
    "ids",
    [
        ('"{}@q"', '"m{}@q"'),
        ("{}", "m{}"),
        ('"{}' + r"\"\\" * 400 + '"', "m{}" + "x" * 880),
        ("+14445550100/TYPE=PLMN-{}=", "{}+/=="),
        (" {} a  b", "<{}@angle>"),
    ],
)
@pytest.mark.parametrize("peer", ["north", "south"])
def test_ids_of_the_local_side_stay_as_they_are(link: Link, ids: tuple[str, str], peer: str) -> None:
    unique = new_ids()[0][2:14]
    transaction_id, message_id = (text.replace("{}", unique) for text in ids)
    assert submit(link, message((transaction_id, message_id)), TO_SOUTH if peer == "south" else TO_NORTH).code == 250
    (mail,) = link.hops[peer].wait_for(unique)
    assert mail.all("X-Mms-Transaction-ID") == [transaction_id]
    assert mail.all("X-Mms-Message-ID") == [message_id]


@pytest.mark.parametrize(
    ("peer", "written", "sent"),
    [
        ("north", "Yes", ["Yes"]), ("north", "No", ["Yes"]), ("north", None, ["Yes"]), ("north", "yes", None),
        ("south", "Yes", ["No"]), ("south", "No", ["No"]), ("south", None, []),
    ],
)  # fmt: skip
def test_the_peers_entry_says_whether_an_ack_is_asked_for(
    link: Link, peer: str, written: str | None, sent: list[str] | None
) -> None:
    ids = new_ids("mms.gw.example")
    dialogue = submit(link, message(ids, ack=written), TO_SOUTH if peer == "south" else TO_NORTH)
    (mail,) = link.hops[peer].wait_for(ids[1])
    if sent is None:
        assert [value.lower() for value in mail.all("X-Mms-Ack-Request")] == ["yes"]
    else:
        assert mail.all("X-Mms-Ack-Request") == sent
    link.gateway.wait_log(f"{dialogue.queue_id}: removed")
    (row,) = traced(link, ids[1])
    assert row["state"] == ("waiting" if peer == "north" else "accepted")


def test_a_national_number_is_completed(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    content = message(ids, sender="01511000001", to="0160 9000001/TYPE=PLMN, +447700900101")
    dialogue = submit(link, content, ("01609000001/TYPE=PLMN@mms.gw.example",), "01511000001@mms.gw.example")
    assert dialogue.code == 250
    (mail,) = link.north.wait_for(ids[1])
    assert mail.mail_from == ORIGINATOR
    assert mail.rcpt == ["+491609000001/TYPE=PLMN@mms.north.example"]
    assert mail.header("From") == "+491511000001/TYPE=PLMN"
    assert re.sub(r"\s+", " ", mail.header("To") or "") == "+491609000001/TYPE=PLMN, +447700900101/TYPE=PLMN"
    assert in_state(link, ids[1], "waiting")["recipient"] == "+491609000001"


def test_several_recipients_of_one_peer_go_in_one_message(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    submit(link, message(ids), (*TO_NORTH, "+447700900102/TYPE=PLMN@mms.north.example", TO_NORTH[0]))
    link.north.wait_for(ids[1])
    link.gateway.quiet()
    (mail,) = link.north.carrying(ids[1])
    assert sorted(mail.rcpt) == [f"+44770090010{n}/TYPE=PLMN@mms.north.example" for n in (1, 2)]
    # One RES before Release 6 speaks for all.
    assert answer(link, res(ids)).code == 250
    rows = wait_for(lambda: [t for t in traced(link, ids[1]) if t["state"] == "answered"], "the RES")
    assert sorted(row["recipient"] for row in rows) == ["+447700900101", "+447700900102"]


# -- what stays here


def test_a_local_message_to_a_served_number_goes_inward(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    dialogue = submit(link, message(ids, to="+491511000002"), ("+491511000002/TYPE=PLMN@mms.gw.example",))
    assert dialogue.code == 250
    link.gateway.quiet()
    (mail,) = link.mmsc.carrying(ids[1])
    assert mail.rcpt == ["+491511000002@mmsc.gw.example"]
    assert re.fullmatch(r"[0-9a-f]{32}@mms\.gw\.example", mail.mail_from)
    assert mail.all("X-Mms-Ack-Request") == ["No"]
    assert mail.all("X-Mms-Transaction-ID") == [ids[0]]
    assert [name for name, hop in link.hops.items() if hop.carrying(ids[0])] == ["mmsc"]


def test_ordinary_mail_is_refused(link: Link) -> None:
    unique = new_ids()[0]
    content = f"From: ann@mmsc.gw.example\r\nTo: bob@mms.north.example\r\nSubject: {unique}\r\n\r\nhello\r\n".encode()
    dialogue = submit(link, content)
    assert dialogue.data is not None
    assert dialogue.data[0] == 554
    assert dialogue.data[1].startswith("5.6.0 ")
    link.gateway.quiet()
    assert [name for name, hop in link.hops.items() if hop.carrying(unique)] == []


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("X-Mms-Transaction-ID", '""', 554), ("Date", "yesterday", 554), ("From", "<>", 553),
        ("X-Mms-Message-Type", "MM4_frobnicate.REQ", 554), ("X-Mms-Message-ID", "m-\xe9", 554),
    ],
)  # fmt: skip
def test_the_local_side_is_told_by_smtp_what_is_wrong(link: Link, header: str, value: str, code: int) -> None:
    ids = new_ids("mms.gw.example")
    content = f"{header}: {value}\r\n".encode("latin-1") + message(ids, drop=(header,))
    dialogue = submit(link, content)
    assert dialogue.data is not None
    assert dialogue.data[0] == code
    assert header in dialogue.data[1] or header == "X-Mms-Message-Type"
    link.gateway.quiet()
    assert [name for name, hop in link.hops.items() if hop.carrying(ids[0]) or hop.carrying(ids[1])] == []


# -- the RES comes home


@pytest.mark.parametrize("status", ["Ok", "Error-service-denied", "Error-network-problem"])
@pytest.mark.parametrize("peer", ["north", "south"])
def test_a_res_ends_here_and_is_remembered(link: Link, peer: str, status: str) -> None:
    ids = new_ids("mms.gw.example")
    sent = submit(link, message((f'"{ids[0]}"', f'"{ids[1]}"')), TO_SOUTH if peer == "south" else TO_NORTH)
    link.hops[peer].wait_for(ids[1])
    # The quotes are gone, as one open-source MMSC does it.
    source = SOUTH if peer == "south" else NORTH
    dialogue = answer(link, res(ids, status, tyntec=peer == "south"), source)
    assert dialogue.code == 250
    link.gateway.wait_log(rf"{dialogue.queue_id}: milter-discard: END-OF-MESSAGE")
    done = in_state(link, ids[1], "answered")
    assert done["status"] == status
    assert done["queue_id"] == sent.queue_id
    (event,) = [e for e in done["events"] if e["what"] == "answer received"]
    assert event["queue_id"] == dialogue.queue_id
    link.gateway.quiet()
    assert [(name, len(hop.carrying(ids[0]))) for name, hop in link.hops.items() if hop.carrying(ids[0])] == [(peer, 1)]


def test_a_res_may_come_to_the_subscribers_number_and_say_very_little(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    submit(link, message(ids))
    link.north.wait_for(ids[1])
    bare = res(ids, "ok", drop=("From", "To", "Date", "Content-Type"))
    assert (
        answer(link, bare, rcpt="+491511000001/TYPE=PLMN@mms.gw.example", mail_from="a@mms.north.example").code == 250
    )
    assert in_state(link, ids[1], "answered")["status"] == "Ok"
    link.gateway.quiet()
    assert link.mmsc.carrying(ids[1]) == []


def test_a_repeated_res_changes_nothing(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    submit(link, message(ids))
    link.north.wait_for(ids[1])
    assert answer(link, res(ids)).code == 250
    assert answer(link, res(ids, "Error-unspecified")).code == 250
    done = in_state(link, ids[1], "answered")
    assert done["status"] == "Ok"
    assert [e["what"] for e in done["events"]].count("contradictory answer") == 1


def test_a_res_of_another_peer_changes_nothing(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    submit(link, message(ids))
    link.north.wait_for(ids[1])
    in_state(link, ids[1], "waiting")
    assert answer(link, res(ids, "Error-unspecified"), SOUTH).code == 250
    (row,) = traced(link, ids[1])
    assert (row["state"], row["status"]) == ("waiting", None)
    # Nor one from our own side, which the gateway answers itself.
    assert answer(link, res(ids, "Error-unspecified"), LOCAL, rcpt=TO_NORTH[0], mail_from=ORIGINATOR).code == 250
    (row,) = traced(link, ids[1])
    assert (row["state"], row["status"]) == ("waiting", None)
    assert answer(link, res(ids)).code == 250
    assert in_state(link, ids[1], "answered")["status"] == "Ok"


def test_a_res_to_nothing_that_we_sent_ends_here_too(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    dialogue = answer(link, res(ids))
    assert dialogue.code == 250
    (line,) = link.gateway.verdicts(dialogue.queue_id)
    assert " verdict=discard " in line
    assert ids[0] in line
    # Right transaction, wrong message: it is not the answer to that one.
    sent = new_ids("mms.gw.example")
    submit(link, message(sent))
    link.north.wait_for(sent[1])
    in_state(link, sent[1], "waiting")
    answer(link, res((sent[0], ids[1])))
    (row,) = traced(link, sent[1])
    assert row["state"] == "waiting"


def test_a_res_is_never_answered(link: Link) -> None:
    """Whatever it asks for, and whatever is wrong with it."""
    ids = new_ids("mms.gw.example")
    for content in (res(ids), res(ids, "nonsense"), res(ids, drop=("X-Mms-Transaction-ID",))):
        answer(link, content, mail_from="system@mms.north.example")
    link.gateway.quiet()
    assert [name for name, hop in link.hops.items() if hop.carrying(ids[0]) or hop.carrying(ids[1])] == []
