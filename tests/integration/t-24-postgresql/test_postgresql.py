"""Two gateways on one PostgreSQL are one to their peers, and outlive the loss of it."""

from __future__ import annotations

import contextlib
import signal
import smtplib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import Cluster, execute
from harness import LOCAL, NORTH, SECONDS, Mta, NextHop, Sandbox, forward_req, new_ids, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
OURS, THEIRS, LATE = "+491511000001", "+447700900101", "+33600000001"
HOSTS = {"gw-a": "127.0.0.31", "gw-b": "127.0.0.32"}
UNDECIDED = "4.7.1 The same message is being taken, try again later"


class Pair:
    """Two hosts with the same configuration, each with a name and a source address of its own."""

    def __init__(self) -> None:
        self.cluster = Cluster(fsync=True)
        self.mmsc, self.north, self.late = NextHop(), NextHop(), NextHop()

    def __enter__(self) -> Pair:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cluster)
            self.store = self.cluster.database(empty=True)
            text = YAML.replace("@store@", self.store)
            for name in ("mmsc", "north", "late"):
                text = text.replace(f"@{name}@", stack.enter_context(getattr(self, name)).hop)
            named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
            self.a, self.b = (
                stack.enter_context(Sandbox(text, source=source, wrapper=(*named, host))) for host, source in HOSTS.items()
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)

    @property
    def both(self) -> tuple[Sandbox, Sandbox]:
        return self.a, self.b

    def quiet(self) -> None:
        for _ in range(2):
            for gateway in self.both:
                gateway.quiet()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def ask(gateway: Sandbox, number: str) -> tuple[str, str]:
    """A REQ of our MMSC by one of the hosts."""
    ids = new_ids("mms.gw.example")
    told = gateway.send(
        forward_req(sender=OURS, to=number, ids=ids, system="mmsc@mms.gw.example"), source=LOCAL,
        mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=(f"{number}/TYPE=PLMN@mms.gw.example",),
    )  # fmt: skip
    assert told.code == 250, told
    return ids


def res(ids: tuple[str, str]) -> bytes:
    """North's RES."""
    lines = {
        "X-Mms-3GPP-MMS-Version": "5.5.0", "X-Mms-Message-Type": "MM4_forward.RES", "X-Mms-Transaction-ID": ids[0],
        "X-Mms-Message-ID": ids[1], "X-Mms-Request-Status-Code": "Ok", "Content-Type": "text/plain",
    }  # fmt: skip
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n"


def messages(count: int) -> dict[str, bytes]:
    pairs = [new_ids() for _ in range(count)]
    return {ids[0]: forward_req(ids=ids) for ids in pairs}


def test_a_res_that_comes_to_the_other_host_finds_its_request(pair: Pair) -> None:
    for sender, other in (pair.both, pair.both[::-1]):
        ids = ask(sender, THEIRS)
        pair.north.wait_for(ids[0])
        told = other.send(res(ids), source=NORTH, mail_from="system@mms.north.example", rcpt=("system-user@mms.gw.example",))
        assert told.code == 250
        (traced,) = sender.trace(ids[1])
        assert traced == other.trace(ids[1])[0]
        assert (traced["state"], traced["status"]) == ("answered", "Ok")
    assert {t["host"] for t in (*pair.a.trace(OURS), *pair.b.trace(OURS))} == set(HOSTS)


def sent_at_once(pair: Pair, content: bytes) -> list[tuple[int, str]]:
    """The same message to both hosts, its last line at the same moment; what each replied."""
    barrier = threading.Barrier(2, timeout=SECONDS)

    def offer(gateway: Sandbox) -> tuple[int, str]:
        host, _, port = gateway.smtp.rpartition(":")
        with smtplib.SMTP(host, int(port), timeout=SECONDS, source_address=(NORTH, 0)) as client:
            client.ehlo()
            for command in ("MAIL FROM:<+447700900002@mms.north.example>", f"RCPT TO:<{OURS}/TYPE=PLMN@mms.gw.example>", "DATA"):
                assert client.docmd(command)[0] in (250, 354)
            client.send(content)
            barrier.wait()
            client.send(b".\r\n")
            code, text = client.getreply()
            return code, text.decode()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(offer, pair.both))


def test_copies_of_a_req_that_come_to_both_at_the_same_moment_are_delivered_once(pair: Pair) -> None:
    sent = messages(60)
    taken: Counter[str] = Counter()
    put_off: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        for name, replies in zip(sent, pool.map(lambda content: sent_at_once(pair, content), sent.values()), strict=True):
            taken[name] += sum(code == 250 for code, _ in replies)
            put_off += [name for code, _ in replies if code != 250]
            assert {reply for reply in replies if reply[0] != 250} <= {(451, UNDECIDED)}
    assert put_off, "they never met"
    # Those come again, as a peer's MTA brings them.
    with Mta(pair.a.smtp, {name: sent[name] for name in put_off}) as again:
        again.wait()
    taken.update(again.accepted.keys())
    pair.quiet()
    delivered, answers = pair.mmsc.by_transaction(), pair.north.by_transaction()
    assert {name: len(delivered.get(name, ())) for name in sent} == dict.fromkeys(sent, 1)
    # One for each 250, and none for a copy that was put off.
    assert {name: len(answers.get(name, ())) for name in sent} == dict(taken)
    assert {mail.header("X-Mms-Request-Status-Code") for name in sent for mail in answers[name]} == {"Ok"}
    for name in put_off[:3]:
        assert sorted(t["state"] for t in pair.a.trace(name)) == ["answered", "duplicate"]


def test_what_is_due_is_done_once_though_both_hosts_look(pair: Pair) -> None:
    asked = {ask(gateway, LATE)[0] for _ in range(10) for gateway in pair.both}
    failed = "SELECT transaction_id FROM transactions WHERE peer = 'late' AND state = 'failed'"
    wait_for(lambda: {row[0] for row in execute(pair.store, failed)} == asked, "all of them failed")
    pair.quiet()
    happened = "SELECT transaction_id, what FROM events JOIN transactions ON transaction_row = transactions.id WHERE peer = 'late'"
    seen = Counter(tuple(row) for row in execute(pair.store, happened))
    assert seen == {(one, what): 1 for one in asked for what in ("overdue", "sent again", "failed")}
    logged = [line for gateway in pair.both for line in gateway.log().splitlines() if " state=failed" in line]
    for one in asked:
        assert len(pair.late.carrying(one)) == 2
        assert sum(f"transaction_id={one} " in line for line in logged) == 1


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT], ids=["immediate", "fast"])
def test_a_postgresql_that_stops_in_the_middle_of_traffic_puts_peers_off_and_loses_nothing(pair: Pair, how: int) -> None:
    sent = messages(120)
    names = list(sent)
    parts = [{name: sent[name] for name in part} for part in (names[::2], names[1::2])]
    children = [gateway.children(kind) for gateway in pair.both for kind in ("worker", "answerer")]
    with Mta(pair.a.smtp, parts[0]) as one, Mta(pair.b.smtp, parts[1]) as other:
        for mta in (one, other):
            mta.wait(15)
        pair.cluster.stop(how)
        for mta in (one, other):
            wait_for(lambda mta=mta: len({failure.name for failure in mta.failures}) >= 4, "messages put off")  # type: ignore[misc]
        taken = len(one.accepted) + len(other.accepted)
        assert taken < len(sent), "the outage came too late to be one"
        pair.cluster.start()
        # A commit whose answer was lost counts as undecided for a minute.
        for mta in (one, other):
            mta.wait(seconds=150)
    assert {(failure.step, failure.code) for mta in (one, other) for failure in mta.failures} == {("end", 451)}
    wait_for(lambda: sent.keys() <= pair.north.by_transaction().keys(), "an ack for each", 120)
    pair.quiet()
    delivered, answers = pair.mmsc.by_transaction(), pair.north.by_transaction()
    assert {name: len(delivered.get(name, ())) for name in sent} == dict.fromkeys(sent, 1)
    # Also of one that was submitted when the store went: what could not be noted then is noted later.
    assert {name: len(answers[name]) for name in sent} == dict.fromkeys(sent, 1)
    assert {mail.header("X-Mms-Request-Status-Code") for name in sent for mail in answers[name]} == {"Ok"}
    assert [gateway.children(kind) for gateway in pair.both for kind in ("worker", "answerer")] == children
    for gateway in pair.both:
        assert gateway.wait_log("verdict=tempfail .*no connection to PostgreSQL")
    owed = "SELECT token FROM messages WHERE answer_to IS NOT NULL AND answered_at IS NULL AND accepted_at IS NOT NULL"
    assert execute(pair.store, owed) == []
