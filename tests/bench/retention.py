"""What a purge costs those who write meanwhile: the time of a commit as eom makes it, before, during and after.

`PYTHONPATH=milter:tests python tests/bench/retention.py [--rows 10000000] [--kind sqlite|postgresql] [--folder DIR]
[--seconds 60] [--rate 100] [--json FILE]`. A store with so many rows (a message has a transaction and two events), half of
them old, in a folder of its own below `--folder`, which is removed. Another process records messages as a worker of the
milter does, from eight threads, `--rate` a second; this one purges as the responder does. What PostgreSQL's sessions wait
for while a commit takes longer than SLOW_SECONDS is counted. Wants no root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text

from cluster import Cluster
from mm4.postfix.purger import Purger
from mm4.postfix.timers import BREATH
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store import Store
from mm4.store.database import Database
from mm4.store.retention import Ages, Removed

KEPT = timedelta(days=90)
WINDOW = timedelta(days=15)
THREADS = 8
SLOW_SECONDS = 0.02

# Tokens and ids in no order, as in life: an index by them is touched at another page for each row.
_FILL = (
    "INSERT INTO messages (token, direction, peer, type, queue_id, host, recorded_at, accepted_at, source, digest, size) "
    "SELECT {hex}, 'out', 'north', 'MM4_forward.REQ', substr({hex}, 1, 11), 'gw', {at}, {at}, 'local', {hex}, 40000 FROM {numbers}",
    "INSERT INTO transactions (token, peer, direction, type, transaction_id, message_id, originator, recipient, state, status, "
    "ack_requested, delivery_report, read_reply, updated_at) SELECT token, 'north', 'out', type, substr(token, 1, 20), "
    "substr(digest, 1, 24), '+447700900101', '+447700900102', 'answered', 'Ok', {true}, {false}, {false}, recorded_at FROM messages",
    "INSERT INTO events (transaction_row, token, at, what, queue_id, detail) SELECT id, token, updated_at, 'answer received', "
    "'4ABCDE', 'MM4_forward.RES Ok from north at gw, transaction id, message id' FROM transactions",
    "INSERT INTO events (transaction_row, token, at, what, queue_id, detail) SELECT id, token, updated_at, 'repeated answer', "
    "'4ABCDE', 'MM4_forward.RES Ok from north at gw, transaction id, message id' FROM transactions",
)
_SQLITE = {
    "hex": "lower(hex(randomblob(16)))", "true": "1", "false": "0",
    "at": "strftime('%Y-%m-%d %H:%M:%f000', '{begin}', '+' || (n * {step}) || ' seconds')",
    "numbers": "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count}) SELECT n FROM c)",
}  # fmt: skip
_POSTGRESQL = {
    "hex": "replace(gen_random_uuid()::text, '-', '')", "true": "true", "false": "false",
    "at": "'{begin}+00'::timestamptz + n * interval '{step} seconds'", "numbers": "generate_series(1, {count}) AS n",
}  # fmt: skip


def fill(url: str, rows: int, now: datetime) -> None:
    """Half of the rows older than KEPT, evenly over twice that time."""
    Store.open(url).close()
    words = dict(_SQLITE if url.startswith("sqlite") else _POSTGRESQL)
    count = rows // 4
    values = {"begin": f"{now - 2 * KEPT:%Y-%m-%d %H:%M:%S}", "step": 2 * KEPT.total_seconds() / count, "count": count}
    words = {key: word.format(**values) for key, word in words.items()}
    statements = [statement.format(**words) for statement in _FILL]
    if not url.startswith("sqlite"):
        engine = Database.parse(url, 10, read_only=False).engine("migrator").execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as postgresql:
            for statement in (*statements, "VACUUM ANALYZE"):
                postgresql.execute(text(statement))
        return
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    for pragma in ("journal_mode = DELETE", "synchronous = OFF", "cache_size = -2000000", "temp_store = FILE"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN")
    indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def record(url: str, rate: float, stop: Any, waited: Any) -> None:
    """A worker: messages that nobody knows, each at its time; puts (when, seconds) into the queue at the end."""
    times: list[tuple[float, float]] = []
    with Store.open(url, migrate=False) as store:

        def one(number: int) -> None:
            turn = time.monotonic() + number / rate
            while not stop.is_set():
                time.sleep(max(0.0, turn - time.monotonic()))
                turn += THREADS / rate
                token = secrets.token_hex(16)
                mail = Message(
                    token, Direction.OUT, "north", "MM4_forward.REQ", "4ABCDE", "gw", datetime.now(UTC),
                    (Transaction(token[:20], token[:24], "+447700900101", "+447700900102", ack_requested=True),),
                    source="north", digest=token, size=40_000,
                )  # fmt: skip
                begun = time.monotonic()
                store.record(mail, WINDOW).result(60)
                times.append((begun, time.monotonic() - begun))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    waited.put(times)


class Waits:
    """What the sessions of a PostgreSQL wait for, looked at every few milliseconds by a thread."""

    def __init__(self, server: Cluster) -> None:
        self._looks: list[tuple[float, list[str]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(server,))

    def __enter__(self) -> Waits:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self, server: Cluster) -> None:
        asked = (
            "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active' "
            "AND wait_event IS NOT NULL"
        )
        with psycopg.connect(host=str(server.folder), dbname="postgres", user="postgres", autocommit=True) as connection:
            while not self._stop.wait(0.005):
                self._looks.append((time.monotonic(), [event for (event,) in connection.execute(asked)]))

    def during(self, slow: list[tuple[float, float]]) -> dict[str, int]:
        """How often each was seen in these times (begin, seconds)."""
        seen = (event for at, length in slow for when, events in self._looks if at <= when <= at + length for event in events)
        return dict(Counter(seen).most_common())


class Watched:
    """A store whose batches are counted."""

    def __init__(self, store: Store) -> None:
        self.outdated, self._store = store.outdated, store
        self.batches: list[Removed] = []
        self.log_pages = 0

    def purge(self, walk: str, keys: Any, ages: Ages) -> Any:
        """As the store."""
        future = self._store.purge(walk, keys, ages)
        future.add_done_callback(lambda done: self.batches.append(done.result()))
        return future

    def checkpoint(self) -> int:
        """As the store."""
        pages = self._store.checkpoint()
        self.log_pages = max(self.log_pages, pages)
        return pages


async def purge(store: Watched, seconds: float) -> None:
    """As the timers do."""
    purger = Purger(store, lambda: datetime.now(UTC), KEPT)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(max(await purger.purge(), BREATH))


def spread(times: list[float]) -> dict[str, float]:
    """Milliseconds: the median, one in a hundred, the longest."""
    ordered = sorted(times)
    at = {"p50": len(ordered) // 2, "p99": len(ordered) * 99 // 100, "longest": -1}
    return {"commits": len(ordered), **{name: round(1000 * ordered[n], 2) for name, n in at.items()}}


def settle(server: Cluster | None) -> None:
    """Have the filling's own writes on the disk, before anybody waits for a flush behind them."""
    if server is not None:
        server.run("CHECKPOINT")
    os.sync()


def measured(url: str, rate: float, seconds: float, server: Cluster | None) -> dict[str, Any]:
    """Three phases of so many seconds."""
    spawn = multiprocessing.get_context("spawn")
    stop, waited = spawn.Event(), spawn.Queue()
    worker = spawn.Process(target=record, args=(url, rate, stop, waited))
    worker.start()
    with Store.open(url, migrate=False) as store, Waits(server) if server else nullcontext() as waits:
        watched = Watched(store)
        time.sleep(3)
        marks = [time.monotonic()]
        time.sleep(seconds)
        marks.append(time.monotonic())
        asyncio.run(purge(watched, seconds))
        marks.append(time.monotonic())
        time.sleep(seconds)
        marks.append(time.monotonic())
        stop.set()
        times = waited.get(timeout=120)
        worker.join(60)
    batches = [batch for batch in watched.batches if batch.rows]
    result: dict[str, Any] = {
        name: spread([length for at, length in times if first <= at < last])
        for name, first, last in zip(("before", "during", "after"), marks, marks[1:], strict=False)
    }
    if waits is not None:
        slow = [(at, length) for at, length in times if length > SLOW_SECONDS]
        result["slow"] = {"commits": len(slow), "waits": waits.during(slow)}
    rows = [sum(batch.rows.values()) for batch in batches]
    result["purge"] = {
        "batches": len(batches), "rows": sum(rows), "rows_a_second": round(sum(rows) / seconds),
        "largest_batch_rows": max(rows), "batch_p50_ms": round(1000 * sorted(b.seconds for b in batches)[len(batches) // 2], 2),
        "batch_longest_ms": round(1000 * max(b.seconds for b in batches), 2), "log_pages_kept": watched.log_pages,
    }  # fmt: skip
    return result


def main() -> None:
    """Print the table, and write the JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kind", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with ExitStack() as stack:
        server = None
        if given.kind == "sqlite":
            folder = tempfile.mkdtemp(prefix="mm4-retention-", dir=given.folder)
            stack.callback(shutil.rmtree, folder)
            url = f"sqlite:///{folder}/mm4.db"
        else:
            os.environ["TMPDIR"] = given.folder
            server = stack.enter_context(Cluster(fsync=True))
            url = server.database()
        begun = time.monotonic()
        fill(url, given.rows, datetime.now(UTC))
        print(f"{given.kind}, {given.rows} rows, filled in {time.monotonic() - begun:.0f} s", flush=True)
        settle(server)
        result = {"kind": given.kind, "rows": given.rows, "rate": given.rate, **measured(url, given.rate, given.seconds, server)}
        if given.kind == "sqlite":
            result["file_mb"] = round(Path(folder, "mm4.db").stat().st_size / 1e6)
    print("| commits of eom | p50 ms | p99 ms | longest ms |\n| --- | --- | --- | --- |")
    for name in ("before", "during", "after"):
        one = result[name]
        print(f"| {name} ({one['commits']}) | {one['p50']} | {one['p99']} | {one['longest']} |")
    print(json.dumps(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
