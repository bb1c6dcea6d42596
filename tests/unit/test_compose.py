"""Composing an MMS: what the gateway reads in it, and that its SMIL shows each part it holds."""

from __future__ import annotations

import email
import email.policy
import os
import re
from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mm4.compose as compose_package
from mm4.compose import Part, compose, part_of_file, text_part
from mm4.protocol.errors import ProtocolError, UsageError
from mm4.protocol.reader import read_message
from recorder import Recorder, inward

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
    *_, found = parsed(made(Part("x.bin", "application/octet-stream", content))).iter_parts()
    assert found.get_payload(decode=True) == content


def smil_of(message: bytes) -> ElementTree.Element:
    """The presentation, which has to be well-formed."""
    first = next(parsed(message).iter_parts())
    assert (first.get_content_type(), first["Content-ID"]) == ("application/smil", "<smil>")
    return ElementTree.fromstring(first.get_payload(decode=True).decode())  # type: ignore[union-attr]


def shown(tree: ElementTree.Element) -> list[list[tuple[str, str | None, str | None]]]:
    """Element, source and region of what stands on each slide."""
    return [[(e.tag, e.get("src"), e.get("region")) for e in slide] for slide in tree.iter("par")]


def part(name: str, kind: str) -> Part:
    return Part(name, kind, b"x")


def test_a_slide_shows_a_picture_and_its_text_and_plays_one_sound() -> None:
    video, sound, other = part("v.mp4", "video/mp4"), part("s.amr", "audio/amr"), part("b.gif", "image/gif")
    tree = smil_of(made(PNG, text_part("hallo"), sound, text_part("b"), other, video, part("t.amr", "audio/amr")))
    assert shown(tree) == [
        [("img", "cid:pic.png", "Image"), ("text", "cid:text.txt", "Text"), ("audio", "cid:s.amr", None)],
        [("text", "cid:text-2.txt", "Text"), ("img", "cid:b.gif", "Image")],
        [("video", "cid:v.mp4", "Image")],
        [("audio", "cid:t.amr", None)],
    ]
    # What has an end of its own needs none.
    assert [slide.get("dur") for slide in tree.iter("par")] == [None, "10s", None, None]
    regions = {e.get("id") for e in tree.iter("region")}
    assert regions == {"Image", "Text"}, "a region that is shown is laid out"


def test_every_source_is_the_content_id_and_the_location_of_a_part() -> None:
    message = made(PNG, text_part("hallo"), part("ü ö.jpg", "image/jpeg"), part("c.vcf", "text/x-vcard"))
    _, *parts = parsed(message).iter_parts()
    sources = [src for slide in shown(smil_of(message)) for _, src, _ in slide]
    assert sources == ["cid:pic.png", "cid:text.txt", "cid:u_o.jpg"]
    assert [p["Content-ID"].strip("<>") for p in parts] == ["pic.png", "text.txt", "u_o.jpg", "c.vcf"]
    assert [p["Content-Location"] for p in parts] == ["pic.png", "text.txt", "u_o.jpg", "c.vcf"]


@pytest.mark.parametrize(("parts", "heights"), [
    ([PNG], {"Image": "480"}), ([text_part("a")], {"Text": "480"}), ([PNG, text_part("a")], {"Image": "320", "Text": "160"}),
])  # fmt: skip
def test_the_screen_is_used_by_what_there_is(parts: list[Part], heights: dict[str, str]) -> None:
    tree = smil_of(made(*parts))
    assert {e.get("id"): e.get("height") for e in tree.iter("region")} == heights


def test_what_cannot_be_shown_has_no_presentation() -> None:
    message = made(part("c.vcf", "text/x-vcard"), part("d.pdf", "application/pdf"))
    mail = parsed(message)
    assert mail.get_content_type() == "multipart/mixed"
    assert [p.get_content_type() for p in mail.iter_parts()] == ["text/x-vcard", "application/pdf"]
    assert not [p for p in read_message(message).problems if p.rule != "mandatory"]


GIVEN = '<?xml version="1.0"?>\n<smil><body><par><img src="%s"/><text src=\'text.txt\'/></par></body></smil>'


@pytest.mark.parametrize(("source", "sent"), [
    ("pic.png", "pic.png"), ("cid:pic.png", "cid:pic.png"), ("./pic.png", "./pic.png"),
    ("my pic &amp; ü.png", "cid:my_pic___u.png"), ("cid:my%20pic%20&amp;%20%C3%BC.png", "cid:my_pic___u.png"),
])  # fmt: skip
def test_a_given_smil_stays_but_for_names_that_cannot_travel(source: str, sent: str) -> None:
    odd = Part("my pic & ü.png", "image/png", b"y")
    message = made(PNG, odd, text_part("a"), smil=GIVEN % source)
    first, *parts = parsed(message).iter_parts()
    assert first.get_payload(decode=True) == (GIVEN % sent).encode()
    assert sent.removeprefix("cid:").removeprefix("./") in [p["Content-Location"] for p in parts]


def test_a_name_in_a_given_smil_means_the_file_of_that_name() -> None:
    # The first file travels under the name of the second.
    message = made(Part("a b.png", "image/png", b"1"), Part("a_b.png", "image/png", b"2"), text_part("a"),
                   smil=GIVEN % "a_b.png")  # fmt: skip
    ((_, image, _), _) = shown(smil_of(message))[0]
    by_id = {p["Content-ID"].strip("<>"): p.get_payload(decode=True) for p in parsed(message).iter_parts()}
    assert image
    assert by_id[image.removeprefix("cid:")] == b"2"


@pytest.mark.parametrize(("smil", "what"), [
    (GIVEN % "cid:b.png", "the SMIL shows cid:b.png, which is not attached; there is: pic.png, text.txt"),
    (GIVEN % "http://pics.example/a.png", "shows http://pics.example/a.png, which is not attached"),
    ("<smil><body>", "no well-formed XML: no element found: line 1"),
    ("", "no well-formed XML"),
    ("<html/>", "begins with <html> where <smil> has to stand"),
    ("<smil>\ud800</smil>", "no well-formed XML"),
])  # fmt: skip
def test_a_given_smil_that_cannot_be_shown_is_told(smil: str, what: str) -> None:
    with pytest.raises(UsageError, match=re.escape(what)):
        made(PNG, text_part("a"), smil=smil)


def test_the_start_and_the_type_name_the_smil() -> None:
    header = parsed(made())["Content-Type"]
    assert header.params["type"] == "application/smil"
    assert header.params["start"] == "<smil>"
    boundaries = {re.search(rb'boundary="([^"]+)"', made())[1] for _ in range(5)}  # type: ignore[index]
    assert len(boundaries) == 5


def test_parts_of_one_name_are_told_apart() -> None:
    message = parsed(made(PNG, PNG, text_part("a"), text_part("b")))
    names = [part["Content-Location"] for part in message.iter_parts()][1:]
    assert names == ["pic.png", "pic-2.png", "text.txt", "text-2.txt"]


@given(st.lists(st.text(max_size=80), min_size=1, max_size=12))
def test_whatever_parts_are_called_their_ids_are_plain_and_unique(names: list[str]) -> None:
    message = made(*(Part(name, "image/png", b"x") for name in [*names, "smil", "SMIL.smil", "a-2.png", "a.png", "A.png"]))
    ids = [p["Content-ID"] for p in parsed(message).iter_parts()]
    assert all(re.fullmatch(r"<[A-Za-z0-9._-]{1,70}>", found) for found in ids)
    assert len({found.lower() for found in ids}) == len(ids) == len(names) + 6
    assert len(shown(smil_of(message))) == len(names) + 5


def test_a_text_part_keeps_every_character() -> None:
    text = "Grüße\nzweite Zeile 🎉 <par>"
    *_, found = parsed(made(text_part(text))).iter_parts()
    assert found.get_payload(decode=True) == text.encode()
    assert found.get_content_charset() == "utf-8"


@pytest.mark.parametrize(
    ("name", "kind", "safe"),
    [
        ("a.png", "image/png", "a.png"),
        ("a.JPG", "image/jpeg", "a.JPG"),
        ("ü b.txt", "text/plain", "u_b.txt"),
        ("写真.jpg", "image/jpeg", "__.jpg"),
        ("no suffix", "application/octet-stream", "no_suffix"),
        (".png", "application/octet-stream", ".png"),
        ("x.txt.gz", "application/octet-stream", "x.txt.gz"),
        ("mail.eml", "application/octet-stream", "mail.eml"),
        ("a.amr", "audio/amr", "a.amr"),
        ("a.3gp", "video/3gpp", "a.3gp"),
        ("a.3G2", "video/3gpp2", "a.3G2"),
        ("a.mp4", "video/mp4", "a.mp4"),
        ("a.m4a", "audio/mp4", "a.m4a"),
        ("a.vcf", "text/x-vcard", "a.vcf"),
        ('x"\r\nBcc: y.gif', "image/gif", "x___Bcc__y.gif"),
        ("x" * 200 + ".png", "image/png", "x" * 56 + ".png"),
    ],
)
def test_a_file_is_named_and_typed_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, safe: str
) -> None:
    # A host without tables of its own types them the same.
    monkeypatch.setattr("mimetypes.knownfiles", [])
    monkeypatch.setattr("mimetypes.inited", False)
    file = tmp_path / name
    file.write_bytes(b"x")
    read = part_of_file(file)
    assert (read.media_type, read.name, read.content) == (kind, name, b"x")
    *_, sent = parsed(made(read)).iter_parts()
    assert (sent["Content-Location"], sent["Content-ID"], sent.get_filename()) == (safe, f"<{safe}>", safe)


@pytest.mark.parametrize(("content", "charset", "sent"), [
    ("grün".encode(), "utf-8", "grün".encode()),
    ("grün".encode("utf-16"), "utf-8", "grün".encode()),
    (b"a\r\n.\n", "utf-8", b"a\r\n.\n"),
])  # fmt: skip
def test_a_text_file_goes_out_in_utf_8(tmp_path: Path, content: bytes, charset: str, sent: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    *_, found = parsed(made(part_of_file(tmp_path / "a.txt"))).iter_parts()
    assert (found.get_content_charset(), found.get_payload(decode=True)) == (charset, sent)


def test_a_file_that_cannot_be_attached_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe.png")
    for name, what in (
        ("none.png", "No such file"), ("empty.png", "is empty"), ("", "Is a directory"), ("pipe.png", "is no regular file"),
        ("latin.txt", "is neither UTF-8 nor UTF-16; convert it"), ("a\0b", "null"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(str(tmp_path / name)) + ".*" + what):
            part_of_file(tmp_path / name)


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


@pytest.mark.parametrize("wrong", ["a@-", "a..b@mail.example", "a@mail..example", ".a@mail.example"])
def test_an_e_mail_address_is_judged_by_its_syntax(wrong: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        made(to=(wrong,))


@pytest.mark.parametrize("right", ["a@x.test", "a@x.invalid", "a@mms.mnc001.mcc262.gprs", "a.b@host.local", "a#b@mail.example"])
def test_special_use_domains_may_be_written(right: str) -> None:
    assert [a.write() for a in read_message(made(to=(right,))).recipients] == [right]


@pytest.mark.parametrize(("options", "field", "value"), [
    ({"priority": "HIGH"}, "priority", "High"),
    ({"message_class": "auto"}, "message_class", "Auto"),
    ({"visibility": "hide"}, "sender_visibility", "Hide"),
    ({"expiry": timedelta(days=7)}, "expiry", timedelta(days=7)),
    ({"expiry": datetime(2026, 12, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "expiry", datetime(2026, 12, 1, tzinfo=UTC)),
    ({"read_reply": True}, "read_reply", True),
    ({"delivery_report": True}, "delivery_report", True),
    ({}, "priority", "Normal"), ({}, "message_class", "Personal"), ({}, "sender_visibility", "Show"), ({}, "expiry", None),
])  # fmt: skip
def test_each_option_is_what_the_gateway_reads(options: dict[str, Any], field: str, value: Any) -> None:
    found = read_message(made(**options))
    assert found.get(field) == value
    assert [p.rule for p in found.problems] == ["mandatory"]  # the transaction id, which the gateway gives


@pytest.mark.parametrize(("options", "what"), [
    ({"priority": "urgent"}, "'urgent' cannot stand in X-Mms-Priority: one of Low, Normal, High"),
    ({"message_class": ""}, "cannot stand in X-Mms-Message-Class"),
    ({"visibility": "x"}, "one of Hide, Show"),
    ({"expiry": NOW}, "is over already"),
    ({"expiry": timedelta(0)}, "at least a second"),
    ({"expiry": timedelta(days=200_000)}, "at most ten digits"),
    ({"expiry": datetime(2027, 1, 1)}, "expiry has no time zone"),
    ({"now": datetime(2027, 1, 1)}, "now has no time zone"),
    ({"to": ()}, "1 to 1000 recipients, not 0"),
    ({"to": tuple(f"+447700{n:06}" for n in range(1001))}, "1 to 1000 recipients, not 1001"),
])  # fmt: skip
def test_what_no_message_may_say_is_told(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=re.escape(what)):
        made(**options)


@pytest.mark.parametrize("wrong", ["", "image", "image/", "a b/c", "multipart/mixed", "message/rfc822", "x/y\r\nBcc: z"])
def test_a_part_has_a_media_type_of_its_own(wrong: str) -> None:
    with pytest.raises(UsageError, match="is no media type of a part"):
        made(Part("x", wrong, b"x"))
    with pytest.raises(UsageError, match="at least one part"):
        compose("+491511000001", ["+447700900101"], [], message_id="m-1@mms.gw.example", now=NOW)


def test_a_recipient_named_twice_stands_once() -> None:
    found = read_message(made(to=("+447700900101", "+44 7700 900101", "+447700900101/TYPE=PLMN@mms.north.example")))
    assert [a.write() for a in found.recipients] == ["+447700900101/TYPE=PLMN"]


def test_a_message_id_that_no_mail_may_have_is_kept_in_its_own_header() -> None:
    message = made(message_id="2026 0113@<x>")
    assert read_message(message).get("message_id") == "2026 0113@<x>"
    assert b"Message-ID: <" not in message.replace(b"X-Mms-Message-ID", b"")


def test_national_numbers_are_completed_by_the_region() -> None:
    found = read_message(made(to=("01511 000002",), region="DE"))
    assert [a.number for a in found.recipients] == ["+491511000002"]
    assert [p.rule for p in found.problems] == ["mandatory"]


def test_a_subject_cannot_become_a_header() -> None:
    message = made(subject="hi\r\nX-Mms-Ack-Request: Yes\r\n\r\nbody")
    found = read_message(message)
    assert found.get("subject") == "hi  X-Mms-Ack-Request: Yes    body"
    assert not found.ack_request


def test_the_examples_of_the_documentation_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "compose.md").read_text()
    examples = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", text, re.DOTALL))
    assert text.count("```python") == len(examples) == 4
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.chdir(tmp_path)
    with Recorder(tmp_path) as service:
        service.status = {"+447700900101": "Ok", "+447700900102": "Error-service-denied"}
        inward(service.store, "m-1@mms.north.example", "+491511000001")
        names: dict[str, Any] = {}
        run_example(examples["send"].replace("/etc/mm4/mm4.yaml", service.config), names)
        run_example(examples["wait"], names)
        run_example(examples["report"], names)
        run_example(examples["elsewhere"], names)
        sent, report = service.taken
    assert capsys.readouterr().out.splitlines() == [
        "+447700900101 answered Ok fine", "+447700900102 answered Error-service-denied not fine",
    ]  # fmt: skip
    assert names["refused"] == {}
    assert names["message_id"].encode() in sent.content
    assert report.rcpt == ["+447700900002/TYPE=PLMN@mms.north.example"]
    assert read_message(report.content).get("mm_status") == "Retrieved"
    for name in compose_package.__all__:
        assert re.search(rf"\b{name}\b", text), f"{name} is documented"
        assert getattr(compose_package, name).__doc__


def run_example(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "docs/compose.md", "exec"), names)
