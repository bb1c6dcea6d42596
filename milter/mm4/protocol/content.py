"""What a message's body holds, read in passing: size when decoded, types of its parts, a digest of the content.

It keeps one line and its counters, however large or odd the body is: nothing is decoded or gathered, nothing recurses,
and what goes over a bound is a `problem` instead of work. Postfix hands a body over in chunks with CRLF line ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message

from .headers import Header, unfold

__all__ = ["MAX_DEPTH", "MAX_PARTS", "Content", "Scanner"]

MAX_PARTS = 500
"""Parts of one message; the largest seen in the field have some dozen."""
MAX_DEPTH = 10
"""Multiparts within each other; an MMS has one."""
_MAX_HEAD = 8_000
"""Bytes of the headers of one part."""
_MAX_TYPE, _MAX_PARAMETERS = 2_000, 40
"""Bytes and parameters of a Content-Type: to find its boundary costs more than the square of them."""
_MAX_DELIMITER = 300
"""Bytes of a delimiter line; RFC 2046 5.1.1 allows 70 characters of boundary."""
_MAX_FALSE = 1_000
"""Lines that begin like a delimiter and are none: each costs a search for every multipart that is open."""

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_BASE64))
_LAYOUT = "application/smil"


@dataclass(frozen=True, slots=True)
class Content:
    """What was found. Sizes are bytes; types are in lower case, each once, in order."""

    wire: int
    """Of the message as it came, headers and all; where it went over the bound, what came until then."""
    decoded: int = 0
    """Of all parts without their headers, transfer encoding undone."""
    types: tuple[str, ...] = ()
    """Of the parts that hold something themselves."""
    containers: tuple[str, ...] = ()
    """Of the multiparts around them."""
    digest: str | None = None
    """Hex, the same for the same content: boundaries, line lengths, the parts' headers and the SMIL, which names them,
    do not count. None where there is no content, or it went over the bound."""
    problem: str | None = None
    """Why the parts cannot be told; then the rest, but for `wire`, holds for what came before."""


class Scanner:
    """Reads one body, chunk by chunk. `most` are the bytes of the message after which nothing more is wanted."""

    def __init__(self, headers: Sequence[Header], most: int | None = None, *, digest: bool = True) -> None:
        self._most = most
        # A colon and a line end each, and the empty line: one that writes more blanks is not counted too large.
        self._wire = sum(header.size + 3 for header in headers) + 2
        self._decoded = self._parts = self._false = 0
        self._types: dict[str, None] = {}
        self._containers: dict[str, None] = {}
        self._hash = hashlib.sha256() if digest else None
        self._hashed = False
        self._over = False
        self._problem: str | None = None
        self._delimiters: list[bytes] = []
        """Of the multiparts that are open, the outermost first."""
        self._unopened = False
        """The innermost multipart has shown no part yet."""
        self._leaf: _Leaf | None = None
        self._head: list[bytes] | None = None
        self._head_bytes = 0
        # A line end stands before the first line, so that every delimiter is found behind one; it is no content.
        self._held, self._lead = b"\n", True
        self._open(headers)

    def feed(self, chunk: bytes) -> bool:
        """Take a chunk; whether more is wanted."""
        self._wire += len(chunk)
        if self._most is not None and self._wire > self._most:
            self._over = True
        if self._over:
            return False
        if self._problem is None:
            self._scan(self._held + chunk, last=False)
        return self._problem is None or self._most is not None

    def close(self) -> Content:
        """The body is over."""
        if self._problem is None and not self._over:
            self._scan(self._held, last=True)
            self._finish()
            if self._unopened:
                self._problem = "a multipart without a part"
        whole = self._hashed and not self._over
        return Content(
            self._wire,
            self._decoded,
            tuple(self._types),
            tuple(self._containers),
            self._hash.hexdigest()[:32] if self._hash is not None and whole else None,
            self._problem,
        )

    def _open(self, headers: Sequence[Header]) -> None:
        """A part, or the whole message, begins with these headers."""
        values = {"content-type": "text/plain", "content-transfer-encoding": ""}
        for header in reversed(headers):
            if header.name.lower() in values:
                values[header.name.lower()] = unfold(header.value).decode("latin-1")
        if len(values["content-type"]) > _MAX_TYPE or values["content-type"].count(";") > _MAX_PARAMETERS:
            self._problem = "a Content-Type that is too long"
            return
        kind, boundary = _media_type(values["content-type"])
        if not kind.startswith("multipart/"):
            self._types[kind] = None
            self._leaf = _Leaf(values["content-transfer-encoding"].lower().strip())
            if self._hash is not None and kind != _LAYOUT:
                self._hash.update(kind.encode("utf-8", "replace") + b"\n")
                self._leaf.hash = self._hash
        elif not boundary:
            self._problem = f"a {kind} without a boundary"
        elif len(self._delimiters) >= MAX_DEPTH:
            self._problem = f"more than {MAX_DEPTH} multiparts within each other"
        else:
            self._containers[kind] = None
            self._delimiters.append(b"--" + boundary.encode("latin-1", "replace"))
            self._unopened = True

    def _scan(self, data: bytes, *, last: bool) -> None:
        position = 0
        while self._problem is None:
            if self._head is not None:
                end = data.find(b"\n", position)
                if end < 0:
                    break
                self._header_line(data[position:end].rstrip(b"\r"))
                # The end of the empty line stands before the first line of the body.
                self._lead = self._head is None
                position = end if self._lead else end + 1
                continue
            found, line_end = self._delimiter(data, position, last)
            self._take(data[position : _before(data, found, position)])
            position = _before(data, found, position)
            if line_end is None:
                break
            self._delimited(data[found + 1 : line_end].rstrip(b"\r \t"))
            position = line_end + 1 if self._head is not None else line_end
            self._lead = self._head is None
        self._held = data[position:]
        if self._problem is None and self._head is not None and len(self._held) > _MAX_HEAD:
            self._problem = "a part whose headers are too long"

    def _delimiter(self, data: bytes, position: int, last: bool) -> tuple[int, int | None]:
        """Where the line end before the next delimiter stands, and the end of that line.

        Without one: how far the data surely belongs to the body, and None.
        """
        start = position
        while self._delimiters and self._problem is None:
            places = [place for d in self._delimiters if (place := data.find(b"\n" + d, start)) >= 0]
            if not places:
                break
            found = min(places)
            end = data.find(b"\n", found + 1)
            if end < 0:
                if not last and len(data) - found <= _MAX_DELIMITER:
                    return found, None
                end = len(data)
            if self._level(data[found + 1 : end].rstrip(b"\r \t")) is not None:
                return found, end
            self._false += 1
            if self._false > _MAX_FALSE:
                self._problem = "too many lines that look like a boundary"
            start = found + 1
        if last:
            return len(data), None
        held = data.rfind(b"\n", max(position, len(data) - _MAX_DELIMITER))
        if held < 0:
            held = len(data)
            # The first half of a line end.
            return (held - 1 if data.endswith(b"\r") and held > position else held), None
        return held, None

    def _level(self, line: bytes) -> int | None:
        """Which multipart a line delimits, the innermost first."""
        for level in reversed(range(len(self._delimiters))):
            if line in (self._delimiters[level], self._delimiters[level] + b"--"):
                return level
        return None

    def _delimited(self, line: bytes) -> None:
        level = self._level(line)
        assert level is not None
        self._finish()
        if self._unopened and level < len(self._delimiters) - 1:
            self._problem = "a multipart without a part"
            return
        closes = line == self._delimiters[level] + b"--"
        if closes and self._unopened:
            self._problem = "a multipart without a part"
            return
        self._unopened = False
        del self._delimiters[level + (0 if closes else 1) :]
        if closes:
            return
        self._parts += 1
        if self._parts > MAX_PARTS:
            self._problem = f"more than {MAX_PARTS} parts"
        self._head, self._head_bytes = [], 0

    def _header_line(self, line: bytes) -> None:
        assert self._head is not None
        self._head_bytes += len(line)
        if self._head_bytes > _MAX_HEAD:
            self._problem = "a part whose headers are too long"
        elif line[:1] in (b" ", b"\t") and self._head:
            self._head[-1] += b"\n" + line
        elif line:
            self._head.append(line)
        else:
            lines = [(name, value) for name, colon, value in (raw.partition(b":") for raw in self._head) if colon]
            self._head = None
            self._open([Header(name.decode("latin-1").strip(), value) for name, value in lines])

    def _take(self, data: bytes) -> None:
        if self._lead and data:
            data, self._lead = data[1:], False
        if self._leaf is not None and data:
            self._hashed |= self._leaf.take(data)

    def _finish(self) -> None:
        if self._leaf is not None:
            self._decoded += self._leaf.size()
            self._leaf = None


class _Leaf:
    """The part that is being read: how much it is when decoded."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.hash: hashlib._Hash | None = None
        self._bytes = self._saved = 0
        self._tail = b""

    def take(self, data: bytes) -> bool:
        """Count it; whether it went into the digest."""
        bare = data.translate(None, _NOT_BASE64 if self.encoding == "base64" else b"\r\n")
        if self.encoding == "base64":
            self._bytes += len(bare)
        else:
            self._bytes += len(data)
        if self.encoding == "quoted-printable":
            # `=3D` stands for one byte, `=` at the end of a line for none.
            self._saved += 2 * data.count(b"=") + (self._tail + data).count(b"=\r\n")
            self._tail = (self._tail + data)[-2:]
        if self.hash is None or not bare:
            return False
        self.hash.update(bare)
        return True

    def size(self) -> int:
        """Bytes when decoded, to the byte where the encoding is as it should be."""
        if self.encoding == "base64":
            return self._bytes * 3 // 4
        return max(self._bytes - self._saved, self._bytes // 3)


def _before(data: bytes, place: int, position: int) -> int:
    """Where the line end that stands at `place` begins."""
    return place - 1 if place > position and data[place - 1 : place + 1] == b"\r\n" else place


def _media_type(value: str) -> tuple[str, str | None]:
    """Type and boundary that a Content-Type names; text/plain where it names none (RFC 2045 5.2)."""
    message = Message()
    message["Content-Type"] = value
    kind = (message.get_content_type().split() or ["text/plain"])[0]
    try:
        boundary = message.get_boundary() if kind.startswith("multipart/") else None
    except (LookupError, ValueError):  # an RFC 2231 charset that nobody knows
        boundary = None
    return kind, boundary
