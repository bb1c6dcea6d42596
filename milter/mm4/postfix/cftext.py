"""Text of Postfix's configuration files: logical lines, lists with braces, and the block that is ours.

Pure. Postfix joins a line that begins with white space to the one before, over comments and empty lines
between them (postconf(5), master(5)); offsets here point into the file's own text, so that an edit touches
nothing beside itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Logical", "block_of", "empty_block", "insert_block", "list_items", "logical_lines", "remove_block"]

_BEGIN = "# >>> mm4: written by `mm4 postfix wire`, taken out by `mm4 postfix unwire`"
_END = "# <<< mm4"
_CUT = " (the line before had no end)"
_BLOCK = re.compile(
    rf"(?P<cut>\n)?^(?P<begin>{re.escape(_BEGIN)}(?P<mark>{re.escape(_CUT)})?\n).*?^{_END}\n", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Logical:
    """One logical line: its physical pieces joined, comments left out.

    `pieces` are (offset in the file, text) with their line ends; `line` is the number of the first, from 1.
    """

    pieces: tuple[tuple[int, str], ...]
    line: int

    @property
    def text(self) -> str:
        """The pieces joined."""
        return "".join(text for _, text in self.pieces)

    def offset(self, position: int) -> int:
        """Where in the file the character at `position` of `text` stands; the end of the last piece for its end."""
        for offset, text in self.pieces:
            if position < len(text):
                return offset + position
            position -= len(text)
        last, text = self.pieces[-1]
        return last + len(text)


def logical_lines(text: str) -> list[Logical]:
    """The logical lines of main.cf or master.cf in their order."""
    found: list[tuple[int, list[tuple[int, str]]]] = []
    offset = 0
    for number, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            if line[0].isspace() and found:
                found[-1][1].append((offset, line))
            else:
                found.append((number, [(offset, line)]))
        offset += len(line)
    return [Logical(tuple(pieces), number) for number, pieces in found]


def list_items(value: str) -> list[str]:
    """The members of a list value: separated by commas and white space, what stands in braces is one."""
    found, depth, current = [], 0, ""
    for character in value:
        depth += (character == "{") - (character == "}")
        if depth <= 0 and (character in "," or character.isspace()):
            found.append(current)
            current = ""
        else:
            current += character
    return [item for item in [*found, current] if item]


def insert_block(text: str, lines: Iterable[str]) -> str:
    """`text` with our block where one is, else behind it; `remove_block` is its exact inverse."""
    body = "\n".join(lines).strip("\n")
    match = _BLOCK.search(text)
    if match is not None:
        head, rest = text[: match.end("begin")], text[match.end() :]
        return f"{head}{body}\n{_END}\n{rest}"
    cut = bool(text) and not text.endswith("\n")
    return f"{text}{chr(10) if cut else ''}{_BEGIN}{_CUT if cut else ''}\n{body}\n{_END}\n"


def empty_block(text: str) -> str:
    """`text` with nothing in our block, which keeps its place; as it is where there is none."""
    match = _BLOCK.search(text)
    return text if match is None else f"{text[: match.end('begin')]}{_END}\n{text[match.end() :]}"


def remove_block(text: str) -> str:
    """`text` without our block; as it is where there is none."""
    match = _BLOCK.search(text)
    if match is None:
        return text
    # The line end before the block is ours only where it was missing.
    start = match.start() if match["mark"] or not match["cut"] else match.start() + 1
    return text[:start] + text[match.end() :]


def block_of(text: str) -> str | None:
    """Our block as it stands there; None where there is none."""
    match = _BLOCK.search(text)
    return match[0].lstrip("\n") if match else None
