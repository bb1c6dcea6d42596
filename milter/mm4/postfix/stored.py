"""What `mm4 check` reads in the store: whether it works, what is owed or was lost, and what should have left it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ..gateway.config import Config
from ..gateway.names import RESPONDER_DOMAIN
from ..protocol.errors import PostfixError, StoreError
from ..protocol.transaction import Direction
from ..store.retention import Ages
from ..store.store import Store
from .finding import Finding
from .handled import TOLD_FOR, handled, unknown
from .instance import Instance
from .mailqueue import tokens_of
from .purger import BEHIND

__all__ = ["stored"]

_OWED_MINUTES = 15
_MOST_OWED = 10_000
"""Owed acks that are looked at, the oldest."""
_NAMED = 5
"""Of them that are named."""
_LOST_FOR = timedelta(days=1)
"""How long a RES that came back is told of."""
_LOOKS = 20
"""At what is older than it may be: of so many bounded reads the first that finds what may go says enough."""


def stored(config: Config) -> Iterator[Finding]:
    """Everything that the store can tell."""
    try:
        with Store.open(config.store, migrate=False) as store:
            store.ping()
            yield Finding("store", True, "readable and writable")
            now = datetime.now(UTC)
            yield from _owed(config, store.owed_rows(now - timedelta(minutes=_OWED_MINUTES), _MOST_OWED))
            yield from _held(config, store, now)
            yield from _lost(store.lost_rows(now - _LOST_FOR, _MOST_OWED))
            yield from handled(store.notes(now - TOLD_FOR))
            yield from unknown(config, store)
            yield from _outdated(store, now, timedelta(seconds=config.retention))
    except StoreError as error:
        yield Finding("store", False, str(error), "mm4 store migrate, or start mm4 serve once: either makes the store")


def _owed(config: Config, owed: list[dict[str, Any]]) -> Iterator[Finding]:
    """Acks that are due for long: waiting in Postfix's queue is normal trouble, gone from it is an alarm.

    `owed` are the rows of `store.listing.owed_rows`.
    """
    if not owed:
        yield Finding("acks", True, f"none is due for more than {_OWED_MINUTES} minutes")
        return
    domains = [local.domain for local in config.local]
    queued: set[str] = set()
    try:
        for entry in Instance(config.folders.postfix).queue():
            # By token too: `postsuper -r` gives a message another queue id.
            queued |= {entry["queue_id"], *tokens_of(entry, domains)}
    except PostfixError as error:
        yield Finding("acks", False, f"{len(owed)} are due, and the queue cannot be read: {error}", "start Postfix")
        return
    gone = [row for row in owed if not {row["queue_id"], row["token"]} & queued]
    if waiting := len(owed) - len(gone):
        yield Finding(
            "acks", False, f"{waiting} wait in Postfix's queue for more than {_OWED_MINUTES} minutes",
            f"see mm4 queue; postqueue -s {RESPONDER_DOMAIN} tries them now",
        )  # fmt: skip
    if gone:
        named = ", ".join(f"{row['token']} (queue id {row['queue_id']}, from {row['peer']})" for row in gone[:_NAMED])
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        yield Finding(
            "acks", False, f"{len(gone)} messages asked for an ack and left the queue without one: Postfix refused "
            f"them at last, or somebody deleted them: {named}{more}",
            "look for the queue id in Postfix's log: delivered, then mm4 transactions answer TOKEN sends the RES; "
            "refused, then the peer still has it, and mm4 transactions forget --force TOKEN ends it", warning=True,
        )  # fmt: skip


def _held(config: Config, store: Store, now: datetime) -> Iterator[Finding]:
    """RES that wait for the word of an MMSC or a peer for longer than the peer of the message may take."""
    allowed = {name: timedelta(seconds=peer.ack.timeout) for name, peer in config.peers.items()}
    shortest = min(allowed.values(), default=timedelta())
    rows = store.held_rows(now - shortest, _MOST_OWED)
    late = [row for row in rows if now - row["recorded_at"] > allowed.get(row["peer"], shortest)]
    sides = (
        (Direction.IN, "the MMSC has not said what becomes of them", "see why the MMSC sends no RES: its log, and that "
         "it sends them here; answers: gateway in the peer's entry lets the gateway answer the next ones"),
        (Direction.OUT, "the peer has not answered", "see mm4 queue and the peer; ack.retry sends again, and "
         "on_bounce: res in local tells the MMSC at the end"),
    )  # fmt: skip
    for direction, who, cure in sides:
        of_side = [row for row in late if row["direction"] == direction]
        if of_side:
            first = of_side[0]
            yield Finding(
                "answers", False, f"{len(of_side)} RES wait for longer than ack.timeout, {who}; the oldest since "
                f"{first['recorded_at']:%Y-%m-%d %H:%M} UTC, peer {first['peer']}, token {first['token']}",
                f"{cure}; mm4 transactions show TOKEN tells what is known of one", warning=True,
            )  # fmt: skip


def _lost(lost: list[dict[str, Any]]) -> Iterator[Finding]:
    """RES that came back: the peer has delivered its message to us and does not know it. The rows of `lost_rows`."""
    if lost:
        first = lost[0]
        peers = ", ".join(sorted({row["peer"] for row in lost}))
        named = ", ".join(dict.fromkeys(row["token"] for row in lost[:_NAMED]))
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        yield Finding(
            "acks", False, f"{len(lost)} RES did not arrive within the last day, peer {peers}: {named}{more}; the "
            f"newest came back {first['at']:%Y-%m-%d %H:%M} UTC, {first['detail']}",
            "see that the peer takes mail at its next_hop; mm4 transactions answer TOKEN then sends the RES again",
            warning=True,
        )  # fmt: skip


def _outdated(store: Store, now: datetime, retention: timedelta) -> Iterator[Finding]:
    """Messages that were to go a day ago and more: their purge does not keep up, or does not run."""
    ages = Ages.of(now, retention)
    late = Ages(now, ages.settled - BEHIND, ages.open - BEHIND)
    after: tuple[Any, ...] | None = None
    for _ in range(_LOOKS):
        found = store.outdated("messages", late, after)
        if found.keys and (first := store.message(found.keys[0])):
            yield Finding(
                "retention", False, f"messages of {first.recorded_at:%Y-%m-%d} are still there, and none has to be "
                f"from before {ages.settled:%Y-%m-%d}: more comes in than goes, or mm4 serve did not run",
                "nothing where the date gets nearer from day to day (it hurries meanwhile); else see docs/scale.md, "
                "store: rows", warning=True,
            )  # fmt: skip
            return
        if found.after is None:
            return
        after = found.after
