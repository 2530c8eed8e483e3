"""Plain statements for SQLite and PostgreSQL, made once from the models.

The ORM takes a millisecond for what these do in a few microseconds. Only the
common case of a turn is written in them; see `grouping`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db.models import Model

_NOW = {
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')",
    "postgresql": "STATEMENT_TIMESTAMP()",
}
_FROM_NOW = {
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW', {} || ' seconds')",
    "postgresql": "STATEMENT_TIMESTAMP() + MAKE_INTERVAL(secs => {})",
}
_PLACEHOLDER = {"sqlite": "?", "postgresql": "%s"}


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


class Insert:
    """An INSERT of one row of a model: some columns given, the others by the fields' defaults.

    Args:
        model: The model.
        given: Attribute names of the columns that are given, in the order of the values.
        expressions: Columns that are an expression with one parameter of the values' order; see `statement`.
    """

    def __init__(self, model: type[Model], given: Sequence[str], from_now: str | None = None) -> None:
        self._model = model
        self._given = tuple(given)
        self._from_now = from_now

    @functools.lru_cache(maxsize=4)  # noqa: B019 - made once a model, at import
    def text(self, vendor: str, *, ignore_conflicts: bool = False, returning: bool = True) -> str:
        """Return the statement.

        Args:
            vendor: The database's vendor.
            ignore_conflicts: Whether a row that exists is left alone.
            returning: Whether the primary key is returned.
        """
        fields = {field.attname: field for field in self._model._meta.concrete_fields if not field.primary_key}
        names = [*self._given, *(name for name in fields if name not in self._given)]
        values = ["{from_now}" if name == self._from_now else "%s" for name in names]
        columns = ", ".join(f'"{fields[name].column}"' for name in names)
        table = self._model._meta.db_table
        conflict = " ON CONFLICT DO NOTHING" if ignore_conflicts else ""
        back = " RETURNING id" if returning else ""
        row = f"({columns}) VALUES ({', '.join(values)})"
        return statement(vendor, f'INSERT INTO "{table}" {row}{conflict}{back}')  # noqa: S608 - names of a model

    def values(self, connection: Any, given: Sequence[Any]) -> list[Any]:
        """Return the parameters of the statement.

        Args:
            connection: Django's connection.
            given: Values of the given columns, in their order, as the driver takes them.
        """
        return [*given, *_defaults(self._model, self._given, connection.alias)]


@functools.lru_cache(maxsize=32)
def _defaults(model: type[Model], given: tuple[str, ...], using: str) -> tuple[Any, ...]:
    from django.db import connections

    connection = connections[using]
    fields = [field for field in model._meta.concrete_fields if not field.primary_key and field.attname not in given]
    return tuple(field.get_db_prep_save(field.get_default(), connection) for field in fields)
