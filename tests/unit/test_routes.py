"""Rows of routes: each kind, their order, what is wrong with one, what an answer leads to, and several local sides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from fake import Gateway, LogLines, req
from mm4.cli.main import main
from mm4.gateway.config import Config
from mm4.gateway.configfile import origins, parse_config
from mm4.gateway.routes import Enum, Http, ReachRoute, plain_domain
from mm4.gateway.routing import Router
from mm4.lookup.reach import Reached
from mm4.postfix.maps import tables
from mm4.protocol.address import parse_address
from mm4.protocol.errors import ConfigError, LookupUnavailable

BASE = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  region: DE
  numbers: ["+491511"]
  clients: [127.0.0.1/32]
  deliver_to: "{number}@mmsc.gw.example"
  next_hop: "[127.0.0.1]:2600"
peers:
  north: {domains: [mms.mnc015.mcc234.gprs, mms.north.example], networks: [192.0.2.1/32], next_hop: "[192.0.2.1]:25"}
  south: {domains: [mms.south.example], networks: [192.0.2.2/32], next_hop: "[192.0.2.2]:25", transit: yes}
  hub: {domains: [mms.hub.example], networks: [192.0.2.3/32], next_hop: "[192.0.2.3]:25"}
routes:
"""
FIRST = BASE.count("\n") + 1


def configured(*rows: str) -> Config:
    return parse_config(BASE + "".join(f"  - {row}\n" for row in rows), "/etc/mm4/mm4.yaml")


class Answers:
    """Lookups that say what they are told to; `asked` is what they were asked. An exception is raised."""

    def __init__(self, **said: Any) -> None:
        self.said = said
        self.asked: list[tuple[str, str]] = []

    def _say(self, kind: str, number: str) -> Any:
        self.asked.append((kind, number))
        if isinstance(self.said.get(kind), Exception):
            raise self.said[kind]
        return self.said.get(kind)

    def reach(self, route: ReachRoute, number: str) -> Reached | None:
        return self._say("reach", number)

    def enum(self, asked: Enum, number: str) -> str | None:
        return self._say("enum", number)

    def http(self, asked: Http, number: str) -> str | None:
        return self._say("http", number)


def goes(rows: list[str], number: str, **said: Any) -> tuple[str, str] | None:
    found = Router(configured(*rows)).route(parse_address(number), lookups=Answers(**said))
    return (found.side, found.rule) if found else None


ENUM = 'enum: {zone: e164.arpa.test, servers: ["127.0.0.1:53"]'
HTTP = 'http: {url: "http://127.0.0.1:1/{digits}", json: peer'


@pytest.mark.parametrize(
    ("row", "inside", "outside"),
    [
        ('{prefix: "+4477", peer: north}', ["+447700900101"], ["+447800900101", "+337700900101"]),
        (
            '{range: {from: "+447700900000", to: "+447700900999"}, peer: north}',
            ["+447700900000", "+447700900500", "+447700900999"],
            ["+447700899999", "+447700901000", "+4477009005", "+4477009005001"],
        ),
        ('{regex: "[+]4477009[0-9]{5}", peer: north}', ["+447700900101"], ["+4477009001011", "+44770090010", "+337700900101"]),
        ('{regex: "[+]44|[+]4477.*", peer: north}', ["+447700900101"], ["+337700900101"]),
        ("{default: north}", ["+447700900101", "+33600000000"], ["+491511000001", "12345"]),
        (
            "{domain: mms.mnc030.mcc234.gprs, peer: north}",
            ["+447700900101@mms.mnc030.mcc234.gprs", "+447700900101@MMS.mnc30.mcc234.gprs",
             "+33600000000/TYPE=PLMN@mms.mnc030.mcc234.3gppnetwork.org", "+33600000000@mms.mnc030.mcc234.gprs."],
            ["+447700900101", "+447700900101@mms.mnc031.mcc234.gprs", "+447700900101@mms.mnc030.mcc235.gprs",
             "+447700900101@a.mms.mnc030.mcc234.gprs", "12345@mms.mnc030.mcc234.gprs"],
        ),
        (
            '{domain: "*.mcc234.3gppnetwork.org", peer: north}',
            ["+447700900101@mms.mnc030.mcc234.gprs", "+447700900101@mms.mnc31.mcc234.3gppnetwork.org"],
            ["+447700900101@mms.mnc030.mcc235.gprs", "+447700900101@mcc234.gprs"],
        ),
        ('{domain: "*.carrier.example", peer: north}', ["+447700900101@a.carrier.example"], ["+447700900101@carrier.example", "+447700900101@xcarrier.example"]),
    ],
)  # fmt: skip
def test_what_a_row_fits(row: str, inside: list[str], outside: list[str]) -> None:
    assert [number for number in inside if (goes([row], number) or ("",))[0] != "north"] == []
    assert [number for number in outside if (goes([row], number) or ("",))[0] == "north"] == []


def test_rows_are_asked_in_their_order_and_the_first_that_fits_counts() -> None:
    rows = ['{prefix: "+4477", peer: north}', "{reach: a.csv, peer: south}", f"{{{ENUM}}}}}", f"{{{HTTP}}}}}", "{default: hub}"]
    answers = Answers(http="south")
    router = Router(configured(*rows))
    north, south = (router.route(parse_address(n), lookups=answers) for n in ("+447700900101", "+33600000000"))
    assert (north and north.side, south and south.side, south and south.rule) == ("north", "south", "routes[3]: http: south")
    assert answers.asked == [("reach", "+33600000000"), ("enum", "+33600000000"), ("http", "+33600000000")]
    assert goes(rows, "+33600000000") == ("hub", "routes[4]: default")
    row = Reached("+336", "Op", "208", "01", "south")
    assert goes(rows, "+33600000000", reach=row) == ("south", 'routes[1]: reach a.csv prefix "+336" (Op)')


@pytest.mark.parametrize("kind", ["reach", "enum", "http"])
def test_a_look_up_that_fails_is_no_reason_to_go_on(kind: str) -> None:
    row = {"reach": "{reach: a.csv, peer: south}", "enum": f"{{{ENUM}}}}}", "http": f"{{{HTTP}}}}}"}[kind]
    with pytest.raises(LookupUnavailable, match=r"^routes\[0\]: down$"):
        goes([row, "{default: hub}"], "+33600000000", **{kind: LookupUnavailable("down")})


def test_without_anybody_to_ask_a_look_up_fails() -> None:
    for row in ("{reach: a.csv, peer: south}", f"{{{ENUM}}}}}", f"{{{HTTP}}}}}"):
        with pytest.raises(LookupUnavailable, match="was not"):
            Router(configured(row)).route(parse_address("+33600000000"))


@pytest.mark.parametrize(
    ("table", "uri", "peer"),
    [
        ("{}", "mailto:mms@mms.south.example", "south"),
        ("{}", "mailto:+447700900101/TYPE=PLMN@mms.mnc15.mcc234.3gppnetwork.org", "north"),
        ("{}", "MAILTO:a%40b@MMS.North.example?subject=x@mms.south.example", "north"),
        ("{}", "mailto:mms@elsewhere.example", None),
        ("{}", "tel:+447700900101", None),
        ("{mms.other.example: hub}", "mailto:a@mms.other.example", "hub"),
        ("{mms.mnc30.mcc234.gprs: hub}", "mailto:a@mms.mnc030.mcc234.3gppnetwork.org", "hub"),
        ('{"*.other.example": hub, "*.a.other.example": south}', "mailto:x@b.a.other.example", "south"),
        ("{mms.south.example: hub}", "mailto:a@mms.south.example", "hub"),
        ('{"+44": hub, "+4477009": north}', "tel:+447700900101", "north"),
        ('{"+44": hub, "+4477009": north}', "tel:+44-7800-900101", "hub"),
        ('{"+44": hub, "+33": north}', "tel:+447700900101;npdi;rn=+33-6", "north"),
        ('{"D08": south, "+44": hub}', "tel:+447700900101;npdi;rn=d0801;rn-context=+44", "south"),
        ('{"+44": hub}', "tel:+33600000000", None),
        ('{"+44": hub, "*": south}', "tel:+33600000000", "south"),
        ('{"*": south}', "mailto:a@elsewhere.example", "south"),
    ],
)
def test_where_an_answer_of_enum_leads(table: str, uri: str, peer: str | None) -> None:
    rows = [f"{{{ENUM}, peers: {table}}}}}", "{default: hub}"]
    if peer is None:
        with pytest.raises(LookupUnavailable, match="that is no row of its table and no domain of a peer"):
            goes(rows, "+447700900101", enum=uri)
    else:
        assert goes(rows, "+447700900101", enum=uri) == (peer, f"routes[0]: enum e164.arpa.test: {uri}")


@pytest.mark.parametrize(
    ("table", "value", "peer"),
    [
        ("{}", "north", "north"),
        ("{}", "26201", None),
        ("{26201: south}", "26201", "south"),
        ('{"026": south}', "026", "south"),
        ("{26201: south}", "north", None),
        ('{26201: south, "*": hub}', "26202", "hub"),
    ],
)
def test_where_an_answer_of_portability_leads(table: str, value: str, peer: str | None) -> None:
    rows = [f"{{{HTTP}, peers: {table}}}}}", "{default: hub}"]
    if peer is None:
        with pytest.raises(LookupUnavailable, match=rf"^routes\[0\]: http: the answer is '{value}'"):
            goes(rows, "+447700900101", http=value)
    else:
        assert goes(rows, "+447700900101", http=value) == (peer, f"routes[0]: http: {value}")


def test_the_spellings_of_an_operators_domain() -> None:
    same = {"mms.mnc01.mcc262.gprs", "MMS.mnc001.mcc262.3gppnetwork.org.", "mms.mnc001.mcc262.gprs"}
    assert {plain_domain(domain) for domain in same} == {"mms.mnc001.mcc262.gprs"}
    assert plain_domain("mms.mnc150.mcc310.gprs") == "mms.mnc150.mcc310.gprs"
    assert plain_domain("mms.mnc1.mcc262.gprs.example") == "mms.mnc1.mcc262.gprs.example"


# -- what is wrong with a row


@pytest.mark.parametrize(
    ("row", "key", "problem"),
    [
        ('{prefx: "+44", peer: north}', "routes[0]", "a row needs one of prefix, range, regex, reach, domain, enum, http, default; did you mean prefix?"),
        ("{peer: north}", "routes[0]", "a row needs one of prefix"),
        ('{prefix: "+44", default: north}', "routes[0]", "a row is of one kind, and this one has prefix and default; write a row for each"),
        ("north", "routes[0]", "expects keys with values, found 'north'"),
        ('{prefix: "+44", pear: north}', "routes[0].pear", "unknown key; did you mean peer?"),
        ('{prefix: "+44"}', "routes[0].peer", "has to be given"),
        ('{range: {from: "+44770", to: "+44771"}, peer: north}', "routes[0].range.from", "'+44770' is no E.164 number"),
        ('{range: {from: "+447700900001", to: "+447700900000"}, peer: north}', "routes[0].range.to", "from and to are numbers of one length, from the lower to the higher"),
        ('{range: {from: "+447700900001", to: "+4477009000011"}, peer: north}', "routes[0].range.to", "from and to are numbers of one length"),
        ('{range: {from: "+447700900001"}, peer: north}', "routes[0].range.to", "has to be given"),
        ('{range: {first: "+447700900001", to: "+447700900002"}, peer: north}', "routes[0].range.first", "unknown key; known here: from, to"),
        ('{regex: "[+44", peer: north}', "routes[0].regex", "'[+44' is no regular expression: unterminated character set"),
        ("{reach: a.csv, peer: nroth}", "routes[0].peer", "no peer is named 'nroth'; there are: north, south, hub"),
        ("{domain: nodots, peer: north}", "routes[0].domain", "'nodots' is no domain name"),
        ('{enum: {zone: e164.arpa, servers: []}}', "routes[0].enum.servers", "needs at least one entry"),
        ('{enum: {zone: e164.arpa, servers: ["ns.example:53"]}}', "routes[0].enum.servers[0]", "is no address with a port"),
        ('{enum: {zoen: e164.arpa, servers: ["127.0.0.1:53"]}}', "routes[0].enum.zoen", "unknown key; did you mean zone?"),
        (f'{{{ENUM}, peers: {{mms.x.example: nroth}}}}}}', "routes[0].enum.peers.mms.x.example", "no peer is named 'nroth'"),
        (f'{{{ENUM}, peers: {{"+44x": north}}}}}}', "routes[0].enum.peers.+44x", "is no domain name"),
        (f"{{{ENUM}, timeout: 21s}}}}", "routes[0].enum.timeout", "less than or equal to 20"),
        (f"{{{ENUM}}}, peer: north}}", "routes[0].peer", "unknown key"),
        ('{http: {url: "ftp://x/{number}", json: a}}', "routes[0].http.url", "is no address of a service"),
        ('{http: {url: "http://x/", json: a}}', "routes[0].http.url", "the path needs {number} (with its plus) or {digits} where the number stands"),
        ('{http: {url: "http://{number}/x", json: a}}', "routes[0].http.url", "is no address of a service"),
        ('{http: {url: "http://u:p@x/{number}", json: a}}', "routes[0].http.url", "is no address of a service"),
        ('{http: {url: "http://x/{number}", json: "a..b"}}', "routes[0].http.json", "is no path to a value"),
        ('{http: {url: "http://x/{number}"}}', "routes[0].http.json", "has to be given"),
        (f"{{{HTTP}, peers: {{1: nroth}}}}}}", "routes[0].http.peers.1", "no peer is named 'nroth'"),
        ("{default: nroth}", "routes[0].default", "no peer is named 'nroth'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row(row: str, key: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(row)
    assert [p for p in caught.value.problems if p.startswith(f"/etc/mm4/mm4.yaml:{FIRST}: {key}: ") and problem in p], caught.value


def test_a_default_stands_last_and_look_ups_fit_into_the_time_of_one_recipient() -> None:
    with pytest.raises(ConfigError, match=rf":{FIRST}: routes\[0\]\.default: the rows behind this one are never asked; put it last"):
        configured("{default: north}", '{prefix: "+44", peer: north}')
    with pytest.raises(ConfigError, match=rf":{FIRST + 1}: routes\[1\]\.http\.timeout: the look-ups of one number may take 21s"):
        configured(f"{{{ENUM}, timeout: 11s}}}}", f"{{{HTTP}, timeout: 10s}}}}")
    assert len(configured(f"{{{ENUM}, timeout: 10s}}}}", f"{{{HTTP}, timeout: 10s}}}}").routes) == 2


def test_files_are_found_from_the_folder_of_the_configuration_and_values_have_their_origin() -> None:
    config = configured("{reach: reach/a.csv, peer: north}", f"{{{HTTP}, ca: np.pem}}}}")
    reach, http = config.model_dump()["routes"]
    assert (reach["reach"], http["http"]["ca"]) == ("/etc/mm4/reach/a.csv", "/etc/mm4/np.pem")
    text = BASE + '  - {range: {from: "+447700900000", to: "+447700900999"}, peer: north}\n'
    rows = {key: (value, origin) for key, value, origin in origins(parse_config(text, "x.yaml"), text, "x.yaml")}
    assert rows["routes[0].range.from"] == ("+447700900000", f"line {FIRST}")


# -- at RCPT

OK, NO = "250 2.1.5 Ok", "550 5.1.1 Number not served here"
DOWN = "451 4.4.3 Routing look-up unavailable, try again later"


def asked(client: str, rcpt: str, answers: Answers, *rows: str, sender: str = "<x@mms.gw.example>") -> str:
    gateway = Gateway(configured(*rows), lookups=answers)
    return str(gateway.peer(client).mail(sender).rcpt(rcpt).reply)


def test_a_look_up_that_fails_is_451_with_one_line_that_says_why() -> None:
    answers = Answers(enum=LookupUnavailable("1.4 NAPTR: no answer"))
    with LogLines() as lines:
        assert asked("127.0.0.1", "<+447700900101@mms.gw.example>", answers, f"{{{ENUM}}}}}", "{default: hub}") == DOWN
    (line,) = lines
    assert "refused=rcpt" in line
    assert 'reason="routes[0]: 1.4 NAPTR: no answer"' in line


@pytest.mark.parametrize(
    ("client", "rcpt", "reply", "questions"),
    [
        ("127.0.0.1", "<+447700900101@mms.gw.example>", OK, 1),
        ("127.0.0.1", "<+447700900101@elsewhere.example>", NO, 0),
        ("127.0.0.1", "<+491511000001@mms.gw.example>", OK, 0),
        ("127.0.0.1", "<system-user@mms.gw.example>", OK, 0),
        ("192.0.2.1", "<+447700900101@mms.gw.example>", NO, 0),
        ("192.0.2.1", "<+491511000001@mms.gw.example>", OK, 0),
        ("192.0.2.2", "<+447700900101@mms.gw.example>", OK, 1),
        ("192.0.2.3", "<+447700900101@mms.gw.example>", NO, 0),
    ],
)
def test_nobody_is_asked_about_a_number_to_which_the_client_may_not_send(client: str, rcpt: str, reply: str, questions: int) -> None:
    answers = Answers(http="north")
    assert asked(client, rcpt, answers, f"{{{HTTP}}}}}", sender="<x@mms.hub.example>") == reply
    assert len(answers.asked) == questions


def test_a_route_back_to_the_peer_it_came_from_is_refused_and_not_the_next_one_taken() -> None:
    answers = Answers(http="south")
    assert asked("192.0.2.2", "<+447700900101@mms.gw.example>", answers, f"{{{HTTP}}}}}", "{default: hub}") == NO


def test_the_domain_of_a_route_may_stand_behind_a_number_of_our_side() -> None:
    rows = ['{prefix: "+33", peer: hub}', "{domain: mms.mnc030.mcc234.gprs, peer: south}"]
    gateway = Gateway(configured(*rows), lookups=Answers())
    seen = gateway.peer("127.0.0.1").mail("<x@mms.gw.example>")
    seen.rcpt("<+447700900101@mms.mnc30.mcc234.3gppnetwork.org>", "<+447700900101@mms.mnc031.mcc234.gprs>")
    assert [str(reply) for reply in seen.replies[1:]] == [OK, NO]
    (recipient,) = seen.session.recipients
    assert recipient.destination is not None
    assert recipient.destination.becomes == "+447700900101/TYPE=PLMN@mms.south.example.via-south.mm4.invalid"
    other = gateway.peer("127.0.0.1").mail("<x@mms.gw.example>").rcpt("<+33600000000@mms.mnc030.mcc234.gprs>")
    assert other.session.recipients[0].destination is not None
    assert other.session.recipients[0].destination.side == "hub"


def test_an_operator_without_the_peer_that_is_found_goes_on_to_the_next_route() -> None:
    """As with every other row: a peer that has no link with this operator of ours is no way for it."""
    lines = (BASE + f"  - {{{HTTP}}}}}\n  - {{default: hub}}\n").split("peers:\n")
    first = lines[0].removeprefix("local:\n").replace("  ", "    ").replace("    domain", "  - domain", 1)
    second = (
        "  - {domain: mms.two.example, system_address: system-user@mms.two.example, numbers: [\"+491512\"], clients: [127.0.0.2/32]}\n"
    )
    peers = lines[1].replace("transit: yes}", "transit: yes, local: [mms.gw.example]}")
    text = "local:\n" + first + second + "peers:\n" + peers
    gateway = Gateway(text, lookups=Answers(http="south"))
    sides = {}
    for client, sender in (("127.0.0.1", "+491511000001@mms.gw.example"), ("127.0.0.2", "+491512000001@mms.two.example")):
        seen = gateway.peer(client).mail(f"<{sender}>").rcpt("<+447700900101>")
        (recipient,) = seen.session.recipients
        sides[client] = recipient.destination and recipient.destination.side
    assert sides == {"127.0.0.1": "south", "127.0.0.2": "hub"}


# -- several systems on our side

SIDES = """\
  sides:
    - {numbers: ["+4915119"], deliver_to: "{number}@app.gw.example", next_hop: "[127.0.0.1]:2700"}
    - {numbers: ["+491511999", "+4915200"], short_codes: ["12345"], maildir: yes}
"""


def sided(sides: str = SIDES) -> Config:
    return parse_config((BASE + "  - {default: hub}\n").replace("peers:\n", sides + "peers:\n", 1), "/etc/mm4/mm4.yaml")


@pytest.mark.parametrize(
    ("number", "becomes", "hop", "rule"),
    [
        ("+491511000001", "+491511000001@mmsc.gw.example", "[127.0.0.1]:2600", 'local.numbers: "+491511"'),
        ("+491511900001", "+491511900001@app.gw.example", "[127.0.0.1]:2700", 'local.sides[0].numbers: "+4915119"'),
        ("+491511999001", "+491511999001@maildir.mm4.invalid", "maildir", 'local.sides[1].numbers: "+491511999"'),
        ("+491520000001", "+491520000001@maildir.mm4.invalid", "maildir", 'local.sides[1].numbers: "+4915200"'),
        ("12345", "12345@maildir.mm4.invalid", "maildir", 'local.sides[1].short_codes: "12345"'),
    ],
)
def test_of_several_local_sides_the_longest_prefix_counts(number: str, becomes: str, hop: str, rule: str) -> None:
    found = Router(sided()).route(parse_address(number))
    assert found is not None
    assert (found.side, found.becomes, found.next_hop, found.rule) == ("local", becomes, hop, rule)


def test_a_peer_reaches_each_side_and_postfix_knows_the_way() -> None:
    gateway = Gateway(sided())
    for rcpt, becomes in (
        ("+491511900001", "+491511900001@app.gw.example"), ("12345", "12345@maildir.mm4.invalid"),
    ):  # fmt: skip
        seen = gateway.peer("192.0.2.1").mail("<+447700900002/TYPE=PLMN@mms.north.example>").rcpt(f"<{rcpt}/TYPE=PLMN@mms.gw.example>")
        seen.headers(req(To=f"{rcpt}/TYPE=PLMN")).end()
        assert seen.verdict.status == "Ok"
        assert seen.verdict.added[0][0] == becomes
    rows = dict(line.split("\t") for line in tables(sided())["transport"].splitlines() if "\t" in line)
    assert (rows["mmsc.gw.example"], rows["app.gw.example"]) == ("mm4-local:[127.0.0.1]:2600", "mm4-local:[127.0.0.1]:2700")
    assert gateway.peer("192.0.2.1").mail("<x@mms.north.example>").rcpt("<12346@mms.gw.example>").reply.code == 550


def test_a_res_for_an_application_goes_where_its_numbers_go() -> None:
    """What asked for an ack is the system that serves the originator."""
    from mm4.gateway.answers import mmsc_address

    config = sided()
    seen = Gateway(config).peer("127.0.0.1").mail("<+491511900001@mms.gw.example>").rcpt("<+447700900101@mms.gw.example>")
    lines = req(From="+491511900001/TYPE=PLMN", X_Mms_Originator_System="mmsc@app.gw.example", To="+447700900101/TYPE=PLMN")
    seen.headers(lines).end()
    assert seen.verdict.record is not None
    assert seen.verdict.record.reply_to == "mmsc@app.gw.example"
    assert seen.verdict.pdu is not None
    assert mmsc_address(seen.verdict.pdu, config.home) == "mmsc@mmsc.gw.example"


@pytest.mark.parametrize(
    ("sides", "problem"),
    [
        ("[{maildir: yes}]", "local.sides[0]: a side needs numbers or short_codes"),
        ('[{numbers: ["+4915119"]}]', "local.sides[0]: a side needs deliver_to and next_hop, or maildir: yes"),
        ('[{numbers: ["+4915119"], maildir: yes, deliver_to: "{number}@a.example", next_hop: "[127.0.0.1]:1"}]', "local.sides[0]: a side needs deliver_to and next_hop, or maildir: yes"),
        ('[{numbers: ["+491511"], maildir: yes}]', "local.sides[0].numbers[0]: +491511 stands at numbers too: give it one side"),
        ('[{short_codes: ["123"], maildir: yes}, {short_codes: ["123"], maildir: yes}]', "local.sides[1].short_codes[0]: 123 stands at sides[0] too"),
        ('[{short_codes: ["+123"], maildir: yes}]', "local.sides[0].short_codes[0]: '+123' is no short code"),
        ('[{numbers: ["+49"], deliver_to: "{number}@mms.gw.example", next_hop: "[127.0.0.1]:1"}]', "local.sides[0].deliver_to: deliver_to lies in domain (mms.gw.example)"),
        ('[{numbers: ["+49"], deliver_to: "x@a.example", next_hop: "[127.0.0.1]:1"}]', "local.sides[0].deliver_to: 'x@a.example' needs {number}, {digits} or {national} before the @"),
        ('[{numbers: ["+49"], deliver_to: "{number}@mms.south.example", next_hop: "[127.0.0.1]:1"}]', "peers.south.domains[0]: mms.south.example is our own domain"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_side(sides: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sided(f"  sides: {sides}\n")
    assert [p for p in caught.value.problems if problem in p], caught.value.problems


# -- the command


def run(tmp_path: Any, *arguments: str, rows: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "mm4.yaml"
    file.write_text(BASE + "".join(f"  - {row}\n" for row in rows))
    done = CliRunner().invoke(main, ["route", "--json", "--config", str(file), *arguments], standalone_mode=False)
    assert done.exception is None
    return done.return_value, json.loads(done.output)


def test_mm4_route_tells_what_was_asked_and_answered(tmp_path: Any) -> None:
    (tmp_path / "a.csv").write_text("prefix,operator,peer\n4477,North Ltd,north\n")
    rows = ("{reach: a.csv}", f"{{{HTTP}}}}}")
    code, found = run(tmp_path, "+447700900101", rows=rows)
    note = {
        "kind": "reach", "asked": str(tmp_path / "a.csv"), "failed": None,
        "answer": {"prefix": "+4477", "operator": "North Ltd", "mcc": "", "mnc": "", "peer": "north"},
    }  # fmt: skip
    assert (code, found["peer"], found["rule"]) == (0, "north", 'routes[0]: reach a.csv prefix "+4477" (North Ltd)')
    assert found["lookups"] == [note]
    code, found = run(tmp_path, "+33600000000", rows=rows)
    assert (code, found["peer"], found["rule"]) == (1, None, None)
    assert found["reason"].startswith("451 4.4.3 Routing look-up unavailable, try again later: routes[1]: GET http://127.0.0.1:1/33600000000: ")
    assert [note["asked"] for note in found["lookups"]] == [str(tmp_path / "a.csv"), "GET http://127.0.0.1:1/33600000000"]


def test_mm4_route_from_a_peer_holds_it_to_what_it_may_send(tmp_path: Any) -> None:
    rows = ('{prefix: "+44", peer: north}', "{default: south}")
    results = {
        peer: run(tmp_path, "--from", peer, "+447700900101", rows=rows) for peer in ("north", "south", "hub")
    }
    assert {peer: (code, found["peer"]) for peer, (code, found) in results.items()} == {
        "north": (1, None), "south": (0, "north"), "hub": (1, None),
    }  # fmt: skip
    assert results["hub"][1]["reason"] == NO
    assert run(tmp_path, "--from", "south", "+33600000000", rows=rows)[1]["reason"] == NO


def test_mm4_route_says_what_rcpt_would_say_where_the_operator_is_not_known(tmp_path: Any) -> None:
    row = '{prefix: "+44", peer: north}'
    text = BASE.replace("north: {", 'north: {addresses: {recipient: "{number}@mms.mnc{mnc}.mcc{mcc}.gprs"}, ')
    file = tmp_path / "mm4.yaml"
    file.write_text(f"{text}  - {row}\n")
    for number, code, peer in (("+447700900101", 1, None), ("+447700900101@mms.mnc015.mcc234.gprs", 0, "north")):
        done = CliRunner().invoke(main, ["route", "--json", "--config", str(file), number], standalone_mode=False)
        found = json.loads(done.output)
        assert (done.return_value, found["peer"]) == (code, peer)
        assert code == 0 or found["reason"] == "451 4.3.5 Its operator is not known, and the peer's addresses need it"
