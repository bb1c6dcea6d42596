"""A transaction without Postfix: the very Session that Postfix drives, with a ledger that remembers or fails.

    seen = Gateway().peer("north").mail().rcpt().headers(req()).end()
    assert seen.verdict.status == "Ok"

What it says about Postfix proves nothing; `applied` is a small model of what Postfix does with header edits.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mm4.gateway.config import Config
from mm4.gateway.configfile import parse_config
from mm4.gateway.edits import Edit
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Verdict
from mm4.postfix.runtime import Runtime
from mm4.postfix.seen import body_of, seen
from mm4.postfix.session import Session
from mm4.protocol.errors import Reply
from mm4.protocol.limits import Limit, Standing, Taken, take
from mm4.protocol.transaction import Direction, Message, Original, Recording

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
TOKEN = "0123456789abcdef0123456789abcdef"
QUEUE_ID = "4XyZ1BCDz9"

CONFIG = """\
local:
  domain: mms.gw.example
  system_address: system-user@mms.gw.example
  region: DE
  numbers: ["+491511", "+4915112"]
  clients: [127.0.0.1/32, "2001:db8:1::/48"]
  deliver_to: "{number}@mmsc.gw.example"
  next_hop: "[127.0.0.1]:2600"
peers:
  north:
    domains: [mms.north.example, mms.north-two.example]
    networks: [192.0.2.0/24, "2001:db8:2::/48"]
    next_hop: "[192.0.2.1]:25"
    max_size: 1MB
  tyntec:
    dialect: tyntec
    domains: [mm4.tyntec.example]
    networks: [192.0.2.10/32]
    next_hop: "[192.0.2.10]:25"
    system_address: system@mm4.tyntec.example
  hub:
    domains: [mms.hub.example]
    networks: [198.51.100.0/24]
    next_hop: "[198.51.100.1]:25"
    transit: yes
    on_violation: reject
  watched:
    domains: [mms.watched.example]
    networks: [203.0.113.1/32]
    next_hop: "[203.0.113.1]:25"
    on_violation: monitor
    identity: strict
routes:
  - {prefix: "+4477009001", peer: north}
  - {prefix: "+4477009", peer: tyntec}
  - {prefix: "+44", peer: north}
  - {prefix: "+3460", peer: hub}
"""

CLIENTS = {
    "local": "127.0.0.1",
    "north": "192.0.2.1",
    "tyntec": "192.0.2.10",
    "hub": "198.51.100.1",
    "watched": "203.0.113.1",
    "stranger": "203.0.113.99",
}

Headers = list[tuple[str, bytes]]


def req(*, drop: Iterable[str] = (), tyntec: bool = False, **change: str | bytes | None) -> Headers:
    """A forward.REQ's header lines. Keywords replace or add one: `X_Mms_Priority="High"`; None leaves it out."""
    version, kind = "X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type"
    if tyntec:
        version, kind = "X-Mms-MMS-Version", "X-Mms-MM1-Message-Type"
    lines: dict[str, str | bytes | None] = {
        "Date": "Thu, 12 Nov 2026 02:28:01 +0200",
        "From": "+447700900002/TYPE=PLMN",
        "Sender": "+447700900002/TYPE=PLMN@mms.north.example",
        "To": "+491511000001/TYPE=PLMN",
        "Content-Type": "multipart/related; boundary=b1",
        kind: "MM4_Forward.REQ" if tyntec else "MM4_forward.REQ",
        version: "5.5.0",
        "X-Mms-Transaction-ID": '"t-1@mms.north.example"',
        "X-Mms-Message-ID": '"m-1@mms.north.example"',
        "X-Mms-Ack-Request": "Yes",
        "X-Mms-Originator-System": "PostMaster@mms.north.example",
    }
    names = {name.lower(): name for name in lines}
    for key, value in change.items():
        name = key.replace("_", "-")
        lines[names.get(name.lower(), name)] = value
    return [
        (n, v if isinstance(v, bytes) else v.encode("latin-1"))
        for n, v in lines.items()
        if v is not None and n not in drop
    ]


class Ledger:
    """What a session asks of the store; `fault` is raised (or set on the future), `late` never commits."""

    def __init__(self, fault: BaseException | None = None, *, late: bool = False, at_once: bool = False) -> None:
        self.fault, self.late, self.at_once = fault, late, at_once
        self.messages: list[Message] = []
        self.arrivals: list[tuple[Any, ...]] = []
        self.history: list[Original] = []
        self.found = Recording()
        self.withdrawn: list[str] = []
        self.windows: list[timedelta | None] = []
        self.questions: list[tuple[str, Direction | None, str | None, str | None]] = []
        self.used: dict[str, Standing] = {}

    def standings(self, keys: Collection[str]) -> dict[str, Standing]:
        if self.fault is not None:
            raise self.fault
        return {key: self.used[key] for key in keys if key in self.used}

    def take(self, limits: Sequence[Limit], now: datetime) -> concurrent.futures.Future[Taken]:
        taken = take(limits, self.used, now)
        self.used |= taken.kept
        return self._future(taken)

    def record(
        self, message: Message, window: timedelta | None = None, splits: Sequence[Message] = ()
    ) -> concurrent.futures.Future[Recording]:
        future = self._future(self.found)
        self.messages += [message, *splits]
        self.windows.append(window)
        return future

    def withdraw(self, token: str) -> concurrent.futures.Future[None]:
        self.withdrawn.append(token)
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        done.set_result(None)
        return done

    def held(self, transaction_id: str, message_id: str | None, peer: str | None) -> tuple[Message, ...]:
        return tuple(m for m in self.messages if m.reply_to is not None)

    def copies(self, message: Message, window: timedelta, splits: Sequence[Message] = ()) -> Recording:
        return self.found

    def receive_answer(self, *arrival: Any) -> concurrent.futures.Future[int]:
        future = self._future(1)
        self.arrivals.append(arrival)
        return future

    def originals(
        self, message_id: str, *, direction: Direction | None, peer: str | None, recipient: str | None
    ) -> tuple[Original, ...]:
        if self.fault is not None:
            raise self.fault
        self.questions.append((message_id, direction, peer, recipient))
        return tuple(self.history)

    def _future(self, value: Any) -> concurrent.futures.Future[Any]:
        if self.fault is not None and self.at_once:
            raise self.fault
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if self.fault is not None:
            future.set_exception(self.fault)
        elif not self.late:
            future.set_result(value)
        return future


class Gateway:
    """One process of the gateway, and one connection to it at a time."""

    def __init__(self, config: str | Config = CONFIG, ledger: Ledger | None = None, **runtime: Any) -> None:
        parsed = parse_config(config, "mm4.yaml") if isinstance(config, str) else config
        self.ledger = ledger or Ledger()
        self.runtime = Runtime(
            Router(parsed), self.ledger, host="gw", clock=lambda: NOW, new_token=lambda: TOKEN, **runtime
        )

    def peer(self, name: str) -> Seen:
        """A connection from a side by its name, or from an address."""
        return Seen(self, CLIENTS.get(name, name))


class Seen:
    """What a client sees: replies in order, and the verdict. Every step gives the transaction back."""

    def __init__(self, gateway: Gateway, client: str) -> None:
        self.gateway = gateway
        self.session = Session(gateway.runtime)
        self.session.connect(client)
        self.replies: list[Reply] = []
        self.lines: Headers = []
        self.chunks = 0
        self.verdict: Verdict

    @property
    def reply(self) -> Reply:
        """The last one."""
        return self.replies[-1]

    def mail(self, path: str = "<+447700900002/TYPE=PLMN@mms.north.example>", *parameters: str) -> Seen:
        """MAIL FROM."""
        self.lines = []
        self.replies.append(self.session.mail(path, parameters))
        return self

    def rcpt(self, *paths: str) -> Seen:
        """RCPT TO, once for each."""
        for path in paths or ("<+491511000001/TYPE=PLMN@mms.gw.example>",):
            self.replies.append(self.session.rcpt(path))
        return self

    def headers(self, lines: Headers) -> Seen:
        """Header lines."""
        self.session.queue_id = QUEUE_ID
        for name, value in lines:
            self.session.header(name, value)
        self.lines += lines
        return self

    def content(self, message: bytes, chunk: int = 65_535) -> Seen:
        """A whole message: its headers, and of its body what is asked for."""
        self.headers([(header.name, header.value) for header in seen(message)])
        body = body_of(message)
        for start in range(0, len(body), chunk):
            self.chunks += 1
            if not self.session.body(body[start : start + chunk]):
                break
        return self

    def end(self) -> Seen:
        """End of data."""
        self.verdict = self.session.verdict()
        self.replies.append(self.verdict.reply)
        return self

    def edited(self) -> Headers:
        """The headers as Postfix has them after the verdict's edits."""
        return applied(self.lines, self.verdict.edits)


def applied(lines: Headers, edits: Iterable[Edit]) -> Headers:
    """Postfix's semantics: an index counts what is there now; deleting moves the others up; beyond the last appends."""
    now = list(lines)
    for edit in edits:
        value = (edit.value or "").encode("ascii")
        places = [i for i, (name, _) in enumerate(now) if name.lower() == edit.header.lower()]
        if edit.op == "add":
            now.append((edit.header, value))
        elif edit.occurrence > len(places):
            if value:
                now.append((edit.header, value))
        elif edit.op == "delete" or not value:
            del now[places[edit.occurrence - 1]]
        else:
            now[places[edit.occurrence - 1]] = (edit.header, value)
    return now


class LogLines(logging.Handler):
    """The gateway's log lines while in use as a context."""

    def __init__(self, name: str = "mm4.milter") -> None:
        super().__init__()
        self.log = logging.getLogger(name)

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        self.level_before = self.log.level
        self.log.addHandler(self)
        self.log.setLevel(logging.INFO)
        return self.lines

    def __exit__(self, *_: object) -> None:
        self.log.removeHandler(self)
        self.log.setLevel(self.level_before)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
