"""One message to several peers and to our own side: each gets its own, as if the message had been for him alone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, NORTH, Dialogue, Link, Mail, forward_req, mm4, new_ids, wait_for
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
HOPS = ("mmsc", "mvno", "north", "south", "east")
OURS = "+491511000001"
NUMBERS = {
    "north": "+447700900101", "south": "+33600000001", "east": "+34600000001", "mmsc": "+491511000002", "mvno": "+491512000002",
}  # fmt: skip
DOMAINS = {"north": "mms.north.example", "south": "mm4.south.example", "east": "mms.east.example"}
SOURCES = {"north": NORTH, "south": "127.0.0.22", "east": "127.0.0.23"}
DIALECTS = {"north": "3gpp", "south": "tyntec", "east": "bare-ids"}
SENDER = f"{OURS}/TYPE=PLMN@mms.gw.example"

Ids = tuple[str, str]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, HOPS) as made:
        yield made


def message(ids: Ids, *, sender: str = OURS, **more: Any) -> bytes:
    """A REQ whose header holds what is easily lost: 8-bit, folds, blanks, a name twice, others' names for fields."""
    content = forward_req(sender=sender, to=NUMBERS["north"], ids=ids, system="mmsc@mms.gw.example", **more)
    odd = (
        b"Subject: caf\xe9\r\n\t and more\r\nX-Any:none\r\nX-Any :  two\r\nX-Mms-Forwarded-By: +447700900003/TYPE=PLMN\r\n"
        b"x-any:\tthree\r\nX-Mms-Priority"
    )
    return content.replace(b"X-Mms-Priority", odd, 1)


def ask(link: Link, *sides: str, ids: Ids | None = None, content: bytes | None = None) -> tuple[Ids, Dialogue]:
    """A message of our MMSC to one recipient of each side."""
    ids = ids or new_ids("mms.gw.example")
    told = link.gateway.send(
        content or message(ids), source=LOCAL, mail_from=SENDER,
        rcpt=tuple(f"{NUMBERS[side]}/TYPE=PLMN@mms.gw.example" for side in sides),
    )  # fmt: skip
    assert (told.code, [code for code, _ in told.rcpt]) == (250, [250] * len(sides)), told
    return ids, told


def got(link: Link, side: str, ids: Ids) -> Mail:
    (mail,) = link.hops[side].wait_for(ids[1])
    return mail


def below_received(mail: Mail, ids: Ids) -> bytes:
    """What a next hop got, but for what is new each time: Postfix's own line on top, and the ids."""
    content = re.sub(rb"\AReceived:(?:[^\n]|\n[ \t])*\n", b"", mail.content)
    return content.replace(ids[0].encode(), b"T").replace(ids[1].encode(), b"M")


def answer(link: Link, side: str, request: Mail, status: str = "Ok") -> None:
    """The peer's RES."""
    lines = {
        "X-Mms-3GPP-MMS-Version": "5.5.0", "X-Mms-Message-Type": "MM4_forward.RES",
        "X-Mms-Transaction-ID": request.header("X-Mms-Transaction-ID"),
        "X-Mms-Message-ID": request.header("X-Mms-Message-ID"), "X-Mms-Request-Status-Code": status,
    }  # fmt: skip
    told = link.gateway.send(
        "".join(f"{n}: {v}\r\n" for n, v in lines.items()).encode() + b"\r\n", source=SOURCES[side],
        mail_from=f"system@{DOMAINS[side]}", rcpt=("system-user@mms.gw.example",),
    )  # fmt: skip
    assert told.code == 250, told


def states(link: Link, identifier: str) -> dict[str, tuple[str, str | None]]:
    traced = link.gateway.trace(identifier)
    return {t["recipient"]: (t["state"], t["status"]) for t in traced if t["type"] == "MM4_forward.REQ"}


def reach(link: Link, identifier: str, **wanted: str) -> None:
    """Wait until each side's transaction has its state."""
    def look() -> bool:
        found = states(link, identifier)
        return all(found.get(NUMBERS[side], ("",))[0] == state for side, state in wanted.items())

    wait_for(look, f"{wanted}, not {states(link, identifier)}")


@pytest.mark.parametrize("order", [HOPS, tuple(reversed(HOPS)), ("south", "mmsc", "east", "north", "mvno")])
def test_each_side_gets_the_very_message_that_it_would_get_alone(link: Link, order: tuple[str, ...]) -> None:
    alone = {}
    for side in order:
        ids, _ = ask(link, side)
        alone[side] = below_received(got(link, side, ids), ids), got(link, side, ids)
    ids, told = ask(link, *order)
    sent = time.monotonic()
    for side in order:
        mail = got(link, side, ids)
        wanted, single = alone[side]
        assert below_received(mail, ids) == wanted, side
        assert mail.rcpt == single.rcpt
        assert re.sub("[0-9a-f]{32}", "TOKEN", mail.mail_from) == re.sub("[0-9a-f]{32}", "TOKEN", single.mail_from)
        assert mail.at - sent < 5, f"{side} {mail.at - sent:.2f} s after the 250"
    link.gateway.quiet()
    assert [len(link.hops[side].carrying(ids[1])) for side in order] == [1] * len(order)
    # Each is a message of its own, and all are found by the id, and by the queue id in the 250.
    traced = link.gateway.trace(ids[1])
    assert sorted(t["recipient"] for t in traced) == sorted(NUMBERS.values())
    assert len({t["queue_id"] for t in traced}) == len(order)
    assert {t["recipient"] for t in link.gateway.trace(told.queue_id)} == set(NUMBERS.values())
    for t in traced:
        assert {u["recipient"] for u in link.gateway.trace(t["queue_id"])} >= {t["recipient"]}
