"""`mm4 expire`: which mail of the queue is past its expiry, and what is done about it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mm4.postfix.expiry import Fate, expire
from mm4.protocol.errors import PostfixError
from mm4.protocol.transaction import Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store.timers import Late
from recorder import called

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
NOW = T0 + timedelta(days=1)
NUMBER = "+447700900101"


class Queue:
    """A Postfix as `Instance` shows it."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = entries
        self.expired: list[str] = []
        self.delivered: list[str] = []

    def queue(self) -> Iterator[dict[str, Any]]:
        return iter(self.entries)

    def expire(self, queue_ids: Any) -> None:
        self.expired += queue_ids

    def deliver(self, queue_id: str) -> None:
        self.delivered.append(queue_id)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/mm4.db") as opened:
        yield opened


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def kept(store: Store, queue_id: str, expires_at: datetime | None = T0 + timedelta(hours=1), host: str = "gw", **values: Any) -> str:
    token = secrets.token_hex(16)
    transaction = Transaction("t-1", "m-1", "+491511000001", NUMBER, **{"state": State.WAITING, "due_at": T0, **values})
    store.record(
        Message(token, Direction.OUT, "north", "MM4_forward.REQ", queue_id, host, T0, (transaction,), expires_at=expires_at)
    ).result(30)
    return token


def entry(queue_id: str, *addresses: str, queue: str = "deferred", at: datetime = T0, sender: str = "a@mms.gw.example", **more: Any) -> dict[str, Any]:
    recipients = addresses or (f"{NUMBER}/TYPE=PLMN@mms.north.example.via-north.mm4.invalid",)
    return {
        "queue_id": queue_id, "queue_name": queue, "arrival_time": int(at.timestamp()), "sender": sender,
        "recipients": [{"address": address} for address in recipients], **more,
    }  # fmt: skip


def run(queue: Queue, store: Store, **options: Any) -> list[tuple[str, Fate]]:
    return [(one.queue_id, one.fate) for one in expire(queue, store, "gw", NOW, **options)]  # type: ignore[arg-type]


def test_what_has_expired_is_returned_noted_and_tried_at_once(store: Store) -> None:
    token = kept(store, "4A")
    queue = Queue(entry("4A"), entry("4OTHER"))
    assert run(queue, store) == [("4A", Fate.EXPIRED)]
    assert (queue.expired, queue.delivered) == (["4A"], ["4A"])
    (event,) = [e for t in store.trace(token) for e in t["events"] if e["what"] == "expired"]
    assert (event["queue_id"], event["detail"]) == ("4A", "X-Mms-Expiry 2026-11-22 11:00:00 UTC")


def test_a_dry_run_needs_no_root_and_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    token = kept(store, "4A")
    queue = Queue(entry("4A"))
    assert run(queue, store, dry_run=True) == [("4A", Fate.EXPIRED)]
    assert queue.expired == []
    assert [e["what"] for t in store.trace(token) for e in t["events"]] == ["recorded"]
    with pytest.raises(PostfixError, match="needs root"):
        run(queue, store)


@pytest.mark.parametrize(
    ("mail", "row"),
    [
        (entry("4A"), {"expires_at": NOW + timedelta(seconds=1)}),
        (entry("4A"), {"expires_at": None}),
        (entry("4A"), {"host": "other"}),
        (entry("4A", forced_expire=True), {}),
        (entry("4A", "+447700900199/TYPE=PLMN@mms.north.example.via-north.mm4.invalid"), {}),
        # The id was used again.
        (entry("4A", at=T0 + timedelta(hours=2)), {}),
    ],
)
def test_what_is_not_expired_or_not_this_message_stays(store: Store, mail: dict[str, Any], row: dict[str, Any]) -> None:
    kept(store, "4A", **row)
    queue = Queue(mail)
    assert run(queue, store) == []
    assert queue.expired == []


def test_a_mail_whose_token_waits_for_the_responder_stays(store: Store) -> None:
    token = kept(store, "4A")
    queue = Queue(entry("4A", f"{NUMBER}/TYPE=PLMN@mms.north.example.via-north.mm4.invalid", f"{token}@responder.mm4.invalid"))
    assert run(queue, store) == [("4A", Fate.ANSWER_DUE)]
    assert queue.expired == []


def test_an_inward_mail_is_known_by_its_sender_and_a_held_one_waits(store: Store) -> None:
    token = kept(store, "4A")
    queue = Queue(entry("4A", "+491511000001@mmsc.gw.example", sender=f"{token}@mms.gw.example", queue="hold"))
    assert run(queue, store) == [("4A", Fate.HELD)]
    assert (queue.expired, queue.delivered) == (["4A"], [])


def test_a_copy_that_was_sent_again_is_found_by_its_own_queue_id(store: Store) -> None:
    token = kept(store, "4A", state=State.OVERDUE)
    message = store.message(token)
    assert message is not None
    row = Late(1, token, "north", "MM4_forward.REQ", "t-1", "m-1", NUMBER, 1, State.OVERDUE, "attempt 1 of 1")
    store.sent_again(row, T0 + timedelta(minutes=30), "4COPY", NOW).result(30)
    queue = Queue(entry("4COPY", at=T0 + timedelta(minutes=30)))
    assert run(queue, store) == [("4COPY", Fate.EXPIRED)]


def test_many_ids_are_asked_for_in_several_questions(store: Store) -> None:
    kept(store, "4A1499")
    assert [one for one, _ in run(Queue(*(entry(f"4A{n}") for n in range(1500))), store)] == ["4A1499"]


def test_without_postfix_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fake import CONFIG
    from mm4.postfix import instance

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(instance, "_SBIN", str(tmp_path))
    (tmp_path / "mm4.yaml").write_text(f"{CONFIG}\nstore: sqlite:///mm4.db\n")
    Store.open(f"sqlite:///{tmp_path}/mm4.db").close()
    done = called(monkeypatch, capsys, "expire", "--config", tmp_path / "mm4.yaml")
    assert (done.code, done.out) == (78, "")
    assert "install Postfix" in done.err


def test_each_message_is_a_line_or_an_object(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    from fake import CONFIG
    from mm4.postfix import instance

    (tmp_path / "mm4.yaml").write_text(f"{CONFIG}\nstore: sqlite:///mm4.db\n")
    token = kept(store, "4A", host=socket.gethostname())
    mail = entry("4A")
    monkeypatch.setattr(instance.Instance, "queue", lambda self: iter([mail]))
    arguments = ("expire", "--dry-run", "--config", tmp_path / "mm4.yaml")
    done = called(monkeypatch, capsys, *arguments)
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == ["4A", "north", "2026-11-22", "11:00:00Z", "expired", f"{NUMBER}/TYPE=PLMN@mms.north.example"]
    done = called(monkeypatch, capsys, *arguments, "--json")
    assert json.loads(done.out) == {
        "queue_id": "4A", "token": token, "peer": "north", "recipients": [f"{NUMBER}/TYPE=PLMN@mms.north.example"],
        "expires_at": "2026-11-22T11:00:00+00:00", "fate": "expired",
    }  # fmt: skip
    mail["recipients"].append({"address": f"{token}@responder.mm4.invalid"})
    done = called(monkeypatch, capsys, *arguments)
    assert done.code == 1
    assert "answer due" in done.out
