"""`mm4 peer test` against servers of every kind: what each step says, that it ends in time, and that nothing raises."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.resolver
import dns.rrset
import pytest
import trustme

from mm4.gateway.config import Config
from mm4.gateway.samples import originator_sample, recipient_sample
from mm4.lookup import mx
from mm4.postfix import trial
from mm4.postfix.certificate import fingerprints, fits
from mm4.postfix.trial import Step, Trial
from mm4.protocol.address import parse_address
from mm4.protocol.errors import LookupUnavailable
from recorder import called

PASSWORD = "tr0ub4dor"
PLAIN = "AGcAdHIwdWI0ZG9y"
GOOD = {
    "": b"220 mx.p.example ESMTP\r\n", "EHLO": b"250-mx.p.example\r\n250 SIZE 1000000\r\n", "HELO": b"250 mx.p.example\r\n",
    "MAIL": b"250 2.1.0 Ok\r\n", "RCPT": b"250 2.1.5 Ok\r\n", "RSET": b"250 2.0.0 Ok\r\n", "QUIT": b"221 Bye\r\n",
    "STARTTLS": b"220 Go ahead\r\n", "AUTH": b"235 2.7.0 Ok\r\n",
}  # fmt: skip
TLS = {**GOOD, "EHLO": b"250-mx.p.example\r\n250-STARTTLS\r\n250 SIZE 1000000\r\n"}
LOGIN = {**GOOD, "EHLO": b"250-mx.p.example\r\n250-STARTTLS\r\n250-SIZE\r\n250 AUTH PLAIN LOGIN\r\n"}

Act = Callable[[socket.socket], None]


class Server:
    """Says what `replies` has for a verb ('' is the greeting), or does what `act` does with a connection."""

    def __init__(self, replies: dict[str, bytes] | None = None, act: Act | None = None, context: ssl.SSLContext | None = None, wrapper: bool = False) -> None:
        self.replies = replies or GOOD
        self.act = act or self.talk
        self.context = context
        self.wrapper = wrapper
        self.said: list[str] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with contextlib.suppress(OSError), connection:
                    self.act(connection)

    def talk(self, connection: socket.socket) -> None:
        if self.wrapper:
            assert self.context
            connection = self.context.wrap_socket(connection, server_side=True)
        connection.sendall(self.replies[""])
        stream = connection.makefile("rb")
        while line := stream.readline():
            self.said.append(line.decode("latin-1").rstrip("\r\n"))
            verb = (line.split() or [b"-"])[0].decode("latin-1").upper()
            connection.sendall(self.replies.get(verb, self.replies.get("*", b"500 what?\r\n")))
            if verb == "STARTTLS" and self.replies[verb].startswith(b"220") and self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
                stream = connection.makefile("rb")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # a thread waits in accept
        self.socket.close()


def config(folder: Path, port: int, **more: Any) -> Config:
    main_cf(folder, "")
    peer = {"domains": ["mms.p.example"], "networks": ["192.0.2.1/32"], "next_hop": f"[127.0.0.1]:{port}", "max_size": "300kB", **more}
    return Config.model_validate({
        "local": {"domain": "mms.own.example", "system_address": "s@mms.own.example", "numbers": ["+491511"]},
        "peers": {"p": peer}, "routes": [{"prefix": "+4477", "peer": "p"}],
        "folders": {"postfix": str(folder / "postfix"), "state": str(folder)},
    })  # fmt: skip


def main_cf(folder: Path, text: str) -> Path:
    """What Postfix's own tools read; as if it had been there for long, or they would wait for its writer to be done."""
    (folder / "postfix").mkdir(exist_ok=True)
    for name in ("master.cf", "main.cf"):
        (folder / "postfix" / name).write_text(f"compatibility_level = 3.6\n{text or 'myhostname = mms.own.example'}\n" if name == "main.cf" else "")
        os.utime(folder / "postfix" / name, (1, 1))
    return folder / "postfix" / "main.cf"


def tried(made: Config, to: str | None = None, seconds: float = 2.0) -> tuple[bool, dict[str, Step]]:
    steps: list[Step] = []
    well = Trial(made, "p", parse_address(to) if to else None, steps.append, seconds).run()
    assert well is all(step.ok is not False for step in steps)
    assert [step for step in steps if step.ok is False and not step.cure] == []
    assert [step for step in steps if "{" in (step.cure or "")] == []
    return well, {step.step: step for step in steps}


def failing(steps: dict[str, Step]) -> list[str]:
    return [name for name, step in steps.items() if step.ok is False]


def test_a_peer_that_does_everything(tmp_path: Path) -> None:
    with Server() as server:
        well, steps = tried(config(tmp_path, server.port))
    assert well
    assert server.said == [
        "EHLO mms.own.example", "MAIL FROM:<+49151100000/TYPE=PLMN@mms.own.example> SIZE=300000",
        "RCPT TO:<+44770000000/TYPE=PLMN@mms.p.example>", "RSET", "QUIT",
    ]  # fmt: skip
    assert [name for name, step in steps.items() if step.ok is None] == []


def test_postfixs_main_cf_has_the_name_and_the_address_and_without_one_it_is_our_domain(tmp_path: Path) -> None:
    with Server() as server:
        made = config(tmp_path, server.port)
        main = main_cf(tmp_path, "myhostname = gw.example\nsmtp_bind_address = 127.0.0.9\n")
        assert tried(made)[1]["connect"].said.endswith("from 127.0.0.9")
        main.unlink()
        assert tried(made)[1]["postfix"].ok is None
    assert [line for line in server.said if line.startswith("EHLO")] == ["EHLO gw.example", "EHLO mms.own.example"]


@pytest.mark.parametrize(
    ("more", "to", "said"),
    [
        ({"recipient_domain": "mms.q.example"}, "+447700900002", "<+447700900002/TYPE=PLMN@mms.q.example>"),
        ({"addresses": {"recipient": "{digits}@{domain}"}}, "+447700900002", "<447700900002@mms.p.example>"),
        ({"addresses": {"recipient": "{number}@mms.mnc{mnc}.mcc{mcc}.gprs"}}, "+447700900002@mms.mnc015.mcc234.gprs",
         "<+447700900002@mms.mnc015.mcc234.gprs>"),
        ({"addresses": {"recipient": "{number}@mms.mnc{mnc}.mcc{mcc}.gprs"}}, None, None),
    ],
)  # fmt: skip
def test_rcpt_is_as_the_templates_write_it(tmp_path: Path, more: dict[str, Any], to: str | None, said: str | None) -> None:
    with Server() as server:
        well, steps = tried(config(tmp_path, server.port, **more), to)
    assert well
    assert [line.partition(":")[2] for line in server.said if line.startswith("RCPT")] == ([said] if said else [])
    assert steps["RCPT TO"].ok is (True if said else None)


def test_without_a_number_it_stops_before_rcpt(tmp_path: Path) -> None:
    with Server() as server:
        made = config(tmp_path, server.port).model_copy(update={"routes": []})
        well, steps = tried(made)
    assert (well, steps["RCPT TO"].ok, "--to NUMBER" in steps["RCPT TO"].said) == (True, None, True)
    assert "RSET" in server.said


REFUSALS = [
    ("", b"554 5.7.1 no\r\n", "greeting", "does not take connections from 127.0.0.1"),
    ("", b"421 busy\r\n", "greeting", "temporary"),
    ("EHLO", b"450 not now\r\n", "EHLO", "temporary"),
    ("EHLO", b"250-mx\r\n250 SIZE 1000\r\n", "SIZE", "max_size: 1000B"),
    ("MAIL", b"530 5.7.0 log in\r\n", "MAIL FROM", "`login`"),
    ("MAIL", b"552 5.3.4 too big\r\n", "MAIL FROM", "max_size"),
    ("MAIL", b"553 5.1.8 who?\r\n", "MAIL FROM", "addresses.sender"),
    ("RCPT", b"550 5.1.1 who?\r\n", "RCPT TO", "--to NUMBER"),
    ("RCPT", b"451 4.7.1 later\r\n", "RCPT TO", "temporary"),
    ("RSET", b"502 no\r\n", "RSET", "Postfix does without"),
]


@pytest.mark.parametrize(("verb", "reply", "step", "cure"), REFUSALS, ids=str)
def test_what_is_refused_is_named_with_its_cure(tmp_path: Path, verb: str, reply: bytes, step: str, cure: str) -> None:
    with Server({**GOOD, verb: reply}) as server:
        well, steps = tried(config(tmp_path, server.port))
    assert (well, failing(steps)) == (False, [step])
    assert cure in str(steps[step].cure)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def for_ever(data: bytes) -> Act:
    def act(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)

    return act


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"2")
        time.sleep(0.05)


HOSTILE: dict[str, Act] = {
    "nothing": lambda c: c.recv(1) and None,
    "closes": lambda c: None,
    "resets": reset,
    "garbage": lambda c: c.sendall(b"\x00\xff\x80SSH-2.0-x\r\n"),
    "no code": lambda c: c.sendall(b"22x hello\r\n"),
    "a code that is none": lambda c: c.sendall(b"999 hello\r\n"),
    "no end of line": for_ever(b"2" * 1000),
    "no end of banner": for_ever(b"220-hello\r\n"),
    "a byte at a time": drip,
    "http": lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}


@pytest.mark.parametrize("act", HOSTILE.values(), ids=list(HOSTILE))
def test_a_server_that_is_none_is_told_and_ends_in_time(tmp_path: Path, act: Act) -> None:
    begun = time.monotonic()
    with Server(act=act) as server:
        well, steps = tried(config(tmp_path, server.port), seconds=0.5)
    assert not well
    assert failing(steps) in (["greeting"], ["connect"])  # a reset may come before connect(2) is through
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("reply", [b"250", b"250-\r\n\r\n", b"\r\n", b"250 " + b"x" * 9000 + b"\r\n", b"250-a\r\n" * 200], ids=repr)
@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "RSET"])
def test_nonsense_at_any_step_is_that_steps_failure(tmp_path: Path, verb: str, reply: bytes) -> None:
    with Server({**GOOD, verb: reply}) as server:
        well, steps = tried(config(tmp_path, server.port), seconds=0.3)
    assert (well, failing(steps)) == (False, [{"MAIL": "MAIL FROM", "RCPT": "RCPT TO"}.get(verb, verb)])


def test_what_a_server_says_does_not_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server({**GOOD, "RCPT": b"550 \x1b[2J\x07red\r\n"}) as server:
        (tmp_path / "mm4.yaml").write_text(
            'local: {domain: mms.own.example, system_address: s@mms.own.example, numbers: ["+491511"]}\n'
            f'peers: {{p: {{domains: [mms.p.example], networks: [192.0.2.1/32], next_hop: "[127.0.0.1]:{server.port}"}}}}\n'
            f"folders: {{postfix: {tmp_path}/none, state: {tmp_path}}}\n"
        )
        done = called(monkeypatch, capsys, "peer", "test", "p", "--to", "+447700900002", "--config", tmp_path / "mm4.yaml")
        assert done.code == 1
        assert "failed  RCPT TO" in done.out
        assert "\x1b" not in done.out
        wrong = called(monkeypatch, capsys, "peer", "test", "p", "--to", "ann", "--config", tmp_path / "mm4.yaml")
        assert (wrong.code, "'ann' is no E.164 number" in wrong.err) == (2, True)


def test_a_closed_port_and_a_source_that_is_not_here(tmp_path: Path) -> None:
    with Server() as server:
        port = server.port
        _, steps = tried(config(tmp_path, port, source="192.0.2.77"))
        assert failing(steps) == ["connect"]
        assert "192.0.2.77 is no address of this host" in str(steps["connect"].cure)
    _, steps = tried(config(tmp_path, port))
    assert (failing(steps), "port included" in str(steps["connect"].cure)) == (["connect"], True)


# -- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def leaf(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("mx.p.example", "*.wild.example", common_name="mx.cn.example")


@pytest.fixture
def context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(made)
    return made


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def der(leaf: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


def test_fingerprints_are_those_of_openssl(leaf: trustme.LeafCert) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    key = load_der_x509_certificate(der(leaf)).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert fingerprints(der(leaf)) == tuple(hashlib.sha256(data).digest().hex(":").upper() for data in (der(leaf), key))
    for end in (0, 1, 2, 10, 100):
        assert fingerprints(der(leaf)[:end])[1] is None


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ("none", []),
        ("may", []),
        ("encrypt", []),
        ({"level": "fingerprint", "fingerprints": "@digest@"}, []),
        ({"level": "fingerprint", "fingerprints": "@key@"}, []),
        ({"level": "fingerprint", "fingerprints": "ab" * 32}, ["certificate"]),
        ({"level": "secure", "match": "mx.p.example", "ca": "@ca@"}, []),
        ({"level": "secure", "match": ".p.example", "ca": "@ca@"}, []),
        ({"level": "verify", "match": "a.wild.example", "ca": "@ca@"}, []),
        ({"level": "secure", "match": "mx.cn.example", "ca": "@ca@"}, ["certificate"]),
        ({"level": "secure", "match": "mx.q.example", "ca": "@ca@"}, ["certificate"]),
        ({"level": "secure", "match": "mx.p.example"}, ["certificate"]),
        ({"level": "secure", "match": "mx.p.example", "ca": "@none@"}, ["STARTTLS"]),
        ({"level": "encrypt", "certificate": "@none@"}, ["STARTTLS"]),
        ({"level": "encrypt", "certificate": "@ca@"}, ["STARTTLS"]),
        ({"level": "encrypt", "wrapper": True}, ["TLS"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_levels_of_tls(
    tmp_path: Path, context: ssl.SSLContext, leaf: trustme.LeafCert, ca: str, tls: Any, expected: list[str]
) -> None:
    digest, key = fingerprints(der(leaf))
    replace = {"@digest@": digest, "@key@": key, "@ca@": ca, "@none@": str(tmp_path / "none.pem")}
    if isinstance(tls, dict):
        tls = {k: replace.get(v, v) if isinstance(v, str) else v for k, v in tls.items()}
    with Server(TLS, context=context) as server:
        well, steps = tried(config(tmp_path, server.port, tls=tls), seconds=1)
    assert (well, failing(steps)) == (not expected, expected)
    assert ("MAIL FROM" in steps) is (not expected)


def test_tls_from_the_first_byte_on(tmp_path: Path, context: ssl.SSLContext, ca: str) -> None:
    tls = {"level": "secure", "match": "mx.p.example", "ca": ca, "wrapper": True}
    with Server(context=context, wrapper=True) as server:
        well, steps = tried(config(tmp_path, server.port, tls=tls))
        assert (well, "TLS" in steps, "STARTTLS" in steps) == (True, True, False)
        _, steps = tried(config(tmp_path, server.port), seconds=0.5)
    assert (failing(steps), "tls.wrapper: yes" in str(steps["greeting"].cure)) == (["greeting"], True)


@pytest.mark.parametrize(
    ("replies", "tls", "expected"),
    [
        (GOOD, "may", []),
        (GOOD, "encrypt", ["STARTTLS"]),
        ({**TLS, "STARTTLS": b"454 4.7.0 not now\r\n"}, "encrypt", ["STARTTLS"]),
        ({**TLS, "STARTTLS": b"454 4.7.0 not now\r\n"}, "may", ["STARTTLS"]),
        ({**TLS, "STARTTLS": b"220 go\r\n"}, "encrypt", ["STARTTLS"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_server_without_tls_or_with_half_of_it(tmp_path: Path, replies: dict[str, bytes], tls: str, expected: list[str]) -> None:
    with Server(replies) as server:
        well, steps = tried(config(tmp_path, server.port, tls=tls), seconds=0.5)
    assert (well, failing(steps)) == (not expected, expected)
    # Where TLS is not asked for, Postfix goes on without.
    assert ("RCPT TO" in steps) is (tls == "may")


def test_what_was_slipped_in_before_tls_began_is_not_taken_for_the_servers_word(tmp_path: Path, context: ssl.SSLContext) -> None:
    with Server({**TLS, "STARTTLS": b"220 go\r\n250-mx.p.example\r\n250 AUTH PLAIN\r\n"}, context=context) as server:
        _, steps = tried(config(tmp_path, server.port, tls="encrypt"))
    assert failing(steps) == ["STARTTLS"]
    assert "before TLS began" in steps["STARTTLS"].said


def test_a_server_that_wants_our_certificate(tmp_path: Path, authority: trustme.CA, context: ssl.SSLContext) -> None:
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    own = authority.issue_cert("gw.example")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    with Server(TLS, context=context) as server:
        _, steps = tried(config(tmp_path, server.port, tls="encrypt"))
        # TLS 1.3 tells it at the next answer.
        assert len(failing(steps)) == 1
        assert "tls.certificate" in str(steps[failing(steps)[0]].cure)
        assert tried(config(tmp_path, server.port, tls={"level": "encrypt", "certificate": str(tmp_path / "own.pem")}))[0]


@pytest.mark.parametrize(
    ("certified", "wanted", "yes"),
    [
        (["mx.p.example"], ["MX.P.example"], True), (["*.p.example"], ["mx.p.example"], True), (["*.p.example"], ["a.mx.p.example"], False),
        (["*.p.example"], ["p.example"], False), (["a.mx.p.example"], [".p.example"], True), (["p.example"], [".p.example"], False),
        (["xp.example"], [".p.example"], False), (["host.example"], ["hostname"], True), (["hop.example"], ["nexthop"], True),
        (["a.hop.example"], ["nexthop", "dot-nexthop"], True), (["*."], ["localhost"], False), ([], ["mx.p.example"], False),
    ],
    ids=str,
)  # fmt: skip
def test_names_fit_as_postfix_has_it(certified: list[str], wanted: list[str], yes: bool) -> None:
    assert fits(certified, wanted, host="host.example", next_hop="hop.example") is yes


# -- login


@pytest.mark.parametrize(
    ("offer", "tls", "expected", "said"),
    [
        (b"AUTH PLAIN LOGIN", True, [], "AUTH PLAIN"),
        (b"AUTH=LOGIN", True, [], "AUTH LOGIN"),
        (b"AUTH CRAM-MD5 PLAIN", False, [], "AUTH CRAM-MD5"),
        (b"AUTH PLAIN", False, ["AUTH"], None),
        (b"AUTH GSSAPI", True, ["AUTH"], None),
        (b"AUTH", True, ["AUTH"], None),
        (b"HELP", True, ["AUTH"], None),
    ],
    ids=str,
)  # fmt: skip
def test_the_login(tmp_path: Path, context: ssl.SSLContext, offer: bytes, tls: bool, expected: list[str], said: str | None) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    login = {"user": "g", "password_file": str(tmp_path / "password")}
    replies = {**GOOD, "EHLO": b"250-mx.p.example\r\n" + (b"250-STARTTLS\r\n" if tls else b"") + b"250 " + offer + b"\r\n"}
    if said in ("AUTH LOGIN", "AUTH CRAM-MD5"):
        replies |= {"AUTH": b"334 VXNlcm5hbWU6\r\n", "ZW==": b"334 UGFzc3dvcmQ6\r\n", "*": b"235 2.7.0 Ok\r\n"}
    with Server(replies, context=context) as server:
        well, steps = tried(config(tmp_path, server.port, login=login, tls="encrypt" if tls else "none"))
    assert (well, failing(steps)) == (not expected, expected)
    assert [line[: len(said or "")] for line in server.said if line.startswith("AUTH")] == ([said] if said else [])
    assert PASSWORD not in str(steps)


@pytest.mark.parametrize("text", [None, "", " x", "y\n"])
def test_a_refused_login_and_a_file_that_holds_no_password(tmp_path: Path, context: ssl.SSLContext, text: str | None) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    login = {"user": "g", "password_file": str(file)}
    answer = b"535 5.7.8 " + (text or "").strip().encode() + b" AGcAeQ== is wrong\r\n"
    with Server({**LOGIN, "AUTH": answer}, context=context) as server:
        _, steps = tried(config(tmp_path, server.port, login=login, tls="encrypt"))
    assert failing(steps) == ["AUTH"]
    if text == "y\n":
        assert steps["AUTH"].said == "PLAIN as g: 535 5.7.8 *** *** is wrong"
    else:
        assert "password_file" in steps["AUTH"].said


# -- next hops


class Names:
    """A DNS server on a UDP socket, which the resolver of `resolver` asks."""

    def __init__(self, records: dict[tuple[str, str], list[str]]) -> None:
        self.records = records
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.resolver = dns.resolver.Resolver(configure=False)
        self.resolver.nameservers = ["127.0.0.1"]
        self.resolver.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self.socket.recvfrom(4096)
                query = dns.message.from_wire(data)
                question = query.question[0]
                kind = dns.rdatatype.to_text(question.rdtype)
                found = self.records.get((question.name.to_text(omit_final_dot=True), kind), [])
                response = dns.message.make_response(query)
                if found:
                    response.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *found))
                self.socket.sendto(response.to_wire(), client)


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names({
        ("mms.p.example", "MX"): ["20 mx2.p.example.", "10 mx1.p.example."],
        ("mx1.p.example", "A"): ["127.0.0.2"], ("mx1.p.example", "AAAA"): ["::1"], ("mx2.p.example", "A"): ["127.0.0.1"],
        ("nobody.example", "MX"): ["0 ."], ("plain.example", "A"): ["127.0.0.1"],
    })  # fmt: skip
    yield made
    made.socket.close()


def test_mx_first_and_then_the_address(names: Names) -> None:
    ask = names.resolver
    assert mx.exchangers("mms.p.example", resolver=ask) == ["mx1.p.example", "mx2.p.example"]
    assert mx.exchangers("plain.example", resolver=ask) == ["plain.example"]
    assert mx.exchangers("nobody.example", resolver=ask) == []
    assert mx.addresses("mx1.p.example", (6, 4), resolver=ask) == ["::1", "127.0.0.2"]
    assert mx.addresses("mx1.p.example", (4,), resolver=ask) == ["127.0.0.2"]
    assert mx.addresses("mx2.p.example", (6,), resolver=ask) == []
    assert mx.addresses("localhost", (4,), resolver=ask) == ["127.0.0.1"]  # in /etc/hosts alone
    assert mx.addresses("IPv6:::1", (6, 4), resolver=ask) == ["::1"]
    assert mx.addresses("::1", (4,), resolver=ask) == []


def test_dns_that_does_not_answer_is_no_absence() -> None:
    silent = dns.resolver.Resolver(configure=False)
    silent.nameservers, silent.port = ["127.0.0.1"], 9
    for ask in (mx.exchangers, lambda name, **more: mx.addresses(name, (4,), **more)):
        with pytest.raises(LookupUnavailable):
            ask("mms.p.invalid", seconds=0.2, resolver=silent)


def test_the_next_address_is_tried_where_one_does_not_answer(tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns.resolver, "get_default_resolver", lambda: names.resolver)
    with Server() as server:
        steps: list[Step] = []
        made = config(tmp_path, 0, next_hop=f"mms.p.example:{server.port}", source="127.0.0.1")
        assert not Trial(made, "p", None, steps.append, 2).run()
    assert [(s.address, s.ok) for s in steps if s.step == "connect"] == [("127.0.0.2", False), ("127.0.0.1", True)]
    assert [s.ok for s in steps if s.step == "RCPT TO"] == [True]
    nobody = config(tmp_path, 0, next_hop="nobody.example")
    assert failing(tried(nobody)[1]) == ["next hop"]


def test_one_with_our_own_name_on_port_25_is_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server({**GOOD, "EHLO": b"250 mms.own.example\r\n"}) as server:
        assert tried(config(tmp_path, server.port))[0]
        monkeypatch.setattr(trial, "_SMTP", server.port)
        assert failing(tried(config(tmp_path, server.port))[1]) == ["EHLO"]


def test_samples(tmp_path: Path) -> None:
    made = config(tmp_path, 25)
    assert originator_sample(made.local[0]) == parse_address("+49151100000")
    assert recipient_sample(made, "p") == parse_address("+44770000000")
