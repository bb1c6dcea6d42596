"""Group commit: one thread a process writes what all its threads hand in.

A commit costs a disk flush, whatever it holds. So everything that has gathered while the last flush ran
goes into the next one. A future resolves only after its commit is on disk. Whatever goes wrong is a
StoreError in the future; an operation that the database refuses fails alone. Nothing waits for ever: each
operation waits for the write lock at most `busy_seconds`, and a closed writer fails it at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text

from ..protocol.errors import StoreError
from .database import Database
from .prepared import Prepared

__all__ = ["Operation", "Writer"]

T = TypeVar("T")

Operation = Callable[[Connection], T]
"""Runs statements and gives back the future's result. It may run twice, the first time being undone; it
never commits and touches nothing but the connection."""

_SAVE = Prepared(text("SAVEPOINT together"))
_RELEASE = Prepared(text("RELEASE SAVEPOINT together"))
_BACK = Prepared(text("ROLLBACK TO SAVEPOINT together"))
# Bounds how long one process keeps the write lock from the others: 500 take about 50 ms.
_LARGEST_GROUP = 500
# What was undone alone is done again at once: whoever it waited for has committed meanwhile.
_TRIES = 3


@dataclass(slots=True)
class _Work:
    operation: Operation[Any]
    future: Future[Any]
    deadline: float
    """time.monotonic() until which the work waits for the write lock."""
    locks: Sequence[str]


class Writer:
    """The one writing thread of a process. `submit` may be called from any thread."""

    def __init__(self, database: Database, engine: Engine) -> None:
        self._database = database
        self._engine = engine
        self._waiting: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="mm4-store-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T], locks: Sequence[str] = ()) -> Future[T]:
        """Hand in an operation. The future gives its result once that is on disk, or raises StoreError.

        `locks` names what no other host may do at the same time; it is locked before the group begins.
        Never raises and never blocks. A future that was cancelled before its turn is left out.
        """
        future: Future[T] = Future()
        if os.getpid() != self._process:
            # The thread stayed in the parent: the future would never resolve.
            future.set_exception(StoreError(f"store {self._database}: was opened before fork(); open it in the child"))
            return future
        work = _Work(operation, future, time.monotonic() + self._database.busy_seconds, locks)
        with self._changed:
            if not self._closed:
                self._waiting.append(work)
                self._changed.notify()
                return future
        future.set_exception(StoreError(f"store {self._database}: is closed"))
        return future

    def close(self) -> None:
        """Write what was handed in, then end the thread. What is handed in later fails at once.

        Takes at most about `busy_seconds` where another process holds the lock.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            # The margin is for a flush under way; a disk that never returns must not keep us.
            self._thread.join(2 * self._database.busy_seconds + 5)

    def _run(self) -> None:
        try:
            while self._wait():
                self._group()
        finally:
            # Reached with work left only if the interpreter itself fails (no memory): nobody shall wait.
            with self._changed:
                self._closed = True
            self._fail(self._take(everything=True), StoreError(f"store {self._database}: its writer ended"))
            self._disconnect()

    def _wait(self) -> bool:
        """Wait for work; False once the writer is closed and nothing is left."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return bool(self._waiting)

    def _group(self) -> None:
        """Take the write lock, then everything that has gathered until then, and commit it as one."""
        connection = self._begin()
        if connection is None:
            return
        group = self._take()
        executed = False
        try:
            outcomes = self._execute(connection, group)
            executed = True
            connection.commit()
        except BaseException as error:
            # Undone as a whole. The connection may be in any state: the next group gets a new one.
            self._disconnect()
            alone = len(group) == 1 and self._database.waited(error)
            if not executed and not alone and self._database.undone(error):
                self._one_by_one(group)
                return
            # A commit without an answer is never repeated: it may be on disk.
            self._fail(group, error)
            if not isinstance(error, Exception):
                raise
            return
        for work, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._fail([work], outcome)
            else:
                work.future.set_result(outcome)

    def _one_by_one(self, group: list[_Work]) -> None:
        """Commit each by itself, on a new connection: none holds a lock while it waits for another's."""
        for number, work in enumerate(group):
            for left in reversed(range(_TRIES)):
                try:
                    if self._connection is None:
                        self._connection = self._engine.connect()
                    self._connection.begin()
                except Exception as error:
                    self._disconnect()
                    self._fail(group[number:], error)
                    return
                executed = False
                try:
                    (outcome,) = self._execute(self._connection, [work])
                    executed = True
                    self._connection.commit()
                except BaseException as error:
                    self._disconnect()
                    waited = self._database.waited(error)
                    if left and not executed and not waited and self._database.undone(error):
                        continue
                    self._fail([work], error)
                    if not isinstance(error, Exception):
                        raise
                    if waited:
                        # Each of the others would wait as long again.
                        self._fail(group[number + 1 :], error)
                        return
                else:
                    work.future.set_result(outcome)
                break

    def _begin(self) -> Connection | None:
        """Begin a transaction; None once the oldest work's time is over or the database is not usable."""
        while True:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                self._connection.begin()
                return self._connection
            except Exception as error:
                now = time.monotonic()
                if not self._database.busy(error):
                    self._disconnect()
                    self._fail(self._take(everything=True), error)
                    return None
                with self._changed:
                    late = [work for work in self._waiting if work.deadline <= now]
                if late:
                    self._fail(self._take(number=len(late)), error)
                    return None
                if self._connection is None:
                    time.sleep(0.003)  # connecting, unlike BEGIN, may say "busy" without waiting

    def _execute(self, connection: Connection, group: list[_Work]) -> list[Any]:
        """Run the group; gives a result or an exception for each."""
        # Before any savepoint, whose rollback would give them back.
        self._database.lock(connection, (name for work in group for name in work.locks))
        if len(group) == 1:
            return [group[0].operation(connection)]
        # One savepoint for all is the cheap way; one for each is taken only after a failure. Not by begin_nested(),
        # which has a new name, hence a new statement to compile, for every group.
        _SAVE.change(connection, {})
        try:
            results = [work.operation(connection) for work in group]
            _RELEASE.change(connection, {})
            return results
        except Exception as error:
            if self._database.undone(error):
                raise
            _BACK.change(connection, {})
        return [self._alone(connection, work) for work in group]

    def _alone(self, connection: Connection, work: _Work) -> Any:
        savepoint = connection.begin_nested()
        try:
            result = work.operation(connection)
            savepoint.commit()
            return result
        except Exception as error:
            if self._database.undone(error):
                raise
            # Fails where the database has given up the whole transaction (full, input/output): then all fail.
            savepoint.rollback()
            return error

    def _take(self, everything: bool = False, number: int = _LARGEST_GROUP) -> list[_Work]:
        """Take work off the queue, oldest first, without what its caller has cancelled meanwhile."""
        with self._changed:
            if everything:
                number = len(self._waiting)
            taken = [self._waiting.popleft() for _ in range(min(number, len(self._waiting)))]
        return [work for work in taken if work.future.set_running_or_notify_cancel()]

    def _fail(self, group: list[_Work], error: BaseException) -> None:
        for work in group:
            # An exception for each: threads that raise the same one would mix their tracebacks.
            failure = StoreError(str(self._database.failure(error)))
            failure.__cause__ = error
            work.future.set_exception(failure)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except Exception:  # noqa: S110  it is given up; that it cannot even be closed changes nothing
            pass
