"""A site that is measured: the app, nothing that a peer does not have, and what BENCH_… asks for."""

import os
from pathlib import Path

import dj_database_url

_DIR = Path(os.environ.get("BENCH_DIR", "."))
SECRET_KEY = "benchmarks-only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "benchmarks.urls"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "invocations_app"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
if os.environ.get("BENCH_MIDDLEWARE") == "default":
    INSTALLED_APPS += ["django.contrib.sessions", "django.contrib.messages"]
else:
    MIDDLEWARE = []
if os.environ.get("DATABASE_URL"):
    DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 2, "max_size": 8}}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(_DIR / "bench.sqlite3"),
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
        }
    }
_OPEN = {"AUTHENTICATION_CLASSES": [], "PERMISSION_CLASSES": [], "THROTTLE_CLASSES": []}
INVOCATIONS = {"default": {"TARGET": "benchmarks.agent.build_agent", **_OPEN}}
LOGGING = {"version": 1, "disable_existing_loggers": False}
