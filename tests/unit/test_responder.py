"""The responder: answers go out once, after the commit, and nothing that reaches it is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mm4.gateway.configfile import parse_config
from mm4.gateway.routing import Router
from mm4.postfix.express import Express
from mm4.postfix.lmtp import Envelope
from mm4.postfix.postqueue import Postqueue
from mm4.postfix.responder import Responder, received_ids
from mm4.protocol.errors import PostfixError, Reply, StoreError, SubmissionError
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction

NOW = datetime(2024, 1, 1, tzinfo=UTC)
TOKEN = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
RES = Answer("system@peer.test.via-p1.mm4.invalid", "system-user@mms.test", "MM4_forward.RES", "Ok", b"RES\r\n")
TOP = b"Received: from id (x id NO [192.0.2.1])\r\n\tby gw.mms.test (Postfix) with ESMTPS id 4XyZ1\r\n\tfor <x>\r\n"
REQUEUED = b"Received: by gw.mms.test (Postfix, from userid 102)\r\n\tid 4AbC9; Mon, 1 Jan 2024\r\n"
BODY = TOP + b"Received: from peer with SMTP id OLD\r\nSubject: a\r\n\r\nid BODY\r\n"


def message(
    token: str = TOKEN, answer: Answer | None = RES, recipients: tuple[str, ...] = ("+447700900101",)
) -> Message:
    transactions = tuple(Transaction("T-1", "m-1", "+447700900109", recipient) for recipient in recipients)
    return Message(token, Direction.IN, "tyntec", "MM4_forward.REQ", "4XyZ1", "gw", NOW, transactions, answer=answer)


CONFIG = """\
local:
  domain: mms.test
  system_address: system-user@mms.test
  numbers: ["+4915110"]
  clients: [127.0.0.1/32]
  deliver_to: "{number}@mmsc.test"
  next_hop: "[127.0.0.1]:2600"
peers:
  tyntec:
    domains: [peer.test]
    networks: [192.0.2.10/32]
    next_hop: "[192.0.2.10]:25"
routes:
  - {prefix: "+", peer: tyntec}
"""


class FakeStore:
    """The store's few methods in memory; `faults` names methods that fail, and how often."""

    def __init__(self, *messages: Message) -> None:
        self.messages = {m.token: m for m in messages}
        self.calls: list[tuple[Any, ...]] = []
        self.faults: Counter[str] = Counter()
        self.hang: set[str] = set()
        self.release = threading.Event()

    def message(self, token: str) -> Message | None:
        if "message" in self.hang:
            self.release.wait(30)
        self._fault("message")
        return self.messages.get(token)

    def returned(self, transaction_id: str, message_id: str | None, direction: Direction) -> tuple[Message, ...]:
        return tuple(
            message
            for message in self.messages.values()
            if message.direction is direction
            and any(
                t.transaction_id == transaction_id and message_id in (None, t.message_id) for t in message.transactions
            )
        )

    def record(self, message: Message) -> Future[None]:
        future = self._write("record", message.token)
        if not future.exception():
            self.messages[message.token] = message
        return future

    def accepted(self, token: str, at: datetime, queue_id: str | None = None) -> Future[bool]:
        return self._write("accepted", token, queue_id, change={"accepted_at": at})

    def answered(self, token: str, at: datetime, answer_queue_id: str | None) -> Future[bool]:
        return self._write("answered", token, answer_queue_id, change={"answered_at": at})

    def bounced(
        self, token: str, recipient: str | None, status: str, detail: str, at: datetime, queue_id: str | None
    ) -> Future[int]:
        return self._write("bounced", token, recipient, status, detail, queue_id)

    def event(
        self, token: str, at: datetime, what: str, queue_id: str | None = None, detail: str | None = None
    ) -> Future[None]:
        return self._write("event", token, what, queue_id, detail)

    def _fault(self, name: str) -> None:
        if self.faults[name]:
            self.faults[name] -= 1
            raise StoreError(f"{name} cannot")

    def _write(self, name: str, token: str, *values: Any, change: dict[str, Any] | None = None) -> Future[Any]:
        future: Future[Any] = Future()
        if name in self.hang:
            return future
        try:
            self._fault(name)
        except StoreError as error:
            future.set_exception(error)
            return future
        self.calls.append((name, token, *values))
        if change:
            self.messages[token] = dataclasses.replace(self.messages[token], **change)
        future.set_result(True)
        return future


class FakeSubmitter:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes]] = []
        self.envelope_ids: list[str | None] = []
        self.failures = 0
        self.tries = 0
        self.gate: asyncio.Event | None = None

    async def submit(self, mail_from: str, rcpt_to: str, message: bytes, envelope_id: str | None = None) -> str:
        self.tries += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise SubmissionError("451 later")
        self.sent.append((mail_from, rcpt_to, message))
        self.envelope_ids.append(envelope_id)
        return f"Q{len(self.sent)}"

    async def within(self, work: Callable[[Any], Any]) -> Any:
        loop = asyncio.get_running_loop()

        def submit(*values: Any) -> str:
            return asyncio.run_coroutine_threadsafe(self.submit(*values), loop).result()

        return await asyncio.to_thread(work, submit)


def router_of(domain: str, text: str = CONFIG) -> Router:
    return Router(parse_config(text.replace("mms.test", domain), "mm4.yaml"))


@pytest.fixture(autouse=True, params=["step by step", "in one turn"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test twice: what holds for an answer holds however it goes."""
    monkeypatch.setattr(House, "in_one_turn", request.param == "in one turn")


class House:
    """A responder with everything around it faked."""

    in_one_turn = False

    def __init__(self, tmp_path: Path, *messages: Message, **options: Any) -> None:
        self.store = FakeStore(*messages)
        self.submitter = FakeSubmitter()
        self.flushed: list[str] = []
        self.counted: Counter[str] = Counter()
        self.flush_failures = 0
        self.unclaimed = tmp_path / "unclaimed"
        values = {"retry_seconds": 0.2, "pause_seconds": 0.01, "flush_seconds": 0.02} | options
        self.responder = Responder(
            store=self.store,
            submitter=self.submitter,
            router=router_of("MMS.test"),
            unclaimed=self.unclaimed,
            flush=self.flush,
            now=lambda: NOW,
            counters=self,
            express=self.express(values) if self.in_one_turn else None,
            **values,
        )

    def express(self, values: dict[str, Any]) -> Express:
        bounds = {"seconds": values.get("submit_seconds", 5.0), "note_seconds": values.get("store_seconds", 5.0)}
        return Express(self.store, self.submitter, now=lambda: NOW, **bounds)

    def answer(self, result: str) -> None:
        self.counted[f"answer {result}"] += 1

    def bounce(self, action: str) -> None:
        self.counted[f"bounce {action}"] += 1

    def notice(self, type: str, status: str) -> None:
        self.counted[f"notice {type} {status}"] += 1

    async def flush(self, domain: str) -> None:
        self.flushed.append(domain)
        if self.flush_failures:
            self.flush_failures -= 1
            raise PostfixError("mail system is down")

    async def give(self, *recipients: str, data: bytes = BODY, mail_from: str = "a@b.test") -> list[int]:
        envelope = Envelope(mail_from, list(recipients), len(data))
        replies = await self.responder.deliver(envelope, data)
        assert all(isinstance(reply, Reply) for reply in replies)
        return [reply.code for reply in replies]

    def kept(self) -> list[bytes]:
        return [path.read_bytes() for path in self.unclaimed.glob("new/*")]


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def to(token: str) -> str:
    return f"{token}@responder.mm4.invalid"


def test_an_answer_that_is_due_goes_out_and_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mm4.responder")
    house = House(tmp_path, message())
    run(lambda: check(house.give(to(TOKEN)), [250]))
    assert house.submitter.sent == [(RES.mail_from, RES.rcpt_to, RES.message)]
    assert house.submitter.envelope_ids == [f"{TOKEN}.answer"]
    assert house.store.calls == [("answered", TOKEN, "Q1")]
    (line,) = caplog.messages
    assert line.startswith(
        f"queue_id=4XyZ1 token={TOKEN} peer=tyntec answer=MM4_forward.RES status=Ok submitted=Q1 reply=250 ms="
    )


async def check(giving: Awaitable[list[int]], codes: list[int]) -> None:
    assert await giving == codes


def test_an_answer_that_is_out_is_not_sent_again(tmp_path: Path) -> None:
    house = House(tmp_path, dataclasses.replace(message(), answered_at=NOW, answer_queue_id="Q0"))
    run(lambda: check(house.give(to(TOKEN)), [250]))
    assert (house.submitter.sent, house.store.calls) == ([], [])
    assert house.counted == {"answer already": 1}


def test_a_message_that_asked_for_nothing_is_only_accepted(tmp_path: Path) -> None:
    house = House(tmp_path, message(answer=None))
    run(lambda: check(house.give(to(TOKEN)), [250]))
    assert (house.submitter.sent, house.store.calls) == ([], [("accepted", TOKEN, "4XyZ1")])


@pytest.mark.parametrize("local", [OTHER, "x", '"a b"', TOKEN + "0", "../../etc"])
def test_an_unknown_token_is_taken_and_nothing_else_happens(tmp_path: Path, local: str) -> None:
    house = House(tmp_path, message())
    run(lambda: check(house.give(to(local)), [250]))
    assert (house.submitter.sent, house.store.calls, house.kept()) == ([], [], [])


def test_another_queue_id_is_forged_and_nothing_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path, message())
    run(lambda: check(house.give(to(TOKEN), data=BODY.replace(b"4XyZ1", b"4XyZ2")), [250]))
    assert (house.submitter.sent, house.store.calls) == ([], [])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "forged" in caplog.text


@pytest.mark.parametrize("data", [b"", b"Subject: x\r\n\r\nReceived: by x id NO\r\n", b"\xff" * 5000])
def test_without_a_received_header_the_queue_id_is_unknown_and_the_answer_goes(tmp_path: Path, data: bytes) -> None:
    house = House(tmp_path, message())
    run(lambda: check(house.give(to(TOKEN), data=data), [250]))
    assert len(house.submitter.sent) == 1


@pytest.mark.parametrize(
    ("data", "queue_ids"),
    [
        (BODY, ["4XyZ1"]),
        (REQUEUED + BODY, ["4AbC9", "4XyZ1"]),
        (b"Received: by gw (Postfix, from userid 0)\r\n\tid ABC12; Mon, 1 Jan\r\n\r\n", ["ABC12"]),
        (b"Return-Path: <>\nRECEIVED: by gw (Postfix)\n\tid ABC12; Mon\n\n", ["ABC12"]),
        (b"X-Received: by gw id NO\r\n\r\n", []),
        (b"Received: by gw\r\nX: id NO\r\n\r\n", []),
    ],
)
def test_the_topmost_queue_id(data: bytes, queue_ids: list[str]) -> None:
    assert received_ids(data) == queue_ids


def test_a_requeued_message_is_not_forged(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    run(lambda: check(house.give(to(TOKEN), data=REQUEUED + BODY), [250]))
    assert len(house.submitter.sent) == 1


def test_failures_that_pass_are_waited_for(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    house.submitter.failures = 2
    house.store.faults = Counter(message=2, answered=2)
    run(lambda: check(house.give(to(TOKEN)), [250]))
    assert len(house.submitter.sent) == 1  # the failing note did not send it again
    assert house.counted == {"answer retried": 2, "answer submitted": 1}
    assert house.store.calls == [("answered", TOKEN, "Q1")]


@pytest.mark.parametrize("fault", ["submit", "message"])
def test_failures_that_stay_are_451_after_the_retries(tmp_path: Path, fault: str) -> None:
    house = House(tmp_path, message(), retry_seconds=0.05)
    house.submitter.failures = 1000
    house.store.faults[fault] = 1000
    run(lambda: check(house.give(to(TOKEN)), [451]))
    assert house.submitter.sent == []
    if fault == "submit":
        assert house.submitter.tries > 1
        assert house.counted["answer deferred"] == 1


def test_an_answer_that_could_not_be_noted_is_not_sent_again_by_the_next_delivery(tmp_path: Path) -> None:
    house = House(tmp_path, message(), retry_seconds=0.03)
    house.store.faults["answered"] = 1000

    async def body() -> None:
        await check(house.give(to(TOKEN)), [451])
        house.store.faults.clear()
        await check(house.give(to(TOKEN)), [250])

    run(body)
    assert len(house.submitter.sent) == 1
    assert house.store.calls == [("answered", TOKEN, "Q1")]


def test_two_deliveries_of_a_token_at_once_send_one_answer(tmp_path: Path) -> None:
    house = House(tmp_path, message())

    async def body() -> None:
        house.submitter.gate = asyncio.Event()
        jobs = [asyncio.create_task(house.give(to(TOKEN))) for _ in range(5)]
        await until(lambda: house.submitter.tries == 1)
        house.submitter.gate.set()
        assert await asyncio.gather(*jobs) == [[250]] * 5

    run(body)
    assert len(house.submitter.sent) == 1


def test_what_hangs_is_451_within_its_bound(tmp_path: Path) -> None:
    house = House(tmp_path, message(), retry_seconds=0.02, submit_seconds=0.03, store_seconds=0.03)

    async def body() -> None:
        house.submitter.gate = asyncio.Event()
        await check(house.give(to(TOKEN)), [451])
        house.submitter.gate = None
        house.store.hang = {"answered"}
        await check(house.give(to(TOKEN)), [451])
        house.store.hang = {"message"}
        await check(house.give(to(TOKEN)), [451])
        house.store.hang.clear()
        house.store.release.set()
        await check(house.give(to(TOKEN)), [250])

    run(body)
    assert len(house.submitter.sent) == 1


def test_each_recipient_gets_its_own_reply(tmp_path: Path) -> None:
    house = House(tmp_path, message(), message(OTHER, answer=None), retry_seconds=0.02)
    house.submitter.failures = 1000
    run(lambda: check(house.give(to(TOKEN), to(OTHER), "who@mms.test"), [451, 250, 250]))
    assert house.store.calls == [("accepted", OTHER, "4XyZ1")]
    assert len(house.kept()) == 1


def test_a_fault_of_ours_is_451_and_does_not_touch_the_neighbours(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    house.submitter.submit = None  # type: ignore[assignment,method-assign]  # any programming error
    run(lambda: check(house.give(to(TOKEN), to(OTHER)), [451, 250]))


def test_tokens_need_the_top_and_mail_needs_all(tmp_path: Path) -> None:
    responder = House(tmp_path).responder
    assert responder.wanted(Envelope("", [to(TOKEN), to(OTHER).upper()])) == 4096
    assert responder.wanted(Envelope("", [to(TOKEN), "a@mms.test"])) is None
    assert responder.rcpt(Envelope(""), "anything").code == 250


# --- bounces and other mail


def report(*groups: tuple[str, str, str], envelope_id: str | None = TOKEN) -> bytes:
    top = "Reporting-MTA: dns; gw\r\n" + (f"Original-Envelope-Id: {envelope_id}\r\n" if envelope_id else "")
    blocks = [
        f"\r\nFinal-Recipient: rfc822; {who}\r\nAction: {action}\r\nStatus: {status}\r\nDiagnostic-Code: smtp; no\r\n"
        for who, action, status in groups
    ]
    return (
        "Received: by gw (Postfix)\r\n\tid DSN1; Mon\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: message/delivery-status\r\n\r\n" + top + "".join(blocks) + "\r\n"
        "--b\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Mms-Message-ID: m-1\r\n\r\n--b--\r\n"
    ).encode()


@pytest.mark.parametrize("local", [TOKEN, TOKEN.upper(), "+447700900109/TYPE=PLMN"])
def test_a_bounce_is_noted_for_each_recipient(tmp_path: Path, local: str) -> None:
    house = House(tmp_path, message(recipients=("+447700900101", "+447700900102", "12345", "+447700900103")))
    data = report(
        ("+447700900102/TYPE=PLMN@peer.test.via-p1.mm4.invalid", "failed", "5.1.1"),
        ("447700900101@mmsc.test", "delayed", "4.4.1"),
        ("12345/TYPE=PLMN@peer.test", "relayed", "2.0.0"),
        ("someone@else.test", "failed", "5.0.0"),
        ("+447700900103/TYPE=PLMN@peer.test", "invented", ""),
    )
    run(lambda: check(house.give(f"{local}@mms.test", data=data, mail_from=""), [250]))
    assert house.store.calls == [
        ("bounced", TOKEN, "+447700900102", "5.1.1", "smtp; no", "DSN1"),
        ("event", TOKEN, "delayed", "DSN1", "+447700900101 4.4.1 smtp; no"),
        ("event", TOKEN, "relayed", "DSN1", "12345 2.0.0 smtp; no"),
        ("bounced", TOKEN, "someone@else.test", "5.0.0", "smtp; no", "DSN1"),
        ("event", TOKEN, "reported", "DSN1", "+447700900103 smtp; no"),
    ]
    assert house.counted == {"bounce failed": 2, "bounce delayed": 1, "bounce relayed": 1, "bounce other": 1}
    assert house.kept() == []


@pytest.mark.parametrize("recipients", [("+447700900101",), ("+447700900101", "+447700900102")])
def test_a_report_of_thousands_is_a_write_a_recipient_and_a_short_line(
    tmp_path: Path, recipients: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house = House(tmp_path, message(recipients=recipients))
    groups = [("+447700900101@peer.test", "delayed", "4.4.1"), *[("+447700900101@peer.test", "failed", "5.1.1")] * 3000]
    groups += [(f"{'x' * 500}{n}@else.test", "failed", "5.0.0") for n in range(50)] if len(recipients) > 1 else []
    run(lambda: check(house.give(f"{TOKEN}@mms.test", data=report(*groups), mail_from=""), [250]))
    # The failure counts and not the delay before it; of those whom nobody knows one is noted.
    assert [call[2] for call in house.store.calls if call[0] == "bounced"][:1] == ["+447700900101"]
    assert len(house.store.calls) == len(recipients)
    assert sum(house.counted.values()) == len(groups)
    (line,) = [r.getMessage() for r in caplog.records if "bounce" in r.getMessage() or "action=" in r.getMessage()]
    assert f"groups={len(groups)}" in line
    assert len(line) < 1500


def test_a_bounce_of_an_answer_is_one_event_whatever_it_repeats(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    data = report(*[("system@peer.test", "failed", "5.1.1")] * 100, envelope_id=f"{TOKEN}.answer")
    run(lambda: check(house.give("system-user@mms.test", data=data, mail_from=""), [250]))
    assert words(house) == ["event answer bounced"]


def test_the_only_recipient_is_meant_whatever_the_next_hop_called_it(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    data = report(("mailbox17@inside.mmsc.test", "failed", "5.2.2"))
    run(lambda: check(house.give(f"{TOKEN}@mms.test", data=data, mail_from=""), [250]))
    assert house.store.calls == [("bounced", TOKEN, "+447700900101", "5.2.2", "smtp; no", "DSN1")]


@pytest.mark.parametrize(
    ("recipient", "mail_from", "data"),
    [
        ("postmaster@mms.test", "a@b.test", BODY),
        ("postmaster@mms.test", "", BODY),
        ("postmaster@elsewhere.test", "", report(("a@b.test", "failed", "5.0.0"))),
        ("a@mms.test", "someone@b.test", report(("a@b.test", "failed", "5.0.0"))),
        ("a@mms.test", "", report(("a@b.test", "failed", "5.0.0"), envelope_id=OTHER)),
        ("a@mms.test", "", report(("a@b.test", "failed", "5.0.0"), envelope_id=None)),
        ("a@mms.test", "", report()),
        ("no-domain", "", b""),
    ],
)
def test_mail_that_is_no_bounce_of_ours_is_kept(tmp_path: Path, recipient: str, mail_from: str, data: bytes) -> None:
    house = House(tmp_path, message())
    run(lambda: check(house.give(recipient, data=data, mail_from=mail_from), [250]))
    assert house.store.calls == []
    (kept,) = house.kept()
    head = f"Return-Path: <{mail_from}>\nDelivered-To: {recipient}\n".encode()
    assert kept == head + data.replace(b"\r\n", b"\n")


def test_unclaimed_mail_that_cannot_be_kept_comes_again(tmp_path: Path) -> None:
    house = House(tmp_path, retry_seconds=0.03)
    house.unclaimed.write_text("a file where the folder should be")
    run(lambda: check(house.give("a@mms.test"), [451]))
    house.unclaimed.unlink()
    run(lambda: check(house.give("a@mms.test"), [250]))
    assert len(house.kept()) == 1


def test_a_reload_changes_what_is_local(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    house.responder.update(router_of("new.test"))
    data = report(("x", "failed", "5.1.1"))
    run(lambda: check(house.give(f"{TOKEN}@new.test", f"{TOKEN}@mms.test", data=data, mail_from=""), [250, 250]))
    assert [call[0] for call in house.store.calls] == ["bounced"]
    assert len(house.kept()) == 1


# --- what a bounce sets off

THEIRS, OURS = "+447700900101", "+491511000001"


def sent(token: str = TOKEN, *, type: str = "MM4_forward.REQ", answer: Answer | None = None) -> Message:
    transaction = Transaction("T-1", "m-1", OURS, THEIRS, State.WAITING, ack_requested=True, delivery_report=True)
    return Message(token, Direction.OUT, "tyntec", type, "4XyZ1", "gw", NOW, (transaction,), answer=answer, source="local")


def returned(type: str = "MM4_forward.REQ", client: str | None = "192.0.2.10", header: str = "X-Mms-Message-Type") -> bytes:
    """A bounce without ENVID, as another mail system makes it, brought in by a client."""
    data = report((f"{THEIRS}/TYPE=PLMN@peer.test", "failed", "5.1.1"), envelope_id=None)
    data = data.replace(b"X-Mms-Message-ID: m-1", f'X-Mms-Message-ID: "m-1"\r\nX-Mms-Transaction-ID: T-1\r\n{header}: {type}'.encode())
    if client is not None:
        data = data.replace(b"by gw (Postfix)", f"from mx.test (unknown [{client}])\r\n\tby gw (Postfix)".encode())
    return data


def words(house: House) -> list[str]:
    return [call[0] if call[0] != "event" else f"event {call[2]}" for call in house.store.calls]


def test_a_failed_message_is_told_its_originator_once_however_often_it_is_reported(tmp_path: Path) -> None:
    house = House(tmp_path, sent())
    data = report((f"{THEIRS}/TYPE=PLMN@peer.test.via-tyntec.mm4.invalid", "failed", "5.1.1"))

    async def body() -> None:
        await asyncio.gather(*(house.give(f"{OURS}/TYPE=PLMN@mms.test", data=data, mail_from="") for _ in range(3)))

    run(body)
    ((mail_from, rcpt_to, told),) = house.submitter.sent
    (token,) = house.submitter.envelope_ids
    assert (mail_from, rcpt_to) == (f"{token}@mms.test", f"{OURS}@mmsc.test")
    assert b"X-Mms-MM-Status-Code: Rejected\r\n" in told
    assert sorted(words(house)) == ["accepted", "bounced", "bounced", "bounced", "record"]
    assert house.counted["notice MM4_delivery_report.REQ Rejected"] == 1
    assert house.kept() == []


def test_a_refused_recipient_is_known_by_the_address_that_its_peer_was_given(tmp_path: Path) -> None:
    both = dataclasses.replace(sent().transactions[0], recipient="+447700900404")
    house = House(tmp_path, dataclasses.replace(sent(), transactions=(*sent().transactions, both)))
    text = CONFIG.replace("    domains: [peer.test]", '    domains: [peer.test]\n    addresses: {recipient: "{national}@{domain}"}')
    house.responder.update(router_of("mms.test", text))
    data = report(("07700900404@peer.test", "failed", "5.1.1"))
    run(lambda: check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250]))
    assert house.store.calls[0][:4] == ("bounced", TOKEN, "+447700900404", "5.1.1")


def test_a_notice_that_cannot_be_submitted_comes_again_the_same(tmp_path: Path) -> None:
    house = House(tmp_path, sent(), retry_seconds=0.03)
    house.submitter.failures = 1000
    data = report((f"{THEIRS}/TYPE=PLMN@peer.test", "failed", "5.1.1"))

    async def body() -> None:
        await check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [451])
        house.submitter.failures = 0
        await check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250])

    run(body)
    assert len(house.submitter.sent) == 1
    assert words(house).count("record") == 1


def test_a_bounce_of_a_notice_is_only_noted(tmp_path: Path) -> None:
    house = House(tmp_path, sent())
    data = report((f"{THEIRS}/TYPE=PLMN@peer.test", "failed", "5.1.1"))
    run(lambda: check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250]))
    (token,) = house.submitter.envelope_ids
    data = report((f"{OURS}@mmsc.test", "failed", "5.1.1"), envelope_id=token)
    run(lambda: check(house.give(f"{token}@mms.test", data=data, mail_from=""), [250]))
    assert len(house.submitter.sent) == 1
    assert house.store.calls[-1][:4] == ("bounced", token, OURS, "5.1.1")


def test_an_id_that_cannot_be_written_is_noted_and_told_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = dataclasses.replace(sent(), transactions=(dataclasses.replace(sent().transactions[0], message_id=""),))
    house = House(tmp_path, broken)
    data = report((f"{THEIRS}/TYPE=PLMN@peer.test", "failed", "5.1.1"))
    run(lambda: check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250]))
    assert words(house) == ["bounced"]
    assert "the originator cannot be told" in caplog.text


def test_a_bounce_of_our_answer_is_an_event_on_the_message_that_it_answers(tmp_path: Path) -> None:
    house = House(tmp_path, message())
    data = report(("system@peer.test.via-tyntec.mm4.invalid", "failed", "5.1.1"), envelope_id=f"{TOKEN}.answer")
    run(lambda: check(house.give("system-user@mms.test", data=data, mail_from=""), [250]))
    detail = "MM4_forward.RES to system@peer.test 5.1.1 smtp; no"
    assert house.store.calls == [("event", TOKEN, "answer bounced", "DSN1", detail)]
    assert house.counted == {"bounce failed": 1}
    assert house.kept() == []


@pytest.mark.parametrize("client", ["192.0.2.10", None])
@pytest.mark.parametrize("header", ["X-Mms-Message-Type", "X-Mms-MM1-Message-Type"])
def test_a_bounce_without_envid_is_known_by_the_ids_that_it_returns(
    tmp_path: Path, client: str | None, header: str
) -> None:
    house = House(tmp_path, sent(), message(OTHER))
    data = returned(client=client, header=header)
    run(lambda: check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250]))
    assert words(house) == ["bounced", "record", "accepted"]
    assert house.store.calls[0][1] == TOKEN


def test_a_returned_answer_is_that_of_the_message_that_came_in(tmp_path: Path) -> None:
    house = House(tmp_path, sent(), message(OTHER))
    data = returned("MM4_forward.RES")
    run(lambda: check(house.give("system-user@mms.test", data=data, mail_from=""), [250]))
    assert [call[:3] for call in house.store.calls] == [("event", OTHER, "answer bounced")]


@pytest.mark.parametrize(("above", "below", "told"), [
    ("tyntec", "", True), ("", "", False), ("tyntec", "north", False), ("", "tyntec", False),
])  # fmt: skip
def test_only_the_last_line_of_the_header_says_whose_a_bounce_is(tmp_path: Path, above: str, below: str, told: bool) -> None:
    """A queue id can be guessed: lines that came before the milter's, or in the body, are the client's."""
    house = House(tmp_path, sent())
    head, _, body = returned(client="192.0.2.99").partition(b"\r\n\r\n")
    line = "X-Mm4-Side: {} DSN1".format
    if above:
        head += f"\r\n{line(above)}".encode()
    data = head + (f"\r\n{line(below)}".encode() if above and below else b"") + b"\r\n\r\n"
    data += (f"{line(below)}\r\n".encode() if below and not above else b"") + body
    run(lambda: check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250]))
    assert bool(house.store.calls) is told


@pytest.mark.parametrize("client", ["192.0.2.99", "127.0.0.1"])
def test_who_did_not_get_a_message_cannot_bounce_it(tmp_path: Path, client: str) -> None:
    house = House(tmp_path, sent())
    run(lambda: check(house.give(f"{OURS}@mms.test", data=returned(client=client), mail_from=""), [250]))
    assert house.store.calls == []
    assert len(house.kept()) == 1


@pytest.mark.parametrize("type", ["MM4_read_reply_report.REQ", "nonsense"])
def test_a_copy_of_another_kind_is_no_bounce_of_it(tmp_path: Path, type: str) -> None:
    house = House(tmp_path, sent())
    run(lambda: check(house.give(f"{OURS}@mms.test", data=returned(type), mail_from=""), [250]))
    assert house.store.calls == []


def test_a_plain_bounce_is_about_the_recipients_that_it_names(tmp_path: Path) -> None:
    two = tuple(Transaction("T-1", "m-1", OURS, number, delivery_report=True) for number in (THEIRS, "+447700900102"))
    house = House(tmp_path, dataclasses.replace(sent(), transactions=two))
    data = (
        b"Received: from mx.test (unknown [192.0.2.10])\r\n\tby gw (Postfix) id DSN1\r\nSubject: failure notice\r\n\r\n"
        b"<+447700900102@peer.test>: no mailbox by that name (#5.1.1)\r\n\r\n"
        b"> X-Mms-Message-Type: MM4_forward.REQ\r\n> X-Mms-Transaction-ID: T-1\r\n> X-Mms-Message-ID: m-1\r\n"
    )
    run(lambda: check(house.give(f"{OURS}@mms.test", data=data, mail_from=""), [250]))
    assert words(house) == ["bounced", "record", "accepted"]
    assert house.store.calls[0][2:4] == ("+447700900102", "5.1.1")


POSTMASTER = CONFIG.replace("  numbers", "  postmaster_to: postmaster@office.test\n  numbers")


def test_mail_that_is_none_of_ours_goes_to_the_postmaster_from_nobody_once(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.responder.update(router_of("mms.test", POSTMASTER))
    run(lambda: check(house.give("a@mms.test"), [250]))
    mail = b"Delivered-To: a@mms.test\r\n" + BODY
    assert house.submitter.sent == [("", "postmaster@office.test", mail)]
    run(lambda: check(house.give("a@mms.test", data=b"Received: x\r\n" + mail), [250]))
    assert len(house.submitter.sent) == 1
    assert len(house.kept()) == 1


def test_mail_that_the_postmaster_cannot_get_now_comes_again(tmp_path: Path) -> None:
    house = House(tmp_path, retry_seconds=0.03)
    house.responder.update(router_of("mms.test", POSTMASTER))
    house.submitter.failures = 1000
    run(lambda: check(house.give("a@mms.test"), [451]))
    house.submitter.failures = 0
    run(lambda: check(house.give("a@mms.test"), [250]))
    assert len(house.submitter.sent) == 1
    assert house.kept() == []


def test_a_turn_that_took_too_long_is_not_taken_again(tmp_path: Path) -> None:
    house = House(tmp_path, message(), submit_seconds=0.05, store_seconds=0.1, retry_seconds=3.0)
    house.store.hang.add("answered")

    async def body() -> None:
        giving = asyncio.create_task(house.give(to(TOKEN)))
        await until(lambda: bool(house.submitter.sent))
        await asyncio.sleep(0.1)  # past the time of the turn
        house.store.hang.clear()
        await check(giving, [250])

    if house.in_one_turn:
        run(body)
        assert len(house.submitter.sent) == 1
        assert house.store.calls == [("answered", TOKEN, "Q1")]


# --- flushing


def test_the_queue_is_flushed_at_start_and_after_failures_only(tmp_path: Path) -> None:
    house = House(tmp_path, message(), message(OTHER, answer=None), retry_seconds=0)

    async def body() -> None:
        house.responder.start()
        await until(lambda: len(house.flushed) == 3)
        assert set(house.flushed) == {"responder.mm4.invalid", "maildir.mm4.invalid", "mms.test"}
        house.flushed.clear()
        await check(house.give(to(OTHER)), [250])
        house.submitter.failures = 1
        await check(house.give(to(TOKEN)), [451])
        assert house.flushed == []  # not at once: Postfix notes the deferral after our reply
        await until(lambda: house.flushed == ["responder.mm4.invalid"])
        await check(house.give(to(TOKEN)), [250])
        await house.responder.stop()
        assert house.flushed == ["responder.mm4.invalid"]

    run(body)


def test_a_flush_that_fails_is_repeated_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path)
    house.flush_failures = 6

    async def body() -> None:
        house.responder.start()
        await until(lambda: len(house.flushed) == 9)
        await house.responder.stop()

    run(body)
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 3  # one a domain


def test_stop_makes_waiting_retries_give_up(tmp_path: Path) -> None:
    house = House(tmp_path, message(), retry_seconds=60, pause_seconds=30)
    house.submitter.failures = 1000

    async def body() -> None:
        job = asyncio.create_task(house.give(to(TOKEN)))
        await until(lambda: house.submitter.tries == 1)
        await house.responder.stop()
        assert await job == [451]
        house.responder.close()

    run(body)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_postqueue_is_called_per_domain_and_its_errors_are_told(tmp_path: Path) -> None:
    good = script(tmp_path / "good", f'echo "$@" >> {tmp_path}/calls')
    bad = script(tmp_path / "bad", "echo 'mail system is down' >&2; exit 69")
    hangs = script(tmp_path / "hangs", "exec sleep 60")

    async def body() -> None:
        await Postqueue(Path("/etc/x"), program=good)("responder.mm4.invalid")
        await Postqueue(program=good)("mms.test")
        with pytest.raises(PostfixError, match="ended with 69: mail system is down"):
            await Postqueue(program=bad)("mms.test")
        with pytest.raises(PostfixError, match="took more than"):
            await Postqueue(program=hangs, timeout=0.05)("mms.test")
        with pytest.raises(PostfixError, match="cannot run"):
            await Postqueue(program=str(tmp_path / "none"))("mms.test")

    run(body)
    assert (tmp_path / "calls").read_text() == "-c /etc/x -s responder.mm4.invalid\n-s mms.test\n"


def test_postqueue_is_found_where_the_path_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "postqueue", f'echo "$@" >> {tmp_path}/calls')
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("mm4.postfix.instance._SBIN", str(tmp_path))

    async def body() -> None:
        await Postqueue()("mms.test")

    run(body)
    assert (tmp_path / "calls").read_text() == "-s mms.test\n"
