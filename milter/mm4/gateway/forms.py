"""How subscribers are written in the headers towards one side, and how one who wants to stay hidden is not.

Only From, To, Cc and Sender hold subscribers that a side may want in a form of its own; ids, systems and e-mail
addresses stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..protocol.address import Address, Kind, split_list
from ..protocol.errors import ProtocolError
from ..protocol.headers import Header
from ..protocol.pdu import Found, Pdu
from ..protocol.writer import Verbatim
from .edits import MAX_CHANGED, Edit
from .template import fill

__all__ = ["ANONYMOUS", "FORMED", "Form", "changeable", "formed_edits", "hidden", "hidden_edits", "members_of"]

FORMED = ("sender", "recipients", "sender_header")
"""Fields that hold subscribers: From, To with Cc, Sender."""

ANONYMOUS = "anonymous@anonymous.invalid"
"""Stands for a sender who hides (the name that RFC 3323 4.1.1.3 gives him)."""

_TELLING = frozenset({"sender", "reply-to", "return-path", "x-mms-sender-address"})
"""Headers beside From that name a sender."""


@dataclass(frozen=True, slots=True)
class Form:
    """A header template and what stands for its {domain}."""

    template: str
    domain: str

    def write(self, address: Address) -> str:
        """One address: a subscriber by the template, any other exactly."""
        if address.kind not in (Kind.E164, Kind.SHORT_CODE):
            return address.write()
        return fill(self.template, address, domain=self.domain) or address.write()

    def line(self, value: Any) -> Any:
        """A typed value of one of the fields, as it is to be written; anything else as it is."""
        if isinstance(value, Address):
            return Verbatim(self.write(value))
        if isinstance(value, tuple) and value and all(isinstance(a, Address) for a in value):
            return Verbatim(",\n ".join(self.write(a) for a in value))
        return value


def members_of(field: str, place: Found, pdu: Pdu) -> tuple[Address, ...] | None:
    """The addresses that one line of a field holds, as they were read; None where one of them was not."""
    value = pdu.get(field)
    known = {a.text.strip(): a for a in (value if isinstance(value, tuple) else (value,)) if isinstance(a, Address)}
    text = place.raw.decode("latin-1")
    found = [known.get(m) for m in (split_list(text) if field == "recipients" else [text.strip(" \t,;")])]
    members = tuple(a for a in found if a is not None)
    return members if len(members) == len(found) else None


def changeable(place: Found) -> Found:
    """The line, if all of it was seen: of a longer one a milter gets a part, and would write only that. Raises
    ProtocolError.
    """
    if len(place.raw) >= MAX_CHANGED:
        raise ProtocolError(f"{place.name} is too long to be changed")
    return place


def formed_edits(pdu: Pdu, form: Form, fields: Iterable[str] = FORMED) -> Iterator[Edit]:
    """Every line that holds subscribers in another form, changed. Raises ProtocolError."""
    for field in fields:
        for place in pdu.found.get(field, ()):
            members = members_of(field, place, pdu)
            valid = tuple(a for a in members or () if a.kind is not Kind.INVALID)
            if not valid:
                continue
            line = ",\n ".join(form.write(a) for a in valid)
            if line != place.raw.decode("latin-1"):
                yield Edit("change", changeable(place).name, place.occurrence, line)


def hidden(pdu: Pdu) -> bool:
    """Whether the sender of a message asked that its recipient does not learn who he is (TS 23.140 8.4.1)."""
    return pdu.type == "MM4_forward.REQ" and pdu.get("sender_visibility") == "Hide"


def hidden_edits(pdu: Pdu, headers: Iterable[Header]) -> Iterator[Edit]:
    """Nobody for the sender, and nothing that names him beside."""
    for place in pdu.found.get("sender", ()):
        yield Edit("change", place.name, place.occurrence, ANONYMOUS)
    seen: dict[str, int] = {}
    changed = {place.name.lower() for place in pdu.found.get("sender", ())}
    for header in headers:
        name = header.name.lower()
        seen[name] = seen.get(name, 0) + 1
        if name in _TELLING and name not in changed:
            yield Edit("delete", header.name, seen[name])
