"""What the store is worth: SQLite and PostgreSQL, empty and with a million transactions; by the wire, without Postfix."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from cluster import Cluster

from .alone import Load, comparison, milters, sqlite, taking_turns
from .daemon import WORKERS
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

    asked.folder.joinpath("filled").mkdir()
    with Cluster(fsync=True, parent=asked.folder, shared_buffers="128MB", autovacuum="on") as server:
        begun = time.monotonic()
        urls = {"SQLite": sqlite(asked.folder / "filled"), "PostgreSQL": server.database()}
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda url: fill(url, many), urls.values()):
                pass
        say(f"{many:,} transactions into each of {' and '.join(urls)}: {time.monotonic() - begun:.0f} s")
        kinds: dict[str, Callable[[Path], str]] = {
            "SQLite": sqlite, f"SQLite, {many:,} stored": lambda _: urls["SQLite"],
            "PostgreSQL": lambda _: server.database(), f"PostgreSQL, {many:,} stored": lambda _: urls["PostgreSQL"],
        }  # fmt: skip
        with milters(asked, *((name, WORKERS, make) for name, make in kinds.items())) as made:
            runs = taking_turns(asked, made, [load], asked.many(2 * asked.messages, asked.messages))
    targets = []
    for name in ("SQLite", "PostgreSQL"):
        middle = statistics.median(ratios(runs, f"{name}, {many:,} stored", load.name, name))
        what = f"messages/s with {many:,} stored transactions, {name}, to an empty store"
        targets.append(Target(what, f">= {FULL:.2f}", f"{middle:.2f}", middle >= FULL))
    lines = comparison(runs, "SQLite", "store")
    return Part("Stores", lines, targets, {"runs": [asdict(run) for run in runs]})

