"""The tests' settings with a tasks backend that has real workers; for processes of their own."""

import json
import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks_db"]
TASKS = {"workers": {"BACKEND": "django_tasks_db.backend.DatabaseBackend"}}
INVOCATIONS = {
    "default": {
        "TARGET": "tests.tasks_fakes.build_obedient",
        "AUTHENTICATION_CLASSES": [],
        "PERMISSION_CLASSES": [],
        "THROTTLE_CLASSES": [],
        "TRUST_ISOLATION_HEADERS": True,
    }
}
INVOCATIONS_HOST = {"BACKGROUND_TASKS_BACKEND": "workers", "LEASE_SECONDS": 2, "REQUIRE_TARGETS": False}
for _name, _value in json.loads(os.environ.get("TASKS_TEST_SETTINGS", "{}")).items():
    globals()[_name] = _value
