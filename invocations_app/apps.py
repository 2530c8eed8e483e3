"""The Django app: registers the system checks and follows changed settings."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.signals import setting_changed
from django.utils.translation import gettext_lazy as _


class InvocationsConfig(AppConfig):
    """Agents behind the Invocations protocol."""

    name = "invocations_app"
    label = "invocations_app"
    verbose_name = _("Invocations")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks; settings change under tests only, and the URLs follow."""
        from invocations_app import checks  # noqa: F401

        setting_changed.connect(_follow_settings, dispatch_uid="invocations_app.settings")


def _follow_settings(*, setting: str, **kwargs: Any) -> None:
    from invocations_app import conf, urls

    if setting in {conf.ENDPOINTS_SETTING, conf.HOST_SETTING, "DEBUG"}:
        conf.clear_cache()
        urls.reload()
