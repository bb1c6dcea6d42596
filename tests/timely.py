"""A gateway whose peers answer when a test says so, and what became of each transaction."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import LOCAL, Link, Mail, forward_req, free_port, new_ids, wait_for
from mm4.postfix.settings import read_config
from mm4.store import Store

__all__ = ["NUMBER", "OURS", "SOURCE", "Timely"]

YAML = (Path(__file__).parent / "integration" / "t-25-time" / "mm4.yaml").read_text()
OURS = "+491511000001"
NUMBER = {"once": "+447700900101", "again": "+33600000001", "brief": "+34600000001"}
SOURCE = {"once": "127.0.0.21", "again": "127.0.0.22", "brief": "127.0.0.23"}


class Timely(Link):
    """The gateway of t-25-time; `env` is that of its processes."""

    def __init__(self, on_bounce: str = "report", env: dict[str, str] | None = None) -> None:
        super().__init__(YAML, ("mmsc", *NUMBER), on_bounce=on_bounce, metrics=str(free_port()))
        self.gateway.env = env or {}

    def ask(self, peer: str, *, report: bool = False) -> str:
        """A REQ of our MMSC to the peer's number; gives its transaction id."""
        ids = new_ids("mms.gw.example")
        message = forward_req(sender=OURS, to=NUMBER[peer], ids=ids, system="mmsc@mms.gw.example")
        if report:
            message = message.replace(b"\r\nX-Mms-Delivery-Report: No\r\n", b"\r\nX-Mms-Delivery-Report: Yes\r\n")
        told = self.gateway.send(
            message, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example",
            rcpt=(f"{NUMBER[peer]}/TYPE=PLMN@mms.gw.example",),
        )  # fmt: skip
        assert told.code == 250, told
        return ids[0]

    def offer(self, peer: str, ids: tuple[str, str]) -> None:
        """A REQ of the peer to our subscriber."""
        domain = f"mms.{peer}.example"
        message = forward_req(sender=NUMBER[peer], ids=ids, system=f"system@{domain}")
        message = re.sub(rb"(?m)^Sender: [^\r]*", f"Sender: {NUMBER[peer]}/TYPE=PLMN@{domain}".encode(), message)
        told = self.gateway.send(
            message, source=SOURCE[peer], mail_from=f"{NUMBER[peer]}/TYPE=PLMN@{domain}",
        )  # fmt: skip
        assert told.code == 250, told

    def answer(self, peer: str, request: Mail, status: str = "Ok") -> None:
        """The peer's RES."""
        lines = {
            "X-Mms-3GPP-MMS-Version": "5.5.0",
            "X-Mms-Message-Type": "MM4_forward.RES",
            "X-Mms-Transaction-ID": request.header("X-Mms-Transaction-ID"),
            "X-Mms-Message-ID": request.header("X-Mms-Message-ID"),
            "X-Mms-Request-Status-Code": status,
            "Content-Type": "text/plain",
        }
        told = self.gateway.send(
            "".join(f"{n}: {v}\r\n" for n, v in lines.items()).encode() + b"\r\n", source=SOURCE[peer],
            mail_from=f"system@mms.{peer}.example", rcpt=("system-user@mms.gw.example",),
        )  # fmt: skip
        assert told.code == 250, told

    @contextmanager
    def store(self, **options: Any) -> Iterator[Store]:
        """The gateway's store, from beside it."""
        with Store.open(f"sqlite:///{self.folder / 'mm4.db'}", migrate=False, busy_seconds=30, **options) as opened:
            yield opened

    def metric(self, name: str, **labels: str) -> float:
        """A counter, as Prometheus would see it."""
        endpoint = read_config(self.gateway.config)[0].service.metrics
        assert endpoint is not None
        with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=30) as reply:
            text = reply.read().decode()
        wanted = f"{name}{{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "} "
        return sum(float(line[len(wanted) :]) for line in text.splitlines() if line.startswith(wanted))

    @property
    def folder(self) -> Path:
        """The sandbox's own."""
        return Path(self.gateway.config).parent

    @property
    def spool(self) -> Path:
        """Where copies lie."""
        return self.folder / "state" / "spool"

    def traced(self, identifier: str) -> dict[str, Any]:
        """The first REQ of this id, with all that is kept of it."""
        with self.store(read_only=True) as store:
            return next(t for t in store.whole(identifier) if t["type"] == "MM4_forward.REQ")

    def whats(self, identifier: str) -> list[str]:
        """What happened to it, in order."""
        return [event["what"] for event in self.traced(identifier)["events"]]

    def reaches(self, identifier: str, state: str, seconds: float = 60) -> dict[str, Any]:
        """The transaction, once it is so."""
        wait_for(lambda: self.traced(identifier)["state"] == state, f"{identifier} is {state}", seconds)
        return self.traced(identifier)
