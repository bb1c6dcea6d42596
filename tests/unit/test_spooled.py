"""The responder keeps a copy of what may have to be sent again, before it says so, and no token waits for that."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mm4.gateway.configfile import parse_config
from mm4.gateway.routing import Router
from mm4.postfix.lmtp import Envelope
from mm4.postfix.responder import TOKEN_BYTES, Responder
from mm4.postfix.spool import Spool
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
TOKEN = "0123456789abcdef0123456789abcdef"
SENDER = "+491511000001/TYPE=PLMN@mms.gw.example"
TOP = b"Received: from mmsc (mmsc [127.0.0.1])\r\n\tby gw (Postfix) with ESMTP id 4XyZ1\r\n"
REQ = b"X-Mms-Message-Type: MM4_forward.REQ\r\n\r\n" + b"x" * 5000 + b"\r\n"
RES = Answer("system@mms.south.example.via-south.mm4.invalid", "", "MM4_forward.RES", "Ok", b"RES\r\n")


def outward(**values: Any) -> Message:
    transaction = Transaction(
        "t-1", "m-1", "+491511000001", "+447700900101", ack_requested=True, due_at=NOW + timedelta(minutes=10)
    )
    standard = {"direction": Direction.OUT, "peer": "north", "transactions": (transaction,)}
    return Message(**{"token": TOKEN, "type": "MM4_forward.REQ", "queue_id": "4XyZ1", "host": "gw", "recorded_at": NOW, **standard, **values})


def router(*retried: str) -> Router:
    """A gateway with these peers, to whom messages are sent again."""
    peers = "".join(
        f"  {name}: {{domains: [mms.{name}.example], networks: [192.0.2.{i}/32], next_hop: '[192.0.2.{i}]:25', ack: {{retry: 2}}}}\n"
        for i, name in enumerate(retried, 1)
    )
    text = (
        "local: {domain: mms.gw.example, system_address: system-user@mms.gw.example, numbers: ['+491511']}\n"
        + (f"peers:\n{peers}" if peers else "")
    )
    return Router(parse_config(text, "mm4.yaml"))


class House:
    """A responder and what it writes, in the order in which it does."""

    def __init__(self, tmp_path: Path, message: Message, quota: int = 10**6, retried: tuple[str, ...] = ("north",)) -> None:
        self.known = message
        self.steps: list[str] = []
        self.counted: Counter[str] = Counter()
        self.spool = Spool(tmp_path / "spool", quota)
        self.spool.open()
        self.responder = Responder(
            store=self, submitter=self, router=router(*retried), unclaimed=tmp_path / "unclaimed", flush=self.flush,
            now=lambda: NOW, counters=self, spool=self.spool, retry_seconds=0.1, pause_seconds=0.01,
        )  # fmt: skip

    def message(self, token: str) -> Message | None:
        return self.known if token == TOKEN else None

    def accepted(self, token: str, at: datetime, queue_id: str | None = None) -> Future[bool]:
        return self._wrote("accepted")

    def answered(self, token: str, at: datetime, answer_queue_id: str | None) -> Future[bool]:
        return self._wrote("answered")

    def _wrote(self, what: str) -> Future[bool]:
        self.steps.append(f"{what}, {len(self.spool.tokens())} copies")
        future: Future[bool] = Future()
        future.set_result(True)
        return future

    async def submit(self, mail_from: str, rcpt_to: str, message: bytes, envelope_id: str | None = None) -> str:
        self.steps.append(f"submitted, {len(self.spool.tokens())} copies")
        return "4B"

    async def flush(self, domain: str) -> None: ...

    def answer(self, result: str) -> None: ...

    def copy(self, result: str) -> None:
        self.counted[result] += 1

    def serve(self, mail_from: str = SENDER, data: bytes = TOP + REQ) -> int:
        """As LMTP does it: as much of the message as is wanted."""
        envelope = Envelope(mail_from, [f"{TOKEN}@responder.mm4.invalid"])
        wanted = self.responder.wanted(envelope)
        envelope.size = len(data)
        (reply,) = asyncio.run(self.responder.deliver(envelope, data if wanted is None else data[:wanted]))
        return reply.code


def test_a_copy_is_there_before_the_store_says_that_it_went(tmp_path: Path) -> None:
    house = House(tmp_path, outward())
    assert house.serve() == 250
    assert house.steps == ["accepted, 1 copies"]
    assert house.spool.read(TOKEN) == (SENDER, REQ)
    assert house.counted == {"kept": 1}


def test_of_a_message_in_transit_too_before_its_own_answer_goes(tmp_path: Path) -> None:
    house = House(tmp_path, outward(answer=RES))
    assert house.serve() == 250
    assert house.steps == ["submitted, 1 copies", "answered, 1 copies"]


def test_a_report_without_an_envelope_sender_is_copied(tmp_path: Path) -> None:
    house = House(tmp_path, outward(type="MM4_delivery_report.REQ"))
    assert house.serve("") == 250
    assert house.spool.read(TOKEN) == ("", REQ)


def changed(**values: Any) -> Message:
    message = outward()
    return dataclasses.replace(message, transactions=(dataclasses.replace(message.transactions[0], **values),))


@pytest.mark.parametrize(
    "message",
    [
        outward(peer="once"),
        outward(direction=Direction.IN),
        outward(accepted_at=NOW),
        changed(due_at=None),
        changed(state=State.ANSWERED, status="Ok"),
        changed(state=State.SUPPRESSED),
    ],
)
def test_nothing_else_is_copied(tmp_path: Path, message: Message) -> None:
    house = House(tmp_path, message)
    assert house.serve() == 250
    assert house.spool.tokens() == []
    assert house.counted == {}


@pytest.mark.parametrize(
    ("mail_from", "retried", "wanted"),
    [
        (SENDER, ("north",), None),
        ("", ("north",), None),
        (SENDER, (), TOKEN_BYTES),
        # Inward: the token is the sender. In transit between peers it is ours; a refused one keeps the peer's.
        (f"{TOKEN}@mms.gw.example", ("north",), TOKEN_BYTES),
        ("+447700900002/TYPE=PLMN@mms.north.example", ("north",), TOKEN_BYTES),
    ],
)
def test_only_what_may_need_a_copy_is_read_whole(
    tmp_path: Path, mail_from: str, retried: tuple[str, ...], wanted: int | None
) -> None:
    house = House(tmp_path, outward(), retried=retried)
    assert house.responder.wanted(Envelope(mail_from, [f"{TOKEN}@responder.mm4.invalid"])) == wanted


def test_what_was_cut_by_a_reload_between_is_no_copy(tmp_path: Path) -> None:
    house = House(tmp_path, outward(), retried=())
    envelope = Envelope(SENDER, [f"{TOKEN}@responder.mm4.invalid"], len(TOP + REQ))
    wanted = house.responder.wanted(envelope)
    house.responder.update(router("north"))
    (reply,) = asyncio.run(house.responder.deliver(envelope, (TOP + REQ)[:wanted]))
    assert reply.code == 250
    assert house.spool.tokens() == []


def test_no_token_waits_for_a_full_spool_or_a_broken_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = House(tmp_path / "full", outward(), quota=100)
    assert full.serve() == 250
    assert (full.counted, full.steps) == ({"full": 1}, ["accepted, 0 copies"])
    broken = House(tmp_path / "broken", outward())
    (tmp_path / "broken" / "spool").rmdir()
    assert broken.serve() == 250
    assert (broken.counted, broken.steps) == ({"error": 1}, ["accepted, 0 copies"])
