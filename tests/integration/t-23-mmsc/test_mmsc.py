"""An MMSC that answers itself: it gets the REQ as it is, and its RES goes out as the peer wants it; and the other way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import LOCAL, Dialogue, Link, forward_req, new_ids, wait_for
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
OURS, OUR_SYSTEM, MMSC = "+491511000001", "system-user@mms.gw.example", "relay@mmsc.gw.example"
STATUS = "X-Mms-Request-Status-Code"


@dataclass(frozen=True)
class Peer:
    name: str
    source: str
    dialect: str
    number: str
    domain: str


NORTH = Peer("north", "127.0.0.21", "3gpp", "+447700900101", "mms.north.example")
SOUTH = Peer("south", "127.0.0.22", "tyntec", "+33600000001", "mm4.south.example")
EAST = Peer("east", "127.0.0.23", "3gpp", "+34600000001", "mms.east.example")


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, ("mmsc", "north", "south", "east")) as made:
        yield made


def came(link: Link, peer: Peer, ids: tuple[str, str], ack: str = "Yes") -> None:
    """A message of the peer's with quoted ids; it has reached our MMSC."""
    quoted = f'"{ids[0]}"', f'"{ids[1]}"'
    content = forward_req(ids=quoted, sender=peer.number, ack=ack, tyntec=peer.dialect == "tyntec")
    content = content.replace(b"mms.north.example", peer.domain.encode())
    sent = link.gateway.send(content, source=peer.source, mail_from=f"{peer.number}/TYPE=PLMN@{peer.domain}")
    assert sent.code == 250
    link.mmsc.wait_for(ids[1])
    link.gateway.quiet()


def says(link: Link, ids: tuple[str, str], status: str, text: str | None = None, rcpt: str = OUR_SYSTEM) -> Dialogue:
    """Our MMSC's RES, its ids without quotes and little else in it."""
    content = (
        f"X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: MM4_forward.RES\r\nX-Mms-Transaction-ID: {ids[0]}\r\n"
        f"X-Mms-Message-ID: {ids[1]}\r\n{STATUS}: {status}\r\n" + (f"X-Mms-Status-Text: {text}\r\n" if text else "") + "\r\n"
    ).encode()
    return link.gateway.send(content, source=LOCAL, mail_from=OUR_SYSTEM, rcpt=(rcpt,))


@pytest.mark.parametrize("status", ["Ok", "Error-content-not-accepted"])
@pytest.mark.parametrize("peer", [NORTH, SOUTH], ids=lambda p: p.name)
def test_the_mmscs_res_goes_out_as_the_peer_wants_it(link: Link, peer: Peer, status: str) -> None:
    ids = new_ids(peer.domain)
    came(link, peer, ids)
    (inside,) = link.mmsc.carrying(ids[1])
    assert inside.all("X-Mms-Ack-Request") == ["Yes"], "it is asked itself"
    assert link.hops[peer.name].carrying(ids[0]) == [], "and nobody answers for it"
    assert [t["state"] for t in link.gateway.trace(ids[1])] == ["accepted"]
    assert says(link, ids, status, "as the MMSC put it").code == 250
    (answer,) = link.hops[peer.name].wait_for(ids[0])
    pdu = read_message(answer.content, peer.dialect)
    assert pdu.problems == ()
    assert (pdu.type, pdu.get("status_code"), pdu.get("status_text")) == ("MM4_forward.RES", status, "as the MMSC put it")
    assert answer.all("X-Mms-Transaction-ID") == [f'"{ids[0]}"']
    assert answer.all("X-Mms-Message-ID") == [f'"{ids[1]}"']
    assert answer.rcpt == [f"PostMaster@{peer.domain}"]
    done = wait_for(lambda: [t for t in link.gateway.trace(ids[1]) if t["state"] == "answered"], "the transaction")
    assert done[0]["status"] == status


def test_it_goes_out_once_and_a_copy_of_the_req_gets_the_same(link: Link) -> None:
    ids = new_ids(NORTH.domain)
    came(link, NORTH, ids)
    says(link, ids, "Ok")
    link.north.wait_for(ids[0])
    # While the first is only just out, a second word is told to come again.
    assert wait_for(lambda: says(link, ids, "Error-unspecified").code == 250, "the second word")
    link.gateway.quiet()
    assert len(link.north.carrying(ids[0])) == 1
    came(link, NORTH, ids)
    first, second = link.north.wait_for(ids[0], 2)
    assert first.header(STATUS) == second.header(STATUS) == "Ok"
    assert len(link.mmsc.carrying(ids[1])) == 1


def test_what_the_mmsc_could_not_take_goes_to_it_again(link: Link) -> None:
    """The peer sends it again because of the error, and wants another answer."""
    ids = new_ids(NORTH.domain)
    came(link, NORTH, ids)
    says(link, ids, "Error-network-problem")
    link.north.wait_for(ids[0])
    link.gateway.quiet()
    came(link, NORTH, ids)
    assert len(link.mmsc.wait_for(ids[1], 2)) == 2
    says(link, ids, "Ok")
    first, second = link.north.wait_for(ids[0], 2)
    assert (first.header(STATUS), second.header(STATUS)) == ("Error-network-problem", "Ok")


def test_a_copy_before_the_mmsc_has_said_anything_is_not_answered(link: Link) -> None:
    ids = new_ids(NORTH.domain)
    came(link, NORTH, ids)
    came(link, NORTH, ids)
    assert link.north.carrying(ids[0]) == []
    assert len(link.mmsc.carrying(ids[1])) == 1
    says(link, ids, "Ok")
    (answer,) = link.north.wait_for(ids[0])
    assert answer.header(STATUS) == "Ok"


def test_a_violation_is_answered_by_the_gateway_which_alone_saw_it(link: Link) -> None:
    ids = new_ids(NORTH.domain)
    content = forward_req(ids=ids, drop=("Date",))
    assert link.gateway.send(content, source=NORTH.source).code == 250
    (answer,) = link.north.wait_for(ids[0])
    assert answer.header(STATUS) == "Error-message-format-corrupt"
    assert link.mmsc.carrying(ids[1]) == []


def test_a_res_for_what_nobody_waits_for_ends_here(link: Link) -> None:
    ids = new_ids(NORTH.domain)
    assert says(link, ids, "Ok").code == 250
    came(link, NORTH, ids, ack="No")
    assert says(link, ids, "Ok").code == 250
    link.gateway.quiet()
    assert link.north.carrying(ids[0]) == []


def submit(link: Link, peer: Peer, ids: tuple[str, str], ack: str = "Yes") -> None:
    content = forward_req(ids=ids, sender=OURS, to=peer.number, system=MMSC, ack=ack, drop=("Sender",))
    rcpt = (f"{peer.number}/TYPE=PLMN@mms.gw.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
    link.hops[peer.name].wait_for(ids[1].strip('"'))


def answered(link: Link, peer: Peer, ids: tuple[str, str], status: str) -> int:
    tyntec = peer.dialect == "tyntec"
    content = (
        f"{'X-Mms-MMS-Version' if tyntec else 'X-Mms-3GPP-MMS-Version'}: 5.5.0\r\n"
        f"{'X-Mms-MM1-Message-Type: MM4_Forward.RES' if tyntec else 'X-Mms-Message-Type: MM4_forward.RES'}\r\n"
        f"X-Mms-Transaction-ID: {ids[0]}\r\nX-Mms-Message-ID: {ids[1]}\r\n{STATUS}: {status}\r\n"
        "X-Mms-Status-Text: as the peer put it\r\nContent-Type: text/plain\r\n\r\n"
    ).encode()
    return link.gateway.send(content, source=peer.source, mail_from="", rcpt=(OUR_SYSTEM,)).code


@pytest.mark.parametrize("status", ["Ok", "Error-service-denied"])
@pytest.mark.parametrize("peer", [NORTH, SOUTH], ids=lambda p: p.name)
def test_an_mmsc_that_asked_gets_the_peers_res_with_its_ids_as_they_were(link: Link, peer: Peer, status: str) -> None:
    bare = new_ids("mmsc.gw.example")
    ids = f'"{bare[0]}"', f'"{bare[1]}"'
    submit(link, peer, ids)
    assert answered(link, peer, bare, status) == 250
    (told,) = [m for m in link.mmsc.wait_for(bare[0]) if m.header(STATUS)]
    assert told.rcpt == [MMSC]
    pdu = read_message(told.content)
    assert pdu.valid
    assert (pdu.get("status_code"), pdu.get("status_text")) == (status, "as the peer put it")
    assert told.all("X-Mms-Transaction-ID") == [ids[0]]
    assert told.all("X-Mms-Message-ID") == [ids[1]]
    link.gateway.quiet()  # the MMSC may have it before the responder knows, and until then the peer is put off
    assert answered(link, peer, bare, "Ok") == 250
    link.gateway.quiet()
    assert len([m for m in link.mmsc.carrying(bare[0]) if m.header(STATUS)]) == 1, "the first word counts"
    states = {(t["type"], t["state"], t["status"]) for t in link.gateway.trace(bare[1])}
    assert ("MM4_forward.REQ", "answered", status) in states


@pytest.mark.parametrize(("peer", "ack"), [(NORTH, "No"), (EAST, "Yes")], ids=["not-asked", "gateway"])
def test_an_mmsc_that_did_not_ask_or_whose_peer_the_gateway_answers_gets_none(link: Link, peer: Peer, ack: str) -> None:
    ids = new_ids("mmsc.gw.example")
    submit(link, peer, ids, ack)
    assert answered(link, peer, ids, "Ok") == 250
    link.gateway.quiet()
    assert link.mmsc.carrying(ids[0]) == []


def test_a_strangers_res_is_not_passed_on(link: Link) -> None:
    ids = new_ids("mmsc.gw.example")
    submit(link, NORTH, ids)
    assert answered(link, EAST, ids, "Error-service-denied") == 250
    link.gateway.quiet()
    assert link.mmsc.carrying(ids[0]) == []
    assert answered(link, NORTH, ids, "Ok") == 250
    link.mmsc.wait_for(ids[0])


@pytest.mark.parametrize(
    "words",
    [(("Ok", (0,)), ("Error-service-denied", (1,))), (("Error-service-denied", (0,)), ("Ok", ()))],
    ids=["an error for the second", "an Ok for all after an error for the first"],
)
def test_of_several_recipients_the_mmsc_gets_one_word_when_all_have_spoken(
    link: Link, words: tuple[tuple[str, tuple[int, ...]], ...]
) -> None:
    """Ok for one is no Ok for all: the first error counts, and the first word of each recipient stands."""
    ids = new_ids("mmsc.gw.example")
    numbers = (NORTH.number, "+447700900102")
    content = forward_req(ids=ids, sender=OURS, to=NORTH.number, system=MMSC, drop=("Sender",))
    rcpt = tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
    link.north.wait_for(ids[1])
    for status, named in words:
        of = "".join(f"X-Mms-Request-Recipients: {numbers[n]}\r\n" for n in named)
        assert [m for m in link.mmsc.carrying(ids[0]) if m.header(STATUS)] == []
        res = (
            f"X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: MM4_forward.RES\r\nX-Mms-Transaction-ID: {ids[0]}\r\n"
            f"X-Mms-Message-ID: {ids[1]}\r\n{STATUS}: {status}\r\n{of}\r\n"
        ).encode()
        assert link.gateway.send(res, source=NORTH.source, mail_from="", rcpt=(OUR_SYSTEM,)).code == 250
        link.gateway.quiet()
    (told,) = [m for m in link.mmsc.wait_for(ids[0]) if m.header(STATUS)]
    assert told.header(STATUS) == "Error-service-denied"


def test_a_peer_that_copies_anothers_ids_does_not_get_its_res(link: Link) -> None:
    """South uses north's ids, later; the MMSC's RES is addressed to north's system."""
    ids = new_ids(NORTH.domain)
    came(link, NORTH, ids)
    came(link, SOUTH, ids)
    assert says(link, ids, "Ok", rcpt=f"PostMaster@{NORTH.domain}").code == 250
    (answer,) = link.north.wait_for(ids[0])
    assert answer.rcpt == [f"PostMaster@{NORTH.domain}"]
    link.gateway.quiet()
    assert link.south.carrying(ids[0]) == []


def test_an_mmsc_that_waits_for_a_res_hears_of_the_bounce(link: Link) -> None:
    ids = new_ids("mmsc.gw.example")
    link.north.reply_rcpt = "550 5.1.1 No such number"
    try:
        content = forward_req(ids=ids, sender=OURS, to=NORTH.number, system=MMSC, drop=("Sender",))
        rcpt = (f"{NORTH.number}/TYPE=PLMN@mms.gw.example",)
        assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
        (told,) = [m for m in link.mmsc.wait_for(ids[0]) if m.header(STATUS)]
    finally:
        link.north.reply_rcpt = "250 OK"
    assert (told.header(STATUS) or "").startswith("Error-")
    assert told.rcpt == [MMSC]
    assert told.all("X-Mms-Transaction-ID") == [ids[0]]
    assert wait_for(lambda: answered(link, NORTH, ids, "Ok") == 250, "the peer's late word")
    link.gateway.quiet()
    assert len([m for m in link.mmsc.carrying(ids[0]) if m.header(STATUS)]) == 1
