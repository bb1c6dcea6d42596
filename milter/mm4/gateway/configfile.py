"""From YAML text to `Config`: every problem with file, line, key and what is expected.

It reads text that its caller has read from files, so nothing here touches a disk. All problems are told at once,
those of the dialect files that peers name too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from ..protocol.dialect import builtin, check_name, is_file
from ..protocol.dialectfile import parse_dialect
from ..protocol.errors import ConfigError, DialectError
from ..protocol.located import Document, Path, dotted, explain
from .config import Config
from .peer import Peer
from .routes import absolute
from .unspeakable import problems as wrong_terms

__all__ = ["dialect_files", "origins", "parse_config", "place"]


def parse_config(text: str, name: str, dialects: Mapping[str, str | DialectError] | None = None) -> Config:
    """The configuration in `text`; `name` is the file's name for messages and the base of relative paths.

    `dialects` holds the text of each file that `dialect_files` names, or why it could not be read; they are
    checked, and the texts travel in the configuration. Without them it is good for everything but a Router.
    Raises ConfigError with one line a problem: file, line, key, what is expected.
    """
    document = Document(text, name)
    if not isinstance(document.value, dict):
        raise ConfigError([*document.problems, f"{name}:1: expects keys with values: local, peers, routes, ..."])
    problems = list(document.problems)
    config = None
    try:
        config = Config.model_validate(document.value)
    except ValidationError as error:
        problems += explain(error, document, Config, lambda path: _in_file(path, document))
    texts = dialects or {}
    wrong = list(_wrong_dialects(document, texts))
    problems += wrong
    if config is not None and not wrong:
        problems += _wrong_terms(document, config, texts)
    if problems or config is None:
        raise ConfigError(document.ordered(problems))
    return _absolute(config, PurePath(name).parent).with_dialects(
        {path: text for path, text in texts.items() if isinstance(text, str)}
    )


def dialect_files(text: str, name: str) -> list[str]:
    """The paths of the dialect files that the peers name, each once, from the folder of the file `name`.

    Raises ConfigError where the text is no YAML.
    """
    return list(dict.fromkeys(path for _, _, path in _dialects(Document(text, name)) if path))


def place(text: str, name: str, key: str) -> str:
    """`file:line: key`, for what turns out wrong with a value only when it is used."""
    document = Document(text, name)
    path = _in_file(tuple(int(p) if p.isdigit() else p for p in key.split(".")), document)
    return f"{name}:{document.line(path)}: {dotted(path)}"


def _dialects(document: Document) -> Iterator[tuple[Path, str, str | None]]:
    """Each peer's dialect: its place, the word that stands there, and the file's path where it is one."""
    peers = document.value.get("peers") if isinstance(document.value, dict) else None
    for peer, values in peers.items() if isinstance(peers, dict) else ():
        dialect = values.get("dialect") if isinstance(values, dict) else None
        if isinstance(dialect, str):
            word = dialect.strip()
            path = str(PurePath(document.name).parent / word) if is_file(word) else None
            yield ("peers", peer, "dialect"), word, path


def _wrong_dialects(document: Document, texts: Mapping[str, str | DialectError]) -> Iterator[str]:
    checked: set[str] = set()
    for place_, word, path in _dialects(document):
        try:
            if path is None:
                check_name(word)
            elif path in texts and path not in checked:
                checked.add(path)  # a file that two peers share is wrong once
                found = texts[path]
                if isinstance(found, DialectError):
                    raise found
                parse_dialect(found, path)
        except DialectError as error:
            yield from (document.problem(place_, problem) for problem in error.problems)


def _wrong_terms(document: Document, config: Config, texts: Mapping[str, str | DialectError]) -> Iterator[str]:
    """What of a peer's entry cannot be in its dialect, where the text of that is at hand."""
    for name, peer in config.peers.items():
        text: str | DialectError | None = None
        path = str(PurePath(document.name).parent / peer.dialect)
        if is_file(peer.dialect):
            text = texts.get(path)
            if not isinstance(text, str):
                continue
        dialect = parse_dialect(text, path) if isinstance(text, str) else builtin(peer.dialect)
        for where, what in wrong_terms(peer, dialect):
            yield document.problem(("peers", name, *where), what)


def _in_file(location: tuple[int | str, ...], document: Document) -> Path:
    """pydantic's place as it stands in the file, where one mapping or word may stand for a list, or for a mapping."""
    # A row of routes has its kind behind its place, with a blank, which no key of ours has.
    kind = location[2] if location[:1] == ("routes",) and len(location) > 2 else ""
    path = (*location[:2], *location[3:]) if isinstance(kind, str) and kind.endswith(" row") else tuple(location)
    if path[:1] == ("local",) and not isinstance(document.value.get("local"), list):
        path = ("local", *path[2:]) if len(path) > 1 and isinstance(path[1], int) else path
    value: Any = document.value
    for i, part in enumerate(path):
        word = value is not None and not isinstance(value, dict | list)
        if word:
            return path[:i]
        try:
            value = value[part]
        except (LookupError, TypeError):
            break
    return path


def _absolute(config: Config, base: PurePath) -> Config:
    """Relative paths are relative to the YAML's folder."""
    peers = {name: _absolute_peer(peer, base) for name, peer in config.peers.items()}
    folders = config.folders.model_copy(
        update={key: str(base / value) for key, value in config.folders.model_dump().items()}
    )
    store = config.store
    if store.startswith("sqlite:///") and not store.startswith("sqlite:////"):
        store = f"sqlite:///{base / store.removeprefix('sqlite:///')}"
    cdr = config.cdr
    if cdr is not None and cdr.folder is not None:
        cdr = cdr.model_copy(update={"folder": str(base / cdr.folder)})
    service = config.service
    if service.tls is not None:
        files = {key: str(base / value) for key in ("certificate", "key", "ca") if (value := getattr(service.tls, key))}
        service = service.model_copy(update={"tls": service.tls.model_copy(update=files)})
    routes = [absolute(route, base) for route in config.routes]
    return config.model_copy(
        update={
            "folders": folders, "store": store, "peers": peers, "cdr": cdr, "service": service, "routes": routes
        }
    )  # fmt: skip


def _absolute_peer(peer: Peer, base: PurePath) -> Peer:
    changed: dict[str, Any] = {}
    if is_file(peer.dialect):
        changed["dialect"] = str(base / peer.dialect)
    files = {key: str(base / value) for key in ("ca", "certificate", "key") if (value := getattr(peer.tls, key))}
    if files:
        changed["tls"] = peer.tls.model_copy(update=files)
    if peer.login is not None:
        changed["login"] = peer.login.model_copy(update={"password_file": str(base / peer.login.password_file)})
    return peer.model_copy(update=changed) if changed else peer


def origins(config: Config, text: str, name: str) -> list[tuple[str, object, str]]:
    """Every value in force as (dotted key, value, origin); the origin is `line N` of the file, or `default`."""
    document = Document(text, name)
    rows: list[tuple[str, object, str]] = []

    def walk(value: Any, path: Path) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, (*path, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, inner in enumerate(value):
                walk(inner, (*path, index))
        else:
            written = _in_file(path, document)
            origin = f"line {document.lines[written]}" if written in document.lines else "default"
            rows.append((dotted(written), value, origin))

    walk(config.model_dump(mode="json", by_alias=True), ())
    return rows
