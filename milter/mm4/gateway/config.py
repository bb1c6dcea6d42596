"""The configuration as typed values: what one YAML file may say.

Every key is documented once, in the sections that this is made of (`localside`, `peer`, `routes`, `host`): the example
file, `mm4 config show` and the documentation are made from these descriptions. Reading the YAML, with line numbers for
everything that is wrong, is `configfile`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ..protocol.retry import Retry
from .entries import Duration, StoreUrl, domain_of
from .host import Cdr, Folders, Service, Spool
from .identity import clashes, unarmed
from .internet import INTERNET, InternetMail
from .localside import Local
from .names import PEER_NAME
from .peer import Peer
from .routes import Route, wrong_routes
from .section import Section, place

__all__ = ["SHORTEST_RETENTION", "Config"]

LOCAL_NAME = "local"

SHORTEST_RETENTION = 7 * 86_400
"""Seconds. For so long `mm4 check` tells what was done to the store itself."""


class Config(Section):
    """The whole file."""

    local: list[Local] = Field(min_length=1, description="Our own side; a mapping, or a list of several identities.")
    peers: dict[str, Peer] = Field(default_factory=dict, description="The links, by name ([a-z][a-z0-9-]*).")
    routes: list[Route] = Field(
        default_factory=list,
        description="Where numbers that we do not serve go. The rows are asked in the order written, and the first "
        "that fits counts; each is of one of these kinds. A look-up that fails is 451 for the recipient.",
    )
    mail: InternetMail = Field(
        default_factory=InternetMail, description="Internet mail beside MMS (docs/addresses.md)."
    )
    duplicates: Duration = Field(
        1_296_000, description="How long a peer's REQ with the same ids and content counts as the same one: it is not "
        "delivered again and gets the same RES. Longer than any peer goes on sending it."
    )  # fmt: skip
    retention: Duration = Field(
        7_776_000, description="How long messages with their transactions and events, and charging records that stand "
        "in a file, are kept; then they leave the store, little by little. Not shorter than `duplicates`, nor than 7d. "
        "What is still open (a RES owed or awaited, a mail that Postfix has not shown to have) stays for twice as long."
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
        problems = [
            *_peer_names(self.peers), *wrong_routes(self.routes, self.peers), *_clients(self), *_domains(self),
            *_identities(self), *_retention(self),
        ]  # fmt: skip
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


def _retention(config: Config) -> list[str]:
    problems = []
    if config.retention < config.duplicates:
        problems.append(f"shorter than duplicates ({config.duplicates // 3600}h): a REQ that comes again in that time "
                        "would be delivered again; make it as long")  # fmt: skip
    if config.retention < SHORTEST_RETENTION:
        problems.append("shorter than 7d: so long mm4 check speaks of what was done to the store")
    return [place("retention") + problem for problem in problems[:1]]


def _peer_names(peers: dict[str, Peer]) -> list[str]:
    return [
        place("peers", name)
        + f"{name!r} is no peer name: a letter, then at most 29 of a-z, 0-9 and -; not {LOCAL_NAME}, not {INTERNET}"
        for name in peers
        if not PEER_NAME.match(name) or name in (LOCAL_NAME, INTERNET)
    ]


def _clients(config: Config) -> list[str]:
    tls = config.service.tls
    problems = [*clashes(config.local, config.peers)]
    problems += unarmed(
        config.peers, tls=tls is not None, ca=tls is not None and tls.ca is not None, sasl=bool(config.service.sasl)
    )
    ours = [prefix for local in config.local for _, prefixes, _ in local.served() for prefix in prefixes]
    problems += [
        place("peers", name, "own_numbers", i) + f"{number} is none of ours (local.numbers: {', '.join(ours)}): this "
        "peer may send from it as it is"
        for name, peer in config.peers.items()
        for i, number in enumerate(peer.own_numbers)
        if not any(number.startswith(prefix) or prefix.startswith(number) for prefix in ours)
    ]
    return problems


def _identities(config: Config) -> list[str]:
    domains = list(dict.fromkeys(local.domain for local in config.local))
    problems = [
        place("peers", name, "local", i) + f"no local.domain is {domain}; there are: {', '.join(domains)}"
        for name, peer in config.peers.items()
        for i, domain in enumerate(peer.local)
        if domain not in domains
    ]
    owners: dict[str, str] = {}
    for i, local in enumerate(config.local):
        for key, prefix in local.serves():
            if owners.setdefault(prefix, local.domain) != local.domain:
                problems.append(
                    place("local", i, *key) + f"{prefix} is served by {owners[prefix]} too: a number belongs "
                    "to one operator; give one of them a longer prefix"
                )
    return problems


def _domains(config: Config) -> list[str]:
    ours = {local.domain for local in config.local}
    inward = {domain for local in config.local for domain in local.delivery_domains}
    problems = [
        place("local", i, "sides" if to is not local else "deliver_to")
        + f"{domain_of(to.deliver_to)} is a domain of ours: bounces come home by it"
        for i, local in enumerate(config.local)
        for to in local.deliveries
        if to.deliver_to and domain_of(to.deliver_to) in ours
    ]
    problems += [
        place("local", i, "postmaster_to")
        + f"{domain_of(local.postmaster_to)} is a domain of ours: this mail would come back; name a mailbox elsewhere"
        for i, local in enumerate(config.local)
        if local.postmaster_to and domain_of(local.postmaster_to) in ours
    ]
    for name, peer in config.peers.items():
        problems += [
            place("peers", name, "domains", i) + f"{domain} is our own domain (local.domain)"
            for i, domain in enumerate(peer.domains)
            if domain in ours or domain in inward
        ]
    return problems
