"""Files that hold mails: one mail, an mbox, or what Postfix's `postcat` prints.

What a file is, its beginning says. Bodies are passed over while reading, so that memory is bounded by the header
of one mail, whatever the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .headers import MAX_HEADER_BYTES

__all__ = ["PIECE", "Mail", "is_queue_file", "mails"]

PIECE = 65536
"""The longest piece of a line that `mails` should get at a time, in bytes."""

_KEPT = 2 * MAX_HEADER_BYTES
"""Bytes of a mail that are kept: enough to see that its header is too large."""

# A queue file begins with its size record, one in the maildrop with a time: type, length, digits (Postfix 2.7 to 3.10).
_QUEUE_FILE = re.compile(rb"C[\x1f-\x7f][ 0-9]{15} |T[\x0a-\x20]\d{9,11} \d")

# `postcat -q ID` names the file in each of its marks, so that a body cannot fake one.
_ENVELOPE = re.compile(rb"\*\*\* ENVELOPE RECORDS (.+) \*\*\*\r?\n?\Z")
_CONTENTS = b"*** MESSAGE CONTENTS %b ***"
_ENDS = (b"*** HEADER EXTRACTED %b ***", b"*** MESSAGE FILE END %b ***")


@dataclass(frozen=True, slots=True)
class Mail:
    """The header of one mail, the number of its first line in the file, and its own number in a file that may
    hold several (from 1; None where the file is one mail)."""

    header: bytes
    first_line: int = 1
    number: int | None = None


def is_queue_file(beginning: bytes) -> bool:
    """Whether a file that begins so (32 bytes are enough) is one of Postfix's queue files, which only postcat reads."""
    return _QUEUE_FILE.match(beginning) is not None


def mails(pieces: Iterable[bytes]) -> Iterator[Mail]:
    """The mails of a file, as they come. There is always one, though it may be empty.

    `pieces` are the file's lines with their line ends; one that is longer than PIECE may come in several. An mbox
    begins with a `From ` line, and has another one, behind a blank line, before each further mail.
    """
    lines = iter(pieces)
    first = next(lines, b"")
    if first.startswith(b"From "):
        return _mbox(first, lines)
    envelope = _ENVELOPE.match(first)
    if envelope:
        return _postcat(envelope[1], lines)
    return _one(first, lines)


class _Header:
    """The header of one mail while its lines come in."""

    def __init__(self, first_line: int, number: int | None) -> None:
        self.first_line = first_line
        self.number = number
        self.complete = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = True

    def add(self, piece: bytes) -> None:
        """A line, or a piece of one, of a header that is not complete."""
        self._pieces.append(piece)
        self._size += len(piece)
        self.complete = self._size > _KEPT or (self._whole and piece in _BLANK)
        self._whole = piece.endswith(b"\n")

    def mail(self) -> Mail:
        return Mail(b"".join(self._pieces), self.first_line, self.number)


_BLANK = frozenset({b"\n", b"\r\n", b"\r\r\n"})
_LONGEST_BLANK = 3


def _one(first: bytes, lines: Iterator[bytes]) -> Iterator[Mail]:
    header = _Header(1, None)
    header.add(first)
    for piece in lines:
        if header.complete:
            break
        header.add(piece)
    yield header.mail()


def _mbox(first: bytes, lines: Iterator[bytes]) -> Iterator[Mail]:
    header = _Header(1, 1)
    header.add(first)
    line, number = 1, 1
    blank, whole = False, first.endswith(b"\n")
    for piece in lines:
        line += whole
        if blank and piece.startswith(b"From "):
            yield header.mail()
            number += 1
            header = _Header(line, number)
        # Nearly all lines are a body's, and longer.
        blank = len(piece) <= _LONGEST_BLANK and whole and piece in _BLANK
        whole = piece[-1:] == b"\n"
        if not header.complete:
            header.add(piece)
    yield header.mail()


def _postcat(name: bytes, lines: Iterator[bytes]) -> Iterator[Mail]:
    line, number = 1, 0
    header: _Header | None = None
    closed = True
    whole = True
    for piece in lines:
        line += whole
        mark = piece.rstrip(b"\r\n") if whole and piece.startswith(b"*** ") else b""
        whole = piece.endswith(b"\n")
        if header is None or closed:
            envelope = _ENVELOPE.match(piece) if mark else None
            name = envelope[1] if envelope else name
            if mark == _CONTENTS % name:
                if header is not None:
                    yield header.mail()
                number += 1
                header, closed = _Header(line + 1, number), False
        elif mark in [end % name for end in _ENDS]:
            closed = True
        elif not header.complete:
            header.add(piece)
    yield header.mail() if header is not None else Mail(b"", 1, 1)
