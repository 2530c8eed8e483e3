"""Upstream's ``CheckpointStorage`` in the site's database, bound to one session of one scope.

Usable outside a request too. Turns do not write through it: they buffer what a
workflow saves and commit it together with the invocation's record.
"""

from __future__ import annotations

from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from invocations_app import conf
from invocations_app.isolation import Scope
from invocations_app.models import CheckpointRecord
from invocations_app.storage import checkpoint_encoding, checkpoints, database, records
from invocations_app.storage.checkpoints import EncodedCheckpoint


class OrmCheckpointStorage:
    """Checkpoints of one session, in the ORM: no other session's is ever its latest one.

    Which types checkpoints may hold is told by ``CHECKPOINT_TYPES`` of the scope's
    endpoint. The last 10 of the session are kept.

    Args:
        scope: Endpoint and isolation keys.
        session_id: The caller's session id.
    """

    def __init__(self, scope: Scope, session_id: str) -> None:
        if not session_id:
            raise ValueError("session_id must be a non-empty string")
        self._scope = scope
        self._session_id = session_id

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        """Store a copy of a checkpoint, in place of one with the same id.

        Args:
            checkpoint: The checkpoint.

        Returns:
            Its id.

        Raises:
            WorkflowCheckpointException: If it holds what cannot be stored, or a type that is not allowed.
        """
        encoded = checkpoint_encoding.encode(checkpoint, self._types())
        await database.run(self._save, encoded)
        return checkpoint.checkpoint_id

    async def load(self, checkpoint_id: str) -> WorkflowCheckpoint:
        """Return a copy of a checkpoint.

        Args:
            checkpoint_id: Its id.

        Raises:
            WorkflowCheckpointException: If the session has none of this id, or it cannot be read.
        """
        payloads = await database.run(lambda: list(self._rows(checkpoint_id=checkpoint_id)))
        if not payloads:
            raise WorkflowCheckpointException(f"No checkpoint found with ID {checkpoint_id}")
        return checkpoint_encoding.decode(payloads[0].payload, self._types())

    async def list_checkpoints(self, *, workflow_name: str) -> list[WorkflowCheckpoint]:
        """Return copies of the checkpoints of a workflow, oldest first.

        Args:
            workflow_name: Its name.

        Raises:
            WorkflowCheckpointException: If one cannot be read.
        """
        found = await database.run(lambda: list(self._rows(workflow_name=workflow_name)))
        return [checkpoint_encoding.decode(row.payload, self._types()) for row in found]

    async def delete(self, checkpoint_id: str) -> bool:
        """Delete a checkpoint.

        Args:
            checkpoint_id: Its id.

        Returns:
            Whether there was one.
        """
        deleted, _ = await database.run(lambda: self._rows(checkpoint_id=checkpoint_id).delete())
        return deleted > 0

    async def get_latest(self, *, workflow_name: str) -> WorkflowCheckpoint | None:
        """Return a copy of the latest checkpoint of a workflow, or None.

        Args:
            workflow_name: Its name.

        Raises:
            WorkflowCheckpointException: If it cannot be read.
        """
        found = await database.run(lambda: self._rows(workflow_name=workflow_name).last())
        return None if found is None else checkpoint_encoding.decode(found.payload, self._types())

    async def list_checkpoint_ids(self, *, workflow_name: str) -> list[str]:
        """Return the ids of the checkpoints of a workflow, oldest first.

        Args:
            workflow_name: Its name.
        """
        rows = await database.run(lambda: list(self._rows(workflow_name=workflow_name)))
        return [row.checkpoint_id for row in rows]

    def _types(self) -> tuple[str, ...]:
        try:
            return conf.get_endpoint(self._scope.endpoint).checkpoint_types
        except ImproperlyConfigured:
            return ()

    def _rows(self, **where: str) -> QuerySet[CheckpointRecord]:
        using = database.alias()
        session = records.get_session_record(using, self._scope, self._session_id)
        rows = CheckpointRecord.objects.using(using)
        mine = rows.none() if session is None else rows.filter(session_record_id=session.pk, **where)
        return mine.order_by("pk")

    def _save(self, encoded: EncodedCheckpoint) -> None:
        using = database.alias()
        now = timezone.now()
        with transaction.atomic(using=using):
            session = records.ensure_session_record(using, self._scope, self._session_id, now=now)
            self._rows(checkpoint_id=encoded.checkpoint_id).delete()
            checkpoints.leave(using, session.pk, None, [encoded], now)
