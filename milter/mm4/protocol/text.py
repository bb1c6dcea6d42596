"""Text for people in headers: RFC 2047 both ways, and never a reason to refuse a PDU.

A broken encoded word stays as it stands, raw 8-bit bytes are read as Latin-1, decoded controls become
blanks; each is noted as a warning.
"""

from __future__ import annotations

import base64
import binascii
import encodings.aliases
import itertools
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["decode_text", "encode_text", "one_line"]

_WORD = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?]*)\?=")
_UNWRITABLE = re.compile(r"[\ud800-\udfff]")
_LINE = 200
_WORD_BYTES = 45  # an encoded word has at most 75 characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOOKS_ENCODED = re.compile(r"=\?[^?\s]+\?[^?\s]*\?")

# Charsets by name. Only these are looked up: Python keeps every unknown name for ever, and some of its codecs
# (punycode, unicode_escape) are no charsets.
_CHARSETS = frozenset(encodings.aliases.aliases) | frozenset(encodings.aliases.aliases.values()) | {"koi8_u", "cp874"}


@dataclass(slots=True)
class _Word:
    """An encoded word: the blanks before it, how it is written, its charset and its bytes (None where broken)."""

    gap: str
    written: str
    charset: str
    data: bytes | None


def decode_text(raw: bytes) -> tuple[str, list[str]]:
    """The text and what had to be forgiven in it. Never raises."""
    notes: dict[str, None] = {}
    if not raw.isascii():
        notes["raw 8-bit bytes, read as Latin-1"] = None
    plain = raw.decode("latin-1")
    result: list[str] = []
    run: list[_Word] = []  # words with nothing but blanks between them
    position = 0
    for match in _WORD.finditer(plain):
        gap = plain[position : match.start()]
        if not run or gap.strip(" \t"):
            result += _run(run, notes)
            run = []
            result.append(_between(gap, notes))
            gap = ""
        run.append(_Word(gap, match[0], match[1].partition("*")[0].lower(), _word_bytes(match[2], match[3])))
        position = match.end()
    result += _run(run, notes)
    result.append(_between(plain[position:], notes))
    text = "".join(result)
    if _CONTROL.search(text):
        notes["control characters, read as blanks"] = None
        text = _CONTROL.sub(" ", text)
    return text, list(notes)


def _between(text: str, notes: dict[str, None]) -> str:
    if _LOOKS_ENCODED.search(text):
        notes["a broken encoded word"] = None
    return text


def _run(words: list[_Word], notes: dict[str, None]) -> Iterator[str]:
    """The text of neighbouring words. Blanks between two of them are none (RFC 2047 6.2), unless one is broken."""
    readable = False
    for _, group in itertools.groupby(words, lambda word: (word.charset, word.data is None)):
        same = list(group)
        # A character may begin in one word and end in the next.
        data = [word.data for word in same if word.data is not None]
        whole = _decoded(b"".join(data), same[0].charset) if data else None
        for word, text in [(same[0], whole)] if whole is not None else [(word, _alone(word)) for word in same]:
            if text is None:
                unknown = f"an encoded word that is not readable as {word.charset[:30]}"
                notes["a broken encoded word" if word.data is None else unknown] = None
            if not (readable and text is not None):
                yield word.gap
            readable = text is not None
            yield word.written if text is None else text


def _alone(word: _Word) -> str | None:
    return None if word.data is None else _decoded(word.data, word.charset)


def _decoded(data: bytes, charset: str) -> str | None:
    """The text of an encoded word; None where its charset is unknown or does not fit."""
    name = encodings.normalize_encoding(charset[:60]).lower()
    if name not in _CHARSETS:
        return None
    try:
        text = data.decode(name)
    except (LookupError, ValueError):
        return None
    # UTF-7 gives lone surrogates, which nobody can write again.
    return None if _UNWRITABLE.search(text) else text


def _word_bytes(encoding: str, text: str) -> bytes | None:
    try:
        if encoding in "bB":
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        return quopri.decodestring(text.encode("latin-1"), header=True)
    except (binascii.Error, ValueError):
        return None


def encode_text(text: str) -> str:
    """ASCII as it is, anything else as encoded words (RFC 2047) of whole characters, folded with LF."""
    clean = _UNWRITABLE.sub("?", _CONTROL.sub(" ", text))
    if clean.isascii() and "=?" not in clean and len(clean) < 900 and clean == clean.strip():
        return clean
    words: list[bytes] = [b""]
    for character in clean:
        encoded = character.encode()
        if len(words[-1]) + len(encoded) > _WORD_BYTES:
            words.append(b"")
        words[-1] += encoded
    return "\n ".join(f"=?utf-8?B?{base64.b64encode(word).decode()}?=" for word in words)


def one_line(text: str) -> str:
    """A text as it may stand in an SMTP reply or a Status-Text: one line of at most 200 printable ASCII characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))[:_LINE]
