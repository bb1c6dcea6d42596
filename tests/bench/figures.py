"""The bench's arithmetic, apart from what is measured: medians, ratios within a round, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .cpu import GROUPS

__all__ = [
    "BEGIN", "END", "FLOORS", "KINDS", "Run", "cpu_table", "percentile", "ratios", "replaced", "speed_table", "spread",
]  # fmt: skip

KINDS = ("L", "smtp", "sendmail")
FLOORS = {"smtp": 0.60, "sendmail": 0.40}
"""Design section 7: the share of L that each way of submission has to reach."""

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Run:
    """One kind carrying one load once. `cpu` is seconds by group, `eom` milliseconds by message."""

    round: int
    kind: str
    load: str
    messages: int
    seconds: float
    accepted: float
    """Seconds until the last message was accepted."""
    eom: Sequence[float] = ()
    cpu: dict[str, float] = field(default_factory=dict)
    idle: float = 0.0
    """The share of the machine's CPU that nobody used."""
    foreign: float = 0.0
    """The share that went to none of the groups: the kernel's own threads, and whatever else ran."""

    @property
    def rate(self) -> float:
        """Finished messages a second."""
        return self.messages / self.seconds


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that is not below `share` of all (nearest rank); NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def ratios(runs: Iterable[Run], kind: str, load: str) -> list[float]:
    """The kind's rate over that of L in the same round, one a round that has both."""
    rates = {(run.round, run.kind): run.rate for run in runs if run.load == load}
    rounds = sorted({number for number, _ in rates})
    return [rates[n, kind] / rates[n, "L"] for n in rounds if (n, kind) in rates and (n, "L") in rates]


def spread(values: Sequence[float], digits: int) -> str:
    """Median with minimum and maximum: `0.68 (0.56-0.75)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _loads(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.load for run in runs))


def _of(runs: Iterable[Run], kind: str, load: str) -> list[Run]:
    return [run for run in runs if run.kind == kind and run.load == load]


def speed_table(runs: Sequence[Run]) -> list[str]:
    """Rates and ratios, median (lowest-highest) over the rounds; eom times over all messages of all rounds."""
    lines = [
        "| message | kind | finished messages/s | ratio to L | floor | eom p50 | eom p99 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for load in _loads(runs):
        for kind in KINDS:
            found = _of(runs, kind, load)
            if not found:
                continue
            eom = [ms for run in found for ms in run.eom]
            share = spread(ratios(runs, kind, load), 2) if kind != "L" else "1"
            floor = f"{FLOORS[kind]:.2f}" if kind in FLOORS else "-"
            times = [f"{percentile(eom, p):.1f} ms" if eom else "-" for p in (0.50, 0.99)]
            lines.append(
                f"| {load} | {kind} | {spread([run.rate for run in found], 0)} | {share} | {floor} "
                f"| {times[0]} | {times[1]} |"
            )
    return lines


def cpu_table(runs: Sequence[Run]) -> list[str]:
    """Milliseconds of CPU a message by group, medians over the rounds."""
    lines = [
        f"| message | kind | {' | '.join(GROUPS)} | sum |",
        f"| --- | --- | {' | '.join('---' for _ in GROUPS)} | --- |",
    ]
    for load in _loads(runs):
        for kind in KINDS:
            found = _of(runs, kind, load)
            if not found:
                continue
            spent = [[1000 * run.cpu.get(group, 0.0) / run.messages for run in found] for group in GROUPS]
            each = [statistics.median(values) for values in spent]
            cells = [f"{ms:.2f}" if ms else "-" for ms in each]
            lines.append(f"| {load} | {kind} | {' | '.join(cells)} | {sum(each):.2f} |")
    return lines


def replaced(text: str, generated: str) -> str:
    """A page with what stands between its markers replaced. Raises ValueError where it has not both, once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one {BEGIN} and, after it, one {END}")
    return f"{text[: text.index(BEGIN) + len(BEGIN)]}\n{generated.strip()}\n{text[text.index(END) :]}"
