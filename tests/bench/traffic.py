"""A Postfix with this gateway beside the same Postfix without it: messages a second, by size and by sessions.

The kinds take turns in every round, so that a slow minute of the host hits all of them: L (Postfix alone carries the
same REQs and as many mails of the size of an ack), no-op (the same with a milter that does nothing), smtp and sendmail
(the gateway, by its two ways of submitting acks). A run is finished when every message has been accepted and delivered,
every ack is out and the queue is empty.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness import LOCAL, NORTH, Sandbox, forward_req, wait_for

from .cpu import memory_of, processes, spent, total
from .daemon import PEER, WORKERS
from .figures import EOM, Run, cpu_table, eom_times, of, ratios, speed_table, spread
from .noop import Noop
from .part import Asked, Part, Target, Wrong, say, turns
from .plain import PlainPostfix
from .sender import Item, Stream, send
from .sinks import Sink

__all__ = ["FLOORS", "GOALS", "KINDS", "Load", "instances", "measure", "requests", "sessions", "sizes"]

KINDS = ("L", "no-op", "smtp", "sendmail")
FLOORS = {"smtp": 0.60, "sendmail": 0.40}
"""The share of L that each way of submission has to reach."""
GOALS = {"smtp": 0.80, "sendmail": 0.50}
"""The share that is aimed at."""
SENDER = f"+447700900101/TYPE=PLMN@{PEER}"
SYSTEM = f"PostMaster@{PEER}"
CONFIG = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  numbers: ["+491511"]
  deliver_to: "{{number}}@mmsc.gw.example"
  next_hop: "{mmsc}"
peers:
  north: {{domains: [{peer}], networks: [{address}/32], next_hop: "{hop}"}}
submit: {submit}
"""
# What the gateway writes, so that L carries mails of the size of an ack.
RES = """\
X-Mms-3GPP-MMS-Version: 5.5.0\r
X-Mms-Message-Type: MM4_forward.RES\r
X-Mms-Transaction-ID: "{id}"\r
X-Mms-Message-ID: "m{id}"\r
X-Mms-Request-Status-Code: Ok\r
From: system-user@mms.gw.example\r
To: PostMaster@mms.north.example\r
Date: Sun, 22 Nov 2026 13:48:17 +0000\r
Content-Type: text/plain; charset=us-ascii\r
Message-ID: <a139fb30a356d829ae137ba6a18799ed@mms.gw.example>\r
MIME-Version: 1.0\r
\r
"""
LIMIT = 300.0
"""Seconds until a run that does not finish has failed."""


@dataclass(frozen=True)
class Load:
    """What is sent: `size` in kB on the wire, so many connections at a time, each with message after message, or one."""

    size: int
    sessions: int
    keep: bool = False

    @property
    def name(self) -> str:
        """As it stands in the tables."""
        many = f"{self.sessions} session{'s' if self.sessions > 1 else ''}"
        return f"{self.size} kB, {many}{', kept' if self.keep else ''}"


@dataclass
class Kind:
    """One of the instances that are compared."""

    name: str
    smtp: str
    root: int
    """Process id below which it lives."""
    log: Path
    queue: Path
    mmsc: Sink
    peer: Sink
    asked: Counter[str] = field(default_factory=Counter)
    """Transaction ids of all REQs so far: each has to come back once."""
    submit: str = ""
    """Where what stands for the acks comes in, if that is another line."""
    noop: Noop | None = None

    @property
    def plain(self) -> bool:
        """No gateway: nobody answers, and what stands for the acks has to be sent."""
        return self.name in ("L", "no-op")


def requests(size: int, count: int, label: str, local: bool) -> list[Item]:
    """REQs of `size` kB on the wire with ids of their own; `local` for the addresses that the milter would write."""
    marks = ("@@transaction@@", "@@message@@", "@@number@@")
    picture = base64.encodebytes(random.Random(1).randbytes(size * 740)).replace(b"\n", b"\r\n")
    while True:
        template = forward_req(sender=SENDER.partition("/")[0], to=marks[2], ids=(f'"{marks[0]}"', f'"{marks[1]}"'),
                               system=SYSTEM, body=picture)  # fmt: skip
        excess = len(template) - size * 1000
        if abs(excess) < 80:
            break
        lines = picture.splitlines(keepends=True)
        picture = b"".join(lines[: len(lines) - excess // 78] if excess > 0 else lines + lines[: -excess // 78])
    head, blank, rest = template.partition(b"\r\n\r\n")
    block = (head + blank).decode("ascii")
    items = []
    for n in range(count):
        number = f"+491511{n:06d}"
        values = (f"{label}-{n}@{PEER}", f"m{label}-{n}@{PEER}", number)
        text = block
        for mark, value in zip(marks, values, strict=True):
            text = text.replace(mark, value)
        rcpt = f"{number}@mmsc.gw.example" if local else f"{number}/TYPE=PLMN@mms.gw.example"
        items.append(Item(SENDER, rcpt, text.encode(), rest))
    return items


def answers(count: int, label: str) -> list[Item]:
    """As many mails of an ack's size, for L."""
    return [
        Item("system-user@mms.gw.example", SYSTEM, RES.format(id=f"{label}-{n}@{PEER}").encode()) for n in range(count)
    ]


def waiting(queue: Path) -> int:
    """Messages in a Postfix's queue; in the order in which they move on, so that none is overlooked."""
    found = 0
    for name in ("maildrop", "hold", "incoming", "active"):
        with contextlib.suppress(FileNotFoundError):
            found += sum(entry.is_file() for entry in os.scandir(queue / name))
    return found + sum(len(files) for _, _, files in os.walk(queue / "deferred"))


def measure(kind: Kind, number: int, load: Load, count: int) -> Run:
    """One run. Raises Wrong, Refused."""
    label = f"{kind.name}-{load.size}{'k' if load.keep else ''}-{load.sessions}-{number}"
    reqs = requests(load.size, count, label, kind.plain)
    streams = [Stream(kind.smtp, NORTH, reqs, load.sessions, keep=load.keep)]
    if kind.plain:
        where, source = (kind.submit, LOCAL) if kind.submit else (kind.smtp, NORTH)
        streams.append(Stream(where, source, answers(count, label), load.sessions, keep=load.keep))
    kind.asked.update(f"{label}-{n}@{PEER}" for n in range(count))
    delivered, acked = kind.mmsc.count() + count, kind.peer.count() + count
    os.sync()  # what an earlier run left to be written is not this run's load
    offset = kind.log.stat().st_size
    others = (os.getpid(), kind.mmsc.process.pid, kind.peer.process.pid)
    milter = kind.noop.workers if kind.noop else ()
    before, (worked, idle) = spent(processes(), kind.root, others, milter), total()
    begun = send(*streams)
    accepted = time.monotonic()
    while kind.mmsc.count() < delivered or kind.peer.count() < acked or waiting(kind.queue):
        if time.monotonic() - begun > LIMIT:
            raise Wrong(
                f"{label}: not finished after {LIMIT:.0f} s: {kind.mmsc.count() - delivered} deliveries and "
                f"{kind.peer.count() - acked} acks beyond what is due, {waiting(kind.queue)} in the queue"
            )
        time.sleep(0.005)
    finished = time.monotonic()
    after, (worked_then, idle_then) = spent(processes(), kind.root, others, milter), total()
    eom = check(kind, label, streams[0].queue_ids, offset)
    cpu = {group: after[group] - before[group] for group in after}
    machine = worked_then - worked + idle_then - idle
    foreign = max(0.0, worked_then - worked - sum(cpu.values()))
    return Run(
        number, kind.name, load.name, count, finished - begun, accepted - begun, eom, cpu,
        (idle_then - idle) / machine, foreign / machine,
    )  # fmt: skip


_SENT = re.compile(r" (\w+): to=<([^>]*)>.* status=(\w+)")
_REMOVED = re.compile(r": (\w+): removed")
_EOM = re.compile(r"mm4/milter\[\d+\]: queue_id=(\w+) .* verdict=accept .*ms=([\d.]+)")


def check(kind: Kind, label: str, ids: Sequence[str], offset: int) -> list[float]:
    """That every message arrived once and every REQ has one ack; the milliseconds of each eom. Raises Wrong."""
    problems = []
    if len(set(ids)) != len(ids):
        problems.append("a queue id came twice")

    def read() -> str:
        with kind.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def complete() -> bool:
        text = read()
        return set(ids) <= set(_REMOVED.findall(text)) and (
            kind.plain or len(_EOM.findall(text)) >= len(ids)
        )

    # Postfix's log goes through a daemon of its own, which may be a little behind.
    wait_for(complete, f"{label}: the log lines of all messages")
    text = read()
    deliveries: Counter[str] = Counter()
    for queue_id, address, status in _SENT.findall(text):
        if status != "sent":
            problems.append(f"{queue_id} to {address}: {status}")
        elif address.endswith("@mmsc.gw.example"):
            deliveries[queue_id] += 1
    problems += [f"{queue_id}: delivered {deliveries[queue_id]} times" for queue_id in ids if deliveries[queue_id] != 1]
    came = kind.peer.transactions()
    problems += [f"{name}: {came[name]} acks" for name in kind.asked if came[name] != 1]
    problems += [f"{name}: an ack that nobody asked for" for name in came if name not in kind.asked]
    eom = {queue_id: float(ms) for queue_id, ms in _EOM.findall(text)}
    if not kind.plain and set(eom) != set(ids):
        problems.append(f"{len(eom)} verdicts for {len(ids)} messages")
    if problems:
        raise Wrong("\n".join([f"{label}: {len(problems)} problems", *problems[:20]]))
    return list(eom.values())


@contextlib.contextmanager
def instances(asked: Asked, wanted: Sequence[str] = KINDS) -> Iterator[list[Kind]]:
    """The kinds, ready for mail."""
    with contextlib.ExitStack() as stack:
        kinds = []
        for name in wanted:
            mmsc, peer = Sink(asked.memory, f"{name}-mmsc"), Sink(asked.memory, f"{name}-peer", keep=True)
            stack.callback(mmsc.close)
            stack.callback(peer.close)
            values = {"mmsc": mmsc.hop, "hop": peer.hop, "peer": PEER, "address": NORTH}
            own = asked.folder / name
            own.mkdir()
            if name in ("L", "no-op"):
                config = CONFIG.format(submit="smtp", **values)
                plain = PlainPostfix(config, own, PEER, peer.hop, milter=name == "no-op")
                stack.callback(plain.close)
                kind = Kind(name, plain.smtp, plain.pid, plain.log_file, plain.queue, mmsc, peer)
                if name == "no-op":
                    kind.noop, kind.submit = Noop(plain.milter, WORKERS), plain.submit
                    stack.callback(kind.noop.close)
            else:
                sandbox = stack.enter_context(Sandbox(CONFIG.format(submit=name, **values), folder=own))
                facts = sandbox.facts
                log, queue = Path(facts["log"]), Path(facts["queue_directory"])
                kind = Kind(name, str(facts["smtp"]), int(facts["pid"]), log, queue, mmsc, peer)
            kinds.append(kind)
        for kind in kinds:  # processes started, caches filled
            measure(kind, 0, Load(40, 20), min(100, asked.messages))
        yield kinds
        for kind in kinds:  # an ack that comes twice may come late
            check(kind, f"{kind.name} at the end", [], kind.log.stat().st_size)


def sender_alone(asked: Asked, loads: Sequence[Load]) -> dict[str, list[float]]:
    """Messages a second that the sender brings into smtp-sink with nothing between: its own limit, by load."""
    sink = Sink(asked.memory, "alone")
    try:
        rates: dict[str, list[float]] = {}
        for load in loads:
            items = requests(load.size, asked.messages, "alone", True)
            for _ in range(asked.rounds):
                stream = Stream(sink.server, "127.0.0.1", items, load.sessions, keep=load.keep)
                begun = send(stream)
                rates.setdefault(load.name, []).append(asked.messages / (time.monotonic() - begun))
        return rates
    finally:
        sink.close()


def taking_turns(asked: Asked, kinds: Sequence[Kind], loads: Mapping[Load, int]) -> list[Run]:
    """Every load, with its number of messages, by every kind in turn, round after round; who begins changes."""
    runs = []
    for load, count in loads.items():
        for number in range(1, asked.rounds + 1):
            for kind in turns(kinds, number):
                runs.append(measure(kind, number, load, count))
                say(f"{load.name}, round {number}, {kind.name}: {runs[-1].rate:.0f}/s")
    order = [kind.name for kind in kinds]
    return sorted(runs, key=lambda run: order.index(run.kind))


def _tables(runs: Sequence[Run]) -> list[str]:
    return [
        *speed_table(runs, "L"), "", "CPU milliseconds a message:", "", *cpu_table(runs), "",
        f"Of the machine's CPU {spread([100 * run.idle for run in runs], 0)} % were idle during the runs, and "
        f"{spread([100 * run.foreign for run in runs], 0)} % went to none of these: the kernel's own threads, and "
        "whatever else ran.",
    ]  # fmt: skip


def _shares(runs: Sequence[Run], loads: Sequence[Load]) -> list[Target]:
    """Floors and goals."""
    targets = []
    for load in loads:
        for name, floor in FLOORS.items():
            middle = statistics.median(ratios(runs, name, load.name))
            for what, bound in (("floor", floor), ("goal", GOALS[name])):
                targets.append(
                    Target(f"{name}, {load.name}, to L: {what}", f">= {bound:.2f}", f"{middle:.2f}", middle >= bound)
                )
    return targets


def sizes(asked: Asked) -> Part:
    """All kinds at 20 sessions with 4, 40 and 400 kB; what the daemon's processes hold in memory at the end."""
    loads = [Load(size, 20) for size in ((40,) if asked.short else (4, 40, 400))]
    alone = sender_alone(asked, loads)
    with instances(asked) as kinds:
        runs = taking_turns(asked, kinds, dict.fromkeys(loads, asked.messages))
        held = {kind.name: memory_of(processes(), kind.root) for kind in kinds if not kind.plain}
    said = [
        f"{name} {', '.join(f'{group} {max(sizes):.0f} MB' for group, sizes in groups.items())}"
        for name, groups in held.items()
    ]
    limits = "; ".join(f"{load}: {spread(rates, 0)}/s" for load, rates in alone.items())
    lines = [
        *_tables(runs), "",
        f"The sender alone, into smtp-sink, {limits}. Resident memory of the largest process at the end: {'; '.join(said)}.",
    ]  # fmt: skip
    targets = _shares(runs, [load for load in loads if load.size >= 40])
    data = {"alone": alone, "memory": held, "runs": [asdict(run) for run in runs]}
    return Part("Beside Postfix, by size", lines, targets, data)


def sessions(asked: Asked) -> Part:
    """All kinds at 40 kB with 1 and 100 sessions, and with 20 that are kept."""
    loads = {Load(40, 1): asked.many(100, 20), Load(40, 100): asked.messages, Load(40, 20, keep=True): asked.messages}
    with instances(asked) as kinds:
        runs = taking_turns(asked, kinds, loads)
    targets = []
    for name in FLOORS:
        p99 = statistics.median(eom_times(of(runs, name, Load(40, 100).name), 0.99))
        targets.append(
            Target(f"eom p99, {name}, 40 kB, 100 sessions at a time", f"< {EOM:.0f} ms", f"{p99:.1f} ms", p99 < EOM)
        )
    return Part("Beside Postfix, by sessions", _tables(runs), targets, {"runs": [asdict(run) for run in runs]})
