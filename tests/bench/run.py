"""`make bench`: how many MMS a second this gateway carries, beside the same Postfix without it.

Three kinds take turns in every round, so that a slow minute of the host hits all of them: L (Postfix alone carries
the same REQs and as many mails of the size of an ack), smtp and sendmail (the gateway, by its two ways of submitting
acks). A run is finished when every message has been accepted and delivered, every ack is out and the queue is empty.
Exit 0; 1 where a message or ack is missing, comes twice or waits; 2 wrong use.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cpu import processes, spent, total
from bench.figures import FLOORS, Run, cpu_table, percentile, ratios, replaced, speed_table, spread
from bench.machine import machine_lines
from bench.plain import PlainPostfix
from bench.sender import Item, Refused, Stream, send
from bench.sinks import Sink
from harness import NORTH, Sandbox, forward_req, wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
PEER = "mms.north.example"
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


class Wrong(Exception):
    """A message or an ack is missing, came twice, or waits: the numbers mean nothing."""


@dataclass(frozen=True)
class Load:
    """What is sent: `size` in kB on the wire, and whether a connection carries message after message, or one."""

    size: int
    keep: bool = False

    @property
    def name(self) -> str:
        """As it stands in the tables."""
        return f"{self.size} kB" + (", kept connections" if self.keep else "")


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
    asked: Counter[str]
    """Transaction ids of all REQs so far: each has to come back once."""


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


def measure(kind: Kind, number: int, load: Load, count: int, sessions: int) -> Run:
    """One run. Raises Wrong, Refused."""
    label = f"{kind.name}-{load.size}{'k' if load.keep else ''}-{sessions}-{number}"
    plain = kind.name == "L"
    reqs = requests(load.size, count, label, plain)
    streams = [Stream(kind.smtp, NORTH, reqs, sessions, keep=load.keep)]
    if plain:
        streams.append(Stream(kind.smtp, NORTH, answers(count, label), sessions, keep=load.keep))
    kind.asked.update(f"{label}-{n}@{PEER}" for n in range(count))
    delivered, acked = kind.mmsc.count() + count, kind.peer.count() + count
    os.sync()  # what an earlier run left to be written is not this run's load
    offset = kind.log.stat().st_size
    others = (os.getpid(), kind.mmsc.process.pid, kind.peer.process.pid)
    before, (worked, idle) = spent(processes(), kind.root, others), total()
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
    after, (worked_then, idle_then) = spent(processes(), kind.root, others), total()
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
            kind.name == "L" or len(_EOM.findall(text)) >= len(ids)
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
    if kind.name != "L" and set(eom) != set(ids):
        problems.append(f"{len(eom)} verdicts for {len(ids)} messages")
    if problems:
        raise Wrong("\n".join([f"{label}: {len(problems)} problems", *problems[:20]]))
    return list(eom.values())


@contextlib.contextmanager
def instances(folder: Path, memory: Path) -> Iterator[list[Kind]]:
    """The three kinds, ready for mail, in one folder; what the peers take is kept in `memory`."""
    with contextlib.ExitStack() as stack:
        kinds = []
        for name in ("L", "smtp", "sendmail"):
            mmsc, peer = Sink(memory, f"{name}-mmsc"), Sink(memory, f"{name}-peer", keep=True)
            stack.callback(mmsc.close)
            stack.callback(peer.close)
            values = {"mmsc": mmsc.hop, "hop": peer.hop, "peer": PEER, "address": NORTH}
            config = CONFIG.format(submit="smtp" if name == "L" else name, **values)
            if name == "L":
                plain = PlainPostfix(config, folder, PEER, peer.hop)
                stack.callback(plain.close)
                where = (plain.smtp, plain.pid, plain.log_file, plain.queue)
            else:
                own = folder / name
                own.mkdir()
                facts = stack.enter_context(Sandbox(config, folder=own)).facts
                where = (str(facts["smtp"]), int(facts["pid"]), Path(facts["log"]), Path(facts["queue_directory"]))
            kinds.append(Kind(name, *where, mmsc, peer, Counter()))
        yield kinds


def sender_alone(memory: Path, loads: Sequence[Load], count: int, sessions: int) -> dict[str, float]:
    """Messages a second that the sender brings into smtp-sink with nothing between: its own limit, by load."""
    sink = Sink(memory, "alone")
    try:
        rates = {}
        for load in loads:
            items = requests(load.size, count, "alone", True)
            stream = Stream(sink.server, "127.0.0.1", items, sessions, keep=load.keep)
            begun = send(stream)
            rates[load.name] = count / (time.monotonic() - begun)
        return rates
    finally:
        sink.close()


def page(runs: Sequence[Run], single: Run, alone: dict[str, float], machine: Sequence[str], asked: Options) -> str:
    """The part of docs/performance.md that is measured."""
    limits = ", ".join(f"{rate:.0f}/s ({load})" for load, rate in alone.items())
    p50, p99 = (percentile(single.eom, share) for share in (0.50, 0.99))
    return "\n".join(
        [
            f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {asked.rounds} rounds, "
            f"{asked.messages} messages a run, {asked.sessions} connections at a time.",
            "",
            *machine,
            f"- The sender alone, into smtp-sink: {limits}.",
            "",
            "Median (lowest-highest) over the rounds; a ratio is taken within its round. eom over all messages.",
            "",
            *speed_table(runs),
            "",
            f"One message at a time, {single.load}, {single.messages} messages: "
            f"eom p50 {p50:.1f} ms, p99 {p99:.1f} ms.",
            "",
            "CPU milliseconds a message, medians over the rounds:",
            "",
            *cpu_table(runs),
            "",
            f"Of the machine's CPU {spread([100 * run.idle for run in runs], 0)} % were idle during the runs, and "
            f"{spread([100 * run.foreign for run in runs], 0)} % went to none of these: the kernel's own threads, and "
            "whatever else ran.",
        ]
    )


@dataclass(frozen=True)
class Options:
    """The command line."""

    rounds: int
    messages: int
    sizes: tuple[int, ...]
    sessions: int
    json: Path | None
    write: bool


def arguments(argv: Sequence[str]) -> Options:
    """Read the command line; what is wrong with it ends with 2."""
    parser = argparse.ArgumentParser(description="Messages a second, beside the same Postfix without a milter.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all three kinds (5)")
    parser.add_argument("--messages", type=int, default=500, help="messages a run (500)")
    parser.add_argument("--sizes", default="40,400", help="kB on the wire, with commas (40,400)")
    parser.add_argument("--sessions", type=int, default=20, help="SMTP connections of the peer at a time (20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    given = vars(parser.parse_args(argv))
    try:
        given["sizes"] = tuple(int(size) for size in given["sizes"].split(","))
    except ValueError:
        parser.error(f"--sizes {given['sizes']}: numbers with commas, for example 40,400")
    options = Options(**given)
    if min(options.rounds, options.messages, options.sessions) < 1 or min(options.sizes) < 4:
        parser.error("rounds, messages and sessions are at least 1, sizes at least 4 kB")
    if options.write:
        replaced(PAGE.read_text(), "")  # that the page has its markers is known before minutes are spent
    return options


def main(argv: Sequence[str]) -> int:
    """Run the bench; the exit code."""
    options = arguments(argv)
    if os.geteuid() != 0:
        print("bench: has to run as root, as a private Postfix does: sudo make bench", file=sys.stderr)
        return 2
    # Not /tmp, which is memory on newer Debian: the queue and the store have to lie on a disk.
    folder = Path(tempfile.mkdtemp(prefix="mm4-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    memory = Path(tempfile.mkdtemp(prefix="mm4-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    shutil.chown(memory, "postfix")
    runs: list[Run] = []
    try:
        machine = machine_lines(folder)
        print("\n".join(machine), flush=True)
        loads = [*(Load(size) for size in options.sizes), Load(options.sizes[0], keep=True)]
        alone = sender_alone(memory, loads, options.messages, options.sessions)
        with instances(folder, memory) as kinds:
            for kind in kinds:  # processes started, caches filled
                measure(kind, 0, loads[0], min(100, options.messages), options.sessions)
            for load in loads:
                for number in range(1, options.rounds + 1):
                    first = number % len(kinds)
                    for kind in kinds[first:] + kinds[:first]:
                        run = measure(kind, number, load, options.messages, options.sessions)
                        runs.append(run)
                        print(f"{load.name}, round {number}, {kind.name}: {run.rate:.0f}/s", flush=True)
            single = measure(kinds[1], 1, loads[-1], min(200, options.messages), 1)
            for kind in kinds:  # an ack that comes twice may come late
                check(kind, f"{kind.name} at the end", [], kind.log.stat().st_size)
    except (Wrong, Refused, AssertionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)
    text = page(runs, single, alone, machine, options)
    print(text)
    print(f"\n{sum(run.messages for run in runs)} messages: each delivered once, each REQ acknowledged once, 0 lost.")
    for load in loads:
        for name, floor in FLOORS.items():
            middle = statistics.median(ratios(runs, name, load.name))
            outcome = "reached" if middle >= floor else "MISSED"
            print(f"{load.name}, {name}: {middle:.2f} L, floor {floor:.2f} {outcome}")
    if options.json:
        kept = {"alone": alone, "runs": [asdict(run) for run in [*runs, single]]}
        options.json.write_text(json.dumps(kept, indent=1))
    if options.write:
        PAGE.write_text(replaced(PAGE.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
