"""What the demonstration agent can do: small tools that touch nothing and nobody.

The docstrings and annotations are what a model reads.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

MAX_EXPRESSION_CHARACTERS = 200
MAX_BASE = 1_000_000
MAX_EXPONENT = 100

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def current_time(zone: Annotated[str, "IANA name of a time zone, such as Europe/Paris"] = "UTC") -> str:
    """Tell the date and time of now in a time zone."""
    try:
        now = datetime.now(UTC if zone == "UTC" else ZoneInfo(zone))
    # A name that leads to a directory or out of the database is an OSError or a ValueError.
    except (ZoneInfoNotFoundError, OSError, ValueError):
        raise ValueError(f"unknown time zone {zone!r}") from None
    return f"{now:%H:%M on %A, %d %B %Y} ({zone})"


def word_count(text: Annotated[str, "The text whose words are counted"]) -> int:
    """Count the words of a text."""
    return len(text.split())


def calculate(expression: Annotated[str, "Numbers with + - * / // % ** and brackets, such as (6 + 1) * 2"]) -> str:
    """Work out an arithmetic expression."""
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise ValueError(f"the expression has more than {MAX_EXPRESSION_CHARACTERS} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as problem:
        raise ValueError(f"{expression!r} cannot be worked out") from problem
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ValueError(f"{expression!r} has no finite value")
    return f"{value:.12g}"


def book_room(
    room: Annotated[str, "Name of the room"], day: Annotated[str, "Day of the week, or a date such as 2026-03-01"]
) -> str:
    """Book a meeting room for a day."""
    # There are no rooms: what matters is that a person is asked before this runs.
    return f"Room {room} is booked for {day}."


def _value(node: ast.expr) -> Number:
    # Walks the tree itself: nothing but numbers and the operators above is ever evaluated.
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left), _value(right))
        case _:
            raise ValueError("only numbers, brackets and + - * / // % ** are understood")


def _power(base: Number, exponent: Number) -> Number:
    if abs(base) > MAX_BASE or abs(exponent) > MAX_EXPONENT:
        raise ValueError("the power is too large")
    value = base**exponent
    if not isinstance(value, (int, float)):
        raise ValueError("a root of a negative number is no real number")
    return value
