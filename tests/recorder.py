"""An MM4 service that a test can look into: it takes SMTP and keeps a store, as the gateway does, without Postfix;
and the `mm4` command that uses it, in this process.

What it says about the gateway proves nothing; it shows what `mm4.compose` and the commands do with each answer.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP

from fake import CONFIG
from harness import SECONDS, free_port
from mm4.cli.main import run
from mm4.gateway.outcomes import TOO_MANY_SIDES
from mm4.protocol.address import parse_address
from mm4.protocol.reader import read_message
from mm4.protocol.transaction import Direction, Message, State, Transaction
from mm4.store.store import Store

__all__ = ["Done", "Recorder", "Taken", "called", "inward"]

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object that was printed."""
        return json.loads(self.out)


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, stdin: bytes = b""
) -> Done:
    """The command by the console script's own entry point; `stdin` is what it can read."""
    monkeypatch.setattr(sys, "argv", ["mm4", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    with pytest.raises(SystemExit) as left:
        run()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert isinstance(left.value.code, int)
    return Done(left.value.code, out, err)


@dataclass
class Taken:
    """One message as it was handed over."""

    mail_from: str
    rcpt: list[str]
    content: bytes
    helo: str = ""


class Recorder(Controller):
    """Takes what it is given unless told otherwise; numbers +4477... are north's, others south's, +491511... local.

    `status` says what a number's RES carries: absent is none, so that its transaction stays waiting. `delay` seconds
    pass before the RES. `rcpt` and the other replies are said instead of 250.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = str(folder / "mm4.yaml")
        self.taken: list[Taken] = []
        self.status: dict[str, str] = {}
        self.delay = 0.0
        self.mail = self.end = "250 OK"
        self.rcpt: dict[str, str] = {}
        self.suppress = False
        self.limit = 0
        """Ends are refused after so many messages."""
        super().__init__(self, hostname="127.0.0.1", port=free_port(), ready_timeout=SECONDS)
        (folder / "mm4.yaml").write_text(
            f'{CONFIG}  - {{prefix: "+33", peer: hub}}\nservice: {{listen: "127.0.0.1:{self.port}"}}\n'
            "store: sqlite:///mm4.db\nfolders: {state: state, sockets: run, postfix: postfix}\n"
        )
        self.store = Store.open(f"sqlite:///{folder}/mm4.db")

    def factory(self) -> SMTP:
        return SMTP(self.handler, enable_SMTPUTF8=False)

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        envelope.mail_from = address
        return self.mail

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        key = parse_address(address).key
        if key in self.rcpt:
            return self.rcpt[key]
        if any(_peer(parse_address(a).key) != _peer(key) for a in envelope.rcpt_tos):
            return str(TOO_MANY_SIDES)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if not self.end.startswith("250") and len(self.taken) >= self.limit:
            return self.end
        self.taken.append(Taken(envelope.mail_from.strip("<>"), list(envelope.rcpt_tos), envelope.content, session.host_name))
        self._record(envelope.rcpt_tos, envelope.content)
        return "250 2.0.0 Ok: queued as 4XyZ1BCDz9"

    def _record(self, rcpt: list[str], content: bytes) -> None:
        pdu = read_message(content)
        keys = [parse_address(address).key for address in rcpt]
        peer = _peer(keys[0])
        token = f"{len(self.taken):032x}"
        transaction_id = pdu.get("transaction_id") or f"t-{token}"
        self.store.record(
            Message(
                token, Direction.IN if peer == "local" else Direction.OUT, peer, str(pdu.type), "4XyZ1BCDz9", "gw", NOW,
                tuple(
                    Transaction(
                        transaction_id, pdu.get("message_id"), pdu.get("sender").key, key, ack_requested=peer == "north",
                        state=State.SUPPRESSED if self.suppress else State.RECORDED,
                    )
                    for key in keys
                ),
            )
        ).result()  # fmt: skip
        self.store.accepted(token, NOW).result()
        threading.Thread(target=self._answer, args=(pdu, transaction_id, peer, keys), daemon=True).start()

    def _answer(self, pdu: Any, transaction_id: str, peer: str, keys: list[str]) -> None:
        time.sleep(self.delay)
        answer = str(pdu.type).replace(".REQ", ".RES")
        for key in keys:
            if key in self.status:
                self.store.receive_answer(
                    peer, answer, transaction_id, pdu.get("message_id"), self.status[key], None, NOW, None, "gw", (key,)
                ).result()

    def __enter__(self) -> Recorder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self.store.close()

    def down(self) -> None:
        """Refuse connections."""
        if self._thread is not None:
            self.stop()


def _peer(key: str) -> str:
    return "local" if key.startswith("+491511") else "north" if key.startswith("+4477") else "hub"


def inward(
    store: Store, message_id: str, *recipients: str, peer: str = "north", originator: str = "+447700900002",
    state: State = State.RECORDED, direction: Direction = Direction.IN,
) -> None:  # fmt: skip
    """A forward.REQ that came from a peer (or went to one)."""
    token = f"{abs(hash((message_id, peer, recipients, time.monotonic()))):032x}"[:32]
    store.record(
        Message(
            token, direction, peer, "MM4_forward.REQ", "4XyZ1BCDz9", "gw", NOW,
            tuple(Transaction("t-1", message_id, originator, r, state=state) for r in recipients),
        )
    ).result()  # fmt: skip
