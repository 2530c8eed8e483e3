"""Fixtures that every test may use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import django
import hypothesis
import pytest
from asgiref.sync import SyncToAsync
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connections
from django.test import Client
from hypothesis import strategies as st

from invocations_app import conf
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import database, kept
from invocations_app.views import checking
from tests import fakes
from tests.server import SiteServer, Wire


def pytest_collection_finish() -> None:
    """Make hypothesis's table of characters ahead of the first test that needs it: that takes long for a test."""
    hypothesis.find(st.text(), lambda _: True)


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    """Settings are read afresh: a test may have changed them without Django's signal."""
    conf.clear_cache()
    yield
    conf.clear_cache()


@pytest.fixture(autouse=True)
def _fresh_fakes() -> Iterator[None]:
    """What agents and gates of one test noted does not reach the next one."""
    fakes.reset()
    yield
    fakes.reset()


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """What the sessions of one test left in memory does not reach the next one."""
    kept.sessions.clear()
    yield
    kept.sessions.clear()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The connections of other threads, the app's and asgiref's, are closed before the database is dropped."""
    yield
    checking.close()
    database.close()
    SyncToAsync.single_thread_executor.submit(connections.close_all).result()


@pytest.fixture(scope="session")
def site_servers() -> Iterator[dict[str, SiteServer]]:
    """The servers of the session by loop and handler, started when a test wants one."""
    servers: dict[str, SiteServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(params=["uvloop", "raw"])
def wire(
    request: pytest.FixtureRequest,
    transactional_db: None,
    site_servers: dict[str, SiteServer],
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Wire]:
    """A way to the site: uvicorn on a socket, or raw ASGI; nothing may be left running. See `server.every_loop`."""
    loop = "asyncio" if request.param == "asyncio" else "uvloop"
    own = request.param.startswith("own")
    kind = f"own {loop}" if own else loop
    if kind not in site_servers:
        site_servers[kind] = SiteServer(loop, own=own)
        site_servers[kind].start()
    wire = Wire(site_servers[kind], is_raw=request.param.endswith("raw"))
    yield wire
    wire.close()
    wire.server.end_test()
    assert wire.failures() == []
    failed = [
        record for record in caplog.get_records("call") if record.getMessage() == "Exception in ASGI application\n"
    ]
    # Django's handler runs in the server's own task since 6.0: there the cut of a reader who hangs in send shows.
    cut = [record for record in failed if django.VERSION >= (6, 0) and record.exc_info[0] is asyncio.CancelledError]
    assert [record for record in failed if record not in cut] == []


@pytest.fixture
def alice(db: None) -> User:
    return get_user_model().objects.create_user("alice")


@pytest.fixture
def staff(db: None, client: Client) -> Client:
    """A client of somebody who may see and read everything in the admin, and delete nothing."""
    # They are cached, so that without this the first test would have more queries than the others.
    ContentType.objects.get_for_models(SessionRecord, InvocationRecord)
    user = get_user_model().objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    return client


@pytest.fixture
def outsider(staff: Client) -> Client:
    """The same, of somebody who may not read contents."""
    user = get_user_model().objects.get(username="staff")
    user.user_permissions.remove(Permission.objects.get(codename="view_transcript"))
    return staff
