"""The checkpoints of one turn: the one it starts from, and those it saves, buffered until the commit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from agent_framework import CheckpointStorage, Workflow, WorkflowCheckpoint, WorkflowCheckpointException

from invocations_app.conf import EndpointSettings
from invocations_app.exceptions import InvalidCheckpoint, StoredStateUnreadable
from invocations_app.storage import checkpoint_encoding
from invocations_app.storage.checkpoints import KEPT, EncodedCheckpoint
from invocations_app.storage.turns import ClaimedSession

logger = logging.getLogger("invocations_app.runs")


@dataclass(frozen=True, slots=True)
class WorkflowSession:
    """What a workflow goes on from.

    Attributes:
        checkpoint: The session's latest checkpoint; None for a session that has none.
        types: What checkpoints may hold beyond the framework's own types.
    """

    checkpoint: WorkflowCheckpoint | None
    types: tuple[str, ...]


def load(endpoint: EndpointSettings, workflow: Workflow, claimed: ClaimedSession | None) -> WorkflowSession | None:
    """Return what a turn of a workflow goes on from; None without a session.

    Args:
        endpoint: The endpoint, for its types.
        workflow: The workflow.
        claimed: The session as the turn claimed it.

    Raises:
        StoredStateUnreadable: If the checkpoint cannot be read.
        InvalidCheckpoint: If it is of another graph, or holds work in flight, which is not replayed.
    """
    if claimed is None:
        return None
    if claimed.checkpoint is None:
        if claimed.answered:
            raise _unusable(workflow, "gone", None)
        return WorkflowSession(None, endpoint.checkpoint_types)
    try:
        checkpoint = checkpoint_encoding.decode(claimed.checkpoint, endpoint.checkpoint_types)
    except WorkflowCheckpointException as error:
        logger.error("The latest checkpoint of the session with the key digest %s cannot be read.", claimed.key)
        raise StoredStateUnreadable from error
    if checkpoint.graph_signature_hash != workflow.graph_signature_hash:
        raise _unusable(workflow, "of another graph", checkpoint)
    if checkpoint.messages:
        raise _unusable(workflow, "in the midst of work", checkpoint)
    if checkpoint.pending_request_info_events.keys() != {request.request_id for request in claimed.answered}:
        raise _unusable(workflow, "not waiting for these replies", checkpoint)
    return WorkflowSession(checkpoint, endpoint.checkpoint_types)


def _unusable(workflow: Workflow, why: str, checkpoint: WorkflowCheckpoint | None) -> InvalidCheckpoint:
    name = None if checkpoint is None else checkpoint.checkpoint_id
    logger.warning("The checkpoint %s of the workflow %s cannot be used: it is %s.", name, workflow.name, why)
    return InvalidCheckpoint()


async def restore(workflow: Workflow, checkpoint: WorkflowCheckpoint) -> None:
    """Bring a fresh workflow to where a checkpoint says it was, for new input; no executor is run.

    Args:
        workflow: The workflow.
        checkpoint: A checkpoint without work in flight.

    Raises:
        InvalidCheckpoint: If an executor cannot be restored from it.
    """
    storage = _Restoring(checkpoint)
    events = 0
    try:
        async for _ in workflow.run(checkpoint_id=checkpoint.checkpoint_id, checkpoint_storage=storage, stream=True):
            events += 1
    except WorkflowCheckpointException as error:
        raise _unusable(workflow, "refused by an executor", checkpoint) from error
    if not events:
        logger.warning(
            "Restoring the workflow %s from the checkpoint %s yielded nothing.",
            workflow.name,
            checkpoint.checkpoint_id,
        )


class CheckpointBuffer(CheckpointStorage):
    """What a turn saves, encoded and decoded once; nothing of it is stored before the commit.

    Args:
        session: What the turn goes on from.
    """

    def __init__(self, session: WorkflowSession) -> None:
        self._types = session.types
        self._restored = session.checkpoint
        self._saved: dict[str, EncodedCheckpoint] = {}
        self._iteration: int | None = None
        self._error: Exception | None = None

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        """Keep a checkpoint as text.

        Raises:
            WorkflowCheckpointException: If it could not be read again. Core only logs that.
        """
        try:
            encoded = checkpoint_encoding.encode(checkpoint, self._types)
        except Exception as error:
            self._error = self._error or error
            raise
        self._saved.pop(checkpoint.checkpoint_id, None)
        self._saved[checkpoint.checkpoint_id] = encoded
        self._iteration = checkpoint.iteration_count
        return checkpoint.checkpoint_id

    async def load(self, checkpoint_id: str) -> WorkflowCheckpoint:
        """Return a checkpoint of this turn, or the one that it goes on from.

        Raises:
            WorkflowCheckpointException: If there is none of this id.
        """
        if checkpoint_id in self._saved:
            return checkpoint_encoding.decode(self._saved[checkpoint_id].payload, self._types)
        if self._restored is not None and self._restored.checkpoint_id == checkpoint_id:
            return self._restored
        raise WorkflowCheckpointException(f"No checkpoint found with ID {checkpoint_id}")

    async def list_checkpoints(self, *, workflow_name: str) -> list[WorkflowCheckpoint]:
        """Return the checkpoints of this turn."""
        return [checkpoint_encoding.decode(item.payload, self._types) for item in self._of(workflow_name)]

    async def delete(self, checkpoint_id: str) -> bool:
        """Forget a checkpoint of this turn."""
        return self._saved.pop(checkpoint_id, None) is not None

    async def get_latest(self, *, workflow_name: str) -> WorkflowCheckpoint | None:
        """Return the latest checkpoint of this turn."""
        mine = self._of(workflow_name)
        return checkpoint_encoding.decode(mine[-1].payload, self._types) if mine else None

    async def list_checkpoint_ids(self, *, workflow_name: str) -> list[str]:
        """Return the ids of the checkpoints of this turn."""
        return [item.checkpoint_id for item in self._of(workflow_name)]

    def _of(self, workflow_name: str) -> list[EncodedCheckpoint]:
        return [item for item in self._saved.values() if item.workflow_name == workflow_name]

    def encoded(self, workflow: Workflow, supersteps: Iterable[int]) -> tuple[EncodedCheckpoint, ...]:
        """Return what the commit writes, once the turn has ended well.

        Args:
            workflow: The workflow.
            supersteps: Numbers of the supersteps that were completed, in order.

        Returns:
            The last ones, and fewer than are kept of a session: what the turn started from stays.

        Raises:
            WorkflowCheckpointException: If the last one, or any that came here, was not saved. The next
                turn would go on from an older state and not know it.
        """
        if self._error is not None:
            raise WorkflowCheckpointException("A checkpoint of the turn could not be saved.") from self._error
        last = next(reversed(self._saved), None)
        # An executor that fails to save its state never reaches the storage: the superstep tells.
        if last is None or workflow.get_last_checkpoint_id() != last or self._iteration != max(supersteps, default=0):
            raise WorkflowCheckpointException("The last checkpoint of the turn was not saved.")
        return tuple(self._saved.values())[-(KEPT - 1) :]


class _Restoring(CheckpointBuffer):
    """Gives out one checkpoint and keeps none: a restore alone writes one more of the same state."""

    def __init__(self, checkpoint: WorkflowCheckpoint) -> None:
        super().__init__(WorkflowSession(checkpoint, ()))
        self._checkpoint_id = checkpoint.checkpoint_id

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        # The id of what it was restored from: the next checkpoint names it as the one before.
        return self._checkpoint_id
