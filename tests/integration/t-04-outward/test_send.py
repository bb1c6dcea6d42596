"""`mm4 send`, and Maildirs where there is no MMSC: what was attached arrives byte for byte."""

from __future__ import annotations

import email
import email.policy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import NORTH, Link, forward_req, headers_of, mm4, new_ids, wait_for
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "maildir.yaml").read_text()
TEXT = "Grüße aus Köln, 5 € – \u4f60\u597d\n.\n..\nFrom here\n"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, ("north",)) as made:
        yield made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file with every byte, and with all that SMTP could trip over."""
    path = tmp_path / "every byte ü.jpg"
    path.write_bytes(bytes(range(256)) * 100 + b"\r\n.\r\n\n\r..\x00" + random.Random(4).randbytes(100_003))
    return path


def parts(content: bytes) -> dict[str, bytes]:
    """Media type and decoded bytes of each part."""
    mail = email.message_from_bytes(content, policy=email.policy.default)
    found = {}
    for part in mail.walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            found[part.get_content_type()] = payload
    return found


def files(link: Link, number: str) -> list[Path]:
    """What lies in a subscriber's Maildir."""
    return sorted((Path(link.gateway.facts["maildir"]) / number.removeprefix("+") / "new").glob("*"))


def test_send_to_a_peer_arrives_byte_for_byte_and_can_be_traced(link: Link, picture: Path) -> None:
    done = mm4(
        "send", "--config", link.gateway.config, "--json", "--from", "+491511000001", "--to", "+447700900101",
        "--subject", "Über uns", "--text", TEXT, "--attach", str(picture), "--delivery-report",
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["refused"] == {}
    (mail,) = link.north.wait_for(said["message_id"])
    assert mail.mail_from == "+491511000001/TYPE=PLMN@mms.gw.example"
    assert mail.rcpt == ["+447700900101/TYPE=PLMN@mms.north.example"]
    found = parts(mail.content)
    assert found["image/jpeg"] == picture.read_bytes()
    assert found["text/plain"] == TEXT.encode()
    assert b"cid:" in found["application/smil"]
    pdu = read_message(mail.content)
    assert pdu.problems == ()
    assert pdu.get("subject") == "Über uns"
    assert (pdu.ack_request, pdu.get("delivery_report"), pdu.get("read_reply")) == (True, True, False)
    assert pdu.get("message_id") == said["message_id"]
    assert mail.header("X-Mms-Originator-System") == "system-user@mms.gw.example"
    (row,) = wait_for(
        lambda: [t for t in link.gateway.trace(said["message_id"]) if t["state"] == "waiting"], "the message sent"
    )
    assert (row["peer"], row["direction"], row["recipient"]) == ("north", "out", "+447700900101")


def test_send_to_a_served_number_lies_in_its_maildir(link: Link, picture: Path) -> None:
    number = "+491511000077"
    done = mm4(
        "send", "--config", link.gateway.config, "--from", "+491511000001", "--to", number, "--text", "hello",
        "--attach", str(picture),
    )  # fmt: skip
    (path,) = wait_for(lambda: files(link, number), "a file in the Maildir")
    content = path.read_bytes()
    assert parts(content)["image/jpeg"] == picture.read_bytes()
    assert email.message_from_bytes(content)["X-Mms-Message-ID"] == f'"{done.stdout.strip()}"'
    assert path.stat().st_mode & 0o077 == 0


def test_a_peers_message_lies_in_the_maildir_of_each_recipient_as_it_came(link: Link) -> None:
    ids = new_ids()
    content = forward_req(
        ids=ids, body=b"R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7\r\n.\r\n..x\r\n" * 50
    )
    numbers = ("+491511000088", "+491511000089")
    dialogue = link.gateway.send(
        content, source=NORTH, rcpt=tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers)
    )
    assert dialogue.code == 250
    (answer,) = link.north.wait_for(ids[1])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    link.gateway.quiet()
    for number in numbers:
        (path,) = files(link, number)
        stored = path.read_bytes()
        wanted = [(n, b"No" if n == "X-Mms-Ack-Request" else v) for n, v in headers_of(content)]
        added = ("Return-Path", "Delivered-To", "Received")
        assert [(n, v) for n, v in headers_of(stored) if n not in added] == wanted
        assert stored.partition(b"\n\n")[2] == content.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n")
    assert len(link.north.carrying(ids[1])) == 1


def test_send_says_what_was_refused(link: Link) -> None:
    done = mm4(
        "send", "--config", link.gateway.config, "--json", "--from", "+491511000001", "--to", "+447700900101",
        "--to", "+999123456789", "--text", "x", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert list(said["refused"]) == ["+999123456789"]
    assert said["refused"]["+999123456789"].startswith("550 5.1.1")
    assert len(link.north.wait_for(said["message_id"])) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--to", "+447700900101"), 2),  # nothing to send
        (("--to", "nobody", "--text", "x"), 2),
        (("--to", "+447700900101", "--attach", f"{os.devnull}/none"), 2),
        (("--to", "+447700900101", "--text", "x", "--subject", "a\r\nX-Evil: yes"), 0),
    ],
)
def test_send_ends_without_a_traceback(link: Link, arguments: tuple[str, ...], code: int) -> None:
    done = mm4("send", "--config", link.gateway.config, "--from", "+491511000001", *arguments, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert (code == 0) == bool(done.stdout)
    if code == 0:
        (mail,) = link.north.wait_for(done.stdout.strip())
        assert mail.header("X-Evil") is None
        assert mail.header("Subject") == "a  X-Evil: yes"
