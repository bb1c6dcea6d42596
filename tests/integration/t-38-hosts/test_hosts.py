"""Three gateways behind one MX, on one PostgreSQL with a standby: one to their peers, whichever of them fails.

Each is a host of its own, with a cable to the peers and one to the databases.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import re
import signal
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

import netns
from cluster import Cluster, execute
from harness import SECONDS, Mail, Mta, NextHop, Sandbox, forward_req, new_ids, wait_for
from mm4.postfix.runtime import EOM_SECONDS

pytestmark = [pytest.mark.postfix, pytest.mark.skipif(not netns.possible(), reason=netns.NEEDS)]

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
OURS, THEIRS, LATE = "+491511000001", "+447700900101", "+33600000001"
HOSTS = ("gw-a", "gw-b", "gw-c")
MMSC = f"{OURS}/TYPE=PLMN@mms.gw.example"
SYSTEM = "system-user@mms.gw.example"
UNDECIDED = (451, "4.7.1 The same message is being taken, try again later")
IN, OUT = 45, 24
"""Messages to and from us while something fails."""


class North(NextHop):
    """A peer that answers every REQ with Ok, by the MX records: to the next gateway until one takes it."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.gateways: tuple[Sandbox, ...] = ()
        self._due: queue.Queue[bytes | None] = queue.Queue()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        reply = await super().handle_DATA(server, session, envelope)
        self._due.put(envelope.original_content)
        return reply

    def __enter__(self) -> North:
        super().__enter__()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.gateways = ()
        self._due.put(None)
        self._thread.join(SECONDS)
        super().__exit__(*failure)

    def _answer(self) -> None:
        turn = itertools.count()
        while (content := self._due.get()) is not None:
            mail = Mail("", [], content, "")
            if not (mail.header("X-Mms-Message-Type") or "").endswith("forward.REQ"):
                continue
            while self.gateways:
                gateway = self.gateways[next(turn) % len(self.gateways)]
                with contextlib.suppress(OSError):
                    told = gateway.send(res(mail), source=self.address, mail_from="", rcpt=(SYSTEM,), timeout=SECONDS)
                    if told.code == 250:
                        break
                time.sleep(0.1)


def res(request: Mail) -> bytes:
    """North's RES."""
    lines = {
        "X-Mms-3GPP-MMS-Version": "5.5.0", "X-Mms-Message-Type": "MM4_forward.RES",
        "X-Mms-Transaction-ID": request.header("X-Mms-Transaction-ID"), "X-Mms-Message-ID": request.header("X-Mms-Message-ID"),
        "X-Mms-Request-Status-Code": "Ok", "Content-Type": "text/plain",
    }  # fmt: skip
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n"


def report(message_id: str, transaction_id: str) -> bytes:
    """North's delivery report about a message of ours."""
    lines = {
        "From": f"{THEIRS}/TYPE=PLMN", "Sender": "system-user@mms.north.example", "To": f"{OURS}/TYPE=PLMN",
        "Date": "Thu, 12 Nov 2026 02:28:01 +0200", "X-Mms-3GPP-MMS-Version": "5.5.0",
        "X-Mms-Message-Type": "MM4_delivery_report.REQ", "X-Mms-Transaction-ID": transaction_id,
        "X-Mms-Message-ID": message_id, "X-Mms-Ack-Request": "Yes", "X-Mms-MM-Status-Code": "Retrieved",
    }  # fmt: skip
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n"


class Site:
    """The hosts, and the next hops on this side of the network to the peers.

    `lines` are the cables to the databases, whose network nobody else is on; the databases are asked from here by their
    UNIX sockets.
    """

    def __enter__(self) -> Site:
        with contextlib.ExitStack() as stack:
            outer, inner = (stack.enter_context(netns.Network()) for _ in range(2))
            hosts = {name: stack.enter_context(netns.Host()) for name in (*HOSTS, "db-a", "db-b")}
            self.lines = {name: inner.connect(host) for name, host in hosts.items()}

            def database(name: str, of: Cluster | None = None) -> Cluster:
                return stack.enter_context(Cluster(of=of, address=self.lines[name].address, within=hosts[name].wrapper))

            self.primary = database("db-a")
            self.store = self.primary.database(empty=True)
            self.standby = database("db-b", self.primary)
            name = self.store.partition("@/")[2].partition("?")[0]
            url = f"postgresql://mm4@/{name}?host={self.primary.address}:5432&host={self.standby.address}:5432"
            text = YAML.replace("@store@", url)
            mmsc, north, late = outer.join(3)
            self.mmsc, self.north, self.late = NextHop(mmsc), North(north), NextHop(late)
            for name in ("mmsc", "north", "late"):
                hop: NextHop = stack.enter_context(getattr(self, name))
                text = text.replace(f"@{name}@", hop.hop).replace(f"@{name}_address@", hop.address)
            started = []
            for name in HOSTS:
                address, within = outer.connect(hosts[name]).address, hosts[name].wrapper
                named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name)
                gateway = Sandbox(text, listen=address, port=25, source=address, within=within, wrapper=named)
                started.append(stack.enter_context(gateway))
            self.gateways = self.north.gateways = tuple(started)
            stack.callback(self._leave)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)

    def _leave(self) -> None:
        self.north.gateways = ()

    def rotated(self) -> Iterator[tuple[Sandbox, ...]]:
        """The hosts in the order of each sender, as equal MX records are shuffled."""
        return (self.gateways[n:] + self.gateways[:n] for n in range(len(self.gateways)))

    def quiet(self) -> None:
        for _ in range(2):
            for gateway in self.gateways:
                gateway.postfix("postqueue", "-f")
                gateway.quiet(150)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


def ask(site: Site, gateway: Sandbox, number: str, *extra: tuple[str, str]) -> tuple[str, str]:
    """A REQ of our MMSC by one of the hosts."""
    ids = new_ids("mms.gw.example")
    request = forward_req(sender=OURS, to=number, ids=ids, system="mmsc@mms.gw.example", extra=extra,
                          drop=("X-Mms-Delivery-Report",) if extra else ())  # fmt: skip
    told = gateway.send(request, source=site.mmsc.address, mail_from=MMSC, rcpt=(f"{number}/TYPE=PLMN@mms.gw.example",))
    assert told.code == 250, told
    return ids


# -- one to their peers


def test_a_req_by_one_its_res_to_another_and_the_report_to_the_third_are_one_story(site: Site) -> None:
    site.north.gateways = ()
    for sender, answered, reported in site.rotated():
        ids = ask(site, sender, THEIRS, ("X-Mms-Delivery-Report", "Yes"))
        (request,) = site.north.wait_for(ids[0])
        told = answered.send(res(request), source=site.north.address, mail_from="", rcpt=(SYSTEM,))
        assert told.code == 250
        transaction = new_ids()[0]
        about = request.header("X-Mms-Message-ID") or ""
        told = reported.send(
            report(about, transaction), source=site.north.address, mail_from="system-user@mms.north.example",
            rcpt=(f"{OURS}/TYPE=PLMN@mms.gw.example",),
        )  # fmt: skip
        assert told.code == 250, told
        site.mmsc.wait_for(transaction)
        (answer,) = site.north.wait_for(transaction)
        assert answer.header("X-Mms-Request-Status-Code") == "Ok"
        wait_for(lambda: "answered" in states(site, transaction), "the report's RES noted")  # noqa: B023
        told_by = [gateway.trace(ids[1]) for gateway in site.gateways]
        assert told_by[0] == told_by[1] == told_by[2]
        found = {(t["type"], t["direction"], t["state"], t["status"]): t["host"] for t in told_by[0]}
        names = dict(zip(site.gateways, HOSTS, strict=True))
        assert found == {
            ("MM4_forward.REQ", "out", "answered", "Ok"): names[sender],
            ("MM4_delivery_report.REQ", "in", "answered", "Ok"): names[reported],
        }
    site.north.gateways = site.gateways


def states(site: Site, transaction_id: str) -> list[str]:
    rows = execute(site.store, "SELECT state FROM transactions WHERE transaction_id = :id", id=transaction_id)
    return [row.state for row in rows]


def at_once(source: str, gateways: tuple[Sandbox, ...], content: bytes) -> list[tuple[int, str]]:
    """The same message from north to several hosts, its last line at the same moment; what each replied."""
    barrier = threading.Barrier(len(gateways), timeout=SECONDS)

    def offer(gateway: Sandbox) -> tuple[int, str]:
        host, _, port = gateway.smtp.rpartition(":")
        with smtplib.SMTP(host, int(port), timeout=SECONDS, source_address=(source, 0)) as client:
            client.ehlo()
            for command in ("MAIL FROM:<+447700900002@mms.north.example>", f"RCPT TO:<{OURS}/TYPE=PLMN@mms.gw.example>", "DATA"):
                assert client.docmd(command)[0] in (250, 354)
            client.send(content)
            barrier.wait()
            client.send(b".\r\n")
            code, text = client.getreply()
            return code, text.decode()

    with ThreadPoolExecutor(len(gateways)) as pool:
        return list(pool.map(offer, gateways))


def test_a_req_to_two_at_once_is_delivered_once_and_each_is_told_the_truth(site: Site) -> None:
    sent = messages(20)
    taken: Counter[str] = Counter()
    put_off: list[str] = []
    for number, (name, content) in enumerate(sent.items()):
        two = tuple(site.gateways[(number + n) % 3] for n in range(2))
        for reply in at_once(site.north.address, two, content):
            assert reply[0] == 250 or reply == UNDECIDED
            taken[name] += reply[0] == 250
            put_off += [name] if reply[0] != 250 else []
    assert put_off, "they never met"
    # Those come again, to the third.
    with Mta(site.gateways[2].smtp, {name: sent[name] for name in put_off}, source=site.north.address) as again:
        again.wait()
    taken.update(again.accepted.keys())
    site.quiet()
    delivered, answers = site.mmsc.by_transaction(), site.north.by_transaction()
    assert {name: len(delivered.get(name, ())) for name in sent} == dict.fromkeys(sent, 1)
    # One for each 250, and none for a copy that was put off.
    assert {name: len(answers.get(name, ())) for name in sent} == dict(taken)
    assert {mail.header("X-Mms-Request-Status-Code") for name in sent for mail in answers[name]} == {"Ok"}


def test_what_is_due_is_done_once_though_three_look(site: Site) -> None:
    asked = {ask(site, gateway, LATE)[0] for _ in range(4) for gateway in site.gateways}
    failed = "SELECT transaction_id FROM transactions WHERE peer = 'late' AND state = 'failed'"
    wait_for(lambda: {row[0] for row in execute(site.store, failed)} == asked, "all of them failed")
    site.quiet()
    happened = "SELECT transaction_id, what FROM events JOIN transactions ON transaction_row = transactions.id WHERE peer = 'late'"
    seen = Counter(tuple(row) for row in execute(site.store, happened))
    assert seen == {(one, what): 1 for one in asked for what in ("overdue", "sent again", "failed")}
    assert {one: len(site.late.carrying(one)) for one in asked} == dict.fromkeys(asked, 2)


# -- under faults


def messages(count: int) -> dict[str, bytes]:
    return {ids[0]: forward_req(ids=ids) for ids in (new_ids() for _ in range(count))}


class Traffic:
    """Messages both ways, ours later where `ours` is False; each sender with an order of hosts of its own."""

    def __init__(self, site: Site, *, ours: bool = True) -> None:
        self.site = site
        self._ours = ours
        self.inward = messages(IN)
        ids = [new_ids("mms.gw.example") for _ in range(OUT)]
        self.outward = {i[0]: forward_req(sender=OURS, to=THEIRS, ids=i, system="mmsc@mms.gw.example") for i in ids}
        self.mtas = [*self._senders(self.inward, source=site.north.address)]

    def _senders(self, sent: dict[str, bytes], **how: Any) -> Iterator[Mta]:
        for number, (first, *rest) in enumerate(self.site.rotated()):
            part = dict(itertools.islice(sent.items(), number, None, len(self.site.gateways)))
            yield Mta(first.smtp, part, others=tuple(g.smtp for g in rest), **{"sessions": 2, "gap": 0.1, **how})

    def __enter__(self) -> Traffic:
        self._stack = contextlib.ExitStack()
        for mta in self.mtas:
            self._stack.enter_context(mta)
        if self._ours:
            self.add_ours()
        wait_for(lambda: self.taken() >= (IN + OUT) // 4, "traffic")
        return self

    def add_ours(self) -> None:
        """Our MMSC's messages, too."""
        how = {"source": self.site.mmsc.address, "mail_from": MMSC, "rcpt": (f"{THEIRS}/TYPE=PLMN@mms.gw.example",), "sessions": 1}
        for mta in self._senders(self.outward, **how):
            self.mtas.append(self._stack.enter_context(mta))

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)

    def taken(self) -> int:
        return sum(len(mta.accepted) for mta in self.mtas)

    def failures(self, gateway: Sandbox | None = None) -> list[tuple[str, int]]:
        """Step and code of what kept a message from being taken, by one host or by any."""
        return [(f.step, f.code) for mta in self.mtas for f in mta.failures if gateway is None or f.smtp == gateway.smtp]

    def put_off(self, gateway: Sandbox) -> set[str]:
        """Transaction ids of what this host has answered 451 to, at the end of the message."""
        refused = (gateway.smtp, "end", 451)
        return {f.name for mta in self.mtas for f in mta.failures if (f.smtp, f.step, f.code) == refused}

    def wait(self, seconds: float = 150) -> None:
        """Until everything is taken. A commit whose answer was lost counts as undecided for a minute."""
        wait_for(lambda: self.taken() == IN + OUT, "everything taken", seconds)

    def came_to_its_end(self, *, killed: bool = False) -> None:
        """Nothing lost, nothing delivered twice, nothing acknowledged that was not delivered.

        Where Postfix was `killed` it may bring the same mail again, and that is one.
        """
        site = self.site
        missing = "SELECT count(*) FROM transactions WHERE transaction_id = ANY(:ids) AND direction = 'out' AND state = 'answered'"
        wait_for(lambda: self.inward.keys() <= site.north.by_transaction().keys(), "an ack for each", 150)
        wait_for(lambda: execute(site.store, missing, ids=list(self.outward))[0][0] >= OUT, "a RES for each", 150)
        site.quiet()
        delivered, sent = site.mmsc.by_transaction(), site.north.by_transaction()
        assert [name for name in self.outward if name not in sent] == []
        mails = {name: {mail.submission for mail in delivered.get(name, ())} for name in self.inward}
        assert {name: len(ids) for name, ids in mails.items()} == dict.fromkeys(self.inward, 1)
        assert killed or {name: len(delivered[name]) for name in self.inward} == dict.fromkeys(self.inward, 1)
        acks = {name: [mail for mail in sent[name] if mail.header("X-Mms-Request-Status-Code")] for name in self.inward}
        assert {mail.header("X-Mms-Request-Status-Code") for each in acks.values() for mail in each} == {"Ok"}
        answered = (
            "SELECT transaction_id, state, messages.queue_id FROM messages JOIN transactions USING (token) "
            "WHERE answered_at IS NOT NULL AND transaction_id = ANY(:ids)"
        )
        rows = execute(site.store, answered, ids=list(self.inward))
        assert {row.transaction_id for row in rows} == self.inward.keys()
        assert [row for row in rows if row.state != "duplicate" and mails[row.transaction_id] != {row.queue_id}] == []
        # One RES for each message that was taken; of a host that was killed one that was submitted and not noted, too.
        noted = Counter(row.transaction_id for row in rows)
        made = {name: len({mail.submission for mail in acks[name]} if killed else acks[name]) for name in self.inward}
        most = 1 if killed else 0
        assert {name: (noted[name], made[name]) for name in self.inward if not 0 <= made[name] - noted[name] <= most} == {}
        owed = "SELECT token FROM messages WHERE answer_to IS NOT NULL AND answered_at IS NULL AND accepted_at IS NOT NULL"
        assert execute(site.store, owed) == []
        assert [line for gateway in site.gateways for line in gateway.log().splitlines() if "unknown token" in line] == []


def kill(gateway: Sandbox) -> None:
    """Everything of this host at once, Postfix and its queue's processes too."""
    root, gateway.process = gateway.process, None
    assert root is not None
    # Stopped first, until there are no new ones: who is killed singly is started again, or has just started another.
    stopped: set[int] = set()
    while new := {root.pid, *gateway.below(root.pid)} - stopped:
        for process in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        stopped |= new
    for process in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    root.wait(SECONDS)


def test_a_host_that_is_killed_under_traffic_loses_nothing(site: Site) -> None:
    victim, line = site.gateways[1], site.lines[HOSTS[1]]
    with Traffic(site) as traffic:
        # The database does not hear of it: what the host has locked there stays locked.
        line.cut()
        kill(victim)
        line.mend()
        taken = traffic.taken()
        wait_for(lambda: traffic.failures(victim), "a sender that found it dead")
        wait_for(lambda: traffic.taken() > taken + 5, "the others to go on")
        victim.start()
        traffic.wait()
    assert {code for _, code in traffic.failures()} <= {0, 451}
    traffic.came_to_its_end(killed=True)


def recording(site: Site, host: str) -> bool:
    """Whether it waits in a COMMIT for the standby to have a message of north's; and for so long that it is not about to go on."""
    # Who looks for an earlier copy, as for a peer's message, holds such a lock.
    waiting = (
        "SELECT 1 FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE wait_event = 'SyncRep' AND locktype = 'advisory' "
        "AND client_addr = :host AND query_start < clock_timestamp() - interval '2 s'"
    )
    return bool(execute(site.store, waiting, host=site.lines[host].address))


def test_a_host_that_is_cut_off_from_the_database_says_so_in_time_and_the_others_go_on(site: Site) -> None:
    host, cut = HOSTS[0], site.gateways[0]
    begun = len(cut.log())
    with Traffic(site, ours=False) as traffic:
        # While it records a message, which is done when nobody can tell it any more.
        site.lines["db-b"].cut()
        wait_for(lambda: recording(site, host), "a commit on its way")
        site.lines[host].cut()
        site.lines["db-b"].mend()
        traffic.add_ours()
        wait_for(lambda: ("end", 451) in traffic.failures(cut), "a message put off", EOM_SECONDS + 10)
        # The others are enough, but for what this one has written, and does not know, which waits a minute.
        traffic.wait()
        known = "SELECT transaction_id FROM messages JOIN transactions USING (token) WHERE host = :host AND accepted_at IS NULL"
        written = {row.transaction_id for row in execute(site.store, known, host=host)} & traffic.put_off(cut)
        site.lines[host].mend()
        cut.postfix("postqueue", "-f")
    assert written
    # At the end of a message as a rule; at MAIL, which was seen on a busy machine, it is as good.
    assert {code for _, code in traffic.failures()} == {451}
    put_off = [line for line in cut.log()[begun:].splitlines() if "verdict=tempfail" in line]
    times = [float(re.search(r" ms=([\d.]+)", line)[1]) / 1000 for line in put_off]  # type: ignore[index]
    print(f"cut off: put off after {min(times):.1f} to {max(times):.1f} s, committed without its knowledge {len(written)}")
    assert max(times) < EOM_SECONDS
    traffic.came_to_its_end()


def test_postgresql_fails_over_to_its_standby_under_traffic(site: Site) -> None:
    """The primary is cut off, and goes on: nobody could stop it."""
    tokens = "SELECT token FROM messages"
    old = site.store
    with Traffic(site) as traffic:
        site.lines["db-a"].cut()
        cut = time.monotonic()
        wait_for(lambda: ("end", 451) in traffic.failures(), "a message put off")
        told = time.monotonic()
        site.standby.promote()
        promoted = time.monotonic()
        site.store = site.store.replace(str(site.primary.folder), str(site.standby.folder))
        traffic.wait()
    again = [at - promoted for mta in traffic.mtas for at in mta.accepted.values() if at > promoted]
    print(f"failed over: put off {told - cut:.1f} s after the cut, taken again {min(again):.1f} to {max(again):.1f} s after the promotion")
    # At the end of a message as a rule; at MAIL, which was seen on a busy machine, it is as good.
    assert {code for _, code in traffic.failures()} == {451}
    traffic.came_to_its_end()
    # What the old one alone has would be lost with it.
    then, now = ({row.token for row in execute(store, tokens)} for store in (old, site.store))
    assert then < now
