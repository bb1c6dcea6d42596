"""Two operators, deployed by the collection's playbooks, and a third with nothing but Postfix: MMS over TLS, by DNS, through faults.

Operator A is two hosts on one PostgreSQL, Debian 12 (Postfix 3.7), to which its MX gives the peers in turn. Operator B is
Debian 13 (3.10) with SQLite. C is a plain Postfix that is a peer of A's.
"""

from __future__ import annotations

import collections
import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docker
import pytest
import trustme

import hosts
import operators
from harness import forward_req, headers_of, wait_for
from mm4.store.schema import REVISION, generation
from operators import MM4_PORT, Inventory, Network, Stream, delivered, rows

from .conftest import Suites

pytestmark = pytest.mark.skipif(not find_spec("ansible"), reason="the extra `ansible` is not installed: make test-docker")

A, B, C, A2, DATABASE = 11, 12, 13, 14, 15
"""Numbers of their addresses in the network."""
LATER = f"{generation(REVISION)}99"
"""The schema's revision of the version to upgrade to."""

SUBSCRIBER_A, SUBSCRIBER_B, SUBSCRIBER_C = "+447700900001", "+491511000001", "+15005550001"


class World:
    """What the tests of this module share."""

    def __init__(
        self, network: Network, inventory: Inventory, database: operators.Database, hosts_: Mapping[str, hosts.Host], new: str
    ) -> None:
        self.network = network
        self.inventory = inventory
        self.database = database
        self.a, self.a2, self.b, self.c = hosts_["a"], hosts_["a2"], hosts_["b"], hosts_["c"]
        self.new = new
        """The version to upgrade to."""

    def client(self, host: hosts.Host) -> str:
        return self.network.address({self.a.name: A, self.a2.name: A2, self.b.name: B, self.c.name: C}[host.name])

    def of(self, host: hosts.Host) -> list[hosts.Host]:
        """The hosts of its operator."""
        return [self.a, self.a2] if host in (self.a, self.a2) else [host]

    def delivered(self, host: hosts.Host, number: str) -> list[str]:
        """As `operators.delivered`, at all hosts of that operator."""
        return [name for one in self.of(host) for name in delivered(one, number)]


@pytest.fixture(scope="module")
def world(
    client: docker.DockerClient, suites: Suites, names: str, database: str, key: hosts.Key, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("operators")
    bookworm, trixie = suites("bookworm"), suites("trixie")
    new = f"{bookworm.version}.post1"
    wheels = {suite.name: Path(shutil.copytree(suite.wheels, folder / suite.name)) for suite in (bookworm, trixie)}
    for own in wheels.values():
        hosts.wheel(own, new, LATER)
    run = f"mm4-{secrets.token_hex(3)}"
    authority = trustme.CA()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(operators.network(client, run))
        numbers = {"a": A, "a2": A2, "b": B, "c": C}
        addresses = {name: network.address(number) for name, number in numbers.items()}
        # All at once: each takes seconds to boot.
        base = stack.enter_context(operators.database(network, database, f"{run}-db", DATABASE))
        resolver = stack.enter_context(operators.name_server(network, names, f"{run}-ns", {
            "a.example": "mms IN MX 10 mta\nmms IN MX 10 mta2\n" f"mta IN A {addresses['a']}\nmta2 IN A {addresses['a2']}\n",
            **{f"{letter}.example": f"mms IN MX 10 mta\nmta IN A {addresses[letter]}\n" for letter in "bc"},
            # RFC 6116: the digits of the number from behind.
            "e164.example": '*.1.1.5.1.9.4 IN NAPTR 10 10 "u" "E2U+mms:mailto" "!^.*$!mailto:\\\\0@mms.b.example!" .\n',
        }))  # fmt: skip

        def host(name: str, image: str) -> hosts.Host:
            arguments = network.arguments(numbers[name], resolver)
            hostname = f"mta{name[1:]}.{name[0]}.example"
            return stack.enter_context(hosts.host(client, image, f"{run}-{name}", key, hostname=hostname, **arguments))

        made = {name: host(name, (trixie if name == "b" else bookworm).image) for name in numbers}
        for name in ("a", "a2", "b"):
            made[name].run("postconf -e smtp_tls_loglevel=1 smtpd_tls_received_header=yes")
        chains = {letter: _certificate(authority, letter) for letter in "abc"}
        plain_peer(made["c"], chains["c"], authority)
        common = {"mm4_version": bookworm.version}
        inventory = Inventory(folder, key, {
            **{name: {"ansible_host": addresses[name], "mm4_wheelhouse": str(wheels["bookworm"]), "mm4_extras": ["postgresql"], **common,
                      **deployed(operator_a(name, addresses, network.here, resolver, base.url), chains["a"], authority)}
               for name in ("a", "a2")},
            "b": {"ansible_host": addresses["b"], "mm4_wheelhouse": str(wheels["trixie"]), **common,
                  **deployed(operator_b(addresses, network.here), chains["b"], authority)},
        })  # fmt: skip
        said = inventory.play("deploy", "--diff")
        assert base.password not in said
        yield World(network, inventory, base, made, new)


def _certificate(authority: trustme.CA, letter: str) -> str:
    """Key and chain of an operator's mail server, for both its names."""
    issued = authority.issue_cert(*(f"{name}.{letter}.example" for name in ("mms", "mta", "mta2")))
    return issued.private_key_and_cert_chain_pem.bytes().decode()


def deployed(config: dict[str, Any], chain: str, authority: trustme.CA) -> dict[str, Any]:
    """Variables of a host with this YAML."""
    return {
        "mm4_config": config,
        "mm4_secrets": {"mms.pem": chain},
        # user postfix reads it
        "mm4_files": [{"path": "/etc/ssl/roaming-ca.pem", "content": authority.cert_pem.bytes().decode(), "mode": "0644"}],
    }


def _peer(letter: str, addresses: dict[str, str], port: int) -> dict[str, Any]:
    domain = f"mms.{letter}.example"
    return {
        "domains": [domain], "networks": [f"{at}/32" for name, at in addresses.items() if name[0] == letter], "next_hop": domain if port == 25 else f"{domain}:{port}",
        "tls": {"level": "secure", "match": [domain], "ca": "/etc/ssl/roaming-ca.pem"}, "ack": {"timeout": "1h"},
    }  # fmt: skip


def operator_a(host: str, addresses: dict[str, str], client: str, resolver: str, store: str) -> dict[str, Any]:
    return {
        "local": {"domain": "mms.a.example", "system_address": "system-user@mms.a.example", "region": "GB",
                  "numbers": ["+447700900"], "clients": [f"{client}/32"]},
        "peers": {"b": _peer("b", addresses, MM4_PORT), "c": _peer("c", addresses, 25)},
        "routes": [{"enum": {"zone": "e164.example", "servers": [f"{resolver}:53"]}}, {"prefix": "+1500555", "peer": "c"}],
        "store": store,
        "service": {"listen": f"{addresses[host]}:{MM4_PORT}", "tls": {"certificate": "/etc/mm4/secrets/mms.pem"}},
    }  # fmt: skip


def operator_b(addresses: dict[str, str], client: str) -> dict[str, Any]:
    return {
        "local": {"domain": "mms.b.example", "system_address": "system-user@mms.b.example", "region": "DE",
                  "numbers": ["+491511"], "clients": [f"{client}/32"]},
        "peers": {"a": _peer("a", addresses, MM4_PORT)},
        "routes": [{"default": "a"}],
        "service": {"listen": f"{addresses['b']}:{MM4_PORT}", "tls": {"certificate": "/etc/mm4/secrets/mms.pem"}},
        "submit": "smtp",
    }  # fmt: skip


def plain_peer(host: hosts.Host, chain: str, authority: trustme.CA) -> None:
    """An operator without mm4: whatever comes to its domain lies in one Maildir."""
    host.put("/etc/ssl/mms.pem", chain, 0o600)
    host.put("/etc/ssl/roaming-ca.pem", authority.cert_pem.bytes())
    settings = {
        "mydestination": "mms.c.example, localhost", "myorigin": "mms.c.example", "luser_relay": "keeper", "local_recipient_maps": "",
        "home_mailbox": "Maildir/", "smtpd_tls_chain_files": "/etc/ssl/mms.pem", "smtpd_tls_security_level": "encrypt",
        "smtp_tls_security_level": "secure", "smtp_tls_CAfile": "/etc/ssl/roaming-ca.pem", "smtp_tls_secure_cert_match": "mms.a.example",
        "transport_maps": f"inline:{{ {{ mms.a.example = smtp:mms.a.example:{MM4_PORT} }} }}",
    }  # fmt: skip
    host.run("postconf -X smtpd_tls_cert_file smtpd_tls_key_file && postconf -e " + " ".join(f"'{n}={v}'" for n, v in settings.items()))
    host.run("systemctl restart postfix")


def kept(host: hosts.Host, text: str) -> bytes:
    """The mail of the plain peer that holds `text`."""
    look = f"grep -rlF '{text}' /home/keeper/Maildir/new 2>/dev/null"
    path = wait_for(lambda: host.run(look, codes=None).strip(), f"mail with {text} at the plain peer", 90)
    assert path.count("\n") == 0, path
    return host.run(f"cat {path}").encode("latin-1", errors="replace")


def answered(host: hosts.Host, message_id: str) -> dict[str, Any]:
    """The row of an MMS whose RES has come."""

    def look() -> dict[str, Any] | None:
        said = host.run(f"mm4 trace --json {message_id}", codes=(0, 1))
        found = json.loads(said)["transactions"] if said.startswith("{") else []
        return next((row for row in found if row["state"] == "answered"), None)

    row = wait_for(look, f"the RES to {message_id} at {host.name}", 90)
    assert row
    return row


def test_all_are_well_after_the_deployment(world: World) -> None:
    for host in (world.a, world.a2, world.b):
        host.run("mm4 check && mm4 postfix status && systemctl is-active mm4")


@pytest.mark.parametrize("way", ["a to b", "b to a"])
def test_an_mms_goes_over_verified_tls_and_is_acknowledged(world: World, way: str) -> None:
    here, there, sender, to = world.a, world.b, SUBSCRIBER_A, SUBSCRIBER_B
    if way == "b to a":
        here, there, sender, to = world.b, world.a, SUBSCRIBER_B, SUBSCRIBER_A
    domain = f"mms.{way[0]}.example"
    with Stream(world.client(here), sender, to, domain) as stream:
        stream.goes_on(1)
    message_id = stream.accepted[0]
    assert answered(here, message_id)["status"] == "Ok"
    (met,) = [host for host in world.of(there) if message_id in delivered(host, to)]
    path = met.run(f"grep -rlF {message_id} /var/lib/mm4/maildir/{to[1:]}/new").strip()
    assert "using TLSv1.3" in met.run(f"cat {path}")
    name = met.run("hostname").strip()
    assert f"Verified TLS connection established to {name}" in here.run("journalctl --no-pager -o cat -t postfix/smtp")


def test_a_plain_postfix_is_a_peer(world: World) -> None:
    unique = secrets.token_hex(6)
    ids = (f"t-{unique}@mms.c.example", f"m-{unique}@mms.c.example")
    pdu = forward_req(sender=SUBSCRIBER_C, to=SUBSCRIBER_A, ids=ids, system="system@mms.c.example")
    world.c.put("/tmp/req.eml", pdu.replace(b"\r\n", b"\n"))
    world.c.run(f"sendmail -i -f {SUBSCRIBER_C}/TYPE=PLMN@mms.c.example {SUBSCRIBER_A}/TYPE=PLMN@mms.a.example </tmp/req.eml")
    res = dict(headers_of(kept(world.c, ids[0])))
    assert res["X-Mms-Message-Type"] == b"MM4_forward.RES"
    assert res["X-Mms-Request-Status-Code"] == b"Ok"
    assert world.delivered(world.a, SUBSCRIBER_A).count(ids[1]) == 1

    with Stream(world.client(world.a), SUBSCRIBER_A, SUBSCRIBER_C, "mms.a.example") as stream:
        stream.goes_on(1)
    message_id = stream.accepted[0]
    req = {name: value.decode("latin-1") for name, value in headers_of(kept(world.c, message_id))}
    assert req["X-Original-To"] == f"{SUBSCRIBER_C}/TYPE=PLMN@mms.c.example"
    world.c.put("/tmp/res.eml", "\n".join([
        "X-Mms-3GPP-MMS-Version: 5.5.0", "X-Mms-Message-Type: MM4_forward.RES", f"X-Mms-Transaction-ID: {req['X-Mms-Transaction-ID']}",
        f"X-Mms-Message-ID: {req['X-Mms-Message-ID']}", "X-Mms-Request-Status-Code: Ok", "From: system@mms.c.example",
        "To: system-user@mms.a.example", "", "",
    ]))  # fmt: skip
    world.c.run(f"sendmail -i -f system@mms.c.example {req['X-Mms-Originator-System']} </tmp/res.eml")
    assert answered(world.a, message_id)["status"] == "Ok"


def test_hosts_on_one_store_know_of_each_other_s_messages(world: World) -> None:
    with Stream(world.client(world.a2), SUBSCRIBER_A, SUBSCRIBER_B, "mms.a.example") as stream:
        stream.goes_on(1)
    row = answered(world.a, stream.accepted[0])
    assert (row["status"], row["host"]) == ("Ok", "mta2.a.example")


def test_a_store_that_cannot_be_used_changes_nothing(world: World) -> None:
    before = world.a.run("cat /etc/mm4/mm4.yaml; readlink /opt/mm4/current; systemctl show -P MainPID mm4")
    world.database.container.pause()
    try:
        said = world.inventory.play("deploy", "--limit", "a", codes=(2,))
    finally:
        world.database.container.unpause()
    assert "no connection to PostgreSQL" in said
    assert world.database.password not in said
    world.database.run("UPDATE alembic_version SET version_num = '9999'")
    try:
        said = world.inventory.play("deploy", "--limit", "a", codes=(2,))
    finally:
        world.database.run(f"UPDATE alembic_version SET version_num = '{REVISION}'")
    assert "its schema 9999 is newer than this mm4" in said
    assert world.a.run("cat /etc/mm4/mm4.yaml; readlink /opt/mm4/current; systemctl show -P MainPID mm4") == before


def test_nothing_is_lost_and_no_ack_is_wrong_through_faults_and_versions(world: World) -> None:
    a, a2, b = world.a, world.a2, world.b
    old = a.run("readlink /opt/mm4/current")
    with (
        Stream(world.client(a), "+447700900002", "+491511000002", "mms.a.example") as outward,
        Stream(world.client(a2), "+447700900004", "+491511000004", "mms.a.example", pause=0.25) as other,
        Stream(world.client(b), "+491511000003", "+447700900003", "mms.b.example") as inward,
    ):
        every = (outward, other, inward)

        def go_on() -> None:
            for stream in every:
                stream.goes_on()

        go_on()
        a.run("systemctl restart postfix")
        b.run("systemctl restart postfix")
        go_on()
        with world.network.cut(b, B):
            outward.goes_on()  # A goes on for its own side; what is for B waits
        go_on()
        b.container.kill()
        outward.goes_on()
        b.container.start()
        b.boot()
        for host in (a, a2):
            host.run("postqueue -f")  # or what B missed waits until the end, and is much where the test takes long
        world.database.container.restart()
        go_on()
        world.inventory.play("upgrade", mm4_version=world.new)
        assert a.run("readlink /opt/mm4/current").strip().endswith(world.new)
        assert world.new in b.run("mm4 --version")
        go_on()
        world.inventory.play("rollback")
        for host in (a, a2, b):
            assert host.run("readlink /opt/mm4/current") == old
            found = json.loads(host.run("mm4 store status --json"))
            assert (found["revision"], found["head"], found["usable"]) == (LATER, REVISION, True)
        go_on()
    _settle(a, a2, b)
    _complete(world, outward, a, b)
    _complete(world, other, a2, b)
    _complete(world, inward, b, a)


def _settle(*every: hosts.Host) -> None:
    """Wait until none has mail left; what a fault deferred is tried at once, as an operator would."""

    left: dict[str, str] = {}

    def empty() -> bool:
        for host in every:
            host.run("postqueue -f", codes=None)
        left.update((host.name, host.run("mailq", codes=None)) for host in every)
        return all("is empty" in queue for queue in left.values())

    try:
        wait_for(empty, "empty queues", 180)
    except AssertionError as error:
        error.add_note("\n".join(f"{name}\n{queue[:1500]}" for name, queue in left.items()))
        raise


def _complete(world: World, stream: Stream, here: hosts.Host, there: hosts.Host) -> None:
    assert not stream.refused, stream.refused
    promised = set(stream.accepted)
    assert len(promised) == len(stream.accepted) > 100
    copies = collections.Counter(world.delivered(there, stream.to))
    assert not promised - set(copies), f"lost: {promised - set(copies)}"
    sent = {row["message_id"]: row for row in rows(here, "--direction out", "--type forward.req", f"--number {stream.to}")}
    states = collections.Counter((row["state"], row["status"]) for name, row in sent.items() if name in promised)
    assert states == {("answered", "Ok"): len(promised)}, states
    # An ack is a promise of the peer's: whatever is acknowledged is there.
    acknowledged = {name for name, row in sent.items() if row["status"] == "Ok"}
    assert not acknowledged - set(copies), f"acknowledged and not there: {acknowledged - set(copies)}"
    here.run("mm4 check")
