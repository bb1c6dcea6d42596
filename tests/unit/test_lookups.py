"""ENUM and number portability against servers on real sockets that answer, hang, lie and die; and what is kept of it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trustme

from mm4.lookup.cache import Cache
from mm4.lookup.enum import Enum, domain_of_number, rewrite
from mm4.lookup.http import Portability
from mm4.protocol.errors import LookupUnavailable

NUMBER = "+447700900101"
ZONE = "e164.arpa.test"

# -- what is kept


def test_what_is_kept_ends_with_its_time_and_the_least_asked_goes_first() -> None:
    now = [0.0]
    cache: Cache[str | None] = Cache(2, lambda: now[0])
    cache.put("a", None, 10)
    cache.put("b", "2", 5)
    cache.put("never", "3", 0)
    assert (cache.get("a"), cache.get("b"), cache.get("never")) == ((None,), ("2",), None)
    assert cache.get("a") == (None,)
    cache.put("c", "3", 10)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == ((None,), None, ("3",), 2)
    now[0] = 10.0
    assert (cache.get("a"), cache.get("c"), len(cache)) == (None, None, 0)


# -- the rules of NAPTR


@pytest.mark.parametrize(
    ("rule", "made"),
    [
        ("!^.*$!mailto:mms@mms.north.example!", "mailto:mms@mms.north.example"),
        (r"!^(.*)$!tel:\1!", "tel:+447700900101"),
        (r"!^\+44(7700)(.*)$!tel:+44\1\2;npdi!", "tel:+447700900101;npdi"),
        (r"/^.*$/mailto:a\/b@x.example/i", "mailto:a/b@x.example"),
        (r"!^\+44!tel:+33!", "tel:+337700900101"),
        (r"!^.*$!mailto:a\\b@x.example!", r"mailto:a\b@x.example"),
        (r"!^[+]4[0-9]{3}.*$!tel:1!", "tel:1"),
        (r"!^\+49.*$!mailto:a@x.example!", None),
        (r"!^(44|\+44).*$!tel:\1!", "tel:+44"),
    ],
)
def test_a_rule_is_applied_to_the_number(rule: str, made: str | None) -> None:
    assert rewrite(rule, NUMBER) == made


@pytest.mark.parametrize(
    "rule",
    [
        "", "!", "!a", "!a!b", "!a!b!x", "!a!b!c!", "1a1b1", r"\a\b\ ".strip(), "!(!x!", r"!^.*$!\1!", "!a!b!ii",
        "!(a*)*!x!", "!(a+)+b!x!", "!(.*){9}!x!", "!.*.*.*.*.*x!x!", "!(a|)(a|)(a|)(a|)(a|)x!x!", "!(?:a)?!x!",
    ],
)  # fmt: skip
def test_what_is_no_rule_or_might_take_for_ever(rule: str) -> None:
    with pytest.raises(ValueError, match=r"no substitution|cannot be used|for ever"):
        rewrite(rule, NUMBER)


@pytest.mark.parametrize("rule", ["!^.*.*.*.*x$!y!", "!^[0-9+]*[0-9+]*[0-9+]*[0-9+]*x$!y!", r"!^(.)\1*.*.*.*x$!y!"])
def test_what_is_a_rule_takes_no_time(rule: str) -> None:
    begun = time.process_time()
    assert rewrite(rule, "+" + "1" * 15) is None
    assert time.process_time() - begun < 1


def test_where_a_number_stands() -> None:
    assert domain_of_number("+441234", "e164.arpa") == "4.3.2.1.4.4.e164.arpa."


# -- DNS

Said = Callable[[dns.message.Message], bytes | None]


class Dns:
    """A server on a UDP socket that says what it is told to; `asked` are the names."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.asked: list[str] = []
        self.says: Said = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self.socket.recvfrom(4096)
                query = dns.message.from_wire(data)
                self.asked.append(query.question[0].name.to_text())
                said = self.says(query)
                if said is not None:
                    self.socket.sendto(said, client)

    def enum(self, seconds: float = 5.0, *others: int) -> Enum:
        return Enum(ZONE, [*(("127.0.0.1", port) for port in others), ("127.0.0.1", self.port)], seconds)


def answer(query: dns.message.Message, *records: str, ttl: int = 300, rcode: str = "NOERROR", soa: int | None = None) -> bytes:
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.from_text(rcode))
    response.flags |= dns.flags.AA
    if records:
        response.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", "NAPTR", *records))
    if soa is not None:
        text = f"ns.{ZONE}. root.{ZONE}. 1 3600 600 86400 {soa}"
        response.authority.append(dns.rrset.from_text(f"{ZONE}.", 86400, "IN", "SOA", text))
    return response.to_wire()


@pytest.fixture
def server() -> Iterator[Dns]:
    made = Dns()
    yield made
    made.socket.close()


MAILTO = '100 10 "u" "E2U+mms:mailto" "!^.*$!mailto:mms@mms.north.example!" .'


@pytest.mark.parametrize(
    ("records", "uri"),
    [
        ([MAILTO], "mailto:mms@mms.north.example"),
        (['100 10 "U" "e2u+MMS:tel" "!^(.*)$!tel:\\\\1;npdi!" .'], "tel:+447700900101;npdi"),
        (['100 10 "u" "E2U+sip" "!^.*$!sip:a@b.example!" .', MAILTO], "mailto:mms@mms.north.example"),
        (['100 10 "u" "E2U+email:mailto+mms:mailto" "!^.*$!mailto:a@b.example!" .'], "mailto:a@b.example"),
        (['100 20 "u" "E2U+mms:mailto" "!^.*$!mailto:b@b.example!" .', '100 10 "u" "E2U+mms:tel" "!^.*$!tel:1!" .'], "tel:1"),
        (['50 90 "u" "E2U+mms:mailto" "!^.*$!mailto:b@b.example!" .', MAILTO], "mailto:b@b.example"),
        (['50 90 "u" "E2U+mms:mailto" "!^\\\\+49.*$!mailto:b@b.example!" .', MAILTO], "mailto:mms@mms.north.example"),
        (['100 10 "u" "E2U+sip" "!^.*$!sip:a@b.example!" .'], None),
        (['100 10 "u" "E2U+mms" "!^.*$!mailto:a@b.example!" .'], None),
        (['100 10 "u" "E3U+mms:mailto" "!^.*$!mailto:a@b.example!" .'], None),
    ],
)
def test_which_record_counts(server: Dns, records: list[str], uri: str | None) -> None:
    server.says = lambda query: answer(query, *records)
    assert server.enum().find(NUMBER) == uri
    assert server.asked == [f"1.0.1.0.0.9.0.0.7.7.4.4.{ZONE}."]


@pytest.mark.parametrize(
    "record",
    [
        '100 10 "u" "E2U+mms:mailto" "!^.*$!sip:a@b.example!" .',
        '100 10 "u" "E2U+mms:mailto" "nonsense" .',
        '100 10 "u" "E2U+mms:mailto" "!(.*)*x!mailto:a@b.example!" .',
        '100 10 "u" "E2U+mms:mailto" "!^.*$!mailto:\\195\\164@b.example!" .',
        '100 10 "u" "E2U+mms:mailto" "!^.*$!mailto:\\255@b.example!" .',
        '100 10 "s" "E2U+mms:mailto" "!^.*$!mailto:a@b.example!" .',
        '100 10 "" "" "" .',
    ],
)
def test_what_cannot_be_used_is_no_answer(server: Dns, record: str) -> None:
    server.says = lambda query: answer(query, record, MAILTO.replace("100 10", "100 99"))
    with pytest.raises(LookupUnavailable, match="NAPTR: "):
        server.enum().find(NUMBER)


def test_a_rule_may_lead_on_but_not_for_ever(server: Dns) -> None:
    def leads(query: dns.message.Message) -> bytes:
        name = query.question[0].name.to_text()
        return answer(query, MAILTO if name == "there.test." else '100 10 "" "" "" there.test.')

    server.says = leads
    assert server.enum().find(NUMBER) == "mailto:mms@mms.north.example"
    server.says = lambda query: answer(query, f'100 10 "" "" "" {query.question[0].name.to_text()}')
    with pytest.raises(LookupUnavailable, match="more than 5 rules"):
        server.enum().find(NUMBER)


@pytest.mark.parametrize(
    ("says", "what"),
    [
        (lambda query: answer(query, rcode="SERVFAIL"), "no server gives a usable answer"),
        (lambda query: answer(query, rcode="REFUSED"), "no server gives a usable answer"),
        (lambda query: b"garbage", "no answer within"),
        (lambda query: answer(query, MAILTO)[:-9], "no answer within|no server"),
        (lambda query: answer(dns.message.make_query("other.test", "NAPTR"), MAILTO), "no answer within|no server"),
        (lambda query: None, "no answer within"),
    ],
    ids=["servfail", "refused", "garbage", "cut", "another question", "silence"],
)
def test_a_server_that_lies_or_says_nothing_is_a_failure_in_time(server: Dns, says: Said, what: str) -> None:
    server.says = says
    begun = time.monotonic()
    with pytest.raises(LookupUnavailable, match=what):
        server.enum(1.0).find(NUMBER)
    assert time.monotonic() - begun < 10
    server.says = lambda query: answer(query, MAILTO)
    assert server.enum().find(NUMBER) == "mailto:mms@mms.north.example"


def test_the_next_server_is_asked_in_time(server: Dns) -> None:
    server.says = lambda query: answer(query, MAILTO)
    silent = Dns()
    silent.says = lambda query: None
    assert server.enum(6.0, silent.port).find(NUMBER) == "mailto:mms@mms.north.example"
    silent.says = lambda query: answer(query, rcode="SERVFAIL")
    assert server.enum(6.0, silent.port).find(NUMBER) == "mailto:mms@mms.north.example"
    silent.socket.close()


@pytest.mark.parametrize(
    ("says", "uri", "again"),
    [
        (lambda query: answer(query, MAILTO), "mailto:mms@mms.north.example", 1),
        (lambda query: answer(query, MAILTO, ttl=0), "mailto:mms@mms.north.example", 2),
        (lambda query: answer(query, rcode="NXDOMAIN", soa=300), None, 1),
        (lambda query: answer(query, soa=300), None, 1),
        (lambda query: answer(query, rcode="NXDOMAIN", soa=0), None, 2),
        (lambda query: answer(query, rcode="NXDOMAIN"), None, 2),
        (answer, None, 2),
    ],
    ids=["ttl", "no ttl", "nxdomain", "no data", "nxdomain, no ttl", "nxdomain, no soa", "no data, no soa"],
)
def test_an_answer_is_kept_as_long_as_dns_says(server: Dns, says: Said, uri: str | None, again: int) -> None:
    server.says = says
    enum = server.enum()
    assert [enum.find(NUMBER), enum.find(NUMBER)] == [uri, uri]
    assert len(server.asked) == again
    enum.find("+447700900102")
    assert len(server.asked) == again + 1


# -- HTTP


class Http:
    """A service on a TCP socket; `says` answers with the raw bytes of a response, or None to hang."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.says: Callable[[str], bytes | None] = lambda path: ok({"peer": "north"})
        self.stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                said = outer.says(self.path)
                if said is None:
                    outer.stop.wait(30)
                else:
                    with contextlib.suppress(OSError):
                        self.wfile.write(said)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()

    def portability(self, path: str = "peer", seconds: float = 10.0, keep: float = 60.0, rest: str = "/np/{number}") -> Portability:
        return Portability(f"http://127.0.0.1:{self.port}{rest}", path, seconds, keep)

    def close(self) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


def ok(value: object, status: str = "200 OK") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n".encode() + body


@pytest.fixture
def service() -> Iterator[Http]:
    made = Http()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("body", "path", "value"),
    [
        ({"peer": "north"}, "peer", "north"),
        ({"result": {"operator": {"id": 26201}}}, "result.operator.id", "26201"),
        ({"result": {"operator": None}}, "result.operator", None),
        ({"operator": "0262"}, "operator", "0262"),
    ],
)
def test_the_value_at_its_path(service: Http, body: object, path: str, value: str | None) -> None:
    service.says = lambda _: ok(body)
    assert service.portability(path).find(NUMBER) == value


def test_how_the_number_is_written(service: Http) -> None:
    service.portability().find(NUMBER)
    service.portability(rest="/np?number={digits}&plus={number}").find(NUMBER)
    assert service.paths == ["/np/%2B447700900101", "/np?number=447700900101&plus=%2B447700900101"]


def test_a_number_that_is_not_known_is_no_failure_and_every_answer_is_kept(service: Http) -> None:
    service.says = lambda path: ok({}, "404 Not Found") if path.endswith("101") else ok({"peer": "north"})
    asked = service.portability()
    assert [asked.find(NUMBER), asked.find(NUMBER), asked.find("+447700900102"), asked.find("+447700900102")] == [
        None, None, "north", "north",
    ]  # fmt: skip
    assert len(service.paths) == 2
    forgetful = service.portability(keep=0)
    assert [forgetful.find(NUMBER), forgetful.find(NUMBER)] == [None, None]
    assert len(service.paths) == 4


@pytest.mark.parametrize(
    ("named", "vouched", "what"),
    [("localhost", True, None), ("other.example", True, "certificate verify failed"), ("localhost", False, "certificate verify failed")],
)
def test_over_tls_only_a_service_with_the_right_certificate_is_believed(
    service: Http, tmp_path: Path, named: str, vouched: bool, what: str | None
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(named).configure_cert(context)
    service.server.socket = context.wrap_socket(service.server.socket, server_side=True, do_handshake_on_connect=False)
    ca = tmp_path / "np.pem"
    (authority if vouched else stranger).cert_pem.write_to_path(str(ca))
    asked = Portability(f"https://localhost:{service.port}/np/{{digits}}", "peer", 10.0, 60.0, str(ca))
    if what is None:
        assert asked.find(NUMBER) == "north"
        asked.probe()
        return
    with pytest.raises(LookupUnavailable, match=what):
        asked.find(NUMBER)
    assert service.paths == []



@pytest.mark.parametrize(
    ("said", "what"),
    [
        (ok({"peer": "north"}, "500 Oops"), "status 500"),
        (ok({"peer": "north"}, "204 No Content"), "status 204"),
        (b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "status 302"),
        (ok(b"<html>"), "no JSON"),
        (ok(b""), "no JSON"),
        (ok(b"\xff\xfe{"), "no JSON"),
        (ok(b"[" * 60000), "no JSON"),
        (ok(b'{"peer": "' + b"x" * 70000 + b'"}'), "larger than 65536 bytes"),
        (ok([]), "has no peer"),
        (ok({"error": "database is down"}), "has no peer"),
        (ok({"peer": True}), "no word and no number"),
        (ok({"peer": {"name": "north"}}), "no word and no number"),
        (ok({"peer": ["north"]}), "no word and no number"),
        (ok({"peer": 1.5}), "no word and no number"),
        (ok({"peer": ""}), "no word and no number"),
        (ok({"peer": "x" * 300}), "no word and no number"),
        (b"garbage\r\n\r\n", "GET http"),
        (b"", "GET http"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{", "GET http"),
        (b"HTTP/1.0 200 OK\r\n" + b"X-Y: z\r\n" * 200 + b"\r\n{}", "GET http"),
    ],
)
def test_a_service_that_lies_is_a_failure_and_nothing_of_it_is_kept(service: Http, said: bytes, what: str) -> None:
    service.says = lambda _: said
    asked = service.portability()
    with pytest.raises(LookupUnavailable, match=what):
        asked.find(NUMBER)
    service.says = lambda _: ok({"peer": "north"})
    assert asked.find(NUMBER) == "north"


def test_a_service_that_hangs_is_left_in_time(service: Http) -> None:
    service.says = lambda _: None
    asked = service.portability(seconds=0.5)
    begun = time.monotonic()
    with pytest.raises(LookupUnavailable, match=r"no answer within 0\.5 s|timed out"):
        asked.find(NUMBER)
    assert time.monotonic() - begun < 10


def test_a_service_that_drips_is_left_in_time_too() -> None:
    """Each byte comes before a socket would time out; the whole never does."""
    listener = socket.create_server(("127.0.0.1", 0))
    gone = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)
        gone.set()

    threading.Thread(target=serve, daemon=True).start()
    asked = Portability(f"http://127.0.0.1:{listener.getsockname()[1]}/{{digits}}", "peer", 1.0, 60)
    begun = time.monotonic()
    with pytest.raises(LookupUnavailable, match="no answer within 1 s"):
        asked.find(NUMBER)
    assert time.monotonic() - begun < 10
    assert gone.wait(60), "the connection is shut"
    listener.close()


def test_a_service_that_is_dead_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(LookupUnavailable, match="refused"):
        Portability(f"http://127.0.0.1:{port}/{{digits}}", "peer", 5, 60).find(NUMBER)
    with pytest.raises(LookupUnavailable, match="refused"):
        Portability(f"http://127.0.0.1:{port}/{{digits}}", "peer", 5, 60).probe()


def test_many_may_ask_at_once(service: Http) -> None:
    asked = service.portability("peer", 60.0)
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(asked.find(NUMBER))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == ["north"] * 40
