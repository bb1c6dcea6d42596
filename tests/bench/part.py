"""What a part of the bench is asked for, and what it gives: text for the page, targets, and every figure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Asked", "Measure", "Part", "Target", "Wrong", "say", "table", "turns"]


T = TypeVar("T")


class Wrong(Exception):
    """A message, a row or an ack is missing, came twice, or waits: the numbers mean nothing."""


@dataclass(frozen=True)
class Asked:
    """How much is measured, and where."""

    folder: Path
    """On a disk: stores and queues."""
    memory: Path
    """In memory: what sinks keep."""
    rounds: int = 5
    messages: int = 400
    """Messages a run."""
    short: bool = False
    """A few messages of each, to see that all of it works."""

    def many(self, full: int, short: int) -> int:
        """A number that the short form has smaller."""
        return short if self.short else full


@dataclass(frozen=True)
class Target:
    """What has to be reached, and what was seen."""

    what: str
    goal: str
    measured: str
    met: bool


@dataclass
class Part:
    """What came out of one part."""

    title: str
    lines: list[str]
    """Markdown, without the title."""
    targets: list[Target] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """Every figure, for JSON."""


Measure = Callable[[Asked], Part]


def say(text: str) -> None:
    """How far it is, apart from what is measured."""
    print(text, file=sys.stderr, flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def turns(compared: Sequence[T], number: int) -> list[T]:
    """What is compared, in the order of this round: who begins changes from one to the next."""
    first = number % len(compared)
    return [*compared[first:], *compared[:first]]
