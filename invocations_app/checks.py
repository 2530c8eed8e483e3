"""System checks of the two settings, and of what an endpoint needs around it.

Each has a stable id, a message that names the setting, and a hint that says
what to write. ``docs/checks.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.module_loading import import_string

from invocations_app import conf

TAG = "invocations"
MIDDLEWARE_PATH = "invocations_app.middleware.IsolationKeysMiddleware"

_HOOKS = ("run_hook", "response_hook", "stream_transform_hook")
_CLASSES: Mapping[str, str] = {
    "authentication_classes": "authenticate",
    "permission_classes": "has_permission",
    "throttle_classes": "allow_request",
}


@register(TAG)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report what is wrong with the shape of the settings (E001, E002, E003, E005)."""
    return [Error(problem.message, hint=problem.hint, id=problem.id) for problem in conf.get_problems()]


@register(TAG)
def check_endpoints(**kwargs: Any) -> list[CheckMessage]:
    """Report what an endpoint names and cannot use (E004, E006 to E011, E013; W002, W006)."""
    messages: list[CheckMessage] = []
    for endpoint in conf.get_endpoints().values():
        messages.extend(_check_target(endpoint))
        messages.extend(_check_hooks(endpoint))
        messages.extend(_check_session_store(endpoint))
        messages.extend(_check_checkpoint_types(endpoint))
        messages.extend(_check_classes(endpoint))
        messages.extend(_check_push_destinations(endpoint))
        if endpoint.trust_isolation_headers and not _has_middleware():
            messages.append(
                Error(
                    f"{_where(endpoint)}['TRUST_ISOLATION_HEADERS'] is True, but MIDDLEWARE has no "
                    "IsolationKeysMiddleware.",
                    hint=f"Add '{MIDDLEWARE_PATH}' to MIDDLEWARE.",
                    id="invocations.E006",
                )
            )
    return messages


@register(TAG)
def check_callbacks(**kwargs: Any) -> list[CheckMessage]:
    """Report what is to be called at start-up and shutdown and cannot be (E004, E008)."""
    host = conf.get_host()
    messages: list[CheckMessage] = []
    for key, paths in (("STARTUP", host.startup), ("SHUTDOWN", host.shutdown)):
        where = f"{conf.HOST_SETTING}[{key!r}]"
        for path in paths:
            found, problems = _import(where, path)
            messages.extend(problems)
            if not problems and not callable(found):
                messages.append(
                    Error(
                        f"{where}: {path!r} is not callable.",
                        hint="Name a function without arguments, sync or async.",
                        id="invocations.E008",
                    )
                )
    return messages


@register(TAG)
def check_redactor(**kwargs: Any) -> list[CheckMessage]:
    """Report a redactor that the admin cannot call (E004, E008, E016)."""
    path = conf.get_host().redactor
    if path is None:
        return []
    where = f"{conf.HOST_SETTING}['REDACTOR']"
    found, messages = _import(where, path)
    if messages:
        return messages
    hint = "Name a plain function that takes a text and returns a text."
    if not callable(found):
        return [Error(f"{where}: {path!r} is not callable.", hint=hint, id="invocations.E008")]
    if _is_async(found) or _is_async(getattr(found, "__call__", None)):  # noqa: B004
        return [Error(f"{where}: {path!r} is async.", hint=hint, id="invocations.E016")]
    return []


@register(TAG)
def check_database(**kwargs: Any) -> list[CheckMessage]:
    """Report a database that the app uses and that is set up badly for it (W001, W003, W004)."""
    from invocations_app.models import SessionRecord

    alias = router.db_for_write(SessionRecord) or DEFAULT_DB_ALIAS
    database = connections[alias].settings_dict
    where = f"DATABASES[{alias!r}]"
    messages: list[CheckMessage] = []
    if database.get("CONN_MAX_AGE") != 0:
        messages.append(
            Warning(
                f"{where}['CONN_MAX_AGE'] is not 0: an ASGI server leaks such connections.",
                hint="Set it to 0. On PostgreSQL write 'OPTIONS': {'pool': True} to keep connections open.",
                id="invocations.W001",
            )
        )
    if connections[alias].vendor == "sqlite":
        messages.extend(_check_sqlite(where, database.get("OPTIONS") or {}))
    return messages


@register(TAG)
def check_tasks_backend(**kwargs: Any) -> list[CheckMessage]:
    """Report a tasks backend whose workers cannot run background invocations (E014, E015)."""
    alias = conf.get_host().background_tasks_backend
    return [] if alias is None else list(_check_tasks_backend(alias))


@register(TAG, deploy=True)
def check_exposed_errors(**kwargs: Any) -> list[CheckMessage]:
    """Report endpoints that show the text of exceptions to callers (W005)."""
    return [
        Warning(
            f"{_where(endpoint)}['EXPOSE_ERRORS'] is True: callers are shown the text of exceptions.",
            hint="Remove 'EXPOSE_ERRORS' or set it to False.",
            id="invocations.W005",
        )
        for endpoint in conf.get_endpoints().values()
        if endpoint.expose_errors is True and not settings.DEBUG
    ]


def _check_tasks_backend(alias: str) -> Iterator[CheckMessage]:
    from invocations_app.runs import tasks_api

    where = f"{conf.HOST_SETTING}['BACKGROUND_TASKS_BACKEND']"
    try:
        api = tasks_api.get()
    except ImproperlyConfigured as error:
        yield Error(f"{where}: {error}", hint="Install 'django-invocations[tasks]'.", id="invocations.E014")
        return
    if alias not in api.task_backends.settings:
        yield Error(
            f"{where}: TASKS has no {alias!r}.",
            hint="Name an alias of TASKS whose backend has workers, such as that of 'django_tasks_db.DatabaseBackend'.",
            id="invocations.E014",
        )
        return
    try:
        backend = api.task_backends[alias]
        if tasks_api.has_workers(backend):
            tasks_api.task_for(alias)
            return
        problem = f"its backend {_name(type(backend))!r} has no workers."
    # What a backend raises is its own.
    except Exception as error:
        problem = f"its backend cannot be used: {type(error).__name__}: {error}"
    yield Error(
        f"{where}: TASKS[{alias!r}] cannot run invocations: {problem}",
        hint="Name an alias of TASKS whose backend has workers, such as that of 'django_tasks_db.DatabaseBackend', "
        "with the queue 'default'; or None, and the web process runs them itself.",
        id="invocations.E015",
    )


def _where(endpoint: conf.EndpointSettings) -> str:
    return f"{conf.ENDPOINTS_SETTING}[{endpoint.alias!r}]"


def _import(where: str, path: Any) -> tuple[Any, list[CheckMessage]]:
    """Return what a dotted path names (a class as it is), or None and the error."""
    if not isinstance(path, str):
        return path, []
    try:
        return import_string(path), []
    # A module may raise anything while it is imported.
    except Exception as error:
        return None, [
            Error(
                f"{where}: {path!r} cannot be imported: {type(error).__name__}: {error}",
                hint="Write the dotted path of a module that can be imported, and of a name in it.",
                id="invocations.E004",
            )
        ]


def _check_target(endpoint: conf.EndpointSettings) -> Iterator[CheckMessage]:
    # The framework takes long to import, and not every command runs the checks.
    from invocations_app import targets

    where = f"{_where(endpoint)}['TARGET']"
    found, messages = _import(where, endpoint.target)
    yield from messages
    if messages or targets.is_factory(found):
        return
    try:
        targets.kind_of(found)
    except targets.NotATarget as error:
        is_workflow = isinstance(error, targets.WorkflowInstance)
        yield Error(
            f"{where}: {error.problem}",
            hint=error.fix,
            id="invocations.E009" if is_workflow else "invocations.E007",
        )


def _check_hooks(endpoint: conf.EndpointSettings) -> Iterator[CheckMessage]:
    for name in _HOOKS:
        path = getattr(endpoint, name)
        if path is None:
            continue
        where = f"{_where(endpoint)}[{name.upper()!r}]"
        found, messages = _import(where, path)
        yield from messages
        if not messages and not callable(found):
            yield Error(
                f"{where}: {path!r} is not callable.",
                hint="Name a function, sync or async.",
                id="invocations.E008",
            )


def _check_session_store(endpoint: conf.EndpointSettings) -> Iterator[CheckMessage]:
    where = f"{_where(endpoint)}['SESSION_STORE']"
    found, messages = _import(where, endpoint.session_store)
    yield from messages
    if not messages and not callable(found):
        yield Error(
            f"{where}: {endpoint.session_store!r} is not callable.",
            hint="Name a SessionStore class, or a function without arguments that returns one.",
            id="invocations.E008",
        )
    if endpoint.session_store != conf.DEFAULT_SESSION_STORE:
        yield Warning(
            f"{where} is not the app's own store: a turn's session is not committed together with its answer, "
            "and other writers are not kept out.",
            hint=f"Remove 'SESSION_STORE' to use '{conf.DEFAULT_SESSION_STORE}', or silence this warning.",
            id="invocations.W002",
        )


def _check_checkpoint_types(endpoint: conf.EndpointSettings) -> Iterator[CheckMessage]:
    where = f"{_where(endpoint)}['CHECKPOINT_TYPES']"
    for item in endpoint.checkpoint_types:
        module, _, name = item.partition(":")
        outer, *inner = name.split(".")
        found, messages = _import(where, f"{module}.{outer}")
        for part in inner:
            found = getattr(found, part, None)
        yield from messages
        if not messages and not isinstance(found, type):
            yield Error(
                f"{where}: {item!r} is no class.",
                hint="Name a class as 'package.module:Class': its module, and its qualified name in it.",
                id="invocations.E013",
            )


def _check_classes(endpoint: conf.EndpointSettings) -> Iterator[CheckMessage]:
    for name, method in _CLASSES.items():
        where = f"{_where(endpoint)}[{name.upper()!r}]"
        for item in getattr(endpoint, name) or ():
            found, messages = _import(where, item)
            yield from messages
            if messages:
                continue
            if not callable(getattr(found, method, None)):
                yield Error(
                    f"{where}: {_name(item)!r} has no method {method!r}.",
                    hint="Name a class of Django REST framework, or one like it.",
                    id="invocations.E010",
                )
            elif _is_async(getattr(found, method)):
                yield Warning(
                    f"{where}: {_name(item)!r} is async, and costs a thread hop on every request.",
                    hint=f"Make {method!r} a plain method, and keep it cheap.",
                    id="invocations.W006",
                )


def _check_push_destinations(endpoint: conf.EndpointSettings) -> Iterator[CheckMessage]:
    from invocations_app import delivery

    for name, destination in endpoint.push_destinations.items():
        where = f"{_where(endpoint)}['PUSH_DESTINATIONS'][{name!r}]"
        _, messages = _import(where, destination.backend)
        yield from messages
        if messages:
            continue
        try:
            delivery.make_backend(destination)
        except ImproperlyConfigured as error:
            problem = str(error)
        except Exception as error:
            # Its text may hold an option's value, and with it a secret.
            problem = f"the backend cannot be made: {type(error).__name__}."
        else:
            continue
        yield Error(
            f"{where}: {problem}",
            hint="Correct 'BACKEND' and 'OPTIONS'; docs/delivery.md has those of the webhook.",
            id="invocations.E011",
        )


def _name(item: Any) -> str:
    return item if isinstance(item, str) else f"{item.__module__}.{item.__qualname__}"


def _is_async(method: Any) -> bool:
    from asgiref.sync import iscoroutinefunction

    return iscoroutinefunction(method)


def _has_middleware() -> bool:
    for path in settings.MIDDLEWARE:
        try:
            found = import_string(path)
        # Django itself reports a middleware that cannot be imported.
        except Exception:  # noqa: S112
            continue
        # By name, and of every base: this module does not import the middleware's.
        bases = found.__mro__ if isinstance(found, type) else ()
        if any(f"{base.__module__}.{base.__qualname__}" == MIDDLEWARE_PATH for base in bases):
            return True
    return False


def _check_sqlite(where: str, options: Mapping[str, Any]) -> Iterator[CheckMessage]:
    if str(options.get("transaction_mode")).upper() != "IMMEDIATE":
        yield Warning(
            f"{where} is SQLite without transaction_mode IMMEDIATE: concurrent turns fail with 'database is locked'.",
            hint="Add 'OPTIONS': {'transaction_mode': 'IMMEDIATE', 'timeout': 20}.",
            id="invocations.W003",
        )
    if "journal_mode=wal" not in str(options.get("init_command")).replace(" ", "").lower():
        yield Warning(
            f"{where} is SQLite without a write-ahead log: readers and writers wait for each other.",
            hint="Add 'OPTIONS': {'init_command': 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;'}.",
            id="invocations.W004",
        )
