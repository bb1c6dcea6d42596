"""What was agreed with a peer: every key of its entry, what it accepts, what it refuses, what the peer reads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from fake import CONFIG, NOW, Gateway, LogLines, Seen
from mm4.gateway.configfile import parse_config
from mm4.gateway.peer import Peer
from mm4.gateway.verdict import Action
from mm4.protocol.errors import ConfigError, StoreError
from mm4.protocol.headers import split
from mm4.protocol.located import models
from policies import MAIL_FROM, ROWS, Row, configuration, picture

YAML = configuration().replace("@north@", "[192.0.2.1]:25").replace("@mmsc@", "[127.0.0.1]:2600")
CONFIGURED = parse_config(YAML, "mm4.yaml")


def sent(gateway: Gateway, row: Row, turn: int = 1, chunk: int = 65_535) -> Seen:
    number = ROWS.index(row)
    message = row.message(number, turn)
    size = len(message) if row.size is None else row.size
    seen = gateway.peer(row.client(number)).mail(f"<{row.mail_from(number)}>", f"SIZE={size}")
    if not seen.reply.positive:
        return seen
    seen.rcpt(*(f"<{recipient}>" for recipient in row.recipients(number)))
    return seen if not seen.reply.positive else seen.content(message, chunk).end()


def read(seen: Seen, row: Row) -> tuple[list[tuple[str, str]], str]:
    """Headers and envelope sender of what the peer gets: the RES, or the message."""
    if row.way == "out":
        return [(n, v.decode().strip()) for n, v in seen.edited()], seen.verdict.mail_from or ""
    (answer,) = seen.verdict.answers
    return [(h.name, " ".join(h.value.decode().split())) for h in split(answer.message)[0]], answer.mail_from


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.key}-{row.name}")
def test_a_policy_key_holds(row: Row) -> None:
    gateway = Gateway(CONFIGURED)
    for turn in range(1, row.times):
        assert sent(gateway, row, turn).verdict.action is Action.ACCEPT
    seen = sent(gateway, row, row.times)
    assert str(seen.reply).startswith(row.says), seen.replies
    if not hasattr(seen, "verdict"):
        assert row.action in ("reject", "tempfail") or row.rcpt > 1
        return
    assert seen.verdict.action == row.action
    assert [answer.status for answer in seen.verdict.answers] == ([row.status] if row.status and row.way == "in" else [])
    if not row.reads:
        return
    lines, mail_from = read(seen, row)
    there = dict(reversed(lines)) | {MAIL_FROM: mail_from}
    for name, value in row.reads.items():
        assert there.get(name) == value
        assert [n for n, _ in lines].count(name) <= 1


# What is no policy, and tested by others: who the peer is, where it is, how it is reached, and who answers.
ELSEWHERE = {
    "domains", "recipient_domain", "networks", "next_hop", "tls", "login", "pace", "source", "local", "system_address",
    "addresses", "region", "identity", "certificates", "logins", "own_numbers", "transit", "delivery_report", "answers", "ack.timeout", "ack.retry",
}  # fmt: skip


def keys(model: type[BaseModel], above: str = "") -> set[str]:
    found: set[str] = set()
    for name, info in model.model_fields.items():
        inner = next(models(info.annotation), None)
        found |= keys(inner, f"{above}{name}.") if inner else {f"{above}{name}"}
    return found


def test_every_policy_key_has_a_row() -> None:
    policy = {key for key in keys(Peer) if not {key, key.partition(".")[0]} & ELSEWHERE}
    assert policy == {row.key for row in ROWS}, "a new key of a peer needs a row in tests/policies.py, or stands in ELSEWHERE"


# -- what cannot be, told when the file is read

ENTRIES: list[tuple[str, str, str]] = [
    ('mms_version: "six"', "mms_version", '"6.5.0"'),
    ("mms_version: 6.5", "mms_version", "quoted string"),
    ("res: {from: no}", "res.from", "unknown key"),
    ("{dialect: tyntec, res: {content_type: no}}", "res.content_type", "the dialect tyntec demands it in a RES"),
    ("headers: {drop: [X-Mms-Transaction-ID]}", "headers.drop", "X-Mms-Transaction-ID has to stay as it is"),
    ("headers: {drop: [x-mms-mm1-message-type]}", "headers.drop", "has to stay as it is"),
    ("headers: {drop: [Received]}", "headers.drop", "Received has to stay as it is"),
    ("headers: {drop: [Date]}", "headers.drop[0]", "the dialect 3gpp demands Date in MM4_forward.REQ"),
    ("headers: {add: {From: me}}", "headers.add", "From has to stay as it is"),
    ('headers: {add: {X-A: "1", x-a: "2"}}', "headers.add", "x-a stands here twice"),
    ('headers: {drop: [X-A], add: {X-A: "2"}}', "headers.add", "X-A stands here twice"),
    ("headers: {add: {X-Mms-Priority: Urgent}}", "headers.add.X-Mms-Priority", "none of Low, Normal, High"),
    ("headers: {add: {X-Mms-Expiry: soon}}", "headers.add.X-Mms-Expiry", "expected"),
    ('headers: {add: {X-A: "one\\ntwo"}}', "headers.add.X-A", "one line of printable US-ASCII"),
    ("headers: {add: {X-A: 1}}", "headers.add.X-A", "quoted string"),
    ("headers: {add: {X-Ä: x}}", "headers.add", "no header name"),
    ("headers: {drop: ['a b']}", "headers.drop", "no header name"),
    ("pdus: [MM4_forward.ACK]", "pdus[0]", "no PDU type; there are: MM4_forward.REQ"),
    ("pdus: [MM4_forward.REQ]", "pdus", "add it, or set ack.request: no"),
    ("pdus: []", "pdus", "at least one"),
    ("max_size: 100", "max_size", "1MB"),
    ("max_content: big", "max_content", "a size"),
    ("max_recipients: 0", "max_recipients", "greater than or equal to 1"),
    ("content: {allow: [jpeg]}", "content.allow[0]", "for example image/jpeg"),
    ("content: {refuse: ['*/*']}", "content.refuse[0]", "for example image/jpeg"),
    ("rate: {second: 0}", "rate.second", "greater than 0"),
    ("rate: {second: fast}", "rate.second", "expects a number"),
    ("rate: {burst: 5}", "rate.burst", "needs `second`"),
    ("rate: {originator: {burst: 5}}", "rate.originator.burst", "needs `second`"),
    ("rate: {day: 0}", "rate.day", "greater than or equal to 1"),
    ("rate: {originator: {day: many}}", "rate.originator.day", "a whole number"),
    ("flood: {window: 0s}", "flood.window", "greater than or equal to 1"),
    ("flood: {limit: 0}", "flood.limit", "greater than or equal to 1"),
    ("flood: {action: drop}", "flood.action", "'reject', 'hold' or 'log'"),
]


@pytest.mark.parametrize(("entry", "key", "text"), ENTRIES, ids=[entry for entry, _, _ in ENTRIES])
def test_an_entry_that_cannot_work_is_told_with_its_line(entry: str, key: str, text: str) -> None:
    bare = entry[1:-1] if entry.startswith("{") else entry
    config = CONFIG.replace("    max_size: 1MB\n", "")
    line = config[: config.index("next_hop: \"[192.0.2.1]:25\"")].count("\n") + 1
    config = config.replace('next_hop: "[192.0.2.1]:25"', f'next_hop: "[192.0.2.1]:25"\n    {bare.replace(", res:", chr(10) + "    res:")}')
    with pytest.raises(ConfigError) as caught:
        parse_config(config, "mm4.yaml")
    (problem,) = caught.value.problems
    number, _, rest = problem.removeprefix("mm4.yaml:").partition(": ")
    assert line < int(number) <= line + 2
    assert rest.startswith(f"peers.north.{key}: "), problem
    assert text in rest


# -- the body

def named(key: str, name: str) -> Row:
    return next(row for row in ROWS if (row.key, row.name) == (key, name))


def test_without_a_rule_no_body_is_asked_for() -> None:
    gateway = Gateway()
    assert not gateway.runtime.router.reads_bodies
    assert Gateway(CONFIGURED).runtime.router.reads_bodies


def test_a_message_without_a_rule_costs_one_chunk_beside_others_that_are_read() -> None:
    gateway = Gateway(CONFIGURED)
    row = named("max_size", "small-enough")
    seen = sent(gateway, row, chunk=10)
    assert (seen.chunks, seen.verdict.action) == (1, Action.ACCEPT)
    assert sent(gateway, named("max_content", "to-the-byte"), chunk=10).chunks > 20


def test_a_report_and_a_res_are_not_looked_into() -> None:
    gateway = rated("content: {refuse: [image/gif]}")
    assert north(gateway, 1).verdict.status == "Error-content-not-accepted"
    for kind in (b"MM4_delivery_report.REQ\r\nX-Mms-MM-Status-Code: Retrieved", b"MM4_forward.RES\r\nX-Mms-Request-Status-Code: Ok"):
        seen = gateway.peer("north").mail().rcpt().content(message(2).replace(b"MM4_forward.REQ", kind), 10).end()
        assert seen.chunks == 1
        assert seen.verdict.status in ("Ok", "Error-message-not-found")


def test_reading_ends_where_the_message_is_too_large() -> None:
    row = named("max_size", "by-what-came")
    seen = sent(Gateway(CONFIGURED), row, chunk=100)
    assert seen.chunks < len(row.message(ROWS.index(row))) // 100


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_verdict_does_not_depend_on_how_the_body_is_cut(chunk: int) -> None:
    for row in ROWS:
        if row.key in ("max_content", "content.allow", "content.refuse"):
            seen = sent(Gateway(CONFIGURED), row, chunk=chunk)
            assert str(seen.reply).startswith(row.says)
            assert seen.verdict.action == row.action


def test_an_empty_body_is_judged_too() -> None:
    row = named("content.refuse", "none-of-them")
    seen = Gateway(CONFIGURED).peer(row.client(ROWS.index(row))).mail().rcpt()
    header = row.message(ROWS.index(row)).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    seen.content(header).end()
    assert seen.chunks == 0
    assert seen.verdict.status == "Error-content-not-accepted"
    assert "a multipart without a part" in (seen.verdict.reason or "")


def test_a_connection_that_shows_no_body_is_closed_once_a_rule_needs_one() -> None:
    gateway = Gateway()
    seen = gateway.peer("north")
    seen.session.reads_bodies = False
    assert seen.mail().reply.code == 250
    gateway.runtime.router = Gateway(CONFIGURED).runtime.router
    assert seen.mail().reply.code == 421


# -- rates and floods

def rated(entry: str) -> Gateway:
    return Gateway(CONFIG.replace("    max_size: 1MB\n", f"    {entry}\n"))


def message(turn: int, **change: Any) -> bytes:
    return Row("", "", "", change=change).message(0, turn).replace(b"PostMaster@mms.p00", b"PostMaster@mms.north")


def north(gateway: Gateway, turn: int, **change: Any) -> Seen:
    seen = gateway.peer("north").mail()
    return seen.rcpt().content(message(turn, **change)).end() if seen.reply.positive else seen


def test_what_is_over_the_rate_is_kept_out_before_it_is_sent_and_counts_for_nothing() -> None:
    gateway = rated("rate: {second: 1, burst: 2, day: 3}")
    now = [NOW]
    gateway.runtime.clock = lambda: now[0]
    assert [north(gateway, turn).reply.code for turn in (1, 2)] == [250, 250]
    assert [north(gateway, turn).replies[-1].code for turn in (3, 4, 5)] == [451] * 3
    assert len(north(gateway, 6).replies) == 1, "MAIL was answered"
    now[0] += timedelta(seconds=1)
    assert north(gateway, 7).reply.code == 250
    now[0] += timedelta(hours=1)
    # The day's limit is told at the end only: it says nothing of a RES.
    seen = north(gateway, 8)
    assert [reply.code for reply in seen.replies] == [250, 250, 451]
    assert (seen.verdict.limit, seen.verdict.record) == ("day", None)
    now[0] += timedelta(hours=13)
    assert north(gateway, 9).reply.code == 250, "midnight has passed"


def test_two_sessions_that_both_came_in_share_one_token() -> None:
    gateway = rated("rate: {second: 0.001}")
    one, two = gateway.peer("north").mail(), gateway.peer("north").mail()
    assert one.rcpt().content(message(1)).end().reply.code == 250
    assert two.rcpt().content(message(2)).end().reply.code == 451
    assert two.verdict.limit == "second"


def test_one_originator_over_his_rate_takes_nothing_from_the_others() -> None:
    gateway = rated("rate: {day: 3, originator: {day: 1}}")
    with LogLines() as lines:
        codes = [north(gateway, n, sender=f"+44770090000{n}").reply.code for n in (2, 2, 2, 3, 4, 5)]
    assert codes == [250, 451, 451, 250, 250, 451]
    assert [line.partition("limit=")[2][:16] for line in lines if "limit=" in line] == [
        '"originator day"', '"originator day"', "day reason=\"over",
    ]  # fmt: skip


def test_a_res_counts_for_no_rate_and_a_refused_req_does() -> None:
    gateway = rated("rate: {day: 2}")
    answer = message(1).replace(b"MM4_forward.REQ", b"MM4_forward.RES\r\nX-Mms-Request-Status-Code: Ok")
    for _ in range(5):
        assert gateway.peer("north").mail().rcpt("<system-user@mms.gw.example>").content(answer).end().verdict.status == "Ok"
    assert north(gateway, 2, drop=("Date",)).verdict.status == "Error-message-format-corrupt"
    assert [north(gateway, turn).reply.code for turn in (3, 4)] == [250, 451]


def test_a_store_that_does_not_answer_is_no_reason_to_let_a_message_in() -> None:
    gateway = rated("rate: {second: 1}")
    gateway.ledger.fault = StoreError("no disk")
    assert north(gateway, 1).reply.code == 451
    gateway = rated("flood: {limit: 1}")
    gateway.ledger.fault = StoreError("no disk")
    assert str(north(gateway, 1).reply) == str(StoreError.reply)


def test_the_same_picture_is_the_same_content_whatever_stands_around_it() -> None:
    gateway = rated("flood: {limit: 1, action: log}")
    other = message(2).replace(b"_Part_1", b"_Part_2").replace(b"dot.gif", b"other.gif").replace(b"<smil/>", b"<smil><x/></smil>")
    lines = message(3, body=picture(43).replace(b"\r\n", b"")[:20] + b"\r\n" + picture(43).replace(b"\r\n", b"")[20:] + b"\r\n")
    limits = [
        gateway.peer("north").mail().rcpt().content(content).end().verdict.limit
        for content in (message(1), other, message(4, body=picture(43)), lines, message(5, body=picture(44)))
    ]
    assert limits == [None, "flood", None, "flood", None]


def test_a_flood_of_one_peer_is_not_one_of_another_and_ends_with_its_window() -> None:
    gateway = rated("flood: {limit: 1, action: hold, window: 1m}")
    now = [NOW]
    gateway.runtime.clock = lambda: now[0]
    assert north(gateway, 1).verdict.action is Action.ACCEPT
    held = north(gateway, 2).verdict
    assert (held.action, held.limit, held.status) == (Action.HOLD, "flood", "Ok")
    assert held.record is not None
    assert gateway.peer("hub").mail().rcpt().content(message(3)).end().verdict.limit is None
    now[0] += timedelta(seconds=61)
    assert north(gateway, 4).verdict.action is Action.ACCEPT


def test_a_duplicate_of_a_flood_is_answered_and_not_held() -> None:
    from mm4.protocol.transaction import Recording

    gateway = rated("flood: {limit: 1, action: hold}")
    first = north(gateway, 1).verdict
    gateway.ledger.found = Recording(repeated=("+491511000001",), answer=first.answers[0])
    again = north(gateway, 1).verdict
    assert (again.action, again.reason) == (Action.ACCEPT, "a duplicate")


def test_monitor_delivers_what_floods() -> None:
    gateway = rated("{flood: {limit: 1, action: hold}, on_violation: monitor}".strip("{}").replace(", on_v", "\n    on_v"))
    assert [north(gateway, turn).verdict.action for turn in (1, 2)] == [Action.ACCEPT, Action.ACCEPT]


# -- what else the peer gets from us

def lines_of(message: bytes) -> dict[str, str]:
    return {header.name: header.value.decode().strip() for header in split(message)[0]}


def test_the_res_of_an_mmsc_goes_out_as_the_peers_entry_has_it() -> None:
    entry = "answers: mmsc\n    mms_version: \"6.5.0\"\n    res: {status_text: no, subject: yes}\n    headers: {add: {X-A: b}}"
    gateway = rated(entry)
    north(gateway, 1)
    answer = message(1).replace(
        b"MM4_forward.REQ", b"MM4_forward.RES\r\nX-Mms-Request-Status-Code: Error-service-denied\r\nX-Mms-Status-Text: barred"
    )
    seen = gateway.peer("local").mail().rcpt("<PostMaster@mms.north.example>").content(answer).end()
    (sent_on,) = seen.verdict.answers
    there = lines_of(sent_on.message)
    assert (there["X-Mms-3GPP-MMS-Version"], there["Subject"], there["X-A"]) == ("6.5.0", "MM4_forward.RES", "b")
    assert there["X-Mms-Request-Status-Code"] == "Error-service-denied"
    assert "X-Mms-Status-Text" not in there


def test_a_report_that_the_gateway_makes_is_written_as_the_peers_entry_has_it() -> None:
    from mm4.gateway.dispositions import disposition
    from mm4.gateway.notices import notice_of
    from mm4.protocol.transaction import Direction, Message, State, Transaction

    gateway = rated('delivery_report: on_delivery\n    mms_version: "6.5.0"\n    headers: {add: {X-A: b, X-Mms-Priority: High}}')
    of = Transaction("t", "m", "+447700900101", "+491511000001", State.ANSWERED, delivery_report=True)
    about = Message("0" * 32, Direction.IN, "north", "MM4_forward.REQ", "Q", "gw", NOW, (of,), source="north")
    found = disposition("delivered", "2.0.0", relayed="Retrieved", mailbox=True, late=False)
    assert found is not None
    notice = notice_of(about, of, found, "", gateway.runtime.router, NOW, "gw")
    assert notice is not None
    there = lines_of(notice.mail.message)
    assert (there["X-Mms-3GPP-MMS-Version"], there["X-A"]) == ("6.5.0", "b")
    assert "X-Mms-Priority" not in there, "a report has no place for it"


def test_a_dialect_of_ones_own_is_held_against_the_entry() -> None:
    text = "name: own\nextends: 3gpp\ntitle: t\nfields:\n  transaction_id: {header: X-Own-ID, source: s}\n"
    config = CONFIG.replace("    max_size: 1MB\n", "    dialect: own.yaml\n    headers: {drop: [X-Own-ID]}\n")
    with pytest.raises(ConfigError) as caught:
        parse_config(config, "/etc/mm4.yaml", {"/etc/own.yaml": text})
    assert "peers.north.headers.drop[0]: X-Own-ID has to stay as it is" in str(caught.value)


# -- what is agreed on with Postfix

def test_a_connection_has_bodies_shown_only_where_the_configuration_needs_them() -> None:
    from unittest.mock import Mock

    from mm4.postfix import milter

    everything = (1 << 21) - 1
    for gateway, shown in ((Gateway(), False), (Gateway(CONFIGURED), True)):
        kind = milter.connection_class(gateway.runtime)
        connection = kind()
        connection._setctx(Mock())
        options = [milter.Milter.CURR_ACTS, everything, 0, 0]
        assert connection.negotiate(options) == milter.Milter.CONTINUE
        assert bool(options[1] & milter.Milter.P_NOBODY) is not shown
        assert connection.session.reads_bodies is shown
        # A reload is a new router, for the next connection.
        gateway.runtime.router = Gateway().runtime.router
        assert milter.connection_class(gateway.runtime)().session.reads_bodies is False


# -- a message to several sides

def test_each_side_of_a_message_gets_its_own_headers_and_none_of_the_others() -> None:
    from mm4.gateway.edits import Edit, rewritten

    dropping, adding = (named(key, name) for key, name in (("headers.drop", "of-the-message"), ("headers.add", "to-the-message")))
    whole = dropping.message(ROWS.index(dropping))
    seen = Gateway(CONFIGURED).peer("local").mail("<+491511000001/TYPE=PLMN@mms.gw.example>")
    seen.rcpt(*(f"<{row.recipients(ROWS.index(row))[0]}>" for row in (dropping, adding))).content(whole).end()
    block = b"".join(name.encode() + b":" + value.replace(b"\n", b"\r\n") + b"\r\n" for name, value in seen.lines)
    first = rewritten(block, seen.verdict.edits)
    assert not {name.lower() for name in lines_of(first)} & {"x-any", "x-mms-priority"}
    (part,) = seen.verdict.splits
    assert part.record.split is not None
    second = rewritten(first, (Edit(*edit) for edit in part.record.split.edits))
    assert [h.value.strip() for h in split(second)[0] if h.name == "X-Any"] == [b"1", b"2"]
    assert (lines_of(second)["X-Mms-Priority"], lines_of(second)["X-Carrier"]) == ("High", "gw")


def test_what_one_side_may_not_have_nobody_gets() -> None:
    small, free = named("max_content", "outward"), named("mms_version", "left-out")
    seen = Gateway(CONFIGURED).peer("local").mail("<+491511000001/TYPE=PLMN@mms.gw.example>")
    seen.rcpt(*(f"<{row.recipients(ROWS.index(row))[0]}>" for row in (free, small))).content(small.message(ROWS.index(small))).end()
    assert str(seen.reply) == "552 5.3.4 the content has 51 bytes, 50 are agreed"


def test_a_header_of_which_not_all_was_seen_is_not_taken_out() -> None:
    row = named("headers.drop", "of-the-message")
    number = ROWS.index(row)
    whole = row.message(number).replace(b"X-Any: 1", b"X-Any: " + b"x" * 50_000)
    seen = Gateway(CONFIGURED).peer("local").mail("<+491511000001@mms.gw.example>").rcpt(f"<{row.recipients(number)[0]}>")
    assert str(seen.content(whole).end().reply) == "554 5.6.0 X-Any is too long to be changed"
