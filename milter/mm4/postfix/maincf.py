"""main.cf as text: what a parameter is set to and on which line, and one member put in front of its list.

Pure. Nothing is normalised: an operator's own spelling, comments, variables and continuation lines stay, which
`postconf -e` would not grant (it writes the file anew, its owner, mode and symbolic link too).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .cftext import Logical, logical_lines

__all__ = ["Setting", "put_first", "settings_of", "take_out"]

_SETTING = re.compile(r"([^\s=#][^\s=]*)\s*=\s*")


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter's definition. Offsets are into the file: behind the `=`, and where its value begins."""

    name: str
    value: str
    line: int
    behind_equals: int
    begins: int


def settings_of(text: str) -> dict[str, Setting]:
    """Every parameter that main.cf sets; of several definitions the last, which is the one that holds."""
    return {found.name: found for logical in logical_lines(text) if (found := _setting(logical)) is not None}


def _setting(logical: Logical) -> Setting | None:
    text = logical.text
    match = _SETTING.match(text)
    if match is None:
        return None
    equals = text.index("=") + 1
    return Setting(
        match[1], text[match.end() :].strip(), logical.line, logical.offset(equals - 1) + 1, logical.offset(match.end())
    )


def put_first(text: str, name: str, member: str) -> str:
    """`text` with `member` in front of the list that `name` has there. Raises KeyError where it is not set.

    `take_out` is its exact inverse.
    """
    setting = settings_of(text)[name]
    if setting.value:
        return f"{text[: setting.begins]}{member}, {text[setting.begins :]}"
    return f"{text[: setting.behind_equals]} {member}{text[setting.behind_equals :]}"


def take_out(text: str, name: str, member: str) -> str:
    """`text` without the `member` that `put_first` gave to `name`; as it is where it is not there any more."""
    setting = settings_of(text).get(name)
    if setting is None:
        return text
    if setting.value == member:
        behind = setting.behind_equals
        if text[behind : setting.begins + len(member)] == f" {member}":
            return text[:behind] + text[behind + 1 + len(member) :]
        return text[: setting.begins] + text[setting.begins + len(member) :]
    # Where an operator has put something in front of it since, it may stand further on.
    for found in re.finditer(rf"{re.escape(member)}(, |,?\s*)", text[setting.begins :]):
        start = setting.begins + found.start()
        logical = next(part for part in logical_lines(text) if part.line == setting.line)
        if any(offset <= start < offset + len(piece) for offset, piece in logical.pieces):
            return text[:start] + text[setting.begins + found.end() :]
    return text
