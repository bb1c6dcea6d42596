"""`delivery_report: on_delivery`: the peer hears of delivery and failure, once a recipient, and only if it asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, SOUTH, Link, Mail, NextHop, forward_req, new_ids, wait_for

pytestmark = pytest.mark.postfix

HERE = Path(__file__).parent
ASKED = (b"\r\nX-Mms-Delivery-Report: No\r\n", b"\r\nX-Mms-Delivery-Report: Yes\r\n")
BY_RS = (
    b"\r\nX-Mms-Originator-R/S-Delivery-Report: No\r\n",
    b"\r\nX-Mms-Originator-R/S-Delivery-Report: Yes\r\n",
)
QUIET = "127.0.0.23"


class OfferingDsn(NextHop):
    """An MMSC that offers DSN, and would report by itself if it were asked to."""

    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-DSN", responses[-1]]


MMSCS = ["mmsc", "mmsc with DSN"]


@pytest.fixture(scope="module", params=["maildir", *MMSCS])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    kind = request.param.partition(" ")[0]
    hops: dict[str, NextHop] = {"north": NextHop(), "south": NextHop()}
    hops["mmsc"] = OfferingDsn() if request.param.endswith("DSN") else NextHop()
    with Link((HERE / f"{kind}.yaml").read_text(), hops=hops) as made:
        made.status = "Retrieved" if kind == "maildir" else "Indeterminate"  # type: ignore[assignment]
        yield made


@pytest.fixture(autouse=True)
def fresh(link: Link) -> Iterator[None]:
    for hop in link.hops.values():
        hop.mails.clear()
        hop.refused.clear()
        hop.reply_rcpt = hop.reply_data = "250 OK"
    yield
    link.gateway.quiet()
    queue = Path(link.gateway.facts["queue_directory"])
    kept = [queue / name for name in ("bounce", "defer", "trace", "corrupt", "hold")]
    left = [file for folder in kept for file in folder.rglob("*") if file.is_file()]
    assert left == [], "Postfix keeps a record of something that is over"
    assert link.gateway.unclaimed() == [], "a report of Postfix's was not known again"


def _reports(hop: NextHop) -> list[Mail]:
    kinds = ("X-Mms-Message-Type", "X-Mms-MM1-Message-Type")
    return [m for m in hop.mails if any("delivery_report.req" in (m.header(k) or "").lower() for k in kinds)]


@pytest.mark.parametrize("asked", [ASKED, BY_RS], ids=["by the originator", "by his system"])
def test_a_delivered_message_is_reported_to_the_peer_that_asked(link: Link, asked: tuple[bytes, bytes]) -> None:
    ids = new_ids()
    dialogue = link.gateway.send(forward_req(ids=ids).replace(*asked))
    assert dialogue.code == 250, dialogue
    wait_for(lambda: _reports(link.north), "a delivery report at the peer")
    link.gateway.quiet()
    (report,) = _reports(link.north)
    assert report.header("X-Mms-MM-Status-Code") == link.status
    assert report.header("X-Mms-Message-ID") == f'"{ids[1]}"'
    assert report.header("X-Mms-Ack-Request") == "Yes"
    assert report.header("From") == "+491511000001/TYPE=PLMN@mms.gw.example"
    assert report.header("To") == "+447700900002/TYPE=PLMN@mms.north.example"
    assert report.rcpt == ["+447700900002/TYPE=PLMN@mms.north.example"]
    assert report.mail_from == "system-user@mms.gw.example"
    assert report.header("Sender") == report.header("X-Mms-Originator-System") == "system-user@mms.gw.example"
    (kept,) = [t for t in link.gateway.trace(ids[1]) if t["type"] == "MM4_delivery_report.REQ"]
    assert (kept["direction"], kept["peer"], kept["report"], kept["state"]) == ("out", "north", link.status, "waiting")


def test_the_res_to_our_report_answers_it(link: Link) -> None:
    ids = new_ids()
    link.gateway.send(forward_req(ids=ids).replace(*ASKED))
    (report,) = wait_for(lambda: _reports(link.north), "a delivery report at the peer")
    identifier = report.header("X-Mms-Transaction-ID")
    res = (
        "From: PostMaster@mms.north.example\r\nTo: system-user@mms.gw.example\r\n"
        "X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: MM4_delivery_report.RES\r\n"
        f"X-Mms-Transaction-ID: {identifier}\r\nX-Mms-Message-ID: {ids[1]}\r\nX-Mms-Request-Status-Code: Ok\r\n\r\n"
    ).encode()
    dialogue = link.gateway.send(res, mail_from="", rcpt=("system-user@mms.gw.example",))
    assert dialogue.code == 250, dialogue
    (kept,) = [t for t in link.gateway.trace(ids[1]) if t["type"] == "MM4_delivery_report.REQ"]
    assert (kept["state"], kept["status"]) == ("answered", "Ok")


def test_a_message_that_did_not_ask_is_not_reported(link: Link) -> None:
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    link.north.wait_for(ids[0])
    link.gateway.quiet()
    assert _reports(link.north) == []
    assert [t["type"] for t in link.gateway.trace(ids[1])] == ["MM4_forward.REQ"]


def test_a_peer_whose_reports_are_the_mmscs_gets_none_of_ours(link: Link) -> None:
    ids = new_ids("mms.quiet.example")
    message = forward_req(ids=ids, system="PostMaster@mms.quiet.example").replace(*ASKED)
    assert link.gateway.send(message, source=QUIET, mail_from="+447700900002/TYPE=PLMN@mms.quiet.example").code == 250
    link.north.wait_for(ids[0])
    link.gateway.quiet()
    assert _reports(link.north) == []


def test_several_recipients_are_several_reports_in_the_peers_dialect(link: Link) -> None:
    ids = new_ids("mms.south.example")
    numbers = ("+491511000001", "+491511000002")
    message = forward_req(ids=ids, tyntec=True, system="system@mms.south.example").replace(*ASKED)
    dialogue = link.gateway.send(
        message, source=SOUTH, mail_from="+447700900002/TYPE=PLMN@mms.south.example",
        rcpt=tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers),
    )  # fmt: skip
    assert dialogue.code == 250, dialogue
    wait_for(lambda: len(_reports(link.south)) > 1, "two delivery reports at the peer")
    link.gateway.quiet()
    reports = _reports(link.south)
    assert {r.header("From") for r in reports} == {f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers}
    assert [r.header("X-Mms-MM1-Message-Type") for r in reports] == ["MM4_Delivery_Report.REQ"] * 2
    assert [r.header("X-Mms-Ack-Request") for r in reports] == ["No"] * 2
    states = {t["state"] for t in link.gateway.trace(ids[1]) if t["type"] == "MM4_delivery_report.REQ"}
    assert states == {"accepted"}


def test_a_report_of_ours_that_the_peer_refuses_is_noted_and_that_is_all(link: Link) -> None:
    ids = new_ids()
    link.north.refused.add("+447700900002/TYPE=PLMN@mms.north.example")
    link.gateway.send(forward_req(ids=ids).replace(*ASKED))

    def bounced() -> list[dict[str, Any]]:
        return [t for t in link.gateway.trace(ids[1]) if t["state"] == "bounced"]

    (kept,) = wait_for(bounced, "the report's bounce in mm4 trace")
    assert kept["type"] == "MM4_delivery_report.REQ"
    link.gateway.quiet()
    assert _reports(link.north) == []
    assert len(link.gateway.trace(ids[1])) == 2


@pytest.mark.parametrize("link", MMSCS, indirect=True)
def test_what_the_mmsc_refuses_is_reported_as_rejected(link: Link) -> None:
    ids = new_ids()
    link.mmsc.reply_rcpt = "550 5.1.1 No such subscriber"
    link.gateway.send(forward_req(ids=ids).replace(*ASKED))
    (report,) = wait_for(lambda: _reports(link.north), "a delivery report at the peer")
    assert report.header("X-Mms-MM-Status-Code") == "Rejected"
    assert report.header("X-Mms-Status-Text") is None, "what our MMSC said is not for the peer"


@pytest.mark.parametrize("link", MMSCS, indirect=True)
def test_what_the_mmsc_bounces_later_is_reported_too(link: Link) -> None:
    ids = new_ids()
    link.gateway.send(forward_req(ids=ids).replace(*ASKED))
    (delivered,) = link.mmsc.wait_for(ids[0])
    wait_for(lambda: _reports(link.north), "the first report")
    report = (
        "From: MAILER-DAEMON@mmsc.gw.example\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b1"\r\n\r\n'
        "--b1\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mmsc.gw.example\r\n\r\n"
        f"Final-Recipient: rfc822;{delivered.rcpt[0]}\r\nAction: failed\r\nStatus: 5.4.7\r\n\r\n--b1--\r\n"
    ).encode()
    assert link.gateway.send(report, source=LOCAL, mail_from="", rcpt=(delivered.mail_from,)).code == 250
    wait_for(lambda: len(_reports(link.north)) == 2, "a second report")
    link.gateway.quiet()
    assert [r.header("X-Mms-MM-Status-Code") for r in _reports(link.north)] == ["Indeterminate", "Expired"]
