"""What the store is worth: SQLite and PostgreSQL, empty and with a million transactions; by the wire, without Postfix."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cluster import Cluster

from .alone import DEFAULT_WORKERS, Load, comparison, milters, sqlite, taking_turns
from .figures import ratios
from .filler import fill
from .part import Asked, Part, Target, say

__all__ = ["stores"]

FULL = 0.95
"""The share of an empty store's messages a second that one with a million transactions has to reach."""


def stores(asked: Asked) -> Part:
    """Four stores, in turn: each database empty and filled, as PostgreSQL and SQLite are by default, on the disk."""
    many = asked.many(1_000_000, 2_000)
    load = Load(20)

    def filled(make: Callable[[Path], str]) -> Callable[[Path], str]:
        def made(folder: Path) -> str:
            url = make(folder)
            begun = time.monotonic()
            fill(url, many)
            say(f"{many} transactions into {url.partition(':')[0]}: {time.monotonic() - begun:.0f} s")
            return url

        return made

    server = Cluster(fsync=True, parent=asked.folder, shared_buffers="128MB", autovacuum="on")
    with server:
        postgresql: Callable[[Path], str] = lambda _: server.database()  # noqa: E731
        kinds = {
            "SQLite": sqlite, f"SQLite, {many:,} stored": filled(sqlite),
            "PostgreSQL": postgresql, f"PostgreSQL, {many:,} stored": filled(postgresql),
        }  # fmt: skip
        with milters(asked, *((name, DEFAULT_WORKERS, make) for name, make in kinds.items())) as made:
            runs = taking_turns(asked, made, [load], asked.many(2 * asked.messages, asked.messages))
    targets = []
    for name in ("SQLite", "PostgreSQL"):
        middle = statistics.median(ratios(runs, f"{name}, {many:,} stored", load.name, name))
        what = f"messages/s with {many:,} stored transactions, {name}, to an empty store"
        targets.append(Target(what, f">= {FULL:.2f}", f"{middle:.2f}", middle >= FULL))
    lines = comparison(runs, "SQLite", "store")
    return Part("Stores", lines, targets, {"runs": [asdict(run) for run in runs]})

