"""Charging records in the store: made in the transaction of what they are about, handed out to files exactly once.

A record is a copy: it stays as it was when the transaction goes on, or is purged. Who writes files claims records
first (`claim`), and says when the file is whole on disk under its temporary name (`written`) and when it has its name
(`closed`); so whoever comes after a crash knows what is left to do. Errors are the store's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    Row,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..protocol.charging import RECORD_TYPES, Event, Format, Record
from ..protocol.retry import TRANSIENT
from ..protocol.transaction import INTERNET, Direction, State
from .schema import cdr_files, charges, messages, transactions
from .writer import Operation

__all__ = ["CdrFile", "Charges", "charge_accepted", "charge_answer", "charge_bounced", "charge_ended"]

T = TypeVar("T")

_PAGE = 1000
"""Records that are read at a time."""

_FORWARD = transactions.c.type == "MM4_forward.REQ"
_OUT = transactions.c.direction == Direction.OUT.value
_TOKEN: BindParameter[str] = bindparam("a_token")
_AT = bindparam("an_at", type_=messages.c.recorded_at.type)


def _inserting(
    event: Event, peer: ColumnElement[Any], at: ColumnElement[Any], where: ColumnElement[bool]
) -> dict[str, Executable]:
    """The statement that makes the records of an event out of the transactions that `where` names, by SQL dialect.

    What has its record already, by ix_charges_once, gets no second one.
    """
    types: dict[Any, str] = {kind.request: kind.name for kind in RECORD_TYPES if kind.event == event}
    record_type = case(types, value=transactions.c.type)
    # A report's transaction names who reports and who is told; the message went the other way.
    originator = case((_FORWARD, transactions.c.originator), else_=transactions.c.recipient)
    recipient = case((_FORWARD, transactions.c.recipient), else_=transactions.c.originator)
    status: ColumnElement[Any] = {
        "sent": null(),
        "answered": transactions.c.status,
        "received": case((_OUT, messages.c.answer_status), else_=transactions.c.status),
    }[event]
    values: dict[str, ColumnElement[Any]] = {
        "token": transactions.c.token,
        "type": record_type,
        "at": at,
        "requested_at": messages.c.recorded_at,
        "peer": peer,
        "originator": originator,
        "recipient": recipient,
        "message_id": transactions.c.message_id,
        "transaction_id": transactions.c.transaction_id,
        "size": case((_FORWARD, messages.c.size)),
        "expires_at": messages.c.expires_at,
        "ack_requested": transactions.c.ack_requested,
        "delivery_report": transactions.c.delivery_report,
        "read_reply": transactions.c.read_reply,
        "status": status,
        "mm_status": case((transactions.c.type == "MM4_delivery_report.REQ", transactions.c.report)),
        "read_status": case((transactions.c.type == "MM4_read_reply_report.REQ", transactions.c.report)),
        "queue_id": messages.c.queue_id,
        "host": messages.c.host,
    }
    found = (
        select(*values.values())
        .join(messages, messages.c.token == transactions.c.token)
        .where(
            where,
            transactions.c.type.in_(types),
            # Of what went nowhere only a peer's forward has a record: its status says so.
            transactions.c.state.not_in([State.DUPLICATE.value, State.SUPPRESSED.value]),
            or_(transactions.c.state != State.REFUSED.value, and_(_FORWARD, transactions.c.direction == "in")),
            messages.c.copy_of.is_(None),
        )
        .order_by(transactions.c.id)
    )
    columns = list(values)
    return {
        "sqlite": sqlite.insert(charges).from_select(columns, found).on_conflict_do_nothing(),
        "postgresql": postgresql.insert(charges).from_select(columns, found).on_conflict_do_nothing(),
    }


# Only the call that accepts a message gives it that time: a repeated one finds nothing, nor does one after which
# records were switched on.
_ACCEPTED = and_(transactions.c.token == _TOKEN, messages.c.accepted_at == _AT)
_SENT = _inserting(
    "sent",
    transactions.c.peer,
    messages.c.accepted_at,
    and_(_ACCEPTED, _OUT, transactions.c.peer != INTERNET),  # what is no MM4 has no record of MM4
)
_RECEIVED = _inserting(
    "received",
    case((_OUT, messages.c.source), else_=transactions.c.peer),
    messages.c.accepted_at,
    # A message in transit has two ends: it was received from one peer and sent to another.
    # What came in from nobody but ourselves is a notice of ours to the MMSC: no peer reported anything.
    and_(
        _ACCEPTED,
        or_(
            and_(~_OUT, or_(messages.c.source.is_(None), messages.c.source != "local")),
            and_(_OUT, messages.c.source.is_not(None), messages.c.source != "local"),
        ),
    ),
)
_ANSWERED = _inserting(
    "answered",
    transactions.c.peer,
    transactions.c.updated_at,
    and_(
        transactions.c.transaction_id == bindparam("an_id"),
        transactions.c.peer == bindparam("a_peer"),
        _OUT,
        transactions.c.type == bindparam("a_type"),
        transactions.c.state == State.ANSWERED.value,
        transactions.c.updated_at == _AT,
        # After an error that may pass, while something is due, the REQ may go again and have another answer.
        or_(transactions.c.status.not_in(list(TRANSIENT)), transactions.c.due_at.is_(None)),
    ),
)
_ENDED = _inserting(
    "answered",
    transactions.c.peer,
    transactions.c.updated_at,
    and_(
        transactions.c.id.in_(bindparam("rows", expanding=True)),
        _OUT,
        transactions.c.status.in_(list(TRANSIENT)),
        or_(
            transactions.c.state == State.FAILED.value,
            and_(
                transactions.c.state.in_([State.ANSWERED.value, State.BOUNCED.value]), transactions.c.due_at.is_(None)
            ),
        ),
    ),
)


def charge_accepted(connection: Connection, token: str, at: datetime) -> None:
    """Make the records of a message that Postfix has since `at`; in the transaction that noted it, after that."""
    values = {"a_token": token, "an_at": at}
    connection.execute(_SENT[connection.dialect.name], values)
    connection.execute(_RECEIVED[connection.dialect.name], values)


def charge_answer(connection: Connection, peer: str, type_: str, transaction_id: str, at: datetime) -> None:
    """Make the records of the RES that came at `at`; only the first to a transaction makes one.

    An error that may pass makes none while anything is due: see `charge_ended`.
    """
    if type_.endswith(".RES"):
        request = type_.removesuffix(".RES") + ".REQ"
        values = {"an_id": transaction_id, "a_peer": peer, "a_type": request, "an_at": at}
        connection.execute(_ANSWERED[connection.dialect.name], values)


def charge_ended(connection: Connection, rows: Sequence[int]) -> None:
    """Make the records of those of the transactions whose last word is an error that might have passed."""
    if rows:
        connection.execute(_ENDED[connection.dialect.name], {"rows": list(rows)})


def charge_bounced(connection: Connection, token: str) -> None:
    """As `charge_ended`, for a message that bounced: its REQ is not sent again."""
    rows = connection.execute(select(transactions.c.id).where(transactions.c.token == token)).scalars()
    charge_ended(connection, rows.all())


@dataclass(frozen=True, slots=True)
class CdrFile:
    """A file of records that a host writes: claimed, then written under a temporary name, then closed by a rename."""

    id: int
    host: str
    folder: str
    name: str
    format: Format
    records: int
    claimed_at: datetime
    written_at: datetime | None
    folder_identity: str | None
    """Device and inode of the folder when it was written, so that another one in its place is not taken for it."""


class _Access(Protocol):
    """The store's own reading and writing."""

    def _write(self, operation: Operation[T]) -> Future[T]: ...

    def _read(self, query: Callable[[Connection], T]) -> T: ...


class Charges:
    """The records of an open store. Futures resolve when the change is on disk and fail with StoreError."""

    def __init__(self, store: _Access) -> None:
        self._store = store

    def claim(
        self, host: str, folder: str, form: Format, most: int, after: timedelta, now: datetime
    ) -> Future[CdrFile | None]:
        """Give the oldest records that stand in no file yet a new file: at most `most`.

        None while fewer wait than that and the oldest is younger than `after`. One that is as far in the future was
        made before the clock was set back.
        """

        def operation(connection: Connection) -> CdrFile | None:
            waiting = _waiting(most)
            number, oldest = connection.execute(select(func.count(), func.min(waiting.c.at))).one()
            if not number or (number < most and abs(now - oldest) < after):
                return None
            values = {"host": host, "folder": folder, "name": "", "format": form, "records": 0, "claimed_at": now}
            (identity,) = connection.execute(insert(cdr_files), values).inserted_primary_key or (0,)
            # Several hosts may share one PostgreSQL: none waits for another's records. SQLite has the one write lock.
            chosen = (
                select(charges.c.id)
                .where(charges.c.file_id.is_(None))
                .order_by(charges.c.id)
                .limit(most)
                .with_for_update(skip_locked=True)
                .cte()
            )
            mine_alone = charges.c.id.in_(select(chosen.c.id))
            connection.execute(update(charges).where(mine_alone).values(file_id=identity))
            extent = select(func.min(charges.c.id), func.max(charges.c.id), func.count())
            first, last, count = connection.execute(extent.where(charges.c.file_id == identity)).one()
            mine = cdr_files.c.id == identity
            if not count:
                connection.execute(delete(cdr_files).where(mine))
                return None
            name = f"mm4-{_plain_name(host)}-{now:%Y%m%dT%H%M%SZ}-{first:012}-{last:012}.{form}"
            connection.execute(update(cdr_files).where(mine).values(name=name, records=count))
            return _file(connection.execute(select(cdr_files).where(mine)).one())

        return self._store._write(operation)

    def written(self, file: CdrFile, folder_identity: str, at: datetime) -> Future[None]:
        """Note that the file is whole on disk under its temporary name."""
        return self._set(file, written_at=at, folder_identity=folder_identity)

    def closed(self, file: CdrFile, at: datetime) -> Future[None]:
        """Note that the file has its name: it is done."""
        return self._set(file, closed_at=at)

    def unclosed(self, host: str | None = None, folder: str | None = None) -> list[CdrFile]:
        """Read the files that are claimed and not closed, oldest first; of one host and folder where given."""
        query = select(cdr_files).where(cdr_files.c.closed_at.is_(None)).order_by(cdr_files.c.id)
        for column, value in ((cdr_files.c.host, host), (cdr_files.c.folder, folder)):
            if value is not None:
                query = query.where(column == value)
        return self._store._read(lambda connection: [_file(row) for row in connection.execute(query)])

    def waiting(self) -> tuple[int, datetime | None]:
        """Count the records that stand in no file yet; with the time of the oldest."""
        query = select(func.count(), func.min(charges.c.at)).where(charges.c.file_id.is_(None))
        return self._store._read(lambda connection: tuple(connection.execute(query).one()))

    def of_file(self, file: CdrFile) -> Iterator[Record]:
        """Read the records of a file in order of their sequence numbers, a page at a time."""
        return self._pages(charges.c.file_id == file.id)

    def search(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        type_: str | None = None,
        peer: str | None = None,
    ) -> Iterator[Record]:
        """Read records in order of their sequence numbers, a page at a time; `until` is exclusive."""
        conditions = [charges.c.id > 0]
        conditions += [charges.c.at >= since] if since is not None else []
        conditions += [charges.c.at < until] if until is not None else []
        conditions += [charges.c.type == type_] if type_ is not None else []
        conditions += [charges.c.peer == peer] if peer is not None else []
        return self._pages(and_(*conditions))

    def _pages(self, condition: ColumnElement[bool]) -> Iterator[Record]:
        query = select(charges).where(condition, charges.c.id > bindparam("last")).order_by(charges.c.id).limit(_PAGE)

        def after(last: int) -> Sequence[Row[Any]]:
            return self._store._read(lambda connection: connection.execute(query, {"last": last}).all())

        rows = after(0)
        while rows:
            yield from map(_record, rows)
            rows = after(rows[-1].id)

    def _set(self, file: CdrFile, **values: Any) -> Future[None]:
        def operation(connection: Connection) -> None:
            connection.execute(update(cdr_files).where(cdr_files.c.id == file.id).values(**values))

        return self._store._write(operation)


def _waiting(most: int) -> Any:
    return select(charges.c.at).where(charges.c.file_id.is_(None)).order_by(charges.c.id).limit(most).subquery()


def _plain_name(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", host)


def _file(row: Row[Any]) -> CdrFile:
    return CdrFile(
        row.id, row.host, row.folder, row.name, row.format, row.records, row.claimed_at, row.written_at,
        row.folder_identity,
    )  # fmt: skip


def _record(row: Row[Any]) -> Record:
    return Record(
        sequence_number=row.id,
        record_type=row.type,
        record_time=row.at,
        request_time=row.requested_at,
        peer=row.peer,
        originator=row.originator,
        recipient=row.recipient,
        message_id=row.message_id,
        transaction_id=row.transaction_id,
        message_size=row.size,
        time_of_expiry=row.expires_at,
        ack_requested=row.ack_requested,
        delivery_report_requested=row.delivery_report,
        read_reply_requested=row.read_reply,
        request_status=row.status,
        mm_status=row.mm_status,
        read_status=row.read_status,
        queue_id=row.queue_id,
        host=row.host,
        token=row.token,
    )
