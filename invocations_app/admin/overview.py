"""The figures of the overview: what ended within the last hour, day and week, and what is live, by endpoint.

Each window is one query that reads nothing but the index ``invocations_overview``;
the database groups by bucket, and percentiles are counted here, from some
thousands of groups (see ``storage.figures``). How it looks is left to ``charts`` and the template.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Case, Count, F, Q, QuerySet, Sum, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from invocations_app import conf
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import figures

Status = InvocationRecord.Status

# Statuses that the figures tell apart, as numbers; any other is the last one.
_STATUSES = (Status.FAILED, Status.INTERRUPTED, Status.CANCELLED)
_ERRORS = {0, 1}
# An interrupted run took until somebody noticed, and a cancelled one as long as its caller let it.
_UNTIMED = {1, 2}

# Factors of packed numbers: more than there are statuses, and buckets.
_PLACES = 4
_BUCKETS = 1024


@dataclass(frozen=True, slots=True)
class Window:
    """A time up to now, in steps of equal length.

    Attributes:
        title: What it is called.
        step: What a step is called.
        minutes: Its length in minutes, the one that has begun included.
        step_minutes: The length of a step in minutes.
    """

    title: Promise
    step: Promise
    minutes: int
    step_minutes: int


WINDOWS = (
    Window(_("Last hour"), _("5 minutes"), 60, 5),
    Window(_("Last day"), _("1 hour"), 24 * 60, 60),
    Window(_("Last week"), _("1 day"), 7 * 24 * 60, 24 * 60),
)


@dataclass(slots=True)
class Tally:
    """What is counted of the runs that ended within some time.

    Attributes:
        runs: How many ended, whatever their end.
        errors: How many of them failed or were interrupted.
        tokens: Their tokens together, as far as they are told.
        durations: How many were in each bucket of the duration.
        first_bytes: How many were in each bucket of the time to the first byte.
    """

    runs: int = 0
    errors: int = 0
    tokens: int = 0
    durations: Counter[int] = field(default_factory=Counter)
    first_bytes: Counter[int] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Count what another tally has counted, too."""
        self.runs += other.runs
        self.errors += other.errors
        self.tokens += other.tokens
        self.durations.update(other.durations)
        self.first_bytes.update(other.first_bytes)

    @property
    def error_percent(self) -> float | None:
        """Share of the errors; None without runs."""
        return 100 * self.errors / self.runs if self.runs else None

    @property
    def duration_p50(self) -> float | None:
        """Median of the duration in seconds."""
        return figures.percentile_seconds(self.durations, 0.5)

    @property
    def duration_p95(self) -> float | None:
        """95th percentile of the duration in seconds."""
        return figures.percentile_seconds(self.durations, 0.95)

    @property
    def first_byte_p50(self) -> float | None:
        """Median of the time to the first byte in seconds."""
        return figures.percentile_seconds(self.first_bytes, 0.5)

    @property
    def first_byte_p95(self) -> float | None:
        """95th percentile of the time to the first byte in seconds."""
        return figures.percentile_seconds(self.first_bytes, 0.95)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a window.

    Attributes:
        begins_at: Its beginning.
        tally: What ended in it.
    """

    begins_at: datetime
    tally: Tally


@dataclass(frozen=True, slots=True)
class Span:
    """An endpoint within a window.

    Attributes:
        window: The window.
        steps: Its steps, the oldest first.
        active_sessions: Sessions whose last activity is within it.
        total: What ended in all of it.
    """

    window: Window
    steps: tuple[Step, ...]
    active_sessions: int
    total: Tally


@dataclass(frozen=True, slots=True)
class Part:
    """An endpoint, or all of them together.

    Attributes:
        endpoint: Its alias; empty for all.
        is_configured: Whether the settings name it.
        running: Records that run.
        queued: Records that wait.
        spans: The figures of each window.
    """

    endpoint: str
    is_configured: bool
    running: int
    queued: int
    spans: tuple[Span, ...]


def read(now: datetime) -> list[Part]:
    """Return what the overview shows: all endpoints together where there are several, then each.

    Args:
        now: The time at which the windows end.
    """
    tallies = [_tallies(window, now) for window in WINDOWS]
    sessions = _active_sessions(now)
    live = _live()
    configured = set(conf.get_endpoints())
    names = sorted(configured.union(sessions, live, *(tally.keys() for tally in tallies)))
    groups = [("", names)] if len(names) != 1 else []
    return [
        Part(
            endpoint=endpoint,
            is_configured=not endpoint or endpoint in configured,
            running=sum(live[name][Status.RUNNING] for name in members if name in live),
            queued=sum(live[name][Status.QUEUED] for name in members if name in live),
            spans=tuple(
                _span(
                    window,
                    now,
                    [tallies[place][name] for name in members if name in tallies[place]],
                    sum(sessions[name][place] for name in members if name in sessions),
                )
                for place, window in enumerate(WINDOWS)
            ),
        )
        for endpoint, members in [*groups, *((name, [name]) for name in names)]
    ]


def grouped(window: Window, now: datetime) -> QuerySet[InvocationRecord, tuple[int, int, str, int, int]]:
    """Return the query of a window: step and status, both buckets, endpoint, records and tokens.

    Two columns of a group are packed into one number each: a database sorts numbers far faster than texts.

    Args:
        window: The window.
        now: The time at which it ends.
    """
    first = figures.minute(now) - window.minutes + 1
    offset = F("finished_minute") - first
    # Whole steps by the remainder: a division of integers is a fraction on some databases.
    begin = offset - offset % window.step_minutes
    status = Case(*(When(status=one, then=place) for place, one in enumerate(_STATUSES)), default=len(_STATUSES))
    return (
        InvocationRecord.objects.filter(finished_minute__gte=first)
        .annotate(
            step=begin * _PLACES + status,
            times=_bucket_or_none("duration_bucket") * _BUCKETS + _bucket_or_none("first_byte_bucket"),
        )
        .order_by()
        .values_list("step", "times", "endpoint")
        .annotate(runs=Count("*"), tokens=Sum("total_tokens"))
    )


def _bucket_or_none(column: str) -> Combinable:
    return Coalesce(F(column) + 1, 0)


def _tallies(window: Window, now: datetime) -> Mapping[str, list[Tally]]:
    """Return the tallies of a window's steps, by endpoint."""
    last = window.minutes // window.step_minutes - 1
    found: defaultdict[str, list[Tally]] = defaultdict(lambda: [Tally() for _step in range(last + 1)])
    for step, times, endpoint, runs, tokens in grouped(window, now).iterator(chunk_size=10_000):
        minute, status = divmod(step, _PLACES)
        # The clock of the process that wrote it may be ahead of this one.
        tally = found[endpoint][min(minute // window.step_minutes, last)]
        tally.runs += runs
        tally.tokens += tokens or 0
        if status in _ERRORS:
            tally.errors += runs
        if status in _UNTIMED:
            continue
        duration, first_byte = divmod(times, _BUCKETS)
        if duration:
            tally.durations[duration - 1] += runs
        if first_byte:
            tally.first_bytes[first_byte - 1] += runs
    return found


def _active_sessions(now: datetime) -> dict[str, list[int]]:
    """Return the number of active sessions of each window, by endpoint."""
    since = {f"within_{window.minutes}": now - timedelta(minutes=window.minutes) for window in WINDOWS}
    rows = (
        SessionRecord.objects.filter(updated_at__gt=min(since.values()))
        .order_by()
        .values_list("endpoint")
        .annotate(**{name: Count("pk", filter=Q(updated_at__gt=moment)) for name, moment in since.items()})
    )
    return {endpoint: counts for endpoint, *counts in rows}


def _live() -> dict[str, Counter[str]]:
    """Return the number of records that have not ended, by endpoint and status."""
    rows = InvocationRecord.objects.filter(finished_at=None).order_by().values_list("endpoint", "status")
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for endpoint, status, count in rows.annotate(count=Count("*")):
        found[endpoint][status] = count
    return found


def _span(window: Window, now: datetime, tallies: Iterable[list[Tally]], active_sessions: int) -> Span:
    begins_at = now.replace(second=0, microsecond=0) - timedelta(minutes=window.minutes - 1)
    steps = [
        Step(begins_at + timedelta(minutes=offset), Tally()) for offset in range(0, window.minutes, window.step_minutes)
    ]
    total = Tally()
    for of_endpoint in tallies:
        for step, tally in zip(steps, of_endpoint, strict=True):
            step.tally.add(tally)
            total.add(tally)
    return Span(window, tuple(steps), active_sessions, total)
