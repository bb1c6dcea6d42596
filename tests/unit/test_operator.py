"""The operator's commands as they are typed: lists that stream, what is done by hand, the queue beside the store.

Postfix's commands are scripts here that tell what a test says and note how they were called; what Postfix itself does
is held by tests/integration/t-21-operator.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy import event

from fake import CONFIG
from mm4.cli.main import main
from mm4.gateway.configfile import parse_config
from mm4.postfix import maps, pausing, settings
from mm4.postfix.handled import handled, unknown
from mm4.postfix.mailqueue import queued
from mm4.postfix.paused import note, paused_peers, strike
from mm4.postfix.stored import _held, _lost, _outdated
from mm4.protocol.errors import PostfixError
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction
from mm4.store import Store, upkeep
from mm4.store.listing import PAGE, Wanted
from mm4.store.retention import LOOK
from recorder import Done, called

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
OURS, THEIRS, OTHER = "+491511000001", "+447700900002", "+447700900203"
ANSWER = Answer("system@mms.north.example.via-north.mm4.invalid", "system-user@mms.gw.example", "MM4_forward.RES", "Ok", b"X-A: b\r\n\r\n")

Mm4 = Callable[..., Done]


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "mm4.yaml"
    file.write_text(CONFIG + "store: sqlite:///mm4.db\nfolders: {state: state, sockets: run, postfix: postfix}\n")
    (tmp_path / "state").mkdir()
    return str(file)


@pytest.fixture
def mm4(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mm4:
    """The command in this process."""

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        return called(monkeypatch, capsys, *arguments, "--config", config, stdin=stdin)

    return call


@pytest.fixture
def store(config: str) -> Iterator[Store]:
    with Store.open(f"sqlite:///{Path(config).parent}/mm4.db") as opened:
        yield opened


class Postfix:
    """Scripts in the place of Postfix's commands: `queue` is what postqueue -j tells, `calls` what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.queue([])
        log, queue = folder / "calls", folder / "queue"
        for name, does in {
            "postqueue": f'[ "$3" = -j ] && exec cat {queue}',
            "postsuper": f'grep -q "\\"$4\\"" {queue} && echo "postsuper: Placed on hold: 1 message" >&2',
            "postcat": 'echo "*** ENVELOPE RECORDS"; printf "X-Mms-Message-ID: m-1\\n\\033[31mred\\n"',
            "postfix": '[ "$3" = status ] && exit ${STOPPED:-0}',
        }.items():
            script = folder / name
            script.write_text(f'#!/bin/sh\necho "{name} $3 $4 $5" >> {log}\n{does}\nexit 0\n')
            script.chmod(0o755)

    def queue(self, messages: list[dict[str, Any]]) -> None:
        (self.folder / "queue").write_text("".join(json.dumps(message) + "\n" for message in messages))

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return [line.strip() for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(autouse=True)
def postfix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Postfix:
    found = Postfix(tmp_path / "sbin")
    monkeypatch.setenv("PATH", f"{tmp_path}/sbin:{os.environ['PATH']}")
    return found


def mail(queue_id: str, *recipients: str, sender: str = "x@mms.north.example", queue: str = "deferred") -> dict[str, Any]:
    """One message as postqueue -j tells it."""
    return {
        "queue_name": queue, "queue_id": queue_id, "arrival_time": 1795341600, "message_size": 512, "forced_expire": False,
        "sender": sender, "recipients": [{"address": r, "delay_reason": "connection refused"} for r in recipients],
    }  # fmt: skip


def transaction(number: int = 1, **values: Any) -> Transaction:
    standard = {"transaction_id": f"t-{number}", "message_id": f"m-{number}", "originator": THEIRS, "recipient": OURS}
    return Transaction(**{**standard, **values})


def kept(store: Store, number: int = 1, **values: Any) -> str:
    """A message in the store; gives its token."""
    token = f"{number:032x}"
    mine = values.pop("transactions", None) or (transaction(number),)
    standard = {
        "token": token, "direction": Direction.IN, "peer": "north", "type": "MM4_forward.REQ", "queue_id": f"4X{number}",
        "host": "gw", "recorded_at": T0 + timedelta(minutes=number), "transactions": mine,
    }  # fmt: skip
    store.record(Message(**{**standard, **values})).result(30)
    return token


def lines(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


# -- transactions list


@pytest.fixture
def varied(store: Store) -> Store:
    """Four messages, each different in one thing that a filter asks for."""
    kept(store, 1)
    kept(store, 2, peer="tyntec", transactions=(transaction(2, recipient="+491511000002"),))
    kept(store, 3, direction=Direction.OUT, transactions=(transaction(3, originator=OURS, recipient=OTHER, ack_requested=True),))
    kept(store, 4, type="MM4_delivery_report.REQ", transactions=(transaction(4, originator="+491511000002"),))
    store.accepted(f"{3:032x}", T0).result(30)
    return store


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ("", ["m-4", "m-3", "m-2", "m-1"]),
        ("--limit 2", ["m-4", "m-3"]),
        ("--peer tyntec", ["m-2"]),
        ("--direction out", ["m-3"]),
        ("--state waiting", ["m-3"]),
        ("--state recorded --peer north", ["m-4", "m-1"]),
        ("--type delivery_report.req", ["m-4"]),
        (f"--number {OURS}", ["m-4", "m-3", "m-1"]),
        ("--number 01511000002", ["m-4", "m-2"]),
        (f"--number {OTHER}", ["m-3"]),
        ("--since 2026-11-22T10:03Z", ["m-4", "m-3"]),
        ("--since 9999d --limit 1", ["m-4"]),
        ("--since 0001-01-01T00:00+14:00 --limit 1", ["m-4"]),
    ],
)
@pytest.mark.usefixtures("varied")
def test_a_list_is_newest_first_and_narrowed_by_each_filter(mm4: Mm4, filters: str, ids: list[str]) -> None:
    done = mm4("transactions", "list", "--json", *filters.split())
    assert (done.code, done.err) == (0, "")
    assert [row["message_id"] for row in lines(done)] == ids
    text = mm4("transactions", "list", *filters.split())
    assert text.code == 0
    assert [line.split()[-1] for line in text.out.splitlines()] == ["ID", *ids]


@pytest.mark.usefixtures("varied")
def test_a_list_of_nothing_is_1(mm4: Mm4) -> None:
    for filters in (("--peer", "nobody"), ("--since", "1s"), ("--number", "+33600000000")):
        done = mm4("transactions", "list", *filters)
        assert (done.code, done.out) == (1, "no such transaction\n")
        assert (mm4("transactions", "list", "--json", *filters).code, done.err) == (1, "")


@pytest.mark.parametrize(
    "arguments",
    ["list --state gone", "list --since soon", "list --direction up", "list --type x", "list --limit 0", "list --number x", "show"],
)
def test_a_filter_that_is_none_is_wrong_use(mm4: Mm4, arguments: str) -> None:
    done = mm4("transactions", *arguments.split())
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [("transactions", "list"), ("transactions", "show", "x"), ("transactions", "retry", "x"), ("transactions", "answer", "x"),
     ("transactions", "forget", "x"), ("stats",), ("trace", "x")],
)  # fmt: skip
def test_without_a_store_it_is_78_and_says_what_makes_one(mm4: Mm4, arguments: tuple[str, ...]) -> None:
    done = mm4(*arguments)
    assert (done.code, done.out) == (78, "")
    assert "mm4.db: does not exist; start mm4 serve once" in done.err


def test_pages_follow_each_other_without_gap_or_repetition(store: Store) -> None:
    number = 2 * PAGE + 17
    _fill(store, number)
    rows = [row["id"] for row in store.listed(Wanted())]
    assert rows == list(range(number, 0, -1))
    assert [row["id"] for row in store.listed(Wanted(), PAGE + 3)] == rows[: PAGE + 3]
    third = [row["id"] for row in store.listed(Wanted(peer="p2"))]
    assert third == [row for row in rows if row % 3 == 0]
    assert len(list(store.listed(Wanted(number=OURS)))) == number


def _fill(store: Store, number: int) -> None:
    """So many messages, as the gateway would have recorded them over a day; row ids begin with 1."""
    path = str(store._database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(
            "INSERT INTO messages (token, direction, peer, type, queue_id, host, recorded_at) VALUES (?,'in',?,?,?,'gw',?)",
            ((f"{i:032x}", f"p{i % 3}", "MM4_forward.REQ", f"4X{i}", "2026-11-22 10:00:00.000000") for i in range(number)),
        )
        connection.executemany(
            "INSERT INTO transactions (token, peer, direction, type, transaction_id, message_id, originator, recipient, state, "
            "ack_requested, delivery_report, read_reply, updated_at) "
            "VALUES (?,?,'in','MM4_forward.REQ',?,?,?,?,'answered',1,0,0,'2026-11-22 10:00:00.000000')",
            ((f"{i:032x}", f"p{i % 3}", f"t-{i}", f"m-{i}", THEIRS, OURS) for i in range(number)),
        )
        connection.commit()


ROWS = 100_000
# VmHWM and not ru_maxrss, which begins with what the parent had.
_MEASURED = (
    "import re, sys; from pathlib import Path; from mm4.cli.main import main; "
    "main(['transactions', 'list', '--json', '--config', sys.argv[1], *sys.argv[2:]], standalone_mode=False); "
    "sys.stderr.write(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
)


@pytest.mark.slow
def test_a_list_of_100_000_rows_takes_no_more_memory_than_a_short_one_and_locks_nobody_out(config: str, store: Store) -> None:
    _fill(store, ROWS)

    def run(*more: str) -> tuple[int, int]:
        """Rows that were printed, and the most memory that it took, in kB."""
        command = [sys.executable, "-c", _MEASURED, config, *more]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            first = json.loads(running.stdout.readline())
            assert first["id"] >= ROWS
            # The gateway goes on recording while the list is read.
            kept(store, ROWS + len(more) + 1)
            number = 1 + sum(1 for _ in running.stdout)
            return number, int(running.stderr.read())

    _, short = run("--limit", "1000")
    number, long = run()
    assert number in (ROWS + 1, ROWS + 2)
    assert long - short < 8_000, f"{short} kB for 1000 rows, {long} kB for {ROWS}"


def test_a_reader_that_goes_away_ends_the_list(config: str, store: Store) -> None:
    _fill(store, 3000)
    command = [sys.executable, "-m", "mm4", "transactions", "list", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) in (1, 141)


def test_what_a_peer_wrote_steers_no_terminal(mm4: Mm4, store: Store) -> None:
    kept(store, 1, transactions=(transaction(1, message_id="m-\x1b[31m", status="\x1b]0;x\x07"),))
    for arguments in (("transactions", "list"), ("transactions", "show", "t-1"), ("trace", "t-1"), ("stats",)):
        for more in ((), ("--json",)):
            done = mm4(*arguments, *more)
            assert done.code == 0
            assert "\x1b" not in done.out
            assert "\x07" not in done.out


# -- transactions show


@pytest.mark.parametrize("identifier", ["1", "t-1", '"m-1"', "4X1", "4Y1", f"{1:032x}"])
def test_show_tells_everything_by_any_id(mm4: Mm4, store: Store, identifier: str) -> None:
    token = kept(store, 1, answer=ANSWER, size=1234, digest="d")
    store.answered(token, T0 + timedelta(hours=1), "4Y1").result(30)
    store.event(token, T0, "noted", None, "by somebody").result(30)
    (row,) = lines(mm4("transactions", "show", "--json", identifier))
    assert (row["id"], row["token"], row["state"], row["status"]) == (1, token, "answered", "Ok")
    assert (row["size"], row["digest"], row["answer_to"], row["answer_text"]) == (1234, "d", ANSWER.rcpt_to, "X-A: b\r\n\r\n")
    assert [event["what"] for event in row["events"]] == ["noted", "recorded", "accepted by Postfix", "MM4_forward.RES Ok submitted"]
    text = mm4("transactions", "show", identifier).out
    assert f"token: {token}\n" in text
    assert "  X-A: b\n" in text
    assert "noted  by somebody" in text


def test_show_of_nothing_is_1(mm4: Mm4, store: Store) -> None:
    kept(store, 1)
    for identifier in ("2", "nobody", "9" * 30, "", "\udcff"):
        assert mm4("transactions", "show", identifier).code == 1


# -- trace


def test_trace_by_number_shows_the_newest_first(mm4: Mm4, varied: Store) -> None:
    done = mm4("trace", "--json", "01511 000002")
    assert (done.code, done.json["number"]) == (0, "+491511000002")
    assert [t["message_id"] for t in done.json["transactions"]] == ["m-4", "m-2"]
    assert [t["message_id"] for t in mm4("trace", "--json", "--limit", "1", OURS).json["transactions"]] == ["m-4"]
    assert mm4("trace", "+33600000000").code == 1
    assert mm4("trace", OURS).out.count("message id") == 3
    kept(varied, 5, transactions=(transaction(5, message_id=OURS),))
    # An id that looks like a number is an id.
    assert [t["transaction_id"] for t in mm4("trace", "--json", OURS).json["transactions"]] == ["t-5"]


def test_trace_by_the_queue_id_of_an_answer(mm4: Mm4, store: Store) -> None:
    store.answered(kept(store, 1, answer=ANSWER), T0, "4RES").result(30)
    kept(store, 2)
    assert mm4("trace", "--json", "4RES").json["message_id"] == "m-1"


# -- retry, forget, answer


def outward(store: Store, state: State = State.OVERDUE, number: int = 1) -> str:
    return kept(store, number, direction=Direction.OUT, transactions=(transaction(number, state=state, ack_requested=True),))


def copied(config: str, token: str) -> Path:
    """The copy that the daemon keeps to send a REQ again."""
    path = Path(config).parent / "state" / "spool" / token
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("state", [State.WAITING, State.OVERDUE])
def test_a_retry_makes_a_copy_due_now(mm4: Mm4, config: str, store: Store, state: State) -> None:
    token = kept(store, 1, direction=Direction.OUT, transactions=(transaction(state=state, attempts=3),))
    copied(config, token)
    before = datetime.now(UTC)
    (done,) = lines(mm4("transactions", "retry", "--json", "m-1"))
    assert (done["token"], done["queue_id"]) == (token, None)
    found = store.message(token)
    assert found is not None
    (one,) = found.transactions
    assert one.due_at is not None
    assert before - timedelta(seconds=1) <= one.due_at <= datetime.now(UTC)
    assert (one.state, one.attempts) == (State.OVERDUE, 2)
    assert [event["what"] for event in store.trace("m-1")[0]["events"]][-1] == "due now, by hand"


def test_what_is_being_sent_again_is_left_alone(mm4: Mm4, config: str, store: Store) -> None:
    """A timer that has claimed a copy puts off when it is due: the claim has to hold."""
    later = datetime.now(UTC) + timedelta(minutes=2)
    token = kept(store, 1, direction=Direction.OUT, transactions=(transaction(state=State.OVERDUE, due_at=later, attempts=1),))
    copied(config, token)
    (done,) = lines(mm4("transactions", "retry", "--json", "m-1"))
    assert done["what"] == "is being sent again just now"
    found = store.message(token)
    assert found is not None
    assert (found.transactions[0].due_at, found.transactions[0].attempts) == (later, 1)


def test_a_retry_of_what_is_in_the_queue_asks_postfix_and_makes_no_second_copy(
    mm4: Mm4, config: str, store: Store, postfix: Postfix
) -> None:
    token = outward(store)
    copied(config, token)
    postfix.queue([mail("4NEW", f"{OURS}@mms.north.example.via-north.mm4.invalid", sender=f"{token}@mms.gw.example"), mail("4Z", "a@b")])
    (done,) = lines(mm4("transactions", "retry", "--json", "t-1"))
    assert (done["queue_id"], done["what"]) == ("4NEW", "Postfix tries it now")
    assert postfix.calls == ["postqueue -j", "postqueue -i 4NEW"]
    found = store.message(token)
    assert found is not None
    assert found.transactions[0].due_at is None


@pytest.mark.parametrize(
    ("state", "direction", "copy", "why"),
    [
        (State.FAILED, Direction.OUT, True, "it was given up: its originator was told, who has to send it anew, and its copy is gone"),
        (State.OVERDUE, Direction.OUT, False, "no copy of it is kept; ack.retry of its peer keeps one"),
        (State.ANSWERED, Direction.OUT, True, "only a REQ of ours that nobody has answered is sent again"),
        (State.ACCEPTED, Direction.IN, True, "only a REQ of ours that nobody has answered is sent again"),
    ],
)
def test_what_cannot_be_sent_again_is_1_with_the_reason(
    mm4: Mm4, config: str, store: Store, state: State, direction: Direction, copy: bool, why: str
) -> None:
    token = kept(store, 1, direction=direction, transactions=(transaction(state=state),))
    if copy:
        copied(config, token)
    done = mm4("transactions", "retry", "m-1")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"mm4: m-1: nothing can be sent again (state {state}): it is not in Postfix's queue, and {why}\n"


def test_forget_asks_and_removes_the_message_with_everything(mm4: Mm4, config: str, store: Store) -> None:
    token, other = kept(store, 1), kept(store, 2)
    store.bounced(token, OURS, "5.1.1", "x", T0, None).result(30)
    store.event(token, T0, "noted").result(30)
    path = copied(config, token)
    asked = mm4("transactions", "forget", "m-1", stdin=b"n\n")
    assert (asked.code, "Forget this message?" in asked.err) == (1, True)
    assert f"MM4_forward.REQ m-1 to {OURS}: bounced" in asked.err
    assert mm4("transactions", "forget", "m-1", stdin=b"").code == 1
    assert store.message(token) is not None
    done = mm4("transactions", "forget", "m-1", stdin=b"y\n")
    assert (done.code, done.out) == (0, f"{token}: forgotten\n")
    assert store.message(token) is None
    assert store.message(other) is not None
    assert not path.exists()
    with closing(sqlite3.connect(Path(config).parent / "mm4.db")) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM transactions").fetchone() == (1,)
    assert mm4("transactions", "forget", "--yes", "m-1").code == 1


@pytest.mark.parametrize(("values", "why"), [
    ({"answer": ANSWER}, "its RES is owed to the peer"),
    ({"transactions": (transaction(state=State.WAITING),), "direction": Direction.OUT}, "the peer's RES is awaited"),
    ({"transactions": (transaction(state=State.OVERDUE),), "direction": Direction.OUT}, "the peer's RES is awaited"),
])  # fmt: skip
def test_what_waits_for_an_answer_is_forgotten_only_by_force(mm4: Mm4, store: Store, values: dict[str, Any], why: str) -> None:
    token = kept(store, 1, **values)
    done = mm4("transactions", "forget", "--yes", "m-1")
    assert (done.code, done.err) == (1, f"{token}: stays, {why}; --force removes it all the same\n")
    (told,) = lines(mm4("transactions", "forget", "--yes", "--json", "m-1"))
    assert told == {"token": token, "forgotten": False, "reason": why}
    assert mm4("transactions", "forget", "--yes", "--force", "m-1").code == 0
    assert store.message(token) is None


def test_what_is_in_the_queue_is_never_forgotten(mm4: Mm4, store: Store, postfix: Postfix) -> None:
    token = kept(store, 1)
    postfix.queue([mail("4NEW", f"{token}@responder.mm4.invalid")])
    done = mm4("transactions", "forget", "--yes", "--force", "m-1")
    assert (done.code, done.err) == (1, "mm4: m-1: stays, it is in Postfix's queue as 4NEW; mm4 queue shows it\n")
    (postfix.folder / "postqueue").write_text("#!/bin/sh\necho 'postqueue: fatal: no queue' >&2\nexit 69\n")
    done = mm4("transactions", "forget", "--yes", "--force", "m-1")
    assert (done.code, "fatal: no queue" in done.err) == (78, True)
    assert store.message(token) is not None


@pytest.mark.parametrize("identifier", ["m-1", "m-2", "nobody"])
def test_where_no_res_was_recorded_none_is_sent(mm4: Mm4, store: Store, identifier: str) -> None:
    for number in (1, 2, 3):
        kept(store, number, transactions=(transaction(number, message_id=f"m-{min(number, 2)}"),), answer=ANSWER if number > 1 else None)
    done = mm4("transactions", "answer", "--yes", identifier)
    why = {"m-1": "no RES was recorded for it", "m-2": "several messages; name one by its token: ", "nobody": "no such transaction"}
    assert (done.code, done.out) == (1, "")
    assert why[identifier] in done.err


@pytest.mark.parametrize(("accepted", "why"), [(True, "Postfix has taken the message"), (False, "nothing shows that Postfix has kept")])
def test_an_answer_by_hand_says_what_it_acknowledges(mm4: Mm4, store: Store, accepted: bool, why: str) -> None:
    token = kept(store, 1, answer=ANSWER)
    if accepted:
        store.accepted(token, T0).result(30)
    done = mm4("transactions", "answer", "m-1", stdin=b"n\n")
    assert (done.code, done.out) == (1, "")
    assert why in done.err
    found = store.message(token)
    assert found is not None
    assert found.answered_at is None


# -- stats


def test_stats_count_what_is_there_and_what_waits(mm4: Mm4, store: Store, config: str) -> None:
    kept(store, 1, answer=ANSWER)
    kept(store, 2, type="MM4_made.up")
    due = datetime.now(UTC) - timedelta(hours=1)
    kept(store, 3, direction=Direction.OUT, transactions=(transaction(3, state=State.WAITING, due_at=due), transaction(3)))
    outward(store, State.OVERDUE, 4)
    kept(store, 5, direction=Direction.OUT, transactions=(transaction(5, state=State.WAITING),))
    note(parse_config(Path(config).read_text(), config), "north", T0)
    found = mm4("stats", "--json").json
    assert (found["owed"], found["owed_since"]) == (1, "2026-11-22T10:01:00+00:00")
    assert (found["waiting"], found["waiting_since"], found["overdue"]) == (3, "2026-11-22T10:03:00+00:00", 2)
    assert found["paused"] == {"north": "2026-11-22T10:00:00+00:00"}
    rows = {(r["direction"], r["type"], r["state"]): r["count"] for r in found["counts"]}
    assert rows == {
        ("in", "MM4_forward.REQ", "recorded"): 1, ("in", "other", "recorded"): 1, ("out", "MM4_forward.REQ", "overdue"): 1,
        ("out", "MM4_forward.REQ", "recorded"): 1, ("out", "MM4_forward.REQ", "waiting"): 2,
    }  # fmt: skip
    later = mm4("stats", "--json", "--since", "2026-11-22T10:04Z").json
    assert (sum(r["count"] for r in later["counts"]), later["waiting"]) == (2, 3)
    text = mm4("stats").out
    assert re.search(r"^north +in +forward\.REQ +recorded +- +1$", text, re.MULTILINE)
    assert "answers awaited: 3, the oldest since 2026-11-22 10:03:00 UTC\nof them overdue: 2\n" in text
    assert "north is paused since 2026-11-22 10:00:00 UTC" in text


def test_stats_of_an_empty_store(mm4: Mm4, store: Store) -> None:
    assert mm4("stats").out == "answers owed by us: 0\nof ours that wait for the word of an MMSC or a peer: 0\nanswers awaited: 0\nof them overdue: 0\n"


# -- what an operator is told of them


def test_every_command_of_the_operator_is_in_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    table = re.findall(r"^\| `mm4 ([a-z]+)(?: ([a-z\\|]+))?", page, re.MULTILINE)
    documented = {(group, name) for group, names in table for name in (names.split("\\|") if names else [""])}
    existing = set()
    for command in ("transactions", "stats", "trace", "queue", "peer", "store"):
        found = main.get_command(click.Context(main), command)
        assert found is not None
        if not isinstance(found, click.Group) or found.invoke_without_command:
            existing.add((command, ""))
        if isinstance(found, click.Group):
            existing |= {(command, name) for name in found.commands}
    assert documented == existing


# -- queue


def test_what_the_queue_and_a_trace_ask_goes_by_index(store: Store) -> None:
    """Each search by an index of its own: in 10^6 rows one without takes a second for every page of the queue."""
    asked: list[tuple[str, Any]] = []
    event.listen(store._readers, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
    store.by_queue(["a"] * 3, ["4X", "4Y"])
    store.trace("x")
    store.whole("1")
    assert len(asked) == 3
    with closing(sqlite3.connect(str(store._database))) as connection:
        for statement, values in asked:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            scans = [row[3] for row in plan if row[3].startswith("SCAN") and "subq" not in row[3] and "anon" not in row[3]]
            assert scans == [], plan
            assert "ix_messages_answer_queue_id" in str(plan)


def test_the_queue_has_peer_and_transaction_beside_every_address(mm4: Mm4, store: Store, postfix: Postfix) -> None:
    token = kept(store, 1, answer=ANSWER)
    sent = kept(
        store, 2, direction=Direction.OUT,
        transactions=(transaction(2, recipient=THEIRS, state=State.WAITING), transaction(2, recipient=OTHER, transaction_id="t-2b")),
    )  # fmt: skip
    store.answered(kept(store, 3, answer=ANSWER), T0, "4RES").result(30)
    via = "/TYPE=PLMN@mms.north.example.via-north.mm4.invalid"
    postfix.queue([
        mail("4X1", f"{OURS}@mmsc.gw.example", f"{token}@responder.mm4.invalid"),
        # Another queue id than the recorded one: postsuper -r. The token stays.
        mail("4NEW", THEIRS + via, OTHER + via, sender=f"{sent}@mms.gw.example"),
        mail("4RES", ANSWER.rcpt_to, sender="", queue="active"),
        mail("4B", f"{sent}@mms.gw.example", sender=""),
        mail("4U", "someone@elsewhere.example"),
    ])  # fmt: skip
    done = mm4("queue", "--json")
    assert (done.code, done.err) == (0, "")
    keys = ("queue_id", "kind", "peer", "recipient", "transaction_id", "state", "token")
    assert [tuple(row[key] for key in keys) for row in lines(done)] == [
        ("4X1", "message", "north", f"{OURS}@mmsc.gw.example", "t-1", "recorded", token),
        ("4X1", "token", "north", f"{token}@responder.mm4.invalid", "t-1", "recorded", token),
        ("4NEW", "message", "north", f"{THEIRS}/TYPE=PLMN@mms.north.example", "t-2", "waiting", sent),
        ("4NEW", "message", "north", f"{OTHER}/TYPE=PLMN@mms.north.example", "t-2b", "recorded", sent),
        ("4RES", "answer", "north", "system@mms.north.example", "t-3", "answered", f"{3:032x}"),
        ("4B", "bounce", "north", f"{sent}@mms.gw.example", "t-2", "waiting", sent),
        ("4U", "message", None, "someone@elsewhere.example", None, None, None),
    ]
    first = lines(done)[0]
    assert (first["queue"], first["size"], first["reason"]) == ("deferred", 512, "connection refused")
    assert first["arrival"] == datetime.fromtimestamp(1795341600, UTC).isoformat()
    assert len(lines(mm4("queue", "--json", "--peer", "north"))) == 6
    text = mm4("queue").out.splitlines()
    assert text[0].split()[:2] == ["QUEUE", "ID"]
    assert len(text) == 8
    assert "<>" in text[5]
    assert lines(mm4("queue", "--json", "--peer", "south")) == []


def test_the_queue_is_shown_without_a_store(mm4: Mm4, postfix: Postfix) -> None:
    postfix.queue([mail("4X1", "a@mms.north.example.via-north.mm4.invalid")])
    done = mm4("queue", "--json")
    assert (done.code, lines(done)[0]["peer"], lines(done)[0]["message_id"]) == (0, "north", None)
    assert "without message ids and states: store " in done.err


def test_the_queue_is_read_piece_by_piece() -> None:
    """What is asked of Postfix and of the store stays a few hundred messages ahead of what is shown."""
    read = asked = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield mail(f"4X{read}", f"{read:032x}@responder.mm4.invalid")

    class Knows:
        def by_queue(self, tokens: list[str], queue_ids: list[str]) -> list[dict[str, Any]]:
            nonlocal asked
            asked += 1
            assert len(tokens) == len(queue_ids) <= 1000
            return []

    shown = queued(endless(), Knows(), [])
    for _ in range(2500):
        next(shown)
    assert read < 4000
    assert 1 < asked < 100


def test_one_message_is_held_shown_and_released_by_its_ids(mm4: Mm4, store: Store, postfix: Postfix) -> None:
    token = kept(store, 1)
    postfix.queue([mail("4Z", "a@b.example"), mail("4X1", f"{token}@responder.mm4.invalid")])
    if os.geteuid() != 0:
        done = mm4("queue", "hold", "m-1")
        assert (done.code, "has to run as root" in done.err) == (2, True)
        return
    for identifier in ("m-1", "t-1", token, "4X1"):
        assert lines(mm4("queue", "hold", "--json", identifier)) == [{"queue_id": "4X1", "held": True}]
        assert lines(mm4("queue", "release", "--json", identifier)) == [{"queue_id": "4X1", "released": True}]
    done_to = [call for call in postfix.calls if call != "postqueue -j"]
    assert done_to == ["postsuper -h 4X1", "postsuper -H 4X1", "postqueue -i 4X1"] * 4
    shown = mm4("queue", "show", "m-1")
    assert "queue_id: 4X1\n" in shown.out
    assert "X-Mms-Message-ID: m-1\n\N{REPLACEMENT CHARACTER}[31mred\n" in shown.out
    (as_json,) = lines(mm4("queue", "show", "--json", "m-1"))
    assert [entry["token"] for entry in as_json["recipients"]] == [token]
    kept(store, 2)
    gone = mm4("queue", "hold", "m-2")
    assert (gone.code, "it has left the queue, mm4 trace tells its life" in gone.err) == (1, True)
    assert mm4("queue", "hold", "nobody").err == "mm4: nobody: nothing in the queue has this ID\n"


@pytest.mark.parametrize("arguments", [("queue", "hold", "x"), ("queue", "release", "x"), ("queue", "show", "x"),
                                       ("peer", "pause", "north"), ("peer", "resume", "north")])  # fmt: skip
def test_what_needs_root_says_so(mm4: Mm4, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = mm4(*arguments)
    assert (done.code, done.out) == (2, "")
    assert f"mm4 {arguments[0]} {arguments[1]} has to run as root" in done.err


# -- peer


@pytest.fixture
def wired(config: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The transport table, written; and root, where only the test whether it is root asks."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    read = parse_config(Path(config).read_text(), config)
    (Path(config).parent / "postfix").mkdir()
    maps.write(read, maps.folder_of(read))
    return maps.folder_of(read) / "transport"


def test_a_pause_changes_one_row_and_survives_the_tables_being_written(
    mm4: Mm4, config: str, wired: Path, postfix: Postfix, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = wired.read_text().splitlines()
    (paused,) = lines(mm4("peer", "pause", "--json", "north"))
    rows = wired.read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, rows, strict=True) if a != b]
    assert changed == [(".via-north.mm4.invalid\tmm4-out:[192.0.2.1]:25", f".via-north.mm4.invalid\tretry:4.3.2 {maps.PAUSED}")]
    assert "postfix reload" in postfix.calls
    assert lines(mm4("postfix", "maps", "--json"))[0]["changed"] == []
    assert wired.read_text().splitlines() == rows
    # Once more: since when stays.
    assert lines(mm4("peer", "pause", "--json", "north")) == [paused]
    listed = {p["peer"]: p["paused_since"] for p in lines(mm4("peer", "list", "--json"))}
    assert listed == {"north": paused["paused_since"], "tyntec": None, "hub": None, "watched": None}
    monkeypatch.setattr(pausing.time, "sleep", lambda _: None)
    postfix.queue([mail("4N", "a@x.via-north.mm4.invalid"), mail("4H", "a@x.via-hub.mm4.invalid"), mail("4A", "b@x.via-north.mm4.invalid", queue="active")])
    assert lines(mm4("peer", "resume", "--json", "north")) == [{"peer": "north", "paused_since": None, "waited": 1}]
    assert wired.read_text().splitlines() == before
    assert [call for call in postfix.calls if " -i " in call] == ["postqueue -i 4N"]
    assert paused_peers(parse_config(Path(config).read_text(), config)) == {}


def test_a_pause_applies_nothing_else_that_the_yaml_says_by_now(mm4: Mm4, config: str, wired: Path) -> None:
    Path(config).write_text(Path(config).read_text().replace("[198.51.100.1]:25", "[198.51.100.77]:25"))
    assert mm4("peer", "pause", "north").code == 0
    assert "198.51.100.77" not in wired.read_text()
    assert mm4("peer", "list").out.splitlines()[1].split()[:2] == ["north", "3gpp"]


def test_a_pause_that_postfix_does_not_take_is_none(mm4: Mm4, config: str, wired: Path, postfix: Postfix) -> None:
    wired.write_text("# nothing\n")
    done = mm4("peer", "pause", "north")
    assert (done.code, "has no row for north; mm4 postfix maps writes it" in done.err) == (78, True)
    assert paused_peers(parse_config(Path(config).read_text(), config)) == {}
    wired.unlink()
    assert mm4("peer", "pause", "north").code == 78
    assert "postfix reload" not in postfix.calls


def test_an_unknown_peer_is_wrong_use(mm4: Mm4, config: str, wired: Path) -> None:
    done = mm4("peer", "pause", "east")
    assert (done.code, done.err) == (2, "mm4: east is no peer; there is: north, tyntec, hub, watched\n")
    assert mm4("peer", "resume", "east").code == 2
    # One that the YAML named while it was paused.
    note(parse_config(Path(config).read_text(), config), "east", T0)
    assert mm4("peer", "list").out.splitlines()[-1].split() == ["east", "-", "-", "-", "0", "-", "2026-11-22", "10:00:00"]
    assert mm4("peer", "resume", "east").code == 0
    assert "east" not in mm4("peer", "list").out


def test_where_many_wait_everything_is_tried_at_once(mm4: Mm4, wired: Path, postfix: Postfix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "_ONE_BY_ONE", 2)
    monkeypatch.setattr(pausing.time, "sleep", lambda _: None)
    mm4("peer", "pause", "north")
    postfix.queue([mail(f"4N{i}", "a@x.via-north.mm4.invalid") for i in range(3)])
    assert lines(mm4("peer", "resume", "--json", "north"))[0]["waited"] == 3
    assert [call for call in postfix.calls if call.endswith(("-f", "-i"))] == ["postqueue -f"]


def test_who_is_paused_is_kept_on_disk(config: str) -> None:
    read = parse_config(Path(config).read_text(), config)
    assert paused_peers(read) == {}
    strike(read, "north")
    note(read, "north", T0)
    assert paused_peers(read) == {"north": T0}
    by_hand = Path(config).parent / "state" / "paused" / "hub"
    by_hand.write_text("")
    assert set(paused_peers(read)) == {"north", "hub"}
    assert paused_peers(read)["hub"].tzinfo is not None
    by_hand.unlink()
    strike(read, "north")
    assert paused_peers(read) == {}
    by_hand.parent.rmdir()
    by_hand.parent.parent.rmdir()
    with pytest.raises(PostfixError, match="there is no such folder; start mm4 serve once"):
        note(read, "north", T0)
    assert not by_hand.parent.parent.exists()
    by_hand.parent.parent.mkdir()
    by_hand.parent.write_text("a file")
    with pytest.raises(PostfixError, match="paused"):
        paused_peers(read)


# -- answers that wait for another's word

HELD = {"answer": ANSWER, "reply_to": "PostMaster@mms.north.example"}


def test_a_res_that_waits_for_another_is_seen_in_check_and_stats_and_is_not_owed(config: str, store: Store, mm4: Mm4) -> None:
    parsed = parse_config(Path(config).read_text(), "mm4.yaml", {})
    kept(store, 1, **HELD)
    kept(store, 2, **HELD)
    kept(store, 3, direction=Direction.OUT, **HELD)
    kept(store, 4, **HELD)
    store.answered(f"{4:032x}", T0, "4R").result(30)
    kept(store, 5, answer=ANSWER)
    # ack.timeout is 10 minutes.
    assert list(_held(parsed, store, T0 + timedelta(minutes=11))) == []
    inward, outward = _held(parsed, store, T0 + timedelta(minutes=30))
    assert (inward.ok, inward.warning, outward.warning) == (False, True, True)
    assert inward.text.startswith("2 RES wait for longer than ack.timeout, the MMSC has not said")
    assert f"the oldest since 2026-11-22 10:01 UTC, peer north, token {1:032x}" in inward.text
    assert outward.text.startswith("1 RES wait for longer than ack.timeout, the peer has not answered")
    found = json.loads(mm4("stats", "--json").out)
    assert (found["held"], found["held_since"], found["owed"]) == (3, "2026-11-22T10:01:00+00:00", 1)
    assert "of ours that wait for the word of an MMSC or a peer: 3, the oldest since" in mm4("stats").out


def test_a_res_that_came_back_is_named_for_a_day_or_until_it_is_sent_again(store: Store) -> None:
    tokens = [kept(store, n, answer=ANSWER) for n in range(1, 8)]
    for n, token in enumerate(tokens):
        store.answered(token, T0, f"4R{n}").result(30)
        store.event(token, T0 + timedelta(minutes=n), "answer bounced", f"4B{n}", "MM4_forward.RES to x 4.4.1 away").result(30)
    store.event(f"{99:032x}", T0, "answer bounced").result(30)
    assert list(_lost(store.lost_rows(T0 + timedelta(minutes=7), 100))) == []
    (finding,) = _lost(store.lost_rows(T0 - timedelta(minutes=1), 100))
    assert (finding.ok, finding.warning) == (False, True)
    named = ", ".join(tokens[:1:-1])
    assert finding.text == (
        f"7 RES did not arrive within the last day, peer north: {named} and 2 more; the newest came back "
        "2026-11-22 10:06 UTC, MM4_forward.RES to x 4.4.1 away"
    )
    store.event(tokens[6], T0 + timedelta(minutes=8), "MM4_forward.RES Ok sent by hand").result(30)
    assert [row["token"] for row in store.lost_rows(T0 + timedelta(minutes=4), 100)] == [tokens[5]]
    store.event(tokens[6], T0 + timedelta(minutes=9), "answer bounced").result(30)
    assert [row["token"] for row in store.lost_rows(T0 + timedelta(minutes=4), 100)] == [tokens[6], tokens[5]]
    with store._readers.connect() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT token FROM events WHERE what = 'answer bounced' AND at > '2026' ORDER BY at DESC"
        )
        assert "ix_events_answer_bounced" in str(plan.all())


def test_messages_that_should_have_gone_a_day_ago_are_told_of(store: Store) -> None:
    week = timedelta(days=7)
    # Older ones stay: their RES is owed. They are more than one look finds.
    owed = [Message(f"{n:032x}", Direction.IN, "north", "MM4_forward.REQ", "4X", "gw", T0, (), answer=ANSWER) for n in range(10, LOOK + 11)]
    wait([store.record(message) for message in owed], 30)
    assert list(_outdated(store, T0 + week + timedelta(hours=25), week)) == []
    store.accepted(kept(store, 1), T0).result(30)
    assert list(_outdated(store, T0 + week + timedelta(hours=23), week)) == []
    (finding,) = _outdated(store, T0 + week + timedelta(hours=25), week)
    assert (finding.ok, finding.warning) == (False, True)
    assert finding.text.startswith("messages of 2026-11-22 are still there, and none has to be from before 2026-11-23: ")
    assert "docs/scale.md" in (finding.fix or "")


@pytest.fixture
def passing(store: Store) -> str:
    """A REQ that the MMSC has answered, whose RES on its way to the peer was lost; gives the token of that RES."""
    first = kept(store, 1, **HELD)
    store.accepted(first, T0).result(30)
    token = f"{2:032x}"
    store.record(
        Message(token, Direction.IN, "local", "MM4_forward.RES", "4X2", "gw", T0, (), answer=ANSWER, copy_of=first)
    ).result(30)
    return token


def test_the_token_of_a_res_that_passes_through_names_what_it_answers(mm4: Mm4, passing: str, store: Store) -> None:
    assert [row["token"] for row in store.owed_rows(T0 + timedelta(hours=1), 10)] == [passing]
    (shown,) = lines(mm4("transactions", "show", "--json", passing))
    assert (shown["token"], shown["message_id"]) == (f"{1:032x}", "m-1")
    assert store.trace("0" * 31 + "9") == []


def test_a_res_that_passes_through_is_sent_by_hand(mm4: Mm4, passing: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm4.cli.transactions._submit", lambda _config, answer: "4NEW")
    (sent,) = lines(mm4("transactions", "answer", "--yes", "--json", passing))
    assert (sent["token"], sent["submitted"]) == (passing, "4NEW")
    assert store.owed_rows(T0 + timedelta(hours=1), 10) == []
    assert "MM4_forward.RES Ok sent by hand" in [event["what"] for event in store.trace("m-1")[0]["events"]]


def test_a_res_that_passes_through_is_forgotten_with_what_it_answers(mm4: Mm4, passing: str, store: Store, postfix: Postfix) -> None:
    done = mm4("transactions", "forget", "--yes", passing)
    assert (done.code, store.message(passing) is None) == (1, False)
    postfix.queue([mail("4NEW", f"{passing}@responder.mm4.invalid")])
    assert mm4("transactions", "forget", "--yes", "--force", passing).code == 1
    (tried,) = lines(mm4("transactions", "retry", "--json", passing))
    assert tried["queue_id"] == "4NEW"
    postfix.queue([])
    assert mm4("transactions", "forget", "--yes", "--force", passing).code == 0
    assert store.message(passing) is store.message(f"{1:032x}") is None
    assert store.owed_rows(T0 + timedelta(hours=1), 10) == []


# -- what was done to the store itself


def test_check_tells_of_a_restored_store_and_of_tokens_that_it_does_not_know(config: str, store: Store, postfix: Postfix) -> None:
    read, _ = settings.read_config(config)
    token, lost = "a" * 32, "b" * 32
    one = Transaction("t-1", "m-1", THEIRS, OURS)
    store.record(Message(token, Direction.IN, "north", "MM4_forward.REQ", "4Q", "gw", T0, (one,))).result(30)
    postfix.queue([mail("4Q", f"{token}@responder.mm4.invalid"), mail("4R", f"{lost}@responder.mm4.invalid")])
    assert list(handled(store.notes(T0))) == []
    (found,) = unknown(read, store)
    assert (found.ok, found.warning) == (False, True)
    assert found.text.startswith("1 messages in Postfix's queue have a token that this store does not know: they are delivered, but")
    assert found.text.endswith("queue id 4R")
    for what in ("store restored", "store copied"):
        store._write(lambda connection, what=what: upkeep.note(connection, T0, what, "from here")).result(30)  # type: ignore[misc]
    restored, copied = handled(store.notes(T0 - timedelta(days=1)))
    assert restored.text.startswith("store restored 2026-11-22 10:00 UTC from here: no message is lost")
    assert "may be missing (the log says unknown token" in restored.text
    assert "name the copy as store:" in (copied.fix or "")
    assert list(handled(store.notes(T0))) == []
