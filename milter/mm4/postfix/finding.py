"""What `mm4 check` says of one thing that it has looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `ok`, or what is wrong and what mends it."""

    check: str
    ok: bool
    text: str
    fix: str | None = None
    warning: bool = False

    def as_json(self) -> dict[str, Any]:
        """The object that `mm4 check --json` prints."""
        return asdict(self)
