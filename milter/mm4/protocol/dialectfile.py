"""What a dialect file may say: the rules that no dialect breaks, each with its reason.

A dialect says how a peer spells and what it demands. It never decides what a thing means: ids are compared byte for
byte, message types are answered as 3GPP says, a status means one thing. Everything that is wrong is told at once,
with line and row (docs/dialects.md). The built-in tables go through the same checks in the tests.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from .dialect import Dialect, build, builtin, builtin_names, squash
from .dialecttable import FieldRow, PduRow, Table
from .errors import DialectError
from .located import Document, Path, explain, shown, suggest

__all__ = ["checked", "parse_dialect"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,29}\Z")
_VERSION = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\Z", re.ASCII)
_FIELD_NAME = re.compile(r"[!-9;-~]+\Z")  # RFC 5322 3.6.8: printable US-ASCII without the colon
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")

IDS = ("transaction_id", "message_id")
_REPORT_REQS = ("MM4_delivery_report.REQ", "MM4_read_reply_report.REQ")
_REQS = ("MM4_forward.REQ", *_REPORT_REQS)
_RES = ("MM4_forward.RES", "MM4_delivery_report.RES", "MM4_read_reply_report.RES")

_NEEDED: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (_REQS + _RES, "mms_version", "mandatory", "every PDU names its version"),
    (_REQS + _RES, "message_type", "mandatory", "nothing else tells what the mail is"),
    (_REQS + _RES, "transaction_id", "mandatory", "a RES finds its REQ by it"),
    (_REQS, "message_id", "mandatory", "a report finds its message by it"),
    # Not mandatory in a RES: the transaction names its REQ, and Mbuni's errors and read report RES have no message id.
    (_RES, "message_id", "row", "a REQ that named an id is answered with it"),
    (_REQS, "sender", "mandatory", "nobody could be answered or reported about"),
    (_REQS, "recipients", "row", "the gateway writes it"),
    (_REQS, "ack_request", "row", "neither side could ask for a RES"),
    (_REQS, "originator_system", "complete", "without it a peer answers to a subscriber's number"),
    (_RES, "status_code", "mandatory", "a RES says nothing else"),
    (_REPORT_REQS[:1], "mm_status", "mandatory", "the report says nothing else"),
    (_REPORT_REQS[1:], "read_status", "mandatory", "the report says nothing else"),
)  # fmt: skip
"""Rows that a PDU has in every dialect, how strong they are at least, and why."""

_OFFERED_IN_REQ = frozenset(
    {"mms_version", "message_type", "transaction_id", "message_id", "date", "content_type", "sender", "sender_header",
     "recipients", "originator_system"}
)  # fmt: skip
_OFFERED_IN_RES = _OFFERED_IN_REQ | {"status_code", "status_text", "subject", "message_class", "request_recipients"}

_NOT_LENIENT = {
    "mms_version": "every PDU names its version",
    "message_type": "nothing else tells what the mail is",
    "sender": "an originator that cannot be read is answered Error-sending-address-unresolved",
    "status_code": "an unknown status is no success",
    "mm_status": "the report says nothing else",
    "read_status": "the report says nothing else",
    "forward_counter": "it ends loops",
    "previously_sent_by": "it ends loops",
}
_MEANING = ("mm_status", "read_status")
"""Enumerations whose values the gateway itself knows, one by one."""
_BASE_ALONE = {
    "kind": "the gateway knows what kind of value a field holds",
    "also": "the gateway knows which headers make one list",
    "default": "TS 23.140 says what holds where a value is not known",
    "strict": "whether an unknown value is an error follows from what the field decides",
}
_FORMS = {"bare": ("address", "addresses"), "unindexed": ("indexed_addresses",)}

_MAIL = frozenset(
    {"to", "cc", "bcc", "from", "sender", "date", "subject", "reply-to", "message-id", "in-reply-to", "references",
     "comments", "keywords", "return-path", "received", "delivered-to", "envelope-to", "errors-to", "mime-version",
     "authentication-results", "received-spf", "disposition-notification-to", "importance", "priority", "precedence",
     "auto-submitted", "return-receipt-to", "apparently-to"}
)  # fmt: skip
_MAIL_FAMILIES = ("arc-", "content-", "dkim-", "domainkey-", "list-", "original-", "resent-")
"""Headers of mail itself, in lower case (RFC 4021, 5322, 6376, 8601, 8617): Postfix and others read and write them."""


def parse_dialect(text: str, name: str) -> Dialect:
    """An operator's own dialect from the text of its file; `name` is the file's name for messages.

    Raises DialectError with one line a problem: file, line, row, and why it may not be so.
    """
    table = checked(text, name)
    return build(table, builtin(table["extends"]))


def checked(text: str, name: str, *, own: bool = True) -> dict[str, Any]:
    """The table in `text`, if nothing in it is wrong; `name` is the file's name for messages.

    `own` is an operator's table, which extends a built-in one and has a name of its own. Raises DialectError.
    """
    document = Document(text, name, DialectError)
    if not isinstance(document.value, dict):
        raise DialectError(
            [*document.problems, f"{name}:1: expects keys with values: {', '.join(Table.model_fields)}"]
        )
    problems = list(document.problems)
    try:
        table = Table.model_validate(document.value)
    except ValidationError as error:
        problems += explain(error, document, Table)
        table = _mended(document.value, error)
    problems += (document.problem(path, what) for path, what in _broken(table, own))
    empty = "has no value; give one, or leave the key out"
    problems += (document.problem(path, empty) for path in _empty(document.value))
    if problems:
        raise DialectError(document.ordered(problems))
    return document.value


def _empty(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key that stands there without a value: read as left out, it would mean what nobody wrote."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _empty(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _empty(inner, (*path, index))


def _mended(value: dict[str, Any], error: ValidationError) -> Table:
    """What is left of a table whose shape is wrong, so that the rules see the rest of it and cry no wolf."""
    rest = copy.deepcopy(value)
    for detail in error.errors(include_url=False):
        *holders, key = detail["loc"] or ("",)
        entry: Any = rest
        try:
            for part in holders:
                entry = entry[part]
            if detail["type"] == "extra_forbidden":
                del entry[key]
            elif key in ("name", "title", "source"):
                entry[key] = "-"
            elif key == "presence":
                entry[key] = "mandatory"
            else:
                rest[str(detail["loc"][0])].pop(detail["loc"][1])
        except (LookupError, TypeError, AttributeError):
            rest.pop(str((*holders, key)[0]), None)
    try:
        return Table.model_validate(rest)
    except ValidationError:
        return Table(name="-", title="-")


_Problem = tuple[Path, str]


def _broken(table: Table, own: bool) -> Iterator[_Problem]:
    """Every rule that the table breaks: its place and what may not be so."""
    base = None
    if table.extends in builtin_names():
        base = builtin(table.extends)
    elif table.extends is not None:
        yield ("extends",), f"there is no dialect {table.extends!r}{suggest(table.extends, builtin_names())}"
    elif own:
        yield ("extends",), f"has to be given: one of {', '.join(builtin_names())}"
    if own:
        base = base or builtin("3gpp")
        if table.name != "-" and (not _NAME.match(table.name) or table.name == "all"):
            yield ("name",), f"{table.name!r} is no dialect name: 1 to 30 of a-z, 0-9 and -, and not all"
        elif table.name in builtin_names():
            yield ("name",), f"{table.name!r} is built in; give yours a name of its own"
    if table.version is not None and not _VERSION.match(table.version):
        yield ("version",), f'{table.version!r} is no version of three numbers, for example "5.5.0"'
    yield from _types(table, base)
    yield from _fields(table, base)
    yield from _headers(table, base)
    yield from _statuses(table, base)
    for name, rows in table.pdus.items():
        yield from _pdu(name, rows, table, base)


def _types(table: Table, base: Dialect | None) -> Iterator[_Problem]:
    known = dict(base.type_names) if base else {squash(name): name for name in table.types}
    for name, row in table.types.items():
        path: Path = ("types", name)
        if base and name not in base.types:
            yield path, f"there is no message type {name!r}: a dialect spells types, it makes none" + suggest(
                name, base.types
            )
            continue
        if base and row.answer is not None:
            yield (*path, "answer"), "what a message type is answered with is 3GPP's, not the dialect's"
        spellings: list[tuple[Path, str]] = [((*path, "aliases", i), text) for i, text in enumerate(row.aliases)]
        if row.written is not None:
            spellings.insert(0, ((*path, "written"), row.written))
        for place, text in spellings:
            end = name.rpartition(".")[2]
            if not _TYPE.match(text) or not squash(text).endswith(end.lower()):
                yield place, f"{text!r} is no spelling of it: letters, digits, . _ and -, and {end} at its end"
            elif known.setdefault(squash(text), name) != name:
                yield place, f"{text!r} is read as {known[squash(text)]} already"


def _fields(table: Table, base: Dialect | None) -> Iterator[_Problem]:
    for name, row in table.fields.items():
        path: Path = ("fields", name)
        old = base.fields.get(name) if base else None
        if base and old is None:
            yield path, f"there is no field {name!r}{suggest(name, base.fields)}"
            continue
        said = row.model_fields_set - {"source"}
        if old is None:
            yield from ((path, f"{key} has to be given") for key in ("header", "kind") if key not in said)
        elif name in IDS:
            for key in sorted(said - {"header", "aliases"}):
                yield (*path, key), "ids are compared byte for byte: a dialect may name their header, nothing else"
            continue
        else:
            yield from (((*path, key), f"not the dialect's to say: {_BASE_ALONE[key]}") for key in sorted(
                said & _BASE_ALONE.keys()))  # fmt: skip
        if base and row.lenient and name in _NOT_LENIENT:
            yield (*path, "lenient"), f"{name} has to be readable: {_NOT_LENIENT[name]}"
        kind = old.kind if old else row.kind
        if row.form is not None and kind not in _FORMS[row.form]:
            yield (*path, "form"), f"{row.form} is a form of {' and '.join(_FORMS[row.form])}; {name} is {kind}"
        yield from _enumeration(name, row, kind, base)


def _enumeration(name: str, row: FieldRow, kind: str | None, base: Dialect | None) -> Iterator[_Problem]:
    path: Path = ("fields", name)
    old = base.fields[name] if base else None
    if kind != "enumeration":
        for key in ("values", "spellings"):
            if getattr(row, key):
                yield (*path, key), f"{name} is no enumeration but {kind}"
        return
    values = row.values if row.values is not None else list(old.values) if old else []
    if old and row.values is not None:
        gone = [value for value in old.values if value not in row.values]
        if name in _MEANING and set(row.values) != set(old.values):
            yield (*path, "values"), "these are what the gateway reports; a peer's other word goes into spellings"
        elif gone:
            yield (*path, "values"), f"{gone[0]} is missing: a dialect may add values, not take any away"
    if not old and row.default is not None and row.default not in values:
        yield (*path, "default"), f"{row.default!r} is none of {', '.join(values)}"
    known = {squash(word): value for word, value in (old.spellings if old else {}).items()}
    known |= {squash(value): value for value in values}
    for word, value in row.spellings.items():
        place = (*path, "spellings", word)
        if value not in values:
            yield place, f"{value!r} is none of {', '.join(values)}"
        elif known.setdefault(squash(word), value) != value:
            yield place, f"{word!r} is read as {known[squash(word)]} already"


def _headers(table: Table, base: Dialect | None) -> Iterator[_Problem]:
    """Every name is one field's, and none is taken from mail itself."""
    fields = base.fields.values() if base else ()
    owner = {header.lower(): field.name for field in fields for header in field.headers}
    for name, row in table.fields.items():
        if base and name not in base.fields:
            continue
        path: Path = ("fields", name)
        names: list[tuple[Path, str]] = [((*path, "aliases", i), text) for i, text in enumerate(row.aliases)]
        names += [((*path, "also", i), text) for i, text in enumerate(row.also)]
        if row.header is not None:
            names.insert(0, ((*path, "header"), row.header))
        for place, header in names:
            lower = header.lower()
            taken = owner.get(lower)
            if not _FIELD_NAME.match(header) or len(header) > 70:
                yield place, f"{shown(header)} is no header name: 1 to 70 printable US-ASCII characters without colon"
            elif taken is not None and taken != name:
                yield place, f"{header} is the name of {taken} already: two fields cannot share a header"
            elif base and taken is None and (lower in _MAIL or lower.startswith(_MAIL_FAMILIES)):
                yield place, f"{header} is a header of mail itself; a field of MM4 cannot have it"
            elif base and place[-1] == "header" and _moved(header, base.fields[name].header):
                was = base.fields[name].header
                yield place, f"mail needs {was}, so {name} stays there; aliases name where it is read too"
            else:
                owner[lower] = name


def _moved(header: str, was: str) -> bool:
    """Whether a field leaves a header that every mail has."""
    lower = was.lower()
    return header.lower() != lower and (lower in _MAIL or lower.startswith(_MAIL_FAMILIES))


def _statuses(table: Table, base: Dialect | None) -> Iterator[_Problem]:
    known = dict(base.status_names) if base else {squash(name): name for name in table.statuses}
    for name, row in table.statuses.items():
        path: Path = ("statuses", name)
        if base and name not in base.statuses:
            yield path, f"there is no request status {name!r}: a dialect spells codes, it makes none" + suggest(
                name, base.statuses
            )
            continue
        if base and row.number is not None:
            yield (*path, "number"), "not the dialect's to say: a number means one status everywhere"
        if not base and row.number is None:
            yield path, "number has to be given"
        for i, text in enumerate(row.spellings):
            if not squash(text):
                yield (*path, "spellings", i), f"{text!r} holds no letter or digit"
            elif known.setdefault(squash(text), name) != name:
                yield (*path, "spellings", i), f"{text!r} is read as {known[squash(text)]} already"


def _pdu(name: str, rows: list[PduRow], table: Table, base: Dialect | None) -> Iterator[_Problem]:
    path: Path = ("pdus", name)
    types = base.types if base else table.types
    fields = base.fields if base else table.fields
    if name not in types:
        yield path, f"there is no message type {name!r}{suggest(name, types)}"
        return
    offered = _OFFERED_IN_REQ if name in _REQS else _OFFERED_IN_RES
    said: dict[str, PduRow] = {}
    for i, row in enumerate(rows):
        place = (*path, i)
        if row.field not in fields:
            yield (*place, "field"), f"there is no field {row.field!r}{suggest(row.field, fields)}"
        elif row.field in said:
            yield (*place, "field"), f"{row.field} has a row already; keep one"
        elif row.complete and row.field not in offered:
            yield (*place, "complete"), f"the gateway has no {row.field} to write where none was given"
        elif name in _RES and row.presence == "mandatory" and row.field not in offered:
            yield (*place, "presence"), f"the gateway has no {row.field} to write into a RES"
        said.setdefault(row.field, row)
    places = {row.field: i for i, row in reversed(list(enumerate(rows)))}
    for pdus, field, demand, reason in _NEEDED:
        if name not in pdus:
            continue
        found = said.get(field)
        if found is None:
            yield path, f"a row for {field} is missing: {reason}"
        elif demand == "mandatory" and found.presence != "mandatory":
            yield (*path, places[field], "presence"), f"{field} is mandatory in {name}: {reason}"
        elif demand == "complete" and found.presence != "mandatory" and not found.complete:
            yield (*path, places[field]), f"{field} needs complete: true in {name}: {reason}"
