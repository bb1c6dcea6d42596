"""Answers that are kept for a time, at most so many; safe for any number of threads."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Cache"]

V = TypeVar("V")


class Cache(Generic[V]):
    """Values by key, each until its time is over; of too many the one goes that was not asked for the longest."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> tuple[V] | None:
        """The value in a tuple, as it may be None itself; None where there is none, or no longer."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            until, value = found
            if until <= self._clock():
                del self._values[key]
                return None
            self._values.move_to_end(key)
            return (value,)

    def put(self, key: Hashable, value: V, seconds: float) -> None:
        """Keep a value for so long; not at all where that is no time."""
        if seconds <= 0:
            return
        with self._lock:
            self._values[key] = self._clock() + seconds, value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
