"""Our own side of the gateway, as the configuration describes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from .entries import Domain, NetworkName, NextHop, OrOff, Prefix, Region, SystemAddress, Text, domain_of
from .section import Section, place
from .template import DeliverTo, HeaderForm

__all__ = ["Local", "LocalAddresses", "LocalSide"]


class LocalAddresses(Section):
    """How addresses are written towards our own side."""

    header: HeaderForm | None = Field(
        None,
        description="Subscribers in From, To, Cc and Sender, for example {number}/TYPE=PLMN@{domain} ({domain} is "
        "`domain`). Left out: as the peer wrote them.",
    )


def _short_code(text: str) -> str:
    if not re.fullmatch(r"[0-9]{3,8}", text):
        raise ValueError(f'{text!r} is no short code: write 3 to 8 digits in quotes, for example "12345"')
    return text


class LocalSide(Section):
    """Another system on our own side, for some of the numbers: a second MMSC, an application, Maildirs."""

    numbers: list[Prefix] = Field(
        default_factory=list,
        description="Prefixes of the numbers that it serves, beside those above or within them: the longest counts.",
    )
    short_codes: list[Annotated[Text, AfterValidator(_short_code)]] = Field(
        default_factory=list, description="Short codes that it serves."
    )
    deliver_to: DeliverTo | None = Field(None, description="As above, in a domain of its own.")
    next_hop: NextHop | None = Field(None, description="Where Postfix hands its mail on.")
    maildir: bool = Field(False, description="Instead of the two: Maildirs below the state folder.")

    @model_validator(mode="after")
    def _whole(self) -> LocalSide:
        if not self.numbers and not self.short_codes:
            raise ValueError("a side needs numbers or short_codes")
        if (self.deliver_to is None) != (self.next_hop is None) or (self.deliver_to is None) != self.maildir:
            raise ValueError("a side needs deliver_to and next_hop, or maildir: yes")
        return self


class Local(Section):
    """Our own side: one operator, or one MVNO of several on this host."""

    CHAPTERS: ClassVar[Mapping[str, str]] = {
        "domain": "Who we are",
        "clients": "How our own systems are known",
        "deliver_to": "Where our mail goes",
        "addresses": "How it is written",
        "on_bounce": "What is told",
    }

    name: Literal["local"] = Field("local", exclude=True)
    domain: Domain = Field(description="Our MM4 domain: what stands behind our numbers on the way to a peer.")
    system_address: SystemAddress = Field(
        description="Who sends our acks and reports, and where peers send theirs; in `domain`."
    )
    region: Region | None = Field(
        None, description="ISO 3166 country in which a national number (without plus) is read."
    )
    numbers: list[Prefix] = Field(
        min_length=1, description="Prefixes of the numbers we serve; a peer's mail to any other is refused at RCPT."
    )

    clients: list[NetworkName] = Field(
        default_factory=list, description="Networks of the MMSC and applications that may send out."
    )

    deliver_to: DeliverTo | None = Field(
        None,
        description="Envelope address of a subscriber on the local side; {number} is the E.164 number with "
        "its plus, {digits} without, {national} as it is dialled at home. Any domain but `domain`. Left out: Maildirs "
        "below the state folder.",
    )
    next_hop: NextHop | None = Field(
        None,
        description="Where Postfix hands inbound MMS on, as in Postfix's transport table. Left out: "
        "Maildirs below the state folder, one a number.",
    )
    sides: list[LocalSide] = Field(
        default_factory=list, description="Further systems on our own side, each for some of the numbers."
    )
    postmaster_to: SystemAddress | None = Field(
        None,
        description="Who gets mail to `domain` that is neither MM4 nor a bounce of ours; in any domain but ours. Left "
        "out: the Maildir `unclaimed` below the state folder.",
    )

    addresses: LocalAddresses = Field(
        default_factory=LocalAddresses, description="How addresses are written towards our own side."
    )
    hide: Literal["apply", "pass"] = Field(
        "apply",
        description="A peer's message with X-Mms-Sender-Visibility: Hide: our side does not get its sender, or gets "
        "the message as it is, because the MMSC hides him.",
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

    @model_validator(mode="after")
    def _whole(self) -> Local:
        if domain_of(self.system_address) != self.domain:
            raise ValueError(
                place("system_address")
                + f"system_address has to lie in domain ({self.domain}), or acks to it would not come home"
            )
        if self.deliver_to and domain_of(self.deliver_to) == self.domain:
            raise ValueError(
                place("deliver_to") + f"deliver_to lies in domain ({self.domain}): bounces come home by that domain; "
                "use any other domain, for example mmsc." + self.domain
            )
        if self.next_hop and not self.deliver_to:
            raise ValueError(
                place("next_hop") + "next_hop needs deliver_to: the address under which the local side takes a number"
            )
        if self.deliver_to and not self.next_hop:
            raise ValueError(place("deliver_to") + "deliver_to needs next_hop: where Postfix hands these addresses on")
        problems = list(self._sides())
        if problems:
            raise ValueError("\x00".join(problems))
        return self

    def _sides(self) -> Iterator[str]:
        seen: dict[str, str] = dict.fromkeys(self.numbers, "numbers")
        for key, value in self.serves():
            mine = f"sides[{key[1]}]" if key[0] == "sides" else "numbers"
            if seen.setdefault(value, mine) != mine:
                yield place(*key) + f"{value} stands at {seen[value]} too: give it one side"
        for i, side in enumerate(self.sides):
            if side.deliver_to and domain_of(side.deliver_to) == self.domain:
                yield place("sides", i, "deliver_to") + (
                    f"deliver_to lies in domain ({self.domain}): bounces come home by that domain; use any other"
                )

    def serves(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Every prefix and short code that is served, each with its place."""
        yield from ((("numbers", n), prefix) for n, prefix in enumerate(self.numbers))
        for i, side in enumerate(self.sides):
            yield from ((("sides", i, "numbers", n), prefix) for n, prefix in enumerate(side.numbers))
            yield from ((("sides", i, "short_codes", n), code) for n, code in enumerate(side.short_codes))

    def served(self) -> Iterator[tuple[str, list[str], Local | LocalSide]]:
        """What is served: the key in the file, the prefixes, and where their mail goes."""
        yield "local.numbers", self.numbers, self
        yield from ((f"local.sides[{i}].numbers", side.numbers, side) for i, side in enumerate(self.sides))

    @property
    def deliveries(self) -> tuple[Local | LocalSide, ...]:
        """Every system that takes mail for our numbers."""
        return (self, *self.sides)

    @property
    def delivery_domains(self) -> tuple[str, ...]:
        """The domains in which they do, each once."""
        return tuple(dict.fromkeys(domain_of(to.deliver_to) for to in self.deliveries if to.deliver_to))
