"""System checks: id, message and hint of each; the table in the docs names the same ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import Error, Warning, registry, run_checks
from django.db import connections
from django.test import override_settings

from invocations_app import checks
from tests import fakes

WHERE = "INVOCATIONS['default']"
FIX_IMPORT = "Write the dotted path of a module that can be imported, and of a name in it."
OWN_STORE = "invocations_app.storage.OrmSessionStore"
REPO = Path(__file__).resolve().parent.parent

not_callable = "text"


class AsyncPermission:
    async def has_permission(self, request, view):
        return True


class PlainPermission:
    def has_permission(self, request, view):
        return True


class TracingMiddleware(__import__("invocations_app.middleware").middleware.IsolationKeysMiddleware):
    """A site's own middleware on top of the app's."""


def store():
    raise AssertionError("a check never calls it")


def found(**entry: Any) -> list[Any]:
    with override_settings(INVOCATIONS={"default": {"TARGET": "tests.fakes.build_echo", **entry}}):
        return checks.check_settings() + checks.check_endpoints()


def test_a_good_site_has_no_messages():
    assert found(RUN_HOOK="tests.fakes.echo", PERMISSION_CLASSES=["tests.test_checks.PlainPermission"]) == []
    assert fakes.built == []


def test_all_checks_are_registered_under_one_tag():
    registered = {check.__name__ for check in registry.registry.get_checks(True) if checks.TAG in check.tags}
    assert registered == {
        "check_settings",
        "check_endpoints",
        "check_callbacks",
        "check_database",
        "check_redactor",
        "check_tasks_backend",
        "check_exposed_errors",
    }
    with override_settings(INVOCATIONS={}):
        assert [message.id for message in run_checks(tags=[checks.TAG])] == ["invocations.E001"]


def test_e002_wrong_settings_are_errors_with_the_words_of_conf():
    with override_settings(INVOCATIONS_HOST={"X": 1}):
        assert checks.check_settings() == [
            Error(
                "INVOCATIONS_HOST has an unknown key 'X'.",
                hint="Known keys: BACKGROUND_TASKS_BACKEND, EVENT_FLUSH_MILLISECONDS, EVENT_TTL_SECONDS, "
                "GC_DEFER_SECONDS, GC_FREEZE, GC_YOUNG_OBJECTS, INVOCATION_TTL_SECONDS, LEASE_SECONDS, "
                "MAX_CONCURRENT_RUNS, QUICK_IMPORTS, REDACTOR, REQUIRE_TARGETS, SESSION_CACHE_BYTES, "
                "SESSION_CACHE_COUNT, SESSION_TTL_SECONDS, SHUTDOWN, "
                "SHUTDOWN_GRACE_SECONDS, STARTUP, TELEMETRY_RESTS.",
                id="invocations.E002",
            )
        ]


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("TARGET", "no_such.module", "no_such.module"),
        ("RUN_HOOK", "no_such.module", "no_such.module"),
        ("RESPONSE_HOOK", "no_such.module", "no_such.module"),
        ("STREAM_TRANSFORM_HOOK", "no_such.module", "no_such.module"),
        ("AUTHENTICATION_CLASSES", ["no_such.module"], "no_such.module"),
        ("PERMISSION_CLASSES", ["no_such.module"], "no_such.module"),
        ("THROTTLE_CLASSES", ["no_such.module"], "no_such.module"),
    ],
)
def test_e004_a_dotted_path_that_cannot_be_imported(key, value, path):
    assert found(**{key: value}) == [
        Error(
            f"{WHERE}[{key!r}]: {path!r} cannot be imported: ModuleNotFoundError: No module named 'no_such'",
            hint=FIX_IMPORT,
            id="invocations.E004",
        )
    ]


@pytest.mark.parametrize("key", ["STARTUP", "SHUTDOWN"])
def test_callbacks_of_the_process_must_be_there_and_callable(key):
    paths = ["no_such.module", "tests.fakes.build_echo", "tests.test_checks.not_callable"]
    where = f"INVOCATIONS_HOST[{key!r}]"
    with override_settings(INVOCATIONS_HOST={key: paths}):
        assert checks.check_callbacks() == [
            Error(
                f"{where}: 'no_such.module' cannot be imported: ModuleNotFoundError: No module named 'no_such'",
                hint=FIX_IMPORT,
                id="invocations.E004",
            ),
            Error(
                f"{where}: 'tests.test_checks.not_callable' is not callable.",
                hint="Name a function without arguments, sync or async.",
                id="invocations.E008",
            ),
        ]
    assert fakes.built == []


def test_e004_a_name_that_its_module_does_not_have():
    (message,) = found(TARGET="tests.fakes.build_ecko")
    assert message.msg == (
        "INVOCATIONS['default']['TARGET']: 'tests.fakes.build_ecko' cannot be imported: "
        'ImportError: Module "tests.fakes" does not define a "build_ecko" attribute/class'
    )


def test_e004_a_module_that_raises_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "raising_settings_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    (message,) = found(TARGET="raising_settings_module.build")
    assert message.msg.endswith("cannot be imported: ZeroDivisionError: division by zero")
    assert message.id == "invocations.E004"


@pytest.mark.parametrize(
    ("middleware", "expected"),
    [
        ([], True),
        (["no_such.module"], True),
        (["django.middleware.common.CommonMiddleware"], True),
        (["invocations_app.middleware.IsolationKeysMiddleware"], False),
        (["tests.test_checks.TracingMiddleware"], False),
    ],
)
def test_e006_trusted_headers_without_the_middleware(middleware, expected):
    error = Error(
        "INVOCATIONS['default']['TRUST_ISOLATION_HEADERS'] is True, but MIDDLEWARE has no IsolationKeysMiddleware.",
        hint="Add 'invocations_app.middleware.IsolationKeysMiddleware' to MIDDLEWARE.",
        id="invocations.E006",
    )
    with override_settings(MIDDLEWARE=middleware):
        assert found(TRUST_ISOLATION_HEADERS=True) == [error] * expected
        assert found() == []


def test_e007_a_target_that_is_neither_agent_nor_factory():
    assert found(TARGET="tests.fakes.number") == [
        Error(
            f"{WHERE}['TARGET']: 'int' object is no agent: it has no method 'run'.",
            hint="Name an agent, or a function without arguments, sync or async, that returns one.",
            id="invocations.E007",
        )
    ]


@pytest.mark.parametrize("name", ["custom_agent", "managed_agent", "build_echo", "build_echo_async", "CustomAgent"])
def test_agents_factories_and_classes_are_targets(name):
    assert found(TARGET=f"tests.fakes.{name}") == []


def test_e013_a_checkpoint_type_that_is_no_class():
    types = ["tests.workflow_fakes:Order", "tests.test_checks:Outer.Inner", "types:GenericAlias"]
    assert found(CHECKPOINT_TYPES=types) == []
    assert found(CHECKPOINT_TYPES=["tests.test_checks:Outer.missing"]) == [
        Error(
            f"{WHERE}['CHECKPOINT_TYPES']: 'tests.test_checks:Outer.missing' is no class.",
            hint="Name a class as 'package.module:Class': its module, and its qualified name in it.",
            id="invocations.E013",
        )
    ]
    (unknown,) = found(CHECKPOINT_TYPES=["tests.no_such_module:Order"])
    assert unknown.id == "invocations.E004"


class Outer:
    class Inner:
        pass


@pytest.mark.parametrize("key", ["RUN_HOOK", "RESPONSE_HOOK", "STREAM_TRANSFORM_HOOK"])
def test_e008_a_hook_that_cannot_be_called(key):
    assert found(**{key: "tests.test_checks.not_callable"}) == [
        Error(
            f"{WHERE}[{key!r}]: 'tests.test_checks.not_callable' is not callable.",
            hint="Name a function, sync or async.",
            id="invocations.E008",
        )
    ]


def test_e008_a_session_store_that_cannot_be_called():
    error, warning = found(SESSION_STORE="tests.test_checks.not_callable")
    assert error == Error(
        f"{WHERE}['SESSION_STORE']: 'tests.test_checks.not_callable' is not callable.",
        hint="Name a SessionStore class, or a function without arguments that returns one.",
        id="invocations.E008",
    )
    assert warning.id == "invocations.W002"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("workflow", "'Workflow' object is no agent."),
        ("builder", "'WorkflowBuilder' object is a builder, not an agent."),
    ],
)
def test_e009_a_workflow_or_its_builder(name, problem):
    assert found(TARGET=f"tests.fakes.{name}") == [
        Error(
            f"{WHERE}['TARGET']: {problem}",
            hint="Name a function that builds a workflow anew, executors and agents included, and gives it a name: "
            "callers cannot share one, nor what one builder builds.",
            id="invocations.E009",
        )
    ]


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("AUTHENTICATION_CLASSES", "authenticate"),
        ("PERMISSION_CLASSES", "has_permission"),
        ("THROTTLE_CLASSES", "allow_request"),
    ],
)
@pytest.mark.parametrize(("value", "name"), [("builtins.dict", "builtins.dict"), (dict, "builtins.dict")])
def test_e010_a_class_without_the_method_that_is_called(key, method, value, name):
    assert found(**{key: [value]}) == [
        Error(
            f"{WHERE}[{key!r}]: {name!r} has no method {method!r}.",
            hint="Name a class of Django REST framework, or one like it.",
            id="invocations.E010",
        )
    ]


def database(monkeypatch: pytest.MonkeyPatch, vendor: str = "sqlite", **changed: Any) -> list[Any]:
    connection = connections["default"]
    monkeypatch.setattr(connection, "settings_dict", {**connection.settings_dict, **changed})
    monkeypatch.setattr(connection, "vendor", vendor)
    return checks.check_database()


WAL = "PRAGMA journal_mode = wal; PRAGMA synchronous=NORMAL;"


@pytest.mark.parametrize("age", [60, None])
def test_w001_connections_that_an_asgi_server_leaks(monkeypatch, age):
    assert database(monkeypatch, vendor="postgresql", CONN_MAX_AGE=age, OPTIONS={}) == [
        Warning(
            "DATABASES['default']['CONN_MAX_AGE'] is not 0: an ASGI server leaks such connections.",
            hint="Set it to 0. On PostgreSQL write 'OPTIONS': {'pool': True} to keep connections open.",
            id="invocations.W001",
        )
    ]


def test_w002_another_session_store():
    assert found(SESSION_STORE="tests.test_checks.store") == [
        Warning(
            f"{WHERE}['SESSION_STORE'] is not the app's own store: a turn's session is not committed together with "
            "its answer, and other writers are not kept out.",
            hint=f"Remove 'SESSION_STORE' to use '{OWN_STORE}', or silence this warning.",
            id="invocations.W002",
        )
    ]


@pytest.mark.parametrize("options", [{"init_command": WAL}, {"init_command": WAL, "transaction_mode": "DEFERRED"}])
def test_w003_sqlite_without_immediate_transactions(monkeypatch, options):
    assert database(monkeypatch, CONN_MAX_AGE=0, OPTIONS=options) == [
        Warning(
            "DATABASES['default'] is SQLite without transaction_mode IMMEDIATE: "
            "concurrent turns fail with 'database is locked'.",
            hint="Add 'OPTIONS': {'transaction_mode': 'IMMEDIATE', 'timeout': 20}.",
            id="invocations.W003",
        )
    ]


@pytest.mark.parametrize("options", [{}, {"init_command": None}, {"init_command": "PRAGMA journal_mode=DELETE;"}])
def test_w004_sqlite_without_a_write_ahead_log(monkeypatch, options):
    assert database(monkeypatch, CONN_MAX_AGE=0, OPTIONS={**options, "transaction_mode": "immediate"}) == [
        Warning(
            "DATABASES['default'] is SQLite without a write-ahead log: readers and writers wait for each other.",
            hint="Add 'OPTIONS': {'init_command': 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;'}.",
            id="invocations.W004",
        )
    ]


def test_a_good_database_has_no_messages(monkeypatch):
    good = {"init_command": WAL, "transaction_mode": "IMMEDIATE"}
    assert database(monkeypatch, CONN_MAX_AGE=0, OPTIONS=good) == []
    assert database(monkeypatch, vendor="postgresql", CONN_MAX_AGE=0, OPTIONS={"pool": True}) == []


@pytest.mark.parametrize(
    ("debug", "expose", "expected"), [(False, True, True), (True, True, False), (False, None, False)]
)
def test_w005_errors_shown_to_callers_is_said_at_deployment(debug, expose, expected):
    warning = Warning(
        f"{WHERE}['EXPOSE_ERRORS'] is True: callers are shown the text of exceptions.",
        hint="Remove 'EXPOSE_ERRORS' or set it to False.",
        id="invocations.W005",
    )
    entry = {"TARGET": "tests.fakes.build_echo", "EXPOSE_ERRORS": expose}
    with override_settings(DEBUG=debug, INVOCATIONS={"default": entry}):
        assert checks.check_exposed_errors() == [warning] * expected
        shown = run_checks(tags=[checks.TAG], include_deployment_checks=False)
        assert warning not in shown


def test_w006_async_classes_cost_a_thread_hop():
    assert found(PERMISSION_CLASSES=["tests.test_checks.AsyncPermission"]) == [
        Warning(
            f"{WHERE}['PERMISSION_CLASSES']: 'tests.test_checks.AsyncPermission' is async, "
            "and costs a thread hop on every request.",
            hint="Make 'has_permission' a plain method, and keep it cheap.",
            id="invocations.W006",
        )
    ]


def test_the_docs_list_every_id():
    source = (REPO / "invocations_app/checks.py").read_text() + (REPO / "invocations_app/conf.py").read_text()
    ids = set(re.findall(r'"invocations\.([EW]\d{3})"', source))
    assert set(re.findall(r"`invocations\.([EW]\d{3})`", (REPO / "docs/checks.md").read_text())) == ids
