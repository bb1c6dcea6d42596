"""The envelope decides: who may come in, who is served, and what nobody outside may write to."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import LOCAL, NORTH, SOUTH, STRANGER, Dialogue, Link, exchange, forward_req, new_ids

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
OURS = "+491511000001/TYPE=PLMN@mms.gw.example"

# Ways to write to a token or to a peer's next hop (F12): Postfix rewrites some of them to the plain form.
TOKEN = "0123456789abcdef0123456789abcdef"
PRIVATE = [
    f"{TOKEN}@responder.mm4.invalid",
    f"{TOKEN}@responder.mm4.invalid.",
    f"{TOKEN}@RESPONDER.MM4.INVALID",
    f"{TOKEN}@Responder.mm4.Invalid.",
    f"{TOKEN}@sub.responder.mm4.invalid",
    f'"{TOKEN}"@responder.mm4.invalid',
    f'"{TOKEN}@responder.mm4.invalid"',
    f"{TOKEN}%responder.mm4.invalid",
    f'"{TOKEN}%responder.mm4.invalid"',
    f"responder.mm4.invalid!{TOKEN}",
    f'"responder.mm4.invalid!{TOKEN}"',
    f"@mms.gw.example:{TOKEN}@responder.mm4.invalid",
    "+491511000001/TYPE=PLMN@responder.mm4.invalid",
    "x@mm4.invalid",
    "+491511000001@maildir.mm4.invalid",
    "x@mms.north.example.via-north.mm4.invalid",
    "+447700900001/TYPE=PLMN@mms.north.example.via-north.mm4.invalid",
    "+491511000001/TYPE=PLMN@mms.north.example.VIA-NORTH.mm4.invalid.",
    "+491511000001/TYPE=PLMN%mms.north.example.via-north.mm4.invalid",
]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML) as made:
        yield made


def everywhere(link: Link, text: str) -> list[str]:
    """Names of the next hops that got a mail with this text."""
    return [name for name, hop in link.hops.items() if hop.carrying(text)]


def reply(answer: tuple[int, str] | None) -> str:
    """Code and enhanced code of a reply."""
    assert answer is not None
    return f"{answer[0]} {answer[1].split()[0]}"


# -- who is served


def test_a_recipient_that_is_not_ours_is_refused_and_the_others_served(link: Link) -> None:
    ids = new_ids()
    rcpt = (OURS, "+491799999999/TYPE=PLMN@mms.gw.example", "+491511000002/TYPE=PLMN@mms.gw.example")
    dialogue = link.gateway.send(forward_req(ids=ids), rcpt=rcpt)
    assert [reply(r) for r in dialogue.rcpt] == ["250 2.1.5", "550 5.1.1", "250 2.1.5"]
    assert dialogue.code == 250
    (answer,) = link.north.wait_for(ids[1])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    link.gateway.quiet()
    served = [r for mail in link.mmsc.carrying(ids[1]) for r in mail.rcpt]
    assert sorted(served) == ["+491511000001@mmsc.gw.example", "+491511000002@mmsc.gw.example"]
    refused = [line for line in link.gateway.log().splitlines() if "refused=rcpt" in line and "+491799999999" in line]
    assert len(refused) == 1


def test_of_twenty_in_the_to_header_only_the_one_in_the_envelope_is_served(link: Link) -> None:
    ids = new_ids()
    to = ", ".join(f"+4915110000{n:02}/TYPE=PLMN" for n in range(20)).removesuffix("/TYPE=PLMN")
    message = forward_req(ids=ids, to=to)
    link.gateway.send(message, rcpt=("+491511000007/TYPE=PLMN@mms.gw.example",))
    link.north.wait_for(ids[1])
    link.gateway.quiet()
    (delivered,) = link.mmsc.carrying(ids[1])
    assert delivered.rcpt == ["+491511000007@mmsc.gw.example"]
    assert (delivered.header("To") or "").count("TYPE=PLMN") == 20


@pytest.mark.parametrize("null", ["<>", "< >", "<> SIZE=2000"])
def test_a_null_sender_is_taken(link: Link, null: str) -> None:
    ids = new_ids()
    message = forward_req(ids=ids).decode("latin-1")
    replies = exchange(
        link.gateway.smtp,
        NORTH,
        "EHLO mms.north.example",
        f"MAIL FROM:{null}",
        f"RCPT TO:<{OURS}>",
        "DATA",
        f"{message}.",
    )
    assert replies[1][:3] == replies[-1][:3] == "250"
    (answer,) = link.north.wait_for(ids[1])
    assert answer.rcpt == ["PostMaster@mms.north.example"]
    assert len(link.mmsc.wait_for(ids[1])) == 1


def test_recipients_of_several_operators_in_one_transaction_are_each_served(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    rcpt = (
        "+447700900101/TYPE=PLMN@mms.gw.example", "+33600000001/TYPE=PLMN@mms.gw.example",
        "+491511000002/TYPE=PLMN@mms.gw.example", "+447700900102/TYPE=PLMN@mms.gw.example",
    )  # fmt: skip
    dialogue = link.gateway.send(
        forward_req(ids=ids), source=LOCAL, mail_from="+491511000001@mms.gw.example", rcpt=rcpt
    )
    assert [reply(r) for r in dialogue.rcpt] == ["250 2.1.5"] * 4
    assert dialogue.code == 250
    link.gateway.quiet()
    assert sorted(everywhere(link, ids[1])) == ["mmsc", "north", "south"]
    served = [r for mail in link.north.carrying(ids[1]) for r in mail.rcpt]
    assert sorted(served) == [f"+44770090010{n}/TYPE=PLMN@mms.north.example" for n in (1, 2)]


@pytest.mark.parametrize(
    "rcpt",
    [
        "+33600000001/TYPE=PLMN@mm4.south.example",  # another peer's number: no transit
        "+33600000001/TYPE=PLMN@mms.gw.example",
        "+447700900101/TYPE=PLMN@mms.north.example",  # back to where it came from
        "+999123456789/TYPE=PLMN@mms.gw.example",  # nobody's
        "+4915119999999999999/TYPE=PLMN@mms.gw.example",  # 18 digits
        "12345/TYPE=PLMN@mms.gw.example",
        "ann.example@mail.test",
        "postmaster@evil.example",
    ],
)
def test_a_peer_reaches_served_numbers_only(link: Link, rcpt: str) -> None:
    dialogue = link.gateway.send(forward_req(), rcpt=(rcpt,))
    assert [reply(r) for r in dialogue.rcpt] == ["550 5.1.1"]
    assert dialogue.data is None


def test_the_local_side_may_write_our_domains_and_our_peers_behind_a_number_and_no_other(link: Link) -> None:
    domains = ("@mms.gw.example", "@mms.north.example", "@mm4.south.example", "@mmsc.gw.example", "", "@evil.example")
    commands = [f"RCPT TO:<+447700900101/TYPE=PLMN{domain}>" for domain in domains]
    replies = exchange(link.gateway.smtp, LOCAL, "EHLO mmsc", "MAIL FROM:<+491511000001@mms.gw.example>", *commands)
    assert [r[:9] for r in replies[2:]] == ["250 2.1.5"] * 5 + ["550 5.1.1"]


# -- who may come in


def test_a_stranger_is_refused(link: Link) -> None:
    ids = new_ids()
    before = link.gateway.log().count("client=127.0.0.99")
    dialogue = link.gateway.send(forward_req(ids=ids), source=STRANGER)
    assert dialogue.mail[0] in (550, 554)
    assert dialogue.data is None
    assert everywhere(link, ids[1]) == []
    link.gateway.wait_log("client=127.0.0.99 .*refused=mail")
    assert link.gateway.log().count("client=127.0.0.99") == before + 1


@pytest.mark.parametrize("source", [STRANGER, NORTH, LOCAL])
def test_a_connection_that_only_says_hello_is_no_message_and_no_alarm(link: Link, source: str) -> None:
    link.gateway.quiet()
    before = link.gateway.log()
    replies = exchange(link.gateway.smtp, source, "EHLO keepalive.example", "NOOP", "RSET", "NOOP", "QUIT")
    assert [r[:3] for r in replies] == ["250", "250", "250", "250", "221"]
    link.gateway.wait_log(rf"disconnect from .*\[{source}\] ehlo=1 rset=1 noop=2 quit=1 commands=5")
    new = link.gateway.log().removeprefix(before).splitlines()
    assert [line for line in new if f"client={source}" in line] == []
    assert [line for line in new if "warning" in line or "reject" in line] == []
    assert link.gateway.queue() == []


# -- nothing goes where a stranger points


@pytest.mark.parametrize("drop", [(), ("Date",)], ids=["right", "violation"])
@pytest.mark.parametrize(
    "system",
    [
        "PostMaster@evil.example",
        "PostMaster@mms.north.example.evil.example",
        "PostMaster@sub.mms.north.example",
        "mms.north.example <x@evil.example>",
        "<@mms.north.example:x@evil.example>",
        '"x@mms.north.example"@evil.example',
        "x@[192.0.2.1]",
        "PostMaster@mm4.south.example",  # another peer
        "system-user@mms.gw.example",  # ourselves
        f"{TOKEN}@responder.mm4.invalid",
        "PostMaster@mms.north.example.via-south.mm4.invalid",
    ],
)
def test_an_originator_system_outside_the_peers_domains_gets_nothing(
    link: Link, system: str, drop: tuple[str, ...]
) -> None:
    ids = new_ids()
    dialogue = link.gateway.send(forward_req(ids=ids, system=system, drop=drop))
    assert dialogue.data is not None
    assert reply(dialogue.data) == "550 5.7.1"
    link.gateway.quiet()
    assert everywhere(link, ids[0]) == []


@pytest.mark.parametrize("source", [LOCAL, NORTH, SOUTH])
@pytest.mark.parametrize("address", PRIVATE)
def test_our_own_name_space_is_refused_from_outside(link: Link, address: str, source: str) -> None:
    replies = exchange(
        link.gateway.smtp, source,
        "EHLO a.example", "MAIL FROM:<+447700900002@mms.north.example>", f"RCPT TO:<{address}>", "DATA",
        f"RCPT TO:{address}", "DATA", "MAIL FROM:<>", "RSET", "MAIL FROM:<>", f"RCPT TO:<{address}>", "QUIT",
    )  # fmt: skip
    assert replies[2][:1] == "5", replies
    assert replies[3][:3] in ("554", "503"), replies
    assert replies[4][:1] == "5", replies
    assert replies[9][:1] == "5", replies


def test_what_was_refused_by_name_reached_nobody(link: Link) -> None:
    """Right recipients beside a private one: the message goes, without the private one."""
    ids = new_ids()
    dialogue = link.gateway.send(forward_req(ids=ids), rcpt=(OURS, f"{TOKEN}@responder.mm4.invalid"))
    assert [code for code, _ in dialogue.rcpt] == [250, 554]
    link.north.wait_for(ids[1])
    link.gateway.quiet()
    assert TOKEN not in "".join(line for line in link.gateway.log().splitlines() if "mm4-responder" in line)
    assert not [line for line in link.gateway.log().splitlines() if "token" in line and TOKEN in line]


# -- what Postfix keeps of a recipient


@pytest.mark.parametrize(
    "rcpt",
    [
        "<+491511000001/TYPE=PLMN@mms.gw.example>",
        "<+491511000001/type=plmn@MMS.GW.example>",
        "<+491511000001/Type=Plmn@mms.GW.EXAMPLE>",
        "<+491511000001/TYPE=PLMN>",
        "<+491511000001@mms.gw.example.>",
        "<+491511000001/TYPE=PLMN@Whatever.Example>",
        "<+491511000001/TYPE=PLMN@mms.north.example>",
        '<"+491511000001/TYPE=PLMN"@mms.gw.example>',
        '<"+491511000001/TYPE\\=PLMN"@mms.gw.example>',
        '<"+49 1511 000001"@mms.gw.example>',
        "+491511000001/TYPE=PLMN@mms.gw.example",
        "<+491511000001/TYPE=PLMN@mms.gw.example> NOTIFY=NEVER",
        "<+491511000001/TYPE=PLMN@mms.gw.example> ORCPT=rfc822;+2B491511000001",
        "<+491511000001/TYPE=PLMN@[127.0.0.1]>",
    ],
)
def test_however_a_served_number_is_written_it_is_delivered_once_and_nowhere_else(link: Link, rcpt: str) -> None:
    ids = new_ids()
    message = forward_req(ids=ids).decode("latin-1")
    replies = exchange(
        link.gateway.smtp, NORTH,
        "EHLO mms.north.example", "MAIL FROM:<+447700900002@mms.north.example>", f"RCPT TO:{rcpt}",
        "DATA", f"{message}.", "QUIT",
    )  # fmt: skip
    assert replies[4].startswith("250"), replies
    queue_id = replies[4].rpartition(" ")[2]
    link.north.wait_for(ids[1])
    link.gateway.wait_log(f"{queue_id}: removed")
    (delivered,) = link.mmsc.carrying(ids[1])
    assert delivered.rcpt == ["+491511000001@mmsc.gw.example"]
    went = [line for line in link.gateway.log().splitlines() if f"{queue_id}: to=<" in line]
    assert len(went) == 2, went
    assert len([line for line in went if "@responder.mm4.invalid>" in line and "status=sent" in line]) == 1


def test_one_number_written_twice_is_delivered_once(link: Link) -> None:
    ids = new_ids()
    rcpt = (OURS, OURS.lower(), "+491511000001/TYPE=PLMN", OURS)
    dialogue = link.gateway.send(forward_req(ids=ids), rcpt=rcpt)
    assert [code for code, _ in dialogue.rcpt] == [250] * 4
    link.gateway.wait_log(f"{dialogue.queue_id}: removed")
    served = [r for mail in link.mmsc.carrying(ids[1]) for r in mail.rcpt]
    assert served == ["+491511000001@mmsc.gw.example"]
    went = [line for line in link.gateway.log().splitlines() if f"{dialogue.queue_id}: to=<" in line]
    assert len(went) == 2, went


# -- how large


def sized(ids: tuple[str, str], size: int) -> bytes:
    """A right message of exactly so many bytes on the wire."""
    message = forward_req(ids=ids)
    line = b"x" * 74 + b"\r\n"
    missing = size - len(message)
    return message + line * (missing // 76 - 1) + b"y" * (missing % 76 + 76 - 2) + b"\r\n"


def test_a_size_over_the_peers_largest_is_refused_at_mail(link: Link) -> None:
    for source, size in ((NORTH, 200_000), (SOUTH, 100_000)):
        replies = exchange(
            link.gateway.smtp,
            source,
            "EHLO peer.example",
            f"MAIL FROM:<> SIZE={size + 1}",
            f"MAIL FROM:<> size={size}",
            "QUIT",
        )
        assert reply((int(replies[1][:3]), replies[1][4:])) == "552 5.3.4", replies
        assert replies[2][:3] == "250", replies


def test_without_a_size_a_message_over_the_largest_is_refused_after_data(link: Link) -> None:
    over, right = new_ids(), new_ids()
    refused = link.gateway.send(sized(over, 200_400), size=False)
    assert reply(refused.data) == "552 5.3.4"
    assert link.gateway.send(sized(right, 200_000), size=False).code == 250
    (delivered,) = link.mmsc.wait_for(right[1])
    link.north.wait_for(right[1])
    assert delivered.content.endswith(sized(right, 200_000)[-1000:])
    link.gateway.quiet()
    assert everywhere(link, over[0]) == []


def test_what_is_too_large_for_the_peer_it_goes_to_is_refused_at_rcpt(link: Link) -> None:
    ids = new_ids()
    to_south = ("+33600000001/TYPE=PLMN@mms.gw.example",)
    refused: Dialogue = link.gateway.send(
        sized(ids, 100_001), source=LOCAL, mail_from="+491511000001@mms.gw.example", rcpt=to_south
    )
    assert refused.mail[0] == 250
    assert [reply(r) for r in refused.rcpt] == ["552 5.3.4"]
    right = new_ids()
    taken = link.gateway.send(
        sized(right, 100_000), source=LOCAL, mail_from="+491511000001@mms.gw.example", rcpt=to_south
    )
    assert taken.code == 250
    link.south.wait_for(right[1])


def test_the_size_offered_is_the_largest_of_all_peers(link: Link) -> None:
    host, _, port = link.gateway.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), source_address=(NORTH, 0)) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "200000"
