"""What the gateway uses of its host, as the configuration describes it: addresses, files and folders."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field, field_validator

from ..protocol.charging import Format
from .credentials import Sasl, Tls
from .entries import Duration, Endpoint, ListenOn, Size, Text, one_or_many
from .section import Section

__all__ = ["Cdr", "Folders", "Rotate", "Service", "Spool"]


class Service(Section):
    """Where Postfix and the daemon meet the world."""

    listen: Annotated[list[ListenOn], one_or_many] = Field(
        [Endpoint("127.0.0.1:2525")],
        min_length=1,
        description="The MM4 smtpd line: where peers and the MMSC connect; one address with its port, or a list, for "
        "example one for IPv4 and one for IPv6.",
    )
    submit: ListenOn = Field(
        Endpoint("127.0.0.1:10026"), description="The private submission line on loopback: exact headers, no filters."
    )
    workers: int = Field(2, ge=1, le=64, description="Milter processes.")
    metrics: ListenOn | None = Field(None, description="Where Prometheus reads the counters. Left out: no endpoint.")
    tls: Tls | None = Field(None, description="TLS on the MM4 line. Left out: as Postfix's main.cf says.")
    sasl: Sasl | None = Field(None, description="SASL on the MM4 line, over TLS alone, where a peer has logins.")
    drain: Duration = Field(
        5,
        description="How long sessions that are open may go on when the daemon stops; then MAIL is answered with 421.",
    )

    @field_validator("listen")
    @classmethod
    def _each_once(cls, value: list[Endpoint]) -> list[Endpoint]:
        twice = next((endpoint for endpoint in value if value.count(endpoint) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} stands here twice; keep one")
        return value

    @field_validator("submit")
    @classmethod
    def _loopback(cls, value: Endpoint) -> Endpoint:
        if not ipaddress.ip_address(value.host).is_loopback:
            raise ValueError("submit has to be a loopback address: whoever reaches this line may send as anybody")
        return value


class Rotate(Section):
    """When a file of charging records is closed."""

    records: int = Field(10_000, ge=1, le=100_000, description="Records after which a file is closed.")
    after: Duration = Field(3600, description="Age of the oldest record after which a file is closed with fewer.")


class Cdr(Section):
    """Charging records (docs/charging.md)."""

    format: Format = Field("jsonl", description="JSON lines, or csv with a head line.")
    folder: Text | None = Field(None, description="Where closed files appear. Default: `cdr` below folders.state.")
    rotate: Rotate = Field(default_factory=Rotate, description="When a file is closed.")


class Folders(Section):
    """Where things lie; the defaults are those of a Debian host."""

    state: Text = Field("/var/lib/mm4", description="Maildirs, unclaimed mail, copies to send again, counters.")
    sockets: Text = Field(
        "/var/spool/postfix/mm4",
        description="milter.sock and responder.sock; below Postfix's queue folder, so that "
        "chrooted and unchrooted services see them.",
    )
    postfix: Text = Field("/etc/postfix", description="The Postfix instance's configuration folder.")


class Spool(Section):
    """Copies of messages that may have to be sent again."""

    quota: Size = Field(
        10**9,
        description="Bytes that copies may take below the state folder. A message for which there is no room is sent "
        "once, whatever `ack.retry` says.",
    )
