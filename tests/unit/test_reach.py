"""Reach lists: the longest prefix counts, what is wrong names its line, and a list that changes is read again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake import LogLines
from mm4.gateway.configfile import parse_config
from mm4.gateway.routes import ReachRoute
from mm4.lookup.reach import Reached, read_reach
from mm4.postfix import lookups as lookups_module
from mm4.postfix.lookups import RouteLookups, check_files
from mm4.protocol.errors import LookupUnavailable, ReachError

HEAD = "prefix,operator,mcc,mnc,peer\n"


def reach(*rows: str, head: str = HEAD, peer: str | None = None) -> dict[str, str | None]:
    """What the list with these rows says of a few numbers."""
    found = read_reach([head, *(f"{row}\n" for row in rows)], "a.csv", ["north", "south"], peer)
    numbers = ("+447700900101", "+447700900999", "+447800000000", "+33600000000")
    return {number: row.peer if (row := found.find(number)) else None for number in numbers}


def test_the_longest_prefix_counts_whatever_the_order() -> None:
    rows = ["44,A,234,15,north", "447700900,B,234,20,south", "+4477009009,C,234,30,north"]
    for _ in range(6):
        random.shuffle(rows)
        assert reach(*rows) == {
            "+447700900101": "south", "+447700900999": "north", "+447800000000": "north", "+33600000000": None,
        }  # fmt: skip


def test_a_row_says_whose_the_number_is() -> None:
    found = read_reach([HEAD, '447700,"A, Ltd",234,015,north\n'], "a.csv", ["north"], None)
    assert found.find("+447700900101") == Reached("+447700", "A, Ltd", "234", "015", "north")
    assert found.find("+4477") is None
    assert len(found) == 1


def test_columns_but_the_prefix_may_be_left_out_and_the_route_names_the_peer() -> None:
    assert reach("44", head="prefix\n", peer="south")["+447700900101"] == "south"
    assert reach("44,north", "4478,", head="prefix,peer\n", peer="south") == {
        "+447700900101": "north", "+447700900999": "north", "+447800000000": "south", "+33600000000": None,
    }  # fmt: skip
    assert reach("44,,,,north", "", "  ", head="\ufeff" + HEAD)["+447700900101"] == "north"


def test_lines_may_end_as_windows_ends_them() -> None:
    assert reach("44,A,234,15,north\r", "33,A,208,01,south\r", head=HEAD.replace("\n", "\r\n"))["+33600000000"] == "south"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["44,A,234,15,soth"], "a.csv:2: no peer is named 'soth'; there are: north, south"),
        (["44,A,234,15,north", "33,A,208,01,"], "a.csv:3: names no peer, and neither does the route"),
        (["44,A,234"], "a.csv:2: expects 5 columns, as in the head line"),
        (["44,A,234,15,north,x"], "a.csv:2: expects 5 columns, as in the head line"),
        (["44,A,234,15,north", "4x,A,234,15,north"], "a.csv:3: '4x' is no prefix: 1 to 15 digits"),
        (["44,A,234,15,north", ",A,234,15,north"], "a.csv:3: '' is no prefix: 1 to 15 digits"),
        (["++44,A,234,15,north"], "a.csv:2: '+44' is no prefix: 1 to 15 digits"),
        (["\u0664\u0664,A,234,15,north"], "a.csv:2: '\u0664\u0664' is no prefix: 1 to 15 digits"),
        (["4477009001011234,A,234,15,north"], "a.csv:2: '4477009001011234' is no prefix: 1 to 15 digits"),
        (["44,A,34,15,north"], "a.csv:2: mcc '34' is not 3 digits"),
        (["44,A,234,1,north"], "a.csv:2: mnc '1' is not 2 or 3 digits"),
        (["44,A,234,15,north", "+44,A,234,15,south"], "a.csv: prefix +44 has two different rows; keep one"),
    ],
)
def test_what_is_wrong_names_file_and_line(rows: list[str], problem: str) -> None:
    with pytest.raises(ReachError) as caught:
        reach(*rows)
    assert str(caught.value) == problem


def test_a_list_with_every_field_in_quotes() -> None:
    assert reach('"+44","A, B","234","15","north"', head='"prefix","operator","mcc","mnc","peer"\r\n')["+447700900101"] == "north"


@pytest.mark.parametrize("head", ["", "\n", "number,peer\n", "peer,prefix\n", "prefix,colour\n", "prefix,peer,peer\n", '"' + "x" * 200_000])
def test_a_head_line_that_is_none(head: str) -> None:
    with pytest.raises(ReachError, match=r"^a\.csv:1: the head line has to be prefix,operator,mcc,mnc,peer"):
        reach("44,north", head=head)


def test_the_same_row_twice_is_no_harm() -> None:
    assert reach("44,A,234,15,north", "44,A,234,15,north")["+447700900101"] == "north"


DIGITS = st.text("0123456789", min_size=1, max_size=15)
NUMBERS = st.text("0123456789", min_size=7, max_size=15)


@given(st.dictionaries(DIGITS, st.sampled_from(["north", "south"]), max_size=40), st.lists(NUMBERS, max_size=10), st.data())
def test_it_finds_what_a_look_at_every_row_finds(rows: dict[str, str], numbers: list[str], data: st.DataObject) -> None:
    # Numbers that begin like a row, too, which random ones hardly do.
    numbers += [(prefix + data.draw(NUMBERS))[:15] for prefix in list(rows)[:10]]
    found = read_reach([HEAD, *(f"{p},Op,262,01,{peer}\n" for p, peer in rows.items())], "a.csv", ["north", "south"], None)
    for number in (n for n in numbers if len(n) >= 7):
        fitting = [p for p in rows if number.startswith(p)]
        row = found.find("+" + number)
        expected = max(fitting, key=len) if fitting else None
        assert (row and row.prefix, row and row.peer) == (expected and "+" + expected, expected and rows[expected])


# -- the file

CONFIG = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  numbers: ["+491511"]
peers:
  north: {domains: [mms.north.example], networks: [192.0.2.1/32], next_hop: "[192.0.2.1]:25"}
  south: {domains: [mms.south.example], networks: [192.0.2.2/32], next_hop: "[192.0.2.2]:25"}
routes:
  - {reach: north.csv, peer: north}
"""


class Files:
    """A list beside a configuration, and who looks it up; time passes when it is told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "north.csv"
        self.config = parse_config(CONFIG, str(folder / "mm4.yaml"))
        self.now = 1000.0
        monkeypatch.setattr(lookups_module.time, "monotonic", lambda: self.now)
        self.counted: list[tuple[str, str]] = []
        self.lookups = RouteLookups(self.config, lambda *count: self.counted.append(count))
        self._renamed = 0

    def write(self, *rows: str) -> None:
        """A new file in the old one's place."""
        new = self.path.with_suffix(".new")
        new.write_text(HEAD + "".join(f"{row}\n" for row in rows))
        self._renamed += 1
        os.utime(new, ns=(self._renamed, self._renamed))
        new.rename(self.path)

    def later(self) -> None:
        """A look, and another one when the file has been the same for a while."""
        self.lookups.read()
        self.now += lookups_module.LOOK_SECONDS
        self.lookups.read()

    def peer(self, number: str = "+447700900101") -> str | None:
        route = self.config.routes[0]
        assert isinstance(route, ReachRoute)
        row = self.lookups.reach(route, number)
        return row.peer if row else None


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def test_a_list_is_read_when_it_is_asked_and_again_when_it_changed(files: Files) -> None:
    files.write("44,A,234,15,")
    assert (files.peer(), files.peer("+33600000000")) == ("north", None)
    files.write("44,A,234,15,south")
    files.lookups.read()
    assert files.peer() == "north", "somebody may still be writing it"
    files.later()
    assert files.peer() == "south"
    assert files.counted == [("reach", "found"), ("reach", "none"), ("reach", "found"), ("reach", "found")]


def test_a_broken_list_leaves_the_old_one_and_says_so_once(files: Files) -> None:
    files.write("44,A,234,15,")
    files.lookups.read()
    with LogLines("mm4.routes") as lines:
        files.write("44,A,234,15,north", "33,A,208,01,soth")
        for _ in range(3):
            files.later()
    assert [line for line in lines if f"{files.path}:3: no peer is named 'soth'" in line and "the old list stays" in line]
    assert len(lines) == 1
    assert files.peer() == "north"
    files.path.unlink()
    files.later()
    assert files.peer() == "north"
    files.write("44,A,234,15,south")
    files.later()
    assert files.peer() == "south"


def test_a_list_that_was_never_read_is_no_answer(files: Files) -> None:
    with pytest.raises(LookupUnavailable, match=r"north\.csv: cannot be read: No such file or directory"):
        files.peer()
    files.write("44,A,234,15,soth")
    files.later()
    with pytest.raises(LookupUnavailable, match=r"north\.csv:2: no peer is named 'soth'"):
        files.peer()
    assert files.counted == [("reach", "failed")] * 2
    assert next(iter(check_files(files.config)))[0] == "routes.0.reach"
    files.write("44,A,234,15,north")
    files.later()
    assert files.peer() == "north"
    assert list(check_files(files.config)) == []


def test_a_list_outlives_a_reload_but_not_the_peer_that_it_names(files: Files) -> None:
    files.write("44,A,234,15,south")
    assert files.peer() == "south"
    files.path.unlink()
    files.lookups.use(files.config)
    assert files.peer() == "south"
    files.lookups.use(files.config.model_copy(update={"peers": {"north": files.config.peers["north"]}}))
    with pytest.raises(LookupUnavailable):
        files.peer()
