"""Several operators on one host: which of them acts, whose peers are taken, and who may send as whom."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fake import Gateway, Headers, Ledger, Seen, req
from mm4.gateway.configfile import parse_config
from mm4.gateway.dispositions import disposition
from mm4.gateway.identities import identity_of
from mm4.gateway.names import strip_via
from mm4.gateway.notices import notice_of
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Action
from mm4.protocol.transaction import Answer, Direction, Message, Transaction

CONFIG = """\
local:
  - domain: mms.one.example
    system_address: system-user@mms.one.example
    numbers: ["+491511"]
    clients: [127.0.0.1/32, 127.0.0.9/32]
    deliver_to: "{number}@mmsc.one.example"
    next_hop: "[127.0.0.1]:2601"
  - domain: mms.two.example
    system_address: sys@mms.two.example
    numbers: ["+491512"]
    clients: [127.0.0.2/32, 127.0.0.9/32]
    deliver_to: "{number}@mmsc.two.example"
    next_hop: "[127.0.0.1]:2602"
peers:
  north: {domains: [mms.north.example], networks: [192.0.2.1/32], next_hop: "[192.0.2.1]:25", local: mms.one.example}
  south: {domains: [mms.south.example], networks: [192.0.2.2/32], next_hop: "[192.0.2.2]:25", local: [mms.two.example]}
  both: {domains: [mms.both.example], networks: [192.0.2.3/32], next_hop: "[192.0.2.3]:25", transit: yes}
routes:
  - {prefix: "+4477", peer: north}
  - {prefix: "+4477", peer: south}
  - {prefix: "+33", peer: both}
"""

ONE, TWO, ABROAD, SHARED = "+491511000001", "+491512000001", "+447700900002", "+33600000001"
FIRST, SECOND, APPLICATION = "127.0.0.1", "127.0.0.2", "127.0.0.9"
NORTH, SOUTH, BOTH = "192.0.2.1", "192.0.2.2", "192.0.2.3"
DOMAINS = {ONE: "mms.one.example", TWO: "mms.two.example"}
SYSTEMS = {ONE: "system-user@mms.one.example", TWO: "sys@mms.two.example"}


def outward(client: str, sender: str, to: str, *, mail_from: str | None = None, **change: str | None) -> Seen:
    """A message of a client of ours as far as RCPT, and to its end where that was taken."""
    seen = Gateway(CONFIG).peer(client).mail(mail_from or f"<{sender}/TYPE=PLMN@mms.one.example>")
    seen.rcpt(f"<{to}/TYPE=PLMN@mms.two.example>")
    if seen.reply.positive:
        lines: Headers = req(**{"From": f"{sender}/TYPE=PLMN", "Sender": None, "X_Mms_Originator_System": None, **change})
        seen.headers(lines).end()
    return seen


def inward(client: str, domain: str, to: str, ledger: Ledger | None = None) -> Seen:
    seen = Gateway(CONFIG, ledger).peer(client).mail(f"<{ABROAD}/TYPE=PLMN@{domain}>")
    seen.rcpt(f"<{to}/TYPE=PLMN@mms.one.example>")
    if seen.reply.positive:
        seen.headers(req(X_Mms_Originator_System=f"system@{domain}", Sender=None)).end()
    return seen


@pytest.mark.parametrize("client", [FIRST, APPLICATION])
@pytest.mark.parametrize(("to", "peer"), [(ABROAD, "north"), (SHARED, "both")])
def test_the_first_operators_message_goes_to_its_peers_in_its_name(client: str, to: str, peer: str) -> None:
    seen = outward(client, ONE, to)
    record = seen.verdict.record
    assert record is not None
    assert (record.peer, seen.verdict.mail_from) == (peer, f"{ONE}/TYPE=PLMN@mms.one.example")
    assert ("X-Mms-Originator-System", SYSTEMS[ONE].encode()) in seen.edited()


@pytest.mark.parametrize("client", [SECOND, APPLICATION])
@pytest.mark.parametrize(("to", "peer"), [(ABROAD, "south"), (SHARED, "both")])
def test_the_seconds_goes_to_its_own(client: str, to: str, peer: str) -> None:
    seen = outward(client, TWO, to)
    record = seen.verdict.record
    assert record is not None
    assert (record.peer, seen.verdict.mail_from) == (peer, f"{TWO}/TYPE=PLMN@mms.two.example")
    assert ("X-Mms-Originator-System", SYSTEMS[TWO].encode()) in seen.edited()


@pytest.mark.parametrize(
    ("client", "sender", "mail_from"),
    [
        (FIRST, TWO, None),
        (SECOND, ONE, None),
        # The header counts, whatever the envelope says.
        (FIRST, TWO, f"<{ONE}/TYPE=PLMN@mms.one.example>"),
        # Nobody's number here.
        (FIRST, "+447700900199", None),
        (APPLICATION, "+447700900199", None),
    ],
)
def test_no_client_sends_as_a_number_of_another(client: str, sender: str, mail_from: str | None) -> None:
    seen = outward(client, sender, SHARED, mail_from=mail_from)
    assert seen.verdict.action is Action.REJECT
    assert (seen.reply.code, seen.reply.enhanced) == (550, "5.7.1")
    assert seen.verdict.reason is not None
    assert sender in seen.verdict.reason


def test_nor_in_its_domain() -> None:
    seen = outward(FIRST, ONE, SHARED, From="boss@mms.two.example")
    assert (seen.verdict.action, seen.reply.code) == (Action.REJECT, 550)
    assert outward(FIRST, ONE, SHARED, From="boss@mms.one.example").verdict.action is Action.ACCEPT


def test_where_no_from_stands_the_envelope_counts() -> None:
    assert outward(FIRST, ONE, SHARED, From=None, mail_from=f"<{TWO}@x.example>").reply.code == 550
    assert outward(FIRST, ONE, SHARED, From=None).reply.code == 250


def test_one_operator_alone_asks_nobody() -> None:
    alone = CONFIG.partition("  - domain: mms.two.example")[0] + "peers:" + CONFIG.partition("peers:")[2]
    alone = alone.replace(", local: [mms.two.example]", "").replace("127.0.0.9/32", "127.0.0.2/32")
    seen = Gateway(alone).peer(SECOND).mail("<a@mms.one.example>").rcpt(f"<{SHARED}@mms.one.example>")
    assert seen.headers(req(From="+447700900199/TYPE=PLMN", Sender=None)).end().reply.code == 250


def test_a_client_of_both_whose_envelope_tells_the_wrong_one_is_refused_at_the_end() -> None:
    """RCPT went to a peer of the first operator; the message is the second's."""
    seen = outward(APPLICATION, TWO, ABROAD, mail_from=f"<{ONE}/TYPE=PLMN@mms.one.example>")
    assert (seen.reply.code, seen.verdict.reason) == (550, "north is no peer of mms.two.example")


@pytest.mark.parametrize(("client", "domain", "number"), [(NORTH, "mms.north.example", ONE), (SOUTH, "mms.south.example", TWO),
                                                          (BOTH, "mms.both.example", ONE), (BOTH, "mms.both.example", TWO)])  # fmt: skip
def test_the_number_names_the_operator_that_answers(client: str, domain: str, number: str) -> None:
    seen = inward(client, domain, number)
    (answer,) = seen.verdict.answers
    assert (answer.status, answer.mail_from) == ("Ok", SYSTEMS[number])
    assert f"@{DOMAINS[number]}>" in answer.message.decode()
    assert seen.verdict.mail_from is not None
    assert seen.verdict.mail_from.endswith(f"@{DOMAINS[number]}")


@pytest.mark.parametrize(("client", "domain", "number"), [(NORTH, "mms.north.example", TWO), (SOUTH, "mms.south.example", ONE)])
def test_a_peer_of_one_operator_finds_no_number_of_the_other(client: str, domain: str, number: str) -> None:
    assert inward(client, domain, number).reply.code == 550


def test_between_operators_mail_stays_in_the_house() -> None:
    seen = outward(FIRST, ONE, TWO)
    assert next(address for address, _ in seen.verdict.added) == f"{TWO}@mmsc.two.example"
    assert seen.verdict.mail_from is not None
    assert seen.verdict.mail_from.endswith("@mms.two.example")


def test_what_passes_through_goes_in_a_name_that_the_next_peer_knows() -> None:
    seen = Gateway(CONFIG).peer(BOTH).mail(f"<{SHARED}/TYPE=PLMN@mms.both.example>")
    seen.rcpt(f"<{ABROAD}/TYPE=PLMN@mms.two.example>")
    lines = req(From=f"{SHARED}/TYPE=PLMN", Sender=None, X_Mms_Originator_System="system@mms.both.example")
    seen.headers(lines).end()
    record = seen.verdict.record
    assert record is not None
    assert record.peer == "north"
    assert ("X-Mms-Originator-System", SYSTEMS[ONE].encode()) in seen.edited()


@pytest.mark.parametrize(("domains", "taken"), [(("mms.one.example", "mms.two.example"), True), (("mms.two.example", "MMS.two.example"), False)])
def test_a_message_may_come_home_to_each_operator_once(domains: tuple[str, str], taken: bool) -> None:
    seen = Gateway(CONFIG).peer(BOTH).mail(f"<{ABROAD}/TYPE=PLMN@mms.both.example>").rcpt(f"<{ONE}@mms.one.example>")
    lines = req(X_Mms_Originator_System="system@mms.both.example", Sender=None, X_Mms_Ack_Request="No")
    lines += [("X-Mms-Previously-sent-by", f"{i}, {ONE}/TYPE=PLMN@{domain}".encode()) for i, domain in enumerate(domains)]
    assert (seen.headers(lines).end().verdict.action is Action.ACCEPT) is taken


def test_a_violation_is_answered_by_the_operator_that_was_written_to() -> None:
    seen = Gateway(CONFIG).peer(BOTH).mail("<system@mms.both.example>").rcpt(f"<{TWO}/TYPE=PLMN@mms.two.example>")
    seen.headers(req(From="nobody at all", Sender=None, X_Mms_Originator_System="system@mms.both.example")).end()
    (answer,) = seen.verdict.answers
    assert (answer.status, answer.mail_from) == ("Error-sending-address-unresolved", SYSTEMS[TWO])


def test_an_mmsc_releases_no_res_of_another_operator() -> None:
    ledger = Ledger()
    answer = Answer("system@mms.both.example.via-both.mm4.invalid", SYSTEMS[TWO], "MM4_forward.RES", "Ok",
                    b"X-Mms-Request-Status-Code: Ok\r\n\r\n")  # fmt: skip
    told = Transaction(transaction_id="t-9", message_id="m-9", originator=SHARED, recipient=TWO)
    message = Gateway(CONFIG).runtime.clock()
    ledger.messages.append(
        Message("f" * 32, Direction.IN, "both", "MM4_forward.REQ", "q", "gw", message, (told,), answer=answer,
                source="both", reply_to="system@mms.both.example")
    )  # fmt: skip

    def respond(client: str, domain: str) -> Seen:
        seen = Gateway(CONFIG, ledger).peer(client).mail("<>").rcpt("<system@mms.both.example>")
        lines = [
            ("X-Mms-Message-Type", b"MM4_forward.RES"), ("X-Mms-3GPP-MMS-Version", b"5.5.0"),
            ("X-Mms-Transaction-ID", b"t-9"), ("X-Mms-Message-ID", b"m-9"), ("X-Mms-Request-Status-Code", b"Ok"),
            ("From", f"system@{domain}".encode()), ("To", b"system@mms.both.example"),
        ]  # fmt: skip
        return seen.headers(lines).end()

    assert respond(FIRST, "mmsc.one.example").verdict.action is Action.DISCARD
    assert respond(SECOND, "mmsc.two.example").verdict.answers


@pytest.mark.parametrize(
    ("peer", "reply_to", "told"),
    [
        ("north", None, "12345@mmsc.one.example"),
        ("south", None, "12345@mmsc.two.example"),
        ("both", None, None),
        ("both", "mmsc@mmsc.two.example", "12345@mmsc.two.example"),
    ],
)
def test_of_a_short_codes_message_only_an_operator_that_is_certain_is_told(
    peer: str, reply_to: str | None, told: str | None
) -> None:
    gateway = Gateway(CONFIG)
    router = Router(parse_config(CONFIG, "mm4.yaml"))
    transaction = Transaction(
        transaction_id="t", message_id="m@mms.one.example", originator="12345", recipient=ABROAD, delivery_report=True
    )
    now = gateway.runtime.clock()
    message = Message("a" * 32, Direction.OUT, peer, "MM4_forward.REQ", "q", "gw", now - timedelta(hours=1), (transaction,),
                      source="local", reply_to=reply_to)  # fmt: skip
    failed = disposition("failed", "5.1.1", relayed="Indeterminate", mailbox=False, late=False)
    assert failed is not None
    notice = notice_of(message, transaction, failed, "no such number", router, now, "gw")
    assert (notice and strip_via(notice.mail.rcpt_to)) == told


@pytest.mark.parametrize(("text", "domain"), [(ONE, "mms.one.example"), (TWO, "mms.two.example"), (ABROAD, "mms.one.example"),
                                              ("sys@mms.two.example", "mms.two.example"), ("12345", "mms.one.example")])  # fmt: skip
def test_an_address_of_ours_names_its_operator(text: str, domain: str) -> None:
    assert identity_of(text, Router(parse_config(CONFIG, "mm4.yaml"))).domain == domain
