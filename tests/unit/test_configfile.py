
"""The configuration file: everything wrong names file, line, key and what is expected; everything right is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mm4.gateway.config import Config
from mm4.gateway.configfile import dialect_files, origins, parse_config, place
from mm4.gateway.entries import parse_next_hop
from mm4.gateway.example import example
from mm4.gateway.host import Cdr
from mm4.gateway.peer import Peer
from mm4.gateway.quantity import parse_duration, parse_size
from mm4.gateway.routing import Router
from mm4.gateway.terms import Flood
from mm4.postfix.checks import _peers
from mm4.postfix.serve import _Supervisor
from mm4.postfix.settings import read_config
from mm4.protocol.dialect import builtin_names
from mm4.protocol.errors import ConfigError, InternalError
from mm4.protocol.located import models

REPOSITORY = Path(__file__).parents[2]
NAME = "/etc/mm4/mm4.yaml"

GOOD = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  numbers: ["+491511"]
  clients: [127.0.0.1/32]
  deliver_to: "{number}@mmsc.gw.example"
  next_hop: "[127.0.0.1]:2600"
peers:
  north:
    domains: [mms.north.example]
    networks: [192.0.2.0/24]
    next_hop: "[192.0.2.1]:25"
  south:
    domains: [mms.south.example]
    networks: [198.51.100.1/32]
    next_hop: mms.south.example
    max_size: 1MB
    ack: {request: no, timeout: 2h}
routes:
  - {prefix: "+44", peer: north}
  - {prefix: "+", peer: south}
service: {listen: "192.0.2.9:25", workers: 3}
"""
LINES = GOOD.count("\n")


def load(text: str = GOOD) -> Config:
    return parse_config(text, NAME)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, NAME)
    return caught.value.problems


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


# -- wrong: what was changed, the line, the key, what is expected

WRONG: list[tuple[str, str, int, str, str]] = [
    # keys
    ("  domain: mms", "  domian: mms", 2, "local.domian", "unknown key; did you mean domain?"),
    ("    max_size", "    max_siz", 17, "peers.south.max_siz", "unknown key; did you mean max_size?"),
    ("request: no", "reqest: no", 18, "peers.south.ack.reqest", "unknown key; did you mean request?"),
    ("workers: 3", "wrokers: 3", 22, "service.wrokers", "unknown key; did you mean workers?"),
    ("routes:", "zzz: 1\nroutes:", 19, "zzz", "unknown key; known here: local, peers, routes, mail, duplicates, retention, store, service, submit, cdr, folders"),
    ('prefix: "+44"', 'prefix: "+44", reach: x', 20, "routes[0]", "a row is of one kind, and this one has prefix and reach; write a row for each"),
    ("  domain: mms.gw.example\n", "", 1, "local.domain", "has to be given"),
    ('    next_hop: "[192.0.2.1]:25"\n', "", 9, "peers.north.next_hop", "has to be given"),
    # retention
    ("routes:", "retention: 14d\nroutes:", 19, "retention", "shorter than duplicates (360h): a REQ that comes again in that time would be delivered again; make it as long"),
    ("routes:", "duplicates: 1h\nretention: 6d\nroutes:", 20, "retention", "shorter than 7d: so long mm4 check speaks of what was done to the store"),
    # twice
    ("  numbers: [", "  domain: mms.other.example\n  numbers: [", 4, "local.domain", "stands here twice (line 2); keep one"),
    ("  south:", "  north:", 13, "peers.north", "stands here twice (line 9); keep one"),
    ("service:", "routes: []\nservice:", 22, "routes", "stands here twice (line 19); keep one"),
    # types
    ("  north:\n    domains: [mms.north.example]", "  north:\n    domains: mms.north.example", 10, "peers.north.domains", "expects a list, found 'mms.north.example'"),
    ('["+491511"]', '"+491511"', 4, "local.numbers", "expects a list, found '+491511'"),
    ("workers: 3", "workers: many", 22, "service.workers", "expects a whole number, found 'many'"),
    ("workers: 3", "workers: 65", 22, "service.workers", "less than or equal to 64"),
    ("workers: 3", "workers: 0", 22, "service.workers", "greater than or equal to 1"),
    ("request: no", "request: perhaps", 18, "peers.south.ack.request", "expects yes or no, found 'perhaps'"),
    ("ack: {request: no, timeout: 2h}", "ack: no", 18, "peers.south.ack", "expects keys with values, found False"),
    ("service: {listen", "service: []\nfoo: {listen", 22, "service", "expects keys with values, found []"),
    ("mms.south.example]", "2026-01-01]", 14, "peers.south.domains[0]", "expects a quoted string, found datetime.date(2026, 1, 1)"),
    ("mms.south.example]", "2026-13-45]", 14, "peers.south.domains[0]", "'2026-13-45' is no timestamp; put it in quotes"),
    # numbers that YAML takes for integers
    ('["+491511"]', "[+491511]", 4, "local.numbers[0]", 'has to be a quoted string: YAML read a int (491511) here; put it in quotes, for example "+49160"'),
    ('prefix: "+44"', "prefix: +44", 20, "routes[0].prefix", "has to be a quoted string: YAML read a int (44) here"),
    ('["+491511"]', '["491511"]', 4, "local.numbers[0]", "'491511' is no number prefix: write a plus and digits in quotes"),
    ('["+491511"]', '["+49 1511"]', 4, "local.numbers[0]", "is no number prefix"),
    ('["+491511"]', "[]", 4, "local.numbers", "needs at least one entry"),
    # networks
    ("198.51.100.1/32", "192.0.2.0/24", 15, "peers.south.networks[0]", "192.0.2.0/24 stands at peers.north.networks too: a client address must name one side"),
    ("198.51.100.1/32", "127.0.0.1", 15, "peers.south.networks[0]", "127.0.0.1/32 stands at local.clients too"),
    ("198.51.100.1/32", "198.51.100.1/24", 15, "peers.south.networks[0]", "'198.51.100.1/24' is no network: 198.51.100.1/24 has host bits set; for example 192.0.2.10/32"),
    ("198.51.100.1/32", "mms.south.example", 15, "peers.south.networks[0]", "is no network"),
    ("[198.51.100.1/32]", "[]", 15, "peers.south.networks", "a peer has to be known by something: networks, certificates or logins"),
    # domains
    ("@mmsc.gw.example", "@mms.gw.example", 6, "local.deliver_to", "deliver_to lies in domain (mms.gw.example): bounces come home by that domain; use any other domain"),
    ("[mms.south.example]", "[mms.gw.example]", 14, "peers.south.domains[0]", "mms.gw.example is our own domain (local.domain)"),
    ("[mms.south.example]", "[mmsc.gw.example]", 14, "peers.south.domains[0]", "is our own domain"),
    ("  domain: mms.gw.example", "  domain: gw", 2, "local.domain", "'gw' is no domain name, for example mms.mnc001.mcc262.gprs"),
    ("  domain: mms.gw.example", "  domain: mm4.invalid", 2, "local.domain", "mm4.invalid is this gateway's own name space"),
    ("system-user@mms.gw.example", "system-user@elsewhere.example", 3, "local.system_address", "system_address has to lie in domain (mms.gw.example)"),
    ("system-user@mms.gw.example", "system user@mms.gw.example", 3, "local.system_address", "is no address"),
    ("system-user@mms.gw.example", "system-user", 3, "local.system_address", "'system-user' is no address, for example"),
    ("    max_size", "    system_address: x@mms.north.example\n    max_size", 17, "peers.south.system_address", "system_address has to lie in one of domains (mms.south.example)"),
    # where mail goes
    ('"{number}@mmsc.gw.example"', '"all@mmsc.gw.example"', 6, "local.deliver_to", "'all@mmsc.gw.example' needs {number}, {digits} or {national} before the @, for example '{number}@mmsc.example.net'"),
    ('"{number}@mmsc.gw.example"', '"{number}{x}@mmsc.gw.example"', 6, "local.deliver_to", "{x} is no name; there are {number}, {digits}"),
    ('  next_hop: "[127.0.0.1]:2600"\n', "", 6, "local.deliver_to", "deliver_to needs next_hop"),
    ('  deliver_to: "{number}@mmsc.gw.example"\n', "", 6, "local.next_hop", "next_hop needs deliver_to"),
    ("next_hop: mms.south.example", 'next_hop: "a b"', 16, "peers.south.next_hop", "a next hop is written as Postfix wants it"),
    ("next_hop: mms.south.example", 'next_hop: "[192.0.2.1]:0"', 16, "peers.south.next_hop", "a next hop is written as Postfix wants it"),
    ("peer: south", "peer: soth", 21, "routes[1].peer", "no peer is named 'soth'; there are: north, south"),
    # names and words
    ("  south:", "  South:", 13, "peers.South", "'South' is no peer name: a letter, then at most 29 of a-z, 0-9 and -; not local, not mail"),
    ("  south:", "  local:", 13, "peers.local", "'local' is no peer name"),
    ("  south:", "  mail:", 13, "peers.mail", "'mail' is no peer name"),
    ("  south:", "  123:", 13, "peers.123", "'123' is no peer name"),
    ("  south:", "  a.b:", 13, "peers.a.b", "'a.b' is no peer name"),
    ("    max_size", "    dialect: klingon\n    max_size", 17, "peers.south.dialect", "there is no dialect 'klingon'; there are: 3gpp, 3gpp-r4, bare-ids, mbuni, minimal-res, mixed-body, tyntec; one of your own is the path of a file that ends in .yaml"),
    # ways to a peer
    ("    max_size", "    tls: {level: secure}\n    login: {user: u}\n    max_size", 18, "peers.south.login.password_file", "has to be given"),
    ("    max_size", "    tls: {levl: secure}\n    max_size", 17, "peers.south.tls.levl", "unknown key; did you mean level?"),
    ("    max_size", "    tls: {level: fingerprint}\n    max_size", 17, "peers.south.tls.level", "level: fingerprint needs fingerprints"),
    ("    max_size", "    tls: fingerprint\n    max_size", 17, "peers.south.tls", "level: fingerprint needs fingerprints"),
    ("    max_size", "    tls: {level: fingerprint, fingerprints: [ab]}\n    max_size", 17, "peers.south.tls.fingerprints[0]", "'ab' is no SHA-256 fingerprint (32 pairs of hexadecimal digits)"),
    ("    max_size", "    tls: {level: encrypt, match: mx.a.example}\n    max_size", 17, "peers.south.tls.match", "match has no effect with level: encrypt"),
    ("    max_size", "    tls: {level: secure, match: a b}\n    max_size", 17, "peers.south.tls.match", "'a b' is no name in a certificate"),
    ("    max_size", "    tls: {level: secure, ca: a b.pem}\n    max_size", 17, "peers.south.tls.ca", "'a b.pem': Postfix cannot be told this path"),
    ("    max_size", "    tls: {level: encrypt, key: k.pem}\n    max_size", 17, "peers.south.tls.key", "key needs certificate"),
    ("    max_size", "    tls: {level: may, wrapper: yes}\n    max_size", 17, "peers.south.tls.wrapper", "wrapper needs level: encrypt or more"),
    ("    max_size", "    tls: {level: none, certificate: c.pem}\n    max_size", 17, "peers.south.tls.certificate", "certificate has no effect with level: none"),
    ('    next_hop: "[192.0.2.1]:25"', '    next_hop: "[192.0.2.1]:25"\n    tls: secure', 13, "peers.north.tls", "compares names, and next_hop is an address"),
    ("    max_size", "    source: mx.a.example\n    max_size", 17, "peers.south.source", "'mx.a.example' is no IP address"),
    ("    max_size", '    source: ["192.0.2.1", "::"]\n    max_size', 17, "peers.south.source[1]", "'::' is no address to send from"),
    ("    max_size", '    source: ["192.0.2.1", "192.0.2.2"]\n    max_size', 17, "peers.south.source", "source takes one address for IPv4 and one for IPv6"),
    ('    next_hop: "[192.0.2.1]:25"', '    next_hop: "[192.0.2.1]:25"\n    source: "2001:db8::1"', 13, "peers.north.source", "source needs an IPv4 address for next_hop [192.0.2.1]:25"),
    ("    max_size", "    login: {user: 'a:b', password_file: p}\n    max_size", 17, "peers.south.login.user", "'a:b' is no user name"),
    ("    max_size", "    pace: {concurrency: 0}\n    max_size", 17, "peers.south.pace.concurrency", "greater than or equal to 1"),
    ("    max_size", "    pace: {delay: 0s}\n    max_size", 17, "peers.south.pace.delay", "greater than or equal to 1"),
    ("    max_size", '    ack: {retry: 1}\n    addresses: {recipient: "{number}@mnc{mnc}.mcc{mcc}.gprs"}\n    max_size', 17, "peers.south.ack.retry", "addressed by the number alone"),
    ("    max_size", "    pace: {concurrency: 2, delay: 1s}\n    max_size", 17, "peers.south.pace.concurrency", "concurrency has no effect with delay"),
    ("    max_size", "    local: mms.nobody.example\n    max_size", 17, "peers.south.local", "no local.domain is mms.nobody.example; there are: mms.gw.example"),
    # IPv6
    ("198.51.100.1/32", '"::ffff:198.51.100.1/128"', 15, "peers.south.networks[0]", "is IPv4 in another form; write 198.51.100.1/32"),
    ("next_hop: mms.south.example", 'next_hop: "[2001:db8::1::2]:25"', 16, "peers.south.next_hop", "holds no IPv6 address"),
    ("next_hop: mms.south.example", 'next_hop: "2001:db8::1"', 16, "peers.south.next_hop", "a next hop is written as Postfix wants it"),
    ('"192.0.2.9:25"', '["192.0.2.9:25", "2001:db8::1:25"]', 22, "service.listen[1]", "is no address with a port"),
    ('"192.0.2.9:25"', '["192.0.2.9:25", "192.0.2.9:25"]', 22, "service.listen", "192.0.2.9:25 stands here twice; keep one"),
    ('"192.0.2.9:25"', "[]", 22, "service.listen", "needs at least one entry"),
    ("    max_size", "    tls: always\n    max_size", 17, "peers.south.tls", "expects 'none', 'may', 'encrypt', 'fingerprint', 'verify' or 'secure', found 'always'"),
    ("    max_size", "    on_violation: shrug\n    max_size", 17, "peers.south.on_violation", "expects 'respond', 'reject' or 'monitor', found 'shrug'"),
    ("    max_size", "    delivery_report: maybe\n    max_size", 17, "peers.south.delivery_report", "expects 'on_delivery', 'on_report' or 'off', found 'maybe'"),
    ("  numbers: [", "  on_bounce: drop\n  numbers: [", 4, "local.on_bounce", "expects 'report', 'res' or 'off', found 'drop'"),
    ("  numbers: [", "  relayed_status: Rejected\n  numbers: [", 4, "local.relayed_status", "expects 'Indeterminate', 'Forwarded' or 'Retrieved', found 'Rejected'"),
    ("  numbers: [", "  postmaster_to: postmaster@mms.gw.example\n  numbers: [", 4, "local.postmaster_to", "mms.gw.example is a domain of ours: this mail would come back"),
    ("  numbers: [", "  region: XX\n  numbers: [", 4, "local.region", "'XX' is no ISO 3166 country with a numbering plan, for example DE"),
    # quantities
    ("max_size: 1MB", "max_size: 1000000", 17, "peers.south.max_size", "a size is a whole number with B, kB, MB or GB, for example 1MB (10^6 bytes on the wire)"),
    ("max_size: 1MB", "max_size: 1MiB", 17, "peers.south.max_size", "a size is a whole number"),
    ("timeout: 2h", "timeout: 2 hours", 18, "peers.south.ack.timeout", "a duration is a whole number with s, m, h or d, for example 10m"),
    ("timeout: 2h", "timeout: 7200", 18, "peers.south.ack.timeout", "a duration is a whole number"),
    # endpoints and the store
    ('"192.0.2.9:25"', '"192.0.2.9"', 22, "service.listen", "is no address with a port such as \"192.0.2.1:25\" or \"[2001:db8::1]:25\""),
    ('"192.0.2.9:25"', '"mms.gw.example:25"', 22, "service.listen", "is no address with a port"),
    ('"192.0.2.9:25"', '"2001:db8::1:25"', 22, "service.listen", "is no address with a port"),
    ('"192.0.2.9:25"', '"192.0.2.9:65536"', 22, "service.listen", "is no address with a port"),
    ("workers: 3", 'submit: "192.0.2.9:26"', 22, "service.submit", "submit has to be a loopback address: whoever reaches this line may send as anybody"),
    ("service:", "store: nonsense\nservice:", 22, "store", "a store is sqlite:////absolute/path/mm4.db"),
    ("service:", "store: mysql://a:secret@b/c\nservice:", 22, "store", "a store is sqlite:////absolute/path/mm4.db"),
    ("service:", "submit: pigeon\nservice:", 22, "submit", "expects 'sendmail' or 'smtp', found 'pigeon'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "key", "expected"), WRONG, ids=[f"{w[3]}: {w[4][:40]}" for w in WRONG])
def test_what_is_wrong_names_file_line_key_and_what_is_expected(
    old: str, new: str, line: int, key: str, expected: str
) -> None:
    found = problems(changed(old, new))
    ours = [p for p in found if p.startswith(f"{NAME}:{line}: {key}: ")]
    assert ours, found
    assert expected in ours[0]
    assert all(p.isprintable() for p in found)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", f"{NAME}:1: expects keys with values: local, peers, routes, ..."),
        ("# nothing yet\n", f"{NAME}:1: expects keys with values: local, peers, routes, ..."),
        ("local\n", f"{NAME}:1: expects keys with values"),
        ("- local\n", f"{NAME}:1: expects keys with values"),
        ("{}\n", f"{NAME}:1: local: has to be given"),
        ("local: {}\n", f"{NAME}:1: local.domain: has to be given"),
        ("local: []\n", f"{NAME}:1: local: needs at least one entry"),
        ("local:\n", f"{NAME}:1: local: expects a list, found None"),
        ("local:\n\tdomain: x\n", f"{NAME}:2: not readable as YAML: found character '\\t' that cannot start any token"),
        ("local: {domain: x\nfoo: y\n", f"{NAME}:2: not readable as YAML: "),
        ("local: [1\n", f"{NAME}:2: not readable as YAML: "),
        ("local: *no\n", f"{NAME}:1: not readable as YAML: found undefined alias 'no'"),
        ("local: !!python/object:os.system {}\n", f"{NAME}:1: local.domain: has to be given"),
        ("local: !!python/name:os.system x\n", f"{NAME}:1: not readable as YAML: could not determine a constructor"),
        ("\n\nlocal: \x07\n", f"{NAME}:3: not readable as YAML: a character that is no text"),
        ("\x00\x01\x02", f"{NAME}:1: not readable as YAML: a character that is no text"),
        ("a: 1\n---\nb: 2\n", f"{NAME}:2: not readable as YAML: but found another document"),
        ("local: 3\n", f"{NAME}:1: local: expects a list, found 3"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_so(text: str, problem: str) -> None:
    found = problems(text)
    assert [p for p in found if p.startswith(problem)], found


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("  domain: mms", "  domian: mms").replace("max_size: 1MB", "max_size: big").replace("workers: 3", "workers: x")
    found = problems(text)
    numbers = [int(p.split(":")[1]) for p in found]
    assert numbers == sorted(numbers)
    assert {1, 2, 17, 22} <= set(numbers)


def test_a_file_name_may_hold_a_colon() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed("workers: 3", "workers: x"), "/tmp/a:1:b/mm4.yaml")
    assert caught.value.problems[0].startswith("/tmp/a:1:b/mm4.yaml:22: service.workers: ")


def test_a_long_value_is_not_repeated_whole() -> None:
    (problem,) = problems(changed("workers: 3", f"workers: {'x' * 5000}"))
    assert len(problem) < 200


# -- right


def test_what_is_not_said_has_its_default() -> None:
    config = load()
    north, south = config.peers["north"], config.peers["south"]
    assert (north.dialect, north.tls.level, north.on_violation, north.identity, north.transit) == (
        "3gpp", "may", "respond", "log", False,
    )  # fmt: skip
    assert (north.max_size, north.ack.request, north.ack.timeout, north.mail_from) == (None, True, 600, "system")
    assert north.write_domain == "mms.north.example"
    assert (south.max_size, south.ack.request, south.ack.timeout) == (1_000_000, False, 7200)
    assert (config.submit, config.store) == ("sendmail", "sqlite:////var/lib/mm4/mm4.db")
    assert ([(e.host, e.port) for e in config.service.listen], config.service.workers) == ([("192.0.2.9", 25)], 3)
    assert config.service.metrics is None


def test_off_is_a_word_here_and_no_boolean() -> None:
    config = load(changed("    max_size", "    delivery_report: off\n    max_size"))
    assert (config.peers["south"].delivery_report, config.peers["north"].delivery_report) == ("off", "on_report")
    config = load(changed("  numbers: [", "  on_bounce: off\n  numbers: ["))
    assert (config.home.on_bounce, load().home.on_bounce) == ("off", "report")
    assert (load().home.relayed_status, load().home.postmaster_to) == ("Indeterminate", None)


def test_local_is_one_mapping_or_a_list_of_identities() -> None:
    assert [local.domain for local in load().local] == ["mms.gw.example"]
    two = """\
local:
  - {domain: mms.one.example, system_address: a@mms.one.example, numbers: ["+491"], clients: [10.0.0.0/24]}
  - {domain: mms.two.example, system_address: a@mms.two.example, numbers: ["+492"], clients: [10.0.0.0/24]}
"""
    assert [local.domain for local in load(two).local] == ["mms.one.example", "mms.two.example"]
    assert load(two).home.domain == "mms.one.example"
    (problem,) = problems(two.replace('["+492"]', "[492]"))
    assert problem.startswith(f"{NAME}:3: local[1].numbers[0]: has to be a quoted string")


def test_networks_may_lie_within_one_another() -> None:
    config = load(changed("198.51.100.1/32", "192.0.2.128/25, 192.0.2.7, 2001:db8::/32"))
    assert [str(n) for n in config.peers["south"].networks] == ["192.0.2.128/25", "192.0.2.7/32", "2001:db8::/32"]


def test_keys_may_be_shared_by_a_merge_and_said_again() -> None:
    text = changed("  south:\n", "  south: &base\n") + "  \n"
    text = text.replace("routes:", '  west:\n    <<: *base\n    networks: [198.51.100.2/32]\n    max_size: 2MB\nroutes:')
    config = load(text)
    assert (config.peers["west"].max_size, config.peers["south"].max_size) == (2_000_000, 1_000_000)
    assert config.peers["west"].ack.timeout == 7200
    (problem,) = problems(text.replace("    max_size: 2MB\n", "    max_size: 2MB\n    max_size: 3MB\n"))
    assert problem == f"{NAME}:23: peers.west.max_size: stands here twice (line 22); keep one"


@pytest.mark.parametrize("value", ["null", "~", "", '"null"'])
def test_a_null_sender_may_be_written_as_yaml_writes_null(value: str) -> None:
    assert load(changed("    max_size: 1MB", f"    mail_from: {value}")).peers["south"].mail_from == "null"


def test_relative_paths_are_relative_to_the_files_folder() -> None:
    text = GOOD + "store: sqlite:///mm4.db\nfolders: {state: state, sockets: ../run, postfix: /etc/postfix}\n"
    config = load(text)
    assert config.store == "sqlite:////etc/mm4/mm4.db"
    assert (config.folders.state, config.folders.sockets, config.folders.postfix) == (
        "/etc/mm4/state", "/etc/mm4/../run", "/etc/postfix",
    )  # fmt: skip
    for url in ("postgresql://mm4@db/mm4", "postgresql+psycopg://mm4@/mm4?host=a:1&host=b:2&target_session_attrs=read-write"):
        assert load(GOOD + f"store: {url}\n").store == url
    assert load(GOOD + "store: sqlite:////srv/x.db\n").store == "sqlite:////srv/x.db"


def test_letters_of_domains_and_regions_are_made_one_case() -> None:
    config = load(changed("  domain: mms.gw.example", "  domain: MMS.gw.Example\n  region: de"))
    assert (config.home.domain, config.home.region) == ("mms.gw.example", "DE")


@pytest.mark.parametrize(
    ("text", "size"), [("1B", 1), ("1kB", 1000), ("1KB", 1000), ("300 kB", 300_000), ("1MB", 10**6), ("2gb", 2 * 10**9), (" 1MB ", 10**6)]
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("10s", 10), ("10m", 600), ("2 h", 7200), ("1d", 86400)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "MB", "1.5MB", "-1MB", "1 M B", "1MB1", "1e3B", "9" * 13 + "B", 5, None, True, [], "1MB\n2"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="a size is a whole number"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "1", "m", "1.5m", "-1m", "1M", "1S", "1w", "10 minutes", "9" * 10 + "s", 5, None, True, []])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="a duration is a whole number"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "hop"),
    [
        ("[192.0.2.1]:25", ("192.0.2.1", 25, True)),
        ("[2001:db8::1]", ("2001:db8::1", None, True)),
        ("[mx.north.example]:2525", ("mx.north.example", 2525, True)),
        ("north.example", ("north.example", None, False)),
        ("north.example:26", ("north.example", 26, False)),
    ],
)
def test_next_hops_are_postfixs(text: str, hop: tuple[str, int | None, bool]) -> None:
    assert parse_next_hop(text) == hop


def test_the_place_of_a_key_is_its_line_or_that_of_what_holds_it() -> None:
    assert place(GOOD, NAME, "service.listen") == f"{NAME}:22: service.listen"
    assert place(GOOD, NAME, "service.metrics") == f"{NAME}:22: service.metrics"
    assert place(GOOD, NAME, "folders.sockets") == f"{NAME}:1: folders.sockets"
    assert place(GOOD, NAME, "routes.1.peer") == f"{NAME}:21: routes[1].peer"


def test_every_value_in_force_has_its_origin() -> None:
    rows = {key: (value, origin) for key, value, origin in origins(load(), GOOD, NAME)}
    assert rows["local.domain"] == ("mms.gw.example", "line 2")
    assert rows["peers.south.max_size"] == (1_000_000, "line 17")
    assert rows["peers.north.max_size"] == (None, "default")
    assert rows["peers.south.ack.timeout"] == (7200, "line 18")
    assert rows["peers.north.ack.timeout"] == (600, "default")
    assert rows["routes[1].prefix"] == ("+", "line 21")
    assert rows["folders.state"] == ("/var/lib/mm4", "default")
    assert rows["service.workers"] == (3, "line 22")


# -- dialect files

HARBOUR = """\
name: harbour
extends: tyntec
title: An invented operator
fields:
  priority: {header: X-Mms-Prio, source: a trace}
"""


def with_dialects(**dialects: str) -> str:
    """The good file with a dialect line for each peer that is named."""
    text = GOOD
    for peer, dialect in dialects.items():
        text = text.replace(f"  {peer}:\n", f"  {peer}:\n    dialect: {dialect}\n")
    return text


def test_a_dialect_file_is_found_from_the_configurations_folder() -> None:
    text = with_dialects(north="harbour.yaml", south="/srv/harbour.yml")
    assert dialect_files(text, NAME) == ["/etc/mm4/harbour.yaml", "/srv/harbour.yml"]
    assert dialect_files(with_dialects(north="harbour.yaml", south="harbour.yaml"), NAME) == ["/etc/mm4/harbour.yaml"]
    assert dialect_files(with_dialects(north="tyntec"), NAME) == []
    assert dialect_files("peers: [1]\n", NAME) == dialect_files("peers: {a: 3}\n", NAME) == dialect_files("3", NAME) == []
    config = parse_config(text, NAME, dict.fromkeys(dialect_files(text, NAME), HARBOUR))
    assert config.peers["north"].dialect == "/etc/mm4/harbour.yaml"
    assert ("peers.north.dialect", "/etc/mm4/harbour.yaml", "line 10") in origins(config, text, NAME)
    assert dict(config.dialects) == dict.fromkeys(["/etc/mm4/harbour.yaml", "/srv/harbour.yml"], HARBOUR)


def test_a_router_has_the_dialects_that_the_configuration_carries() -> None:
    text = with_dialects(north="harbour.yaml", south="mbuni")
    path = "/etc/mm4/harbour.yaml"
    router = Router(parse_config(text, NAME, {path: HARBOUR}))
    assert {side: router.dialect(side).name for side in ("local", "north", "south")} == {
        "local": "3gpp", "north": "harbour", "south": "mbuni",
    }  # fmt: skip
    assert router.dialect("north").fields["priority"].header == "X-Mms-Prio"
    with pytest.raises(InternalError, match="the text of this dialect was not handed over"):
        Router(parse_config(text, NAME))


def test_what_is_wrong_with_a_dialect_file_names_its_line_and_the_peer() -> None:
    text = with_dialects(north="harbour.yaml", south="harbour.yaml").replace("workers: 3", "workers: x")
    wrong = HARBOUR.replace("X-Mms-Prio", "Received").replace("tyntec", "tynte")
    with pytest.raises(ConfigError) as caught:
        parse_config(text, NAME, {"/etc/mm4/harbour.yaml": wrong})
    first = f"{NAME}:10: peers.north.dialect: /etc/mm4/harbour.yaml:"
    assert caught.value.problems == [
        first + "2: extends: there is no dialect 'tynte'; did you mean tyntec?",
        first + "5: fields.priority.header: Received is a header of mail itself; a field of MM4 cannot have it",
        f"{NAME}:24: service.workers: expects a whole number, found 'x'",
    ]


@pytest.mark.parametrize("word", ["all", "harbour.yaml.bak", "3GPP", "''"])
def test_what_is_neither_built_in_nor_a_file_is_no_dialect(word: str) -> None:
    (problem,) = problems(with_dialects(north=word))
    assert problem.startswith(f"{NAME}:10: peers.north.dialect: there is no dialect ")


def test_the_files_are_read_with_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mm4.yaml").write_text(with_dialects(north="d/harbour.yaml"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "harbour.yaml").write_text(HARBOUR)
    config, text = read_config(tmp_path / "mm4.yaml")
    path = str(tmp_path / "d" / "harbour.yaml")
    assert (config.peers["north"].dialect, dict(config.dialects)) == (path, {path: HARBOUR})
    assert Router(config).dialect("north").name == "harbour"
    assert text == with_dialects(north="d/harbour.yaml")


def looked_at(**dialects: str) -> list[tuple[str, bool, bool, str]]:
    """What `mm4 check` says about the peers' dialects, by a configuration whose next hops need no DNS."""
    text = with_dialects(**dialects).replace("next_hop: mms.south.example", 'next_hop: "[192.0.2.2]:25"')
    findings = _peers(parse_config(text, NAME, dict.fromkeys(dialect_files(text, NAME), HARBOUR)))
    return [(f.check, f.ok, f.warning, f.text) for f in findings]


def test_the_check_names_a_dialect_file_and_what_postfix_would_add_to_its_res() -> None:
    assert looked_at(north="3gpp", south="bare-ids") == []
    assert ("peers.north.dialect", True, False, "/etc/mm4/harbour.yaml: harbour, An invented operator") in looked_at(
        north="harbour.yaml"
    )
    assert looked_at(north="mbuni", south="minimal-res") == [
        ("peers.north.dialect", False, True,
         "a RES in the dialect mbuni has no From and no Date, which Postfix's sendmail adds"),
        ("peers.south.dialect", False, True,
         "a RES in the dialect minimal-res has no Date, which Postfix's sendmail adds"),
    ]  # fmt: skip


def test_every_file_that_cannot_be_read_is_told_beside_what_else_is_wrong(tmp_path: Path) -> None:
    file, latin = tmp_path / "mm4.yaml", tmp_path / "latin.yaml"
    file.write_text(with_dialects(north="no.yaml", south="latin.yaml").replace("workers: 3", "workers: x"))
    latin.write_bytes(b"\xe4")
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert caught.value.problems == [
        f"{file}:10: peers.north.dialect: {tmp_path / 'no.yaml'}: cannot be read: No such file or directory",
        f"{file}:15: peers.south.dialect: {latin}: is not UTF-8 (byte 0)",
        f"{file}:24: service.workers: expects a whole number, found 'x'",
    ]


def test_the_daemon_hands_over_the_texts_that_it_checked_and_keeps_them_while_the_file_is_wrong(tmp_path: Path) -> None:
    file, dialect = tmp_path / "mm4.yaml", tmp_path / "harbour.yaml"
    file.write_text(with_dialects(north="harbour.yaml"))
    dialect.write_text(HARBOUR)
    config, text = read_config(file)
    supervisor = _Supervisor(str(file), config, text)

    def handed_over() -> str:
        told: dict[str, Any] = json.loads(json.dumps(supervisor.configuration()))
        child = parse_config(told["config"], told["name"], told["dialects"])
        return Router(child).dialect("north").fields["priority"].header

    dialect.write_text(HARBOUR.replace("X-Mms-Prio", "Received"))
    asyncio.run(supervisor._reload())
    assert handed_over() == "X-Mms-Prio"
    dialect.write_text(HARBOUR.replace("X-Mms-Prio", "X-Mms-Urgency"))
    assert handed_over() == "X-Mms-Prio", "a child that starts again gets what was checked"
    asyncio.run(supervisor._reload())
    assert handed_over() == "X-Mms-Urgency"


# -- documented


def test_the_example_is_the_file_in_docs_and_loads() -> None:
    text = (REPOSITORY / "docs" / "mm4.yaml").read_text("utf-8")
    assert text == example(), "mm4 config example > docs/mm4.yaml"
    config = parse_config(text, NAME)
    assert list(config.peers) == ["tyntec"]


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for info in model.model_fields.values():
        for inner in models(info.annotation):
            yield from sections(inner)


SECTIONS = list(dict.fromkeys(sections(Config)))
KEYS = [(m, info.alias or name) for m in SECTIONS for name, info in m.model_fields.items() if not info.exclude]


@pytest.mark.parametrize(("model", "name"), KEYS, ids=[f"{m.__name__}.{n}" for m, n in KEYS])
def test_every_key_is_documented_in_the_schema_and_in_the_example(model: type[BaseModel], name: str) -> None:
    description = next(info.description for key, info in model.model_fields.items() if name in (key, info.alias))
    assert description
    assert description.endswith(".")
    lines = [line.strip().removeprefix("#").strip() for line in example().splitlines()]
    words = " ".join(lines)
    assert description in words
    assert [line for line in lines if line.startswith(f"{name}:") or f"{{{name}:" in line or f" {name}: " in line]


SECTIONS = ("folders", "spool", "ack", "cdr", "rotate", "headers", "content", "rate", "flood")


def test_what_the_example_shows_as_default_is_the_default() -> None:
    # Every comment that is a key, uncommented: the same configuration, but for what has no default.
    lines: list[str] = []
    for line in example().splitlines():
        bare = line.strip().removeprefix("#")
        key = bare.strip().partition(":")[0]
        commented = line.lstrip().startswith("# ") and key in {name for _, name in KEYS} and not bare.rstrip().endswith(".")
        if (commented and bare.partition(":")[2].strip()) or key in SECTIONS or line in ("    # addresses:", "# mail:"):
            line = line.replace("# ", "", 1)  # noqa: PLW2901 - the line as an operator would leave it
        lines.append(line)
    text = "\n".join(lines)
    tree: Any = yaml.safe_load(text)
    assert tree["submit"] == "sendmail"
    assert tree["folders"]["state"] == "/var/lib/mm4"
    assert "request" in tree["peers"]["tyntec"]["ack"]
    parsed = parse_config(text, NAME)
    # The sections that are off as long as they are not there.
    assert parsed.cdr == Cdr()
    tyntec = parsed.peers["tyntec"]
    assert tyntec.flood == Flood()
    off = {"cdr": None, "peers": {"tyntec": tyntec.model_copy(update={"flood": None})}}
    assert parsed.model_copy(update=off) == parse_config(example(), NAME)


def test_charging_records_are_off_until_asked_for_and_their_folder_is_found(tmp_path: Path) -> None:
    base = example()
    assert parse_config(base, NAME).cdr is None
    asked = parse_config(base + "cdr: {}\n", NAME)
    assert asked.cdr == Cdr()
    assert asked.cdr_folder == "/var/lib/mm4/cdr"
    text = base + "cdr: {format: csv, folder: records, rotate: {records: 3, after: 1d}}\n"
    given = parse_config(text, str(tmp_path / "mm4.yaml"))
    assert given.cdr is not None
    assert (given.cdr.format, given.cdr_folder) == ("csv", str(tmp_path / "records"))
    assert (given.cdr.rotate.records, given.cdr.rotate.after) == (3, 86400)


def test_ways_to_a_peer_are_read_in_either_form() -> None:
    more = """    tls: {level: secure, match: .south.example, ca: tls/ca.pem, certificate: /etc/own.pem}
    source: ["2001:DB8::1", 192.0.2.7]
    login: {user: gw, password_file: secret}
    pace: {delay: 2s}
    local: MMS.gw.example
    max_size"""
    south = load(changed("    max_size", more)).peers["south"]
    assert (south.tls.match, south.tls.ca, south.tls.certificate) == (
        [".south.example"], "/etc/mm4/tls/ca.pem", "/etc/own.pem",
    )  # fmt: skip
    assert south.login is not None
    assert (south.login.user, south.login.password_file) == ("gw", "/etc/mm4/secret")
    assert (south.source, south.pace.delay, south.local) == (["2001:db8::1", "192.0.2.7"], 2, ["mms.gw.example"])
    digest = "AB" * 32
    pinned = load(changed("    max_size", f"    tls: {{level: fingerprint, fingerprints: {digest.lower()}}}\n    max_size"))
    assert pinned.peers["south"].tls.fingerprints == [":".join(["AB"] * 32)]
    assert load(changed("    max_size", "    tls: encrypt\n    max_size")).peers["south"].tls.level == "encrypt"
    several = load(changed('"192.0.2.9:25"', '["192.0.2.9:25", "[2001:db8::9]:25"]')).service.listen
    assert [(endpoint.host, endpoint.port) for endpoint in several] == [("192.0.2.9", 25), ("2001:db8::9", 25)]


def test_a_number_belongs_to_one_operator() -> None:
    two = """local:
  - {domain: mms.one.example, system_address: a@mms.one.example, numbers: ["+491"]}
  - {domain: mms.two.example, system_address: a@mms.two.example, numbers: ["+492", "+491"]}
"""
    assert any("local[1].numbers[1]: +491 is served by mms.one.example too" in problem for problem in problems(two))


def test_the_dialects_that_the_schema_names_are_those_that_there_are() -> None:
    description = Peer.model_fields["dialect"].description
    assert description is not None
    assert all(name in description for name in builtin_names())
