"""JSON encoders that are made once.

``JSONEncoder.encode`` makes the encoder that does the work anew for each object,
which takes longer than a small object does. What JSON is accepted is left to the
dialects.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable
from typing import Any

# None where the standard library is without it.
_make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)


def encoder(
    *, ensure_ascii: bool = True, allow_nan: bool = True, sort_keys: bool = False, compact: bool = False
) -> Callable[[Any], str]:
    """Return a function that returns the JSON text of a value, as ``json.dumps`` with the same arguments.

    A value that holds itself is a `RecursionError`, and no `ValueError`.

    Args:
        ensure_ascii: Whether characters beyond ASCII are escaped.
        allow_nan: Whether numbers that are not finite are written; else they are a `ValueError`.
        sort_keys: Whether keys are sorted.
        compact: Whether there are no blanks behind commas and colons.

    Returns:
        The function; it raises `TypeError` for what JSON cannot hold.
    """
    item, key = (",", ":") if compact else (", ", ": ")
    plain = json.JSONEncoder(
        ensure_ascii=ensure_ascii, allow_nan=allow_nan, sort_keys=sort_keys, separators=(item, key)
    )
    if _make_encoder is None:
        return plain.encode
    text_of = json.encoder.encode_basestring_ascii if ensure_ascii else json.encoder.encode_basestring
    # As JSONEncoder.iterencode makes it, but for the list of what a value is within.
    pieces_of = _make_encoder(None, plain.default, text_of, None, key, item, sort_keys, False, allow_nan)

    def encode(value: Any) -> str:
        return "".join(pieces_of(value, 0))

    return encode
