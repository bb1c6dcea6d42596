"""Log lines as key=value, in which nothing that a peer wrote can start a second line or a second key."""

from __future__ import annotations

import re

__all__ = ["logline"]

_PLAIN = re.compile(r"[A-Za-z0-9!#$%&()*+,./:;<=>?@\[\]^_{|}~-]+\Z")
_UNSAFE = re.compile(r"[^\x20-\x7e]")
_LONGEST = 200


def logline(**fields: object) -> str:
    """`key=value` pairs in the order given; None is left out, what is not plain stands in double quotes."""
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)


def _value(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    text = _UNSAFE.sub("?", text[:_LONGEST])
    return text if _PLAIN.match(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
