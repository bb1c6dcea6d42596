"""What the integration tests share: a sandbox, next hops that record, an SMTP client with a source address.

Every Postfix here is private, on loopback, in its own folder; each test stops exactly what it started. Readiness is
polled, and every wait has a generous bound that names what it waited for.
"""

from __future__ import annotations

import contextlib
import email
import json
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

__all__ = ["Dialogue", "Mail", "NextHop", "Sandbox", "forward_req", "free_port", "headers_of", "mm4", "send", "wait_for"]

T = TypeVar("T")

LOCAL, NORTH, SOUTH, STRANGER = "127.0.0.1", "127.0.0.21", "127.0.0.22", "127.0.0.99"
"""Client addresses: our own side, two peers, and nobody."""

SECONDS = 60.0
"""Longest wait for anything that should happen within a second or two."""


def wait_for(look: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
    """The first true value of `look`; AssertionError that names `what` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def free_port(address: str = LOCAL) -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def mm4(*arguments: str, check: bool = True, timeout: float = 60, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run the `mm4` command as an operator would."""
    done = subprocess.run(
        [sys.executable, "-m", "mm4", *arguments], input=stdin, capture_output=True, timeout=timeout, check=False
    )
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    )
    assert not check or done.returncode == 0, f"mm4 {' '.join(arguments)}: exit {done.returncode}\n{result.stdout}\n{result.stderr}"
    return result


# -- what is sent


def forward_req(
    *,
    sender: str = "+447700900002",
    to: str = "+491511000001",
    ids: tuple[str, str] = ('"t-1@mms.north.example"', '"m-1@mms.north.example"'),
    ack: str | None = "Yes",
    system: str | None = "PostMaster@mms.north.example",
    body: bytes = b"R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7\r\n",
    drop: tuple[str, ...] = (),
    extra: tuple[tuple[str, str], ...] = (),
    tyntec: bool = False,
) -> bytes:
    """A forward.REQ in the shape of a traced operator's, with a small picture; `drop` leaves headers out."""
    version, kind = ("X-Mms-MMS-Version", "X-Mms-MM1-Message-Type") if tyntec else ("X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type")
    lines: list[tuple[str, str | None]] = [
        ("Date", "Thu, 12 Nov 2026 02:28:01 +0200"),
        ("From", f"{sender}/TYPE=PLMN"),
        ("Sender", f"{sender}/TYPE=PLMN@mms.north.example"),
        ("To", f"{to}/TYPE=PLMN"),
        ("Message-ID", "<kyc8girfpq5v94@w.mms.north.example>"),
        ("MIME-Version", "1.0"),
        ("Content-Type", 'multipart/related;Start="<smil>";Type="application/smil"; \r\n\tboundary="----=_Part_1"'),
        (kind, "MM4_Forward.REQ" if tyntec else "MM4_forward.REQ"),
        (version, "5.5.0"),
        ("X-Mms-Transaction-ID", ids[0]),
        ("X-Mms-Message-ID", ids[1]),
        ("X-Mms-Message-Class", "Personal"),
        ("X-Mms-Expiry", "Thu, 19 Nov 2099 00:28:02 GMT"),
        ("X-Mms-Delivery-Report", "No"),
        ("X-Mms-Priority", "Normal"),
        ("X-Mms-Read-Reply", "No"),
        ("X-Mms-Ack-Request", ack),
        ("X-Mms-Originator-System", system),
        ("X-Mms-Originator-R/S-Delivery-Report", "No"),
        *extra,
    ]
    block = "".join(f"{n}: {v}\r\n" for n, v in lines if v is not None and n not in drop)
    parts = (
        b"------=_Part_1\r\nContent-Type: application/smil;Name=smil.xml\r\nContent-ID:<smil>\r\n\r\n<smil/>\r\n"
        b"------=_Part_1\r\nContent-Type: image/gif;Name=dot.gif\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-ID:<pic>\r\n\r\n" + body + b"------=_Part_1--\r\n"
    )
    return block.encode("latin-1") + b"\r\n" + parts


def headers_of(message: bytes) -> list[tuple[str, bytes]]:
    """Header lines of a message as (name, raw value with folds), in order."""
    block = re.split(rb"\r?\n\r?\n", message, maxsplit=1)[0].replace(b"\r\n", b"\n")
    found: list[tuple[str, bytes]] = []
    for line in block.split(b"\n"):
        if line[:1] in (b" ", b"\t") and found:
            found[-1] = (found[-1][0], found[-1][1] + b"\n" + line)
        else:
            name, _, value = line.partition(b":")
            found.append((name.decode("latin-1"), value.removeprefix(b" ")))
    return found


@dataclass
class Dialogue:
    """What an SMTP client was told: at MAIL, at each RCPT, at the end of data (None where it did not come to it)."""

    mail: tuple[int, str]
    rcpt: list[tuple[int, str]] = field(default_factory=list)
    data: tuple[int, str] | None = None

    @property
    def code(self) -> int:
        """The code of the last reply, which decides about the message."""
        return (self.data or (self.rcpt or [self.mail])[-1])[0]

    @property
    def queue_id(self) -> str:
        """The queue id in the last 250."""
        match = re.search(r"queued as (\w+)", (self.data or (0, ""))[1])
        assert match, f"no queue id in {self.data}"
        return match[1]


def send(
    smtp: str,
    message: bytes,
    *,
    source: str = NORTH,
    mail_from: str = "+447700900002/TYPE=PLMN@mms.north.example",
    rcpt: tuple[str, ...] = ("+491511000001/TYPE=PLMN@mms.gw.example",),
    size: bool = True,
    options: str = "",
    timeout: float = 120,
) -> Dialogue:
    """One message over its own SMTP session from `source`; no reply raises."""
    host, _, port = smtp.rpartition(":")
    with smtplib.SMTP(host.strip("[]"), int(port), timeout=timeout, source_address=(source, 0)) as client:
        return talk(client, message, mail_from=mail_from, rcpt=rcpt, size=size, options=options)


def talk(
    client: smtplib.SMTP,
    message: bytes,
    *,
    mail_from: str = "+447700900002/TYPE=PLMN@mms.north.example",
    rcpt: tuple[str, ...] = ("+491511000001/TYPE=PLMN@mms.gw.example",),
    size: bool = True,
    options: str = "",
) -> Dialogue:
    """One message on an open session."""
    client.ehlo_or_helo_if_needed()
    parameters = (f" SIZE={len(message)}" if size else "") + options
    dialogue = Dialogue(_reply(client.docmd(f"MAIL FROM:<{mail_from}>{parameters}")))
    if dialogue.mail[0] != 250:
        return dialogue
    for recipient in rcpt:
        dialogue.rcpt.append(_reply(client.docmd(f"RCPT TO:<{recipient}>")))
    if any(code == 250 for code, _ in dialogue.rcpt):
        dialogue.data = _reply(client.data(message))
    else:
        client.rset()
    return dialogue


def _reply(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], answer[1].decode("utf-8", "replace")


# -- what is received


@dataclass
class Mail:
    """One mail as a next hop got it; `content` byte for byte, Postfix's Received included."""

    mail_from: str
    rcpt: list[str]
    content: bytes
    client: str

    def header(self, name: str) -> str | None:
        """The first value of a header, with folds; None where absent."""
        return next((v.decode("latin-1") for n, v in headers_of(self.content) if n.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [v.decode("latin-1") for n, v in headers_of(self.content) if n.lower() == name.lower()]


class NextHop:
    """A peer's or the MMSC's SMTP server, which keeps every mail. `reply_rcpt` and `reply_data` make it refuse."""

    def __init__(self, address: str = LOCAL, port: int | None = None) -> None:
        self.address = address
        self.port = port or free_port(address)
        self.mails: list[Mail] = []
        self.reply_rcpt = self.reply_data = "250 OK"
        self._lock = threading.Lock()
        self._controller: Controller | None = None

    @property
    def hop(self) -> str:
        """As Postfix's transport table names it."""
        return f"[{self.address}]:{self.port}"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if self.reply_rcpt.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.reply_rcpt

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.reply_data.startswith("250"):
            content = envelope.original_content or b""
            with self._lock:
                self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), content, session.peer[0]))
        return self.reply_data

    def __enter__(self) -> NextHop:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take mail; again after a stop, on the same port."""
        self._controller = _LongLines(self, hostname=self.address, port=self.port, ready_timeout=SECONDS)
        self._controller.start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def wait(self, count: int = 1, what: str = "mail at the next hop", seconds: float = SECONDS) -> list[Mail]:
        """The mails, once there are at least `count`."""
        wait_for(lambda: len(self.mails) >= count, f"{what} ({count})", seconds)
        return list(self.mails)


class _LongLines(Controller):
    def factory(self) -> SMTP:
        server = SMTP(self.handler, data_size_limit=0)
        server.line_length_limit = 1 << 20
        return server


# -- what is under test


class Sandbox:
    """`mm4 sandbox` with its own YAML, on its own address and port.

    `wrapper` changes the command that starts it (a namespace, a limit); `env` adds to its environment.
    """

    def __init__(
        self,
        config: str,
        *,
        listen: str = LOCAL,
        source: str | None = None,
        env: dict[str, str] | None = None,
        folder: Path | None = None,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mm4-test-"))
        self.folder.chmod(0o755)
        self.yaml = self.folder / "given.yaml"
        self.yaml.write_text(config)
        self.listen = f"{listen}:{free_port(listen)}"
        self.source = source
        self.env = env or {}
        self.wrapper = wrapper
        self.facts: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.stop()
        finally:
            if kind is not None and os.environ.get("MM4_KEEP"):
                print(f"kept: {self.folder}", file=sys.stderr)
            elif kind is not None:
                print(self.log()[-6000:], file=sys.stderr)
            if self._own and not os.environ.get("MM4_KEEP"):
                shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it takes mail."""
        command = [
            *self.wrapper, sys.executable, "-m", "mm4", "sandbox", "--config", str(self.yaml),
            "--dir", str(self.folder / "sandbox"), "--listen", self.listen,
        ]  # fmt: skip
        if self.source:
            command += ["--source", self.source]
        self.errors = (self.folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, start_new_session=True,
            env={**os.environ, **self.env},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait(SECONDS)
            raise AssertionError(f"the sandbox did not start, exit {code}: {(self.folder / 'stderr').read_text()}{self.log()}")
        self.facts = json.loads(line)

    def stop(self) -> int:
        """Stop it and give its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(SECONDS * 2)
        finally:
            self.errors.close()
            if process.poll() is None:
                process.kill()
        return code

    @property
    def smtp(self) -> str:
        """`address:port` of the MM4 line."""
        return str(self.facts["smtp"])

    @property
    def config(self) -> str:
        """The effective configuration file."""
        return str(self.facts["config"])

    def log(self) -> str:
        """Postfix's and mm4's log lines."""
        path = Path(self.facts.get("log", self.folder / "sandbox" / "log"))
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_log(self, pattern: str, what: str | None = None, seconds: float = SECONDS) -> str:
        """The first log line that matches."""
        def look() -> str | None:
            return next((line for line in self.log().splitlines() if re.search(pattern, line)), None)

        found = wait_for(look, what or f"a log line {pattern!r}", seconds)
        assert found
        return found

    def send(self, message: bytes, **arguments: Any) -> Dialogue:
        """One message to the MM4 line."""
        return send(self.smtp, message, **arguments)

    def postfix(self, tool: str, *arguments: str) -> str:
        """One of this instance's own Postfix tools (postqueue, postsuper, postconf, ...)."""
        done = subprocess.run(
            [tool, "-c", str(self.facts["config_directory"]), *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{tool} {arguments}: {done.stderr}"
        return done.stdout

    def queue(self) -> list[dict[str, Any]]:
        """The mail queue, as `postqueue -j` tells it."""
        return [json.loads(line) for line in self.postfix("postqueue", "-j").splitlines()]

    def trace(self, identifier: str) -> list[dict[str, Any]]:
        """The transactions that `mm4 trace --json` knows."""
        done = mm4("trace", "--config", self.config, "--json", identifier, check=False)
        return list(json.loads(done.stdout)["transactions"]) if done.stdout else []

    def maildir(self, number: str) -> list[email.message.Message]:
        """What a subscriber has."""
        new = Path(self.facts["maildir"]) / number.removeprefix("+") / "new"
        return [email.message_from_bytes(f.read_bytes()) for f in sorted(new.glob("*"))] if new.is_dir() else []

    def daemon(self) -> int:
        """Process id of `mm4 serve`."""
        return next(pid for pid, command in _descendants(int(self.facts["pid"])) if " serve " in f"{command} ")

    def children(self, kind: str) -> list[int]:
        """Process ids of `mm4 serve`'s children: `worker` or `answerer`."""
        return [pid for pid, command in _descendants(int(self.facts["pid"])) if f"mm4.postfix.{kind}" in command]


def _descendants(root: int) -> Iterator[tuple[int, str]]:
    """Every living process below `root`, with its command line."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    for pid in parents:
        parent: int | None = pid
        while parent is not None and parent != root:
            parent = parents.get(parent)
        if parent == root and pid != root:
            with contextlib.suppress(OSError):
                yield pid, (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
