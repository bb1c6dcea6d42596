"""The bench's client of the milter protocol: what it sends, what it counts, and that nothing refused is taken for good."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.alone import kept, request, scattered
from bench.endurance import correlated
from bench.filler import MESSAGE_ID, fill
from bench.noop import Noop
from bench.part import Wrong
from bench.sender import Refused
from bench.wire import DIGITS, MARK, Conversation, Negotiated, conversation, drive, negotiate
from cluster import execute
from harness import NORTH

SILENT = 0x80 | 0x10000 | 0x40000
"""No reply to headers, DATA, end of headers."""
NO_HELO_NO_BODY = 0x2 | 0x10


def packets(data: bytes) -> list[bytes]:
    """Each with its command, without the length."""
    found = []
    while data:
        (size,) = struct.unpack("!I", data[:4])
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def talk(flags: int, macros: dict[str, str] | None = None, body: bytes = b"") -> Conversation:
    agreed = Negotiated(flags, 0x1FF, macros or {}, b"")
    headers = [("Subject", b" one\n two"), ("To", b"+" + MARK.encode())]
    return conversation(agreed, "127.0.0.21", "a@x.example", f"+49{MARK}@y.example", headers, body)


def test_what_is_answered_is_waited_for_and_what_is_not_goes_with_the_next() -> None:
    what = talk(SILENT | NO_HELO_NO_BODY)
    assert [step.command for step in (*what.opening, *what.message)] == ["O", "C", "M", "R", "E"]
    assert packets(what.message[-1].data) == [
        b"DT", b"T", b"LSubject\0one\n two\0", b"LTo\0+" + MARK.encode() + b"\0", b"DN", b"N", b"DE", b"E"
    ]  # fmt: skip


def test_what_the_milter_wants_to_see_and_to_answer_it_gets() -> None:
    what = talk(0, body=bytes(70_000))
    assert [s.command for s in (*what.opening, *what.message)] == [*"OCH", *"MRT", "L", "L", "N", "B", "B", "E"]
    assert sum(len(packet) - 1 for step in what.message for packet in packets(step.data) if packet[:1] == b"B") == 70_000


def test_macros_go_as_asked_for_and_only_where_they_have_a_value() -> None:
    what = talk(SILENT | NO_HELO_NO_BODY, {"M": "{mail_addr} {tls_version}", "T": "i"})
    assert packets(what.message[0].data)[0] == b"DM{mail_addr}\0a@x.example\0"
    assert packets(what.message[-1].data)[0] == b"DTi\x004c" + MARK.encode() + b"z\0"


def test_numbers_are_scattered_and_each_comes_once() -> None:
    numbers = scattered(0, 1000) + scattered(1000, 1000)
    assert len(set(numbers)) == 2000
    assert max(numbers) < 10**DIGITS
    assert numbers != sorted(numbers)


class Scripted:
    """A milter that takes everything, and says `verdict` at the end of a message; `after` cuts the connection there."""

    def __init__(self, path: Path, verdict: Sequence[bytes], after: str = "") -> None:
        self.verdict, self.after = verdict, after
        self.seen: list[bytes] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client:
                    self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        file = client.makefile("rb")
        while size := file.read(4):
            packet = file.read(struct.unpack("!I", size)[0])
            self.seen.append(packet)
            command = packet[:1].decode()
            if command == self.after:
                return
            answers = {"O": [b"O" + struct.pack("!III", 6, 0, SILENT | NO_HELO_NO_BODY)], "E": self.verdict}
            for answer in answers.get(command, [b"c"] if command in "CMR" else []):
                # Byte by byte: an answer may come in pieces.
                for byte in struct.pack("!I", len(answer)) + answer:
                    client.sendall(bytes([byte]))


@contextlib.contextmanager
def scripted(path: Path, verdict: Sequence[bytes], after: str = "") -> Iterator[Scripted]:
    milter = Scripted(path, verdict, after)
    try:
        yield milter
    finally:
        milter.listener.close()


@pytest.mark.parametrize("keep", [False, True])
def test_edits_are_read_and_the_verdict_ends_the_message(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "m"
    edits = [b"hX-Test\0yes\0", b"2<t@responder.mm4.invalid>\0NOTIFY=NEVER\0", b"a"]
    with scripted(path, edits) as milter:
        what = conversation(negotiate(path), NORTH, *request("x"))
        outcome = drive(path, what, range(7, 12), 1, keep=keep)
    assert (outcome.messages, outcome.tokens, len(outcome.eom)) == (5, 5, 5)
    assert [p[:1] for p in milter.seen].count(b"C") == (1 if keep else 5)
    assert [p[:1] for p in milter.seen].count(b"M") == 5
    recipients = [p for p in milter.seen if p[:1] == b"R"]
    assert recipients == [b"R<+491511%07d/TYPE=PLMN@mms.gw.example>\0" % n for n in range(7, 12)]


@pytest.mark.parametrize("verdict", [b"y451 4.3.0 wait\0", b"r", b"t", b"d"])
def test_a_message_that_is_not_accepted_ends_the_run(tmp_path: Path, verdict: bytes) -> None:
    with scripted(tmp_path / "m", [verdict]), pytest.raises(Refused, match="message 0000003 got"):
        drive(tmp_path / "m", conversation(negotiate(tmp_path / "m"), NORTH, *request("x")), [3], 1)


@pytest.mark.parametrize("after", ["C", "M", "R", "E"])
def test_a_milter_that_hangs_up_ends_the_run(tmp_path: Path, after: str) -> None:
    with scripted(tmp_path / "m", [b"a"], after), pytest.raises(Refused, match=f"hung up at {after}|Broken pipe"):
        drive(tmp_path / "m", conversation(negotiate(tmp_path / "m"), NORTH, *request("x")), [3], 1)


def test_the_milter_that_does_nothing_takes_everything(tmp_path: Path) -> None:
    noop = Noop(tmp_path / "m", 2)
    try:
        what = conversation(negotiate(noop.socket), NORTH, *request("x"))
        fast = drive(noop.socket, what, range(300), 20)
        slow = drive(noop.socket, what, range(20), 5, keep=True, rate=100)
    finally:
        noop.close()
    assert (fast.messages, fast.tokens, slow.messages) == (300, 0, 20)
    assert slow.seconds > 0.18


def test_what_was_filled_in_is_found_and_what_is_missing_or_twice_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mm4.db"
    fill(url, 1200, sent=True)
    ids = [row[0] for row in execute(url, "SELECT transaction_id FROM transactions ORDER BY message_id")]
    assert kept(url, ids) == len(set(ids)) == 1200
    assert kept(url, [*ids[:700], "nobody"]) == 700
    (row,) = execute(url, "SELECT count(*) FROM transactions WHERE message_id = :m", m=MESSAGE_ID.format("0001199"))
    assert row[0] == 1
    with pytest.raises(Wrong, match="5 reports"):
        correlated(url, 5)
    execute(url, "UPDATE transactions SET transaction_id = :a WHERE transaction_id = :b", a=ids[0], b=ids[1])
    with pytest.raises(Wrong, match="1 messages are there twice"):
        kept(url, ids)
