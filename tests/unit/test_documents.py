"""The documents say what the tables and the corpus say, and nothing more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mm4.protocol.dialect import builtin

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
CORPUS = {
    int(p.name.partition("-")[0]): dict(json.loads(p.read_text("utf-8")))
    for p in (REPOSITORY / "tests" / "corpus").glob("*/*.json")
}


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row of a page, without heads and rulers."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        is_head = i + 1 < len(lines) and re.match(r"\|[ |-]+\|\Z", lines[i + 1])
        if line.startswith("| ") and not is_head and not re.match(r"\|[ |-]+\|\Z", line):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def numbers(cell: str) -> list[int]:
    return [int(n) for n in re.findall(r"\b\d+\b", cell)]


# -- docs/deviations.md


@dataclass(frozen=True)
class Row:
    id: str
    warnings: str
    statuses: frozenset[str | None]
    cases: tuple[int, ...]

    @property
    def rules(self) -> set[str]:
        return set(re.findall(r"`([a-z-]+)`", self.warnings))


DEVIATIONS = (DOCS / "deviations.md").read_text("utf-8")
ROWS = [
    Row(cells[0], cells[3], frozenset(None if s == "none" else s for s in cells[4].split(", ")), tuple(numbers(cells[6])))
    for cells in table_rows(DEVIATIONS)
    if re.match(r"[DM]\d\d\Z", cells[0])
]


def test_every_deviation_has_one_row() -> None:
    ids = [row.id for row in ROWS]
    assert len(ids) == len(set(ids))
    assert [i for i in ids if i.startswith("D")] == [f"D{n:02}" for n in range(1, 36)]
    mbuni = [i for i in ids if i.startswith("M")]
    assert mbuni == [f"M{n:02}" for n in range(1, len(mbuni) + 1)]
    assert len(mbuni) > 20


def test_page_and_corpus_name_each_other() -> None:
    page = {(row.id, case) for row in ROWS for case in row.cases}
    corpus = {(row, case) for case, wanted in CORPUS.items() for row in wanted.get("rows", [])}
    assert page - corpus == set(), "the page names a case that does not exist or does not name the row"
    assert corpus - page == set(), "a case names a row that does not exist or does not name the case"
    assert [row.id for row in ROWS if not row.cases] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_a_row_says_what_its_cases_show(row: Row) -> None:
    cases = [CORPUS[n] for n in row.cases]
    assert {case["status"] for case in cases} == row.statuses
    shown = {problem["rule"] for case in cases for problem in case["problems"]}
    assert row.rules <= shown
    assert row.rules or "none" in row.warnings
    if "none" in row.warnings:
        assert any(case["problems"] == [] for case in cases)
    if row.warnings == "none":
        # What else is odd in a case that shows several rows belongs to those.
        assert all(case["problems"] == [] or len(case["rows"]) > 1 for case in cases)


def test_every_rule_of_the_corpus_is_explained() -> None:
    head = DEVIATIONS.partition("## What peers")[0]
    explained = {cells[0].strip("`") for cells in table_rows(head)}
    assert {p["rule"] for case in CORPUS.values() for p in case["problems"]} <= explained


# -- docs/peers/tyntec.md

TYNTEC = (DOCS / "peers" / "tyntec.md").read_text("utf-8")
DIALECT = builtin("tyntec")


def section(written: str) -> str:
    """What the page says of one PDU, named as tyntec writes it."""
    _, found, rest = TYNTEC.partition(f"\n### {written}\n")
    assert found, f"no section {written}"
    return re.split(r"\n##", rest, maxsplit=1)[0]


@pytest.mark.parametrize("pdu", sorted(DIALECT.pdus))
def test_tyntecs_page_has_the_rows_of_the_dialect_and_no_others(pdu: str) -> None:
    rows = list(table_rows(section(DIALECT.types[pdu].written)))
    assert {len(cells) for cells in rows} == {7}
    page = [(cells[1], cells[2]) for cells in rows]
    assert page == [(DIALECT.fields[row.field].header, row.presence) for row in DIALECT.pdus[pdu]]
    assert all(all(cells) for cells in rows), "a cell is empty"
    # What the page calls a row of the document is one in the table's source too.
    for cells, row in zip(rows, DIALECT.pdus[pdu], strict=True):
        if cells[0] == "not in the document":
            assert row.source.startswith("not in the document")
        elif cells[0] != "no table":
            assert f"{cells[0].strip('()')}" in row.source


def test_tyntecs_page_names_what_is_written_as_type() -> None:
    written = {row.written for row in DIALECT.types.values()}
    operations = TYNTEC.partition("## Who answers what")[2].partition("\n## ")[0]
    assert {cells[4] for cells in table_rows(operations)} == written
    assert set(re.findall(r"^### (\S+)$", TYNTEC, re.MULTILINE)) == written


def test_every_case_and_test_that_tyntecs_page_names_exists() -> None:
    held = [cells[-1] for cells in table_rows(TYNTEC.partition("## The PDUs")[2])]
    cases = {n for cell in held for n in numbers(re.sub(r"`[^`]*`", "", cell))}
    assert cases <= CORPUS.keys()
    # Each of the cases that were written by the document is named.
    assert {n for n, case in CORPUS.items() if n >= 300 and case.get("dialect") == "tyntec"} <= cases
    assert all(numbers(cell) or "`test_" in cell for cell in held)
    tests = "\n".join(p.read_text("utf-8") for p in (REPOSITORY / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TYNTEC))
    assert len(named) > 5
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in (DOCS / "deviations.md", DOCS / "peers" / "tyntec.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# -- ansible/README.md


def tags(node: Any) -> Iterator[str]:
    """The tags of a playbook or of a role's tasks, in blocks too."""
    for part in node if isinstance(node, list) else [node]:
        if isinstance(part, dict):
            given = part.get("tags", [])
            yield from [given] if isinstance(given, str) else given
            for inner in part.values():
                yield from tags(inner)


def test_the_tags_that_the_collections_readme_names_are_those_of_its_playbooks_and_roles() -> None:
    collection = REPOSITORY / "ansible"
    files = [*collection.glob("playbooks/*.yml"), *collection.glob("roles/*/tasks/*.yml")]
    there = {tag for file in files for tag in tags(yaml.safe_load(file.read_text("utf-8")))}
    sentence = re.search(r"`--tags mm4_.*? are the others", (collection / "README.md").read_text("utf-8"), re.DOTALL)
    assert sentence is not None
    assert set(re.findall(r"`(?:--tags )?(mm4_\w+)`", sentence[0])) == there - {"always"}
