"""HUP and TERM of the daemon under traffic: no message is cut, and the configuration in force is the right one."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness import NORTH, Link, Mta, forward_req, new_ids, wait_for

pytestmark = pytest.mark.postfix

CONFIG = (Path(__file__).parent / "mm4.yaml").read_text()

STOP = 10.0
"""Seconds beyond the drain within which a daemon without open messages is gone, on a busy machine."""


@pytest.fixture(scope="module", params=["1", "4"], ids=["1 worker", "4 workers"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    config = CONFIG.replace("{workers: @workers@}", "{workers: @workers@, drain: 1s}")
    with Link(config, hops=("mmsc", "north"), workers=request.param) as made:
        made.gateway.wait_log("serving=")
        yield made


def _messages(count: int) -> dict[str, bytes]:
    pairs = [new_ids() for _ in range(count)]
    return {ids[0]: forward_req(ids=ids) for ids in pairs}


def _each_once(link: Link, messages: dict[str, bytes]) -> None:
    link.gateway.quiet()
    delivered, answers = link.mmsc.by_transaction(), link.north.by_transaction()
    assert {name: (len(delivered.get(name, ())), len(answers.get(name, ()))) for name in messages} == dict.fromkeys(
        messages, (1, 1)
    )


def _code(link: Link, number: str) -> int:
    """What a peer is told at RCPT for this number; the message goes no further."""
    host, _, port = link.gateway.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=60, source_address=(NORTH, 0)) as client:
        client.ehlo()
        assert client.docmd("MAIL FROM:<+447700900002/TYPE=PLMN@mms.north.example>")[0] == 250
        return client.docmd(f"RCPT TO:<{number}/TYPE=PLMN@mms.gw.example>")[0]


def _reloaded(link: Link, numbers: str) -> int:
    """Give the file these numbers and send HUP; the place in the log from which on it is answered."""
    path = Path(link.gateway.config)
    raw = yaml.safe_load(path.read_text())
    raw["local"]["numbers"] = "@numbers@"
    path.write_text(yaml.safe_dump(raw, sort_keys=False).replace("'@numbers@'", numbers))
    mark = len(link.gateway.log())
    os.kill(link.gateway.daemon(), signal.SIGHUP)
    return mark


def _logged(link: Link, mark: int, text: str) -> str:
    def look() -> list[str]:
        return [line for line in link.gateway.log()[mark:].splitlines() if text in line]

    return wait_for(look, f"a log line with {text!r}")[0]


def test_hup_under_traffic_brings_the_new_configuration_and_nobody_notices(link: Link) -> None:
    messages = _messages(30)
    assert _code(link, "+491512000001") == 550
    with Mta(link.gateway.smtp, messages) as mta:
        mta.wait(10)
        mark = _reloaded(link, '["+491511", "+491512"]')
        _logged(link, mark, "reload=done")
        mta.wait()
    assert mta.failures == []
    _each_once(link, messages)
    assert _code(link, "+491512000001") == 250


def test_hup_with_a_bad_file_is_refused_with_its_line_and_the_old_configuration_stays(link: Link) -> None:
    _logged(link, _reloaded(link, '["+491511", "+491512"]'), "reload=done")
    messages = _messages(20)
    with Mta(link.gateway.smtp, messages) as mta:
        mta.wait(5)
        mark = _reloaded(link, '["+491511", +491513]')
        refused = _logged(link, mark, "refused, the old configuration stays")
        mta.wait()
    lines = Path(link.gateway.config).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "+491513" in text)
    assert f"{link.gateway.config}:{line}: local.numbers[1]: has to be a quoted string" in refused
    assert mta.failures == []
    _each_once(link, messages)
    assert _code(link, "+491512000001") == 250
    assert _code(link, "+491513000001") == 550
    # Nobody was left with half of it: what the file says next holds.
    _logged(link, _reloaded(link, '["+491511"]'), "reload=done")
    assert _code(link, "+491512000001") == 550


def _gone(process: int) -> bool:
    try:
        return b" Z " in Path(f"/proc/{process}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def _stopped(link: Link, processes: list[int], bound: float) -> None:
    """Send TERM to the first, the daemon; all of them are gone within `bound` seconds."""
    os.kill(processes[0], signal.SIGTERM)
    wait_for(lambda: all(map(_gone, processes)), "the daemon to stop", bound)
    assert "did not leave in time" not in link.gateway.log()


def _daemon(link: Link) -> list[int]:
    """The daemon and its children, once they all serve."""
    gateway = link.gateway
    wait_for(lambda: gateway.children("answerer") and _answers(link), "a daemon that serves")
    return [gateway.daemon(), *gateway.children("worker"), *gateway.children("answerer")]


def _answers(link: Link) -> bool:
    with contextlib.suppress(OSError, AssertionError):
        return _code(link, "+491511000001") == 250
    return False


def _sent_away(client: smtplib.SMTP) -> bool:
    """Whether an open session is refused the next message: 421 by a worker that leaves, 451 after it."""
    code = client.docmd("MAIL FROM:<+447700900002/TYPE=PLMN@mms.north.example>")[0]
    if code == 250:
        client.rset()
    return code in (421, 451)


def test_term_under_traffic_cuts_no_message(link: Link) -> None:
    messages = _messages(40)
    processes = _daemon(link)
    with Mta(link.gateway.smtp, messages, sessions=6) as mta:
        mta.wait(15)
        _stopped(link, processes, 1 + STOP)
        mta.wait()
    # Told to come again before a message had begun, and at no other moment.
    assert {failure.step for failure in mta.failures} <= {"connect", "mail"}
    assert all(failure.code in (421, 451) for failure in mta.failures if failure.step == "mail")
    _each_once(link, messages)


def test_term_lets_a_message_that_has_begun_come_to_its_end(link: Link) -> None:
    processes = _daemon(link)
    ids = new_ids()
    host, _, port = link.gateway.smtp.rpartition(":")
    with (
        smtplib.SMTP(host, int(port), timeout=60, source_address=(NORTH, 0)) as begun,
        smtplib.SMTP(host, int(port), timeout=60, source_address=(NORTH, 0)) as idle,
    ):
        begun.ehlo()
        idle.ehlo()
        assert begun.docmd("MAIL FROM:<+447700900002/TYPE=PLMN@mms.north.example>")[0] == 250
        os.kill(processes[0], signal.SIGTERM)

        wait_for(lambda: _sent_away(idle), "an idle session sent away")
        assert begun.docmd("RCPT TO:<+491511000001/TYPE=PLMN@mms.gw.example>")[0] == 250
        assert begun.data(forward_req(ids=ids))[0] == 250
    wait_for(lambda: all(map(_gone, processes)), "the daemon to stop", 1 + STOP)
    link.mmsc.wait_for(ids[0])
    link.north.wait_for(ids[0])
    link.gateway.quiet()
    assert len(link.north.carrying(ids[0])) == len(link.mmsc.carrying(ids[0])) == 1


def test_term_after_races_for_connections_ends_in_bounded_time(link: Link) -> None:
    processes = _daemon(link)
    host, _, port = link.gateway.smtp.rpartition(":")

    def connect() -> None:
        with contextlib.suppress(OSError), smtplib.SMTP(host, int(port), timeout=60, source_address=(NORTH, 0)) as c:
            c.ehlo()

    # All workers wake for each of these connections, and all but one find nothing to accept.
    racers = [threading.Thread(target=connect) for _ in range(30)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    # And nobody comes any more who would wake them from an accept(2).
    _stopped(link, processes, 1 + STOP)
