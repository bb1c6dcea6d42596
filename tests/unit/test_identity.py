"""Who a client is, by what it shows; what a peer may call itself; and what cannot be told apart is told at load."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from fake import CLIENTS, CONFIG, Gateway, Headers, LogLines, Seen, req
from mm4.gateway.config import Config
from mm4.gateway.configfile import parse_config
from mm4.gateway.identity import Client
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Action
from mm4.postfix import fingerprints, maps
from mm4.postfix.checks import options
from mm4.postfix.fingerprints import Fingerprints, fingerprint_of_client
from mm4.protocol.errors import ConfigError, InternalError

ONE, TWO = ":".join(["AB"] * 32), ":".join(["0C"] * 32)
DENIED = "Error-service-denied"

YAML = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  numbers: ["+491511"]
  clients: [127.0.0.0/8]
  deliver_to: "{number}@mmsc.gw.example"
  next_hop: "[127.0.0.1]:2600"
peers:
  net: {domains: [mms.net.example], networks: [192.0.2.0/24], next_hop: "[192.0.2.1]"}
  cert: {domains: [mms.cert.example], certificates: [{subject: Cert.Example}], next_hop: "[192.0.2.2]"}
  login: {domains: [mms.login.example], logins: [login, second], next_hop: "[192.0.2.3]"}
  net-login: {domains: [mms.nl.example], networks: [192.0.2.0/24], logins: [nl], next_hop: "[192.0.2.4]"}
  net-cert: {domains: [mms.nc.example], networks: [192.0.2.0/25], certificates: [{subject: nc}], next_hop: "[192.0.2.5]"}
  all: {domains: [mms.all.example], networks: [198.51.100.7/32], certificates: [{subject: cert.example}], logins: [login], next_hop: "[192.0.2.6]"}
service:
  tls: {certificate: gw.pem, ca: ca.pem}
  sasl: {path: private/auth}
"""
ROUTER = Router(parse_config(YAML, "/etc/mm4/mm4.yaml"))


@pytest.mark.parametrize(
    ("address", "subject", "login", "side"),
    [
        ("192.0.2.1", None, None, "net"),
        ("192.0.2.1", "other", "other", "net"),
        ("192.0.2.1", None, "nl", "net-login"),
        ("198.51.100.1", None, "nl", None),
        ("192.0.2.1", "nc", None, "net-cert"),
        ("192.0.2.1", "NC", None, "net-cert"),
        ("192.0.2.200", "nc", None, "net"),
        ("198.51.100.1", "nc", None, None),
        ("192.0.2.1", "nc", "nl", "net-login"),
        ("192.0.2.1", "cert.example", None, "cert"),
        ("203.0.113.1", "CERT.example", None, "cert"),
        ("203.0.113.1", "cert.example.evil", None, None),
        ("203.0.113.1", "", "", None),
        ("127.0.0.1", "cert.example", None, "cert"),
        ("127.0.0.1", None, "login", "login"),
        ("127.0.0.1", None, "LOGIN", "local"),
        ("127.0.0.1", None, "second", "login"),
        ("127.0.0.1", None, None, "local"),
        ("203.0.113.1", "cert.example", "login", "login"),
        ("198.51.100.7", "cert.example", "login", "all"),
        ("198.51.100.7", "cert.example", None, "cert"),
        ("198.51.100.7", None, "login", "login"),
        ("198.51.100.7", None, None, None),
        ("2001:db8::1", None, "login", "login"),
        ("unknown", "cert.example", "login", None),
    ],
)
def test_everything_that_an_entry_names_has_to_hold_and_a_login_goes_first(
    address: str, subject: str | None, login: str | None, side: str | None
) -> None:
    found = ROUTER.side(Client(address, subject, login))
    assert (found.name if found else None) == side


def test_the_order_of_the_entries_does_not_matter() -> None:
    config = parse_config(YAML, "/etc/mm4/mm4.yaml")
    turned = Router(config.model_copy(update={"peers": dict(reversed(config.peers.items()))}))
    for address in ("192.0.2.1", "198.51.100.7", "127.0.0.1"):
        for subject in (None, "cert.example", "nc"):
            for login in (None, "login", "nl"):
                client = Client(address, subject, login)
                one, other = ROUTER.side(client), turned.side(client)
                assert (one and one.name) == (other and other.name), client


PINNED = YAML.replace("{subject: Cert.Example}", f"{{subject: Cert.Example, fingerprint: '{ONE}'}}").replace(
    "{subject: nc}", f"{{fingerprint: '{TWO.lower().replace(':', '')}'}}"
)


@pytest.mark.parametrize(
    ("address", "subject", "fingerprint", "side"),
    [
        ("203.0.113.1", "cert.example", ONE, "cert"),
        ("203.0.113.1", "cert.example", TWO, None),
        ("203.0.113.1", "cert.example", None, None),
        ("203.0.113.1", None, ONE, None),
        ("192.0.2.1", None, TWO, "net-cert"),
        ("192.0.2.1", "anything", TWO, "net-cert"),
        ("192.0.2.200", None, TWO, "net"),
        ("192.0.2.1", None, ONE, "net"),
        ("127.0.0.1", "cert.example", TWO, "local"),
    ],
)
def test_a_fingerprint_is_one_certificate_and_with_a_subject_both_hold(
    address: str, subject: str | None, fingerprint: str | None, side: str | None
) -> None:
    found = Router(parse_config(PINNED, "/etc/mm4/mm4.yaml")).side(Client(address, subject, None, fingerprint))
    assert (found.name if found else None) == side


def test_of_two_that_fit_the_one_with_the_fingerprint_is_the_clients() -> None:
    both = PINNED.replace("{subject: cert.example}", f"{{fingerprint: '{ONE}'}}").replace("{subject: Cert.Example, fingerprint: '" + ONE + "'}", "{subject: Cert.Example}")
    both = both.replace("logins: [login], next_hop", "next_hop").replace("networks: [198.51.100.7/32], ", "")
    router = Router(parse_config(both, "/etc/mm4/mm4.yaml"))
    for fingerprint, name in ((ONE, "all"), (TWO, "cert"), (None, "cert")):
        side = router.side(Client("203.0.113.1", "cert.example", None, fingerprint))
        assert side is not None
        assert side.name == name


WRONG = [
    ("networks: [192.0.2.0/24], next_hop", "next_hop", "peers.net.networks", "known by something: networks, certificates or logins"),
    ("logins: [nl]", "logins: []", "peers.net-login.networks[0]", "192.0.2.0/24 stands at peers.net.networks too"),
    ("networks: [192.0.2.0/25]", "networks: [198.51.100.7/32]", None, ""),
    ("logins: [nl]", "logins: [nl], certificates: [{subject: nc}]", None, ""),
    ("logins: [login, second]", "logins: [second], networks: [192.0.2.0/24]", None, ""),
    ("logins: [login, second]", "logins: [nl], networks: [192.0.2.0/24]", "peers.net-login.networks[0]", "and asks for no other login or certificate"),
    ("networks: [198.51.100.7/32], certificates: [{subject: cert.example}], ", "", "peers.all.logins", "login stands at peers.login.logins too: a client must name one peer; give each its own"),
    ("networks: [198.51.100.7/32], certificates: [{subject: cert.example}], logins: [login]", "certificates: [{subject: cert.example}]", "peers.all.certificates", "cert.example stands at peers.cert.certificates too"),
    ("  tls: {certificate: gw.pem, ca: ca.pem}\n", "", "peers.cert.certificates", "certificates need TLS: give service.tls"),
    ("  tls: {certificate: gw.pem, ca: ca.pem}\n", "", "peers.login.logins", "logins need TLS: give service.tls"),
    (", ca: ca.pem", "", "peers.cert.certificates", "service.tls.ca is missing"),
    ("  sasl: {path: private/auth}\n", "", "peers.login.logins", "service.sasl is missing"),
    ("certificate: gw.pem", "certificate: 'gw one.pem'", "service.tls.certificate", "Postfix cannot be told this path"),
    (", ca: ca.pem", ", ca: 'c$a.pem'", "service.tls.ca", "Postfix cannot be told this path"),
    ("private/auth", "'private auth'", "service.sasl.path", "master.cf cannot hold this path"),
    ("{subject: nc}", "{subject: nc, fingerprint: 'AB:CD'}", "peers.net-cert.certificates[0].fingerprint", "is no SHA-256 fingerprint"),
    ("{subject: nc}", f"{{fingerprint: '{TWO}'}}", None, ""),
    ("{subject: nc}", "{}", "peers.net-cert.certificates[0]", "a certificate is known by its fingerprint, its subject or both"),
    ("{subject: Cert.Example}", f"{{fingerprint: '{ONE}'}}, {{fingerprint: '{ONE}'}}", "peers.cert.certificates", "stands at peers.cert.certificates too"),
    ("{subject: nc}", "{subject: CN=nc}", "peers.net-cert.certificates[0].subject", "is no CN of a certificate"),
    ("logins: [nl]", "logins: ['n l']", "peers.net-login.logins[0]", "is no SASL login"),
    ("logins: [nl]", "logins: [nl], own_numbers: ['+44']", "peers.net-login.own_numbers[0]", "+44 is none of ours (local.numbers: +491511)"),
    ("logins: [nl]", "logins: [nl], own_numbers: ['+4915110', '+49', '+']", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "expected"), WRONG, ids=[f"{w[2]}: {w[1][:40]}" for w in WRONG])
def test_what_cannot_be_told_apart_or_never_works_is_an_error_at_load(
    old: str, new: str, key: str | None, expected: str
) -> None:
    assert old in YAML
    text = YAML.replace(old, new)
    if key is None:
        parse_config(text, "mm4.yaml")
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "mm4.yaml")
    assert [p for p in caught.value.problems if f": {key}: " in p and expected in p], caught.value.problems
    assert all(re.match(r"mm4\.yaml:\d+: ", problem) for problem in caught.value.problems)


# -- what Postfix is told


def option(config: Config, name: str) -> str | None:
    """The value of an option on the MM4 line."""
    lines = maps.master_lines(config, "service")
    end = next(i for i, line in enumerate(lines) if "mm4-submit" in line)
    found = re.search(rf"^  -o (?:\{{ )?{name} ?= ?(.*?)(?: \}})?$", "\n".join(lines[:end]), re.MULTILINE)
    return found[1] if found else None


def test_the_line_lets_in_who_may_show_a_certificate_or_a_login() -> None:
    plain, subjects, pins = (parse_config(text, "/etc/mm4/mm4.yaml") for text in (CONFIG, YAML, PINNED))
    relay = "smtpd_relay_restrictions"
    assert option(plain, relay) == "permit_mynetworks, reject"
    assert option(subjects, relay) == "permit_mynetworks, permit_tls_all_clientcerts, permit_sasl_authenticated, reject"
    assert option(pins, relay) == (
        "permit_mynetworks, permit_tls_all_clientcerts, check_ccert_access texthash:/etc/postfix/mm4/certificates, "
        "permit_sasl_authenticated, reject"
    )
    asked = {name: option(subjects, name) for name in ("smtpd_sender_restrictions", "smtpd_delay_reject")}
    assert asked == {"smtpd_sender_restrictions": "", "smtpd_delay_reject": "yes"}
    asked = {name: option(pins, name) for name in asked}
    question = "check_policy_service,unix:mm4/fingerprints.sock"
    assert asked == {"smtpd_sender_restrictions": question, "smtpd_delay_reject": "no"}


def test_tls_and_sasl_follow_from_the_yaml_and_are_left_alone_without() -> None:
    plain, config = parse_config(CONFIG, "/etc/mm4/mm4.yaml"), parse_config(YAML, "/etc/mm4/mm4.yaml")
    for name, value in {
        "smtpd_tls_security_level": "may", "smtpd_tls_chain_files": "/etc/mm4/gw.pem", "smtpd_tls_CAfile": "/etc/mm4/ca.pem",
        "smtpd_tls_ask_ccert": "yes", "smtpd_sasl_type": "dovecot", "smtpd_sasl_path": "private/auth",
    }.items():  # fmt: skip
        assert (option(plain, name), option(config, name)) == (None, value), name
    assert (option(plain, "smtpd_sasl_auth_enable"), option(config, "smtpd_sasl_auth_enable")) == ("no", "yes")
    keyed = parse_config(YAML.replace("gw.pem", "gw.pem, key: gw.key, level: encrypt"), "/etc/mm4/mm4.yaml")
    assert option(keyed, "smtpd_tls_chain_files") == "/etc/mm4/gw.key, /etc/mm4/gw.pem"
    assert option(keyed, "smtpd_tls_security_level") == "encrypt"
    cyrus = parse_config(YAML.replace("{path: private/auth}", "{type: cyrus}"), "/etc/mm4/mm4.yaml")
    assert (option(cyrus, "smtpd_sasl_type"), option(cyrus, "smtpd_sasl_path")) == ("cyrus", "smtpd")
    nobody = parse_config(CONFIG + "service:\n  tls: {certificate: gw.pem}\n  sasl: {}\n", "/etc/mm4/mm4.yaml")
    assert [option(nobody, f"smtpd_{n}") for n in ("tls_ask_ccert", "sasl_auth_enable", "sasl_type")] == ["no", "no", None]


def test_the_table_of_certificates_is_that_of_the_yaml() -> None:
    def rows(text: str) -> list[str]:
        table = maps.tables(parse_config(text, "mm4.yaml"))["certificates"]
        return [line for line in table.splitlines() if not line.startswith("#")]

    assert rows(YAML) == []
    assert rows(PINNED) == [f"{TWO}\tOK", f"{ONE}\tOK"]


# -- what Postfix says of a certificate


async def told(path: Path, *requests: dict[str, str]) -> list[str]:
    reader, writer = await asyncio.open_unix_connection(path)
    answers = []
    for request in requests:
        writer.write("".join(f"{k}={v}\n" for k, v in request.items()).encode() + b"\n")
        answers.append((await reader.readuntil(b"\n\n")).decode().strip())
    writer.close()
    return answers


def policy(port: int, fingerprint: str, address: str = "192.0.2.7") -> dict[str, str]:
    return {
        "request": "smtpd_access_policy", "protocol_state": "MAIL", "client_address": address, "client_port": str(port),
        "ccert_fingerprint": fingerprint, "sender": "a=b@c.example",
    }  # fmt: skip


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener


def test_a_fingerprint_is_the_one_that_postfix_said_last_and_never_anothers(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def body() -> None:
        served = Fingerprints(listening(path))
        await served.start()

        async def asked(port: int, address: str = "192.0.2.7") -> str | None:
            return await asyncio.to_thread(fingerprint_of_client, str(path), address, port)

        with pytest.raises(InternalError, match="did not say the certificate"):
            await asked(1)
        assert await told(path, policy(1, ONE), policy(2, ""), policy(3, TWO, "2001:db8::1")) == ["action=DUNNO"] * 3
        assert [await asked(1), await asked(2), await asked(3, "IPv6:2001:DB8:0:0::1")] == [ONE, None, TWO]
        assert await asked(1, "::ffff:192.0.2.7") == ONE
        await told(path, policy(1, ""))  # another client at the same port
        assert await asked(1) is None
        with pytest.raises(InternalError):
            await asked(3)
        served._tellers.clear()
        (answer,) = await told(path, policy(2, ONE))
        assert answer.startswith("action=DEFER ")
        assert await asked(2) is None
        served.stop()

    asyncio.run(body())
    path.unlink()  # the supervisor's to remove
    with pytest.raises(InternalError):
        fingerprint_of_client(str(path), "192.0.2.7", 1)


def test_what_is_remembered_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_KEPT", 2)
    served = Fingerprints(listening(tmp_path / "s"))
    for port in (1, 2, 1, 3):
        served._answer(policy(port, ONE), True)
    assert [key[1] for key in served._said] == ["1", "3"]


def test_options_of_a_line_are_read_however_they_are_written() -> None:
    line = "192.0.2.1:25 inet n - n - - smtpd -o a=b -o { c = d e, f } -o g= -o { h = { unix:x, y=z } } -o {i=j}"
    assert options(line) == {"a": "b", "c": "d e, f", "g": "", "h": "{ unix:x, y=z }", "i": "j"}


# -- what a peer may call itself


def forward(
    client: str = "north", sender: str = "<+447700900002@mms.north.example>", config: str = CONFIG, **change: str
) -> Seen:
    return Gateway(config).peer(client).mail(sender).rcpt().headers(req(**change)).end()


OURS = "+491511000777"


@pytest.mark.parametrize(
    ("sender", "change", "status"),
    [
        ("<>", {"From": f"{OURS}/TYPE=PLMN"}, DENIED),
        ("<>", {"From": f"{OURS}/TYPE=PLMN@mms.north.example"}, DENIED),
        ("<>", {"From": f"Bank <{OURS}/TYPE=PLMN@mms.gw.example>"}, DENIED),
        ("<>", {"Sender": f"{OURS}/TYPE=PLMN@mms.north.example"}, DENIED),
        (f"<{OURS}/TYPE=PLMN@mms.north.example>", {}, DENIED),
        (f"<{OURS}>", {}, DENIED),
        ("<>", {"From": "+491512000777/TYPE=PLMN"}, "Ok"),
        ("<>", {"From": "491511/TYPE=PLMN"}, "Ok"),
        # it comes home
        ("<>", {"From": f"{OURS}/TYPE=PLMN", "X_Mms_Previously_sent_by": f"1, {OURS}/TYPE=PLMN"}, "Ok"),
        (f"<{OURS}@x.example>", {"From": f"{OURS}/TYPE=PLMN", "X_Mms_Previously_sent_by": f"0, {OURS}@mms.gw.example"}, "Ok"),
        ("<>", {"From": f"{OURS}/TYPE=PLMN", "X_Mms_Previously_sent_by": "1, +491511000778/TYPE=PLMN"}, DENIED),
        ("<>", {"From": f"{OURS}/TYPE=PLMN", "X_Mms_Previously_sent_by": "1, +447700900002/TYPE=PLMN"}, DENIED),
    ],
)  # fmt: skip
def test_a_number_of_ours_is_nobodys_outside(sender: str, change: dict[str, str], status: str) -> None:
    seen = forward(sender=sender, **change)
    assert seen.verdict.status == status, seen.verdict.reason
    assert seen.verdict.action is Action.ACCEPT  # the RES says so
    assert seen.verdict.answers[0].status == status
    if status == DENIED:
        assert f"{OURS} is a number of ours" in (seen.verdict.reason or "")
        assert [address for address, _ in seen.verdict.added if "responder" not in address] == []
        unasked = forward(sender=sender, X_Mms_Ack_Request="No", **change)
        assert str(unasked.reply) == "550 5.7.1 Service denied"


def test_strict_or_log_a_number_of_ours_is_refused_and_ported_ones_are_let_in() -> None:
    for kind in ("strict", "log"):
        for own, status in (("[]", DENIED), ('["+4915110007"]', "Ok"), ('["+4915119"]', DENIED), ('["+"]', "Ok")):
            text = CONFIG.replace("    max_size: 1MB\n", f"    identity: {kind}\n    own_numbers: {own}\n", 1)
            assert forward(config=text, From=f"{OURS}/TYPE=PLMN").verdict.status == status, (kind, own)


def test_our_own_side_sends_from_its_numbers() -> None:
    seen = Gateway().peer("local").mail(f"<{OURS}@mms.gw.example>").rcpt("<+447700900101@mms.gw.example>")
    lines: Headers = req(From=f"{OURS}/TYPE=PLMN", Sender=None, X_Mms_Originator_System=None)
    assert seen.headers(lines).end().verdict.status == "Ok"


THEIRS = {
    "Sender": "+447700900002/TYPE=PLMN@mms.watched.example",
    "X_Mms_Originator_System": "system@mms.watched.example",
}


@pytest.mark.parametrize(
    ("change", "outside"),
    [
        ({}, None),
        ({"From": "+447700900002/TYPE=PLMN@mms.watched.example"}, None),
        ({"From": "Ann <ann@MMS.watched.example>"}, None),
        ({"From": "+447700900002/TYPE=PLMN@mms.north.example"}, "From"),
        ({"From": "ann@mail.test"}, "From"),
        ({"Sender": "+447700900002/TYPE=PLMN@mms.north.example"}, "Sender"),
        ({"X_Mms_Originator_System": "system@mms.north.example"}, "X-Mms-Originator-System"),
    ],
)
def test_a_strict_peer_is_held_to_its_domains_and_any_other_is_logged(change: dict[str, str], outside: str | None) -> None:
    strict = CONFIG.replace("on_violation: monitor\n", "on_violation: respond\n")
    sender = "<x@mms.watched.example>"
    verdict = forward("watched", sender, strict, **{**THEIRS, **change}).verdict
    assert verdict.status == (DENIED if outside else "Ok"), verdict.reason
    assert (verdict.reason or "").startswith(f"{outside} lies outside") is (outside is not None)
    lenient = strict.replace("identity: strict", "identity: log").replace(
        "domains: [mms.watched.example]", "domains: [mms.watched.example]\n    system_address: a@mms.watched.example"
    )
    with LogLines() as lines:
        forward("watched", sender, lenient, **{**THEIRS, **change})
    assert (f" identity=outside:{outside} " in lines[0]) is (outside is not None)
    assert ("identity=" in lines[0]) is (outside is not None)


def test_what_a_client_showed_is_in_the_line_that_refuses_it() -> None:
    session = Seen(Gateway(), CLIENTS["stranger"])
    session.session.identify("mm4.evil.example", "evil")
    with LogLines() as lines:
        assert session.mail().reply.code == 550
    assert len(lines) == 1
    assert "client=203.0.113.99 certificate=mm4.evil.example login=evil peer=stranger refused=mail" in lines[0]
