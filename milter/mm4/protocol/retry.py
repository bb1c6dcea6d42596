"""When a REQ without its RES is sent again, as values: how often, after which pause, after which errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

__all__ = ["TRANSIENT", "Retry"]

TRANSIENT: Mapping[str, str] = MappingProxyType(
    {
        # TS 23.140 8.4.4 names the codes and not what to do about them; what peers mean by them is observed.
        "Error-network-problem": "the peer's queue or storage failed (Mbuni and others write it so)",
        "Error-unspecified": "the peer does not say what failed, so it may pass",
    }
)
"""Request statuses after which the same REQ may yet be taken, each with its reason. All other errors speak of what
stands in the REQ or of who sent it, which is the same the next time."""

_LONGEST = timedelta(days=30)
"""Of a pause: a REQ that nobody has answered for a month is no news any more."""


@dataclass(frozen=True, slots=True)
class Retry:
    """What is done for one peer's RES: `timeout` in seconds, `limit` times that the REQ is sent again."""

    timeout: int
    limit: int

    @property
    def longest(self) -> timedelta:
        """The longest pause that there is."""
        return self.pause(self.limit)

    def pause(self, attempts: int) -> timedelta:
        """How long the RES may take after the REQ was sent again `attempts` times: doubled each time up to `limit`."""
        doubled = self.timeout * 2 ** min(attempts, self.limit)
        return timedelta(seconds=min(doubled, int(_LONGEST.total_seconds())))
