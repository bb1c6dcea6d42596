"""What comes with numbers: memory after a hundred thousand messages, and a storm of reports; by the wire."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from cluster import execute
from harness import NORTH

from .alone import FASTER, Load, Milter, comparison, measure, milters, sqlite, timed
from .cpu import memory
from .daemon import PEER, WORKERS, Daemon
from .figures import Run
from .filler import MESSAGE_ID, fill
from .noop import Noop
from .part import Asked, Part, Target, Wrong, say, table, turns
from .wire import MARK, conversation, negotiate

__all__ = ["growth", "storm"]

GROWTH = 5.0
"""MB by which a process may grow from 10^4 to 10^5 messages."""


def growth(asked: Asked) -> Part:
    """Memory of each process of one daemon after 10^3, 10^4 and 10^5 messages; of the no-op milter's workers too."""
    marks = (100, 200, 300, 400) if asked.short else (1_000, 10_000, 55_000, 100_000)
    held: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    folder = asked.folder / "daemon"
    with contextlib.ExitStack() as stack:
        noop = Noop(asked.folder / "noop.sock", WORKERS)
        stack.callback(noop.close)
        _fed(Milter("no-op", noop.socket, noop.workers), marks, dict(enumerate(noop.workers, 1)), held, rates)
        daemon = Daemon(folder, sqlite(asked.folder), WORKERS)
        stack.callback(daemon.close)
        milter = Milter("mm4", daemon.socket, daemon.workers, daemon.store)
        _fed(milter, marks, dict(enumerate(daemon.workers, 1)), held, rates, responder=daemon.responder)
    rows = [[name, *(f"{size:.1f} MB" for size in sizes)] for name, sizes in held.items()]
    ours = [sizes for name, sizes in held.items() if name.startswith("mm4")]
    worst = max(sizes[-1] - sizes[-3] for sizes in ours)
    lines = [
        *table(["process", *(f"after {mark:,} messages" for mark in marks)], rows), "",
        f"100 sessions; the first {marks[0]:,} messages went through mm4 at {rates['mm4'][0]:.0f}/s, the last at "
        f"{rates['mm4'][-1]:.0f}/s. The responder gets no mail here.",
    ]  # fmt: skip
    what = f"growth of the largest from {marks[-3]:,} to {marks[-1]:,} messages"
    target = Target(what, f"< {GROWTH:.0f} MB", f"{worst:.1f} MB", worst < GROWTH)
    return Part("Memory", lines, [target], {"marks": marks, "memory": held, "rates": rates})


def _fed(
    milter: Milter, marks: Sequence[int], workers: Mapping[int, int], held: dict[str, list[float]],
    rates: dict[str, list[float]], **others: int,
) -> None:  # fmt: skip
    """Messages up to each mark, and what the processes hold there; the rate of every ten thousand."""
    names = {f"{milter.name}, worker {n}": pid for n, pid in workers.items()}
    names |= {f"{milter.name}, {name}": pid for name, pid in others.items()}
    done = 0
    for mark in marks:
        while done < mark:
            count = min(10_000, mark - done)
            # The no-op one gets no more messages than the other, and `measure` gives it several times as many.
            run = measure(milter, 1, Load(100), count if milter.url else count // FASTER, first=done)
            rates.setdefault(milter.name, []).append(run.rate)
            done += count
            say(f"memory, {milter.name}, {done} messages: {run.rate:.0f}/s")
        for name, pid in names.items():
            held.setdefault(name, []).append(memory(pid))


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
