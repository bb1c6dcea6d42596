"""`mm4 send` and `mm4.compose.Service`: who gets what, what is said of each recipient, and how the waiting ends."""

from __future__ import annotations

import email
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake import CONFIG
from harness import free_port
from mm4.compose import Outcome, Refused, Service, Unreachable, compose, outcomes, text_part, wait
from mm4.gateway.configfile import parse_config
from mm4.protocol.errors import StoreError, UsageError
from mm4.protocol.reader import read_message
from recorder import Done, Recorder, called

NORTH, OTHER, HUB, OWN = "+447700900101", "+447700900102", "+33600000001", "+491511000077"


Send = Callable[..., Done]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path) as running:
        yield running


@pytest.fixture
def send(service: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Send:
    """`mm4 send` in this process; `stdin` is what it can read."""

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        given = ("send", "--config", service.config, "--from", "+491511000001", *arguments)
        return called(monkeypatch, capsys, *given, stdin=stdin)

    return call


def states(done: Done) -> dict[str, tuple[str | None, str | None]]:
    return {r["recipient"]: (r["state"], r["status"]) for r in done.json["recipients"]}


# -- who receives


def test_recipients_come_from_arguments_and_from_a_file(send: Send, service: Recorder, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"
    numbers.write_bytes("\ufeff# our friends\r\n+447700900102  # Ann\r\n\r\n\t01511 000002 #x\n+447700900101\n".encode())
    done = send("--to", NORTH, "--to-file", numbers, "--text", "x", "--json")
    assert (done.code, done.err, done.json["refused"]) == (0, "", {})
    assert [t.rcpt for t in service.taken] == [
        ["+447700900101/TYPE=PLMN@mms.gw.example", "+447700900102/TYPE=PLMN@mms.gw.example"],
        ["+491511000002/TYPE=PLMN@mms.gw.example"],
    ]
    written = [[a.number for a in read_message(t.content).recipients] for t in service.taken]
    assert written == [[NORTH, OTHER, "+491511000002"]] * 2


def test_recipients_come_from_standard_input(send: Send, service: Recorder) -> None:
    assert send("--to-file", "-", "--text", "x", stdin=b"+447700900101\n+447700900102").code == 0
    assert len(service.taken[0].rcpt) == 2


@pytest.mark.parametrize(("content", "what"), [
    (b"+447700900101\n# x\nnobody here\n", ":3: 'nobody here' is no address: a number such as"),
    (b"+447700900101\n\n+12", ":3: '+12' is no address"),
    (b"a..b@mail.example", ":1: 'a..b@mail.example' is no address: "),
    (b"# nobody\n\n", ": names no recipient"),
    (b"", ": is empty"),
    (b"+447700900101\n\xff", ": is not UTF-8 (byte 14)"),
])  # fmt: skip
def test_a_wrong_line_of_a_file_is_named(
    send: Send, service: Recorder, tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "numbers").write_bytes(content)
    for file, name in ((tmp_path / "numbers", str(tmp_path / "numbers")), ("-", "standard input")):
        done = send("--to-file", file, "--text", "x", stdin=content)
        assert (done.code, done.out) == (2, "")
        assert f"mm4: {name}{what}" in done.err
    assert service.taken == []


def test_recipients_of_several_operators_go_in_a_transaction_each(send: Send, service: Recorder) -> None:
    numbers = (NORTH, HUB, OTHER, OWN)
    done = send(*(part for number in numbers for part in ("--to", number)), "--text", "x", "--json")
    assert (done.code, done.json["refused"]) == (0, {})
    assert [[a.partition("/")[0] for a in t.rcpt] for t in service.taken] == [[NORTH, OTHER], [HUB], [OWN]]
    assert len({t.content for t in service.taken}) == 1


def test_a_refusal_in_a_later_transaction_is_the_recipients_own(send: Send, service: Recorder) -> None:
    service.end, service.limit = "554 5.6.0 no", 1
    done = send("--to", NORTH, "--to", HUB, "--text", "x", "--json")
    assert done.code == 1
    assert done.json["refused"] == {HUB: "the gateway refused the message at end of data: 554 5.6.0 no"}


def test_recipients_that_are_refused_are_said_at_once(send: Send, service: Recorder) -> None:
    service.rcpt = {OTHER: "550 5.1.1 Number not served here", HUB: "451 4.4.3 Routing look-up unavailable"}
    done = send("--to", NORTH, "--to", OTHER, "--to", HUB, "--text", "x")
    message_id = read_message(service.taken[0].content).get("message_id")
    assert (done.code, done.out) == (1, f"{message_id}\n")
    assert done.err.splitlines() == [
        f"refused {OTHER}: 550 5.1.1 Number not served here", f"refused {HUB}: 451 4.4.3 Routing look-up unavailable",
    ]  # fmt: skip


def test_nothing_is_sent_where_all_are_refused(send: Send, service: Recorder) -> None:
    service.rcpt = {NORTH: "452 4.5.3 Recipients of too many operators in one message, send the others again"}
    done = send("--to", NORTH, "--text", "x", "--wait", "5s")
    assert (done.code, done.out, service.taken) == (1, "", [])
    assert send("--to", NORTH, "--text", "x", "--wait", "5s", "--json").json["recipients"] == []


# -- what is sent


def test_texts_and_files_share_slides_in_order(send: Send, service: Recorder, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x89PNG")
    attach = ("--attach", tmp_path / "a.png", "--attach", tmp_path / "b.png")
    assert send("--to", NORTH, "--text", "-", "--text", "two", *attach, stdin=b"eins\n").code == 0
    content = service.taken[0].content
    smil, *parts = email.message_from_bytes(content).get_payload()
    slides = re.findall(rb"<par.*?</par>", smil.get_payload(decode=True))  # type: ignore[union-attr]
    assert [re.findall(rb'src="cid:([^"]+)', slide) for slide in slides] == [
        [b"text.txt", b"a.png"], [b"text-2.txt", b"b.png"]
    ]  # fmt: skip
    assert [p.get_payload(decode=True) for p in parts] == [b"eins\n", b"\x89PNG", b"two", b"\x89PNG"]  # type: ignore[union-attr]


def test_a_given_smil_goes_out(send: Send, service: Recorder, tmp_path: Path) -> None:
    (tmp_path / "show.smil").write_text('<smil><body><par><text src="text.txt"/></par></body></smil>')
    assert send("--to", NORTH, "--text", "x", "--smil", tmp_path / "show.smil").code == 0
    assert b"Content-Type: application/smil" in service.taken[0].content
    (tmp_path / "show.smil").write_text('<smil><body><par><img src="a.png"/></par></body></smil>')
    done = send("--to", NORTH, "--text", "x", "--smil", tmp_path / "show.smil")
    assert (done.code, done.err) == (2, "mm4: the SMIL shows a.png, which is not attached; there is: text.txt\n")


@pytest.mark.parametrize(("option", "field", "value"), [
    (("--expiry", "7d"), "expiry", timedelta(days=7)),
    (("--expiry", "600"), "expiry", timedelta(seconds=600)),
    (("--expiry", "2099-01-02T03:04:05+02:00"), "expiry", datetime(2099, 1, 2, 1, 4, 5, tzinfo=UTC)),
    (("--expiry", "Fri, 02 Jan 2099 03:04:05 +0200"), "expiry", datetime(2099, 1, 2, 1, 4, 5, tzinfo=UTC)),
    (("--priority", "high"), "priority", "High"), (("--priority", "LOW"), "priority", "Low"),
    (("--class", "auto"), "message_class", "Auto"), (("--class", "Informational"), "message_class", "Informational"),
    (("--visibility", "hide"), "sender_visibility", "Hide"),
    (("--delivery-report",), "delivery_report", True), (("--read-reply",), "read_reply", True),
    (("--subject", "Grüße"), "subject", "Grüße"),
])  # fmt: skip
def test_each_option_reaches_the_gateway(
    send: Send, service: Recorder, option: tuple[str, ...], field: str, value: Any
) -> None:
    assert send("--to", NORTH, "--text", "x", *option).code == 0
    assert read_message(service.taken[0].content).get(field) == value


@pytest.mark.parametrize(("arguments", "what"), [
    (("--text", "x"), "no recipient: give --to or --to-file"),
    (("--to", NORTH), "nothing to send: give --text or --attach"),
    (("--to", NORTH, "--text", "x", "--expiry", "soon"), "'soon' is no expiry: 7d, seconds, or a date"),
    (("--to", NORTH, "--text", "x", "--expiry", "2020-01-01"), "is over already"),
    (("--to", NORTH, "--text", "x", "--expiry", "0s"), "at least a second"),
    (("--to", NORTH, "--text", "x", "--wait", "soon"), "'soon': a duration is a whole number with s, m, h or d"),
    (("--to", NORTH, "--text", "x", "--priority", "urgent"), "'urgent' is not one of"),
    (("--to", NORTH, "--text", "-"), "standard input: is empty"),
    (("--to-file", "-", "--text", "-"), "--to-file and --text both read standard input"),
    (("--to", NORTH, "--text", "-", "--text", "-"), "reads standard input once"),
    (("--to", NORTH, "--text", "x", "--to-file", "/proc/none"), "/proc/none: No such file"),
    (("--to", NORTH, "--text", "x", "--smil", "/proc"), "/proc: Is a directory"),
    (("--to", NORTH, "--text", "x", "--from", "system"), "'system' is no address"),
])  # fmt: skip
def test_wrong_use_is_2_and_sends_nothing(
    send: Send, service: Recorder, arguments: tuple[str, ...], what: str
) -> None:
    done = send(*arguments)
    assert (done.code, done.out, service.taken) == (2, "", [])
    assert what in done.err


# -- the service


def service_at(port: int) -> Service:
    return Service("127.0.0.1", port, "mms.gw.example", "DE")


def hello() -> bytes:
    return compose("+491511000001", [NORTH], [text_part("x")], message_id="m-1@mms.gw.example", now=datetime.now(UTC))


def test_a_service_that_is_down_is_1_and_named(send: Send, service: Recorder) -> None:
    service.down()
    done = send("--to", NORTH, "--text", "x")
    where = f"127.0.0.1:{service.port}"
    assert (done.code, done.out, done.err) == (1, "", f"mm4: the MM4 service at {where} cannot be reached: Connection refused\n")
    with pytest.raises(Unreachable) as down:
        service_at(free_port()).submit(hello(), "+491511000001", [NORTH])
    assert down.value.temporary


@pytest.mark.parametrize(("script", "what"), [
    ((b"421 4.3.2 full\r\n",), "cannot be reached: it says 421 4.3.2 full"),
    ((b"hello\r\n",), "cannot be reached"),
    ((b"",), "cannot be reached"),
    ((b"220 x\r\n", b"250 x\r\n", b""), "broke off before it had the message"),
    ((b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250 x\r\n", b"354 x\r\n", b""), "may have it all the same"),
])  # fmt: skip
def test_a_service_that_breaks_off_is_told_from_one_that_refuses(script: tuple[bytes, ...], what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                for step, reply in enumerate(script):
                    if step:
                        lines.readline()
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unreachable, match=re.escape(what)) as raised:
            service_at(listener.getsockname()[1]).submit(hello(), "+491511000001", [NORTH])
        assert f":{listener.getsockname()[1]} " in str(raised.value)
        thread.join()


def test_a_refused_message_keeps_its_reply(service: Recorder) -> None:
    service.mail = "550 5.7.1 This host exchanges MMS with its peers only"
    with pytest.raises(Refused, match=r"at MAIL: 550 5.7.1 This host .*local.clients\?") as stranger:
        service_at(service.port).submit(hello(), "+491511000001", [NORTH])
    assert (stranger.value.reply.code, stranger.value.reply.enhanced, stranger.value.temporary) == (550, "5.7.1", False)
    service.mail, service.end = "250 OK", "451 4.3.0 Message store unavailable, try again later"
    with pytest.raises(Refused, match="at end of data: 451") as later:
        service_at(service.port).submit(hello(), "+491511000001", [NORTH])
    assert later.value.temporary


def test_the_envelope_carries_our_domain_unless_there_is_one(service: Recorder) -> None:
    recipients = [NORTH, "+447700900102@mms.north.example", "+44 7700 900101"]
    assert service_at(service.port).submit(hello(), "01511 000001", recipients) == {}
    assert service.taken[0].mail_from == "+491511000001/TYPE=PLMN@mms.gw.example"
    assert service.taken[0].rcpt == [
        "+447700900101/TYPE=PLMN@mms.gw.example", "+447700900102/TYPE=PLMN@mms.north.example",
    ]  # fmt: skip


def test_no_address_becomes_a_command(service: Recorder) -> None:
    for wrong in ("+447700900101>\r\nDATA", "a@b.example\r\nRSET", "", "<>"):
        with pytest.raises(UsageError, match="is no address"):
            service_at(service.port).submit(hello(), "+491511000001", [wrong])
        if wrong:  # the sender of a report is nobody
            with pytest.raises(UsageError, match="is no address"):
                service_at(service.port).submit(hello(), wrong, [NORTH])
    assert service.taken == []


@pytest.mark.parametrize(("listen", "clients", "host", "source"), [
    ("127.0.0.1:25", "127.0.0.1/32", "127.0.0.1", None),
    ("0.0.0.0:25", "127.0.0.0/8", "127.0.0.1", None),
    ("127.0.0.1:25", "127.0.0.9/32", "127.0.0.1", "127.0.0.9"),
    ("127.0.0.1:25", "10.0.0.0/24", "127.0.0.1", None),
    ("192.0.2.1:25", "127.0.0.9/32", "192.0.2.1", None),
    ("[::]:25", "::1/128", "::1", None),
])  # fmt: skip
def test_it_connects_from_an_address_that_is_a_client(
    listen: str, clients: str, host: str, source: str | None
) -> None:
    text = CONFIG.replace('[127.0.0.1/32, "2001:db8:1::/48"]', f'["{clients}"]')
    found = Service.of(parse_config(text + f'service: {{listen: "{listen}"}}\n', "mm4.yaml"))
    assert (found.host, found.source, found.domain, found.region) == (host, source, "mms.gw.example", "DE")


# -- waiting


def test_waiting_ends_when_every_res_is_ok(send: Send, service: Recorder) -> None:
    service.status, service.delay = {NORTH: "Ok", OTHER: "Ok"}, 0.4
    done = send("--to", NORTH, "--to", OTHER, "--to", OWN, "--to", HUB, "--text", "x", "--wait", "50s", "--json")
    assert done.code == 0
    # What is not asked for an ack, and what stays here, has no RES to come.
    assert states(done) == {NORTH: ("answered", "Ok"), OTHER: ("answered", "Ok"), OWN: ("accepted", None), HUB: ("accepted", None)}
    assert done.json["message_id"] == read_message(service.taken[0].content).get("message_id")
    assert all(r["final"] and r["ok"] for r in done.json["recipients"])


def test_a_res_with_an_error_is_1(send: Send, service: Recorder) -> None:
    service.status = {NORTH: "Ok", OTHER: "Error-service-denied"}
    done = send("--to", NORTH, "--to", OTHER, "--text", "x", "--wait", "50s")
    message_id, *rows = done.out.splitlines()
    assert done.code == 1
    assert rows == [f"{NORTH}  north  answered  Ok", f"{OTHER}  north  answered  Error-service-denied"]
    assert done.err == f"not Ok: 1 of 2; mm4 trace {message_id} tells more\n"


def test_a_res_that_does_not_come_in_time_is_1(send: Send, service: Recorder) -> None:
    service.status = {NORTH: "Ok"}
    started = time.monotonic()
    done = send("--to", NORTH, "--to", OTHER, "--text", "x", "--wait=1s")
    assert time.monotonic() - started >= 1
    assert done.code == 1
    assert done.out.splitlines()[1:] == [f"{NORTH}  north  answered  Ok", f"{OTHER}  north  waiting   no RES in time"]


def test_a_bounce_and_a_refusal_are_1(send: Send, service: Recorder) -> None:
    service.rcpt = {OTHER: "550 5.1.1 no"}
    service.delay = 0.2
    original = service._answer

    def bounce(*arguments: Any) -> None:
        service.store.bounced("0" * 31 + "1", NORTH, "5.4.4", "no host", datetime.now(UTC), None).result()
        original(*arguments)

    service._answer = bounce  # type: ignore[method-assign]
    done = send("--to", NORTH, "--to", OTHER, "--text", "x", "--wait", "50s", "--json")
    assert done.code == 1
    assert states(done) == {NORTH: ("bounced", "5.4.4")}
    assert done.json["refused"] == {OTHER: "550 5.1.1 no"}


def test_recipients_that_are_refused_count_though_the_others_are_ok(send: Send, service: Recorder) -> None:
    service.status, service.rcpt = {NORTH: "Ok"}, {OTHER: "550 5.1.1 no"}
    done = send("--to", NORTH, "--to", OTHER, "--text", "x", "--wait", "50s", "--json")
    assert (done.code, states(done)) == (1, {NORTH: ("answered", "Ok")})


def test_without_a_duration_the_peers_own_timeouts_count(send: Send, service: Recorder) -> None:
    config = Path(service.config)
    config.write_text(config.read_text().replace("    max_size: 1MB", "    max_size: 1MB\n    ack: {timeout: 1s}"))
    started = time.monotonic()
    done = send("--to", NORTH, "--to", OWN, "--text", "x", "--wait", "--json")
    assert 1 <= time.monotonic() - started < 50
    assert (done.code, states(done)) == (1, {NORTH: ("waiting", None), OWN: ("accepted", None)})


def test_a_store_that_cannot_be_read_is_told_before_anything_is_sent(send: Send, service: Recorder, tmp_path: Path) -> None:
    config = Path(service.config)
    config.write_text(config.read_text().replace("sqlite:///mm4.db", "sqlite:///none/mm4.db"))
    done = send("--to", NORTH, "--text", "x", "--wait", "5s")
    assert (done.code, service.taken) == (78, [])
    assert "none/mm4.db" in done.err


def test_a_store_that_fails_later_does_not_lose_the_id(
    send: Send, service: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise StoreError("store away")

    monkeypatch.setattr("mm4.store.store.Store.trace", broken)
    done = send("--to", NORTH, "--text", "x", "--wait", "1s", "--json")
    assert (done.code, done.json["refused"], done.err) == (70, {}, "mm4: store away\n")
    assert done.json["message_id"].encode() in service.taken[0].content


def test_an_interrupt_ends_the_waiting_and_not_the_answer(
    send: Send, service: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mm4.compose.outcome.time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted))
    done = send("--to", NORTH, "--text", "x", "--wait", "50s", "--json")
    assert (done.code, done.err, states(done)) == (1, "", {NORTH: ("waiting", None)})


def test_progress_is_for_terminals_alone(service: Recorder) -> None:
    service.status, service.delay = {NORTH: "Ok"}, 1.0
    here, there = os.openpty()
    command = [sys.executable, "-m", "mm4", "send", "--config", service.config, "--from", "+491511000001", "--to", NORTH]
    with subprocess.Popen(
        [*command, "--text", "x", "--wait", "50s"], stdout=subprocess.PIPE, stderr=there, env=os.environ | {"TERM": "xterm"}
    ) as running:
        os.close(there)
        shown = b""
        while True:
            try:
                shown += os.read(here, 10_000)
            except OSError:
                break
        out, _ = running.communicate(timeout=60)
    os.close(here)
    assert running.returncode == 0
    assert f"0 of 1 answered, waiting for {NORTH} (north)".encode() in shown
    assert b"\x1b" not in out
    assert out.decode().splitlines()[1:] == [f"{NORTH}  north  answered  Ok"]


def test_the_last_row_of_a_recipient_holds_and_reports_are_left_out() -> None:
    def row(**more: Any) -> dict[str, Any]:
        return {"transaction_id": "t", "message_id": "m", "type": "MM4_forward.REQ", "recipient": NORTH, "peer": "north",
                "state": "answered", "status": "Error-unspecified", **more}  # fmt: skip

    class Rows:
        def trace(self, identifier: str) -> list[dict[str, Any]]:
            return [row(), row(status="Ok"), row(type="MM4_delivery_report.REQ", transaction_id="r", status="Bad")]

    rows: Any = Rows()
    assert outcomes(rows, "m", ["+44 7700 900101", OTHER]) == (
        Outcome("+44 7700 900101", "north", "answered", "Ok"), Outcome(OTHER),
    )  # fmt: skip
    assert outcomes(rows, "r", [NORTH]) == (Outcome(NORTH, "north", "answered", "Bad"),)


@pytest.mark.parametrize(("state", "status", "final", "ok"), [
    (None, None, False, False), ("recorded", None, False, False), ("waiting", None, False, False),
    ("accepted", None, True, True), ("ended", None, True, True), ("suppressed", None, True, True),
    ("answered", "Ok", True, True), ("answered", "Error-unspecified", True, False), ("answered", None, True, False),
    ("refused", "Error-service-denied", True, False), ("bounced", "5.1.1", True, False), ("new word", None, False, False),
])  # fmt: skip
def test_what_each_state_means(state: str | None, status: str | None, final: bool, ok: bool) -> None:
    outcome = Outcome(NORTH, "north", state, status)
    assert (outcome.final, outcome.ok) == (final, ok)


def test_a_store_that_is_busy_for_a_moment_is_asked_again() -> None:
    answers: list[Any] = [StoreError("busy"), (Outcome(NORTH),), StoreError("busy"), (Outcome(NORTH, "north", "accepted"),)]
    seen: list[Any] = []

    def look() -> tuple[Outcome, ...]:
        answer = answers.pop(0)
        if isinstance(answer, StoreError):
            raise answer
        return answer  # type: ignore[no-any-return]

    assert wait(look, 50, seen.append) == (Outcome(NORTH, "north", "accepted"),)
    assert len(seen) == 2
    answers.append(StoreError("busy"))
    with pytest.raises(StoreError, match="busy"):
        wait(look, 0)


def test_it_says_its_address_and_asks_nobody_for_a_name(service: Recorder) -> None:
    assert service_at(service.port).submit(hello(), "+491511000001", [NORTH]) == {}
    assert service.taken[0].helo == "[127.0.0.1]"
