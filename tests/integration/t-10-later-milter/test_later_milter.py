"""A milter behind ours has the last word: what Postfix does not keep is never acknowledged."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Dialogue, Link, forward_req, new_ids, wait_for

pytestmark = pytest.mark.postfix

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    """A gateway whose Postfix asks a second milter after ours."""
    with Link((FOLDER / "mm4.yaml").read_text(), hops=("mmsc", "north")) as made:
        gateway = made.gateway
        socket = gateway.folder / "later.sock"
        later = subprocess.Popen([sys.executable, str(FOLDER / "later.py"), str(socket)])
        try:
            wait_for(lambda: socket.exists() and stat.S_ISSOCK(socket.stat().st_mode), "the second milter's socket")
            master = Path(gateway.facts["config_directory"]) / "master.cf"
            text = master.read_text()
            # postconf -P takes no value with blanks; ours has some.
            assert text.count("content_timeout=60s }") == 1
            master.write_text(text.replace("content_timeout=60s }", f"content_timeout=60s }}, unix:{socket}"))
            gateway.postfix("postfix", "reload")
            # Until smtpd is started anew a message still meets our milter alone.
            wait_for(lambda: _sent(made, "554").code == 554, "the second milter's verdict")
            gateway.quiet()
            yield made
        finally:
            later.kill()
            later.wait(20)


def _sent(link: Link, later: str, ids: tuple[str, str] | None = None) -> Dialogue:
    return link.gateway.send(forward_req(ids=ids or new_ids(), extra=(("X-Test-Later", later),)))


def _acknowledged(link: Link) -> tuple[str, str]:
    """Send one more message and wait for its RES: whatever came before it has had its time."""
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    link.north.wait_for(ids[0])
    link.mmsc.wait_for(ids[0])
    return ids


def _states(link: Link, identifier: str) -> set[str]:
    return {transaction["state"] for transaction in link.gateway.trace(identifier)}


@pytest.mark.parametrize(("wish", "code"), [("554", 554), ("451", 451), ("discard", 250)])
def test_what_a_later_milter_refuses_or_discards_is_neither_delivered_nor_acknowledged(
    link: Link, wish: str, code: int
) -> None:
    ids = new_ids()
    dialogue = _sent(link, wish, ids)
    assert dialogue.code == code
    # Ours had said yes: the message was recorded, and what follows is Postfix's doing.
    assert _states(link, ids[0]) == {"recorded"}
    _acknowledged(link)
    link.gateway.quiet()
    assert link.north.carrying(ids[0]) == []
    assert link.mmsc.carrying(ids[0]) == []
    # Nobody told us of it: the row stays undecided, and no ack is owed to anybody.
    assert _states(link, ids[0]) == {"recorded"}


def test_what_a_later_milter_holds_is_acknowledged_once_after_its_release(link: Link) -> None:
    ids = new_ids()
    dialogue = _sent(link, "hold", ids)
    assert dialogue.code == 250
    (held,) = [m for m in link.gateway.queue() if m["queue_id"] == dialogue.queue_id]
    assert held["queue_name"] == "hold"
    _acknowledged(link)
    assert link.north.carrying(ids[0]) == []
    assert link.mmsc.carrying(ids[0]) == []

    link.gateway.postfix("postsuper", "-H", dialogue.queue_id)
    link.gateway.postfix("postqueue", "-i", dialogue.queue_id)
    (answer,) = link.north.wait_for(ids[0])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    link.mmsc.wait_for(ids[0])
    link.gateway.quiet()
    assert len(link.north.carrying(ids[0])) == len(link.mmsc.carrying(ids[0])) == 1
    assert _states(link, ids[0]) == {"answered"}


def test_a_held_message_that_is_deleted_is_never_acknowledged(link: Link) -> None:
    ids = new_ids()
    dialogue = _sent(link, "hold", ids)
    wait_for(lambda: any(m["queue_id"] == dialogue.queue_id for m in link.gateway.queue()), "the held message")
    link.gateway.postfix("postsuper", "-d", dialogue.queue_id)
    _acknowledged(link)
    link.gateway.quiet()
    assert link.north.carrying(ids[0]) == []
    assert _states(link, ids[0]) == {"recorded"}
