"""Reports: what they hold, for whom, and what `mm4 report` says where there is nothing to report."""

from __future__ import annotations

import email
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mm4.compose import delivery_report, read_report
from mm4.protocol.dialect import builtin
from mm4.protocol.errors import ProtocolError, UsageError
from mm4.protocol.pdu import Pdu
from mm4.protocol.reader import read_message
from mm4.protocol.transaction import Direction, State
from recorder import Done, Recorder, called, inward

WHEN = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
OURS, THEIRS = "+491511000001", "+447700900002"
COMMON: dict[str, Any] = {"message_id": 'a "b" c', "transaction_id": "t-9@mms.gw.example", "date": WHEN}


# -- what they hold


def valid(message: bytes) -> Pdu:
    """The report as the gateway reads it, in which nothing is wrong."""
    found = read_message(message)
    assert found.problems == ()
    assert message.isascii()
    assert message.endswith(b"\r\n\r\n")
    assert email.message_from_bytes(message).get_content_type() == "text/plain"
    return found


@pytest.mark.parametrize("status", builtin("3gpp").fields["mm_status"].values)
@pytest.mark.parametrize("spelt", [str, str.upper, str.lower])
def test_a_delivery_report_says_each_status(status: str, spelt: Callable[[str], str]) -> None:
    found = valid(delivery_report(OURS, THEIRS, spelt(status), text="über", **COMMON))
    assert (found.type, found.get("mm_status"), found.get("status_text")) == ("MM4_delivery_report.REQ", status, "über")
    assert (found.get("message_id"), found.get("transaction_id"), found.get("date")) == ('a "b" c', "t-9@mms.gw.example", WHEN)
    assert found.get("sender").write() == f"{OURS}/TYPE=PLMN"
    assert [a.write() for a in found.recipients] == [f"{THEIRS}/TYPE=PLMN"]
    assert found.get("read_status") is None


@pytest.mark.parametrize(("spelt", "status"), [
    ("Read", "Read"), ("READ", "Read"), ("deleted", "Deleted without being read"), (" Deleted ", "Deleted without being read"),
    ("deleted without being read", "Deleted without being read"), ("Deletedwithoutbeingread", "Deleted without being read"),
])  # fmt: skip
def test_a_read_report_says_each_status(spelt: str, status: str) -> None:
    found = valid(read_report(OURS, "ann@mail.example", spelt, **COMMON))
    assert (found.type, found.get("read_status"), found.get("mm_status")) == ("MM4_read_reply_report.REQ", status, None)
    assert [a.write() for a in found.recipients] == ["ann@mail.example"]


def test_national_numbers_and_domains_are_left_to_the_gateway() -> None:
    found = valid(read_report("01511 000001", f"{THEIRS}/TYPE=PLMN@mms.north.example", "read", region="DE", **COMMON))
    assert (found.get("sender").write(), found.recipients[0].write()) == (f"{OURS}/TYPE=PLMN", f"{THEIRS}/TYPE=PLMN")


def test_what_no_report_may_say_is_told() -> None:
    for status in ("Read", "", "delivered"):
        with pytest.raises(UsageError, match="X-Mms-MM-Status-Code: one of Expired, Retrieved, Rejected"):
            delivery_report(OURS, THEIRS, status, **COMMON)
    with pytest.raises(UsageError, match="X-Mms-Read-Status: one of Read, Deleted without being read"):
        read_report(OURS, THEIRS, "Retrieved", **COMMON)
    with pytest.raises(UsageError, match="'nobody' is no address"):
        read_report("nobody", THEIRS, "Read", **COMMON)
    with pytest.raises(UsageError, match="date has no time zone"):
        read_report(OURS, THEIRS, "Read", **COMMON | {"date": datetime(2026, 1, 1)})
    with pytest.raises(ProtocolError, match="X-Mms-Message-ID"):
        read_report(OURS, THEIRS, "Read", **COMMON | {"message_id": "ü"})


def test_a_status_text_cannot_become_a_header() -> None:
    message = delivery_report(OURS, THEIRS, "Retrieved", text="x\r\nX-Mms-Ack-Request: Yes\r\n\r\n", **COMMON)
    assert read_message(message).get("ack_request") is None


def test_an_extension_is_written_where_the_tables_have_one() -> None:
    found = valid(delivery_report(OURS, THEIRS, "Rejected", extension="rejection-by-mms-recipient", **COMMON))
    assert found.get("mm_status_extension") == "Rejection-By-MMS-Recipient"
    with pytest.raises(UsageError):
        delivery_report(OURS, THEIRS, "Rejected", extension="by nobody", **COMMON)


# -- the command


Report = Callable[..., Done]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path) as running:
        yield running


@pytest.fixture
def report(service: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """`mm4 report` in this process."""

    def call(*arguments: object) -> Done:
        return called(monkeypatch, capsys, "report", *arguments, "--config", service.config)

    return call


def test_each_recipient_reports_to_the_originator(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS, "+491511000002")
    done = report("delivery", "m-1", "--status", "retrieved", "--text", "da", "--date", "2026-11-22T11:00+01:00")
    assert (done.code, done.err) == (0, "")
    assert [t.mail_from for t in service.taken] == ["", ""]
    assert [t.rcpt for t in service.taken] == [[f"{THEIRS}/TYPE=PLMN@mms.north.example"]] * 2
    found = [valid(t.content) for t in service.taken]
    assert sorted(pdu.get("sender").number for pdu in found) == [OURS, "+491511000002"]
    assert {pdu.get("transaction_id") for pdu in found} == set(done.out.split())
    assert len(set(done.out.split())) == 2
    for pdu in found:
        assert (pdu.get("message_id"), pdu.get("mm_status"), pdu.get("status_text"), pdu.get("date")) == ("m-1", "Retrieved", "da", WHEN)


def test_one_recipient_reports_alone(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS, "+491511000002")
    done = report("read", '"m-1"', "--status", "Deleted without being read", "--to", "01511 000002", "--json")
    assert done.code == 0
    (row,) = done.json["reports"]
    assert done.json["message_id"] == "m-1"
    (taken,) = service.taken
    pdu = valid(taken.content)
    assert (pdu.get("sender").number, pdu.get("read_status")) == ("+491511000002", "Deleted without being read")
    assert row == {"recipient": "+491511000002", "originator": THEIRS, "transaction_id": pdu.get("transaction_id"),
                   "refused": None, "peer": "north", "state": "waiting", "status": None}  # fmt: skip


def test_a_message_that_came_twice_is_reported_once(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS)
    inward(service.store, "m-1", OURS)
    assert report("delivery", "m-1", "--status", "Deferred").code == 0
    assert len(service.taken) == 1


def test_waiting_for_the_res_of_a_report(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS)
    service.status = {THEIRS: "Ok"}
    done = report("delivery", "m-1", "--status", "Retrieved", "--wait", "50s")
    assert (done.code, done.out.splitlines()[1]) == (0, f"{THEIRS}  north  answered  Ok")
    service.status = {THEIRS: "Error-message-not-found"}
    done = report("read", "m-1", "--status", "Read", "--wait", "50s", "--json")
    assert (done.code, done.json["reports"][0]["status"]) == (1, "Error-message-not-found")
    service.status = {}
    done = report("read", "m-1", "--status", "Read", "--wait", "1s")
    assert (done.code, done.out.splitlines()[1]) == (1, f"{THEIRS}  north  waiting  no RES in time")


@pytest.mark.parametrize("waiting", [(), ("--wait", "50s")])
def test_a_report_that_nobody_asked_for_stays_here(report: Report, service: Recorder, waiting: tuple[str, ...]) -> None:
    inward(service.store, "m-1", OURS)
    service.suppress = True
    done = report("delivery", "m-1", "--status", "Retrieved", *waiting)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1] == f"suppressed, the report of {OURS}: {THEIRS} asked for no delivery report"
    assert report("delivery", "m-1", "--status", "Retrieved", *waiting, "--json").json["reports"][0]["state"] == "suppressed"


def test_a_report_among_ourselves(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS, peer="local", originator="+491511000005")
    assert report("read", "m-1", "--status", "Read", "--wait", "50s").code == 0
    assert service.taken[0].rcpt == ["+491511000005/TYPE=PLMN@mms.gw.example"]


def test_where_there_is_nothing_to_report_it_says_why(report: Report, service: Recorder) -> None:
    inward(service.store, "m-in", OURS)
    inward(service.store, "m-out", THEIRS, originator=OURS, direction=Direction.OUT)
    inward(service.store, "m-refused", OURS, state=State.REFUSED)
    inward(service.store, "m-two", OURS)
    inward(service.store, "m-two", "+491511000002", peer="hub", originator="+34600000001")
    inward(service.store, "m-gone", OURS, peer="gone")
    inward(service.store, "m-nobody", OURS, originator="")
    for arguments, what in (
        (("m-none",), "m-none: no message with this id was received"),
        (("m-out",), "m-out went out from here"),
        (("m-refused",), "m-refused was refused here, nobody received it"),
        (("m-in", "--to", "+491511000002"), f"+491511000002 is no recipient of m-in; there is: {OURS}"),
        (("m-in", "--to", "nobody"), "nobody is no recipient of m-in"),
        (("m-two",), "m-two came from several originators: "),
        (("m-gone",), "m-gone came from gone, which is no peer any more"),
        (("m-nobody",), "m-nobody came from '', to whom no report can go"),
    ):
        done = report("delivery", *arguments, "--status", "Retrieved")
        assert (done.code, done.out) == (1, ""), arguments
        assert re.fullmatch(f"mm4: .*{re.escape(what)}.*\n", done.err), done.err
    assert service.taken == []
    assert report("delivery", "m-two", "--to", OURS, "--status", "Retrieved").code == 0


@pytest.mark.parametrize(("arguments", "what"), [
    (("delivery", "m-1", "--status", "Read"), "one of Expired, Retrieved"),
    (("read", "m-1", "--status", "Retrieved"), "one of Read, Deleted without being read"),
    (("read", "m-1", "--status", "Read", "--extension", "x"), "--extension belongs to a delivery report"),
    (("read", "m-1", "--status", "Read", "--date", "soon"), "'soon' is no date"),
    (("read", "m-1"), "Missing option '--status'"),
    (("seen", "m-1", "--status", "Read"), "'seen' is not one of"),
])  # fmt: skip
def test_wrong_use_is_2(report: Report, service: Recorder, arguments: tuple[str, ...], what: str) -> None:
    inward(service.store, "m-1", OURS)
    done = report(*arguments)
    assert (done.code, done.out, service.taken) == (2, "", [])
    assert what in done.err


def test_a_report_that_is_refused_is_1(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS)
    service.end = "550 5.1.0 No such message"
    done = report("delivery", "m-1", "--status", "Retrieved")
    assert (done.code, done.out, done.err) == (1, "", "mm4: the gateway refused the message at end of data: 550 5.1.0 No such message\n")
    service.rcpt = {THEIRS: "550 5.1.1 Number not served here"}
    done = report("delivery", "m-1", "--status", "Retrieved", "--json")
    assert (done.code, done.json["reports"][0]["refused"]) == (1, "550 5.1.1 Number not served here")


def test_the_reports_that_went_are_told_though_a_later_one_is_refused(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS, "+491511000002")
    service.end, service.limit = "451 4.3.0 Local error", 1
    done = report("delivery", "m-1", "--status", "Retrieved", "--json")
    assert done.code == 1
    assert [(r["state"], bool(r["refused"])) for r in done.json["reports"]] == [("waiting", False), (None, True)]


def test_a_service_that_is_down_is_1(report: Report, service: Recorder) -> None:
    inward(service.store, "m-1", OURS)
    service.down()
    done = report("delivery", "m-1", "--status", "Retrieved")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"mm4: the MM4 service at 127.0.0.1:{service.port} cannot be reached: Connection refused\n"
