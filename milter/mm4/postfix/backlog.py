"""What keeps a REQ from being sent again: it still lies in Postfix's queue, or its peer is paused.

One look reads the whole queue (`postqueue -j`), in a thread; it answers for as many messages as are due.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..gateway.config import Config
from ..gateway.names import strip_via, via_peer
from ..protocol.address import parse_address
from .instance import Instance
from .paused import paused_peers

__all__ = ["Backlog", "read_backlog"]


class Backlog:
    """The mail on its way to peers, of `queue` as `postqueue -j` tells it, and the peers that are paused."""

    def __init__(self, queue: Iterable[dict[str, Any]], paused: Iterable[str] = ()) -> None:
        self.paused = frozenset(paused)
        self._addresses: dict[str, list[str]] = {}
        for message in queue:
            outward = [r["address"] for r in message["recipients"] if via_peer(r["address"])]
            if outward:
                self._addresses[message["queue_id"]] = outward

    def hinders(self, peer: str, recipient: str, queue_ids: Iterable[str | None]) -> str | None:
        """Why nothing is to be sent again to a recipient (an `Address.key`) whose mails had these queue ids.

        None where nothing hinders it: what is delivered to him has left the queue, whoever else is still in it.
        """
        if peer in self.paused:
            return f"{peer} is paused"
        for queue_id in queue_ids:
            for address in self._addresses.get(queue_id or "", ()):
                if parse_address(strip_via(address)).key == recipient:
                    return f"still in Postfix's queue as {queue_id}"
        return None


def read_backlog(config: Config) -> Backlog:
    """Look at this host's Postfix and at its paused peers. Blocks; raises PostfixError."""
    return Backlog(Instance(config.folders.postfix).queue(), paused_peers(config))
