"""`mm4 send` against real Postfix and a peer that answers: whom it reaches, and how the waiting ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from answering import Answering
from harness import Link, NextHop, mm4
from mm4.compose import Service, Unreachable, compose, new_id, outcomes, text_part, wait
from mm4.postfix.settings import read_config
from mm4.protocol.reader import read_message
from mm4.store.store import Store

pytestmark = pytest.mark.postfix

FOLDER = Path(__file__).parent
FINE, DENIED, SILENT = "+447700900101", "+447700900102", "+447700900103"
SOUTH, OWN = "+33600000001", "+491511000077"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    north = Answering({FINE: "Ok", DENIED: "Error-service-denied"})
    with Link((FOLDER / "mm4.yaml").read_text(), {"north": north, "south": NextHop()}) as made:
        north.gateway = made.gateway
        yield made


def send(link: Link, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    return mm4("send", "--config", link.gateway.config, "--from", "+491511000001", "--text", "hello", *arguments,
               check=False, stdin=stdin)  # fmt: skip


def states(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str | None, str | None]]:
    return {r["recipient"]: (r["state"], r["status"]) for r in json.loads(done.stdout)["recipients"]}


def test_recipients_from_a_file_reach_their_operators_and_all_are_ok(link: Link) -> None:
    lines = f"# friends\n{FINE}  # Ann\n\n{SOUTH}\n01511 000077\n".encode()
    done = send(link, "--to-file", "-", "--wait", "50s", "--json", "--expiry", "7d", "--priority", "high",
                "--class", "informational", "--visibility", "hide", "--read-reply", stdin=lines)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert states(done) == {FINE: ("answered", "Ok"), SOUTH: ("accepted", None), "01511 000077": ("accepted", None)}
    message_id = json.loads(done.stdout)["message_id"]
    (mail,) = link.north.wait_for(message_id)
    assert mail.rcpt == [f"{FINE}/TYPE=PLMN@mms.north.example"]
    (other,) = link.south.wait_for(message_id)
    assert other.rcpt == [f"{SOUTH}/TYPE=PLMN@mm4.south.example"]
    for content, dialect in ((mail.content, "3gpp"), (other.content, "tyntec")):
        pdu = read_message(content, dialect)
        assert pdu.problems == ()
        assert [pdu.get(f) for f in ("priority", "message_class", "sender_visibility", "read_reply")] == [
            "High", "Informational", "Hide", True
        ]  # fmt: skip
        assert pdu.get("expiry").total_seconds() == 7 * 86400
        assert [a.number for a in pdu.recipients] == [FINE, SOUTH, OWN]


def test_a_res_with_an_error_is_1_and_named(link: Link) -> None:
    done = send(link, "--to", DENIED, "--to", SOUTH, "--wait", "50s")
    message_id, *rows = done.stdout.splitlines()
    assert done.returncode == 1
    assert rows == [f"{DENIED}  north  answered  Error-service-denied", f"{SOUTH}   south  accepted"]
    assert done.stderr == f"not Ok: 1 of 2; mm4 trace {message_id} tells more\n"


def test_a_peer_that_says_nothing_is_1_when_its_time_is_over(link: Link) -> None:
    done = send(link, "--to", SILENT, "--wait", "--json")  # north's ack.timeout: 2 s
    assert (done.returncode, *states(done)[SILENT]) in ((1, state, None) for state in ("waiting", "overdue"))


def test_recipients_that_are_refused_are_said_and_the_others_waited_for(link: Link) -> None:
    done = send(link, "--to", "+15550000001", "--to", FINE, "--to", "12345", "--wait", "50s", "--json")
    assert (done.returncode, states(done)) == (1, {FINE: ("answered", "Ok")})
    assert set(json.loads(done.stdout)["refused"]) == {"+15550000001", "12345"}
    assert done.stderr.splitlines()[0] == "refused +15550000001: 550 5.1.1 Number not served here"
    done = send(link, "--to", "+15550000001", "--wait", "50s")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_bounce_ends_the_waiting(link: Link) -> None:
    link.north.refused.add("+447700900109/TYPE=PLMN@mms.north.example")
    done = send(link, "--to", "+447700900109", "--wait", "50s", "--json")
    assert (done.returncode, states(done)) == (1, {"+447700900109": ("bounced", "5.1.1")})


def test_an_application_needs_no_command(link: Link) -> None:
    config, _ = read_config(link.gateway.config)
    service = Service.of(config)
    message_id = new_id(service.domain)
    message = compose("+491511000001", [FINE], [text_part("x")], message_id=message_id, now=datetime.now(UTC))
    assert service.submit(message, "+491511000001", [FINE]) == {}
    with Store.open(config.store, migrate=False, read_only=True) as store:
        (outcome,) = wait(lambda: outcomes(store, message_id, [FINE]), 50)
    assert (outcome.peer, outcome.status, outcome.ok) == ("north", "Ok", True)
    with pytest.raises(Unreachable, match="Connection refused"):
        Service("127.0.0.1", 1, "mms.gw.example").submit(message, "+491511000001", [FINE])
