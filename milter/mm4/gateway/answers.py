"""The RES to a REQ: to whom, from whom, and every byte of it.

Both ids are echoed as they stood. Everything we write is ASCII and every address of ours carries its domain,
so that Postfix changes nothing on the way. A RES is never sent outside the peer's domains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..protocol.address import Address, Kind, parse_address
from ..protocol.dialect import Dialect
from ..protocol.headers import join
from ..protocol.pdu import Pdu
from ..protocol.transaction import Answer
from ..protocol.values import Unreadable, read_id
from ..protocol.writer import Verbatim, write, write_value
from .entries import domain_of
from .lines import adapted
from .localside import Local, LocalSide
from .names import public_name, via
from .peer import Peer
from .routing import Side

__all__ = ["answer_address", "compose_answer", "mmsc_address", "restated", "written_fields"]


def answer_address(pdu: Pdu, mail_from: str, side: Side) -> str | None:
    """Where a RES goes: the originator system where one stands, else the first of Sender, MAIL FROM and the
    configured system address that lies in the peer's domains; None where no address does.
    """
    peer = side.peer
    if peer is None:
        return None
    named = pdu.get("originator_system")
    if isinstance(named, Address) and named.domain:
        return named.as_given() if _answerable(named.as_given(), peer) else None
    sender = pdu.get("sender_header")
    candidates = [sender.as_given() if isinstance(sender, Address) and sender.domain else None]
    envelope = parse_address(mail_from)
    if envelope.kind is not Kind.INVALID:
        candidates.append(envelope.as_given())
    candidates.append(peer.system_address)
    return next((c for c in candidates if c and _answerable(c, peer)), None)


def mmsc_address(pdu: Pdu, local: Local | LocalSide) -> str | None:
    """Where a peer's RES goes that an MMSC of ours asked for: its originator system, in the domain in which Postfix
    reaches it; None where it names none, or where no MMSC is configured.
    """
    named = pdu.get("originator_system")
    if not (pdu.ack_request and local.deliver_to and isinstance(named, Address) and named.domain):
        return None
    return f"{named.local_part()}@{domain_of(local.deliver_to)}"


def compose_answer(
    pdu: Pdu,
    status: str,
    text: str | None,
    rcpt_to: str,
    served: Iterable[str],
    side: Side,
    dialect: Dialect,
    token: str,
    now: datetime,
) -> Answer:
    """The RES to `pdu` from `side` with a request status, for `rcpt_to`; what it says beside is what the dialect's rows
    ask.

    `served` are the recipients of whom it speaks, by `Address.key`. The same arguments give the same bytes.
    """
    request = pdu.type or "MM4_forward.REQ"
    answer_type = dialect.answer_type(request) or "MM4_forward.RES"
    local = side.local
    system = parse_address(local.system_address)
    offers: dict[str, Any] = {
        "status_code": status,
        "sender": system,
        "sender_header": system,
        "originator_system": system,
        "recipients": Verbatim(rcpt_to),
        "request_recipients": tuple(parse_address(key) for key in served),
        "date": now,
        "subject": dialect.types[answer_type].written,
        "message_class": "Personal",
        "content_type": Verbatim("text/plain; charset=us-ascii"),
    }
    written = written_fields(answer_type, dialect, side.peer)
    values = {name: value for name, value in offers.items() if name in written}
    # Said wherever there is something to say, and a place for it.
    said: dict[str, Any] = {"transaction_id": _echo(pdu, "transaction_id"), "message_id": _echo(pdu, "message_id")}
    if side.peer is None or side.peer.res.status_text is not False:
        said["status_text"] = text
    values |= {name: value for name, value in said.items() if (answer_type, name) in dialect.row_of}
    lines = write(answer_type, values, dialect, partial=True)
    lines.append(("Message-ID", f"<{public_name(token, 'answer')}@{local.domain}>"))
    if "content_type" in written:
        lines.append(("MIME-Version", "1.0"))
    if side.peer is not None:
        lines = adapted(lines, side.peer, dialect, answer_type)
    mail_from = local.system_address if side.peer is None or side.peer.mail_from == "system" else ""
    to = rcpt_to if side.peer is None else via(rcpt_to, side.name)
    return Answer(to, mail_from, answer_type, status, join(lines, b""))


def written_fields(answer: str, dialect: Dialect, peer: Peer | None) -> frozenset[str]:
    """The fields of a RES that are written of our own accord: the dialect's, and as the peer's entry has it (`res`)."""
    if peer is None or not peer.res.model_fields_set:
        return dialect.written(answer)
    wanted = peer.res.model_dump(exclude_none=True)
    more = {name for name, yes in wanted.items() if yes and (answer, name) in dialect.row_of}
    return (dialect.written(answer) | more) - {name for name, yes in wanted.items() if not yes}


def restated(answer: Answer, status: str, text: str | None, dialect: Dialect) -> Answer:
    """A RES that was composed as Ok and held, with the status and the text that came for it.

    Its ids, and all else that the REQ asked for, stay to the byte.
    """
    row = dialect.row_of.get((answer.type, "status_text"))
    status_line = dialect.fields["status_code"].header + ": "
    lines = []
    for line in answer.message.decode("ascii").split("\r\n"):
        if not line.startswith(status_line):
            lines.append(line)
            continue
        lines.append(status_line + status)
        if text and row is not None:
            field = dialect.fields["status_text"]
            lines.append(f"{field.header}: {write_value(text, field, dialect)}".replace("\n", "\r\n"))
    return replace(answer, status=status, message="\r\n".join(lines).encode("ascii"))


def _answerable(address: str, peer: Peer) -> bool:
    # Postfix refuses a local part that begins with a dash: such an answer would wait in the queue for nothing.
    return domain_of(address) in peer.domains and not address.startswith("-")


def _echo(pdu: Pdu, name: str) -> Verbatim | None:
    """The id exactly as the peer wrote it; None where it cannot be written back."""
    for place in pdu.found.get(name, ()):
        text = place.raw.decode("latin-1")
        try:
            read_id(text)
        except Unreadable:
            continue
        return Verbatim(text)
    return None
