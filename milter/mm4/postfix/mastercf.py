"""master.cf as text: its services, their `-o` overrides, and one member put in front of an override's list.

Pure. Reads both spellings, `-o name=value` and `-o { name = value }`, with nested braces and over continuation lines
(master(5)); nothing but the inserted member changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from .cftext import logical_lines

__all__ = ["Override", "Service", "put_first", "services_of", "take_out"]

_FIELDS = 8
_OVERRIDE = re.compile(r"\{?\s*([^\s={}]+)\s*=\s*")


@dataclass(frozen=True, slots=True)
class Override:
    """One `-o`: the parameter, its value, and where in the file the value begins."""

    name: str
    value: str
    begins: int


@dataclass(frozen=True, slots=True)
class Service:
    """One service: name and type as written, the program, and its overrides in their order."""

    name: str
    type: str
    program: str
    line: int
    overrides: tuple[Override, ...]

    def value(self, name: str) -> str | None:
        """What the service sets `name` to (the last one holds); None where it does not."""
        return next((o.value for o in reversed(self.overrides) if o.name == name), None)


def services_of(text: str) -> list[Service]:
    """The services of master.cf in their order; what is no service line is passed over."""
    found = []
    for logical in logical_lines(text):
        words = _words(logical.text)
        if len(words) < _FIELDS:
            continue
        (_, name), (_, type_), *_ = words
        overrides = []
        for position, argument in _options(words[_FIELDS:]):
            match = _OVERRIDE.match(argument)
            if match is None:
                continue
            value = argument[match.end() :]
            if argument.startswith("{"):
                value = value.rstrip().removesuffix("}").rstrip()
            overrides.append(Override(match[1], value, logical.offset(position + match.end())))
        program = PurePath(words[_FIELDS - 1][1]).name
        found.append(Service(name, type_, program, logical.line, tuple(overrides)))
    return found


def _words(text: str) -> list[tuple[int, str]]:
    """Words with their positions; what stands in braces is one word."""
    found: list[tuple[int, str]] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        start, depth = position, 0
        while position < len(text) and (depth > 0 or not text[position].isspace()):
            depth += (text[position] == "{") - (text[position] == "}")
            position += 1
        found.append((start, text[start:position]))
    return found


def _options(words: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The arguments of `-o`, also where they stand right behind it."""
    found = []
    rest = iter(words)
    for position, word in rest:
        if word == "-o":
            following = next(rest, None)
            if following is not None:
                found.append(following)
        elif word.startswith("-o"):
            found.append((position + 2, word[2:]))
    return found


def put_first(text: str, override: Override, member: str) -> str:
    """`text` with `member` (without blanks) in front of an override's list. `take_out` is its exact inverse."""
    return f"{text[: override.begins]}{member}{',' if override.value else ''}{text[override.begins :]}"


def take_out(text: str, names: frozenset[str], member: str) -> str:
    """`text` without `member` in front of the lists of overrides of these names."""
    overrides = [o for service in services_of(text) for o in service.overrides if o.name in names]
    for override in sorted(overrides, key=lambda o: -o.begins):
        for written in (f"{member},", member):
            if override.value.startswith(written) and (written.endswith(",") or override.value == member):
                text = text[: override.begins] + text[override.begins + len(written) :]
                break
    return text
