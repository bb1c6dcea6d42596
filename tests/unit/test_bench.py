"""The bench's arithmetic: what stands in docs/performance.md is what was measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bench import machine
from bench.cpu import Process, spent
from bench.figures import BEGIN, END, Run, cpu_table, percentile, ratios, replaced, speed_table, spread
from bench.part import Part, Target, turns
from bench.plain import without_milter
from bench.run import PAGE, PARTS, arguments, page
from bench.traffic import requests
from mm4.postfix.maps import reference
from mm4.protocol.headers import split
from mm4.protocol.reader import read

RUNS = [
    Run(1, "L", "40 kB", 100, 0.5, 0.4, (), {"Postfix": 0.5}),
    Run(1, "smtp", "40 kB", 100, 1.0, 0.4, (1.0, 2.0), {"Postfix": 0.8, "responder": 0.2}),
    Run(2, "L", "40 kB", 100, 1.0, 0.4, (), {"Postfix": 0.7}),
    Run(2, "smtp", "40 kB", 100, 1.25, 0.4, (3.0, 4.0), {"Postfix": 0.6, "responder": 0.4}),
    Run(1, "smtp", "400 kB", 100, 1.0, 0.4),
]


def test_a_ratio_is_to_what_it_is_asked_for() -> None:
    assert ratios(RUNS, "L", "40 kB", "smtp") == [2.0, 1.25]


def test_a_ratio_is_taken_within_its_round() -> None:
    assert ratios(RUNS, "smtp", "40 kB") == [0.5, 0.8]
    assert ratios(RUNS, "smtp", "400 kB") == []


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)
    assert math.isnan(percentile([], 0.5))


def test_the_tables_hold_medians_and_extremes() -> None:
    assert spread([0.5, 0.8, 0.6], 2) == "0.60 (0.50-0.80)"
    speed, cpu = "\n".join(speed_table(RUNS[:4], "L")), "\n".join(cpu_table(RUNS[:4]))
    assert "| 40 kB | L | 150 (100-200) | 1 | - | - |" in speed
    assert "| 40 kB | smtp | 90 (80-100) | 0.65 (0.50-0.80) | 2.0 (1.0-3.0) ms | 3.0 (2.0-4.0) ms |" in speed
    assert "| 40 kB | smtp | 7.00 | - | 3.00 | - | - | 10.00 |" in cpu


def test_everything_compared_has_its_turn_in_a_round_and_each_begins_one() -> None:
    rounds = [turns(["a", "b", "c"], number) for number in (1, 2, 3)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 3
    assert {each[0] for each in rounds} == {"a", "b", "c"}


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nz\n", "new\n") == f"a\n{BEGIN}\nnew\n{END}\nz\n"
    for text in (f"{END}{BEGIN}", BEGIN, "", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(ValueError, match="needs one"):
            replaced(text, "new")


def test_every_part_and_every_target_is_on_the_page() -> None:
    parts = {
        "a": Part("First", ["| x |"], [Target("speed", ">= 0.60", "0.52", False), Target("size", "< 5 MB", "1.0 MB", True)]),
        "b": Part("Second", ["| y |"]),
    }
    text = page(parts, ["- a machine"])
    assert text.startswith("- a machine\n")
    assert "| speed | >= 0.60 | 0.52 | **missed** |\n| size | < 5 MB | 1.0 MB | met |\n" in text
    assert [line for line in text.splitlines() if line.startswith("#")] == ["### Targets", "### First", "### Second"]


def test_the_machine_is_told_with_its_processor_and_every_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_postgresql", lambda: ["PostgreSQL 15.1"])
    hardware, versions = machine.machine_lines(tmp_path)
    assert re.fullmatch(r"- \d+ cores \(.+\), \d+ GB of memory, .+ where write and fsync of 4 kB take [\d.]+ ms\.", hardware)
    names = "mm4", "Python", "Postfix", "libmilter", "pymilter", "psycopg", "SQLite"
    assert re.fullmatch(rf"- Linux [\d.]+, {''.join(f'{name} .+, ' for name in names)}PostgreSQL 15\.1\.", versions)
    assert list(tmp_path.iterdir()) == []


def test_the_machines_postgresql_is_that_of_a_cluster_and_left_out_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)'\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine, "binaries", lambda: tmp_path)
    assert machine._postgresql() == ["PostgreSQL 15.18"]
    monkeypatch.setattr(machine, "binaries", lambda: None)
    assert machine._postgresql() == []


def test_the_page_can_be_written() -> None:
    assert replaced(PAGE.read_text(), "new")


def test_the_page_names_every_part() -> None:
    text = PAGE.read_text()
    assert [name for name in PARTS if f"`{name}`" not in text] == []


def test_seconds_go_to_the_group_that_spent_them() -> None:
    table = {
        1: Process(1, 0, "init", 100, 100),
        10: Process(10, 1, "python -m mm4 sandbox --config x", 1, 0),
        11: Process(11, 10, "/usr/lib/postfix/sbin/master -c x", 2, 3),
        12: Process(12, 11, "smtpd -n 127.0.0.1:1 -t inet", 4, 0),
        20: Process(20, 10, "python -m mm4 serve --config x", 1, 0),
        21: Process(21, 20, "python -m mm4.postfix.worker 5", 7, 0),
        22: Process(22, 20, "python -m mm4.postfix.answerer 5 6", 8, 9),
        23: Process(23, 22, "smtpd -S", 1, 2),
        30: Process(30, 1, "smtp-sink", 5, 0),
        31: Process(31, 1, "somebody else", 50, 50),
    }
    assert spent(table, 10, (30,)) == {
        "Postfix": 9.0, "milter workers": 9.0, "responder": 8.0, "sendmail": 12.0, "client and sinks": 5.0,
    }  # fmt: skip
    assert spent(table, 11)["Postfix"] == 9.0


def test_l_is_the_reference_postfix_without_milter_and_filter() -> None:
    with_it = reference("gateway/master.cf")
    without = without_milter(with_it)
    gone = set(with_it.splitlines()) - set(without.splitlines())
    assert sorted(line.split("=")[0].strip() for line in gone) == ["-o smtpd_command_filter", "-o { smtpd_milters"]
    another = without_milter(with_it, milter=True)
    gone = set(with_it.splitlines()) - set(another.splitlines())
    assert [line.split("=")[0].strip() for line in gone] == ["-o smtpd_command_filter"]
    with pytest.raises(ValueError, match="expected 2"):
        without_milter(without)


@pytest.mark.parametrize("size", [4, 40, 400])
def test_every_request_is_a_valid_req_of_its_size_with_ids_of_its_own(size: int) -> None:
    items = requests(size, 3, "x", local=False)
    assert all(abs(len(item.head) + len(item.rest) - size * 1000) < 200 for item in items)
    pdus = [read(split(item.head + item.rest)[0]) for item in items]
    assert all(pdu.valid and pdu.ack_request for pdu in pdus)
    for name in ("transaction_id", "message_id"):
        assert len({pdu.get(name) for pdu in pdus}) == 3


@pytest.mark.parametrize("wrong", ["--only=x", "--only=", "--rounds=-1", "--messages=x", "--short --write", "--only=wire --write"])
def test_a_wrong_option_ends_with_2(wrong: str) -> None:
    with pytest.raises(SystemExit) as end:
        arguments(wrong.split())
    assert end.value.code == 2
