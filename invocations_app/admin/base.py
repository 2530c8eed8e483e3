"""What both lists share: nothing can be written, and a million rows stay fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from invocations_app import conf
from invocations_app.admin import contents
from invocations_app.models import Scoped

MAX_LISTED = 10_000

if TYPE_CHECKING:
    # The generic classes exist for the type checker only.
    _ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    _ModelAdmin = admin.ModelAdmin
    _Paginator = Paginator


class BoundedPaginator(_Paginator):
    """Counts at most `MAX_LISTED` rows: counting all of a large table takes longer than reading a page of it."""

    @cached_property
    def count(self) -> int:
        """Number of rows that can be paged to."""
        rows: QuerySet[Model] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[:MAX_LISTED].count()


class LightChangeList(ChangeList):
    """A list that does not read the columns that can be large."""

    model_admin: ReadOnlyAdmin

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """Return the rows, without the columns that ``deferred_in_list`` names."""
        return super().get_queryset(request, exclude_parameters).defer(*self.model_admin.deferred_in_list)


class EndpointFilter(admin.SimpleListFilter):
    """Endpoints as the settings name them: asking the table for its distinct values would read all of it."""

    title = _("endpoint")
    parameter_name = "endpoint"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        """Offer the configured endpoints, and the chosen one if it is no longer configured."""
        chosen = self.value()
        aliases = sorted({*conf.get_endpoints(), *([chosen] if chosen else [])})
        return [(alias, alias) for alias in aliases]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of the chosen endpoint."""
        return queryset.filter(endpoint=self.value()) if self.value() else queryset


class ReadOnlyAdmin(_ModelAdmin):
    """An admin of scoped records that adds and changes nothing.

    Attributes:
        deferred_in_list: Columns that the list leaves in the database.
        content_columns: Columns that hold contents: no query string may ask for them.
        content_fields: Fields of the page that only those who may read contents see.
    """

    deferred_in_list: tuple[str, ...] = ()
    content_columns: tuple[str, ...] = ()
    content_fields: tuple[str, ...] = ()
    change_list_template = "admin/invocations_app/change_list.html"
    list_per_page = 50
    list_select_related = ("user",)
    paginator = BoundedPaginator
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False

    class Media:
        """The style sheet of all pages."""

        css = {"all": ["invocations_app/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows with their users."""
        return super().get_queryset(request).select_related("user")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the class of the list."""
        return LightChangeList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list, and say so where it ends before the table does."""
        return super().changelist_view(request, {**(extra_context or {}), "max_listed": MAX_LISTED})

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Refuse to look for what is in contents: that a row is found would tell."""
        if lookup.split("__", 1)[0] in self.content_columns:
            return False
        return super().lookup_allowed(lookup, value, request)

    def get_fieldsets(self, request: HttpRequest, obj: Model | None = None) -> Any:
        """Return the fields of the page, those with contents for those who may read them."""
        fieldsets = super().get_fieldsets(request, obj)
        if contents.may_read(request):
            return fieldsets
        return contents.without_contents(fieldsets, self.content_fields)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody adds: records come from invocations."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Nobody changes what happened."""
        return False

    def may_view(self, request: HttpRequest, model: type[Model]) -> bool:
        """Return whether the user of a request may follow a link to another model's pages.

        Args:
            request: The request.
            model: The other model.
        """
        if not self.admin_site.is_registered(model):
            return False
        return self.admin_site.get_model_admin(model).has_view_permission(request)

    def page(self, request: HttpRequest, title: str, original: Model | None = None) -> dict[str, Any]:
        """Return what the template of a page of one's own needs.

        Args:
            request: The request.
            title: Title of the page.
            original: The record that it is about; None for several or none.
        """
        # By which links within stay in this admin site, where there are several.
        request.current_app = self.admin_site.name
        context = self.admin_site.each_context(request)
        return {**context, "title": title, "opts": self.opts, "original": original, "media": self.media}

    @admin.display(description=_("user"))
    def who(self, record: Scoped) -> str:
        """Return the Django user, or the user key where none is behind the row."""
        return Truncator(str(record.user or record.user_key)).chars(40)


def username_lookup() -> str:
    """Return the search field of the site's own user model."""
    return f"user__{get_user_model().USERNAME_FIELD}"
