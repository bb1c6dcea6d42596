"""What a peer's rules cost: CPU of the milter's worker a message, with no rule, another peer's, and its own.

Run as root: `PYTHONPATH=milter:tests python tests/bench/policy.py [MESSAGES]`. One worker, one SMTP session, no acks.
"""

from __future__ import annotations

import os
import smtplib
import sys
from pathlib import Path

from harness import Link, talk
from policies import LOCAL_YAML, Row, picture

PEERS = """\
service: {workers: 1}
peers:
  own: {domains: [mms.p00.example], networks: [127.0.2.1/32], next_hop: "@north@"OWN}
  other: {domains: [mms.other.example], networks: [127.0.2.2/32], next_hop: "@north@"OTHER}
"""
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


def main(messages: int) -> None:
    """Print the table of docs/performance.md."""
    print("| rule | picture of 30 kB | picture of 300 kB |\n| --- | --- | --- |")
    for name, (own, other) in RULES.items():
        cells = [f"{measured(own, other, size, messages):.1f} ms" for size in (30_000, 300_000)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
