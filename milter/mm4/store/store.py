"""The store: what is kept of every MM4 transaction, for all threads of a process and all processes at once.

Writes give futures that resolve when the commit is on disk; reads are answered at once and see every commit.
Whatever fails is a StoreError, raised by a read and held by the future of a write: temporary, naming the
place and the cure. Nothing waits longer than `busy_seconds` for another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, func, select, text

from ..protocol.errors import StoreError
from ..protocol.limits import Limit, Standing, Taken
from ..protocol.retry import Retry
from ..protocol.transaction import Direction, Message, Original, Recording
from . import clock, copies, expiry, listing, records, retention, timers, trace, transitions, upkeep
from .charges import Charges, charge_accepted, charge_answer, charge_bounced, charge_ended
from .clock import Ahead
from .database import Database
from .expiry import Expired
from .limits import standings, take_limits
from .retention import Ages, Found, Removed
from .returned import load_returned
from .schema import clean, transactions
from .timers import Hindrance, Late
from .upgrade import prepare
from .writer import Operation, Writer

__all__ = ["Store"]

T = TypeVar("T")

_COUNTS = select(transactions.c.direction, transactions.c.state, func.count()).group_by(
    transactions.c.direction, transactions.c.state
)
# Changes nothing, but has to be written and flushed like a change.
_TOUCH = text("UPDATE alembic_version SET version_num = version_num")


class Store:
    """An open store, made by `Store.open`; every method may be called from any thread.

    Open it in the process that uses it: after fork() it answers with StoreError. Times are aware datetimes;
    ids are unquoted.
    """

    def __init__(
        self, database: Database, readers: Engine, writer: Writer | None, charging: bool = False,
        reading_threads: int = 0,
    ) -> None:  # fmt: skip
        self._database = database
        self._charging = charging
        self.charges = Charges(self)
        self._readers = readers
        self._threads = ThreadPoolExecutor(reading_threads, "mm4-store-reader") if reading_threads else None
        self._writer = writer
        self._purger: Writer | None = None
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def open(
        cls,
        url: str,
        *,
        busy_seconds: float = 5.0,
        migrate: bool = True,
        read_only: bool = False,
        charging: bool = False,
        reading_threads: int = 0,
    ) -> Store:
        """Open the store at `sqlite:////absolute/path` or `postgresql://...`, creating or migrating it.

        `busy_seconds` is the longest that anything waits for another process's lock. Without `migrate`, and
        with `read_only`, a store that is missing or old is an error. With `charging` it makes charging records,
        each in the transaction of what it is about. `reading_threads` is for callers whose threads are not
        Python's own (libmilter's): what sqlite3 and ctypes call back there may meet a thread state that pymilter has
        freed, and the process dies. Then so many threads of the store read. Raises StoreError: no such folder, not
        writable, not a database, a schema newer than this code, a URL that names no store.
        """
        database = Database.parse(url, busy_seconds, read_only)
        readers = database.engine("scanner" if read_only else "reader")
        try:
            prepare(database, readers, migrate and not read_only)
        except BaseException:
            readers.dispose()
            raise
        writer = None if read_only else Writer(database, database.engine("writer"))
        return cls(database, readers, writer, charging, reading_threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what was handed in and close. Later writes fail at once, later reads raise StoreError."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for writer in (self._purger, self._writer):
            if writer is not None:
                writer.close()
        # In a forked child the connections are the parent's: closing them there would clear its WAL.
        self._readers.dispose(close=os.getpid() == self._process)

    def record(
        self, message: Message, window: timedelta | None = None, splits: Sequence[Message] = ()
    ) -> Future[Recording]:
        """Keep a message and its transactions, and say what of it came before within `window` (None: do not look).

        `splits` are its parts for further sides, which are kept with it or not at all. A recipient who has it already
        is kept as DUPLICATE; where the same message is undecided nothing is kept. A token that is already kept is a
        StoreError.
        """
        try:
            operation = records.recording(message, window, splits)
        except Exception as error:
            failed: Future[Recording] = Future()
            failed.set_exception(self._database.failure(error))
            return failed
        parts = (message, *splits) if window is not None else ()
        locks = [name for part in parts for name in copies.locks(part)]
        if message.copy_of is not None:
            locks.append(message.copy_of)
        return self._write(operation, locks)

    def accepted(self, token: str, at: datetime, queue_id: str | None = None) -> Future[bool]:
        """Postfix has the message: what was RECORDED is WAITING (outward, ack requested) or ACCEPTED.

        Only the first call counts. `queue_id` is kept only where none was recorded. The result is whether
        the token is known.
        """
        return self._write(
            self._charged(
                lambda connection: transitions.accept(connection, token, at, queue_id),
                lambda connection: charge_accepted(connection, token, at),
            )
        )

    def answered(self, token: str, at: datetime, answer_queue_id: str | None) -> Future[bool]:
        """The RES of the message was submitted: its inward transactions are ANSWERED with the RES's status.

        What was REFUSED stays so. Only the first call counts; accepts the message too if nobody did. The
        result is whether the token is known.
        """
        return self._write(
            self._charged(
                lambda connection: transitions.answer(connection, token, at, answer_queue_id),
                lambda connection: charge_accepted(connection, token, at),
            )
        )

    def receive_answer(
        self,
        peer: str,
        type: str,
        transaction_id: str,
        message_id: str | None,
        status: str,
        text: str | None,
        at: datetime,
        queue_id: str | None,
        host: str,
        recipients: tuple[str, ...] = (),
    ) -> Future[int]:
        """A RES of `type` came in from `peer`: what went out to that peer under these ids is ANSWERED.

        `message_id` None leaves it out of account; `recipients`, where given, narrows. The first answer
        counts; a repeated one, and a contradictory one, is an event, and one that fits nothing an event without a
        transaction. The result is the number of transactions that it fits.
        """
        ids = f"transaction id {transaction_id!r}" + ("" if message_id is None else f", message id {message_id!r}")
        detail = clean(f"{type} {status} from {peer} at {host}, {ids}" + (f": {text}" if text else ""))
        return self._write(
            self._charged(
                lambda connection: transitions.receive_answer(
                    connection,
                    peer=peer,
                    type_=clean(type),
                    transaction_id=clean(transaction_id),
                    message_id=None if message_id is None else clean(message_id),
                    status=clean(status),
                    at=at,
                    recipients=tuple(map(clean, recipients)),
                    queue_id=queue_id,
                    detail=detail,
                ),
                lambda connection: charge_answer(connection, peer, clean(type), clean(transaction_id), at),
            ),
            [f"{peer} {clean(transaction_id)}"],
        )

    def bounced(
        self, token: str, recipient: str | None, status: str, detail: str, at: datetime, queue_id: str | None
    ) -> Future[int]:
        """Delivery failed to `recipient`, or to all (None): BOUNCED with `status`.

        The status of a transaction that was answered, or bounced before, is kept. The result is the number
        of transactions concerned; where there are none, an event `unknown bounce` is kept for the token.
        """
        cleaned = clean(detail)
        return self._write(
            self._charged(
                lambda connection: transitions.bounce(
                    connection,
                    token,
                    recipient=None if recipient is None else clean(recipient),
                    status=clean(status),
                    at=at,
                    queue_id=queue_id,
                    detail=cleaned,
                ),
                lambda connection: charge_bounced(connection, token),
            )
        )

    def event(
        self,
        token: str | None,
        at: datetime,
        what: str,
        queue_id: str | None = None,
        detail: str | None = None,
    ) -> Future[None]:
        """Keep an event about the message as a whole; the token need not be known."""
        cleaned = None if detail is None else clean(detail)
        return self._write(
            lambda connection: transitions.add_event(
                connection, token=token, at=at, what=what, queue_id=queue_id, detail=cleaned
            )
        )

    def overdue(self, now: datetime, limit: int, retries: Mapping[str, Retry]) -> Future[tuple[list[Late], int]]:
        """Take up to `limit` transactions whose `due_at` has passed to OVERDUE or FAILED, each once.

        `retries` is by peer's name. The result is what became of them and how many rows were looked at: as many as
        `limit` means that more may be due.
        """
        return self._write(self._timed(lambda connection: timers.overdue(connection, now, limit, retries)))

    def claim(
        self,
        now: datetime,
        limit: int,
        retries: Mapping[str, Retry],
        host: str,
        hindrance: Hindrance | None = None,
    ) -> Future[tuple[list[Late], int]]:
        """Claim up to `limit` messages that are to be sent again from `host`; `sent_again` or `not_sent` follows.

        Who does neither within `timers.LEASE` has it claimed by somebody again. What is FAILED comes along; what
        `hindrance` holds back does not.
        """
        return self._write(
            self._timed(lambda connection: timers.claim(connection, now, limit, retries, host, hindrance))
        )

    def sent_again(self, late: Late, at: datetime, queue_id: str | None, due_at: datetime) -> Future[bool]:
        """A claimed message was submitted again: WAITING until `due_at`. The result: nobody had answered yet."""
        return self._write(lambda connection: timers.sent_again(connection, late, at, queue_id, due_at))

    def not_sent(self, late: Late, at: datetime, reason: str, again_at: datetime | None) -> Future[None]:
        """A claimed message was not submitted: it is due at `again_at`, or not any more (None)."""
        cleaned = clean(reason)
        return self._write(
            self._charged(
                lambda connection: timers.not_sent(connection, late, at, cleaned, again_at),
                lambda connection: charge_ended(connection, [late.row]),
            )
        )

    def settle(self, rows: Collection[int]) -> Future[None]:
        """The originators of these FAILED transactions were told; else `overdue` gives them again."""
        return self._write(lambda connection: timers.settle(connection, rows))

    def ahead(self, now: datetime, limit: int, retries: Mapping[str, Retry], host: str) -> list[Ahead]:
        """Read up to `limit` transactions of this host whose `due_at` a clock put too far ahead: see `clock`."""
        return self._read(lambda connection: clock.ahead(connection, now, limit, retries, host))

    def set_due(self, found: Sequence[Ahead]) -> Future[None]:
        """Have these transactions due when they are in truth, unless something has happened to them meanwhile."""
        return self._write(lambda connection: clock.set_due(connection, found))

    def any_due(self, now: datetime) -> bool:
        """Read whether a transaction's `due_at` has passed."""
        return self._read(lambda connection: timers.any_due(connection, now))

    def any_to_send(self, now: datetime, host: str) -> bool:
        """Read whether `claim` would find anything for this host."""
        return self._read(lambda connection: timers.any_to_send(connection, now, host))

    def awaited(self, tokens: Sequence[str]) -> set[str]:
        """Read which of these messages have a recipient for whom they may have to be sent again."""
        return self._read(lambda connection: timers.awaited(connection, tokens))

    def expired(self, queue_ids: Sequence[str], host: str, now: datetime) -> list[Expired]:
        """Read which of these queue ids of `host` are of messages past their expiry, by its and its copies' ids."""
        return self._read(lambda connection: expiry.expired(connection, queue_ids, host, now))

    def message(self, token: str) -> Message | None:
        """Read a message with its transactions and answer; None where the token is unknown."""
        return self._read(lambda connection: records.load(connection, clean(token)))

    def withdraw(self, token: str) -> Future[None]:
        """Forget a message that was refused before Postfix had it, if it was kept at all."""

        def operation(connection: Connection) -> None:
            records.withdraw(connection, token)

        return self._write(operation)

    def copies(self, message: Message, window: timedelta, splits: Sequence[Message] = ()) -> Recording:
        """Say what of a message, and of its parts for further sides, came before, and keep nothing."""
        return self._read(
            lambda connection: Recording.together(copies.find(connection, m, window) for m in (message, *splits))
        )

    def take(self, limits: Sequence[Limit], now: datetime) -> Future[Taken]:
        """Count one message for all of the limits, or for none where it is over one of them."""
        keys = [limit.key for limit in limits]
        return self._write(lambda connection: take_limits(connection, limits, now), keys)

    def standings(self, keys: Collection[str]) -> dict[str, Standing]:
        """Read how far limits are used, by key, and count nothing."""
        return self._read(lambda connection: standings(connection, keys))

    def originals(
        self,
        message_id: str,
        *,
        direction: Direction | None = None,
        peer: str | None = None,
        recipient: str | None = None,
    ) -> tuple[Original, ...]:
        """Read the forward.REQs with this message id (unquoted) that were not refused, one a recipient, newest first.

        At most `records.MOST_ORIGINALS`. `recipient` is an `Address.key`; what is None does not narrow.
        """
        return self._read(
            lambda connection: records.load_originals(
                connection, clean(message_id), direction, peer, None if recipient is None else clean(recipient)
            )
        )

    def held(self, transaction_id: str, message_id: str | None, peer: str | None) -> tuple[Message, ...]:
        """Read the messages whose own RES waits for the one to this transaction, newest first.

        They are those that went to `peer`, or, where that is None, those that came in. `message_id` None narrows not.
        """
        cleaned = None if message_id is None else clean(message_id)
        return self._read(lambda connection: records.load_held(connection, clean(transaction_id), cleaned, peer))

    def returned(self, transaction_id: str, message_id: str | None, direction: Direction) -> tuple[Message, ...]:
        """Read the messages of which a returned copy with these ids (unquoted) may be one, newest first.

        `direction` is that of the message; a RES went the other way than its message. At most `returned.MOST`.
        """
        return self._read(
            lambda connection: load_returned(
                connection, clean(transaction_id), None if message_id is None else clean(message_id), direction
            )
        )

    def owed(self, older_than: datetime | None = None) -> list[Message]:
        """Read the messages whose answer is not out yet, oldest first; `older_than`: recorded before it."""
        return self._read(lambda connection: records.load_owed(connection, older_than))

    def trace(self, identifier: str, limit: int = trace.MOST) -> list[dict[str, Any]]:
        """Read the transactions whose message id, transaction id, token or queue id is the identifier.

        The queue id may be that of an answer. In time order, as `mm4 trace --json` prints them, of more than `limit`
        the newest; surrounding quotes of the identifier are ignored.
        """
        return self._read(lambda connection: trace.trace(connection, clean(identifier), limit))

    def trace_number(self, number: str, limit: int) -> list[dict[str, Any]]:
        """Read the newest transactions of a number (an `Address.key`), whichever end it is of, newest first."""
        return self._read(lambda connection: trace.trace_number(connection, clean(number), limit))

    def whole(self, identifier: str) -> list[dict[str, Any]]:
        """As `trace`, with everything that is kept of each; the identifier may be a row id too."""
        return self._read(lambda connection: trace.whole(connection, clean(identifier)))

    def listed(self, wanted: listing.Wanted, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Read the transactions that are wanted, newest first, a page at a time: in little memory, however many."""
        before: int | None = None
        left = limit
        while left is None or left > 0:
            size = listing.PAGE if left is None else min(left, listing.PAGE)
            page = self._read(lambda connection: listing.listing(connection, wanted, before, size))  # noqa: B023
            yield from page
            if len(page) < size:
                return
            before = page[-1]["id"]
            left = None if left is None else left - size

    def by_queue(self, tokens: Sequence[str], queue_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Read what is known of messages in the mail queue, one row a transaction: see `listing.by_queue`."""
        return self._read(lambda connection: listing.by_queue(connection, tokens, queue_ids))

    def owed_rows(self, older_than: datetime, limit: int) -> list[dict[str, Any]]:
        """As `owed`, the oldest `limit`, without the answers themselves: see `listing.owed_rows`."""
        return self._read(lambda connection: listing.owed_rows(connection, older_than, limit))

    def held_rows(self, older_than: datetime, limit: int) -> list[dict[str, Any]]:
        """Read the oldest messages whose RES waits for another's word: see `listing.held_rows`."""
        return self._read(lambda connection: listing.held_rows(connection, older_than, limit))

    def lost_rows(self, since: datetime, limit: int) -> list[dict[str, Any]]:
        """Read the newest messages whose RES came back since then: see `listing.lost_rows`."""
        return self._read(lambda connection: listing.lost_rows(connection, since, limit))

    def statistics(self, now: datetime, since: datetime | None = None) -> dict[str, Any]:
        """Count and group all transactions: see `listing.statistics`."""
        return self._read(lambda connection: listing.statistics(connection, now, since))

    def hurry(self, rows: Sequence[int], at: datetime) -> Future[int]:
        """Make transactions (by row id) that have no answer OVERDUE and due at `at`; the result is how many."""
        return self._write(lambda connection: upkeep.hurry(connection, rows, at))

    def forget(self, token: str, *, force: bool = False) -> Future[str | None]:
        """Remove a message with its transactions and events; the result is why not, None where it is gone."""
        return self._write(lambda connection: upkeep.forget(connection, token, force))

    def outdated(self, walk: str, ages: Ages, after: tuple[Any, ...] | None) -> Found:
        """Read what of a table is old, a look at a time: see `retention.look`."""
        return self._read(lambda connection: retention.look(connection, walk, ages, after))

    def purge(self, walk: str, keys: Sequence[Any], ages: Ages) -> Future[Removed]:
        """Remove a batch of what `outdated` gave, as much as nobody feels; the result is what and how much it was.

        Not in one commit with anything else, and on disk some time later. For one thread.
        """
        if self._writer is not None and self._purger is None and not self._closed:
            self._purger = Writer(self._database, self._database.engine("purger"))
        return self._write(lambda connection: retention.remove(connection, walk, keys, ages), writer=self._purger)

    def checkpoint(self) -> int:
        """Move SQLite's log into the file as far as nobody waits for that; gives the pages that the log keeps."""
        try:
            return self._database.checkpoint()
        except Exception as error:
            raise self._database.failure(error) from error

    def notes(self, since: datetime) -> list[dict[str, Any]]:
        """Read what was done to the store itself since then (restored, copied): see `upkeep.notes`."""
        return self._read(lambda connection: upkeep.notes(connection, since))

    def counts(self) -> dict[str, int]:
        """Count the transactions by direction and state: `{"in/answered": 12, "out/waiting": 3}`.

        Reads every transaction: for statistics, not for the way of a message.
        """
        return self._read(
            lambda connection: {
                f"{direction}/{state}": number for direction, state, number in connection.execute(_COUNTS)
            }
        )

    def ping(self) -> None:
        """Write, and commit to disk, nothing; raises StoreError unless the store can be written now."""

        def touch(connection: Connection) -> None:
            connection.execute(_TOUCH)

        future = self._write(touch)
        # The margin beyond the lock is for a flush under way; a disk that never returns is no store.
        limit = 2 * self._database.busy_seconds + 5
        try:
            future.result(limit)
        except FutureTimeoutError:
            raise StoreError(f"store {self._database}: not written within {limit:g} s; check the disk") from None

    def _charged(self, operation: Operation[T], charge: Operation[None]) -> Operation[T]:
        """The operation, and the charging records that it makes in the same transaction, where these are wanted."""
        if not self._charging:
            return operation

        def both(connection: Connection) -> T:
            result = operation(connection)
            charge(connection)
            return result

        return both

    def _timed(self, operation: Operation[tuple[list[Late], int, list[int]]]) -> Operation[tuple[list[Late], int]]:
        """A step of the timers, and the charging records of what it ended."""

        def both(connection: Connection) -> tuple[list[Late], int]:
            found, seen, ended = operation(connection)
            if self._charging:
                charge_ended(connection, ended)
            return found, seen

        return both

    def _write(
        self, operation: Operation[T], locks: Sequence[str] = (), *, writer: Writer | None = None
    ) -> Future[T]:
        if self._writer is not None:
            return (writer or self._writer).submit(operation, locks)
        refused: Future[T] = Future()
        refused.set_exception(StoreError(f"store {self._database}: was opened read-only"))
        return refused

    def _read(self, query: Callable[[Connection], T]) -> T:
        if self._closed:
            raise StoreError(f"store {self._database}: is closed")
        if os.getpid() != self._process:
            raise StoreError(f"store {self._database}: was opened before fork(); open it in the child")
        if self._threads is None:
            return self._answer(query)
        limit = 3 * self._database.busy_seconds
        try:
            return self._threads.submit(self._answer, query).result(limit)
        except FutureTimeoutError:
            raise StoreError(f"store {self._database}: not read within {limit:g} s; check the disk") from None
        except (CancelledError, RuntimeError):
            raise StoreError(f"store {self._database}: is closed") from None

    def _answer(self, query: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as connection:
                return query(connection)
        except Exception as error:
            raise self._database.failure(error) from error
