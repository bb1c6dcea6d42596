"""docs/states.md, walked: every edge of the page on a real store, and no edge of the store that the page lacks.

A situation is a state with what it depends on beside; each is reached by what really leads there. A driver is one thing
that may happen. Every driver is driven in every situation, also where nobody would.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fake import CONFIG, Gateway, Headers, req
from mm4.protocol.retry import Retry
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store.copies import PENDING
from mm4.store.timers import ABANDONED, Late

PAGE = (Path(__file__).parents[2] / "docs" / "states.md").read_text("utf-8")
T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
LATER = T0 + timedelta(hours=4)
"""When a driver drives: all that is due is over, and no message has expired."""
EXPIRY = T0 + timedelta(days=3)
EXPIRED = T0 + timedelta(days=4)
TIMEOUT, LIMIT = 600, 3
RETRY, NO_RETRY = {"north": Retry(TIMEOUT, LIMIT)}, {"north": Retry(TIMEOUT, 0)}
PASSING, DENIED = "Error-network-problem", "Error-service-denied"
IN, OUT = Direction.IN, Direction.OUT
OK = Answer("system@mms.north.example", "system@mms.gw.example", "MM4_forward.RES", "Ok", b"X-Mms-Request-Status-Code: Ok\r\n\r\n")


def section(name: str) -> list[list[str]]:
    """The cells of the one table below a heading of the page."""
    _, found, rest = PAGE.partition(f"\n## {name}\n")
    assert found, f"no section {name}"
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\|[ |-]+\|", lines[1]), "one table a section"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


class Life:
    """One transaction in a store of its own file; what happens to it happens at `now`."""

    def __init__(self, store: Store, direction: Direction) -> None:
        self.store, self.direction = store, direction
        self.token = secrets.token_hex(16)
        self.transaction_id = secrets.token_hex(4)
        self.now = T0
        self.written: list[Future[Any]] = []
        """What is on its way to the disk; waited for at the next look, so that many steps are one commit."""

    def record(self, state: State = State.RECORDED, *, ack: bool = True, **values: Any) -> None:
        due = T0 + timedelta(seconds=TIMEOUT) if self.direction is OUT and ack and state is State.RECORDED else None
        one = self.transaction(state=state, ack_requested=ack, due_at=due, **values)
        answer = OK if self.direction is IN and ack else None
        self.written.append(self.store.record(self.message(one, answer=answer)))

    def transaction(self, **values: Any) -> Transaction:
        return Transaction(self.transaction_id, "m-1", "+447700900101", "+491511000001", **values)

    def message(self, *transactions: Transaction, **values: Any) -> Message:
        standard: dict[str, Any] = {
            "token": self.token, "direction": self.direction, "peer": "north", "type": "MM4_forward.REQ", "queue_id": "4A",
            "host": "gw", "recorded_at": self.now, "source": "north" if self.direction is IN else "south", "expires_at": EXPIRY,
            "answer": None,
        }  # fmt: skip
        return Message(transactions=transactions, **{**standard, **values})

    @property
    def row(self) -> dict[str, Any] | None:
        """Everything that is kept of it; None where nothing is."""
        while self.written:
            self.written.pop().result(30)
        return next((row for row in self.store.whole(self.token) if row["token"] == self.token), None)

    @property
    def id(self) -> int:
        assert self.row is not None
        return int(self.row["id"])

    def late(self) -> Late:
        row = self.row
        assert row is not None
        return Late(row["id"], self.token, "north", row["type"], self.transaction_id, "m-1", row["recipient"], row["attempts"] or 0, State.OVERDUE, "attempt")

    def answer(self, status: str) -> Future[int]:
        return self.store.receive_answer("north", "MM4_forward.RES", self.transaction_id, "m-1", status, None, self.now, "4R", "gw")

    def second(self) -> Message:
        """The same REQ once more."""
        return self.message(self.transaction(ack_requested=True), token=secrets.token_hex(16), answer=OK)

    def used_up(self) -> None:
        """As if it had been sent again as often as the peer's entry says."""
        values = {"n": LIMIT, "token": self.token}
        statement = text("UPDATE transactions SET attempts = :n WHERE token = :token")
        self.written.append(self.store._write(lambda connection: connection.execute(statement, values)))

    def do(self, *names: str) -> Life:
        for name in names:
            self.written.append(DRIVERS[name](self))
        return self


# -- what happens: a name of the page, and the operation of the store

Driver = Callable[[Life], Future[Any]]
DRIVERS: dict[str, Driver] = {}


def drives(name: str) -> Callable[[Driver], Driver]:
    def keep(driver: Driver) -> Driver:
        assert name not in DRIVERS
        DRIVERS[name] = driver
        return driver

    return keep


@drives("accepted")
def _accepted(life: Life) -> Future[Any]:
    return life.store.accepted(life.token, life.now, "4A")


@drives("RES submitted")
def _res_submitted(life: Life) -> Future[Any]:
    return life.store.answered(life.token, life.now, "4B")


@drives("RES handed over")
def _res_handed_over(life: Life) -> Future[Any]:
    mail = life.message(token=secrets.token_hex(16), type="MM4_forward.RES", copy_of=life.token, answer=OK)
    life.store.record(mail).result(30)
    return life.store.answered(mail.token, life.now, "4C")


@drives("RES Ok")
def _res_ok(life: Life) -> Future[Any]:
    return life.answer("Ok")


@drives("RES error")
def _res_error(life: Life) -> Future[Any]:
    return life.answer(DENIED)


@drives("RES error that may pass")
def _res_passing(life: Life) -> Future[Any]:
    return life.answer(PASSING)


@drives("bounce")
def _bounce(life: Life) -> Future[Any]:
    return life.store.bounced(life.token, None, "5.1.1", "no such user", life.now, "4C")


@drives("other report")
def _other_report(life: Life) -> Future[Any]:
    return life.store.event(life.token, life.now, "delayed", "4D", "4.4.1")


def _time_over(life: Life, retries: dict[str, Retry]) -> Future[Any]:
    return life.store.overdue(life.now, 10, retries)


@dataclass(frozen=True)
class Way:
    """To the peer; a reason where it is not free."""

    reason: str | None

    def hinders(self, peer: str, recipient: str, queue_ids: Sequence[str | None]) -> str | None:
        return self.reason


def _copy_taken(life: Life, retries: dict[str, Retry], host: str = "gw") -> Future[Any]:
    return life.store.claim(life.now, 10, retries, host, Way(None))


@drives("time over")
def _time_over_with_attempts_left(life: Life) -> Future[Any]:
    return _time_over(life, RETRY)


@drives("time over, no retry")
def _time_over_without_retry(life: Life) -> Future[Any]:
    return _time_over(life, NO_RETRY)


@drives("time over, last")
def _time_over_after_the_last_attempt(life: Life) -> Future[Any]:
    life.used_up()
    return _time_over(life, RETRY)


@drives("time over, expired")
def _time_over_after_the_expiry(life: Life) -> Future[Any]:
    life.now = max(life.now, EXPIRED)
    return _time_over(life, RETRY)


@drives("copy taken")
def _copy_taken_with_attempts_left(life: Life) -> Future[Any]:
    return _copy_taken(life, RETRY)


@drives("copy taken, no retry")
def _copy_taken_without_retry(life: Life) -> Future[Any]:
    return _copy_taken(life, NO_RETRY)


@drives("copy taken, last")
def _copy_taken_after_the_last_attempt(life: Life) -> Future[Any]:
    life.used_up()
    return _copy_taken(life, RETRY)


@drives("copy taken, expired")
def _copy_taken_after_the_expiry(life: Life) -> Future[Any]:
    life.now = max(life.now, EXPIRED)
    return _copy_taken(life, RETRY)


@drives("copy held back")
def _copy_held_back(life: Life) -> Future[Any]:
    return life.store.claim(life.now, 10, RETRY, "gw", Way("the first copy is in the queue"))


@drives("copy taken, elsewhere")
def _copy_taken_by_another_host(life: Life) -> Future[Any]:
    life.now += ABANDONED + timedelta(hours=1)
    return _copy_taken(life, RETRY, "gw2")


@drives("copy sent")
def _copy_sent(life: Life) -> Future[Any]:
    return life.store.sent_again(life.late(), life.now, "4E", life.now + timedelta(seconds=TIMEOUT))


@drives("copy not sent")
def _copy_not_sent(life: Life) -> Future[Any]:
    return life.store.not_sent(life.late(), life.now, "Postfix is down", life.now + timedelta(seconds=30))


@drives("copy lost")
def _copy_lost(life: Life) -> Future[Any]:
    return life.store.not_sent(life.late(), life.now, "no copy was kept", None)


@drives("originator told")
def _originator_told(life: Life) -> Future[Any]:
    return life.store.settle([life.id])


@drives("retry by hand")
def _retry_by_hand(life: Life) -> Future[Any]:
    return life.store.hurry([life.id], life.now)


@drives("forget")
def _forget(life: Life) -> Future[Any]:
    return life.store.forget(life.token)


@drives("forget --force")
def _forget_by_force(life: Life) -> Future[Any]:
    return life.store.forget(life.token, force=True)


@drives("same again")
def _same_again(life: Life) -> Future[Any]:
    return life.store.record(life.second(), timedelta(days=1))


# -- situations: each is built by what leads there

Builder = Callable[[Life], object]


def start(state: State, *then: str, **values: Any) -> Builder:
    def build(life: Life) -> None:
        life.record(state, **values)
        for name in then:
            life.now += timedelta(hours=1) if name.startswith(("time", "copy taken")) else timedelta(seconds=1)
            life.do(name)

    return build


RECORDED = State.RECORDED
REFUSED, DUPLICATE, SUPPRESSED = State.REFUSED, State.DUPLICATE, State.SUPPRESSED
SITUATIONS: dict[tuple[str, Direction], list[Builder]] = {
    ("recorded", IN): [start(RECORDED)],
    ("recorded, no ack", IN): [start(RECORDED, ack=False)],
    ("accepted", IN): [start(RECORDED, "accepted")],
    ("accepted, no ack", IN): [start(RECORDED, "accepted", ack=False)],
    ("answered", IN): [
        start(RECORDED, "accepted", "RES submitted"),
        start(RECORDED, "RES submitted"),
        start(RECORDED, "accepted", "RES handed over"),
    ],
    ("refused", IN): [start(REFUSED, status=DENIED), start(REFUSED, "accepted", status=DENIED)],
    ("refused, answered", IN): [start(REFUSED, "RES submitted", status=DENIED)],
    ("bounced", IN): [start(RECORDED, "bounce"), start(RECORDED, "accepted", "bounce")],
    ("bounced, answered", IN): [
        start(RECORDED, "RES submitted", "bounce"),
        start(RECORDED, "bounce", "RES submitted"),
    ],
    ("duplicate", IN): [start(DUPLICATE), start(DUPLICATE, "accepted")],
    ("duplicate, answered", IN): [start(DUPLICATE, "RES submitted"), start(DUPLICATE, ack=False)],
    ("suppressed", IN): [start(SUPPRESSED), start(SUPPRESSED, "accepted")],
    ("suppressed, answered", IN): [start(SUPPRESSED, "RES submitted"), start(SUPPRESSED, ack=False)],
    ("ended", IN): [start(State.ENDED, ack=False)],
    ("recorded", OUT): [start(RECORDED)],
    ("recorded, no ack", OUT): [start(RECORDED, ack=False)],
    ("accepted, no ack", OUT): [start(RECORDED, "accepted", ack=False)],
    ("waiting", OUT): [
        start(RECORDED, "accepted"),
        start(RECORDED, "accepted", "time over", "copy taken", "copy sent"),
        start(RECORDED, "accepted", "RES error that may pass", "time over", "copy taken", "copy sent"),
    ],
    ("overdue", OUT): [start(RECORDED, "accepted", "time over, no retry")],
    ("overdue, due", OUT): [start(RECORDED, "accepted", "time over")],
    ("overdue, used up", OUT): [start(RECORDED, "accepted", "time over, last")],
    ("overdue, held back", OUT): [start(RECORDED, "accepted", "time over", "copy held back")],
    ("overdue, taken", OUT): [start(RECORDED, "accepted", "time over", "copy taken")],
    ("overdue, due, error", OUT): [start(RECORDED, "accepted", "RES error that may pass", "time over")],
    ("overdue, taken, error", OUT): [start(RECORDED, "accepted", "RES error that may pass", "time over", "copy taken")],
    ("failed, untold", OUT): [
        start(RECORDED, "accepted", "time over, last", "copy taken"),
        start(RECORDED, "accepted", "RES error that may pass", "time over, last"),
    ],
    ("failed", OUT): [start(RECORDED, "accepted", "time over, last", "copy taken", "originator told")],
    ("answered", OUT): [
        start(RECORDED, "accepted", "RES Ok"),
        start(RECORDED, "accepted", "RES error"),
        start(RECORDED, "RES Ok"),
        # No longer awaited: this error stands.
        start(RECORDED, "accepted", "RES error that may pass", "time over, no retry"),
    ],
    ("answered, may pass", OUT): [start(RECORDED, "accepted", "RES error that may pass")],
    ("bounced", OUT): [start(RECORDED, "bounce"), start(RECORDED, "accepted", "bounce")],
    ("bounced, answered", OUT): [start(RECORDED, "accepted", "RES Ok", "bounce")],
    ("duplicate", OUT): [start(DUPLICATE), start(DUPLICATE, "accepted")],
    ("suppressed", OUT): [start(SUPPRESSED, ack=False)],
    ("ended", OUT): [start(State.ENDED, ack=False)],
}  # fmt: skip
BUILDERS = [(name, direction, n) for (name, direction), builders in SITUATIONS.items() for n in range(len(builders))]


# -- what the page says


def situations(cell: str, direction: str) -> list[tuple[str, Direction]]:
    directions = [IN, OUT] if direction == "both" else [Direction(direction)]
    named = [(name, way) for name in quoted(cell) for way in directions]
    return named if named else [key for key in SITUATIONS if key[1] in directions and cell == "any"]


@dataclass(frozen=True)
class Edge:
    starts: tuple[tuple[str, Direction], ...]
    drivers: tuple[str, ...]
    to: str
    event: str | None
    due_at: str


def edge(start: str, direction: str, happens: str, to: str, event: str, due_at: str, told: str) -> Edge:
    assert told
    (state,) = quoted(to)
    return Edge(tuple(situations(start, direction)), tuple(quoted(happens)), state, (quoted(event) or [None])[0], due_at)


EDGES = [edge(*cells) for cells in section("Edges")]
NOTES = [(situations(c[0], c[1]), quoted(c[2]), quoted(c[3])) for c in section("Noted, and nothing more")]
LEADS = {(start, driver): edge for edge in EDGES for start in edge.starts for driver in edge.drivers}
NOTED = {(start, driver): set(events) for starts, drivers, events in NOTES for start in starts for driver in drivers}


@dataclass(frozen=True)
class Seen:
    """What a driver did to a situation; None for `after` where nothing is kept any more."""

    before: dict[str, Any]
    after: dict[str, Any] | None

    @property
    def state(self) -> str:
        return self.after["state"] if self.after else "gone"

    @property
    def events(self) -> list[str]:
        """The new ones."""
        return [event["what"] for event in self.after["events"][len(self.before["events"]) :]] if self.after else []

    @property
    def kept_events(self) -> list[str]:
        """Without what the message's own times say."""
        return [what for what in self.events if what != "accepted by Postfix" and not what.endswith("submitted")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One for all, as opening takes the most time: each life ends with `forget`, so that none meets another."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('states')}/mm4.db", busy_seconds=30) as opened:
        yield opened


def drive(store: Store, situation: tuple[str, Direction], builder: Builder, driver: str) -> Seen:
    life = Life(store, situation[1])
    builder(life)
    before = life.row
    assert before is not None
    assert before["state"] == situation[0].partition(",")[0]
    life.now = LATER
    after = life.do(driver).row
    store.forget(life.token, force=True).result(30)
    return Seen(before, after)


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.starts[0][1]} {e.starts[0][0]}: {e.drivers[0]}")
def test_a_row_of_the_page_happens(store: Store, edge: Edge) -> None:
    assert edge.starts
    assert edge.drivers
    for start, driver in itertools.product(edge.starts, edge.drivers):
        for builder in SITUATIONS[start]:
            seen = drive(store, start, builder, driver)
            where = f"{start}: {driver}"
            assert seen.state == edge.to, where
            if seen.after is None:
                continue
            assert (seen.events or [None])[-1] == edge.event, where
            due, before = seen.after["due_at"], seen.before["due_at"]
            assert edge.due_at in ("kept", "none", "set")
            assert {"kept": due == before, "none": due is None, "set": due not in (None, before)}[edge.due_at], where


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: f"{s[1]} {s[0]}")
def test_nothing_happens_that_the_page_has_no_row_for(store: Store, situation: tuple[str, Direction]) -> None:
    for builder, driver in itertools.product(SITUATIONS[situation], DRIVERS):
        seen = drive(store, situation, builder, driver)
        where = f"{situation}: {driver}"
        if (situation, driver) in LEADS:
            assert seen.state == LEADS[situation, driver].to, where
        else:
            assert seen.state == seen.before["state"], f"{where} leads to {seen.state}"
            assert set(seen.kept_events) <= NOTED.get((situation, driver), set()), where
        if (situation, driver) in NOTED:
            assert seen.kept_events, f"{where} notes nothing"
        if seen.after is None:
            continue
        counts = seen.after["attempts"] - seen.before["attempts"]
        if driver == "copy taken" and situation[0].startswith("overdue, due"):
            assert counts == 1, where
        elif driver == "retry by hand" and seen.events:
            assert counts == (-1 if seen.before["attempts"] else 0), where
        elif not driver.endswith("last"):
            assert counts == 0, where
        told = driver.startswith("RES") and seen.state == "answered" and "contradictory answer" not in seen.events
        bounced = driver == "bounce" and seen.state == "bounced" and seen.before["state"] not in ("answered", "bounced")
        assert told or bounced or seen.after["status"] == seen.before["status"], where
        assert not bounced or seen.after["status"] == "5.1.1", where


def test_each_row_stands_once() -> None:
    pairs = [(start, driver) for edge in EDGES for start in edge.starts for driver in edge.drivers]
    pairs += [(start, driver) for starts, drivers, _ in NOTES for start in starts for driver in drivers]
    assert len(pairs) == len(set(pairs))


def test_page_and_drivers_name_the_same() -> None:
    happens = section("What happens")
    assert set(itertools.chain.from_iterable(quoted(cells[0]) for cells in happens)) == set(DRIVERS)
    assert all(hasattr(Store, quoted(cells[2])[0]) for cells in happens)
    assert {name for name, _ in SITUATIONS} - {state.value for state in State} == {
        quoted(cells[0])[0] for cells in section("Finer than states")
    }
    assert set(LEADS) | set(NOTED) <= {(start, driver) for start in SITUATIONS for driver in DRIVERS}


def test_the_page_has_every_state_and_says_in_which_direction() -> None:
    written = {quoted(cells[0])[0]: cells[1] for cells in section("States")}
    assert set(written) == {state.value for state in State}
    ways: dict[str, set[str]] = {state: set() for state in written}
    for (name, direction), builders in SITUATIONS.items():
        if builders and name != "ended":
            ways[name.partition(",")[0]].add(direction.value)
    assert written == {s: {2: "both", 1: next(iter(w), ""), 0: "none"}[len(w)] for s, w in ways.items()}


def test_what_the_page_says_of_each_state_is_kept_so(store: Store) -> None:
    """`status`, `due_at` and `attempts` of what is there: the page's `none` and `0` are so in every situation."""
    page = {quoted(cells[0])[0]: cells for cells in section("States")}
    for (name, direction), builders in SITUATIONS.items():
        _, _, _, _, status, due_at, attempts = page[name.partition(",")[0]]
        for builder in builders:
            life = Life(store, direction)
            builder(life)
            row = life.row
            assert row is not None
            where = f"{direction} {name}"
            store.forget(life.token, force=True).result(30)
            assert status != "none" or row["status"] is None, where
            assert due_at != "none" or row["due_at"] is None, where
            assert attempts != "0" or row["attempts"] == 0, where
            assert direction is OUT or (row["due_at"], row["attempts"]) == (None, 0), where


# -- first states

REPORT: Headers = [
    ("From", b"+491511000001/TYPE=PLMN"),
    ("Sender", b"system-user@mms.gw.example"),
    ("To", b"+447700900002/TYPE=PLMN"),
    ("Date", b"Thu, 12 Nov 2026 02:28:01 +0200"),
    ("X-Mms-3GPP-MMS-Version", b"5.5.0"),
    ("X-Mms-Message-Type", b"MM4_delivery_report.REQ"),
    ("X-Mms-Transaction-ID", b'"r-1"'),
    ("X-Mms-Message-ID", b'"m-1@mms.north.example"'),
    ("X-Mms-MM-Status-Code", b"Retrieved"),
]
"""Of our MMSC, about a message of a peer's that asked for none."""


def first_states(gateway: Gateway, store: Store, side: str, path: str, lines: Headers) -> list[str]:
    """The states in which a mail's transactions begin; Postfix keeps the mail."""
    token = secrets.token_hex(16)
    gateway.runtime.new_token = lambda: token
    sender = "system-user@mms.north.example" if side == "north" else "system-user@mms.gw.example"
    gateway.peer(side).mail(f"<{sender}>").rcpt(path).headers(lines).end()
    message = store.message(token)
    assert message is not None
    store.accepted(token, T0).result(30)
    return [transaction.state.value for transaction in message.transactions]


def test_first_states(tmp_path: Path) -> None:
    ours, theirs = "<+491511000001/TYPE=PLMN@mms.gw.example>", "<+447700900002/TYPE=PLMN@mms.north.example>"
    corrupt = req(X_Mms_Transaction_ID='"t-2"', X_Mms_3GPP_MMS_Version=None)
    with Store.open(f"sqlite:///{tmp_path}/mm4.db") as store:
        gateway = Gateway(CONFIG, store)  # type: ignore[arg-type] - in place of the ledger
        seen = [
            first_states(gateway, store, "north", ours, req()),
            first_states(gateway, store, "north", ours, corrupt),
            first_states(gateway, store, "local", theirs, REPORT),
            first_states(gateway, store, "north", ours, req()),
        ]
    assert [quoted(cells[1]) for cells in section("First states")] == seen


# -- the same again

ARRIVED = [key for key in SITUATIONS if not key[0].startswith(("duplicate", "ended"))]


@pytest.mark.parametrize("situation", ARRIVED, ids=lambda s: f"{s[1]} {s[0]}")
def test_the_same_again_is_a_duplicate_as_soon_as_postfix_has_the_first(store: Store, situation: tuple[str, Direction]) -> None:
    for builder in SITUATIONS[situation]:
        life = Life(store, situation[1])
        builder(life)
        row = life.row
        assert row is not None
        life.now = T0 + PENDING - timedelta(seconds=1)
        early, second = store.record(life.second(), timedelta(days=1)).result(30), life.second()
        life.now = LATER
        found = store.record(replace(second, recorded_at=LATER), timedelta(days=1)).result(30)
        kept = store.message(second.token)
        assert kept is not None
        # Nobody has what was refused, or what bounced before anybody was told Ok.
        nowhere = row["state"] == "refused"
        lost = row["state"] == "bounced" and row["status"] != "Ok" and row["answered_at"] is None
        if row["accepted_at"] is None or nowhere or lost:
            assert early.pending is (row["accepted_at"] is None and not nowhere)
            assert (found.repeated, kept.transactions[0].state) == ((), State.RECORDED)
        else:
            assert not early.pending
            assert (found.repeated, kept.transactions[0].state) == ((second.transactions[0].recipient,), State.DUPLICATE)
            first = OK if row["answer_to"] is not None else None
            assert kept.answer == (first or second.answer)
        store.forget(life.token, force=True).result(30)
