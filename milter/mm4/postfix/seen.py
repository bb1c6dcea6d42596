"""What a milter gets to see of a message's header and body, found as Postfix finds it: for a dry run.

The protocol's own `split` forgives what Postfix does not. For Postfix a line that is no header ends the header, a
carriage return alone is a blank and ends no line (cleanup_replace_stray_cr_lf), and an mbox line in front becomes a
header of its own. A value goes to a milter as a C string, hence up to a NUL.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from ..protocol.headers import MAX_HEADERS, Header

__all__ = ["body_of", "seen"]

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)\Z", re.DOTALL)
_MBOX = re.compile(rb">*From ")


def seen(message: bytes) -> list[Header]:
    """The header lines of a message as it stands on the wire; those over MAX_HEADERS + 1 are left out."""
    return _parts(message)[0]


def body_of(message: bytes) -> bytes:
    """What follows the header, with CRLF line ends."""
    return b"".join(line + b"\r\n" for line in _parts(message)[1])


def _parts(message: bytes) -> tuple[list[Header], Iterator[bytes]]:
    headers: list[Header] = []
    lines = _lines(message)
    for line in lines:
        if _MBOX.match(line):
            headers.append(Header("X-Mailbox-Line", b" " + line))
            continue
        field, next_line = _FIELD.match(line), line
        while field and len(headers) <= MAX_HEADERS:
            value = [field[2]]
            for next_line in lines:
                if next_line[:1] not in (b" ", b"\t"):
                    break
                value.append(next_line)
            else:
                next_line = b""
            headers.append(Header(field[1].decode("ascii"), b"\n".join(value).partition(b"\0")[0]))
            field = _FIELD.match(next_line)
        # A line that is no header is the first of the body.
        return headers, itertools.chain([next_line] if next_line else [], lines)
    return headers, lines


def _lines(message: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(message):
        end = message.find(b"\n", position)
        end = len(message) if end < 0 else end
        yield message[position:end].rstrip(b"\r").replace(b"\r", b" ")
        position = end + 1
