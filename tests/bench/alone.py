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
from .daemon import PEER, WORKERS, Daemon
from .figures import EOM, Run, each, eom_cells, eom_times, of, ratios, spread
from .noop import Noop
from .part import Asked, Part, Target, Wrong, say, table, turns
from .wire import DIGITS, MARK, Conversation, Outcome, conversation, drive, negotiate

__all__ = [
    "FASTER", "Load", "Milter", "comparison", "cpu_of", "kept", "measure", "milters", "request", "scattered", "sqlite",
    "taking_turns", "timed", "wire", "workers",
]  # fmt: skip

ALONE = 0.60
"""The share of the no-op pymilter's messages a second that the milter alone has to reach."""
FASTER = 5
"""Times as many messages for the no-op one, which is through with few before anything can be measured."""
_WORKERS = "milter workers"


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
    ids = (f'"{MARK}-{label}@{PEER}"', f'"m{MARK}-{label}@{PEER}"')
    message = forward_req(sender=sender, to=number, ids=ids, system=f"PostMaster@{PEER}")
    return f"{sender}/TYPE=PLMN@{PEER}", f"{number}/TYPE=PLMN@mms.gw.example", headers_of(message)


def scattered(first: int, count: int) -> list[int]:
    """Numbers without order, each once: ids of many peers do not come sorted, as a database would like it."""
    return [n * 7654321 % 10**DIGITS for n in range(first, first + count)]


def kept(url: str, ids: Sequence[str]) -> int:
    """How many of these transaction ids are in the store. Raises Wrong where one is there twice."""
    found = 0
    for start in range(0, len(ids), 500):
        names = ", ".join(f"'{name}'" for name in ids[start : start + 500])
        (row,) = execute(
            url,
            "SELECT count(*), count(DISTINCT transaction_id) FROM transactions "
            f"WHERE type = 'MM4_forward.REQ' AND transaction_id IN ({names})",
        )
        if row[0] != row[1]:
            raise Wrong(f"{url}: {row[0] - row[1]} messages are there twice")
        found += row[0]
    return found


def _cpu(pids: Sequence[int]) -> float:
    found = processes()
    return sum(found[pid].own for pid in pids if pid in found)


def measure(milter: Milter, number: int, load: Load, count: int, *, first: int = 0) -> Run:
    """One run, after which every message has its row. Raises Wrong, Refused."""
    label = f"{milter.name}-{load.name}-{number}".replace(" ", "").replace(",", "")
    talk = conversation(negotiate(milter.socket), NORTH, *request(label))
    numbers = scattered(first, count if milter.url else count * FASTER)
    run, outcome = timed(milter, number, load, talk, numbers)
    if milter.url is not None:
        if outcome.tokens != count:
            raise Wrong(f"{label}: {outcome.tokens} of {count} messages got a recipient at the responder")
        there = kept(milter.url, [f"{n:0{DIGITS}d}-{label}@{PEER}" for n in numbers])
        if there != count:
            raise Wrong(f"{label}: {there} of {count} messages have a row")
    return run


def timed(
    milter: Milter, number: int, load: Load, talk: Conversation, numbers: Sequence[int]
) -> tuple[Run, Outcome]:
    """Send these numbers, with the workers' CPU; every one has its verdict. Raises Wrong, Refused."""
    os.sync()  # what an earlier run left to be written is not this run's load
    before = _cpu(milter.workers)
    outcome = drive(milter.socket, talk, numbers, load.sessions, keep=load.keep, rate=load.rate)
    cpu = _cpu(milter.workers) - before
    if outcome.messages != len(numbers):
        raise Wrong(f"{milter.name}: {outcome.messages} verdicts for {len(numbers)} messages")
    run = Run(
        number, milter.name, load.name, len(numbers), outcome.seconds, outcome.seconds, outcome.eom, {_WORKERS: cpu}
    )
    return run, outcome


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


_KINDS: dict[str, Callable[[Path], str] | None] = {"no-op": None, "mm4": sqlite}


def taking_turns(asked: Asked, made: Sequence[Milter], loads: Sequence[Load], count: int) -> list[Run]:
    """Every load by every milter in turn, round after round; who begins changes."""
    runs = []
    for load in loads:
        for number in range(1, asked.rounds + 1):
            for milter in turns(made, number):
                runs.append(measure(milter, number, load, count))
                say(f"wire, {load.name}, round {number}, {milter.name}: {runs[-1].rate:.0f}/s")
    order = [milter.name for milter in made]
    return sorted(runs, key=lambda run: order.index(run.kind))


def cpu_of(runs: Sequence[Run]) -> float:
    """Milliseconds of the workers' CPU a message, median over the runs."""
    return statistics.median(1000 * run.cpu[_WORKERS] / run.messages for run in runs)


def comparison(runs: Sequence[Run], base: str, what: str = "milter") -> list[str]:
    """A row for each load and milter; the ratio is to the base in the same round, times are as the client sees them."""
    lines = []
    for load, kind, found in each(runs):
        share = "1" if kind == base else spread(ratios(runs, kind, load, base), 2)
        rate = spread([run.rate for run in found], 0)
        lines.append([load, kind, rate, share, f"{cpu_of(found):.2f} ms", *eom_cells(found)])
    return table(["sessions", what, "messages/s", f"ratio to {base}", "workers' CPU a message", "p50", "p99"], lines)


def wire(asked: Asked) -> Part:
    """The milter beside one that does nothing, by number of sessions."""
    loads = [Load(1), Load(20), Load(100), Load(20, keep=True), Load(100, keep=True)]
    if asked.short:
        loads = [Load(20)]
    with milters(asked, ("no-op", WORKERS, None), ("mm4", WORKERS, sqlite)) as made:
        packets = [negotiate(milter.socket).packet for milter in made]
        if packets[0] != packets[1]:
            raise Wrong("the no-op milter negotiates something else than mm4 serve")
        runs = taking_turns(asked, made, loads, asked.messages)
        # Not at its limit: half of what it can, over connections that stay.
        half = statistics.median(run.rate for run in of(runs, "mm4", loads[-1].name)) / 2
        paced = Load(loads[-1].sessions, keep=True, rate=half)
        many = asked.many(2000, asked.messages)
        calm = [measure(made[1], number, paced, many) for number in range(1, asked.rounds + 1)]
    p50, p99 = eom_cells(calm)
    late = statistics.median(eom_times(calm, 0.99))
    lines = [
        *comparison(runs, "no-op"),
        "",
        f"Below its limit, {paced.name}, {many} messages a round: p50 {p50}, p99 {p99}.",
    ]
    targets = []
    for load in loads:
        if load.sessions == 20:
            middle = statistics.median(ratios(runs, "mm4", load.name, "no-op"))
            what = f"the milter alone, {load.name}, to a no-op pymilter"
            targets.append(Target(what, f">= {ALONE:.2f}", f"{middle:.2f}", middle >= ALONE))
    targets.append(Target(f"eom p99, the milter alone, {paced.name}", f"< {EOM:.0f} ms", f"{late:.1f} ms", late < EOM))
    return Part("The milter alone", lines, targets, {"runs": [asdict(run) for run in [*runs, *calm]]})


def workers(asked: Asked) -> Part:
    """The milter and the one that does nothing, with 1, 2 and 4 workers."""
    names = {number: f"{number} worker{'s' if number > 1 else ''}" for number in (1, 2, 4)}
    load = Load(20)
    wanted = [(f"{kind}, {name}", n, store) for n, name in names.items() for kind, store in _KINDS.items()]
    with milters(asked, *wanted) as made:
        runs = taking_turns(asked, made, [load], asked.messages)
    return Part("Workers", comparison(runs, f"mm4, {names[1]}"), [], {"runs": [asdict(run) for run in runs]})
