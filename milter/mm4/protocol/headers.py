"""Header blocks as peers really send them: from bytes to (name, value) pairs, and back.

Nothing is refused here: line ends of CRLF, LF or CR, folds of blanks only, lines without a colon, a leading mbox
line. A value is kept as bytes without its line ends' CR, folds and all; what it means is the reader's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MAX_HEADERS", "MAX_HEADER_BYTES", "Header", "join", "split", "unfold"]

MAX_HEADERS = 5000
"""Header lines that a PDU may have: ten thousand cost a second in callbacks."""
MAX_HEADER_BYTES = 2_000_000
"""All header bytes of one PDU together: what a hostile peer may make us hold for one message."""

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)\Z", re.DOTALL)
# A CR alone ends a line only where no other line end stands: on the wire it is a control within a line.
_LINE_END = re.compile(rb"\r*\n")
_LINE_END_CR = re.compile(rb"\r")
_FOLD = re.compile(rb"[\r\n]+(?=[ \t]|\Z)")


@dataclass(frozen=True, slots=True)
class Header:
    """One header line: its name as written, its value with folds but without the final line end."""

    name: str
    value: bytes

    @property
    def size(self) -> int:
        """Bytes of name and value."""
        return len(self.name) + len(self.value)


def unfold(value: bytes) -> bytes:
    """The value in one line, without blanks around it (RFC 5322 2.2.3)."""
    if b"\n" in value or b"\r" in value:
        value = _FOLD.sub(b"", value)
    return value.strip(b" \t\r\n")


def split(message: bytes) -> tuple[list[Header], bytes, list[int]]:
    """The headers of a whole message, its body, and the 1-based line where each header starts.

    Lines that are no header are passed over. At most MAX_HEADERS + 1 headers come back, so that a caller can
    see that there are too many.
    """
    headers: list[Header] = []
    lines: list[int] = []
    name: str | None = None
    value: list[bytes] = []
    start = position = 0
    number = 0
    line_end = _LINE_END if b"\n" in message else _LINE_END_CR

    def finish() -> None:
        if name is not None:
            headers.append(Header(name, b"\n".join(value)))
            lines.append(start)

    while position < len(message) and len(headers) <= MAX_HEADERS:
        match = line_end.search(message, position)
        line = message[position : match.start() if match else len(message)]
        position = match.end() if match else len(message)
        number += 1
        if not line:
            break
        if line[:1] in b" \t":
            value.append(line)
            continue
        field = _FIELD.match(line)
        if field is None:
            # "From " of an mbox and other debris: ends the header before it, is none itself.
            finish()
            name, value = None, []
            continue
        finish()
        name, value, start = field[1].decode("ascii"), [field[2]], number
    finish()
    return headers, message[position:], lines


def join(headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """A message with CRLF line ends from header lines (ASCII, folded with LF) and a body as it is."""
    block = "".join(f"{name}: {value}\n" for name, value in headers)
    return block.replace("\n", "\r\n").encode("ascii") + b"\r\n" + body
