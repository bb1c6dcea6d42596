"""Every kind of route on a live gateway: a real DNS server for ENUM, a real HTTP service that also hangs, lies and dies.

Whatever fails is 451 for that recipient, never a wrong route; the same message goes through once it answers again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pytest

from harness import Dialogue, Link, forward_req, free_port, mm4, new_ids, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
SOURCES = {"local": "127.0.0.1", "north": "127.0.0.21", "south": "127.0.0.22", "hub": "127.0.0.23"}
DOMAINS = {"local": "mms.gw.example", "north": "mms.north.example", "south": "mms.south.example", "hub": "mms.hub.example"}
DOWN = "4.4.3 Routing look-up unavailable, try again later"

HEAD = "prefix,operator,mcc,mnc,peer\n"
REACH = HEAD + "4477009004,North Ltd,234,15,north\n4477009005,South Ltd,234,30,\n44770090055,North Ltd,234,15,north\n"

ZONE = r"""$ORIGIN e164.test.
$TTL 1
@ IN SOA ns.e164.test. root.e164.test. 1 3600 600 86400 1
@ IN NS ns.e164.test.
ns IN A 127.0.0.1
*.6.0.0.9.0.0.7.7.4.4 IN NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:a@sip.example!" .
*.6.0.0.9.0.0.7.7.4.4 IN NAPTR 100 20 "u" "E2U+mms:mailto" "!^(.*)$!mailto:\\1@mms.north.example!" .
*.6.0.0.9.0.0.7.7.4.4 IN NAPTR 200 10 "u" "E2U+mms:mailto" "!^.*$!mailto:a@mms.south.example!" .
9.9.6.0.0.9.0.0.7.7.4.4 IN NAPTR 100 10 "u" "E2U+mms:tel" "!^(.*)$!tel:\\1;npdi!" .
8.9.6.0.0.9.0.0.7.7.4.4 IN NAPTR 100 10 "u" "E2U+mms:mailto" "!^.*$!mailto:a@elsewhere.example!" .
7.9.6.0.0.9.0.0.7.7.4.4 IN NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:a@sip.example!" .
"""


class Nsd:
    """Debian's nsd for one zone, on loopback, from a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.zone = folder / "e164.zone"
        self.process: subprocess.Popen[bytes] | None = None
        self.config = folder / "nsd.conf"
        self.config.write_text(
            "server:\n"
            f'  ip-address: 127.0.0.1@{self.port}\n  username: ""\n  chroot: ""\n  database: ""\n  server-count: 1\n'
            f'  zonesdir: "{folder}"\n  pidfile: "{folder}/nsd.pid"\n  logfile: "{folder}/nsd.log"\n'
            f'  xfrdfile: "{folder}/xfrd.state"\n  zonelistfile: "{folder}/zone.list"\n  xfrdir: "{folder}"\n'
            'remote-control:\n  control-enable: no\nzone:\n  name: "e164.test"\n  zonefile: "e164.zone"\n'
        )

    def start(self, zone: str | None = ZONE) -> None:
        """Serve this zone; None serves one whose file is not there, which is SERVFAIL."""
        self.stop()
        self.zone.unlink(missing_ok=True)
        if zone is not None:
            self.zone.write_text(zone)
        self.process = subprocess.Popen(["nsd", "-d", "-c", str(self.config)], start_new_session=True, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "nsd.log").read_text()
            with contextlib.suppress(OSError, dns.exception.DNSException):
                query = dns.message.make_query("e164.test", "SOA")
                return bool(dns.query.udp(query, "127.0.0.1", timeout=1, port=self.port))
            return False

        wait_for(answers, "nsd answers")

    def signal(self, number: int) -> None:
        """To it and its children."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None


def said(value: object, status: int = 200) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.0 %d X\r\nContent-Type: application/json\r\n\r\n" % status + body


KNOWN = {"+447700900701": "23415", "+447700900702": "23430"}


class Portability:
    """A number portability service on a TCP socket. `says` gives the bytes of a response, or None to hang."""

    def __init__(self) -> None:
        self.port = free_port()
        self.asked: list[str] = []
        self.says: Callable[[str], bytes | None] = self.honest
        self.hanging = threading.Event()
        self.server: ThreadingHTTPServer | None = None

    @staticmethod
    def honest(number: str) -> bytes:
        """By what is known; every number that ends in an even digit is 23430's, and 099 nobody's."""
        if number.endswith("099"):
            return said({"error": "unknown"}, 404)
        return said({"result": {"operator": KNOWN.get(number, 23430 if int(number) % 2 == 0 else 23415)}})

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = self.path.removeprefix("/np/").replace("%2B", "+")
                outer.asked.append(number)
                answer = outer.says(number)
                if answer is None:
                    outer.hanging.wait(60)
                else:
                    with contextlib.suppress(OSError):
                        self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


class Routes(Link):
    """The gateway, the DNS server, the service and the list."""

    def __init__(self, folder: Path) -> None:
        self.dns = Nsd(folder)
        self.service = Portability()
        self.reach = folder / "reach.csv"
        self.reach.write_text(REACH)
        self.metrics = free_port()
        super().__init__(
            YAML, ("mmsc", "app", "north", "south", "hub"), dns=f"{self.dns.port}", np=f"{self.service.port}",
            reach=str(self.reach), metrics=f"{self.metrics}",
        )  # fmt: skip

    def message(self, source: str, number: str) -> tuple[str, bytes]:
        """A message from a side to a number, and its message id."""
        ids = new_ids(DOMAINS[source])
        sender = {"local": "+491511000002"}.get(source, "+447700900199")
        content = forward_req(ids=ids, sender=sender, to=number, ack="No")
        return ids[1], content.replace(b"mms.north.example", DOMAINS[source].encode())

    def offer(self, source: str, number: str, content: bytes, domain: str = "mms.gw.example") -> Dialogue:
        return self.gateway.send(
            content, source=SOURCES[source], mail_from=f"x@{DOMAINS[source]}", rcpt=(f"{number}/TYPE=PLMN@{domain}",)
        )

    def goes(self, source: str, number: str, hop: str, domain: str = "mms.gw.example") -> str:
        """Send it, see it come to that hop and to no other; the recipient that came."""
        message_id, content = self.message(source, number)
        dialogue = self.offer(source, number, content, domain)
        assert dialogue.code == 250, dialogue
        (mail,) = self.hops[hop].wait_for(message_id)
        assert [name for name, other in self.hops.items() if name != hop and other.carrying(message_id)] == []
        return mail.rcpt[0]

    def route(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """What `mm4 route` says."""
        done = mm4("route", "--json", "--config", self.gateway.config, *arguments, check=False)
        return done.returncode, json.loads(done.stdout)

    def explained(self, source: str, number: str, domain: str = "mms.gw.example") -> dict[str, Any]:
        """What `mm4 explain` says of the recipient."""
        _, content = self.message(source, number)
        done = mm4(
            "explain", "--json", "--config", self.gateway.config, "--client", SOURCES[source], "--mail-from", f"x@{DOMAINS[source]}",
            "--rcpt", f"{number}/TYPE=PLMN@{domain}", "-", stdin=content, check=False,
        )  # fmt: skip
        return dict(json.loads(done.stdout)["rcpt"][0])

    def findings(self) -> dict[str, dict[str, Any]]:
        """What `mm4 check` says of routes."""
        done = mm4("check", "--json", "--config", self.gateway.config, check=False)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return {finding["check"]: finding for finding in found if finding["check"].startswith("routes")}

    def count(self, kind: str, result: str) -> float:
        """A counter of look-ups, summed over the workers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=60) as page:
            text = page.read().decode()
        found = re.search(rf'^mm4_lookups_total{{kind="{kind}",result="{result}"}} ([0-9.]+)', text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routes]:
    made = Routes(tmp_path_factory.mktemp("routes"))
    made.service.start()
    try:
        made.dns.start()
        with made:
            yield made
    finally:
        made.dns.stop()
        made.service.hanging.set()
        made.service.stop()


@pytest.fixture(autouse=True)
def honest(routes: Routes) -> None:
    routes.service.says = routes.service.honest


WAYS = [
    ("+447700900101", "mms.gw.example", "north", 'prefix "+4477009001"'),
    ("+447700900299", "mms.gw.example", "south", 'range "+447700900200" to "+447700900299"'),
    ("+447700900301", "mms.gw.example", "north", 'regex "[+]4477009003[0-9]{2}"'),
    ("+447700900401", "mms.gw.example", "north", 'reach reach.csv prefix "+4477009004" (North Ltd)'),
    ("+447700900501", "mms.gw.example", "south", 'reach reach.csv prefix "+4477009005" (South Ltd)'),
    ("+447700900551", "mms.gw.example", "north", 'reach reach.csv prefix "+44770090055" (North Ltd)'),
    ("+447700900601", "mms.mnc30.mcc234.3gppnetwork.org", "north", 'domain "mms.mnc030.mcc234.gprs"'),
    ("+447700900602", "mms.gw.example", "north", "enum e164.test: mailto:+447700900602@mms.north.example"),
    ("+447700900699", "mms.gw.example", "south", "enum e164.test: tel:+447700900699;npdi"),
    ("+447700900697", "mms.gw.example", "north", "http: 23415"),
    ("+447700900702", "mms.gw.example", "south", "http: 23430"),
    ("+447700900099", "mms.gw.example", "hub", "default"),
]


@pytest.mark.parametrize(("number", "domain", "hop", "rule"), WAYS, ids=[f"{way[0][-3:]}-{way[3].split()[0]}" for way in WAYS])
def test_each_kind_leads_to_its_peer_and_the_commands_say_so(routes: Routes, number: str, domain: str, hop: str, rule: str) -> None:
    assert routes.goes("local", number, hop, domain) == f"{number}/TYPE=PLMN@{DOMAINS[hop]}"
    code, told = routes.route(f"{number}@{domain}")
    assert (code, told["peer"], told["next_hop"]) == (0, hop, routes.hops[hop].hop)
    assert told["rule"].partition(": ")[2] == rule
    explained = routes.explained("local", number, domain)
    assert (explained["smtp"][:3], explained["peer"], explained["next_hop"]) == ("250", hop, routes.hops[hop].hop)


@pytest.mark.parametrize(
    ("number", "hop"), [("+491511000001", "mmsc"), ("+491511900001", "app"), ("41414", "app")]
)  # fmt: skip
def test_each_system_on_our_side_gets_its_numbers(routes: Routes, number: str, hop: str) -> None:
    assert routes.goes("north", number, hop) == f"{number}@{hop}.gw.example"
    assert routes.route(number)[1]["next_hop"] == routes.hops[hop].hop


def test_a_side_without_an_mmsc_has_its_maildirs(routes: Routes) -> None:
    number = "+491511999001"
    message_id, content = routes.message("north", number)
    assert routes.offer("north", number, content).code == 250
    wait_for(lambda: [m for m in routes.gateway.maildir(number) if message_id in m["X-Mms-Message-ID"]], "the message in its Maildir")


def test_transit_is_for_peers_that_may_and_never_back(routes: Routes) -> None:
    asked = len(routes.service.asked)
    for source, number in (("north", "+447700900702"), ("hub", "+447700900701")):
        _, content = routes.message(source, number)
        assert routes.offer(source, number, content).rcpt[0] == (550, "5.1.1 Number not served here")
        assert routes.route("--from", source, number)[1]["reason"] == "550 5.1.1 Number not served here"
    assert len(routes.service.asked) == asked, "nobody is asked about what a peer may not send"
    routes.goes("south", "+447700900701", "north")
    _, content = routes.message("south", "+447700900702")
    assert routes.offer("south", "+447700900702", content).rcpt[0][0] == 550
    assert routes.route("--from", "south", "+447700900701")[1]["peer"] == "north"
    assert routes.explained("south", "+447700900702")["smtp"].startswith("550")


def refused_then_taken(
    routes: Routes, number: str, hop: str, mend: Callable[[], None], why: str, *, commands: bool = True
) -> None:
    """451 while a look-up fails, with the reason in the log and from the commands; delivered once it answers again."""
    message_id, content = routes.message("local", number)
    dialogue = routes.offer("local", number, content)
    assert dialogue.rcpt == [(451, DOWN)]
    line = routes.gateway.wait_log(rf"refused=rcpt rcpt={re.escape(number)}/TYPE=PLMN@mms\.gw\.example .*reason=")
    assert re.search(why, line), line
    assert re.search(r"reply=\"451 4\.4\.3 ", line)
    if commands:
        code, told = routes.route(number)
        assert (code, told["peer"]) == (1, None)
        assert re.search(why, told["reason"]), told
        assert routes.explained("local", number)["smtp"] == f"451 {DOWN}"
    mend()
    assert routes.offer("local", number, content).code == 250
    (mail,) = routes.hops[hop].wait_for(message_id)
    assert mail.rcpt == [f"{number}/TYPE=PLMN@{DOMAINS[hop]}"]
    assert [name for name, other in routes.hops.items() if name != hop and other.carrying(message_id)] == []


def test_while_dns_is_silent_broken_or_dead_nothing_is_guessed(routes: Routes) -> None:
    failed = routes.count("enum", "failed")
    routes.dns.signal(signal.SIGSTOP)
    refused_then_taken(routes, "+447700900611", "north", lambda: routes.dns.signal(signal.SIGCONT), "no answer within")
    routes.dns.start(None)
    refused_then_taken(routes, "+447700900612", "north", routes.dns.start, "SERVFAIL")
    routes.dns.stop()
    refused_then_taken(routes, "+447700900613", "north", routes.dns.start, "NAPTR: no ")
    assert routes.count("enum", "failed") == failed + 3


def test_an_answer_of_dns_that_leads_to_no_peer_is_no_route(routes: Routes) -> None:
    _, content = routes.message("local", "+447700900698")
    assert routes.offer("local", "+447700900698", content).rcpt == [(451, DOWN)]
    assert "mailto:a@elsewhere.example" in routes.route("+447700900698")[1]["reason"]


LIES = {
    "hangs": (None, "no answer within 5 s|timed out"),
    "garbage": (b"\x00\xffgarbage\r\n\r\n", "GET http"),
    "html": (said(b"<html>It works!</html>"), "no JSON"),
    "other": (said({"error": "database is down"}), "has no result.operator"),
    "types": (said({"result": {"operator": [23415]}}), "no word and no number"),
    "unknown": (said({"result": {"operator": 99999}}), "no row of its table"),
    "huge": (said(b'{"result": {"operator": "' + b"2" * 200_000 + b'"}}'), "larger than"),
    "status": (said({"result": {"operator": 23415}}, 500), "status 500"),
    "redirect": (b"HTTP/1.0 302 Found\r\nLocation: /np/elsewhere\r\n\r\n", "status 302"),
    "cut": (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{", "GET http"),
}


@pytest.mark.parametrize(("number", "name"), [(f"+4477009007{n}", name) for n, name in enumerate(LIES, 11)], ids=list(LIES))
def test_a_service_that_hangs_or_lies_is_not_believed(routes: Routes, number: str, name: str) -> None:
    answer, why = LIES[name]
    routes.service.says = lambda _: answer

    def mend() -> None:
        routes.service.says = routes.service.honest

    refused_then_taken(routes, number, "south" if int(number) % 2 == 0 else "north", mend, why, commands=name == "hangs")


def test_a_dead_service_is_waited_for(routes: Routes) -> None:
    failed = routes.count("http", "failed")
    routes.service.stop()
    refused_then_taken(routes, "+447700900731", "north", routes.service.start, "refused")
    assert routes.count("http", "failed") == failed + 1
    assert routes.count("http", "found") > 0


def test_of_several_recipients_only_the_one_whose_look_up_fails_waits(routes: Routes) -> None:
    routes.service.says = lambda _: said(b"?")
    message_id, content = routes.message("local", "+447700900101")
    rcpt = tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in ("+447700900101", "+447700900741", "+447700900102"))
    dialogue = routes.gateway.send(content, source=SOURCES["local"], mail_from="x@mms.gw.example", rcpt=rcpt)
    assert [code for code, _ in dialogue.rcpt] == [250, 451, 250]
    mails = routes.north.wait_for(message_id)
    assert sorted(r.partition("/")[0] for mail in mails for r in mail.rcpt) == ["+447700900101", "+447700900102"]


def test_a_list_that_changes_is_taken_without_a_restart_and_a_broken_one_is_not(routes: Routes) -> None:
    workers = routes.gateway.children("worker")

    def replace(text: str) -> None:
        new = routes.reach.with_suffix(".new")
        new.write_text(text)
        new.rename(routes.reach)

    def read(pattern: str) -> Callable[[], bool]:
        seen = len(re.findall(pattern, routes.gateway.log()))
        return lambda: len(re.findall(pattern, routes.gateway.log())) >= seen + len(workers)

    routes.goes("local", "+447700900402", "north")
    again = read(r"reach=\S+ rows=2 read=again")
    replace(HEAD + "4477009004,South Ltd,234,30,south\n4477009005,South Ltd,234,30,\n")
    wait_for(again, "each worker read the list again")
    routes.goes("local", "+447700900403", "south")
    kept = read(r"the old list stays.*reach\.csv:3: no peer is named 'soth'")
    replace(HEAD + "4477009004,North Ltd,234,15,north\n4477009005,South Ltd,234,30,soth\n")
    wait_for(kept, "each worker says what is wrong")
    routes.goes("local", "+447700900404", "south")
    finding = routes.findings()["routes[3].reach"]
    assert (finding["ok"], "reach.csv:3: no peer is named 'soth'" in finding["text"]) == (False, True)
    again = read(r"reach=\S+ rows=3 read=again")
    replace(REACH)
    wait_for(again, "each worker read the list again")
    routes.goes("local", "+447700900405", "north")
    assert routes.gateway.children("worker") == workers


def test_check_asks_whether_those_are_there_whom_routes_ask(routes: Routes) -> None:
    def findings() -> dict[str, bool]:
        return {name: finding["ok"] for name, finding in routes.findings().items()}

    assert findings() == {"routes[3].reach": True, "routes[5].enum": True, "routes[6].http": True}
    routes.dns.stop()
    routes.service.stop()
    assert findings() == {"routes[3].reach": True, "routes[5].enum": False, "routes[6].http": False}
    routes.dns.start()
    routes.service.start()
