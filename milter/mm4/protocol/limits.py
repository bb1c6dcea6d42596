"""Limits over time, as arithmetic: how far one is used, and what one more message makes of it.

What is remembered of a limit is a moment and a count, which the store keeps for all processes and hosts; who asks
brings the clock. Once the moment has passed nothing needs to be remembered any more, for all kinds alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

__all__ = ["Bucket", "Limit", "Quota", "Repetition", "Standing", "Taken", "take"]


_APART = timedelta(minutes=1)
"""How far the clocks of hosts, and the moments at which processes looked at theirs, may lie apart."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a limit is used: `until` a moment it holds, `count` is what was counted."""

    until: datetime
    count: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: `burst` messages at once, then one every `interval` seconds.

    What is kept is the moment at which it is full again (the generic cell rate algorithm, ITU-T I.371).
    """

    key: str
    name: str
    interval: float
    burst: int

    def after(self, standing: Standing | None, now: datetime) -> Standing | None:
        """How far it is used with one message more; None where that is over it."""
        full = now + timedelta(seconds=self.interval * self.burst)
        # No bucket takes longer to fill than from empty: far beyond that the clock was set back, or the limit changed.
        begun = standing.until if standing and now < standing.until <= full + _APART else now
        until = begun + timedelta(seconds=self.interval)
        return Standing(until) if until <= full else None


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `most` messages until a moment that is the same for all of them, the end of the day."""

    key: str
    name: str
    most: int
    until: datetime

    def after(self, standing: Standing | None, now: datetime) -> Standing | None:
        """How far it is used with one message more; None where that is over it."""
        # Somebody's clock may have passed midnight already.
        if standing is None or not now < standing.until <= self.until + timedelta(days=1):
            standing = Standing(self.until)
        count = standing.count + 1
        return Standing(standing.until, count) if count <= self.most else None


@dataclass(frozen=True, slots=True)
class Repetition:
    """How often the same came within `window` seconds of the first: counted and never over."""

    key: str
    name: str
    window: int

    def after(self, standing: Standing | None, now: datetime) -> Standing:
        """How often it came, with one more."""
        end = now + timedelta(seconds=self.window)
        if standing is None or not now < standing.until <= end + _APART:
            return Standing(end, 1)
        return Standing(standing.until, standing.count + 1)


Limit = Bucket | Quota | Repetition


@dataclass(frozen=True, slots=True)
class Taken:
    """What several limits say of one message.

    `over` names the first that it would be over: then it counts for none. `copies` is how often its content came.
    """

    over: str | None = None
    copies: int = 0
    kept: Mapping[str, Standing] = field(default_factory=dict)
    """What is to be remembered, by key."""


def take(limits: Sequence[Limit], standings: Mapping[str, Standing], now: datetime) -> Taken:
    """One message more for all of the limits, or for none where it is over one of them."""
    kept: dict[str, Standing] = {}
    copies = 0
    for limit in limits:
        after = limit.after(standings.get(limit.key), now)
        if after is None:
            return Taken(over=limit.name)
        kept[limit.key] = after
        if isinstance(limit, Repetition):
            copies = after.count
    return Taken(None, copies, kept)
