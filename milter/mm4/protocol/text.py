"""Text for people in headers: RFC 2047 both ways, and never a reason to refuse a PDU.

A broken encoded word stays as it stands, raw 8-bit bytes are read as Latin-1, decoded controls become
blanks; each is noted as a warning.
"""

from __future__ import annotations

import base64
import binascii
import encodings.aliases
import quopri
import re

__all__ = ["decode_text", "encode_text"]

_WORD = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?]*)\?=")
_BETWEEN = re.compile(r"(\?=)[ \t]+(=\?[^?\s]+\?[bBqQ]\?)")
_UNWRITABLE = re.compile(r"[\ud800-\udfff]")
_WORD_BYTES = 45  # an encoded word has at most 75 characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOOKS_ENCODED = re.compile(r"=\?[^?\s]+\?[^?\s]*\?")

# Charsets by name. Only these are looked up: Python keeps every unknown name for ever, and some of its codecs
# (punycode, unicode_escape) are no charsets.
_CHARSETS = frozenset(encodings.aliases.aliases) | frozenset(encodings.aliases.aliases.values()) | {"koi8_u", "cp874"}


def decode_text(raw: bytes) -> tuple[str, list[str]]:
    """The text and what had to be forgiven in it. Never raises."""
    notes: list[str] = []
    if not raw.isascii():
        notes.append("raw 8-bit bytes, read as Latin-1")
    plain = _BETWEEN.sub(r"\1\2", raw.decode("latin-1"))
    result: list[str] = []
    position = 0
    # Charset, bytes, as written, of neighbouring words: a character may span two of them.
    pending: tuple[str, list[bytes], list[str]] | None = None

    def flush() -> None:
        nonlocal pending
        if pending is None:
            return
        charset, data, written = pending
        pending = None
        decoded = _decoded(b"".join(data), charset)
        if decoded is None:
            notes.append(f"an encoded word that is not readable as {charset[:30]}")
        result.append("".join(written) if decoded is None else decoded)

    def leave(between: str) -> None:
        if _LOOKS_ENCODED.search(between):
            notes.append("a broken encoded word")
        result.append(between)

    for match in _WORD.finditer(plain):
        if match.start() > position or position == 0:
            flush()
        leave(plain[position : match.start()])
        position = match.end()
        data = _word_bytes(match[2], match[3])
        if data is None:
            flush()
            notes.append("a broken encoded word")
            result.append(match[0])
        elif pending is not None and pending[0].lower() == match[1].lower():
            pending[1].append(data)
            pending[2].append(match[0])
        else:
            flush()
            pending = (match[1], [data], [match[0]])
    flush()
    leave(plain[position:])
    text = "".join(result)
    if _CONTROL.search(text):
        notes.append("control characters, read as blanks")
        text = _CONTROL.sub(" ", text)
    return text, list(dict.fromkeys(notes))


def _decoded(data: bytes, charset: str) -> str | None:
    """The text of an encoded word; None where its charset is unknown or does not fit."""
    name = encodings.normalize_encoding(charset.partition("*")[0][:60]).lower()
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
