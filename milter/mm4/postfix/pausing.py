"""Pausing one peer: Postfix defers what goes to its next hop, everything else flows.

The peer's row in mm4's transport table leads to `retry` instead of `mm4-out`, so that Postfix keeps each mail with the
reason that the operator paused it, and asks nobody. A reload makes Postfix read the table; no session is cut. Not
`defer_transports`, which would hold all peers: they share one transport. Not `postsuper -h`, which would hold only what
is in the queue by now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from ..gateway.config import Config
from ..gateway.names import via_peer
from . import maps
from .instance import Instance
from .paused import note, paused_peers, strike

__all__ = ["pause", "resume"]

_ONE_BY_ONE = 500
"""Messages that are tried one by one, a few milliseconds each; where more wait, everything is tried at once."""
_ROUNDS = 5


def pause(config: Config, name: str, now: datetime | None = None) -> datetime:
    """Pause a peer of the configuration; gives since when it is paused, which may be earlier.

    Raises PostfixError where the table has no row of it, cannot be written, or Postfix does not take it: then the
    peer is not paused.
    """
    since = paused_peers(config).get(name)
    at = since or now or datetime.now(UTC)
    # Noted first: whoever writes the tables meanwhile pauses it too.
    note(config, name, at)
    try:
        _turn(config, name, paused=True)
    except BaseException:
        if since is None:
            strike(config, name)
        raise
    return at


def resume(config: Config, name: str, sleep: Callable[[float], None] = time.sleep) -> int:
    """Let a peer's mail flow again, what waits at once; gives how many messages waited. Raises PostfixError."""
    strike(config, name)
    if name not in config.peers:
        return 0
    _turn(config, name, paused=False)
    instance = Instance(config.folders.postfix)
    first = 0
    for turn in range(_ROUNDS):
        waiting = [queue_id for queue_id, reason in _deferred(instance, name) if turn == 0 or maps.PAUSED in reason]
        if turn == 0:
            first = len(waiting)
        if not waiting:
            break
        if len(waiting) > _ONE_BY_ONE:
            instance.deliver_all()
        else:
            for queue_id in waiting:
                instance.deliver(queue_id)
        # A resolver that had not yet heard of the new table may defer some once more, with the old reason.
        sleep(1.0)
    return first


def _turn(config: Config, name: str, *, paused: bool) -> None:
    instance = Instance(config.folders.postfix)
    maps.turn(config, maps.folder_of(config), name, paused=paused)
    # Also where the table was right already: an earlier call may have ended between the two.
    if instance.running():
        instance.reload()


def _deferred(instance: Instance, name: str) -> list[tuple[str, str]]:
    """Queue id and reason of what waits for the peer; of one that waits for several recipients, once."""
    found = {}
    for entry in instance.queue():
        for recipient in entry["recipients"]:
            if entry["queue_name"] == "deferred" and via_peer(recipient["address"]) == name:
                found[entry["queue_id"]] = recipient.get("delay_reason", "")
    return list(found.items())
