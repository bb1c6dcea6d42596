"""What a peer's rules cost: CPU of the milter's worker a message, with no rule, another peer's, and its own.

One worker, one SMTP session of a real Postfix, no acks.
"""

from __future__ import annotations

import os
import smtplib
from pathlib import Path

from harness import Link, talk
from policies import LOCAL_YAML, Row, picture

from .part import Asked, Part, say, table

__all__ = ["policy"]

PEERS = """\
service: {workers: 1}
peers:
  own: {domains: [mms.p00.example], networks: [127.0.2.1/32], next_hop: "@north@"OWN}
  other: {domains: [mms.other.example], networks: [127.0.2.2/32], next_hop: "@north@"OTHER}
"""
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


def measured(own: str, other: str, size: int, messages: int) -> float:
    """Milliseconds of CPU a message whose picture has `size` bytes."""
    with Link(LOCAL_YAML + PEERS.replace("OWN", own).replace("OTHER", other), hops=("mmsc", "north")) as link:
        host, _, port = link.gateway.smtp.rpartition(":")
        body = picture(size)
        with smtplib.SMTP(host, int(port), timeout=60, source_address=("127.0.2.1", 0)) as client:
            worker, before = link.gateway.children("worker")[0], 0.0
            for number in range(-5, messages):  # the first ones warm up
                if number == 0:
                    before = cpu(worker)
                ids = (f"t{number}@test.example", f"m{number}@test.example")
                message = Row("", "", "{}", change={"ids": ids, "ack": "No", "body": body}).message(0)
                assert talk(client, message, mail_from="a@mms.p00.example").code == 250
            return 1000 * (cpu(worker) - before) / messages


def policy(asked: Asked) -> Part:
    """Each rule, with two sizes of a picture."""
    messages = asked.many(200, 10)
    every: dict[str, list[float]] = {}
    for name, (own, other) in RULES.items():
        every[name] = [measured(own, other, size, messages) for size in SIZES]
        say(f"rules, {name}: {every[name]}")
    lines = [
        f"CPU of the milter's worker a message, one worker, {messages} messages in one session, no acks. Without a rule no "
        "body is handed over; with another peer's rule one chunk; a flood reads and digests all of it, and its count, like "
        "that of a rate, is one commit more.", "",
        *table(
            ["rule", *(f"picture of {size // 1000} kB" for size in SIZES)],
            [[name, *(f"{ms:.1f} ms" for ms in both)] for name, both in every.items()],
        ),
    ]  # fmt: skip
    return Part("What a peer's rules cost", lines, [], dict(every))
