"""A reach list of a million rows: within its memory, and three times the time that it may take (docs/performance.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reach import LOAD, LOOKUP, MEMORY, measure, write

ROWS = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
def test_a_million_rows(tmp_path: Path, shuffled: bool) -> None:
    path = tmp_path / "reach.csv"
    write(path, ROWS, shuffled=shuffled)
    figures = measure(path)
    path.unlink()
    assert figures["rows"] == ROWS
    assert figures["found"] > 0.1
    assert figures["load"] < 3 * LOAD
    assert figures["memory"] < MEMORY
    assert figures["lookup"] < 3 * LOOKUP
