"""Text for people in headers: RFC 2047 both ways, and never a reason to refuse a PDU."""

from __future__ import annotations

import pytest

from mm4.protocol.text import decode_text, encode_text

BROKEN = "a broken encoded word"
LATIN = "raw 8-bit bytes, read as Latin-1"
CONTROLS = "control characters, read as blanks"


def unreadable(charset: str) -> str:
    return f"an encoded word that is not readable as {charset}"


@pytest.mark.parametrize(
    ("raw", "text", "notes"),
    [
        (b"plain", "plain", []),
        (b"", "", []),
        (b"=?utf-8?B?WmHFvMOzxYLEhw==?=", "Zażółć", []),
        (b"=?UTF-8*pl?q?Za=C5=BC?=", "Zaż", []),
        (b"=?iso-8859-1?q?Gr=FC=DFe?= aus =?iso-8859-1?q?K=F6ln_?=", "Grüße aus Köln ", []),
        (b"=?utf-8?q?a?= \t =?iso-8859-1?q?=E4?=", "aä", []),
        (b"=?utf-8?b?ww==?= =?UTF-8?B?vA==?=", "ü", []),
        (b"=?utf-8?q?one two?=", "one two", []),
        (b"=?KOI8-U?b?8NLJ18XU?=", "Привет", []),
        (b"=?gb2312?B?xOO6ww==?=", "你好", []),
        (b"=?ISO-2022-JP?B?GyRCJDMkcyRLJEEkTxsoQg==?=", "こんにちは", []),
        (b"=?windows-1252?q?=80?=", "€", []),
        (b"Stra\xdfe", "Straße", [LATIN]),
        (b"a\x00b\tc", "a b c", [CONTROLS]),
        (b"=?utf-8?q?a=0D=0Ab?=", "a  b", [CONTROLS]),
        (b"\x80\x9f", "  ", [LATIN, CONTROLS]),
        (b"=?utf-8?b?!!!?=", "=?utf-8?b?!!!?=", [BROKEN]),
        (b"=?utf-8?B?abc", "=?utf-8?B?abc", [BROKEN]),
        (b"=?utf-8?X?abc?=", "=?utf-8?X?abc?=", [BROKEN]),
        (b"=?utf-8?q?=FF?=", "=?utf-8?q?=FF?=", [unreadable("utf-8")]),
        (b"=?klingon?q?a?=", "=?klingon?q?a?=", [unreadable("klingon")]),
        (b"a =?utf-8?q?=FF?=  =?utf-8?q?b?= c", "a =?utf-8?q?=FF?=  b c", [unreadable("utf-8")]),
        (b"=?utf-8?q?a?=  =?utf-8?q?=FF?=", "a  =?utf-8?q?=FF?=", [unreadable("utf-8")]),
        (b"1 =?2 and ?= 3", "1 =?2 and ?= 3", []),
    ],
)
def test_reads_what_peers_write(raw: bytes, text: str, notes: list[str]) -> None:
    assert decode_text(raw) == (text, notes)


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "zlib", "hex", "rot13", "os.path"])
def test_a_codec_that_is_no_charset_is_not_used(charset: str) -> None:
    word = f"=?{charset}?q?abc-?="
    assert decode_text(word.encode()) == (word, [unreadable(charset)])


@pytest.mark.parametrize("word", ["=?utf-7?q?+2AA-?=", "=?utf-16?b?2AA=?= =?utf-16?b?AA==?="])
def test_what_is_read_can_always_be_printed_and_stored(word: str) -> None:
    text, _ = decode_text(word.encode())
    text.encode("utf-8")


def test_unknown_charsets_leave_nothing_behind() -> None:
    import encodings

    before = len(encodings._cache)  # type: ignore[attr-defined]
    decode_text(b" ".join(b"=?nobody-%d?q?a?=" % i for i in range(200)))
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", "plain"),
        ("", ""),
        ("ü", "=?utf-8?B?w7w=?="),
        (" blank", "=?utf-8?B?IGJsYW5r?="),
        ("=?utf-8?q?a?=", "=?utf-8?B?PT91dGYtOD9xP2E/PQ==?="),
        ("a\x00b\nc", "a b c"),
        ("\ud800", "?"),
    ],
)
def test_writing_is_exact(text: str, written: str) -> None:
    assert encode_text(text) == written


@pytest.mark.parametrize("text", ["ü" * 500, "x" * 5000, "🎉" * 200, "a ü" * 300])
def test_a_long_text_is_folded_between_whole_characters(text: str) -> None:
    words = encode_text(text).split("\n ")
    assert max(map(len, words)) <= 75
    assert "".join(decode_text(word.encode())[0] for word in words) == text, "each word can be read alone"
    assert decode_text(" ".join(words).encode()) == (text, [])
