"""What a peer's entry says of our connections to it: address, TLS, login and pace.

Postfix does all of it; `postfix/services` turns these values into its tables and services. A password never stands in
the configuration, only the file that holds it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic import model_validator as validator

from .entries import Duration, FileName, Fingerprint, Text, one_or_many
from .section import Section, place

__all__ = ["Login", "Pace", "Source", "Tls"]

Level: TypeAlias = Literal["none", "may", "encrypt", "fingerprint", "verify", "secure"]

_NAME = re.compile(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\Z")  # `nexthop`, `dot-nexthop` and `hostname`, too


def _name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(f"{text!r} is no name in a certificate, for example mx.north.example or .north.example")
    return text


def _source(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address, for example 192.0.2.1 or 2001:db8::1") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text!r} is no address to send from")
    return str(address)


def _user(text: str) -> str:
    if not text or ":" in text or not text.isprintable():
        raise ValueError(f"{text!r} is no user name: printable, without a colon")
    return text


Source = Annotated[Text, AfterValidator(_source)]

class Tls(Section):
    """TLS towards the peer, as Postfix's policy table says it; the level alone may stand as one word."""

    level: Level = Field("may", description="Postfix's TLS security level.")
    match: Annotated[list[Annotated[Text, AfterValidator(_name)]], one_or_many] = Field(
        default_factory=list,
        description="With verify or secure: names of which the peer's certificate has to hold one. Default: Postfix's, "
        "the name of the host or of next_hop.",
    )
    fingerprints: Annotated[list[Fingerprint], one_or_many] = Field(
        default_factory=list,
        description="With fingerprint: SHA-256 fingerprints of the peer's certificate or public key, one of which has "
        "to fit.",
    )
    ca: FileName | None = Field(
        None,
        description="With verify or secure: PEM file with the certificates of the only authorities that count for this "
        "peer, readable for everybody. Default: those of main.cf.",
    )
    certificate: FileName | None = Field(
        None, description="PEM file with our own certificate and its chain, which we show to this peer."
    )
    key: FileName | None = Field(
        None, description="PEM file with its key. Left out: it stands in `certificate`, first."
    )

    wrapper: bool = Field(
        False,
        description="TLS from the first byte on, without STARTTLS, as on port 465 or 2465. Needs level: encrypt or "
        "more.",
    )

    @validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, dict | Tls) else {"level": value}

    @validator(mode="after")
    def _whole(self) -> Tls:
        named = self.level in ("verify", "secure")
        for key, wrong in (
            ("fingerprints", self.fingerprints and self.level != "fingerprint"),
            ("match", self.match and not named),
            ("ca", self.ca and not named),
            ("certificate", self.certificate and self.level == "none"),
        ):
            if wrong:
                raise ValueError(place(key) + f"{key} has no effect with level: {self.level}")
        if self.level == "fingerprint" and not self.fingerprints:
            raise ValueError(place("level") + "level: fingerprint needs fingerprints")
        if self.key and not self.certificate:
            raise ValueError(place("key") + "key needs certificate")
        if self.wrapper and self.level in ("none", "may"):
            raise ValueError(place("wrapper") + f"wrapper needs level: encrypt or more, and has {self.level}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, inner: SerializerFunctionWrapHandler) -> Any:
        alone = not (self.match or self.fingerprints or self.ca or self.certificate or self.key or self.wrapper)
        return self.level if alone else inner(self)


class Login(Section):
    """By which we name ourselves to the peer (SMTP AUTH)."""

    user: Annotated[Text, AfterValidator(_user)] = Field(description="User name.")
    password_file: FileName = Field(
        description="File whose first line is the password, readable for root alone. `mm4 postfix maps` copies it into "
        "a table that only root can read."
    )


class Pace(Section):
    """How fast we send to the peer; what is more waits in Postfix's queue."""

    concurrency: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Connections at a time. Left out: Postfix's default_destination_concurrency_limit.",
    )
    delay: Annotated[Duration, Field(ge=1)] | None = Field(
        None, description="Time between two messages, 1s or more; then they go one at a time. Left out: none."
    )

    @validator(mode="after")
    def _whole(self) -> Pace:
        if self.concurrency and self.concurrency > 1 and self.delay:
            raise ValueError(
                place("concurrency") + "concurrency has no effect with delay: Postfix then sends one message at a time"
            )
        return self
