"""Workflows in the admin: checkpoints in order, what each holds and for whom, and the graph of an endpoint."""

from __future__ import annotations

import json
import logging
import shutil
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import AsyncClient, Client
from django.urls import reverse

from invocations_app import targets
from invocations_app.admin import graphs
from invocations_app.admin.checkpoints import MAX_LIST_CHARACTERS, figures_of, list_checkpoints, plain
from invocations_app.models import CheckpointRecord, SessionRecord
from tests import fakes
from tests.admin_records import ESCAPED, NOW, SCRIPT, make_invocation, make_session, page_of, text_of
from tests.client import endpoint, post
from tests.test_admin_invocations import READ, async_client, client_of
from tests.workflow_fakes import Question

SEE = "view_sessionrecord"
TYPES = ["tests.workflow_fakes:Question", "tests.workflow_fakes:Approval"]
needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


@pytest.fixture
def viewer(db: None) -> Client:
    """Somebody who sees lists and figures."""
    return client_of(SEE)


@pytest.fixture
def reader(db: None) -> Client:
    """Somebody who reads what was said."""
    return client_of(SEE, READ)


@pytest.fixture(autouse=True)
def _unknown_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows what an earlier one has found out about targets."""
    monkeypatch.setattr(targets, "_kinds", {})


def use(settings: Any, name: str = "build_asking", **keys: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=f"tests.workflow_fakes.{name}", CHECKPOINT_TYPES=TYPES, **keys)


def url(session: SessionRecord, checkpoint: CheckpointRecord | None = None) -> str:
    name = "admin:invocations_app_sessionrecord_checkpoint"
    if checkpoint is None:
        return reverse(f"{name}s", args=[session.pk])
    return reverse(name, args=[session.pk, checkpoint.pk])


def graph(alias: str = "default", name: str = "graph") -> str:
    return reverse(f"admin:invocations_app_sessionrecord_{name}", args=[alias])


def payload(**change: Any) -> str:
    held = {
        "workflow_name": "asking", "graph_signature_hash": "f00", "checkpoint_id": "c1", "iteration_count": 2,
        "previous_checkpoint_id": "c0", "timestamp": "", "messages": {"first": [1, 2]}, "metadata": {}, "version": "1",
        "state": {"_executor_state": {"first": {"a": 1}, "second": {}}}, "pending_request_info_events": {"r1": {}},
    }  # fmt: skip
    return json.dumps(held | change)


def make_checkpoint(session: SessionRecord, stored: str | None = None, **keys: Any) -> CheckpointRecord:
    values = {"workflow_name": "asking", "payload": payload() if stored is None else stored, "created_at": NOW}
    values["checkpoint_id"] = f"c{CheckpointRecord.objects.count()}"
    return CheckpointRecord.objects.create(session_record=session, **values | keys)


class TestList:
    def test_checkpoints_stand_in_order_with_what_they_hold(self, viewer):
        session = make_session("flow")
        for _ in range(2):
            make_checkpoint(session, invocation=make_invocation())
        text = text_of(viewer.get(url(session)))
        assert text.index("<code>c0</code>") < text.index("<code>c1</code>")
        for part in ('<td class="invocations-number">2</td>', "2 from <code>first</code>", "<code>first</code>"):
            assert part in text, part
        assert "<code>second</code>" not in text

    def test_figures_are_told_without_decoding(self):
        figures = figures_of(payload())
        assert (figures.iteration, figures.previous, figures.messages) == (2, "c0", {"first": 2})
        assert (figures.executors, figures.asked, figures.graph) == (("first",), 1, "f00")

    @pytest.mark.parametrize("stored", ["", "{", "[]", "3", "{}", '{"messages":1}', "[" * 100_000])
    def test_what_cannot_be_read_says_so(self, viewer, stored):
        session = make_session()
        make_checkpoint(session, stored)
        assert figures_of(stored) is None
        assert "It cannot be read, or is too large for this page." in text_of(viewer.get(url(session)))

    def test_huge_ones_are_not_loaded(self, db, monkeypatch):
        monkeypatch.setattr("invocations_app.admin.checkpoints.MAX_LIST_CHARACTERS", 500)
        session = make_session()
        make_checkpoint(session)
        make_checkpoint(session, payload(metadata={"a": "x" * 500}))
        assert [entry.figures is None for entry in list_checkpoints(session)] == [False, True]
        assert MAX_LIST_CHARACTERS > 500

    def test_number_of_queries_does_not_grow(self, viewer, django_assert_num_queries):
        session = make_session(state="x")
        for _ in range(10):
            make_checkpoint(session, invocation=make_invocation(answer="secret"))
        # Session, user, permissions of the user and of the groups; the session; its checkpoints; what they hold.
        with django_assert_num_queries(7) as queries:
            viewer.get(url(session))
        read = "".join(query["sql"] for query in queries.captured_queries)
        assert '"answer"' not in read
        assert '"state"' not in read

    def test_empty_list_says_so(self, viewer):
        assert "No checkpoints are stored." in text_of(viewer.get(url(make_session())))

    def test_other_sessions_checkpoints_are_not_shown(self, reader):
        mine, other = make_session("a"), make_session("b")
        theirs = make_checkpoint(other)
        assert "No checkpoints are stored." in text_of(reader.get(url(mine)))
        assert reader.get(url(mine, theirs)).status_code == 404

    def test_names_are_escaped(self, reader):
        session = make_session(SCRIPT)
        record = make_checkpoint(session, payload(messages={SCRIPT: [1]}), workflow_name=SCRIPT, checkpoint_id=SCRIPT)
        for page in (url(session), url(session, record)):
            text = text_of(reader.get(page))
            assert "<script>alert" not in text
            assert ESCAPED in text

    def test_session_of_a_workflow_links_to_them(self, viewer, django_assert_max_num_queries):
        session = make_session()
        assert url(session) not in text_of(viewer.get(page_of(session)))
        make_checkpoint(session)
        assert url(session) in text_of(viewer.get(page_of(session)))
        agents = make_session(message_count=3)
        with django_assert_max_num_queries(20) as queries:
            assert url(agents) not in text_of(viewer.get(page_of(agents)))
        assert not any("checkpointrecord" in query["sql"] for query in queries.captured_queries)

    def test_strangers_see_nothing(self, db):
        session = make_session()
        stranger = client_of("view_invocationrecord")
        for page in (url(session), graph(), graph(name="picture")):
            assert stranger.get(page).status_code == 403
            assert Client().get(page).status_code == 302
        assert client_of(SEE).get(url(SessionRecord(pk=999))).status_code == 404


class TestContents:
    def test_without_the_permission_there_are_none(self, viewer):
        session = make_session()
        record = make_checkpoint(session, payload(metadata={"a": "secret"}))
        text = text_of(viewer.get(url(session)))
        assert "secret" not in text
        assert url(session, record) not in text
        assert viewer.get(url(session, record)).status_code == 403
        assert not LogEntry.objects.exists()

    def test_who_reads_leaves_an_entry(self, reader):
        session = make_session()
        reader.get(url(session, make_checkpoint(session)))
        [entry] = LogEntry.objects.all()
        assert (entry.change_message, entry.object_id) == ("Read a checkpoint.", str(session.pk))

    @pytest.mark.django_db(transaction=True)
    async def test_objects_are_told_by_their_fields(self, settings):
        use(settings)
        await post({"message": "budget", "session_id": "s1"})
        client = await async_client(SEE, READ)
        text = await _last_page(client)
        assert "cannot be decoded" not in text
        for part in ("&quot;(type)&quot;: &quot;Question&quot;", "&quot;text&quot;: &quot;budget&quot;"):
            assert part in text, part

    @pytest.mark.django_db(transaction=True)
    async def test_what_may_not_be_decoded_is_named_and_left_out(self, settings):
        use(settings)
        await post({"message": "budget", "session_id": "s1"})
        settings.INVOCATIONS = {}
        client = await async_client(SEE, READ)
        text = await _last_page(client)
        assert "It cannot be decoded" in text
        assert "[agent_framework._workflows._events:WorkflowEvent: cannot be shown]" in text
        assert "__pickled__" not in text

    @pytest.mark.django_db(transaction=True)
    async def test_they_are_redacted(self, settings):
        use(settings)
        settings.INVOCATIONS_HOST = {"REDACTOR": "tests.test_admin_workflows.no_budget"}
        await post({"message": "budget", "session_id": "s1"})
        text = await _last_page(await async_client(SEE, READ))
        assert "budget" not in text
        assert "&quot;text&quot;: &quot;***&quot;" in text

    @pytest.mark.parametrize("stored", ["", "[]", '{"messages":{"a":[{"__pickled__":"AAAA","__type__":"os:system"}]}}'])
    def test_damaged_one_breaks_nothing(self, reader, stored):
        session = make_session()
        text = text_of(reader.get(url(session, make_checkpoint(session, stored))))
        assert "It cannot be decoded" in text
        assert "AAAA" not in text

    def test_value_of_any_kind_is_shown(self):
        class Broken:
            @property
            def __dict__(self) -> Any:
                raise RuntimeError("no")

        deep: Any = "end"
        for _ in range(60):
            deep = [deep]
        assert plain(Broken()) == "[Broken: cannot be shown]"
        assert plain(Question("x")) == {"(type)": "Question", "text": "x"}
        assert plain({1: (Question, {2})}) == {"1": ["tests.workflow_fakes.Question", [2]]}
        assert plain(NOW) == {"(type)": "datetime", "value": "2026-03-04 05:06:07+00:00"}
        assert "end" not in json.dumps(plain(deep))


def no_budget(text: str) -> str:
    return text.replace("budget", "***")


async def _last_page(client: AsyncClient) -> str:
    from tests.client import rows

    record = (await rows(lambda: CheckpointRecord.objects.select_related("session_record").order_by("-pk")))[0]
    response = await client.get(url(record.session_record, record))
    assert response.status_code == 200
    text: str = response.content.decode()
    return text


class TestGraph:
    def test_sources_are_the_frameworks_own(self, settings, viewer):
        use(settings, "build_supersteps")
        text = text_of(viewer.get(graph()))
        for part in ("flowchart TD", "digraph Workflow", "first (Start)", "supersteps", "<code>second</code>"):
            assert part in text, part

    def test_invocation_of_a_workflow_links_to_it(self, settings, viewer):
        use(settings, "build_supersteps")
        record, both = make_invocation(), client_of(SEE, "view_invocationrecord")
        assert graph() not in text_of(both.get(page_of(record)))
        viewer.get(graph())
        assert graph() in text_of(both.get(page_of(record)))
        assert graph() not in text_of(client_of("view_invocationrecord").get(page_of(record)))

    def test_it_is_that_of_the_code_as_it_is_now(self, settings, viewer):
        use(settings, "build_changing")
        before = text_of(viewer.get(graph()))
        fakes.switches["graph"] = True
        assert "<code>slow</code>" not in before
        assert "<code>slow</code>" in text_of(viewer.get(graph()))

    def test_async_factory_works_too(self, settings, viewer):
        use(settings, "build_counting_async")
        assert "<code>counting</code>" in text_of(viewer.get(graph()))

    @pytest.mark.django_db(transaction=True)
    async def test_over_asgi_too(self, settings):
        use(settings, "build_supersteps")
        response = await (await async_client(SEE)).get(graph())
        assert b"flowchart TD" in response.content

    def test_agent_has_none_and_is_not_built_to_know(self, settings, viewer):
        settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_flaky")
        assert "The target of this endpoint is an agent" in text_of(viewer.get(graph()))
        fakes.notes.clear()
        assert "The target of this endpoint is an agent" in text_of(viewer.get(graph()))
        assert fakes.notes == []
        assert viewer.get(graph(name="picture")).status_code == 404

    def test_failing_factory_tells_nothing_of_itself(self, settings, viewer, caplog):
        settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
        text = text_of(viewer.get(graph()))
        assert "The workflow cannot be built at present; the log says why." in text
        assert "no model today" not in text
        assert viewer.get(graph(name="picture")).status_code == 404

    def test_slow_factory_is_not_waited_for(self, settings, viewer, monkeypatch):
        use(settings, "build_counting_async")
        monkeypatch.setattr(graphs, "BUILD_SECONDS", 0.001)
        assert "takes too long" in text_of(viewer.get(graph()))

    def test_endpoint_that_is_not_there(self, viewer):
        assert viewer.get(graph("nowhere")).status_code == 404

    def test_without_graphviz_the_source_is_shown_with_a_note(self, settings, viewer, monkeypatch):
        use(settings, "build_supersteps")
        monkeypatch.setattr(graphs.shutil, "which", lambda program: None)
        text = text_of(viewer.get(graph()))
        assert "Where Graphviz is installed" in text
        assert "<img" not in text
        assert viewer.get(graph(name="picture")).status_code == 404

    @needs_graphviz
    def test_picture_is_an_image_that_runs_and_loads_nothing(self, settings, viewer):
        use(settings, "build_supersteps")
        assert f'<img src="{graph(name="picture")}"' in text_of(viewer.get(graph()))
        response = viewer.get(graph(name="picture"))
        assert response["Content-Type"] == "image/svg+xml"
        assert response["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'; sandbox"
        assert response["X-Content-Type-Options"] == "nosniff"
        assert b"<svg" in response.content

    @needs_graphviz
    def test_source_that_is_broken_or_reads_files_draws_none_of_them(self, tmp_path, caplog):
        picture = tmp_path / "secret.png"
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16))
        reading = graphs.Graph("x", "", (), "", f'digraph {{ a [image="{picture}"]; }}')
        drawn = graphs.draw(reading) or b""
        assert b"secret.png" not in drawn
        with caplog.at_level(logging.WARNING):
            assert graphs.draw(graphs.Graph("x", "", (), "", "digraph {")) is None
        assert "was not drawn: CalledProcessError" in caplog.text
