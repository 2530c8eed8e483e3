"""Plain statements for SQLite and PostgreSQL, made once from the models.

The ORM takes a millisecond for what these do in a few microseconds. Only the
common case of a turn is written in them; see `grouping`.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.db.models import Model

#: The databases that these are for.
VENDORS = ("sqlite", "postgresql")

_NOW = {
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')",
    "postgresql": "STATEMENT_TIMESTAMP()",
}
_FROM_NOW = {
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW', {} || ' seconds')",
    "postgresql": "STATEMENT_TIMESTAMP() + MAKE_INTERVAL(secs => {})",
}
# PostgreSQL's protocol counts parameters in 16 bits; SQLite's own limit may be lower.
_MOST_PARAMETERS = 30_000
_PLACEHOLDER = {"sqlite": "?", "postgresql": "%s"}


def driver_cursor(connection: Any) -> Any:
    """Return a cursor of the driver itself, without Django's wrappers.

    Args:
        connection: Django's connection, open.
    """
    return connection.connection.cursor()


def now(vendor: str) -> str:
    """Return the expression of the database's time.

    Args:
        vendor: The database's vendor.
    """
    return _NOW[vendor]


def from_now(vendor: str) -> str:
    """Return the expression of a time some seconds from now; the seconds are a parameter, as text or number.

    Args:
        vendor: The database's vendor.
    """
    return _FROM_NOW[vendor].format("?" if vendor == "sqlite" else "%s")


def seconds(vendor: str, value: float) -> Any:
    """Return a number of seconds as `from_now` takes it.

    Args:
        vendor: The database's vendor.
        value: The seconds.
    """
    return f"+{value}" if vendor == "sqlite" else float(value)


def moment(connection: Any, value: datetime | None) -> Any:
    """Return a time as the driver takes it.

    Args:
        connection: Django's connection.
        value: The time, aware.
    """
    if value is not None and value.tzinfo is UTC and connection.vendor == "sqlite" and connection.timezone is UTC:
        # What Django makes of it in many steps: without the +00:00.
        return value.isoformat(" ")[:-6]
    return connection.ops.adapt_datetimefield_value(value)


@functools.cache
def statement(vendor: str, text: str) -> str:
    """Return a statement written with ``%s`` in the placeholders of a driver.

    Args:
        vendor: The database's vendor.
        text: The statement; ``{now}`` and ``{from_now}`` stand for `now` and `from_now`.
    """
    placed = text.strip().replace("%s", _PLACEHOLDER[vendor])
    return placed.replace("{now}", now(vendor)).replace("{from_now}", from_now(vendor))


def placeholders(vendor: str, number: int) -> str:
    """Return placeholders for a list of values, with commas between them.

    Args:
        vendor: The database's vendor.
        number: How many values.
    """
    return ", ".join([_PLACEHOLDER[vendor]] * number)


def values_table(vendor: str, types: tuple[str, ...], rows: int) -> str:
    """Return a table of values, its columns named ``column1`` and so on, for the FROM of an UPDATE.

    Args:
        vendor: The database's vendor.
        types: The columns' types, as PostgreSQL knows them: it tells none from values that may be null.
        rows: Number of rows.
    """
    place = _PLACEHOLDER[vendor]
    first = [f"{place}::{kind}" if vendor == "postgresql" else place for kind in types]
    others = f", ({', '.join([place] * len(types))})" * (rows - 1)
    return f"(VALUES ({', '.join(first)}){others})"


@functools.lru_cache(maxsize=256)
def with_keys(vendor: str, text: str, keys: int) -> str:
    """Return a statement with placeholders for a list of keys.

    Args:
        vendor: The database's vendor.
        text: The statement; ``{keys}`` stands for them.
        keys: How many.
    """
    return text.strip().format(keys=placeholders(vendor, keys))


@functools.lru_cache(maxsize=256)
def with_values(vendor: str, text: str, types: tuple[str, ...], rows: int) -> str:
    """Return a statement with a table of values.

    Args:
        vendor: The database's vendor.
        text: The statement; ``{values}`` stands for the table, all else is as in `statement`.
        types: See `values_table`.
        rows: Likewise.
    """
    return statement(vendor, text).replace("{values}", values_table(vendor, types, rows))


def rows_at_once(connection: Any, columns: int) -> int:
    """Return how many rows fit into one statement.

    Args:
        connection: Django's connection, open.
        columns: Parameters of a row.
    """
    if connection.vendor == "sqlite":
        most = connection.connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        return max(1, int(min(most, _MOST_PARAMETERS)) // columns)
    return max(1, _MOST_PARAMETERS // columns)


class Insert:
    """An INSERT of rows of a model: some columns given, the others by the fields' defaults.

    Args:
        model: The model.
        given: Attribute names of the columns that are given, in the order of the values.
        expressions: Columns that are an expression with one parameter of the values' order; see `statement`.
    """

    def __init__(self, model: type[Model], given: Sequence[str], from_now: str | None = None) -> None:
        self._model = model
        self._given = tuple(given)
        self._from_now = from_now

    def rows_at_once(self, connection: Any) -> int:
        """Return how many rows fit into one statement.

        Args:
            connection: Django's connection, open.
        """
        return rows_at_once(connection, len(self._given))

    @functools.lru_cache(maxsize=256)  # noqa: B019 - made once a model, at import
    def text(self, vendor: str, rows: int = 1, *, on_conflict: str = "", returning: str = "") -> str:
        """Return the statement.

        Args:
            vendor: The database's vendor.
            rows: Number of rows.
            on_conflict: What becomes of a row that exists; empty: it is an error.
            returning: The columns that are returned.
        """
        fields = {field.attname: field for field in self._model._meta.concrete_fields if not field.primary_key}
        others = [name for name in fields if name not in self._given]
        names = [*self._given, *others]
        values = ["{from_now}" if name == self._from_now else "%s" for name in self._given]
        # Part of the text: to bind a value takes longer than the database takes to read it.
        values += [_literal(fields[name].get_default()) for name in others]
        columns = ", ".join(f'"{fields[name].column}"' for name in names)
        table = self._model._meta.db_table
        conflict = f" ON CONFLICT {on_conflict}" if on_conflict else ""
        back = f" RETURNING {returning}" if returning else ""
        given = ", ".join([f"({', '.join(values)})"] * rows)
        text = f'INSERT INTO "{table}" ({columns}) VALUES {given}{conflict}{back}'  # noqa: S608 - names of a model
        return statement(vendor, text)

    def insert(
        self, connection: Any, cursor: Any, rows: Sequence[Sequence[Any]], *, on_conflict: str = "", returning: str = ""
    ) -> list[Any]:
        """Insert rows, as many at once as a statement takes.

        Args:
            connection: Django's connection.
            cursor: The driver's cursor.
            rows: Values of the given columns, in their order, as the driver takes them.
            on_conflict: See `text`.
            returning: Likewise.

        Returns:
            What the rows return, in no order; empty where nothing is returned.
        """
        if not rows:
            return []
        at_once = 1 if len(rows) == 1 else self.rows_at_once(connection)
        back: list[Any] = []
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            text = self.text(connection.vendor, len(some), on_conflict=on_conflict, returning=returning)
            cursor.execute(text, list(itertools.chain.from_iterable(some)))
            if returning:
                back += cursor.fetchall()
        return back


def _literal(value: Any) -> str:
    """Return a field's default as both databases write it."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int) or value == "":
        return repr(value)
    raise ValueError(f"a default that has no literal here: {value!r}")
