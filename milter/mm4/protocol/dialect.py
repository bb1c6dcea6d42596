"""Dialects: what one peer calls things, what it demands and in which order it writes. Tables, not code.

A dialect is a YAML file whose every row names its source; the built-in ones lie beside this module, an operator's
own one anywhere (docs/dialects.md). It may extend another one: then it says only what differs, and a PDU that it
lists replaces the base's rows whole. Names and spellings are only ever added: every dialect reads every other's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import yaml

from .errors import DialectError

__all__ = [
    "Dialect", "Field", "PduRow", "Status", "TypeRow", "build", "builtin", "builtin_names", "check_name", "is_file",
    "read_type", "squash",
]  # fmt: skip

# libyaml's loader, where PyYAML has it: the tables are read at every start.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_OTHERS = re.compile(r"[^0-9a-z]")


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
    form: str | None = None
    """How a value is written that has two ways: an address `bare`, without /TYPE=PLMN; a hop `unindexed`, without
    its index where that is 0. Both ways are read."""

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
    """Written by the gateway though not mandatory: in a REQ where the local side left it out, in a RES always."""


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
    source: str
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

    def written(self, pdu: str) -> frozenset[str]:
        """The fields of a PDU that the gateway writes of its own accord: those mandatory, and those it completes."""
        return self._written[pdu]

    @functools.cached_property
    def _written(self) -> Mapping[str, frozenset[str]]:
        return {
            pdu: frozenset(row.field for row in rows if row.presence == "mandatory" or row.complete)
            for pdu, rows in self.pdus.items()
        }

    def answer_type(self, request: str) -> str | None:
        """The 3GPP name of the RES to a REQ; None for a RES."""
        row = self.types.get(request)
        return row.answer if row else None


def read_type(text: str, dialect: Dialect) -> str | None:
    """The 3GPP name of a message type in any spelling that is known, or None."""
    return dialect.type_names.get(squash(text))


@functools.cache
def builtin_names() -> tuple[str, ...]:
    """The dialects that come with mm4."""
    folder = resources.files(__package__) / "dialects"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def is_file(name: str) -> bool:
    """Whether a dialect's name is the path of a file: it ends in .yaml or .yml."""
    return name.endswith((".yaml", ".yml"))


def check_name(name: str) -> str:
    """The name, if it is that of a built-in dialect. Raises DialectError that says what there is."""
    if name not in builtin_names():
        raise DialectError(
            f"there is no dialect {name!r}; there are: {', '.join(builtin_names())}; "
            "one of your own is the path of a file that ends in .yaml"
        )
    return name


@functools.cache
def builtin(name: str) -> Dialect:
    """A built-in dialect by name, reading every other's header names. Raises DialectError."""
    dialect = _load(check_name(name))
    everywhere: dict[str, dict[str, None]] = {}
    for other in builtin_names():
        for field_ in _load(other).fields.values():
            everywhere.setdefault(field_.name, {}).update(dict.fromkeys((field_.header, *field_.aliases)))
    fields = {f.name: replace(f, aliases=_aliases(f.header, everywhere[f.name])) for f in dialect.fields.values()}
    return replace(dialect, fields=fields)


@functools.cache
def _load(name: str) -> Dialect:
    text = (resources.files(__package__) / "dialects" / f"{name}.yaml").read_text("utf-8")
    table = yaml.load(text, Loader=_Loader)  # noqa: S506 - both are safe loaders
    return build(table, _load(table["extends"]) if "extends" in table else None)


def build(table: Mapping[str, Any], base: Dialect | None) -> Dialect:
    """The dialect that a table makes of its base. The table is right: `dialectfile` says what that means."""

    def inherited(what: str) -> dict[str, Any]:
        return dict(getattr(base, what)) if base else {}

    fields: dict[str, Field] = inherited("fields")
    for name, row in table.get("fields", {}).items():
        fields[name] = _field(name, row, fields.get(name))
    types: dict[str, TypeRow] = inherited("types")
    for name, row in table.get("types", {}).items():
        types[name] = _type(name, row, types.get(name))
    statuses: dict[str, Status] = inherited("statuses")
    for name, row in table.get("statuses", {}).items():
        statuses[name] = _status(name, row, statuses.get(name))
    pdus: dict[str, tuple[PduRow, ...]] = inherited("pdus")
    pdus |= {name: tuple(PduRow(**row) for row in rows) for name, rows in table.get("pdus", {}).items()}
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


def _field(name: str, row: Mapping[str, Any], old: Field | None) -> Field:
    changes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    if old is None:
        return Field(name=name, **changes)
    header = changes.get("header", old.header)
    changes["aliases"] = _aliases(header, (*changes.get("aliases", ()), old.header, *old.aliases))
    changes["spellings"] = {**old.spellings, **changes.get("spellings", {})}
    return replace(old, **changes)


def _aliases(header: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names other than `header`, each once in whatever letter case."""
    return tuple({name.lower(): name for name in names if name.lower() != header.lower()}.values())


def _type(name: str, row: Mapping[str, Any], old: TypeRow | None) -> TypeRow:
    return TypeRow(
        name,
        row.get("written", old.written if old else name),
        row["source"],
        (*row.get("aliases", ()), *((old.written, *old.aliases) if old else ())),
        row.get("answer", old.answer if old else None),
    )


def _status(name: str, row: Mapping[str, Any], old: Status | None) -> Status:
    number = row["number"] if old is None else old.number
    return Status(name, number, row["source"], (*row.get("spellings", ()), *(old.spellings if old else ())))
