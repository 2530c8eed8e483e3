"""Workflow checkpoints as text and back, in the framework's own encoding.

It is restricted pickle, and no security boundary: what is read here was written
here, into a table of the site's own, and nothing of it comes from a request. The
only module that imports the encoding, which the framework does not export.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException
from agent_framework._workflows._checkpoint_encoding import decode_checkpoint_value, encode_checkpoint_value

from invocations_app.storage.checkpoints import EncodedCheckpoint

# The type of a type such as list[Message], which requests are answered with.
_ALWAYS_ALLOWED = frozenset({"types:GenericAlias"})


def encode(checkpoint: WorkflowCheckpoint, types: Iterable[str]) -> EncodedCheckpoint:
    """Return a checkpoint as it is stored, once it is sure that it can be read again.

    Args:
        checkpoint: The checkpoint.
        types: What may be in it beyond the framework's own types, each as ``package.module:Class``.

    Raises:
        WorkflowCheckpointException: If it holds what cannot be encoded, or a type that is not allowed.
    """
    try:
        payload = json.dumps(encode_checkpoint_value(checkpoint.to_dict()), separators=(",", ":"))
    except WorkflowCheckpointException:
        raise
    # Pickle lets through whatever an object of the workflow raises.
    except Exception as error:
        raise WorkflowCheckpointException(f"The checkpoint cannot be encoded: {error}") from error
    decode(payload, types)
    return EncodedCheckpoint(checkpoint.workflow_name, checkpoint.checkpoint_id, payload)


def decode(payload: str, types: Iterable[str]) -> WorkflowCheckpoint:
    """Return the checkpoint that a stored text holds.

    Args:
        payload: The text.
        types: As in `encode`.

    Raises:
        WorkflowCheckpointException: If it cannot be read, or holds a type that is not allowed.
    """
    try:
        return WorkflowCheckpoint.from_dict(decode_value(json.loads(payload), types))
    except WorkflowCheckpointException:
        raise
    except Exception as error:
        raise WorkflowCheckpointException(f"The checkpoint cannot be read: {error}") from error


def encode_value(value: Any) -> Any:
    """Return a value of a workflow as JSON.

    Args:
        value: The value.

    Raises:
        Exception: If it cannot be pickled.
    """
    return encode_checkpoint_value(value)


def decode_value(value: Any, types: Iterable[str]) -> Any:
    """Return the value that JSON of `encode_value` stands for.

    Args:
        value: The JSON.
        types: As in `encode`.

    Raises:
        WorkflowCheckpointException: If it cannot be read, or holds a type that is not allowed.
    """
    return decode_checkpoint_value(value, allowed_types=_ALWAYS_ALLOWED | frozenset(types))
