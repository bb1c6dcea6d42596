"""What comes with numbers: memory after a hundred thousand messages, and a storm of reports; by the wire."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from cluster import execute
from harness import NORTH

from .alone import FASTER, Load, Milter, comparison, measure, milters, sqlite, timed
from .cpu import memory
from .daemon import PEER, WORKERS, Daemon
from .deliveries import deliver
from .figures import Run, spread
from .filler import MESSAGE_ID, fill
from .noop import Noop
from .part import Asked, Part, Target, Wrong, say, table, turns
from .sinks import Sink
from .wire import MARK, conversation, negotiate

__all__ = ["growth", "storm"]

GROWTH = 5.0
"""MB by which a process may grow from 10^4 to 10^5 messages."""
_DELIVERED = 10
"""One message in so many is handed to the responder, which takes longer for it than a worker."""


def growth(asked: Asked) -> Part:
    """Memory of each process of a daemon after 10^3, 10^4 and 10^5 messages, and of the no-op milter's workers; both new
    in each round.
    """
    marks = (100, 200, 300, 400) if asked.short else (1_000, 10_000, 55_000, 100_000)
    held: dict[str, list[list[float]]] = {}
    rates: dict[str, list[list[float]]] = {}
    for number in range(1, asked.rounds + 1):
        for name in turns(["no-op", "mm4"], number):
            folder = asked.folder / f"{name}-{number}"
            folder.mkdir()
            sizes, speed = _OF[name](replace(asked, folder=folder), marks)
            shutil.rmtree(folder)
            rates.setdefault(name, []).append(speed)
            for process, values in sizes.items():
                held.setdefault(f"{name}, {process}", []).append(values)
    held = dict(sorted(held.items(), key=lambda each: each[0].startswith("mm4")))
    rows = [[process, *(f"{spread(at, 1)} MB" for at in zip(*rounds, strict=True))] for process, rounds in held.items()]
    ours = [rounds for process, rounds in held.items() if process.startswith("mm4")]
    worst = [max(sizes[-1] - sizes[-3] for sizes in each) for each in zip(*ours, strict=True)]
    first, last = ([speed[at] for speed in rates["mm4"]] for at in (0, -1))
    lines = [
        *table(["process", *(f"after {mark:,} messages" for mark in marks)], rows), "",
        f"Each round with processes of its own; 100 sessions. The first {marks[0]:,} messages went through mm4 at "
        f"{spread(first, 0)}/s, the last at {spread(last, 0)}/s. The responder got one in {_DELIVERED} of them, of 40 kB. "
        f"From {marks[-3]:,} messages to {marks[-1]:,} the process that grew most grew by {spread(worst, 1)} MB.",
    ]  # fmt: skip
    middle = statistics.median(worst)
    what = f"growth of the largest from {marks[-3]:,} to {marks[-1]:,} messages"
    target = Target(what, f"< {GROWTH:.0f} MB", f"{middle:.1f} MB", middle < GROWTH)
    return Part("Memory", lines, [target], {"marks": marks, "memory": held, "rates": rates})


_Grown = tuple[dict[str, list[float]], list[float]]
"""What each process holds at the marks, and the rate of every ten thousand messages."""


def _noop(asked: Asked, marks: Sequence[int]) -> _Grown:
    noop = Noop(asked.folder / "noop.sock", WORKERS)
    try:
        milter = Milter("no-op", noop.socket, noop.workers)
        return _fed(milter, marks, {f"worker {n}": pid for n, pid in enumerate(noop.workers, 1)})
    finally:
        noop.close()


def _mm4(asked: Asked, marks: Sequence[int]) -> _Grown:
    with contextlib.ExitStack() as stack:
        acks = Sink(asked.folder, "acks")
        stack.callback(acks.close)
        daemon = Daemon(asked.folder / "daemon", sqlite(asked.folder), WORKERS, acks.server)
        stack.callback(daemon.close)
        milter = Milter("mm4", daemon.socket, daemon.workers, daemon.store)
        processes = {f"worker {n}": pid for n, pid in enumerate(daemon.workers, 1)} | {"responder": daemon.responder}
        return _fed(milter, marks, processes, lambda count: deliver(daemon, acks, count // _DELIVERED))


_OF: Mapping[str, Callable[[Asked, Sequence[int]], _Grown]] = {"no-op": _noop, "mm4": _mm4}


def _fed(
    milter: Milter, marks: Sequence[int], processes: Mapping[str, int], then: Callable[[int], None] = lambda _: None
) -> _Grown:
    """Messages up to each mark; `then` gets the number of those of each batch."""
    held: dict[str, list[float]] = {name: [] for name in processes}
    rates = []
    done = 0
    for mark in marks:
        while done < mark:
            count = min(10_000, mark - done)
            # The no-op one gets no more messages than the other, and `measure` gives it several times as many.
            run = measure(milter, 1, Load(100), count if milter.url else count // FASTER, first=done)
            rates.append(run.rate)
            then(count)
            done += count
            say(f"memory, {milter.name}, {done} messages: {run.rate:.0f}/s")
        for name, pid in processes.items():
            held[name].append(memory(pid))
    return held, rates


def _report(label: str) -> list[tuple[str, bytes]]:
    """The peer's delivery report on a message that was filled in."""
    return [
        (name, value.encode())
        for name, value in (
            ("From", "+447700900101/TYPE=PLMN"),
            ("Sender", f"system-user@{PEER}"),
            ("To", "+491511000001/TYPE=PLMN"),
            ("Date", "Thu, 12 Nov 2026 02:28:01 +0200"),
            ("X-Mms-3GPP-MMS-Version", "5.5.0"),
            ("X-Mms-Message-Type", "MM4_delivery_report.REQ"),
            ("X-Mms-Transaction-ID", f'"{MARK}-{label}@{PEER}"'),
            ("X-Mms-Message-ID", f'"{MESSAGE_ID.format(MARK)}"'),
            ("X-Mms-MM-Status-Code", "Retrieved"),
            ("X-Mms-Ack-Request", "Yes"),
        )
    ]


def storm(asked: Asked) -> Part:
    """A peer reports on 10^4 messages at once, in turn with as many new messages from it."""
    batch = asked.many(2_000, 100)
    load = Load(100)
    url = sqlite(asked.folder)
    fill(url, batch * asked.rounds, sent=True)
    runs: list[Run] = []
    with milters(asked, ("requests", WORKERS, lambda _: url)) as (requests,):
        reports = Milter("reports", requests.socket, requests.workers, url)
        agreed = negotiate(reports.socket)
        envelope = f"system-user@{PEER}", "+491511000001/TYPE=PLMN@mms.gw.example"
        talk = conversation(agreed, NORTH, *envelope, _report("storm"))
        for number in range(1, asked.rounds + 1):
            for milter in turns([requests, reports], number):
                if milter is requests:
                    run = measure(requests, number, load, batch)
                else:
                    run, _ = timed(reports, number, load, talk, range(batch * (number - 1), batch * number))
                runs.append(run)
                say(f"storm, round {number}, {run.kind}: {run.rate:.0f}/s")
        correlated(url, batch * asked.rounds)
    lines = [
        *comparison(sorted(runs, key=lambda run: run.kind, reverse=True), "requests", "messages"), "",
        f"{batch * asked.rounds:,} reports, {batch:,} a round; each found the message that it is about.",
    ]  # fmt: skip
    return Part("A storm of reports", lines, [], {"runs": [asdict(run) for run in runs]})


def correlated(url: str, count: int) -> None:
    """That each report was kept once, and answered as one on a message that we sent. Raises Wrong."""
    found = execute(
        url,
        "SELECT m.answer_status, count(DISTINCT t.message_id) FROM transactions t JOIN messages m ON m.token = t.token "
        "WHERE t.type = 'MM4_delivery_report.REQ' AND t.report = 'Retrieved' GROUP BY m.answer_status",
    )
    by_status = {status: number for status, number in found}  # noqa: C416 - rows, which are no pairs to mypy
    if by_status != {"Ok": count}:
        raise Wrong(f"{count} reports, of which {by_status} were kept, by the status of their answers")
