"""Settings of the site, made for one machine; what differs elsewhere comes from the environment.

``SECRET_KEY``, ``DEBUG``, ``ALLOWED_HOSTS`` (separated by commas) and ``DATABASE_URL`` are read here,
the ``OPENAI_…`` variables in ``agents``. Lines between ``>>> copy`` and ``<<< copy`` are what an
existing site adds to its own settings.
"""

import os
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent


def _flag(name: str, *, default: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    return value in {"1", "true", "yes", "on"} if value else default


def _database(url: str | None) -> dict[str, Any]:
    database: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}
    if url:
        database = dict(dj_database_url.parse(url))
    options = database.setdefault("OPTIONS", {})
    if database["ENGINE"] == "django.db.backends.sqlite3":
        # Without these three, two writers at once mean "database is locked" at once.
        # NORMAL survives the end of the process, not that of the power; FULL survives both.
        options.setdefault("transaction_mode", "IMMEDIATE")
        options.setdefault("timeout", 20)  # seconds
        options.setdefault("init_command", "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
    elif database["ENGINE"] == "django.db.backends.postgresql":
        # Connections kept by thread (CONN_MAX_AGE) leak under ASGI; a pool does not.
        options.setdefault("pool", True)
    return database


DEBUG = _flag("DEBUG", default=True)
SECRET_KEY = os.environ.get("SECRET_KEY", "")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured("Set the environment variable SECRET_KEY: DEBUG is off.")
    SECRET_KEY = "only-for-development-on-this-machine"  # noqa: S105 - no secret, and refused without DEBUG
ALLOWED_HOSTS = [host.strip() for host in os.environ.get("ALLOWED_HOSTS", "").split(",") if host.strip()]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    # >>> copy
    "invocations_app",
    # <<< copy
]

# >>> copy
INVOCATIONS = {
    "default": {"TARGET": "project.agents.build_assistant", "RUN_HOOK": "project.hooks.limit_input"},
}
# <<< copy (and, in urls.py, the line marked there)
INVOCATIONS["announcement"] = {"TARGET": "project.workflows.build_announcement", "PATH": "announcement"}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "project.static_files.StaticFilesMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # >>> copy, where a platform in front of the site sets the isolation headers
    "invocations_app.middleware.IsolationKeysMiddleware",
    # <<< copy
]

ROOT_URLCONF = "project.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": _database(os.environ.get("DATABASE_URL"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "project" / "static"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"invocations_app": {"handlers": ["console"], "level": "INFO"}},
}
