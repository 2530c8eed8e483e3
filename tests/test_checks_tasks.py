"""System checks of the tasks backend: there is one, it has workers, and they can take an invocation."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import Error
from django.test import override_settings
from django.utils.module_loading import import_string

from invocations_app import checks
from invocations_app.runs import tasks_api
from tests import tasks_fakes

API = tasks_api.get().__name__
WHERE_TASKS = "INVOCATIONS_HOST['BACKGROUND_TASKS_BACKEND']"
NAME_WORKERS = "Name an alias of TASKS whose backend has workers, such as that of 'django_tasks_db.DatabaseBackend'"
NOTING = "tests.tasks_fakes.NotingBackend"


class OwnImmediateBackend(import_string(f"{API}.backends.immediate.ImmediateBackend")):
    """A site's own way to have no workers."""


def tasks_found(**backend: Any) -> list[Any]:
    with tasks_fakes.tasks({"workers": backend} if backend else {}):
        return checks.check_tasks_backend()


def test_a_tasks_backend_with_workers_has_no_messages():
    assert tasks_found() == []
    with override_settings(INVOCATIONS_HOST={"BACKGROUND_TASKS_BACKEND": "workers"}):
        assert tasks_found(BACKEND=NOTING) == []
        assert tasks_found(BACKEND=NOTING, QUEUES=["default", "other"]) == []
        assert tasks_found(BACKEND=NOTING, QUEUES=[]) == []


def test_e014_a_tasks_backend_that_is_not_there():
    error = Error(f"{WHERE_TASKS}: TASKS has no 'nobody'.", hint=f"{NAME_WORKERS}.", id="invocations.E014")
    with override_settings(INVOCATIONS_HOST={"BACKGROUND_TASKS_BACKEND": "nobody"}):
        assert tasks_found(BACKEND=NOTING) == [error]


def test_e014_no_tasks_api(monkeypatch):
    monkeypatch.setattr("invocations_app.runs.tasks_api.find_spec", lambda name: None)
    with override_settings(INVOCATIONS_HOST={"BACKGROUND_TASKS_BACKEND": "workers"}):
        assert checks.check_tasks_backend() == [
            Error(
                f"{WHERE_TASKS}: Django has no tasks API before 6.0; its backport is not installed.",
                hint="Install 'django-invocations[tasks]'.",
                id="invocations.E014",
            )
        ]


@pytest.mark.parametrize(
    ("backend", "problem"),
    [
        *[
            ({"BACKEND": f"{API}.backends.{name}"}, f"its backend '{API}.backends.{name}' has no workers.")
            for name in ("immediate.ImmediateBackend", "dummy.DummyBackend")
        ],
        (
            {"BACKEND": "tests.test_checks_tasks.OwnImmediateBackend"},
            "its backend 'tests.test_checks_tasks.OwnImmediateBackend' ",
        ),
        ({"BACKEND": "no_such.Backend"}, "its backend cannot be used: InvalidTaskBackend"),
        ({"BACKEND": NOTING, "QUEUES": ["other"]}, "its backend cannot be used: InvalidTask"),
    ],
)
def test_e015_a_tasks_backend_that_cannot_run_invocations(backend, problem):
    with override_settings(INVOCATIONS_HOST={"BACKGROUND_TASKS_BACKEND": "workers"}):
        (message,) = tasks_found(**backend)
    assert message.msg.startswith(f"{WHERE_TASKS}: TASKS['workers'] cannot run invocations: {problem}")
    assert (message.id, message.hint) == (
        "invocations.E015",
        f"{NAME_WORKERS}, with the queue 'default'; or None, and the web process runs them itself.",
    )
