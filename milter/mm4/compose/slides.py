"""The SMIL of an MMS: slides of a picture or video, a text and a sound, or one that was given, checked.

The subset is that of OMA MMS Conformance 1.3: one layout with the regions Image and Text, one <par> a slide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape, unescape
from urllib.parse import unquote
from xml.parsers import expat

from ..protocol.errors import UsageError
from .part import Part

__all__ = ["checked", "slides", "smil"]

_WIDTH, _HEIGHT, _TEXT_HEIGHT = 320, 480, 160
_SECONDS = 10
"""How long a slide stands that has no sound and no film, whose own end would end it."""

# What each kind of media takes of a slide: a slide shows one picture or film, one text, and plays one sound.
_TAKES = {"image": {"picture"}, "video": {"picture", "sound"}, "audio": {"sound"}, "text": {"text"}}
_ELEMENTS = {"image": ("img", "Image"), "video": ("video", "Image"), "audio": ("audio", None), "text": ("text", "Text")}
_SOURCE = re.compile(r"""(?P<before>\bsrc\s*=\s*)(?P<quote>["'])(?P<value>.*?)(?P=quote)""", re.DOTALL)


def slides(parts: Sequence[Part]) -> list[list[int]]:
    """The parts by slide, as indexes, in order; what cannot be shown (a vCard, a PDF) is on none and only attached.

    A part goes on the last slide while there is room: a picture and the text before or behind it share one.
    """
    made: list[list[int]] = []
    taken: set[str] = set()
    for index, part in enumerate(parts):
        takes = _TAKES.get(part.kind, set())
        if not takes or (part.kind == "text" and part.media_type.lower() != "text/plain"):
            continue
        if not made or taken & takes:
            made.append([])
            taken = set()
        made[-1].append(index)
        taken |= takes
    return made


def smil(parts: Sequence[Part], names: Sequence[str]) -> str | None:
    """A SMIL that shows the parts under these names; None where none of them can be shown."""
    shown = slides(parts)
    if not shown:
        return None
    kinds = {parts[index].kind for slide in shown for index in slide}
    pictures = bool(kinds & {"image", "video"})
    text_top = _HEIGHT - _TEXT_HEIGHT if pictures else 0
    regions = []
    if pictures:
        regions.append(_region("Image", 0, text_top if "text" in kinds else _HEIGHT, "meet"))
    if "text" in kinds:
        regions.append(_region("Text", text_top, _HEIGHT - text_top, "scroll"))
    bodies = []
    for slide in shown:
        timed = any(parts[index].kind in ("audio", "video") for index in slide)
        duration = "" if timed else f' dur="{_SECONDS}s"'
        bodies.append(f"<par{duration}>{''.join(_media(parts[index], names[index]) for index in slide)}</par>")
    layout = f'<layout><root-layout width="{_WIDTH}" height="{_HEIGHT}"/>{"".join(regions)}</layout>'
    return f"<smil><head>{layout}</head><body>{''.join(bodies)}</body></smil>"


def _region(name: str, top: int, height: int, fit: str) -> str:
    return f'<region id="{name}" left="0" top="{top}" width="{_WIDTH}" height="{height}" fit="{fit}"/>'


def _media(part: Part, name: str) -> str:
    element, region = _ELEMENTS[part.kind]
    where = f' region="{region}"' if region else ""
    return f'<{element} src="cid:{escape(name)}"{where}/>'


def checked(text: str, parts: Sequence[Part], names: Sequence[str]) -> str:
    """A SMIL that was given, each `src` of which names a part by `cid:`, its name, or the name that it goes out under.

    Where a part goes out under another name than the SMIL has, the `src` becomes that name; all else stays. Raises
    UsageError for what is no SMIL, and for what it names and is not there.
    """
    # A part's own name goes before the name that another goes out under.
    known = {name: name for name in names}
    known |= {part.name: name for part, name in reversed(list(zip(parts, names, strict=True)))}
    sources = _sources(text)
    found = {source: known.get(_name(source)) for source in sources}
    missing = [source for source, name in found.items() if name is None]
    if missing:
        raise UsageError(
            f"the SMIL shows {', '.join(missing)}, which is not attached; there is: {', '.join(p.name for p in parts)}"
        )
    renamed = {source: name for source, name in found.items() if name and name != _name(source)}
    return _SOURCE.sub(lambda match: _renamed(match, renamed), text) if renamed else text


def _name(source: str) -> str:
    plain = unquote(source)
    return plain[4:] if plain[:4].lower() == "cid:" else plain.removeprefix("./")


def _renamed(match: re.Match[str], renamed: Mapping[str, str]) -> str:
    name = renamed.get(unescape(match["value"]))
    return match[0] if name is None else f"{match['before']}{match['quote']}cid:{name}{match['quote']}"


def _sources(text: str) -> list[str]:
    """Every `src` in the order in which they stand, each once."""
    found: dict[str, None] = {}
    root: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if not root:
            root.append(name)
        if "src" in attributes:
            found[attributes["src"]] = None

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, UnicodeError) as error:
        raise UsageError(f"the SMIL is no well-formed XML: {error}") from None
    if root[0].rpartition(":")[2] != "smil":
        raise UsageError(f"the SMIL begins with <{root[0]}> where <smil> has to stand")
    return list(found)
