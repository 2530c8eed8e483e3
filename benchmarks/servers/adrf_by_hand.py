"""An adrf view and nothing else, on this project's handler, which costs less than Django's."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.adrf_settings")

import django


def _build() -> Any:
    django.setup(set_prefix=False)
    # Only importable once Django is set up.
    from invocations_app.handler import InvocationsHandler

    return InvocationsHandler(())


app = _build()
