"""Two gateways that report delivery to each other: one report, one RES to it, and then it is quiet for ever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness import LOCAL, Sandbox, forward_req, free_port, new_ids, wait_for

pytestmark = pytest.mark.postfix

YAML = """\
local:
  domain: mms.{name}.example
  system_address: system-user@mms.{name}.example
  numbers: ["{number}"]
  clients: [127.0.0.1/32]
peers:
  other:
    domains: [mms.{peer}.example]
    networks: [{address}/32]
    next_hop: "[{address}]:{port}"
    delivery_report: on_delivery
routes:
  - {{prefix: "+", peer: other}}
service: {{workers: 1, drain: 1s}}
"""
A, B = "127.0.0.35", "127.0.0.36"
A_NUMBER, B_NUMBER = "+447700900002", "+491511000001"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Sandbox, Sandbox]]:
    ports = {A: free_port(A), B: free_port(B)}
    with contextlib.ExitStack() as stack:
        made = []
        for name, peer, own, other, number in (("a", "b", A, B, A_NUMBER), ("b", "a", B, A, B_NUMBER)):
            text = YAML.format(name=name, peer=peer, number=number, address=other, port=ports[other])
            sandbox = Sandbox(text, listen=own, source=own)
            sandbox.listen = [f"{own}:{ports[own]}"]
            made.append(stack.enter_context(sandbox))
        yield made[0], made[1]


def _send(a: Sandbox, to: str) -> str:
    ids = new_ids("mms.a.example")
    content = forward_req(ids=ids, sender=A_NUMBER, to=to, system=None, drop=("Sender",))
    content = content.replace(b"Delivery-Report: No", b"Delivery-Report: Yes")
    sent = a.send(content, source=LOCAL, mail_from=f"{A_NUMBER}@mms.a.example", rcpt=(f"{to}@mms.a.example",))
    assert sent.code == 250
    return ids[1]


def _quiet(*sides: Sandbox) -> None:
    for _ in range(2):
        for side in sides:
            side.quiet()


def _told(a: Sandbox, message_id: str) -> list[str | None]:
    return [m["X-Mms-MM-Status-Code"] for m in a.maildir(A_NUMBER) if message_id in str(m)]


def test_a_delivered_message_is_one_report_with_one_res(pair: tuple[Sandbox, Sandbox]) -> None:
    a, b = pair
    message_id = _send(a, B_NUMBER)
    wait_for(lambda: _told(a, message_id) == ["Retrieved"], "the report at A's subscriber")
    _quiet(a, b)
    for side in pair:
        kinds = {t["type"]: (t["state"], t["status"]) for t in side.trace(message_id)}
        assert kinds == {"MM4_forward.REQ": ("answered", "Ok"), "MM4_delivery_report.REQ": ("answered", "Ok")}
        assert side.unclaimed() == []
    assert _told(a, message_id) == ["Retrieved"]


def test_a_message_to_nobody_is_one_report_of_our_own(pair: tuple[Sandbox, Sandbox]) -> None:
    a, b = pair
    message_id = _send(a, "+491511000099")
    wait_for(lambda: _told(a, message_id) == ["Rejected"], "the report at A's subscriber")
    _quiet(a, b)
    assert _told(a, message_id) == ["Rejected"]
    assert b.trace(message_id) == []
    assert a.unclaimed() == b.unclaimed() == []
