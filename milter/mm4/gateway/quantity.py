"""Sizes and durations as the configuration writes them: one grammar each.

A size is a whole number of bytes on the wire with B, kB, MB or GB (powers of ten); a duration is a whole
number with s, m, h or d.
"""

from __future__ import annotations

import re

__all__ = ["parse_duration", "parse_size"]

_SIZE = re.compile(r"(\d{1,12})\s*(B|kB|MB|GB)\Z", re.IGNORECASE)
_SIZE_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_DURATION = re.compile(r"(\d{1,9})\s*(s|m|h|d)\Z")
_DURATION_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(text: object) -> int:
    """`1MB` to 1000000 bytes. Raises ValueError that says what is expected."""
    match = _SIZE.match(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError("a size is a whole number with B, kB, MB or GB, for example 1MB (10^6 bytes on the wire)")
    return int(match[1]) * _SIZE_UNIT[match[2].lower()]


def parse_duration(text: object) -> int:
    """`10m` to 600 seconds. Raises ValueError that says what is expected."""
    match = _DURATION.match(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError("a duration is a whole number with s, m, h or d, for example 10m")
    return int(match[1]) * _DURATION_UNIT[match[2]]
