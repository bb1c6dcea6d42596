"""Postfix per peer: source address, TLS, login, pace and IPv6, from the YAML; and two operators on one host."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from harness import Dialogue, Link, Mail, NextHop, Sandbox, forward_req, free_port, mm4, new_ids, send, wait_for
from mm4.postfix.instance import Instance

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
ONE, TWO = "+491511000001", "+491512000001"
CLIENTS = {ONE: "127.0.0.31", TWO: "127.0.0.32"}
DOMAINS = {ONE: "mms.one.example", TWO: "mms.two.example"}
NORTH, SOUTH, SIX = "127.0.0.21", "127.0.0.22", "::1"
ABROAD = "+447700900002"
PASSWORD = "tr0ub4dor & three"


class Secure(NextHop):
    """A peer that takes mail only under TLS, from who shows a certificate of its authority and logs in."""

    def __init__(self, authority: trustme.CA) -> None:
        self.shown: list[str] = []
        """The common names in the certificates of its clients."""
        self.logins: list[str] = []
        self.password = PASSWORD
        server = authority.issue_cert("mx.south.example")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(
            tls_context=context, require_starttls=True, auth_required=True, authenticator=self.authenticate
        )

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, way: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        fits = (given.login, given.password) == (b"gateway", self.password.encode())
        if fits:
            self.logins.append(way)
            certificate = (session.ssl or {})["peercert"]
            self.shown += [value for _, value in certificate["subjectAltName"]]
        return AuthResult(success=fits, handled=False)


class Crowd(NextHop):
    """A peer that takes its time, and counts how many come at once."""

    most = now = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.3)
        self.now -= 1
        return await super().handle_DATA(server, session, envelope)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    tls = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    own = authority.issue_cert("gw.example")
    authority.cert_pem.write_to_path(str(tls / "ca.pem"))
    own.private_key_pem.write_to_path(str(tls / "own.key"))
    own.cert_chain_pems[0].write_to_path(str(tls / "own.pem"))
    (tls / "password").write_text(PASSWORD + "\n")
    (tls / "password").chmod(0o600)
    other = trustme.CA().issue_cert("mx.pinned.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.configure_cert(context)
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(other.cert_chain_pems[0].bytes().decode())).hexdigest()
    hops = {
        "one": NextHop(), "two": NextHop(), "north": NextHop(), "south": Secure(authority), "six": NextHop(SIX),
        "pinned": NextHop(tls_context=context, require_starttls=True), "narrow": Crowd(), "steady": NextHop(),
    }  # fmt: skip
    made = Link(YAML, hops, more=(SIX,), fingerprint=digest, submit=str(free_port(SIX)))
    shutil.copytree(tls, made.gateway.folder / "tls")
    (made.gateway.folder / "tls").chmod(0o755)
    (made.gateway.folder / "tls" / "ca.pem").chmod(0o644)
    with made:
        yield made


def out(link: Link, sender: str, to: str, client: str | None = None, **more: Any) -> tuple[str, Dialogue]:
    """A message of a local client; its message id, and what the client was told."""
    ids = new_ids(DOMAINS[sender])
    content = forward_req(sender=sender, to=to, ids=ids, ack="No", system=None, drop=("Sender",), **more)
    dialogue = link.gateway.send(
        content, source=client or CLIENTS[sender], mail_from=f"{sender}/TYPE=PLMN@{DOMAINS[sender]}",
        rcpt=(f"{to}/TYPE=PLMN@{DOMAINS[sender]}",),
    )  # fmt: skip
    return ids[1], dialogue


def arrived(link: Link, hop: str, sent: tuple[str, Dialogue]) -> Mail:
    message_id, dialogue = sent
    assert dialogue.code == 250, dialogue
    (mail,) = link.hops[hop].wait_for(message_id)
    return mail


def came(link: Link, source: str, domain: str, to: str, ack: str = "Yes") -> tuple[str, Dialogue]:
    """A message of a peer."""
    ids = new_ids(domain)
    content = forward_req(sender=ABROAD, to=to, ids=ids, ack=ack, system=f"system@{domain}")
    endpoint = next(e for e in link.gateway.facts["listen"] if ("[" in e) == (":" in source))
    host, _, port = endpoint.rpartition(":")
    dialogue = send(
        f"{host}:{port}", content, source=source, mail_from=f"{ABROAD}/TYPE=PLMN@{domain}",
        rcpt=(f"{to}/TYPE=PLMN@{DOMAINS[to]}",),
    )  # fmt: skip
    return ids[1], dialogue


# -- ways to peers


def test_a_peer_is_reached_from_its_source_address(link: Link) -> None:
    assert arrived(link, "north", out(link, ONE, ABROAD)).client == "127.0.0.41"


def test_tls_a_certificate_of_ours_and_a_login(link: Link) -> None:
    south = link.south
    mail = arrived(link, "south", out(link, TWO, ABROAD))
    assert mail.mail_from == f"{TWO}/TYPE=PLMN@mms.two.example"
    assert set(south.logins) <= {"PLAIN", "LOGIN"}
    assert south.logins
    assert set(south.shown) == {"gw.example"}


def test_a_wrong_password_waits_and_the_new_one_goes(link: Link) -> None:
    file = link.gateway.folder / "tls" / "password"
    link.south.password = "another"
    try:
        message_id, dialogue = out(link, TWO, ABROAD)
        assert dialogue.code == 250
        link.gateway.wait_log(rf"{dialogue.queue_id}: .*status=deferred.*SASL authentication failed")
        file.write_text("another\n")
        done = mm4("postfix", "maps", "--config", link.gateway.config, "--reload", "--json")
        assert json.loads(done.stdout)["changed"] == ["password-south"]
        link.gateway.postfix("postqueue", "-f")
        link.south.wait_for(message_id)
    finally:
        file.write_text(PASSWORD + "\n")
        link.south.password = PASSWORD
        mm4("postfix", "maps", "--config", link.gateway.config, "--reload")


def test_a_password_stands_in_one_table_that_only_root_can_read(link: Link) -> None:
    folder = Path(link.gateway.facts["config_directory"])
    holding = [p for p in folder.rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
    assert [p.name for p in holding] == ["password-south"]
    assert (holding[0].stat().st_mode & 0o7777, holding[0].stat().st_uid) == (0o600, 0)
    assert PASSWORD not in mm4("config", "show", "--config", link.gateway.config).stdout
    assert PASSWORD not in link.gateway.log()


def test_a_fingerprint_is_enough(link: Link) -> None:
    arrived(link, "pinned", out(link, ONE, "+31600000001"))


def test_a_peer_gets_no_more_connections_than_its_pace(link: Link) -> None:
    sent = [out(link, ONE, f"+3460000000{n}") for n in range(8)]
    for one in sent:
        arrived(link, "narrow", one)
    assert link.narrow.most == 2


def test_a_delay_stands_between_two_messages(link: Link) -> None:
    sent = [out(link, ONE, f"+3930000000{n}") for n in range(3)]
    times = sorted(arrived(link, "steady", one).at for one in sent)
    # The queue manager's clock is in whole seconds: of the three at least two pass.
    assert all(later - earlier > 1.9 for earlier, later in itertools.pairwise(times))


def test_ipv6_both_ways(link: Link) -> None:
    message_id, dialogue = came(link, SIX, "mms.six.example", TWO)
    assert dialogue.code == 250
    link.two.wait_for(message_id)
    (answer,) = link.six.wait_for(message_id)
    assert (answer.client, answer.mail_from) == (SIX, "system-user@mms.two.example")
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    assert [line for line in link.gateway.log().splitlines() if "client=::1 " in line and "peer=six " in line]
    assert arrived(link, "six", out(link, ONE, "+33600000001")).client == SIX


def test_a_host_with_ipv6_alone() -> None:
    """Our own client, the sandbox's listener and source, the private line and the next hop."""
    text = """
local: {domain: mms.own.example, system_address: s@mms.own.example, numbers: ["+4477009001"], clients: ["::1"]}
peers:
  far: {domains: [mms.far.example], networks: [127.0.0.27/32], next_hop: "@hop@"}
routes: [{prefix: "+", peer: far}]
service: {submit: "[::1]:@submit@", workers: 1}
submit: smtp
"""
    with NextHop(SIX) as hop:
        text = text.replace("@hop@", hop.hop).replace("@submit@", str(free_port(SIX)))
        with Sandbox(text, listen=SIX, source=SIX) as gateway:
            assert gateway.smtp.startswith("[::1]:")
            told = mm4(
                "send", "--config", gateway.config, "--from", "+447700900101", "--to", "+447700900102", "--to", ONE,
                "--text", "a word", "--json",
            )  # fmt: skip
            message_id = json.loads(told.stdout)["message_id"]
            (mail,) = hop.wait_for(message_id)
            assert (mail.client, mail.rcpt) == (SIX, [f"{ONE}/TYPE=PLMN@mms.far.example"])
            wait_for(lambda: gateway.maildir("447700900102"), "the message in the Maildir")


def test_postfix_knows_every_word_of_it(link: Link) -> None:
    assert Instance(link.gateway.facts["config_directory"]).warnings() == []


def test_explain_and_check_know_ipv6(link: Link, tmp_path: Path) -> None:
    file = tmp_path / "req.eml"
    file.write_bytes(forward_req(to=ONE, system="system@mms.six.example"))
    done = mm4(
        "explain", "--json", "--config", link.gateway.config, "--client", "::1", "--mail-from", "",
        "--rcpt", f"{ONE}/TYPE=PLMN@mms.one.example", str(file),
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert (told["peer"], told["action"], told["responses"][0]["mail_from"]) == (
        "six", "accept", "system-user@mms.one.example",
    )  # fmt: skip
    checked = mm4("check", "--json", "--config", link.gateway.config, check=False).stdout
    assert [found for found in map(json.loads, checked.splitlines()) if not found["ok"] and not found["warning"]] == []


def test_check_names_what_is_not_on_this_host(link: Link, tmp_path: Path) -> None:
    raw = yaml.safe_load(Path(link.gateway.config).read_text())
    raw["peers"]["north"]["source"] = "192.0.2.77"
    raw["peers"]["south"]["login"]["password_file"] = str(tmp_path / "none")
    raw["peers"]["south"]["tls"]["certificate"] = str(tmp_path / "none.pem")
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / "ca.pem").chmod(0o600)
    raw["peers"]["south"]["tls"]["ca"] = str(tmp_path / "ca.pem")
    (tmp_path / "mm4.yaml").write_text(yaml.safe_dump(raw))
    done = mm4("check", "--json", "--config", str(tmp_path / "mm4.yaml"), check=False)
    wrong = {found["check"]: found["text"] for found in map(json.loads, done.stdout.splitlines()) if not found["ok"]}
    assert "192.0.2.77 is no address of this host" in wrong["peers.north.source"]
    assert "there is no file" in wrong["peers.south.tls.certificate"]
    assert "cannot read" in wrong["peers.south.tls.ca"]
    assert "peers.south.login.password_file" in wrong["passwords"]
    assert "is not as the YAML says" in wrong["master.cf"]


# -- several operators


@pytest.mark.parametrize(
    ("source", "domain", "hop", "number"),
    [(NORTH, "mms.north.example", "north", ONE), (SOUTH, "mms.south.example", "south", TWO),
     (SIX, "mms.six.example", "six", ONE), (SIX, "mms.six.example", "six", TWO)],
)  # fmt: skip
def test_a_peer_is_answered_by_the_operator_whose_number_it_writes_to(
    link: Link, source: str, domain: str, hop: str, number: str
) -> None:
    message_id, dialogue = came(link, source, domain, number)
    assert dialogue.code == 250
    (answer,) = link.hops[hop].wait_for(message_id)
    system = f"system-user@{DOMAINS[number]}"
    assert (answer.mail_from, answer.header("From")) == (system, system)
    link.hops["one" if number == ONE else "two"].wait_for(message_id)


@pytest.mark.parametrize(("source", "domain", "number"),
                         [(NORTH, "mms.north.example", TWO), (SOUTH, "mms.south.example", ONE)])  # fmt: skip
def test_a_peer_of_one_operator_reaches_nobody_of_the_other(link: Link, source: str, domain: str, number: str) -> None:
    _, dialogue = came(link, source, domain, number)
    assert [code for code, _ in dialogue.rcpt] == [550]


def test_the_same_number_abroad_goes_to_each_operators_own_peer(link: Link) -> None:
    for sender, hop in ((ONE, "north"), (TWO, "south")):
        mail = arrived(link, hop, out(link, sender, ABROAD))
        assert mail.header("X-Mms-Originator-System") == f"system-user@{DOMAINS[sender]}"
        assert mail.mail_from == f"{sender}/TYPE=PLMN@{DOMAINS[sender]}"


@pytest.mark.parametrize("sender", [ONE, TWO])
def test_a_client_does_not_send_as_the_other_operators_number(link: Link, sender: str) -> None:
    other = CLIENTS[TWO if sender == ONE else ONE]
    message_id, dialogue = out(link, sender, "+33600000001", client=other)
    assert (dialogue.data or (0, ""))[0] == 550
    assert "5.7.1" in (dialogue.data or (0, ""))[1]
    link.gateway.quiet()
    assert link.six.carrying(message_id) == []


def test_between_two_operators_of_one_host_nothing_goes_out(link: Link) -> None:
    mail = arrived(link, "two", out(link, ONE, TWO))
    assert mail.rcpt == [f"{TWO}@mmsc.two.example"]
    assert mail.mail_from.endswith("@mms.two.example")


# -- the tables


def files(link: Link) -> dict[str, tuple[int, int]]:
    folder = Path(link.gateway.facts["config_directory"])
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_what_is_as_the_yaml_says_stays_untouched(link: Link) -> None:
    before = files(link)
    for option in ((), ("--check",), ("--reload",)):
        done = json.loads(mm4("postfix", "maps", "--config", link.gateway.config, "--json", *option).stdout)
        assert (done["changed"], done["reload"], done["reloaded"], done["add"]) == ([], None, False, {})
    assert files(link) == before


def test_a_peer_comes_and_goes_while_mail_flows(link: Link) -> None:
    effective = Path(link.gateway.config)
    before, text = files(link), effective.read_text()
    raw = yaml.safe_load(text)
    with NextHop() as east:
        raw["peers"]["east"] = {
            "domains": ["mms.east.example"], "networks": ["127.0.0.26/32"], "next_hop": east.hop, "source": ["127.0.0.42"],
        }  # fmt: skip
        raw["routes"].append({"prefix": "+81", "peer": "east"})
        effective.write_text(yaml.safe_dump(raw, sort_keys=False))
        looked = mm4("postfix", "maps", "--config", link.gateway.config, "--check", "--json", check=False)
        assert (looked.returncode, files(link)) == (1, before)
        assert json.loads(looked.stdout)["changed"] == ["master.cf", "peers", "tls_policy", "transport"]
        done = mm4("postfix", "maps", "--config", link.gateway.config, "--reload", "--json")
        assert json.loads(done.stdout)["reloaded"]
        reread(link)
        message_id, dialogue = out(link, ONE, "+81900000001")
        assert dialogue.code == 250
        (mail,) = east.wait_for(message_id)
        assert mail.client == "127.0.0.42"
    effective.write_text(text)
    mm4("postfix", "maps", "--config", link.gateway.config, "--reload")
    reread(link)
    assert "mm4-out-east" not in (Path(link.gateway.facts["config_directory"]) / "master.cf").read_text()
    assert out(link, ONE, "+81900000001")[1].code == 550


def reread(link: Link) -> None:
    mark = len(link.gateway.log())
    os.kill(link.gateway.daemon(), signal.SIGHUP)
    wait_for(lambda: "reload=done" in link.gateway.log()[mark:], "the daemon has read its configuration again")
