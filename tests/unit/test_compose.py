"""Composing an MMS: what the gateway reads in it, and that its SMIL shows each part it holds."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mm4.compose import Part, compose, part_of_file, text_part
from mm4.protocol.errors import ProtocolError, UsageError
from mm4.protocol.reader import read_message

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
PNG = Part("pic.png", "image/png", bytes(range(256)) * 40)


def made(*parts: Part, sender: str = "+491511000001", to: tuple[str, ...] = ("+447700900101",), **more: Any) -> bytes:
    more = {"message_id": "m-1@mms.gw.example", "now": NOW, **more}
    return compose(sender, list(to), list(parts) or [text_part("hallo")], **more)


def parsed(message: bytes) -> EmailMessage:
    found = email.message_from_bytes(message, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    assert [part.defects for part in found.walk() if part.defects] == []
    return found


def test_it_is_a_req_that_lacks_nothing_but_what_the_gateway_gives() -> None:
    found = read_message(made(subject="Grüße 🎉", delivery_report=True, to=("+447700900101", "12345", "ann@mail.example")))
    assert [(p.field, p.rule) for p in found.problems] == [("transaction_id", "mandatory")]
    assert (found.get("message_id"), found.get("subject"), found.get("date")) == ("m-1@mms.gw.example", "Grüße 🎉", NOW)
    assert [a.write() for a in found.recipients] == ["+447700900101/TYPE=PLMN", "12345/TYPE=PLMN", "ann@mail.example"]
    assert found.get("sender").write() == "+491511000001/TYPE=PLMN"
    assert (found.get("delivery_report"), found.get("read_reply")) == (True, False)
    assert found.get("content_type") == "multipart/related"


def test_everything_is_ascii_in_lines_that_smtp_takes() -> None:
    message = made(text_part("ü" * 5000), PNG, subject="ü" * 500)
    assert message.isascii()
    lines = message.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert max(map(len, lines)) <= 998


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 5000, b"a\r\n.\r\nb", bytes(range(256))])
def test_parts_arrive_byte_for_byte(content: bytes) -> None:
    part = Part("x.bin", "application/octet-stream", content)
    *_, found = parsed(made(part)).iter_parts()
    assert found.get_payload(decode=True) == content


def test_the_smil_shows_every_part_by_its_content_id() -> None:
    others = [("v.mp4", "video/mp4"), ("s.amr", "audio/amr"), ("c.vcf", "text/x-vcard")]
    parts = [PNG, text_part("hallo"), *(Part(name, kind, b"x") for name, kind in others)]
    smil, *shown_parts = parsed(made(*parts)).iter_parts()
    assert smil.get_content_type() == "application/smil"
    assert smil["Content-ID"] == "<smil>"
    tree = ElementTree.fromstring(smil.get_payload(decode=True).decode())  # type: ignore[union-attr]
    shown = [(e.tag, e.get("src"), e.get("region")) for e in tree.iter() if e.get("src")]
    assert shown == [
        ("img", "cid:pic.png", "Image"), ("text", "cid:text.txt", "Text"), ("video", "cid:v.mp4", "Image"),
        ("audio", "cid:s.amr", None), ("text", "cid:c.vcf", "Text"),
    ]  # fmt: skip
    assert [f"cid:{p['Content-ID'].strip('<>')}" for p in shown_parts] == [src for _, src, _ in shown]
    assert [p["Content-Location"] for p in shown_parts] == [src.removeprefix("cid:") for _, src, _ in shown if src]
    regions = {e.get("id") for e in tree.iter("region")}
    assert {region for _, _, region in shown if region} <= regions, "a region that is shown is laid out"


def test_the_start_and_the_type_name_the_smil() -> None:
    header = parsed(made())["Content-Type"]
    assert header.params["type"] == "application/smil"
    assert header.params["start"] == "<smil>"
    boundaries = {re.search(rb'boundary="([^"]+)"', made())[1] for _ in range(5)}  # type: ignore[index]
    assert len(boundaries) == 5


def test_parts_of_one_name_are_told_apart() -> None:
    message = parsed(made(PNG, PNG, text_part("a"), text_part("b")))
    names = [part["Content-Location"] for part in message.iter_parts()][1:]
    assert names == ["pic.png", "1-pic.png", "text.txt", "3-text.txt"]


def test_a_text_part_keeps_every_character() -> None:
    text = "Grüße\nzweite Zeile 🎉 <par>"
    *_, part = parsed(made(text_part(text))).iter_parts()
    assert part.get_payload(decode=True) == text.encode()
    assert part.get_content_charset() == "utf-8"


@pytest.mark.parametrize(
    ("name", "kind", "safe"),
    [
        ("a.png", "image/png", "a.png"),
        ("a.JPG", "image/jpeg", "a.JPG"),
        ("ü b.txt", "text/plain", "__b.txt"),
        ("no suffix", "application/octet-stream", "no_suffix"),
        ('x"\r\nBcc: y.gif', "image/gif", "x___Bcc__y.gif"),
        ("x" * 200 + ".png", "image/png", "x" * 56 + ".png"),
    ],
)
def test_a_file_is_named_and_typed_by_its_name(tmp_path: Path, name: str, kind: str, safe: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"x")
    part = part_of_file(file)
    assert (part.media_type, part.name, part.content) == (kind, safe, b"x")


def test_what_cannot_be_read_or_written_is_told() -> None:
    with pytest.raises(UsageError, match="No such file"):
        part_of_file("/proc/no such file")
    for wrong in ("", "nobody here", "+12", "PostMaster"):
        with pytest.raises(UsageError, match="is no address: a number such as"):
            made(to=(wrong,))
        with pytest.raises(UsageError, match="is no address"):
            made(sender=wrong)
    with pytest.raises(ProtocolError, match="expected an id"):
        made(message_id="a\r\nBcc: x@y")


def test_national_numbers_are_completed_by_the_region() -> None:
    found = read_message(made(to=("01511 000002",), region="DE"))
    assert [a.number for a in found.recipients] == ["+491511000002"]
    assert [p.rule for p in found.problems] == ["mandatory"]


def test_a_subject_cannot_become_a_header() -> None:
    message = made(subject="hi\r\nX-Mms-Ack-Request: Yes\r\n\r\nbody")
    found = read_message(message)
    assert found.get("subject") == "hi  X-Mms-Ack-Request: Yes    body"
    assert not found.ack_request
