"""The settings ``INVOCATIONS`` and ``INVOCATIONS_HOST``, typed and with their defaults.

Reading is cached until a setting changes. Whether dotted paths can be imported
is left to the checks and to whoever uses them: reading settings imports nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

ENDPOINTS_SETTING = "INVOCATIONS"
HOST_SETTING = "INVOCATIONS_HOST"
DEFAULT_SESSION_STORE = "invocations_app.storage.OrmSessionStore"

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATH = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_TYPE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the settings, in the words of a system check."""

    id: str
    message: str
    hint: str


class _Invalid(Exception):
    """A value is not of its key's kind; the text says what to write."""


Reader = Callable[[Any], Any]


def _dotted(value: Any) -> str:
    if not isinstance(value, str) or _DOTTED.fullmatch(value) is None:
        raise _Invalid("Write a dotted path, such as 'project.agents.build_assistant'.")
    return value


def _optional_dotted(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return _dotted(value)
    except _Invalid:
        raise _Invalid("Write a dotted path, such as 'project.hooks.run_hook', or None.") from None


def _optional_alias(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise _Invalid("Write an alias of TASKS, or None.")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Invalid("Write True or False.")
    return value


def _optional_boolean(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _Invalid("Write True, False or None.")
    return value


def _url_path(value: Any) -> str:
    if (
        not isinstance(value, str)
        or _PATH.fullmatch(value) is None
        or value == "readiness"
        # Clients resolve these before they send.
        or not {".", ".."}.isdisjoint(value.split("/"))
    ):
        raise _Invalid("Write a URL path without outer slashes, such as 'invocations' or 'api/agent'.")
    return value


def _choice(*allowed: str) -> Reader:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _Invalid("Write one of " + ", ".join(repr(name) for name in allowed) + ".")
        return value

    return read


def _number(unit: str, *, minimum: float, whole: bool = False, optional: bool = False) -> Reader:
    kinds = (int,) if whole else (int, float)

    def read(value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, kinds) or not minimum <= value < float("inf"):
            a_number = "a whole number" if whole else "a number"
            or_none = ", or None" if optional else ""
            raise _Invalid(f"Write {a_number} of {unit}, {minimum:g} or more{or_none}.")
        return value

    return read


def _strings(example: str) -> Reader:
    def read(value: Any) -> frozenset[str]:
        if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in value):
            raise _Invalid(f"Write a list of strings, such as {example}.")
        return frozenset(value)

    return read


def _paths(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, str) and _DOTTED.fullmatch(item) for item in value
    ):
        raise _Invalid("Write a list of dotted paths, such as ['project.clients.open_pool'].")
    return tuple(value)


def _types(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, str) and _TYPE.fullmatch(item) for item in value
    ):
        raise _Invalid("Write a list of classes, each as 'package.module:Class'.")
    return tuple(value)


def _optional_classes(value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, type) or (isinstance(item, str) and _DOTTED.fullmatch(item)) for item in value
    ):
        raise _Invalid("Write a list of dotted paths of classes, or None for those of REST_FRAMEWORK.")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class PushDestination:
    """One entry of ``PUSH_DESTINATIONS``.

    Attributes:
        backend: Dotted path of a class, or of a function that returns a backend.
        options: What it is called with, as keyword arguments in lower case;
            not in the text of this object, as secrets are among them.
    """

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


def _push_destinations(value: Any) -> Mapping[str, PushDestination]:
    wanted = (
        "Write a dictionary such as {'crm': {'BACKEND': 'invocations_app.delivery.WebhookPush', 'OPTIONS': {…}}}, "
        "its keys of letters, digits, '_' and '-' (64 at most)."
    )
    if not isinstance(value, Mapping):
        raise _Invalid(wanted)
    destinations = {}
    for name, entry in value.items():
        if not isinstance(name, str) or _ALIAS.fullmatch(name) is None or not isinstance(entry, Mapping):
            raise _Invalid(wanted)
        options = entry.get("OPTIONS", {})
        if not {"BACKEND"} <= set(entry) <= {"BACKEND", "OPTIONS"} or not isinstance(options, Mapping):
            raise _Invalid(f"Give {name!r} a 'BACKEND' and, as a dictionary, 'OPTIONS'; nothing else.")
        if not all(isinstance(key, str) for key in options) or len({key.lower() for key in options}) != len(options):
            raise _Invalid(f"Give each of the 'OPTIONS' of {name!r} a name of its own.")
        destinations[name] = PushDestination(_dotted(entry["BACKEND"]), dict(options))
    return destinations


def _setting(read: Reader, default: Any = MISSING) -> Any:
    if isinstance(default, dict):
        return field(default_factory=default.copy, hash=False, metadata={"read": read})
    return field(default=default, metadata={"read": read})


DEFAULT_OPTIONS = frozenset(
    {
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "tool_choice",
        "response_format",
    }
)
DEFAULT_MEDIA_TYPES = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
        "application/pdf",
        "audio/wav",
        "audio/mpeg",
        "audio/mp3",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """One entry of ``INVOCATIONS``; each attribute is the key in lower case.

    Attributes:
        alias: The entry's key.
        target: Dotted path to an agent, or to a sync or async factory of an agent or workflow.
        cache_target: Resolve the target once a process; False: afresh for each run,
            as a workflow always is.
        path: URL path of the endpoint below the include, without outer slashes.
        run_hook: Dotted path of ``(invocation, *, target, request) -> invocation``.
        response_hook: Dotted path of ``(result, *, invocation) -> result``.
        stream_transform_hook: Dotted path of ``(update, *, invocation) -> update | None``.
        session_store: Dotted path of a ``SessionStore`` class or a function that
            returns one. Atomic commit and claims hold for the default only.
        session_mode: ``auto``; ``required`` refuses a run without a session id;
            ``disabled`` loads and stores nothing.
        trust_isolation_headers: Believe the isolation headers. Only behind a
            proxy that sets them itself.
        expose_errors: Show the text of exceptions to callers; None: as DEBUG.
        max_body_bytes: Largest request body, in bytes.
        allowed_options: Names of the run options that a caller may send.
        input_media_types: Media types that `input` may carry.
        keepalive_seconds: Silence after which a stream gets a comment; 0: never.
        run_timeout_seconds: Longest time a run may take.
        on_disconnect: ``continue`` lets a run end when its last reader left,
            ``cancel`` cancels it.
        on_busy_session: ``wait`` lets a turn wait for the one before it, in order
            of arrival; ``reject`` refuses it at once.
        session_wait_seconds: Longest time a turn waits; one in the background
            waits without limit.
        reader_stall_seconds: Time of taking nothing after which a reader counts
            as having left.
        checkpoint_types: Classes that a workflow's checkpoints may hold beyond the
            framework's own, each as ``package.module:Class``.
        unsupported_options: What to do with options that the target's ``run``
            cannot take: ``warn`` drops them, ``error`` refuses.
        push_destinations: Where a run hook may send answers, by name.
        authentication_classes: As in DRF; None: those of ``REST_FRAMEWORK``.
        permission_classes: As in DRF; None: those of ``REST_FRAMEWORK``.
        throttle_classes: As in DRF; None: those of ``REST_FRAMEWORK``.
    """

    alias: str
    target: str = _setting(_dotted)
    cache_target: bool = _setting(_boolean, True)
    path: str = _setting(_url_path, "invocations")
    run_hook: str | None = _setting(_optional_dotted, None)
    response_hook: str | None = _setting(_optional_dotted, None)
    stream_transform_hook: str | None = _setting(_optional_dotted, None)
    session_store: str = _setting(_dotted, DEFAULT_SESSION_STORE)
    session_mode: Literal["auto", "required", "disabled"] = _setting(_choice("auto", "required", "disabled"), "auto")
    trust_isolation_headers: bool = _setting(_boolean, False)
    expose_errors: bool | None = _setting(_optional_boolean, None)
    max_body_bytes: int = _setting(_number("bytes", minimum=1, whole=True), 2 * 1024 * 1024)
    allowed_options: frozenset[str] = _setting(_strings("['temperature']"), DEFAULT_OPTIONS)
    input_media_types: frozenset[str] = _setting(_strings("['image/png']"), DEFAULT_MEDIA_TYPES)
    keepalive_seconds: float = _setting(_number("seconds", minimum=0), 15)
    run_timeout_seconds: float = _setting(_number("seconds", minimum=0.001), 600)
    on_disconnect: Literal["continue", "cancel"] = _setting(_choice("continue", "cancel"), "continue")
    on_busy_session: Literal["wait", "reject"] = _setting(_choice("wait", "reject"), "wait")
    session_wait_seconds: float = _setting(_number("seconds", minimum=0), 30)
    reader_stall_seconds: float = _setting(_number("seconds", minimum=0.001), 30)
    checkpoint_types: tuple[str, ...] = _setting(_types, ())
    unsupported_options: Literal["warn", "error"] = _setting(_choice("warn", "error"), "warn")
    push_destinations: Mapping[str, PushDestination] = _setting(_push_destinations, {})
    authentication_classes: tuple[Any, ...] | None = _setting(_optional_classes, None)
    permission_classes: tuple[Any, ...] | None = _setting(_optional_classes, None)
    throttle_classes: tuple[Any, ...] | None = _setting(_optional_classes, None)

    def __hash__(self) -> int:
        # Asked for at every request; what it leaves out, the comparison looks at.
        return hash((self.alias, self.target))

    @property
    def has_hooks(self) -> bool:
        """Whether there is any hook."""
        return not (self.run_hook is self.response_hook is self.stream_transform_hook is None)

    @property
    def shows_errors(self) -> bool:
        """Whether an exception's own text is shown to callers."""
        return settings.DEBUG if self.expose_errors is None else self.expose_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """``INVOCATIONS_HOST``: what is the process's; each attribute is the key in lower case.

    Attributes:
        require_targets: A target that cannot be built stops the boot; False: it
            is logged, 503 at ``/readiness`` and 500 to callers.
        startup: Dotted paths of what is called at start-up, in this order, sync
            or async, without arguments.
        shutdown: Likewise at shutdown, when no run lives any more.
        gc_freeze: At the end of start-up, take all objects there are out of the
            garbage collector's rounds.
        gc_young_objects: How many objects come, and do not go, between two of
            its short rounds; 0: Python decides.
        gc_defer_seconds: How long its full rounds wait for a moment in which
            nothing runs, at most; 0: Python decides.
        telemetry_rests: Switch the framework's telemetry off while nobody listens to it.
        quick_imports: Make the imports cheap that the framework does within its
            functions, where Python itself does not.
        shutdown_grace_seconds: Time that runs have to end once the process was
            asked to; then they are interrupted.
        max_concurrent_runs: Runs and waiting turns that a process takes on.
        lease_seconds: Time after which a run whose process is silent counts as
            interrupted, and its session is free again.
        event_flush_milliseconds: Longest time before a streamed event is in the log.
        event_ttl_seconds: Age at which logged events may go; None: kept.
        session_ttl_seconds: Idle time after which a session may go; None: kept.
        invocation_ttl_seconds: Age at which an ended invocation's record may go,
            and with it the promise that its id runs at most once; None: kept.
        session_cache_count: Sessions whose last turn is kept in memory; 0: none.
        session_cache_bytes: Memory that they may take, about, in bytes; 0: none is kept.
        background_tasks_backend: Alias in ``TASKS`` of the backend whose workers
            run background invocations; None: the web process does.
        redactor: Dotted path of ``(text) -> text``, sync: what the admin shows or
            exports of contents goes through it; None: shown as it is.
    """

    require_targets: bool = _setting(_boolean, True)
    startup: tuple[str, ...] = _setting(_paths, ())
    shutdown: tuple[str, ...] = _setting(_paths, ())
    gc_freeze: bool = _setting(_boolean, True)
    gc_young_objects: int = _setting(_number("objects", minimum=0, whole=True), 10_000)
    gc_defer_seconds: float = _setting(_number("seconds", minimum=0), 60)
    telemetry_rests: bool = _setting(_boolean, True)
    quick_imports: bool = _setting(_boolean, True)
    shutdown_grace_seconds: float = _setting(_number("seconds", minimum=0), 20)
    max_concurrent_runs: int = _setting(_number("runs", minimum=1, whole=True), 1000)
    lease_seconds: float = _setting(_number("seconds", minimum=1), 15)
    event_flush_milliseconds: float = _setting(_number("milliseconds", minimum=1), 250)
    event_ttl_seconds: float | None = _setting(_number("seconds", minimum=1, optional=True), 86400)
    session_ttl_seconds: float | None = _setting(_number("seconds", minimum=1, optional=True), None)
    invocation_ttl_seconds: float | None = _setting(_number("seconds", minimum=1, optional=True), 2592000)
    session_cache_count: int = _setting(_number("sessions", minimum=0, whole=True), 500)
    session_cache_bytes: int = _setting(_number("bytes", minimum=0, whole=True), 32 * 1024 * 1024)
    background_tasks_backend: str | None = _setting(_optional_alias, None)
    redactor: str | None = _setting(_optional_dotted, None)


def _keys(kind: type[EndpointSettings] | type[HostSettings]) -> dict[str, Any]:
    return {item.name.upper(): item for item in fields(kind) if "read" in item.metadata}


def _read(
    kind: type[EndpointSettings] | type[HostSettings], where: str, given: Mapping[Any, Any]
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the values read, by attribute name, and what is wrong with the others."""
    keys = _keys(kind)
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in given.items():
        item = keys.get(key)
        if item is None:
            known = ", ".join(sorted(keys))
            problems.append(
                Problem("invocations.E002", f"{where} has an unknown key {key!r}.", f"Known keys: {known}.")
            )
            continue
        try:
            values[item.name] = item.metadata["read"](value)
        except _Invalid as problem:
            problems.append(
                Problem("invocations.E003", f"{where}[{key!r}] has a value that it cannot have.", str(problem))
            )
    problems.extend(
        Problem(
            "invocations.E003", f"{where} has no {key!r}.", f"Add {key!r}: a dotted path to an agent or its factory."
        )
        for key, item in keys.items()
        if item.default is item.default_factory is MISSING and key not in given
    )
    return values, problems


def _path_problems(endpoints: Mapping[str, EndpointSettings]) -> list[Problem]:
    problems: list[Problem] = []
    ordered = sorted(endpoints.values(), key=lambda endpoint: endpoint.path)
    for index, first in enumerate(ordered):
        problems.extend(
            Problem(
                "invocations.E005",
                f"The paths of the endpoints {first.alias!r} and {second.alias!r} are equal or nested.",
                "Give each endpoint a 'PATH' of its own that does not start with the other's.",
            )
            for second in ordered[index + 1 :]
            if f"{second.path}/".startswith(f"{first.path}/")
        )
    return problems


class _Loaded(NamedTuple):
    endpoints: dict[str, EndpointSettings]
    broken: tuple[str, ...]
    host: HostSettings
    problems: tuple[Problem, ...]
    largest_body_bytes: int


@functools.lru_cache(maxsize=1)
def _load() -> _Loaded:
    problems: list[Problem] = []
    endpoints: dict[str, EndpointSettings] = {}
    given = getattr(settings, ENDPOINTS_SETTING, None)
    if not isinstance(given, Mapping) or not given:
        problems.append(
            Problem(
                "invocations.E001",
                f"{ENDPOINTS_SETTING} is not a dictionary of endpoints by alias.",
                "Write INVOCATIONS = {'default': {'TARGET': 'project.agents.build_assistant'}}.",
            )
        )
        given = {}
    for alias, entry in given.items():
        where = f"{ENDPOINTS_SETTING}[{alias!r}]"
        if not isinstance(alias, str) or _ALIAS.fullmatch(alias) is None or not isinstance(entry, Mapping):
            problems.append(
                Problem(
                    "invocations.E001",
                    f"{where} is not an endpoint.",
                    "Write an alias of letters, digits, '_' and '-' (64 at most), and a dictionary of its settings.",
                )
            )
            continue
        values, found = _read(EndpointSettings, where, entry)
        problems.extend(found)
        if not found:
            endpoints[alias] = EndpointSettings(alias=alias, **values)
    problems.extend(_path_problems(endpoints))
    host_given = getattr(settings, HOST_SETTING, {})
    host = HostSettings()
    if isinstance(host_given, Mapping):
        host_values, found = _read(HostSettings, HOST_SETTING, host_given)
        problems.extend(found)
        if not found:
            host = HostSettings(**host_values)
    else:
        problems.append(
            Problem("invocations.E001", f"{HOST_SETTING} is not a dictionary.", "Write INVOCATIONS_HOST = {}.")
        )
    broken = tuple(str(alias) for alias in given if alias not in endpoints)
    largest = max((endpoint.max_body_bytes for endpoint in endpoints.values()), default=0)
    return _Loaded(endpoints, broken, host, tuple(problems), largest)


def get_problems() -> tuple[Problem, ...]:
    """Return what is wrong with the two settings, for the system checks."""
    return _load().problems


def get_endpoints() -> Mapping[str, EndpointSettings]:
    """Return the well-formed endpoints by alias; the checks report the others."""
    return _load().endpoints


def get_largest_body_bytes() -> int:
    """Return the size of the largest body that an endpoint takes."""
    return _load().largest_body_bytes


def get_broken_aliases() -> tuple[str, ...]:
    """Return the aliases of entries that are no well-formed endpoint."""
    return _load().broken


def get_endpoint(alias: str) -> EndpointSettings:
    """Return one endpoint.

    Args:
        alias: Its key in ``INVOCATIONS``.

    Raises:
        ImproperlyConfigured: If there is no such endpoint, or its settings are wrong.
    """
    try:
        return _load().endpoints[alias]
    except KeyError:
        raise ImproperlyConfigured(
            f"{ENDPOINTS_SETTING}[{alias!r}] is missing or wrong; 'manage.py check' says what to write."
        ) from None


def get_host() -> HostSettings:
    """Return the settings of the process."""
    return _load().host


@functools.lru_cache(maxsize=64)
def load_classes(classes: tuple[Any, ...]) -> tuple[type, ...]:
    """Return classes that are named by dotted path or given as they are.

    Args:
        classes: Value of one of the ``…_CLASSES`` settings.

    Raises:
        ImportError: If a path cannot be imported.
    """
    return tuple(import_string(item) if isinstance(item, str) else item for item in classes)


def clear_cache() -> None:
    """Read the settings afresh at the next use."""
    _load.cache_clear()
