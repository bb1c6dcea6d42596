"""The first command that a newcomer types after `make`: two operators, a message, its two reports, three answers."""

from __future__ import annotations

import re

import pytest

from harness import mm4

pytestmark = pytest.mark.postfix


def test_the_demo_shows_what_it_says_and_leaves_nothing() -> None:
    done = mm4("demo", timeout=240)
    steps = [line.partition(" s  ")[2] for line in done.stdout.splitlines() if re.match(r" *[0-9.]+ s  ", line)]
    told = ("takes mail on", "sends", "has it, byte for byte", "A has B's MM4_forward.RES: Ok", "delivery report reaches A's subscriber: Retrieved", "read report reaches A's subscriber: Read", "nothing is left")
    assert len(steps) == len(told)
    for step, words in zip(steps, told, strict=True):
        assert words in step
    kinds = re.findall(r"^(MM4_\S+REQ).*: answered, Ok$", done.stdout, re.MULTILINE)
    assert kinds == ["MM4_forward.REQ", "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"] * 2
