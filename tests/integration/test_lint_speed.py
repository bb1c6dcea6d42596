"""`mm4 lint` reads 10,000 PDUs in less than three times what it may take on two idle cores (docs/performance.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.lint import GOAL, measure, pdus

COUNT = 10_000


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    folder = tmp_path_factory.mktemp("lint")
    return folder, *pdus(folder, COUNT, 2)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["people", "json"])
@pytest.mark.parametrize("what", ["files", "mbox"])
def test_ten_thousand_pdus(given: tuple[Path, list[str], str], what: str, options: tuple[str, ...]) -> None:
    folder, files, mbox = given
    assert measure(folder, files if what == "files" else [mbox], COUNT, *options) < 3 * GOAL
