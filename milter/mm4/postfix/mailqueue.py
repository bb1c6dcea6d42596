"""The mail queue as an MM4 operator sees it: beside each recipient the peer, the message and what is known of it.

Postfix tells the queue (`postqueue -j`), the store tells the rest; both are read a piece at a time, so that a queue of
10^5 messages needs no memory. A message is known by the token in its addresses, which stays when `postsuper -r` gives
it another queue id, and otherwise by its queue id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

from ..gateway.names import RESPONDER_DOMAIN, TOKEN, split_token, strip_via, via_peer
from ..protocol.address import parse_address

__all__ = ["Entry", "Knowledge", "named", "queued", "tokens_of"]

_TOGETHER = 200
"""Messages that the store is asked about at once."""


class Knowledge(Protocol):
    """What is needed of `mm4.store.Store`."""

    def by_queue(self, tokens: list[str], queue_ids: list[str]) -> list[dict[str, Any]]:
        """Rows of messages by token or queue id, one a transaction."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipient of one message in the queue. What is not known is None."""

    queue_id: str
    queue: str
    """Postfix's name of it: active, deferred, hold, incoming, maildrop."""
    arrival: datetime
    size: int
    sender: str
    recipient: str
    """As the next hop sees it; a token's address as it stands."""
    address: str
    """As Postfix has it."""
    kind: str
    """`message`, `answer` (a RES of ours on its way), `token` (the responder has to learn that the message is kept,
    and submits its RES, or the mail of a further side), `bounce` (on its way home to the responder)."""
    peer: str | None
    token: str | None
    message_id: str | None
    transaction_id: str | None
    state: str | None
    reason: str | None
    """Why the last try failed."""

    def as_json(self) -> dict[str, Any]:
        """The object that `mm4 queue --json` prints."""
        return {**asdict(self), "arrival": self.arrival.isoformat()}


def queued(
    raw: Iterable[dict[str, Any]], store: Knowledge | None, domains: Collection[str]
) -> Iterator[Entry]:
    """What `postqueue -j` tells (as objects), one entry a recipient; `domains` are our own, where bounces come home.

    Without a store only what the addresses tell is known.
    """
    pending = iter(raw)
    while part := list(islice(pending, _TOGETHER)):
        tokens = {token for message in part for token in tokens_of(message, domains)}
        rows = store.by_queue(sorted(tokens), [message["queue_id"] for message in part]) if store else []
        for message in part:
            yield from _entries(message, rows, domains)


def named(entries: Iterable[Entry], identifier: str, tokens: Collection[str]) -> Iterator[Entry]:
    """Those of the entries that an identifier names: queue id, token, message id or transaction id.

    `tokens` are those of the messages that the store knows by it.
    """
    for entry in entries:
        if identifier in (entry.queue_id, entry.token, entry.message_id, entry.transaction_id) or entry.token in tokens:
            yield entry


def tokens_of(message: dict[str, Any], domains: Collection[str]) -> list[str]:
    """The tokens in the addresses of a message in the queue, the responder's first."""
    addresses = [recipient["address"] for recipient in message["recipients"]]
    found = [_token(address, (RESPONDER_DOMAIN,)) for address in addresses]
    found += [_token(address, domains) for address in (message["sender"], *addresses)]
    return [token for token in dict.fromkeys(found) if token is not None]


def _token(address: str, domains: Collection[str]) -> str | None:
    local, _, domain = address.lower().rpartition("@")
    token = split_token(local) or local
    return token if domain in domains and TOKEN.match(token) else None


def _entries(message: dict[str, Any], rows: list[dict[str, Any]], domains: Collection[str]) -> Iterator[Entry]:
    queue_id = message["queue_id"]
    tokens = tokens_of(message, domains)
    known = [row for row in rows if row["token"] in tokens] or [row for row in rows if row["queue_id"] == queue_id]
    answer = False
    if not known:
        known = [row for row in rows if row["answer_queue_id"] == queue_id]
        answer = bool(known)
    for recipient in message["recipients"]:
        address = recipient["address"]
        shown = strip_via(address)
        home = _token(address, domains)
        token = _token(address, (RESPONDER_DOMAIN,))
        row = _row([row for row in known if row["token"] == token] or known, shown)
        yield Entry(
            queue_id=queue_id,
            queue=message["queue_name"],
            arrival=datetime.fromtimestamp(message["arrival_time"], UTC),
            size=message["message_size"],
            sender=message["sender"],
            recipient=shown,
            address=address,
            kind="token" if token else "bounce" if home else "answer" if answer else "message",
            peer=via_peer(address) or row.get("peer"),
            token=token or home or row.get("token") or (tokens[0] if tokens else None),
            message_id=row.get("message_id"),
            transaction_id=row.get("transaction_id"),
            state=row.get("state"),
            reason=recipient.get("delay_reason"),
        )


def _row(known: list[dict[str, Any]], shown: str) -> dict[str, Any]:
    """Of the transactions of a message that of this recipient, or the first where none is his."""
    if len(known) > 1:
        key = parse_address(shown).key
        known = [row for row in known if row["recipient"] == key] or known
    return known[0] if known else {}
