"""Rows of workflow checkpoints: the latest of a session, and what a turn leaves.

Everything here runs inside the caller's transaction, on a database thread.
What stands in a row is made and read by ``checkpoint_storage``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from invocations_app.models import CheckpointRecord

#: Checkpoints of a session that are kept.
KEPT = 10


@dataclass(frozen=True, slots=True)
class EncodedCheckpoint:
    """A checkpoint as it is stored.

    Attributes:
        workflow_name: Name of the workflow.
        checkpoint_id: The framework's id of it.
        payload: Its text.
    """

    workflow_name: str
    checkpoint_id: str
    payload: str


def latest(using: str, session_pk: int) -> str | None:
    """Return the text of a session's latest checkpoint, or None.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
    """
    rows = CheckpointRecord.objects.using(using).filter(session_record_id=session_pk)
    return rows.order_by("-pk").values_list("payload", flat=True).first()


def leave(
    using: str, session_pk: int, record_pk: int | None, encoded: Sequence[EncodedCheckpoint], now: datetime
) -> None:
    """Write what a turn leaves, and let go of all but the last ones.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
        record_pk: Primary key of the invocation's record, or None.
        encoded: The checkpoints, in order.
        now: Time of the turn.
    """
    rows = CheckpointRecord.objects.using(using)
    rows.bulk_create(
        [
            CheckpointRecord(
                session_record_id=session_pk,
                invocation_id=record_pk,
                workflow_name=item.workflow_name,
                checkpoint_id=item.checkpoint_id,
                payload=item.payload,
                created_at=now,
            )
            for item in encoded
        ]
    )
    mine = rows.filter(session_record_id=session_pk).order_by("-pk")
    oldest_kept = mine.values_list("pk", flat=True)[KEPT - 1 : KEPT].first()
    if oldest_kept is not None:
        rows.filter(session_record_id=session_pk, pk__lt=oldest_kept).delete()
