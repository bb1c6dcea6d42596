"""A YAML document as plain values, and the line of every key and item in it.

pydantic knows what is wrong with a value, the YAML node tree knows where it stands; this module brings the two
together, for the configuration and for dialect tables. It reads text that its caller has read from a file, so
nothing here touches a disk. What is wrong comes as `file:line: key: what is expected`, all of it at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .errors import ConfigError

__all__ = ["Document", "Path", "dotted", "explain", "models", "shown", "suggest"]

Path: TypeAlias = tuple[str | int, ...]

_EXPECTED = {
    "missing": "has to be given",
    "extra_forbidden": "unknown key",
    "bool_type": "expects yes or no",
    "bool_parsing": "expects yes or no",
    "int_type": "expects a whole number",
    "int_parsing": "expects a whole number",
    "float_type": "expects a number",
    "float_parsing": "expects a number",
    "list_type": "expects a list",
    "dict_type": "expects keys with values",
    "model_type": "expects keys with values",
    "model_attributes_type": "expects keys with values",
    "string_type": "expects a quoted string",
}

_MOST_VALUES = 100_000
"""Values that a file may hold; aliases of aliases would multiply without end."""


class Document:
    """The text of a file as `value`; what is wrong with its keys and scalars already is in `problems`.

    `name` is the file's name for messages. Raises `error` where the text is no YAML.
    """

    def __init__(self, text: str, name: str, error: type[ConfigError] = ConfigError) -> None:
        self.name = name
        self.lines: dict[Path, int] = {(): 1}
        self.problems: list[str] = []
        self.value: Any = None
        self._error = error
        self._values = 0
        self._own_keys: dict[int, frozenset[int]] = {}
        try:
            self.value = self._load(text)
        except yaml.reader.ReaderError as wrong:
            line = text.count("\n", 0, wrong.position) + 1
            raise error(f"{name}:{line}: not readable as YAML: a character that is no text") from None
        except yaml.YAMLError as wrong:
            mark = getattr(wrong, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            what = getattr(wrong, "problem", None) or str(wrong).splitlines()[0]
            raise error(f"{name}:{line}: not readable as YAML: {what}") from None
        except RecursionError:
            raise error(f"{name}:1: not readable as YAML: nested too deeply") from None

    def _load(self, text: str) -> Any:
        # Not libyaml's: what an operator wrote may be anything, and its parser recurses without a bound.
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            return self._build(loader, node, ()) if node is not None else None
        finally:
            loader.dispose()

    def _build(self, loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._error(f"{self.name}:{self.line(path)}: holds more than {_MOST_VALUES} values")
        if isinstance(node, yaml.SequenceNode):
            return [self._build(loader, item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, path)
        return self._scalar(loader, node, path)

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        # Keys that come from a merge (<<) stand first and may be said again.
        own = self._own_keys.setdefault(id(node), frozenset(id(key) for key, _ in node.value))
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        said: set[str] = set()
        for key_node, value_node in node.value:
            key = str(self._scalar(loader, key_node, path))
            line = key_node.start_mark.line + 1
            if key in said:
                first = self.lines[(*path, key)]
                self.problems.append(
                    f"{self.name}:{line}: {dotted((*path, key))}: stands here twice (line {first}); keep one"
                )
                continue
            if id(key_node) in own:
                said.add(key)
            self.lines[(*path, key)] = line
            result[key] = self._build(loader, value_node, (*path, key))
        return result

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
        try:
            return loader.construct_object(node)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            # YAML took it for a date or a number, and it is none (2026-13-45).
            kind = node.tag.rpartition(":")[2]
            line = node.start_mark.line + 1
            found = shown(node.value)
            self.problems.append(f"{self.name}:{line}: {dotted(path)}: {found} is no {kind}; put it in quotes")
            return str(node.value)

    def line(self, path: Path) -> int:
        """The line of the longest part of `path` that stands in the file."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def problem(self, path: Path, what: str) -> str:
        """`file:line: key: what`."""
        return f"{self.name}:{self.line(path)}: {dotted(path)}: {what}"

    def ordered(self, problems: Iterable[str]) -> list[str]:
        """Problems of this file in the order of its lines."""
        return sorted(problems, key=lambda p: int(p.removeprefix(f"{self.name}:").partition(":")[0]))


def dotted(path: Path) -> str:
    """`peers.tyntec.networks[0]`, as the operator would say it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"


def explain(
    error: ValidationError, document: Document, model: type[BaseModel], in_file: Callable[[Path], Path] = lambda p: p
) -> Iterator[str]:
    """Every problem that pydantic found in `document.value` with `model`, as `file:line: key: what`.

    `in_file` turns pydantic's place into that of the file, where the two differ. A ValueError of a validator
    may hold several problems, parted by NUL, each with its own place before a SOH, as JSON.
    """
    for detail in error.errors(include_url=False):
        path = in_file(detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        for part in message.split("\x00"):
            where, mark, what = part.partition("\x01")
            inner = in_file((*detail["loc"], *json.loads(where))) if mark else path
            yield document.problem(inner, _what(detail, what if mark else part, inner, model))


def _what(detail: Any, message: str, path: Path, model: type[BaseModel]) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return "unknown key" + suggest(str(path[-1]), _keys_at(path[:-1], model), "known here")
    if kind == "literal_error":
        return f"expects {detail['ctx']['expected']}, found {shown(detail['input'])}"
    if kind == "too_short":
        return "needs at least one entry"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return message
    return expected if kind == "missing" else f"{expected}, found {shown(detail['input'])}"


def suggest(word: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """`; did you mean domain?`, or what there is where nothing is close; empty where nothing is known."""
    words = list(known)
    close = difflib.get_close_matches(word, words, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; {otherwise}: {', '.join(words)}" if words else ""


def shown(value: object) -> str:
    """A value in a message: one line, not too long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."


def _keys_at(path: Path, model: type[BaseModel]) -> list[str]:
    """The keys that the schema knows at `path`; where several fit there, those of all that know the way."""
    found = [model]
    for part in path:
        below = [_keys_of(one)[part].annotation for one in found if part in _keys_of(one)]
        if not isinstance(part, int) and below:  # else an index, or a peer's own name
            found = list(dict.fromkeys(one for annotation in below for one in models(annotation)))
    return list(dict.fromkeys(str(key) for one in found for key in _keys_of(one)))


def _keys_of(model: type[BaseModel]) -> dict[str | int, FieldInfo]:
    """The keys of a section as the file writes them."""
    return {info.alias or name: info for name, info in model.model_fields.items() if not info.exclude}


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas that a key's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models(argument)
