"""Every row of the policy table on a real gateway: what the peer is told and reads, and what `mm4 explain` says before.

Two workers, so that rates and floods are shared; a reload that brings the first rule that needs a body; a restart.
"""

from __future__ import annotations

import os
import re
import signal
import smtplib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import Dialogue, Link, Mail, Sandbox, mm4, talk, wait_for
from mm4.cli.explain import explanation
from mm4.gateway.routing import Router
from mm4.postfix.seen import seen
from mm4.postfix.settings import read_config
from mm4.store import Store
from policies import MAIL_FROM, ROWS, Row, configuration, name_of

pytestmark = pytest.mark.postfix

FREE, RATED, FLOODED = "127.0.2.1", "127.0.2.2", "127.0.2.3"
EXTRA = f"""\
  free: {{domains: [mms.free.example], networks: [{FREE}/32], next_hop: "@north@"}}
  rated: {{domains: [mms.rated.example], networks: [{RATED}/32], next_hop: "@north@", rate: {{second: 0.0001, burst: 20}}}}
  flooded: {{domains: [mms.flooded.example], networks: [{FLOODED}/32], next_hop: "@north@",
    flood: {{limit: 10, action: reject, window: 1d}}, on_violation: reject}}
"""


@dataclass
class Live:
    """What explain foretold of the last message of each row, and what came of it."""

    link: Link
    said: dict[int, dict[str, Any]]
    dialogues: dict[int, Dialogue]

    def mails(self, number: int, queue_id: str) -> list[Mail]:
        """What the peer of this row got of the message with this queue id: the RES to it, or itself."""
        log = self.link.gateway.log()
        answers = dict(re.findall(r" queue_id=(\w+) token=\w+ peer=\S+ answer=\S+ .*?submitted=(\w+)", log))
        wanted = queue_id if ROWS[number].way == "out" else answers.get(queue_id)
        return [mail for mail in self.link.north.mails if re.search(rf"\sid {wanted}[;\s]", mail.header("Received") or "")]


def transfer(gateway: Sandbox, number: int, turn: int) -> Dialogue:
    row = ROWS[number]
    host, _, port = gateway.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=120, source_address=(row.client(number), 0)) as client:
        client.ehlo()
        size = "" if row.size is None else f" SIZE={row.size}"
        return talk(
            client, row.message(number, turn), mail_from=row.mail_from(number), rcpt=row.recipients(number),
            size=row.size is None, options=size,
        )  # fmt: skip


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    yaml = configuration().replace("routes:\n", EXTRA + "routes:\n")
    with Link(yaml, hops=("mmsc", "north")) as link, ThreadPoolExecutor(4) as pool:
        config = read_config(link.gateway.config)[0]
        router = Router(config)

        def one(number: int) -> tuple[dict[str, Any], Dialogue]:
            row = ROWS[number]
            for turn in range(1, row.times):
                assert transfer(link.gateway, number, turn).code == 250
            message = row.message(number, row.times)
            size = len(message) if row.size is None else row.size
            with Store.open(config.store, migrate=False, read_only=True) as store:
                said = explanation(
                    router, message, row.client(number), row.mail_from(number), row.recipients(number), size, store
                )  # fmt: skip
            return said, transfer(link.gateway, number, row.times)

        results = list(pool.map(one, range(len(ROWS))))
        wait_for(lambda: len(link.gateway.queue()) == 1 == len(held(link)), "a queue that holds what is held and no more")
        yield Live(link, {n: said for n, (said, _) in enumerate(results)}, {n: d for n, (_, d) in enumerate(results)})


def held(link: Link) -> list[dict[str, Any]]:
    return [message for message in link.gateway.queue() if message["queue_name"] == "hold"]


def last(dialogue: Dialogue) -> str:
    code, text = dialogue.data or (dialogue.rcpt or [dialogue.mail])[-1]
    return f"{code} {text}"


def shown(content: bytes) -> list[tuple[str, str]]:
    """Headers without the lines that Postfix put on top, and without what is new each time."""
    lines = [(h.name, h.value.decode("latin-1").strip()) for h in seen(content)]
    return [(n, re.sub(r"\b[0-9a-f]{32}\b", "TOKEN", v)) for n, v in lines if n not in ("Received", "Date")]


def edited(message: bytes, edits: list[list[Any]]) -> Counter[tuple[str, str]]:
    lines: list[tuple[str, str] | None] = [(h.name, h.value.decode("latin-1").strip()) for h in seen(message)]
    added = []
    for op, name, occurrence, value in edits:
        if op == "add":
            added.append((name, value))
            continue
        index = [i for i, h in enumerate(seen(message)) if h.name.lower() == name.lower()][occurrence - 1]
        lines[index] = (name, value) if op == "change" else None
    return Counter((n, v) for n, v in [*(line for line in lines if line), *added] if n != "Date")


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[f"{row.key}-{row.name}" for row in ROWS])
def test_the_gateway_does_what_the_table_and_explain_say(live: Live, number: int) -> None:
    row, said, dialogue = ROWS[number], live.said[number], live.dialogues[number]
    assert last(dialogue).startswith(row.says if row.says[:3] != "452" else "250 2.0.0")
    assert said["peer"] == (name_of(number) if row.way == "in" else "local")
    assert [recipient["smtp"][:9] for recipient in said["rcpt"]] == [f"{c} {t.split()[0]}" for c, t in dialogue.rcpt]
    if row.says[:3] == "452":
        assert said["rcpt"][-1]["smtp"].startswith(row.says)
    assert said["smtp"][:9] == last(dialogue)[:9], said
    assert said["action"] == row.action
    if row.action not in ("accept", "hold"):
        assert said["smtp"] == last(dialogue)
        return
    if row.action == "hold":
        return
    mails = live.mails(number, dialogue.queue_id)
    if row.way == "in":
        (response,) = said["responses"]
        assert response["status"] == row.status
        (mail,) = mails
        assert shown(mail.content) == shown(response["message"].encode())
        assert mail.mail_from.strip("<>") == response["mail_from"]
    else:
        (mail,) = mails
        assert Counter(shown(mail.content)) == edited(row.message(number, row.times), said["edits"])
    for name, value in row.reads.items():
        there = mail.mail_from.strip("<>") if name == MAIL_FROM else mail.header(name)
        assert (" ".join(there.split()) if there is not None else None) == value


def test_what_is_held_is_neither_delivered_nor_answered_until_it_is_released(live: Live) -> None:
    number = next(n for n, row in enumerate(ROWS) if row.action == "hold")
    queue_id = live.dialogues[number].queue_id
    (message,) = held(live.link)
    assert message["queue_id"] == queue_id
    assert live.mails(number, queue_id) == []
    ids = f"t2-{name_of(number)}@test.example"
    assert live.link.mmsc.carrying(ids) == []
    listed = mm4("queue", "--json", "--config", live.link.gateway.config).stdout
    assert queue_id in listed
    assert "hold" in listed
    mm4("queue", "release", queue_id, "--config", live.link.gateway.config)
    live.link.mmsc.wait_for(ids)
    wait_for(lambda: live.mails(number, queue_id), "the RES of what was released")
    live.link.gateway.quiet()
    (mail,) = live.mails(number, queue_id)
    assert mail.header("X-Mms-Request-Status-Code") == "Ok"


def send(gateway: Sandbox, source: str, text: str) -> Dialogue:
    row = Row("", "", "{}", change={"ids": (f"{text}@test.example", f"m-{text}@test.example"), "ack": "No"})
    name = {FREE: "free", RATED: "rated", FLOODED: "flooded"}[source]
    return gateway.send(row.message(0), source=source, mail_from=f"+447700900002@mms.{name}.example")


def test_two_workers_share_rates_and_floods_and_a_restart_forgets_nothing(live: Live) -> None:
    gateway = live.link.gateway
    with ThreadPoolExecutor(8) as pool:
        rated = list(pool.map(lambda n: send(gateway, RATED, f"rated-{n}").code or 451, range(40)))
        flooded = list(pool.map(lambda n: send(gateway, FLOODED, f"flooded-{n}").code, range(25)))
    assert Counter(rated) == {250: 20, 451: 20}
    # Ten are let through, whichever worker sees them.
    assert Counter(flooded) == {250: 10, 552: 15}
    for worker in gateway.children("worker"):
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: send(gateway, FREE, f"again-{os.urandom(4).hex()}").code == 250, "new workers")
    assert send(gateway, RATED, "rated-after").mail[0] == 451
    assert send(gateway, FLOODED, "flooded-after").code == 552


def test_a_reload_that_brings_the_first_rule_for_a_body_takes_effect_at_once() -> None:
    """On connections that are open, too: they are closed with 421, and the next one shows the body."""
    plain = configuration().split("peers:\n")[0] + f"peers:\n{EXTRA.splitlines()[0]}\n"
    with Link(plain, hops=("mmsc", "north")) as link:
        gateway = link.gateway
        host, _, port = gateway.smtp.rpartition(":")
        effective = Path(gateway.config)
        with smtplib.SMTP(host, int(port), timeout=120, source_address=(FREE, 0)) as client:
            ids = ("t-1@test.example", "m-1@test.example")
            message = Row("", "", "{}", change={"ids": ids}).message(0).replace(b"mms.p00", b"mms.free")
            recipients = ("+491511000001@mms.gw.example",)
            assert talk(client, message, mail_from="a@mms.free.example", rcpt=recipients).code == 250
            text = effective.read_text()
            assert "max_content" not in text.split("mms.free.example")[1].splitlines()[0]
            reloaded(gateway, with_rule(text))
            reply = talk(client, message, mail_from="a@mms.free.example", rcpt=recipients)
            assert reply.mail[0] == 421
        assert gateway.send(message.replace(b"t-1", b"t-2"), source=FREE, mail_from="a@mms.free.example").code == 552
        # And back: a connection that shows bodies goes on without the rule.
        with smtplib.SMTP(host, int(port), timeout=120, source_address=(FREE, 0)) as client:
            assert talk(client, message.replace(b"t-1", b"t-3"), mail_from="a@mms.free.example", rcpt=recipients).code == 552
            reloaded(gateway, text)
            assert talk(client, message.replace(b"t-1", b"t-4"), mail_from="a@mms.free.example", rcpt=recipients).code == 250


def with_rule(text: str) -> str:
    import yaml

    tree = yaml.safe_load(text)
    tree["peers"]["free"] |= {"max_content": "10B", "on_violation": "reject"}
    return str(yaml.safe_dump(tree))


def reloaded(gateway: Sandbox, text: str) -> None:
    before = gateway.log().count("reload=done")
    Path(gateway.config).write_text(text)
    os.kill(gateway.daemon(), signal.SIGHUP)
    wait_for(lambda: gateway.log().count("reload=done") > before, "the reload")
