"""The life of messages: random interleavings of all that can happen, against plain dictionaries.

Session, store (SQLite, opened anew at every restart), responder, spool and timers are the real ones. Between them stands
a small Postfix: what the milter accepted is committed or lost, now or later, in any order; tokens come when they like,
and again. The model below knows what was said, committed and delivered, and from that alone what may go out.

A normal run takes about seven seconds and is always the same; `MM4_EXAMPLES=2000 pytest tests/unit/test_life.py` looks longer,
and `MM4_STEPS=80` has it live longer lives.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fake import Headers, applied
from mm4.gateway.configfile import parse_config
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Action, Verdict
from mm4.postfix.lmtp import Envelope
from mm4.postfix.responder import Responder
from mm4.postfix.runtime import Runtime
from mm4.postfix.session import Session
from mm4.postfix.spool import Spool
from mm4.postfix.timers import Timers
from mm4.protocol.errors import SubmissionError
from mm4.protocol.reader import read_message
from mm4.protocol.transaction import State
from mm4.store import Store

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
CONFIG = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  region: DE
  numbers: ["+491511"]
  clients: [127.0.0.1/32]
  deliver_to: "{number}@mmsc.gw.example"
  next_hop: "[127.0.0.1]:2600"
  on_bounce: ON_BOUNCE
peers:
  north:
    domains: [mms.north.example]
    networks: [192.0.2.1/32]
    next_hop: "[192.0.2.1]:25"
    ack: {timeout: 10m, retry: 2}
  tyntec:
    dialect: tyntec
    domains: [mm4.tyntec.example]
    networks: [192.0.2.10/32]
    next_hop: "[192.0.2.10]:25"
    delivery_report: on_delivery
  south:
    domains: [mms.south.example]
    networks: [198.51.100.1/32]
    next_hop: "[198.51.100.1]:25"
    answers: mmsc
routes:
  - {prefix: "+4477009001", peer: north}
  - {prefix: "+4477009002", peer: tyntec}
  - {prefix: "+4477009003", peer: south}
"""
FORWARD, DELIVERY, READ = "MM4_forward.REQ", "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"
OK, PASSING, REFUSED = "Ok", "Error-network-problem", "Error-service-denied"
CORRUPT, NOT_FOUND = "Error-message-format-corrupt", "Error-message-not-found"
SYSTEM, MMSC = "system-user@mms.gw.example", "relay@mmsc.gw.example"


@dataclass(frozen=True)
class Peer:
    name: str
    client: str
    domain: str
    numbers: tuple[str, ...]
    retries: int = 0
    dialect: str = "3gpp"

    @property
    def system(self) -> str:
        return f"PostMaster@{self.domain}"

    def via(self, local: str) -> str:
        return f"{local}@{self.domain}.via-{self.name}.mm4.invalid"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("north", "192.0.2.1", "mms.north.example", ("+447700900101", "+447700900102"), 2),
        Peer("tyntec", "192.0.2.10", "mm4.tyntec.example", ("+447700900201", "+447700900202"), 0, "tyntec"),
        Peer("south", "198.51.100.1", "mms.south.example", ("+447700900301", "+447700900302")),
    )
}
OURS = ("+491511000001", "+491511000002")
IDS = (('"t-1"', '"m-1"'), ("t-2", "m-2"), ("t-2", '"m-3"'))
"""As they are written: quoted and bare, and one transaction id under two message ids."""
CONTENTS = {"plain": ("a", "No", 40_000), "asking": ("b", "Yes", 40_000), "longer": ("a", "No", 80_000)}
"""Subject, whether reports are asked for, size: what tells two REQs with the same ids apart."""

peers = st.sampled_from(sorted(PEERS))
ids_ = st.sampled_from(IDS)
contents = st.sampled_from(sorted(CONTENTS))
statuses = st.sampled_from([OK, PASSING, REFUSED])
some = st.sampled_from([(0,), (1,), (0, 1)])
kinds = st.sampled_from([DELIVERY, READ])
yes = st.sampled_from([True, True, True, False])
no = st.sampled_from([False, False, False, False, True])
guesses = st.sampled_from([*[None] * 9, *IDS])
kills = st.sampled_from([None, None, None, None, "before", "after"])
indices = st.integers(0, 1 << 16)
soon_ = st.sampled_from([True, True, True, False])
"""Whether Postfix keeps the mail at once and shows it."""


class Killed(BaseException):
    """The process is gone."""


class Wrong(BaseException):
    """What went out is not right; the cause says why."""


@dataclass
class Mail:
    """What the milter accepted, and what the model knows of it. `source` is a peer's name or `local`."""

    token: str
    queue_id: str
    source: str
    kind: str
    ids: tuple[str, str]
    originator: str
    recipients: frozenset[str]
    content: Any
    at: datetime
    status: str | None
    """What its RES has to say; None: none is due, or it waits for another's word."""
    target: str = "local"
    waits: bool = False
    """Whether its RES waits for that of our MMSC, or of the peer."""
    asking: bool = False
    answers: str | None = None
    """Token of the mail whose RES this one is."""
    becomes: tuple[str, ...] = ()
    mail_from: str = ""
    lines: Headers = field(default_factory=list)
    repeated: frozenset[str] = frozenset()
    committed: bool = False
    lost: bool = False
    seen: bool = False
    """The responder has taken its token."""
    killed: int = 0
    res: list[str] = field(default_factory=list)
    copies: Counter[str] = field(default_factory=Counter)
    stands: dict[str, str | None] = field(default_factory=dict)
    """Of what went to a peer: the status of each recipient."""
    bounces: set[tuple[str, str]] = field(default_factory=set)
    carrier: Mail | None = None
    """The first side's mail, of which this further side's is made; it is committed when it was submitted."""
    sent: int = 0

    @property
    def bare(self) -> tuple[str, str]:
        return bare(self.ids[0]), bare(self.ids[1])

    def data(self) -> bytes:
        """As Postfix delivers it."""
        top = f"Received: from x (x [192.0.2.9])\r\n\tby gw (Postfix) with SMTP id {self.queue_id}\r\n".encode()
        return top + b"".join(n.encode() + b": " + v + b"\r\n" for n, v in self.lines) + b"\r\nbody\r\n"


class Life(RuleBasedStateMachine):
    """The world: peers, our MMSC, Postfix between them and the gateway, and the clock."""

    template: Path

    # -- the real things

    @initialize(on_bounce=st.sampled_from(["report", "res"]))
    def begin(self, on_bounce: str) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=type(self).template.parent))
        shutil.copy(type(self).template, self.folder / "mm4.db")
        self.config = parse_config(CONFIG.replace("ON_BOUNCE", on_bounce), "mm4.yaml")
        self.router = Router(self.config)
        self.on_bounce = on_bounce
        self.runner = asyncio.Runner()
        self.now = T0
        self.count = 0
        self.kill: str | None = None
        self.failing = False
        self.killed = 0
        self.mails: list[Mail] = []
        self.soon = False
        self.said: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.limbo: list[Mail] = []
        self.tokens: list[Mail] = []
        self.undecided: set[str] = set()
        """Tokens of REQs whose second RES came while the first was with Postfix, and nobody knew for how long."""
        self.told: Counter[tuple[str, str, str, str]] = Counter()
        self.start()

    def start(self) -> None:
        self.store = Store.open(f"sqlite:///{self.folder}/mm4.db", migrate=False)
        self.runtime = Runtime(
            self.router, self.store, host="gw", clock=lambda: self.now, new_token=lambda: f"{self.count:032x}", quiet=True
        )
        spool = Spool(self.folder / "spool", 10**9)
        spool.open()
        self.responder = Responder(
            store=self.store, submitter=Submitter(self, False), router=self.router, unclaimed=self.folder / "unclaimed",
            flush=self.flush, now=lambda: self.now, host="gw", spool=spool, retry_seconds=0, pause_seconds=0.001,
        )  # fmt: skip
        self.timers = Timers(
            store=self.store, submitter=Submitter(self, True), spool=spool, config=self.config, host="gw",
            now=lambda: self.now, counters=self, told=self.responder.gave_up,
        )  # fmt: skip

    def stop(self) -> None:
        self.responder.close()
        self.store.close()

    async def flush(self, domain: str) -> None: ...

    def unanswered(self, peer: str, result: str) -> None: ...

    def run_or_die(self, step: Coroutine[Any, Any, Any], kill: str | None) -> Any:
        """Do it; None where it was killed on the way, and started again."""
        self.kill = kill
        try:
            return self.runner.run(step)
        except Killed:
            self.killed += 1
            self.stop()
            self.start()
            return None
        finally:
            self.kill = None

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.settle()
        finally:
            self.stop()
            self.runner.close()
            shutil.rmtree(self.folder)

    # -- Postfix

    def say(self, client: str, mail_from: str, rcpts: Iterable[str], lines: Headers, size: int = 40_000) -> Verdict:
        self.count += 1
        session = Session(self.runtime)
        session.connect(client)
        assert session.mail(f"<{mail_from}>", [f"SIZE={size}"]).positive
        for rcpt in rcpts:
            assert session.rcpt(f"<{rcpt}>").positive
        session.queue_id = f"4X{self.count:05}"
        for name, value in lines:
            session.header(name, value)
        verdict = session.verdict()
        session.close()
        assert verdict.action is not Action.TEMPFAIL or verdict.reply.code == 451
        assert verdict.reason is None or not verdict.reason.startswith("fault"), verdict.reason
        return verdict

    def accept(self, verdict: Verdict, mail: Mail, lines: Headers, *splits: Mail) -> None:
        """The milter said yes: Postfix has to keep it, with what further sides get, or not."""
        assert verdict.action is Action.ACCEPT, verdict
        assert verdict.reply.positive
        added = [address for address, _ in verdict.added]
        assert added.count(f"{mail.token}@responder.mm4.invalid") == 1
        mail.becomes = tuple(address for address in added if not address.endswith("@responder.mm4.invalid"))
        mail.mail_from = mail.mail_from if verdict.mail_from is None else verdict.mail_from
        mail.lines = applied(lines, verdict.edits)
        self.mails += [mail, *splits]
        assert [a for a in added if ".split@" in a] == [f"{split.token}.split@responder.mm4.invalid" for split in splits]
        for split, part in zip(splits, verdict.splits, strict=True):
            split.carrier, split.mail_from = mail, part.mail_from
            split.lines = applied(lines, part.edits)
        self.limbo.append(mail)
        if self.soon:
            self.commit_and_tell(-1)

    @precondition(lambda self: self.limbo)
    @rule(index=indices)
    def commit(self, index: int) -> None:
        mail = self.limbo.pop(index % len(self.limbo))
        mail.committed = True
        self.tokens += [*(m for m in self.mails if m.carrier is mail), mail]

    @precondition(lambda self: self.limbo)
    @rule(index=indices)
    def commit_and_tell(self, index: int) -> None:
        self.commit(index)
        self.serve(self.tokens[-1], again=False, kill=None)

    @precondition(lambda self: self.limbo)
    @rule(index=indices)
    def lose(self, index: int) -> None:
        """Another milter, or the disk, said no after all: the client was told so."""
        self.limbo.pop(index % len(self.limbo)).lost = True

    @precondition(lambda self: self.tokens)
    @rule(index=indices, again=st.booleans(), kill=kills, failing=no)
    def token(self, index: int, again: bool, kill: str | None, failing: bool) -> None:
        self.failing = failing
        try:
            self.serve(self.tokens[index % len(self.tokens)], again, kill)
        finally:
            self.failing = False

    @precondition(lambda self: any(m.seen for m in self.mails))
    @rule(index=indices)
    def token_again(self, index: int) -> None:
        """Postfix did not get our reply."""
        mails = [m for m in self.mails if m.seen and m not in self.tokens]
        if mails:
            self.serve(mails[index % len(mails)], again=True, kill=None)

    def serve(self, mail: Mail, again: bool, kill: str | None) -> None:
        carrier = mail.carrier or mail
        data = carrier.data()
        name = f"{mail.token}.split" if mail.carrier else mail.token
        envelope = Envelope(carrier.mail_from, [f"{name}@responder.mm4.invalid"], len(data))
        wanted = self.responder.wanted(envelope)
        killed = self.killed
        replies = self.run_or_die(self.responder.deliver(envelope, data[:wanted]), kill)
        mail.killed += self.killed - killed
        if replies is None:
            return
        assert replies[0].code == (250 if replies[0].positive else 451)
        if replies[0].positive:
            mail.seen = True
            assert len(mail.res) >= (mail.status is not None), "its RES is out"
            assert mail.carrier is None or mail.sent, "its mail is out"
            if not again:
                self.tokens.remove(mail)
        else:
            assert self.failing

    # -- the process and the clock

    @rule()
    def restart(self) -> None:
        self.stop()
        self.start()

    @rule(step=st.sampled_from([30, 61, 601, 3600, -3600, 86400, 16 * 86400]))
    def time_passes(self, step: int) -> None:
        self.now += timedelta(seconds=step)

    @rule(later=st.sampled_from([0, 601, 1300, 4000]), turns=st.integers(1, 4), kill=kills, failing=no)
    def timers_run(self, later: int, turns: int, kill: str | None, failing: bool) -> None:
        async def once() -> None:
            # One turn of each loop, where the machine wants it.
            await self.timers._mark()
            await self.timers._send()
            await self.timers._sweep()

        self.failing = failing
        for _ in range(turns):
            self.now += timedelta(seconds=later)
            self.run_or_die(once(), kill)
            kill = None
        self.failing = False

    # -- what peers send

    def key(self, mail: Mail) -> tuple[Any, ...]:
        return mail.source, mail.kind, mail.bare, mail.content

    @staticmethod
    def has(mail: Mail, recipient: str) -> bool:
        """Whether he has it: Postfix does, no MMSC answered with an error, and it did not bounce before anybody was told Ok."""
        refused = mail.waits and mail.res != [] and OK not in mail.res
        return mail.seen and not refused and ((recipient, "failed") not in mail.bounces or OK in mail.res)

    def judged(self, verdict: Verdict, mail: Mail, lines: Headers) -> None:
        """A REQ of a peer that deserves a RES, or to go on: in the light of its earlier copies."""
        # What is refused is refused each time: it was delivered to nobody, and may be mended. A broken copy of what
        # was delivered is its duplicate.
        right = [m for m in self.mails if self.key(m) == (*self.key(mail)[:-1], (*mail.content[:-1], "right"))]
        copies = [m for m in right if m.at > self.now - timedelta(days=15)]
        first = {r: [m for m in copies if r in m.recipients - m.repeated] for r in mail.recipients}
        repeated = frozenset(r for r, ms in first.items() if any(self.has(m, r) for m in ms))
        fresh = [m for r, ms in first.items() if r not in repeated for m in ms if not m.seen and abs(self.now - m.at) < timedelta(minutes=1)]
        if fresh:
            assert (verdict.action, verdict.reply.code) == (Action.TEMPFAIL, 451)
            return
        mail.repeated = repeated
        if repeated == mail.recipients:
            if mail.waits or (mail.status and mail.content[-1] != "right"):
                spoken = [m.status for m in self.mails if m.answers in {c.token for c in copies}]
                spoken += [m.status for m in copies if m.status]
                given = verdict.record.answer if verdict.record else None
                assert given is None or given.status in (*spoken, mail.status)
                mail.status = given.status if given else None
            mail.waits = False
        self.accept(verdict, mail, lines)
        delivered = mail.recipients - repeated if mail.status in (None, OK) and mail.content[-1] == "right" else ()
        assert sorted(mail.becomes) == sorted(f"{r}@mmsc.gw.example" for r in delivered)

    @rule(name=peers, ids=ids_, content=contents, to=some, ack=yes, broken=no, soon=soon_)
    def peer_sends(self, name: str, ids: tuple[str, str], content: str, to: tuple[int, ...], ack: bool, broken: bool, soon: bool) -> None:
        self.soon = soon
        self.sends(name, ids, content, to, ack, broken)

    @precondition(lambda self: self.said)
    @rule(which=indices, later=st.sampled_from([0, 0, 61, 601]), soon=soon_)
    def peer_repeats(self, which: int, later: int, soon: bool) -> None:
        """As a peer does that has got no RES, or has forgotten that it did."""
        self.soon = soon
        self.now += timedelta(seconds=later)
        what, values = self.said[which % len(self.said)]
        what(*values)

    def sends(self, name: str, ids: tuple[str, str], content: str, to: tuple[int, ...], ack: bool, broken: bool) -> None:
        self.said.append((self.sends, (name, ids, content, to, ack, broken)))
        peer = PEERS[name]
        originator, numbers = peer.numbers[0], [OURS[n] for n in to]
        subject, asks, size = CONTENTS[content]
        lines = forward(ids, originator, numbers, subject, asks, ack, peer.system)
        if broken:
            lines = [line for line in lines if line[0] != "X-Mms-3GPP-MMS-Version"]
        verdict = self.say(
            peer.client, f"{originator}/TYPE=PLMN@{peer.domain}", [f"{n}/TYPE=PLMN@mms.gw.example" for n in numbers], lines, size
        )
        if broken and not ack:
            assert (verdict.action, verdict.reply.code) == (Action.REJECT, 554)
            return
        waits = ack and not broken and name == "south"
        self.judged(
            verdict,
            self.mail(
                name, FORWARD, ids, originator, numbers, (content, "broken" if broken else "right"),
                (CORRUPT if broken else OK) if ack and not waits else None, waits=waits, asking=asks == "Yes" and not broken,
            ),
            lines,
        )  # fmt: skip

    def mail(
        self, source: str, kind: str, ids: tuple[str, str], originator: str, to: Iterable[str], content: Any, status: str | None, **more: Any
    ) -> Mail:
        return Mail(
            f"{self.count:032x}", f"4X{self.count:05}", source, kind, ids, originator, frozenset(to), content, self.now, status, **more
        )

    @rule(
        name=peers, kind=kinds, which=indices, guess=guesses, wrong=no,
        ids=ids_, says=st.booleans(), ack=yes, foreign=no, soon=soon_,
    )  # fmt: skip
    def peer_reports(
        self, name: str, kind: str, which: int, guess: tuple[str, str] | None, wrong: bool, ids: tuple[str, str], says: bool, ack: bool,
        foreign: bool, soon: bool,
    ) -> None:  # fmt: skip
        """About something of ours, perhaps another peer's, perhaps addressed to another subscriber of ours."""
        self.soon = soon
        ours = [m for m in self.mails if m.source == "local" and m.kind == FORWARD]
        about = ours[which % len(ours)] if ours and guess is None else None
        peer = PEERS[about.target if about and not foreign else name]
        mid = about.ids[1] if about else (guess or IDS[0])[1]
        reporter = sorted(about.recipients)[which % len(about.recipients)] if about else peer.numbers[0]
        told = about.originator if about and not wrong else OURS[0]
        self.reports(peer.name, kind, ids, mid, reporter, told, says, ack)

    def reports(
        self, name: str, kind: str, ids: tuple[str, str], mid: str, reporter: str, told: str, says: bool, ack: bool
    ) -> None:
        self.said.append((self.reports, (name, kind, ids, mid, reporter, told, says, ack)))
        peer = PEERS[name]
        ours = [m for m in self.mails if m.source == "local" and m.kind == FORWARD]
        known = {m.originator for m in ours if m.target == name and m.bare[1] == bare(mid) and reporter in m.recipients}
        lines = report(kind, (ids[0], mid), reporter, told, says, ack, peer.system)
        verdict = self.say(peer.client, peer.system, [f"{told}/TYPE=PLMN@mms.gw.example"], lines)
        if not known and not ack:
            assert (verdict.action, verdict.reply.code) == (Action.REJECT, 550)
            return
        originator = told if told in known or not known else None
        if originator is None:
            assert verdict.record is not None or verdict.action is Action.TEMPFAIL
            originator = verdict.record.transactions[0].recipient if verdict.record else told
            assert verdict.record is None or originator in known, "a report reaches nobody but the originator"
        waits = bool(known) and ack and name == "south"
        status = (OK if known else NOT_FOUND) if ack and not waits else None
        content = (reporter, says, "right" if known else "unknown")
        if verdict.action is Action.TEMPFAIL and originator not in known and known:
            return
        self.judged(verdict, self.mail(name, kind, (ids[0], mid), reporter, [originator], content, status, waits=waits), lines)

    @rule(
        name=peers, which=indices, guess=guesses, foreign=no, status=statuses,
        to=st.sampled_from([None, None, (0,), (1,)]), soon=soon_,
    )  # fmt: skip
    def peer_answers(
        self, name: str, which: int, guess: tuple[str, str] | None, foreign: bool, status: str, to: tuple[int, ...] | None,
        soon: bool,
    ) -> None:  # fmt: skip
        """What we sent, or what we did not; in the name of some recipients, or of all."""
        self.soon = soon
        sent = [m for m in self.mails if m.target != "local" and m.committed]
        about = sent[which % len(sent)] if sent and guess is None else None
        ids = about.ids if about else guess or IDS[0]
        kind = about.kind if about else FORWARD
        peer = PEERS[about.target if about and not foreign else name]
        lines = res(kind, ids, status, [] if to is None else [peer.numbers[n] for n in to])
        spoken_of = None if to is None else {peer.numbers[n] for n in to}
        verdict = self.say(peer.client, peer.system, [SYSTEM], lines)
        unquoted = bare(ids[0]), bare(ids[1])
        fitting = [m for m in self.mails if m.target == peer.name and m.kind == kind and m.bare == unquoted]
        for mail in self.mails:
            for recipient, before in mail.stands.items():
                spoken = mail in fitting and (spoken_of is None or recipient in spoken_of)
                after = self.status_of(mail, recipient)
                if not spoken or before in (OK, REFUSED):
                    assert after == before, "a repeated, contradictory or foreign RES changes nothing"
                elif before is None or before.startswith("5."):
                    assert after == status
                else:
                    assert after in (before, status)
                mail.stands[recipient] = after
        if not any(spoken_of is None or spoken_of & m.recipients for m in fitting):
            assert verdict.record is None or self.store.message(verdict.record.token) is None, "it fits nothing, and ends here"
            return
        # Which of two with the same ids and other recipients is spoken of is not looked at.
        self.passed_on(verdict, [m for m in fitting if m.waits], status, spoken_of, lines, peer.name)

    def waited_for(self, mail: Mail) -> bool:
        """Whether nobody has noted that its RES is out; the bounce of the REQ is one too."""
        message = self.store.message(mail.token)
        assert message is not None
        return message.answered_at is None

    def passed_on(
        self, verdict: Verdict, asked: list[Mail], status: str, spoken_of: set[str] | None, lines: Headers, source: str
    ) -> None:
        """A RES ends here, or goes to the one who waits for it when it is the last word for all recipients."""
        tokens = {m.token for m in asked}
        under_way = [m for m in self.mails if m.answers in tokens and not m.res]
        if verdict.action is Action.TEMPFAIL:
            # Nobody knows yet whether Postfix has kept the first one.
            assert any(abs(self.now - m.at) < timedelta(minutes=1) for m in under_way)
            return
        waiting = [m for m in asked if self.waited_for(m)]
        said = [{r: s for r, s in m.stands.items() if s in (OK, PASSING, REFUSED)} for m in waiting]
        whole = [not spoken_of or m.recipients <= spoken_of | told.keys() for m, told in zip(waiting, said, strict=True)]
        if verdict.record is None or verdict.action is Action.DISCARD:
            assert verdict.action is Action.DISCARD, "no RES is answered"
            assert not whole or not all(whole), "the RES that is waited for is passed on"
            return
        (held,) = (m for m in waiting if m.token == verdict.record.copy_of)
        assert whole[waiting.index(held)], "one word for all"
        assert verdict.record.answer is not None
        given = verdict.record.answer.status
        errors = {s for s in held.stands.values() if s in (PASSING, REFUSED)}
        assert given == status if not held.stands else given in (errors or {OK}), "one word for all: an error before Ok"
        if any(m.answers == held.token and not m.lost for m in under_way):
            self.undecided.add(held.token)
        mail = self.mail(source, "RES", held.ids, "", [], given, given, answers=held.token)
        self.accept(verdict, mail, lines)
        assert mail.becomes == ()

    # -- what our side sends

    @rule(
        name=peers, ids=ids_, originator=st.sampled_from(OURS), content=contents, to=some, ack=yes,
        expiry=st.sampled_from([None, None, 3600]), soon=soon_,
    )  # fmt: skip
    def we_send(
        self, name: str, ids: tuple[str, str], originator: str, content: str, to: tuple[int, ...], ack: bool, expiry: int | None,
        soon: bool,
    ) -> None:  # fmt: skip
        self.soon = soon
        peer = PEERS[name]
        numbers = [peer.numbers[n] for n in to]
        subject, asks, size = CONTENTS[content]
        lines = forward(ids, originator, numbers, subject, asks, ack, MMSC)
        if expiry is not None:
            lines.append(("X-Mms-Expiry", str(expiry).encode()))
        verdict = self.say("127.0.0.1", f"{originator}/TYPE=PLMN@mms.gw.example", [f"{n}/TYPE=PLMN@{peer.domain}" for n in numbers], lines, size)
        mail = self.mail(
            "local", FORWARD, ids, originator, numbers, (content, expiry), None, target=name, waits=ack and name == "south",
            asking=asks == "Yes", stands=dict.fromkeys(numbers),
        )  # fmt: skip
        self.accept(verdict, mail, lines)
        assert sorted(mail.becomes) == sorted(peer.via(f"{n}/TYPE=PLMN") for n in numbers)

    @rule(
        names=st.permutations(sorted(PEERS)), count=st.integers(2, 3), ids=ids_, originator=st.sampled_from(OURS), content=contents,
        to=some, ack=yes, soon=soon_,
    )  # fmt: skip
    def we_send_to_several(
        self, names: list[str], count: int, ids: tuple[str, str], originator: str, content: str, to: tuple[int, ...], ack: bool, soon: bool
    ) -> None:  # fmt: skip
        """One message to recipients of several peers."""
        self.soon = soon
        peers = [PEERS[name] for name in names[:count]]
        numbers = {peer.name: [peer.numbers[n] for n in to] for peer in peers}
        subject, asks, size = CONTENTS[content]
        everybody = [n for together in numbers.values() for n in together]
        lines = forward(ids, originator, everybody, subject, asks, ack, MMSC)
        rcpts = [f"{n}/TYPE=PLMN@mms.gw.example" for n in everybody]
        verdict = self.say("127.0.0.1", f"{originator}/TYPE=PLMN@mms.gw.example", rcpts, lines, size)
        mail, *splits = [
            self.mail(
                "local", FORWARD, ids, originator, numbers[peer.name], (content, None), None, target=peer.name,
                waits=ack and peer.name == "south", asking=asks == "Yes", stands=dict.fromkeys(numbers[peer.name]),
                becomes=tuple(peer.via(f"{n}/TYPE=PLMN") for n in numbers[peer.name]),
            )
            for peer in peers
        ]  # fmt: skip
        for split, part in zip(splits, verdict.splits, strict=True):
            split.token = part.record.token
        self.accept(verdict, mail, lines, *splits)
        assert sorted(mail.becomes) == sorted(peers[0].via(f"{n}/TYPE=PLMN") for n in numbers[peers[0].name])

    @rule(kind=kinds, which=indices, guess=guesses, ids=ids_, says=st.booleans(), soon=soon_)
    def we_report(self, kind: str, which: int, guess: tuple[str, str] | None, ids: tuple[str, str], says: bool, soon: bool) -> None:
        self.soon = soon
        came = [m for m in self.mails if m.target == "local" and m.kind == FORWARD and m.content[-1] == "right"]
        about = came[which % len(came)] if came and guess is None else None
        mid = about.ids[1] if about else (guess or IDS[0])[1]
        peer = PEERS[about.source if about else "north"]
        reporter = sorted(about.recipients)[which % len(about.recipients)] if about else OURS[0]
        lines = report(kind, (ids[0], mid), reporter, peer.numbers[0], says, True, MMSC)
        verdict = self.say("127.0.0.1", SYSTEM, [f"{peer.numbers[0]}/TYPE=PLMN@mms.gw.example"], lines)
        known = [m for m in came if m.bare[1] == bare(mid) and reporter in m.recipients]
        theirs = [m for m in known if m.source == peer.name] or known
        if not known:
            assert verdict.action is Action.REJECT
        elif not any(m.asking for m in theirs):
            assert verdict.action is Action.DISCARD, "what was not asked for goes nowhere"
        elif verdict.action is Action.DISCARD:
            assert not all(m.asking for m in theirs), "what was asked for goes out"
        else:
            assert verdict.record is not None
            source = PEERS[verdict.record.peer]
            assert source.name in {m.source for m in theirs if m.asking}
            told = source.numbers[0]
            mail = self.mail(
                "local", kind, (ids[0], mid), reporter, [told], says, None, target=source.name, waits=source.name == "south",
                stands={told: None},
            )  # fmt: skip
            self.accept(verdict, mail, lines)
            assert mail.becomes == (source.via(f"{told}/TYPE=PLMN"),)

    @precondition(lambda self: any(m.waits and m.target == "local" for m in self.mails))
    @rule(which=indices, status=statuses, soon=soon_)
    def mmsc_answers(self, which: int, status: str, soon: bool) -> None:
        """Our MMSC's own RES, perhaps for the second time."""
        self.soon = soon
        asked = [m for m in self.mails if m.target == "local" and m.waits and m.committed]
        if not asked:
            return
        about = asked[which % len(asked)]
        lines = res(about.kind, about.ids, status, [])
        verdict = self.say("127.0.0.1", SYSTEM, [SYSTEM], lines)
        # Of two with the same ids and other content the newest is answered, even if Postfix has not shown that it has it.
        same = [m for m in self.mails if m.waits and m.target == "local" and (m.kind, m.bare) == (about.kind, about.bare)]
        self.passed_on(verdict, same, status, None, lines, "local")

    # -- bounces

    @precondition(lambda self: any(m.committed and m.becomes for m in self.mails))
    @rule(which=indices, action=st.sampled_from([("failed", "5.1.1"), ("failed", "4.4.7"), ("delayed", "4.4.1"), ("relayed", "2.0.0")]), kill=kills, times=st.integers(1, 2))
    def bounce(self, which: int, action: tuple[str, str], kill: str | None, times: int) -> None:
        gone = [m for m in self.mails if m.committed and m.becomes]
        mail = gone[which % len(gone)]
        address = mail.becomes[which % len(mail.becomes)]
        number = address.partition("@")[0].partition("/")[0]
        mail.bounces.add((number, action[0]))
        for _ in range(times):
            self.home(mail.token, mail.mail_from or SYSTEM, address, action, kill)
            kill = None
        if action[0] == "failed" and number in mail.stands:
            before, after = mail.stands[number], self.status_of(mail, number)
            assert after == before or before not in (OK, REFUSED), "the first word counts"
            mail.stands[number] = after

    @precondition(lambda self: any(m.res for m in self.mails))
    @rule(which=indices)
    def answer_bounces(self, which: int) -> None:
        answered = [m for m in self.mails if m.res]
        mail = answered[which % len(answered)]
        self.home(f"{mail.token}.answer", SYSTEM, PEERS["north"].system, ("failed", "5.1.1"), "before")
        # Nobody is told: a submission would have killed it.
        assert self.kill is None

    def home(self, envelope_id: str, rcpt: str, address: str, action: tuple[str, str], kill: str | None) -> None:
        data = (
            "Received: by gw (Postfix)\r\n\tid DSN1; Mon\r\n"
            'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            f"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; gw\r\nOriginal-Envelope-Id: {envelope_id}\r\n"
            f"\r\nFinal-Recipient: rfc822; {address}\r\nAction: {action[0]}\r\nStatus: {action[1]}\r\n\r\n--b--\r\n"
        ).encode()
        killed = self.killed
        for _ in range(2):
            replies = self.run_or_die(self.responder.deliver(Envelope("", [rcpt], len(data)), data), kill)
            if replies is not None:
                assert replies[0].code == 250
                break
            # Postfix has it still.
            kill = None
        assert not (envelope_id.endswith(".answer") and self.killed > killed), "nothing is sent because an answer bounced"

    # -- what goes out

    def submitted(self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None, copy: bool) -> None:
        """The one place where something leaves the gateway by itself: it has to be due."""
        assert envelope_id is not None
        token, _, of = envelope_id.partition(".")
        mail = next((m for m in self.mails if m.token == token), None)
        if not isinstance(rcpt_to, str):
            assert mail is not None
            self.split_goes_out(mail, mail_from, rcpt_to, message)
        elif of == "answer":
            assert mail is not None
            self.res_goes_out(mail, rcpt_to, message)
        elif copy:
            assert mail is not None
            self.copy_goes_out(mail, rcpt_to, message)
        else:
            self.notice_goes_out(token, rcpt_to, message)

    def res_goes_out(self, mail: Mail, rcpt_to: str, message: bytes) -> None:
        held = next((m for m in self.mails if m.token == mail.answers), mail)
        assert mail.committed, "no RES for what Postfix did not keep"
        same = [m for m in self.mails if (m.source, m.kind, m.bare) == (held.source, held.kind, held.bare)]
        assert held.source == "local" or any(m.committed for m in same), "a peer is believed, also if it guessed the ids"
        assert mail.status is not None, "nobody asked for a RES, or it waits for another's word"
        asker = PEERS.get(held.source)
        assert rcpt_to == (f"{asker.system}.via-{asker.name}.mm4.invalid" if asker else MMSC), "who asked, and nobody else"
        pdu = read_message(message, asker.dialect if asker else "3gpp")
        assert (pdu.type, pdu.get("status_code")) == (held.kind.replace(".REQ", ".RES"), mail.status)
        for name, value in zip(("Transaction", "Message"), held.ids, strict=True):
            if name == "Transaction" or b"X-Mms-Message-ID:" in message:
                assert f"\r\nX-Mms-{name}-ID: {value}\r\n".encode() in message
        mail.res.append(mail.status)
        assert len(mail.res) <= 1 + mail.killed, "twice only after a kill"
        if held is not mail:
            held.res.append(mail.status)
            assert len(held.res) <= 1 + self.killed or held.token in self.undecided, "one RES, and no other that contradicts it"

    def split_goes_out(self, mail: Mail, mail_from: str, rcpt_to: Sequence[str], message: bytes) -> None:
        assert mail.carrier is not None
        assert mail.carrier.committed, "nothing goes out of what Postfix did not keep"
        assert (mail_from, sorted(rcpt_to)) == (mail.mail_from, sorted(mail.becomes))
        assert message == mail.data().partition(b"id " + mail.queue_id.encode() + b"\r\n")[2], "to the byte"
        mail.committed = True
        mail.sent += 1
        assert mail.sent <= 1 + mail.killed, "twice only after a kill"

    def copy_goes_out(self, mail: Mail, rcpt_to: str, message: bytes) -> None:
        peer = PEERS[mail.target]
        assert mail.committed
        (number,) = (n for n in mail.recipients if rcpt_to == peer.via(f"{n}/TYPE=PLMN"))
        assert mail.stands[number] in (None, PASSING), "nothing is sent again once it has its answer"
        assert (number, "failed") not in mail.bounces
        assert f"\r\nX-Mms-Transaction-ID: {mail.ids[0]}\r\n".encode() in b"\r\n" + message
        expiry = mail.content[1] if mail.kind == FORWARD else None
        assert expiry is None or self.now < mail.at + timedelta(seconds=expiry)
        mail.copies[number] += 1
        assert mail.copies[number] <= peer.retries + self.killed

    def notice_goes_out(self, token: str, rcpt_to: str, message: bytes) -> None:
        """What became of a message, to its originator alone, who asked; once for each recipient."""
        dialect = "tyntec" if "via-tyntec" in rcpt_to else "3gpp"
        pdu = read_message(message, dialect)
        record = self.store.message(token)
        if record is not None and record.copy_of is not None:
            # The RES that our MMSC asked for, instead of the peer's, which will not come.
            (held,) = (m for m in self.mails if m.token == record.copy_of)
            assert (held.waits, held.source, rcpt_to) == (True, "local", MMSC)
            assert self.gone(held, set(held.recipients))
            held.res.append(str(pdu.get("status_code")))
            assert pdu.get("status_code") != OK
            assert len(held.res) <= 1 + self.killed or held.token in self.undecided
            return
        if pdu.type == "MM4_forward.RES":
            assert (self.on_bounce, rcpt_to) == ("res", MMSC)
            assert pdu.get("status_code") != OK
            recipients = {a.key for a in pdu.get("request_recipients") or ()}
        else:
            recipients = {pdu.get("sender").key}
        about = [
            m
            for m in self.mails
            if m.kind == FORWARD and m.bare[1] == pdu.get("message_id") and recipients <= m.recipients and self.gone(m, recipients)
        ]
        if pdu.type == DELIVERY:
            about = [
                m
                for m in about
                if m.asking and rcpt_to == (f"{m.originator}@mmsc.gw.example" if m.source == "local" else PEERS[m.source].via(f"{m.originator}/TYPE=PLMN"))
            ]
        assert about, "there is a message of his that came to an end, and he asked"
        (recipient,) = recipients
        key = (str(pdu.type), str(pdu.get("message_id")), recipient, rcpt_to)
        self.told[key] += 1
        assert self.told[key] <= sum(len({a for n, a in m.bounces if n == recipient} | {"failed"}) for m in about) + self.killed

    def gone(self, mail: Mail, recipients: set[str]) -> bool:
        """It bounced, arrived where we report that, or the timers gave it up."""
        return any(n in recipients and a != "delayed" for n, a in mail.bounces) or any(
            t.recipient in recipients and t.state is State.FAILED for t in self.kept(mail)
        )

    def kept(self, mail: Mail) -> tuple[Any, ...]:
        message = self.store.message(mail.token)
        assert message is not None, "nothing vanishes"
        return message.transactions

    def status_of(self, mail: Mail, recipient: str) -> str | None:
        (status,) = (t.status for t in self.kept(mail) if t.recipient == recipient)
        return str(status) if status else None

    def settle(self) -> None:
        """In the end Postfix brings every token, and every REQ that it kept has its RES and its one delivery."""
        for mail in list(self.tokens):
            self.serve(mail, again=False, kill=None)
        assert self.tokens == []
        for mail in self.mails:
            assert mail.carrier is None or mail.committed == mail.carrier.committed, "each side gets its own"
            if mail.committed:
                assert mail.seen
                assert mail.status is None or mail.res, "a RES for each REQ that was answered 250"
            elif mail.source != "local" and not mail.waits:
                assert mail.res == []
            if mail.committed and mail.target == "local" and mail.kind == FORWARD and mail.content[-1] == "right":
                for recipient in mail.recipients:
                    assert self.delivered(mail, recipient), "nothing vanishes"

    def delivered(self, mail: Mail, recipient: str) -> bool:
        return any(
            f"{recipient}@mmsc.gw.example" in m.becomes for m in self.mails if m.committed and self.key(m) == self.key(mail)
        )


class Submitter:
    """Postfix takes what is submitted, fails, or the process dies before or after that."""

    def __init__(self, life: Life, copies: bool) -> None:
        self.life, self.copies, self.number = life, copies, 0

    async def submit(
        self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None, notify: str | None = None
    ) -> str:
        if self.life.failing:
            raise SubmissionError("451 later")
        if self.life.kill == "before":
            raise Killed
        try:
            self.life.submitted(mail_from, rcpt_to, message, envelope_id, self.copies)
        except Exception as error:
            # The responder would take it for a fault that may pass.
            raise Wrong from error
        if self.life.kill == "after":
            raise Killed
        self.number += 1
        return f"5Y{self.number:05}"


def bare(text: str) -> str:
    return text.strip('"')


def encoded(*lines: tuple[str, str]) -> Headers:
    return [(name, value.encode()) for name, value in lines]


def forward(ids: tuple[str, str], originator: str, to: Iterable[str], subject: str, asks: str, ack: bool, system: str) -> Headers:
    domain = system.partition("@")[2]
    return encoded(
        ("Date", "Thu, 12 Nov 2026 02:28:01 +0200"), ("From", f"{originator}/TYPE=PLMN"),
        ("Sender", f"{originator}/TYPE=PLMN@{domain}"), ("To", ", ".join(f"{n}/TYPE=PLMN" for n in to)), ("Subject", subject),
        ("Content-Type", "multipart/related; boundary=b1"), ("X-Mms-3GPP-MMS-Version", "5.5.0"), ("X-Mms-Message-Type", FORWARD),
        ("X-Mms-Transaction-ID", ids[0]), ("X-Mms-Message-ID", ids[1]), ("X-Mms-Ack-Request", "Yes" if ack else "No"),
        ("X-Mms-Originator-System", system), ("X-Mms-Delivery-Report", asks), ("X-Mms-Read-Reply", asks),
    )  # fmt: skip


def report(kind: str, ids: tuple[str, str], reporter: str, told: str, good: bool, ack: bool, system: str) -> Headers:
    domain = system.partition("@")[2]
    says = ("X-Mms-MM-Status-Code", "Retrieved" if good else "Rejected") if kind == DELIVERY else ("X-Mms-Read-Status", "Read" if good else "Deleted without being read")
    return encoded(
        ("Date", "Thu, 12 Nov 2026 02:28:01 +0200"), ("From", f"{reporter}/TYPE=PLMN"), ("Sender", system), ("To", f"{told}/TYPE=PLMN@{domain}"),
        ("X-Mms-3GPP-MMS-Version", "5.5.0"), ("X-Mms-Message-Type", kind), ("X-Mms-Transaction-ID", ids[0]), ("X-Mms-Message-ID", ids[1]),
        ("X-Mms-Ack-Request", "Yes" if ack else "No"), ("X-Mms-Originator-System", system), ("Content-Type", "text/plain"), says,
    )  # fmt: skip


def res(kind: str, ids: tuple[str, str], status: str, to: Iterable[str]) -> Headers:
    lines = [
        ("Date", "Thu, 12 Nov 2026 02:28:01 +0200"), ("From", "postmaster"), ("To", SYSTEM), ("X-Mms-3GPP-MMS-Version", "5.5.0"),
        ("X-Mms-Message-Type", kind.replace(".REQ", ".RES")), ("X-Mms-Transaction-ID", ids[0]), ("X-Mms-Message-ID", ids[1]),
        ("X-Mms-Request-Status-Code", status),
    ]  # fmt: skip
    named = ", ".join(f"{n}/TYPE=PLMN" for n in to)
    return encoded(*lines, *([("X-Mms-Request-Recipients", named)] if named else []))


SETTINGS = settings(
    max_examples=int(os.environ.get("MM4_EXAMPLES", "40")),
    stateful_step_count=int(os.environ.get("MM4_STEPS", "40")),
    deadline=None,
    derandomize="MM4_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_no_message_is_lost_no_ack_is_wrong_and_nothing_comes_twice(tmp_path: Path) -> None:
    Life.template = tmp_path / "template.db"
    Store.open(f"sqlite:///{Life.template}").close()
    run_state_machine_as_test(Life, settings=SETTINGS)
