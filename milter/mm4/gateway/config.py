"""The configuration as typed values: what one YAML file may say.

Every key is documented here, once: the example file, `mm4 config show` and the documentation are made from
these descriptions. Reading the YAML, with line numbers for everything that is wrong, is `configfile`'s.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import phonenumbers
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from ..protocol.charging import Format
from ..protocol.retry import Retry
from .entries import (
    Domain,
    Duration,
    Endpoint,
    IPNetwork,
    ListenOn,
    NetworkName,
    NextHop,
    OrOff,
    Prefix,
    Size,
    StoreUrl,
    SystemAddress,
    Text,
    domain_of,
    judged_domain,
)
from .names import PEER_NAME

__all__ = [
    "Ack",
    "Cdr",
    "Config",
    "Folders",
    "Local",
    "Peer",
    "PrefixRoute",
    "Rotate",
    "Service",
    "Spool",
]

class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, arbitrary_types_allowed=True)


class Local(_Section):
    """Our own side: one operator, or one MVNO of several on this host."""

    name: Literal["local"] = Field("local", exclude=True)
    domain: Domain = Field(description="Our MM4 domain: what stands behind our numbers on the way to a peer.")
    system_address: SystemAddress = Field(
        description="Who sends our acks and reports, and where peers send theirs; in `domain`."
    )
    region: Annotated[Text, AfterValidator(lambda v: v.upper())] | None = Field(
        None, description="ISO 3166 country in which a national number (without plus) is read."
    )
    numbers: list[Prefix] = Field(
        min_length=1, description="Prefixes of the numbers we serve; a peer's mail to any other is refused at RCPT."
    )
    clients: list[NetworkName] = Field(
        default_factory=list, description="Networks of the MMSC and applications that may send out."
    )
    deliver_to: Text | None = Field(
        None,
        description="Envelope address of a subscriber on the local side; {number} is the E.164 number with "
        "its plus. Any domain but `domain`. Left out: Maildirs below the state folder.",
    )
    next_hop: NextHop | None = Field(
        None,
        description="Where Postfix hands inbound MMS on, as in Postfix's transport table. Left out: "
        "Maildirs below the state folder, one a number.",
    )

    on_bounce: Annotated[Literal["report", "res", "off"], OrOff] = Field(
        "report",
        description="What our side hears of a message of its own that could not be delivered: a delivery report where "
        "the originator asked for one, an error RES where the MMSC asked for an ack, or nothing (mm4 trace shows it).",
    )
    relayed_status: Literal["Indeterminate", "Forwarded", "Retrieved"] = Field(
        "Indeterminate",
        description="What a peer with `delivery_report: on_delivery` is told of a message that the MMSC took: "
        "Retrieved only if handing over is delivery.",
    )
    postmaster_to: SystemAddress | None = Field(
        None,
        description="Who gets mail to `domain` that is neither MM4 nor a bounce of ours; in any domain but ours. Left "
        "out: the Maildir `unclaimed` below the state folder.",
    )

    @field_validator("region")
    @classmethod
    def _known_region(cls, value: str | None) -> str | None:
        if value is not None and value not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"{value!r} is no ISO 3166 country with a numbering plan, for example DE")
        return value

    @field_validator("deliver_to")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is None:
            return None
        localpart, at, domain = value.rpartition("@")
        if not at or "{number}" not in localpart or re.search(r"[{}\s<>]", value.replace("{number}", "")):
            raise ValueError('deliver_to needs {number} before the @, for example "{number}@mmsc.example.net"')
        judged_domain(domain)
        return value

    @model_validator(mode="after")
    def _whole(self) -> Local:
        if domain_of(self.system_address) != self.domain:
            raise ValueError(
                _at("system_address")
                + f"system_address has to lie in domain ({self.domain}), or acks to it would not come home"
            )
        if self.deliver_to and domain_of(self.deliver_to) == self.domain:
            raise ValueError(
                _at("deliver_to") + f"deliver_to lies in domain ({self.domain}): bounces come home by that domain; "
                "use any other domain, for example mmsc." + self.domain
            )
        if self.next_hop and not self.deliver_to:
            raise ValueError(
                _at("next_hop") + "next_hop needs deliver_to: the address under which the local side takes a number"
            )
        if self.deliver_to and not self.next_hop:
            raise ValueError(_at("deliver_to") + "deliver_to needs next_hop: where Postfix hands these addresses on")
        return self


class Ack(_Section):
    """What we ask of the peer for what we send."""

    request: bool = Field(True, description="Whether our forward.REQ asks for a forward.RES.")
    timeout: Duration = Field(600, description="How long a RES may take before the transaction counts as overdue.")
    retry: int = Field(
        0,
        ge=0,
        le=10,
        description="How often a message is sent again while no RES comes, or one with an error that may pass; the "
        "timeout is doubled each time.",
    )


class Peer(_Section):
    """One link to another operator or hub."""

    dialect: Text = Field(
        "3gpp",
        description="Header names and rules of this peer: 3gpp, 3gpp-r4, bare-ids, mbuni, minimal-res, mixed-body or "
        "tyntec, or the path of your own file ending in .yaml (docs/dialects.md).",
    )
    domains: list[Domain] = Field(
        min_length=1, description="Theirs: what may stand in X-Mms-Originator-System, and where answers may go."
    )
    recipient_domain: Domain | None = Field(
        None, description="What we write behind a number on the way to them. Default: the first of `domains`."
    )
    networks: list[NetworkName] = Field(min_length=1, description="Client addresses by which this peer is known.")
    next_hop: NextHop = Field(description="Where Postfix sends mail for this peer, as in its transport table.")
    tls: Literal["none", "may", "encrypt", "verify", "secure"] = Field(
        "may", description="Postfix's TLS security level towards this peer."
    )
    system_address: SystemAddress | None = Field(
        None, description="Where a RES goes when the REQ names no originator system; in one of `domains`."
    )
    # YAML reads the plain word null as nothing, which is what somebody who writes it here means.
    mail_from: Annotated[Literal["system", "null"], BeforeValidator(lambda v: "null" if v is None else v)] = Field(
        "system", description="Envelope sender of our acks: our system_address, whose bounces come home, or null."
    )
    max_size: Size | None = Field(None, description="Largest message on the wire, both ways. Default: Postfix's limit.")
    on_violation: Literal["respond", "reject", "monitor"] = Field(
        "respond",
        description="A PDU that breaks a rule: answer it (RES where one was asked for, else 5xx), "
        "always 5xx, or deliver it and log.",
    )
    identity: Literal["strict", "log"] = Field(
        "log", description="Whether an envelope sender outside `domains` is refused (strict) or let pass."
    )
    transit: bool = Field(False, description="Whether this peer may send to numbers of other peers through us.")
    delivery_report: Annotated[Literal["on_delivery", "on_report", "off"], OrOff] = Field(
        "on_report",
        description="Who tells this peer that its message was delivered, where it asked: the gateway on delivery or "
        "failure, the MMSC by its own report, or nobody.",
    )
    answers: Literal["gateway", "mmsc"] = Field(
        "gateway",
        description="Who answers this peer's REQs: the gateway, as soon as Postfix has them, or the MMSC, whose own "
        "RES goes out as the peer wants it; and an MMSC that asks this peer for a RES gets it.",
    )
    ack: Ack = Field(default_factory=Ack, description="What we ask of this peer for what we send.")

    @model_validator(mode="after")
    def _whole(self) -> Peer:
        if self.system_address and domain_of(self.system_address) not in self.domains:
            raise ValueError(
                _at("system_address") + f"system_address has to lie in one of domains ({', '.join(self.domains)})"
            )
        return self

    @property
    def write_domain(self) -> str:
        """The domain that we write behind a number towards this peer."""
        return self.recipient_domain or self.domains[0]


class PrefixRoute(_Section):
    """Numbers that begin so go to this peer; the first route that fits wins."""

    prefix: Prefix = Field(description='Beginning of the E.164 number; "+" is every number.')
    peer: Text = Field(description="Name of a peer.")


class Service(_Section):
    """Where Postfix and the daemon meet the world."""

    listen: ListenOn = Field(
        Endpoint("127.0.0.1:2525"), description="The MM4 smtpd line: where peers and the MMSC connect."
    )
    submit: ListenOn = Field(
        Endpoint("127.0.0.1:10026"), description="The private submission line on loopback: exact headers, no filters."
    )
    workers: int = Field(2, ge=1, le=64, description="Milter processes.")
    metrics: ListenOn | None = Field(None, description="Where Prometheus reads the counters. Left out: no endpoint.")
    drain: Duration = Field(5, description="How long a stopping worker answers MAIL with 421 before it goes.")

    @field_validator("submit")
    @classmethod
    def _loopback(cls, value: Endpoint) -> Endpoint:
        if not ipaddress.ip_address(value.host).is_loopback:
            raise ValueError("submit has to be a loopback address: whoever reaches this line may send as anybody")
        return value


class Rotate(_Section):
    """When a file of charging records is closed."""

    records: int = Field(10_000, ge=1, le=100_000, description="Records after which a file is closed.")
    after: Duration = Field(3600, description="Age of the oldest record after which a file is closed with fewer.")


class Cdr(_Section):
    """Charging records (docs/charging.md)."""

    format: Format = Field("jsonl", description="JSON lines, or csv with a head line.")
    folder: Text | None = Field(None, description="Where closed files appear. Default: `cdr` below folders.state.")
    rotate: Rotate = Field(default_factory=Rotate, description="When a file is closed.")


class Folders(_Section):
    """Where things lie; the defaults are those of a Debian host."""

    state: Text = Field("/var/lib/mm4", description="Maildirs, unclaimed mail, copies to send again, counters.")
    sockets: Text = Field(
        "/var/spool/postfix/mm4",
        description="milter.sock and responder.sock; below Postfix's queue folder, so that "
        "chrooted and unchrooted services see them.",
    )
    postfix: Text = Field("/etc/postfix", description="The Postfix instance's configuration folder.")


class Spool(_Section):
    """Copies of messages that may have to be sent again."""

    quota: Size = Field(
        10**9,
        description="Bytes that copies may take below the state folder. A message for which there is no room is sent "
        "once, whatever `ack.retry` says.",
    )


class Config(_Section):
    """The whole file."""

    local: list[Local] = Field(min_length=1, description="Our own side; a mapping, or a list of several identities.")
    peers: dict[str, Peer] = Field(default_factory=dict, description="The links, by name ([a-z][a-z0-9-]*).")
    routes: list[PrefixRoute] = Field(default_factory=list, description="Where numbers that we do not serve go.")
    duplicates: Duration = Field(
        1_296_000, description="How long a peer's REQ with the same ids and content counts as the same one: it is not "
        "delivered again and gets the same RES. Longer than any peer goes on sending it."
    )  # fmt: skip
    store: StoreUrl = Field("sqlite:////var/lib/mm4/mm4.db", description="Transactions: an SQLAlchemy URL.")
    service: Service = Field(default_factory=Service, description="Where Postfix and the daemon meet the world.")
    submit: Literal["sendmail", "smtp"] = Field(
        "sendmail", description="How acks go out: Postfix's sendmail, or the private submission line."
    )
    cdr: Cdr | None = Field(
        None,
        description="Charging records after TS 32.270. Left out: none are made; `cdr: {}` makes them with these "
        "defaults.",
    )
    folders: Folders = Field(default_factory=Folders, description="Where things lie.")
    spool: Spool = Field(
        default_factory=Spool, description="Copies of what peers with `ack.retry` have not yet answered."
    )

    _dialects: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("local", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _whole(self) -> Config:
        problems = [*_peer_names(self.peers), *_routes(self), *_overlaps(self), *_domains(self)]
        if problems:
            # One ValueError a place would stop at the first; configfile splits these lines again.
            raise ValueError("\x00".join(problems))
        return self

    @property
    def home(self) -> Local:
        """The first local identity."""
        return self.local[0]

    @property
    def cdr_folder(self) -> str:
        """Where charging records go, where they are made."""
        given = self.cdr.folder if self.cdr else None
        return given or f"{self.folders.state.rstrip('/')}/cdr"

    @property
    def retries(self) -> dict[str, Retry]:
        """What is done about a RES that does not come, by peer."""
        return {name: Retry(peer.ack.timeout, peer.ack.retry) for name, peer in self.peers.items()}

    @property
    def dialects(self) -> Mapping[str, str]:
        """The texts of the dialect files that peers name, by path, as they were when they were checked."""
        return self._dialects

    def with_dialects(self, texts: Mapping[str, str]) -> Config:
        """The same configuration with the texts of its dialect files."""
        config = self.model_copy()
        config._dialects = dict(texts)
        return config


def _at(*path: str | int) -> str:
    """The place of a problem within what is validated, before its text: configfile finds the line by it."""
    return json.dumps(path) + "\x01"


def _peer_names(peers: dict[str, Peer]) -> list[str]:
    return [
        _at("peers", name) + f"{name!r} is no peer name: a letter, then at most 29 of a-z, 0-9 and -, and not local"
        for name in peers
        if not PEER_NAME.match(name) or name == "local"
    ]


def _routes(config: Config) -> list[str]:
    return [
        _at("routes", i, "peer") + f"no peer is named {route.peer!r}; there are: {', '.join(config.peers) or 'none'}"
        for i, route in enumerate(config.routes)
        if route.peer not in config.peers
    ]


def _overlaps(config: Config) -> list[str]:
    problems = []
    seen: dict[IPNetwork, tuple[str | int, ...]] = {}
    owners: list[tuple[tuple[str | int, ...], list[IPNetwork]]] = [
        (("local", i, "clients"), local.clients) for i, local in enumerate(config.local)
    ]
    owners += [(("peers", name, "networks"), peer.networks) for name, peer in config.peers.items()]
    for path, networks in owners:
        for i, network in enumerate(networks):
            if network in seen and not (path[0] == "local" and seen[network][0] == "local"):
                there = ".".join(str(part) for part in seen[network] if isinstance(part, str))
                problems.append(
                    _at(*path, i) + f"{network} stands at {there} too: a client address must name one side; "
                    "give the two different networks"
                )
            seen.setdefault(network, path)
    return problems


def _domains(config: Config) -> list[str]:
    ours = {local.domain for local in config.local}
    inward = {domain_of(local.deliver_to) for local in config.local if local.deliver_to}
    problems = [
        _at("local", i, "deliver_to") + f"{domain_of(local.deliver_to)} is a domain of ours: bounces come home by it"
        for i, local in enumerate(config.local)
        if local.deliver_to and domain_of(local.deliver_to) in ours
    ]
    problems += [
        _at("local", i, "postmaster_to")
        + f"{domain_of(local.postmaster_to)} is a domain of ours: this mail would come back; name a mailbox elsewhere"
        for i, local in enumerate(config.local)
        if local.postmaster_to and domain_of(local.postmaster_to) in ours
    ]
    for name, peer in config.peers.items():
        problems += [
            _at("peers", name, "domains", i) + f"{domain} is our own domain (local.domain)"
            for i, domain in enumerate(peer.domains)
            if domain in ours or domain in inward
        ]
    return problems
