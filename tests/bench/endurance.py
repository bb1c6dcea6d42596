"""What comes with numbers: memory after a hundred thousand messages, and a storm of reports; by the wire."""

from __future__ import annotations

import statistics
from dataclasses import asdict

from cluster import execute
from harness import NORTH

from .alone import Load, Milter, comparison, measure, milters, sqlite, timed
from .cpu import memory
from .daemon import PEER, WORKERS, Daemon
from .figures import Run, percentile, ratios
from .filler import MESSAGE_ID, fill
from .part import Asked, Part, Target, Wrong, say, table
from .wire import MARK, conversation, negotiate

__all__ = ["growth", "storm"]

GROWTH = 5.0
"""MB by which a process may grow from 10^4 to 10^5 messages."""


def growth(asked: Asked) -> Part:
    """Memory of each process of one daemon after 10^3, 10^4 and 10^5 messages."""
    marks = (100, 200, 400) if asked.short else (1_000, 10_000, 100_000)
    load = Load(100)
    held: dict[str, list[float]] = {}
    asked.folder.joinpath("daemon").mkdir()
    daemon = Daemon(asked.folder / "daemon", sqlite(asked.folder), WORKERS)
    runs = []
    try:
        milter = Milter("mm4", daemon.socket, daemon.workers, daemon.store)
        names = {f"worker {n + 1}": pid for n, pid in enumerate(daemon.workers)}
        names["responder"] = daemon.responder
        done = 0
        for mark in marks:
            while done < mark:
                count = min(10_000, mark - done)
                runs.append(measure(milter, 1, load, count, first=done))
                done += count
                say(f"growth, {done} messages: {runs[-1].rate:.0f}/s")
            for name, pid in names.items():
                held.setdefault(name, []).append(memory(pid))
    finally:
        daemon.close()
    rows = [[name, *(f"{size:.1f} MB" for size in sizes)] for name, sizes in held.items()]
    worst = max(sizes[-1] - sizes[-2] for sizes in held.values())
    lines = [
        *table(["process", *(f"after {mark:,} messages" for mark in marks)], rows), "",
        f"The last {runs[-1].messages:,} went at {runs[-1].rate:.0f}/s, the first {runs[0].messages:,} at "
        f"{runs[0].rate:.0f}/s. The responder gets no mail here.",
    ]  # fmt: skip
    what = f"growth of the largest from {marks[-2]:,} to {marks[-1]:,} messages"
    target = Target(what, f"< {GROWTH:.0f} MB", f"{worst:.1f} MB", worst < GROWTH)
    return Part("Memory", lines, [target], {"marks": marks, "memory": held, "rates": [run.rate for run in runs]})


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
    rounds = asked.many(5, 1)
    load = Load(100)
    url = sqlite(asked.folder)
    fill(url, batch * rounds, sent=True)
    runs: list[Run] = []
    with milters(asked, ("requests", WORKERS, lambda _: url)) as (requests,):
        reports = Milter("reports", requests.socket, requests.workers, url)
        agreed = negotiate(reports.socket)
        envelope = f"system-user@{PEER}", "+491511000001/TYPE=PLMN@mms.gw.example"
        talk = conversation(agreed, NORTH, *envelope, _report("storm"))
        for number in range(1, rounds + 1):
            runs.append(measure(requests, number, load, batch))
            order = list(range(batch * (number - 1), batch * number))
            run, _ = timed(reports, number, load, talk, order)
            runs.append(run)
            say(f"storm, round {number}: {run.rate:.0f} reports/s, {runs[-2].rate:.0f} requests/s")
        correlated(url, batch * rounds)
    found = [run for run in runs if run.kind == "reports"]
    p99 = percentile([ms for run in found for ms in run.eom], 0.99)
    middle = statistics.median(run.rate for run in found)
    share = statistics.median(ratios(runs, "reports", load.name, "requests"))
    lines = [
        *comparison(sorted(runs, key=lambda run: run.kind, reverse=True), "requests", "messages"), "",
        f"{batch * rounds:,} reports at {middle:.0f}/s, {share:.2f} of the rate of new messages, p99 {p99:.1f} ms; each "
        "found the message that it is about.",
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
