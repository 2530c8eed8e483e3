"""Resetting a session: in Python, by the command and in the admin; what refuses, what is dropped, what stays."""

from __future__ import annotations

import asyncio
import io
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from invocations_app.envelope import Invocation
from invocations_app.events import Answer
from invocations_app.exceptions import SessionBusy
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, MessageRecord, PendingRecord, SessionRecord
from invocations_app.pending import PendingRequest
from invocations_app.storage import endings, groups, reset, reset_session, turns
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.event_log import Batch
from invocations_app.storage.snapshots import Change, History
from tests import fakes
from tests.client import endpoint, post, rows
from tests.durable import Reader, abandon, ask, cancel, expire, on_database, scripted, status, until_idle, until_status

pytestmark = pytest.mark.django_db(transaction=True)

SCOPE = Scope("default")
SESSIONS = reverse("admin:invocations_app_sessionrecord_changelist")


async def sessions() -> list[SessionRecord]:
    return await rows(lambda: SessionRecord.objects.order_by("pk"))


async def say(text: str, session_id: str = "s1") -> list[tuple[str, str]]:
    """Post a message, and return what the model saw."""
    response = await post({"message": text, "session_id": session_id})
    assert response.status_code == 200, response.content
    return fakes.calls[-1].texts


# In Python.


async def test_the_id_starts_afresh_and_the_old_history_stays(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_noting")
    await say("one")
    before = timezone.now()
    assert await reset_session(SCOPE, "s1") is True
    assert await say("two") == [("user", "two")]
    old, new = await sessions()
    assert (old.key, new.key) == (None, SCOPE.key("s1"))
    assert old.archived_at is not None
    assert before <= old.archived_at <= timezone.now()
    assert new.archived_at is None
    assert (old.session_id, old.message_count, old.version) == (new.session_id, 2, 1)
    assert len(await rows(lambda: MessageRecord.objects.filter(session=old.pk))) == 2
    # Providers that store by the opaque id start afresh too.
    assert old.opaque_id != new.opaque_id
    assert [note[2:] for note in fakes.notes if note[0] == "before_run"] == [(old.opaque_id, 1), (new.opaque_id, 1)]
    assert [record.session_record_id for record in await rows(InvocationRecord.objects.order_by("pk").all)] == [
        old.pk,
        new.pk,
    ]


async def test_a_session_can_be_reset_again_and_again(settings):
    settings.INVOCATIONS = endpoint()
    for count in (1, 2, 3):
        assert await say("one") == [("user", "one")]
        assert await reset_session(SCOPE, "s1") is True
        assert [session.key for session in await sessions()] == [None] * count
    assert await reset_session(SCOPE, "s1") is False


async def test_only_the_session_of_that_scope_is_reset(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    keys = {"x-agent-user-isolation-key": "u", "x-agent-chat-isolation-key": "c"}
    await post({"message": "a", "session_id": "s1"}, headers=keys)
    await say("b")
    assert await reset_session(SCOPE, "s2") is False
    for other in (Scope("other", "platform:u", "c"), Scope("default", "u", "c"), Scope("default", "platform:u")):
        assert await reset_session(other, "s1") is False
    assert await reset_session(Scope("default", "platform:u", "c"), "s1") is True
    assert [session.archived_at is None for session in await sessions()] == [False, True]


async def test_a_session_with_a_running_turn_refuses(settings):
    settings.INVOCATIONS = scripted()
    fakes.script(["first"], [fakes.gate(), "done"])
    await say("one")
    running = Reader(await ask("i1", {"message": "two", "session_id": "s1", "stream": True}))
    await fakes.gate().wait_reached()
    before = await sessions()
    with pytest.raises(SessionBusy):
        await reset_session(SCOPE, "s1")
    assert [vars(session) | {"_state": 0} for session in await sessions()] == [
        vars(session) | {"_state": 0} for session in before
    ]
    fakes.gate().open()
    assert b"[DONE]" in await running.rest()
    assert await reset_session(SCOPE, "s1") is True


async def test_a_session_with_a_waiting_turn_refuses(settings):
    settings.INVOCATIONS = scripted()
    fakes.script([fakes.gate(), "done"])
    tasks = []
    for name, wanted in (("i0", "running"), ("i1", "queued")):
        tasks.append(asyncio.ensure_future(ask(name, {"message": "a", "session_id": "s1"})))
        await until_status(name, wanted)
    # Between two turns: the one before has ended, and the next one has not claimed it yet.
    await on_database(lambda: SessionRecord.objects.update(claimed_by=None, claim_expires_at=None))
    await on_database(lambda: InvocationRecord.objects.filter(invocation_id="i0").update(status="failed"))
    with pytest.raises(SessionBusy):
        await reset_session(SCOPE, "s1")
    fakes.gate().open()
    await asyncio.wait(tasks)
    await until_idle()


async def test_a_turn_whose_process_is_gone_does_not_refuse(settings):
    settings.INVOCATIONS = endpoint()
    await say("one")

    def begin() -> None:
        for name in ("running", "queued"):
            invocation = Invocation(id=name, endpoint="default", dialect="channel", input=[], session_id="s1")
            asked = turns.TurnRequest(invocation, SCOPE, None, "f" * 64, name, "gone", timezone.now(), 60, "wait")
            turns.begin_now(asked)
        abandon(status__in=["running", "queued"])

    await on_database(begin)
    assert await reset_session(SCOPE, "s1") is True
    [session] = await sessions()
    assert (session.claimed_by, session.claim_expires_at, session.key) == (None, None, None)
    for name in ("running", "queued"):
        assert (await status(name))["status"] == "interrupted"
    assert await say("two") == [("user", "two")]


async def test_a_turn_that_comes_back_to_an_archived_session_writes_nothing(settings):
    settings.INVOCATIONS = endpoint()
    invocation = Invocation(id="i1", endpoint="default", dialect="channel", input=[], session_id="s1")
    request = turns.TurnRequest(invocation, SCOPE, None, "f" * 64, "c", "sleeps", timezone.now(), 60)
    turn = await on_database(lambda: turns.begin_now(request))
    assert isinstance(turn, turns.Turn)
    await on_database(lambda: expire(invocation_id="i1"))
    await reset_session(SCOPE, "s1")
    [before] = await sessions()
    change = SessionChange(Change("{}", (), {}, True, History()))
    with pytest.raises(Exception, match="this invocation was interrupted"):
        await groups.commit(turn, change, Answer("late"), Ending(None, Batch(turn.record_pk, 1, ()), 0))
    [after] = await sessions()
    assert (after.state, after.version, after.key) == (before.state, before.version, None)


async def test_a_session_whose_state_cannot_be_read_can_be_reset(settings):
    settings.INVOCATIONS = endpoint()
    await say("one")
    await on_database(lambda: SessionRecord.objects.update(state="{broken"))
    assert (await post({"message": "two", "session_id": "s1"})).status_code == 500
    assert await reset_session(SCOPE, "s1") is True
    assert await say("three") == [("user", "three")]
    assert (await sessions())[0].state == "{broken"


async def test_what_was_pending_is_dropped_and_the_asking_invocation_cancelled(settings):
    settings.INVOCATIONS = endpoint()

    def leave_pending() -> None:
        invocation = Invocation(id="asks", endpoint="default", dialect="channel", input=[], session_id="s1")
        turn = turns.begin_now(turns.TurnRequest(invocation, SCOPE, None, "f" * 64, "c", "me", timezone.now(), 60))
        assert isinstance(turn, turns.Turn)
        asked = {"request_id": "r1", "type": "approval", "tool": "delete", "arguments": {}}
        left = SessionChange(None, (PendingRequest("r1", "approval", asked, {}),))
        answer = Answer("", "s1", pending=(asked,))
        endings.commit_now(turn, left, answer, Ending(None, Batch(turn.record_pk, 1, ()), 0))

    await on_database(leave_pending)
    assert (await status("asks"))["status"] == "awaiting_input"
    assert await reset_session(SCOPE, "s1") is True
    told = await status("asks")
    assert (told["status"], told["error"]["code"], told["pending"]) == ("cancelled", "cancelled", [])
    [request] = await rows(PendingRecord.objects.all)
    assert (request.reply, request.answered_by_id) == ("", None)
    assert request.closed_at is not None
    assert [session.pending_count for session in await sessions()] == [0]
    assert await say("two") == [("user", "two")]
    # Nothing of the new session is touched when the old invocation is cancelled once more.
    await cancel("asks")
    assert [session.version for session in await sessions()] == [1, 1]


async def test_two_resets_at_once_put_one_row_away(settings):
    settings.INVOCATIONS = endpoint()
    await say("one")
    assert sorted(await asyncio.gather(*(reset_session(SCOPE, "s1") for _ in range(5)))) == [False] * 4 + [True]


# The command.


def run_command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("reset_session", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def make_session(session_id: str = "s1", **columns: Any) -> SessionRecord:
    scope = Scope(columns.get("endpoint", "default"), columns.get("user_key", ""), columns.get("chat_key", ""))
    now = timezone.now()
    count = SessionRecord.objects.count()
    values = {"endpoint": "default", "key": scope.key(session_id), "opaque_id": f"o{count}"}
    return SessionRecord.objects.create(
        **values | {"session_id": session_id, "created_at": now, "updated_at": now} | columns
    )


def test_the_command_resets_a_session():
    plain, other = make_session(), make_session(endpoint="other", user_key="platform:u", chat_key="c")
    assert run_command("s1") == "The session was reset.\n"
    other.refresh_from_db()
    assert other.archived_at is None
    assert run_command("s1", "--endpoint", "other", "--user-key", "platform:u", "--chat-key", "c") == (
        "The session was reset.\n"
    )
    for session in (plain, other):
        session.refresh_from_db()
        assert (session.key, session.archived_at is None) == (None, False)


def test_the_command_says_that_there_is_no_such_session():
    make_session(user_key="user:1")
    with pytest.raises(CommandError, match="^There is no such session at this endpoint with these keys.$"):
        run_command("s1")
    assert SessionRecord.objects.get().archived_at is None


def busy(session: SessionRecord) -> None:
    session.claimed_by = 7
    session.claim_expires_at = timezone.now() + timedelta(minutes=1)
    session.save()


def test_the_command_leaves_a_busy_session():
    busy(make_session())
    with pytest.raises(CommandError, match="^A turn of this session runs or waits; nothing was changed.$"):
        run_command("s1")
    assert SessionRecord.objects.get().archived_at is None


# The admin.


def sign_in(client: Any, *permissions: str) -> Any:
    user = get_user_model().objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=[f"{name}_sessionrecord" for name in permissions]))
    client.force_login(user)
    return user


def choose(client: Any, *sessions: SessionRecord) -> Any:
    data = {"action": "reset", "_selected_action": [session.pk for session in sessions]}
    return client.post(SESSIONS, data, follow=True)


def told(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def test_the_admin_resets_the_chosen_sessions_and_leaves_busy_and_archived_ones(client):
    user = sign_in(client, "view", "delete")
    one, two, left, claimed = (make_session(name) for name in ("one", "two", "left", "claimed"))
    busy(claimed)
    archived = make_session("archived", key=None, archived_at=timezone.now())
    response = choose(client, one, two, claimed, archived)
    assert told(response) == [
        "2 sessions were reset.",
        "1 session has a turn that runs or waits, and was left as it is.",
    ]
    keyed = SessionRecord.objects.filter(key__isnull=False).order_by("pk")
    assert [session.pk for session in keyed] == [left.pk, claimed.pk]
    assert SessionRecord.objects.get(pk=archived.pk).archived_at == archived.archived_at
    entries = LogEntry.objects.order_by("object_id")
    assert [(entry.user_id, entry.object_id, entry.change_message) for entry in entries] == [
        (user.pk, str(one.pk), "Reset."),
        (user.pk, str(two.pk), "Reset."),
    ]


def test_an_archived_session_stays_readable_in_the_admin(client):
    sign_in(client, "view", "delete")
    session = make_session()
    payload = '{"type":"message","role":"user","contents":[{"type":"text","text":"what was said"}]}'
    MessageRecord.objects.create(
        session=session, source_id="m", position=0, role="user", payload=payload, created_at=timezone.now()
    )
    assert told(choose(client, session)) == ["1 session was reset."]
    page = client.get(reverse("admin:invocations_app_sessionrecord_change", args=[session.pk])).content.decode()
    assert "what was said" in page
    assert "s1" in client.get(SESSIONS, {"archived": "yes"}).content.decode()


def test_who_may_not_delete_may_not_reset(client):
    sign_in(client, "view")
    session = make_session()
    choose(client, session)
    assert "Reset selected" not in client.get(SESSIONS).content.decode()
    session.refresh_from_db()
    assert session.archived_at is None


def test_a_row_that_is_gone_is_not_reset():
    assert reset.reset_row(0) is False
