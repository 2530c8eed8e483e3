"""Filters of the lists that stay fast with a million rows: none asks the table what there is to choose from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

_AGES = {
    "hour": (timedelta(hours=1), _("Past hour")),
    "day": (timedelta(days=1), _("Past 24 hours")),
    "week": (timedelta(days=7), _("Past 7 days")),
    "month": (timedelta(days=30), _("Past 30 days")),
}


class AgeFilter(admin.SimpleListFilter):
    """How long ago something was done in a session, by the index on it."""

    title = _("last activity")
    parameter_name = "age"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer the last hour, day, week and month, and what is older."""
        return [*((name, text) for name, (_age, text) in _AGES.items()), ("older", _("More than 30 days ago"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of the chosen age."""
        chosen = self.value() or ""
        if chosen == "older":
            return queryset.filter(updated_at__lt=timezone.now() - _AGES["month"][0])
        if chosen in _AGES:
            return queryset.filter(updated_at__gte=timezone.now() - _AGES[chosen][0])
        return queryset


class PendingFilter(admin.SimpleListFilter):
    """Sessions in which somebody has to answer, by the partial index on them."""

    title = _("pending requests")
    parameter_name = "pending"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer both."""
        return [("yes", _("Waits for an answer")), ("no", _("Nothing pending"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows that were chosen."""
        match self.value():
            case "yes":
                return queryset.filter(pending_count__gt=0)
            case "no":
                return queryset.filter(pending_count=0)
        return queryset


class ArchivedFilter(admin.SimpleListFilter):
    """Sessions in use, or those that a reset has put away."""

    title = _("archived")
    parameter_name = "archived"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer both."""
        return [("no", _("No")), ("yes", _("Yes"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows that were chosen."""
        match self.value():
            case "no":
                return queryset.filter(archived_at=None)
            case "yes":
                return queryset.exclude(archived_at=None)
        return queryset


class UserFilter(admin.SimpleListFilter):
    """The one Django user that a link in the list asks for; there is nothing to choose from."""

    title = _("user")
    parameter_name = "user"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        """Offer the user who is asked for, so that the filter can be seen and left."""
        pk = self._pk()
        if pk is None:
            return []
        user = get_user_model()._base_manager.filter(pk=pk).first()
        return [(str(self.value()), str(user) if user else f"#{pk}")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of that user."""
        return queryset.filter(user=self._pk()) if self.value() else queryset

    def _pk(self) -> Any:
        if not self.value():
            return None
        try:
            pk = get_user_model()._meta.pk.to_python(self.value())
        except ValidationError:
            return None
        # No database takes a larger one.
        return None if isinstance(pk, int) and abs(pk) >= 2**63 else pk


class UserKeyFilter(admin.SimpleListFilter):
    """The one user key that a link in the list asks for, of a caller who is no Django user."""

    title = _("user key")
    parameter_name = "user_key"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        """Offer the key that is asked for, so that the filter can be seen and left."""
        return [(key, key)] if (key := self.value()) else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of that key."""
        return queryset.filter(user_key=key) if (key := self.value()) else queryset
