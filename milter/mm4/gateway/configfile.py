"""From YAML text to `Config`: every problem with file, line, key and what is expected.

pydantic knows what is wrong, the YAML node tree knows where; this module brings the two together. It reads
text that its caller has read from a file, so nothing here touches a disk. All problems are told at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from ..protocol.dialect import builtin_names
from ..protocol.errors import ConfigError
from .config import Config

__all__ = ["origins", "parse_config", "place"]

Path: TypeAlias = tuple[str | int, ...]

_EXPECTED = {
    "missing": "has to be given",
    "extra_forbidden": "unknown key",
    "bool_type": "expects yes or no",
    "bool_parsing": "expects yes or no",
    "int_type": "expects a whole number",
    "int_parsing": "expects a whole number",
    "list_type": "expects a list",
    "dict_type": "expects keys with values",
    "model_type": "expects keys with values",
    "model_attributes_type": "expects keys with values",
    "string_type": "expects a quoted string",
}


_MOST_VALUES = 100_000
"""Values that a file may hold; aliases of aliases would multiply without end."""


class _Tree:
    """The YAML document as plain values, and the line of every key and item in it."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {(): 1}
        self.problems: list[str] = []
        self.value: Any = None
        self._values = 0
        self._own_keys: dict[int, frozenset[int]] = {}
        try:
            self.value = self._load(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{name}:{line}: not readable as YAML: a character that is no text") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            what = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ConfigError(f"{name}:{line}: not readable as YAML: {what}") from None
        except RecursionError:
            raise ConfigError(f"{name}:1: not readable as YAML: nested too deeply") from None

    def _load(self, text: str) -> Any:
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
            raise ConfigError(f"{self.name}:{self.line(path)}: holds more than {_MOST_VALUES} values")
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
            found = _shown(node.value)
            self.problems.append(f"{self.name}:{line}: {dotted(path)}: {found} is no {kind}; put it in quotes")
            return str(node.value)

    def line(self, path: Path) -> int:
        """The line of the longest part of `path` that stands in the file."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def dotted(path: Path) -> str:
    """`peers.tyntec.networks[0]`, as the operator would say it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"


def parse_config(text: str, name: str) -> Config:
    """The configuration in `text`; `name` is the file's name for messages and the base of relative paths.

    Raises ConfigError with one line a problem: file, line, key, what is expected.
    """
    tree = _Tree(text, name)
    if not isinstance(tree.value, dict):
        raise ConfigError([*tree.problems, f"{name}:1: expects keys with values: local, peers, routes, ..."])
    problems = list(tree.problems)
    config = None
    try:
        config = Config.model_validate(tree.value)
    except ValidationError as error:
        problems += _explain(error, tree)
    problems += _unknown_dialects(tree)
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda p: int(p.removeprefix(f"{name}:").partition(":")[0])))
    return _absolute(config, PurePath(name).parent)


def place(text: str, name: str, key: str) -> str:
    """`file:line: key`, for what turns out wrong with a value only when it is used."""
    tree = _Tree(text, name)
    path = _in_file(tuple(int(p) if p.isdigit() else p for p in key.split(".")), tree)
    return f"{name}:{tree.line(path)}: {dotted(path)}"


def _unknown_dialects(tree: _Tree) -> Iterator[str]:
    peers = tree.value.get("peers") or {}
    for peer, values in peers.items() if isinstance(peers, dict) else ():
        dialect = values.get("dialect") if isinstance(values, dict) else None
        if isinstance(dialect, str) and dialect not in builtin_names():
            path = ("peers", peer, "dialect")
            yield (
                f"{tree.name}:{tree.line(path)}: {dotted(path)}: there is no dialect {dialect!r}; "
                f"there are: {', '.join(builtin_names())}"
            )


def _explain(error: ValidationError, tree: _Tree) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        path = _in_file(detail["loc"], tree)
        message = detail["msg"].removeprefix("Value error, ")
        for part in message.split("\x00"):
            where, mark, what = part.partition("\x01")
            inner = _in_file((*detail["loc"], *json.loads(where)), tree) if mark else path
            yield f"{tree.name}:{tree.line(inner)}: {dotted(inner)}: {_what(detail, what if mark else part, inner)}"


def _in_file(location: tuple[int | str, ...], tree: _Tree) -> Path:
    """pydantic's place as it stands in the file, where `local` may be one mapping instead of a list."""
    path = tuple(location)
    if path[:1] == ("local",) and not isinstance(tree.value.get("local"), list):
        path = ("local", *path[2:]) if len(path) > 1 and isinstance(path[1], int) else path
    return path


def _what(detail: Any, message: str, path: Path) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _keys_at(path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}" if known else ""
        return "unknown key" + hint
    if kind == "literal_error":
        return f"expects {detail['ctx']['expected']}, found {_shown(detail['input'])}"
    if kind == "too_short":
        return "needs at least one entry"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return message
    return expected if kind == "missing" else f"{expected}, found {_shown(detail['input'])}"


def _shown(value: object) -> str:
    """A value in a message: one line, not too long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."


def _keys_at(path: Path) -> list[str]:
    """The keys that the schema knows at `path`."""
    model: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            continue  # a peer's own name
        model = next(iter(_models(model.model_fields[part].annotation)), None)
        if model is None:
            return []
    return [key for key, info in model.model_fields.items() if not info.exclude]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


def _absolute(config: Config, base: PurePath) -> Config:
    """Relative paths are relative to the YAML's folder."""
    folders = config.folders.model_copy(
        update={key: str(base / value) for key, value in config.folders.model_dump().items()}
    )
    store = config.store
    if store.startswith("sqlite:///") and not store.startswith("sqlite:////"):
        store = f"sqlite:///{base / store.removeprefix('sqlite:///')}"
    return config.model_copy(update={"folders": folders, "store": store})


def origins(config: Config, text: str, name: str) -> list[tuple[str, object, str]]:
    """Every value in force as (dotted key, value, origin); the origin is `line N` of the file, or `default`."""
    tree = _Tree(text, name)
    rows: list[tuple[str, object, str]] = []

    def walk(value: Any, path: Path) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, (*path, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, inner in enumerate(value):
                walk(inner, (*path, index))
        else:
            written = _in_file(path, tree)
            origin = f"line {tree.lines[written]}" if written in tree.lines else "default"
            rows.append((dotted(written), value, origin))

    walk(config.model_dump(mode="json"), ())
    return rows
