"""The overview of the admin: what it counts, how fast, to whom it is shown, and that its page is one for everybody."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection, transaction
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone, translation

from invocations_app.admin import InvocationAdmin, SessionAdmin, charts, overview
from invocations_app.admin.display import about
from invocations_app.admin.overview import WINDOWS, Part, Span, Step, Tally
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import figures
from tests.admin_records import ESCAPED, INVOCATIONS, SCRIPT, make_invocation, make_session, text_of

HOUR, DAY, WEEK = WINDOWS
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PAGE = "/admin/invocations_app/"
# One for each window, one for the sessions, one for what is live.
QUERIES = 5


def ended(age: timedelta = timedelta(0), *, took: float = 1, now: datetime = NOW, **kwargs: Any) -> InvocationRecord:
    """Make a record that ended some time ago and took some seconds, half of them to its first byte."""
    finished_at = now - age
    begun_at = finished_at - timedelta(seconds=took)
    values = {"created_at": begun_at, "first_byte_at": begun_at + timedelta(seconds=took / 2), "total_tokens": 10}
    values |= {"finished_at": finished_at} | kwargs
    return make_invocation(**figures.of(begun_at, values["first_byte_at"], finished_at)._asdict() | values)


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def read(now: datetime = NOW) -> dict[str, Part]:
    return {part.endpoint: part for part in overview.read(now)}


def span_of(window: overview.Window, endpoint: str = "default") -> Span:
    return read()[endpoint].spans[WINDOWS.index(window)]


def runs_of(span: Span) -> list[int]:
    return [step.tally.runs for step in span.steps]


# What is counted


@pytest.mark.django_db
class TestCounting:
    """Windows, ends, endpoints."""

    def test_a_window_ends_with_the_minute_that_has_begun(self) -> None:
        for age in (0, 59, 60, 1439, 1440, 10079, 10080):
            ended(minutes(age))
        assert [span.total.runs for span in read()["default"].spans] == [2, 4, 6]

    def test_a_window_counts_whole_minutes(self) -> None:
        begin = NOW.replace(second=0) - minutes(59)
        ended(NOW - begin)
        ended(NOW - begin + timedelta(microseconds=1))
        assert span_of(HOUR).total.runs == 1

    @pytest.mark.parametrize("window", WINDOWS, ids=str)
    def test_each_run_is_in_its_step(self, window: overview.Window) -> None:
        count = window.minutes // window.step_minutes
        for age in (0, window.step_minutes - 1, window.step_minutes, window.minutes - 1):
            ended(minutes(age))
        span = span_of(window)
        assert runs_of(span) == [1, *[0] * (count - 3), 1, 2]
        assert span.steps[0].begins_at == NOW.replace(second=0) - minutes(window.minutes - 1)
        assert span.steps[-1].begins_at == NOW.replace(second=0) - minutes(window.step_minutes - 1)

    def test_the_clock_of_another_process_may_be_ahead(self) -> None:
        ended(minutes(-2))
        assert [runs_of(span)[-1] for span in read()["default"].spans] == [1, 1, 1]

    def test_errors_are_what_failed_or_was_interrupted(self) -> None:
        for status in InvocationRecord.Status:
            ended(status=status)
        total = span_of(HOUR).total
        assert (total.runs, total.errors) == (7, 2)
        assert total.error_percent == pytest.approx(200 / 7)

    def test_times_are_those_of_runs_that_were_answered_or_failed(self) -> None:
        for status in InvocationRecord.Status:
            ended(status=status, took=60 if status in ("interrupted", "cancelled") else 2)
        total = span_of(HOUR).total
        assert [about(total.duration_p50), about(total.duration_p95)] == ["1.97 s"] * 2
        assert [about(total.first_byte_p50), about(total.first_byte_p95)] == ["987 ms"] * 2

    def test_one_without_figures_of_its_time_counts_as_a_run_only(self) -> None:
        ended(duration_bucket=None, first_byte_bucket=None, total_tokens=None)
        total = span_of(HOUR).total
        assert (total.runs, total.tokens, total.duration_p50, total.first_byte_p95) == (1, 0, None, None)

    def test_the_smallest_and_the_largest_bucket_are_told_apart(self) -> None:
        ended(duration_bucket=0, first_byte_bucket=537)
        total = span_of(HOUR).total
        assert (total.durations, total.first_bytes) == (Counter({0: 1}), Counter({537: 1}))

    def test_tokens_add_up(self) -> None:
        ended(total_tokens=2**40)
        ended(total_tokens=5)
        assert span_of(HOUR).total.tokens == 2**40 + 5

    def test_old_records_without_figures_are_left_out(self) -> None:
        make_invocation(finished_at=NOW)
        assert span_of(WEEK).total == Tally()

    def test_a_session_is_active_within_a_window_by_its_last_activity(self) -> None:
        for number, age in enumerate((1, 59, 60, 1439, 1440, 10079, 10080)):
            make_session(f"s{number}", updated_at=NOW - minutes(age))
        assert [span.active_sessions for span in read()["default"].spans] == [2, 4, 6]

    def test_what_is_live_is_told_by_endpoint(self) -> None:
        for status in ("running", "running", "queued"):
            make_invocation(status=status)
        make_invocation(status="running", endpoint="other")
        ended(status="awaiting_input")
        told = {name: (part.running, part.queued) for name, part in read().items()}
        assert told == {"": (3, 1), "default": (2, 1), "other": (1, 0)}

    def test_one_endpoint_alone_is_all_of_them(self) -> None:
        assert list(read()) == ["default"]

    @override_settings(INVOCATIONS={name: {"TARGET": "tests.fakes.build_echo", "PATH": name} for name in "ba"})
    def test_all_together_come_first_and_then_each_by_name(self) -> None:
        ended(endpoint="a", took=1)
        ended(endpoint="b", took=100, status="failed")
        ended(endpoint="gone")
        make_session(endpoint="left", updated_at=NOW)
        make_invocation(status="queued", endpoint="waits")
        parts = read()
        assert list(parts) == ["", "a", "b", "gone", "left", "waits"]
        assert [part.is_configured for part in parts.values()] == [True, True, True, False, False, False]
        together = parts[""].spans[0]
        assert (together.total.runs, together.total.errors, together.total.tokens) == (3, 1, 30)
        assert (together.active_sessions, parts[""].queued) == (1, 1)
        assert together.total.durations == Counter({figures.bucket(timedelta(seconds=1)): 2, 180: 1})

    @override_settings(INVOCATIONS={})
    def test_a_site_without_endpoints_has_an_overview_of_nothing(self) -> None:
        assert [(part.endpoint, part.spans[2].total) for part in overview.read(NOW)] == [("", Tally())]

    def test_as_many_queries_with_many_endpoints(self, django_assert_num_queries: Any) -> None:
        for number in range(20):
            ended(endpoint=f"e{number}")
            make_session(f"s{number}", endpoint=f"f{number}", updated_at=NOW)
        with django_assert_num_queries(QUERIES):
            assert len(overview.read(NOW)) == 1 + 1 + 40


# Many rows

ROWS = 200_000
_CONSTANT = {"user_key": "", "chat_key": "", "dialect": "channel", "fingerprint": "f" * 64, "owner": "a" * 32}
_CONSTANT |= {"answer": "x" * 300, "error_code": "", "usage": "", "metadata": "", "input": "", "delivery": ""}
_CONSTANT |= {"delivery_report": ""}


def made_up() -> Iterator[dict[str, Any]]:
    """Yield records of 30 days: the durations of each endpoint are log-normal, and widely apart."""
    chance = random.Random(6)
    for _number in range(ROWS):
        endpoint = chance.choice(["a", "b"])
        finished_at = NOW - timedelta(days=30) * chance.random() ** 2
        duration = timedelta(seconds=chance.lognormvariate(*{"a": (0, 1.5), "b": (4, 0.3)}[endpoint]))
        first_byte = duration * chance.random()
        begun_at = finished_at - duration
        yield {
            "endpoint": endpoint,
            "status": "failed" if chance.random() < 0.03 else "succeeded",
            "created_at": begun_at,
            "first_byte_at": begun_at + first_byte,
            "finished_at": finished_at,
            "total_tokens": chance.randrange(5000),
            **figures.of(begun_at, begun_at + first_byte, finished_at)._asdict(),
        }


def insert(rows: list[dict[str, Any]]) -> None:
    """Insert records, 500 a statement, where ``bulk_create`` takes half a minute."""
    fields = {field.column: field for field in InvocationRecord._meta.concrete_fields if not field.primary_key}
    given = ["key", "invocation_id", "correlation_id", *rows[0]]
    constant = {
        name: _CONSTANT.get(name, field.get_default())
        for name, field in fields.items()
        if name not in given and not field.null
    }
    table = connection.ops.quote_name(InvocationRecord._meta.db_table)
    names = ", ".join(map(connection.ops.quote_name, [*given, *constant]))
    places = f"({', '.join([*['%s'] * len(given), *map(literal, constant.values())])})"
    with transaction.atomic(), connection.cursor() as cursor:
        for first in range(0, len(rows), 500):
            several = rows[first : first + 500]
            values = [[str(first + place)] * 3 + list(row.values()) for place, row in enumerate(several)]
            cursor.execute(
                f"INSERT INTO {table} ({names}) VALUES {', '.join([places] * len(several))}",
                list(itertools.chain.from_iterable(values)),
            )


def literal(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).upper()


def insert_sessions() -> None:
    """Insert a session for every hour of the last 200 days."""
    SessionRecord.objects.bulk_create(
        SessionRecord(
            endpoint="a",
            session_id=f"s{hours}",
            opaque_id=f"s{hours}",
            created_at=NOW - timedelta(days=300),
            updated_at=NOW - timedelta(hours=hours),
            state="x" * 300,
        )
        for hours in range(200 * 24)
    )


def plan_of(sql: str) -> str:
    """Return how the database carries a statement out."""
    with connection.cursor() as cursor:
        cursor.execute(f"{'EXPLAIN QUERY PLAN' if connection.vendor == 'sqlite' else 'EXPLAIN'} {sql}")
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


def exact(values: list[timedelta], fraction: float) -> float:
    return sorted(values)[math.ceil(fraction * len(values)) - 1].total_seconds()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.django_db(transaction=True)
def test_with_200_000_records_it_reads_an_index_only_and_percentiles_are_within_five_percent() -> None:
    rows = list(made_up())
    insert(rows)
    insert_sessions()
    make_invocation(key="live", status="running")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE" if connection.vendor == "sqlite" else "VACUUM ANALYZE")
    with CaptureQueriesContext(connection) as queries:
        parts = read()
    assert len(queries) == QUERIES
    *windows, active, live = [plan_of(query["sql"]) for query in queries.captured_queries]
    if connection.vendor == "sqlite":
        for plan in windows:
            assert "SEARCH invocations_app_invocationrecord USING COVERING INDEX invocations_overview (fini" in plan
        assert "SEARCH invocations_app_sessionrecord USING COVERING INDEX invocations_active (updated_at>?)" in active
    else:
        for plan in windows:
            assert "Index Only Scan using invocations_overview" in plan
            assert "Index Cond: (finished_minute >= " in plan
        assert "Index Only Scan using invocations_active" in active
    assert "invocations_live" in live
    assert (parts["default"].running, parts["a"].spans[2].active_sessions) == (1, 7 * 24)
    for place, window in enumerate(WINDOWS):
        first = figures.minute(NOW) - window.minutes + 1
        within: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["finished_minute"] >= first:
                within[row["endpoint"]].append(row)
                within[""].append(row)
        for endpoint, due in within.items():
            total = parts[endpoint].spans[place].total
            durations = [row["finished_at"] - row["created_at"] for row in due]
            first_bytes = [row["first_byte_at"] - row["created_at"] for row in due]
            assert (total.runs, total.tokens) == (len(due), sum(row["total_tokens"] for row in due))
            assert total.errors == sum(row["status"] == "failed" for row in due)
            assert total.duration_p50 == pytest.approx(exact(durations, 0.5), rel=0.05)
            assert total.duration_p95 == pytest.approx(exact(durations, 0.95), rel=0.05)
            assert total.first_byte_p50 == pytest.approx(exact(first_bytes, 0.5), rel=0.05)
            assert total.first_byte_p95 == pytest.approx(exact(first_bytes, 0.95), rel=0.05)
        assert len(within) == 3


# The page


class Reading(HTMLParser):
    """A page as its tags: what is there, by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def rows_of(text: str) -> list[list[str]]:
    """Return the texts of the body's rows of the first table of figures, charts left out."""
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    return [
        [" ".join(re.sub("<[^>]+>", "", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
        for row in re.findall("<tr>(.*?)</tr>", re.sub("<svg.*?</svg>", "", table, flags=re.S), re.S)
    ]


@pytest.fixture
def someone(db: None) -> Iterator[Any]:
    """Log in a member of staff with the permissions that are named."""

    def log_in(*codenames: str) -> Client:
        user = get_user_model().objects.create_user("someone", password="p", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client = Client()
        client.force_login(user)
        return client

    return log_in


class TestPage:
    """The index page of the app."""

    def test_empty_database(self, admin_client: Client) -> None:
        text = text_of(admin_client.get(PAGE))
        nothing = ["0", "", "0", "-", "-", "", "-", "-", "0", "0"]
        assert rows_of(text) == [[title, *nothing] for title in ("Last hour", "Last day", "Last week")]
        assert "Now: 0 running, 0 waiting." in text
        assert "<rect" not in text

    def test_it_is_the_first_thing(self, admin_client: Client) -> None:
        text = text_of(admin_client.get(PAGE))
        assert text.index('<section class="invocations-overview"') < text.index('id="content-main"')
        assert text.index('id="content-main"') < text.index(f'<a href="{INVOCATIONS}">Invocations</a>')

    def test_figures_stand_in_their_columns(self, admin_client: Client) -> None:
        for _number in range(3):
            ended(took=2, total_tokens=700, now=timezone.now())
        ended(took=200, status="failed", now=timezone.now(), total_tokens=0)
        make_session(updated_at=timezone.now())
        make_invocation(status="running")
        text = text_of(admin_client.get(PAGE))
        figures_of_all = ["4", "", "1 (25.0 %)", "1.97 s", "3.33 min", "", "987 ms", "99.9 s", "2,100", "1"]
        assert [row[1:] for row in rows_of(text)] == [figures_of_all] * 3
        assert "Now: 1 running, 0 waiting." in text

    def test_as_many_queries_as_the_page_had_and_the_overview_needs(self, admin_client: Client) -> None:
        ended(now=timezone.now())
        with CaptureQueriesContext(connection) as start:
            admin_client.get("/admin/")
        assert not any("invocations_app" in query["sql"] for query in start.captured_queries)
        with CaptureQueriesContext(connection) as index:
            admin_client.get(PAGE)
        assert sum("invocations_app_" in query["sql"] for query in index.captured_queries) == QUERIES

    @pytest.mark.parametrize(
        ("codenames", "is_shown"),
        [
            (["view_invocationrecord"], True),
            (["view_sessionrecord"], False),
            (["change_invocationrecord"], True),
            (["view_transcript", "view_sessionrecord", "delete_sessionrecord"], False),
        ],
    )
    def test_it_is_for_those_who_may_view_invocations(self, someone: Any, codenames: list[str], is_shown: bool) -> None:
        client = someone(*codenames)
        with CaptureQueriesContext(connection) as queries:
            text = text_of(client.get(PAGE))
        assert ("invocations-overview" in text) is is_shown
        assert sum("invocations_app_" in query["sql"] for query in queries.captured_queries) == QUERIES * is_shown

    def test_nobody_else_gets_to_the_page(self, someone: Any, client: Client) -> None:
        assert someone().get(PAGE).status_code == 404
        assert client.get(PAGE).status_code == 302

    def test_an_endpoint_that_is_gone_is_named(self, admin_client: Client) -> None:
        ended(endpoint="gone", now=timezone.now())
        text = text_of(admin_client.get(PAGE))
        assert text.count("Not in the settings any more.") == 1
        assert text.index("default</bdi>") < text.index("gone</bdi>") < text.index("Not in the settings any more.")

    @pytest.mark.parametrize("name", [SCRIPT, "&endpoint=other", "W" * 64, "وكيل الدعم", "%s{{ x }}", 'a"b'])
    def test_any_name_of_an_endpoint_is_escaped_and_linked(self, admin_client: Client, name: str) -> None:
        ended(endpoint=name, now=timezone.now())
        text = text_of(admin_client.get(PAGE))
        assert SCRIPT not in text
        assert (ESCAPED in text) is (name == SCRIPT)
        links = [attrs["href"] or "" for attrs in Reading(text).all("a") if "?endpoint=" in (attrs.get("href") or "")]
        assert len(links) == 2
        listed = [admin_client.get(link).context["cl"].result_count for link in links]
        assert sorted(listed) == [0, 1]

    def test_nothing_in_it_needs_an_exception_of_a_content_security_policy(self, admin_client: Client) -> None:
        ended(now=timezone.now())
        text = text_of(admin_client.get(PAGE))
        section = Reading(text[text.index('<section class="inv') : text.index("</section>")])
        assert not section.all("script") + section.all("style")
        assert not [name for _tag, attrs in section.tags for name in attrs if name == "style" or name.startswith("on")]
        assert {"rel": "stylesheet", "href": "/static/invocations_app/overview.css"} in Reading(text).all("link")

    @override_settings(INVOCATIONS={name: {"TARGET": "tests.fakes.build_echo", "PATH": name} for name in "ab"})
    def test_every_chart_has_a_title_and_words_of_its_own(self, admin_client: Client) -> None:
        page = Reading(text_of(admin_client.get(PAGE)))
        ids = [attrs["id"] for _tag, attrs in page.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        pictures = [attrs for attrs in page.all("svg") if attrs.get("class") == "invocations-chart"]
        assert len(pictures) == 3 * 3 * 2
        assert {attrs["role"] for attrs in pictures} == {"img"}
        named = {attrs["id"] for attrs in [*page.all("title"), *page.all("desc")] if "id" in attrs}
        assert named == {attrs[name] for attrs in pictures for name in ("aria-labelledby", "aria-describedby")}

    def test_the_tables_behind_the_charts_hold_every_step(self, admin_client: Client) -> None:
        ended(now=timezone.now())
        text = text_of(admin_client.get(PAGE))
        folded = text[text.index("<details>") : text.index("</details>")]
        assert re.findall("<caption>(.*?)</caption>", folded) == [
            "Last hour, by 5 minutes",
            "Last day, by 1 hour",
            "Last week, by 1 day",
        ]
        assert folded.count('<th scope="row">') == 12 + 24 + 7
        assert folded.count("<td>987 ms</td>") == 3 * 2

    def test_places_in_charts_have_points_in_every_language(self) -> None:
        with translation.override("de"):
            boxes = charts.runs(span_with(Tally(3, 1), Tally(1))).boxes
            assert about(1.234) == "1,23 s"
        places = [place for box in boxes for place in (box.x, box.y, box.width, box.height)]
        assert [place for place in places if not re.fullmatch(r"\d+\.\d\d", place)] == []


class OtherSite(AdminSite):
    """An admin of the site's own."""


with_both, without_invocations = OtherSite(name="own"), OtherSite(name="less")
with_both.register(InvocationRecord, InvocationAdmin)
with_both.register(SessionRecord, SessionAdmin)
without_invocations.register(SessionRecord, SessionAdmin)
urlpatterns = [path("own/", with_both.urls), path("less/", without_invocations.urls)]


@pytest.mark.urls("tests.test_overview")
class TestOwnSites:
    """An AdminSite of the site's own has the overview without doing anything."""

    def test_links_stay_within_the_site(self, admin_client: Client) -> None:
        text = text_of(admin_client.get("/own/invocations_app/"))
        assert '<a href="/own/invocations_app/invocationrecord/?endpoint=default">' in text

    def test_a_site_without_invocations_has_none(self, admin_client: Client) -> None:
        assert "invocations-overview" not in text_of(admin_client.get("/less/invocations_app/"))


# Charts


def span_with(*tallies: Tally) -> Span:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return Span(HOUR, tuple(Step(NOW, tally) for tally in tallies), 0, total)


def kinds(chart: charts.Chart) -> list[tuple[str, str, str]]:
    return [(box.kind, box.y, box.height) for box in chart.boxes]


class TestCharts:
    """Bars, and the words for them."""

    @pytest.fixture(autouse=True)
    def _reader_in_utc(self) -> Iterator[None]:
        with timezone.override(UTC):
            yield

    def test_errors_stand_at_the_foot_of_the_bar_of_all_runs(self) -> None:
        chart = charts.runs(span_with(Tally(4, 1), Tally(), Tally(8, 8)))
        assert kinds(chart) == [
            ("runs", "16.00", "16.00"),
            ("errors", "28.00", "4.00"),
            ("runs", "0.00", "32.00"),
            ("errors", "0.00", "32.00"),
        ]
        assert chart.title == "Runs, last hour"
        assert chart.description == ("Bars of 5 minutes each. Together: 12 runs, 9 errors; in the highest bar: 8 runs.")
        assert chart.boxes[0].label == "03/04/2026 5:06 a.m.: 4 runs, 1 error"

    def test_one_among_many_is_seen(self) -> None:
        chart = charts.runs(span_with(Tally(1, 1), Tally(100_000)))
        assert kinds(chart)[:2] == [("runs", "30.50", "1.50"), ("errors", "30.50", "1.50")]

    def test_durations_reach_from_the_median_to_the_95th_percentile(self) -> None:
        times = Counter({figures.bucket(timedelta(seconds=1)): 90, figures.bucket(timedelta(seconds=4)): 10})
        chart = charts.durations(span_with(Tally(100, durations=times), Tally()))
        ((kind, top, height),) = kinds(chart)
        assert (kind, top) == ("durations", "0.00")
        assert float(height) == pytest.approx(32 * 3 / 4, abs=1)
        assert chart.boxes[0].label == "03/04/2026 5:06 a.m.: p50 987 ms, p95 3.94 s"
        assert chart.description.endswith("The highest ends at 3.94 s.")

    def test_nothing_is_drawn_of_nothing(self) -> None:
        empty = span_with(*itertools.repeat(Tally(), 12))
        assert charts.runs(empty).boxes == charts.durations(empty).boxes == ()
        assert charts.durations(empty).description.endswith("The highest ends at -.")

    @pytest.mark.parametrize("seed", range(5))
    def test_every_box_is_within_the_picture(self, seed: int) -> None:
        chance = random.Random(seed)
        tallies = []
        for _step in range(chance.choice([7, 12, 24])):
            count = chance.randrange(10 ** chance.randrange(1, 6))
            times = Counter({chance.randrange(400): chance.randrange(1, 9) for _bucket in range(chance.randrange(4))})
            tallies.append(Tally(count, chance.randint(0, count), durations=times))
        span = span_with(*tallies)
        for box in (*charts.runs(span).boxes, *charts.durations(span).boxes):
            x, y, width, height = map(float, (box.x, box.y, box.width, box.height))
            assert 0 <= x < x + width <= charts.WIDTH
            assert 0 <= y < y + height <= charts.HEIGHT + 0.01

    def test_a_site_without_time_zones_has_its_times_too(self) -> None:
        with override_settings(USE_TZ=False):
            assert charts.begin_of(Step(datetime(2026, 3, 4, 5, 6), Tally())) == "03/04/2026 5:06 a.m."


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0001, "0.10 ms"),
        (0.01234, "12.3 ms"),
        (0.9994, "999 ms"),
        (1, "1.00 s"),
        (119.9, "120 s"),
        (120, "2.00 min"),
        (7200, "2.00 h"),
        (1_000_000, "278 h"),
    ],
)
def test_times_have_three_digits(seconds: float | None, shown: str) -> None:
    assert about(seconds) == shown
