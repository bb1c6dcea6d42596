"""How the C library holds memory in processes that run for long and handle messages one after the other."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["settle"]

_SETTINGS = (
    # malloc.h: M_ARENA_MAX. One heap for all threads: with one for a few of them each, memory grows for long.
    (-8, 1),
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, bytes. What a read of a large message takes is used again for the next one;
    # given back to the system, it costs a fault for each page, which is most of what such a read costs.
    (-3, 1 << 20),
    (-1, 4 << 20),
)


def settle() -> None:
    """Have this process do so from now on. Another C library than GNU's may do nothing."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter, value in _SETTINGS:
            library.mallopt(parameter, value)
