"""An MMS from a peer: delivered once, acknowledged once, both exactly as they have to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NextHop, Sandbox, forward_req, headers_of, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()


class Link:
    """A gateway with both its neighbours."""

    def __init__(self, submit: str) -> None:
        self.mmsc, self.north, self.south = NextHop(), NextHop(), NextHop()
        config = YAML.replace("@submit@", submit)
        for name in ("mmsc", "north", "south"):
            config = config.replace(f"@{name}@", getattr(self, name).hop)
        self.gateway = Sandbox(config)


@pytest.fixture(scope="module", params=["sendmail", "smtp"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    made = Link(request.param)
    with made.mmsc, made.north, made.south, made.gateway:
        yield made


@pytest.fixture(autouse=True)
def fresh(link: Link) -> None:
    for hop in (link.mmsc, link.north, link.south):
        hop.mails.clear()


def test_asked_for_is_acknowledged_once_with_the_ids_as_they_were(link: Link) -> None:
    message = forward_req(ids=('"t-1@mms.north.example"', '"m-1@mms.north.example"'))
    dialogue = link.gateway.send(message)
    assert dialogue.code == 250
    (delivered,) = link.mmsc.wait()
    (answer,) = link.north.wait()
    assert delivered.rcpt == ["+491511000001@mmsc.gw.example"]
    assert answer.rcpt == ["PostMaster@mms.north.example"]
    assert answer.mail_from == "system-user@mms.gw.example"
    # From the first header of ours on, byte for byte what explain would show: nothing rewritten, nothing added.
    ours = [(n, v.decode()) for n, v in headers_of(answer.content) if n != "Received"]
    assert [name for name, _ in ours] == [
        "X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type", "X-Mms-Transaction-ID", "X-Mms-Message-ID",
        "X-Mms-Request-Status-Code", "From", "To", "Date", "Content-Type", "Message-ID", "MIME-Version",
    ]  # fmt: skip
    values = dict(ours)
    assert values["X-Mms-Transaction-ID"] == '"t-1@mms.north.example"'
    assert values["X-Mms-Message-ID"] == '"m-1@mms.north.example"'
    assert values["X-Mms-Request-Status-Code"] == "Ok"
    assert values["From"] == "system-user@mms.gw.example"
    assert values["To"] == "PostMaster@mms.north.example"
    (transaction,) = wait_for(
        lambda: [t for t in link.gateway.trace("m-1@mms.north.example") if t["state"] == "answered"], "the answer"
    )
    assert transaction["status"] == "Ok"
    assert transaction["queue_id"] == dialogue.queue_id


def test_the_req_reaches_the_local_side_unchanged_but_for_the_ack_request(link: Link) -> None:
    message = forward_req()
    link.gateway.send(message)
    (delivered,) = link.mmsc.wait()
    link.north.wait()
    before = [(n, b"No" if n == "X-Mms-Ack-Request" else v) for n, v in headers_of(message)]
    after = [(n, v) for n, v in headers_of(delivered.content) if n != "Received"]
    assert after == before
    assert delivered.content.partition(b"\r\n\r\n")[2] == message.partition(b"\r\n\r\n")[2]
