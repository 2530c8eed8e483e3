"""Workflow checkpoints for people: what each one of a session holds, in figures and in full.

Figures are told from the stored JSON. In full a checkpoint is decoded as a turn decodes
it, with no types but those that the endpoint allows; what cannot be is named and left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent_framework import WorkflowCheckpointException
from django.db.models import QuerySet
from django.db.models.functions import Length

from invocations_app import conf
from invocations_app.admin.display import Excerpt, excerpt, pretty
from invocations_app.admin.redaction import Redactor
from invocations_app.models import CheckpointRecord, InvocationRecord, SessionRecord
from invocations_app.storage import checkpoint_encoding

MAX_LISTED = 50
#: What is read of all checkpoints of a session for their figures.
MAX_LIST_CHARACTERS = 8 * 1024 * 1024
MAX_DEPTH = 40

_EXECUTOR_STATE = "_executor_state"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a checkpoint holds, in numbers and names.

    Attributes:
        iteration: Number of supersteps that were done.
        previous: Id of the checkpoint before it; empty for none.
        messages: Sender to number of messages that are in flight.
        executors: Executors that saved a state.
        asked: Number of requests that wait for an answer.
        graph: Signature of the workflow's graph.
    """

    iteration: int | None
    previous: str
    messages: Mapping[str, int]
    executors: tuple[str, ...]
    asked: int
    graph: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list.

    Attributes:
        pk: Primary key of its row.
        checkpoint_id: The framework's id.
        workflow_name: Name of the workflow.
        created_at: When the turn was committed.
        characters: Length of what is stored.
        invocation: Record of the turn; None where it is gone.
        figures: What it holds; None where that cannot be read, or is too much for this page.
    """

    pk: int
    checkpoint_id: str
    workflow_name: str
    created_at: datetime
    characters: int
    invocation: InvocationRecord | None
    figures: Figures | None


def list_checkpoints(session: SessionRecord) -> list[Entry]:
    """Return the checkpoints of a session, oldest first, in two queries.

    Args:
        session: The session.
    """
    rows: Any = _rows(session).defer("payload").annotate(size=Length("payload")).order_by("-pk")[:MAX_LISTED]
    found = list(rows)
    wanted, room = [], MAX_LIST_CHARACTERS
    for row in found:
        if row.size <= room:
            wanted.append(row.pk)
            room -= row.size
    payloads = dict(CheckpointRecord.objects.filter(pk__in=wanted).values_list("pk", "payload"))
    return [
        Entry(
            pk=row.pk,
            checkpoint_id=row.checkpoint_id,
            workflow_name=row.workflow_name,
            created_at=row.created_at,
            characters=row.size,
            invocation=row.invocation,
            figures=figures_of(payloads[row.pk]) if row.pk in payloads else None,
        )
        for row in reversed(found)
    ]


def get_checkpoint(session: SessionRecord, pk: int) -> CheckpointRecord | None:
    """Return a checkpoint of a session; None where it has none of that key.

    Args:
        session: The session.
        pk: Primary key of the row.
    """
    return _rows(session).filter(pk=pk).first()


def _rows(session: SessionRecord) -> QuerySet[CheckpointRecord]:
    rows = CheckpointRecord.objects.filter(session_record=session).select_related("invocation")
    return rows.defer("invocation__answer", "invocation__metadata", "invocation__input")


def figures_of(payload: str) -> Figures | None:
    """Return what a stored checkpoint holds; None where it cannot be read.

    Args:
        payload: The column.
    """
    try:
        held = json.loads(payload)
        messages = {name: len(sent) for name, sent in held["messages"].items()}
        state = held["state"].get(_EXECUTOR_STATE, {})
        return Figures(
            iteration=held["iteration_count"],
            previous=held.get("previous_checkpoint_id") or "",
            messages=messages,
            executors=tuple(name for name, saved in state.items() if saved),
            asked=len(held["pending_request_info_events"]),
            graph=str(held["graph_signature_hash"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a checkpoint's contents.

    Attributes:
        name: The framework's name of it.
        body: What is shown.
    """

    name: str
    body: Excerpt


def contents_of(checkpoint: CheckpointRecord, endpoint: str) -> tuple[list[Part], bool]:
    """Return what a checkpoint holds, redacted.

    Args:
        checkpoint: Its row.
        endpoint: Alias of the session's endpoint, for its types.

    Returns:
        The parts, and whether it could be decoded; where not, what is no JSON is left out.
    """
    settings = conf.get_endpoints().get(endpoint)
    redactor = Redactor()
    try:
        types = () if settings is None else settings.checkpoint_types
        held: Any = checkpoint_encoding.decode(checkpoint.payload, types).to_dict()
        is_decoded = True
    except WorkflowCheckpointException:
        is_decoded = False
        try:
            held = json.loads(checkpoint.payload)
        except (ValueError, RecursionError):
            held = None
    if not isinstance(held, dict):
        return [], False
    names = ("messages", "state", "pending_request_info_events", "metadata")
    shown = {name: redactor.value(plain(held.get(name))) for name in names}
    return [Part(name, excerpt(pretty(value))) for name, value in shown.items() if value], is_decoded


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value of a workflow as JSON can say it: an object by its type and fields.

    Args:
        value: What was decoded, or JSON that could not be.
        depth: How deep it lies.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        if "__pickled__" in value:
            # Base64 of it would pass any redactor.
            return f"[{value.get('__type__', 'an object')}: cannot be shown]"
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    name = type(value).__name__
    try:
        fields = _fields_of(value)
        return {"(type)": name} | {str(key): plain(item, depth + 1) for key, item in fields.items()}
    # Objects of a workflow may raise anything when they are asked for what they hold.
    except Exception:
        return f"[{name}: cannot be shown]"


def _fields_of(value: Any) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "__dict__"):
        return {key.lstrip("_"): item for key, item in vars(value).items() if item is not None}
    return {"value": str(value)}
