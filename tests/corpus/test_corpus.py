"""Every message of the corpus is read as the JSON beside it says.

Only keys that stand in the JSON are compared, at every depth, lists in full length. Two keys there are inputs:
`dialect`, and `rows`, the ids of docs/deviations.md that the case shows.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mm4.protocol.reader import read_message

HERE = Path(__file__).parent
PAIRS = sorted((p for p in HERE.glob("*/*.eml")), key=lambda p: int(p.name.partition("-")[0]))


def difference(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Where `found` differs from `wanted`; keys that `wanted` does not name are free."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        missing = [f"{where}.{key}: absent" for key in wanted.keys() - found.keys()]
        both = wanted.keys() & found.keys()
        return missing + [d for key in both for d in difference(wanted[key], found[key], f"{where}.{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [d for i, pair in enumerate(zip(wanted, found, strict=True)) for d in difference(*pair, f"{where}[{i}]")]
    # 1 is not true.
    same = wanted == found and type(wanted) is type(found)
    return [] if same else [f"{where}: wanted {wanted!r}, found {found!r}"]


def expected(message: Path) -> dict[str, Any]:
    wanted = dict(json.loads(message.with_suffix(".json").read_text("utf-8")))
    wanted.pop("rows", None)  # tests/unit/test_documents.py holds them against the page
    return wanted


@pytest.mark.parametrize("message", PAIRS, ids=lambda p: p.stem)
def test_is_read_as_its_json_says(message: Path) -> None:
    wanted = expected(message)
    found = read_message(message.read_bytes(), wanted.get("dialect", "3gpp")).as_json(str(message))
    # What is printed is JSON: compare what a reader of the command gets.
    assert difference(wanted, json.loads(json.dumps(found))) == []


def test_no_message_stands_alone() -> None:
    files = {p for p in HERE.glob("*/*") if p.parent.name in ("spec", "peers", "malformed")}
    stems = {p.with_suffix("") for p in files}
    assert files == {s.with_suffix(end) for s in stems for end in (".eml", ".json")}
    numbers = [p.name.partition("-")[0] for p in PAIRS]
    assert len(numbers) == len(set(numbers)), "two cases have one number"


def test_every_case_says_all_that_is_wrong() -> None:
    for message in PAIRS:
        wanted = expected(message)
        assert {"type", "valid", "status", "problems"} <= wanted.keys(), message.name
        assert all({"field", "header", "severity", "rule"} <= p.keys() for p in wanted["problems"]), message.name


def test_the_command_prints_the_same() -> None:
    dialects = {expected(p).get("dialect", "3gpp") for p in PAIRS}
    assert {"3gpp", "tyntec"} <= dialects
    for dialect in sorted(dialects):
        files = [p for p in PAIRS if expected(p).get("dialect", "3gpp") == dialect]
        done = subprocess.run(
            [sys.executable, "-m", "mm4", "lint", "--json", "--dialect", dialect, *map(str, files)],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        lines = done.stdout.decode("utf-8").splitlines()
        assert done.stderr == b""
        assert len(lines) == len(files)
        for file, line in zip(files, lines, strict=True):
            found = json.loads(line)
            assert found["file"] == str(file)
            assert difference(expected(file), found) == [], file.name
        valid = all(expected(f).get("valid", True) for f in files)
        assert done.returncode == (0 if valid else 1)


@pytest.mark.parametrize(("name", "code"), [("01-forward-req-quoted-ids", 0), ("20-no-transaction-id", 1)])
def test_the_exit_code_says_whether_a_message_is_valid(name: str, code: int) -> None:
    (message,) = HERE.glob(f"*/{name}.eml")
    command = [sys.executable, "-m", "mm4", "lint", str(message)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == code


def test_no_message_names_a_real_number_or_domain() -> None:
    for message in PAIRS:
        text = message.read_bytes().decode("latin-1")
        numbers = set(re.findall(r"\+\d{7,}", text))
        domains = set(re.findall(r"@([A-Za-z0-9.-]+\.[A-Za-z]+)", text))
        # Ofcom's numbers for drama, ranges that nobody has, and numbers that are too long or too short to be any.
        real = [n for n in numbers if not n.startswith(("+4477009", "+485000000", "+491511000", "+1234567"))]
        assert real == [], message.name
        assert [d for d in domains if not d.endswith((".example", ".test", ".gprs"))] == [], message.name
