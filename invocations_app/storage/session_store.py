"""Upstream's ``SessionStore`` in the site's database, bound to one scope.

Usable outside a request too. Turns do not go through it: they claim a session
and commit it together with the invocation's record (`storage.turns`).
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from agent_framework import AgentSession, SessionStore
from django.db import transaction
from django.utils import timezone

from invocations_app.exceptions import SessionConflict, StoredStateUnreadable
from invocations_app.isolation import Scope
from invocations_app.storage import database, kept, records, snapshots

logger = logging.getLogger("invocations_app.storage")

with warnings.catch_warnings():
    # Upstream says once a process that its SessionStore is experimental, at its first use: so here,
    # where the version is bounded and the contract tests are the alarm.
    warnings.simplefilter("ignore", FutureWarning)
    SessionStore()

_MAX_SESSION_ID = 256

# Where a session read from the store keeps what is needed to write it back. An attribute of
# the session itself, so that it follows a deep copy; AgentSession.to_dict leaves it out.
_LOADED = "_invocations_loaded"


class OrmSessionStore(SessionStore):
    """Sessions of one scope, in the ORM.

    A session that this store gave out and that somebody else wrote since is
    refused by `set`; one that it did not give out replaces what is stored.

    Args:
        scope: Endpoint and isolation keys whose sessions it reaches.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    @staticmethod
    def validate_session_id(session_id: str) -> None:
        """Validate a session id.

        Args:
            session_id: The caller's session id.

        Raises:
            ValueError: If it is no string of 1 to 256 characters, or holds a
                control character or a lone surrogate.
        """
        SessionStore.validate_session_id(session_id)
        if len(session_id) > _MAX_SESSION_ID:
            raise ValueError("session_id must be at most 256 characters")
        if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in session_id):
            raise ValueError("session_id must not hold control characters")
        if any(0xD800 <= ord(character) < 0xE000 for character in session_id):
            raise ValueError("session_id must be valid Unicode")

    async def get(self, session_id: str) -> AgentSession | None:
        """Return an independent copy of the stored session, or None.

        Args:
            session_id: The caller's session id.

        Raises:
            ValueError: If the id is not valid.
            StoredStateUnreadable: If what is stored cannot be read.
        """
        self.validate_session_id(session_id)
        found = await database.run(_read, self._scope, session_id)
        if found is None:
            return None
        state, rows, version = found
        try:
            session, history = snapshots.load(state, rows)
        except StoredStateUnreadable:
            logger.error("The stored session with the key digest %s cannot be read.", self._scope.key(session_id))
            raise
        setattr(session, _LOADED, (session_id, version, history))
        return session

    async def set(self, session_id: str, session: AgentSession) -> None:
        """Store a session.

        Args:
            session_id: The caller's session id.
            session: The session.

        Raises:
            ValueError: If the id is not valid.
            TypeError: If the state holds what JSON cannot.
            SessionConflict: If the session came from here and was written since.
        """
        self.validate_session_id(session_id)
        loaded_id, version, history = getattr(session, _LOADED, (None, None, None))
        if loaded_id != session_id or history is None:
            version, history = None, snapshots.History()
        change = snapshots.dump(session, history)
        written = await database.run(_write, self._scope, session_id, change, version)
        setattr(session, _LOADED, (session_id, written, change.history))

    async def delete(self, session_id: str) -> None:
        """Delete the stored session, if there is one.

        Args:
            session_id: The caller's session id.

        Raises:
            ValueError: If the id is not valid.
        """
        self.validate_session_id(session_id)
        await database.run(_delete, self._scope, session_id)


def _read(scope: Scope, session_id: str) -> tuple[str, list[snapshots.MessageRow], int] | None:
    using = database.alias()
    # One transaction: state and messages are of the same turn.
    with transaction.atomic(using=using):
        record = records.get_session_record(using, scope, session_id, lock=True)
        if record is None or not record.state:
            return None
        return record.state, records.load_message_rows(using, record.pk), record.version


def _write(scope: Scope, session_id: str, change: snapshots.Change, version: int | None) -> int:
    using = database.alias()
    now = timezone.now()
    with transaction.atomic(using=using):
        record = records.ensure_session_record(using, scope, session_id, now=now)
        if version is None:
            # Not one that was given out: it takes the place of what is stored, messages and all.
            record.messages.using(using).all().delete()
            expected = record.version
        else:
            expected = version
        if not records.advance_session(using, record.pk, change, version=expected, now=now):
            raise SessionConflict
        records.write_messages(using, record.pk, change, invocation_pk=None, now=now)
        return expected + 1


def _delete(scope: Scope, session_id: str) -> None:
    using = database.alias()
    with transaction.atomic(using=using):
        record: Any = records.get_session_record(using, scope, session_id, lock=True)
        if record is not None:
            kept.sessions.drop(record.pk)
            record.delete(using=using)
