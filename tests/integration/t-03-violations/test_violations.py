"""A PDU that breaks a rule: answered, refused or let through as the peer's entry says, and logged once.

What is mandatory comes from the dialect tables themselves, so that a new row is a new test. The rows of the
outcome table stand in OUTCOMES.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import Dialogue, Link, Mail, forward_req, new_ids, wait_for
from mm4.protocol.dialect import builtin

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
SOURCE = {
    ("respond", "3gpp"): "127.0.0.21", ("reject", "3gpp"): "127.0.0.31", ("monitor", "3gpp"): "127.0.0.41",
    ("respond", "tyntec"): "127.0.0.22", ("reject", "tyntec"): "127.0.0.32", ("monitor", "tyntec"): "127.0.0.42",
}  # fmt: skip
DIALECTS = ("3gpp", "tyntec")

CORRUPT, UNSUPPORTED = "Error-message-format-corrupt", "Error-unsupported-message"
UNRESOLVED, DENIED = "Error-sending-address-unresolved", "Error-service-denied"
OUTCOMES = {CORRUPT: "554 5.6.0", UNSUPPORTED: "554 5.6.1", UNRESOLVED: "553 5.1.7", DENIED: "550 5.7.1"}
"""What stands in for a RES where none may be sent."""

MANDATORY = [
    (dialect, row.field)
    for dialect in DIALECTS
    for row in builtin(dialect).pdus["MM4_forward.REQ"]
    if row.presence == "mandatory"
]
TYPE = {"3gpp": "X-Mms-Message-Type", "tyntec": "X-Mms-MM1-Message-Type"}
STATUS = "X-Mms-Request-Status-Code"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, ("mmsc", "north")) as made:
        yield made


@dataclass
class Outcome:
    """What became of one message: the dialogue, its mails at both sides, the milter's lines about it."""

    dialogue: Dialogue
    answers: list[Mail]
    delivered: list[Mail]
    lines: list[str]

    @property
    def reply(self) -> str:
        """Code and enhanced code at the end of data."""
        assert self.dialogue.data is not None, self.dialogue
        return f"{self.dialogue.data[0]} {self.dialogue.data[1].split()[0]}"

    @property
    def line(self) -> str:
        """The one log line."""
        (line,) = self.lines
        return line


def outcome(
    link: Link, mode: str, dialect: str, unique: str, message: bytes,
    mail_from: str = "+447700900002/TYPE=PLMN@mms.north.example",
) -> Outcome:  # fmt: skip
    """Send it and wait until all is over: Postfix has nothing left, and the milter has said its word."""
    source = SOURCE[mode, dialect]
    before = len(lines_of(link, source))
    dialogue = link.gateway.send(message, source=source, mail_from=mail_from)
    link.gateway.quiet()
    wait_for(lambda: len(lines_of(link, source)) > before, "a log line")
    lines = lines_of(link, source)[before:]
    return Outcome(dialogue, link.north.carrying(unique), link.mmsc.carrying(unique), lines)


def lines_of(link: Link, source: str) -> list[str]:
    return [line for line in link.gateway.log().splitlines() if f" client={source} " in line]


def request(dialect: str, unique: str, **arguments: object) -> bytes:
    """A forward.REQ that is right for the dialect, both its ids and its subject unique."""
    ids = (f"t-{unique}@mms.north.example", f"m-{unique}@mms.north.example")
    arguments = {"ids": ids, **arguments}
    return forward_req(tyntec=dialect == "tyntec", **arguments)  # type: ignore[arg-type]


def other() -> str:
    """A part of ids that no other message has."""
    return new_ids()[0][2:14]


@pytest.fixture
def unique() -> str:
    return other()


def judged(
    link: Link, mode: str, dialect: str, unique: str, message: bytes, status: str, *, acked: bool = True
) -> Outcome:
    """Send a message that deserves `status`, and hold what the mode promises for every violation."""
    seen = outcome(link, mode, dialect, unique, message)
    assert f"status={status} " in f"{seen.line} "
    if mode == "monitor":
        assert seen.reply == "250 2.0.0"
        (delivered,) = seen.delivered
        assert delivered.rcpt == ["+491511000001@mmsc.gw.example"]
        assert [a.header(STATUS) for a in seen.answers] == (["Ok"] if acked else [])
        assert re.search(r'reason="monitor: ', seen.line), seen.line
        return seen
    assert seen.delivered == []
    if mode == "respond" and acked:
        assert seen.reply == "250 2.0.0"
        (answer,) = seen.answers
        assert answer.header(STATUS) == status
        assert answer.rcpt == ["PostMaster@mms.north.example"]
        assert answer.header("X-Mms-Status-Text")
        assert f" answer={status}" in seen.line
    else:
        assert seen.reply == OUTCOMES[status]
        assert seen.answers == []
        assert " verdict=reject " in seen.line
    return seen


def test_the_message_from_which_the_others_are_made_is_right(link: Link) -> None:
    """Else the tests below would prove nothing."""
    for mode, dialect in SOURCE:
        unique = other()
        seen = outcome(link, mode, dialect, unique, request(dialect, unique))
        assert seen.reply == "250 2.0.0"
        (answer,) = seen.answers
        assert answer.header(STATUS) == "Ok"
        assert len(seen.delivered) == 1
        assert " verdict=accept status=Ok answer=Ok " in seen.line


# -- a mandatory field is missing


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize(("dialect", "field"), MANDATORY, ids=[f"{d}-{f}" for d, f in MANDATORY])
def test_a_mandatory_field_is_missing(link: Link, dialect: str, field: str, mode: str, unique: str) -> None:
    header = builtin(dialect).fields[field].header
    seen = judged(link, mode, dialect, unique, request(dialect, unique, drop=(header,)), CORRUPT)
    assert header in seen.line
    ids = {"X-Mms-Transaction-ID": f"t-{unique}@mms.north.example", "X-Mms-Message-ID": f"m-{unique}@mms.north.example"}
    for answer in seen.answers:
        assert answer.header(TYPE[dialect]) == builtin(dialect).types["MM4_forward.RES"].written
        for name, value in ids.items():
            assert answer.all(name) == ([] if name == header else [value])
        if mode == "respond":
            assert header in (answer.header("X-Mms-Status-Text") or "")


@pytest.mark.parametrize(("dialect", "field"), MANDATORY, ids=[f"{d}-{f}" for d, f in MANDATORY])
def test_a_mandatory_field_is_missing_and_no_ack_asked_for(link: Link, dialect: str, field: str, unique: str) -> None:
    header = builtin(dialect).fields[field].header
    message = request(dialect, unique, drop=(header,), ack=None)
    judged(link, "respond", dialect, unique, message, CORRUPT, acked=False)


# -- a value that cannot be read


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Mms-Transaction-ID", ""),
        ("X-Mms-Transaction-ID", '""'),
        ("X-Mms-Transaction-ID", "t" * 901),
        ("X-Mms-Message-ID", "m-\xe9"),
        ("X-Mms-Message-ID", "m-\x07"),
        ("X-Mms-3GPP-MMS-Version", "five"),
        ("Date", "yesterday"),
        ("To", "nobody at all"),
        ("Content-Type", "picture"),
        ("X-Mms-Expiry", "soon"),
        ("X-Mms-Forward-Counter", "once"),
    ],
)
def test_a_value_that_cannot_be_read(link: Link, header: str, value: str, mode: str, unique: str) -> None:
    message = f"{header}: {value}\r\n".encode("latin-1") + request("3gpp", unique, drop=(header,))
    seen = judged(link, mode, "3gpp", unique, message, CORRUPT)
    assert header in seen.line
    for answer in seen.answers:
        assert answer.content.isascii()


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize(
    ("header", "value"),
    [("X-Mms-Transaction-ID", '"other"'), ("X-Mms-Message-ID", "other"), ("From", "+447700900009"), ("Date", "0")],
)
def test_two_different_values_under_one_name(link: Link, header: str, value: str, mode: str, unique: str) -> None:
    seen = judged(link, mode, "3gpp", unique, request("3gpp", unique, extra=((header, value),)), CORRUPT)
    assert header in seen.line
    for answer in seen.answers:
        assert answer.all("X-Mms-Transaction-ID") == [f"t-{unique}@mms.north.example"]


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize("value", ["<>", "undisclosed recipients", "+44770", "Ann Example"])
def test_from_is_no_address(link: Link, value: str, mode: str, unique: str) -> None:
    message = f"From: {value}\r\n".encode() + request("3gpp", unique, drop=("From",))
    judged(link, mode, "3gpp", unique, message, UNRESOLVED)


# -- types


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_type_that_is_none(link: Link, dialect: str, mode: str, unique: str) -> None:
    message = request(dialect, unique, drop=(TYPE[dialect],))
    message = f"{TYPE[dialect]}: MM4_frobnicate.REQ\r\n".encode() + message
    seen = judged(link, mode, dialect, unique, message, UNSUPPORTED)
    for answer in seen.answers:
        assert answer.header(TYPE[dialect]) == builtin(dialect).types["MM4_forward.RES"].written


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_type_that_is_none_and_no_ack_asked_for(link: Link, dialect: str, unique: str) -> None:
    message = request(dialect, unique, drop=(TYPE[dialect],), ack="No")
    message = f"{TYPE[dialect]}: MM4_frobnicate.REQ\r\n".encode() + message
    judged(link, "respond", dialect, unique, message, UNSUPPORTED, acked=False)


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("written", ["MM4_frobnicate.RES", "mm4_forward_2.res"])
def test_an_unknown_answer_is_never_answered(link: Link, written: str, dialect: str, mode: str, unique: str) -> None:
    message = f"{TYPE[dialect]}: {written}\r\n".encode() + request(dialect, unique, drop=(TYPE[dialect],))
    seen = outcome(link, mode, dialect, unique, message)
    assert seen.answers == seen.delivered == []
    assert seen.reply == ("250 2.0.0" if mode == "monitor" else "554 5.6.1")
    assert f" verdict={'discard' if mode == 'monitor' else 'reject'} " in seen.line


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
def test_an_answer_that_breaks_a_rule_is_never_answered(link: Link, mode: str, unique: str) -> None:
    message = request("3gpp", unique, drop=(TYPE["3gpp"],))  # no status code either
    seen = outcome(link, mode, "3gpp", unique, b"X-Mms-Message-Type: MM4_forward.RES\r\n" + message)
    assert seen.answers == seen.delivered == []
    assert seen.reply == ("250 2.0.0" if mode == "monitor" else "554 5.6.0")
    assert STATUS in seen.line


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("From: +447700900002\r\nTo: +491511000001\r\nSubject: {}\r\n\r\nhello\r\n", id="ordinary-mail"),
        # Without any header there is a trap in libmilter: it never answered, and Postfix waited for a minute.
        pytest.param("\r\n{} is a body\r\n", id="only-a-body"),
        pytest.param("", id="nothing"),
    ],
)
def test_what_is_no_mm4_is_refused_at_once(link: Link, content: str, mode: str, unique: str) -> None:
    began = time.monotonic()
    seen = outcome(link, mode, "3gpp", unique, content.format(unique).encode())
    assert time.monotonic() - began < 30
    assert seen.reply == "554 5.6.0"
    assert seen.answers == seen.delivered == []
    assert " verdict=reject " in seen.line


# -- loops and floods


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
def test_over_thirty_received_lines_are_a_loop(link: Link, mode: str, unique: str) -> None:
    hop = b"Received: from a.example (a.example [192.0.2.1]) by b.example; Thu, 12 Nov 2026 02:28:01 +0200\r\n"
    name = other()
    right = outcome(link, mode, "3gpp", name, hop * 30 + request("3gpp", name))
    assert [a.header(STATUS) for a in right.answers] == ["Ok"]
    judged(link, mode, "3gpp", unique, hop * 31 + request("3gpp", unique), DENIED)


@pytest.mark.parametrize(
    ("right", "over"),
    [
        (["X-Mms-Forward-Counter: 10"], ["X-Mms-Forward-Counter: 11"]),
        # Our own domain once is a message that comes home.
        (
            ["X-Mms-Previously-sent-by: 0, +491511000003/TYPE=PLMN@mms.gw.example"],
            [f"X-Mms-Previously-sent-by: {n}, +491511000003/TYPE=PLMN@MMS.gw.example" for n in (0, 2)],
        ),
    ],
    ids=["counter", "own-domain"],
)
def test_a_message_that_was_forwarded_too_often_is_a_loop(
    link: Link, right: list[str], over: list[str], unique: str
) -> None:
    def with_lines(lines: list[str], name: str) -> bytes:
        return "".join(f"{line}\r\n" for line in lines).encode() + request("3gpp", name)

    name = other()
    seen = outcome(link, "respond", "3gpp", name, with_lines(right, name))
    assert [a.header(STATUS) for a in seen.answers] == ["Ok"]
    judged(link, "respond", "3gpp", unique, with_lines(over, unique), DENIED)


@pytest.mark.parametrize("mode", ["respond", "reject", "monitor"])
def test_over_five_thousand_headers_are_refused_and_quickly(link: Link, mode: str, unique: str) -> None:
    headers, _, body = request("3gpp", unique).partition(b"\r\n\r\n")
    flood = b"".join(b"\r\nX-Flood: %d" % n for n in range(6000))
    began = time.monotonic()
    seen = judged(link, mode, "3gpp", unique, headers + flood + b"\r\n\r\n" + body, CORRUPT)
    assert time.monotonic() - began < 20
    match = re.search(r" ms=([\d.]+)", seen.line)
    assert match
    assert float(match[1]) < 2000  # the verdict itself


def test_five_thousand_headers_are_taken(link: Link, unique: str) -> None:
    headers, _, body = request("3gpp", unique).partition(b"\r\n\r\n")
    many = b"".join(b"\r\nX-Many: %d" % n for n in range(5000 - len(re.findall(rb"(?m)^[^ \t]", headers))))
    seen = outcome(link, "respond", "3gpp", unique, headers + many + b"\r\n\r\n" + body)
    assert [a.header(STATUS) for a in seen.answers] == ["Ok"]


def test_a_header_that_would_have_to_change_and_is_too_long_to_be_seen_whole(link: Link, unique: str) -> None:
    message = request("3gpp", unique, ack="x" * 55_000)
    seen = outcome(link, "respond", "3gpp", unique, message)
    assert seen.reply == "554 5.6.0"
    assert seen.answers == seen.delivered == []
    assert " verdict=reject " in seen.line


# -- where an answer could start a loop


def test_a_machines_message_without_a_sender_is_not_answered(link: Link, unique: str) -> None:
    automatic = b"X-Mms-Message-Class: Auto\r\n"
    drop = ("X-Mms-Message-Class",)
    seen = outcome(link, "respond", "3gpp", unique, automatic + request("3gpp", unique, drop=drop), mail_from="")
    assert seen.reply == "250 2.0.0"
    assert seen.answers == []
    assert len(seen.delivered) == 1
    # Wrong, it is refused and not answered either.
    bad = other()
    message = automatic + request("3gpp", bad, drop=(*drop, "Date"))
    seen = outcome(link, "respond", "3gpp", bad, message, mail_from="")
    assert seen.reply == "554 5.6.0"
    assert seen.answers == seen.delivered == []
    # With a sender, or of another class, it is somebody's and is answered.
    named = other()
    message = automatic + request("3gpp", named, drop=drop)
    assert len(outcome(link, "respond", "3gpp", named, message).answers) == 1
    null = other()
    assert len(outcome(link, "respond", "3gpp", null, request("3gpp", null), mail_from="").answers) == 1


def test_a_refused_message_is_remembered_as_refused(link: Link, unique: str) -> None:
    seen = judged(link, "respond", "3gpp", unique, request("3gpp", unique, drop=("Date",)), CORRUPT)
    (transaction,) = link.gateway.trace(f"m-{unique}@mms.north.example")
    assert (transaction["state"], transaction["status"], transaction["direction"]) == ("refused", CORRUPT, "in")
    assert transaction["queue_id"] == seen.dialogue.queue_id
