"""Statements on the way of every message: their SQL is made once, and then goes to the driver as it is.

SQLAlchemy looks up, binds and wraps each statement anew, which takes several times as long as SQLite itself. Here that
is done at the first use for each kind of database; the driver keeps the prepared statement (sqlite3 by its text,
psycopg after a few uses). Errors are SQLAlchemy's, as everywhere in the store.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Executable, Insert, Select, or_
from sqlalchemy.exc import DBAPIError

__all__ = ["Prepared", "among"]

_Processor = Callable[[Any], Any]


def among(column: ColumnElement[str], values: Iterable[str]) -> ColumnElement[bool]:
    """As IN with constants, which SQLAlchemy writes out at each execution only."""
    return or_(*(column == value for value in values))


class _Plan:
    """One statement for one kind of database: its text, and how values go in and come out."""

    def __init__(self, statement: Any, dialect: Dialect, names: Sequence[str]) -> None:
        # An INSERT has the columns of the first row; the others stay empty.
        columns = names if isinstance(statement, Insert) else None
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self.text = str(compiled)
        processors = {
            name: value.type.dialect_impl(dialect).bind_processor(dialect) for name, value in compiled.binds.items()
        }
        bound = dict.fromkeys(compiled.positiontup or compiled.params)
        self.constants = {name: value.value for name, value in compiled.binds.items() if not value.required}
        self.processors = [(name, processors[name]) for name in bound if processors.get(name) is not None]
        self.order = compiled.positiontup
        self.row: Any = None
        self.results: list[tuple[int, _Processor]] = []
        if isinstance(statement, Select):
            selected = list(statement.selected_columns)
            # A join may bring a name twice; the first is the one that is asked for.
            self.row = namedtuple("Row", [column.name for column in selected], rename=True)  # type: ignore[misc]
            found = (column.type.dialect_impl(dialect).result_processor(dialect, None) for column in selected)
            self.results = [(number, made) for number, made in enumerate(found) if made is not None]

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """The values as the driver takes them. Raises KeyError where one is missing."""
        given = {**self.constants, **values}
        for name, process in self.processors:
            given[name] = process(given[name])
        return given if self.order is None else [given[name] for name in self.order]


class Prepared:
    """A statement of SQLAlchemy Core; the rows of an INSERT have all the same columns."""

    def __init__(self, statement: Executable) -> None:
        # Nobody asks for the row numbers that an INSERT makes.
        self._statement = statement.inline() if isinstance(statement, Insert) else statement
        self._plans: dict[str, _Plan] = {}

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a SELECT, as named tuples. Raises DBAPIError."""
        plan = self._plan(connection, values)
        found = self._run(connection, plan, plan.parameters(values)).fetchall()
        if not plan.results:
            return [plan.row._make(row) for row in found]
        made = []
        for row in found:
            cells = list(row)
            for number, process in plan.results:
                cells[number] = process(cells[number])
            made.append(plan.row._make(cells))
        return made

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """The first row of a SELECT; None where there is none. Raises DBAPIError."""
        found = self.rows(connection, values)
        return found[0] if found else None

    def change(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Run a statement that gives no rows; how many it changed. Raises DBAPIError."""
        plan = self._plan(connection, values)
        return int(self._run(connection, plan, plan.parameters(values)).rowcount)

    def _plan(self, connection: Connection, values: Mapping[str, Any]) -> _Plan:
        dialect = connection.dialect
        plan = self._plans.get(dialect.name)
        if plan is None:
            plan = self._plans[dialect.name] = _Plan(self._statement, dialect, list(values))
        return plan

    @staticmethod
    def _run(connection: Connection, plan: _Plan, parameters: Any) -> Any:
        if not connection.in_transaction():
            connection.begin()
        driver: Any = connection.connection.driver_connection
        dialect = connection.dialect
        try:
            return driver.execute(plan.text, parameters)
        except dialect.loaded_dbapi.Error as error:
            broken = dialect.is_disconnect(error, driver, None)
            failure = DBAPIError.instance(
                plan.text, None, error, dialect.loaded_dbapi.Error, connection_invalidated=broken, dialect=dialect
            )
            if broken:
                connection.invalidate(error)
            raise failure from error
