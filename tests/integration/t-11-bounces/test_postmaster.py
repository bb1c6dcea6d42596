"""Mail to our MM4 domain that is neither MM4 nor a bounce of ours goes to the postmaster, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import NORTH, Link, wait_for

pytestmark = pytest.mark.postfix


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    text = (Path(__file__).parent / "mm4.yaml").read_text()
    # Any other domain would do; this one leads to a hop that records.
    text = text.replace("  region: DE\n", "  region: DE\n  postmaster_to: postmaster@mmsc.gw.example\n")
    with Link(text, hops=("mmsc", "north")) as made:
        yield made


def test_what_is_none_of_ours_goes_to_the_postmaster_from_nobody(link: Link) -> None:
    mail = b"From: someone@mms.north.example\r\nTo: postmaster@mms.gw.example\r\nSubject: who are you\r\n\r\nHello.\r\n"
    assert link.gateway.send(mail, source=NORTH, mail_from="", rcpt=("postmaster@mms.gw.example",)).code == 250
    (got,) = link.mmsc.wait_for("who are you")
    assert (got.mail_from.strip("<>"), got.rcpt) == ("", ["postmaster@mmsc.gw.example"])
    assert got.header("Delivered-To") == "postmaster@mms.gw.example"
    assert got.content.replace(b"\r\n", b"\n").endswith(b"\n\nHello.\n")
    link.gateway.quiet()
    assert len(link.mmsc.mails) == 1
    assert link.gateway.unclaimed() == []


def test_what_comes_round_is_kept_and_not_sent_on_again(link: Link) -> None:
    link.mmsc.mails.clear()
    mail = b"Delivered-To: postmaster@mms.gw.example\r\nSubject: round and round\r\n\r\nHello.\r\n"
    assert link.gateway.send(mail, source=NORTH, mail_from="", rcpt=("postmaster@mms.gw.example",)).code == 250
    (file,) = wait_for(link.gateway.unclaimed, "the mail among what nobody claims")
    assert "round and round" in file.read_text()
    link.gateway.quiet()
    assert link.mmsc.mails == []
