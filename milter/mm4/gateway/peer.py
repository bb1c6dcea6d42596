"""One link to another operator or hub, as the configuration describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from .credentials import Certificate, LoginName
from .entries import (
    Domain,
    Duration,
    NetworkName,
    NextHop,
    OrOff,
    Prefix,
    Region,
    Size,
    SystemAddress,
    Text,
    address_of,
    domain_of,
    one_or_many,
)
from .outgoing import Login, Pace, Source, Tls
from .section import Section, place
from .template import HeaderForm, RecipientForm, SenderForm, names_in
from .terms import Content, Extras, Flood, Headers, PduType, Rate, Version

__all__ = ["Ack", "Peer", "PeerAddresses"]


class Ack(Section):
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


class PeerAddresses(Section):
    """How addresses are written towards a peer."""

    recipient: RecipientForm = Field(
        "{number}/TYPE=PLMN@{domain}",
        description="RCPT. {number} has its plus, {digits} none, {national} is dialled in its own country, {domain} "
        "is `recipient_domain`, {mcc} and {mnc} are the operator's where the route tells them.",
    )
    sender: SenderForm = Field(
        "{number}/TYPE=PLMN@{domain}", description="MAIL FROM of a subscriber; {domain} is our own."
    )
    header: HeaderForm | None = Field(
        None,
        description="Subscribers in From, To, Cc and Sender, for example {number}/TYPE=PLMN. Left out: as our side "
        "wrote them, national numbers completed.",
    )


class Peer(Section):
    """One link to another operator or hub."""

    CHAPTERS: ClassVar[Mapping[str, str]] = {
        "domains": "Who they are",
        "networks": "How they are known",
        "next_hop": "Where their mail goes",
        "dialect": "How it is written",
        "pdus": "What is agreed",
        "answers": "What is answered and asked",
    }

    domains: list[Domain] = Field(
        min_length=1, description="Their domains: what may stand in X-Mms-Originator-System, and where answers may go."
    )
    system_address: SystemAddress | None = Field(
        None, description="Where a RES goes when the REQ names no originator system; in one of `domains`."
    )
    region: Region | None = Field(
        None, description="ISO 3166 country in which a national number (without plus) from this peer is read."
    )
    local: Annotated[list[Domain], one_or_many] = Field(
        default_factory=list,
        description="Where we are several operators: the `local.domain` of each that has this peer, one or a list. "
        "Left out: all.",
    )

    networks: list[NetworkName] = Field(
        default_factory=list,
        description="Client addresses by which this peer is known; may be left out where it has certificates or "
        "logins. Of what an entry names, everything has to hold.",
    )
    certificates: list[Certificate] = Field(
        default_factory=list, description="TLS client certificates by which this peer is known: {subject, fingerprint}."
    )
    logins: list[LoginName] = Field(default_factory=list, description="SASL logins by which this peer is known.")

    next_hop: NextHop = Field(description="Where Postfix sends mail for this peer, as in its transport table.")
    source: Annotated[list[Source], one_or_many] = Field(
        default_factory=list,
        description="Address of this host that we send from to this peer: one, or one for IPv4 and one for IPv6. Left "
        "out: any.",
    )
    tls: Tls = Field(
        default_factory=Tls,
        description="TLS towards this peer: Postfix's level none, may, encrypt, fingerprint, verify or secure, or a "
        "mapping.",
    )
    login: Login | None = Field(None, description="SMTP AUTH towards this peer.")
    pace: Pace = Field(default_factory=Pace, description="How fast we send to this peer.")

    dialect: Text = Field(
        "3gpp",
        description="Header names and rules of this peer: 3gpp, 3gpp-r4, bare-ids, mbuni, minimal-res, mixed-body or "
        "tyntec, or the path of your own file ending in .yaml (docs/dialects.md).",
    )
    mms_version: Version | None = Field(
        None, description="MMS version of all that this peer gets from us. Default: the dialect's in what we write, "
        "the sender's own in what we pass on."
    )  # fmt: skip
    recipient_domain: Domain | None = Field(
        None, description="What we write behind a number on the way to them. Default: the first of `domains`."
    )
    addresses: PeerAddresses = Field(default_factory=PeerAddresses, description="How addresses are written to them.")
    # YAML reads the plain word null as nothing, which is what somebody who writes it here means.
    mail_from: Annotated[Literal["system", "null"], BeforeValidator(lambda v: "null" if v is None else v)] = Field(
        "system",
        description="Envelope sender of our acks and reports: our system_address, whose bounces come home, or null.",
    )
    headers: Headers = Field(default_factory=Headers, description="Headers of all that this peer gets from us.")
    res: Extras = Field(
        default_factory=Extras, description="Headers of our RES to this peer, yes or no each. Default: the dialect's."
    )

    pdus: list[PduType] | None = Field(
        None,
        min_length=1,
        description="PDUs that this peer may send, for example [MM4_forward.REQ, MM4_forward.RES]. Another REQ is a "
        "violation (Error-service-denied), another RES is refused. Left out: all.",
    )
    max_size: Size | None = Field(
        None,
        description="Largest message on the wire, both ways: by SIZE at MAIL, and by what came where a rule below has "
        "the body read. Default: Postfix's limit.",
    )
    max_content: Size | None = Field(
        None,
        description="Largest content of a forward.REQ when decoded, all parts together, both ways. Has the body read.",
    )
    max_recipients: int | None = Field(
        None, ge=1, description="Recipients of one message, both ways; the others get 452 and come again."
    )
    content: Content = Field(
        default_factory=Content, description="Content types of a forward.REQ, both ways. Has the body read."
    )
    rate: Rate = Field(
        default_factory=Rate,
        description="Messages (REQs) that this peer may send, counted for all processes and hosts; over it 451, and "
        "the peer keeps them. What goes to the peer has its `pace`.",
    )
    flood: Flood | None = Field(
        None, description="The same content over and over from this peer. Left out: not watched. Has the body read."
    )
    identity: Literal["strict", "log"] = Field(
        "log",
        description="Whether From, Sender, MAIL FROM or X-Mms-Originator-System outside `domains` is refused (strict) "
        "or let pass and logged, as for a hub whose senders are of many operators.",
    )
    own_numbers: list[Prefix] = Field(
        default_factory=list,
        description="Numbers in `local.numbers`, or their beginnings, that this peer may send from: ported out, or "
        'roaming there. Any other of ours is refused as its sender; "+" allows all.',
    )
    transit: bool = Field(False, description="Whether this peer may send to numbers of other peers through us.")
    on_violation: Literal["respond", "reject", "monitor"] = Field(
        "respond",
        description="A PDU that breaks a rule: answer it (RES where one was asked for, else 5xx), "
        "always 5xx, or deliver it and log.",
    )

    answers: Literal["gateway", "mmsc"] = Field(
        "gateway",
        description="Who answers this peer's REQs: the gateway, as soon as Postfix has them, or the MMSC, whose own "
        "RES goes out as the peer wants it; and an MMSC that asks this peer for a RES gets it.",
    )
    delivery_report: Annotated[Literal["on_delivery", "on_report", "off"], OrOff] = Field(
        "on_report",
        description="Who tells this peer that its message was delivered, where it asked: the gateway on delivery or "
        "failure, the MMSC by its own report, or nobody.",
    )
    ack: Ack = Field(default_factory=Ack, description="What we ask of this peer for what we send.")

    @model_validator(mode="after")
    def _whole(self) -> Peer:
        if not (self.networks or self.certificates or self.logins):
            raise ValueError(
                place("networks") + "a peer has to be known by something: networks, certificates or logins"
            )
        if self.system_address and domain_of(self.system_address) not in self.domains:
            raise ValueError(
                place("system_address") + f"system_address has to lie in one of domains ({', '.join(self.domains)})"
            )
        hop = address_of(self.next_hop)
        if hop is not None and self.tls.level in ("verify", "secure") and not self.tls.match:
            raise ValueError(
                place("tls") + f"level: {self.tls.level} compares names, and next_hop is an address: name the host in "
                "next_hop, or what its certificate says in tls.match"
            )
        if len({":" in source for source in self.source}) < len(self.source):
            raise ValueError(place("source") + "source takes one address for IPv4 and one for IPv6")
        if hop is not None and self.source and hop.version not in self.families:
            raise ValueError(place("source") + f"source needs an IPv{hop.version} address for next_hop {self.next_hop}")
        if self.ack.request and not self.may_send("MM4_forward.RES"):
            raise ValueError(
                place("pdus") + "leaves out MM4_forward.RES, for which ack.request asks; add it, or set ack.request: no"
            )
        if self.ack.retry and names_in(self.addresses.recipient) & {"mcc", "mnc"}:
            raise ValueError(
                place("ack", "retry") + "what is sent again has to be addressed by the number alone: leave retry out, "
                "or {mcc} and {mnc} of addresses.recipient"
            )
        return self

    @property
    def families(self) -> frozenset[int]:
        """The IP versions of `source`; empty where any address may be sent from."""
        return frozenset(6 if ":" in source else 4 for source in self.source)

    @property
    def write_domain(self) -> str:
        """The domain that we write behind a number towards this peer."""
        return self.recipient_domain or self.domains[0]

    def may_send(self, pdu: str) -> bool:
        """Whether this peer may send us a PDU, by its 3GPP name."""
        return self.pdus is None or pdu in self.pdus

    @property
    def judges_content(self) -> bool:
        """Whether a message of or for this peer is judged by what it holds."""
        return self.max_content is not None or bool(self.content.allow or self.content.refuse)

    @property
    def reads_body(self) -> bool:
        """Whether a rule of this peer needs the body of messages."""
        return self.judges_content or self.flood is not None
