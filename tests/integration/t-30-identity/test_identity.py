"""Who a client is, on real Postfix with real TLS and real SASL: address, certificate and login, alone and together.

Every row goes over the wire and through `mm4 explain`, which has to say the same.
"""

from __future__ import annotations

import json
import re
import smtplib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from authority import Authority, Dovecot
from harness import LOCAL, SOUTH, STRANGER, Dialogue, Link, Mail, exchange, forward_req, mm4, new_ids, talk, wait_for
from mm4.cli.explain import explain
from mm4.cli.trace import trace

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
EAST, WEST = "127.0.0.23", SOUTH
OURS = "+491511000001/TYPE=PLMN@mms.gw.example"
NAMES = ("mmsc", "north", "south", "east", "west")
SYSTEM = {name: f"system-user@mms.{name}.example" for name in NAMES}
SUBSCRIBER = {"north": "+447700900002", "south": "+33600000002", "east": "+34600000002", "west": "+35600000002"}
RECIPIENT = {"north": "+447700900101", "south": "+33600000101", "east": "+34600000101", "west": "+35600000101"}


@dataclass(frozen=True)
class Who:
    """What a client shows: where it calls from, its certificate by name, its login."""

    source: str = LOCAL
    certificate: str | None = None
    login: str | None = None
    tls: bool = True


CLIENTS = {
    "mmsc": Who(tls=False),
    "north": Who(certificate="north"),
    "south": Who(login="south"),
    "east": Who(EAST, "east", "east"),
    "west": Who(WEST, tls=False),
}


# The authority vouches for these, so that Postfix tells their subject.
TRUSTED = {"north": "mm4.north.example", "north-again": "mm4.north.example", "stray": "mm4.stray.example"}


@dataclass
class World:
    """The gateway, its peers' next hops, and what makes certificates."""

    link: Link
    authority: Authority
    pins: dict[str, str]
    sasl: Path

    def connect(self, who: Who) -> smtplib.SMTP:
        host, _, port = self.link.gateway.smtp.rpartition(":")
        client = smtplib.SMTP(host, int(port), timeout=120, source_address=(who.source, 0))
        if who.tls:
            client.starttls(context=self.authority.context(who.certificate))
        if who.login is not None:
            client.login(who.login, f"secret of {who.login}")
        return client

    def send(self, who: Who, message: bytes, mail_from: str, rcpt: str = OURS) -> Dialogue:
        with self.connect(who) as client:
            return talk(client, message, mail_from=mail_from, rcpt=(rcpt,))

    def explain(self, who: Who, message: bytes, mail_from: str, rcpt: str = OURS) -> dict[str, object]:
        more = ["--sasl", who.login] if who.login else []
        if who.certificate:
            more += ["--tls-fingerprint", self.pins[who.certificate]]
        if who.certificate in TRUSTED:
            more += ["--tls-subject", TRUSTED[who.certificate]]
        done = CliRunner().invoke(
            explain, ["--json", "--config", self.link.gateway.config, "--client", who.source, "--mail-from", mail_from,
                      "--rcpt", rcpt, *more, "-"], input=message,
        )  # fmt: skip
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("certs")
    authority = Authority(folder)
    authority.self_signed("gateway", "mms.gw.example")
    pins = {
        "north": authority.issue("north", "mm4.north.example"),
        "north-again": authority.issue("north-again", "mm4.north.example"),
        "stray": authority.issue("stray", "mm4.stray.example"),
        "east": authority.self_signed("east", "mm4.east.example"),
        "self-made": authority.self_signed("self-made", "mm4.north.example"),
    }
    authority.bundle("vouching.pem")
    logins = {name: f"secret of {name}" for name in ("south", "east", "stray")}
    with Dovecot(logins) as dovecot:
        places = {
            "north_pin": pins["north"], "east_pin": pins["east"], "certs": str(folder), "sasl": str(dovecot.socket),
        }  # fmt: skip
        with Link(YAML, NAMES, **places) as link:
            yield World(link, authority, pins, dovecot.socket)


def request(name: str, ids: tuple[str, str], sender: str | None = None, **more: str) -> bytes:
    sender = sender or SUBSCRIBER.get(name, "+491511000009")
    return forward_req(
        sender=sender, ids=(more.get("transaction", ids[0]), more.get("message", ids[1])),
        system=SYSTEM[name], drop=("Sender",),
    )  # fmt: skip


# -- who is it

ROWS = [
    # certificate
    pytest.param(Who(certificate="north"), "north", id="a pinned certificate, from our own side's address"),
    pytest.param(Who(STRANGER, "north"), "north", id="a pinned certificate, from anywhere"),
    pytest.param(Who(WEST, "north"), "north", id="a certificate goes before a network"),
    pytest.param(Who(STRANGER, "north-again"), None, id="the right CN, the right authority, another certificate"),
    pytest.param(Who(LOCAL, "north-again"), "local", id="the same from our own side's address"),
    pytest.param(Who(STRANGER, "self-made"), None, id="the right CN, made by oneself"),
    pytest.param(Who(WEST, "stray"), "west", id="a certificate of nobody's, from a network that is known"),
    pytest.param(Who(WEST, "self-made"), "west", id="the right CN, made by oneself, from another's network"),
    pytest.param(Who(STRANGER, "stray"), None, id="a certificate of nobody's"),
    pytest.param(Who(EAST, "east"), None, id="network and certificate, no login"),
    # login
    pytest.param(Who(login="south"), "south", id="a login, from our own side's address"),
    pytest.param(Who(STRANGER, login="south"), "south", id="a login, from anywhere"),
    pytest.param(Who(WEST, login="south"), "south", id="a login goes before a network"),
    pytest.param(Who(certificate="north", login="south"), "south", id="a login goes before a certificate"),
    pytest.param(Who(STRANGER, login="stray"), None, id="a login of nobody's"),
    pytest.param(Who(WEST, login="stray"), "west", id="a login that no entry asks for, from a network that is known"),
    pytest.param(Who(EAST, login="east"), None, id="network and login, no certificate"),
    # all together
    pytest.param(Who(EAST, "east", "east"), "east", id="network, certificate and login"),
    pytest.param(Who(STRANGER, "east", "east"), None, id="certificate and login, another network"),
    pytest.param(Who(EAST, "north", "east"), "north", id="another peer's certificate"),
    # network
    pytest.param(Who(WEST, tls=False), "west", id="a network, in clear"),
    pytest.param(Who(WEST), "west", id="a network, by TLS"),
    pytest.param(Who(tls=False), "local", id="our own side"),
    pytest.param(Who(), "local", id="our own side, by TLS"),
    pytest.param(Who(STRANGER), None, id="a stranger, by TLS"),
    pytest.param(Who(STRANGER, tls=False), None, id="a stranger, in clear"),
]


@pytest.mark.parametrize(("who", "name"), ROWS)
def test_who_a_client_is(world: World, who: Who, name: str | None) -> None:
    gateway, ids = world.link.gateway, new_ids()
    rcpt = f"{RECIPIENT['north']}/TYPE=PLMN@mms.north.example" if name == "local" else OURS
    named = name if name in SUBSCRIBER else "mmsc" if name == "local" else "north"
    message = request(named, ids)
    mail_from = f"system-user@mms.{'gw' if named == 'mmsc' else named}.example"
    before = len(gateway.log())
    dialogue = world.send(who, message, mail_from, rcpt)
    explained = world.explain(who, message, mail_from, rcpt)
    if name is None:
        assert dialogue.code == 550, dialogue
        gateway.wait_log(f"disconnect from .*{who.source}")
        assert explained["action"] == "reject"
        assert str(explained["smtp"]).startswith(str(dialogue.code)), (explained["smtp"], dialogue)
        new = gateway.log()[before:].splitlines()
        assert dialogue.mail[0] == 550
        assert len([line for line in new if "refused=" in line]) == 1
        return
    assert dialogue.code == 250, dialogue
    assert (explained["peer"], explained["action"]) == (name, "accept")
    (verdict,) = gateway.verdicts(dialogue.queue_id)
    assert f" peer={name} " in verdict
    assert "identity=" not in verdict


def test_a_stranger_is_told_at_mail_and_one_line_says_what_he_showed(world: World) -> None:
    before = len(world.link.gateway.log())
    dialogue = world.send(Who(STRANGER, login="stray"), request("north", new_ids()), "x@mms.north.example")
    assert dialogue.mail[0] == 550
    world.link.gateway.wait_log(f"client={STRANGER} login=stray peer=stranger refused=mail")
    lines = world.link.gateway.log()[before:].splitlines()
    assert len([line for line in lines if "refused=" in line]) == 1


@pytest.mark.parametrize("who", [Who(STRANGER), Who(STRANGER, "stray"), Who(certificate="north"), Who(login="south")])
def test_who_only_says_hello_is_no_message_and_no_alarm(world: World, who: Who) -> None:
    gateway = world.link.gateway
    before = len(gateway.log())
    with world.connect(who) as client:
        for command in ("EHLO keepalive.example", "NOOP", "RSET", "NOOP"):
            assert client.docmd(command)[0] == 250
    wait_for(lambda: "disconnect from" in gateway.log()[before:], "the end of the connection")
    new = gateway.log()[before:].splitlines()
    assert [line for line in new if ("client=" in line and "refused" in line) or "reject" in line] == []


def test_a_password_does_not_go_in_clear_and_a_wrong_one_is_nobody(world: World) -> None:
    assert exchange(world.link.gateway.smtp, STRANGER, "EHLO a.example", "AUTH PLAIN AHNvdXRoAHg=")[1][:3] in ("503", "538", "530")
    with world.connect(Who(STRANGER)) as client:
        client.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("south", "secret of north")
        assert client.docmd("MAIL FROM:<system-user@mms.south.example>")[0] == 550


def test_no_session_is_resumed_so_that_trust_ends_with_the_file(world: World) -> None:
    context = world.authority.context("north")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    for _ in range(2):
        with world.connect(Who(STRANGER, tls=False)) as client:
            client.ehlo()
            assert client.docmd("STARTTLS")[0] == 220
            assert client.sock is not None
            client.sock = secured = context.wrap_socket(client.sock, session=session)
            client.file = None
            assert not secured.session_reused
            session = secured.session
            assert client.ehlo()[0] == 250


def test_the_check_knows_the_line_that_asks_for_certificates_and_logins(world: World) -> None:
    gateway = world.link.gateway

    def found(name: str = "identity") -> dict[str, Any]:
        done = mm4("check", "--json", "--config", gateway.config, check=False)
        checked: dict[str, dict[str, Any]] = {f["check"]: f for f in map(json.loads, done.stdout.splitlines())}
        return checked[name]

    assert found("fingerprints.sock")["ok"], found("fingerprints.sock")

    assert found()["ok"], found()
    line = f"{gateway.smtp}/inet"
    gateway.postfix("postconf", "-P", f"{line}/smtpd_tls_ask_ccert=no")
    try:
        assert not found()["ok"]
        assert found()["fix"] == "write there: -o { smtpd_tls_ask_ccert = yes }"
    finally:
        gateway.postfix("postconf", "-P", f"{line}/smtpd_tls_ask_ccert=yes")


def test_while_a_fingerprint_cannot_be_told_a_client_is_for_later(world: World) -> None:
    gateway, line = world.link.gateway, f"{world.link.gateway.smtp}/inet/smtpd_sender_restrictions"
    (question,) = gateway.postfix("postconf", "-hP", line).split("\n")[:1]
    gateway.postfix("postconf", "-P", f"{line}=")
    try:
        gateway.postfix("postfix", "reload")

        def told() -> list[int]:
            clients = (CLIENTS["north"], Who(STRANGER), CLIENTS["west"])
            return [world.send(who, request("north", new_ids()), SYSTEM["north"]).mail[0] for who in clients]

        # An old smtpd may serve one more client.
        wait_for(lambda: told() == [451, 451, 250], "451 to clients with TLS")
        gateway.wait_log("did not say the certificate of 127.0.0.99.* mm4 check")
    finally:
        gateway.postfix("postconf", "-P", f"{line}={question}")
        gateway.postfix("postfix", "reload")
    wait_for(lambda: told() == [250, 550, 250], "every client known again")


# -- subjects alone

SUBJECTS = [
    pytest.param(Who(STRANGER, "north"), "north", id="the CN"),
    pytest.param(Who(STRANGER, "north-again"), "north", id="another certificate of the same authority"),
    pytest.param(Who(STRANGER, "self-made"), None, id="the CN, made by oneself"),
    pytest.param(Who(STRANGER, "stray"), None, id="another CN"),
    pytest.param(Who(WEST, "stray"), "west", id="another CN, from a network that is known"),
    pytest.param(Who(WEST, "self-made"), "west", id="the CN, made by oneself, from another's network"),
]


def test_by_subject_any_certificate_counts_that_the_authority_vouches_for(world: World) -> None:
    yaml = re.sub(r", fingerprint: \S+\"", "", YAML).replace('fingerprint: "@east_pin@"', "subject: mm4.east.example")
    yaml = yaml.replace("tls: {certificate", "tls: {level: encrypt, certificate")
    places = {"certs": str(world.authority.folder), "sasl": str(world.sasl)}
    with Link(yaml, NAMES, **places) as link:
        other = replace(world, link=link)
        for row in SUBJECTS:
            who, name = row.values
            message = request(name or "north", new_ids())
            mail_from = SYSTEM[name or "north"]
            dialogue, explained = other.send(who, message, mail_from), other.explain(who, message, mail_from)
            assert dialogue.code == (250 if name else 550), (row.id, dialogue)
            assert (explained["peer"], explained["action"]) == (name, "accept" if name else "reject"), row.id
        replies = exchange(link.gateway.smtp, WEST, "EHLO a.example", "MAIL FROM:<system-user@mms.west.example>")
        assert replies[1].startswith("530 5.7.0"), replies
        # Our own commands speak TLS where nothing goes in clear.
        sent = mm4("send", "--config", link.gateway.config, "--from", "+491511000001", "--to", RECIPIENT["west"], "--text", "Hi")
        assert sent.returncode == 0
        link.west.wait()


# -- what it may call itself


def status(mail: Mail) -> str | None:
    return mail.header("X-Mms-Request-Status-Code")


def test_a_number_of_ours_from_outside_is_refused(world: World) -> None:
    ids = new_ids()
    spoof = request("west", ids, sender="+491511000777")
    assert world.send(CLIENTS["west"], spoof, SYSTEM["west"]).code == 250  # the RES says no
    (answer,) = world.link.west.wait_for(ids[1])
    assert status(answer) == "Error-service-denied"
    line = world.link.gateway.wait_log(f"message_id={ids[1]} .*answer=Error-service-denied")
    assert "number of ours" in line
    world.link.gateway.quiet()
    assert world.link.mmsc.carrying(ids[1]) == []


def test_one_that_was_ported_out_may_send_from_its_peer(world: World) -> None:
    ids, other = new_ids(), new_ids()
    assert world.send(CLIENTS["south"], request("south", ids, sender="+491511000007"), SYSTEM["south"]).code == 250
    world.link.mmsc.wait_for(ids[1])
    assert world.send(CLIENTS["south"], request("south", other, sender="+491511999999"), SYSTEM["south"]).code == 250
    (answer,) = world.link.south.wait_for(other[1])
    assert status(answer) == "Error-service-denied"


def test_a_strict_peer_is_held_to_its_domains(world: World) -> None:
    ids = new_ids()
    message = request("east", ids).replace(b"From: +34600000002/TYPE=PLMN", b"From: +34600000002@mms.north.example")
    assert world.send(CLIENTS["east"], message, SYSTEM["east"]).code == 250
    (answer,) = world.link.east.wait_for(ids[1])
    assert status(answer) == "Error-service-denied"
    assert world.send(CLIENTS["east"], request("east", new_ids()), SYSTEM["north"]).mail[0] == 550


def test_a_hub_is_let_pass_and_the_log_says_what_lies_outside(world: World) -> None:
    ids = new_ids()
    message = request("west", ids).replace(b"From: +35600000002/TYPE=PLMN", b"From: +35600000002@mms.other.example")
    assert world.send(CLIENTS["west"], message, "+35600000002@mms.third.example").code == 250
    line = world.link.gateway.wait_log(f"message_id={ids[1]} ")
    assert " identity=outside:MAIL-FROM,From " in line
    world.link.mmsc.wait_for(ids[1])


# -- one peer's are no other's


PAIRS = [("north", "south"), ("south", "north"), ("east", "west"), ("west", "north")]


def sent_to(world: World, name: str) -> Mail:
    """A message of ours as this peer got it, with a RES and a report asked for."""
    ids = new_ids("mms.gw.example")
    message = request("mmsc", ids).replace(b"X-Mms-Delivery-Report: No", b"X-Mms-Delivery-Report: Yes")
    rcpt = f"{RECIPIENT[name]}/TYPE=PLMN@mms.{name}.example"
    assert world.send(CLIENTS["mmsc"], message, "+491511000009@mms.gw.example", rcpt).code == 250
    hop = getattr(world.link, name)
    (mail,) = hop.wait_for(ids[1])
    return mail  # type: ignore[no-any-return]


def states(world: World, mail: Mail) -> list[str]:
    identifier = (mail.header("X-Mms-Message-ID") or "").strip('"')
    done = CliRunner().invoke(trace, ["--config", world.link.gateway.config, "--json", identifier])
    return [t["state"] for t in json.loads(done.stdout)["transactions"]]


def headers(**values: str | None) -> bytes:
    lines = {"X-Mms-3GPP-MMS-Version": "5.5.0", "Date": "Thu, 12 Nov 2026 02:28:01 +0200"}
    lines |= {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n"


@pytest.mark.parametrize(("owner", "other"), PAIRS)
def test_one_peer_answers_for_no_other(world: World, owner: str, other: str) -> None:
    mail = sent_to(world, owner)
    answer = headers(
        Sender=SYSTEM[other], To="system-user@mms.gw.example", X_Mms_Message_Type="MM4_forward.RES",
        X_Mms_Transaction_ID=mail.header("X-Mms-Transaction-ID"), X_Mms_Message_ID=mail.header("X-Mms-Message-ID"),
        X_Mms_Request_Status_Code="Ok",
    )  # fmt: skip
    assert world.send(CLIENTS[other], answer, SYSTEM[other], "system-user@mms.gw.example").code == 250
    world.link.gateway.wait_log(f" peer={other} .*answers nothing that we sent")
    assert states(world, mail) == ["waiting"]
    # The very same from the one who was asked counts, so the ids were right.
    assert world.send(CLIENTS[owner], answer, SYSTEM[owner], "system-user@mms.gw.example").code == 250
    assert states(world, mail) == ["answered"]


@pytest.mark.parametrize(("owner", "other"), PAIRS)
def test_one_peer_reports_for_no_other(world: World, owner: str, other: str) -> None:
    mail = sent_to(world, owner)
    transaction = new_ids()[0]
    report = headers(
        From=f"{RECIPIENT[owner]}/TYPE=PLMN", To="+491511000009/TYPE=PLMN", Sender=SYSTEM[other],
        X_Mms_Message_Type="MM4_delivery_report.REQ", X_Mms_Transaction_ID=transaction,
        X_Mms_Message_ID=mail.header("X-Mms-Message-ID"), X_Mms_MM_Status_Code="Retrieved",
    )  # fmt: skip
    to = "+491511000009/TYPE=PLMN@mms.gw.example"
    refused = world.send(CLIENTS[other], report, SYSTEM[other], to)
    assert refused.code == 550
    assert world.link.mmsc.carrying(transaction) == []
    named = report.replace(SYSTEM[other].encode(), SYSTEM[owner].encode())
    assert world.send(CLIENTS[owner], named, SYSTEM[owner], to).code == 250
    world.link.mmsc.wait_for(transaction)


@pytest.mark.parametrize(("owner", "other"), PAIRS)
def test_the_same_ids_from_another_peer_are_another_message(world: World, owner: str, other: str) -> None:
    ids = new_ids()
    for name in (owner, other, owner):
        assert world.send(CLIENTS[name], request(name, ids), SYSTEM[name]).code == 250
        world.link.gateway.quiet()
    assert len(world.link.mmsc.carrying(ids[1])) == 2
    assert len(getattr(world.link, owner).carrying(ids[1])) == 2  # the RES, and the same one again
    assert len(getattr(world.link, other).carrying(ids[1])) == 1
    assert [r for mail in getattr(world.link, other).carrying(ids[1]) for r in mail.rcpt] == [SYSTEM[other]]


@pytest.mark.parametrize(("owner", "other"), PAIRS)
def test_one_peer_returns_no_mail_of_another(world: World, owner: str, other: str) -> None:
    mail = sent_to(world, owner)
    copy = mail.content.partition(b"\r\n\r\n")[0]
    identifier = (mail.header("X-Mms-Message-ID") or "").strip('"')
    for name in (other, owner):
        bounce = (
            f"X-Mm4-Side: {owner} 0000000000\r\nFrom: MAILER-DAEMON@mms.{name}.example\r\nTo: {mail.mail_from}\r\n"
            "Subject: Undelivered\r\nMIME-Version: 1.0\r\n"
            'Content-Type: multipart/report; report-type=delivery-status; boundary="b1"\r\n\r\n'
            "--b1\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; a.example\r\n\r\n"
            f"Final-Recipient: rfc822;{mail.rcpt[0]}\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n"
            "--b1\r\nContent-Type: text/rfc822-headers\r\n\r\n"
        ).encode() + copy + b"\r\n\r\n--b1--\r\n"  # fmt: skip
        assert world.send(CLIENTS[name], bounce, "", mail.mail_from).code == 250
        world.link.gateway.quiet()
        expected = ["waiting"] if name == other else ["bounced"]
        wait_for(lambda: [s for s in states(world, mail) if s in ("waiting", "bounced")][:1] == expected, f"{expected}")  # noqa: B023
    assert [file for file in world.link.gateway.unclaimed() if identifier in file.read_text()]
