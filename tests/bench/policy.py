"""What a peer's rules cost: CPU of the milter's worker a message, with no rule, another peer's, and its own.

One worker, one SMTP session of a real Postfix, no acks.
"""

from __future__ import annotations

import contextlib
import os
import smtplib
from pathlib import Path

from harness import Link, talk, wait_for
from policies import LOCAL_YAML, Row, picture

from .figures import spread
from .part import Asked, Part, say, table, turns

__all__ = ["policy"]

PEERS = """\
service: {workers: 1}
peers:
  own: {domains: [mms.p00.example], networks: [127.0.2.1/32], next_hop: "@north@"OWN}
  other: {domains: [mms.other.example], networks: [127.0.2.2/32], next_hop: "@north@"OTHER}
"""
WARMING = 5
"""Messages before those that count."""
SIZES = (30_000, 300_000)
RULES = {
    "no rule": ("", ""),
    "`max_content` of another peer": ("", ", max_content: 1MB"),
    "`max_content`": (", max_content: 1MB", ""),
    "`flood`": (", flood: {limit: 1000000}", ""),
    "`rate`": (", rate: {second: 10000}", ""),
}


def cpu(process: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(link: Link, label: str, size: int, messages: int) -> float:
    """Milliseconds of CPU a message whose picture has `size` bytes."""
    host, _, port = link.gateway.smtp.rpartition(":")
    body = picture(size)
    with smtplib.SMTP(host, int(port), timeout=60, source_address=("127.0.2.1", 0)) as client:
        worker, before = link.gateway.children("worker")[0], 0.0
        for number in range(-WARMING, messages):
            if number == 0:
                before = cpu(worker)
            ids = (f"t{number}-{label}@test.example", f"m{number}-{label}@test.example")
            message = Row("", "", "{}", change={"ids": ids, "ack": "No", "body": body}).message(0)
            assert talk(client, message, mail_from="a@mms.p00.example").code == 250
        spent = cpu(worker) - before
    # Delivered before the next one's turn; and no picture is kept.
    wait_for(lambda: len(link.mmsc.mails) == messages + WARMING, f"the messages of {label} at the MMSC")
    link.mmsc.mails.clear()
    return 1000 * spent / messages


def policy(asked: Asked) -> Part:
    """Each rule in turn, with two sizes of a picture; all gateways running, one at a time with work."""
    messages = asked.many(200, 10)
    every: dict[str, list[list[float]]] = {name: [[] for _ in SIZES] for name in RULES}
    with contextlib.ExitStack() as stack:
        links = {}
        for name, (own, other) in RULES.items():
            config = LOCAL_YAML + PEERS.replace("OWN", own).replace("OTHER", other)
            links[name] = stack.enter_context(Link(config, hops=("mmsc", "north")))
        for number in range(1, asked.rounds + 1):
            for name in turns(list(links), number):
                for size, found in zip(SIZES, every[name], strict=True):
                    found.append(measured(links[name], f"{size}-{number}", size, messages))
                say(f"rules, round {number}, {name}: {', '.join(f'{found[-1]:.1f} ms' for found in every[name])}")
    lines = [
        f"CPU of the milter's worker a message, one worker, {messages} messages in one session, no acks. Without a rule no "
        "body is handed over; with another peer's rule one chunk; a flood reads and digests all of it, and its count, like "
        "that of a rate, is one commit more.", "",
        *table(
            ["rule", *(f"picture of {size // 1000} kB" for size in SIZES)],
            [[name, *(f"{spread(found, 1)} ms" for found in both)] for name, both in every.items()],
        ),
    ]  # fmt: skip
    return Part("What a peer's rules cost", lines, [], dict(every))
