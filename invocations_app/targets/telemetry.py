"""The framework's own telemetry: it rests while nobody in the process listens to it.

The framework makes spans and their attributes for every run, model call and
update of a stream, and throws them away where no OpenTelemetry provider was
set: a tenth of what a short turn costs, and a fifth of a long stream. Its
switch is one for the process, so only a server's process turns it, from the end
of start-up to the shutdown. Which spans there are is left to the framework.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from agent_framework.observability import OBSERVABILITY_SETTINGS
from opentelemetry import metrics, trace

# What stands in for a provider that nobody has set, or set to do nothing: by name, as not all of them are public.
# Whatever else is one day called otherwise counts as a listener.
_NOBODY = frozenset({"ProxyTracerProvider", "NoOpTracerProvider", "_ProxyMeterProvider", "NoOpMeterProvider"})

# How long it is taken for granted that nobody has set a provider, in seconds: to ask takes longer than all else here.
_LOOK_SECONDS = 1.0

# At DEBUG the framework logs the arguments of tools unless its telemetry is on.
_framework_logger = logging.getLogger("agent_framework")


class Switch:
    """Turns the framework's switch, for as long as it is told to."""

    def __init__(self) -> None:
        self._is_watched = False
        self._rests = False
        self._builds = 0
        self._looked_at = -_LOOK_SECONDS

    def watch(self) -> None:
        """Let telemetry rest from now on while nobody listens."""
        self._is_watched = True
        self._looked_at = -_LOOK_SECONDS
        self.match()

    def release(self) -> None:
        """Leave the switch as it was found; harmless when done before."""
        self._is_watched = False
        self._wake()

    def match(self) -> None:
        """See whether anybody listens by now, before something is run."""
        if not self._is_watched:
            return
        if self._builds or _is_wanted_in_logs():
            self._wake()
            return
        now = time.monotonic()
        if self._rests and now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        if is_heard():
            self._wake()
        elif OBSERVABILITY_SETTINGS.enable_instrumentation:
            self._rests = True
            OBSERVABILITY_SETTINGS.enable_instrumentation = False

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Have telemetry awake while a target is built or entered.

        A tool asks for its metric once, when it is made, and somebody may listen later.
        """
        self._builds += 1
        self._wake()
        try:
            yield
        finally:
            self._builds -= 1
            self.match()

    def _wake(self) -> None:
        if self._rests:
            self._rests = False
            OBSERVABILITY_SETTINGS.enable_instrumentation = True


def is_heard() -> bool:
    """Return whether anybody listens to traces or metrics of this process."""
    return (
        type(trace.get_tracer_provider()).__name__ not in _NOBODY
        or type(metrics.get_meter_provider()).__name__ not in _NOBODY
    )


def _is_wanted_in_logs() -> bool:
    """Return whether something is logged that depends on telemetry: arguments of tools, and texts of exceptions."""
    return _framework_logger.isEnabledFor(logging.DEBUG) or OBSERVABILITY_SETTINGS.enable_sensitive_data


#: The one of this process.
switch = Switch()
