"""Points and lengths of time as options take them: callbacks for click, which fail as wrong use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import click

from ..gateway.quantity import parse_duration

__all__ = ["expiry", "length", "moment", "since"]

_SECONDS = 10
"""Digits of seconds that every reader of X-Mms-Expiry takes."""


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """An aware datetime from a date of ISO 8601 or RFC 5322; without a zone it is this host's time."""
    found = None if value is None else _read(value)
    if value is not None and found is None:
        raise click.BadParameter(f"{value!r} is no date, for example 2026-11-22T10:00+01:00")
    return found


def since(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """A moment in the past: a duration back from now (`2h`), or a date."""
    if value is None:
        return None
    try:
        found: datetime | None = datetime.now(UTC) - timedelta(seconds=parse_duration(value))
    except (ValueError, OverflowError):
        found = _read(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is neither a duration (2h, 7d) nor a date such as 2026-11-22T10:00+01:00")
    # Nothing is older, and before the year 1 there is no date to calculate with.
    return max(found, datetime.fromtimestamp(0, UTC))


def length(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Seconds from a duration such as `10m`; the empty text of an option without a value is -1."""
    try:
        return parse_duration(value) if value else None if value is None else -1
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


def expiry(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | datetime | None:
    """A time from now (`7d`, or seconds), or a date."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) <= _SECONDS:
        return timedelta(seconds=int(text))
    try:
        return timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        found = _read(text)
    if found is None:
        raise click.BadParameter(f"{value!r} is no expiry: 7d, seconds, or a date such as 2026-11-22T10:00+01:00")
    return found


def _read(text: str) -> datetime | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text.strip())
            return found if found.tzinfo else found.astimezone()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None
