"""The operator's commands against real Postfix: one peer paused while the rest flows, one message held, an ack by hand."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness import Dialogue, Link, forward_req, mm4, new_ids, wait_for

pytestmark = pytest.mark.postfix

CONFIG = (Path(__file__).parent / "mm4.yaml").read_text()

NORTH, SOUTH = "+447700900101", "+447700900201"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(CONFIG) as made:
        yield made


def operator(link: Link, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """What the command prints with --json; it has to end with this code."""
    done = mm4(*arguments, "--config", link.gateway.config, "--json", check=False)
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(link: Link, *arguments: str, code: int = 0) -> str:
    """What the command says to people."""
    done = mm4(*arguments, "--config", link.gateway.config, check=False)
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def outward(link: Link, to: str, ids: tuple[str, str]) -> Dialogue:
    """A message of our MMSC."""
    return link.gateway.send(
        forward_req(sender="+491511000001", to=to, ids=ids, ack=None, system=None),
        source="127.0.0.1", mail_from="+491511000001@mms.gw.example", rcpt=(f"{to}/TYPE=PLMN@mms.gw.example",),
    )  # fmt: skip


def inward(link: Link, ids: tuple[str, str]) -> Dialogue:
    """A message of north's."""
    return link.gateway.send(forward_req(ids=ids))


def entries(link: Link, message_id: str) -> list[dict[str, Any]]:
    """What `mm4 queue` shows of a message."""
    return [entry for entry in operator(link, "queue") if entry["message_id"] == message_id]


def test_a_paused_peers_mail_waits_while_the_rest_flows_and_goes_when_it_is_resumed(link: Link) -> None:
    (paused,) = operator(link, "peer", "pause", "north")
    try:
        _while_paused(link, str(paused["paused_since"]))
    finally:
        operator(link, "peer", "resume", "north")
    ids = new_ids("mms.gw.example")
    assert outward(link, NORTH, ids).code == 250
    link.north.wait_for(ids[1])


def _while_paused(link: Link, since: str) -> None:
    to_north, to_south, from_north = (new_ids("mms.gw.example") for _ in range(3))
    assert outward(link, NORTH, to_north).code == 250
    assert outward(link, SOUTH, to_south).code == 250
    assert inward(link, from_north).code == 250
    link.south.wait_for(to_south[1])
    link.mmsc.wait_for(from_north[1])
    # A RES to north is mail to north.
    waiting = wait_for(
        lambda: [e for e in operator(link, "queue", "--peer", "north") if e["queue"] == "deferred" and e["kind"] != "token"][1:],
        "the REQ and the RES to north in the deferred queue",
    )  # fmt: skip
    del waiting
    (held,) = entries(link, to_north[1])
    assert (held["peer"], held["recipient"]) == ("north", f"{NORTH}/TYPE=PLMN@mms.north.example")
    assert "paused by the operator" in held["reason"]
    (answer,) = [e for e in entries(link, from_north[1]) if e["kind"] == "answer"]
    assert (answer["peer"], answer["transaction_id"], answer["state"]) == ("north", from_north[0], "answered")
    assert [t["message_id"] for t in operator(link, "trace", answer["queue_id"])[:1]] == [from_north[1]]
    # Said where an operator looks.
    assert operator(link, "stats")[0]["paused"] == {"north": since}
    assert {p["peer"]: p["paused_since"] for p in operator(link, "peer", "list")} == {"north": since, "south": None}
    assert operator(link, "peer", "pause", "north") == [{"peer": "north", "paused_since": since}]
    checked = said(link, "check")
    assert "peers.north: paused by the operator since" in checked
    assert "mm4 peer resume north" in checked
    # It stays paused when the tables are written again, and when Postfix tries by itself.
    assert operator(link, "postfix", "maps")[0]["changed"] == []
    link.gateway.postfix("postqueue", "-f")
    link.gateway.wait_log(rf"{held['queue_id']}: .*status=deferred.*paused by the operator")
    assert link.north.mails == []
    (resumed,) = operator(link, "peer", "resume", "north")
    assert resumed == {"peer": "north", "paused_since": None, "waited": 2}
    (mail,) = link.north.wait_for(to_north[1])
    assert mail.rcpt == [f"{NORTH}/TYPE=PLMN@mms.north.example"]
    link.north.wait_for(from_north[0])
    link.gateway.quiet()
    assert len(link.north.mails) == 2
    assert operator(link, "stats")[0]["paused"] == {}


def test_a_pause_outlives_a_restart(link: Link) -> None:
    operator(link, "peer", "pause", "south")
    link.gateway.stop()
    link.gateway.start()
    ids = new_ids("mms.gw.example")
    assert outward(link, SOUTH, ids).code == 250
    wait_for(lambda: [e for e in entries(link, ids[1]) if "paused" in (e["reason"] or "")], "mail to south deferred")
    operator(link, "peer", "resume", "south")
    link.south.wait_for(ids[1])


def test_one_message_is_held_shown_and_released_by_its_message_id(link: Link) -> None:
    held, other = new_ids("mms.gw.example"), new_ids("mms.gw.example")
    link.south.stop()
    try:
        assert outward(link, SOUTH, held).code == 250
        assert outward(link, SOUTH, other).code == 250
        (entry,) = wait_for(lambda: [e for e in entries(link, held[1]) if e["queue"] == "deferred"], "a deferred message")
        queue_id = entry["queue_id"]
        assert operator(link, "queue", "hold", held[1]) == [{"queue_id": queue_id, "held": True}]
        assert operator(link, "queue", "hold", held[1]) == [{"queue_id": queue_id, "held": True}]
        assert [e["queue"] for e in entries(link, held[1])] == ["hold"]
        assert [e["queue"] for e in entries(link, other[1])] != ["hold"]
    finally:
        link.south.start()
    (shown,) = operator(link, "queue", "show", held[0])
    assert shown["queue_id"] == queue_id
    assert f'X-Mms-Message-ID: {held[1]}' in shown["content"]
    assert shown["recipients"][0]["message_id"] == held[1]
    assert f"queue_id: {queue_id}" in said(link, "queue", "show", queue_id)
    # A retry of the other one, by hand, goes past the one that is held.
    (retried,) = operator(link, "transactions", "retry", other[1])
    assert retried["what"] == "Postfix tries it now"
    link.south.wait_for(other[1])
    assert link.south.carrying(held[1]) == []
    assert "in Postfix's queue" in said(link, "transactions", "forget", "--yes", "--force", held[1], code=1)
    assert operator(link, "queue", "release", held[1]) == [{"queue_id": queue_id, "released": True}]
    link.south.wait_for(held[1])
    link.gateway.quiet()
    assert "it has left the queue" in said(link, "queue", "release", held[1], code=1)
    assert "nothing in the queue has this ID" in said(link, "queue", "show", "nobody", code=1)


def test_the_queue_shows_a_token_with_its_message_and_a_retry_brings_its_ack(link: Link) -> None:
    (responder,) = link.gateway.children("answerer")
    os.kill(responder, signal.SIGSTOP)
    ids = new_ids()
    try:
        assert inward(link, ids).code == 250
        link.mmsc.wait_for(ids[1])
        entry = wait_for(lambda: [e for e in entries(link, ids[1]) if e["kind"] == "token"], "a token in the queue")[0]
        assert entry["recipient"].endswith("@responder.mm4.invalid")
        assert (entry["peer"], entry["transaction_id"], entry["state"]) == ("north", ids[0], "recorded")
        for line in said(link, "queue").splitlines():
            if ids[1] in line:
                assert f"{ids[0]}" in line
                assert " north " in line
                break
        else:
            raise AssertionError("the token's line")
    finally:
        os.kill(responder, signal.SIGCONT)
    link.north.wait_for(ids[0])


def test_an_ack_that_is_owed_by_a_message_gone_from_the_queue_is_found_and_sent_by_hand(link: Link) -> None:
    (responder,) = link.gateway.children("answerer")
    ids = new_ids()
    os.kill(responder, signal.SIGSTOP)
    try:
        queue_id = inward(link, ids).queue_id
        link.mmsc.wait_for(ids[1])
        assert "is answered from there" in said(link, "transactions", "answer", "--yes", ids[1], code=1)
        # Somebody deletes it before the responder has seen it. What lies in its socket by then it would serve yet, so
        # Postfix has to have given up once.
        deferred = lambda: [e for e in entries(link, ids[1]) if (e["kind"], e["queue"]) == ("token", "deferred")]  # noqa: E731
        wait_for(deferred, "the token in the deferred queue")
        link.gateway.postfix("postsuper", "-d", queue_id)
        wait_for(lambda: not entries(link, ids[1]), "the message gone")
    finally:
        os.kill(responder, signal.SIGCONT)
    _made_old(link, queue_id)
    checked = said(link, "check")
    assert f"(queue id {queue_id}, from north)" in checked
    assert "mm4 transactions answer TOKEN" in checked
    assert operator(link, "stats")[0]["owed"] == 1
    done = mm4("transactions", "answer", ids[1], "--config", link.gateway.config, stdin=b"n\n", check=False)
    assert (done.returncode, "nothing shows that Postfix has kept the message" in done.stderr) == (1, True)
    (sent,) = operator(link, "transactions", "answer", "--yes", ids[1])
    assert (sent["type"], sent["status"]) == ("MM4_forward.RES", "Ok")
    (ack,) = link.north.wait_for(ids[0])
    assert ack.header("X-Mms-Transaction-ID") == ids[0]
    assert "none is due for more than" in said(link, "check")
    (shown,) = operator(link, "transactions", "show", ids[1])
    assert (shown["state"], shown["status"]) == ("answered", "Ok")
    assert "MM4_forward.RES Ok sent by hand" in [event["what"] for event in shown["events"]]
    assert ack.content.endswith(shown["answer_text"].partition("\r\n\r\n")[2].encode())
    # And once more, where a peer says that it never got it.
    operator(link, "transactions", "answer", "--yes", ids[1])
    link.north.wait_for(ids[0], count=2)
    assert operator(link, "transactions", "forget", "--yes", ids[1])[0]["forgotten"] is True
    assert operator(link, "transactions", "show", ids[1], code=1) == []


def _made_old(link: Link, queue_id: str) -> None:
    """As if it had come an hour ago: a check leaves young ones alone."""
    store = Path(link.gateway.config).parent / "mm4.db"
    with closing(sqlite3.connect(store)) as connection:
        changed = connection.execute(
            "UPDATE messages SET recorded_at = datetime(recorded_at, '-1 hour') || '.000000' WHERE queue_id = ?", (queue_id,)
        )
        assert changed.rowcount == 1
        connection.commit()


def test_a_number_shows_its_transactions_newest_first(link: Link) -> None:
    first, second = new_ids("mms.gw.example"), new_ids("mms.gw.example")
    for ids in (first, second):
        assert outward(link, "+447700900177", ids).code == 250
    (found,) = operator(link, "trace", "+447700900177")
    assert found["number"] == "+447700900177"
    assert [t["message_id"] for t in found["transactions"]] == [second[1], first[1]]
    rows = operator(link, "transactions", "list", "--number", "+447700900177", "--peer", "north", "--since", "1h")
    assert [row["message_id"] for row in rows] == [second[1], first[1]]
    link.gateway.quiet()
