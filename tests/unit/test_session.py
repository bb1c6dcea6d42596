"""One connection: what is kept between messages, bounds, draining, log lines, and a store that fails or is late."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import pytest

from fake import CONFIG, QUEUE_ID, Gateway, Headers, Ledger, LogLines, Seen, req
from mm4.gateway.configfile import parse_config
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Action, Verdict
from mm4.postfix.runtime import Runtime
from mm4.postfix.session import Session
from mm4.protocol.errors import Reply, StoreError
from mm4.protocol.headers import MAX_HEADER_BYTES, MAX_HEADERS

CORRUPT = "Error-message-format-corrupt"
LOCAL_ERROR = "451 4.3.0 Local error, try again later"
STORE_ERROR = "451 4.3.0 Message store unavailable, try again later"


def message(seen: Seen, **change: Any) -> Seen:
    return seen.mail().rcpt().headers(req(**change)).end()


# -- one message after the other


def test_every_message_starts_anew() -> None:
    seen = Gateway().peer("north")
    first = message(seen, X_Mms_Message_ID=None).verdict
    second = message(seen).verdict
    assert (first.status, second.status) == (CORRUPT, "Ok")
    assert len(seen.session.headers) == len(req())
    assert second.deleted == ("<+491511000001/TYPE=PLMN@mms.gw.example>",)
    assert len(seen.gateway.ledger.messages) == 2


def test_a_message_that_was_given_up_leaves_nothing() -> None:
    seen = Gateway().peer("north").mail("<>").rcpt().headers([("X-Mms-Message-ID", b"other")] * 9)
    seen.session.end()  # RSET
    assert message(seen).verdict.status == "Ok"
    seen.mail().rcpt("<+491511000001@mms.gw.example>", "<+491511000002@mms.gw.example>")
    # A client may begin again without RSET.
    verdict = message(seen).verdict
    assert len(verdict.added) == 2
    assert verdict.added[0][0] == "+491511000001@mmsc.gw.example"


def test_a_fault_of_one_message_is_not_the_next_ones() -> None:
    seen = Gateway().peer("north").mail().rcpt()
    seen.session.fault = ValueError("in a header event")
    with LogLines() as lines:
        assert str(seen.headers(req()).end().reply) == LOCAL_ERROR
    assert seen.gateway.ledger.messages == []
    assert len(lines) == 1
    assert "in a header event" in lines[0]
    assert message(seen).verdict.status == "Ok"


@pytest.mark.parametrize("path", ["<>", ""])
def test_a_null_sender_is_null_however_it_is_written(path: str) -> None:
    seen = Gateway().peer("north").mail(path)
    assert seen.session.mail_from == ""
    assert seen.rcpt().headers(req()).end().verdict.status == "Ok"


def test_a_new_configuration_counts_from_the_next_message() -> None:
    seen = Gateway().peer("north").mail().rcpt()
    stricter = CONFIG.replace('numbers: ["+491511", "+4915112"]', 'numbers: ["+4930"]')
    seen.gateway.runtime.router = Router(parse_config(stricter, "mm4.yaml"))
    assert seen.headers(req()).end().verdict.status == "Ok", "what has begun ends as it began"
    assert seen.mail().rcpt().reply.code == 550


def test_connections_and_messages_are_counted() -> None:
    gateway = Gateway()
    runtime = gateway.runtime
    one, two = gateway.peer("north"), gateway.peer("hub")
    assert (runtime.connections, runtime.messages) == (2, 0)
    one.mail()
    two.mail().mail()
    assert runtime.messages == 2
    one.rcpt().headers(req()).end()
    assert runtime.messages == 1
    two.session.close()
    two.session.end()
    one.session.close()
    assert (runtime.connections, runtime.messages) == (0, 0)
    stranger = gateway.peer("stranger").mail()
    assert (stranger.reply.code, runtime.messages) == (550, 0)


def test_threads_may_take_turns() -> None:
    """libmilter calls one message's events on any thread of its pool."""
    seen = Gateway().peer("north")
    for step, *arguments in ((seen.mail,), (seen.rcpt,), (seen.headers, req()), (seen.end,)):
        thread = threading.Thread(target=step, args=arguments)
        thread.start()
        thread.join()
    assert seen.verdict.status == "Ok"


def test_an_end_without_a_beginning_is_temporary() -> None:
    seen = Gateway().peer("north")
    assert str(seen.end().reply) == LOCAL_ERROR
    assert str(Gateway().peer("north").rcpt().reply) == LOCAL_ERROR


# -- draining


def test_a_worker_that_drains_takes_no_new_message_and_ends_the_open_ones() -> None:
    seen = Gateway().peer("north").mail().rcpt()
    seen.gateway.runtime.draining = True
    assert seen.headers(req()).end().verdict.status == "Ok"
    assert str(seen.mail().reply) == "421 4.3.2 Service restarting, connect again"
    assert str(seen.gateway.peer("stranger").mail().reply).startswith("421")
    assert seen.gateway.runtime.messages == 0


# -- a store that fails, and one that is late


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("fault", "reply"),
    [
        (StoreError("/var/lib/mm4/mm4.db: database is locked"), STORE_ERROR),
        (OSError(28, "No space left on device"), LOCAL_ERROR),
        (RuntimeError("cannot schedule new futures after shutdown"), LOCAL_ERROR),
        (TimeoutError(), None),
        (concurrent.futures.CancelledError(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_store_that_fails_makes_the_peer_keep_its_message(
    fault: BaseException, reply: str | None, at_once: bool
) -> None:
    seen = Gateway(ledger=Ledger(fault, at_once=at_once)).peer("north")
    for lines in (req(), res()):
        with LogLines() as logged:
            seen.mail().rcpt("<system-user@mms.gw.example>", "<+491511000001@mms.gw.example>").headers(lines).end()
        assert seen.verdict.action is Action.TEMPFAIL
        assert str(seen.reply) in ((reply,) if reply else (LOCAL_ERROR, STORE_ERROR))
        assert (seen.verdict.edits, seen.verdict.added, seen.verdict.answers) == ((), (), ())
        assert len(logged) == 1
        assert logged[0].startswith(f"queue_id={QUEUE_ID} ")
        assert "verdict=tempfail" in logged[0]
        assert "reason=" in logged[0]
    assert seen.gateway.runtime.messages == 0


def res() -> Headers:
    return req(X_Mms_Message_Type="MM4_forward.RES", X_Mms_Request_Status_Code="Ok", X_Mms_Ack_Request=None)


def test_a_store_that_is_late_makes_the_peer_keep_its_message() -> None:
    seen = Gateway(ledger=Ledger(late=True), eom_seconds=0.2).peer("north")
    with LogLines() as logged:
        message(seen)
    assert (seen.verdict.action, str(seen.reply)) == (Action.TEMPFAIL, STORE_ERROR)
    assert len(logged) == 1
    assert "the store did not commit within" in logged[0]
    assert QUEUE_ID in logged[0]


def test_nothing_is_applied_before_it_is_committed() -> None:
    class Watching(Ledger):
        seen: Seen

        def record(self, message: Any, window: Any = None, splits: Any = ()) -> Any:
            assert not hasattr(self.seen, "verdict")
            return super().record(message, window, splits)

    ledger = Watching()
    ledger.seen = Gateway(ledger=ledger).peer("north")
    message(ledger.seen)
    assert len(ledger.messages) == 1


def test_a_dry_run_needs_no_store() -> None:
    session = Session(Runtime(Router(parse_config(CONFIG, "mm4.yaml")), quiet=True))
    session.connect("192.0.2.1")
    session.mail("<x@mms.north.example>")
    session.rcpt("<+491511000001@mms.gw.example>")
    for name, value in req():
        session.header(name, value)
    with LogLines() as logged:
        assert session.verdict().status == "Ok"
    assert logged == []


# -- bounds


def test_beyond_the_bounds_header_lines_are_not_kept() -> None:
    seen = Gateway().peer("north").mail().rcpt().headers(req())
    for _ in range(20_000):
        seen.session.header("X-Junk", b"a")
    assert len(seen.session.headers) <= MAX_HEADERS + 1
    assert seen.end().verdict.status == CORRUPT
    assert len(seen.verdict.answers) == 1, "the ids stood within the bounds, so the peer is told"


@pytest.mark.parametrize(
    ("name", "value"), [("X-Junk", b"a" * 60_000), ("X" * 60_000, b""), ("X-Junk", b"a" * 5_000_000)]
)
def test_beyond_the_bounds_header_bytes_are_not_kept(name: str, value: bytes) -> None:
    seen = Gateway().peer("north").mail().rcpt().headers(req())
    for _ in range(100):
        seen.session.header(name, value)
    kept = sum(len(h.name) + len(h.value) for h in seen.session.headers)
    assert kept <= MAX_HEADER_BYTES + len(name) + len(value)
    assert seen.end().verdict.status == CORRUPT


def test_just_within_the_bounds_is_no_violation() -> None:
    seen = Gateway().peer("north").mail().rcpt().headers(req())
    for _ in range(MAX_HEADERS - len(req())):
        seen.session.header("X-Junk", b"a")
    assert seen.end().verdict.status == "Ok"


# -- what is counted and logged


class Counted:
    def __init__(self) -> None:
        self.messages: list[tuple[str, Verdict, float]] = []
        self.refusals: list[tuple[str, str, int]] = []

    def message(self, peer: str, verdict: Verdict, seconds: float) -> None:
        self.messages.append((peer, verdict, seconds))

    def refused(self, where: str, peer: str, reply: Reply) -> None:
        self.refusals.append((where, peer, reply.code))


def test_every_message_and_every_refusal_is_counted_once() -> None:
    counted = Counted()
    gateway = Gateway(observer=counted)
    message(gateway.peer("north"))
    message(gateway.peer("north"), X_Mms_Message_ID=None)
    gateway.peer("stranger").mail()
    gateway.peer("watched").mail()
    gateway.peer("hub").mail().rcpt("<+33600000000@mms.gw.example>")
    assert [(peer, v.status) for peer, v, _ in counted.messages] == [("north", "Ok"), ("north", CORRUPT)]
    assert all(seconds >= 0 for _, _, seconds in counted.messages)
    assert counted.refusals == [("mail", "stranger", 550), ("mail", "watched", 550), ("rcpt", "hub", 550)]


def keys(line: str) -> list[str]:
    """The keys of a log line, in order: what stands before `=` outside quotes."""
    found, rest = [], line
    while rest:
        key, _, rest = rest.partition("=")
        found.append(key)
        if rest.startswith('"'):
            end = 1
            while rest[end] != '"':
                end += 2 if rest[end] == "\\" else 1
            rest = rest[end + 1 :].lstrip(" ")
        else:
            rest = rest.partition(" ")[2]
    return found


def test_a_message_is_one_log_line() -> None:
    with LogLines() as lines:
        message(Gateway().peer("north"))
    assert len(lines) == 1
    assert keys(lines[0]) == [
        "queue_id", "client", "peer", "direction", "type", "transaction_id", "message_id", "recipients", "verdict",
        "status", "answer", "ms",
    ]  # fmt: skip
    assert lines[0].startswith(
        f"queue_id={QUEUE_ID} client=192.0.2.1 peer=north direction=in type=MM4_forward.REQ "
        "transaction_id=t-1@mms.north.example message_id=m-1@mms.north.example recipients=1 "
        "verdict=accept status=Ok answer=Ok ms="
    )


def test_a_refused_message_says_why_in_its_line() -> None:
    with LogLines() as lines:
        message(Gateway().peer("hub"), X_Mms_Message_ID=None, X_Mms_Originator_System="x@mms.hub.example")
    (line,) = lines
    assert "verdict=reject" in line
    assert f"status={CORRUPT}" in line
    assert 'reply="554 5.6.0 Malformed MM4 message"' in line
    assert 'reason="X-Mms-Message-ID is mandatory in MM4_forward.REQ"' in line


EVIL = [b'"t-1" verdict=reject', b'x" status=Ok', b"a\\", b"a\x1b[2J", b"a\nqueue_id=forged", b"a" * 5000, b"\xff\x00"]


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_that_a_peer_writes_starts_a_second_line_or_key(evil: bytes) -> None:
    lines = req(X_Mms_Transaction_ID=evil, X_Mms_Message_Type=b"MM4_x.REQ " + evil, X_Mms_Forward_Counter=evil)
    with LogLines() as logged:
        Gateway().peer("hub").mail(f"<{evil.decode('latin-1')}>").rcpt().headers(lines).end()
    for line in logged:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 2500
        names = keys(line)
        assert len(names) == len(set(names))
        assert names[0] == "queue_id"


def test_a_refusal_at_mail_or_rcpt_is_a_line_too() -> None:
    with LogLines() as lines:
        Gateway().peer("stranger").mail("<a b@x>")
        Gateway().peer("north").mail().rcpt("<+33600000000@mms.gw.example>")
    assert lines == [
        'client=203.0.113.99 peer=stranger refused=mail mail_from="a b@x" '
        'reply="550 5.7.1 This host exchanges MMS with its peers only"',
        "client=192.0.2.1 peer=north refused=rcpt rcpt=+33600000000@mms.gw.example "
        'reply="550 5.1.1 Number not served here"',
    ]


def test_a_sender_outside_the_peers_domains_is_logged_where_it_is_let_pass() -> None:
    with LogLines() as lines:
        Gateway().peer("north").mail("<x@elsewhere.example>").rcpt().headers(req()).end()
        message(Gateway().peer("north"))
    assert len(lines) == 2
    assert " identity=outside:MAIL-FROM " in lines[0]
    assert "identity" not in lines[1]


def test_a_message_is_judged_by_the_configuration_that_identified_its_client() -> None:
    gateway = Gateway()
    before = gateway.runtime.router
    seen = gateway.peer("north")
    gateway.runtime.router = Router(parse_config(CONFIG.replace("  north:", "  renamed:").replace("peer: north", "peer: renamed"), "mm4.yaml"))
    assert seen.session.mail("<a@mms.north.example>", (), before).positive
    assert (seen.session.router is before, seen.session.side and seen.session.side.name) == (True, "north")
    assert seen.session.mail("<a@mms.north.example>").positive
    assert seen.session.side is not None
    assert seen.session.side.name == "renamed"
