"""Settings of the processes: the tests' own, another database, and an endpoint for each way to behave."""

import json
import os

from tests.settings import *  # noqa: F403

DATABASES = {"default": json.loads(os.environ["PROCESSES_DATABASE"])}
_OPEN = {
    "TARGET": "tests.processes.agents.build",
    "RUN_HOOK": "tests.processes.agents.hold",
    "AUTHENTICATION_CLASSES": [],
    "PERMISSION_CLASSES": [],
    "THROTTLE_CLASSES": [],
}
_GUARDED = {
    "AUTHENTICATION_CLASSES": ["rest_framework.authentication.BasicAuthentication"],
    "PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}
INVOCATIONS = {
    "waits": _OPEN | {"PATH": "waits", "SESSION_WAIT_SECONDS": 120},
    "rejects": _OPEN | {"PATH": "rejects", "ON_BUSY_SESSION": "reject"},
    "cancels": _OPEN | {"PATH": "cancels", "ON_DISCONNECT": "cancel"},
    "stalls": _OPEN | {"PATH": "stalls", "READER_STALL_SECONDS": 1},
    "stalls-cancels": _OPEN | {"PATH": "stalls-cancels", "READER_STALL_SECONDS": 1, "ON_DISCONNECT": "cancel"},
    "delivers": _OPEN
    | {
        "PATH": "delivers",
        "RUN_HOOK": "tests.processes.delivering.elsewhere",
        "PUSH_DESTINATIONS": {
            "held": {"BACKEND": "tests.processes.delivering.JournalPush", "OPTIONS": {"GATE": "push"}},
            "free": {"BACKEND": "tests.processes.delivering.JournalPush"},
        },
    },
    "approves": _OPEN | {"PATH": "approves", "TARGET": "tests.processes.approving.build"},
    "guarded": _OPEN | _GUARDED | {"PATH": "guarded", "ON_DISCONNECT": "cancel"},
}
INVOCATIONS_HOST = {"LEASE_SECONDS": float(os.environ["PROCESSES_LEASE_SECONDS"])}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
