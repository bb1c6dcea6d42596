"""What changes in a message on its way: header edits inward and outward, and the envelope.

A REQ between operators passes byte for byte but for what is listed here. Inward only the ack request is taken
back, because the gateway answers. Outward the headers take the peer's names and spellings, what its dialect
demands and the local side left out is added, and the originator system becomes ours, so that the RES comes home.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from ..protocol.address import Address, Kind, parse_address
from ..protocol.dialect import Dialect, Field
from ..protocol.headers import Header
from ..protocol.pdu import Found, Pdu
from ..protocol.values import READERS
from ..protocol.writer import Verbatim, write_value
from .edits import Edit
from .forms import FORMED, Form, changeable, formed_edits, hidden, hidden_edits, members_of
from .localside import Local
from .names import RESPONDER_DOMAIN, public_name
from .peer import Peer
from .routing import LOCAL
from .template import fill
from .verdict import Recipient

__all__ = [
    "COMPLETABLE",
    "commit_recipient",
    "completions",
    "inward_edits",
    "inward_sender",
    "outward_edits",
    "outward_sender",
    "replacements",
    "success_wanted",
    "system_sender",
]

_FIRST_INDEX = re.compile(r"\s*0+\s*,\s*")
_INDEXED = re.compile(r"\s*\d+\s*,")  # RFC 4356 2.1.3.2: index, comma, address

_OF_REPORTS = frozenset({"mms_version", "transaction_id", "date", "recipients", "originator_system"})
COMPLETABLE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "MM4_forward.REQ": _OF_REPORTS | {"message_id", "content_type", "sender"},
        # Of which message and of whom a report speaks, only its writer knows.
        "MM4_delivery_report.REQ": _OF_REPORTS,
        "MM4_read_reply_report.REQ": _OF_REPORTS,
    }
)
"""Mandatory fields that the gateway writes for a local message that lacks them, by its type."""


def commit_recipient(token: str) -> tuple[str, str]:
    """The recipient by which Postfix tells us that it kept the message; NEVER, or its bounce would go to the peer."""
    return f"{token}@{RESPONDER_DOMAIN}", "NOTIFY=NEVER"


def success_wanted(pdu: Pdu, peer: Peer | None) -> bool:
    """Whether Postfix shall tell us that a message of this peer was delivered: we report it, and it was asked for."""
    if peer is None or peer.delivery_report != "on_delivery" or pdu.type != "MM4_forward.REQ":
        return False
    return bool(pdu.get("delivery_report") or pdu.get("originator_rs_report"))


def replacements(recipients: tuple[Recipient, ...], success: bool = False) -> tuple[tuple[str, str], ...]:
    """What the accepted recipients become, each once, with its ESMTP parameters.

    Each says explicitly what is to be told of it, for the command filter asked for everything. `success`: of a
    delivery on our own side too. A peer's next hop tells of no success: it has its own reports.
    """
    becomes: dict[str, str] = {}
    for recipient in recipients:
        destination = recipient.destination
        if destination and destination.becomes:
            told = "SUCCESS,FAILURE" if success and destination.side == LOCAL else "FAILURE"
            becomes.setdefault(destination.becomes, f"NOTIFY={told}")
    return tuple(becomes.items())


def inward_sender(local: Local, token: str) -> tuple[str, str]:
    """Envelope sender of the local leg: every bounce, ours or the MMSC's later one, comes home and not to the peer."""
    return f"{token}@{local.domain}", f"RET=HDRS ENVID={token}"


def outward_sender(originator: Address | None, local: Local, peer: Peer, token: str) -> tuple[str, str]:
    """Envelope sender towards a peer: the originator in our domain, or the system for one who has no number."""
    if originator is not None and originator.kind in (Kind.E164, Kind.SHORT_CODE):
        sender = fill(peer.addresses.sender, originator, domain=local.domain)
        return sender or originator.write(local.domain), f"RET=HDRS ENVID={token}"
    return local.system_address, f"RET=HDRS ENVID={token}"


def system_sender(local: Local, peer: Peer, token: str) -> tuple[str, str]:
    """Envelope sender of a report towards a peer: our system, whose bounces come home, or nobody."""
    return local.system_address if peer.mail_from == "system" else "", f"RET=HDRS ENVID={token}"


def inward_edits(pdu: Pdu, headers: Iterable[Header], local: Local, *, answers: bool) -> list[Edit]:
    """A REQ on its way to the local side. Raises ProtocolError where a line that has to change cannot be written.

    `answers`: the gateway answers it, so nobody there shall. Where the MMSC does, it hides senders itself, too.
    """
    edits = []
    if answers and pdu.ack_request:
        edits += [Edit("change", place.name, place.occurrence, "No") for place in pdu.found.get("ack_request", ())]
    hide = answers and local.hide == "apply" and hidden(pdu)
    if hide:
        edits += hidden_edits(pdu, headers)
    if local.addresses.header:
        form = Form(local.addresses.header, local.domain)
        edits += formed_edits(pdu, form, ("recipients",) if hide else FORMED)
    return edits


def outward_edits(
    pdu: Pdu,
    source: Dialect,
    target: Dialect,
    local: Local,
    completed: dict[str, Any],
    *,
    ack: bool,
    form: Form | None,
) -> list[Edit]:
    """A REQ read by `source`, as it goes on in `target`: to a peer, or to our own side where ordinary mail becomes one.

    `completed` holds typed values for fields that the message lacks, or that have to be so whatever it says, `ack` is
    whether it asks for a RES, `form` how subscribers are written where not as they stand. Raises ProtocolError where a
    line that has to change cannot be written.
    """
    edits: list[Edit] = []
    values = dict(completed)
    values["message_type"] = pdu.type
    values["originator_system"] = parse_address(local.system_address)
    if ack != pdu.ack_request:
        values["ack_request"] = ack
    if form is not None:
        values |= {name: form.line(values[name]) for name in FORMED if name in values}
    for field in target.fields.values():
        places = pdu.found.get(field.name, ())
        if not places and field.name not in values:
            continue
        edits += _write_field(field, places, values, pdu, source, target, form)
    return edits


def _write_field(
    field: Field, places: tuple[Found, ...], values: dict[str, Any], pdu: Pdu, source: Dialect, target: Dialect,
    form: Form | None,
) -> Iterator[Edit]:  # fmt: skip
    wanted = write_value(values[field.name], field, target) if field.name in values else None
    own = {field.header.lower(), *(name.lower() for name in field.also)}
    if field.name == "ack_request" and wanted == "No" and not places:
        return
    if not places:
        yield Edit("add", field.header, 0, wanted)
        return
    if wanted is None:
        wanted = _exact(field, places[0], pdu, source, target)
    several = field.kind in ("indexed_addresses", "indexed_dates", "addresses")
    if places[0].name.lower() in own and wanted is not None and field.kind == "addresses":
        # To and Cc are one list: the first line says it all.
        for place in places[1:]:
            yield Edit("delete", changeable(place).name, place.occurrence)
        places = places[:1]
    if places[0].name.lower() in own:
        for place, line in zip(places, _lines(field, places, pdu, target), strict=True):
            new = wanted if wanted is not None else _respelled(field, place, pdu, target, form) or line
            if new is not None and new != place.raw.decode("latin-1"):
                yield Edit("change", changeable(place).name, place.occurrence, new)
        return
    # The field stands under another dialect's name: those lines go, the peer's own name comes. What stood under
    # the peer's name beside it did not count, and would count there.
    for place in (*places, *(p for p in pdu.beside.get(field.name, ()) if p.name.lower() in own)):
        yield Edit("delete", changeable(place).name, place.occurrence)
    lines = [line.replace("\t", " ") for line in _lines(field, places, pdu, target)]
    for value in lines if several and wanted is None else [wanted if wanted is not None else lines[0]]:
        if value:
            yield Edit("add", field.header, 0, write_value(Verbatim(value), field, target))


def _exact(field: Field, place: Found, pdu: Pdu, source: Dialect, target: Dialect) -> str | None:
    """The exact word for one in another spelling, which the peer may not know; None where it stands exact, or is in no
    list and passes as it is.
    """
    value = pdu.get(field.name)
    if field.kind not in ("enumeration", "status") or value is None:
        return None
    text = place.raw.decode("latin-1")
    _, notes = READERS[field.kind](text, source.fields[field.name], source, None)
    listed = not any(note.startswith("none of") for note in notes)
    return write_value(value, field, target) if listed and text != value else None


def _lines(field: Field, places: tuple[Found, ...], pdu: Pdu, target: Dialect) -> list[str]:
    """What the lines of a field say, as they stood; a hop that came without its index gets the one it was read with.

    Where the dialect writes the first hop without an index, that goes.
    """
    stood = [place.raw.decode("latin-1") for place in places]
    values = pdu.get(field.name)
    if field.kind != "indexed_addresses":
        return stood
    if field.form == "unindexed":
        return [_FIRST_INDEX.sub("", line) for line in stood]
    if not isinstance(values, tuple) or len(values) != len(stood):
        return stood
    return [
        line if _INDEXED.match(line) else write_value(value, field, target)
        for line, value in zip(stood, values, strict=True)
    ]


def _respelled(field: Field, place: Found, pdu: Pdu, target: Dialect, form: Form | None) -> str | None:
    """The line with every national number in E.164 form, and numbers bare or in a form of the peer's own where it wants
    them so; None where nothing needs it.
    """
    members = members_of(field.name, place, pdu) if field.name in FORMED else None
    if members is None or not (form or field.form or any(a.completed for a in members)):
        return None
    valid = tuple(a for a in members if a.kind is not Kind.INVALID)
    if not valid:
        return None
    value = valid if field.kind == "addresses" else valid[0]
    return write_value(form.line(value) if form else value, field, target)


def completions(
    pdu: Pdu,
    target: Dialect,
    local: Local,
    mail_from: str,
    recipients: tuple[Recipient, ...],
    token: str,
    now: datetime,
) -> dict[str, Any]:
    """Typed values for what the peer's dialect demands and the local side left out."""
    kind = pdu.type or "MM4_forward.REQ"
    demanded = {
        row.field
        for row in target.pdus[kind]
        if row.complete or (row.presence == "mandatory" and row.field in COMPLETABLE[kind])
    }
    missing = demanded - pdu.values.keys()
    values: dict[str, Any] = {}
    originator = pdu.get("sender")
    if originator is None:
        found = parse_address(mail_from, local.region)
        originator = found if found.kind in (Kind.E164, Kind.SHORT_CODE) else None
    numbers = dict.fromkeys(r.destination.number for r in recipients if r.destination and r.destination.number)
    offers: dict[str, Any] = {
        "mms_version": target.version,
        "transaction_id": f"{public_name(token, 'transaction')}@{local.domain}",
        "message_id": f"{public_name(token, 'message')}@{local.domain}",
        "date": now,
        "content_type": Verbatim("text/plain; charset=us-ascii"),
        "sender": originator and parse_address(originator.local_part()),
        "sender_header": originator and parse_address(originator.write(originator.domain or local.domain)),
        # Envelope-only recipients are Bcc; only a message for one alone may name it.
        "recipients": (parse_address(f"{next(iter(numbers))}/TYPE=PLMN"),) if len(numbers) == 1 else None,
    }
    for name in missing:
        if offers.get(name) is not None:
            values[name] = offers[name]
    return values
