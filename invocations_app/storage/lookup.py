"""One row by its key, and the row that it refers to, as the ORM finds them, with its SQL put together once.

To put the statement together takes the ORM longer than the database takes to
answer it, and it does so anew for each query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from django.db import connections, router
from django.db.models import Model

M = TypeVar("M", bound=Model)

_MARK = "a value of the key"


class _Statement(NamedTuple):
    sql: str
    #: What makes a field's value of a column's: place, functions, and the column for them.
    converters: tuple[tuple[int, Sequence[Callable[..., Any]], Any], ...]
    names: tuple[str, ...]
    related_names: tuple[str, ...]


class Lookup(Generic[M]):
    """Finds rows of a model by a key that is unique.

    Args:
        model: The model.
        by: Name of the field that is the key: a text.
        related: Name of the foreign key whose row comes with each; one that is never null.
    """

    def __init__(self, model: type[M], by: str, related: str) -> None:
        self._model = model
        self._by = by
        self._related: Any = model._meta.get_field(related)
        self._statements: dict[str, _Statement | None] = {}

    def get(self, value: str) -> M:
        """Return the row with that key, and the related one in it.

        Args:
            value: The key.

        Raises:
            Model.DoesNotExist: That of the model, if there is none.
        """
        connection = connections[router.db_for_read(self._model)]
        if connection.alias not in self._statements:
            self._statements[connection.alias] = self._prepare(connection)
        statement = self._statements[connection.alias]
        if statement is None:
            found: M = self._queryset(connection).get(**{self._by: value})
            return found
        with connection.cursor() as cursor:
            cursor.execute(statement.sql, (value,))
            row = cursor.fetchone()
        if row is None:
            missing: type[Exception] = getattr(self._model, "DoesNotExist")  # noqa: B009 - not told to mypy
            raise missing
        values = list(row)
        for place, functions, column in statement.converters:
            for convert in functions:
                values[place] = convert(values[place], column, connection)
        width = len(statement.names)
        found = self._model.from_db(connection.alias, statement.names, values[:width])
        other = self._related.related_model.from_db(connection.alias, statement.related_names, values[width:])
        self._related.set_cached_value(found, other)
        if self._related.unique:
            self._related.remote_field.set_cached_value(other, found)
        return found

    def _queryset(self, connection: Any) -> Any:
        return self._model._default_manager.using(connection.alias).select_related(self._related.name)

    def _prepare(self, connection: Any) -> _Statement | None:
        """Return the ORM's own statement; None if it is not the plain one that is expected here."""
        # The converters go on holding what they were asked of: not the connection of a thread.
        detached = connection.copy()
        queryset = self._queryset(connection).filter(**{self._by: _MARK})
        compiler = queryset.query.get_compiler(connection=detached)
        try:
            sql, parameters = compiler.as_sql()
        finally:
            if detached.connection is not None:
                detached.close()
        columns = [column for column, _, _ in compiler.select]
        fields, related_fields = self._model._meta.concrete_fields, self._related.related_model._meta.concrete_fields
        is_plain = not (queryset.query.annotations or queryset._prefetch_related_lookups) and parameters == (_MARK,)
        if not is_plain or [getattr(column, "target", None) for column in columns] != [*fields, *related_fields]:
            return None
        found = compiler.get_converters(columns)
        return _Statement(
            sql,
            tuple((place, functions, column) for place, (functions, column) in found.items()),
            tuple(field.attname for field in fields),
            tuple(field.attname for field in related_fields),
        )
