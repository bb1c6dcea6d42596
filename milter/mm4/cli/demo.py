"""`mm4 demo`: operator A sends operator B an MMS, B reports on it; each has a private Postfix.

Every step is looked at from outside: both Maildirs, both stores. One that does not happen ends the demo with exit 1.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from ..postfix.probes import free_port
from ..protocol.errors import Mm4Error
from .trace import print_trace

__all__ = ["demo"]

T = TypeVar("T")

SENDER, RECEIVER = "+447700900002", "+491511000001"

_REPORTS = (
    ("delivery", "Retrieved", "X-Mms-MM-Status-Code"),
    ("read", "Read", "X-Mms-Read-Status"),
)

_CONFIG = """\
local:
  domain: {domain}
  system_address: system-user@{domain}
  numbers: ["{numbers}"]
  clients: [127.0.0.1/32]
peers:
  {peer}:
    dialect: tyntec
    domains: [{peer_domain}]
    networks: [{peer_address}/32]
    next_hop: "[{peer_address}]:{peer_port}"
    system_address: system@{peer_domain}
routes:
  - {{prefix: "+", peer: {peer}}}
service: {{workers: 1, drain: 1s}}
"""


class DemoError(Mm4Error):
    """A step of the demo did not happen."""

    exit_code = 1


@click.command()
@click.option("--keep", is_flag=True, help="Keep the folder with both instances' files.")
def demo(keep: bool) -> int:
    """Two private Postfix instances with a gateway each, on loopback: A sends B an MMS, gets its RES and two reports.

    Needs root, as Postfix does. No system file is touched.
    """
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mm4-demo-"))
    folder.chmod(0o755)
    try:
        _run(folder, started)
    finally:
        if keep:
            click.echo(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def _run(folder: Path, started: float) -> None:
    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - started:5.1f} s  {text}")

    a = {"domain": "mms.a.example", "numbers": "+4477009000", "address": "127.0.0.11"}
    b = {"domain": "mms.b.example", "numbers": "+4915110000", "address": "127.0.0.12"}
    for side in (a, b):
        side["port"] = str(free_port(side["address"]))
    with contextlib.ExitStack() as stack:
        # Both start at once; each is ready when it says so.
        starting = [_start(stack, folder, name, side, other) for name, side, other in (("a", a, b), ("b", b, a))]
        here, there = (_ready(process) for process in starting)
        say(f"operator A takes mail on {here['smtp']}, operator B on {there['smtp']}, each a Postfix of its own")

        picture = folder / "picture.png"
        picture.write_bytes(_picture())
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        sent = _mm4(
            "send", "--config", here["config"], "--from", SENDER, "--to", RECEIVER, "--subject", "Grüße aus A",
            "--text", "A picture for you.", "--attach", str(picture), "--delivery-report", "--read-reply", "--json",
        )  # fmt: skip
        message_id = json.loads(sent)["message_id"]
        say(f"A's subscriber {SENDER} sends {RECEIVER} a picture of {picture.stat().st_size} bytes: {message_id}")

        (arrived,) = _wait("the MMS in B's Maildir", lambda: _maildir(there, RECEIVER) or None)
        received = _image(arrived)
        if hashlib.sha256(received).hexdigest() != digest:
            raise DemoError("B's subscriber has another picture than A's sent")
        say(f"B's subscriber {RECEIVER} has it, byte for byte (sha256 {digest[:16]}...)")

        def answered(count: int, side: dict[str, Any]) -> list[dict[str, Any]]:
            """The transactions of the message, once so many of them have their RES: Ok."""

            def look() -> list[dict[str, Any]] | None:
                found = json.loads(_mm4("trace", "--config", side["config"], "--json", message_id, check=False) or "{}")
                known: list[dict[str, Any]] = found.get("transactions") or []
                return known if sum(t["state"] == "answered" for t in known) == count else None

            transactions = _wait(f"{count} transactions with their RES", look)
            for transaction in transactions:
                if transaction["status"] != "Ok":
                    raise DemoError(f"{transaction['type']} was answered {transaction['status']}")
            return transactions

        answered(1, here)
        say("A has B's MM4_forward.RES: Ok")
        for count, (kind, status, header) in enumerate(_REPORTS, 1):
            _mm4("report", kind, message_id, "--config", there["config"], "--status", status)
            told = _wait(f"the {kind} report in A's Maildir", partial(_told, here, count))
            if email.message_from_bytes(told)[header] != status:
                raise DemoError(f"A's subscriber has another {kind} report than {status}")
            answered(count + 1, there)
            say(f"B's {kind} report reaches A's subscriber: {status}; B has A's RES: Ok")
        for side, name in ((here, "A"), (there, "B")):
            click.echo(f"\nmm4 trace on {name}:")
            print_trace([t | {"message_id": message_id} for t in answered(1 + len(_REPORTS), side)])
    click.echo("")
    say("both stopped; nothing is left")


def _maildir(side: dict[str, Any], number: str) -> list[bytes]:
    """What a subscriber has, in the order in which it came."""
    new = Path(side["maildir"]) / number.removeprefix("+") / "new"
    files = sorted(new.glob("*"), key=lambda file: file.stat().st_mtime_ns) if new.is_dir() else []
    return [file.read_bytes() for file in files]


def _told(side: dict[str, Any], count: int) -> bytes | None:
    """The newest report that A's subscriber has, once there are so many."""
    reports = _maildir(side, SENDER)
    return reports[-1] if len(reports) == count else None


def _start(
    stack: contextlib.ExitStack, folder: Path, name: str, side: dict[str, str], other: dict[str, str]
) -> subprocess.Popen[str]:
    """One operator's sandbox, which the stack stops."""
    peer = "b" if name == "a" else "a"
    config = folder / f"{name}.yaml"
    config.write_text(
        _CONFIG.format(
            domain=side["domain"],
            numbers=side["numbers"],
            peer=f"operator-{peer}",
            peer_domain=other["domain"],
            peer_address=other["address"],
            peer_port=other["port"],
        )
    )
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mm4", "sandbox", "--config", str(config), "--dir", str(folder / name),
            "--listen", f"{side['address']}:{side['port']}", "--source", side["address"],
        ],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    stack.callback(_stop, process)
    return process


def _ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DemoError(f"a sandbox did not start (exit {process.wait()}); what it said stands above")
    described: dict[str, Any] = json.loads(line)
    return described


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise DemoError("a sandbox did not stop") from None
    if code and sys.exc_info()[0] is None:
        raise DemoError(f"a sandbox ended with exit {code}")


def _mm4(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mm4", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if check and done.returncode:
        raise DemoError(f"mm4 {arguments[0]}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _wait(what: str, look: Callable[[], T | None], seconds: float = 30.0) -> T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise DemoError(f"{what}: did not come within {seconds:.0f} s")


def _image(message: bytes) -> bytes:
    parsed = email.message_from_bytes(message, policy=email.policy.compat32)
    for part in parsed.walk():
        if part.get_content_type() == "image/png":
            payload = part.get_payload(decode=True)
            return payload if isinstance(payload, bytes) else b""
    raise DemoError("the MMS at B holds no picture")


def _picture() -> bytes:
    """A PNG made on the spot: 96 by 96, no two runs alike, so that nothing can come from a run before."""
    side, seed = 96, os.urandom(3)

    def rows() -> Iterator[bytes]:
        for y in range(side):
            yield b"\0" + b"".join(bytes(((x * 2 + seed[0]) & 255, (y * 2 + seed[1]) & 255, (x ^ y ^ seed[2]) & 255))
                                   for x in range(side))  # fmt: skip

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack("!IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"".join(rows()))) + chunk(b"IEND", b"")
