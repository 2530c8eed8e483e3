"""The session of a turn: where its state comes from, and what of it is written back.

With the app's own store the state comes with the claim and goes with the
commit; another store holds the state itself, under the opaque id, and is
written just before the commit. What was pending there is closed before the
replies are carried out, as it is in the app's own.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from typing import Any, NamedTuple

from agent_framework import AgentSession, SessionStore
from django.utils.module_loading import import_string

from invocations_app.conf import DEFAULT_SESSION_STORE, EndpointSettings
from invocations_app.exceptions import StoredStateUnreadable
from invocations_app.pending import close_calls
from invocations_app.storage import snapshots, turns

logger = logging.getLogger("invocations_app.runs")


class LoadedSession(NamedTuple):
    """A session that a turn works on.

    Attributes:
        session: The working copy, thrown away when the turn fails.
        history: What `snapshots.dump` compares with; None where another store holds the state.
        store: The other store, or None.
    """

    session: AgentSession
    history: snapshots.History | None
    store: SessionStore | None

    async def save(self) -> snapshots.Change | None:
        """Return what the commit has to write; another store is written here.

        Raises:
            Exception: If the state cannot be stored.
        """
        if self.history is not None:
            return snapshots.dump(self.session, self.history)
        if self.store is not None:
            await self.store.set(self.session.session_id, self.session)
        return None


async def load(endpoint: EndpointSettings, turn: turns.Turn, target: Any) -> LoadedSession | None:
    """Return the session of a turn, a new one where nothing is stored; None without a session.

    Args:
        endpoint: The endpoint, for its session store.
        turn: The turn, which holds the claim.
        target: The agent, which makes new sessions.

    Raises:
        StoredStateUnreadable: If what is stored cannot be read; it is left as it is.
    """
    claimed = turn.session
    if claimed is None:
        return None
    try:
        if endpoint.session_store == DEFAULT_SESSION_STORE:
            return await _load_claimed(claimed, target)
        return await _load_elsewhere(get_store(endpoint.session_store), claimed, target)
    except StoredStateUnreadable:
        logger.error("The stored session with the key digest %s cannot be read.", claimed.key)
        raise


async def _load_claimed(claimed: turns.ClaimedSession, target: Any) -> LoadedSession:
    if not claimed.state:
        return LoadedSession(await _new_session(target, claimed.opaque_id), snapshots.History(), None)
    messages = claimed.rows if claimed.history is None else claimed.history
    session, history = snapshots.load(claimed.state, messages, claimed.opaque_id)
    return LoadedSession(session, history, None)


async def _load_elsewhere(store: SessionStore, claimed: turns.ClaimedSession, target: Any) -> LoadedSession:
    opaque_id = claimed.opaque_id
    try:
        session = await store.get(opaque_id)
    except Exception as error:
        raise StoredStateUnreadable from error
    if claimed.answered:
        if session is None:
            # The replies would reach an agent that never asked.
            raise StoredStateUnreadable
        await _leave_closed(store, session)
    elif session is not None:
        # Nothing is pending: what is open was dropped, or its turn was not committed.
        close_calls(session)
    return LoadedSession(session or await _new_session(target, opaque_id), None, store)


async def _leave_closed(store: SessionStore, session: AgentSession) -> None:
    """Write a session as it will be left if the turn that answers it fails; the working copy stays as it is."""
    asking = copy.deepcopy(session.state)
    close_calls(session)
    await store.set(session.session_id, session)
    session.state = asking


async def _new_session(target: Any, opaque_id: str) -> AgentSession:
    create = getattr(target, "create_session", None)
    if create is None:
        return AgentSession(session_id=opaque_id)
    session = create(session_id=opaque_id)
    if inspect.isawaitable(session):
        session = await session
    if not isinstance(session, AgentSession) or session.session_id != opaque_id:
        raise TypeError("create_session did not return an AgentSession with the id it was given")
    return session


@functools.cache
def get_store(path: str) -> SessionStore:
    """Return the store that a dotted path names; made once a process.

    Args:
        path: Dotted path of a ``SessionStore`` class or of a function that returns one.

    Raises:
        TypeError: If it gives something else.
    """
    store = import_string(path)()
    if not isinstance(store, SessionStore):
        raise TypeError(f"SESSION_STORE {path!r} does not give a SessionStore")
    return store
