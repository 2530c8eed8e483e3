"""Settings of the processes with a tasks backend that has workers."""

from tests.processes import settings
from tests.processes.settings import *  # noqa: F403

INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_tasks_db"]
TASKS = {"workers": {"BACKEND": "django_tasks_db.backend.DatabaseBackend"}}
INVOCATIONS = {"tasks": settings._OPEN | {"PATH": "tasks", "TRUST_ISOLATION_HEADERS": True}}
INVOCATIONS_HOST = settings.INVOCATIONS_HOST | {"BACKGROUND_TASKS_BACKEND": "workers"}
