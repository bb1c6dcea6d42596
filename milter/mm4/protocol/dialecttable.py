"""The keys of a dialect file, typed: what `dialectfile` judges and docs/dialects.md describes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FieldRow", "PduRow", "StatusRow", "Table", "TypeRow"]

Kind = Literal[
    "address", "addresses", "date", "enumeration", "expiry", "flag", "id", "indexed_addresses", "indexed_dates",
    "media_type", "number", "status", "text", "type", "version",
]  # fmt: skip
Source = Field(min_length=1, description="The document or trace that says so.")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    source: str = Source


class FieldRow(_Row):
    """A row of `fields`."""

    header: str | None = Field(None, description="The name that is written; every other known name is still read.")
    kind: Kind | None = Field(None, description="How the value is read and written; the built-in tables alone say it.")
    aliases: list[str] = Field([], description="More names under which the field is read; its own name wins.")
    also: list[str] = Field([], description="Headers whose values belong to the same list; built-in tables alone.")
    values: list[str] | None = Field(None, description="The enumerated values; more than the base's, never fewer.")
    default: str | None = Field(None, description="What holds for a value outside the list; built-in tables alone.")
    spellings: dict[str, str] = Field({}, description="How a peer spells a value: {its word: the value}.")
    strict: bool = Field(False, description="A value outside the list is an error; built-in tables alone.")
    lenient: bool | None = Field(None, description="An unreadable value is a warning, not an error.")
    form: Literal["bare", "unindexed"] | None = Field(
        None, description="bare: a number without /TYPE=PLMN. unindexed: a hop without its index where that is 0."
    )


class TypeRow(_Row):
    """A row of `types`."""

    written: str | None = Field(None, description="How the message type is written; letter case and all.")
    aliases: list[str] = Field([], description="More ways in which it is read.")
    answer: str | None = Field(None, description="The RES to a REQ; built-in tables alone.")


class StatusRow(_Row):
    """A row of `statuses`."""

    number: int | None = Field(None, description="Its MM1 number; built-in tables alone.")
    spellings: list[str] = Field([], description="More words under which the status is read.")


class PduRow(_Row):
    """A row of one PDU."""

    field: str = Field(description="A field by name.")
    presence: Literal["mandatory", "conditional", "optional"] = Field(
        description="mandatory: a PDU without it is refused, and it is always written."
    )
    complete: bool = Field(False, description="Written by the gateway though not mandatory.")


class Table(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="The dialect's name: a-z, 0-9 and -; none of the built-in ones.")
    extends: str | None = Field(None, description="The built-in dialect from which it differs.")
    title: str = Field(min_length=1, description="One line that says whose it is.")
    version: str | None = Field(None, description="What is written as MMS version.")
    ids: Literal["quoted", "bare"] | None = Field(None, description="How the ids that we make are written.")
    types: dict[str, TypeRow] = Field({}, description="The six message types.")
    fields: dict[str, FieldRow] = Field({}, description="The fields.")
    statuses: dict[str, StatusRow] = Field({}, description="The request status codes.")
    pdus: dict[str, list[PduRow]] = Field(
        {}, description="The fields of a PDU in the order in which they are written; in place of the base's rows."
    )
