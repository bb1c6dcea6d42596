"""The timers' loops, with a real store and a clock that a test turns: on time, in bounds, never in the way."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fake import CONFIG
from mm4.gateway.config import Config
from mm4.gateway.configfile import parse_config
from mm4.postfix.backlog import Backlog, read_backlog
from mm4.postfix.paused import note
from mm4.postfix.purger import Purger
from mm4.postfix.spool import Spool
from mm4.postfix.timers import BATCH, LINES, Timers
from mm4.protocol.errors import PostfixError, StoreError, SubmissionError
from mm4.protocol.transaction import Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store.timers import Late

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
DUE = T0 + timedelta(minutes=10)
NUMBER = "+447700900101"
SENDER = "+491511000001/TYPE=PLMN@mms.gw.example"
COPY = b"X-Mms-Message-Type: MM4_forward.REQ\r\n\r\nbody\r\n"


def config(retry: int = 2) -> Config:
    return parse_config(CONFIG.replace("max_size: 1MB", f"ack: {{timeout: 10m, retry: {retry}}}"), "mm4.yaml", {})


class House:
    """Timers with everything around them."""

    def __init__(self, tmp_path: Path, store: Store | Any, **options: Any) -> None:
        self.store = store
        self.now = DUE + timedelta(seconds=1)
        self.spool = Spool(tmp_path / "spool", 10**9)
        self.spool.open()
        self.sent: list[tuple[str, ...]] = []
        self.failures = 0
        self.gate: asyncio.Event | None = None
        self.counted: Counter[tuple[str, str]] = Counter()
        self.told_of: list[tuple[str, str, str]] = []
        self.told_failures = 0
        self.timers = Timers(
            store=store, submitter=self, spool=self.spool, config=config(), host="gw", now=lambda: self.now,
            counters=self, told=self.told, **{"interval": 0.01, "sweep": 0.01, "nearer": 0.01, **options},
        )  # fmt: skip

    async def submit(self, mail_from: str, rcpt_to: str, message: bytes, envelope_id: str | None = None, notify: str | None = None) -> str:
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise SubmissionError("451 later")
        assert message == COPY
        self.sent.append((mail_from, rcpt_to, envelope_id, notify))
        return f"4B{len(self.sent)}"

    async def told(self, message: Message, transaction: Transaction, reason: str) -> None:
        if self.told_failures:
            self.told_failures -= 1
            raise SubmissionError("451 later")
        self.told_of.append((message.token, transaction.recipient, reason))

    def unanswered(self, peer: str, result: str) -> None:
        self.counted[peer, result] += 1

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            self.timers.start()
            try:
                await asyncio.wait_for(body(), 60)
            finally:
                begun = time.monotonic()
                await self.timers.stop()
                assert time.monotonic() - begun < 10

        asyncio.run(bounded())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/mm4.db", busy_seconds=5) as opened:
        yield opened


def kept(store: Store, count: int = 1, state: State = State.WAITING, peer: str = "north", **values: Any) -> str:
    token = secrets.token_hex(16)
    transactions = tuple(
        Transaction(f"t-{token[:8]}", f"m-{token[:8]}", "+491511000001", NUMBER if n == 0 else f"+44770091{n:05}", state=state, ack_requested=True, due_at=DUE)
        for n in range(count)
    )
    store.record(Message(token, Direction.OUT, peer, "MM4_forward.REQ", "4A", "gw", T0, transactions, **values)).result(30)
    return token


def state(store: Store, token: str) -> State:
    message = store.message(token)
    assert message is not None
    return message.transactions[0].state


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "mm4.timers" and r.levelno == level]


def test_what_became_due_is_overdue_logged_and_counted(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path, store)
    token = kept(store, peer="hub")
    house.now = DUE - timedelta(seconds=1)

    async def body() -> None:
        await asyncio.sleep(0.1)
        assert state(store, token) is State.WAITING
        house.now = DUE
        await until(lambda: state(store, token) is State.OVERDUE)

    house.run(body)
    assert house.counted == {("hub", "overdue"): 1}
    (line,) = lines(caplog, logging.WARNING)
    assert re.match(f'token={token} peer=hub type=MM4_forward.REQ .*recipient=\\{NUMBER} state=overdue reason="no RES in time"', line)


@pytest.mark.slow
def test_ten_thousand_at_once_are_summed_up_and_nobody_waits_for_them(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, store)
    for _ in range(10):
        kept(store, 1000, peer="hub")
    meanwhile = set()

    async def body() -> None:
        while (marked := house.counted["hub", "overdue"]) < 10_000:
            await asyncio.wrap_future(store.event(None, T0, "a token served meanwhile"))
            meanwhile.add(marked)
            await asyncio.sleep(0.01)

    house.run(body)
    assert store.counts() == {"out/overdue": 10_000}
    warnings = lines(caplog, logging.WARNING)
    assert len(warnings) <= LINES + 1
    assert 'overdue="and others"' in warnings[-1]
    # Other writes went between the batches: none waited for all of them.
    assert len(meanwhile) > 10
    assert all(marked % BATCH == 0 for marked in meanwhile)


def test_a_copy_is_sent_as_the_first_time_and_the_next_look_is_later(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        await until(lambda: state(store, token) is State.WAITING and house.sent)
        await asyncio.sleep(0.1)

    house.run(body)
    becomes = f"{NUMBER}/TYPE=PLMN@mms.north.example.via-north.mm4.invalid"
    assert house.sent == [(SENDER, becomes, token, "FAILURE")]
    message = store.message(token)
    assert message is not None
    assert message.transactions[0].due_at == house.now + timedelta(minutes=20)
    assert house.counted == {("north", "overdue"): 1, ("north", "again"): 1}
    assert house.spool.tokens() == [token]


def test_after_the_last_attempt_the_originator_is_told_once(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        for attempt in (1, 2):
            await until(lambda n=attempt: len(house.sent) == n and state(store, token) is State.WAITING)
            house.now += timedelta(hours=1)
        await until(lambda: house.told_of)
        await until(lambda: not house.spool.tokens())
        house.now += timedelta(days=1)
        await asyncio.sleep(0.1)

    house.run(body)
    assert house.told_of == [(token, NUMBER, "no RES in time; sent again 2 of 2 times")]
    assert state(store, token) is State.FAILED
    assert house.counted["north", "failed"] == 1
    assert len(house.sent) == 2


def test_an_originator_who_could_not_be_told_is_told_later_and_counted_once(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    house.told_failures = 2
    kept(store, expires_at=T0)

    async def body() -> None:
        while not house.told_of:
            house.now += timedelta(minutes=1)
            await asyncio.sleep(0.02)

    house.run(body)
    assert len(house.told_of) == 1
    assert house.counted == {("north", "failed"): 1}


def test_without_a_copy_nothing_is_sent(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)

    async def body() -> None:
        await until(lambda: house.counted["north", "unsent"])
        house.now += timedelta(days=1)
        await asyncio.sleep(0.1)

    house.run(body)
    assert state(store, token) is State.OVERDUE
    assert house.sent == []
    assert house.counted == {("north", "overdue"): 1, ("north", "unsent"): 1}


def test_a_postfix_that_does_not_take_it_gets_the_same_attempt_later_and_is_said_once(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, store)
    house.failures = 3
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        while not house.sent:
            house.now += timedelta(seconds=31)
            await asyncio.sleep(0.03)
        await until(lambda: state(store, token) is State.WAITING)

    house.run(body)
    message = store.message(token)
    assert message is not None
    assert message.transactions[0].attempts == 1
    assert house.counted["north", "unsent"] == 3
    assert len(lines(caplog, logging.ERROR)) == 1


def test_a_copy_whose_note_fails_is_not_sent_a_second_time_for_that(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)
    tried: list[datetime] = []
    note_sent = store.sent_again

    def fails(late: Late, at: datetime, queue_id: str | None, due_at: datetime) -> Future[bool]:
        tried.append(at)
        if len(tried) < 4:
            failed: Future[bool] = Future()
            failed.set_exception(StoreError("gone"))
            return failed
        return note_sent(late, at, queue_id, due_at)

    store.sent_again = fails  # type: ignore[method-assign]

    async def body() -> None:
        # The store gives it again when the claim is over, which is before its RES would be overdue.
        for number in (1, 2, 3):
            await until(lambda n=number: len(tried) == n)
            house.now += timedelta(minutes=3)
        await until(lambda: state(store, token) is State.WAITING)

    house.run(body)
    assert len(house.sent) == 1
    # It is noted with its own time, however late.
    assert len(set(tried)) == 1
    message = store.message(token)
    assert message is not None
    assert message.transactions[0].attempts == 1
    assert house.counted == {("north", "overdue"): 1, ("north", "again"): 1}


def test_a_clock_stepped_back_and_far_ahead_neither_spins_nor_repeats(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store, peer="hub")
    looks = 0
    any_due = store.any_due

    def counting(now: datetime) -> bool:
        nonlocal looks
        looks += 1
        return any_due(now)

    store.any_due = counting  # type: ignore[method-assign]

    house.now = T0 - timedelta(days=365)

    async def body() -> None:
        begun = time.monotonic()
        await asyncio.sleep(0.5)
        # Two loops that look, each at most once a breath.
        assert looks <= 2 * ((time.monotonic() - begun) / 0.05 + 2)
        assert state(store, token) is State.WAITING
        house.now = T0 + timedelta(days=3650)
        await until(lambda: state(store, token) is State.OVERDUE)
        house.now = T0
        await asyncio.sleep(0.1)

    house.run(body)
    assert house.counted == {("hub", "overdue"): 1}


def test_what_waits_when_the_clock_is_set_back_is_overdue_in_its_time_and_said_once(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, store)
    tokens = [kept(store, peer="hub") for _ in range(BATCH + 20)]
    house.now = T0 - timedelta(days=1)

    async def body() -> None:
        await until(lambda: lines(caplog, logging.WARNING))
        house.now += timedelta(seconds=599)
        await asyncio.sleep(0.1)
        assert store.counts() == {"out/waiting": len(tokens)}
        house.now += timedelta(seconds=2)
        await until(lambda: store.counts() == {"out/overdue": len(tokens)})

    house.run(body)
    assert lines(caplog, logging.WARNING)[0] == f'clock="set back" due_sooner={len(tokens)}'
    assert house.counted == {("hub", "overdue"): len(tokens)}


class Sick:
    """A store that is not there until it is."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.well = False

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if self.well:
                return getattr(self.store, name)(*arguments)
            if name in ("ahead", "any_due", "any_to_send", "awaited", "message"):
                raise StoreError("no disk")
            future: Future[Any] = Future()
            future.set_exception(StoreError("no disk"))
            return future

        return call


def test_a_store_that_fails_is_said_once_and_asked_again(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    sick = Sick(store)
    house = House(tmp_path, sick)
    token = kept(store, peer="hub")
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        await asyncio.sleep(0.5)
        sick.well = True
        await until(lambda: state(store, token) is State.OVERDUE)

    house.run(body)
    said = lines(caplog, logging.ERROR)
    assert sorted(line.partition(" ")[0] for line in said) == ["timer=mark", "timer=nearer", "timer=send", "timer=sweep"]


def test_a_stop_while_a_copy_is_under_way_is_prompt_and_the_copy_is_not_forgotten(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        house.gate = asyncio.Event()
        await until(lambda: (m := store.message(token)) and m.transactions[0].attempts == 1)

    house.run(body)
    assert house.sent == []
    again = House(tmp_path, store)
    again.now += timedelta(minutes=3)

    async def later() -> None:
        await until(lambda: state(store, token) is State.WAITING)

    again.run(later)
    assert len(again.sent) == 1
    message = store.message(token)
    assert message is not None
    assert message.transactions[0].attempts == 1


def test_copies_that_nobody_needs_go(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    house.now = T0
    waiting, done, unknown = kept(store), kept(store, state=State.BOUNCED), secrets.token_hex(16)
    for token in (waiting, done, unknown):
        house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        await until(lambda: len(house.spool.tokens()) == 1)

    house.run(body)
    assert house.spool.tokens() == [waiting]


def test_a_reload_changes_quota_and_retries(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)
    house.timers.update(config(retry=0))

    async def body() -> None:
        await until(lambda: state(store, token) is State.OVERDUE)
        await until(lambda: not house.spool.tokens())

    house.run(body)
    assert house.sent == []


# -- what is still in the queue


def lying(queue_id: str, recipient: str = NUMBER, peer: str = "north") -> dict[str, Any]:
    """One message as `postqueue -j` tells it."""
    address = f"{recipient}/TYPE=PLMN@mms.north.example.via-{peer}.mm4.invalid"
    return {"queue_id": queue_id, "recipients": [{"address": address, "delay_reason": "no route"}]}


def test_what_is_old_leaves_the_store_and_a_reload_says_what_is(tmp_path: Path, store: Store) -> None:
    old = kept(store, state=State.ANSWERED, accepted_at=T0)
    with store._database.engine("migrator").begin() as connection:
        connection.exec_driver_sql("UPDATE transactions SET due_at = NULL")
    purger = Purger(store, lambda: T0 + timedelta(days=50), timedelta(days=90), pause=0.01)
    house = House(tmp_path, store, purger=purger)

    async def body() -> None:
        await asyncio.sleep(0.3)
        assert store.message(old) is not None
        house.timers.update(parse_config(CONFIG + "retention: 40d\n", "mm4.yaml", {}))
        await until(lambda: store.message(old) is None)

    house.run(body)


def test_a_peer_that_is_away_gets_one_copy_and_the_originator_hears_nothing(tmp_path: Path, store: Store) -> None:
    looks, queue = [], [lying("4A")]

    def look(_: Config) -> Backlog:
        looks.append(1)
        return Backlog(queue)

    house = House(tmp_path, store, look=look)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        await until(lambda: house.counted["north", "overdue"])
        for _ in range(20):
            house.now += timedelta(hours=1)
            await asyncio.sleep(0.06)
        assert house.sent == house.told_of == []
        assert looks
        queue.clear()
        while not house.sent:
            house.now += timedelta(hours=1)
            await asyncio.sleep(0.06)

    house.run(body)
    assert house.told_of == []


def test_a_queue_that_cannot_be_read_sends_nothing(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def look(_: Config) -> Backlog:
        raise PostfixError("postqueue: no queue")

    house = House(tmp_path, store, look=look)
    house.spool.keep(kept(store), SENDER, COPY)

    async def body() -> None:
        await until(lambda: lines(caplog, logging.ERROR))

    house.run(body)
    assert house.sent == []


def test_only_the_recipient_who_is_still_in_the_queue_waits_for_it() -> None:
    backlog = Backlog([lying("4A"), {"queue_id": "4R", "recipients": [{"address": "x@responder.mm4.invalid"}]}], ["hub"])
    assert backlog.hinders("north", NUMBER, ["4A", None]) == "still in Postfix's queue as 4A"
    assert backlog.hinders("north", NUMBER, ["4X", "4A"]) == "still in Postfix's queue as 4A"
    assert backlog.hinders("north", "+447700900102", ["4A"]) is None
    assert backlog.hinders("north", NUMBER, ["4R", None]) is None
    assert backlog.hinders("hub", NUMBER, [None, None]) == "hub is paused"


def test_the_backlog_is_that_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "postqueue"
    script.write_text(f"#!/bin/sh\n[ $2 = {tmp_path}/postfix ] && echo '{json.dumps(lying('4A'))}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    text = CONFIG + f"folders: {{state: {tmp_path}, postfix: {tmp_path}/postfix}}\n"
    here = parse_config(text, "mm4.yaml", {})
    note(here, "hub", T0)
    backlog = read_backlog(here)
    assert backlog.paused == {"hub"}
    assert backlog.hinders("north", NUMBER, ["4A"])


def test_a_reload_that_takes_the_peer_away_while_a_copy_is_under_way_changes_nothing_for_it(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store)
    token = kept(store)
    house.spool.keep(token, SENDER, COPY)

    async def body() -> None:
        house.gate = asyncio.Event()
        await until(lambda: (m := store.message(token)) and m.transactions[0].attempts == 1)
        await asyncio.sleep(0.1)
        lines = re.sub(r"(?s)  north:.*?(?=  tyntec:)", "", CONFIG).replace("peer: north", "peer: tyntec")
        house.timers.update(parse_config(lines, "mm4.yaml", {}))
        house.gate.set()
        await until(lambda: state(store, token) is State.WAITING)

    house.run(body)
    message = store.message(token)
    assert message is not None
    assert message.transactions[0].due_at == house.now + timedelta(minutes=20)
