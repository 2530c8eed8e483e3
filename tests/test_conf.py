"""Reading the two settings: defaults, what is refused, and with which words."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from invocations_app import conf

TARGET = "project.agents.build_assistant"
DOTTED = "Write a dotted path, such as 'project.agents.build_assistant'."
HOOK = "Write a dotted path, such as 'project.hooks.run_hook', or None."
CLASSES = "Write a list of dotted paths of classes, or None for those of REST_FRAMEWORK."
PATH = "Write a URL path without outer slashes, such as 'invocations' or 'api/agent'."
PATHS = "Write a list of dotted paths, such as ['project.clients.open_pool']."
TRUTH = "Write True or False."


def problems(endpoints: object, host: object = None) -> list[tuple[str, str, str]]:
    with override_settings(INVOCATIONS=endpoints, INVOCATIONS_HOST={} if host is None else host):
        return [(problem.id, problem.message, problem.hint) for problem in conf.get_problems()]


@override_settings(INVOCATIONS={"default": {"TARGET": TARGET}})
def test_every_default_is_as_documented():
    endpoint = conf.get_endpoint("default")
    values = {name: getattr(endpoint, name) for name in conf.EndpointSettings.__dataclass_fields__}
    assert values == {
        "alias": "default",
        "target": TARGET,
        "cache_target": True,
        "path": "invocations",
        "run_hook": None,
        "response_hook": None,
        "stream_transform_hook": None,
        "session_store": "invocations_app.storage.OrmSessionStore",
        "session_mode": "auto",
        "trust_isolation_headers": False,
        "expose_errors": None,
        "max_body_bytes": 2_097_152,
        "allowed_options": {
            "temperature",
            "top_p",
            "max_tokens",
            "stop",
            "seed",
            "frequency_penalty",
            "presence_penalty",
            "tool_choice",
            "response_format",
        },
        "input_media_types": conf.DEFAULT_MEDIA_TYPES,
        "keepalive_seconds": 15,
        "run_timeout_seconds": 600,
        "on_disconnect": "continue",
        "on_busy_session": "wait",
        "session_wait_seconds": 30,
        "reader_stall_seconds": 30,
        "checkpoint_types": (),
        "unsupported_options": "warn",
        "push_destinations": {},
        "authentication_classes": None,
        "permission_classes": None,
        "throttle_classes": None,
    }
    assert conf.get_problems() == ()
    assert conf.get_host() == conf.HostSettings(
        require_targets=True,
        max_concurrent_runs=1000,
        lease_seconds=15,
        event_flush_milliseconds=250,
        event_ttl_seconds=86_400,
        session_ttl_seconds=None,
        invocation_ttl_seconds=2_592_000,
        session_cache_count=500,
        session_cache_bytes=33_554_432,
        background_tasks_backend=None,
        startup=(),
        shutdown=(),
        gc_freeze=True,
        gc_young_objects=10_000,
        gc_defer_seconds=60,
        telemetry_rests=True,
        quick_imports=True,
        shutdown_grace_seconds=20,
    )


def test_every_key_is_read():
    entry = {
        "TARGET": "a.b",
        "CACHE_TARGET": False,
        "PATH": "api/agent",
        "RUN_HOOK": "a.run",
        "RESPONSE_HOOK": "a.response",
        "STREAM_TRANSFORM_HOOK": "a.transform",
        "SESSION_STORE": "a.Store",
        "SESSION_MODE": "required",
        "TRUST_ISOLATION_HEADERS": True,
        "EXPOSE_ERRORS": False,
        "MAX_BODY_BYTES": 10,
        "ALLOWED_OPTIONS": ["seed"],
        "INPUT_MEDIA_TYPES": (),
        "KEEPALIVE_SECONDS": 0,
        "RUN_TIMEOUT_SECONDS": 1.5,
        "ON_DISCONNECT": "cancel",
        "ON_BUSY_SESSION": "reject",
        "SESSION_WAIT_SECONDS": 0,
        "READER_STALL_SECONDS": 5,
        "UNSUPPORTED_OPTIONS": "error",
        "AUTHENTICATION_CLASSES": [],
        "PERMISSION_CLASSES": ["a.Permission"],
        "THROTTLE_CLASSES": [dict],
    }
    with override_settings(INVOCATIONS={"x": entry}):
        assert conf.get_problems() == ()
        endpoint = conf.get_endpoint("x")
    read = {key: getattr(endpoint, key.lower()) for key in entry}
    assert read == {
        **entry,
        "ALLOWED_OPTIONS": {"seed"},
        "INPUT_MEDIA_TYPES": set(),
        "AUTHENTICATION_CLASSES": (),
        "PERMISSION_CLASSES": ("a.Permission",),
        "THROTTLE_CLASSES": (dict,),
    }
    assert hash(endpoint) == hash(endpoint)


def test_every_key_of_the_process_is_read():
    host = {
        "REQUIRE_TARGETS": False,
        "MAX_CONCURRENT_RUNS": 1,
        "LEASE_SECONDS": 1.5,
        "EVENT_FLUSH_MILLISECONDS": 1,
        "EVENT_TTL_SECONDS": None,
        "SESSION_TTL_SECONDS": 60,
        "INVOCATION_TTL_SECONDS": None,
        "SESSION_CACHE_COUNT": 0,
        "SESSION_CACHE_BYTES": 0,
        "BACKGROUND_TASKS_BACKEND": "default",
        "STARTUP": ("a.b", "c.d"),
        "SHUTDOWN": ("e.f",),
        "GC_FREEZE": False,
        "GC_YOUNG_OBJECTS": 0,
        "GC_DEFER_SECONDS": 0,
        "TELEMETRY_RESTS": False,
        "QUICK_IMPORTS": False,
        "SHUTDOWN_GRACE_SECONDS": 0,
        "REDACTOR": "g.h",
    }
    with override_settings(INVOCATIONS_HOST=host):
        assert conf.get_problems() == ()
        assert {key: getattr(conf.get_host(), key.lower()) for key in host} == host
    assert {name.upper() for name in conf.HostSettings.__dataclass_fields__} == set(host)


@pytest.mark.parametrize("value", [None, [], "default", {}])
def test_a_setting_that_is_no_dictionary_of_endpoints(value):
    assert problems(value) == [
        (
            "invocations.E001",
            "INVOCATIONS is not a dictionary of endpoints by alias.",
            "Write INVOCATIONS = {'default': {'TARGET': 'project.agents.build_assistant'}}.",
        )
    ]


@pytest.mark.parametrize(
    ("alias", "entry"),
    [("a b", {"TARGET": "a.b"}), ("a" * 65, {"TARGET": "a.b"}), (5, {"TARGET": "a.b"}), ("x", "a.b")],
)
def test_an_entry_that_is_no_endpoint(alias, entry):
    assert problems({alias: entry}) == [
        (
            "invocations.E001",
            f"INVOCATIONS[{alias!r}] is not an endpoint.",
            "Write an alias of letters, digits, '_' and '-' (64 at most), and a dictionary of its settings.",
        )
    ]


def test_a_missing_target():
    assert problems({"x": {}}) == [
        (
            "invocations.E003",
            "INVOCATIONS['x'] has no 'TARGET'.",
            "Add 'TARGET': a dotted path to an agent or its factory.",
        )
    ]


def test_unknown_keys_are_named_with_the_known_ones():
    (endpoint_problem, host_problem) = problems({"x": {"TARGET": "a.b", "TARGT": 1}}, {"WORKERS": 2})
    assert endpoint_problem[:2] == ("invocations.E002", "INVOCATIONS['x'] has an unknown key 'TARGT'.")
    assert endpoint_problem[2].startswith("Known keys: ALLOWED_OPTIONS, AUTHENTICATION_CLASSES, CACHE_TARGET, ")
    assert host_problem[:2] == ("invocations.E002", "INVOCATIONS_HOST has an unknown key 'WORKERS'.")
    assert "REQUIRE_TARGETS" in host_problem[2]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("TARGET", None, DOTTED),
        ("TARGET", "build", DOTTED),
        ("TARGET", "a.b()", DOTTED),
        ("TARGET", "a.b\n", DOTTED),
        ("CACHE_TARGET", 1, TRUTH),
        ("PATH", "", PATH),
        ("PATH", "/invocations", PATH),
        ("PATH", "invocations/", PATH),
        ("PATH", "a//b", PATH),
        ("PATH", "a b", PATH),
        ("PATH", "<slug:x>", PATH),
        ("PATH", "a/../b", PATH),
        ("PATH", "readiness", PATH),
        ("PATH", None, PATH),
        ("RUN_HOOK", "hook", HOOK),
        ("RESPONSE_HOOK", 1, HOOK),
        ("STREAM_TRANSFORM_HOOK", "", HOOK),
        ("SESSION_STORE", None, DOTTED),
        ("SESSION_MODE", "never", "Write one of 'auto', 'required', 'disabled'."),
        ("SESSION_MODE", None, "Write one of 'auto', 'required', 'disabled'."),
        ("TRUST_ISOLATION_HEADERS", "yes", TRUTH),
        ("EXPOSE_ERRORS", 0, "Write True, False or None."),
        ("MAX_BODY_BYTES", 0, "Write a whole number of bytes, 1 or more."),
        ("MAX_BODY_BYTES", 1.5, "Write a whole number of bytes, 1 or more."),
        ("MAX_BODY_BYTES", True, "Write a whole number of bytes, 1 or more."),
        ("ALLOWED_OPTIONS", "seed", "Write a list of strings, such as ['temperature']."),
        ("ALLOWED_OPTIONS", [1], "Write a list of strings, such as ['temperature']."),
        ("INPUT_MEDIA_TYPES", None, "Write a list of strings, such as ['image/png']."),
        ("KEEPALIVE_SECONDS", -1, "Write a number of seconds, 0 or more."),
        ("KEEPALIVE_SECONDS", None, "Write a number of seconds, 0 or more."),
        ("RUN_TIMEOUT_SECONDS", 0, "Write a number of seconds, 0.001 or more."),
        ("RUN_TIMEOUT_SECONDS", float("nan"), "Write a number of seconds, 0.001 or more."),
        ("RUN_TIMEOUT_SECONDS", float("inf"), "Write a number of seconds, 0.001 or more."),
        ("ON_DISCONNECT", "stop", "Write one of 'continue', 'cancel'."),
        ("ON_BUSY_SESSION", "queue", "Write one of 'wait', 'reject'."),
        ("SESSION_WAIT_SECONDS", -1, "Write a number of seconds, 0 or more."),
        ("SESSION_WAIT_SECONDS", None, "Write a number of seconds, 0 or more."),
        ("READER_STALL_SECONDS", "30", "Write a number of seconds, 0.001 or more."),
        ("UNSUPPORTED_OPTIONS", "ignore", "Write one of 'warn', 'error'."),
        ("AUTHENTICATION_CLASSES", "a.B", CLASSES),
        ("PERMISSION_CLASSES", ["B"], CLASSES),
        ("THROTTLE_CLASSES", [None], CLASSES),
    ],
)
def test_a_value_that_a_key_cannot_have(key, value, hint):
    assert problems({"x": {"TARGET": "a.b", key: value}}) == [
        ("invocations.E003", f"INVOCATIONS['x'][{key!r}] has a value that it cannot have.", hint)
    ]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("REQUIRE_TARGETS", None, TRUTH),
        ("MAX_CONCURRENT_RUNS", 0, "Write a whole number of runs, 1 or more."),
        ("MAX_CONCURRENT_RUNS", 1.5, "Write a whole number of runs, 1 or more."),
        ("LEASE_SECONDS", 0.5, "Write a number of seconds, 1 or more."),
        ("LEASE_SECONDS", None, "Write a number of seconds, 1 or more."),
        ("EVENT_FLUSH_MILLISECONDS", 0, "Write a number of milliseconds, 1 or more."),
        ("EVENT_TTL_SECONDS", 0, "Write a number of seconds, 1 or more, or None."),
        ("SESSION_TTL_SECONDS", "1", "Write a number of seconds, 1 or more, or None."),
        ("INVOCATION_TTL_SECONDS", False, "Write a number of seconds, 1 or more, or None."),
        ("SESSION_CACHE_COUNT", -1, "Write a whole number of sessions, 0 or more."),
        ("SESSION_CACHE_COUNT", 1.5, "Write a whole number of sessions, 0 or more."),
        ("SESSION_CACHE_BYTES", None, "Write a whole number of bytes, 0 or more."),
        ("BACKGROUND_TASKS_BACKEND", "", "Write an alias of TASKS, or None."),
        ("BACKGROUND_TASKS_BACKEND", 1, "Write an alias of TASKS, or None."),
        ("STARTUP", "a.b", PATHS),
        ("STARTUP", ["b"], PATHS),
        ("SHUTDOWN", [print], PATHS),
        ("SHUTDOWN", None, PATHS),
        ("GC_FREEZE", 1, TRUTH),
        ("GC_YOUNG_OBJECTS", -1, "Write a whole number of objects, 0 or more."),
        ("GC_YOUNG_OBJECTS", 0.5, "Write a whole number of objects, 0 or more."),
        ("GC_DEFER_SECONDS", -1, "Write a number of seconds, 0 or more."),
        ("GC_DEFER_SECONDS", None, "Write a number of seconds, 0 or more."),
        ("TELEMETRY_RESTS", None, TRUTH),
        ("QUICK_IMPORTS", 1, TRUTH),
        ("SHUTDOWN_GRACE_SECONDS", -1, "Write a number of seconds, 0 or more."),
        ("SHUTDOWN_GRACE_SECONDS", None, "Write a number of seconds, 0 or more."),
    ],
)
def test_a_value_that_a_key_of_the_process_cannot_have(key, value, hint):
    assert problems({"x": {"TARGET": "a.b"}}, {key: value}) == [
        ("invocations.E003", f"INVOCATIONS_HOST[{key!r}] has a value that it cannot have.", hint)
    ]


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (
            {"REQUIRE_TARGETS": None},
            ("invocations.E003", "INVOCATIONS_HOST['REQUIRE_TARGETS'] has a value that it cannot have.", TRUTH),
        ),
        ([], ("invocations.E001", "INVOCATIONS_HOST is not a dictionary.", "Write INVOCATIONS_HOST = {}.")),
    ],
)
def test_a_host_setting_that_is_wrong_leaves_the_defaults(host, problem):
    assert problems({"x": {"TARGET": "a.b"}}, host) == [problem]
    with override_settings(INVOCATIONS_HOST=host):
        assert conf.get_host().require_targets is True


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a/b/c", "a", True),
        ("a", "ab", False),
        ("a", "a-b", False),
        ("a/b", "a/c", False),
    ],
)
def test_equal_and_nested_paths(first, second, clash):
    found = problems({"one": {"TARGET": "a.b", "PATH": first}, "two": {"TARGET": "a.b", "PATH": second}})
    assert [(identifier, hint) for identifier, _, hint in found] == [
        ("invocations.E005", "Give each endpoint a 'PATH' of its own that does not start with the other's.")
    ] * clash
    assert all("'one'" in message and "'two'" in message for _, message, _ in found)


def test_a_wrong_endpoint_leaves_the_others():
    with override_settings(INVOCATIONS={"good": {"TARGET": "a.b"}, "bad": {"TARGET": 1}}):
        assert list(conf.get_endpoints()) == ["good"]
        assert conf.get_broken_aliases() == ("bad",)
        with pytest.raises(ImproperlyConfigured) as caught:
            conf.get_endpoint("bad")
    assert str(caught.value) == "INVOCATIONS['bad'] is missing or wrong; 'manage.py check' says what to write."


def test_reading_is_cached_and_follows_changed_settings():
    assert conf.get_endpoint("default") is conf.get_endpoint("default")
    with override_settings(INVOCATIONS={"other": {"TARGET": "a.b"}}):
        assert list(conf.get_endpoints()) == ["other"]
    assert list(conf.get_endpoints()) == ["default"]


@pytest.mark.parametrize(
    ("debug", "given", "shows"), [(True, None, True), (False, None, False), (True, False, False), (False, True, True)]
)
def test_errors_are_shown_as_debug_says_unless_set(debug, given, shows):
    with override_settings(DEBUG=debug, INVOCATIONS={"x": {"TARGET": "a.b", "EXPOSE_ERRORS": given}}):
        assert conf.get_endpoint("x").shows_errors is shows
