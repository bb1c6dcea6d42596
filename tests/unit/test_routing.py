"""Who a client is, who is served, where a number goes: what is answered at MAIL and RCPT."""

from __future__ import annotations

import pytest

from fake import CONFIG, TOKEN, Gateway, Seen
from mm4.gateway.config import Config
from mm4.gateway.configfile import parse_config
from mm4.gateway.envelope import bare, size_of
from mm4.gateway.identity import Client
from mm4.gateway.names import is_private, strip_via, via
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Destination
from mm4.protocol.address import parse_address

ROUTER = Router(parse_config(CONFIG, "mm4.yaml"))


def configured(old: str, new: str) -> Config:
    assert old in CONFIG
    return parse_config(CONFIG.replace(old, new), "mm4.yaml")


def goes(number: str, router: Router = ROUTER) -> Destination | None:
    return router.route(parse_address(number))


# -- clients


@pytest.mark.parametrize(
    ("client", "side"),
    [
        ("127.0.0.1", "local"),
        ("127.0.0.2", None),
        ("192.0.2.1", "north"),
        ("192.0.2.255", "north"),
        ("192.0.2.10", "tyntec"),
        ("192.0.2.11", "north"),
        ("192.0.3.1", None),
        ("::ffff:192.0.2.10", "tyntec"),
        ("::ffff:127.0.0.1", "local"),
        ("IPv6:::ffff:192.0.2.1", "north"),
        ("2001:db8:1::5", "local"),
        ("2001:db8:2:ffff::1", "north"),
        ("IPv6:2001:DB8:2::1", "north"),
        ("ipv6:2001:db8:2:0:0:0:0:1", "north"),
        ("2001:db8:1::5%eth0", "local"),
        ("2001:db8:3::1", None),
        ("::1", None),
        ("unknown", None),
        ("", None),
        ("192.0.2.1.evil.example", None),
        ("/var/run/socket", None),
    ],
)
def test_the_most_specific_network_names_the_client(client: str, side: str | None) -> None:
    found = ROUTER.side(Client(client))
    assert (found.name if found else None) == side


@pytest.mark.parametrize("first", ["tyntec", "north"])
def test_the_order_in_the_file_does_not_matter(first: str) -> None:
    swapped = configured("networks: [192.0.2.0/24", "networks: [192.0.2.8/30, 192.0.2.0/24")
    peers = dict(swapped.peers)
    ordered = {first: peers.pop(first), **peers}
    router = Router(swapped.model_copy(update={"peers": ordered}))
    assert [side.name if (side := router.side(Client(f"192.0.2.{i}"))) else None for i in (9, 10, 11, 12)] == [
        "north", "tyntec", "north", "north",
    ]  # fmt: skip


def test_a_stranger_is_refused_at_mail() -> None:
    for client in ("203.0.113.99", "::1", ""):
        assert str(Gateway().peer(client).mail().reply) == "550 5.7.1 This host exchanges MMS with its peers only"


# -- numbers


@pytest.mark.parametrize(
    ("number", "side", "rule"),
    [
        ("+491511000001", "local", 'local.numbers: "+491511"'),
        ("+491511200001", "local", 'local.numbers: "+4915112"'),
        ("+447700900101", "north", 'routes[0]: prefix "+4477009001"'),
        ("+447700900201", "tyntec", 'routes[1]: prefix "+4477009"'),
        ("+447800900201", "north", 'routes[2]: prefix "+44"'),
        ("+34600000000", "hub", 'routes[3]: prefix "+3460"'),
        ("+33600000000", None, None),
        ("12345", None, None),
        ("ann@mail.example", None, None),
        ("PostMaster", None, None),
        ("192.0.2.1", None, None),
    ],
)
def test_served_numbers_come_first_and_of_the_routes_the_first_that_fits(
    number: str, side: str | None, rule: str | None
) -> None:
    found = goes(number)
    assert (found.side if found else None, found.rule if found else None) == (side, rule)


def test_the_order_of_routes_is_that_of_the_file() -> None:
    wide_first = configured('  - {prefix: "+4477009001", peer: north}\n', '  - {prefix: "+", peer: watched}\n')
    router = Router(wide_first)
    assert [d.side for n in ("+447700900101", "+33600000000", "+491511000001") if (d := goes(n, router))] == [
        "watched", "watched", "local",
    ]  # fmt: skip


def test_a_served_number_is_local_though_a_route_names_it() -> None:
    router = Router(configured('prefix: "+4477009001", peer: north', 'prefix: "+491511", peer: north'))
    found = goes("+491511000001", router)
    assert found is not None
    assert found.side == "local"


def test_where_a_number_is_written_to() -> None:
    inward, outward = goes("+491511000001"), goes("+447700900101")
    assert inward is not None
    assert outward is not None
    assert (inward.becomes, inward.next_hop) == ("+491511000001@mmsc.gw.example", "[127.0.0.1]:2600")
    assert outward.becomes == "+447700900101/TYPE=PLMN@mms.north.example.via-north.mm4.invalid"
    assert strip_via(outward.becomes) == "+447700900101/TYPE=PLMN@mms.north.example"
    assert outward.next_hop == "[192.0.2.1]:25"


def test_without_an_mmsc_a_number_has_a_maildir() -> None:
    lines = '  deliver_to: "{number}@mmsc.gw.example"\n  next_hop: "[127.0.0.1]:2600"\n'
    found = goes("+491511000001", Router(configured(lines, "")))
    assert found is not None
    assert (found.becomes, found.next_hop) == ("+491511000001@maildir.mm4.invalid", "maildir")


def test_a_peer_may_want_another_domain_behind_its_numbers() -> None:
    router = Router(configured("    max_size: 1MB\n", "    recipient_domain: Write.here.example\n"))
    found = goes("+447700900101", router)
    assert found is not None
    assert found.becomes == "+447700900101/TYPE=PLMN@write.here.example.via-north.mm4.invalid"


# -- RCPT

OK, NO = "250 2.1.5 Ok", "550 5.1.1 Number not served here"
GW = "@mms.gw.example"


def asked(client: str, rcpt: str, sender: str = "<x@mms.north.example>", *sizes: str) -> str:
    return str(Gateway().peer(client).mail(sender, *sizes).rcpt(rcpt).reply)


@pytest.mark.parametrize(
    ("rcpt", "reply"),
    [
        (f"<+491511000001/TYPE=PLMN{GW}>", OK),
        (f"+491511000001/TYPE=PLMN{GW}", OK),
        (f"<+491511000001{GW}>", OK),
        (f"<491511000001{GW}>", OK),
        ("<+491511000001@mms.north.example>", OK),
        ("<+491511000001>", OK),
        (f'<"+491511000001/TYPE=PLMN"{GW}>', OK),
        (f"<+4915119{GW}>", OK),
        (f"<+491521000001{GW}>", NO),
        (f"<+447700900101{GW}>", NO),
        (f"<+447700900201{GW}>", NO),
        (f"<01511000001{GW}>", NO),
        (f"<12345{GW}>", NO),
        (f"<+4915{GW}>", NO),
        (f"<+4915111234567890{GW}>", NO),
        (f"<joe{GW}>", NO),
        ("<>", NO),
        ("", NO),
        (f"<{TOKEN}{GW}>", NO),
        (f"<system-user{GW}>", OK),
        (f"<PostMaster{GW.upper()}>", OK),
        ("<system-user@mms.north.example>", NO),
        ("<system-user>", NO),
    ],
)
def test_what_a_peer_may_send_to(rcpt: str, reply: str) -> None:
    assert asked("north", rcpt) == reply


@pytest.mark.parametrize(
    ("rcpt", "reply"),
    [
        (f"<+447700900101{GW}>", OK),
        ("<+447700900101@mms.north.example>", OK),
        ("<+447700900101@mm4.tyntec.example>", OK),
        ("<+447700900101@mmsc.gw.example>", OK),
        ("<+447700900101>", OK),
        (f"<+491511000002{GW}>", OK),
        (f"<01511000002{GW}>", OK),
        ("<+447700900101@elsewhere.example>", NO),
        (f"<+33600000000{GW}>", NO),
        (f"<12345{GW}>", NO),
        ("<ann@mail.example>", NO),
    ],
)
def test_what_the_local_side_may_send_to(rcpt: str, reply: str) -> None:
    assert asked("local", rcpt, f"<+491511000001{GW}>") == reply


@pytest.mark.parametrize(
    ("client", "number", "reply"),
    [
        ("north", "+447700900201", NO),
        ("hub", "+447700900201", OK),
        ("hub", "+491511000001", OK),
        ("hub", "+34600000000", NO),
        ("hub", "+33600000000", NO),
    ],
)
def test_transit_is_for_peers_that_may_and_never_back(client: str, number: str, reply: str) -> None:
    assert asked(client, f"<{number}{GW}>") == reply


@pytest.mark.parametrize(
    "rcpt",
    [
        f"{TOKEN}@responder.mm4.invalid", f"{TOKEN}@RESPONDER.mm4.INVALID", f"{TOKEN}@responder.mm4.invalid.",
        "x@mm4.invalid", "+491511000001@mms.gw.example.via-north.mm4.invalid", "+491511000001@maildir.mm4.invalid",
        f'"{TOKEN}"@responder.mm4.invalid', f"@relay.example:{TOKEN}@responder.mm4.invalid",
    ],
)  # fmt: skip
def test_the_private_names_are_nobodys(rcpt: str) -> None:
    for client in ("north", "local", "hub"):
        for path in (rcpt, f"<{rcpt}>"):
            assert asked(client, path) == NO
            assert asked(client, path, "<>") == NO


def test_private_names_are_known_and_taken_off_again() -> None:
    assert all(is_private(f"x@{name}") for name in ("mm4.invalid", "MM4.Invalid", "a.b.mm4.invalid", "mm4.invalid."))
    assert not is_private("x@mms.gw.example")
    assert not is_private("x@notmm4.invalid")
    assert strip_via(via("+1234567@mms.a.example", "a-1")) == "+1234567@mms.a.example"
    assert strip_via("x@y.via-.mm4.invalid") == "x@y.via-.mm4.invalid"


@pytest.mark.parametrize("sender", ["<>", ""])
def test_a_bounce_for_what_we_sent_is_taken_whatever_the_number(sender: str) -> None:
    for rcpt in (f"<+33600000000{GW}>", f"<41414{GW}>", f"<{TOKEN}{GW}>", f"<{TOKEN.upper()}{GW}>", f"<ann{GW}>"):
        assert asked("north", rcpt, sender) == OK
        assert asked("local", rcpt, sender) == OK
    assert asked("north", "<+33600000000@mms.north.example>", sender) == NO


def test_a_null_sender_of_the_local_side_may_send_to_a_peer() -> None:
    seen = Gateway().peer("local").mail("<>").rcpt(f"<+447700900101{GW}>")
    (recipient,) = seen.session.recipients
    assert recipient.destination is not None
    assert recipient.destination.side == "north"


def test_recipients_of_several_sides_are_taken_together() -> None:
    seen = Gateway().peer("local").mail("<x@mms.gw.example>")
    numbers = ("+447700900101", "+447700900201", "+447700900102", "+491511000001", "+33600000000")
    seen.rcpt(*(f"<{n}{GW}>" for n in numbers))
    assert [str(r) for r in seen.replies[1:]] == [OK, OK, OK, OK, NO]
    assert [r.destination.side for r in seen.session.recipients if r.destination] == ["north", "tyntec", "north", "local"]


def test_a_side_too_many_comes_later() -> None:
    peers = "".join(
        f"  p{n}: {{domains: [p{n}.example], networks: [198.18.0.{n}/32], next_hop: '[198.18.0.{n}]:25'}}\n"
        for n in range(21)
    )
    routes = "".join(f"  - {{prefix: '+3360000{n:02}', peer: p{n}}}\n" for n in range(21))
    config = CONFIG.replace("peers:\n", "peers:\n" + peers).replace("routes:\n", "routes:\n" + routes)
    seen = Gateway(config).peer("local").mail("<x@mms.gw.example>")
    seen.rcpt(*(f"<+3360000{n:02}1{GW}>" for n in range(21)), f"<+33600000002{GW}>", f"<+491511000001{GW}>")
    later = "452 4.5.3 Recipients of too many operators in one message, send the others again"
    assert [str(r) for r in seen.replies[1:]] == [OK] * 20 + [later, OK, later]


def test_each_peers_size_holds_for_its_own_recipients() -> None:
    seen = Gateway().peer("local").mail("<x@mms.gw.example>", "SIZE=1000001")
    seen.rcpt(f"<+447700900201{GW}>", f"<+447700900101{GW}>", f"<+447700900202{GW}>")
    assert [reply.code for reply in seen.replies[1:]] == [250, 552, 250]


def test_our_own_system_is_beside_any_peer() -> None:
    seen = Gateway().peer("north").mail().rcpt(f"<system-user{GW}>", f"<+491511000001{GW}>", f"<postmaster{GW}>")
    assert {str(r) for r in seen.replies[1:]} == {OK}


def test_of_three_recipients_the_strange_one_alone_is_refused() -> None:
    numbers = ("+491511000001", "+491521000001", "+491511000002")
    seen = Gateway().peer("north").mail().rcpt(*(f"<{number}{GW}>" for number in numbers))
    assert [str(r) for r in seen.replies[1:]] == [OK, NO, OK]


# -- MAIL


@pytest.mark.parametrize(
    ("client", "parameters", "code"),
    [
        ("north", ("SIZE=1000000",), 250),
        ("north", ("SIZE=1000001",), 552),
        ("north", ("body=8BITMIME", "size=1000001"), 552),
        ("north", ("SIZE=99999999999999999999",), 552),
        ("north", ("SIZE=" + "9" * 5000,), 552),
        ("north", ("SIZE=",), 250),
        ("north", ("SIZE=-5",), 250),
        ("north", ("SIZE=\xb2",), 250),
        ("north", (), 250),
        ("tyntec", ("SIZE=1000001",), 250),
        ("local", ("SIZE=1000001",), 250),
    ],
)
def test_the_size_that_mail_announces(client: str, parameters: tuple[str, ...], code: int) -> None:
    reply = Gateway().peer(client).mail("<x@mms.north.example>", *parameters).reply
    assert reply.code == code
    if code == 552:
        assert str(reply) == "552 5.3.4 Message exceeds the size agreed for this link"


def test_the_size_agreed_with_the_receiving_peer_counts_at_rcpt() -> None:
    assert asked("local", f"<+447700900101{GW}>", f"<x{GW}>", "SIZE=1000001").startswith("552 5.3.4")
    assert asked("local", f"<+447700900201{GW}>", f"<x{GW}>", "SIZE=1000001") == OK


@pytest.mark.parametrize(
    ("client", "sender", "code"),
    [
        ("watched", "<+447700900002/TYPE=PLMN@mms.watched.example>", 250),
        ("watched", "<+447700900002@MMS.Watched.EXAMPLE>", 250),
        ("watched", "<>", 250),
        ("watched", "", 250),
        ("watched", "<x@mms.north.example>", 550),
        ("watched", "<x@sub.mms.watched.example>", 550),
        ("watched", "<+447700900002/TYPE=PLMN>", 550),
        ("north", "<x@elsewhere.example>", 250),
        ("local", "<x@elsewhere.example>", 250),
    ],
)
def test_a_strict_identity_wants_the_sender_in_the_peers_domains(client: str, sender: str, code: int) -> None:
    assert Gateway().peer(client).mail(sender).reply.code == code


@pytest.mark.parametrize(
    ("path", "address"), [("<a@b>", "a@b"), ("a@b", "a@b"), ("<>", ""), ("", ""), (" <a@b> ", "a@b"), ("<a@b", "<a@b")]
)
def test_a_path_has_its_brackets_or_not(path: str, address: str) -> None:
    assert bare(path) == address


def test_the_first_size_counts() -> None:
    assert size_of(["BODY=8BITMIME", "SIZE=5", "SIZE=6"]) == 5
    assert size_of([]) is None


# -- several identities on one host

TWO = """\
local:
  - domain: mms.one.example
    system_address: system-user@mms.one.example
    numbers: ["+491511"]
    clients: [10.0.1.0/24]
    region: DE
  - domain: mms.two.example
    system_address: system-user@mms.two.example
    numbers: ["+4915115"]
    clients: [10.0.2.0/24]
    region: GB
peers:
  north: {domains: [mms.north.example], networks: [192.0.2.1/32], next_hop: "[192.0.2.1]:25"}
routes: [{prefix: "+44", peer: north}]
"""


def two(client: str) -> Seen:
    return Gateway(TWO).peer(client)


def test_each_identity_has_its_clients_its_region_and_its_numbers() -> None:
    router = Router(parse_config(TWO, "mm4.yaml"))
    one, other = router.side(Client("10.0.1.1")), router.side(Client("10.0.2.1"))
    assert one is not None
    assert other is not None
    assert (one.local.domain, other.local.domain) == ("mms.one.example", "mms.two.example")
    assert [served[1].domain for n in ("+4915110", "+4915115") if (served := router.serves(n))] == [
        "mms.one.example", "mms.two.example",
    ]  # fmt: skip
    assert two("10.0.1.1").mail("<x@y.example>").rcpt("<07700900101@mms.one.example>").reply.code == 550
    assert two("10.0.2.1").mail("<x@y.example>").rcpt("<07700900101@mms.two.example>").reply.code == 250


def test_a_bounce_home_may_be_for_either_identity() -> None:
    for domain in ("mms.one.example", "mms.two.example"):
        assert two("192.0.2.1").mail("<>").rcpt(f"<{TOKEN}@{domain}>").reply.code == 250
