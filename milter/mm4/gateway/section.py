"""What the sections of the configuration have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Section", "place"]


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, and nothing changes after it was read."""

    CHAPTERS: ClassVar[Mapping[str, str]] = {}
    """Headings of the example file, each by the key that it stands before."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, arbitrary_types_allowed=True)


def place(*path: str | int) -> str:
    """The place of a problem within what is validated, before its text: configfile finds the line by it."""
    return json.dumps(path) + "\x01"
