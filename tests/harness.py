"""What the integration tests share: a sandbox, next hops that record, an SMTP client with a source address.

Every Postfix here is private, on loopback or a host of its own (netns), in its own folder; each test stops exactly what
it started. Readiness is polled, and every wait has a generous bound that names what it waited for.
"""

from __future__ import annotations

import contextlib
import email
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

__all__ = [
    "Dialogue", "Failure", "Link", "Mail", "Mta", "NextHop", "Sandbox", "exchange", "forward_req", "free_port", "headers_of", "mm4",
    "new_ids", "send", "talk", "wait_for",
]  # fmt: skip

T = TypeVar("T")

LOCAL, NORTH, SOUTH, STRANGER = "127.0.0.1", "127.0.0.21", "127.0.0.22", "127.0.0.99"
"""Client addresses: our own side, two peers, and nobody."""

_PORTS = [itertools.cycle(range(first + os.getpid() % 2000, first + 2500)) for first in range(10_000, 30_000, 2_500)]

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
    """A TCP port that nobody uses now.

    Below those that the system gives away by itself, and each of pytest-xdist's workers has its own: what was free when
    it was asked for is free when it is bound.
    """
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % len(_PORTS)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        port = next(_PORTS[worker])
        with socket.socket(family) as probe:
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise  # this host has no such address, on no port
            else:
                return port


def mm4(
    *arguments: str, check: bool = True, timeout: float = 60, stdin: bytes | None = None, within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the `mm4` command as an operator would; `within` begins the command line."""
    done = subprocess.run(
        [*within, sys.executable, "-m", "mm4", *arguments], input=stdin, capture_output=True, timeout=timeout, check=False
    )
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    )
    assert not check or done.returncode == 0, f"mm4 {' '.join(arguments)}: exit {done.returncode}\n{result.stdout}\n{result.stderr}"
    return result


# -- what is sent


def new_ids(domain: str = "mms.north.example") -> tuple[str, str]:
    """A transaction and a message id that no other message has, bare: a test finds its own mails by them."""
    unique = secrets.token_hex(6)
    return f"t-{unique}@{domain}", f"m-{unique}@{domain}"


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


def exchange(smtp: str, source: str, *commands: str) -> list[str]:
    """Commands as they stand, byte for byte, on one connection from `source`; the last line of each reply.

    A message is one command too: its lines, and a dot.
    """
    host, _, port = smtp.rpartition(":")
    replies = []
    with socket.create_connection((host.strip("[]"), int(port)), timeout=120, source_address=(source, 0)) as connection:
        stream = connection.makefile("rwb")
        for command in (None, *commands):
            if command is not None:
                stream.write(command.encode("latin-1") + b"\r\n")
                stream.flush()
            line = stream.readline().decode("utf-8", "replace")
            while line[3:4] == "-":
                line = stream.readline().decode("utf-8", "replace")
            replies.append(line.strip())
    return replies[1:]


def _reply(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], answer[1].decode("utf-8", "replace")


@dataclass(frozen=True)
class Failure:
    """What kept an MTA from delivering: for which message, at which step, the code (0: the connection broke)."""

    name: str
    step: Literal["connect", "mail", "rcpt", "data", "end"]
    code: int
    text: str
    smtp: str = ""


class Mta:
    """A peer's MTA under load: several sessions at a time, every message again until it has its 250.

    `others` are the further hosts of its MX records: after a failure the next is tried, and one that took a message stays.
    `messages` are by transaction id. A session ends after a reply that is no success, as it does in a real MTA, and
    after a few messages; the message then comes again in a new one. `gap` is the pause of each session between two.
    """

    def __init__(
        self, smtp: str, messages: dict[str, bytes], *, sessions: int = 4, gap: float = 0.05, source: str = NORTH,
        rcpt: tuple[str, ...] = ("+491511000001/TYPE=PLMN@mms.gw.example",), others: tuple[str, ...] = (),
        mail_from: str = "+447700900002/TYPE=PLMN@mms.north.example",
    ) -> None:  # fmt: skip
        self.hosts = (smtp, *others)
        self.mail_from = mail_from
        self.messages = messages
        self.gap = gap
        self.source = source
        self.rcpt = rcpt
        self.accepted: dict[str, float] = {}
        """Transaction id and the moment of its 250."""
        self.failures: list[Failure] = []
        self._waiting = list(reversed(messages))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._session, daemon=True) for _ in range(sessions)]

    def __enter__(self) -> Mta:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def wait(self, count: int | None = None, seconds: float = SECONDS) -> None:
        """Wait until so many messages, or all, have their 250."""
        wanted = len(self.messages) if count is None else count
        wait_for(lambda: len(self.accepted) >= wanted, f"{wanted} of {len(self.messages)} messages accepted", seconds)

    def _session(self) -> None:
        client: smtplib.SMTP | None = None
        hosts = itertools.cycle(self.hosts)
        host, served = next(hosts), 0
        while not self._stop.is_set():
            with self._lock:
                if not self._waiting:
                    break
                name = self._waiting.pop()
            while name not in self.accepted and not self._stop.is_set():
                if client is None:
                    client, served = self._connected(name, host), 0
                if client is not None and self._offered(client, name, host):
                    self.accepted[name] = time.monotonic()
                    served += 1
                elif client is not None:
                    _hang_up(client)
                    client = None
                if name not in self.accepted:
                    host = next(hosts)
                    self._stop.wait(0.1)
            if client is not None and served >= 5:
                _hang_up(client)
                client = None
            self._stop.wait(self.gap)
        if client is not None:
            _hang_up(client)

    def _connected(self, name: str, smtp: str) -> smtplib.SMTP | None:
        host, _, port = smtp.rpartition(":")
        try:
            client = smtplib.SMTP(host.strip("[]"), int(port), timeout=SECONDS, source_address=(self.source, 0))
            client.ehlo()
        except OSError as error:  # smtplib's own errors are OSErrors too
            self.failures.append(Failure(name, "connect", getattr(error, "smtp_code", 0), str(error), smtp))
            return None
        return client

    def _offered(self, client: smtplib.SMTP, name: str, smtp: str) -> bool:
        message = re.sub(rb"(?m)^\.", b"..", self.messages[name]) + b"."
        steps: list[tuple[Literal["mail", "rcpt", "data", "end"], bytes, int]] = [
            ("mail", f"MAIL FROM:<{self.mail_from}>".encode(), 250),
            *(("rcpt", f"RCPT TO:<{recipient}>".encode(), 250) for recipient in self.rcpt),  # type: ignore[list-item]
            ("data", b"DATA", 354),
            ("end", message, 250),
        ]
        for step, what, expected in steps:
            try:
                client.send(what + b"\r\n")
                code, text = client.getreply()
            except OSError as error:
                self.failures.append(Failure(name, step, 0, str(error), smtp))
                return False
            if code != expected:
                self.failures.append(Failure(name, step, code, text.decode("utf-8", "replace"), smtp))
                return False
        return True


def _hang_up(client: smtplib.SMTP) -> None:
    with contextlib.suppress(OSError):
        client.quit()
    client.close()


# -- what is received


@dataclass
class Mail:
    """One mail as a next hop got it; `content` byte for byte, Postfix's Received included."""

    mail_from: str
    rcpt: list[str]
    content: bytes
    client: str
    at: float = field(default_factory=time.monotonic)

    def header(self, name: str) -> str | None:
        """The first value of a header, with folds; None where absent."""
        return next((v.decode("latin-1") for n, v in headers_of(self.content) if n.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [v.decode("latin-1") for n, v in headers_of(self.content) if n.lower() == name.lower()]

    @property
    def submission(self) -> str:
        """The id under which the gateway first took it, in the lowest Received of a mail that came with none.

        The one on top is the queue id, which need not be the only one: a pickup that is killed between handing on what
        sendmail(1) has left and removing that hands it on anew when it starts.
        """
        lowest = re.search(r"\bid (\w+)", self.all("Received")[-1])
        assert lowest, self.content[:500]
        return lowest[1]


class NextHop:
    """A peer's or the MMSC's SMTP server, which keeps every mail. `reply_rcpt` and `reply_data` make it refuse."""

    def __init__(self, address: str = LOCAL, port: int | None = None, **options: Any) -> None:
        self.implicit: ssl.SSLContext | None = options.pop("ssl_context", None)
        """TLS from the first byte on."""
        self.options = options
        """What aiosmtpd's server takes: TLS, AUTH, the SIZE that it says."""
        self.address = address
        self.port = port or free_port(address)
        self.mails: list[Mail] = []
        self.reply_rcpt = self.reply_data = "250 OK"
        self.refused: set[str] = set()
        """Recipients that get a 550, whatever the others get."""
        self._lock = threading.Lock()
        self._controller: Controller | None = None

    @property
    def hop(self) -> str:
        """As Postfix's transport table names it."""
        return f"[{self.address}]:{self.port}"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if address in self.refused:
            return "550 5.1.1 No such number"
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
        self._controller = _LongLines(
            self, hostname=self.address, port=self.port, ready_timeout=SECONDS, ssl_context=self.implicit
        )
        self._controller.start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def carrying(self, text: str) -> list[Mail]:
        """The mails so far that hold this text, an id for example."""
        return [mail for mail in list(self.mails) if text.encode() in mail.content]

    def by_transaction(self) -> dict[str, list[Mail]]:
        """The mails so far by their transaction id, bare."""
        found: dict[str, list[Mail]] = {}
        for mail in list(self.mails):
            found.setdefault((mail.header("X-Mms-Transaction-ID") or "").strip('"'), []).append(mail)
        return found

    def wait_for(self, text: str, count: int = 1, seconds: float = SECONDS) -> list[Mail]:
        """The mails that hold this text, once there are at least `count`."""
        wait_for(lambda: len(self.carrying(text)) >= count, f"{count} mails with {text} at {self.hop}", seconds)
        return self.carrying(text)

    def wait(self, count: int = 1, what: str = "mail at the next hop", seconds: float = SECONDS) -> list[Mail]:
        """The mails, once there are at least `count`."""
        wait_for(lambda: len(self.mails) >= count, f"{what} ({count})", seconds)
        return list(self.mails)


class _LongLines(Controller):
    class _Server(SMTP):
        line_length_limit = 1 << 20  # of the class: the stream reader is made with it

    def factory(self) -> SMTP:
        return self._Server(self.handler, **{"data_size_limit": 0, **self.handler.options})


# -- what is under test


class Sandbox:
    """`mm4 sandbox` with its own YAML, on its own address and port.

    `wrapper` changes the command that starts it (a namespace, a limit); `env` adds to its environment; `more` are
    further addresses that it listens on. On another host `within` begins the commands that run there, and `port` is
    free there.
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
        more: tuple[str, ...] = (),
        within: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mm4-test-"))
        self.folder.chmod(0o755)
        self.yaml = self.folder / "given.yaml"
        self.yaml.write_text(config)
        self.listen = [f"[{a}]:{port or free_port(a)}" if ":" in a else f"{a}:{port or free_port(a)}" for a in (listen, *more)]
        self.source = source
        self.env = env or {}
        self.wrapper = wrapper
        self.within = within
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
            *self.within, *self.wrapper, sys.executable, "-m", "mm4", "sandbox", "--config", str(self.yaml),
            "--dir", str(self.folder / "sandbox"), *(f"--listen={endpoint}" for endpoint in self.listen),
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

    def quiet(self, seconds: float = SECONDS) -> None:
        """Wait until Postfix has nothing left: whatever was to be sent, an ack too, is with its next hop.

        Two looks, as a file that moves from one queue to the next may be in neither at one of them.
        """
        wait_for(lambda: not self.queue() and not self.queue(), "an empty queue", seconds)

    def verdicts(self, queue_id: str) -> list[str]:
        """The milter's log lines with the verdict about this message; there should be one."""
        return [line for line in self.log().splitlines() if " verdict=" in line and f"queue_id={queue_id} " in line]

    def trace(self, identifier: str) -> list[dict[str, Any]]:
        """The transactions that `mm4 trace --json` knows."""
        done = mm4("trace", "--config", self.config, "--json", identifier, check=False, within=self.within)
        return list(json.loads(done.stdout)["transactions"]) if done.stdout else []

    def maildir(self, number: str) -> list[email.message.Message]:
        """What a subscriber has."""
        new = Path(self.facts["maildir"]) / number.removeprefix("+") / "new"
        return [email.message_from_bytes(f.read_bytes()) for f in sorted(new.glob("*"))] if new.is_dir() else []

    def unclaimed(self) -> list[Path]:
        """What came home and belongs to no message that we know: one file each, for a human."""
        return sorted((Path(self.facts["maildir"]).parent / "unclaimed" / "new").glob("*"))

    def processes(self, program: str) -> list[int]:
        """Process ids of this instance's own Postfix processes of a kind: `smtpd`, `cleanup`, `qmgr`, ..."""
        return [pid for pid, command in _descendants(int(self.facts["pid"])) if command.split(" ")[0] == program]

    def below(self, process: int) -> list[int]:
        """Process ids of everything that this process has started, and what that has."""
        return [pid for pid, _ in _descendants(process)]

    def daemon(self) -> int:
        """Process id of `mm4 serve`."""
        return next(pid for pid, command in _descendants(int(self.facts["pid"])) if " serve " in f"{command} ")

    def children(self, kind: str) -> list[int]:
        """Process ids of `mm4 serve`'s children: `worker` or `answerer`."""
        return [pid for pid, command in _descendants(int(self.facts["pid"])) if f"mm4.postfix.{kind}" in command]


class Link:
    """A gateway between next hops that record; `@name@` in its YAML is where the hop of that name listens.

    `replace` gives what other `@key@`s stand for. The hops are attributes; a mapping brings hops of another kind.
    """

    def __init__(
        self, config: str, hops: Iterable[str] | Mapping[str, NextHop] = ("mmsc", "north", "south"),
        more: tuple[str, ...] = (), **replace: str,
    ) -> None:  # fmt: skip
        self.hops = dict(hops) if isinstance(hops, Mapping) else {name: NextHop() for name in hops}
        for name, text in {**{name: hop.hop for name, hop in self.hops.items()}, **replace}.items():
            config = config.replace(f"@{name}@", text)
        self.gateway = Sandbox(config, more=more)

    def __getattr__(self, name: str) -> NextHop:
        try:
            return self.__dict__["hops"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    def __enter__(self) -> Link:
        with contextlib.ExitStack() as stack:
            for hop in self.hops.values():
                stack.enter_context(hop)
            stack.enter_context(self.gateway)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)


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
