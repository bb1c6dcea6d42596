"""Dialects: what one peer calls things, what it demands and in which order it writes. Tables, not code.

A dialect is a YAML file beside this module whose every row names its source. It may extend another one: then
it says only what differs, and a PDU that it lists replaces the base's rows whole. Every dialect reads every
other's names. Loading raises DialectError that names file and row.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import yaml

from .errors import DialectError

__all__ = ["Dialect", "Field", "PduRow", "Status", "TypeRow", "builtin", "builtin_names", "read_type", "squash"]

# libyaml's loader, where PyYAML has it: the tables are read at every start.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_OTHERS = re.compile(r"[^0-9a-z]")

PRESENCES = ("mandatory", "conditional", "optional")


def squash(text: str) -> str:
    """Letters and digits in lower case: how enumerated values are compared (`Error- service-denied`, `OK`)."""
    return _OTHERS.sub("", text.lower())


@dataclass(frozen=True, slots=True)
class Field:
    """One information element: its header, how its value is read and written, and where that is written down."""

    name: str
    header: str
    kind: str
    source: str
    aliases: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """Further headers whose values belong to the same list (Cc)."""
    values: tuple[str, ...] = ()
    default: str | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    """An enumerated value outside the list is an error, not a warning."""
    lenient: bool = False
    """An unreadable value is a warning, not an error."""

    @property
    def headers(self) -> tuple[str, ...]:
        """Every name under which the field is read, its own first."""
        return (self.header, *self.also, *self.aliases)


@dataclass(frozen=True, slots=True)
class PduRow:
    """A field's place in one PDU."""

    field: str
    presence: str
    source: str
    complete: bool = False
    """Written by the gateway where the local side left it out, though not mandatory."""


@dataclass(frozen=True, slots=True)
class TypeRow:
    """A PDU type: its 3GPP name, how this dialect writes it, other ways in which it is read, the RES to it."""

    name: str
    written: str
    source: str
    aliases: tuple[str, ...] = ()
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """A request status code and its MM1 number."""

    name: str
    number: int
    spellings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """One peer's tables."""

    name: str
    title: str
    version: str
    """What we write as MMS version."""
    ids: str
    types: Mapping[str, TypeRow]
    fields: Mapping[str, Field]
    statuses: Mapping[str, Status]
    pdus: Mapping[str, tuple[PduRow, ...]]

    @functools.cached_property
    def by_header(self) -> Mapping[str, Field]:
        """Field by header name in lower case."""
        names = {alias.lower(): f for f in self.fields.values() for alias in f.headers}
        return names | {f.header.lower(): f for f in self.fields.values()}

    @functools.cached_property
    def type_names(self) -> Mapping[str, str]:
        """3GPP type name by squashed spelling."""
        return {
            squash(spelling): row.name
            for row in self.types.values()
            for spelling in (*row.aliases, row.written, row.name)
        }

    @functools.cached_property
    def status_names(self) -> Mapping[str, str]:
        """Status code by squashed spelling, its number included."""
        names: dict[str, str] = {}
        for status in self.statuses.values():
            for spelling in (status.name, str(status.number), *status.spellings):
                names[squash(spelling)] = status.name
        return names

    @functools.cached_property
    def row_of(self) -> Mapping[tuple[str, str], PduRow]:
        """Row by PDU type and field."""
        return {(pdu, row.field): row for pdu, rows in self.pdus.items() for row in rows}

    def answer_type(self, request: str) -> str | None:
        """The 3GPP name of the RES to a REQ; None for a RES."""
        row = self.types.get(request)
        return row.answer if row else None


def read_type(text: str, dialect: Dialect) -> str | None:
    """The 3GPP name of a message type in any spelling that is known, or None."""
    return dialect.type_names.get(squash(text))


def builtin_names() -> tuple[str, ...]:
    """The dialects that come with mm4."""
    folder = resources.files(__package__) / "dialects"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


@functools.cache
def builtin(name: str) -> Dialect:
    """A built-in dialect by name, reading every other's header names. Raises DialectError."""
    if name not in builtin_names():
        raise DialectError(f"there is no dialect {name!r}; there are: {', '.join(builtin_names())}")
    dialect = _load(name)
    everywhere: dict[str, dict[str, None]] = {}
    for other in builtin_names():
        for field_ in _load(other).fields.values():
            everywhere.setdefault(field_.name, {}).update(dict.fromkeys((field_.header, *field_.aliases)))
    own = {f.header.lower() for f in dialect.fields.values()}
    fields = {
        f.name: replace(f, aliases=tuple(a for a in everywhere[f.name] if a.lower() not in own))
        for f in dialect.fields.values()
    }
    return replace(dialect, fields=fields)


@functools.cache
def _load(name: str) -> Dialect:
    text = (resources.files(__package__) / "dialects" / f"{name}.yaml").read_text("utf-8")
    table = yaml.load(text, Loader=_Loader)  # noqa: S506 - both are safe loaders
    base = _load(table["extends"]) if "extends" in table else None
    return _build(table, base, f"{name}.yaml")


def _build(table: Mapping[str, Any], base: Dialect | None, file: str) -> Dialect:
    def inherited(what: str) -> dict[str, Any]:
        return dict(getattr(base, what)) if base else {}

    fields: dict[str, Field] = inherited("fields")
    for name, row in table.get("fields", {}).items():
        fields[name] = _field(name, row, fields.get(name), file)
    types: dict[str, TypeRow] = inherited("types")
    for name, row in table.get("types", {}).items():
        _demand(row, "source", f"{file}: types.{name}")
        old = types.get(name)
        types[name] = TypeRow(
            name,
            row.get("written", old.written if old else name),
            row["source"],
            tuple(row.get("aliases", old.aliases if old else ())),
            row.get("answer", old.answer if old else None),
        )
    statuses: dict[str, Status] = inherited("statuses")
    for name, row in table.get("statuses", {}).items():
        statuses[name] = Status(name, row["number"], tuple(row.get("spellings", ())))
    pdus: dict[str, tuple[PduRow, ...]] = inherited("pdus")
    for name, rows in table.get("pdus", {}).items():
        if name not in types:
            raise DialectError(f"{file}: pdus.{name}: no such message type")
        pdus[name] = tuple(_pdu_row(row, fields, f"{file}: pdus.{name}[{i}]") for i, row in enumerate(rows))
    return Dialect(
        name=table["name"],
        title=table["title"],
        version=table.get("version", base.version if base else ""),
        ids=table.get("ids", base.ids if base else "quoted"),
        types=types,
        fields=fields,
        statuses=statuses,
        pdus=pdus,
    )


def _demand(row: Mapping[str, Any], key: str, place: str) -> None:
    if not row.get(key):
        raise DialectError(f"{place}: {key} has to be given")


def _field(name: str, row: Mapping[str, Any], old: Field | None, file: str) -> Field:
    place = f"{file}: fields.{name}"
    _demand(row, "source", place)
    changes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    unknown = set(changes) - set(Field.__dataclass_fields__)
    if unknown:
        raise DialectError(f"{place}: unknown key {sorted(unknown)[0]!r}")
    if old is not None:
        return replace(old, **changes)
    _demand(row, "header", place)
    _demand(row, "kind", place)
    return Field(name=name, **changes)


def _pdu_row(row: Mapping[str, Any], fields: Mapping[str, Field], place: str) -> PduRow:
    _demand(row, "source", place)
    if row.get("field") not in fields:
        raise DialectError(f"{place}: there is no field {row.get('field')!r}")
    if row.get("presence") not in PRESENCES:
        raise DialectError(f"{place}: presence is one of {', '.join(PRESENCES)}")
    return PduRow(row["field"], row["presence"], row["source"], bool(row.get("complete", False)))
