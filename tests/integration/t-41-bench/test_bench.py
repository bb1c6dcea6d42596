"""The bench in its short form: nothing is lost while it measures, and no ratio is far from where it was.

Ratios are of computing time, which a busy machine changes little, and have wide slack: docs/performance.md has the
figures that mean something.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.postfix

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"
MESSAGES = 40


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `make bench` measures, of each part that is quick enough; it fails where a message, row or ack is missing."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    with subprocess.Popen(
        [
            sys.executable, str(RUN), "--short", "--messages", str(MESSAGES), "--only", "sizes,wire,storm,memory",
            "--json", str(file),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            page, said = process.communicate(timeout=300)
        finally:
            process.terminate()  # it stops what it started, which a kill would leave
    assert process.returncode == 0, f"exit {process.returncode}\n{said[-4000:]}"
    return dict(json.loads(file.read_text()), page=page)


def runs(bench: dict[str, Any], part: str, kind: str) -> list[dict[str, Any]]:
    found = [run for run in bench["parts"][part]["data"]["runs"] if run["kind"] == kind]
    assert found, f"no run of {kind} in {part}"
    return found


def cpu(bench: dict[str, Any], part: str, kind: str) -> float:
    """Seconds of CPU a message, of all that carries it; the client and what stands for peers left out."""
    found = runs(bench, part, kind)
    spent = sum(seconds for run in found for group, seconds in run["cpu"].items() if group != "client and sinks")
    return float(spent / sum(run["messages"] for run in found))


@pytest.mark.parametrize(("part", "kind"), [("sizes", "smtp"), ("sizes", "sendmail"), ("wire", "mm4"), ("storm", "reports")])
def test_every_message_has_its_own_time_at_the_milter(bench: dict[str, Any], part: str, kind: str) -> None:
    for run in runs(bench, part, kind):
        assert len(run["eom"]) == run["messages"] >= MESSAGES
        assert all(ms > 0 for ms in run["eom"])


@pytest.mark.parametrize(
    ("part", "kind", "base", "share"),
    [("sizes", "no-op", "L", 0.4), ("sizes", "smtp", "L", 0.2), ("sizes", "sendmail", "L", 0.12), ("wire", "mm4", "no-op", 0.04)],
)  # fmt: skip
def test_no_more_computing_time_than_several_times_what_it_is(
    bench: dict[str, Any], part: str, kind: str, base: str, share: float
) -> None:
    assert cpu(bench, part, base) / cpu(bench, part, kind) > share


def test_every_target_is_on_the_page_with_what_was_measured(bench: dict[str, Any]) -> None:
    rows = [line for line in bench["page"].splitlines() if line.endswith(("| met |", "| **missed** |"))]
    targets = [target for part in bench["parts"].values() for target in part["targets"]]
    assert len(rows) == len(targets) == 7
    for target in targets:
        assert any(f"| {target['what']} | {target['goal']} | {target['measured']} |" in row for row in rows)
    assert bench["machine"][0] in bench["page"]
