"""Limits over time: the arithmetic, and the store that keeps them for all processes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

import mm4
from mm4.protocol.limits import Bucket, Limit, Quota, Repetition, Standing, take
from mm4.store import Store
from mm4.store.database import Database

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)


def passed(limit: Limit, seconds: list[float]) -> list[bool]:
    """Which of the messages at these moments the limit lets through."""
    standing: Standing | None = None
    result = []
    for second in seconds:
        after = limit.after(standing, NOW + timedelta(seconds=second))
        result.append(after is not None)
        standing = after or standing
    return result


@pytest.mark.parametrize(
    ("limit", "seconds", "expected"),
    [
        (Bucket("k", "second", 1.0, 1), [0, 0.5, 1, 1.5, 2], "1-1-1"),
        (Bucket("k", "second", 1.0, 3), [0, 0, 0, 0, 0.9, 1, 1, 10, 10, 10, 10], "111--1-111-"),
        (Bucket("k", "second", 10.0, 2), [0, 0, 9, 10, 19, 20], "11-1-1"),
        # A clock that was set back by an hour keeps nobody out for an hour.
        (Bucket("k", "second", 1.0, 2), [3600, 3600, 0, 0, 0, 1], "1111-1"),
        # Processes that looked at their clocks a little apart share what there is.
        (Bucket("k", "second", 1.0, 2), [0.1, 0.1, 0, 0.05, 1.1, 1.0], "11--1-"),
        (Quota("k", "day", 2, MIDNIGHT), [0, 1, 2, 3], "11--"),
    ],
)
def test_what_passes(limit: Limit, seconds: list[float], expected: str) -> None:
    assert "".join("1" if yes else "-" for yes in passed(limit, seconds)) == expected


def test_a_day_begins_anew_and_a_days_count_does_not_last() -> None:
    tomorrow = Standing(MIDNIGHT + timedelta(days=1), 1)
    assert Quota("k", "day", 2, MIDNIGHT).after(tomorrow, MIDNIGHT - timedelta(seconds=1)) == Standing(tomorrow.until, 2)
    standing = Quota("k", "day", 2, MIDNIGHT).after(Standing(MIDNIGHT, 1), NOW)
    assert standing == Standing(MIDNIGHT, 2)
    assert Quota("k", "day", 2, MIDNIGHT + timedelta(days=1)).after(standing, MIDNIGHT) == Standing(MIDNIGHT + timedelta(days=1), 1)


def test_a_repetition_counts_from_the_first_on_and_no_longer_than_its_window() -> None:
    same = Repetition("k", "flood", 60)
    first = same.after(None, NOW)
    again = same.after(first, NOW + timedelta(seconds=59))
    assert (first.count, again.count, again.until) == (1, 2, first.until)
    assert same.after(again, NOW + timedelta(seconds=60)).count == 1
    # Another process looked at its clock a little earlier, and comes later.
    assert same.after(again, NOW - timedelta(seconds=1)).count == 3
    # The window was made shorter.
    assert Repetition("k", "flood", 10).after(same.after(None, NOW + timedelta(minutes=2)), NOW).count == 1


@given(st.lists(st.floats(0, 50), max_size=60), st.floats(0.05, 5), st.integers(1, 10))
def test_no_stretch_of_time_sees_more_than_its_rate_and_the_burst(gaps: list[float], interval: float, burst: int) -> None:
    seconds = [sum(gaps[: n + 1]) / 10 for n in range(len(gaps))]
    through = [s for s, yes in zip(seconds, passed(Bucket("k", "second", interval, burst), seconds), strict=True) if yes]
    for i, start in enumerate(through):
        for j in range(i, len(through)):
            assert j - i + 1 <= burst + (through[j] - start) / interval + 0.01


def test_a_message_counts_for_all_limits_or_for_none() -> None:
    limits = [Bucket("a", "second", 1.0, 5), Quota("b", "day", 1, MIDNIGHT), Repetition("c", "flood", 60)]
    first = take(limits, {}, NOW)
    assert (first.over, first.copies, set(first.kept)) == (None, 1, {"a", "b", "c"})
    second = take(limits, first.kept, NOW)
    assert (second.over, second.copies, second.kept) == ("day", 0, {})


# -- in the store


LIMITS: list[Limit] = [Bucket("second north", "second", 1000.0, 30), Repetition("flood north d", "flood", 3600)]


def test_two_stores_share_what_is_taken_and_another_start_finds_it(store_url: str) -> None:
    with Store.open(store_url) as one, Store.open(store_url) as two, ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: (one, two)[n % 2].take(LIMITS, NOW).result(30), range(50)))
        assert sorted(t.copies for t in taken if t.over is None) == list(range(1, 31))
        assert [t.over for t in taken if t.over] == ["second"] * 20
        assert two.standings(["flood north d", "nobody"]) == {"flood north d": Standing(NOW + timedelta(hours=1), 30)}
    with Store.open(store_url, migrate=False) as again:
        assert again.take(LIMITS, NOW).result(30).over == "second"
        assert again.take(LIMITS, NOW + timedelta(seconds=1000)).result(30).copies == 31


def test_two_processes_share_what_is_taken(store_url: str) -> None:
    Store.open(store_url).close()
    code = (
        "import sys; from datetime import UTC, datetime; from mm4.store import Store; from mm4.protocol.limits import Bucket\n"
        "now = datetime(2026, 11, 22, 10, tzinfo=UTC)\n"
        "with Store.open(sys.argv[1], migrate=False) as s:\n"
        "    f = [s.take([Bucket('k', 'second', 1000.0, 30)], now) for _ in range(40)]\n"
        "    print(sum(t.result(60).over is None for t in f))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mm4.__file__).parent.parent)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, store_url], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sum(int(process.communicate(timeout=60)[0]) for process in running) == 30


def rows(url: str) -> int:
    with Database.parse(url, 5.0, False).engine("reader").connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM limits")).scalar_one())


def test_what_says_nothing_any_more_goes_with_the_next_messages(store_url: str) -> None:
    with Store.open(store_url) as store:
        for future in [store.take([Repetition(f"flood north {n}", "flood", 60)], NOW) for n in range(250)]:
            future.result(30)
        assert rows(store_url) == 250
        later = NOW + timedelta(seconds=60)
        # Fewer at a time where each takes a lock: still more than come.
        many = store_url.startswith("sqlite")
        for left in (151, 52, 3) if many else (247, 244, 241):
            store.take([Repetition(f"flood north {left} again", "flood", 60)], later).result(30)
            assert rows(store_url) == left
        # What is over its limit changes nothing.
        store.take([Quota("day north", "day", 1, later), Bucket("second north", "second", 1.0, 1)], NOW).result(30)
        assert rows(store_url) == left + 2
