"""The bench's arithmetic, apart from what is measured: medians, ratios within a round, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .cpu import GROUPS
from .part import table

__all__ = [
    "BEGIN", "END", "EOM", "Run", "cpu_table", "each", "eom_cells", "eom_times", "of", "percentile", "ratios", "replaced",
    "speed_table", "spread",
]  # fmt: skip

EOM = 20.0
"""Milliseconds within which 99 of 100 ends of message have to be answered at 100 sessions."""

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


def ratios(runs: Iterable[Run], kind: str, load: str, base: str = "L") -> list[float]:
    """The kind's rate over that of the base in the same round, one a round that has both."""
    rates = {(run.round, run.kind): run.rate for run in runs if run.load == load}
    rounds = sorted({number for number, _ in rates})
    return [rates[n, kind] / rates[n, base] for n in rounds if (n, kind) in rates and (n, base) in rates]


def spread(values: Sequence[float], digits: int) -> str:
    """Median with minimum and maximum: `0.68 (0.56-0.75)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def of(runs: Iterable[Run], kind: str, load: str) -> list[Run]:
    """Those of one kind and load."""
    return [run for run in runs if run.kind == kind and run.load == load]


def each(runs: Sequence[Run]) -> list[tuple[str, str, list[Run]]]:
    """Loads and kinds in the order in which they first came."""
    kinds, loads = (list(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("kind", "load"))
    found = [(load, kind, of(runs, kind, load)) for load in loads for kind in sorted(kinds, key=kinds.index)]
    return [each for each in found if each[2]]


def speed_table(runs: Sequence[Run], base: str) -> list[str]:
    """Rates, ratios to the base and eom times, median (lowest-highest) over the rounds."""
    rows = []
    for load, kind, found in each(runs):
        share = spread(ratios(runs, kind, load, base), 2) if kind != base else "1"
        rows.append([load, kind, spread([run.rate for run in found], 0), share, *eom_cells(found)])
    return table(["load", "kind", "messages/s", f"ratio to {base}", "eom p50", "eom p99"], rows)


def eom_cells(runs: Sequence[Run]) -> list[str]:
    """p50 and p99 of each run, median (lowest-highest) over the runs; dashes where none was measured."""
    shares = (eom_times(runs, share) for share in (0.50, 0.99))
    return [f"{spread(times, 1)} ms" if times else "-" for times in shares]


def eom_times(runs: Iterable[Run], share: float) -> list[float]:
    """This percentile of each run that has any times, in milliseconds."""
    return [percentile(run.eom, share) for run in runs if run.eom]


def cpu_table(runs: Sequence[Run], groups: Sequence[str] = GROUPS) -> list[str]:
    """Milliseconds of CPU a message by group, medians over the rounds."""
    rows = []
    for load, kind, found in each(runs):
        spent = [[1000 * run.cpu.get(group, 0.0) / run.messages for run in found] for group in groups]
        middle = [statistics.median(values) for values in spent]
        rows.append([load, kind, *(f"{ms:.2f}" if ms else "-" for ms in middle), f"{sum(middle):.2f}"])
    return table(["load", "kind", *groups, "sum"], rows)


def replaced(text: str, generated: str) -> str:
    """A page with what stands between its markers replaced. Raises ValueError where it has not both, once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one {BEGIN} and, after it, one {END}")
    return f"{text[: text.index(BEGIN) + len(BEGIN)]}\n{generated.strip()}\n{text[text.index(END) :]}"
