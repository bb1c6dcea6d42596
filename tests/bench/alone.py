"""The milter without a Postfix, by the wire: beside a no-op pymilter, with 1, 2 and 4 workers, on both databases."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import execute
from harness import NORTH, forward_req, headers_of, wait_for

from .cpu import processes
from .daemon import PEER, Daemon
from .figures import Run, of, percentile, ratios, spread
from .noop import Noop
from .part import Asked, Part, Target, Wrong, say, table
from .wire import MARK, Conversation, Outcome, conversation, drive, negotiate

__all__ = ["DEFAULT_WORKERS", "Load", "Milter", "measure", "request", "rows", "wire"]

WORKERS = "milter workers"
DEFAULT_WORKERS = 2
ALONE = 0.60
"""The share of the no-op pymilter's messages a second that the milter alone has to reach."""
FASTER = 5
"""Times as many messages for the no-op one, which is through with few before anything can be measured."""
EOM = 20.0
"""Milliseconds within which 99 of 100 ends of message have to be answered at 100 sessions."""


@dataclass(frozen=True)
class Load:
    """So many sessions at a time, each connection for one message or kept for the next; at most `rate` a second."""

    sessions: int
    keep: bool = False
    rate: float = 0.0

    @property
    def name(self) -> str:
        """As it stands in the tables."""
        kept = ", kept" if self.keep else ""
        paced = f", {self.rate:.0f}/s" if self.rate else ""
        return f"{self.sessions} session{'s' if self.sessions > 1 else ''}{kept}{paced}"


@dataclass
class Milter:
    """One of the milters that are compared; `url` names the store in which its messages are looked for."""

    name: str
    socket: Path
    workers: Sequence[int]
    url: str | None = None


def request(label: str) -> tuple[str, str, list[tuple[str, bytes]]]:
    """A peer's REQ that asks for an ack: MAIL FROM, RCPT TO, headers; with MARK in ids and recipient."""
    sender, number = "+447700900101", f"+491511{MARK}"
    ids = (f'"{label}-{MARK}@{PEER}"', f'"m{label}-{MARK}@{PEER}"')
    message = forward_req(sender=sender, to=number, ids=ids, system=f"PostMaster@{PEER}")
    return f"{sender}/TYPE=PLMN@{PEER}", f"{number}/TYPE=PLMN@mms.gw.example", headers_of(message)


def rows(url: str, label: str) -> dict[str, int]:
    """How often each transaction id that begins with the label is in the store."""
    found = execute(
        url,
        "SELECT transaction_id, count(*) FROM transactions WHERE transaction_id >= :first AND transaction_id < :last "
        "GROUP BY transaction_id",
        first=f"{label}-", last=f"{label}.",
    )  # fmt: skip
    return dict(map(tuple, found))


def _cpu(pids: Sequence[int]) -> float:
    found = processes()
    return sum(found[pid].own for pid in pids if pid in found)


def measure(
    milter: Milter, number: int, load: Load, count: int, label: str = "", talk: Conversation | None = None
) -> Run:
    """One run, after which every message has its row. Raises Wrong, Refused."""
    label = label or f"{milter.name.replace(' ', '')}-{load.name.replace(' ', '').replace(',', '')}-{number}"
    if talk is None:
        talk = conversation(negotiate(milter.socket), NORTH, *request(label))
    if milter.url is None:
        count *= FASTER
    os.sync()  # what an earlier run left to be written is not this run's load
    before = _cpu(milter.workers)
    outcome = drive(milter.socket, talk, range(count), load.sessions, keep=load.keep, rate=load.rate)
    cpu = _cpu(milter.workers) - before
    check(milter, label, outcome, count)
    return Run(
        number, milter.name, load.name, count, outcome.seconds, outcome.seconds, outcome.eom, {WORKERS: cpu}
    )


def check(milter: Milter, label: str, outcome: Outcome, count: int) -> None:
    """That every message was accepted, has a recipient at the responder and one row. Raises Wrong."""
    if outcome.messages != count:
        raise Wrong(f"{label}: {outcome.messages} verdicts for {count} messages")
    if milter.url is None:
        return
    if outcome.tokens != count:
        raise Wrong(f"{label}: {outcome.tokens} of {count} messages got a recipient at the responder")
    kept = rows(milter.url, label)
    due = {f"{label}-{n:07d}@{PEER}" for n in range(count)}
    if set(kept) != due or any(times != 1 for times in kept.values()):
        raise Wrong(f"{label}: {len(due - set(kept))} of {count} messages have no row, {sum(kept.values())} rows in all")


@contextlib.contextmanager
def milters(asked: Asked, *wanted: tuple[str, int, Callable[[Path], str] | None]) -> Iterator[list[Milter]]:
    """Milters by name, number of workers, and the maker of a store's URL from its folder; None for the no-op one."""
    with contextlib.ExitStack() as stack:
        made = []
        for name, workers, store in wanted:
            folder = asked.folder / name.replace(" ", "-").replace(",", "")
            folder.mkdir()
            if store is None:
                noop = Noop(folder / "milter.sock", workers)
                stack.callback(noop.close)
                made.append(Milter(name, noop.socket, noop.workers))
            else:
                url = store(folder)
                daemon = Daemon(folder, url, workers)
                stack.callback(daemon.close)
                made.append(Milter(name, daemon.socket, daemon.workers, url))
        for milter in made:  # processes started, caches filled
            wait_for(lambda: negotiate(milter.socket), f"the milter {milter.name}")  # noqa: B023
            measure(milter, 0, Load(20), min(200, asked.messages))
        yield made


def sqlite(folder: Path) -> str:
    """A store in a file on the disk."""
    return f"sqlite:///{folder}/mm4.db"


def taking_turns(asked: Asked, made: Sequence[Milter], loads: Sequence[Load], count: int) -> list[Run]:
    """Every load by every milter in turn, round after round; who begins changes."""
    runs = []
    for load in loads:
        for number in range(1, asked.rounds + 1):
            first = number % len(made)
            for milter in [*made[first:], *made[:first]]:
                runs.append(measure(milter, number, load, count))
                say(f"wire, {load.name}, round {number}, {milter.name}: {runs[-1].rate:.0f}/s")
    order = [milter.name for milter in made]
    return sorted(runs, key=lambda run: order.index(run.kind))


def cpu_of(runs: Sequence[Run]) -> float:
    """Milliseconds of the workers' CPU a message, median over the runs."""
    return statistics.median(1000 * run.cpu[WORKERS] / run.messages for run in runs)


def wire(asked: Asked) -> Part:
    """The milter beside one that does nothing, by number of sessions."""
    loads = [Load(1), Load(20), Load(100), Load(20, keep=True), Load(100, keep=True)]
    if asked.short:
        loads = [Load(20)]
    with milters(asked, ("no-op", DEFAULT_WORKERS, None), ("mm4", DEFAULT_WORKERS, sqlite)) as made:
        packets = [negotiate(milter.socket).packet for milter in made]
        if packets[0] != packets[1]:
            raise Wrong("the no-op milter negotiates something else than mm4 serve")
        runs = taking_turns(asked, made, loads, asked.messages)
        # Not at its limit: half of what it can, over connections that stay.
        half = statistics.median(run.rate for run in of(runs, "mm4", loads[-1].name)) / 2
        paced = Load(loads[-1].sessions, keep=True, rate=half)
        calm = measure(made[1], 1, paced, asked.many(2000, asked.messages))
    table_rows = []
    for load in loads:
        for kind in ("no-op", "mm4"):
            found = of(runs, kind, load.name)
            eom = [ms for run in found for ms in run.eom]
            share = "1" if kind == "no-op" else spread(ratios(runs, kind, load.name, "no-op"), 2)
            times = [f"{percentile(eom, p):.1f} ms" for p in (0.50, 0.99)]
            table_rows.append(
                [load.name, kind, spread([run.rate for run in found], 0), share, f"{cpu_of(found):.2f} ms", *times]
            )
    p50, p99 = (percentile(calm.eom, share) for share in (0.50, 0.99))
    lines = [
        *table(["sessions", "milter", "messages/s", "ratio to no-op", "workers' CPU a message", "p50", "p99"], table_rows),
        "",
        f"Below its limit, {calm.load}, {calm.messages} messages: p50 {p50:.1f} ms, p99 {p99:.1f} ms.",
    ]
    targets = []
    for load in loads:
        if load.sessions == 20:
            middle = statistics.median(ratios(runs, "mm4", load.name, "no-op"))
            targets.append(
                Target(f"the milter alone, {load.name}, to a no-op pymilter", f">= {ALONE:.2f}", f"{middle:.2f}",
                       middle >= ALONE)
            )  # fmt: skip
    targets.append(Target(f"eom p99, the milter alone, {calm.load}", f"< {EOM:.0f} ms", f"{p99:.1f} ms", p99 < EOM))
    return Part("The milter alone", lines, targets, {"runs": [asdict(run) for run in [*runs, calm]]})
