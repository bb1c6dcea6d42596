"""One part of an MMS: a text, or a file with its media type by its name.

Names go out in ASCII without blanks: they stand in Content-ID, Content-Location and the SMIL, and phones are choosy.
"""

from __future__ import annotations

import codecs
import mimetypes
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..protocol.errors import UsageError

__all__ = ["Part", "part_of_file", "text_part", "wire_names"]

_LONGEST_NAME = 60
_OCTETS = "application/octet-stream"

# What phones send, whatever the host's tables know. OMA MMS Conformance 1.3 names the types; the suffixes are those of
# the RFC that registers each.
MEDIA_TYPES = {
    ".amr": "audio/amr",  # RFC 4867
    ".awb": "audio/amr-wb",  # RFC 4867
    ".3ga": "audio/3gpp",  # RFC 3839
    ".3gp": "video/3gpp",  # RFC 3839
    ".3gpp": "video/3gpp",
    ".3g2": "video/3gpp2",  # RFC 4393
    ".3gpp2": "video/3gpp2",
    ".mp4": "video/mp4",  # RFC 4337
    ".m4v": "video/mp4",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".mp3": "audio/mpeg",  # RFC 3003
    ".mid": "audio/midi",
    ".midi": "audio/midi",
    ".qcp": "audio/qcelp",  # RFC 3625
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".wbmp": "image/vnd.wap.wbmp",
    ".txt": "text/plain",
    ".vcf": "text/x-vcard",
    ".vcs": "text/x-vcalendar",
    ".smil": "application/smil",  # RFC 4536
    ".smi": "application/smil",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message: its name, media type (`image/jpeg`) and bytes; the charset of a text."""

    name: str
    media_type: str
    content: bytes
    charset: str | None = None

    @property
    def kind(self) -> str:
        """`image`, `text`, `audio`, `video`, ...: the media type before the slash."""
        return self.media_type.partition("/")[0].lower()


def text_part(text: str, name: str = "text.txt") -> Part:
    """A text part in UTF-8."""
    return Part(name, "text/plain", text.encode("utf-8", "replace"), "utf-8")


def part_of_file(path: str | Path) -> Part:
    """A file as a part, byte for byte, its media type by its name; text in UTF-16 becomes UTF-8.

    Raises UsageError where it cannot be read, is no regular file, is empty, or is a text in no known charset.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            # A device or a pipe may never end.
            raise UsageError(f"{file}: is no regular file")
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if not content:
        raise UsageError(f"{file}: is empty, there is nothing to attach")
    media_type = _media_type(file.name)
    if media_type == "text/plain":
        return Part(file.name, media_type, _utf8(file, content), "utf-8")
    charset = "utf-8" if media_type.startswith("text/") and _is_utf8(content) else None
    return Part(file.name, media_type, content, charset)


def _media_type(name: str) -> str:
    suffix = PurePath(name).suffix.lower()
    if suffix in MEDIA_TYPES:
        return MEDIA_TYPES[suffix]
    guessed, encoding = mimetypes.guess_type(f"x{suffix}")
    # A compressed file is none of the type inside; a mail within a mail may not be encoded (RFC 2046 5.2.1).
    if guessed is None or encoding or guessed.startswith(("message/", "multipart/")):
        return _OCTETS
    return guessed


def _utf8(file: Path, content: bytes) -> bytes:
    if _is_utf8(content):
        return content
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # Legal in an MMS, not in a mail's text (RFC 4356 2.1.3.2).
        try:
            return content.decode("utf-16").encode("utf-8")
        except UnicodeDecodeError:
            pass
    raise UsageError(f"{file}: the text is neither UTF-8 nor UTF-16; convert it, for example with iconv -t UTF-8")


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def wire_names(parts: Iterable[Part], taken: Iterable[str]) -> list[str]:
    """A name for each part as it goes out: ASCII, at most some 60 characters, none twice, none of `taken`."""
    used = {name.lower() for name in taken}
    names = []
    for part in parts:
        plain = _plain(part.name)
        stem, suffix = (plain, "") if "." not in plain[1:] else plain.rsplit(".", 1)
        candidate, number = plain, 1
        while candidate.lower() in used:
            number += 1
            candidate = f"{stem}-{number}.{suffix}" if suffix else f"{stem}-{number}"
        used.add(candidate.lower())
        names.append(candidate)
    return names


def _plain(name: str) -> str:
    ascii_ = unicodedata.normalize("NFKD", name)
    without_marks = "".join(c for c in ascii_ if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9._-]", "_", without_marks)[-_LONGEST_NAME:] or "part"
