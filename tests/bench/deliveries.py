"""What Postfix does behind a commit, without a Postfix: it hands messages to the responder, which submits their acks."""

from __future__ import annotations

import smtplib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster import execute
from harness import wait_for
from mm4.postfix.sockets import RESPONDER_SOCKET

from .daemon import Daemon
from .part import Wrong
from .sinks import Sink
from .traffic import requests

__all__ = ["deliver"]

_AT_ONCE = 20
"""Postfix's default_destination_concurrency_limit."""


def deliver(daemon: Daemon, acks: Sink, count: int) -> None:
    """Hand over the last `count` messages that were recorded, of 40 kB, and see each ack at `acks` and in the store.

    Postfix's way: so many connections at a time, a command after the reply to the last. Raises Wrong.
    """
    newest = execute(daemon.store, "SELECT token, queue_id FROM messages ORDER BY recorded_at DESC LIMIT :n", n=count)
    mails = [(f"{token}@responder.mm4.invalid", str(queue_id)) for token, queue_id in newest]
    socket = str(daemon.socket.with_name(RESPONDER_SOCKET))
    (item,) = requests(40, 1, "committed", local=True)
    before = acks.count(), _answered(daemon)

    def hand_over(some: Sequence[tuple[str, str]]) -> None:
        with smtplib.LMTP(socket, local_hostname="mms.gw.example") as client:
            for recipient, queue_id in some:
                top = f"Received: from bench.north.example\r\n\tby mms.gw.example (Postfix) with ESMTP id {queue_id}\r\n"
                client.sendmail(item.mail_from, [recipient], top.encode() + item.head + item.rest)

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(hand_over, [mails[n::_AT_ONCE] for n in range(min(_AT_ONCE, count))]))
    except smtplib.SMTPException as error:
        raise Wrong(f"{socket}: {error}") from error
    wait_for(lambda: acks.count() - before[0] >= count, f"{count} acks")  # its counter may be a little behind
    after = acks.count() - before[0], _answered(daemon) - before[1]
    if after != (count, count):
        raise Wrong(f"{count} messages handed to the responder, {after[0]} acks, {after[1]} of them noted")


def _answered(daemon: Daemon) -> int:
    ((number,),) = execute(daemon.store, "SELECT count(*) FROM messages WHERE answered_at IS NOT NULL")
    return int(number)
