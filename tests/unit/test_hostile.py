"""Whatever a peer sends: no foreign exception, no time that grows faster than the message, nothing that piles up."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fake import CLIENTS, CONFIG, Gateway, applied, req
from mm4.gateway.configfile import origins, parse_config
from mm4.gateway.names import RESPONDER_DOMAIN, strip_via
from mm4.gateway.verdict import Action
from mm4.protocol import address
from mm4.protocol.address import Kind, parse_address, split_list
from mm4.protocol.dialect import builtin
from mm4.protocol.errors import ConfigError
from mm4.protocol.headers import MAX_HEADER_BYTES, MAX_HEADERS, Header, split, unfold
from mm4.protocol.mailfile import PIECE, is_queue_file, mails
from mm4.protocol.pdu import Pdu
from mm4.protocol.reader import read, read_message
from mm4.protocol.text import decode_text
from mm4.protocol.values import MAX_ADDRESSES

CORPUS = sorted(Path(__file__).parents[1].glob("corpus/*/*.eml"))
FIELDS = builtin("3gpp").fields.values()
NAMES = sorted({name for field in FIELDS for name in field.headers})
CORRUPT = "Error-message-format-corrupt"

# Values that mean something somewhere, and what is near them.
WORDS = [
    "", " ", "Yes", "no", "Ok", "128", "-1", "9" * 400, "600", "5.5.0", "MM4_forward.REQ", "MM4_Forward.RES", "m.RES",
    "MM4_frobnicate.REQ", "MM4_delivery_report.REQ", "Auto", "Personal", "High", "multipart/report", "text/plain; a=b",
    "+447700900002/TYPE=PLMN", "+447700900002/TYPE=PLMN@mms.north.example", "01511000001", "12345", "PostMaster",
    "PostMaster@mms.north.example", "ann@mail.example", "0, +447700900002", "1, system-user@mms.gw.example", "2, x",
    "0, Fri, 01 Apr 2005 06:02:03 GMT", "Thu, 12 Nov 2026 02:28:01 +0200", "Thu, 12 Nov 2026 02:28:01 -9999",
    "Fri, 31 Dec 9999 23:59:59 -0500", "2026-11-12T02:28:01+02:00", "=?utf-8?q?a=00?=", "=?utf-7?b?KzJBQS0=?=",
    '"t-1"', "t-1", '""', '"', "<>", "<", ",;,", "(", "Friends: a, b;", "\xe4", "\x00", "a\r\n b", "a\n\n", "\r",
    "2001:db8::1/TYPE=IPv6", "fe80::1%\x07", "[IPv6:::1]", "x" * 60_000, "+" * 2000, "1," * 1500,
]  # fmt: skip
VALUE = st.one_of(st.sampled_from(WORDS).map(lambda w: w.encode("latin-1")), st.binary(max_size=60))
HEADER = st.builds(Header, st.sampled_from(NAMES + [n.upper() for n in NAMES] + ["Received", "Subject"]), VALUE)
BLOCK = st.lists(HEADER, max_size=30)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one run; other processes do not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


# -- no foreign exception


@pytest.mark.parametrize("dialect", ["3gpp", "tyntec"])
def test_any_bytes_are_a_pdu(dialect: str) -> None:
    @given(st.binary(max_size=400))
    @example(b"\r\n\r\n")
    @example(b":")
    @example(b"X-Mms-:\n")
    @example(b"\n" * 50)
    def every(message: bytes) -> None:
        found = read_message(message, dialect, "DE")
        json.dumps(found.as_json("x"), ensure_ascii=False).encode("utf-8")
        sound(found)

    every()


@given(BLOCK, st.sampled_from(["3gpp", "tyntec"]), st.sampled_from([None, "DE", "US", "ZZ"]))
def test_any_header_lines_are_a_pdu(headers: list[Header], dialect: str, region: str | None) -> None:
    found = read(headers, dialect, region)
    json.dumps(found.as_json("x"), ensure_ascii=False).encode("utf-8")
    sound(found)


def sound(found: Pdu) -> None:
    """What a Pdu promises, whatever it was read from."""
    assert found.valid == (found.type is not None and not found.errors)
    assert found.mm4 or (found.type is None and not found.valid and found.status is None)
    assert all(p.severity == "error" for p in found.problems[: len(found.errors)]), "errors stand first"
    assert all((p.status is None) == (p.severity == "warning" or not found.mm4) for p in found.problems)
    for name in ("transaction_id", "message_id"):
        value = found.get(name)
        assert value is None or (1 <= len(value) <= 900 and all(32 <= ord(c) < 127 for c in value))


@given(BLOCK, st.sampled_from(["3gpp", "tyntec"]), st.sampled_from([None, "DE"]))
def test_any_message_is_told_how_to_mend_it(headers: list[Header], dialect: str, region: str | None) -> None:
    lines = [b"%b: %b" % (h.name.encode(), re.sub(rb"[\r\n]", b" ", h.value)) for h in headers]
    message = b"\n".join([*lines, b"", b""])
    found = read_message(message, dialect, region, 1001)
    sound(found)
    for problem in (*found.problems, *found.advice):
        assert problem.mend
        assert problem.asks
        assert "\n" not in problem.mend + problem.asks
        assert len(problem.mend) <= 250
        assert (problem.line is None) == (problem.found is None) == (problem.place is None)
        if problem.line is not None and problem.place is not None:
            assert lines[problem.line - 1001].startswith(problem.place.name.encode() + b":")


PARTS = [
    b"From a\n", b"From ", b"\n", b"\r\n", b"\r", b"a: b\n", b"\x00", b"x" * 100, b"*** ENVELOPE RECORDS q ***\n",
    b"*** MESSAGE CONTENTS q ***\n", b"*** HEADER EXTRACTED q ***\n", b"*** MESSAGE FILE END q ***\n", b"*** ",
]  # fmt: skip


@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PARTS), max_size=30).map(b"".join)))
def test_any_bytes_are_a_file_of_mails(content: bytes) -> None:
    assert is_queue_file(content) in (True, False)
    found = list(mails(re.findall(rb"[^\n]*\n|[^\n]+\Z", content)))
    assert [m.number for m in found] in ([None], list(range(1, len(found) + 1)))
    lines = content.split(b"\n")
    for mail in found:
        first = mail.header.split(b"\n")[0]
        assert first in (b"", lines[mail.first_line - 1])
        sound(read_message(mail.header))


def test_an_mbox_of_many_separators_and_one_of_long_lines_take_little_time() -> None:
    for content in ([b"From a\n", b"\n"] * 100_000, [b"From a\n", *[b"x" * PIECE] * 1000], [b"a: b\n"] * 500_000):
        assert seconds(lambda content=content: sum(1 for _ in mails(content))) < 5  # type: ignore[misc]


@given(st.binary(max_size=300))
def test_any_bytes_can_be_split_and_unfolded(message: bytes) -> None:
    headers, body, lines = split(message)
    assert len(headers) == len(lines)
    assert message.endswith(body)
    assert all(b"\n" not in unfold(h.value) for h in headers)


@given(st.one_of(st.text(max_size=200), VALUE.map(lambda v: v.decode("latin-1"))), st.sampled_from([None, "DE", "US"]))
def test_any_text_is_an_address_or_none(text: str, region: str | None) -> None:
    for member in (text, *split_list(text)):
        found = parse_address(member, region)
        assert found.text == member
        if found.kind is not Kind.INVALID:
            for written in (found.write(), found.write("mms.example"), found.as_given()):
                assert written.isascii()
                assert written.isprintable()
            again = parse_address(found.write())
            assert (again.kind, again.key) == (found.kind, found.key)
        assert found.number is None or (8 <= len(found.number) <= 16 and found.number[1:].isdigit())


WORD_PARTS = [
    b"=?utf-8?q?", b"=?utf-8?b?", b"w7w=", b"?=", b" ", b"=FF", b"a", b"\xff", b"=?utf-7?q?+2AA-?=", b"=?\x80?q?a?=",
    b"=?*?q?a?=",
]  # fmt: skip


@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(WORD_PARTS)).map(b"".join)))
def test_any_bytes_are_a_text(raw: bytes) -> None:
    text, notes = decode_text(raw)
    text.encode("utf-8")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
    assert len(notes) == len(set(notes))


@given(st.sampled_from(CORPUS), st.data())
def test_a_mutated_message_is_a_pdu(path: Path, data: st.DataObject) -> None:
    message = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, max(0, min(len(message), 1500))))
        cut = data.draw(st.integers(0, 20))
        put = st.one_of(st.binary(max_size=4), st.sampled_from([b"\r\n", b'"', b"(", b": "]))
        message[at : at + cut] = data.draw(put)
    for dialect in ("3gpp", "tyntec"):
        found = read_message(bytes(message), dialect, "DE")
        json.dumps(found.as_json("x"), ensure_ascii=False).encode("utf-8")
        sound(found)


ENVELOPE = st.sampled_from([
    "<>", "", "<+447700900002/TYPE=PLMN@mms.north.example>", "<x>", "<a@b", "<-x@mms.north.example>",
    "<x(\xe4)@mms.north.example>", '<"a\\ b"@mms.north.example>', "<\xe4 <x@mms.north.example>>",
    "<\xe4@mms.north.example>", "<system@mm4.tyntec.example>", '<"a b"@mms.hub.example>',
    "<0123456789abcdef0123456789abcdef@mms.gw.example>",
])  # fmt: skip
RCPT = st.sampled_from([
    "<+491511000001/TYPE=PLMN@mms.gw.example>", "+491511000002", "<+447700900101/TYPE=PLMN@mms.north.example>", "<>",
    "<+3460000000@mms.hub.example>", "<system-user@mms.gw.example>", "<12345@mms.gw.example>", "",
    "<0123456789abcdef0123456789abcdef@mms.gw.example>", "<x@responder.mm4.invalid>",
    "<01511000001@mms.gw.example>", "<\xff@mms.gw.example>",
])  # fmt: skip


@given(st.sampled_from(sorted(CLIENTS)), ENVELOPE, st.lists(RCPT, min_size=1, max_size=4), BLOCK, st.booleans())
def test_any_message_gets_a_verdict_that_postfix_can_apply(
    client: str, sender: str, recipients: list[str], headers: list[Header], whole: bool
) -> None:
    lines = (req() if whole else []) + [(h.name, h.value) for h in headers]
    gateway = Gateway()
    seen = gateway.peer(client).mail(sender, "SIZE=" + "9" * len(headers))
    if seen.reply.positive:
        seen.rcpt(*recipients)
    if not seen.session.recipients:
        return
    verdict = seen.headers(lines).end().verdict
    assert verdict.action is not Action.TEMPFAIL, verdict.reason
    assert verdict.reply.positive == (verdict.action in (Action.ACCEPT, Action.DISCARD))
    now: list[tuple[str, bytes]] = seen.lines
    for edit in verdict.edits:
        there = sum(name.lower() == edit.header.lower() for name, _ in now)
        assert edit.op == "add" or 1 <= edit.occurrence <= there
        assert (edit.value is None) == (edit.op == "delete")
        assert edit.value is None or edit.value.isascii()
        assert all(line[:1] == " " for line in (edit.value or "").split("\n")[1:])
        now = applied(now, [edit])
    peer = gateway.runtime.router.config.peers.get(client)
    for answer in verdict.answers:
        assert peer is not None
        assert strip_via(answer.rcpt_to).rpartition("@")[2] in peer.domains
        assert answer.message.isascii()
    told = [a for a, parameters in verdict.added if a.endswith("@" + RESPONDER_DOMAIN) and parameters == "NOTIFY=NEVER"]
    assert bool(told) == (verdict.record is not None), "what is recorded comes by the responder, and nothing else does"
    ours = [a for a, _ in verdict.added if a.endswith("@" + RESPONDER_DOMAIN)]
    assert len(gateway.ledger.messages) == len(ours) == len(told) + len(verdict.splits), "one for each side"
    if verdict.record is not None:
        assert verdict.deleted == tuple(r.raw for r in seen.session.recipients)
        assert verdict.record.transactions
        assert verdict.record.type.isascii()
        assert len(verdict.record.type) <= 200
    if verdict.arrival is not None:
        assert len(verdict.arrival.text or "") <= 500
    assert all("\r" not in a and "\n" not in a for a, _ in verdict.added)


KEYS = ["local", "peers", "routes", "store", "service", "folders", "domain", "numbers", "north", "networks", "ack"]
SCALARS = ["mms.gw.example", "192.0.2.0/24", "+491511", "2026-13-45", "127.0.0.1:25", "1MB", "10m"]
KEY = st.one_of(st.sampled_from(KEYS), st.text(max_size=5))
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(SCALARS), st.dates()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEY, inner, max_size=5)),
    max_leaves=15,
)


def configured(text: str) -> None:
    """It is a configuration, or every problem begins with file and line."""
    problems: list[str] = []
    try:
        origins(parse_config(text, "/etc/mm4/mm4.yaml"), text, "/etc/mm4/mm4.yaml")
    except ConfigError as error:
        problems = error.problems or ["none"]
    assert [p for p in problems if not re.match(r"/etc/mm4/mm4\.yaml:\d+: ", p)] == []


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: b.decode("utf-8", "surrogateescape"))))
@example("\x00")
@example("a: &a [*a]")
@example("a: !!timestamp x")
@example("a: !!bool maybe")
@example("? {a: b}\n: c")
@example("- \ud800")
@example("local: {numbers: [0x" + "f" * 5000 + "]}\nservice: {workers: 0x" + "f" * 5000 + "}")
@example("service: {workers: " + "9" * 5000 + "}")
def test_any_text_is_a_configuration_or_an_error_with_a_line(text: str) -> None:
    configured(text)


@given(ANYTHING)
def test_any_tree_is_a_configuration_or_an_error_with_a_line(tree: Any) -> None:
    configured(yaml.safe_dump(tree))


@given(st.data())
def test_a_mutated_configuration_is_one_or_an_error_with_a_line(data: st.DataObject) -> None:
    lines = CONFIG.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "double", "swap", "value", "indent"]))
        line = lines[at]
        if change == "drop":
            lines[at] = ""
        elif change == "double":
            lines[at] = line + "\n" + line
        elif change == "swap":
            lines[at] = lines[data.draw(st.integers(0, len(lines) - 1))]
        elif change == "value":
            value = data.draw(st.sampled_from(["5", "[]", "{}", "~", "yes", "'", "1:2:3", "*x", "2026-13-45"]))
            lines[at] = f"{line.partition(':')[0]}: {value}"
        else:
            lines[at] = " " * data.draw(st.integers(0, 6)) + line.strip()
    configured("\n".join(lines))


def test_a_file_that_is_nested_without_end_is_refused() -> None:
    configured("[" * 600)


def test_aliases_of_aliases_do_not_multiply_without_end() -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(ConfigError, match="holds more than 100000 values"):
        parse_config(text, "mm4.yaml")


# -- no time that grows faster than the message

BIG = 60_000  # bytes of a header that a milter is shown

SLOW: dict[str, str] = {
    "open comments": "(" * BIG,
    "nested comments": "(" * (BIG // 2) + ")" * (BIG // 2),
    "nested comments around an address": "(" * 20_000 + ")" * 20_000 + "+447700900101",
    "open quotes": '"' * BIG,
    "open angles": "<" * BIG,
    "backslashes": '"' + "\\" * BIG,
    "groups": "a:" * (BIG // 2) + ";",
    "ipv6 groups": ":" * BIG + ";",
    "numbers": ",".join(f"+4477009{i:05d}" for i in range(BIG // 14)),
    "dots": ".".join(f"+4477009{i:05d}" for i in range(BIG // 14)),
    "half a dotted list": "+447700900101." * (BIG // 14) + "x",
    "types": "+447700900101" + "/TYPE=PLMN" * (BIG // 10),
    "labels": "a@" + "a." * (BIG // 2) + "!",
    "dashes": "a@" + "-" * BIG,
    "blanks": " " * BIG + "x",
    "digits": "1" * BIG,
    "encoded words": "=?utf-8?q?a?= " * (BIG // 14),
    "words of many charsets": "".join(f"=?x{i}?q?a?= " for i in range(BIG // 16)),
    "half encoded words": "=?utf-8?q?" * (BIG // 10),
    "question marks": "=?" * (BIG // 2),
    "long encoded word": "=?utf-8?b?" + "QUFB" * (BIG // 4) + "?=",
    "tabs between words": "=?a?q?b?=" + "\t" * BIG,
    "a type": "a" * BIG + "/" + "b" * BIG,
    "slashes": "/" * BIG,
    "semicolons": ";" * BIG,
    "dates": "1 Jan 2026 " * (BIG // 11),
    "colons": "1:" * (BIG // 2),
    "plusses": "Thu, 12 Nov 2026 02:28:01 " + "+" * BIG,
    "zeros": "0, " * (BIG // 3),
}


@pytest.mark.parametrize("name", sorted(SLOW))
def test_no_value_is_slow_in_any_field(name: str) -> None:
    value = SLOW[name].encode("latin-1")
    headers = [Header("X-Mms-Message-Type", b"MM4_forward.REQ")]
    headers += [Header(field.header, value) for field in FIELDS if field.name != "message_type"]
    # 26 fields of 60 kB each: what is linear takes some tens of milliseconds for most.
    assert seconds(lambda: read(headers, "3gpp", "DE")) < 5


MEMBERS = [b"+4477009%05d/TYPE=PLMN", b"0151%08d", b"user%d@mail.example", b"%d", b"?%d", b'"%d, x" <+447700900101>']


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("lines", [1, 30, 2000])
def test_two_megabytes_of_recipients_are_refused_in_little_time(member: bytes, lines: int) -> None:
    count = MAX_HEADER_BYTES // (len(member) + 4) // lines
    to = [Header("To", b",".join(member % (i * 7 + n) for i in range(count))) for n in range(lines)]
    headers = [Header("X-Mms-Message-Type", b"MM4_forward.REQ"), *to][:MAX_HEADERS]
    found: list[Pdu] = []
    assert seconds(lambda: found.append(read(headers, "3gpp", "DE"))) < 5
    assert found[0].status == CORRUPT
    assert len(found[0].recipients) <= 2 * MAX_ADDRESSES


def test_as_many_recipients_as_postfix_takes_are_read() -> None:
    to = b",".join(b"+4477009%05d" % i for i in range(MAX_ADDRESSES))
    assert len(read([Header("X-Mms-Priority", b"Low"), Header("To", to)]).recipients) == MAX_ADDRESSES


LINES = [b"X-Mms-Priority: High", b"To: +447700900101", b"X-Mms-Previously-sent-by: 1, a@b.example", b"X-Junk: a"]


@pytest.mark.parametrize("line", LINES)
def test_a_message_of_nothing_but_headers_is_read_in_little_time(line: bytes) -> None:
    message = b"X-Mms-Message-Type: MM4_forward.REQ\r\n" + (line + b"\r\n") * 20_000 + b"\r\n"
    found: list[Pdu] = []
    assert seconds(lambda: found.append(read_message(message))) < 5
    assert found[0].status == CORRUPT


def test_a_value_of_nothing_but_folds_is_read_in_little_time() -> None:
    message = b"X-Mms-Message-Type: MM4_forward.REQ\r\nSubject: a\r\n" + b" \r\n" * 100_000 + b"\r\n"
    found: list[Pdu] = []
    assert seconds(lambda: found.append(read_message(message))) < 5
    assert found[0].get("subject") == "a"


def test_five_thousand_lines_are_read_and_one_more_is_too_many() -> None:
    lines = [Header(name, value) for name, value in req()]
    full = lines + [Header("X-Junk", b"a")] * (MAX_HEADERS - len(lines))
    assert read(full).valid
    (problem,) = read([*full, Header("X-Junk", b"a")]).errors
    assert (problem.rule, problem.status) == ("headers", CORRUPT)


@pytest.mark.parametrize("header", [Header("X-Junk", b"a" * 1000), Header("X" * 1000, b"")], ids=["values", "names"])
def test_two_megabytes_of_headers_are_too_many(header: Header) -> None:
    lines = [Header(name, value) for name, value in req()]
    size = sum(line.size for line in lines)
    fitting = (MAX_HEADER_BYTES - size) // header.size
    assert read(lines + [header] * fitting).valid
    assert read(lines + [header] * (fitting + 1)).status == CORRUPT


def test_long_addresses_are_not_kept() -> None:
    address._parse_kept.cache_clear()
    for i in range(50):
        parse_address(f"{i:07d}" + "x" * 1000)
    assert address._parse_kept.cache_info().currsize == 0


def test_a_res_counts_though_an_optional_line_of_it_is_unreadable() -> None:
    message = (
        b"From: <>\r\nX-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: MM4_forward.RES\r\n"
        b"X-Mms-Transaction-ID: t\r\nX-Mms-Message-ID: m\r\nX-Mms-Request-Status-Code: Ok\r\n\r\n"
    )
    pdu = read_message(message)
    assert pdu.valid
    assert [(p.field, p.severity) for p in pdu.problems] == [("sender", "warning")]
