"""A site that is measured: the app, nothing that a peer does not have, and what ``BENCH_…`` asks for.

``BENCH_DIR``: where the SQLite file lies; ``DATABASE_URL``: a PostgreSQL instead. ``BENCH_MIDDLEWARE=default``: the
middleware that ``startproject`` writes. ``BENCH_AUTH=token``: callers are authenticated by DRF's tokens.
"""

import os
from pathlib import Path

import dj_database_url

SECRET_KEY = "benchmarks-only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "benchmarks.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "rest_framework.authtoken",
    "invocations_app",
]
MIDDLEWARE = []
if os.environ.get("BENCH_MIDDLEWARE") == "default":
    MIDDLEWARE = [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ]
if os.environ.get("DATABASE_URL"):
    DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 2, "max_size": 8}}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(os.environ.get("BENCH_DIR", ".")) / "bench.sqlite3"),
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
        }
    }
_WHO: dict[str, list[str]] = {"AUTHENTICATION_CLASSES": [], "PERMISSION_CLASSES": [], "THROTTLE_CLASSES": []}
if os.environ.get("BENCH_AUTH") == "token":
    _WHO["AUTHENTICATION_CLASSES"] = ["rest_framework.authentication.TokenAuthentication"]
    _WHO["PERMISSION_CLASSES"] = ["rest_framework.permissions.IsAuthenticated"]
INVOCATIONS = {"default": {"TARGET": "benchmarks.agent.build_agent", **_WHO}}
LOGGING = {"version": 1, "disable_existing_loggers": False}
